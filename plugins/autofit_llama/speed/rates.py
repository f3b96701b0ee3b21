"""How fast a launch decodes and reads prompts: its placement handed to the speed model."""

from __future__ import annotations

from collections.abc import Sequence
from operator import add

from autofit.domain.machine import HOST_POOL, Machine
from autofit.domain.plan import Speed
from autofit.domain.values import replace
from autofit.speed import Draft, LayerWork, Place, Roofline

from autofit_llama.memory.estimate import Companion, Estimate, Run, device_rules
from autofit_llama.memory.layout import MemoryLayout, lay_out
from autofit_llama.memory.weights import Weight
from autofit_llama.speed.costs import Block, blocks, placed_work
from autofit_llama.speed.efficiencies import EFFICIENCIES

FILLED_TOKENS = 4096
"""The fill at which placements are compared: the same for every context."""


def speed_of(
    run: Run,
    found: Estimate,
    machine: Machine,
    *,
    n_draft: int = 0,
    n_filled: int | None = None,
    n_sequences: int = 1,
    n_ubatch: int | None = None,
    work: Sequence[tuple[LayerWork, Place]] | None = None,
    tells_start: bool = True,
) -> Speed | None:
    """Expected rates of `run`; `None` when the bandwidth of a device in use is unknown.

    Decode is per sequence, with `n_sequences` busy and their contexts full (or filled to `n_filled`), and near
    the start of them. `n_draft` tokens are guessed ahead. `n_ubatch` stands in for the run's own micro-batch.
    `work` is that of `work_of`, where it is known already. Where rates are only compared, `tells_start` may be false:
    those near the start are left out.
    """
    layout = found.layout
    context = layout.context
    full = context.n_ctx_seq if n_filled is None else min(n_filled, context.n_ctx_seq)
    work = work_of(layout, run) if work is None else work
    roofline = Roofline(machine, EFFICIENCIES, op_offload="" if run.offloads else None)

    def at(filled: int) -> Speed | None:
        return roofline.estimate(
            work,
            n_filled=filled,
            n_sequences=min(n_sequences, context.n_seq_max),
            n_ubatch=n_ubatch or context.n_ubatch,
            draft=_draft(layout, run, n_draft),
            overlaps=layout.compute.n_copies > 1,
            unmeasured="no runs with -sm tensor to compare with" if run.arguments.sliced else "",
        )

    speed = at(full)
    if speed is None:
        return None
    filled = f"with {full} tokens in the context"
    start = at(0) if tells_start else None
    return replace(
        speed,
        start_tokens_per_s=start.decode_tokens_per_s if start is not None else None,
        start_prefill_tokens_per_s=start.prefill_tokens_per_s if start is not None else None,
        decodes=not context.embeddings,
        basis=f"{speed.basis}; {filled}" if speed.basis else filled,
    )


def work_of(layout: MemoryLayout, run: Run, *, draft_head: bool = False) -> list[tuple[LayerWork, Place]]:
    """The layers of a laid-out model with their places: all that a step computes, or those of its draft head."""
    names = [device.id for device in run.devices]
    plan, placement = layout.weight_plan, layout.placement

    def layer_of(slot: int) -> str:
        home = placement.of(slot)
        return names[home] if home >= 0 else HOST_POOL

    def home_of(weight: Weight) -> str:
        home = plan.copies.get((weight.name, weight.slot)) if weight.duplicate else plan.homes.get(weight.name)
        return names[home] if home is not None and home >= 0 else HOST_POOL

    found = _blocks(layout, draft_head=draft_head)
    work = placed_work(found, layer_of, home_of, cache_on_host=not layout.context.offload_kqv)
    return _sliced(work, layout, run) if run.arguments.sliced and len(names) > 1 else work


def _sliced(work: Sequence[tuple[LayerWork, Place]], layout: MemoryLayout, run: Run) -> list[tuple[LayerWork, Place]]:
    """The same with each block shared by all devices, as far as the engine cuts it: norms are read by each."""
    names = tuple(device.id for device in run.devices)
    blocks, output = _shares(layout, run)
    shared = []
    for layer, place in work:
        if place.device == names[0] and place.experts is None:
            shares = output if layer.last_token_only else blocks
            place = place._replace(ranks=names, shares=shares if place.cache is None else (1.0,) * len(names))
        shared.append((layer, place))
    return shared


def _shares(layout: MemoryLayout, run: Run) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The part of the blocks, and of the output layer, that each device reads in a step."""
    arguments, plan = run.arguments, layout.weight_plan
    slices = run.sized.slices(device_rules(run.devices, arguments), arguments.splits, load_mtp=arguments.load_mtp)
    n_output, n_devices = layout.hparams.n_layer_all, len(run.devices)
    whole, parts = [0, 0], [[0] * n_devices, [0] * n_devices]
    for weight in layout.weights:
        home = plan.copies.get((weight.name, weight.slot)) if weight.duplicate else plan.homes.get(weight.name)
        if home == 0:
            kind = int(weight.slot == n_output)
            whole[kind] += weight.n_bytes
            parts[kind] = list(map(add, parts[kind], slices.weight_bytes(weight.name, weight.type, weight.ne)))
    blocks, output = (
        tuple(part / total if total else 1.0 for part in each) for total, each in zip(whole, parts, strict=True)
    )
    return blocks, output


def _blocks(layout: MemoryLayout, *, draft_head: bool) -> tuple[Block, ...]:
    """A draft head (nextn layers) runs in a context of its own, with the output layer behind it."""
    hp = layout.hparams
    found = blocks(hp, layout.context, layout.weights, layout.caches)
    others = range(hp.n_layer) if draft_head else range(hp.n_layer, hp.n_layer_all)
    return tuple(block for block in found if block.slot not in others)


def _draft(layout: MemoryLayout, run: Run, n_draft: int) -> Draft | None:
    if n_draft < 1 or not (run.drafts or run.mtp):
        return None
    if run.mtp is not None:
        return Draft(layers=tuple(work_of(layout, run, draft_head=True)), n_tokens=n_draft)
    companion: Companion = run.drafts[0]
    layout = lay_out(companion.sized, device_rules(companion.devices, companion.arguments), companion.arguments)
    own = replace(run, sized=companion.sized, devices=companion.devices, arguments=companion.arguments)
    return Draft(layers=tuple(work_of(layout, own)), n_tokens=n_draft)
