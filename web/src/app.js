// The page: one state, in the address; each change asks for a plan, and each plan is shown.
import { asTable, contexts, curves } from "./curves.js";
import { Dials } from "./dials.js";
import { byId, fill, h, table } from "./dom.js";
import { Form } from "./form.js";
import { ownCard } from "./own.js";
import { picture } from "./picture.js";
import { Planner, Refusal, Superseded } from "./planner.js";
import { Quants } from "./quants.js";
import { bytesOf, decode, encode, pack, request, unpack } from "./state.js";
import { count, formatBytes, formatRate, shortTokens } from "./units.js";

const SETTLED_MS = 250; // after the last change: what is only worth it for a plan that stays
const TYPED_MS = 350;
const ADDRESS_MS = 120;

let state = decode(location.hash);
let facts, form, planner;
let model = null; // facts of the model that was read last, and which
let modelRead = null;
/** What the page shows, as `--format json` has it, with what the planner says of it.
 * @type {import("./plan").Plan & { state: string, command: string } | null} */
let plan = null;
let points = new Map();
let pointsOf = "";
let named = ""; // the server whose model somebody has named here
let answered = ""; // the request whose answer, or refusal, is shown
let changes = 0;
const timers = { plan: 0, details: 0, address: 0 };

const dials = new Dials(changed);
let quants;

start();

async function start() {
  planner = new Planner(progressed);
  quants = new Quants(planner);
  globalThis.autofit = { planner, get state() { return state; }, get plan() { return plan; }, get answered() { return answered; }, request: () => request(state) };
  facts = await (await fetch("facts.json")).json();
  byId("version").textContent = facts.version;
  form = new Form(facts, changed);
  fill(byId("format"), facts.formats.map((one) => h("option", { value: one.name, title: one.about }, one.name)));
  byId("options-box").open = innerWidth > 860;
  bind();
  show();
  try {
    await planner.ready;
  } catch (error) {
    byId("load").classList.add("broken");
    byId("load-text").textContent = `The planner did not load: ${error.message}. Reload the page; if that does not help, your browser may lack WebAssembly.`;
    byId("load-bar").hidden = true;
    return;
  }
  byId("load").hidden = true;
  await restore();
  await hereIfAsked();
  await replan();
  keepForLater();
}

function progressed({ step, come, total }) {
  if (total) {
    byId("load-bar").value = (100 * come) / total;
    byId("load-text").textContent = `Loading the planner: ${formatBytes(come)} of ${formatBytes(total)}`;
  } else {
    byId("load-bar").removeAttribute("value");
    byId("load-text").textContent = `Loading the planner: ${step}`;
  }
}

/** The page for later, without a network. Not where `autofit web` serves it: its address is new each time. */
function keepForLater() {
  if (!("serviceWorker" in navigator) || !isSecureContext || hereAsked) return;
  navigator.serviceWorker.register("offline.js").catch(() => {}); // a host without it serves the page all the same
}

// -- changes ------------------------------------------------------------------------------------------------------

/** Somebody has set something. */
function changed(name, value) {
  state = { ...state, [name]: value };
  if (value === "" || value === undefined) delete state[name];
  if (name === "model" && value !== modelRead) delete state.header;
  addressed();
  form.show(state, model);
  dials.show(state, model, backendOf(state), plan);
  const typed = document.activeElement?.matches("input:not([type=range], [type=radio], [type=checkbox])");
  clearTimeout(timers.plan);
  timers.plan = setTimeout(replan, typed ? TYPED_MS : 0);
}

/** The address follows the state, but not each step of a slider: browsers count. */
function addressed() {
  clearTimeout(timers.address);
  timers.address = setTimeout(() => history.replaceState(null, "", encode(state)), ADDRESS_MS);
}

const backendOf = (of) => facts.backends.find((one) => one.name === of.backend);

