// One request to a model through the gateway, as a client would send it, streamed.

import { duration } from "./bytes.js";
import { h } from "./element.js";
import { number, t } from "./words.js";

// Kept in memory alone: it is gone with the page.
let key = "";

export function chat() {
  const model = h("select", { id: "chat-model" });
  const prompt = h("textarea", {
    id: "chat-prompt",
    rows: "3",
    placeholder: t("ask something"),
    onkeydown: sendOnEnter,
  });
  const secret = h("input", {
    id: "chat-key",
    type: "password",
    autocomplete: "off",
    oninput: () => (key = secret.value),
  });
  const keyLine = h("p.key", { hidden: true }, h("label", { for: "chat-key" }, t("api key")), secret);
  const answer = h("div.answer", { "aria-live": "polite" });
  const figures = h("p.soft");
  const send = h("button.primary", t("send"));
  let running = null;

  async function submit(event) {
    event.preventDefault();
    if (running) return running.abort();
    if (!prompt.value.trim()) return prompt.focus();
    running = new AbortController();
    send.textContent = t("stop");
    answer.className = "answer";
    answer.textContent = "";
    figures.textContent = t("waiting for first");
    try {
      await stream({ model: model.value, prompt: prompt.value, signal: running.signal, answer, figures });
    } catch (problem) {
      told(problem);
    }
    running = null;
    send.textContent = t("send");
  }

  function told(problem) {
    figures.textContent = "";
    if (problem.name === "AbortError") return;
    answer.classList.add("problem");
    answer.append(problem.message);
    if (problem.status !== 401) return;
    keyLine.hidden = false;
    secret.focus();
  }

  // Enter sends, as in any chat; with Shift it is a new line.
  function sendOnEnter(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit(event);
  }

  const element = h(
    "form.chat",
    { onsubmit: submit, "aria-label": t("chat") },
    h("h2", t("chat")),
    h("p", h("label", { for: "chat-model" }, t("model")), model),
    h("p", h("label", { for: "chat-prompt" }, t("question")), prompt),
    keyLine,
    send,
    answer,
    figures,
  );
  const offer = (names) => {
    const offered = [...model.options].map((option) => option.value);
    if (offered.join() === names.join()) return;
    const before = model.value;
    model.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
    if (names.includes(before)) model.value = before;
  };
  return { element, offer };
}

async function stream({ model, prompt, signal, answer, figures }) {
  const began = performance.now();
  let first = null;
  let pieces = 0;
  for await (const piece of ask(model, prompt, signal)) {
    first ??= performance.now();
    pieces += 1;
    answer.append(piece);
    const rate = (pieces - 1) / Math.max(0.001, (performance.now() - first) / 1000);
    figures.textContent = t("chat figures", { first: `${number(first - began)} ms`, n: pieces, rate: number(rate, 1) });
  }
  if (first === null) figures.textContent = t("no answer", { after: duration((performance.now() - began) / 1000) });
}

async function* ask(model, prompt, signal) {
  const headers = {
    "content-type": "application/json",
    ...(key && { authorization: `Bearer ${key}` }),
    "x-berth": "1",
  };
  const body = JSON.stringify({ model, stream: true, messages: [{ role: "user", content: prompt }] });
  const response = await fetch("/v1/chat/completions", { method: "POST", headers, body, signal });
  if (!response.ok) throw await refusal(response);
  for await (const line of lines(response.body)) {
    if (!line.startsWith("data:")) continue;
    const data = line.slice(5).trim();
    if (data === "[DONE]") return;
    const { choices, error } = JSON.parse(data);
    if (error) throw new Error(error.message ?? String(error));
    const { content, reasoning_content } = choices?.[0]?.delta ?? {};
    if (content ?? reasoning_content) yield content ?? reasoning_content;
  }
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    yield* parts;
  }
  if (rest) yield rest;
}

async function refusal(response) {
  const body = await response.json().catch(() => ({}));
  const problem = new Error(body.error?.message ?? body.error ?? `HTTP ${response.status}`);
  problem.status = response.status;
  return problem;
}
