"""What each preset is better at than the others, on ten machines, each with a model that people run there."""

from __future__ import annotations

import pytest
from autofit.domain.plan import Plan
from autofit.machines import load_machine
from autofit.pipeline import plan_of, stated_options

from support import DATA

CONFIGS = DATA / "vllm" / "configs"
MACHINES = (
    ("qwen2.5-7b-awq", "rtx-3060-12gb"),
    ("llama3-8b", "rtx-3090"),
    ("qwen3-8b", "rtx-4090"),
    ("gemma3-27b-text", "2xrtx-5090"),
    ("qwen2.5-14b", "l40s"),
    ("qwen3-30b-a3b", "h100-80gb"),
    ("llama3-70b", "4xa100-80gb"),
    ("qwen3-next-80b", "4xh100-80gb"),
    ("deepseek-v3", "8xh200"),
    ("gpt-oss-20b", "gb10"),
)
PRESETS = ("chat", "coding-agent", "long-context", "throughput", "low-memory")


def plan(model: str, cards: str, preset: str) -> Plan:
    machine = load_machine(cards) if cards == "gb10" else load_machine(cards, ram="512GiB")
    options = stated_options("vllm", {"preset": preset}, None)
    return plan_of("vllm", str(CONFIGS / model), machine, options, None, details=False)


def total(plan: Plan) -> float:
    return float(plan.engine_report["total_tokens_per_s"])  # type: ignore[arg-type]


def used(plan: Plan) -> int:
    return sum(pool.used_bytes for pool in plan.memory.pools)


def best_at(plans: dict[str, Plan]) -> set[str]:
    """The presets that differ from all others and are ahead in what they are for."""
    argvs = {name: tuple(plan.argv[3:]) for name, plan in plans.items()}
    contexts = {name: plan.context_tokens or 0 for name, plan in plans.items()}
    full = {name: plan.speed.decode_tokens_per_s for name, plan in plans.items() if plan.speed is not None}
    better = {
        "chat": full["chat"] >= max(full["coding-agent"], full["long-context"]),
        # several agents of a session share the cache, each with room for a repository
        "coding-agent": contexts["coding-agent"] >= 32_768
        and total(plans["coding-agent"]) > total(plans["long-context"]),
        "long-context": contexts["long-context"] == max(contexts.values()),
        "throughput": total(plans["throughput"]) == max(map(total, plans.values())),
        "low-memory": used(plans["low-memory"]) == min(map(used, plans.values())),
    }
    unique = {name for name, argv in argvs.items() if list(argvs.values()).count(argv) == 1}
    return {name for name in unique if better[name]}


@pytest.mark.slow
def test_every_preset_has_its_own_answer() -> None:
    ahead = [best_at({preset: plan(model, cards, preset) for preset in PRESETS}) for model, cards in MACHINES]
    for preset in PRESETS:
        where = [preset in one for one in ahead]
        assert sum(where) >= 8, (preset, where)


def test_memory_is_left_to_others() -> None:
    """20 GiB of the 120 that a processor and its GPU share, where the usual plan takes 85 %."""
    least = plan("gpt-oss-20b", "gb10", "low-memory")
    assert least.fits and least.engine_report["gpu_memory_utilization"] < 0.25  # type: ignore[operator]
    assert any("stays free" in decision.because for decision in least.decisions)
