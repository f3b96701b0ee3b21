"""Random planning jobs for llama.cpp: a model, a machine, wishes and the user's own flags, from one seed."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from autofit.domain.machine import Device, Host, Machine
from autofit.domain.model import ModelSpec
from autofit.domain.request import Margin, Request
from autofit.domain.units import GIB, MIB

from support import ggufs
from support.descriptors import DATA, names, spec

#: no language model, or one that the engine does not load without its real vocabulary
SKIPPED = frozenset(("pockettts-dense", "qwen3tts-dense", "eagle3-dense", "dflash-dense", "phi-3-mini-4k-F16"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    part: str
    name: str
    api: str
    free_mib: tuple[int, ...]
    ram_bytes: int | None
    request: Request

    @property
    def label(self) -> str:
        wishes = {
            "context": self.request.context, "parallel": self.request.parallel, "kv": self.request.kv,
            "prefer": self.request.prefer, "margin": self.request.margin[0].n_bytes // MIB,
        }  # fmt: skip
        said = " ".join(f"{name}={value}" for name, value in wishes.items() if value is not None)
        devices = "+".join(map(str, self.free_mib)) or "none"
        return f"{self.name} {self.api} {devices} {said} -- {' '.join(self.request.engine_args)}"

    @property
    def model(self) -> ModelSpec:
        return spec(self.part, self.name)

    @property
    def machine(self) -> Machine:
        devices = tuple(
            Device(
                id=f"GPU{i}",
                index=i,
                name="card",
                api=self.api,  # type: ignore[arg-type]
                total_bytes=mib * MIB,
                free_bytes=mib * MIB,
                runtime_bytes=0,
                compute_capability=(8, 9) if self.api == "cuda" else None,
                bandwidth_bytes_per_s=(936_000_000_000, 360_000_000_000)[i % 2],
                link_bytes_per_s=16_000_000_000,
            )
            for i, mib in enumerate(self.free_mib)
        )
        host = Host(total_bytes=self.ram_bytes, available_bytes=self.ram_bytes, n_cores_physical=8)
        return Machine(host=host, devices=devices)


def cases(n: int, seed: int) -> Iterator[Case]:
    """`n` jobs; the same for the same seed."""
    rng = random.Random(seed)
    # Split models are left out only because their shards would have to be written too.
    models = [("models", name) for name in names("models") if "-of-" not in name] * 2
    models += [("archs", name) for name in names("archs")]
    models = [pair for pair in models if pair[1] not in SKIPPED]
    for _ in range(n):
        part, name = rng.choice(models)
        yield _case(rng, part, name)


def _case(rng: random.Random, part: str, name: str) -> Case:
    model = spec(part, name)
    n_devices = rng.choice((0, 1, 1, 1, 2, 2, 3, 4))
    api = rng.choice(("cuda", "cuda", "rpc")) if n_devices else "cuda"
    weights_mib = max(8, model.weights_bytes // MIB)
    share = rng.choice((0.1, 0.3, 0.6, 0.9, 1.1, 1.6)) / max(n_devices, 1)
    free = tuple(
        int(weights_mib * share * rng.uniform(0.5, 1.5)) + rng.choice((64, 400, 1500)) for _ in range(n_devices)
    )
    trained = model.context_train_tokens or 4096
    context = rng.choice((None, None, 0, 1024, 4096, 10_000, min(32_768, trained)))
    pins = _pins(rng, model, n_devices, api)
    if "-c" in pins or "--ctx-size" in pins:
        context = None
    request = Request(
        context=context,
        parallel=None if "-np" in pins else rng.choice((None, None, 1, 2, 4)),
        margin=(Margin(n_bytes=min([rng.choice((0, 16, 256)), *(mib // 8 for mib in free)]) * MIB),),
        prefer=rng.choice(("speed", "speed", "context", "throughput")),
        kv=None if "-ctk" in pins else rng.choice((None, None, None, "auto")),
        engine_args=tuple(pins),
        alternatives=False,
    )
    ram = rng.choice((None, None, model.weights_bytes + 12 * GIB, int(model.weights_bytes * 0.7) + GIB))
    return Case(part=part, name=name, api=api, free_mib=free, ram_bytes=ram, request=request)


def _pins(rng: random.Random, model: ModelSpec, n_devices: int, api: str) -> list[str]:
    """Up to three flags that the user insists on."""
    n_blocks = len(model.layers) or 8
    options: list[list[str]] = [
        ["-ngl", str(rng.choice((0, 1, n_blocks // 2, n_blocks, 99)))],
        ["-c", str(rng.choice((512, 2048, 8192)))],
        ["--ctx-size", "3000"],
        ["-ub", str(rng.choice((64, 128, 1024)))],
        ["-b", "256", "-ub", "256"],
        ["-np", str(rng.choice((1, 2, 3)))],
        ["-nkvo"],
        ["-fa", "off"],
        ["--swa-full"],
        ["--no-op-offload"],
        ["-ot", r"blk\.[0-9]\.attn=CPU"],
        ["--temp", "-0.5"],
        ["-lm", "none"],
    ]
    if any(tensor.name.endswith("_exps.weight") for tensor in model.tensors):
        options += [["-ncmoe", str(rng.randint(0, n_blocks))], ["-cmoe"]]
    if n_devices > 1:
        options += [
            ["-ts", ",".join(str(rng.choice((1, 2, 3))) for _ in range(n_devices))],
            ["-sm", "none", "-mg", "1"],
        ]
    if n_devices and api == "cuda":
        options += [["-dev", f"CUDA{rng.randrange(n_devices)}"], ["-ot", "output=CPU"]]
    chosen = rng.sample(options, rng.choice((0, 0, 1, 1, 2, 3)))
    pins: list[str] = []
    for words in chosen:
        if words[0] not in pins and not (words[0] == "--ctx-size" and "-c" in pins):
            pins += words
    if "-ts" in pins and ("-dev" in pins or "-sm" in pins):
        return []
    return [] if "-dev" in pins and "-sm" in pins else pins


@cache
def _description(part: str, name: str) -> Any:
    return json.loads(gzip.decompress((DATA / part / f"{name}.json.gz").read_bytes()))


def write(case: Case, folder: Path) -> Path:
    """The model as a file of its real size, whose data is a hole; made once."""
    path = folder / f"{case.name}.gguf"
    if not path.exists():
        ggufs.from_description(_description(case.part, case.name)).write(path)
    return path
