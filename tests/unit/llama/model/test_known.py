"""Architectures by build: what a build lacks it refuses, and what none is known to have is bounded or refused."""

from __future__ import annotations

import autofit
import pytest
from autofit.domain.model import ModelSpec
from autofit.domain.values import replace
from autofit.errors import EngineRefusalError, UnsupportedModelError

from autofit_llama.engine.builds import first_with_architecture, has_architecture, numbers
from autofit_llama.engine.naming import find_version
from autofit_llama.engine.versions import LATEST, NEWER
from autofit_llama.model.architecture import is_known
from autofit_llama.model.known import check_architectures

MODEL = autofit.read_model("example:llama-3.1-8b-q4_k_m")


def named(architecture: str) -> ModelSpec:
    return replace(MODEL, architecture=architecture)


def codes(architecture: str, build: str) -> list[str]:
    return [one.code for one in check_architectures(named(architecture), find_version(build)[0], named=True)]


@pytest.mark.parametrize(
    ("architecture", "build", "has"),
    [
        ("glm5-next", "0.5.0", "b11311"),
        ("glm5-next", "b11258", "b11311"),
        ("hy_v4", "0.4.0", "b10816"),
        ("hrm_text", "0.4.0", "b"),
        ("qwen3tts", "b10068", "b10295"),
        ("gemma4", "b8121", "b9093"),
        ("clef", "b11311", "b11382"),
    ],
)
def test_what_a_build_lacks_it_refuses(architecture: str, build: str, has: str) -> None:
    with pytest.raises(EngineRefusalError, match=f"refuses: unknown model architecture: '{architecture}'") as no:
        codes(architecture, build)
    assert f"--engine-version {has}" in (no.value.hint or "")


def test_between_two_builds_it_is_not_sure() -> None:
    last = max(n for n in numbers() if n < (first_with_architecture("gemma4") or 0))
    assert codes("gemma4", f"b{last + 1}") == ["engine-version-uncertain"]
    assert codes("gemma4", "b9093") == []


def test_what_no_build_has() -> None:
    """It is of a newer build, unless somebody says which one it is."""
    assert check_architectures(named("aurora9"), LATEST, named=False) == ()
    assert check_architectures(named("aurora9"), NEWER, named=True) == ()
    with pytest.raises(EngineRefusalError, match="unknown model architecture"):
        codes("aurora9", "b11549")


def test_what_a_build_has_and_is_not_known_here_is_refused() -> None:
    unknown = [name for name in ("gptj",) if not is_known(name)]
    for name in unknown:
        with pytest.raises(UnsupportedModelError, match="does not know what it takes"):
            codes(name, "b11549")


def test_what_llama_cpp_has_is_known_here() -> None:
    """But for those that it names only, or that are refused above."""
    from autofit_llama.engine.build_table import ARCHITECTURES

    names = [line.split(" ")[1] for line in ARCHITECTURES.strip().split("\n")]
    assert {name for name in names if not is_known(name)} <= {"clip", "gptj"}
    assert all(len(has_architecture(n, "llama")) == 1 for n in numbers())


def test_a_check_and_a_plan_refuse() -> None:
    on = autofit.load_machine("rtx-3090", ram="64GiB")
    for call in (
        lambda: autofit.plan("llama", named("gemma4"), on, engine_version="b8121"),
        lambda: autofit.check(["llama-server", "-m", "m"], on, model=named("gemma4"), engine_version="b8121"),
    ):
        with pytest.raises(EngineRefusalError, match="unknown model architecture"):
            call()
