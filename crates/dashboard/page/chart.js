// A line chart of one device: what is planned, what berth's instances held, what others held. What wasn't seen is a gap.

import { clock, gib, gibNumber } from "./bytes.js";
import { svg } from "./element.js";
import { t } from "./words.js";

const LINES = [
  ["planned", 1],
  ["own", 2],
  ["foreign", 3],
];

export function chart({ points, total }, { width, height, withAxes = false }) {
  const left = withAxes ? 44 : 0;
  const bottom = withAxes ? 18 : 0;
  const [first, last] = [points[0]?.[0] ?? 0, points.at(-1)?.[0] ?? 1];
  const top = Math.max(total, ...points.flatMap((point) => [point[1], point[2] ?? 0, point[3] ?? 0]));
  const x = (ms) => left + ((ms - first) / Math.max(1, last - first)) * (width - left - 1);
  const y = (bytes) => 2 + (1 - bytes / top) * (height - bottom - 4);
  return svg(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, class: "lines", preserveAspectRatio: "none", "aria-hidden": "true" },
    withAxes
      ? axes({ x, y, left, width, height, top, first, last })
      : svg("line", { class: "total", x1: 0, x2: width, y1: y(total), y2: y(total) }),
    LINES.map(([name, at]) => svg("path", { class: name, d: path(points, at, x, y) })),
  );
}

// The pen is lifted where nothing was seen.
function path(points, at, x, y) {
  let isDown = false;
  let out = "";
  for (const point of points) {
    const value = point[at];
    const isKnown = value !== null;
    if (isKnown) out += `${isDown ? "L" : "M"}${x(point[0]).toFixed(1)} ${y(value).toFixed(1)}`;
    isDown = isKnown;
  }
  return out;
}

function axes({ x, y, left, width, height, top, first, last }) {
  const GIB = 2 ** 30;
  const step = [1, 2, 5, 10, 20, 50, 100, 200, 500].find((one) => top / GIB / one <= 6) ?? 1000;
  const levels = [];
  for (let level = 0; level * GIB <= top; level += step) levels.push(level * GIB);
  const times = [first, first + (last - first) / 2, last];
  const anchor = ["start", "middle", "end"];
  return [
    levels.map((level) => [
      svg("line", { class: "grid", x1: left, x2: width, y1: y(level), y2: y(level) }),
      svg("text", { x: left - 6, y: y(level) + 4, "text-anchor": "end" }, gibNumber(level)),
    ]),
    times.map((at, index) => svg("text", { x: x(at), y: height - 3, "text-anchor": anchor[index] }, clock(at))),
  ];
}

// The same in words.
export function summary({ points }) {
  const last = points.at(-1);
  if (!last) return t("no samples");
  return t("chart label", { planned: gib(last[1]), own: gib(last[2]), others: gib(last[3]) });
}
