"""How long a plan takes, by layers and devices: the search alone, and the estimates that prove its answers.

    python bench/plan_speed.py [--repeat 5]

Models are Llama 3.1 8B (dense) and Mixtral 8x7B (experts) with their blocks repeated; devices are all unlike, too
small for the model together, so that nothing is trivial. The context is given, or chosen (`auto`). Processor time, the
best of the repeats: of the whole plan, and of the search without the estimates that it asks for.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

from autofit.domain.machine import Device, Host, Machine
from autofit.domain.model import ModelSpec, TensorInfo
from autofit.domain.request import Margin, Request
from autofit.domain.units import GIB, MIB
from autofit.pipeline import read_model

from autofit_llama.memory.estimate import Estimate, estimate
from autofit_llama.planning import problem as search_problem
from autofit_llama.planning.decide import plan

LAYERS = (25, 50, 100, 200)
DEVICES = (1, 2, 4, 8)
CONTEXTS = (8192, None)
LIMIT_S = 0.050  #: for 100 layers on 4 devices


def grown(model: ModelSpec, n_layers: int) -> ModelSpec:
    """The model with `n_layers` blocks, repeating its own."""
    blocks: dict[int, list[TensorInfo]] = {}
    rest = []
    for tensor in model.tensors:
        if tensor.name.startswith("blk."):
            blocks.setdefault(int(tensor.name.split(".")[1]), []).append(tensor)
        else:
            rest.append(tensor)
    made = [
        tensor._replace(name=f"blk.{i}.{tensor.name.split('.', 2)[2]}")
        for i in range(n_layers)
        for tensor in blocks[i % len(blocks)]
    ]
    metadata = {**model.metadata, f"{model.architecture}.block_count": n_layers}
    return replace(model, tensors=(*rest, *made), metadata=metadata)


def unlike_devices(model: ModelSpec, n: int) -> Machine:
    """`n` cards of different sizes and speeds that hold 70 % of the model."""
    shares = [1 + i % 3 + i / 7 for i in range(n)]
    devices = tuple(
        Device(
            id=f"GPU{i}",
            index=i,
            name="card",
            api="cuda",
            total_bytes=96 * GIB,
            free_bytes=int(model.weights_bytes * 0.7 * share / sum(shares)) + GIB,
            runtime_bytes=0,
            compute_capability=(8, 9),
            bandwidth_bytes_per_s=(300 + 150 * i) * 10**9,
            link_bytes_per_s=16 * 10**9,
        )
        for i, share in enumerate(shares)
    )
    return Machine(host=Host(total_bytes=1 << 42, available_bytes=1 << 42, n_cores_physical=16), devices=devices)


class Clock:
    """Counts estimates and their time while it stands in for `estimate`."""

    def __init__(self) -> None:
        self.n, self.seconds = 0, 0.0

    def __call__(self, *args: object) -> Estimate:
        start = time.process_time()
        found = estimate(*args)  # type: ignore[arg-type]
        self.seconds += time.process_time() - start
        self.n += 1
        return found


def measure(model: ModelSpec, machine: Machine, context: int | None, repeat: int) -> tuple[float, float, int]:
    """Seconds of the whole plan, of the search without its estimates, and the number of estimates."""
    best = (1e9, 1e9, 0)
    margins = (Margin(n_bytes=256 * MIB),)
    request = Request(margin=margins, context=context, alternatives=False, explain=False)
    for _ in range(repeat):
        clock = Clock()
        search_problem.estimate = clock  # type: ignore[assignment]
        start = time.process_time()
        plan(model, machine, request)
        seconds = time.process_time() - start
        best = min(best, (seconds, seconds - clock.seconds, clock.n), key=lambda row: row[1])
    return best


def rows(repeat: int) -> Iterator[tuple[str, int, int, int | None, float, float, int]]:
    for name in ("example:llama-3.1-8b-q4_k_m", "example:mixtral-8x7b-q4_k_m"):
        original = read_model(name)
        for n_layers in LAYERS:
            model = grown(original, n_layers)
            for n_devices in DEVICES:
                machine = unlike_devices(model, n_devices)
                for context in CONTEXTS:
                    times = measure(model, machine, context, repeat)
                    yield (name.removeprefix("example:"), n_layers, n_devices, context, *times)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    heads = ("layers", "devices", "context", "search ms", "µs per layer and device", "plan ms", "estimates")
    print(f"{'model':22} " + " ".join(f"{head:>{max(len(head), 8)}}" for head in heads))
    worst = 0.0
    for name, n_layers, n_devices, context, whole, search, n_estimates in rows(args.repeat):
        per = search * 1e6 / n_layers / n_devices
        left = f"{name:22} {n_layers:8} {n_devices:8} {context or 'auto':>8} {search * 1e3:9.1f}"
        print(f"{left} {per:23.1f} {whole * 1e3:8.0f} {n_estimates:9}", flush=True)
        if (n_layers, n_devices) == (100, 4):
            worst = max(worst, search)
    print(f"\n100 layers on 4 devices: {worst * 1e3:.1f} ms at most for the search (limit {LIMIT_S * 1e3:.0f} ms)")
    return 0 if worst <= LIMIT_S else 1


if __name__ == "__main__":
    sys.exit(main())
