// A strategy applied from the page, and taken back, against a server that runs already and may be changed:
//
//   BERTH_DASHBOARD, BERTH_DASHBOARD_PASSWORD, CHROMIUM, SCREENSHOTS   as for dashboard.test.mjs
//   BERTH_STRATEGY   a strategy of its spec that is not in force

import assert from "node:assert/strict";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { chromium } from "playwright-core";

const { BERTH_DASHBOARD: base, BERTH_DASHBOARD_PASSWORD: password, BERTH_STRATEGY: strategy } = process.env;
const pictures = process.env.SCREENSHOTS;
const PATIENCE = { timeout: 120_000 };

test("a strategy is applied from the page, step by step, and taken back", async () => {
  const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu"] });
  try {
    const page = await (await browser.newContext({ locale: "en" })).newPage();
    await page.goto(`${base}/#/changes`);
    if (password) {
      await page.locator("#password").fill(password);
      await page.keyboard.press("Enter");
    }
    await page.locator("#strategy").selectOption(strategy);
    await page.locator('[data-key="apply"]').click();
    await page.locator("dialog.ask button.primary").click();
    const lead = page.locator(".underway .lead");
    await page.locator(".underway progress").waitFor(PATIENCE);
    if (pictures) {
      await mkdir(pictures, { recursive: true });
      await page.screenshot({ path: join(pictures, "underway.png") });
    }
    await page.locator(".underway progress").waitFor({ state: "detached", ...PATIENCE });
    assert.ok((await lead.textContent()).startsWith(strategy), await lead.textContent());

    await page.locator('[data-key^="back "]').first().click();
    await page.locator("dialog.ask button.primary").click();
    await page.waitForFunction(
      (name) => !document.querySelector(".underway .lead").textContent.startsWith(name),
      strategy,
      PATIENCE,
    );
    await page.waitForFunction(() => !document.querySelector(".underway progress"), null, PATIENCE);
  } finally {
    await browser.close();
  }
});
