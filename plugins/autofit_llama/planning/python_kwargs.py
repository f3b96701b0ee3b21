"""The same launch for `llama_cpp.Llama(**kwargs)`, as far as that class can say it.

Its defaults are not llama-server's: no layer on a device, 512 tokens, whole sliding-window caches, no
flash attention; and it keeps logits of a whole batch. So everything is said, and the batch is as large as
the room that is left allows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from autofit.domain.machine import HOST_POOL, Machine
from autofit.domain.model import ModelSpec
from autofit.errors import UsageError

from autofit_llama.command.settings import LlamaSettings
from autofit_llama.launch.defaults import python_arguments
from autofit_llama.launch.process import engine_devices
from autofit_llama.memory.estimate import Estimate, Run

LEAST_BATCH = 32
_SERVER_ONLY: dict[str, Any] = dict.fromkeys(
    (
        "fit",
        "fit_target_mib",
        "fit_ctx",
        "n_parallel",
        "cache_ram_mib",
        "n_checkpoints",
        "checkpoint_min_step",
    )
)


def python_kwargs(
    model: ModelSpec, settings: LlamaSettings, run: Run, found: Estimate, machine: Machine
) -> tuple[Mapping[str, object], str | None]:
    """The keyword arguments, or none and the reason why the class cannot say this."""
    if found.layout.context.n_seq_max > 1:
        return {}, "llama_cpp.Llama serves one sequence, so there are no keyword arguments for this plan"
    sliced = run.arguments.sliced
    names = [device.id for _, device in engine_devices(machine, merged=sliced)]
    used = [device.id for device in run.devices]
    if sliced and used != names:
        return {}, "llama_cpp.Llama cannot leave out devices with -sm tensor"
    batch = _batch(run, found, found.layout.context.n_ubatch)
    if batch < LEAST_BATCH:
        return {}, "llama_cpp.Llama keeps logits of a whole batch, for which this plan leaves no room"
    said = replace(
        settings,
        **_SERVER_ONLY,
        model=settings.model or model.files[0].path,
        n_batch=batch,
        n_ubatch=batch,
        flash_attn="on" if found.layout.compute.flash_attn else "off",
        swa_full=settings.swa_full or False,
        devices=None,
    )
    if used != names and settings.devices is not None:
        if not used:
            said = replace(said, n_gpu_layers=0)
        elif len(used) == 1:
            said = replace(said, split_mode="none", main_gpu=names.index(used[0]))
        elif used == [name for name in names if name in used] and settings.tensor_split is not None:
            rows = dict(zip(used, settings.tensor_split, strict=True))
            said = replace(said, tensor_split=tuple(rows.get(name, 0.0) for name in names))
        else:
            return {}, "llama_cpp.Llama cannot change the order of devices"
    try:
        return dict(python_arguments(said)), None
    except UsageError as error:
        return {}, f"no keyword arguments: {error.message}"


def _batch(run: Run, found: Estimate, most: int) -> int:
    """The largest power of two, up to `most`, for whose logits every device in use has room.

    At most `rows` logits, hidden states and expert outputs come on top (src/llama-context.cpp:sched_reserve).
    """
    hp = found.layout.hparams
    n_used = max(hp.n_expert_used, default=0)
    row_bytes = 4 * (hp.n_vocab + (3 + 2 * n_used) * hp.n_embd)
    pools = [device.id if device.pool != HOST_POOL else HOST_POOL for device in run.devices] or [HOST_POOL]
    spare = min(_spare(found, pool) for pool in pools)
    rows = most
    while rows >= LEAST_BATCH and rows * row_bytes > spare:
        rows //= 2
    return rows


def _spare(found: Estimate, pool: str) -> int:
    room = found.memory.pool(pool).room_bytes
    return 1 << 62 if room is None else room
