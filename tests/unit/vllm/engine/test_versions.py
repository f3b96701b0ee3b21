"""Which release a version names, and what it had that the newest has not."""

from __future__ import annotations

from typing import Any

import autofit
import pytest
from autofit.errors import EngineRefusalError, UnsupportedModelError, UsageError

from autofit_vllm.architectures import build_from_config
from autofit_vllm.architectures.builder import Options
from autofit_vllm.command.flags import parse_flags
from autofit_vllm.command.settings import VllmSettings, parse_command
from autofit_vllm.engine.history import defaults_at, first_with, last_with, release_key, releases
from autofit_vllm.engine.versions import DEFAULT, NEWEST, OLDEST, find_engine
from autofit_vllm.quantization import quantization_for
from autofit_vllm.quantization.floating import gpt_oss_rounding
from support import DATA


@pytest.mark.parametrize(
    ("text", "release", "status", "neighbors"),
    [
        ("0.21.0", "0.21.0", "known", ()),
        ("v0.21", "0.21.0", "known", ()),
        ("vllm==0.10.1.1", "0.10.1.1", "known", ()),
        ("0.33.0+cu130", NEWEST, "known", ()),
        (" 0.20.2 ", "0.20.2", "known", ()),
        ("0.21.1.dev3+g1a2b3c4.d20260601", "0.22.0", "between", ("0.21.0", "0.22.0")),
        ("0.22.0rc2", "0.22.0", "between", ("0.21.0", "0.22.0")),
        ("0.26.1rc1.dev608", "0.27.0", "between", ("0.26.0", "0.27.0")),
        ("0.21.0.post1", "0.22.0", "between", ("0.21.0", "0.22.0")),
        ("0.21.7", "0.22.0", "between", ("0.21.0", "0.22.0")),
        ("0.33.0.post1", NEWEST, "newer", ()),
        ("0.33.1.dev9+gabc", NEWEST, "newer", ()),
        ("0.34.0", NEWEST, "newer", ()),
        ("1.0.0", NEWEST, "newer", ()),
        ("0.1.dev19754", NEWEST, "newer", ()),
        ("nightly", NEWEST, "newer", ()),
        ("vllm/vllm-openai:v0.21.0", "0.21.0", "known", ()),
        ("docker.io/vllm/vllm-openai:v0.11.2-x86_64", "0.11.2", "known", ()),
        ("vllm/vllm-openai:v0.20.2-cu130@sha256:0123", "0.20.2", "known", ()),
        ("registry.example:5000/vllm/vllm-openai", NEWEST, "newer", ()),
        ("vllm/vllm-openai:nightly-1a2b3c", NEWEST, "newer", ()),
        ("vllm 0.21.0", "0.21.0", "known", ()),
        ("latest", NEWEST, "newer", ()),
        ("0.33.0rc1", NEWEST, "between", (releases()[-2], NEWEST)),
    ],
)
def test_a_version_and_whose_rules_it_follows(text: str, release: str, status: str, neighbors: tuple[str, ...]) -> None:
    engine = find_engine(text)
    assert (engine.release, engine.status, engine.neighbors) == (release, status, neighbors)


