"""What each preset is better at than the others, on ten machines, with a dense model and one with experts."""

from __future__ import annotations

import pytest
from autofit.domain.machine import HOST_POOL
from autofit.domain.plan import Plan
from autofit.machines import load_machine
from autofit.pipeline import plan_of, stated_options

from support.descriptors import spec

MACHINES = (
    (("rtx-3060",), "32GB"),
    (("rtx-3060", "rtx-3060"), "64GB"),
    (("rtx-4060-laptop",), "32GB"),
    (("rtx-3090",), "64GB"),
    (("rtx-3090", "rtx-4060-ti-16gb"), "64GB"),
    (("rx-7900-xtx",), "64GB"),
    (("a100-80gb",), "256GB"),
    (("m3-max",), "36GB"),
    (("gb10",), None),
    (("strix-halo",), "128GB"),
)
PRESETS = ("chat", "coding-agent", "long-context", "throughput", "low-memory")


def plans_of(model: str, devices: tuple[str, ...], ram: str | None) -> dict[str, Plan]:
    machine = load_machine(*devices, ram=ram) if ram else load_machine(*devices)
    return {
        preset: plan_of(
            "llama",
            spec("models", model),
            machine,
            stated_options("llama", {"preset": preset}, None),
            None,
            details=False,
        )
        for preset in PRESETS
    }


def full(plan: Plan) -> float:
    assert plan.speed is not None
    return plan.speed.decode_tokens_per_s


def prompts(plan: Plan) -> float:
    assert plan.speed is not None
    return plan.speed.prefill_tokens_per_s or 0.0


def used(plan: Plan) -> int:
    """Bytes, without what may grow in RAM."""
    return sum(pool.used_bytes for pool in plan.memory.pools if pool.id != HOST_POOL) or sum(
        limit.used_bytes for limit in plan.memory.pool(HOST_POOL).limits
    )


def kept(plan: Plan) -> int:
    """MiB of RAM for prompts that come again."""
    return int(plan.argv[plan.argv.index("-cram") + 1]) if "-cram" in plan.argv else 8192


def best_at(plans: dict[str, Plan]) -> set[str]:
    """The presets that differ from all others and are ahead of the others that are like them in what they are for."""
    argvs = {name: tuple(plan.argv[3:]) for name, plan in plans.items()}
    contexts = {name: plan.context_tokens or 0 for name, plan in plans.items()}
    found = {name for name, argv in argvs.items() if list(argvs.values()).count(argv) == 1}
    agent, long = plans["coding-agent"], plans["long-context"]
    better = {
        "chat": full(plans["chat"]) >= max(full(agent), full(long)),
        "coding-agent": contexts["coding-agent"] >= 32_768
        and (prompts(agent), kept(agent)) > (prompts(long), kept(long)),
        "long-context": contexts["long-context"] == max(contexts.values()),
        "throughput": "8" in plans["throughput"].argv and 8 * full(plans["throughput"]) > full(plans["chat"]),
        "low-memory": used(plans["low-memory"]) == min(map(used, plans.values())),
    }
    return {name for name in found if better[name]}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama-3.1-8b-Q4_K_M", "qwen3-30b-a3b-Q4_K_M", "gpt-oss-120b-MXFP4_MOE"])
def test_every_preset_has_its_own_answer(model: str) -> None:
    plans = [plans_of(model, devices, ram) for devices, ram in MACHINES]
    ahead = [best_at(here) for here in plans if all(plan.fits for plan in here.values())]
    assert len(ahead) >= 7
    for preset in PRESETS:
        where = [preset in one for one in ahead]
        assert sum(where) >= 0.8 * len(ahead), (preset, where)


def rates(model: str, *devices: str, ram: str, **options: object) -> Plan:
    stated = stated_options("llama", options, None)
    return plan_of("llama", spec("models", model), load_machine(*devices, ram=ram), stated, None, details=False)


def start(plan: Plan) -> float:
    assert plan.speed is not None
    return plan.speed.start_tokens_per_s or plan.speed.decode_tokens_per_s


def test_several_sequences_are_told_their_rate_in_all() -> None:
    plan = rates("llama-3.1-8b-Q4_K_M", "rtx-3090", ram="64GiB", parallel=8)
    (told,) = [found.message for found in plan.findings if found.code == "rate-in-all"]
    assert told.startswith("8 sequences at once")
    assert "rate-in-all" not in [found.code for found in rates("llama-3.1-8b-Q4_K_M", "rtx-3090", ram="64GiB").findings]


@pytest.mark.slow
def test_context_and_micro_batch_together_keep_nine_tenths_of_the_rate() -> None:
    plan = rates("gpt-oss-120b-MXFP4_MOE", "rtx-3090", ram="128GiB")
    shortest = rates("gpt-oss-120b-MXFP4_MOE", "rtx-3090", ram="128GiB", context=8192, prefer="memory")
    assert "-ub" in plan.argv
    assert "-ub" not in shortest.argv
    assert (plan.context_tokens or 0) > 65_536
    assert start(plan) >= 0.9 * start(shortest)


def test_weights_stay_on_the_card_for_a_context_that_is_hardly_longer() -> None:
    plan = rates("qwen3-32b-Q4_K_M", "rtx-3090", ram="64GiB")
    embedding = 437_575_680  # the engine looks it up in RAM whatever is planned
    assert plan.memory.pool(HOST_POOL).sum_bytes("weights") == embedding
    assert 16_384 < (plan.context_tokens or 0) < 24_576
