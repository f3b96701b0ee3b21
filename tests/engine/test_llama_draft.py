"""A draft head's own context, against the log of a real llama-server (`AUTOFIT_LLAMA_BIN`: the folder it is in)."""

from __future__ import annotations

import gzip
import json
import os
import re
import socket
import subprocess
import time
from pathlib import Path

import pytest
from autofit.domain.units import MIB, round_up

from autofit_llama.command.parse import settings_of
from autofit_llama.command.reading import read
from autofit_llama.launch.defaults import launch_of
from autofit_llama.model.context import Context
from autofit_llama.model.hparams import HParams
from autofit_llama.model.resolve import caches, resolve_context
from support import ggufs
from support.commands import model_of
from support.descriptors import DATA

BIN = Path(os.environ.get("AUTOFIT_LLAMA_BIN", "/nonexistent"))
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not (BIN / "llama-server").exists(), reason="AUTOFIT_LLAMA_BIN names no llama.cpp"),
]
COMMANDS = (
    "-c 4096 -np 2",
    "-c 3000 -np 3 -kvu -ctkd q8_0 -ctvd q8_0 --spec-draft-n-max 5 -fa on",
    "-c 8192 --swa-full -ub 256",
)


def write(path: Path, name: str) -> Path:
    lines = gzip.decompress((DATA / "tiny.jsonl.gz").read_bytes()).decode().splitlines()
    return ggufs.from_description(next(m for m in map(json.loads, lines) if m["name"] == name)).write(path)


def log_of(argv: list[str], seconds: float = 20.0) -> str:
    """What llama-server says until both contexts are made."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(BIN / "llama-server"), *argv, "--port", str(port), "--no-warmup", "-fit", "off", "-lv", "5"]
    said, until = "", time.monotonic() + seconds
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        assert server.stdout is not None
        for line in server.stdout:
            said += line
            if said.count("reserve took") == 2 or time.monotonic() > until:
                break
        server.kill()
    return said


def cache_mib(hp: HParams, context: Context) -> float:
    return sum(round_up(tensor.n_bytes, 32) for kept in caches(hp, context) for tensor in kept.tensors) / MIB


@pytest.mark.parametrize("name", ["qwen35-dense+draft", "glm4moe-moe+draft", "deepseek2-moe+draft", "hy_v3-moe+draft"])
def test_caches_of_both_contexts(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "model.gguf", name)
    _, hp = model_of("tiny", name)
    for command in COMMANDS:
        argv = ["-m", str(path), *command.split(), "--spec-type", "draft-mtp"]
        launch = launch_of(settings_of(read(argv)), "llama-server")
        assert launch.draft is not None
        main = resolve_context(hp, launch.context)
        draft = resolve_context(hp, launch.draft.context(launch.context, main))
        parts = log_of(argv).split("creating MTP draft context")
        assert len(parts) == 2, parts[0][-300:]
        for context, log in zip((main, draft), parts, strict=True):
            sizes = [float(size) for size in re.findall(r"(?:KV|RS) buffer size = +([\d.]+) MiB", log)]
            assert sum(sizes) == pytest.approx(cache_mib(hp, context), abs=0.011), (command, context.mtp)
            outputs = re.findall(r"n_outputs_max += +(\d+)", log)
            assert int(outputs[0]) == context.n_outputs_max
