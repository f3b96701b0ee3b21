"""Compute buffers against recorded dry runs of the engine, per architecture.

    python tools/accuracy/llama_compute.py TRUTH.jsonl MODELS_DIR [--arch a,b] [--verbose] [--full]

A row of TRUTH names a GGUF file in MODELS_DIR, the engine's arguments, and the bytes it reported. Prints
rows, how many are exact and within 1 %, the worst error, and the time of the slowest. `--full` builds every
block; `--verbose` prints each row that differs.
"""

from __future__ import annotations

import argparse
import json
import re
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from autofit.domain.model import ModelSpec
from autofit.readers.gguf import read_gguf

from autofit_llama.engine.vocabulary import Override
from autofit_llama.graph.buffers import compute_buffers
from autofit_llama.graph.devices import CUDA, RPC, DeviceRules
from autofit_llama.graph.model import GraphModel
from autofit_llama.memory.placement import buffer_rules, place_layers
from autofit_llama.memory.weights import loaded_weights, place_weights
from autofit_llama.model.context import ContextParams
from autofit_llama.model.hparams import HParams
from autofit_llama.model.load import read_hparams
from autofit_llama.model.resolve import resolve_context

Row = Mapping[str, Any]


@dataclass(slots=True)
class Flags:
    """The engine flags that occur in recorded rows."""

    params: dict[str, Any] = field(default_factory=dict)
    n_gpu_layers: int = -1
    splits: tuple[float, ...] = ()
    overrides: list[Override] = field(default_factory=list)
    n_parallel: int | None = None
    unified: bool | None = None


NUMBERS = {"-c": "n_ctx", "-b": "n_batch", "-ub": "n_ubatch"}
WORDS = {"-fa": "flash_attn", "-ctk": "type_k", "-ctv": "type_v"}
SWITCHES = {
    "-nkvo": ("offload_kqv", False), "--no-op-offload": ("op_offload", False),
    "--swa-full": ("swa_full", True), "--embedding": ("embeddings", True),
}  # fmt: skip


def parse(args: Sequence[str]) -> Flags:
    flags, words = Flags(), iter(args)
    for word in words:
        if word in NUMBERS:
            flags.params[NUMBERS[word]] = int(next(words))
        elif word in WORDS:
            flags.params[WORDS[word]] = next(words)
        elif word in SWITCHES:
            name, value = SWITCHES[word]
            flags.params[name] = value
        elif word == "-ngl":
            value = next(words)
            flags.n_gpu_layers = -1 if value in ("auto", "all") else int(value)
        elif word == "-ts":
            flags.splits = tuple(float(x) for x in re.split("[,/]", next(words)))
        elif word == "-np":
            flags.n_parallel = int(next(words))
        elif word in ("-kvu", "-no-kvu"):
            flags.unified = word == "-kvu"
        elif word == "-cmoe":
            flags.overrides.append(Override(kind="cpu_moe"))
        elif word == "-ncmoe":
            flags.overrides.append(Override(kind="n_cpu_moe", n_blocks=int(next(words))))
        elif word == "-ot":
            for part in next(words).split(","):
                pattern, _, buffer = part.rpartition("=")
                flags.overrides.append(Override(kind="pattern", pattern=pattern, buffer=buffer))
        else:
            raise SystemExit(f"unknown flag in the row: {word}")
    return flags


def situation(model: ModelSpec, hp: HParams, row: Row) -> tuple[GraphModel, tuple[DeviceRules, ...], bool]:
    """The placed model, the devices, and whether the engine would run a pipeline."""
    flags = parse(row["args"])
    server = row["program"] == "llama-server"
    n_seq_max = flags.n_parallel or (4 if server else 1)
    unified = True if server and flags.n_parallel is None else bool(flags.unified)
    params = ContextParams(n_seq_max=n_seq_max, kv_unified=unified, **flags.params)
    if server and not params.embeddings:
        n_batch = resolve_context(hp, params).n_batch
        params = ContextParams(
            n_seq_max=n_seq_max, kv_unified=unified, n_outputs_max=min(n_batch, n_seq_max), **flags.params
        )
    context = resolve_context(hp, params)
    memory = [mib << 20 for mib in row["device_memory_mib"]]
    cuda = row["backend"] == "cuda"
    devices = (CUDA if cuda else RPC,) * len(memory)
    splits = flags.splits if any(flags.splits) else memory
    placement = place_layers(hp.n_layer_all, flags.n_gpu_layers, splits, len(memory))
    names = [device["name"] for device in row["devices"]]
    buffers = buffer_rules(devices, names=names, overrides=flags.overrides)
    plan = place_weights(loaded_weights(model, hp), hp, placement, buffers)
    full_offload = flags.n_gpu_layers < 0 or flags.n_gpu_layers > hp.n_layer_all
    graph = GraphModel(
        hparams=hp,
        context=context,
        tensors={t.name: t for t in model.tensors},
        layer_dev=(*placement.blocks, placement.output),
        homes=plan.homes,
        copies=plan.copies,
        full_offload=full_offload,
    )
    pipeline = len(memory) > 1 and full_offload and context.offload_kqv and not flags.overrides
    return graph, devices, pipeline


@dataclass(slots=True)
class Tally:
    n_rows: int = 0
    n_exact: int = 0
    n_near: int = 0
    n_failed: int = 0
    worst: float = 0.0
    slowest_s: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("truth", type=Path)
    parser.add_argument("models", type=Path)
    parser.add_argument("--arch", default="")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args()
    wanted = set(filter(None, options.arch.split(",")))

    @cache
    def load(file: str) -> tuple[ModelSpec, HParams]:
        model = read_gguf(options.models / file)
        return model, read_hparams(model)

    tallies: dict[str, Tally] = {}
    for line in options.truth.read_text().splitlines():
        row = json.loads(line)
        if (wanted and row["arch"] not in wanted) or "devices" not in row:
            continue
        tally = tallies.setdefault(row["arch"], Tally())
        tally.n_rows += 1
        expected = [*(device["compute"] for device in row["devices"]), row["host_all"]["compute"]]
        try:
            model, hp = load(row["file"])
            graph, devices, pipeline = situation(model, hp, row)
            begin = time.perf_counter()
            found = compute_buffers(graph, devices, pipeline=pipeline, dry_run=True, shorten=not options.full)
            elapsed = time.perf_counter() - begin
        except Exception:
            tally.n_failed += 1
            tally.worst = 1.0
            if options.verbose:
                traceback.print_exc()
            continue
        got = [*found.device_bytes, found.host_bytes]
        error = max(abs(a - b) / b if b else float(a > 0) for a, b in zip(got, expected, strict=True))
        tally.n_exact += got == expected
        tally.n_near += error <= 0.01
        tally.worst = max(tally.worst, error)
        tally.slowest_s = max(tally.slowest_s, elapsed)
        if options.verbose and got != expected:
            print(row["id"], row["file"], " ".join(row["args"]), f"got {got} expected {expected}")
    print(f"{'architecture':18} {'rows':>5} {'exact':>5} {'<=1%':>5} {'failed':>6} {'worst':>9} {'slowest':>9}")
    for arch, t in sorted(tallies.items()):
        times = f"{t.slowest_s * 1000:6.1f} ms"
        print(f"{arch:18} {t.n_rows:5} {t.n_exact:5} {t.n_near:5} {t.n_failed:6} {t.worst:9.3%} {times:>9}")
    total, exact = sum(t.n_rows for t in tallies.values()), sum(t.n_exact for t in tallies.values())
    print(f"{'all':18} {total:5} {exact:5}")


if __name__ == "__main__":
    main()
