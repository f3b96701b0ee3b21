// Which quantization on which card: a column for each card, worked out one after the other.
import { byId, fill, h } from "./dom.js";
import { Superseded } from "./planner.js";
import { request } from "./state.js";
import { formatBytes, formatRate, shortTokens } from "./units.js";

const STATES = { full: ["full speed", "●"], ram: ["in RAM", "◐"], no: ["no", "○"] };

export class Quants {
  constructor(planner) {
    this.planner = planner;
    this.columns = [];
  }

  clear() {
    this.planner.drop("quants");
    this.columns = [];
    fill(byId("quants"));
    byId("quants-state").textContent = "";
  }

  /** Forget a table that was made for something else. */
  keepFor(state) {
    if (this.columns.length && this.key !== JSON.stringify(request(state))) this.clear();
  }

  async work(state) {
    this.key = JSON.stringify(request(state));
    const others = byId("quants-cards").value.split(",").map((name) => name.trim()).filter(Boolean);
    const cards = [state.on, ...others.map((name) => [name])];
    this.columns = cards.map((on) => ({ on, name: on.join(" + "), found: null, error: null }));
    const asked = this.columns;
    try {
      for (const [i, column] of asked.entries()) {
        byId("quants-state").textContent = `${i} of ${asked.length} cards`;
        const wanted = request({ ...state, on: column.on });
        try {
          column.found = await this.planner.ask({ ...wanted, ask: "quants" }, "quants");
        } catch (error) {
          if (error instanceof Superseded) throw error;
          column.error = error.message;
        }
        if (this.columns !== asked) return;
        this.#show();
      }
      byId("quants-state").textContent = "";
    } catch (error) {
      if (!(error instanceof Superseded)) throw error;
    }
  }

  #show() {
    const done = this.columns.filter((column) => column.found || column.error);
    const first = done.find((column) => column.found);
    if (!first) return fill(byId("quants"), h("p", { className: "problem" }, done[0]?.error ?? ""));
    const names = new Map();
    for (const column of done) for (const row of column.found?.rows ?? []) if (!names.has(row.name)) names.set(row.name, row);
    const rows = [...names.values()].sort((a, b) => b.bytes - a.bytes);
    const head = h("tr", {}, h("th", { scope: "col" }, "quantization"), h("th", { scope: "col", className: "number" }, "size"),
      done.map((column) => h("th", { scope: "col" }, column.name)));
    const body = rows.map((form) => h("tr", {},
      h("th", { scope: "row" }, form.name, form.at_hand ? h("span", { className: "quiet" }, " this file") : null),
      h("td", { className: "number" }, formatBytes(form.bytes)),
      done.map((column) => this.#cell(column, column.found?.rows.find((row) => row.name === form.name)))));
    return fill(byId("quants"),
      h("table", { className: "quants-table" }, h("caption", { className: "visually-hidden" }, "Quantizations by card"), h("thead", {}, head), h("tbody", {}, body)),
      h("p", { className: "help" }, "● full speed · ◐ a part of the weights in RAM · ○ does not fit. Framed: the one to take. Tokens/s with an empty context; then the context that fits."),
      done.filter((column) => column.error).map((column) => h("p", { className: "problem" }, `${column.name}: ${column.error}`)));
  }

  #cell(column, row) {
    if (!row) return h("td", {}, column.error ? "–" : "");
    const [word, sign] = STATES[row.state];
    const rate = row.decode ? `${formatRate(row.decode)}/s` : "";
    const context = row.context ? ` · ${shortTokens(Math.floor(row.context / 1024) * 1024 || row.context)}` : "";
    const words = `${word}${row.chosen ? ", the one to take" : ""}${row.because ? `: ${row.because}` : ""}`;
    return h("td", { className: `${row.state}${row.chosen ? " chosen" : ""}`, title: words },
      h("span", { "aria-hidden": "true" }, `${sign} `), h("span", { className: "visually-hidden" }, words), ` ${rate}${context}`);
  }
}