function bind() {
  const field = byId("model");
  const setModel = () => {
    named = serverOf(field.value.trim());
    changed("model", field.value.trim());
  };
  field.addEventListener("change", setModel);
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") {
      event.preventDefault();
      setModel();
    }
  });
  byId("form").addEventListener("submit", (event) => event.preventDefault());
  byId("files").addEventListener("change", (event) => dropped([...event.target.files]));
  byId("machine-file").addEventListener("change", (event) => machineFrom(event.target.files[0]));
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault(); // the fragment is the plan
    byId("answer").focus();
  });
  const area = document.documentElement;
  area.addEventListener("dragover", (event) => {
    event.preventDefault();
    byId("drop").classList.add("over");
  });
  area.addEventListener("dragleave", () => byId("drop").classList.remove("over"));
  area.addEventListener("drop", (event) => {
    event.preventDefault();
    byId("drop").classList.remove("over");
    if (event.dataTransfer?.files.length) dropped([...event.dataTransfer.files]);
  });
  for (const [id, name] of [["token", "HF_TOKEN"], ["endpoint", "HF_ENDPOINT"]]) {
    byId(id).addEventListener("change", async (event) => {
      await planner.setEnviron({ [name]: event.target.value.trim() });
      modelRead = null;
      await replan();
    });
  }
  byId("format").addEventListener("change", (event) => {
    state.format = event.target.value;
    if (state.format === "shell") delete state.format;
    addressed();
    rendered();
  });
  byId("copy").addEventListener("click", () => copy(byId("command").textContent, "copied"));
  byId("link").addEventListener("click", () => copy(`${location.href.split("#")[0]}${encode(state)}`, "link copied"));
  byId("own-go").addEventListener("click", () => {
    const card = ownCard();
    if (card) machineIs(card.file, card.text);
  });
  byId("quants-go").addEventListener("click", () => quants.work(state));
  byId("check-go").addEventListener("click", check);
  addEventListener("hashchange", async () => {
    state = decode(location.hash);
    show();
    await restore();
    await replan();
  });
  let width = 0;
  new ResizeObserver(([entry]) => {
    if (Math.abs(entry.contentRect.width - width) > 4) {
      width = entry.contentRect.width;
      drawCurves();
    }
  }).observe(byId("curves"));
  tabs();
}

function tabs() {
  const all = [byId("tab-plan"), byId("tab-check")];
  const choose = (tab, focus = true) => {
    for (const one of all) {
      const on = one === tab;
      one.setAttribute("aria-selected", String(on));
      one.tabIndex = on ? 0 : -1;
      byId(one.getAttribute("aria-controls")).hidden = !on;
    }
    if (focus) tab.focus();
    if (tab.id === "tab-check") state.view = "check";
    else delete state.view;
    addressed();
  };
  all.forEach((tab, i) => {
    tab.addEventListener("click", () => choose(tab));
    tab.addEventListener("keydown", (event) => {
      if (event.key === "ArrowRight" || event.key === "ArrowLeft") choose(all[1 - i]);
    });
  });
  if (state.view === "check") choose(all[1], false);
}

const MOST_MACHINE = 1 << 20; // bytes of a file that may describe a machine

/** Whether a file describes a machine or a card, and no model. */
async function isMachine(file) {
  if (file.name.endsWith(".toml")) return true;
  return file.name.endsWith(".json") && file.size < MOST_MACHINE && /"kind":\s*"machine"/.test(await file.text());
}

async function dropped(files) {
  for (const file of files) if (await isMachine(file)) return machineFrom(file);
  byId("model-facts").textContent = `reading ${files[0].name} …`;
  changes += 1; // what is being worked out is about files that go now
  for (const kind of ["plan", "full", "point", "quants"]) planner.drop(kind);
  try {
    const name = await planner.mount(files);
    modelRead = null;
    byId("model").value = name;
    changed("model", name);
    keepHeader(name);
  } catch (error) {
    refuse(error);
  }
  byId("files").value = "";
}

/** The header of a dropped file goes into the address, without its vocabulary: a link then holds all of the plan. */
async function keepHeader(name) {
  try {
    const { header } = await planner.ask({ ask: "describe", model: name });
    if (state.model !== name || !header) return;
    state.header = header;
    addressed();
  } catch {
    // it is no model: the plan says so
  }
}

/** What a link holds of files that are elsewhere. */
async function restore() {
  modelRead = null;
  try {
    if (state.header) await planner.restore(state.model, bytesOf(state.header));
    else await planner.ask({ ask: "tell", name: state.model });
    for (const held of state.file ?? []) {
      const [name, packed] = held.split("~");
      await planner.keep(name, await unpack(packed));
    }
  } catch (error) {
    delete state.file;
    refuse(new Refusal({ message: `the link is damaged: ${error.message}`, hint: "copy it again, as a whole" }));
  }
}

async function machineFrom(file) {
  if (!file) return;
  if (file.size < MOST_MACHINE) await machineIs(file.name, await file.text());
  else refuse(new Refusal({ message: `${file.name}: ${formatBytes(file.size)}, which is no description of a machine` }));
  byId("machine-file").value = "";
}

