// Every GPU of every node, what is wrong with them, and how much is left.

import { bar } from "./bar.js";
import { count, duration, gib, gibNumber } from "./bytes.js";
import { h, redrawIf } from "./element.js";
import { openGpu } from "./gpu.js";
import { now } from "./live.js";
import { IS_TIGHT, IS_WRONG, TERM_KINDS, byName, devices, fullest, nodes, placeOf } from "./memory.js";
import { named, t } from "./words.js";
import { serverNow } from "./api.js";

// Up to so many devices all are shown; of more, each node is a cell that opens.
const MOST_SHOWN = 96;
// Up to so many are drawn larger.
const FEW = 8;
const ALARMS_SHOWN = 6;

export function cluster(root, rest) {
  const parts = {
    summary: h("section.summary", { "aria-label": t("summary") }),
    alarms: h("section.alarms", { "aria-label": t("alarms") }),
    count: h("p.soft"),
    map: h("div.map", { onkeydown: steer }),
    filter: h("input", { type: "search", placeholder: t("filter"), "aria-label": t("filter"), oninput: update }),
  };
  const opened = new Set();
  const cards = new Map();
  let areAllAlarmsShown = false;
  root.append(
    parts.summary,
    parts.alarms,
    h("section", { "aria-label": t("memory map") }, h("div.toolbar", legend(), parts.count, parts.filter), parts.map),
  );

  function update(what) {
    if (what === "tick" || !now.seen) return waiting();
    const all = devices(now);
    const wanted = filtered(all, parts.filter.value.trim().toLowerCase());
    drawSummary(parts.summary, all);
    drawAlarms(all);
    drawMap(wanted, all.length > MOST_SHOWN);
    parts.map.classList.toggle("is-few", all.length <= FEW);
  }

  function waiting() {
    if (!now.seen)
      redrawIf(parts.summary, now.link, () => h("p.soft.busy", t(now.link === "lost" ? "lost" : "waiting")));
  }

  function drawAlarms(all) {
    const { alarms, notes } = now.seen;
    const shown = areAllAlarmsShown ? alarms : alarms.slice(0, ALARMS_SHOWN);
    const more = alarms.length - shown.length;
    const showAll = () => {
      areAllAlarmsShown = true;
      drawAlarms(all);
    };
    const minute = Math.floor(serverNow() / 60_000);
    redrawIf(parts.alarms, [alarms, notes, areAllAlarmsShown, minute], () => [
      alarms.length > 0 &&
        h(
          "ul",
          shown.map((one) => alarm(one, all)),
        ),
      more > 0 && h("button", { onclick: showAll, "data-key": "more" }, t("more alarms", { n: more })),
      notes.map((note) => h("p.hint", note)),
    ]);
  }

  function drawMap(wanted, isGrouped) {
    const byNode = nodes(wanted);
    if (isGrouped) byNode.sort((one, other) => other.level - one.level || byName(one.name, other.name));
    parts.map.classList.toggle("is-grouped", isGrouped);
    parts.count.textContent = isGrouped ? t("nodes of", { n: byNode.length }) : "";
    const order = byNode.map((node) => drawNode(node, isGrouped));
    arrange(parts.map, order);
    if (!parts.map.querySelector('[tabindex="0"]')) parts.map.querySelector("button")?.setAttribute("tabindex", "0");
  }

  // A node's card stays the same element, so that what has the focus keeps it.
  function drawNode(node, isGrouped) {
    if (!cards.has(node.name)) cards.set(node.name, h("article.node"));
    const card = cards.get(node.name);
    const isOpen = !isGrouped || opened.has(node.name);
    const turn = () => {
      opened.delete(node.name) || opened.add(node.name);
      update();
    };
    card.classList.toggle("is-cell", !isOpen);
    redrawIf(card, [isOpen, now.plan?.digest, ...(isOpen ? node.devices : [node.fullest]).map(shownOf)], () =>
      isOpen ? whole(node, isGrouped && turn) : cell(node, turn),
    );
    return card;
  }

  update();
  if (rest.length === 2) openGpu(...rest);
  return { update, open: (at) => at.length === 2 && openGpu(...at) };
}

