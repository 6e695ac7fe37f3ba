// Dialogs: one that asks before something is changed, and a drawer that shows more of something.

import { h } from "./element.js";
import { t } from "./words.js";

function open(dialog, onClosed) {
  document.body.append(dialog);
  dialog.addEventListener("close", () => {
    dialog.remove();
    onClosed?.();
  });
  // A click on what is behind it closes it.
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.showModal();
}

// Asks, and does it once it is confirmed. A refusal is shown where it was asked.
export function confirm({ title, body, action, run }) {
  const problem = h("div", { role: "alert" });
  const button = h("button.primary", action);
  const dialog = h(
    "dialog.ask",
    { "aria-labelledby": "asked" },
    h(
      "form",
      { method: "dialog", onsubmit: submit },
      h("h2", { id: "asked" }, title),
      body,
      problem,
      h("menu", h("button", { type: "button", onclick: () => dialog.close() }, t("cancel")), button),
    ),
  );
  async function submit(event) {
    event.preventDefault();
    button.disabled = true;
    try {
      await run();
      dialog.close();
    } catch (refusal) {
      problem.replaceChildren(failure(refusal));
      button.disabled = false;
    }
  }
  open(dialog);
}

export function drawer(title, body, onClosed) {
  const close = h("button.quiet", { onclick: () => dialog.close(), "aria-label": t("close") }, "✕");
  const dialog = h(
    "dialog.drawer",
    { "aria-labelledby": "drawn" },
    h("div.inside", h("header", h("h2", { id: "drawn" }, title), close), body),
  );
  open(dialog, onClosed);
  return dialog;
}

// What went wrong, and what to do about it.
export function failure({ message, hint }) {
  return h("div.problem", h("p", message), hint && h("p.hint", hint));
}
