"""Other builds of llama.cpp: what their own dry runs say, against `check` with their build number."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from support.llama_versions import FOLDER, KINDS, Row, build_of, files, judge, rows_of

N_PER_BUILD = 16


def sample(path: Path) -> Sequence[Row]:
    """Some rows of every build; tools/accuracy/llama_versions.py judges all."""
    rows = list(rows_of(path))
    return random.Random(20261129).sample(rows, min(N_PER_BUILD, len(rows)))


@pytest.mark.slow_but("rows-b7698", "rows-b9294", "rows-b11549")
@pytest.mark.parametrize("path", files(), ids=lambda path: path.name.partition(".")[0])
def test_builds_allocate_what_is_said(path: Path) -> None:
    build = int(re.findall(r"\d+", path.name)[-1])
    judged = [(row, judge(row, build)) for row in sample(path) if "devices" in row]
    for row, one in judged:
        assert {"model", "context"} <= set(one.exact), (row, one.what)
        assert not one.is_low, (row, one.what)
    assert sum(one.exact == KINDS or one.is_near for _, one in judged) >= 0.99 * len(judged)


def test_files_in_a_layout_that_came_later_are_refused() -> None:
    rows = [row for row in rows_of(FOLDER / "rows-b7698.jsonl.gz") if row["arch"] == "qwen3next"]
    refused = [row for row in rows if "ssm_in" in row.get("error", "")]
    assert len(refused) > 5
    for row in rows:
        assert judge(row, 7698).refused_here == (row in refused), row


@pytest.mark.slow_cases("11549-qwen3next")
@pytest.mark.parametrize(
    ("build", "arch"),
    [
        (7698, "lfm2"),
        (7698, "openelm"),
        (8121, "kimi-linear"),
        (8390, "glm-dsa"),
        (8929, "deepseek2"),
        (9294, "granitemoe"),
        (9538, "granitemoe"),
        (9842, "deepseek32"),
        (10068, "kimi-linear"),
        (11434, "cohere2moe"),
        (11549, "bailingmoe3"),
        (11549, "cohere2moe"),
        (11549, "qwen3next"),
        (11549, "qwen4exp"),
        (11549, "clef"),
        (11549, "gemma-embedding2"),
        (11549, "k2-horizon"),
    ],
)
def test_rules_that_few_models_follow(build: int, arch: str) -> None:
    rows = [row for row in rows_of(FOLDER / f"rows-b{build}.jsonl.gz") if row["arch"] == arch and "devices" in row]
    assert rows
    for row in rows:
        one = judge(row, build)
        assert one.exact == KINDS, (row, one.what)


@pytest.mark.slow
def test_caches_of_experts_are_what_b11549_makes_them() -> None:
    rows = [row for row in rows_of(FOLDER / "rows-b11549.jsonl.gz") if "--moe-cache-mib" in row["args"]]
    assert len(rows) > 10
    for row in rows:
        one = judge(row, 11549)
        assert one.is_exact, (row, one.what)


def test_files_that_a_build_refuses_are_refused() -> None:
    """Lists, shapes and weights of files that came later; a build between two may read them."""
    kinds = ("has wrong array length", "has wrong shape", "missing tensor 'blk.2.layer_output_norm")
    found = 0
    for path in files():
        build = build_of(path)
        rows = [row for row in rows_of(path) if row["arch"] in ("cohere2moe", "deepseek4", "mimo2", "qwen4exp")]
        for row in rows:
            later = any(kind in row.get("error", "") for kind in kinds)
            found += later
            if later or row["file"].startswith("tiny/"):
                assert judge(row, build).refused_here == ("devices" not in row), (build, row)
    assert found > 10


@pytest.mark.parametrize("build", [9538, 10605, 10852])
def test_delta_nets_that_lie_elsewhere_than_their_blocks(build: int) -> None:
    """Sixteen tokens of each of four sequences run on the GPU also where the block does not lie: in chunks, once."""
    (row,) = (row for row in rows_of(FOLDER / f"rows-b{build}.jsonl.gz") if row["id"] == "a385e844965a")
    assert row["program"] == "llama-server"
    assert judge(row, build).exact == KINDS
