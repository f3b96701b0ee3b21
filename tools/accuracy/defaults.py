"""The plan that is made without a wish, beside what llama.cpp's own `--fit` makes of `llama-server -m MODEL`.

    python tools/accuracy/defaults.py [--only TEXT]

Models are the full-size ones in tests/data/llama/models, machines are profiles. For each pair: context, KV type, layers
and parts of experts on devices, decode rate at 8192 tokens (autofit's estimate for both sides) and with the context
full; a command of `--fit` that does not start has no rate. `--fit` is replayed, as `autofit check` does.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "plugins"), str(ROOT / "tests")]

import autofit
from autofit.domain.machine import HOST_POOL, Machine
from autofit.domain.plan import Plan
from autofit.domain.request import Request
from autofit.domain.units import GIB

from autofit_llama.backend import LlamaBackend
from support.descriptors import spec

FILL_TOKENS = 8192
MACHINES: dict[str, tuple[tuple[str, ...], str | None]] = {
    "RTX 3060 12 GB, 32 GB": (("rtx-3060",), "32GB"),
    "2 x RTX 3060, 64 GB": (("rtx-3060", "rtx-3060"), "64GB"),
    "RTX 4060 laptop, 32 GB": (("rtx-4060-laptop",), "32GB"),
    "RTX 3090, 64 GB": (("rtx-3090",), "64GB"),
    "RTX 3090 + 4060 Ti, 64 GB": (("rtx-3090", "rtx-4060-ti-16gb"), "64GB"),
    "RX 7900 XTX, 64 GB": (("rx-7900-xtx",), "64GB"),
    "A100 80 GB, 256 GB": (("a100-80gb",), "256GB"),
    "M3 Max 36 GB": (("m3-max",), "36GB"),
    "GB10": (("gb10",), None),
    "Strix Halo 128 GB": (("strix-halo",), "128GB"),
}
MODELS = ("llama-3.1-8b-Q4_K_M", "qwen3-32b-Q4_K_M", "qwen3-30b-a3b-Q4_K_M", "gpt-oss-120b-MXFP4_MOE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What one of the two chose; rates are `None` where it does not start."""

    context_tokens: int
    kv_type: str
    placement: str
    start: float | None
    full: float | None

    def at(self, n_tokens: int) -> float:
        """Decode rate with so many tokens in the context: time per token grows linearly with them."""
        if self.start is None or self.full is None:
            return 0.0
        share = min(1.0, n_tokens / max(1, self.context_tokens))
        return 1 / ((1 - share) / self.start + share / self.full)

    def __str__(self) -> str:
        rate = "none" if self.full is None else f"{self.at(FILL_TOKENS):6.1f} {self.full:6.1f}"
        return f"{self.context_tokens:>8,} {self.kv_type:<5} {self.placement:<20} {rate:>13}"


def machine_of(name: str) -> Machine:
    profiles, ram = MACHINES[name]
    return autofit.load_machine(*profiles, ram=ram) if ram else autofit.load_machine(*profiles)


def ours(model: str, machine: Machine) -> Side:
    backend = LlamaBackend()
    request = Request(alternatives=False)
    return side(backend.plan(backend.command(request), spec("models", model), machine, request))


def engine(model: str, machine: Machine) -> Side:
    backend = LlamaBackend()
    command = backend.parse(["llama-server", "-m", f"{model}.gguf"])
    return side(backend.check(command, spec("models", model), machine))


def side(plan: Plan) -> Side:
    chosen = {decision.setting: decision.value for decision in plan.decisions}
    speed = plan.speed if plan.memory.starts else None
    return Side(
        context_tokens=plan.context_tokens or 0,
        kv_type=chosen.get("-ctk", "f16"),
        placement=placement(plan, chosen),
        start=None if speed is None else speed.start_tokens_per_s or speed.decode_tokens_per_s,
        full=None if speed is None else speed.decode_tokens_per_s,
    )


def placement(plan: Plan, chosen: dict[str, str]) -> str:
    """Layers on devices (`-ngl`) and weights in main memory, the token embedding among them."""
    host = plan.memory.pool(HOST_POOL)
    shared = any(pool.limits for pool in plan.memory.pools)
    in_ram = "" if shared else f"{host.sum_bytes('weights') / GIB:5.1f} GiB in RAM"
    return f"{chosen.get('-ngl', ''):>3} {in_ram}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", metavar="TEXT", help="pairs whose model or machine has it")
    only = parser.parse_args().only.lower()
    columns = f"{'context':>8} {'KV':<5} {'-ngl, rest':<20} {'at 8k':>6} {'full':>6}"
    print(f"{'':<50}{'autofit':<51}{'llama.cpp --fit'}\n{'model':<24}{'machine':<26}{columns} | {columns}")
    for model in MODELS:
        for name in MACHINES:
            if only not in f"{model} {name}".lower():
                continue
            machine = machine_of(name)
            print(f"{model:<24}{name:<26}{ours(model, machine)} | {engine(model, machine)}", flush=True)


if __name__ == "__main__":
    main()
