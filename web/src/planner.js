// The thread that plans: requests go in a line, and of one kind the newest alone is worth an answer.

export class Superseded extends Error {}

/** What autofit says about a request that makes no sense, or a file that is broken: its own sentence and hint. */
export class Refusal extends Error {
  constructor({ message, hint = null, kind = null }) {
    super(message);
    this.hint = hint;
    this.kind = kind;
  }
}

const URGENCY = ["files", "model", "plan", "full", "render", "check", "point", "quants"];

export class Planner {
  #worker;
  #waiting = []; // { id, kind, message, resolve, reject }
  #now = null;
  #count = 0;

  /** `onProgress({step, come, total})` while it loads; `ready` resolves with the page's build. */
  constructor(onProgress) {
    this.ready = new Promise((resolve, reject) => {
      this.#worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module", name: "autofit" });
      this.#worker.onerror = (event) => reject(new Error(event.message || "the page's Python did not start"));
      this.#worker.onmessage = ({ data }) => {
        if (data.progress) onProgress(data.progress);
        else if (data.ready) resolve(data.ready);
        else if (data.broken) reject(new Error(data.broken));
        else this.#answered(data);
      };
      this.#worker.postMessage({ start: true });
    });
    this.ready.then(() => this.#next(), () => {});
  }

  /** Ask; `kind` says what it supersedes. Rejects with `Refusal`, or `Superseded`. */
  async ask(request, kind = request.ask) {
    const text = await this.#send({ text: JSON.stringify(request) }, kind);
    const answer = JSON.parse(text);
    if (answer.error) throw new Refusal(answer.error);
    return answer;
  }

  /** Make files of this computer readable; resolves with the name of the model among them. */
  mount(files) {
    return this.#send({ files }, "files");
  }

  /** Let what a link holds of a model stand for its file. */
  restore(name, data) {
    return this.#send({ restore: { name, data } }, "files");
  }

  keep(name, data) {
    return this.#send({ keep: { name, data } }, `keep ${name}`);
  }

  setEnviron(values) {
    return this.#send({ environ: values }, "environ");
  }

  /** Forget requests of a kind that wait. */
  drop(kind) {
    for (const one of this.#waiting.filter((other) => other.kind === kind)) one.reject(new Superseded());
    this.#waiting = this.#waiting.filter((other) => other.kind !== kind);
  }

  #send(message, kind) {
    this.drop(kind);
    return new Promise((resolve, reject) => {
      this.#waiting.push({ id: ++this.#count, kind, message, resolve, reject });
      this.ready.then(() => this.#next(), reject);
    });
  }

  #next() {
    if (this.#now || !this.#waiting.length) return;
    const rank = (one) => (URGENCY.includes(one.kind) ? URGENCY.indexOf(one.kind) : 0);
    this.#waiting.sort((a, b) => rank(a) - rank(b) || a.id - b.id);
    this.#now = this.#waiting.shift();
    this.#worker.postMessage({ id: this.#now.id, ...this.#now.message });
  }

  #answered({ id, answer, failure }) {
    const now = this.#now;
    this.#now = null;
    if (now && now.id === id) {
      if (failure === undefined) now.resolve(answer);
      else now.reject(new Error(failure));
    }
    this.#next();
  }
}
