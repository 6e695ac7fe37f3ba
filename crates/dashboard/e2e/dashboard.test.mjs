// The dashboard in a real browser, against a server that runs already:
//
//   BERTH_DASHBOARD           its address, http://127.0.0.1:7080 by default
//   BERTH_DASHBOARD_PASSWORD  its password, where one is set
//   CHROMIUM                  the browser, /usr/bin/chromium by default
//   SCREENSHOTS               a folder for a picture of each page, where they are wanted
//
// It changes nothing: no dialog that would is confirmed. It sends one chat. Times are logged and never asserted.

import assert from "node:assert/strict";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { chromium } from "playwright-core";

const base = (process.env.BERTH_DASHBOARD ?? "http://127.0.0.1:7080").replace(/\/$/, "");
const password = process.env.BERTH_DASHBOARD_PASSWORD;
const pictures = process.env.SCREENSHOTS;
const PAGES = ["cluster", "strategies", "models", "ledger", "changes", "proof"];
const MOST_BYTES = 150_000;
const QUIET = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

let browser;
before(async () => {
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: QUIET });
  if (pictures) await mkdir(pictures, { recursive: true });
});
after(() => browser?.close());

// A browser of its own for each test. What goes wrong in the page is collected, and so is whom it asks.
async function visit({
  page: name = "cluster",
  width = 1280,
  theme = "light",
  locale = "en",
  enter = true,
  prepare,
} = {}) {
  const context = await browser.newContext({ viewport: { width, height: 800 }, colorScheme: theme, locale });
  const page = await context.newPage();
  const seen = { problems: [], origins: new Set() };
  page.on("pageerror", (error) => seen.problems.push(error.message));
  page.on(
    "console",
    (message) =>
      message.type() === "error" && !/status of 40[14]/.test(message.text()) && seen.problems.push(message.text()),
  );
  page.on("request", (request) => request.url().startsWith("data:") || seen.origins.add(new URL(request.url()).origin));
  await prepare?.(page);
  await page.goto(`${base}/#/${name}`);
  if (password && enter) await logIn(page, password);
  if (enter) await page.locator("nav a").first().waitFor();
  return { page, seen, done: () => context.close() };
}

async function logIn(page, word) {
  await page.locator("#password").fill(word);
  await page.keyboard.press("Enter");
}

// Until a page shows what it has, and nothing on it says that it still loads.
async function settled(page) {
  await page.waitForFunction(
    () => document.querySelector(".page")?.textContent.trim() && !document.querySelector(".busy"),
    null,
    { timeout: 60_000 },
  );
  await page.waitForTimeout(300);
}

async function goTo(page, name) {
  await page.locator(`nav a[data-page="${name}"]`).click();
  await page.locator(`.page.${name}`).waitFor();
  await settled(page);
}

async function picture(page, name) {
  if (pictures) await page.screenshot({ path: join(pictures, `${name}.png`) });
}

const overflow = (page) =>
  page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
const answer = (page, path) =>
  page.evaluate((at) => fetch(at).then((response) => (response.ok ? response.json() : null)), path);

// One look from the stream, as the page gets it.
const look = (page) =>
  page.evaluate(
    () =>
      new Promise((resolve) => {
        const source = new EventSource("/api/live");
        source.addEventListener("seen", (event) => {
          source.close();
          resolve(JSON.parse(event.data));
        });
      }),
  );