function filtered(all, text) {
  if (!text) return all;
  const has = (name) => name.toLowerCase().includes(text);
  return all.filter(
    (device) => has(device.node) || has(device.name) || device.shares.some((share) => has(share.instance)),
  );
}

// What a look can change of how a device is drawn.
function shownOf({ device, planned, own, foreign, used, left, level, alarms }) {
  return [device, planned, own, foreign, used, left, level, alarms.map((one) => one.kind)];
}

// Puts children into this order, moving only where it is another one.
function arrange(parent, order) {
  const isSame = parent.children.length === order.length && order.every((child, at) => parent.children[at] === child);
  if (!isSame) parent.replaceChildren(...order);
}

// One second: is anything wrong, where, how much is left.
function drawSummary(root, all) {
  const { status, seen } = now;
  const planned = all.filter((device) => device.planned > 0);
  const worst = fullest(planned.filter((device) => device.left !== null));
  const unseen = planned.filter((device) => device.left === null).length;
  const instances = status?.instances ?? [];
  const ready = instances.filter((instance) => instance.state === "ready").length;
  const waits = instances.some((instance) => ["failed", "backoff"].includes(instance.state));
  const figures = [
    worst && figure(t("tightest"), `${worst.isBound ? "≤ " : ""}${gib(worst.left)}`, placeLink(worst), worst.left < 0),
    figure(
      t("seen"),
      `${count(planned.length - unseen)} / ${count(planned.length)}`,
      t("devices with a plan"),
      unseen > 0,
    ),
    status && figure(t("ready"), `${count(ready)} / ${count(instances.length)}`, t("instances"), waits),
    seen.engines.length > 0 &&
      figure(
        t("requests"),
        count(total(seen.engines, "running")),
        t("waiting requests", { waiting: count(total(seen.engines, "waiting")) }),
        false,
      ),
    status?.plan_digest &&
      figure(t("plan"), status.strategy ?? t("as written"), h("code", status.plan_digest.slice(0, 8)), false),
  ];
  const verdict = verdictOf(planned, seen.alarms);
  redrawIf(root, [verdict, figures.map((one) => one && one.textContent), worst && placeOf(worst)], () => [
    h(
      `p.verdict.${verdict.kind}`,
      h("span.mark", { "aria-hidden": "true" }, verdict.mark),
      h("span", verdict.text),
      verdict.more && h("small", verdict.more),
    ),
    h("dl.figures", figures),
  ]);
}

function verdictOf(planned, alarms) {
  const wrong = planned.filter((device) => device.level === IS_WRONG).length;
  const tight = planned.filter((device) => device.level === IS_TIGHT).length;
  const more = tight > 0 ? t("tight devices", { n: tight, of: count(planned.length) }) : "";
  if (alarms.length > 0) return { kind: "wrong", mark: "▲", text: t("alarms now", { n: alarms.length }), more };
  if (wrong > 0) return { kind: "wrong", mark: "▲", text: t("wrong devices", { n: wrong }), more };
  if (planned.length === 0) return { kind: "none", mark: "○", text: t("nothing planned"), more };
  return { kind: "well", mark: "●", text: t("nothing wrong"), more };
}

// Unknown where no engine says.
function total(engines, key) {
  const known = engines.map((engine) => engine[key]).filter((value) => value !== null);
  return known.length ? known.reduce((sum, one) => sum + one, 0) : null;
}

function figure(name, value, more, isWrong) {
  return h(
    `div${isWrong ? ".is-wrong" : ""}`,
    h("dt", name),
    h("dd", h("b", isWrong && "▲ ", value), h("small", more)),
  );
}

function placeLink(device) {
  return h("a", { href: linkTo(device), "data-key": "tightest" }, placeOf(device));
}

const linkTo = (device) => `#/cluster/${encodeURIComponent(device.node)}/${encodeURIComponent(device.device)}`;

