// One GPU to the byte, in a drawer that goes on being live.

import { bar } from "./bar.js";
import { deviation, duration, exact, gib } from "./bytes.js";
import { drawer } from "./dialog.js";
import { h, redrawIf, table } from "./element.js";
import { age, now, watch } from "./live.js";
import { bytesOf, devices, heldBy, kindOf } from "./memory.js";
import { named, t } from "./words.js";

export function openGpu(node, device) {
  const body = h("div.gpu-details");
  const find = () => devices(now).find((one) => one.node === node && one.device === device);
  const draw = () => {
    const found = find();
    const reported = (now.status?.ledger ?? []).filter((line) => line.device === device);
    redrawIf(body, [found ?? null, reported.length, now.plan?.digest, now.link], () =>
      found ? details(found, reported) : h("p.soft", t(now.seen ? "not there" : "waiting")),
    );
  };
  draw();
  const forget = watch((what) => what !== "tick" && draw());
  // Closing it goes back to the page's own address, without another step in the history.
  drawer(`${node} ${device}`, body, () => {
    forget();
    if (location.hash.split("/").length > 2) history.replaceState(null, "", "#/cluster");
  });
}

function details(device, reported) {
  return [
    h("p.soft", device.name, " · ", t("age", { age: duration(age()) })),
    h("div.large", bar(device)),
    totals(device),
    device.alarms.map(alarm),
    h("h3", t("planned by term")),
    device.shares.length ? terms(device, reported) : h("p.soft", t("nothing planned here")),
    h("h3", t("who holds what")),
    holders(device),
  ];
}

function totals(device) {
  const line = (name, bytes, note) => h("div", h("dt", t(name)), h("dd", h("b", gib(bytes)), note && h("small", note)));
  return h(
    "dl.totals",
    line("total", device.total),
    line("planned", device.planned),
    line("held by berth", device.own),
    line("held by others", device.foreign),
    device.own === null && line("held by anybody", device.used),
    line(device.isBound ? "left at most" : "left", device.left),
  );
}

function alarm({ kind, message, advice }) {
  return h(
    "div.alarm",
    h("p", h("span.mark", { "aria-hidden": "true" }, "▲"), h("b", named("alarm", kind)), ": ", message),
    h("p.hint", advice),
  );
}

function terms(device, reported) {
  const columns = [
    [t("term"), ""],
    [t("bytes"), "number"],
    ["GiB", "number"],
    [t("reported"), "number"],
    [t("error"), "number"],
  ];
  const rows = device.shares.flatMap((share) => {
    const lines = reported.filter((line) => line.instance === share.instance);
    const said = (name) => lines.find((line) => line.term === name);
    const all = bytesOf(share);
    const held = heldBy(device, share.instance);
    return [
      { class: "group", cells: [h("span", share.instance), exact(all), gib(all), "", ""] },
      ...share.terms.map((term) => ({
        title: term.formula,
        cells: [
          termName(term),
          exact(term.bytes),
          gib(term.bytes),
          gibOrNone(said(term.name)?.reported),
          deviation(said(term.name)?.error),
        ],
      })),
      {
        class: "sum",
        cells: [
          t("held now"),
          held === null ? t("unknown") : exact(held),
          held === null ? "" : gib(held),
          "",
          held ? deviation((all - held) / held) : "–",
        ],
      },
    ];
  });
  return table(t("planned by term"), columns, rows);
}

function termName(term) {
  return h(
    "span.term",
    h(`i.swatch.${kindOf(term.name)}`),
    term.name.replaceAll("_", " "),
    h("small", named("kind", term.kind)),
  );
}

const gibOrNone = (bytes) => (bytes === null || bytes === undefined ? "–" : gib(bytes));

function holders(device) {
  if (!device.holders) return h("p.soft", t("holders unknown"));
  if (device.holders.length === 0) return h("p.soft", t("nobody"));
  const columns = [
    [t("process"), ""],
    [t("instance"), ""],
    [t("bytes"), "number"],
    ["GiB", "number"],
  ];
  const row = ({ name, pid, instance, bytes }) => ({
    class: instance ? null : "is-foreign",
    cells: [`${name} (${pid})`, instance ?? h("span", h("i.swatch.foreign"), t("others")), exact(bytes), gib(bytes)],
  });
  const namedBytes = device.holders.filter((holder) => !holder.instance).reduce((sum, holder) => sum + holder.bytes, 0);
  const rest = (device.foreign ?? 0) - namedBytes;
  const more =
    rest > 0
      ? [
          {
            class: "is-foreign",
            cells: [t("not named"), h("span", h("i.swatch.foreign"), t("others")), exact(rest), gib(rest)],
          },
        ]
      : [];
  const sorted = [...device.holders].sort((one, other) => other.bytes - one.bytes);
  return table(t("who holds what"), columns, [...sorted.map(row), ...more]);
}
