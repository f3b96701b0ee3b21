"""A real llama-cpp-python: its server through `autofit run`, and keyword arguments for its class."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from autofit_llama.command.python_server import FIELDS
from autofit_llama.launch.defaults import PYTHONS
from support import ROOT, TINY

pytestmark = pytest.mark.engine

PYTHON = os.environ.get("AUTOFIT_LLAMA_PYTHON", "")
if not PYTHON:
    pytest.skip("AUTOFIT_LLAMA_PYTHON names no Python with it (.ci/llama-python.sh makes one)", allow_module_level=True)

START_S = 120
_READ_SETTINGS = """
import json
from llama_cpp.server.settings import ModelSettings, Settings
defaults = {name: field.default for name, field in ModelSettings.model_fields.items() if name != "model"}
print(json.dumps([list(Settings.model_fields), defaults]))
"""
_TUNE = """
import sys
import autofit
from llama_cpp import Llama
found = autofit.tune(Llama, sys.argv[1], context=sys.argv[2])
llama = Llama(**found, verbose=True)
assert llama.n_ctx() == found["n_ctx"], found
text = llama.create_completion("hello " * 20, max_tokens=4)["choices"][0]["text"]
print(len(text) > 0, found["n_ctx"])
"""


def environ_of(folder: Path) -> dict[str, str]:
    (folder / "runtime").mkdir(mode=0o700)
    path = f"{Path(PYTHON).parent}:/usr/bin:/bin"
    return {"PATH": path, "HOME": str(folder), "XDG_RUNTIME_DIR": str(folder / "runtime")}


def test_its_settings_are_those_that_are_known() -> None:
    said = subprocess.run([PYTHON, "-c", _READ_SETTINGS], capture_output=True, text=True, check=True)
    names, defaults = json.loads(said.stdout)
    assert set(names) | {"config_file"} == set(FIELDS)
    own = PYTHONS["llama_cpp.server"]
    given = (own.n_ctx, own.n_batch, own.n_ubatch, own.n_gpu_layers, own.logits_all)
    assert given == tuple(defaults[name] for name in ("n_ctx", "n_batch", "n_ubatch", "n_gpu_layers", "logits_all"))
    assert (own.load_mode, own.flash_attn) == ("mmap+mlock", "off")
    assert (defaults["use_mmap"], defaults["use_mlock"], defaults["flash_attn"]) == (True, True, False)


def test_its_server_is_filled_in_and_takes_what_was_predicted(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [PYTHON, "-m", "llama_cpp.server", "--model", str(TINY), "--port", str(port)]
    own = [sys.executable, "-P", "-m", "autofit", "run", "--watch", "-c", "1k", "--", *command]
    log = tmp_path / "log"
    body = json.dumps({"prompt": "hello", "max_tokens": 4, "logprobs": 1}).encode()
    question = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", data=body, headers={"Content-Type": "application/json"}
    )
    with log.open("wb") as out, subprocess.Popen(own, env=environ_of(tmp_path), stdout=out, stderr=out) as process:
        try:
            until = time.monotonic() + START_S
            while "autofit: ready after" not in log.read_text():
                assert time.monotonic() < until and process.poll() is None, log.read_text()[-3000:]
                time.sleep(0.1)
            with urllib.request.urlopen(question, timeout=120) as answer:
                choice = json.loads(answer.read())["choices"][0]
            assert choice["logprobs"]["token_logprobs"]  # which needs --logits_all
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        finally:
            process.kill()
    text = log.read_text()
    assert "autofit: adds --n_ctx 1024 --flash_attn true" in text
    assert "llama-cpp-python 0.3.36 is installed beside" in text
    assert "autofit: reported as predicted: " in text and not re.search(r"autofit: .* reported, ", text), text


def test_it_holds_one_model_of_a_file_at_a_time(tmp_path: Path) -> None:
    """The first at the start, another in its place when it is asked for; variables count for what the file leaves
    open. Its own lines of each KV cache are those that are checked for that line of the file."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    models = [{"model": str(TINY), "model_alias": f"m{n}", "n_ctx": n, "verbose": True} for n in (512, 2048)]
    config = tmp_path / "models.json"
    config.write_text(json.dumps({"port": port, "models": models}, indent=1))
    command = [PYTHON, "-m", "llama_cpp.server", "--config_file", str(config)]
    environ = {**environ_of(tmp_path), "N_BATCH": "256"}
    autofit = [sys.executable, "-P", "-m", "autofit"]
    checked = subprocess.run(
        [*autofit, "check", "--format", "json", "--", *command], env=environ, capture_output=True, text=True
    )
    plans = [one["plan"] for one in json.loads(checked.stdout)["commands"]]
    caches = [sum(pool["cache_bytes"] for pool in plan["pools"]) for plan in plans]
    assert checked.returncode == 0 and caches[0] < caches[1]
    log = tmp_path / "log"
    with (
        log.open("wb") as out,
        subprocess.Popen([*autofit, "run", "--", *command], env=environ, stdout=out, stderr=out) as process,
    ):
        try:
            for alias in ("m512", "m2048", "m512"):
                body = json.dumps({"prompt": "hello", "max_tokens": 2, "model": alias}).encode()
                question = urllib.request.Request(
                    f"http://127.0.0.1:{port}/v1/completions", data=body, headers={"Content-Type": "application/json"}
                )
                until = time.monotonic() + START_S
                while True:
                    try:
                        with urllib.request.urlopen(question, timeout=120) as answer:
                            assert json.loads(answer.read())["choices"]
                        break
                    except OSError:
                        assert time.monotonic() < until and process.poll() is None, log.read_text()[-3000:]
                        time.sleep(0.2)
        finally:
            process.kill()
    text = log.read_text()
    assert re.findall(r"n_batch +[=:] (\d+)", text) == ["256"] * 3, text
    said = [float(n) * 2**20 for n in re.findall(r"KV buffer size = +([0-9.]+) MiB", text)]
    assert said == [caches[0], caches[1], caches[0]]


@pytest.mark.parametrize("context", ["1k", "4k"])
def test_its_class_takes_what_tune_returns(context: str, tmp_path: Path) -> None:
    environ = {**environ_of(tmp_path), "PYTHONPATH": f"{ROOT}:{ROOT / 'plugins'}"}
    done = subprocess.run(
        [PYTHON, "-c", _TUNE, str(TINY), context], env=environ, capture_output=True, text=True, timeout=START_S
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["True", str(1024 * int(context[0]))]
