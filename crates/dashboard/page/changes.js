// The plan in force, what would change, what changes just now, what is advised, and the way back.

import { get, post } from "./api.js";
import { clock, date } from "./bytes.js";
import { confirm, failure } from "./dialog.js";
import { h, redraw, redrawIf, table } from "./element.js";
import { now } from "./live.js";
import { byName } from "./memory.js";
import { STATE_MARKS, state, trouble } from "./models.js";
import { named, t } from "./words.js";

const EVENTS_SHOWN = 12;

export function changes(root) {
  const parts = {
    state: h("div"),
    underway: h("section.underway"),
    wanted: h("section"),
    advice: h("section"),
    history: h("section"),
    events: h("section"),
  };
  let found = null;
  let isGone = false;
  root.append(
    parts.state,
    parts.underway,
    h("div.columns", h("div", parts.advice, parts.wanted, parts.history), parts.events),
  );

  async function load() {
    try {
      found = await get("/api/changes");
    } catch (refusal) {
      if (!isGone) redraw(parts.state, failure(refusal));
      return;
    }
    if (isGone) return;
    redraw(parts.state);
    redrawIf(parts.advice, found.advice, () => advice(found.advice, load));
    redrawIf(parts.wanted, [found.difference, found.problem, found.strategies, found.spec_digest, now.status?.strategy], () =>
      wanted(found, load),
    );
    redrawIf(parts.history, [found.plans, found.in_force], () => history(found, load));
  }

  function update(what) {
    const { status } = now;
    if (!status || what === "tick" || what === "seen") return;
    const moving = status.instances.filter(isMoving).sort((one, other) => byName(one.id, other.id));
    redrawIf(parts.underway, [moving, status.plan_digest, status.instances.length], () => underway(moving, status));
    redrawIf(parts.events, status.events, () => events(status.events));
    if (what === "status") load();
  }

  redraw(parts.state, h("p.soft.busy", t("loading")));
  load();
  update("first");
  return { update, leave: () => (isGone = true) };
}

function isMoving(one) {
  return !["ready", "asleep", "spare"].includes(one.state) || one.is_to_change || one.is_on_trial;
}

// What is on its way, instance by instance, each with the step that it has come to.
function underway(moving, status) {
  if (!status.plan_digest) return h("p.soft", t("nothing applied"));
  const settled = status.instances.length - moving.length;
  const heading = h(
    "p.lead",
    h("b", status.strategy ?? t("as written")),
    " ",
    h("code", status.plan_digest.slice(0, 8)),
    " · ",
    moving.length === 0
      ? t("all settled", { n: settled })
      : t("settled of", { n: settled, of: status.instances.length }),
  );
  if (moving.length === 0) return [heading];
  const gauge = h("progress", { value: settled, max: status.instances.length, "aria-label": t("progress") });
  const columns = [
    [t("instance"), "short"],
    [t("node"), "short"],
    [t("step"), "short"],
    [t("state"), ""],
  ];
  return [
    heading,
    gauge,
    table(
      t("progress"),
      columns,
      moving.map((one) => ({
        class: `state-${one.state}`,
        cells: [one.id, one.node, steps(one), state(one)],
        after: trouble(one),
      })),
    ),
  ];
}

const STEPS = ["waits", "stops", "starts", "trial", "serves"];

function stepOf(one) {
  if (one.is_to_change) return 0;
  if (one.is_on_trial) return 3;
  return { planned: 0, stopping: 1, starting: 2, backoff: 2, failed: 2, ready: 4 }[one.state] ?? 0;
}

function steps(one) {
  const at = stepOf(one);
  const isStuck = one.state === "backoff" || one.state === "failed";
  const step = (name, index) =>
    h(
      `li${index < at ? ".done" : ""}${index === at ? ".now" : ""}`,
      index === at ? `${isStuck ? "▲ " : ""}${t(`step.${name}`)}` : h("span.spoken", t(`step.${name}`)),
    );
  return h("ol.steps", STEPS.map(step));
}

function advice(advice, load) {
  if (!advice) return [];
  const digest = advice.digest ?? null;
  const answer = (approve) => () =>
    confirm({
      title: t(approve ? "ask approve" : "ask reject"),
      body: adjustments(advice),
      action: t(approve ? "approve" : "reject"),
      run: async () => {
        await post("/api/advice", { digest, approve });
        load();
      },
    });
  return h(
    "div.advice",
    h("h2", t("advice"), h("span.since", date(advice.at_ms))),
    adjustments(advice),
    h(
      "menu",
      h("button", { onclick: answer(false), "data-key": "reject" }, t("reject")),
      h("button.primary", { onclick: answer(true), "data-key": "approve" }, t("approve")),
    ),
  );
}

