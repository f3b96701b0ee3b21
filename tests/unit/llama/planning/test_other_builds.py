"""Builds outside the recorded ones, and forks: a margin that is said, and no figure that is called exact."""

from __future__ import annotations

import sys

import autofit
import pytest
from autofit.domain.plan import Plan
from autofit.domain.units import MIB
from autofit.errors import UsageError

from autofit_llama.engine.versions import NEWEST, OLDEST, STEP_BYTES, UNLIKE_BYTES
from support import ROOT

MODEL = "example:llama-3.1-8b-q4_k_m"
MIXTRAL = "example:mixtral-8x7b-q4_k_m"


def plan(version: str | None = None, model: str = MODEL, margin: str | None = None) -> Plan:
    on = autofit.load_machine("rtx-3090", "rtx-3090", ram="64GiB")
    return autofit.plan("llama", model, on, context="8k", engine_version=version, margin=margin, settings=None)


def codes(found: Plan) -> set[str]:
    return {finding.code for finding in found.findings}


@pytest.mark.parametrize(
    ("version", "code", "n_bytes"),
    [
        (f"b{NEWEST}", None, 0),
        (f"b{OLDEST}", None, 0),
        (f"b{NEWEST + 1}", "engine-version-newer", STEP_BYTES),
        ("version: 11739 (abcdef)", "engine-version-newer", STEP_BYTES),
        (f"b{NEWEST + 2 * (NEWEST - OLDEST)}", "engine-version-newer", 2 * STEP_BYTES),
        ("0.9.0", "engine-version-newer", STEP_BYTES),
        (f"b{OLDEST - 1}", "engine-version-older", UNLIKE_BYTES),
        ("ik_llama.cpp 4067", "engine-fork", UNLIKE_BYTES),
        ("llamafile v0.9.3", "engine-fork", UNLIKE_BYTES),
    ],
)
def test_what_is_left_free_for_a_build_that_is_not_recorded(version: str, code: str | None, n_bytes: int) -> None:
    for margin, base in ((None, plan()), ("1GiB", plan(margin="1GiB"))):
        found = plan(version, margin=margin)
        for pool, other in zip(found.memory.pools[:-1], base.memory.pools[:-1], strict=True):
            if pool.used_bytes and other.used_bytes:
                assert pool.sum_bytes("reserve") == other.sum_bytes("reserve") + n_bytes
        unsure = {"engine-fork", "engine-version-newer", "engine-version-older"}
        assert codes(found) & unsure == ({code} if code else set())
        bases = {item.basis for pool in found.memory.pools for item in pool.items if item.kind in ("weights", "cache")}
        assert ("exact" in bases) is (n_bytes == 0)
        if code:
            message = next(one.message for one in found.findings if one.code == code)
            assert f"{n_bytes // MIB} MiB more are left free on each device, which is assumed" in message


def test_the_plan_names_the_build_and_how_it_is_known() -> None:
    assert plan("b8121").engine_source == "llama.cpp b8121, as --engine-version says"
    assert plan("b11739").engine_version == "b11739"
    assert plan("ik_llama.cpp 4067").engine_version == "ik_llama.cpp"
    assert plan().engine_source == "llama.cpp b11311, since none is named"
    assert plan().to_dict()["engine_source"] == plan().engine_source


def test_a_cache_of_experts_is_counted_where_the_build_has_one() -> None:
    words = ["llama-server", "-m", "m.gguf", "-c", "4096", "-ngl", "99", "-cmoe", "--moe-cache-mib", "2048"]
    on = autofit.load_machine("rtx-3090", ram="64GiB")
    found = autofit.check(words, on, model=autofit.read_model(MIXTRAL), engine_version="b11549")
    cached = [item for pool in found.memory.pools for item in pool.items if item.label == "cache of experts"]
    assert [item.n_bytes >> 20 for item in cached] == [2034, 0]
    with pytest.raises(UsageError, match="moe-cache-mib"):
        autofit.check(words, on, model=autofit.read_model(MIXTRAL), engine_version="b11434")


@pytest.mark.parametrize("version", ["KoboldCpp 1.96.2", "ollama version is 0.12.3", "LM Studio 0.3.30", "koboldcpp"])
def test_engines_with_flags_of_their_own_are_refused_by_name(version: str) -> None:
    with pytest.raises(UsageError, match="has flags and defaults of its own"):
        plan(version)


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["koboldcpp", "--model", "m.gguf", "--gpulayers", "99"], "KoboldCpp"),
        (["/usr/bin/ollama", "runner", "--model", "m.gguf"], "Ollama"),
        (["lms", "load", "m"], "LM Studio"),
        (["llamafile", "-m", "m.gguf"], "llamafile"),
    ],
)
def test_their_commands_are_too(argv: list[str], name: str) -> None:
    with pytest.raises(UsageError, match=f"is {name}, whose flags and defaults are not known here"):
        autofit.check(argv, autofit.load_machine("rtx-3090", ram="64GiB"), settings=None)


def test_a_fork_takes_flags_that_are_not_known() -> None:
    on = autofit.load_machine("rtx-3090", ram="64GiB")
    argv = ["/opt/ik_llama.cpp/bin/llama-server", "-m", MODEL, "-ngl", "99", "-fmoe"]
    found = autofit.check(argv, on, model=MODEL, engine_version="ik_llama.cpp", settings=None)
    assert {"unknown-flags", "engine-fork"} <= codes(found)


def test_99_of_100_devices_moved_less_than_the_margins() -> None:
    folder = str(ROOT / "tools" / "accuracy")
    sys.path.insert(0, folder)
    try:
        import llama_moves
    finally:
        sys.path.remove(folder)
    compared = 0
    for _, _, more in llama_moves.moves():
        compared += len(more)
        assert more[int(0.99 * len(more))] <= STEP_BYTES
        assert -more[len(more) // 100] <= UNLIKE_BYTES
    assert compared > 100


@pytest.mark.slow_but("b10705-*", "b10704-*")
@pytest.mark.parametrize(
    ("build", "model", "card", "flag"),
    [
        ("b10705", MODEL, "nvidia:6GiB", "-ncffn"),
        ("b10704", MODEL, "nvidia:6GiB", "-ot"),
        ("b8864", MODEL, "nvidia:5GiB", "-ot"),
        ("b8864", MIXTRAL, "nvidia:12GiB", "-ncmoe"),
        ("b6000", MIXTRAL, "nvidia:12GiB", "--override-tensor"),
    ],
)
def test_weights_stay_in_ram_whether_or_not_a_build_counts_layers(build: str, model: str, card: str, flag: str) -> None:
    on = autofit.load_machine(card, ram="64GiB")
    found = autofit.plan("llama", model, on, context="8k", engine_version=build, settings=None)
    assert flag in found.argv
    assert found.memory.fits
    checked = autofit.check(found.argv, on, engine_version=build, settings=None)
    assert [pool.used_bytes for pool in checked.memory.pools] == [pool.used_bytes for pool in found.memory.pools]
