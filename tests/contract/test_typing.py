"""What a type checker says of programs that use autofit: right ones pass, a misspelled option is an error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT

RIGHT = """
import autofit

class Llama:
    def __init__(self, model_path: str, n_ctx: int = 512, n_gpu_layers: int = 0, **more: object) -> None: ...

plan = autofit.plan("llama", "example:tiny", on="rtx-3090", context="32k", margin=1 << 30, settings=None)
Llama(**plan.kwargs)
report = autofit.check(["llama-server", "-m", "m.gguf"], device=0, margin=["1GiB"], available_kv_bytes=1)
options: autofit.Surroundings = autofit.Surroundings(environ={})
try:
    autofit.plan("llama", "m.gguf", settings=options)
except (autofit.UsageError, autofit.ModelError, autofit.PluginError, autofit.HardwareError) as error:
    print(error.hint)
"""
WRONG = """
import autofit

autofit.plan("llama", "m.gguf", contxt="32k")
autofit.check(["llama-server"], contxt=1)
autofit.plan("llama", "m.gguf", parallel=[1])
autofit.plan("llama", 5)
"""


@pytest.mark.slow
def test_options_are_checked(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "right.py").write_text(RIGHT, encoding="utf-8")
    (tmp_path / "wrong.py").write_text(WRONG, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--cache-dir", str(tmp_path / "cache")]
    paths = {"MYPYPATH": f"{ROOT}:{ROOT / 'plugins'}", "PATH": ""}
    done = subprocess.run(
        [*command, "right.py", "wrong.py"],
        cwd=tmp_path,
        env=paths,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    errors = [
        line for line in done.stdout.splitlines() if line.startswith(("right.py", "wrong.py")) and "error:" in line
    ]
    assert [line.partition(": ")[0] for line in errors] == [f"wrong.py:{n}" for n in (4, 5, 6, 7)]
