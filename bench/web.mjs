// Times of the page in a real Chromium: `node web.mjs < job.json` prints them as JSON. Job: {url, chromium, modules, moves}.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const job = JSON.parse(readFileSync(0, "utf8"));
const { chromium } = createRequire(`${job.modules}/`)("playwright-core");
const browser = await chromium.launch({
  executablePath: job.chromium,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});

const answered = async (page) => {
  await page.waitForSelector("#load", { state: "hidden" });
  await page.waitForSelector("#answer[aria-busy=\"false\"] #verdict:not(:empty)");
};

/** Milliseconds until the page has answered, in a profile that may have been there before. */
async function first(context, fragment) {
  const page = await context.newPage();
  page.setDefaultTimeout(180_000);
  const began = performance.now();
  await page.goto(job.url + fragment);
  await answered(page);
  const took = performance.now() - began;
  return { page, took };
}

/** Milliseconds from a move of the context slider to other bars, for each move. */
const moved = (page, moves, pause) => page.evaluate(async ([count, wait]) => {
  const input = document.querySelector("#dial-context");
  const picture = document.querySelector("#picture");
  const most = Number(input.max);
  const took = [];
  for (let n = 0; n < count; n += 1) {
    const value = 2 + ((n * 5) % (most - 2));
    await new Promise((resolve) => setTimeout(resolve, wait));
    took.push(await new Promise((resolve) => {
      const began = performance.now();
      const observer = new MutationObserver(() => {
        observer.disconnect();
        requestAnimationFrame(() => resolve(performance.now() - began));
      });
      observer.observe(picture, { childList: true });
      input.value = String(value);
      input.dispatchEvent(new Event("input", { bubbles: true }));
    }));
  }
  return took;
}, [moves, pause]);

const found = {};
const context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
for (const name of ["llama-3.1-8b-q4_k_m", "mixtral-8x7b-q4_k_m"]) {
  const fragment = `#model=example:${name}&backend=llama&on=rtx-3090&ram=64GiB`;
  const cold = await first(await browser.newContext(), fragment);
  await cold.page.context().close();
  const before = await first(context, fragment);
  await before.page.close();
  const warm = await first(context, fragment);
  await warm.page.waitForFunction(() => document.querySelectorAll("#curves tbody tr").length >= 5);
  found[name] = { cold_ms: cold.took, warm_ms: warm.took, slider_ms: await moved(warm.page, job.moves, 0) };
  await warm.page.close();
}
await browser.close();
console.log(JSON.stringify(found));