/** Plan for a machine, or a card, that a text describes. */
async function machineIs(given, text) {
  const path = await planner.keep(given, text);
  state = { ...state, on: [path], file: [`${path.split("/").at(-1)}~${await pack(text)}`] };
  if (given.endsWith(".json")) delete state.ram;
  changed("on", [path]);
}

let hereAsked = false;

/** The machine that `autofit web` has found, where it serves this page. */
async function hereIfAsked() {
  if (state.machine !== "here") return;
  hereAsked = true;
  delete state.machine;
  try {
    const response = await fetch("machine.json");
    if (!response.ok) throw new Error(String(response.status));
    await machineIs("this-machine.json", await response.text());
  } catch {
    state = { ...state, on: state.on.length ? state.on : ["rtx-3090"] };
  }
  if (!state.model) state.model = "example:llama-3.1-8b-q4_k_m";
  addressed();
  show();
}

// -- asking -------------------------------------------------------------------------------------------------------

async function replan() {
  if (!planner || byId("load").hidden === false) return;
  const change = ++changes;
  clearTimeout(timers.details);
  planner.drop("full");
  planner.drop("point");
  byId("answer").setAttribute("aria-busy", "true");
  try {
    await readModel();
    if (change !== changes) return;
    shown(await planner.ask({ ...request(state), ask: "plan", details: false }));
    timers.details = setTimeout(() => details(change), SETTLED_MS);
  } catch (error) {
    if (error instanceof Superseded || change !== changes) return;
    refuse(error);
  } finally {
    if (change === changes) {
      answered = JSON.stringify(request(state));
      byId("answer").setAttribute("aria-busy", "false");
    }
  }
}

/** What is asked for when nobody moves anything: other plans, then the curves. */
async function details(change) {
  try {
    const found = await planner.ask({ ...request(state), ask: "plan", details: true }, "full");
    if (change !== changes) return;
    shown(found);
    await work(change);
  } catch (error) {
    if (!(error instanceof Superseded) && change === changes) refuse(error);
  }
}

async function readModel() {
  if (!state.model) throw new Refusal({ message: "no model is named", hint: "choose an example, or drop a GGUF file" });
  if (modelRead === state.model) return;
  const server = serverOf(state.model);
  if (server && server !== named) throw new Refusal({ message: `the link names a model of ${server}`, hint: "press Enter in the field of the model, and that server is asked for its header" });
  byId("model-facts").textContent = `reading ${state.model} …`;
  model = null;
  quants.clear();
  const asked = state.model;
  try {
    model = await planner.ask({ ask: "model", model: asked });
  } catch (error) {
    byId("model-facts").textContent = "";
    if (state.header && error instanceof Refusal) throw new Refusal({ message: `the link is damaged: it holds no model called ${asked}`, hint: "copy it again, as a whole" });
    throw error;
  }
  modelRead = asked;
  byId("model-facts").textContent = modelFacts();
  if (!model.backends.includes(state.backend)) {
    state.backend = model.backends[0] ?? facts.backends[0].name;
    addressed();
  }
  form.show(state, model);
}

/** The server that a model's own address names; a link must not make a page ask any server of the world. */
function serverOf(reference) {
  return /^https?:/i.test(reference) && URL.canParse(reference) ? new URL(reference).host : "";
}

function modelFacts() {
  const said = [model.architecture, model.format === "gguf" ? "GGUF" : model.format];
  if (model.parameters) said.push(`${(model.parameters / 1e9).toPrecision(3)} B parameters`);
  if (model.weights_bytes) said.push(`${formatBytes(model.weights_bytes)} of weights`);
  if (model.layers) said.push(`${model.layers} layers`);
  if (model.experts) said.push(`${model.experts} experts`);
  if (model.context_train_tokens) said.push(`trained for ${shortTokens(model.context_train_tokens)} tokens`);
  return said.join(" · ");
}

/** The points of the curves, one after the other; any change of the state stops it. */
async function work(change) {
  for (const tokens of contexts(model.context_train_tokens)) {
    if (points.has(tokens)) continue;
    const found = await planner.ask({ ...request(state), ask: "point", context: tokens }, "point");
    if (change !== changes) return;
    points.set(tokens, found);
    drawCurves();
  }
}

// -- showing ------------------------------------------------------------------------------------------------------

