// What is planned on a GPU beside what is seen there, and how much of a worry that is.

const TIGHT = 0.03;
const OK = 0;
export const IS_TIGHT = 1;
export const IS_WRONG = 2;

// The terms of berth's memory model are many; a map shows five kinds of them.
const KINDS = {
  weights: ["weights", "weight_segments", "weights_repacked", "mixed_types", "loading"],
  cache: ["kv_cache", "kv_cache_segments", "context_checkpoints", "prompt_cache"],
  work: ["retained_activations", "served_growth", "sampler_state", "compute", "work", "output", "visiting", "pool"],
  graphs: ["cuda_graphs", "cuda_graph_pool"],
};
export const TERM_KINDS = [...Object.keys(KINDS), "other"];

export function kindOf(term) {
  return Object.keys(KINDS).find((kind) => KINDS[kind].includes(term)) ?? "other";
}

export const placeOf = (device) => `${device.node} ${device.device}`;
const sum = (numbers) => numbers.reduce((total, one) => total + one, 0);
export const bytesOf = (share) => sum(share.terms.map((term) => term.bytes));

// node-2 comes before node-10.
const order = new Intl.Collator("en", { numeric: true });
export const byName = (one, other) => order.compare(one, other);

// The plan's shares by place. A plan doesn't change, so this is worked out once for each.
const indexed = new WeakMap();
function sharesOf(plan) {
  if (!plan) return new Map();
  if (!indexed.has(plan)) indexed.set(plan, index(plan));
  return indexed.get(plan);
}

function index(plan) {
  const byPlace = new Map();
  for (const instance of plan.instances) {
    for (const share of instance.shares) {
      const place = placeOf({ node: instance.node, device: share.device });
      if (!byPlace.has(place)) byPlace.set(place, []);
      byPlace.get(place).push({
        instance: instance.id,
        model: instance.model,
        terms: share.footprint,
        kinds: byKind(share.footprint),
      });
    }
  }
  return byPlace;
}

function byKind(terms) {
  const of = (kind) => sum(terms.filter((term) => kindOf(term.name) === kind).map((term) => term.bytes));
  return TERM_KINDS.map((kind) => ({ kind, bytes: of(kind) })).filter((one) => one.bytes > 0);
}

// Alarms are about a device ("node-0 gpu:1"), an instance, or an instance on a device.
function alarmsOf(alarms, place, shares) {
  const isHere = ({ subject }) =>
    subject === place || subject.endsWith(` on ${place}`) || shares.some((share) => share.instance === subject);
  return alarms.filter(isHere);
}

// Every device, in the order of nodes and then of devices.
export function devices({ seen, plan }) {
  const shares = sharesOf(plan);
  return (seen?.devices ?? []).map((device) => one(device, shares.get(placeOf(device)) ?? [], seen.alarms));
}

function one(device, shares, alarms) {
  const here = alarms.length ? alarmsOf(alarms, placeOf(device), shares) : [];
  const found = { ...device, shares, alarms: here, ...leftOf(device) };
  return { ...found, level: levelOf(found) };
}

// What is left once everything holds what is planned for it. Where it isn't known who holds what, it is known only
// that no more can be left than is free now, nor than the plan leaves.
function leftOf(device) {
  if (device.used === null) return { left: null, isBound: false };
  if (device.headroom !== null) return { left: device.headroom, isBound: false };
  return { left: device.total - Math.max(device.planned, device.used), isBound: true };
}

function levelOf(device) {
  const isPlanned = device.planned > 0;
  if (device.alarms.length > 0) return IS_WRONG;
  if (isPlanned && (device.left === null || device.left < 0)) return IS_WRONG;
  return isPlanned && device.left < device.total * TIGHT ? IS_TIGHT : OK;
}

// What one instance holds of a device; none where it isn't seen who holds what.
export function heldBy(device, instance) {
  if (!device.holders) return null;
  return sum(device.holders.filter((holder) => holder.instance === instance).map((holder) => holder.bytes));
}

// Devices by node, each node with its fullest device and its worst level.
export function nodes(all) {
  const byNode = new Map();
  for (const device of all)
    byNode
      .set(device.node, byNode.get(device.node) ?? [])
      .get(device.node)
      .push(device);
  return [...byNode].map(([name, here]) => ({
    name,
    devices: here,
    level: Math.max(...here.map((device) => device.level)),
    fullest: fullest(here),
    models: [...new Set(here.flatMap((device) => device.shares.map((share) => share.model)))],
  }));
}

// The device with least left; one that can't be seen is no better than a full one.
export function fullest(all) {
  const left = (device) => (device.left === null ? -Infinity : device.left);
  return all.reduce((least, device) => (least && left(least) <= left(device) ? least : device), null);
}
