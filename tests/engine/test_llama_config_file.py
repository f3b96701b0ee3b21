"""Settings files as a real llama.cpp reads them (`AUTOFIT_LLAMA_BIN`: the folder it is in)."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import autofit
import pytest
from autofit.errors import UsageError

from autofit_llama.command.parse import settings_of
from autofit_llama.command.reading import read
from autofit_llama.launch.defaults import launch_of
from autofit_llama.memory.estimate import size
from autofit_llama.model.resolve import resolve_context
from support import TINY

BIN = Path(os.environ.get("AUTOFIT_LLAMA_BIN", "/nonexistent"))
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not (BIN / "llama-completion").exists(), reason="AUTOFIT_LLAMA_BIN names no llama.cpp"),
]
FILES = (
    "c = 1024\nub = 64\n",
    "c = 1024\nctx-size = 2048 ; words\n",
    "ctx-size = 512\nLLAMA_ARG_CTX_SIZE = 1024\n",
    "c = 1024\n[default]\nb = 256\n",
    "c = 1024\n[*]\nc = 2048\nb = 512\n",
    "[default ]\nc = 1024\n[x]\nb = 64\n",
    "c=1024#words\r\nub=128\rb=256\n",
    "no-kv-offload = off\nc = 512\n",
    "LLAMA_ARG_NO_KV_OFFLOAD = 1\nc = 512\n",
    "flash-attn = off\nctx_size = 512\nversion = 3\n",
    "alias = [a] = b\nc = 512",
    "c 1024\n",
    " c = 1024\n",
    "[]\nc = 1024\n",
    "[a] c = 1024\n",
    "c = many\n",
    "c =\n",
    "control-vector-layer-range = 1 2\n",
)


@pytest.mark.parametrize("text", FILES)
def test_a_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "llama.cpp/config.ini"
    path.parent.mkdir()
    path.write_bytes(text.encode())
    environ = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path)}
    argv = ["-m", str(TINY), "-fit", "off", "-no-cnv", "-n", "1", "-p", "hi", "-lv", "5"]
    command = [str(BIN / "llama-completion"), *argv]
    done = subprocess.run(command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    log = (done.stdout + done.stderr).decode(errors="replace")
    try:
        settings = settings_of(read(["llama-completion", *argv], {str(path): text}))
    except UsageError:
        assert done.returncode != 0
        return
    assert done.returncode == 0, log[-500:]
    context = resolve_context(size(autofit.read_model(TINY)).hparams, launch_of(settings, "llama-completion").context)
    for name in ("n_ctx", "n_batch", "n_ubatch"):
        found = re.search(rf"llama_context: {name} += (\d+)", log)
        assert found is not None
        assert int(found[1]) == getattr(context, name), name
    kept = re.search(r"offload_kqv += (\w+)", log)
    assert kept is None or (kept[1] in ("true", "1")) == context.offload_kqv
