"""A checkpoint with code of its own: said, and the flag that runs it is the user's alone."""

from __future__ import annotations

import autofit
import pytest
from autofit.domain.plan import Plan

from support.fuzzing.text import CONFIG
from support.fuzzing.vllm import machine, model_of

OWN_CODE = {**CONFIG, "auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}


def plan(config: object, *flags: str) -> Plan:
    return autofit.plan("vllm", model_of(config), machine(0), engine_args=flags, settings=None)


def codes(found: Plan) -> set[str]:
    return {finding.code for finding in found.findings}


def test_the_flag_is_never_added_and_the_plan_says_that_it_may_be_needed() -> None:
    found = plan(OWN_CODE)
    assert "--trust-remote-code" not in found.argv
    assert "trust_remote_code" not in found.kwargs
    assert "remote-code" in codes(found)
    assert "remote-code" not in codes(plan(CONFIG))


@pytest.mark.parametrize("flag", ["--trust-remote-code"])
def test_the_users_own_flag_is_kept_without_a_word(flag: str) -> None:
    found = plan(OWN_CODE, flag)
    assert flag in found.argv
    assert "remote-code" not in codes(found)


def test_a_check_says_it_too() -> None:
    found = autofit.check(["vllm", "serve", "m"], machine(0), model=model_of(OWN_CODE))
    assert "remote-code" in codes(found)
