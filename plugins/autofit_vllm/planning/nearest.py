"""The cheapest change with which a command would start, searched over all settings that the memory depends on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from autofit.domain.plan import Finding
from autofit.errors import EngineRefusalError
from autofit.solve import largest

from autofit_vllm.command.flags import flag_of
from autofit_vllm.memory.budget import LIMIT
from autofit_vllm.planning.batch import FIRST_SEQUENCES, FIRST_STEP
from autofit_vllm.planning.codes import finding
from autofit_vllm.planning.evaluation import Evaluation

Again = Callable[[Mapping[str, Any]], Evaluation]  #: the command with other settings

STEPS = (8192, 4096, 2048, 1024)
SEQUENCES = (512, 256, 128, 64, 32, 16, 8, 4, 1)
FEW = 16  #: fewer sequences are a change that hurts
LEAST_TOKENS = 256  #: a length below is no help
MUCH_LONGER = 2  #: times the context is worth a second change


def nearest(evaluation: Evaluation, again: Again) -> list[Finding]:
    """What would be enough, by growing cost: fewer sequences, shorter steps, more of the GPU, an 8-bit cache, and last
    a shorter context. Nothing where not even that is."""
    if evaluation.fits or evaluation.given_kv or evaluation.config.gpu.cpu:
        return []
    for change in _changes(evaluation):
        try:
            found = again(change)
        except EngineRefusalError:
            continue
        if found.fits:
            return [_finding(evaluation, change)]
    return _shorter(evaluation, again)


def _changes(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    config = evaluation.config
    lower = evaluation.allowed_utilization
    if lower < config.gpu_memory_utilization:  # more than is free: what is left of it is no change at all
        yield {"gpu_memory_utilization": math.floor(100 * lower) / 100}
    steps = [n for n in STEPS if n < config.max_num_batched_tokens]
    fewer = [n for n in SEQUENCES if n < config.max_num_seqs]
    # sequences that the cache could not hold at a time anyhow cost nothing; then steps, the largest first
    yield from ({"max_num_seqs": n} for n in fewer if n >= FEW)
    for step in steps:
        if step >= config.max_num_seqs:
            yield {"max_num_batched_tokens": step}
        yield from ({"max_num_batched_tokens": step, "max_num_seqs": n} for n in fewer if FEW <= n <= step)
    yield from ({"max_num_batched_tokens": min([*steps, 2048]), "max_num_seqs": n} for n in fewer if n < FEW)
    room: dict[str, Any] = {}
    if config.gpu_memory_utilization < LIMIT and not any(rank.n_sharing for rank in evaluation.ranks):
        room = {"gpu_memory_utilization": LIMIT}
        yield room
        yield from ({**room, "max_num_seqs": n} for n in fewer if n >= FEW)
        least = {"max_num_batched_tokens": min(2048, config.max_num_batched_tokens)}
        yield {**room, **least, "max_num_seqs": min(config.max_num_seqs, 64)}
    if config.kv_cache_dtype in ("auto", "bfloat16", "float16"):
        yield {"kv_cache_dtype": "fp8"}
        yield from ({"max_num_seqs": n, "kv_cache_dtype": "fp8"} for n in fewer if n >= FEW)
        few = {"max_num_batched_tokens": min(2048, config.max_num_batched_tokens)}
        yield {**room, **few, "max_num_seqs": min(config.max_num_seqs, 16), "kv_cache_dtype": "fp8"}


def _shorter(evaluation: Evaluation, again: Again) -> list[Finding]:
    """The longest context with this command's other settings, in whole LEAST_TOKENS; with a smaller batch, which costs
    less, where that makes it `MUCH_LONGER`."""
    config = evaluation.config
    batch = {"max_num_seqs": FIRST_SEQUENCES, "max_num_batched_tokens": FIRST_STEP}
    smaller = {name: n for name, n in batch.items() if n < getattr(config, name)}
    alone = _longest(evaluation, again, {})
    both = _longest(evaluation, again, smaller) if smaller else None
    if both is not None and both >= MUCH_LONGER * (alone or 1):
        return [_finding(evaluation, {**smaller, "max_model_len": both})]
    return [] if alone is None else [_finding(evaluation, {"max_model_len": alone})]


def _longest(evaluation: Evaluation, again: Again, change: Mapping[str, Any]) -> int | None:
    def fits(n_tokens: int) -> bool:
        try:
            return again({**change, "max_model_len": n_tokens}).fits
        except EngineRefusalError:
            return False

    return largest(fits, LEAST_TOKENS, evaluation.config.max_model_len - 1, step=LEAST_TOKENS)


def _finding(evaluation: Evaluation, change: Mapping[str, Any]) -> Finding:
    flags = " ".join(f"{flag_of(name)} {value}" for name, value in change.items())
    length = evaluation.config.max_model_len
    kept = "" if "max_model_len" in change else f" and keeps {length:,} tokens"
    return finding("would-fit", f"nearest: {flags} starts{kept}")
