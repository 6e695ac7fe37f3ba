// The shell: who may come in, which page is shown, how fresh its figures are.

import { get, onRefused, remove } from "./api.js";
import { clock, duration } from "./bytes.js";
import { h, redrawIf } from "./element.js";
import * as live from "./live.js";
import { login } from "./login.js";
import { language, speak, t } from "./words.js";

// A page puts itself into `main`; it gets what follows its name in the address, and gives back how it goes on:
// `update` with what has changed, `open` with what follows its name now, `leave` when another comes. Each is fetched when
// it is wanted first, so that the first one is there sooner.
const pages = {
  cluster: () => import("./cluster.js"),
  strategies: () => import("./strategies.js"),
  models: () => import("./models.js"),
  ledger: () => import("./ledger.js"),
  changes: () => import("./changes.js"),
  proof: () => import("./proof.js"),
};

const session = { needs_password: false, version: "" };
let page = null;
let isOut = false;
let parts = {};

function address() {
  const [name, ...rest] = location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
  return { name: Object.hasOwn(pages, name) ? name : "cluster", rest };
}

function shell() {
  const link = (name) => h("a", { href: `#/${name}`, "data-page": name }, t(`page.${name}`));
  parts = {
    freshness: h("p.freshness"),
    said: h("p.spoken", { role: "status" }),
    notices: h("div.notices"),
    nav: h("nav", { "aria-label": t("pages") }, Object.keys(pages).map(link)),
    main: h("main", { id: "main", tabindex: "-1" }),
  };
  document.body.replaceChildren(
    h("a.skip", { href: "#main", onclick: skip }, t("skip")),
    h(
      "header.top",
      h("a.brand", { href: "#/cluster" }, "berth"),
      parts.nav,
      h("div.aside", parts.freshness, switches()),
    ),
    parts.notices,
    parts.main,
    parts.said,
  );
}

// The address's part after # is the page: a plain link to #main would change it.
function skip(event) {
  event.preventDefault();
  parts.main.focus();
}

function switches() {
  const other = language === "en" ? "es" : "en";
  return h(
    "div.switches",
    h("button.quiet", { onclick: () => change(other), lang: other, title: t("language.other") }, other.toUpperCase()),
    h("button.quiet", { onclick: turnTheme, title: t("theme"), "aria-label": t("theme") }, "◐"),
    session.needs_password && h("button.quiet", { onclick: leave }, t("log out")),
  );
}

function change(other) {
  speak(other);
  shell();
  show();
}

function turnTheme() {
  const prefersDark = matchMedia("(prefers-color-scheme: dark)").matches;
  const current = document.documentElement.dataset.theme ?? (prefersDark ? "dark" : "light");
  const theme = current === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("berth.theme", theme);
}

async function leave() {
  await remove("/api/session");
  enter();
}

async function show({ isMove = false } = {}) {
  const { name, rest } = address();
  for (const link of parts.nav.children) {
    if (link.dataset.page === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  // On a narrow screen the links may be wider than it. (Scrolling one into view would also move where Tab goes on.)
  parts.nav.scrollLeft = parts.nav.querySelector("[aria-current]").offsetLeft - 80;
  if (isMove && page?.name === name) return page.open?.(rest);
  page?.leave?.();
  page = { name };
  document.title = `${t(`page.${name}`)} · berth`;
  const heading = h("h1.spoken", { tabindex: "-1" }, t(`page.${name}`));
  const body = h(`div.page.${name}`);
  parts.main.replaceChildren(heading, body);
  const module = await pages[name]();
  // Somebody may have gone on meanwhile.
  if (!body.isConnected) return;
  Object.assign(page, module[name](body, rest));
  if (isMove) {
    scrollTo(0, 0);
    heading.focus({ preventScroll: true });
  }
  freshness();
}

// "live" is only said of what is. Anything else says how old the figures are, and greys them.
function freshness() {
  if (!parts.freshness) return;
  const { link, seen } = live.now;
  const isFresh = live.isFresh();
  const age = seen && t("age", { age: duration(live.age()) });
  const word = isFresh ? t("live") : t(link === "live" ? "old" : link);
  redrawIf(parts.freshness, [word, age], () => [
    h(`span.dot${isFresh ? ".on" : ""}`, { "aria-hidden": "true" }),
    h("b", word),
    age && h("span.age", age),
  ]);
  document.body.classList.toggle("is-old", seen !== null && !isFresh);
  const said = link === "lost" ? t("lost") : "";
  if (parts.said.textContent !== said) parts.said.textContent = said;
  notices(isFresh);
}

function notices(isFresh) {
  const { link, seen, plan, status } = live.now;
  const all = [];
  if (seen && !isFresh) all.push(t(link === "lost" ? "figures of, lost" : "figures of", { at: clock(seen.at_ms) }));
  if (plan?.ray?.is_emulated) all.push(t("emulated"));
  if (status && !status.controller_running && plan) all.push(t("no controller"));
  redrawIf(parts.notices, all, () => all.map((text) => h("p.notice", text)));
}

function refused() {
  if (isOut) return;
  isOut = true;
  live.stop();
  page?.leave?.();
  page = null;
  parts = {};
  login(enter);
}

// The stream and the first page are asked for beside the session, not after it.
async function enter() {
  isOut = false;
  live.start();
  pages[address().name]();
  try {
    Object.assign(session, await get("/api/session"));
  } catch {
    // The stream says that there is no connection, and tries again.
  }
  if (session.needs_password && !session.is_in) return refused();
  shell();
  show();
}

onRefused(refused);
live.watch((what) => {
  if (!page) return;
  freshness();
  page.update?.(what);
});
addEventListener("hashchange", () => page && show({ isMove: true }));
enter();
