"""What docs/fleet.md says of the growth of fleets, planned anew: the same places, within time and memory."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from support import ROOT

PAGE = (ROOT / "docs/fleet.md").read_text(encoding="utf-8")
ROWS = [
    (int(models), int(devices), float(seconds), int(mib), int(places.replace(",", "")), proof)
    for models, devices, seconds, mib, places, proof in re.findall(
        r"^\| (\d+) \| (\d+) \| ([\d.]+) \| (\d+) \| ([\d,]+) \| (\w+) \|$", PAGE, re.MULTILINE
    )
]
MOST_SECONDS, MOST_MIB = 10.0, 500  #: of any row


@pytest.mark.parametrize(
    "row", [pytest.param(row, marks=() if row[0] <= 12 else pytest.mark.slow) for row in ROWS], ids=str
)
def test_the_growth_that_the_page_says(row: tuple[int, int, float, int, int, str]) -> None:
    models, devices, seconds, mib, places, proof = row
    words = [sys.executable, "bench/fleet.py", "--one", "whole", str(models), str(devices)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    found = json.loads(done.stdout)
    assert (found["n_tried"], found["proof"]) == (places, proof)
    assert found["seconds"] < min(MOST_SECONDS, 10 * seconds)
    assert found["mib"] < min(MOST_MIB, 3 * mib)


def test_the_page_has_the_whole_range() -> None:
    assert [row[:2] for row in ROWS][:: len(ROWS) - 1] == [(1, 1), (500, 1000)]
