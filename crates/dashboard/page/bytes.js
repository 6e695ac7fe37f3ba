// How quantities are spelled: memory, shares, times. What isn't known is said to be unknown, never zero.

import { language, number, t } from "./words.js";

const GIB = 2 ** 30;
const isUnknown = (value) => value === null || value === undefined;

// GiB without the unit, for columns that name it; two decimals, one from ten on.
export function gibNumber(bytes) {
  if (isUnknown(bytes)) return "?";
  const value = bytes / GIB;
  const digits = Math.abs(value) < 9.995 ? 2 : 1;
  return number(value, digits).replace("-", "−");
}

export function gib(bytes) {
  return isUnknown(bytes) ? t("unknown") : `${gibNumber(bytes)} GiB`;
}

export function exact(bytes) {
  return isUnknown(bytes) ? t("unknown") : number(bytes);
}

export function percent(share, digits = 0) {
  return isUnknown(share) ? t("unknown") : `${number(share * 100, digits).replace("-", "−")} %`;
}

// How far a plan is from what was seen: always with its sign.
export function deviation(share) {
  if (isUnknown(share)) return "–";
  return `${share >= 0 ? "+" : ""}${percent(share, 1)}`;
}

export function count(value) {
  return isUnknown(value) ? t("unknown") : number(value);
}

export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 120) return `${whole} s`;
  if (whole < 7200) return `${Math.round(whole / 60)} min`;
  if (whole < 172800) return `${Math.round(whole / 3600)} h`;
  return `${Math.round(whole / 86400)} d`;
}

export function clock(ms) {
  return new Intl.DateTimeFormat(language, { timeStyle: "medium" }).format(ms);
}

export function date(ms) {
  return new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "short" }).format(ms);
}
