"""What the engine makes of a command by itself: `--fit`, and what it tries again when memory runs out at start."""

from __future__ import annotations

from typing import Any

import autofit
import pytest
from autofit.domain.machine import Machine
from autofit.domain.plan import Plan
from autofit.domain.request import Margin, Request
from autofit.domain.units import MIB

from autofit_llama.backend import LlamaBackend
from support.descriptors import spec

DENSE, EXPERTS = "llama-3.1-8b-Q4_K_M", "qwen3-30b-a3b-Q4_K_M"


def check(on: Machine, *argv: str, model: str = DENSE, program: str = "llama-server", **options: Any) -> Plan:
    backend = LlamaBackend()
    command = backend.parse([program, "-m", "model.gguf", *argv], version=options.get("engine_version"))
    return backend.check(command, spec("models", model), on, Request(**options))


def cards(name: str, n: int = 1) -> Machine:
    return autofit.load_machine(*[name] * n, ram="64GiB")


def codes(found: Plan) -> list[str]:
    return [finding.code for finding in found.findings]


def test_a_command_that_leaves_everything_open_starts_with_a_shorter_context() -> None:
    found = check(cards("rtx-3060-12gb"))
    assert found.fits
    assert found.context_tokens is not None
    assert 4096 < found.context_tokens < 131072
    message = next(finding.message for finding in found.findings if finding.code == "engine-fit")
    assert f"-c {found.context_tokens}" in message
    chosen = {decision.setting: decision.value for decision in found.decisions}
    assert chosen == {"-c": str(found.context_tokens), "-ngl": "-1"}
    stated = check(cards("rtx-3060-12gb"), "-c", str(found.context_tokens), "-ngl", "all", "-fit", "off")
    assert stated.memory == found.memory
    assert not check(cards("rtx-3060-12gb"), "-fit", "off").fits


def test_with_layers_pinned_fit_gives_up_but_keeps_the_context_it_has_shortened() -> None:
    small = autofit.load_machine("generic-cuda:4GiB", ram="64GiB")
    found = check(small, "-ngl", "99")
    assert not found.fits
    assert found.context_tokens == 4096
    assert "engine-fit-gave-up" in codes(found)
    assert check(small).fits  # with nothing pinned it moves layers
    asked = check(small, "-c", "8192", "-ngl", "99")
    assert asked.context_tokens == 8192


def test_the_whole_context_is_kept_where_it_was_asked_for() -> None:
    card = autofit.load_machine("generic-cuda:8GiB", ram="64GiB")
    assert check(card, "-c", "0").context_tokens == 131072
    assert (check(card, "-c", "0", "-fitc", "2048").context_tokens or 0) < 131072
    assert check(card, "-fitc", "2048", "-c", "0").context_tokens == 131072  # the last one counts


def test_fit_is_that_of_the_programs_and_builds_that_have_it() -> None:
    card = cards("rtx-3060-12gb")
    assert check(card, program="llama-completion").fits
    assert "fit" in check(card, program="llama-fit-params").engine_report
    assert check(card, program="llama-fit-params").context_tokens == 131072  # it prints, and loads nothing
    old = check(card, "-ngl", "99", engine_version="b7000")
    assert "fit" not in old.engine_report
    assert old.context_tokens == 4096  # what -c was before there was --fit


def test_pipeline_parallelism_is_dropped_where_its_buffers_do_not_fit() -> None:
    argv = "-ngl 99 -fit off -c 65536 -np 1 -fa on -ub 2048 -b 2048 -ctk q8_0 -ctv q8_0".split()
    found = check(cards("rtx-3060-12gb", 2), *argv, model=EXPERTS)
    assert found.fits
    assert "no-pipeline-parallelism" in codes(found)
    assert found.engine_report["sched_copies"] == 1
    large = check(cards("rtx-3090", 2), *argv, model=EXPERTS)
    assert "no-pipeline-parallelism" not in codes(large)
    assert large.engine_report["sched_copies"] == 4