function show() {
  byId("model").value = state.model;
  byId("format").value = state.format ?? "shell";
  form.show(state, model);
}

function shown(found) {
  plan = JSON.parse(found.json);
  plan.state = found.state;
  plan.command = found.command;
  byId("problem").hidden = true;
  byId("plan").hidden = false;
  byId("plan").inert = false;
  const verdict = byId("verdict");
  if (verdict.textContent !== found.verdict) verdict.textContent = found.verdict;
  verdict.dataset.state = found.state;
  drawPicture(byId("picture"), plan);
  fill(byId("figures"), figures());
  byId("engine").textContent = plan.engine_source ? `for ${plan.engine_source}` : "";
  rendered();
  dials.show(state, model, backendOf(state), plan);
  form.show(state, model);
  forgetOthers();
  drawCurves();
  why();
}

/** Curves and the table of cards are of what is asked: those of something else go at once. */
function forgetOthers() {
  const { context: _, ...rest } = request(state).options;
  const key = JSON.stringify([state.backend, state.model, state.flags, rest]);
  if (key !== pointsOf) points = new Map();
  pointsOf = key;
  quants.keepFor(state);
}

function figures() {
  const rows = [];
  const add = (name, value, more) => rows.push(h("div", {}, h("dt", {}, name), h("dd", {}, value, more ? h("span", { className: "quiet" }, ` ${more}`) : null)));
  const speed = plan.speed;
  if (plan.context_tokens) add("context", `${count(plan.context_tokens)} tokens`);
  if (plan.safe_fill_tokens && plan.safe_fill_tokens !== plan.context_tokens) add("safe to fill to", `${count(plan.safe_fill_tokens)} tokens`);
  if (speed?.decode_tokens_per_s) add("decode", `~${formatRate(speed.decode_tokens_per_s)} tokens/s`, `${formatRate(speed.low)} to ${formatRate(speed.high)}`);
  if (speed?.prefill_tokens_per_s) {
    const band = speed.prefill_low && speed.prefill_high ? `${formatRate(speed.prefill_low)} to ${formatRate(speed.prefill_high)}` : "";
    add("prefill", `~${formatRate(speed.prefill_tokens_per_s)} tokens/s`, band);
  }
  return rows;
}

async function rendered() {
  const format = state.format ?? "shell";
  const pre = byId("command");
  if (format === "shell" && plan) {
    pre.textContent = plan.state === "no" && state.force !== "on" ? "# it does not fit: see what lacks above" : plan.command;
    return;
  }
  try {
    const found = await planner.ask({ ...request(state), ask: "render", format, force: state.force === "on" });
    pre.textContent = found.text.replaceAll("\0", "␀");
  } catch (error) {
    if (!(error instanceof Superseded)) pre.textContent = `${error.message}${error.hint ? `\n  ${error.hint}` : ""}`;
  }
}

function refuse(error) {
  plan = null;
  byId("plan").inert = true; // what was planned before, for those who see: it moves away from nobody who types
  byId("verdict").textContent = "";
  const problem = byId("problem");
  problem.hidden = false;
  fill(problem, ...sentences(error));
  form.show(state, model);
}

function sentences(error) {
  if (error instanceof Refusal) {
    const hint = error.hint ?? (error.kind === "ModelNotFoundError" ? "drop its file here, or choose an example" : null);
    return [h("span", { className: "message" }, error.message), hint ? h("span", { className: "hint" }, hint) : null];
  }
  return [h("span", { className: "message" }, `autofit failed: ${String(error.message).trim().split("\n").at(-1)}`), h("span", { className: "hint" }, "this is a bug of ours: please report it with the link of this page")];
}

/** The picture, where it has changed; who is at a part of it by keyboard stays there. */
function drawPicture(box, of) {
  const key = JSON.stringify(of.pools);
  if (box.drawn === key) return;
  box.drawn = key;
  const parts = () => [...box.querySelectorAll(".part-name")];
  const at = parts().indexOf(document.activeElement);
  fill(box, picture(of));
  if (at >= 0) parts().at(Math.min(at, parts().length - 1))?.focus();
}

function drawCurves() {
  const width = byId("curves").clientWidth;
  if (!width) return;
  const table_ = byId("curves").querySelector("details");
  if (table_?.contains(document.activeElement) && points.size) return table_.querySelector(".scroll").replaceChildren(asTable([...points.values()]));
  fill(byId("curves"), points.size ? curves([...points.values()], plan?.context_tokens, width, table_?.open) : h("p", { className: "help" }, "worked out when the plan stays as it is for a moment"));
}

