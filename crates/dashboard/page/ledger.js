// What was predicted beside what was seen, over time, and how far apart they were.

import { get } from "./api.js";
import { chart, summary } from "./chart.js";
import { clock, deviation, gib, gibNumber, percent } from "./bytes.js";
import { drawer, failure } from "./dialog.js";
import { h, redraw, table } from "./element.js";
import { named, t } from "./words.js";
import { byName } from "./memory.js";

const EVERY_MS = 10_000;
const CHARTS_SHOWN = 64;

export function ledger(root) {
  const parts = {
    state: h("div"),
    errors: h("section"),
    filter: h("input", { type: "search", placeholder: t("filter"), "aria-label": t("filter"), oninput: draw }),
    asTable: h("input", { type: "checkbox", id: "as-table", onchange: draw }),
    devices: h("div.devices"),
  };
  let found = null;
  let most = CHARTS_SHOWN;
  root.append(
    parts.state,
    parts.errors,
    h(
      "div.toolbar",
      h("h2", t("over time")),
      legend(),
      h("span.choice", parts.asTable, h("label", { for: "as-table" }, t("as table"))),
      parts.filter,
    ),
    parts.devices,
  );

  async function load() {
    try {
      found = await get("/api/ledger");
      redraw(parts.state);
      draw();
    } catch (refusal) {
      redraw(parts.state, failure(refusal));
    }
  }

  function draw() {
    if (!found) return;
    const text = parts.filter.value.trim().toLowerCase();
    const devices = found.devices.filter((one) => place(one).toLowerCase().includes(text)).sort(byWorst);
    const shown = devices.slice(0, most);
    const showMore = () => {
      most += CHARTS_SHOWN;
      draw();
    };
    redraw(parts.errors, errors(found.errors));
    redraw(
      parts.devices,
      devices.length === 0 && h("p.soft", t("no samples")),
      parts.asTable.checked ? figures(shown) : h("div.charts", shown.map(figure)),
      devices.length > shown.length &&
        h("button", { onclick: showMore, "data-key": "more" }, t("more devices", { n: devices.length - shown.length })),
    );
  }

  redraw(parts.state, h("p.soft.busy", t("loading")));
  load();
  const timer = setInterval(load, EVERY_MS);
  return { leave: () => clearInterval(timer) };
}

const place = ({ node, device }) => `${node} ${device}`;

// What broke its plan comes first.
function byWorst(one, other) {
  return isOver(other) - isOver(one) || byName(place(one), place(other));
}

// As berth's alarms do: a hundredth more than planned is over, and so is what others leave no room for.
function isOver({ points, total }) {
  const last = points.findLast(([, , own]) => own !== null);
  if (!last) return false;
  const [, planned, own, foreign] = last;
  return own > planned * 1.01 + 2 ** 22 || planned + (foreign ?? 0) > total;
}

function legend() {
  const entry = (kind) => h("li", h(`i.line.${kind}`), t(`line.${kind}`));
  return h("ul.legend", { "aria-label": t("legend") }, ["planned", "own", "foreign"].map(entry));
}

function figure(device) {
  const open = () => drawer(place(device), history(device));
  const mark = isOver(device) && h("span.mark.wrong", { title: t("over") }, "▲");
  const last = device.points.at(-1);
  return h(
    "button.chart",
    { onclick: open, "data-key": place(device), "aria-label": `${place(device)}: ${summary(device)}` },
    h("span.where", h("b", mark, place(device)), h("span.soft", last ? `${gibNumber(last[2])} / ${gib(last[1])}` : "")),
    chart(device, { width: 280, height: 64 }),
  );
}

function history(device) {
  const columns = [
    [t("time"), ""],
    ...["planned", "own", "foreign"].map((one) => [t(`line.${one}`), "number"]),
    [t("error"), "number"],
  ];
  const row = ([at, planned, own, foreign]) => [
    clock(at),
    gib(planned),
    gib(own),
    gib(foreign),
    deviation(own ? (planned - own) / own : null),
  ];
  return [
    h("div.large", chart(device, { width: 620, height: 220, withAxes: true })),
    table(place(device), columns, [...device.points].reverse().map(row)),
  ];
}

function figures(devices) {
  const columns = [
    [t("device"), ""],
    [t("line.planned"), "number"],
    [t("line.own"), "number"],
    [t("most held"), "number"],
    [t("line.foreign"), "number"],
    [t("error"), "number"],
  ];
  const row = (device) => {
    const [, planned, own, foreign] = device.points.at(-1) ?? [0, null, null, null];
    const seen = device.points.map((point) => point[2]).filter((value) => value !== null);
    return [
      h("span", isOver(device) && "▲ ", place(device)),
      gib(planned),
      gib(own),
      seen.length ? gib(Math.max(...seen)) : t("unknown"),
      gib(foreign),
      deviation(own ? (planned - own) / own : null),
    ];
  };
  return table(t("over time"), columns, devices.map(row));
}

// Each line is a share of the plan: up to 100 % it was kept.
function errors(all) {
  if (all.length === 0) return [h("h2", t("kept plans")), h("p.soft", t("no errors yet"))];
  const columns = [
    [t("model"), ""],
    [t("device"), ""],
    [t("engine"), ""],
    [t("configurations"), "number"],
    [t("least held"), "number"],
    [t("most held"), "number"],
    [t("of plan"), "range"],
  ];
  const row = (one) => {
    const isBroken = one.most > 1.01;
    return [
      one.model,
      one.device,
      named("engine", one.engine),
      one.configurations,
      percent(one.least, 1),
      h(`span${isBroken ? ".wrong" : ""}`, isBroken && "▲ ", percent(one.most, 1)),
      range(one),
    ];
  };
  return [h("h2", t("kept plans")), table(t("kept plans"), columns, all.map(row)), h("p.soft", t("kept plans note"))];
}

// From 80 % to 105 % of the plan, with a line where the plan is.
function range({ least, most }) {
  const at = (share) => `${Math.min(100, Math.max(0, ((share - 0.8) / 0.25) * 100))}%`;
  const width = `max(3px, calc(${at(most)} - ${at(least)}))`;
  return h(
    "span.range",
    { "aria-hidden": "true" },
    h("i.span", { style: { left: at(least), width } }),
    h("i.plan", { style: { left: at(1) } }),
  );
}
