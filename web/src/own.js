// A card that no profile has, out of a few figures: the TOML of a profile, as `--on FILE.toml` takes it.
import { byId } from "./dom.js";

const VENDORS = { cuda: "nvidia", rocm: "amd", sycl: "intel", vulkan: "amd" };

/** The profile of the fields; null with a sentence in `own-problem` where one makes no sense. */
export function ownCard() {
  const problem = byId("own-problem");
  problem.textContent = "";
  const number = (id) => Number(byId(id).value.trim().replace(",", "."));
  const [memory, rate, flops] = ["own-memory", "own-rate", "own-flops"].map(number);
  if (!(memory > 0.5 && memory < 4096)) {
    problem.textContent = "memory: write GiB, such as 24";
    return null;
  }
  for (const { id, value } of [{ id: "own-rate", value: rate }, { id: "own-flops", value: flops }]) {
    if (byId(id).value.trim() && !(value > 0 && value < 1e5)) {
      problem.textContent = `${byId(id).labels[0].textContent}: write a number`;
      return null;
    }
  }
  const name = byId("own-name").value.trim().replaceAll(/["\\\p{C}]/gu, "").slice(0, 60) || "my card";
  const api = byId("own-api").value;
  const lines = [
    "schema = 1", 'kind = "gpu"', `name = "${name}"`, `vendor = "${VENDORS[api]}"`, `api = "${api}"`,
    `memory_total_bytes = ${Math.round(memory * 2 ** 30)}`,
    rate > 0 ? `bandwidth_bytes_per_s = ${Math.round(rate * 1e9)}` : "",
    flops > 0 ? `fp16_flops_per_s = ${Math.round(flops * 1e12)}` : "",
    api === "cuda" ? "compute_capability = [8, 9]" : "",
  ];
  return { file: `${name.toLowerCase().replaceAll(/[^a-z0-9]+/g, "-").replaceAll(/^-|-$/g, "") || "card"}.toml`, text: `${lines.filter(Boolean).join("\n")}\n` };
}
