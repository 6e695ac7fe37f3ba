// Builds elements. Whatever comes from JSON becomes a text node or the value of an attribute, never markup.

const SVG = "http://www.w3.org/2000/svg";

const isProps = (value) =>
  value !== null && typeof value === "object" && !Array.isArray(value) && !(value instanceof Node);

function build(element, rest) {
  const props = isProps(rest[0]) ? rest.shift() : {};
  for (const [name, value] of Object.entries(props)) set(element, name, value);
  element.append(...rest.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

function set(element, name, value) {
  if (value === null || value === undefined || value === false) return;
  if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
  else if (name === "style") for (const [key, to] of Object.entries(value)) element.style.setProperty(key, to);
  else if (name === "value") element.value = value;
  else element.setAttribute(name, value === true ? "" : value);
}

// h("li.alarm", { title: "..." }, child, ...)
export function h(what, ...rest) {
  const [tag, ...classes] = what.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  return build(element, rest);
}

export function svg(tag, ...rest) {
  return build(document.createElementNS(SVG, tag), rest);
}

// Puts other children into a node. What had the focus gets it back, by its `data-key`.
export function redraw(node, ...children) {
  const focused = node.contains(document.activeElement) ? document.activeElement : null;
  const key = focused?.dataset.key ?? focused?.closest("[data-key]")?.dataset.key;
  const open = new Set([...node.querySelectorAll("details[open][data-key]")].map((one) => one.dataset.key));
  node.replaceChildren();
  build(node, [{}, ...children]);
  for (const one of node.querySelectorAll("details[data-key]")) one.open ||= open.has(one.dataset.key);
  if (key) node.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });
}

// Redraws a node only where what it shows has changed.
const shown = new WeakMap();
export function redrawIf(node, key, children) {
  const text = JSON.stringify(key);
  if (shown.get(node) === text) return;
  shown.set(node, text);
  redraw(node, children());
}

// A table. On a narrow screen each row becomes a card, so every cell carries its heading.
// `columns` are [heading, class]; a row is its cells, or { cells, after, ...attributes of the row }: what comes after it
// has the whole width.
export function table(caption, columns, rows) {
  const heading = ([text, kind]) => h("th", { scope: "col", class: kind }, text);
  const cell = (content, at) => {
    const [text, kind] = columns[at];
    const isFirst = at === 0;
    return h(isFirst ? "th" : "td", { "data-label": text, class: kind, scope: isFirst && "row" }, content ?? "–");
  };
  const row = (one) => {
    const { cells, after, ...attributes } = Array.isArray(one) ? { cells: one } : one;
    return [h("tr", attributes, cells.map(cell)), after && h("tr.after", h("td", { colspan: columns.length }, after))];
  };
  return h("table", h("caption.spoken", caption), h("thead", h("tr", columns.map(heading))), h("tbody", rows.map(row)));
}
