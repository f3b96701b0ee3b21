// Drives the page in a real Chromium: `node drive.mjs < job.json` prints a line of JSON for each scenario.
//
// The job: {url, chromium, modules, files: {name: path}, commands: [...], hub, log, served,
// only: [names], shots: folder}.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { scenarios } from "./scenarios.mjs";

const job = JSON.parse(readFileSync(0, "utf8"));
const { chromium } = createRequire(`${job.modules}/`)("playwright-core");

const browser = await chromium.launch({
  executablePath: job.chromium,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});

/** A browser profile of its own, with its page; what the page asked for, and what went wrong in it. */
async function open(options = {}, fragment = "", address = job.url) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(job.patience_ms ?? 90_000);
  const seen = { requests: [], faults: [] };
  context.on("request", (request) => seen.requests.push(request.url()));
  page.on("pageerror", (error) => seen.faults.push(String(error)));
  page.on("console", (message) => message.type() === "error" && seen.faults.push(message.text()));
  await page.goto(address + fragment);
  return { context, page, seen };
}

try {
  const shared = {};
  for (const [name, scenario] of Object.entries(scenarios)) {
    if (job.only?.length && !job.only.includes(name)) continue;
    const began = performance.now();
    try {
      const facts = await scenario({ job, open, shared });
      console.log(JSON.stringify({ name, ok: true, seconds: (performance.now() - began) / 1000, facts: facts ?? {} }));
    } catch (error) {
      console.log(JSON.stringify({ name, ok: false, error: String(error?.stack ?? error).slice(0, 4000) }));
    }
  }
} finally {
  await browser.close();
}
