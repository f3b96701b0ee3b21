// Python in a thread of its own: loads it, holds the files, answers one request at a time.
//
// Files are not copied: Python reads them through the browser's slices, and of a model it reads the header alone.
import { loadPyodide } from "../runtime/pyodide.mjs";

const BASE = new URL("../", self.location.href);
const HOME = "/page";
const PACKAGES = "/packages";

let python = null;
let ask = null;
let drops = 0;

self.onmessage = ({ data }) => {
  if (data.start) start(data.start);
  else if (data.files) reply(data.id, () => mount(data.files));
  else if (data.restore) reply(data.id, () => restore(data.restore));
  else if (data.keep) reply(data.id, () => keep(data.keep));
  else if (data.environ) reply(data.id, () => setEnviron(data.environ));
  else reply(data.id, () => ask(data.text));
};

function reply(id, work) {
  try {
    self.postMessage({ id, answer: work() });
  } catch (error) {
    self.postMessage({ id, failure: String(error?.message ?? error) });
  }
}

async function start() {
  try {
    const listed = await (await fetch(new URL("files.json", BASE))).json();
    countBytes(listed.files);
    const wheels = Object.keys(listed.files).filter((name) => name.startsWith("wheels/"));
    const texts = Promise.all([...wheels, "planner.py"].map(async (name) => [name, await bytes(name)]));
    python = await loadPyodide({ indexURL: new URL("runtime/", BASE).href, stdout: () => {}, stderr: () => {} });
    self.postMessage({ progress: { step: "unpacking autofit" } });
    python.FS.mkdirTree(PACKAGES);
    for (const [name, data] of await texts) {
      if (name.endsWith(".whl")) python.unpackArchive(data, "wheel", { extractDir: PACKAGES });
      else python.FS.writeFile(`${PACKAGES}/planner.py`, new Uint8Array(data));
    }
    self.postMessage({ progress: { step: "starting autofit" } });
    python.FS.mkdirTree(HOME);
    python.FS.mkdirTree("/machines");
    ask = python.runPython(STARTED);
    self.postMessage({ ready: listed.build });
  } catch (error) {
    self.postMessage({ broken: String(error?.message ?? error) });
  }
}

const STARTED = `
import gc, os, sys
gc.set_threshold(50_000, 20, 100)  # a model has tens of thousands of tensors to walk again and again
sys.path.insert(0, "${PACKAGES}")
os.environ.update(AUTOFIT_DISABLE_PLUGIN_AUTOLOAD="1", HF_HUB_DISABLE_PROGRESS_BARS="1", HOME="/home/pyodide")
os.chdir("${HOME}")
import planner
planner.keep_what_is_read()
planner.answer
`;

async function bytes(name) {
  const response = await fetch(new URL(name, BASE));
  if (!response.ok) throw new Error(`${name}: the server answers ${response.status}`);
  return response.arrayBuffer();
}

/** Tell how much of the page's files has come, whoever asks for them. */
function countBytes(files) {
  const sizes = Object.entries(files).filter(([name]) => /^(runtime|wheels)\//.test(name) || name === "planner.py");
  const total = sizes.reduce((sum, [, size]) => sum + size, 0);
  let come = 0;
  const plain = self.fetch.bind(self);
  self.fetch = async (...words) => {
    const response = await plain(...words);
    if (!response.ok || !response.body) return response;
    const counted = response.body.pipeThrough(new TransformStream({
      transform(chunk, controller) {
        come += chunk.byteLength;
        self.postMessage({ progress: { step: "loading", come: Math.min(come, total), total } });
        controller.enqueue(chunk);
      },
    }));
    return new Response(counted, { status: response.status, headers: response.headers });
  };
}

/** Put files that somebody has dropped where Python finds them; answers the name of what to plan for. */
function mount(files) {
  const { FS } = python;
  const before = `${HOME}/${drops}`;
  drops += 1;
  const folder = `${HOME}/${drops}`;
  const isCheckpoint = files.some((file) => /(^config\.json|\.safetensors(\.index\.json)?)$/.test(file.name));
  const inside = isCheckpoint ? `${folder}/model` : folder;
  FS.mkdirTree(inside);
  FS.mount(FS.filesystems.WORKERFS, { files }, inside);
  FS.chdir(folder);
  if (FS.analyzePath(before).exists) {
    for (const path of [before, `${before}/model`]) {
      try {
        FS.unmount(path);
      } catch {
        // nothing was mounted there
      }
    }
  }
  for (const { name } of files) ask(JSON.stringify({ ask: "tell", name }));
  return isCheckpoint ? "./model" : named(files);
}

/** The file to plan for, of several: the first shard, or the one model. */
function named(files) {
  const names = files.map((file) => file.name).sort();
  const first = names.find((name) => /-00001-of-\d{5}\.gguf$/.test(name));
  const model = names.find((name) => !/mmproj|lora|adapter|draft/i.test(name));
  return first ?? model ?? names[0];
}

/** Put what a link holds of a model where Python finds it under the name that the file had. */
function restore({ name, data }) {
  const path = `${PACKAGES}/linked.json.gz`;
  python.FS.writeFile(path, new Uint8Array(data));
  ask(JSON.stringify({ ask: "tell", name, path }));
  return name;
}

/** Keep a description of a machine, and answer what `--on` calls it. */
function keep({ name, data }) {
  const path = `/machines/${name.replaceAll(/[^\w.-]/g, "_")}`;
  python.FS.writeFile(path, data);
  ask('{"ask": "forget"}');
  return path;
}

function setEnviron(values) {
  const environ = python.runPython("import os; os.environ");
  for (const [name, value] of Object.entries(values)) {
    if (value) environ.set(name, value);
    else environ.pop(name, null);
  }
  environ.destroy();
  ask('{"ask": "forget"}');
  return null;
}
