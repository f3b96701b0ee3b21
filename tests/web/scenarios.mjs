// What the page must do, each as a function of {job, open, shared}: it throws, or returns facts for the test to judge.
import assert from "node:assert/strict";

const settled = "#answer[aria-busy=\"false\"]";

/** Wait until the page has answered what it was asked last. */
async function answered(page) {
  await page.waitForSelector("#load", { state: "hidden" });
  await page.waitForSelector(`${settled} #verdict:not(:empty), ${settled} #problem:not([hidden])`);
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
    await page.waitForFunction(() => globalThis.autofit.plan?.argv.includes("large.gguf") && document.querySelector("#answer").ariaBusy === "false");
    const json = await ask(page, { ...(await page.evaluate(() => globalThis.autofit.request())), ask: "plan" }, "test");
    return { ms: performance.now() - began, json: json.json, request: await page.evaluate(() => globalThis.autofit.request()), facts: await page.textContent("#model-facts") };
  },

  async "refuses a broken file in the command line's words"(given) {
    const { page } = await usual(given);
    await page.setInputFiles("#files", given.job.files.broken);
    await page.waitForSelector("#problem:not([hidden])");
    const said = { message: await page.textContent("#problem .message"), hint: await page.locator("#problem .hint").count() ? await page.textContent("#problem .hint") : null };
    assert.equal(await page.isVisible("#plan"), false);
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
};
