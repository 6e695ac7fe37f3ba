// The page's own words. What berth says of a cluster (messages, reasons, advice) comes from berth as it is.

import { english } from "./english.js";
import { spanish } from "./spanish.js";

const dictionaries = { en: english, es: spanish };
const KEPT = "berth.language";

const chosen = localStorage.getItem(KEPT) ?? navigator.language.slice(0, 2);
export let language = chosen in dictionaries ? chosen : "en";
document.documentElement.lang = language;

export function speak(other) {
  language = other;
  localStorage.setItem(KEPT, other);
  document.documentElement.lang = other;
}

// A text with its values. One that counts has two forms, "{n} GPU|{n} GPUs".
export function t(key, values = {}) {
  const [one, many = one] = dictionaries[language][key].split("|");
  return (values.n === 1 ? one : many).replace(/\{(\w+)\}/g, (_, name) =>
    name === "n" ? number(values.n) : values[name],
  );
}

// Where a word exists for what berth calls something (a state, a cause); its own name otherwise.
export function named(kind, name) {
  return dictionaries[language][`${kind}.${name}`] ?? String(name).replaceAll("_", " ");
}

export function number(value, digits = 0) {
  return new Intl.NumberFormat(language, { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(
    value,
  );
}
