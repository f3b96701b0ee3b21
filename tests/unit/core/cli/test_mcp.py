"""`autofit mcp`, asked by the client of the package mcp; and what its tools answer by themselves."""

from __future__ import annotations

import json
import os
import shlex
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from autofit.cli.main import main
from autofit.cli.mcp import answered
from autofit.cli.tools import tools

from support import ROOT

jsonschema = pytest.importorskip("jsonschema")
TINY = "example:tiny"
ON = {"on": ["rtx-3090"], "ram": "64GiB"}
ENGINE = ["llama-server", "-m", TINY, "-ngl", "99", "-c", "512"]


def told(name: str, **given: Any) -> dict[str, Any]:
    found, text = answered(name, given)
    assert found is not None, text
    assert json.loads(text) == found
    return found


def test_a_plan_is_that_of_the_command_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nonexistent")
    words = ["--on", "rtx-3090", "--ram", "64GiB", "-c", "2k", "--format", "json", "-q", "--", "-np", "2"]
    assert main(["llama", TINY, *words]) == 0
    shown = json.loads(capsys.readouterr().out)
    asked = {"backend": "llama", "model": TINY, **ON, "context": "2k", "engine_args": ["-np", "2"]}
    whole = told("plan", **asked, details=True)
    assert {key: whole[key] for key in ("argv", "pools", "decisions")} == {
        key: shown[key] for key in ("argv", "pools", "decisions")
    }
    short = told("plan", **asked)
    assert short["argv"] == shown["argv"]
    assert shlex.split(short["command"]) == short["argv"]
    assert short["why_not"] is None
    assert "items" not in short["pools"][0]
    assert short["pools"][0]["used_bytes"] == shown["pools"][0]["used_bytes"]


@pytest.mark.slow
def test_what_does_not_fit_is_an_answer_with_the_reason() -> None:
    command = ["llama-server", "-m", "example:mixtral-8x22b-q4_k_m", "-ngl", "99", "-fit", "off"]
    found = told("check", command=command, **ON)
    assert (found["fits"], found["verdict"]) == (False, "does not fit")
    assert found["why_not"].startswith("does not fit: GPU0 NVIDIA GeForce RTX 3090 needs ")


def test_numbers_are_numbers_and_texts_texts() -> None:
    plan = {"backend": "llama", "model": TINY, **ON}
    assert told("plan", **plan, context=1024)["context_tokens"] == told("plan", **plan, context="1k")["context_tokens"]
    assert told("plan", **plan, parallel=2, margin="1GiB", device=["GPU0"])["fits"]


def test_a_file_and_hardware() -> None:
    assert told("inspect", model=str(ROOT / "autofit/_models/tiny.gguf"))["architecture"] == "llama"
    found = told("advise", model="example:llama-3.1-8b-q4_k_m", rows=2, budget="24GiB", context=8192)
    assert len(found["rows"]) == 2
    assert all(row["fits"] and row["memory_bytes"] <= 24 << 30 for row in found["rows"])


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("nothing", {}, "no tool 'nothing'"),
        ("plan", {}, "plan: 'backend' is a required property"),
        ("plan", {"backend": "x", "model": TINY}, "plan: backend: 'x' is not one of"),
        ("plan", {"backend": "llama", "model": 3}, "plan: model: 3 is not of type 'string'"),
        ("plan", {"backend": "llama", "model": ""}, "plan: model: '' should be non-empty"),
        ("plan", {"backend": "llama", "model": TINY, "force": True}, "('force' was unexpected)"),
        ("plan", {"backend": "llama", "model": TINY, "context": [1]}, "plan: context: [1] is not of type"),
        ("plan", {"backend": "llama", "model": TINY, "prefer": "x"}, "plan: prefer: 'x' is not one of"),
        ("plan", {"backend": "llama", "model": TINY, **ON, "context": "x"}, "not a token count: 'x'"),
        ("plan", {"backend": "llama", "model": TINY, "on": ["no-card"]}, "no-card"),
        ("plan", {"backend": "llama", "model": TINY, "ram": "64GiB"}, "ram goes with on"),
        ("plan", {"backend": "llama", "model": TINY, "on": ["rtx-3090"] * 65}, "plan: on: "),
        ("plan", {"backend": "vllm", "model": TINY, **ON}, "vLLM supports gguf only through the plugin"),
        ("inspect", {"model": "gone\x1b[2J.gguf"}, "gone\\x1b[2J.gguf: no such file or directory"),
        ("inspect", {"model": "x" * 5000}, "inspect: model: "),
        ("check", {"command": []}, "check: command: [] should be non-empty"),
        ("check", {"command": ["rm", "-rf", "/"], **ON}, "no backend understands the command 'rm'"),
        ("check", {"command": "llama-server", **ON}, "is not of type 'array'"),
        ("advise", {"model": TINY, "budget": "0"}, "no memory at all"),
        ("advise", {"model": TINY, "rows": 0}, "advise: rows: 0 is less than the minimum"),
        ("advise", {"model": TINY, "max_price": float("nan"), "rows": 1}, ""),
    ],
)
def test_what_makes_no_sense_is_said_in_one_sentence(name: str, given: Mapping[str, Any], said: str) -> None:
    found, text = answered(name, given)
    assert (found is None) == bool(said) or not said
    assert said in text
    assert len(text) < 100_000
    assert "\x1b" not in text