@pytest.mark.parametrize(
    "text", ["", "banana", "0", "b8864", "0.21.x", "0.21.0\n--rm", "0" * 9999, "0.-1", "1e9", "0.21.0 ; rm -rf /"]
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a version of vLLM"):
        find_engine(text)


@pytest.mark.parametrize("text", ["0.9.2", "0.8.5.post1", "0.0.1", "0.10.0rc1", "0.1.0"])
def test_older_than_any_known(text: str) -> None:
    with pytest.raises(UsageError, match="older than any") as caught:
        find_engine(text)
    assert OLDEST in (caught.value.hint or "")


def test_releases_are_in_order_and_reach_from_the_oldest_to_the_newest() -> None:
    assert sorted(releases(), key=release_key) == list(releases())
    assert (releases()[0], releases()[-1]) == (OLDEST, NEWEST)


# -- Flags


def test_a_flag_that_a_release_has_not_yet_names_the_release_that_has() -> None:
    with pytest.raises(UsageError, match=r"0\.10\.0 has no flag.*kv-cache-memory-bytes") as caught:
        parse_flags(["--kv-cache-memory-bytes", "1G"], find_engine("0.10.0"))
    assert caught.value.hint == "vLLM 0.10.2 and newer have it"


def test_a_flag_that_only_older_releases_have() -> None:
    assert parse_flags(["--swap-space", "4"], find_engine("0.17.1")) == {"swap_space": 4.0}
    for version in ("0.18.0", NEWEST):
        with pytest.raises(UsageError, match="--swap-space"):
            parse_flags(["--swap-space", "4"], find_engine(version))
    assert last_with("flags", "swap_space") == "0.17.1"
    assert first_with("flags", "kv_cache_memory_bytes") == "0.10.2"


@pytest.mark.parametrize(
    ("version", "args", "parsed"),
    [
        ("0.11.0", ["-O3"], {"compilation_config": {"level": 3}}),
        ("0.11.2", ["-O", "2"], {"compilation_config": {"mode": 2}}),
        ("0.12.0", ["-O2"], {"optimization_level": "2"}),
        ("0.13.0", ["-O.cudagraph_mode=NONE"], {"compilation_config": {"cudagraph_mode": "NONE"}}),
    ],
)
def test_optimization_levels(version: str, args: list[str], parsed: dict[str, Any]) -> None:
    assert parse_flags(args, find_engine(version)) == parsed


def test_the_second_negative_is_new() -> None:
    assert parse_flags(["--disable-prefix-caching"], DEFAULT) == {"enable_prefix_caching": False}
    assert parse_flags(["--no-enable-prefix-caching"], find_engine("0.32.0")) == {"enable_prefix_caching": False}
    with pytest.raises(UsageError, match="--disable-prefix-caching"):
        parse_flags(["--disable-prefix-caching"], find_engine("0.32.0"))


def test_a_build_between_two_releases_takes_the_flags_of_either() -> None:
    for flag in ("--shutdown-timeout", "--swap-space"):
        _, settings = parse_command(["vllm", "serve", "M", flag, "4"], version="0.18.0rc1")
        assert flag[2:].replace("-", "_") in settings.given
    with pytest.raises(UsageError, match="--watchdog-config"):
        parse_command(["vllm", "serve", "M", "--watchdog-config", "{}"], version="0.18.0rc1")


# -- Defaults and classes


def test_defaults_of_the_newest_are_those_of_the_settings() -> None:
    known = {name for release in releases() for name in defaults_at(release)}
    assert "gpu_memory_utilization" in known
    assert find_engine("0.19.1").default_gpu_memory_utilization == 0.9
    assert find_engine("0.20.0").default_gpu_memory_utilization == DEFAULT.default_gpu_memory_utilization == 0.92
    assert not find_engine("0.19.1").cudagraph_estimate_deducted
    assert find_engine("0.20.0").cudagraph_estimate_deducted
    assert find_engine("0.18.0").least_capability == (7, 0)
    assert find_engine("0.21.0").least_capability == DEFAULT.least_capability == (7, 5)


def test_settings_carry_the_engine() -> None:
    _, settings = parse_command(["vllm", "serve", "M"], version="0.21.0")
    assert settings.version.release == "0.21.0"
    assert VllmSettings().version == DEFAULT


def test_quantizations_that_a_release_has_not_are_refused() -> None:
    _, settings = parse_command(["vllm", "serve", "M"], version="0.12.0")
    with pytest.raises(EngineRefusalError, match="Unknown quantization method: modelopt_mxfp8"):
        quantization_for({"quant_method": "modelopt_mxfp8"}, capability=(9, 0), engine=settings.version)


def test_experts_of_gpt_oss_by_release() -> None:
    rounding = {version: gpt_oss_rounding(90, find_engine(version)) for version in ("0.14.0", "0.24.0", NEWEST)}
    assert rounding == {"0.14.0": (128, 256), "0.24.0": (128, 128), NEWEST: (64, 1)}
    assert gpt_oss_rounding(100, find_engine("0.24.0")) == (256, 256)
    assert gpt_oss_rounding(100) == (128, 256)


def test_an_architecture_that_a_release_has_not() -> None:
    config = {"architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next"}
    with pytest.raises(UnsupportedModelError, match="has no class for Qwen3NextForCausalLM") as caught:
        build_from_config(config, Options(engine=find_engine("0.10.1")))
    assert caught.value.hint == "vLLM 0.10.2 has"


# -- Plans


def plan(version: str | None, *args: str) -> autofit.Plan:
    machine = autofit.load_machine("h100-80gb")
    command = ["vllm", "serve", str(DATA / "vllm" / "configs" / "llama3-8b"), *args]
    return autofit.check(command, machine, environ={}, engine_version=version)


def codes(found: autofit.Plan) -> set[str]:
    return {each.code for each in found.findings if each.code.startswith("engine-version")}


def test_a_known_release_needs_no_word() -> None:
    assert codes(plan(None)) == set()
    found = plan("0.19.0")
    assert (found.engine_version, codes(found)) == ("0.19.0", set())
    assert found.engine_report["gpu_memory_utilization"] == 0.9


def test_a_build_between_two_releases_is_planned_by_the_safer() -> None:
    before, after = plan("0.19.1"), plan("0.20.0")
    between = plan("0.20.0rc1")
    tokens = [each.engine_report["kv_cache_tokens"] for each in (before, after, between)]
    assert tokens[2] == min(tokens)  # type: ignore[type-var]
    assert codes(between) == {"engine-version-between"}
    assert between.engine_version == "0.20.0rc1"


@pytest.mark.parametrize("version", ["nightly", "0.34.0", "0.1.dev19754"])
def test_an_engine_newer_than_known_leaves_a_margin_and_is_never_exact(version: str) -> None:
    newer, known = plan(version), plan(None)
    assert codes(newer) == {"engine-version-newer"}
    assert not {"exact", "derived"} & {item.basis for pool in newer.memory.pools for item in pool.items}
    assert newer.memory.pools[0].budget_bytes < known.memory.pools[0].budget_bytes  # type: ignore[operator]
