"""Recorded dry runs of llama.cpp (tests/data/llama/dry_runs.jsonl.gz), and the same situations laid out by
us.

A row: the model's description, the program whose defaults apply, the engine's arguments, free MiB of each
device, and what it reported as [model, context, compute] bytes per device and for everything on no device; or
why it refused.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import support
from autofit_llama.engine.vocabulary import Override
from autofit_llama.graph.devices import CUDA, RPC
from autofit_llama.memory.estimate import size
from autofit_llama.memory.layout import LoadParams, ParsedModel
from autofit_llama.model.context import ContextParams
from autofit_llama.model.resolve import resolve_context
from support.descriptors import spec

ROWS = support.DATA / "llama" / "dry_runs.jsonl.gz"
RULES = {"cuda": CUDA, "rpc": RPC}

Row = Mapping[str, Any]

_CONTEXT = {
    "-c": "n_ctx",
    "-b": "n_batch",
    "-ub": "n_ubatch",
    "-fa": "flash_attn",
    "-ctk": "type_k",
    "-ctv": "type_v",
}
_SWITCHES = {
    "-nkvo": {"offload_kqv": False},
    "--no-op-offload": {"op_offload": False},
    "--swa-full": {"swa_full": True},
    "--embedding": {"embeddings": True},
}


@cache
def rows() -> tuple[Row, ...]:
    lines = gzip.decompress(ROWS.read_bytes()).decode().splitlines()
    return tuple(json.loads(line) for line in lines)


@cache
def sized(part: str, model: str) -> ParsedModel:
    return size(spec(part, model))


def arch(row: Row) -> str:
    return sized(row["part"], row["model"]).hparams.arch


def arguments(row: Row) -> LoadParams:
    """The row's command line, with the defaults of its program."""
    fields: dict[str, Any] = {}
    model: dict[str, Any] = {"splits": tuple(float(mib << 20) for mib in row["free_mib"])}
    overrides: list[Override] = []
    n_parallel: int | None = None
    unified: bool | None = None
    words = iter(row["args"])
    for word in words:
        if word in _CONTEXT:
            value = next(words)
            fields[_CONTEXT[word]] = int(value) if value.isdigit() else value
        elif word in _SWITCHES:
            fields |= _SWITCHES[word]
        elif word == "-ngl":
            value = next(words)
            model["n_gpu_layers"] = int(value) if value.isdigit() else -1
        elif word == "-ts":
            model["splits"] = tuple(map(float, next(words).split(",")))
        elif word == "-np":
            n_parallel = int(next(words))
        elif word in ("-kvu", "-no-kvu"):
            unified = word == "-kvu"
        else:
            overrides += _overrides(word, words)
    server = row["program"] == "llama-server"
    fields["n_seq_max"] = n_parallel or (4 if server else 1)
    # with the number of slots left to it, the server unifies whatever was asked for (tools/server/server.cpp)
    fields["kv_unified"] = True if server and n_parallel is None else bool(unified)
    if server and not fields.get("embeddings"):
        n_batch = resolve_context(sized(row["part"], row["model"]).hparams, ContextParams(**fields)).n_batch
        fields["n_outputs_max"] = min(n_batch, fields["n_seq_max"])
    names = tuple(f"{'CUDA' if row['api'] == 'cuda' else 'RPC'}{i}" for i in range(len(row["free_mib"])))
    return LoadParams(context=ContextParams(**fields), overrides=tuple(overrides), buffer_names=names, **model)


def _overrides(word: str, words: Iterator[str]) -> list[Override]:
    if word == "-cmoe":
        return [Override(kind="cpu_moe")]
    if word == "-ncmoe":
        return [Override(kind="n_cpu_moe", n_blocks=int(next(words)))]
    assert word == "-ot", word
    parts = (part.rpartition("=") for part in next(words).split(","))
    return [Override(kind="pattern", pattern=pattern, buffer=buffer) for pattern, _, buffer in parts]
