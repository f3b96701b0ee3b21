"""llama-bench's command: every value may be a list, and each combination is run for itself.

Source: tools/llama-bench/llama-bench.cpp:parse_cmd_params, get_cmd_params_instances.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, get_args

from autofit_llama.flags import Reading, integer
from autofit_llama.placement import Override
from autofit_llama.settings import LlamaSettings, refusal
from autofit_llama.values import (
    AUTO_LAYERS,
    LoadMode,
    SplitMode,
    one_of,
    parse_flash_attn,
    parse_kv_type,
    parse_overrides,
    shares,
)
from autofit_llama.weights import LazyMode

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


def bench_settings(reading: Reading) -> LlamaSettings:
    """The most demanding combination of the lists that llama-bench runs, as one command."""
    given: dict[str, tuple[Any, ...]] = {}
    for flag in reading.flags:
        key = flag.option.key
        if key in _BENCH_PARSERS:
            try:
                values = _BENCH_PARSERS[key](str(flag.value))
            except ValueError as error:
                raise refusal(reading.program, flag, error) from error
            given[key] = values if key == "main-gpu" else (*given.get(key, ()), *values)

    def first(key: str) -> Any:
        return given[key][0] if key in given else None

    def most(key: str) -> int | None:
        return max(given[key]) if key in given else None

    def unless(key: str) -> bool | None:
        return not all(given[key]) if key in given else None

    tokens = max(*given.get("n-prompt", (512,)), *given.get("n-gen", (128,)), *given.get("pg", (0,)))
    layers = given.get("n-gpu-layers")
    experts = min(given["n-cpu-moe"]) if "n-cpu-moe" in given else 0
    overrides = (first("override-tensor") or ()) + ((Override(kind="n_cpu_moe", n_blocks=experts),) if experts else ())
    return LlamaSettings(
        model=first("model"),
        hf_repo=first("hf-repo"),
        hf_file=first("hf-file"),
        n_ctx=tokens + max(given.get("n-depth", (0,))),
        n_batch=most("batch-size"),
        n_ubatch=most("ubatch-size"),
        type_k=first("cache-type-k"),
        type_v=first("cache-type-v"),
        devices=first("device"),
        n_threads=most("threads"),
        n_gpu_layers=None if layers is None else AUTO_LAYERS if min(layers) < 0 else max(layers),
        rpc=given.get("rpc", ()),
        split_mode=first("split-mode"),
        load_mode=first("load-mode"),
        lazy_mode=first("lazy-mode"),
        main_gpu=first("main-gpu"),
        numa=first("numa"),
        kv_offload=unless("no-kv-offload"),
        op_offload=unless("no-op-offload"),
        flash_attn="off" if "off" in given.get("flash-attn", ()) else first("flash-attn"),
        embedding=any(given["embeddings"]) if "embeddings" in given else None,
        no_host=first("no-host"),
        repack=first("repack"),
        tensor_split=first("tensor-split"),
        overrides=overrides,
        fit_target_mib=given.get("fit-target"),
        fit_ctx=first("fit-ctx"),
    )
