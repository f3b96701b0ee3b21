"""llama-bench's command: every value may be a list, and each combination is run for itself.

Source: tools/llama-bench/llama-bench.cpp:parse_cmd_params, get_cmd_params_instances.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any, get_args

from autofit.domain.values import fields
from autofit.errors import UsageError

from autofit_llama.command.options import refusal
from autofit_llama.command.reading import Reading
from autofit_llama.command.settings import LlamaSettings
from autofit_llama.command.values import (
    AUTO_LAYERS,
    one_of,
    parse_flash_attn,
    parse_kv_type,
    parse_overrides,
    same,
    shares,
)
from autofit_llama.command.write import render
from autofit_llama.engine.numbers import integer
from autofit_llama.engine.vocabulary import LazyMode, LoadMode, Override, SplitMode

_RANGE = r"(-?[0-9]{1,10})(?:-([0-9]{1,10})(?:([+*])([0-9]{1,10}))?)?(?:,|$)"
_MAX_VALUES = 4096


def parse_range(text: str) -> tuple[int, ...]:
    """`first[-last[+step|*factor]]`, several of them separated by commas."""
    values: list[int] = []
    at = 0
    while at < len(text):
        found = re.compile(_RANGE).match(text, at)
        if not found or found.end() == at:
            raise ValueError("invalid range format")
        first, last = integer(found[1]), integer(found[2] or found[1])
        step = integer(found[4] or "1")
        while first <= last:
            values.append(first)
            following = first * step if found[3] == "*" else first + step
            if following <= first or len(values) > _MAX_VALUES:
                raise ValueError("invalid range")
            first = following
        at = found.end()
    if not values:
        raise ValueError("invalid range format")
    return tuple(values)


def _truths(text: str) -> tuple[bool, ...]:
    return tuple(integer(part) != 0 for part in text.split(","))


def _each(parse: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    return lambda text: tuple(parse(part) for part in text.split(","))


def _bench_split(text: str) -> tuple[float, ...]:
    return shares(re.split("[;/]+", text))


def _bench_devices(text: str) -> tuple[str, ...] | None:
    if text == "auto" or not text:
        return None
    return () if text == "none" else tuple(text.split("/"))


def _bench_overrides(text: str) -> tuple[Override, ...]:
    return tuple(one for part in text.split(";") if part for one in parse_overrides(part))


def _bench_pair(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if len(parts) != 2:
        raise ValueError("two numbers are expected")
    return (integer(parts[0]) + integer(parts[1]),)


_BENCH_PARSERS: Mapping[str, Callable[[str], tuple[Any, ...]]] = {
    "model": _each(str),
    "hf-repo": _each(str),
    "hf-file": _each(str),
    "n-prompt": parse_range,
    "n-gen": parse_range,
    "pg": _bench_pair,
    "n-depth": parse_range,
    "batch-size": parse_range,
    "ubatch-size": parse_range,
    "cache-type-k": _each(parse_kv_type),
    "cache-type-v": _each(parse_kv_type),
    "device": _each(_bench_devices),
    "threads": parse_range,
    "n-gpu-layers": parse_range,
    "n-cpu-moe": parse_range,
    "rpc": _each(str),
    "split-mode": _each(one_of(*get_args(SplitMode))),
    "load-mode": _each(one_of(*get_args(LoadMode))),
    "lazy-mode": _each(one_of(*get_args(LazyMode))),
    "main-gpu": parse_range,
    "no-kv-offload": _truths,
    "numa": lambda text: (one_of("distribute", "isolate", "numactl")(text or "distribute"),),
    "flash-attn": _each(parse_flash_attn),
    "embeddings": _truths,
    "no-op-offload": _truths,
    "no-host": _truths,
    "repack": _truths,
    "tensor-split": _each(_bench_split),
    "override-tensor": _each(_bench_overrides),
    "fit-target": _each(integer),
    "fit-ctx": _each(integer),
}


#: what every test of a run shares: the largest one is counted
_TESTS = frozenset(("n-prompt", "n-gen", "pg", "n-depth"))
#: lists of which the whole belongs to every run
_WHOLE = frozenset(("rpc", "fit-target"))
_MAX_RUNS = 64

#: option -> field and what it is there
_FIELDS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "model": ("model", same),
    "hf-repo": ("hf_repo", same),
    "hf-file": ("hf_file", same),
    "batch-size": ("n_batch", same),
    "ubatch-size": ("n_ubatch", same),
    "cache-type-k": ("type_k", same),
    "cache-type-v": ("type_v", same),
    "device": ("devices", same),
    "threads": ("n_threads", same),
    "n-gpu-layers": ("n_gpu_layers", lambda n: max(n, AUTO_LAYERS)),
    "rpc": ("rpc", same),
    "split-mode": ("split_mode", same),
    "load-mode": ("load_mode", same),
    "lazy-mode": ("lazy_mode", same),
    "main-gpu": ("main_gpu", same),
    "numa": ("numa", same),
    "no-kv-offload": ("kv_offload", operator.not_),
    "no-op-offload": ("op_offload", operator.not_),
    "flash-attn": ("flash_attn", same),
    "embeddings": ("embedding", same),
    "no-host": ("no_host", same),
    "repack": ("repack", same),
    "tensor-split": ("tensor_split", same),
    "fit-target": ("fit_target_mib", same),
    "fit-ctx": ("fit_ctx", same),
}


def bench_runs(reading: Reading) -> tuple[LlamaSettings, ...]:
    """Each combination of the lists that llama-bench runs, with the tokens of its largest test.

    Raises:
        UsageError: a value that llama-bench refuses, more than one model, or too many combinations.
    """
    given: dict[str, tuple[Any, ...]] = {}
    for flag in reading.flags:
        key = flag.option.key
        if key in _BENCH_PARSERS:
            try:
                values = _BENCH_PARSERS[key](str(flag.value))
            except ValueError as error:
                raise refusal(reading.program, flag, error) from error
            given[key] = values if key == "main-gpu" else (*given.get(key, ()), *values)
    if any(len(set(given.get(key, ()))) > 1 for key in ("model", "hf-repo")):
        raise UsageError("llama-bench runs several models one after another", hint="check one -m at a time")
    tokens = max(*given.get("n-prompt", (512,)), *given.get("n-gen", (128,)), *given.get("pg", (0,)))
    n_ctx = tokens + max(given.get("n-depth", (0,)))
    lists = {key: tuple(dict.fromkeys(values)) for key, values in given.items() if key not in _TESTS}
    lists |= {key: (given[key],) for key in _WHOLE & given.keys()}
    n_runs = math.prod(map(len, lists.values()))
    if n_runs > _MAX_RUNS:
        raise UsageError(
            f"llama-bench would run {n_runs} combinations of these lists; at most {_MAX_RUNS} are checked",
            hint="check fewer values at a time",
        )
    return tuple(_run(dict(zip(lists, values, strict=True)), n_ctx) for values in product(*lists.values()))


def _run(given: Mapping[str, Any], n_ctx: int) -> LlamaSettings:
    overrides = given.get("override-tensor", ())
    if given.get("n-cpu-moe"):
        overrides += (Override(kind="n_cpu_moe", n_blocks=given["n-cpu-moe"]),)
    said = {_FIELDS[key][0]: _FIELDS[key][1](value) for key, value in given.items() if key in _FIELDS}
    return LlamaSettings(n_ctx=n_ctx, overrides=overrides, **said)


def what_differs(run: LlamaSettings, runs: Sequence[LlamaSettings]) -> str:
    """The flags that tell one run from the others, as llama-server writes them."""
    names = [field.name for field in fields(LlamaSettings) if len({getattr(one, field.name) for one in runs}) > 1]
    said: dict[str, Any] = {name: getattr(run, name) for name in names}
    return " ".join(render(LlamaSettings(**said)))
