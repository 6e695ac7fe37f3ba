// The server's routes. Whoever isn't let in is told so once, by `onRefused`.

class Refusal extends Error {
  constructor(status, body) {
    super(body.error ?? `HTTP ${status}`);
    this.status = status;
    this.hint = body.hint;
  }
}

let refused = () => {};
export function onRefused(then) {
  refused = then;
}
export const refuse = () => refused();

// How far this machine's clock is ahead of the server's, so that ages are the server's.
let ahead = 0;
export const serverNow = () => Date.now() - ahead;

async function ask(method, path, body) {
  const headers = method === "GET" ? {} : { "x-berth": "1", "content-type": "application/json" };
  const response = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  const date = Date.parse(response.headers.get("date"));
  // The header counts whole seconds: less than two is no difference.
  if (date) ahead = Math.abs(Date.now() - date) < 2000 ? 0 : Date.now() - date;
  const text = await response.text();
  if (response.ok) return text ? JSON.parse(text) : null;
  if (response.status === 401 && path !== "/api/session") refuse();
  throw new Refusal(response.status, parsed(text));
}

function parsed(text) {
  try {
    return JSON.parse(text) ?? {};
  } catch {
    return {};
  }
}

export const get = (path) => ask("GET", path);
export const post = (path, body) => ask("POST", path, body);
export const remove = (path) => ask("DELETE", path);

// What a route has, or nothing where it has nothing.
export async function getOrNone(path) {
  try {
    return await get(path);
  } catch (refusal) {
    if (refusal.status === 404) return null;
    throw refusal;
  }
}
