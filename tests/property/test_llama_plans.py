"""Laws of whole plans, for random models, machines, wishes and pins."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from autofit.domain.machine import HOST_POOL
from autofit.domain.plan import Decision, Plan
from autofit.domain.request import Request
from autofit.errors import AutofitError
from autofit.planning.decisions import arguments
from hypothesis import HealthCheck, Phase, assume, given, note, settings
from hypothesis import strategies as st

from autofit_llama.backend import LlamaBackend
from support.plan_cases import Case, cases

BACKEND = LlamaBackend()
#: more of them, as many as time allows: AUTOFIT_EXAMPLES=1000 pytest tests/property/test_llama_plans.py
EXAMPLES = int(os.environ.get("AUTOFIT_EXAMPLES", "5"))
# A seed is not worth shrinking: the case that it makes is printed.
RANDOM = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
seeds = st.integers(0, 10**6)


def case_of(seed: int) -> Case:
    case = next(iter(cases(1, seed)))
    note(case.label)
    return case


def plan_of(case: Case) -> Plan:
    try:
        return BACKEND.plan(BACKEND.command(case.request), case.model, case.machine, case.request)
    except AutofitError as error:
        assert "\n" not in error.message
        assume(False)
        raise


def check(plan: Plan, case: Case, argv: list[str] | None = None) -> Plan:
    command = BACKEND.parse(argv or plan.argv)
    return BACKEND.check(command, case.model, case.machine, Request(margin=case.request.margin))


@RANDOM
@given(seeds)
def test_a_plan_that_fits_is_inside_every_budget_and_checks_as_planned(seed: int) -> None:
    case = case_of(seed)
    plan = plan_of(case)
    assert plan.fits == all(pool.shortfall_bytes <= 0 for pool in plan.memory.pools)
    checked = check(plan, case)
    assert {name: checked.engine_report[name] for name in plan.engine_report} == plan.engine_report
    assert [p.used_bytes for p in checked.memory.pools] == [p.used_bytes for p in plan.memory.pools]
    assert checked.fits == plan.fits


@RANDOM
@given(seeds)
def test_pins_are_kept_word_for_word_and_decisions_rebuild_the_command(seed: int) -> None:
    case = case_of(seed)
    plan = plan_of(case)
    pins = case.request.engine_args
    assert any(plan.argv[i : i + len(pins)] == pins for i in range(len(plan.argv) - len(pins) + 1))
    assert plan.argv == ("llama-server", *arguments(plan.decisions))
    said = [decision.setting for decision in plan.decisions if decision.origin == "solved"]
    assert len(said) == len(set(said))
    assert all(decision.because for decision in plan.decisions)


@RANDOM
@given(seeds)
def test_what_was_rejected_really_does_not_fit(seed: int) -> None:
    case = case_of(seed)
    plan = plan_of(case)
    for decision in plan.decisions:
        rejected = decision.next_rejected
        if rejected is None:
            continue
        assert rejected.shortfall_bytes is not None
        assert rejected.shortfall_bytes > 0
        argv = _with(plan, decision, rejected.value)
        worse = check(plan, case, argv)
        assert not worse.fits
        assert max(pool.shortfall_bytes for pool in worse.memory.pools) == rejected.shortfall_bytes


def _with(plan: Plan, decision: Decision, value: str) -> list[str]:
    """The command with the next better value of one decision."""
    argv = list(plan.argv)
    if decision.setting in ("-ncmoe", "-ncffn", "-ot"):
        solved = [d for d in plan.decisions if d.origin == "solved" and d.setting in ("-ncmoe", "-ncffn", "-ot")]
        for old in solved:
            at = argv.index(old.setting, len(argv) - argv[::-1].index(old.setting) - 1)
            kept = [p for p in argv[at + 1].split(",") if not p.endswith("=CPU")] if old.setting == "-ot" else []
            argv[at : at + 2] = ["-ot", ",".join(kept)] if kept else []
        word, number, *_ = value.split()  # "without -ot" may follow, which is left out above
        return [*argv, word, number] if int(number) else argv
    at = argv.index(decision.setting)
    argv[at + 1] = value
    if decision.setting == "-ngl" and "-ts" in argv:
        rows = argv[argv.index("-ts") + 1].split(",")
        rows[0] = str(int(rows[0]) + 1)
        argv[argv.index("-ts") + 1] = ",".join(rows)
    return argv


@pytest.mark.slow
@RANDOM
@given(seeds, st.sampled_from([512, 2048, 4096, 12_000, 33_000, 131_072]))
def test_the_longest_context_is_no_shorter_than_any_that_plans(seed: int, context: int) -> None:
    case = case_of(seed)
    assume(not {"-c", "--ctx-size"} & set(case.request.engine_args))
    context = min(context, case.model.context_train_tokens or context)
    one = plan_of(replace(case, request=replace(case.request, context=context)))
    assume(one.fits)
    longest = plan_of(replace(case, request=replace(case.request, context=0)))
    assert longest.fits
    assert (longest.context_tokens or 0) >= (one.context_tokens or 0)


@pytest.mark.slow
@RANDOM
@given(seeds, st.integers(1, 4000))
def test_more_memory_never_gives_a_worse_plan(seed: int, more_mib: int) -> None:
    case = case_of(seed)
    request = replace(case.request, prefer="speed", kv=None if case.request.kv == "auto" else case.request.kv)
    case = replace(case, request=request)
    before = plan_of(case)
    assume(before.fits and case.free_mib and case.machine.host.available_bytes is None)
    after = plan_of(replace(case, free_mib=(case.free_mib[0] + more_mib, *case.free_mib[1:])))
    assert after.fits

    def rate(plan: Plan) -> float:
        speed = BACKEND.check(BACKEND.parse(_short(plan)), case.model, case.machine).speed
        assert speed is not None
        return speed.decode_tokens_per_s

    # Rates of unlike contexts are compared at the same one; 2 % are given up for the plainest flags.
    assert rate(after) >= rate(before) * 0.98


def _short(plan: Plan) -> list[str]:
    """The command with the same small context."""
    argv = list(plan.argv)
    for word in ("-c", "--ctx-size"):
        if word in argv:
            argv[argv.index(word) + 1] = "2048"
    return argv


@pytest.mark.slow
@RANDOM
@given(seeds)
def test_equal_devices_are_interchangeable(seed: int) -> None:
    case = case_of(seed)
    pins = set(case.request.engine_args)
    assume(len(case.free_mib) > 1 and not pins & {"-ts", "-dev", "-mg"})
    same = replace(case, free_mib=(case.free_mib[0],) * len(case.free_mib))
    machine = same.machine
    devices = tuple(replace(d, bandwidth_bytes_per_s=500_000_000_000) for d in machine.devices)
    renamed = tuple(replace(d, uuid=f"GPU-{i}", name=d.name) for i, d in enumerate(reversed(devices)))
    try:
        here = BACKEND.plan(BACKEND.command(same.request), case.model, replace(machine, devices=devices), same.request)
        there = BACKEND.plan(BACKEND.command(same.request), case.model, replace(machine, devices=renamed), same.request)
    except AutofitError:
        assume(False)
        raise
    assert here.argv == there.argv
    assert [p.used_bytes for p in here.memory.pools] == [p.used_bytes for p in there.memory.pools]


@RANDOM
@given(seeds)
def test_the_shortfall_of_a_plan_is_exact(seed: int) -> None:
    case = case_of(seed)
    case = replace(case, ram_bytes=case.model.weights_bytes // 4, free_mib=case.free_mib[:1])
    plan = plan_of(case)
    assume(not plan.fits)
    short = [pool for pool in plan.memory.pools if pool.shortfall_bytes > 0]
    errors = [finding for finding in plan.findings if finding.severity == "error"]
    assert len(errors) == 1
    worst = max(short, key=lambda pool: pool.shortfall_bytes)
    assert worst.id in errors[0].message
    assert f"({worst.shortfall_bytes} bytes)" in errors[0].message

    def with_more(less: int) -> bool:
        extra = {pool.id: pool.shortfall_bytes - less for pool in short}
        devices = tuple(replace(d, free_bytes=(d.free_bytes or 0) + extra.get(d.id, 0)) for d in case.machine.devices)
        host = case.machine.host
        if host.available_bytes is not None:
            host = replace(host, available_bytes=host.available_bytes + extra.get(HOST_POOL, 0))
        machine = replace(case.machine, devices=devices, host=host)
        return BACKEND.check(BACKEND.parse(plan.argv), case.model, machine, Request(margin=case.request.margin)).fits

    assert with_more(0)
    assert not with_more(1)


@pytest.mark.parametrize("seed", range(2))
def test_every_alternative_is_a_command_that_fits(seed: int) -> None:
    for drawn in [case for case in cases(40, seed) if case.part == "models" and case.free_mib][:2]:
        case = replace(drawn, request=replace(drawn.request, alternatives=True))
        try:
            plan = BACKEND.plan(BACKEND.command(case.request), case.model, case.machine, case.request)
        except AutofitError:
            continue
        assert len(plan.alternatives) <= 5
        for other in plan.alternatives:
            assert other.argv != plan.argv
            assert other.because
            margins = case.request.margin
            assert BACKEND.check(BACKEND.parse(other.argv), case.model, case.machine, Request(margin=margins)).fits