function why() {
  const notes = plan.findings.map((one) => h("li", { className: one.severity }, h("b", {}, one.severity === "info" ? "note" : one.severity), ` ${one.message}`));
  fill(byId("findings"), notes.length ? h("ul", { className: "notes" }, notes) : h("p", { className: "help" }, "nothing to remark"));
  const next = (one) => (one ? `${one.value}${one.shortfall_bytes ? ` needs ${formatBytes(one.shortfall_bytes)} more${one.pool ? ` on ${one.pool}` : ""}` : ""}${one.because ? ` ${one.because}` : ""}` : "");
  const hasNext = plan.decisions.some((one) => one.next_rejected);
  section("decisions", plan.decisions.length, () => table("Settings", ["setting", "value", "from", "why", ...(hasNext ? ["the next better value"] : [])],
    plan.decisions.map((one) => [one.setting, one.value, one.origin, one.because, ...(hasNext ? [next(one.next_rejected)] : [])])));
  section("alternatives", plan.alternatives.length, () => table("Other plans", ["plan", "devices", "RAM", "context", "decode", "why not", ""],
    plan.alternatives.map((one) => [one.title, formatBytes(one.device_bytes), formatBytes(one.host_bytes), one.context_tokens ? count(one.context_tokens) : "",
      one.speed?.decode_tokens_per_s ? `~${formatRate(one.speed.decode_tokens_per_s)}` : "", one.because,
      one.flags.length ? h("button", { type: "button", className: "plain", title: one.flags.join(" "), onclick: () => take(one.flags) }, "take it") : ""]), [1, 2, 3, 4]));
  section("items", plan.pools.length, () => table("Parts of memory", ["pool", "kind", "what", "bytes", "basis", "of the engine"],
    plan.pools.flatMap((pool) => pool.items.map((item) => [pool.id, item.kind, item.label, count(item.bytes), item.basis, item.source])), [3]));
}

/** Plan with these options of autofit, which another plan is made of. @param {string[]} flags */
function take(flags) {
  for (let i = 0; i < flags.length; i += 1) {
    const option = facts.options.find((one) => one.flags.includes(flags[i]));
    if (!option) continue;
    state[option.name] = option.metavar ? flags[i += 1] : "on";
  }
  changed("model", state.model);
  byId("answer").focus();
}

function section(id, has, make) {
  const details_ = byId(id);
  details_.hidden = !has;
  const draw = () => details_.open && fill(details_.querySelector("div"), has ? make() : []);
  details_.ontoggle = draw;
  draw();
}

async function copy(text, said) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = h("textarea", { value: text, className: "visually-hidden" });
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  byId("copied").textContent = said;
  setTimeout(() => { byId("copied").textContent = ""; }, 2000);
}

// -- check --------------------------------------------------------------------------------------------------------

async function check() {
  const text = byId("paste").value;
  const problem = byId("check-problem");
  problem.hidden = true;
  byId("check-verdict").textContent = "";
  fill(byId("check-answer"));
  if (!text.trim()) return;
  byId("check-verdict").textContent = "checking …";
  try {
    const found = await planner.ask({ ...request(state), ask: "check", text });
    if (found.kind === "command") {
      const checked = JSON.parse(found.json);
      byId("check-verdict").textContent = found.verdict;
      byId("check-verdict").dataset.state = found.state;
      const notes = checked.findings.map((one) => h("li", { className: one.severity }, h("b", {}, one.severity === "info" ? "note" : one.severity), ` ${one.message}`));
      fill(byId("check-answer"), found.instead ? h("p", { className: "help" }, `its model is not here: ${found.instead} stands for it`) : null,
        h("div", { className: "picture" }, picture(checked)), h("ul", { className: "notes" }, notes));
    } else {
      byId("check-verdict").textContent = found.words[0] ?? "";
      byId("check-verdict").dataset.state = found.failed ? "no" : "full";
      fill(byId("check-answer"), h("ul", { className: "notes" }, found.words.slice(1).map((line) => h("li", {}, line))),
        found.commands.map((one) => [h("pre", { className: "command", tabIndex: 0, ariaLabel: "Changed command" }, one.command)]));
    }
  } catch (error) {
    if (error instanceof Superseded) return;
    byId("check-verdict").textContent = "";
    problem.hidden = false;
    fill(problem, ...sentences(error));
  }
}
