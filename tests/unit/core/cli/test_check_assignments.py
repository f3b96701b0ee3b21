"""`autofit check` on commands as shells and autofit itself write them: variables first, and what is no command."""

from __future__ import annotations

import shlex
from pathlib import Path

import autofit
import pytest
from autofit.cli.main import main
from autofit.inputs import split_assignments

import support
from support.safetensor_files import write_model

CARD = autofit.load_machine("rtx-3090", ram="64GiB")
TINY = str(support.TINY)
ON = ("--on", "rtx-3090", "--ram", "64GiB")


def test_assignments_end_where_the_program_begins() -> None:
    assert split_assignments(["A=1", "B_2=x=y", "serve", "C=3"]) == ({"A": "1", "B_2": "x=y"}, ("serve", "C=3"))
    assert split_assignments(["env", "A="]) == ({"A": ""}, ())
    assert split_assignments(["./a=b/serve"]) == ({}, ("./a=b/serve",))


@pytest.mark.parametrize("first", [[], ["env"]])
def test_variables_before_the_program_count_and_stay(first: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command = [*first, "LLAMA_ARG_CTX_SIZE=512", "NOTE=a b", "llama-server", "-m", TINY]
    found = autofit.check(command, CARD, environ={"LLAMA_ARG_CTX_SIZE": "1024"})
    assert found.context_tokens == 512
    assert dict(found.env) == {"LLAMA_ARG_CTX_SIZE": "512", "NOTE": "a b"}
    assert main(["check", *ON, "-q", "--", *command]) == 0
    printed = shlex.split(capsys.readouterr().out)
    assert autofit.check(printed, CARD) == found


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["A=1"], "no command"),
        (["env", "-i"], "no command"),
        (["nice", "-n", "5"], "no command"),
        (["nice", "-n"], "a value is expected"),
        (["-ngl", "5"], "-ngl is not a program of any engine"),
        (["nice", "env", "CUDA_VISIBLE_DEVICES=1", "llama-server", "-m", TINY], "one card is described"),
        ([f"llama-server -m {TINY}"], "whole command in one argument"),
        (["CUDA_VISIBLE_DEVICES=GPU-1", "llama-server", "-m", TINY], "names no device"),
        (["ASCEND_VISIBLE_DEVICES=0", "llama-server", "-m", TINY], "not among those of --on"),
    ],
)
def test_what_is_no_command(command: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *ON, "--", *command]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("visible", "given"),
    [("1", ["GPU1"]), ("1,0", ["GPU1", "GPU0"]), ("0,-1,1", ["GPU0"]), ("", []), ("-1", [])],
)
@pytest.mark.parametrize("place", ["assigned", "launcher", "environ", "container"])
def test_described_cards_are_chosen_by_number(visible: str, given: list[str], place: str) -> None:
    """In any place that a variable is set, and with its neighbor that says the order."""
    variable = f"CUDA_VISIBLE_DEVICES={visible}"
    engine = ["llama-server", "-m", TINY, "-ngl", "99", "-ts", "1,1"]
    command = {
        "assigned": [variable, "CUDA_DEVICE_ORDER=PCI_BUS_ID", *engine],
        "launcher": ["nice", "env", variable, *engine],
        "environ": engine,
        "container": ["docker", "run", "--gpus", "all", "-e", variable, "-v", f"{TINY}:/m.gguf",
                      "ghcr.io/ggml-org/llama.cpp:server-cuda", "-m", "/m.gguf", *engine[3:]],
    }[place]  # fmt: skip
    environ = {"CUDA_VISIBLE_DEVICES": visible} if place == "environ" else None
    plan = autofit.check(command, on=["rtx-3090", "t4"], ram="64GiB", environ=environ)
    assert [pool.id for pool in plan.memory.pools if pool.id != "host"] == given


def test_vllm_sees_the_card_that_is_chosen(tmp_path: Path) -> None:
    vllm = ["vllm", "serve", str(write_model(tmp_path)), "--max-model-len", "128"]
    plan = autofit.check(["CUDA_VISIBLE_DEVICES=1", *vllm], on=["rtx-3090", "t4"], ram="64GiB")
    also = autofit.check(vllm, on=["rtx-3090", "t4"], ram="64GiB", environ={"CUDA_VISIBLE_DEVICES": "1"})
    assert [pool.id for pool in plan.memory.pools] == [pool.id for pool in also.memory.pools] == ["GPU1", "host"]


def test_devices_are_hidden_as_the_command_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("autofit.hardware.detect_machine", lambda env, **others: asked.append(env) or CARD)
    autofit.check(["CUDA_VISIBLE_DEVICES=1", "llama-server", "-m", TINY])
    assert main(["check", "-q", "--", "CUDA_VISIBLE_DEVICES=1", "llama-server", "-m", TINY]) == 0
    assert [env["CUDA_VISIBLE_DEVICES"] for env in asked] == ["1", "1"]


def test_launchers_stay_and_their_variables_count(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["nohup", "nice", "-n", "5", "env", "LLAMA_ARG_CTX_SIZE=512", "llama-server", "-m", TINY]
    found = autofit.check(command, CARD, environ={"LLAMA_ARG_CTX_SIZE": "1024"})
    assert (found.context_tokens, found.argv, dict(found.env)) == (512, tuple(command), {})
    cleared = autofit.check(["env", "-i", "llama-server", "-m", TINY], CARD, environ={"LLAMA_ARG_CTX_SIZE": "512"})
    assert cleared.context_tokens == autofit.check(["llama-server", "-m", TINY], CARD).context_tokens != 512
    assert main(["check", *ON, "-q", "--", *command]) == 0
    assert shlex.split(capsys.readouterr().out) == command


def test_the_directory_of_a_launcher(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir("/")
    command = ["env", "-C", str(support.TINY.parent), "llama-server", "-m", support.TINY.name]
    assert main(["check", *ON, "-q", "--", *command]) == 0
    assert shlex.split(capsys.readouterr().out) == command
