// The way in, where a password is set.

import { post } from "./api.js";
import { h } from "./element.js";
import { t } from "./words.js";

export function login(enter) {
  const password = h("input", { type: "password", id: "password", autocomplete: "current-password", required: true });
  const problem = h("p.problem", { role: "alert" });
  const submit = async (event) => {
    event.preventDefault();
    problem.textContent = "";
    try {
      await post("/api/session", { password: password.value });
      enter();
    } catch (refusal) {
      problem.textContent = refusal.status === 401 ? t("wrong password") : refusal.message;
      password.select();
    }
  };
  document.title = `${t("log in")} · berth`;
  document.body.className = "";
  document.body.replaceChildren(
    h(
      "main.login",
      h(
        "form",
        { onsubmit: submit },
        h("h1", "berth"),
        h("label", { for: "password" }, t("password")),
        password,
        problem,
        h("button.primary", t("log in")),
      ),
    ),
  );
  password.focus();
}
