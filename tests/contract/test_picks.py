"""What else there is to choose: each pick is exactly the plan of its flags, and better in what it is picked for."""

from __future__ import annotations

from typing import Any

import autofit
import pytest
from autofit.domain.plan import Alternative, Plan
from autofit.settings.options import BY_NAME

from support.vllm_truth import DATA

MIXTRAL = "example:mixtral-8x7b-q4_k_m"
CASES: dict[str, tuple[str, str, list[str], dict[str, Any], set[str]]] = {
    "experts in RAM": ("llama", MIXTRAL, ["rtx-4090"], {}, {"fastest", "longest context"}),
    "a longer context": ("llama", "example:llama-3.1-8b-q4_k_m", ["rtx-3060-12gb"], {}, {"longest context"}),
    "all there is": ("llama", "example:llama-3.1-8b-q4_k_m", ["a100-80gb"], {}, set()),
    "a lossy cache": ("llama", "example:llama-3.1-8b-q4_k_m", ["rtx-3060-12gb"], {"context": "90k"}, {"best quality"}),
    "a stated context": ("llama", "example:llama-3.1-8b-q4_k_m", ["rtx-3060-12gb"], {"context": "16k"}, set()),
    "weights of vLLM in RAM": ("vllm", "qwen3-30b-a3b", ["2xrtx-4090"], {}, {"longest context"}),
    "pages of vLLM": ("vllm", "llama3-70b", ["2xa100-80gb"], {}, {"longest context"}),
    "stages of vLLM": ("vllm", "llama3-70b", ["4xa100-40gb"], {}, {"longest context"}),
    "it does not fit": ("llama", "example:mixtral-8x22b-q4_k_m", ["rtx-3060-12gb"], {"ram": "16GiB"}, set()),
}


def options_of(flags: tuple[str, ...]) -> dict[str, str]:
    names = {"-c": "context", **{option.flag: name for name, option in BY_NAME.items()}}
    return {names[flag]: value for flag, value in zip(flags[::2], flags[1::2], strict=True)}


def near(plan: Plan | Alternative) -> float:
    assert plan.speed is not None
    return plan.speed.start_tokens_per_s or plan.speed.decode_tokens_per_s


@pytest.mark.slow_cases("experts in RAM", "stages of vLLM")
@pytest.mark.parametrize("name", CASES)
def test_picks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DATA / "configs")
    backend, model, on, wishes, expected = CASES[name]
    machine = autofit.load_machine(*on, ram=wishes.pop("ram", "64GiB"))
    plan = autofit.plan(backend, model, machine, settings=None, **wishes)
    picks = {one.pick: one for one in plan.alternatives if one.pick is not None}
    assert set(picks) == expected
    for pick, one in picks.items():
        again = autofit.plan(backend, model, machine, settings=None, **{**wishes, **options_of(one.flags)})
        assert again.fits and again.argv == one.argv and again.speed == one.speed
        assert again.context_tokens == one.context_tokens
        assert one.gains and one.costs
        if pick == "fastest":
            assert near(one) > near(plan)
        elif pick == "longest context":
            assert (one.context_tokens or 0) > (plan.context_tokens or 0)


def test_quality_comes_first_where_it_is_preferred() -> None:
    machine = autofit.load_machine("rtx-3060-12gb", ram="64GiB")
    model = autofit.read_model("example:llama-3.1-8b-q4_k_m")

    def kv(**wishes: Any) -> str:
        argv = autofit.plan("llama", model, machine, settings=None, context="90k", **wishes).argv
        return argv[argv.index("-ctk") + 1] if "-ctk" in argv else "f16"

    assert kv() == "q8_0"
    assert kv(prefer="quality") == "f16"
    assert kv(prefer="quality", min_tps=8) == "q8_0"  # the only way to that rate
