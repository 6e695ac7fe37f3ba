// What a strategy changes: every GPU's instances before and after.

import { gib } from "./bytes.js";
import { h } from "./element.js";
import { t } from "./words.js";

const NODES_SHOWN = 8;

// What a strategy is compared with: the strategy in force as the same comparison reckons it; else the plan in force, of
// which the bytes are reckoned otherwise (only who runs where is compared then); else what the spec says runs today.
export function footing({ plan, status }, compared) {
  if (!plan) return before(compared.today?.gpus ?? [], t("today"), true);
  const gpus = gpusOf(plan);
  const reckoned = compared.strategies.find((one) => one.name === (status?.strategy ?? "as-written"));
  const places = (some) => [...instances(some).keys()].sort().join();
  const isSame = reckoned && places(reckoned.gpus) === places(gpus);
  return before(isSame ? reckoned.gpus : gpus, t("in force"), isSame);
}

// A plan's devices as a comparison spells them.
function gpusOf(plan) {
  const on = (device) => {
    const here = plan.instances.filter((one) => one.node === device.node);
    return here.flatMap((one) => {
      const bytes = one.shares
        .filter((share) => share.device === device.device)
        .flatMap((share) => share.footprint.map((term) => term.bytes));
      return bytes.length
        ? [{ instance: one.id, model: one.model, bytes: bytes.reduce((sum, each) => sum + each, 0) }]
        : [];
    });
  };
  return plan.devices.map((device) => ({
    node: device.node,
    gpu: device.device,
    total_bytes: device.total,
    headroom_bytes: device.total - device.planned,
    instances: on(device),
  }));
}

// Instances by model and place, each with its bytes as a text. Their ids say less: a strategy names deployments anew, and
// what stays where it is with what it has goes on under its old id.
function instances(gpus) {
  const byId = new Map();
  for (const { node, gpu, instances } of gpus) {
    for (const { instance, model, bytes } of instances) {
      if (!byId.has(instance)) byId.set(instance, { model, node, gpus: [], bytes: [] });
      byId.get(instance).gpus.push(gpu);
      byId.get(instance).bytes.push(bytes);
    }
  }
  const byPlace = new Map();
  for (const one of byId.values()) {
    const place = `${one.model} (${one.node} ${one.gpus.join(" ")})`;
    byPlace.set(place, { node: one.node, bytes: `${byPlace.get(place)?.bytes ?? ""} ${one.bytes}` });
  }
  return byPlace;
}

function before(gpus, title, withBytes) {
  const ours = instances(gpus);
  return {
    gpus,
    title,
    changesTo(report) {
      const theirs = instances(report.gpus);
      const kept = [...theirs.keys()].filter((place) => ours.has(place));
      const isSame = (place) => !withBytes || ours.get(place).bytes === theirs.get(place).bytes;
      const stops = [...ours.keys()].filter((place) => !theirs.has(place));
      const starts = [...theirs.keys()].filter((place) => !ours.has(place));
      const restarts = kept.filter((place) => !isSame(place));
      const nodes = [
        ...stops.map((place) => ours.get(place)),
        ...[...starts, ...restarts].map((place) => theirs.get(place)),
      ].map((one) => one.node);
      return { stops, starts, restarts, stays: kept.filter(isSame), nodes: [...new Set(nodes)] };
    },
  };
}

export function beforeAndAfter(before, report) {
  const changed = before.changesTo(report).nodes;
  const all = new Set(report.gpus.map((gpu) => gpu.node));
  const more = changed.length - NODES_SHOWN;
  return [
    h("h3", t("before and after")),
    changed.slice(0, NODES_SHOWN).map((node) => pair(node, before, report)),
    h("p.soft", more > 0 && `${t("more nodes", { n: more })} `, t("nodes stay", { n: all.size - changed.length })),
  ];
}

function pair(node, before, report) {
  const half = (title, gpus) => h("div.half", h("h4", title), gpus.filter((gpu) => gpu.node === node).map(row));
  return h("div.pair", h("p.where", node), half(before.title, before.gpus), half(report.name, report.gpus));
}

function row({ gpu, total_bytes, headroom_bytes, instances }) {
  const part = ({ model, instance, bytes }) =>
    h(
      "span.part",
      { style: { width: `${Math.min(100, (100 * bytes) / total_bytes)}%` }, title: `${instance}: ${gib(bytes)}` },
      h("span", model),
    );
  const said = instances.map((one) => `${one.instance} ${gib(one.bytes)}`).join(", ");
  return h(
    "div.row",
    h("span.id", gpu.replace(/^gpu:/, "")),
    h("span.parts", { role: "img", "aria-label": said || t("empty") }, instances.map(part)),
    h("span.left", gib(headroom_bytes)),
  );
}
