// What is known now, and how fresh it is. Pages read `now` and are told when it changes.

import { get, getOrNone, refuse, serverNow } from "./api.js";

// A look comes every one to five seconds: after three of the slowest the connection is taken for dead.
const SILENT_MS = 16_000;
const OLD_S = 8;
const AGAIN_MS = 3_000;

export const now = { seen: null, status: null, plan: null, link: "connecting" };

const listeners = new Set();
let source = null;
let heardAt = 0;
let isLoading = false;

// Calls back with "seen", "status", "plan", "link" or, each second, "tick". Gives back how to end it.
export function watch(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

function tell(what) {
  for (const listener of listeners) listener(what);
}

// Seconds since berth last looked; none before the first look.
export function age() {
  return now.seen && Math.max(0, (serverNow() - now.seen.at_ms) / 1000);
}

export function isFresh() {
  return now.link === "live" && now.seen !== null && age() <= OLD_S;
}

export function start() {
  stop();
  heardAt = Date.now();
  source = new EventSource("/api/live");
  source.addEventListener("seen", (event) => hear("seen", event));
  source.addEventListener("status", (event) => hear("status", event));
  source.onerror = lost;
  loadPlan();
}

export function stop() {
  source?.close();
  source = null;
}

function hear(what, event) {
  heardAt = Date.now();
  now[what] = JSON.parse(event.data);
  link("live");
  tell(what);
  if (what === "status" && now.status.plan_digest !== (now.plan?.digest ?? null)) loadPlan();
}

function link(state) {
  if (now.link === state) return;
  now.link = state;
  tell("link");
}

// The browser tries again by itself, unless the server has answered with a refusal: then the session tells why.
async function lost() {
  link("lost");
  if (source?.readyState !== EventSource.CLOSED) return;
  stop();
  try {
    const session = await get("/api/session");
    if (session.needs_password && !session.is_in) return refuse();
  } catch {
    // It is told as a lost connection already.
  }
  setTimeout(start, AGAIN_MS);
}

// The plan in force is large and changes rarely: it is asked for when its digest is another one.
async function loadPlan() {
  if (isLoading) return;
  isLoading = true;
  try {
    const answer = await getOrNone("/api/plan");
    now.plan = answer && { ...answer.plan, digest: answer.plan_digest };
    tell("plan");
  } catch {
    // The next status asks again, and a lost connection is told by the stream.
  } finally {
    isLoading = false;
  }
}

setInterval(() => {
  if (source && Date.now() - heardAt > SILENT_MS) {
    link("lost");
    start();
  }
  tell("tick");
}, 1000);