function alarm({ kind, subject, message, advice, since_ms }, all) {
  const at = all.find((device) => device.alarms.some((one) => one.kind === kind && one.subject === subject));
  const since = duration((serverNow() - since_ms) / 1000);
  return h(
    "li.alarm",
    h(
      "p",
      h("span.mark", { "aria-hidden": "true" }, "▲"),
      h("b", named("alarm", kind)),
      " ",
      at ? h("a", { href: linkTo(at), "data-key": `${kind} ${subject}` }, subject) : subject,
      h("span.since", t("since", { since })),
    ),
    h("p", { title: message }, message),
    h("p.hint", { title: advice }, advice),
  );
}

function legend() {
  const entry = (kind) => h("li", h(`i.swatch.${kind}`), t(`term.${kind}`));
  return h("ul.legend", { "aria-label": t("legend") }, [...TERM_KINDS, "held", "foreign", "free"].map(entry));
}

function marks(level) {
  if (level === IS_WRONG) return h("span.mark.wrong", { title: t("wrong") }, "▲");
  return level === IS_TIGHT && h("span.mark.tight", { title: t("tight") }, "△");
}

function whole(node, turn) {
  const heading = h("h2", marks(node.level), node.name);
  const close =
    turn &&
    h(
      "button.quiet",
      { onclick: turn, "aria-expanded": "true", "aria-label": t("close"), tabindex: "-1", "data-key": node.name },
      "–",
    );
  const models = node.models.join(", ");
  return [h("header", heading, h("span.soft", { title: models }, models), close), node.devices.map(gpu)];
}

// A device's button says in words what its bar shows.
function gpu(device) {
  const label = t("gpu label", {
    place: placeOf(device),
    planned: gib(device.planned),
    total: gib(device.total),
    left: gib(device.left),
    others: gib(device.foreign),
  });
  const flags = device.alarms.map((one) => named("alarm", one.kind)).join(", ");
  const show = () => (location.hash = linkTo(device));
  return h(
    `button.gpu.level-${device.level}`,
    {
      onclick: show,
      "aria-label": flags ? `${label} ${flags}` : label,
      tabindex: "-1",
      "data-key": placeOf(device),
      title: flags || null,
    },
    h("span.id", shortId(device.device)),
    bar(device),
    h("span.left", device.level === IS_WRONG && h("i", "▲"), `${device.isBound ? "≤" : ""}${gibNumber(device.left)}`),
  );
}

// "gpu:3" is 3 here; a GPU that is known by its UUID alone keeps the start of that.
const shortId = (id) => id.replace(/^gpu:/, "").replace(/^GPU-/, "").slice(0, 4);

function cell(node, turn) {
  const { fullest: device } = node;
  const label = t("node label", { node: node.name, left: gib(device.left), place: placeOf(device) });
  return h(
    `button.cell.level-${node.level}`,
    { onclick: turn, "aria-expanded": "false", "aria-label": label, tabindex: "-1", "data-key": node.name },
    h("span.id", marks(node.level), node.name),
    h("span.left", `${device.isBound ? "≤" : ""}${gibNumber(device.left)}`),
    bar(device, { byTerm: false }),
  );
}

// One stop for Tab; arrows go from device to device, and from node to node.
function steer(event) {
  const steps = { ArrowDown: 1, ArrowUp: -1 };
  const strides = { ArrowRight: 1, ArrowLeft: -1 };
  const map = event.currentTarget;
  const current = event.target.closest("button");
  let next;
  if (event.key in steps) {
    const all = [...map.querySelectorAll("button")];
    next = all[all.indexOf(current) + steps[event.key]];
  } else if (event.key in strides) {
    const card = current.closest(".node");
    const at = [...card.querySelectorAll("button")].indexOf(current);
    const beside = strides[event.key] > 0 ? card.nextElementSibling : card.previousElementSibling;
    const all = beside?.querySelectorAll("button");
    next = all?.[Math.min(at, all.length - 1)];
  }
  if (!next) return;
  event.preventDefault();
  map.querySelector('[tabindex="0"]')?.setAttribute("tabindex", "-1");
  next.setAttribute("tabindex", "0");
  next.focus();
}