describe("the dashboard", () => {
  test("shows every device of the cluster, and one of them to the byte", async () => {
    const { page, seen, done } = await visit();
    await settled(page);
    const { devices } = await look(page);
    const nodes = new Set(devices.map((device) => device.node));
    assert.equal(await page.locator(".node").count(), nodes.size);
    if (devices.length > 0) {
      if (await page.locator(".cell").count()) await page.locator(".cell").first().click();
      await page.locator(".gpu").first().click();
      await page.locator("dialog.drawer dl.totals").waitFor();
      await picture(page, "gpu");
      await page.keyboard.press("Escape");
      await page.locator("dialog").waitFor({ state: "detached" });
    }
    assert.deepEqual(seen.problems, []);
    await done();
  });

  test("compares strategies, and says what would restart before it applies one", async () => {
    const { page, seen, done } = await visit({ page: "strategies" });
    await settled(page);
    const compared = await answer(page, "/api/strategies");
    assert.equal(await page.locator(".list button.name").count(), compared?.strategies.length ?? 0);
    for (const { name } of compared?.strategies.slice(0, 3) ?? []) {
      await page.locator(`.list button.name[data-key="${name}"]`).click();
      assert.ok((await page.locator(".chosen h2").textContent()).startsWith(name));
    }
    const other = compared?.strategies.find((one) => one.verdict !== "impossible");
    if (other) {
      await page.locator(`.list button.name[data-key="${other.name}"]`).click();
      const apply = page.locator('.chosen [data-key="apply"]');
      if (await apply.count()) {
        await apply.click();
        await page.locator("dialog.ask").waitFor();
        await picture(page, "ask");
        await page.keyboard.press("Escape");
      }
    }
    assert.deepEqual(seen.problems, []);
    await done();
  });

  test("shows models, the ledger, changes and proofs as the server has them", async () => {
    const { page, seen, done } = await visit({ page: "models" });
    await settled(page);
    const plan = await answer(page, "/api/plan");
    const models = new Set(plan?.plan.instances.map((one) => one.model));
    for (const model of models) assert.ok(await page.locator(".model h2", { hasText: model }).count(), model);
    await goTo(page, "ledger");
    const ledger = await answer(page, "/api/ledger");
    assert.equal(await page.locator("button.chart").count(), Math.min(64, ledger.devices.length));
    await page.locator("#as-table").check();
    assert.equal(await page.locator(".devices tbody tr").count(), Math.min(64, ledger.devices.length));
    await goTo(page, "changes");
    const changes = await answer(page, "/api/changes");
    for (const { digest } of changes.plans)
      assert.ok((await page.locator(".changes").textContent()).includes(digest.slice(0, 8)));
    for (const line of changes.difference) assert.ok((await page.locator(".difference").textContent()).includes(line));
    await goTo(page, "proof");
    const proofs = await answer(page, "/api/proofs");
    assert.equal(await page.locator(".report").count(), proofs.length);
    assert.deepEqual(seen.problems, []);
    await done();
  });

  test("sends a chat through the gateway, and shows what comes or why nothing does", async () => {
    const { page, seen, done } = await visit({ page: "models" });
    await settled(page);
    if (await page.locator("#chat-model option").count()) {
      await page.locator("#chat-prompt").fill("What is a berth?");
      await page.keyboard.press("Enter");
      await page.locator(".answer:not(:empty)").waitFor({ timeout: 120_000 });
      await picture(page, "chat");
    }
    assert.deepEqual(
      seen.problems.filter((problem) => !problem.includes("Failed to load")),
      [],
    );
    await done();
  });

  test("is live: a figure or its age changes by itself", async () => {
    const { page, done } = await visit();
    await settled(page);
    const text = () =>
      page.evaluate(
        () => document.querySelector(".freshness").textContent + document.querySelector("main").textContent,
      );
    const earlier = await text();
    await page.waitForFunction(
      (before) =>
        document.querySelector(".freshness").textContent + document.querySelector("main").textContent !== before,
      earlier,
      { timeout: 30_000 },
    );
    await done();
  });

  test("says so when the connection is lost, and greys what is old", async () => {
    const { page, done } = await visit();
    await settled(page);
    if (await page.locator(".node").count()) {
      await page.context().route("**/api/**", (route) => route.abort());
      await page.evaluate(() => import("/live.js").then((live) => live.start()));
      await page.locator("body.is-old .notice").first().waitFor({ timeout: 20_000 });
      assert.equal(await page.locator(".dot.on").count(), 0);
      await picture(page, "lost");
    }
    await done();
  });

  test("refuses a wrong password", { skip: !password }, async () => {
    const { page, done } = await visit({ enter: false });
    await logIn(page, `not ${password}`);
    await page.locator(".login .problem:not(:empty)").waitFor();
    await picture(page, "login");
    assert.equal(await page.locator("nav").count(), 0);
    assert.equal(await page.evaluate(() => fetch("/api/plan").then((response) => response.status)), 401);
    await logIn(page, password);
    await page.locator("nav a").first().waitFor();
    await done();
  });

  test("asks nobody else, and weighs little", async () => {
    const sizes = new Map();
    const prepare = (page) =>
      page.on("response", async (response) => {
        const path = new URL(response.url()).pathname;
        if (/^\/([\w-]+\.(js|css))?$/.test(path)) sizes.set(path, (await response.body().catch(() => "")).length);
      });
    const { page, seen, done } = await visit({ prepare });
    await settled(page);
    for (const name of PAGES) await goTo(page, name);
    assert.deepEqual([...seen.origins], [new URL(base).origin]);
    const total = [...sizes.values()].reduce((sum, one) => sum + one, 0);
    console.log(`${sizes.size} files, ${total} bytes`);
    assert.ok(total > 0 && total < MOST_BYTES, `${total} bytes`);
    await done();
  });

  test("can be walked by keyboard", async () => {
    const { page, done } = await visit();
    await settled(page);
    await page.evaluate(() => document.activeElement.blur());
    await page.keyboard.press("Tab");
    assert.equal(await page.evaluate(() => document.activeElement.className), "skip");
    await page.keyboard.press("Enter");
    assert.equal(await page.evaluate(() => document.activeElement.id), "main");
    await page.locator("nav a").first().focus();
    for (const name of PAGES.slice(1)) {
      // The focus goes to the page's heading; from there it is taken back to the link before the next one.
      await page.locator('nav a[aria-current="page"]').focus();
      await page.keyboard.press("Tab");
      await page.keyboard.press("Enter");
      await page.locator(`.page.${name}`).waitFor();
      await page.waitForFunction(() => document.activeElement.tagName === "H1");
      assert.equal(await page.locator('nav a[aria-current="page"]').getAttribute("data-page"), name);
    }
    await goTo(page, "cluster");
    const buttons = page.locator(".map button");
    if ((await buttons.count()) > 1) {
      assert.equal(await page.locator('.map [tabindex="0"]').count(), 1);
      await page.locator('.map [tabindex="0"]').focus();
      const from = await page.evaluate(() => document.activeElement.dataset.key);
      await page.keyboard.press("ArrowDown");
      assert.notEqual(await page.evaluate(() => document.activeElement.dataset.key), from);
    }
    await done();
  });

  test("speaks both languages, and remembers which", async () => {
    const { page, done } = await visit({ locale: "es-ES" });
    await settled(page);
    assert.equal(await page.locator("html").getAttribute("lang"), "es");
    assert.equal(await page.locator('nav a[data-page="changes"]').textContent(), "Cambios");
    await page.locator('.switches [lang="en"]').click();
    assert.equal(await page.locator('nav a[data-page="changes"]').textContent(), "Changes");
    await page.reload();
    await page.locator("nav a").first().waitFor();
    assert.equal(await page.locator("html").getAttribute("lang"), "en");
    const missing = await page.evaluate(async () => {
      const [{ english }, { spanish }] = await Promise.all([import("/english.js"), import("/spanish.js")]);
      const keys = new Set([...Object.keys(english), ...Object.keys(spanish)]);
      return [...keys].filter((key) => !(key in english && key in spanish));
    });
    assert.deepEqual(missing, []);
    await done();
  });

  test("is dark where that is preferred, and switches", async () => {
    const light = () => Math.max(...getComputedStyle(document.body).backgroundColor.match(/\d+/g).slice(0, 3)) > 128;
    const { page, done } = await visit({ theme: "dark" });
    assert.equal(await page.evaluate(light), false);
    await page.locator(".switches button").nth(1).click();
    assert.equal(await page.evaluate(light), true);
    await page.reload();
    assert.equal(await page.evaluate(light), true);
    await done();
  });

  // The contrast of all text that is shown, as WCAG AA asks for: 4.5, or 3 for what is large.
  for (const theme of ["light", "dark"]) {
    test(`can be read (${theme})`, async () => {
      const { page, done } = await visit({ theme });
      await settled(page);
      for (const name of PAGES) {
        await goTo(page, name);
        assert.deepEqual(await page.evaluate(faint), [], name);
      }
      await done();
    });
  }

  for (const width of [1280, 390]) {
    for (const theme of ["light", "dark"]) {
      test(`fits ${width} pixels (${theme})`, async () => {
        const { page, seen, done } = await visit({ width, theme, locale: width === 390 ? "es" : "en" });
        await settled(page);
        for (const name of PAGES) {
          await goTo(page, name);
          assert.ok((await overflow(page)) <= 0, `${name} is wider than the window`);
          await picture(page, `${name}-${width}-${theme}`);
        }
        assert.deepEqual(seen.problems, []);
        await done();
      });
    }
  }

  test("is painted soon (logged, not judged)", async () => {
    const prepare = (page) =>
      page.addInitScript(() => {
        new MutationObserver((_, observer) => {
          if (!document.querySelector(".gpu, .cell")) return;
          observer.disconnect();
          requestAnimationFrame(() => (window.mapAt = performance.now()));
        }).observe(document, { childList: true, subtree: true });
      });
    const { page, done } = await visit({ prepare });
    await settled(page);
    const [paint, map, nodes] = await page.evaluate(() => [
      performance.getEntriesByName("first-contentful-paint")[0]?.startTime,
      window.mapAt,
      document.querySelectorAll(".node *").length,
    ]);
    console.log(
      `first contentful paint ${Math.round(paint)} ms, memory map ${Math.round(map)} ms, ${nodes} elements in it`,
    );
    await done();
  });
});

// Runs in the page: texts with too little contrast against what is behind them.
function faint() {
  const parse = (color) => color.match(/[\d.]+/g).map(Number);
  const part = (value) => ((value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const found = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text = walker.nextNode(); text; text = walker.nextNode()) {
    const element = text.parentElement;
    if (!text.textContent.trim() || !element.checkVisibility() || element.closest(".spoken, .skip, svg, option"))
      continue;
    const style = getComputedStyle(element);
    const [one, other] = [light(parse(style.color)), light(behind(element))].sort((a, b) => b - a);
    const isLarge =
      parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && Number(style.fontWeight) >= 700);
    const contrast = (one + 0.05) / (other + 0.05);
    if (contrast < (isLarge ? 3 : 4.5)) found.add(`${element.className || element.tagName}: ${contrast.toFixed(2)}`);
  }
  return [...found];
}
