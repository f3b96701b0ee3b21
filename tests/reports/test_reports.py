"""Reports that people sent (`autofit report`) are cases: the same command takes the same bytes today.

A file of an issue is put here as it came. Where a figure moves on purpose, `tools/accuracy/reports.py --update FILE`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from autofit.reports.report import figures, read_report, replay

FILES = sorted(Path(__file__).parent.glob("*.json.gz"))


def test_there_are_reports_of_both_engines() -> None:
    assert {read_report(path)["backend"] for path in FILES} >= {"llama", "vllm"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name.removesuffix(".json.gz"))
def test_a_report_says_today_what_it_said_then(path: Path) -> None:
    report = read_report(path)
    assert report["replays"]
    assert figures(replay(report)) == figures(report["answer"])