def test_every_schema_is_one_and_bounds_its_texts() -> None:
    def texts(schema: Any) -> list[dict[str, Any]]:
        kinds = schema.get("type", ())
        own = [schema] if kinds == "string" or (isinstance(kinds, list) and "string" in kinds) else []
        inner = [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]
        return own + [found for one in inner for found in texts(one)]

    for tool in tools():
        jsonschema.Draft202012Validator.check_schema(tool.schema)
        assert tool.schema["additionalProperties"] is False
        assert all("enum" in text or "maxLength" in text for text in texts(tool.schema))
        assert all(kind.get("maxItems") for kind in tool.schema["properties"].values() if kind.get("type") == "array")


def test_no_program_of_a_command_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("llama-server", "vllm", "docker"):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for on in ({}, ON):
        answered("check", {"command": [str(tmp_path / "llama-server"), *ENGINE[1:]], **on})
        answered("check", {"command": ENGINE, **on})
        answered("check", {"command": ["docker", "run", "ghcr.io/ggml-org/llama.cpp:server", *ENGINE[1:]], **on})
        answered("plan", {"backend": "llama", "model": TINY, **on})
        answered("advise", {"model": TINY, "rows": 1})
    assert not (tmp_path / "started").exists()


def test_without_the_package_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["mcp"]) == 2
    said = capsys.readouterr()
    assert (said.out, "pip install 'llm-autofit[mcp]'" in said.err) == ("", True)


def test_a_client_asks_over_stdin_and_stdout(tmp_path: Path) -> None:
    pytest.importorskip("mcp")
    import anyio
    from mcp import Client
    from mcp.client.stdio import StdioServerParameters

    async def ask() -> dict[str, Any]:
        server = StdioServerParameters(
            command=sys.executable,
            args=["-P", "-m", "autofit", "mcp"],
            env={"XDG_CONFIG_HOME": str(tmp_path)},
            cwd=tmp_path,
        )
        asked: dict[str, Any] = {}
        async with Client(server) as client:
            asked["tools"] = (await client.list_tools()).tools
            asked["check"] = await client.call_tool("check", {"command": ENGINE, **ON})
            asked["wrong"] = await client.call_tool("inspect", {"model": "gone.gguf"})
            asked["other"] = await client.call_tool("none", {})
            asked["after"] = await client.call_tool("inspect", {"model": TINY})
        return asked

    asked = anyio.run(ask)
    assert [tool.name for tool in asked["tools"]] == ["plan", "check", "inspect", "advise"]
    assert [tool.input_schema for tool in asked["tools"]] == [tool.schema for tool in tools()]
    assert all(tool.annotations.read_only_hint for tool in asked["tools"])
    assert asked["check"].structured_content["fits"] is True
    assert json.loads(asked["check"].content[0].text) == asked["check"].structured_content
    assert (asked["wrong"].is_error, asked["wrong"].structured_content) == (True, None)
    assert asked["wrong"].content[0].text.startswith("gone.gguf: no such file or directory\n`autofit models` lists ")
    assert asked["other"].is_error
    assert not asked["after"].is_error
