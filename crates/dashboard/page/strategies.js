// All strategies side by side: what fits and why not, before and after, and a button that brings one into force.

import { getOrNone, post } from "./api.js";
import { count, duration, gib, percent } from "./bytes.js";
import { beforeAndAfter, footing } from "./compare.js";
import { confirm, failure } from "./dialog.js";
import { h, redraw, table } from "./element.js";
import { now } from "./live.js";
import { t } from "./words.js";

// It takes seconds to work out and doesn't change by itself, so it outlives the page.
let compared = null;

export const MARKS = { fits: "●", tight: "△", impossible: "✕" };

export function strategies(root, [wanted]) {
  const parts = { state: h("div", { role: "status" }), list: h("div.list"), chosen: h("section.chosen") };
  let chosen = wanted;
  let isGone = false;
  root.append(parts.state, h("div.columns", parts.list, parts.chosen));

  async function load() {
    redraw(parts.state, h("p.soft.busy", t("comparing")));
    try {
      compared = await getOrNone("/api/strategies");
    } catch (refusal) {
      if (!isGone) redraw(parts.state, failure(refusal), h("button", { onclick: load }, t("again")));
      return;
    }
    if (!isGone) draw();
  }

  function draw() {
    if (!compared) return redraw(parts.state, h("p.soft", t("no spec")));
    redraw(parts.state, recommendation(compared, load));
    const all = compared.strategies;
    const one =
      all.find((each) => each.name === chosen) ?? all.find((each) => each.name === compared.recommended) ?? all[0];
    redraw(parts.list, overview(compared, one, choose));
    redraw(parts.chosen, one && detail(one));
  }

  function choose(name) {
    chosen = name;
    history.replaceState(null, "", `#/strategies/${encodeURIComponent(name)}`);
    draw();
  }

  if (compared) draw();
  else load();
  return {
    update: (what) => what === "plan" && compared && draw(),
    open: ([name]) => name && choose(name),
    leave: () => (isGone = true),
  };
}

function recommendation({ recommended, reasons, runner_up, runner_up_wins }, load) {
  const again = h("button.quiet", { onclick: load, "data-key": "again" }, t("compare again"));
  if (!recommended) return h("div.recommended", h("p", h("b", t("nothing fits"))), again);
  const runnerUp = runner_up && h("p.soft", t("runner-up", { name: runner_up, why: runner_up_wins.join("; ") }));
  return h(
    "div.recommended",
    h("p", t("recommended"), " ", h("b", recommended), h("span.soft", " ", reasons.at(-1) ?? "")),
    runnerUp,
    again,
  );
}

function overview(compared, chosen, choose) {
  const models = [...new Set(compared.strategies.flatMap((one) => one.models.map((model) => model.name)))];
  const columns = [
    [t("strategy"), ""],
    [t("verdict"), ""],
    [t("left on the fullest"), "number"],
    ...models.map((name) => [name, "number"]),
    [t("restarts"), "number"],
  ];
  const row = (one) => {
    const open = () => choose(one.name);
    const name = h(
      "button.name",
      { onclick: open, "aria-pressed": String(one === chosen), "data-key": one.name },
      one.name,
    );
    return {
      class: one === chosen ? "is-chosen" : null,
      onclick: open,
      cells: [
        h("span", name, tags(one, compared)),
        verdict(one),
        one.verdict === "impossible" ? "–" : gib(one.worst?.headroom_bytes),
        ...models.map((model) => capacity(one.models.find((each) => each.name === model))),
        count(one.restarts),
      ],
    };
  };
  const part = (isFound, title) => {
    const some = compared.strategies.filter((one) => one.is_found === isFound);
    return some.length > 0
      ? [{ class: "group", cells: [title, ...columns.slice(1).map(() => "")] }, ...some.map(row)]
      : [];
  };
  return table(t("page.strategies"), columns, [...part(false, t("in the spec")), ...part(true, t("found"))]);
}

function tags(one, { recommended }) {
  return [
    one.name === now.status?.strategy && h("span.tag.strong", t("in force")),
    one.name === recommended && h("span.tag", "★ ", t("best")),
  ];
}

function verdict({ verdict }) {
  return h(`span.is-${verdict}`, h("span.mark", { "aria-hidden": "true" }, MARKS[verdict]), t(`verdict.${verdict}`));
}

// How many run, and what the model keeps of today's speed.
function capacity(model) {
  if (!model || model.instances === 0) return "–";
  const kept = model.capacity === null ? t("new") : percent(model.capacity);
  return h("span", `${count(model.instances)} × `, h("small", kept));
}

function detail(one) {
  const before = footing(now, compared);
  return [
    h("h2", one.name, " ", verdict(one)),
    one.title && h("p", one.title),
    action(one, before),
    h(
      "ul.reasons",
      one.reasons.map((reason) => h("li", reason)),
    ),
    one.written && h("p.written", h("b", t("written beside")), " ", one.written.finding),
    one.complexity.length > 0 && [
      h("h3", t("takes also")),
      h(
        "ul.reasons",
        one.complexity.map((each) => h("li", each)),
      ),
    ],
    speeds(one),
    beforeAndAfter(before, one),
    one.toml && h("details", { "data-key": `toml ${one.name}` }, h("summary", t("as toml")), h("pre", one.toml.trim())),
  ];
}

function speeds(one) {
  const columns = [
    [t("model"), ""],
    [t("how many"), "number"],
    [t("cache tokens"), "number"],
    [t("longest at once"), "number"],
    [t("tokens a second"), "number"],
  ];
  const row = (model) => {
    const { low, mid, high } = model.tokens_per_second;
    const band = h("span", count(Math.round(mid)), h("small", ` ${count(Math.round(low))}–${count(Math.round(high))}`));
    return [
      model.name,
      count(model.instances),
      count(model.kv_cache_tokens),
      count(Math.round(model.max_concurrency)),
      band,
    ];
  };
  return [
    h("h3", t("capacity")),
    table(t("capacity"), columns, one.models.map(row)),
    !one.is_calibrated && h("p.soft", t("not calibrated")),
  ];
}

function action(one, before) {
  if (one.name === now.status?.strategy) return h("p.soft", t("is in force"));
  if (one.verdict === "impossible") return h("p.soft", t("cannot apply"));
  return h(
    "button.primary",
    { onclick: () => askToApply(one, before), "data-key": "apply" },
    t("apply strategy", { name: one.name }),
  );
}

// Says what will stop, start and restart before anything does.
function askToApply(one, before) {
  const { stops, starts, restarts, stays } = before.changesTo(one);
  const list = (key, ids) =>
    ids.length > 0 &&
    h(
      "div.change",
      h("h3", t(key, { n: ids.length })),
      h("p", ids.slice(0, 12).join(", "), ids.length > 12 && ` … (${ids.length})`),
    );
  const seconds = one.restart_seconds;
  confirm({
    title: t("ask apply", { name: one.name }),
    body: [
      list("will stop", stops),
      list("will restart", restarts),
      list("will start", starts),
      h("p", t("will stay", { n: stays.length })),
      one.restarts > 0 &&
        h(
          "p.soft",
          t("takes about", { mid: duration(seconds.mid), low: duration(seconds.low), high: duration(seconds.high) }),
        ),
      one.verdict === "tight" && h("p.problem", "△ ", t("tight warning")),
    ],
    action: t("apply"),
    run: async () => {
      await post("/api/apply", { strategy: one.name, spec: compared.spec_digest });
      location.hash = "#/changes";
    },
  });
}
