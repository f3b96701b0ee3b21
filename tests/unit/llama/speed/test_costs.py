"""Blocks taken apart: their bytes are the engine's, and what they cost adds up."""

from __future__ import annotations

from functools import partial

import pytest
from autofit.domain.machine import HOST_POOL, Device, Host, Machine
from autofit.speed import LayerWork, Place, Step
from autofit.speed import Roofline as AnyRoofline

from autofit_llama.graph.devices import CUDA
from autofit_llama.memory.estimate import Run, estimate, size
from autofit_llama.memory.layout import LoadParams, ParsedModel
from autofit_llama.model.context import ContextParams
from autofit_llama.model.resolve import caches, resolve_context
from autofit_llama.planning.tables import Split, Tables, Target
from autofit_llama.speed.costs import Block, blocks, cache_bytes, placed_work, weights_bytes
from autofit_llama.speed.efficiencies import EFFICIENCIES
from autofit_llama.speed.rates import speed_of, work_of
from support.descriptors import names, spec

Roofline = partial(AnyRoofline, engine=EFFICIENCIES)
CARDS = tuple(
    Device(
        id=f"GPU{i}", index=i, name="a card", api="cuda", total_bytes=1 << 40, free_bytes=1 << 40, runtime_bytes=0,
        bandwidth_bytes_per_s=speed, link_bytes_per_s=16_000_000_000, fp16_flops_per_s=100_000_000_000_000,
    )
    for i, speed in enumerate((900_000_000_000, 400_000_000_000))
)  # fmt: skip
MACHINE = Machine(host=Host(total_bytes=None, available_bytes=None), devices=CARDS)


def parts_of(sized: ParsedModel, n_ctx: int = 4096) -> tuple[Block, ...]:
    context = resolve_context(sized.hparams, ContextParams(n_ctx=n_ctx, n_outputs_max=1, flash_attn="on"))
    return blocks(sized.hparams, context, sized.weights(), caches(sized.hparams, context))


def run_of(sized: ParsedModel, n_gpu_layers: int = -1, **arguments: object) -> Run:
    context = ContextParams(n_ctx=4096, n_outputs_max=1)
    return Run(
        sized=sized,
        devices=CARDS[:1],
        arguments=LoadParams(context=context, n_gpu_layers=n_gpu_layers, splits=(1.0,), **arguments),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("name", [name for name in names("models") if "-of-" not in name])
def test_blocks_hold_every_weight_and_cache_once(name: str) -> None:
    sized = size(spec("models", name))
    layout = estimate(run_of(sized), MACHINE).layout
    found = parts_of(sized)
    shared = {w.name: w for w in sized.weights() if w.op == "ROPE"}
    weights = sum(weights_bytes(part.weights, CUDA) for block in found for part in block.parts)
    rope = weights_bytes(shared.values(), CUDA)
    unsupported = weights + rope - layout.weight_plan.device_bytes[0]
    assert unsupported == 0
    assert sum(cache_bytes(block.cache, CUDA) for block in found) == layout.cache_device_bytes[0]


@pytest.mark.parametrize("name", ["llama-3.1-8b-Q4_K_M", "mixtral-8x7b-Q4_K_M", "qwen3-next-80b-a3b-Q4_K_M"])
@pytest.mark.parametrize("n_gpu_layers", [-1, 9])
def test_work_by_blocks_is_work_by_homes(name: str, n_gpu_layers: int) -> None:
    """What the search adds up is what the speed of the finished plan is made of."""
    sized = size(spec("models", name))
    run = run_of(sized, n_gpu_layers)
    found = estimate(run, MACHINE)
    step = Step(1, 1, 4096)
    roofline = Roofline(MACHINE)
    work = work_of(found.layout, run)
    target = Target(id="GPU0", kind=0, make=0, rules=CUDA)
    kind = "experts" if sized.hparams.n_expert else "dense"
    tables = Tables(parts_of(sized), [target], roofline, step, ffn_kind=kind)
    n = sized.hparams.n_layer_all + 1
    rows = n if n_gpu_layers < 0 else n_gpu_layers
    seconds = tables.seconds(Split(n - rows, (("GPU0", rows),)))
    constant = roofline.step_seconds([(LayerWork(), Place("GPU0"))], step)
    transfer = tables.transfer(HOST_POOL, "GPU0") if rows == n else 0.0  # the embedding is looked up on the host
    assert seconds - transfer + constant == pytest.approx(roofline.step_seconds(work, step), rel=0.02)
    speed = speed_of(run, found, MACHINE, n_filled=4096)
    assert speed is not None
    assert 1 / (seconds - transfer + constant) == pytest.approx(speed.decode_tokens_per_s, rel=0.02)


def test_a_weight_elsewhere_is_fetched_there_and_back() -> None:
    sized = size(spec("models", "mixtral-8x7b-Q4_K_M"))
    found = parts_of(sized)
    placed = placed_work(
        found[:1], lambda slot: "GPU0", lambda weight: HOST_POOL if weight.group == "experts" else "GPU0"
    )
    assert [place for _, place in placed] == [Place("GPU0"), Place("GPU0", experts=HOST_POOL)]
    assert not placed[0][0].experts
    assert sum(read.n_bytes for read in placed[1][0].experts) == sum(
        weight.n_bytes for part in found[0].ffn for weight in part.weights
    )


def test_parts_of_a_block_leave_in_the_order_of_their_size() -> None:
    found = parts_of(size(spec("models", "mixtral-8x7b-Q4_K_M")))
    assert [part.projection for part in found[5].ffn] == ["up", "gate", "down"]
    assert {part.kind for part in found[5].ffn} == {"experts"}
    assert found[-1].slot == 32
    assert not found[-1].ffn


def test_a_dense_feed_forward_beside_experts_stays_with_its_block() -> None:
    found = parts_of(size(spec("models", "deepseek-v2-lite-Q4_K_M")))
    assert {part.kind for part in found[0].ffn} == {"dense"}
    assert all(part.kind == "experts" for block in found[1:-1] for part in block.ffn)
    assert any(weight.group == "shared" for weight in found[1].own.weights)


def test_a_split_in_bytes() -> None:
    tables = Tables(
        parts_of(size(spec("models", "mixtral-8x7b-Q4_K_M"))),
        [Target(id="GPU0", kind=0, make=0, rules=CUDA), Target(id="GPU1", kind=1, make=1, rules=CUDA)],
        Roofline(MACHINE),
        Step(1, 1, 4096),
        ffn_kind="experts",
    )
    whole = Split(0, (("GPU0", 20), ("GPU1", 13)))
    n_cpu_ffn = whole._replace(n_cpu_ffn=3)
    moved = whole._replace(moved=((19, "down", "GPU1"),))
    everything = sum(tables.device_bytes(whole).values())
    assert tables.host_bytes(whole) == 0
    assert everything - sum(tables.device_bytes(n_cpu_ffn).values()) == tables.host_bytes(n_cpu_ffn) > 0
    assert sum(tables.device_bytes(moved).values()) == everything
    assert tables.device_bytes(moved)["GPU1"] > tables.device_bytes(whole)["GPU1"]
    assert tables.seconds(n_cpu_ffn) > tables.seconds(whole)