@pytest.mark.slow
def test_pipeline_parallelism_is_told_as_asked_where_nothing_would_start_anyway() -> None:
    argv = "-ngl 99 -fit off -c 8192 -np 1 -ub 2048".split()
    found = check(cards("rtx-3060-12gb", 2), *argv, model="qwen2.5-72b-IQ4_XS")
    assert not found.fits
    assert found.engine_report["sched_copies"] == 4
    assert "no-pipeline-parallelism" not in codes(found)


def test_a_build_that_keeps_logits_of_every_row() -> None:
    argv = "-ngl 99 --n-cpu-moe 26 -c 8192 -b 4096 -ub 4096 -np 1 -fit off".split()
    card = cards("rtx-3060-12gb")
    assert check(card, *argv, model=EXPERTS).fits
    old = check(card, *argv, model=EXPERTS, engine_version="b9272")
    assert not old.fits
    # printed by the dry run of b8121, which routes experts and keeps logits as b9272 does; b10068's takes 736 MiB
    for version in ("b8121", "b9272"):
        pool = check(card, *argv, model=EXPERTS, engine_version=version).memory.pool("GPU0")
        assert pool.sum_bytes("compute") == 2_522_873_856
    pool = check(card, *argv, model=EXPERTS, engine_version="b10068").memory.pool("GPU0")
    assert pool.sum_bytes("compute") == 771_833_984
    # it starts: what it lacks is the scratch of a prompt of 4096 tokens
    bare = check(card, *argv, model=EXPERTS, engine_version="b9272", margin=(Margin(n_bytes=0),))
    assert bare.verdict == "starts"
    assert "runs-short" in codes(bare)


def test_experts_on_the_host_are_multiplied_on_the_card() -> None:
    argv = "-ngl 99 -c 32768 -b 4096 -ub 4096 -np 1 -fa on".split()
    card = cards("rtx-3090")
    offloaded = check(card, *argv, "--cpu-moe", model=EXPERTS).memory.pool("GPU0").sum_bytes("transient")
    assert offloaded == pytest.approx(294 * MIB, rel=0.05)
    alone = check(card, *argv, "--cpu-moe", "--no-op-offload", model=EXPERTS)
    assert alone.memory.pool("GPU0").sum_bytes("transient") < 64 * MIB


def test_scores_without_flash_attention_are_copied_in_half_precision() -> None:
    argv = "-ngl 99 -c 16384 -np 1 -fit off".split()
    on, off = (check(cards("rtx-3090"), *argv, "-fa", word).memory.pool("GPU0") for word in ("on", "off"))
    assert off.sum_bytes("transient") - on.sum_bytes("transient") == 2 * 512 * 16384 * 32


def test_a_long_prompt_is_told_apart_from_the_start() -> None:
    argv = "-ngl 99 -c 4096 -np 1 -fit off -cram 0".split()
    pool = check(cards("rtx-3090"), *argv).memory.pool("GPU0")
    assert 0 < pool.start_bytes < pool.used_bytes
    margin = Margin(n_bytes=(pool.free_bytes or 0) - pool.start_bytes)
    found = check(cards("rtx-3090"), *argv, margin=(margin,))
    assert found.verdict == "starts"
    message = next(finding.message for finding in found.findings if finding.code == "runs-short")
    assert message.startswith("starts; GPU0 ")
    assert "when a prompt fills a micro-batch" in message


def test_what_lacks_at_the_start_is_named_and_no_rate_of_what_never_runs_is_told() -> None:
    """A prompt cache that main memory has no room for is not what stops a Mac whose working set is passed."""
    command = ["llama-server", "-m", "example:mixtral-8x7b-q4_k_m", "-ngl", "99", "-c", "8192"]
    found = autofit.check(command, autofit.load_machine("m2-max", ram="32GB"))
    message = next(finding.message for finding in found.findings if finding.code == "does-not-fit")
    limit = found.memory.pools[0].limits[0]
    assert f"does not fit: {limit.id} {limit.name} needs" in message
    assert f"({limit.used_bytes - limit.limit_bytes} bytes)" in message
    assert found.speed is None
    card = autofit.check(command, autofit.load_machine("rtx-3090", ram="64GiB"))
    message = next(finding.message for finding in card.findings if finding.code == "does-not-fit")
    pool = card.memory.pool("GPU0")
    assert f"({pool.shortfall_bytes} bytes) more" in message
    assert message.endswith("of it to start")
