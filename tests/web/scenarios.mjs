// What the page must do, each as a function of {job, open, shared}: it throws, or returns facts for the test to judge.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

/** Wait until the page shows the answer to what it is to plan, or why there is none. */
async function answered(page) {
  await page.waitForSelector("#load", { state: "hidden" });
  await page.waitForFunction(() => globalThis.autofit.answered === JSON.stringify(globalThis.autofit.request()));
}

/** Have the page plan what a fragment says. */
async function go(page, fragment) {
  await page.evaluate((hash) => { location.hash = hash; }, fragment);
  const wanted = new URLSearchParams(fragment.slice(1));
  await page.waitForFunction((model) => globalThis.autofit.state.model === model, wanted.get("model"));
  await answered(page);
}

/** One page for the scenarios that do not need an empty cache. */
async function usual({ open, shared }) {
  shared.usual ??= await open();
  await answered(shared.usual.page);
  return shared.usual;
}

const ask = (page, request, kind) => page.evaluate(([asked, as]) => globalThis.autofit.planner.ask(asked, as), [request, kind]);

export const scenarios = {
  async "loads from an empty cache"({ job, open }) {
    const began = performance.now();
    const { context, page, seen } = await open();
    await page.waitForSelector("#devices .device"); // the form is there before Python is
    const form = performance.now() - began;
    await answered(page);
    const first = performance.now() - began;
    assert.match(await page.textContent("#verdict"), /^It fits/);
    assert.equal(await page.locator("#picture .pool").count(), 2);
    assert.match(await page.textContent("#command"), /^llama-server -m /);
    const elsewhere = seen.requests.filter((url) => !url.startsWith(job.url));
    assert.deepEqual(elsewhere, []);
    assert.deepEqual(seen.faults, []);
    await context.close();
    return { form_ms: form, first_ms: first, requests: seen.requests.length };
  },

  async "gives the command line's JSON to the byte"(given) {
    const { page } = await usual(given);
    const answers = [];
    for (const { files, request } of given.job.commands) {
      if (files) {
        await page.evaluate(async (texts) => {
          await globalThis.autofit.planner.mount(Object.entries(texts).map(([name, text]) => new File([text], name)));
        }, files);
      }
      const found = await ask(page, { ...request, ask: "plan" }, "test").catch((error) => ({ json: String(error) }));
      answers.push(found.json);
    }
    return { answers };
  },

  async "answers for a file of 100 GB with a header of 5 MB"(given) {
    const { page } = await usual(given);
    const began = performance.now();
    await page.setInputFiles("#files", given.job.files.large);
    await page.waitForFunction(() => globalThis.autofit.plan?.argv.includes("large.gguf"));
    await answered(page);
    const json = await ask(page, { ...(await page.evaluate(() => globalThis.autofit.request())), ask: "plan" }, "test");
    return { ms: performance.now() - began, json: json.json, request: await page.evaluate(() => globalThis.autofit.request()), facts: await page.textContent("#model-facts") };
  },

  async "refuses a broken file in the command line's words"(given) {
    const { page } = await usual(given);
    await page.setInputFiles("#files", given.job.files.broken);
    await page.waitForFunction(() => globalThis.autofit.state.model === "broken.gguf");
    await answered(page);
    const said = { message: await page.textContent("#problem .message"), hint: await page.locator("#problem .hint").count() ? await page.textContent("#problem .hint") : null };
    assert.equal(await page.locator("#plan").evaluate((one) => one.inert), true);
    await page.fill("#model", "example:tiny");
    await page.press("#model", "Enter");
    await page.waitForSelector("#problem", { state: "hidden" });
    await answered(page);
    return said;
  },

  async "restores a shared link"({ open }) {
    const fragment = "#model=example:mixtral-8x7b-q4_k_m&backend=llama&on=2xrtx-3060-12gb&on=rtx-4090:20GiB&ram=32GiB&context=8k&flags=--n-cpu-moe+4&format=json";
    const { context, page, seen } = await open({}, fragment);
    await answered(page);
    const values = (selector) => page.locator(selector).evaluateAll((all) => all.map((one) => one.value));
    assert.deepEqual(await values(".device-count"), ["2", ""]);
    assert.deepEqual(await values(".device-name"), ["rtx-3060-12gb", "rtx-4090"]);
    assert.deepEqual(await values(".device-size"), ["", "20GiB"]);
    assert.deepEqual(await values("#ram, #option-context, #flags, #format"), ["32GiB", "8k", "--n-cpu-moe 4", "json"]);
    const plan = await page.evaluate(() => globalThis.autofit.plan);
    assert.equal(plan.context_tokens, 8192);
    assert.deepEqual(plan.argv.slice(plan.argv.indexOf("--n-cpu-moe"), plan.argv.indexOf("--n-cpu-moe") + 2), ["--n-cpu-moe", "4"]);
    assert.equal(new URL(page.url()).hash, fragment);
    assert.deepEqual(seen.faults, []);
    const { json } = await ask(page, { ...(await page.evaluate(() => globalThis.autofit.request())), ask: "plan" }, "test");
    await context.close();
    return { json };
  },

  async "keeps a dropped file in its link"(given) {
    const { page } = await usual(given);
    await page.setInputFiles("#files", given.job.files.large);
    await page.waitForFunction(() => globalThis.autofit.state.header && globalThis.autofit.plan?.argv.includes("large.gguf"));
    await answered(page);
    await page.waitForFunction(() => location.hash.includes("header="));
    const asked = async (of) => (await ask(of, { ...(await of.evaluate(() => globalThis.autofit.request())), ask: "plan" }, "test")).json;
    const json = await asked(page);
    const { context, page: other, seen } = await given.open({}, new URL(page.url()).hash);
    await answered(other);
    assert.equal(await asked(other), json);
    assert.deepEqual(seen.faults, []);
    await context.close();
    return { length: page.url().length };
  },

  async "says what is wrong with a damaged link"(given) {
    const { page } = await usual(given);
    await page.evaluate(() => { location.hash = "#model=lost.gguf&backend=llama&on=rtx-3090&ram=64GiB&header=AAAA"; });
    await page.waitForFunction(() => document.querySelector("#problem").textContent.startsWith("the link is damaged"));
    await page.evaluate(() => { location.hash = "#model=lost.gguf&on=rtx-3090&ram=64GiB&file=x.toml~!!!"; });
    await page.waitForFunction(() => document.querySelector("#problem").textContent.includes("lost.gguf: no such file"));
  },

  async "asks no server that a link names"(given) {
    const { page, seen } = await usual(given);
    const before = seen.requests.length;
    await go(page, `#model=${given.job.hub}/plain.gguf&backend=llama&on=rtx-3090&ram=64GiB`);
    assert.match(await page.textContent("#problem"), /^the link names a model of 127\.0\.0\.1:\d+/);
    assert.deepEqual(seen.requests.slice(before).filter((url) => !url.startsWith(given.job.url)), []);
    await page.locator("#model").focus();
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => document.querySelector("#problem").hidden || !document.querySelector("#problem").textContent.startsWith("the link names"));
    await answered(page);
    assert.equal(await page.isVisible("#problem"), false, await page.textContent("#problem"));
    return { argv: await page.evaluate(() => globalThis.autofit.plan.argv) };
  },

  async "takes shards, a configuration and a checkpoint"(given) {
    const { page } = await usual(given);
    const json = async () => (await ask(page, { ...(await page.evaluate(() => globalThis.autofit.request())), ask: "plan" }, "test")).json;
    const answers = {};
    for (const [name, model] of [["shards", given.job.files.shards[0].split("/").at(-1)], ["config", "./model"], ["checkpoint", "./model"]]) {
      await go(page, "#model=example:tiny&backend=llama&on=rtx-3090&ram=64GiB");
      await page.setInputFiles("#files", given.job.files[name]);
      await page.waitForFunction((wanted) => globalThis.autofit.state.model === wanted, model);
      await answered(page);
      answers[name] = await json();
    }
    return { answers };
  },

  async "moves sliders"(given) {
    const { page } = await usual(given);
    await go(page, "#model=example:mixtral-8x7b-q4_k_m&backend=llama&on=rtx-3090&ram=64GiB");
    const slide = async (id, value) => page.locator(`#dial-${id}`).evaluate((input, wanted) => {
      input.value = wanted;
      input.dispatchEvent(new Event("input", { bubbles: true }));
    }, value);
    await slide("context", 6);
    await page.waitForFunction(() => globalThis.autofit.plan?.context_tokens === 8192);
    assert.equal(await page.locator("#dial-context").getAttribute("aria-valuetext"), "8,192 tokens");
    assert.equal(await page.inputValue("#option-context"), "8k");
    await slide("n-cpu-moe", 20);
    await page.waitForFunction(() => globalThis.autofit.plan?.argv.join(" ").includes("--n-cpu-moe 20"));
    assert.equal(await page.inputValue("#flags"), "--n-cpu-moe 20");
    await slide("parallel", 3);
    await page.waitForFunction(() => globalThis.autofit.state.parallel === "4");
    await page.check("#dials input[name=dial-kv][value=q8_0]", { force: true });
    await page.waitForFunction(() => globalThis.autofit.plan?.argv.join(" ").includes("q8_0"));
    await page.click("#dials .dial:has(#dial-n-cpu-moe) .reset");
    await page.waitForFunction(() => !globalThis.autofit.state.flags);
    await page.waitForFunction(() => location.hash.includes("context=8k") && location.hash.includes("kv=q8_0") && location.hash.includes("parallel=4"));
    await answered(page);
  },

  async "draws curves and a table of cards"(given) {
    const { page } = await usual(given);
    await go(page, "#model=example:llama-3.1-8b-q4_k_m&backend=llama&on=rtx-3060-12gb&ram=64GiB");
    await page.waitForFunction(() => document.querySelectorAll("#curves .chart").length === 2 && document.querySelectorAll("#curves tbody tr").length === 7);
    await page.fill("#quants-cards", "rtx-4090, no-such-card");
    await page.click("#quants-go");
    await page.waitForFunction(() => document.querySelectorAll("#quants thead th").length === 5);
    const rows = await page.locator("#quants tbody tr").count();
    assert.ok(rows > 10, `${rows} rows`);
    assert.equal(await page.locator("#quants td.chosen").count(), 2);
    assert.match(await page.textContent("#quants .problem"), /no-such-card/);
  },

  async "writes every format"(given) {
    const { page } = await usual(given);
    const texts = {};
    for (const name of await page.locator("#format option").evaluateAll((all) => all.map((one) => one.value))) {
      await page.selectOption("#format", name);
      const asked = { ...(await page.evaluate(() => globalThis.autofit.request())), ask: "render", format: name };
      texts[name] = await page.evaluate((request) => globalThis.autofit.planner.ask(request, "test").then(({ text }) => text, ({ message }) => `autofit: ${message}`), asked);
    }
    await page.selectOption("#format", "shell");
    return { texts, request: await page.evaluate(() => globalThis.autofit.request()) };
  },

  async "asks a hub for the header alone"(given) {
    const { page } = await usual(given);
    await page.click("#hub summary");
    await page.fill("#endpoint", given.job.hub);
    await page.fill("#token", "hf_secret");
    await page.fill("#model", "org/repo:Q4_K_M");
    await page.press("#model", "Enter");
    await page.waitForFunction(() => globalThis.autofit.plan?.argv.join(" ").includes("org/repo"));
    await answered(page);
    assert.ok(!(page.url() + JSON.stringify(await page.evaluate(() => ({ ...localStorage, ...sessionStorage })))).includes("hf_secret"));
    await page.fill("#model", "org/none");
    await page.press("#model", "Enter");
    await page.waitForSelector("#problem:not([hidden])");
    const refused = await page.textContent("#problem .message");
    await page.fill("#model", "example:llama-3.1-8b-q4_k_m");
    await page.press("#model", "Enter");
    await page.waitForSelector("#problem", { state: "hidden" });
    await answered(page);
    return { refused };
  },

  async "checks a command and explains a log"(given) {
    const { page } = await usual(given);
    await page.click("#tab-check");
    await page.fill("#paste", "llama-server -m example:llama-3.1-8b-q4_k_m \\\n  -ngl 99 -c 131072 -np 4");
    await page.click("#check-go");
    await page.waitForFunction(() => document.querySelector("#check-verdict").dataset.state);
    const command = await page.textContent("#check-verdict");
    assert.ok(await page.locator("#check-answer .pool").count() >= 2);
    await page.fill("#paste", given.job.log);
    await page.click("#check-go");
    await page.waitForFunction(() => document.querySelector("#check-verdict").textContent.startsWith("cause: 9.00 GiB for the KV cache"));
    await page.fill("#paste", "llama-server -m a.gguf --no-such-flag");
    await page.click("#check-go");
    await page.waitForSelector("#check-problem:not([hidden])");
    const problem = await page.textContent("#check-problem");
    await page.click("#tab-plan");
    return { command, problem };
  },

  async "takes a card of own figures and a machine from a file"(given) {
    const { page } = await usual(given);
    await page.click("#own summary");
    await page.fill("#own-name", 'A "card"\n');
    await page.click("#own-go");
    assert.match(await page.textContent("#own-problem"), /memory/);
    await page.fill("#own-memory", "10");
    await page.fill("#own-rate", "500");
    await page.click("#own-go");
    await page.waitForFunction(() => globalThis.autofit.plan?.pools[0].total_bytes === 10 * 2 ** 30);
    await answered(page);
    assert.equal((await page.evaluate(() => globalThis.autofit.plan)).pools[0].name, "A card");
    await page.waitForFunction(() => location.hash.includes("file="));
    const before = new URL(page.url()).hash; // of the card, which is a file too
    await page.setInputFiles("#machine-file", given.job.files.machine);
    await page.waitForFunction(() => globalThis.autofit.plan?.pools[0].name === "Recorded card");
    await page.waitForFunction((old) => location.hash !== old, before);
    const { context, page: other } = await given.open({}, new URL(page.url()).hash);
    await answered(other);
    assert.equal((await other.evaluate(() => globalThis.autofit.plan)).pools[0].name, "Recorded card");
    await context.close();
  },

  async "is used by keyboard alone"({ open }) {
    const { context, page } = await open({ permissions: ["clipboard-read", "clipboard-write"] });
    await answered(page);
    const at = () => page.evaluate(() => document.activeElement.id || document.activeElement.className.split(" ")[0] || document.activeElement.tagName);
    const to = async (id) => {
      for (let n = 0; n < 150; n += 1) {
        await page.keyboard.press("Tab");
        if ((await at()) === id) return;
      }
      assert.fail(`Tab does not lead to ${id}`);
    };
    await page.keyboard.press("Tab");
    assert.equal(await at(), "skip");
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => document.activeElement.id === "answer");
    await to("copy");
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => document.querySelector("#copied").textContent === "copied");
    assert.equal(await page.evaluate(() => navigator.clipboard.readText()), await page.textContent("#command"));
    await to("dial-context");
    await page.keyboard.press("Home");
    await page.keyboard.press("ArrowRight");
    await page.waitForFunction(() => globalThis.autofit.plan?.context_tokens === 1536);
    await page.locator("#answer").focus();
    await to("part-name");
    assert.match(await page.textContent(".pool .part-detail"), /bytes\. /);
    await page.keyboard.press("Shift+Tab");
    await page.locator("#tab-plan").focus();
    await page.keyboard.press("ArrowRight");
    assert.equal(await page.isVisible("#view-check"), true);
    await to("paste");
    await page.keyboard.type("llama-server -m example:tiny -ngl 99");
    await to("check-go");
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => document.querySelector("#check-verdict").dataset.state);
    await context.close();
  },

  async "fits a phone"({ open, job }) {
    const { context, page, seen } = await open({ viewport: { width: 360, height: 740 }, hasTouch: true, isMobile: true, deviceScaleFactor: 2 }, "#model=example:mixtral-8x22b-q4_k_m&backend=llama&on=4xrtx-3090&ram=128GiB&context=8k");
    await answered(page);
    await page.waitForSelector("#curves .chart");
    const wide = () => page.evaluate(() => document.documentElement.scrollWidth);
    assert.equal(await wide(), 360);
    for (const id of ["decisions", "items"]) await page.click(`#${id} summary`);
    assert.equal(await wide(), 360);
    const small = await page.evaluate(() => [...document.querySelectorAll("button, summary, select, input:not([type=radio], [type=checkbox], .visually-hidden)")]
      .filter((one) => one.checkVisibility() && one.getBoundingClientRect().height < 24).map((one) => one.outerHTML.slice(0, 80)));
    assert.deepEqual(small, []);
    await page.click("#tab-check");
    assert.equal(await wide(), 360);
    if (job.shots) await page.screenshot({ path: `${job.shots}/phone.png`, fullPage: true });
    assert.deepEqual(seen.faults, []);
    await context.close();
  },

  async "works without a network after the first visit"({ job, open }) {
    const { context, page, seen } = await open();
    await answered(page);
    const isKept = () => page.evaluate(async () => {
      const listed = await (await fetch("files.json")).json();
      const cache = await caches.open(`autofit-${listed.build}`);
      return (await cache.keys()).length >= Object.keys(listed.files).length + 2 && navigator.serviceWorker.controller?.state === "activated";
    });
    for (let tries = 0; !(await isKept()); tries += 1) {
      assert.ok(tries < 300, "the page is not kept");
      await page.waitForTimeout(100);
    }
    await context.setOffline(true);
    const before = seen.requests.length;
    await page.reload();
    await answered(page);
    assert.match(await page.textContent("#verdict"), /^It fits/);
    assert.deepEqual(seen.requests.filter((url) => !url.startsWith(job.url)), []);
    assert.ok(seen.requests.length > before);
    await context.close();
  },

  async "has no fault that axe finds"({ job, open }) {
    const axe = readFileSync(`${job.modules}/axe-core/axe.min.js`, "utf8");
    const found = {};
    const { context, page } = await open();
    await answered(page);
    for (const [name, looks, fragment, prepare] of [
      ["light", {}, "#model=example:llama-3.1-8b-q4_k_m&backend=llama&on=rtx-3090&ram=32GiB", (one) => one.click("#decisions summary")],
      ["dark", { colorScheme: "dark" }, "#model=example:mixtral-8x7b-q4_k_m&backend=llama&on=rtx-3090&ram=64GiB", (one) => one.click("#items summary")],
      ["refused", { colorScheme: "light" }, "#model=none.gguf&backend=llama&on=rtx-3090&ram=64GiB", () => {}],
      ["does not fit on a phone", { width: 360 }, "#model=example:mixtral-8x22b-q4_k_m&backend=llama&on=rtx-3090&ram=8GiB", (one) => one.click("#more summary")],
      ["check", { width: 1280, colorScheme: "dark" }, "#model=example:tiny&backend=llama&on=rtx-3090&ram=64GiB", async (one) => {
        await one.click("#tab-check");
        await one.fill("#paste", "llama-server -m example:tiny -ngl 99");
        await one.click("#check-go");
        await one.waitForSelector("#check-answer .pool");
      }],
    ]) {
      if (looks.colorScheme) await page.emulateMedia({ colorScheme: looks.colorScheme });
      if (looks.width) await page.setViewportSize({ width: looks.width, height: 900 });
      await go(page, fragment);
      await prepare(page);
      await page.evaluate(axe); // by the browser's tools: the page itself would not run it
      const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
      found[name] = violations.map((one) => `${one.id}: ${one.nodes.map((node) => node.html.slice(0, 120)).join(" | ")}`);
      if (job.shots) await page.screenshot({ path: `${job.shots}/axe-${name}.png`, fullPage: true });
    }
    await context.close();
    assert.deepEqual(Object.entries(found).filter(([, all]) => all.length), []);
    return { states: Object.keys(found) };
  },

  async "is served by autofit web with this machine filled in"({ job, open }) {
    const { context, page, seen } = await open({}, "", job.served);
    await answered(page);
    assert.deepEqual(await page.locator(".device-name").evaluateAll((all) => all.map((one) => one.value)), ["/machines/this-machine.json"]);
    assert.equal((await page.evaluate(() => globalThis.autofit.plan)).pools.at(-1).id, "host");
    assert.equal(await page.evaluate(async () => (await navigator.serviceWorker?.getRegistrations())?.length ?? 0), 0);
    assert.deepEqual(seen.faults, []);
    const json = await ask(page, { ...(await page.evaluate(() => globalThis.autofit.request())), ask: "plan" }, "test");
    await context.close();
    return { json: json.json };
  },
};
