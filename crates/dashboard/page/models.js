// The models: what they are asked, where requests go, how their instances are, and a chat to try them.

import { getOrNone } from "./api.js";
import { count, date, percent } from "./bytes.js";
import { chat } from "./chat.js";
import { h, redrawIf, table } from "./element.js";
import { now } from "./live.js";
import { byName } from "./memory.js";
import { named, number, t } from "./words.js";

// Of a model with more instances those that are not well come first, and the rest is folded.
const SHOWN = 8;

export const STATE_MARKS = {
  ready: "●",
  starting: "◐",
  planned: "○",
  asleep: "☾",
  spare: "◌",
  backoff: "▲",
  failed: "✕",
  stopping: "◍",
};

export function models(root) {
  const list = h("div.list");
  const talk = chat();
  let proofs = [];
  root.append(h("div.columns", list, talk.element));
  getOrNone("/api/proofs").then(
    (found) => {
      proofs = found ?? [];
      update("proofs");
    },
    () => {},
  );

  function update(what) {
    const { status, seen } = now;
    if (what === "tick" || !status) return !status && redrawIf(list, "waiting", () => h("p.soft.busy", t("waiting")));
    const names = [...new Set([...Object.keys(status.routes), ...status.instances.map((one) => one.model)])]
      .filter(Boolean)
      .sort(byName);
    talk.offer(names);
    const engines = new Map((seen?.engines ?? []).map((engine) => [engine.instance, engine]));
    redrawIf(list, [status.instances, status.routes, status.deaths, status.notes, seen?.engines, proofs.length], () => [
      names.length === 0 && h("p.soft", t("nothing applied")),
      names.map((name) => model(name, status, engines, proofs)),
      deaths(status.deaths),
      status.notes.length > 0 && [
        h("h2", t("notes")),
        h(
          "ul.reasons",
          status.notes.map((note) => h("li", note)),
        ),
      ],
    ]);
  }

  update("status");
  return { update };
}

function model(name, status, engines, proofs) {
  const instances = status.instances.filter((one) => one.model === name);
  const ready = status.routes[name]?.length ?? 0;
  const isShort = ready < instances.filter((one) => one.state !== "spare").length;
  const ofThese = instances.map((one) => engines.get(one.id)).filter(Boolean);
  return h(
    "section.model",
    h("h2", name),
    h(
      "dl.figures",
      figure(t("takes requests"), `${count(ready)} / ${count(instances.length)}`, isShort),
      figure(t("running"), count(total(ofThese, "running"))),
      figure(t("waiting in engines"), count(total(ofThese, "waiting")), total(ofThese, "waiting") > 0),
      figure(t("fullest cache"), percent(most(ofThese, "kv_cache_usage"))),
      latency(proofs, name),
    ),
    list(instances, engines),
  );
}

const known = (all, key) => all.map((one) => one[key]).filter((value) => value !== null);
const total = (all, key) => (known(all, key).length ? known(all, key).reduce((sum, one) => sum + one, 0) : null);
const most = (all, key) => (known(all, key).length ? Math.max(...known(all, key)) : null);

function figure(name, value, isWrong = false) {
  return h(`div${isWrong ? ".is-wrong" : ""}`, h("dt", name), h("dd", h("b", isWrong && "▲ ", value)));
}

// Latency is known from proofs alone: berth doesn't look into requests.
function latency(proofs, name) {
  const proof = proofs.find((one) => one.models.some((model) => model.model === name && model.ttft_p50_ms !== null));
  if (!proof) return h("div", h("dt", t("first token")), h("dd", h("small", t("no proof yet"))));
  const { ttft_p50_ms, ttft_p99_ms } = proof.models.find((model) => model.model === name);
  const when =
    proof.digest === now.status.plan_digest
      ? t("proved for this plan")
      : t("proved for another plan", { at: date(proof.at_ms) });
  return h(
    "div",
    h("dt", t("first token")),
    h("dd", h("b", `${number(ttft_p50_ms)} ms`), h("small", `p99 ${number(ttft_p99_ms)} ms · ${when}`)),
  );
}

function list(instances, engines) {
  const isWell = (one) => one.state === "ready" && !one.is_to_change && !one.is_on_trial;
  const sorted = [...instances].sort((one, other) => isWell(one) - isWell(other) || byName(one.id, other.id));
  const rows = sorted.map((one) => row(one, engines.get(one.id)));
  const cut = Math.max(SHOWN, sorted.filter((one) => !isWell(one)).length);
  const columns = [
    [t("instance"), ""],
    [t("state"), ""],
    [t("at"), ""],
    [t("running"), "number"],
    [t("waits"), "number"],
    [t("cache"), "number"],
  ];
  const part = (some) => table(t("instances"), columns, some);
  const more = rows.slice(cut);
  return [
    part(rows.slice(0, cut)),
    more.length > 0 &&
      h(
        "details",
        { "data-key": `more ${instances[0].model}` },
        h("summary", t("more instances", { n: more.length })),
        part(more),
      ),
  ];
}

function row(one, engine) {
  const where = one.port ? `${one.node} · ${one.host}:${one.port}` : one.node;
  const cells = [
    one.id,
    state(one),
    where,
    engine ? count(engine.running) : "–",
    engine ? count(engine.waiting) : "–",
    engine ? usage(engine.kv_cache_usage) : "–",
  ];
  return { class: `state-${one.state}`, cells, after: trouble(one) };
}

export function state(one) {
  const extra = [
    one.is_to_change && t("to change"),
    one.is_on_trial && t("on trial"),
    one.rolled_back && t("rolled back"),
    one.failures > 0 && t("failures", { n: one.failures }),
  ];
  return h(
    "div.state",
    h("span.mark", { "aria-hidden": "true" }, STATE_MARKS[one.state]),
    named("state", one.state),
    extra.filter(Boolean).map((text) => h("span.tag", text)),
    one.doing && h("small.doing", one.doing),
  );
}

// Why it failed last, and what to do; nothing once it serves again.
export function trouble({ diagnosis, state }) {
  if (!diagnosis || state === "ready") return null;
  const { message, hint, evidence } = diagnosis;
  return h("div.diagnosis", h("p", message), evidence && h("code", evidence), h("p.hint", hint));
}

function usage(share) {
  if (share === null) return t("unknown");
  return h(
    "span.usage",
    h("span.gauge", { "aria-hidden": "true" }, h("i", { style: { width: percentWidth(share) } })),
    percent(share),
  );
}

const percentWidth = (share) => `${Math.min(100, share * 100)}%`;

function deaths(all) {
  if (all.length === 0) return null;
  const death = (one) =>
    h(
      "li",
      h("p", h("b", one.instance), " ", t("died of memory"), h("span.since", date(one.at_ms))),
      h("p", one.finding),
      h("p.hint", one.proposal),
    );
  return [h("h2", t("deaths")), h("ul.deaths", [...all].reverse().map(death))];
}
