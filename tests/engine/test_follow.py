"""Rows as tools/follow records them, asked of the reference build: the recorded ones, and exact."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from autofit_llama.engine.versions import REFERENCE
from support import ROOT
from support.dryrun import engine_folder
from support.llama_versions import FOLDER

pytestmark = [pytest.mark.engine, pytest.mark.skipif(engine_folder() is None, reason="no engine is built")]
N_CASES = 12


@pytest.fixture(scope="module")
def recording() -> Iterator[ModuleType]:
    sys.path.insert(0, str(ROOT / "tools"))
    yield importlib.import_module("follow.recording")
    sys.path.remove(str(ROOT / "tools"))


def test_the_reference_says_today_what_is_recorded(recording: ModuleType, tmp_path: Path) -> None:
    folder = engine_folder()
    assert folder is not None
    rows = recording.load(FOLDER / f"rows-b{REFERENCE}.jsonl.gz")
    some = [row for row in rows if row["file"].startswith("tiny/")][:: len(rows) // N_CASES]
    assert some
    case = importlib.import_module("follow.cases").Case
    asked = [
        case(row["file"], row["arch"], row["program"], tuple(row["args"]), tuple(row["device_memory_mib"]))
        for row in some
    ]
    made = recording.record(folder, tmp_path, asked)
    keys = ("devices", "host_all", "n_ctx", "n_ctx_seq")
    assert [[row.get(key) for key in keys] for row in made] == [[row.get(key) for key in keys] for row in some]
