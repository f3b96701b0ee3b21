"""The cache of experts of `--moe-cache-mib`: whole slots, groups of alike blocks, and what the engine refuses."""

from __future__ import annotations

import autofit
import pytest
from autofit.domain.plan import Plan
from autofit.errors import EngineRefusalError, UsageError

from autofit_llama.command.parse import settings_of
from autofit_llama.command.reading import read
from autofit_llama.engine.versions import Version

MIXTRAL = "example:mixtral-8x7b-q4_k_m"
LLAMA = "example:llama-3.1-8b-q4_k_m"


def check(words: str, *on: str, model: str = MIXTRAL, version: str = "b11549") -> Plan:
    machine = autofit.load_machine(*(on or ("generic-cuda:24GiB",)), ram="64GiB")
    argv = ["llama-server", "-m", "m.gguf", "-c", "4096", "-ngl", "99", *words.split()]
    return autofit.check(argv, machine, model=autofit.read_model(model), engine_version=version)


def cached(plan: Plan) -> list[int]:
    return [sum(item.n_bytes for item in pool.items if item.label == "cache of experts") for pool in plan.memory.pools]


def test_nothing_is_kept_where_no_block_has_its_experts_in_main_memory() -> None:
    assert cached(check("--moe-cache-mib 512", "generic-cuda:40GiB")) == [0, 0]
    assert cached(check("-cmoe")) == [0, 0]
    assert cached(check("-cmoe --moe-cache-mib 0")) == [0, 0]


def test_the_budget_is_never_passed_and_all_experts_are_the_most() -> None:
    for budget in (1024, 4096, 12288):
        n_bytes, maps = cached(check(f"-cmoe --moe-cache-mib {budget}"))
        assert budget * 0.97 < n_bytes / (1 << 20) <= budget
        assert maps == 32 * 32  # 32 blocks of 8 experts
    (most, _), (same, _) = (cached(check(f"-cmoe --moe-cache-mib {n}", "generic-cuda:80GiB")) for n in (60000, 2000000))
    assert most == same


def test_devices_share_it_as_layers_or_as_is_said() -> None:
    first, second, _ = cached(check("-cmoe --moe-cache-mib 4096 -ts 3,1", "generic-cuda:24GiB", "generic-cuda:24GiB"))
    assert 2.8 < first / second < 5
    first, second, _ = cached(check("-cmoe --moe-cache-mib 4096", "generic-cuda:24GiB", "generic-cuda:24GiB"))
    assert 0.95 < first / second < 1.05


def test_micro_batches_run_one_after_the_other() -> None:
    on = ("generic-cuda:24GiB", "generic-cuda:24GiB")
    copies = [check(words, *on, model=LLAMA).engine_report["sched_copies"] for words in ("", "-fa on")]
    assert copies == [4, 4]
    assert check("--moe-cache-mib 64", *on).engine_report["sched_copies"] == 1


@pytest.mark.parametrize(
    ("words", "on", "model", "reason"),
    [
        ("-cmoe --moe-cache-mib 8", "generic-cuda:24GiB", MIXTRAL, "too small to hold the experts of one token"),
        ("--moe-cache-mib 64", "generic-cuda:24GiB", LLAMA, "requires a MoE model"),
        ("--moe-cache-mib 64", "cpu", MIXTRAL, "requires a GPU backend"),
    ],
)
def test_what_the_engine_refuses(words: str, on: str, model: str, reason: str) -> None:
    with pytest.raises(EngineRefusalError, match=reason):
        check(words, on, model=model)


@pytest.mark.parametrize("word", ["-1", "x", "9" * 30])
def test_numbers_that_the_engine_does_not_read(word: str) -> None:
    with pytest.raises(UsageError):
        check(f"--moe-cache-mib {word}")


def test_the_flag_is_a_setting() -> None:
    argv = ["llama-server", "-m", "m", "--moe-cache-mib", "64"]
    settings = settings_of(read(argv, version=Version(build=11549)))
    assert settings.moe_cache_mib == 64
