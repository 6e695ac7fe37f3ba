// What was proved under load, newest first.

import { get } from "./api.js";
import { date } from "./bytes.js";
import { failure } from "./dialog.js";
import { h, redraw, table } from "./element.js";
import { now } from "./live.js";
import { number, t } from "./words.js";

const MARKS = { PASS: "●", FAIL: "✕", INCONCLUSIVE: "△" };

export function proof(root) {
  let isGone = false;
  redraw(root, h("p.soft.busy", t("loading")));
  get("/api/proofs").then(
    (all) => isGone || redraw(root, all.length ? all.map(report) : h("p.soft", t("no proofs"))),
    (refusal) => isGone || redraw(root, failure(refusal)),
  );
  return { leave: () => (isGone = true) };
}

function report({ name, at_ms, digest, verdict, models, reasons }) {
  const isOfThis = digest === now.status?.plan_digest;
  return h(
    "article.report",
    h(
      "header",
      h(
        `span.verdict.is-${verdict.toLowerCase()}`,
        h("span.mark", { "aria-hidden": "true" }, MARKS[verdict]),
        t(`proof.${verdict}`),
      ),
      h("h2", h("a", { href: `/proofs/${encodeURIComponent(name)}` }, name)),
      h(
        "span.soft",
        date(at_ms),
        " · ",
        h("code", digest.slice(0, 8)),
        isOfThis && h("span.tag.strong", t("in force")),
      ),
    ),
    reasons.length > 0 &&
      h(
        "ul.reasons",
        reasons.map((reason) => h("li", reason)),
      ),
    table(t("measured"), columns(), models.map(row)),
  );
}

function columns() {
  return [
    [t("model"), ""],
    [t("first token p50"), "number"],
    [t("first token p99"), "number"],
    [t("tokens a second"), "number"],
    [t("errors"), "number"],
  ];
}

const value = (figure, unit) => (figure === null ? t("unknown") : `${number(figure, figure < 100 ? 1 : 0)}${unit}`);

function row({ model, ttft_p50_ms, ttft_p99_ms, tokens_per_second, errors }) {
  return [
    model,
    value(ttft_p50_ms, " ms"),
    value(ttft_p99_ms, " ms"),
    value(tokens_per_second, ""),
    h(`span${errors > 0 ? ".wrong" : ""}`, errors > 0 && "▲ ", number(errors)),
  ];
}
