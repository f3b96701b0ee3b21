"""Truth for tools/accuracy/llama_compute.py out of a real llama.cpp: dry runs of models under random flags.

    python tools/truth/dry_runs.py [--rows 12] [--seed 0] [--rpc | --tensor] MODEL.gguf... > TRUTH.jsonl

`AUTOFIT_LLAMA_BIN` names the folder of the engine's programs (tests/support/dryrun.py). Every model gets the same
kinds of rows: flash attention, cache types, slots, batch sizes, one device or two, partial offload, experts on the
host, embeddings; `--rpc` for RPC devices in place of CUDA ones; `--tensor` for `-sm tensor` on two to four of them.
Files are named as they were given. Commands that the engine refuses go to standard error with its reason.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from autofit.domain.model import ModelSpec
from autofit.readers.gguf import read_gguf

from support.dryrun import PROGRAMS, EngineRefusal, dry_run

MACHINES: tuple[list[int], ...] = ([24576], [24576, 12288], [24576, 24576], [])
MACHINE_WEIGHTS = (6, 2, 2, 1)


def n_blocks(model: ModelSpec) -> int:
    value = model.metadata.get(f"{model.architecture}.block_count", 1)
    return value if isinstance(value, int) else 1


def random_case(rng: random.Random, model: ModelSpec) -> tuple[str, list[str], list[int]]:
    """Program, its arguments, and the free MiB of its devices."""

    def sometimes(share: float, *words: str) -> list[str]:
        return list(words) if rng.random() < share else []

    memory = rng.choices(MACHINES, MACHINE_WEIGHTS)[0]
    program = rng.choice(PROGRAMS)
    flash_attn = rng.choice(("on", "on", "off", "auto"))
    args = ["-c", str(rng.choice((512, 2048, 4096, 4096, 16384, 32768))), "-fa", flash_attn]
    args += ["-ngl", str(rng.choice((99, 99, 99, n_blocks(model), rng.randint(0, n_blocks(model)))))]
    quantized = rng.random() < 0.3
    if quantized:
        kind = rng.choice(("q8_0", "q4_0"))
        args += ["-ctk", kind, *(["-ctv", kind] if flash_attn == "on" else [])]
    args += sometimes(0.3, "-ub", str(rng.choice((128, 256, 1024, 2048))))
    slots = sometimes(0.3, "-np", str(rng.choice((1, 2, 4, 8))))
    if slots and program == "llama-server":
        slots.append(rng.choice(("-kvu", "-no-kvu")))
    args += slots
    args += sometimes(0.15, "-nkvo")
    args += sometimes(0.1, "--no-op-offload")
    args += sometimes(0.1, "--swa-full")
    if program == "llama-server" and f"{model.architecture}.pooling_type" in model.metadata:
        args += sometimes(0.5, "--embedding")
    if any("_exps." in tensor.name for tensor in model.tensors):
        args += rng.choice(([], [], ["-cmoe"], ["-ncmoe", "1"]))
    if len(memory) > 1:
        args += sometimes(0.3, "-ts", rng.choice(("1,1", "3,1")))
    return program, args, list(memory)


def tensor_case(rng: random.Random, model: ModelSpec) -> tuple[str, list[str], list[int]]:
    """The same for `-sm tensor`: every tensor cut for two to four devices, evenly or by `-ts`."""
    memory = [24576] * rng.choice((2, 2, 3, 4))
    program = rng.choice(PROGRAMS)
    args = ["-sm", "tensor", "-c", str(rng.choice((512, 4096, 16384, 32768)))]
    args += ["-ngl", str(rng.choice((99, 99, 99, n_blocks(model), rng.randint(1, n_blocks(model)))))]
    for share, words in (
        (0.3, ["-ub", rng.choice(("128", "1024"))]),
        (0.3, ["-np", "3"]),
        (0.2, ["-ctk", "bf16", "-ctv", "f32"]),
        (0.1, ["-nkvo"]),
        (0.5, ["-ts", ",".join(str(rng.choice((1, 1, 2, 3, 0.7))) for _ in memory)]),
        (0.1, ["-ts", ",".join(str(i % 2) for i in range(len(memory)))]),
    ):
        if rng.random() < share:
            args += words
    if any("_exps." in tensor.name for tensor in model.tensors):
        args += rng.choice(([], [], ["-cmoe"], ["-ncmoe", "1"]))
    return program, args, memory


def row(file: str, model: ModelSpec, program: str, args: Sequence[str], memory: list[int], api: str) -> dict[str, Any]:
    """One row of truth; with `error` where the engine refuses."""
    case = {
        "id": hashlib.sha256(json.dumps([file, program, args, memory, api]).encode()).hexdigest()[:12],
        "file": file, "arch": model.architecture, "program": program, "args": list(args),
        "device_memory_mib": memory, "backend": api,
    }  # fmt: skip
    try:
        found = dry_run([program, "-m", file, *args], memory, api=api)
    except EngineRefusal as error:
        return {**case, "error": str(error)}
    return {**case, "devices": found.devices, "host_all": found.host, "n_ctx_seq": found.n_ctx_seq}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rpc", action="store_true")
    parser.add_argument("--tensor", action="store_true")
    options = parser.parse_args()
    case = tensor_case if options.tensor else random_case
    for path in options.models:
        model = read_gguf(path)
        rng = random.Random(f"{options.seed} {path.name}")
        for _ in range(options.rows):
            made = row(str(path), model, *case(rng, model), "rpc" if options.rpc else "cuda")
            if "error" in made:
                print(path.name, *made["args"], made["error"][:300], file=sys.stderr)
            else:
                print(json.dumps(made))


if __name__ == "__main__":
    main()
