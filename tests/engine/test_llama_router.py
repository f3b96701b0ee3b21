"""`--format llama-presets`, and `check -- llama-server --models-preset`: the same commands that a real router has."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from autofit.cli.main import main

from autofit_llama.command.parse import runs_of
from autofit_llama.command.reading import read
from support import ROOT

BIN = os.environ.get("AUTOFIT_LLAMA_BIN", "")
pytestmark = [pytest.mark.engine, pytest.mark.skipif(not BIN, reason="needs AUTOFIT_LLAMA_BIN")]
ON = ("--on", "rtx-3090", "--ram", "64GiB")


def asked_router(folder: Path, *words: str) -> dict[str, list[str]]:
    """The arguments of each model that the router would start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [f"{BIN}/llama-server", *words, "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as router:
        try:
            last = time.monotonic() + 120
            while True:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=10) as answer:
                        found = json.load(answer)
                    return {one["id"]: one["status"]["args"] for one in found["data"] if one["source"] == "preset"}
                except (OSError, ValueError):
                    assert router.poll() is None, "the router ended"
                    assert time.monotonic() < last
                    time.sleep(0.2)
        finally:
            router.terminate()


def settings_of(argv: Sequence[str]) -> Any:
    """What a command sets, but for what the router sets itself."""
    words = list(argv)
    for flag in ("--host", "--port", "--alias"):
        if flag in words:
            at = words.index(flag)
            del words[at : at + 2]
    return runs_of(read(["llama-server", *words[1:]]))[0]


@pytest.mark.parametrize("own", [(), ("-ngl", "0", "-ctk", "q4_0", "-lm", "none")])
def test_a_router_starts_what_was_planned_and_checked(
    own: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(ROOT / "autofit/_models/tiny.gguf", "one model.gguf")
    engine = ("--", "--no-kv-offload", "-ctk", "q8_0", "-fa", "on", "--port", "9000")
    assert main(["llama", "one model.gguf", *ON, "-q", "--format", "llama-presets", *engine]) == 0
    section = capsys.readouterr().out
    Path("models.ini").write_text(
        f"version = 1\n[*]\nthreads = 2\n\n{section}\n[two]\nmodel = one model.gguf\nc = 512\n"
    )
    command = ("llama-server", "--models-preset", "models.ini", *own)
    assert main(["check", *ON, "--format", "json", "--", *command]) == 0
    checked = [one["argv"] for one in json.loads(capsys.readouterr().out)["commands"]]
    started = asked_router(tmp_path, *command[1:])
    assert sorted(started) == ["one-model", "two"]
    assert settings_of(checked[0]) == settings_of(started["one-model"])
    assert settings_of(checked[1]) == settings_of(started["two"])
