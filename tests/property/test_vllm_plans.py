"""Laws of every vLLM plan, over models, machines, wishes and pins drawn at random."""

from __future__ import annotations

from typing import Any

import pytest
from autofit.errors import EngineRefusalError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autofit_vllm.command.settings import parse_command
from autofit_vllm.planning.explain import explain
from autofit_vllm.planning.plan import memory_of
from autofit_vllm.planning.problem import Problem
from autofit_vllm.planning.search import solve
from support import vllm_models
from support.vllm_models import GIB, VllmModel
from support.vllm_problems import problem

CARDS = ("t4", "rtx-3060-12gb", "rtx-3090", "rtx-4090", "l40s", "a100-40gb", "h100-80gb")
LAWS = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def models(draw: st.DrawFn) -> VllmModel:
    kind = draw(st.sampled_from(["dense", "windows", "latent", "hybrid"]))
    if kind == "windows":
        return vllm_models.gemma3_27b()
    if kind == "latent":
        return vllm_models.deepseek_v3()
    if kind == "hybrid":
        return vllm_models.qwen3_6_27b()
    kv_heads = draw(st.sampled_from([1, 2, 4, 8, 32]))
    n_layers = draw(st.integers(2, 80))
    experts = draw(st.sampled_from([0, 0, 64]))
    return vllm_models.model(
        tuple(vllm_models.full(i, kv_heads=kv_heads) for i in range(n_layers)),
        n_kv_heads=kv_heads,
        n_experts=experts,
        n_experts_per_token=4 if experts else 0,
        moe_intermediate_size=1024 if experts else 0,
    )


@st.composite
def pins(draw: st.DrawFn) -> tuple[str, ...]:
    args: list[str] = []
    if draw(st.booleans()):
        args += ["--max-num-seqs", str(draw(st.sampled_from([1, 8, 300])))]
    if draw(st.booleans()):
        args += ["--max-model-len", draw(st.sampled_from(["2048", "8k", "auto"]))]
    if draw(st.booleans()):
        args += ["-tp", str(draw(st.sampled_from([1, 2])))]
    if draw(st.booleans()):
        args += ["--gpu-memory-utilization", draw(st.sampled_from(["0.5", "0.8"]))]
    if draw(st.booleans()):
        args += ["--enforce-eager"]
    return tuple(args)


@st.composite
def problems(draw: st.DrawFn, *, with_pins: bool = True) -> Problem:
    cards = draw(st.lists(st.sampled_from(CARDS), min_size=1, max_size=1)) * draw(st.integers(1, 4))
    wishes: dict[str, Any] = {
        "context": draw(st.sampled_from([None, 0, 4096, 32768])),
        "parallel": draw(st.sampled_from([None, 1, 5])),
        "fill": draw(st.sampled_from(["mean", "full"])),
        "prefer": draw(st.sampled_from(["speed", "context", "throughput", "quality"])),
        "kv": draw(st.sampled_from([None, "auto"])),
    }
    args = draw(pins()) if with_pins else ()
    if "--max-model-len" in args:
        wishes["context"] = None
    size = draw(st.floats(0.5, 160.0))
    return problem(draw(models()), int(size * GIB), *cards, args=args, ram="128GiB", **wishes)


@LAWS
@given(problems())
def test_never_over_budget_and_never_altered(asked: Problem) -> None:
    try:
        best, others = solve(asked)
    except EngineRefusalError:
        return  # the pins contradict the model: that is vLLM's own refusal
    plan = explain(asked, best, others, program=("vllm", "serve"), reference="M")
    pinned = asked.settings.args
    assert plan.argv[:3] == ("vllm", "serve", "M")
    assert plan.argv[len(plan.argv) - len(pinned) :] == pinned
    _, again = parse_command(plan.argv)
    for name, value in asked.settings.given.items():
        assert again.given[name] == value
    if not plan.fits:
        assert any(finding.severity == "error" for finding in plan.findings) or best.fits
        return
    for pool in plan.memory.pools[:-1]:
        over = asked.settings.pins("gpu_memory_utilization")
        assert pool.shortfall_bytes <= 0 or over, (pool.id, plan.argv)
    capacity = best.evaluation.capacity
    assert capacity is not None
    if asked.request.parallel and not asked.settings.pins("max_model_len"):
        full = asked.request.parallel if asked.request.fill == "full" else 1
        assert best.evaluation.kv.blocks_per_request(best.length) * full < capacity.n_blocks
    report = plan.engine_report
    assert again.max_num_seqs == report["max_num_seqs"]
    assert again.max_num_batched_tokens == report["max_num_batched_tokens"]


@LAWS
@given(models(), st.floats(0.5, 20.0), st.integers(1, 8))
def test_more_memory_is_never_worse(model: VllmModel, size: float, extra: int) -> None:
    def length(gib: int) -> int:
        # RAM would make room of its own, and is left out.
        sized = f"generic-cuda:{gib}GiB"
        asked = problem(model, int(size * GIB), sized, context=0, args=("--dtype", "half"), ram="4GiB")
        try:
            best, _ = solve(asked)
        except EngineRefusalError:
            return -1
        return best.length

    if model.model_type == "gemma3_text":
        return  # refuses float16
    less = 8 + extra
    assert length(less + 4) >= length(less)


def test_alternatives_are_plans_of_their_own() -> None:
    asked = problem(vllm_models.llama_8b(), 15 * GIB, *["rtx-4090"] * 4, prefer="context")
    best, others = solve(asked)
    plan = explain(asked, best, others, program=("vllm", "serve"), reference="M")
    assert 1 <= len(plan.alternatives) <= 5
    assert len({alternative.argv for alternative in plan.alternatives}) == len(plan.alternatives)
    assert plan.argv not in {alternative.argv for alternative in plan.alternatives}
    memory = memory_of(best.evaluation, asked.machine)
    assert [pool.id for pool in memory.pools] == ["GPU0", "GPU1", "GPU2", "GPU3", "host"]


@pytest.mark.parametrize("context", [1, 17, 4096, 131_072])
def test_any_wish_is_answered(context: int) -> None:
    asked = problem(vllm_models.llama_8b(), 15 * GIB, "rtx-4090", context=context, ram="8GiB")
    best, _ = solve(asked)
    assert best.length in (0, context)