function adjustments({ changes }) {
  const flag = ({ flag, from, to }) => h("li", h("code", flag), ` ${from ?? "–"} → `, h("b", String(to)));
  return changes.map((one) =>
    h("div.adjustment", h("p", h("b", one.deployment)), h("ul", one.flags.map(flag)), h("p.soft", one.why)),
  );
}

const DIFFERENCE = { "+": "starts", "-": "stops", "~": "restarts" };

// What the spec file says now, against what is in force.
function wanted({ difference, problem, strategies, spec_digest }, load) {
  const choice = h(
    "select",
    { id: "strategy", "data-key": "strategy" },
    h("option", { value: "" }, t("as written")),
    strategies.map((name) => h("option", { value: name, selected: name === now.status?.strategy }, name)),
  );
  const apply = () => askToApply({ strategy: choice.value || null, spec: spec_digest, difference }, load);
  return [
    h("h2", t("spec file")),
    problem && failure({ message: problem.error, hint: problem.hint }),
    !problem && difference.length === 0 && h("p.soft", t("no difference")),
    difference.length > 0 &&
      h(
        "ul.difference",
        difference.map((line) => h(`li.${DIFFERENCE[line[0]] ?? "other"}`, line)),
      ),
    !problem &&
      h(
        "p.choose",
        h("label", { for: "strategy" }, t("strategy")),
        choice,
        h("button.primary", { onclick: apply, "data-key": "apply" }, t("apply"), " …"),
      ),
  ];
}

// The server refuses where the file says something else by then.
function askToApply({ strategy, spec, difference }, load) {
  const isInForce = strategy === (now.status?.strategy ?? null);
  confirm({
    title: t("ask apply", { name: strategy ?? t("as written") }),
    body: isInForce
      ? h(
          "ul.difference",
          difference.map((line) => h(`li.${DIFFERENCE[line[0]] ?? "other"}`, line)),
        )
      : h(
          "p",
          t("other strategy"),
          " ",
          strategy && h("a", { href: `#/strategies/${encodeURIComponent(strategy)}` }, t("see before and after")),
        ),
    action: t("apply"),
    run: async () => {
      await post("/api/apply", { strategy, spec });
      load();
    },
  });
}

function history({ plans, in_force }, load) {
  const columns = [
    [t("plan"), ""],
    [t("strategy"), ""],
    [t("when"), ""],
    ["", "action"],
  ];
  const back = (plan) =>
    confirm({
      title: t("ask rollback", { digest: plan.digest.slice(0, 8) }),
      body: h("p", `${plan.strategy ?? t("as written")} · ${date(plan.at_ms)}. `, t("rollback note")),
      action: t("roll back"),
      run: async () => {
        await post("/api/rollback", { seq: plan.seq });
        load();
      },
    });
  const row = (plan) => [
    h("code", plan.digest.slice(0, 8)),
    plan.strategy ?? t("as written"),
    date(plan.at_ms),
    plan.seq === in_force?.seq
      ? h("span.tag.strong", t("in force"))
      : h("button", { onclick: () => back(plan), "data-key": `back ${plan.seq}` }, t("roll back")),
  ];
  return [
    h("h2", t("plans")),
    plans.length ? table(t("plans"), columns, plans.map(row)) : h("p.soft", t("nothing applied")),
  ];
}

// What happened to instances, the newest first.
function events(all) {
  const newest = [...all].reverse();
  const line = ({ at_ms, instance, what }) => h("li", h("time", clock(at_ms)), h("span.who", instance), event(what));
  const list = (some) => h("ol.events", some.map(line));
  const older = newest.slice(EVENTS_SHOWN);
  return [
    h("h2", t("events")),
    newest.length === 0 && h("p.soft", t("none")),
    list(newest.slice(0, EVENTS_SHOWN)),
    older.length > 0 && h("details", { "data-key": "older" }, h("summary", t("older")), list(older)),
  ];
}

// An event is a name, or a name with what belongs to it.
function event(what) {
  const [name, more] = typeof what === "string" ? [what, {}] : Object.entries(what)[0];
  const mark = { ready: STATE_MARKS.ready, failed: "▲", started: STATE_MARKS.starting, stopping: STATE_MARKS.stopping }[
    name
  ];
  const after = more?.after_ms !== undefined && ` ${t("after", { s: (more.after_ms / 1000).toFixed(1) })}`;
  return h(
    "span",
    mark && h("span.mark", { "aria-hidden": "true" }, mark),
    named("event", name),
    after,
    more?.diagnosis && h("small", more.diagnosis.message),
  );
}
