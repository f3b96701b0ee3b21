// What the page plans, as one value; the address's fragment holds all of it, under the names of the command line.

const LISTS = new Set(["on"]);
const START = { model: "example:llama-3.1-8b-q4_k_m", on: ["rtx-3090"], ram: "64GiB" };
export const MODEL_KEYS = ["model", "header"];

/** The state that a fragment describes; what it leaves out is as at the start, or unset where it names anything. */
export function decode(fragment) {
  const given = new URLSearchParams(fragment.replace(/^#/, ""));
  if (![...given.keys()].length) return structuredClone(START);
  const state = { model: "", on: [] };
  for (const [name, value] of given) {
    if (!/^[a-z][a-z_]{0,31}$/.test(name)) continue;
    if (LISTS.has(name)) state[name].push(value);
    else state[name] = value;
  }
  if (!state.on.length && !given.has("machine")) state.on = [...START.on];
  return state;
}

export function encode(state) {
  const written = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    if (LISTS.has(name)) for (const each of value) written.append(name, each);
    else if (value !== "" && value !== undefined && value !== null) written.set(name, value);
  }
  return `#${written.toString().replaceAll("%3A", ":").replaceAll("%2F", "/")}`;
}

const NOT_OPTIONS = new Set(["model", "backend", "flags", "format", "view", "header", "machine", "paste"]);

/** The request of a plan. */
export function request(state) {
  const options = {};
  for (const [name, value] of Object.entries(state)) {
    if (!NOT_OPTIONS.has(name) && value !== "" && value !== undefined) options[name] = value === "on" ? true : value;
  }
  return { backend: state.backend, model: state.model, options, flags: state.flags ?? "" };
}
