// Elements in one call: `h("p", { class: "help" }, "words")`. Texts are texts: nothing is ever parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";
const DRAWN = new Set(["svg", "g", "rect", "path", "line", "text", "circle", "title", "desc", "pattern", "defs"]);

/** @type {(tag: string, attributes?: Record<string, any>, ...children: any[]) => any} */
export function h(tag, attributes = {}, ...children) {
  const element = DRAWN.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && !DRAWN.has(tag) && name !== "list" && name !== "form") element[name] = value;
    else element.setAttribute(name === "class" ? "class" : name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** The element of this id, whatever it is. @type {(id: string) => any} */
export const byId = (id) => document.getElementById(id);

export function fill(element, ...children) {
  element.replaceChildren(...children.flat().filter(Boolean));
}

/** A table with a caption for those who do not see where it stands. */
export function table(caption, head, rows, numbers = []) {
  const cell = (tag, value, column, more = {}) =>
    h(tag, { className: numbers.includes(column) ? "number" : "", ...more }, value instanceof Node ? value : String(value ?? ""));
  return h("table", {},
    h("caption", { className: "visually-hidden" }, caption),
    h("thead", {}, h("tr", {}, head.map((name, i) => cell("th", name, i, { scope: "col" })))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((value, i) => (i ? cell("td", value, i) : cell("th", value, i, { scope: "row" })))))));
}
