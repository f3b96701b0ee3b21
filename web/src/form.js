// The form: fields named as the command line's options, made of what `facts.json` says of them.
import { byId, fill, h } from "./dom.js";

const FIRST = ["context", "parallel", "kv", "prefer", "margin", "preset"];
const ELSEWHERE = new Set(["on", "ram"]);
const DEVICE = /^(?:(\d{1,3})[x×*])?([^:]*?)(?::(.*))?$/;

export class Form {
  /** `changed(name, value)` is called with what people set. */
  constructor(facts, changed) {
    this.facts = facts;
    this.changed = changed;
    this.fields = {};
    fill(byId("examples"), facts.examples.map((name) => h("option", { value: name })));
    fill(byId("profiles"), facts.profiles.map((one) => h("option", { value: one.id }, one.name)));
    for (const id of ["ram", "flags"]) this.#bind(byId(id), id);
    byId("add-device").addEventListener("click", () => {
      this.#setDevices([...this.devices, { n: "", name: "", size: "" }]);
      byId("devices").lastElementChild.querySelector(".device-name").focus();
    });
  }

  #bind(field, name) {
    this.fields[name] = field;
    const value = () => (field.type === "checkbox" ? (field.checked ? "on" : "") : field.value.trim());
    field.addEventListener(field.tagName === "SELECT" || field.type === "checkbox" ? "change" : "input", () => this.changed(name, value()));
  }

  /** Show a state. Fields that somebody types in are left alone. */
  show(state, model) {
    this.#backends(state, model);
    this.#options(state);
    for (const [name, field] of Object.entries(this.fields)) {
      const value = state[name] ?? "";
      if (field === document.activeElement && field.tagName === "INPUT" && field.type !== "checkbox") continue;
      if (field.type === "checkbox") field.checked = value === "on";
      else if (field.value !== value) field.value = value;
    }
    if (JSON.stringify(this.devices?.map(written)) !== JSON.stringify(state.on)) this.#setDevices(state.on.map(parsed), true);
  }

  #backends(state, model) {
    const box = byId("backends");
    if (!box.children.length) {
      fill(box, this.facts.backends.map((one) => h("label", { className: "choice" },
        h("input", { type: "radio", name: "backend", value: one.name, onchange: () => this.changed("backend", one.name) }),
        h("span", {}, one.engine))));
    }
    for (const radio of box.querySelectorAll("input")) {
      radio.checked = radio.value === state.backend;
      radio.disabled = Boolean(model) && !model.backends.includes(radio.value);
      radio.parentElement.title = radio.disabled ? `does not serve ${model.format} models` : "";
    }
  }

  #options(state) {
    if (this.shown === state.backend) return;
    this.shown = state.backend;
    const backend = this.facts.backends.find((one) => one.name === state.backend);
    if (!backend) return;
    const options = this.facts.options.filter((one) => backend.options.includes(one.name) && !ELSEWHERE.has(one.name));
    const first = FIRST.flatMap((name) => options.filter((one) => one.name === name));
    fill(byId("options"), first.map((one) => this.#field(one, backend)));
    fill(byId("options-more"), options.filter((one) => !first.includes(one)).map((one) => this.#field(one, backend)));
  }

  #field(option, backend) {
    const id = `option-${option.name}`;
    const help = h("p", { className: "help", id: `${id}-help` }, option.help);
    const label = h("label", { htmlFor: id }, h("code", {}, option.flag));
    const common = { id, name: option.name, "aria-describedby": `${id}-help` };
    const words = option.name === "kv" ? ["auto", ...backend.kv_types] : option.name === "preset" ? Object.keys(this.facts.presets) : option.choices;
    let field;
    if (!option.metavar) field = h("input", { ...common, type: "checkbox" });
    else if (words.length) field = h("select", common, h("option", { value: "" }, "not set"), words.map((word) => h("option", { value: word }, word)));
    else field = h("input", { ...common, placeholder: option.metavar, spellcheck: false, autocapitalize: "off" });
    this.#bind(field, option.name);
    return h("div", { className: option.metavar ? "option" : "option switch" }, label, field, help);
  }

  #setDevices(devices, quiet = false) {
    this.devices = devices;
    fill(byId("devices"), devices.map((one, i) => this.#device(one, i)));
    if (!quiet) this.#told();
  }

  #device(one, i) {
    const field = (key, attributes) => h("input", { value: one[key], spellcheck: false, autocapitalize: "off", oninput: (event) => {
      one[key] = event.target.value.trim();
      this.#told();
    }, ...attributes });
    const remove = h("button", { type: "button", className: "plain remove", ariaLabel: `remove device ${i + 1}`, onclick: () => {
      this.#setDevices(this.devices.filter((other) => other !== one));
      byId("add-device").focus();
    } }, "×");
    return h("div", { className: "device", role: "group", ariaLabel: `device ${i + 1}` },
      labelled("count", field("n", { inputMode: "numeric", placeholder: "1", className: "device-count" })),
      labelled("--on", field("name", { list: "profiles", placeholder: "rtx-3090", className: "device-name" })),
      labelled("free", field("size", { placeholder: "all", className: "device-size" })),
      remove);
  }

  #told() {
    this.changed("on", this.devices.map(written).filter(Boolean));
  }
}

function labelled(text, field) {
  return h("label", { className: "small-label" }, h("span", {}, text), field);
}

function parsed(text) {
  if (/[/\\]/.test(text)) return { n: "", name: text, size: "" };
  const match = DEVICE.exec(text);
  return match ? { n: match[1] ?? "", name: match[2], size: match[3] ?? "" } : { n: "", name: text, size: "" };
}

function written({ n, name, size }) {
  if (!name) return "";
  return `${n && n !== "1" ? `${n}x` : ""}${name}${size ? `:${size}` : ""}`;
}
