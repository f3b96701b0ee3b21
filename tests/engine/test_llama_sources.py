"""The index of cited definitions is that of the source that the engine tests build."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT

BIN = Path(os.environ.get("AUTOFIT_LLAMA_BIN", "/nonexistent"))
TREES = sorted(BIN.parent.glob("llama_cpp_python-*/vendor/llama.cpp"))
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not TREES, reason="AUTOFIT_LLAMA_BIN does not lie beside llama.cpp's source"),
]


def test_nothing_cited_differs() -> None:
    argv = [sys.executable, "tools/check_sources.py", "llama", str(TREES[-1])]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 changed, 0 gone, " in done.stdout


def test_the_tensors_asked_for_are_those_of_the_source() -> None:
    argv = [sys.executable, "tools/gen/llama_tensors.py", str(TREES[-1]), "--check"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
