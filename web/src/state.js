// What the page plans, as one value; the address's fragment holds all of it, under the names of the command line.

const LISTS = new Set(["on", "file"]);
const MOST_HEADER = 30_000; // characters: what chats and issues still take as a link
const START = { model: "example:llama-3.1-8b-q4_k_m", on: ["rtx-3090"], ram: "64GiB" };

/** The state that a fragment describes; what it leaves out is as at the start, or unset where it names anything. */
export function decode(fragment) {
  const given = new URLSearchParams(fragment.replace(/^#/, ""));
  if (![...given.keys()].length) return structuredClone(START);
  const state = { model: "", on: [], file: [] };
  for (const [name, value] of given) {
    if (!/^[a-z][a-z_]{0,31}$/.test(name)) continue;
    if (LISTS.has(name)) state[name].push(value);
    else state[name] = value;
  }
  if (!state.file.length) delete state.file;
  if (!state.on.length && !given.has("machine")) state.on = [...START.on];
  return state;
}

export function encode(state) {
  const written = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    if (LISTS.has(name)) for (const each of value) written.append(name, each);
    else if (name === "header" && value.length > MOST_HEADER) continue;
    else if (value !== "" && value !== undefined && value !== null) written.set(name, value);
  }
  return `#${written.toString().replaceAll("%3A", ":").replaceAll("%2F", "/")}`;
}

const NOT_OPTIONS = new Set(["model", "backend", "flags", "format", "view", "header", "machine", "file"]);

/** The request of a plan. */
export function request(state) {
  const options = {};
  for (const [name, value] of Object.entries(state)) {
    if (NOT_OPTIONS.has(name) || value === "" || value === undefined) continue;
    options[name] = name === "device" ? value.split(",") : value === "on" ? true : value;
  }
  return { backend: state.backend, model: state.model, options, flags: state.flags ?? "" };
}

/** Bytes as text for a link, packed. */
export async function pack(text) {
  const packed = await new Response(new Blob([text]).stream().pipeThrough(new CompressionStream("gzip"))).arrayBuffer();
  return btoa(String.fromCharCode(...new Uint8Array(packed))).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

export function bytesOf(packed) {
  return Uint8Array.from(atob(packed.replaceAll("-", "+").replaceAll("_", "/")), (char) => char.charCodeAt(0));
}

const MOST_UNPACKED = 1 << 20;

/** The text that `pack` has packed; whoever made the link, it has an end. */
export async function unpack(packed) {
  const reader = new Blob([bytesOf(packed)]).stream().pipeThrough(new DecompressionStream("gzip")).getReader();
  const parts = [];
  let size = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return new TextDecoder().decode(await new Blob(parts).arrayBuffer());
    size += value.byteLength;
    if (size > MOST_UNPACKED) throw new Error("what the link holds is too large");
    parts.push(value);
  }
}
