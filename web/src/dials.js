// The sliders: each is another way to set an option or a flag of the engine.
import { byId, fill, h } from "./dom.js";
import { count, parseTokens, shortTokens } from "./units.js";

const SLOTS = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64];

/** Contexts that a slider stops at: powers of two and what is half way between them. */
export function stops(trained) {
  const most = Math.min(trained || 32768, 1 << 20);
  const found = [];
  for (let tokens = 1024; tokens < most; tokens *= 2) found.push(tokens, tokens * 1.5);
  return [...found.filter((tokens) => tokens < most), most];
}

export class Dials {
  /** `changed(name, value)` as of a form. */
  constructor(changed) {
    this.changed = changed;
    this.key = null;
  }

  /** Show what the plan has; rebuilt only for another model or engine, so that a slider is not taken from a hand. */
  show(state, model, backend, plan) {
    if (!model || !backend) return;
    const dials = model.dials[state.backend] ?? [];
    const key = JSON.stringify([model.name, model.context_train_tokens, state.backend, dials]);
    if (key !== this.key) {
      this.key = key;
      this.#build(model, backend, dials);
    }
    for (const one of this.dials) one.show(state, plan);
  }

  #build(model, backend, dials) {
    const tokens = stops(model.context_train_tokens);
    this.dials = [
      this.#slider("context", "--context", tokens, {
        read: (state) => parseTokens(state.context),
        planned: (plan) => plan?.context_tokens,
        write: (value) => this.changed("context", shortTokens(value)),
        clear: () => this.changed("context", ""),
        said: (value) => `${count(value)} tokens`,
      }),
      this.#slider("parallel", "--parallel", SLOTS, {
        read: (state) => Number.parseInt(state.parallel, 10),
        planned: () => null,
        write: (value) => this.changed("parallel", String(value)),
        clear: () => this.changed("parallel", ""),
        said: (value) => `${value} ${value === 1 ? "slot" : "slots"}`,
      }),
      ...dials.map((dial) => this.#slider(dial.flags[0].replace(/^-+/, ""), dial.flags[0], [...Array(dial.most + 1).keys()], {
        read: (state) => flagOf(state.flags ?? "", dial.flags),
        planned: (plan) => plan && flagOf(plan.argv.join(" "), dial.flags),
        write: (value, state) => this.changed("flags", withFlag(state.flags ?? "", dial.flags, value)),
        clear: (state) => this.changed("flags", withFlag(state.flags ?? "", dial.flags, null)),
        said: (value) => `${value} of ${dial.most}`,
        about: dial.about,
      })),
      backend.options.includes("kv") ? this.#types(["auto", ...backend.kv_types]) : null,
    ].filter(Boolean);
    fill(byId("dials"), this.dials.map((one) => one.element));
  }

  #slider(id, flag, values, { read, planned, write, clear, said, about = "" }) {
    let state = {};
    const output = h("output", { htmlFor: `dial-${id}` });
    const input = h("input", { type: "range", id: `dial-${id}`, min: 0, max: values.length - 1, step: 1 });
    const reset = h("button", { type: "button", className: "plain reset", ariaLabel: `auto, for ${flag}`, onclick: () => clear(state) }, "auto");
    const tell = (value, isSet) => {
      const words = value === null || Number.isNaN(value) ? "auto" : said(value);
      output.textContent = isSet ? words : words === "auto" ? "auto" : `auto: ${words}`;
      input.setAttribute("aria-valuetext", output.textContent);
    };
    input.addEventListener("input", () => {
      const value = values[input.valueAsNumber];
      tell(value, true);
      write(value, state);
    });
    return {
      element: h("div", { className: "dial" }, h("label", { htmlFor: input.id }, h("code", {}, flag), about ? ` ${about}` : ""), output, input, reset),
      show(now, plan) {
        state = now;
        const set = read(now);
        const isSet = !Number.isNaN(set) && set !== null;
        const value = isSet ? set : planned(plan) ?? null;
        if (value !== null && document.activeElement !== input) input.value = nearest(values, value);
        else if (value !== null && isSet && values[input.valueAsNumber] !== value) input.value = nearest(values, value);
        else if (value === null) input.value = 0;
        reset.disabled = !isSet;
        tell(value, isSet);
      },
    };
  }

  #types(types) {
    const box = h("div", { className: "choices", role: "radiogroup", ariaLabel: "--kv, the type of the KV cache" },
      types.map((type) => h("label", { className: "choice" },
        h("input", { type: "radio", name: "dial-kv", value: type, onchange: () => this.changed("kv", type === "auto" ? "" : type) }), h("span", {}, type))));
    return {
      element: h("div", { className: "dial types" }, h("span", { className: "dial-name" }, h("code", {}, "--kv")), box),
      show(state) {
        for (const radio of box.querySelectorAll("input")) radio.checked = radio.value === (state.kv || "auto");
      },
    };
  }
}

function nearest(values, wanted) {
  let best = 0;
  values.forEach((value, i) => {
    if (Math.abs(value - wanted) < Math.abs(values[best] - wanted)) best = i;
  });
  return best;
}

const pattern = (flags) => new RegExp(`(^|\\s)(?:${flags.join("|")})(?:\\s+|=)(\\d+)(?=\\s|$)`);

/** The number behind a flag, in any of its spellings; null where there is none. */
export function flagOf(text, flags) {
  const match = pattern(flags).exec(text);
  return match ? Number(match[2]) : null;
}

export function withFlag(text, flags, value) {
  const rest = text.replace(pattern(flags), "").trim();
  return value === null ? rest : `${rest} ${flags[0]} ${value}`.trim();
}
