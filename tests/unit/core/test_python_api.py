"""The Python functions as people call them: values of other types, and what goes without saying."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import autofit
import pytest
from autofit.domain.machine import Host, Machine
from autofit.errors import ModelNotFoundError, UsageError

MIXTRAL, TINY = "example:mixtral-8x7b-q4_k_m", "example:tiny"
CARD = autofit.load_machine("rtx-3090", ram="64GiB")


def test_wishes_name_the_hardware_too() -> None:
    found = autofit.plan("llama", TINY, on="rtx-3090", ram="64GiB")
    assert found == autofit.plan("llama", TINY, CARD)


@pytest.mark.parametrize("wish", [{"on": "rtx-4090"}, {"ram": "8GiB"}])
def test_a_machine_and_a_wish_for_another(wish: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="got a machine"):
        autofit.plan("llama", TINY, CARD, **wish)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"margin": "1GiB,2GiB"}, {"margin": ["1GiB", "2GiB"]}),
        ({"margin": "1GiB"}, {"margin": 1 << 30}),
        ({"device": ["GPU0"]}, {"device": "GPU0"}),
        ({"context": "8k"}, {"context": 8192}),
    ],
)
def test_values_as_well_as_text(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert autofit.plan("llama", TINY, CARD, **one) == autofit.plan("llama", TINY, CARD, **other)


def test_arguments_may_be_numbers_and_paths(tmp_path: Path) -> None:
    assert "5" in autofit.plan("llama", TINY, CARD, engine_args=["-ngl", 5]).argv
    assert autofit.check(["llama-server", "-m", TINY, "-ngl", 2], CARD).fits
    with pytest.raises(ModelNotFoundError):
        autofit.plan("llama", TINY, CARD, engine_args=["--mmproj", tmp_path / "none.gguf"])


@pytest.mark.parametrize("call", [
    lambda: autofit.plan("llama", TINY, CARD, engine_args="-ngl 5"),
    lambda: autofit.check("llama-server -m x.gguf", CARD),
])  # fmt: skip
def test_one_text_is_no_list(call: Any) -> None:
    with pytest.raises(UsageError, match="a list of arguments"):
        call()


@pytest.mark.parametrize("machine", ["rtx-3090", {}])
def test_what_is_no_machine(machine: Any) -> None:
    with pytest.raises(UsageError, match="a machine is needed"):
        autofit.plan("llama", TINY, machine)


def test_margins_and_devices_of_a_check_as_text() -> None:
    command = ["llama-server", "-m", TINY]
    assert not autofit.check(command, CARD, margin="23.5GiB").fits
    assert autofit.check(command, CARD, device="GPU0").fits


def test_a_draft_model_in_the_arguments_is_counted() -> None:
    alone = autofit.plan("llama", MIXTRAL, CARD, engine_args=["-c", 4096])
    both = autofit.plan("llama", autofit.read_model(MIXTRAL), CARD, engine_args=["-c", 4096, "-md", TINY])
    items = {item.label for pool in both.memory.pools for item in pool.items}
    assert "draft model" in items
    assert "draft model" not in {item.label for pool in alone.memory.pools for item in pool.items}


def test_unknown_main_memory_is_said() -> None:
    nobody_knows = Machine(host=Host(total_bytes=None, available_bytes=None))
    found = autofit.plan("llama", TINY, nobody_knows)
    assert "unknown-memory" in {finding.code for finding in found.findings}
    known = replace(nobody_knows, host=Host(total_bytes=1 << 36, available_bytes=1 << 36))
    assert "unknown-memory" not in {finding.code for finding in autofit.plan("llama", TINY, known).findings}


def test_threads_do_not_disturb_each_other() -> None:
    machines = [CARD, autofit.load_machine("rtx-3060-12gb", "t4", ram="64GiB")]
    model = autofit.read_model(TINY)
    alone = [autofit.plan("llama", model, machine).argv for machine in machines]
    found: list[tuple[int, tuple[str, ...]]] = []

    def work(i: int) -> None:
        found.append((i, autofit.plan("llama", model, machines[i % 2]).argv))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [(i, alone[i % 2]) for i in range(8)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: autofit.load_machine(5), "load_machine() takes a name or a path, not int"),
        (lambda: autofit.load_machine("rtx-3090", ram=1.5), "ram is text or bytes, not 1.5"),
        (lambda: autofit.load_machine("rtx-3090", ram=True), "ram is text or bytes, not True"),
        (lambda: autofit.load_machine("rtx-3090", ram=["64GiB"]), "ram is text or bytes, not ['64GiB']"),
        (lambda: autofit.read_model(None), "read_model() takes a name or a path, not NoneType"),
        (lambda: autofit.plan(5, TINY, CARD), "plan() takes a backend's name first, not int"),
        (lambda: autofit.plan("llama", 5, CARD), "plan() takes a name or a path, not int"),
        (lambda: autofit.plan("llama", TINY, CARD, engine_args=5), "engine_args takes a list of arguments, not int"),
        (lambda: autofit.plan("llama", TINY, CARD, context=True), "--context: "),
        (lambda: autofit.plan("llama", TINY, CARD, context=1.5), "--context: "),
        (lambda: autofit.plan("llama", TINY, CARD, parallel=0), "--parallel: not a count: '0'"),
        (lambda: autofit.plan("llama", TINY, CARD, margin=-1), "--margin: "),
        (lambda: autofit.plan("llama", TINY, CARD, device=7), "no device '7' here"),
        (lambda: autofit.check(None, CARD), "check() takes a list of arguments, not NoneType"),
        (lambda: autofit.check(["llama-server", "-m", TINY], CARD, margin="x"), "--margin: "),
        (lambda: autofit.check(["llama-server", "-m", TINY], CARD, margin=True), "--margin: "),
        (lambda: autofit.check(["llama-server", "-m", TINY], CARD, device=9), "no device '9' here"),
        (lambda: autofit.check(["llama-server", "-m", TINY], CARD, environ="A=1"), "environ is a mapping"),
        (lambda: autofit.check(["llama-server"], CARD, model=3), "read_model() takes a name or a path, not int"),
    ],
)
def test_values_of_the_wrong_kind(call: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    assert message in caught.value.message


def test_a_check_takes_values_as_a_plan_does() -> None:
    command = ["llama-server", "-m", TINY, "-ngl", "99"]
    one = autofit.check(command, CARD, margin="1GiB", device="GPU0")
    assert autofit.check(command, CARD, margin=1 << 30, device=["GPU0"]) == one
    assert autofit.check(command, CARD, margin=["1GiB"], device=0, model=TINY) == one
    assert autofit.check(command, CARD, margin=None, device=None) == autofit.check(command, CARD)


def test_what_the_machine_s_sources_said_stands_beside_the_plan() -> None:
    machine = replace(CARD, findings=("NVIDIA: no answer within 0.3 s",))
    for found in (autofit.plan("llama", TINY, machine), autofit.check(["llama-server", "-m", TINY], machine)):
        assert [f.message for f in found.findings if f.code == "machine"] == list(machine.findings)


def test_more_main_memory_than_there_is_is_told_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autofit.machines.detect_machine", lambda environ: CARD)
    with pytest.raises(UsageError, match=r"--ram 65\.00 GiB is more than the 62\.00 GiB available here"):
        autofit.plan("llama", TINY, ram="65GiB")


def test_a_pool_that_is_not_there_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="GPU7"):
        autofit.plan("llama", TINY, CARD).memory.pool("GPU7")
