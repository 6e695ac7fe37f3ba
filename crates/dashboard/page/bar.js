// A device's memory, to scale: what is planned from the left, what others hold from the right, what is left in between,
// and under it a line as long as what is held now.

import { h } from "./element.js";
import { bytesOf } from "./memory.js";

const share = (bytes, total) => `${Math.min(100, (100 * bytes) / total)}%`;

export function bar(device, { byTerm = true } = {}) {
  return h("span.bar", { "aria-hidden": "true" }, planned(device, byTerm), foreign(device), held(device));
}

function planned({ planned, shares, total }, byTerm) {
  const isWhole = !byTerm || shares.length === 0;
  const parts = isWhole
    ? h("span.segment.whole", { style: { width: share(planned, total) } })
    : shares.map((one) => ofInstance(one, total));
  return h("span.planned", parts);
}

function ofInstance(one, total) {
  const all = bytesOf(one);
  const segment = ({ kind, bytes }) => h(`span.segment.${kind}`, { style: { width: share(bytes, all) } });
  return h("span.share", { style: { width: share(all, total) } }, one.kinds.map(segment));
}

function foreign({ foreign, total }) {
  return foreign > 0 && h("span.foreign", { style: { width: share(foreign, total) } });
}

// Whose it is may be unknown: the line is dotted then.
function held({ own, used, planned, total }) {
  if (used === null) return h("span.unseen-bar");
  if (own === null) return h("span.held.of-anybody", { style: { width: share(used, total) } });
  const over = Math.max(0, own - planned);
  return [
    h("span.held", { style: { width: share(Math.min(own, planned), total) } }),
    over > 0 && h("span.held.over", { style: { left: share(planned, total), width: share(over, total) } }),
  ];
}
