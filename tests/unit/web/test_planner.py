"""What the page asks of Python, beside the command line."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from autofit.cli.main import main

from support import ROOT, ggufs

spec = importlib.util.spec_from_file_location("planner", ROOT / "web" / "planner.py")
assert spec is not None and spec.loader is not None
planner = importlib.util.module_from_spec(spec)
spec.loader.exec_module(planner)

MODEL = "example:llama-3.1-8b-q4_k_m"
ON = {"on": ["rtx-3090"], "ram": "64GiB"}
FLAGS = ["--on", "rtx-3090", "--ram", "64GiB"]


@pytest.fixture(autouse=True)
def nothing_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def ask(name: str, **request: Any) -> Any:
    return json.loads(planner.answer(json.dumps({"ask": name, **request})))


def plan(options: dict[str, Any] | None = None, **more: Any) -> Any:
    return ask("plan", backend="llama", model=MODEL, options={**ON, **(options or {})}, **more)


def test_a_plan_is_the_command_lines_to_the_byte(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan({"context": "16k", "parallel": "2"}, flags="--port 9000")
    words = ["llama", MODEL, *FLAGS, "-c", "16k", "--parallel", "2", "--format", "json", "-q", "--", "--port", "9000"]
    assert main(words) == 0
    assert capsys.readouterr().out == found["json"] + "\n"
    assert found["state"] == "full"
    assert found["verdict"].startswith("It fits at full speed: 16,384 tokens of context, about ")


@pytest.mark.parametrize("name", ["shell", "json", "nul", "systemd", "compose", "kubernetes", "kwargs", "toml"])
def test_formats_are_the_command_lines(name: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    found = ask("render", backend="llama", model=MODEL, options=ON, format=name)
    assert main(["llama", MODEL, *FLAGS, "--format", name, "-q"]) == 0
    end = "" if found["text"].endswith("\0") else "\n"
    assert capfdbinary.readouterr().out.decode() == found["text"] + end


def test_what_does_not_fit_says_so_and_has_no_command() -> None:
    options = {"on": ["generic-cuda:2GiB"], "ram": "3GiB"}
    found = ask("plan", backend="llama", model=MODEL, options=options)
    assert found["state"] == "no"
    assert found["verdict"].startswith("It does not fit: ")
    assert found["verdict"].count("fit") == 1
    assert ask("render", backend="llama", model=MODEL, options=options, format="shell") == {
        "text": "false",
        "fits": False,
    }


@pytest.mark.parametrize(
    ("request_", "message", "hint"),
    [
        ({"options": {**ON, "context": "many"}}, "--context: not a token count: 'many'", "write a positive number"),
        ({"options": {"on": ["rtx-309"]}}, "rtx-309", "rtx-3090"),
        ({"options": {}}, "no hardware is named", "rtx-3090"),
        ({"options": {**ON, "colour": "red"}}, "no option 'colour'", None),
        ({"options": ON, "flags": "--alias 'x"}, "flags: No closing quotation", "quotation mark"),
        ({"options": ON, "model": "gone.gguf"}, "gone.gguf: no such file or directory", None),
    ],
)
def test_errors_are_the_command_lines(request_: dict[str, Any], message: str, hint: str | None) -> None:
    error = ask("plan", **{"backend": "llama", "model": MODEL, **request_})["error"]
    assert message in error["message"]
    assert hint is None or hint in error["hint"]


def test_a_model_is_told_with_who_serves_it(tmp_path: Path) -> None:
    ggufs.write_llama(tmp_path / "model.gguf", n_expert=8)
    found = ask("model", model="model.gguf")
    assert found["backends"][0] == "llama"
    assert found["experts"] == 8
    assert found["dials"]["llama"][0]["most"] == found["layers"]


def test_points_leave_other_wishes_for_the_context_out() -> None:
    found = ask("point", backend="llama", model=MODEL, options={**ON, "min_context": "64k"}, context=8192)
    assert found["state"] == "full"
    assert [pool["id"] for pool in found["pools"]] == ["GPU0", "host"]
    assert found["decode"][1] <= found["decode"][0] <= found["decode"][2]


def test_a_column_of_quantizations_marks_the_one_to_take() -> None:
    rows = ask("quants", backend="llama", model=MODEL, options=ON)["rows"]
    assert sum(row["chosen"] for row in rows) == 1
    assert {row["state"] for row in rows} <= {"full", "ram", "no"}
    assert all(row["bytes"] > 0 for row in rows)


COMMAND = f"llama-server -m {MODEL} -ngl 99 -c 16384"


def test_a_command_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    found = ask("check", text=f"$ llama-server -m {MODEL} \\\n   -ngl 99 -c 16384\n", options=ON)
    assert found["kind"] == "command"
    assert main(["check", *FLAGS, "--format", "json", "-q", "--", *COMMAND.split()]) == 0
    assert capsys.readouterr().out == found["json"] + "\n"


def test_the_pages_model_stands_for_a_file_that_is_elsewhere() -> None:
    text = "llama-server -m /srv/models/big.gguf -ngl 99"
    assert "no such file" in ask("check", text=text, options=ON)["error"]["message"]
    found = ask("check", text=text, options=ON, model=MODEL)
    assert found["instead"] == MODEL
    assert json.loads(found["json"])["argv"] == text.split()


def test_a_log_is_explained() -> None:
    log = (
        "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9216.00 MiB on device 0: cudaMalloc failed: out of "
        "memory\nllama_kv_cache_init: failed to allocate buffer for kv cache\n"
    )
    found = ask("check", text=log, options=ON)
    assert found["kind"] == "log"
    assert found["failed"]
    assert any(line.startswith("cause: ") for line in found["words"])


def test_other_texts_are_no_log() -> None:
    assert "not one line of it is theirs" in ask("check", text="hello\nworld", options=ON)["error"]["message"]
