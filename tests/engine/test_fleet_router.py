"""A real llama-server as a router reads the presets of a fleet, and loads its first set with the flags of each."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import autofit
import pytest
from autofit.host import host, resolve

from support import TINY
from support.dryrun import VARIABLE, engine_folder

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(engine_folder() is None, reason=f"{VARIABLE} names no llama.cpp"),
]


def models(port: int) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/models", timeout=10) as answer:
        return {one["id"]: one for one in json.load(answer)["data"]}


def test_a_router_takes_the_presets_of_a_fleet(tmp_path: Path) -> None:
    rows = [{"name": f"m{n}", "model": str(TINY), "context": str(n * 512)} for n in (1, 2, 3)]
    plan = autofit.fleet({"model": rows}, autofit.load_machine("cpu", ram="64GiB"), settings=None)
    ((path, text),) = resolve(host().renderers()["llama-presets"].fleet)(plan)
    (tmp_path / path).write_text(text)
    assert "--models-max 3" in text
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = f"{engine_folder()}/llama-server"
    words = [program, "--models-preset", path, "--models-max", "3", "--port", str(port)]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(words, cwd=tmp_path, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 120
        while time.monotonic() < end and server.poll() is None:
            try:
                found = models(port)
            except OSError:
                time.sleep(0.2)
                continue
            if len(found) == 3 and all(one["status"]["value"] == "loaded" for one in found.values()):
                break
            time.sleep(0.2)
        else:
            pytest.fail((tmp_path / "log").read_text(errors="replace")[-2000:])
        assert {name: one["meta"]["n_ctx"] for name, one in found.items()} == {"m1": 512, "m2": 1024, "m3": 1536}
    finally:
        server.terminate()
        server.wait(timeout=60)
