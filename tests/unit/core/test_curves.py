"""`autofit curve`: points that are plans, drawn to scale, within the width, and read back from SVG and JSON."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import autofit
import pytest
from autofit.cli.main import main
from autofit.curves import contexts, curve_of_command, curve_of_model
from autofit.domain.curve import Curve, timeline
from autofit.domain.memory import MemoryItem
from autofit.domain.values import replace
from autofit.render.picture import Terminal
from autofit.render.plot import over_time, plot, table
from autofit.render.svg import svg
from jsonschema import Draft202012Validator

from support import ROOT
from support.vllm_truth import DATA

LLAMA = "example:llama-3.1-8b-q4_k_m"
SMALL = {"on": ["rtx-3060-12gb"], "ram": "64GiB"}
CURVES: dict[str, Callable[[], Curve]] = {
    "llama": lambda: curve_of_model(LLAMA, SMALL, settings=None),
    "vllm": lambda: curve_of_model(
        str(DATA / "configs" / "llama3-70b"), {"on": ["4xa100-40gb"], "ram": "64GiB"}, settings=None
    ),
    "command": lambda: curve_of_command(
        ["llama-server", "-m", LLAMA, "-ngl", "99", "-fit", "off", "-np", "2"], settings=None, **SMALL
    ),
    "no fit": lambda: curve_of_model(
        "example:mixtral-8x22b-q4_k_m", {"on": ["rtx-3060-12gb"], "ram": "16GiB"}, settings=None
    ),
    "no rate": lambda: curve_of_model(LLAMA, {"on": ["generic-cuda:12GiB"]}, settings=None),
}


@cache
def drawn(name: str) -> Curve:
    return CURVES[name]()


@pytest.mark.parametrize(
    ("longest", "found"),
    [(131072, [4096, 8192, 16384, 32768, 65536, 131072]), (2048, [2048]), (1, [1]), (9000, [4500, 9000])],
)
def test_contexts(longest: int, found: list[int]) -> None:
    assert contexts(longest) == found
    assert len(contexts(1 << 40)) == 10


def test_each_point_is_the_plan_for_its_context() -> None:
    machine = autofit.load_machine("rtx-3060-12gb", ram="64GiB")
    for point in drawn("llama").points:
        plan = autofit.plan("llama", LLAMA, machine, settings=None, context=point.context_tokens)
        assert point.plan is not None and point.plan.argv == plan.argv
        assert point.plan.memory == plan.memory and point.plan.speed == plan.speed
    assert drawn("llama").chosen.argv in [point.plan and point.plan.argv for point in drawn("llama").points]
    assert [point.kv for point in drawn("llama").points][-2:] == ["q8_0", "q8_0"]


def test_a_command_keeps_its_flags() -> None:
    assert [point.context_tokens for point in drawn("command").points] == [2048, 4096, 8192, 16384, 32768, 65536]
    for point in drawn("command").points:
        assert point.plan is not None and {"-ngl", "99", "-np", "2"} <= set(point.plan.argv)
    assert [point.fits for point in drawn("command").points] == [True] * 4 + [False] * 2
    assert "are missing" in drawn("command").points[-1].because


@pytest.mark.parametrize("program", ["python -m llama_cpp.server --model", "llama-cli -m", "env A=1 llama-server -m"])
def test_programs_have_flags_of_their_own(program: str) -> None:
    curve = curve_of_command([*program.split(), LLAMA], settings=None, **SMALL)
    assert len([point for point in curve.points if point.plan is not None]) > 3


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("columns", [28, 40, 80, 200])
def test_no_line_is_wider_than_the_terminal(name: str, columns: int) -> None:
    for lines in (plot(drawn(name), Terminal(columns)), table(drawn(name), columns)):
        for line in lines:
            assert len(line) <= columns or max(map(len, line.split())) > columns - 6, line


def test_bars_are_to_scale_and_colors_can_be_left_out() -> None:
    rows = [line for line in plot(drawn("llama"), Terminal(80)) if re.match(r" +[\d,]+ \[", line)]
    n_points = len(drawn("llama").points)
    assert len(rows) == 3 * n_points
    filled = [len(row.partition("[")[2].partition("]")[0].rstrip()) for row in rows[:n_points]]
    used = [point.pools[0].used_bytes for point in drawn("llama").points]
    width = len(rows[0].partition("[")[2].partition("]")[0])
    for n, n_bytes in zip(filled, used, strict=True):
        assert abs(n - width * n_bytes / (drawn("llama").chosen.memory.pools[0].free_bytes or 0)) <= 2
    assert any("\x1b[38;5;" in line for line in plot(drawn("llama"), Terminal(80, has_color=True)))
    assert all(line.isascii() for line in plot(drawn("llama"), Terminal(80, has_blocks=False)))


def test_equal_cards_are_one() -> None:
    assert sum("GPU" in line and "free" in line for line in plot(drawn("vllm"), Terminal(100))) == 1


@pytest.mark.parametrize("name", CURVES)
def test_svg(name: str) -> None:
    text = svg(drawn(name))
    root = ET.fromstring(text)
    assert len(text) < 60_000
    assert not re.search(r"<script|<image|href=|url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text)
    space = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{space}title") is not None and root.find(f"{space}desc") is not None
    marks = root.findall(f".//{space}circle")
    if name == "llama":
        assert len(marks) == len(drawn("llama").points) * 4  # two pools, two rates
    left, top, width, height = map(float, root.attrib["viewBox"].split())
    for mark in marks:
        assert left <= float(mark.attrib["cx"]) <= width and top <= float(mark.attrib["cy"]) <= height


def test_contexts_near_each_other_do_not_write_over_each_other() -> None:
    near = replace(
        drawn("llama"),
        points=tuple(replace(drawn("llama").points[-1], context_tokens=n) for n in (4096, 16384, 16640, 32768)),
    )
    near = replace(near, chosen=replace(drawn("llama").chosen, context_tokens=16640))
    labels = [
        (float(label.attrib["x"]), label.text or "")
        for label in ET.fromstring(svg(near)).findall(".//{http://www.w3.org/2000/svg}text")
        if label.attrib["text-anchor"] == "middle"
    ]
    axis = sorted(set(labels))  # each panel has the same
    assert "16,640" in [text for _, text in axis] and "16k" not in [text for _, text in axis]
    assert all(b - a >= 4 * (len(left) + len(right)) for (a, left), (b, right) in pairwise(axis))


def test_names_of_files_do_nothing_in_a_picture() -> None:
    evil = replace(drawn("llama"), title="</svg><script>alert(1)</script>\x1b]0;x\x07 \u202e")
    text = svg(evil)
    assert "<script" not in text and "\x1b" not in text and "\u202e" not in text
    assert "\x1b" not in "\n".join(plot(evil, Terminal(80)))
    ET.fromstring(text)


@pytest.mark.parametrize("n_points", [0, 1])
def test_few_points(n_points: int) -> None:
    curve = replace(drawn("llama"), points=drawn("llama").points[:n_points])
    assert list(plot(curve, Terminal(80))) and list(table(curve))
    ET.fromstring(svg(curve))


def test_over_time() -> None:
    told = list(timeline(drawn("llama").chosen))
    (card, host) = drawn("llama").chosen.memory.pools
    assert told[0].what == "started"
    assert told[0].used_bytes == {"GPU0": card.start_bytes, "host": host.start_bytes}
    assert told[-1].used_bytes == {"GPU0": card.used_bytes, "host": host.used_bytes}
    assert "safe until token 56,064" in list(over_time(drawn("llama").chosen))[-1]
    grown = MemoryItem(kind="transient", n_bytes=1 << 40, basis="derived", label="x", when="an image is encoded")
    pool = replace(card, items=(*card.items, grown))
    short = replace(drawn("llama").chosen, fits=False, memory=replace(drawn("llama").chosen.memory, pools=(pool, host)))
    said = list(over_time(short))
    assert any(line.startswith("then an image is encoded: GPU0") and "are missing" in line for line in said)
    assert not any("safe until" in line for line in said)


def printed(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main(["curve", *words]) == code
    return capsys.readouterr().out


ON = ("--on", "rtx-3060-12gb", "--ram", "64GiB")


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    schema = json.loads((ROOT / "docs/curve.schema.json").read_text(encoding="utf-8"))
    for words in ((LLAMA, *ON), (*ON, "--", "llama-server", "-m", LLAMA)):
        told: dict[str, Any] = json.loads(printed(capsys, "--format", "json", *words))
        assert [error.message for error in Draft202012Validator(schema).iter_errors(told)] == []
        assert len(told["points"]) > 4
        assert not Draft202012Validator(schema).is_valid({**told, "more": 1})


@pytest.mark.slow
def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "4,096 tokens, GPU0 5.05 GiB" in printed(capsys, LLAMA, *ON)
    assert printed(capsys, LLAMA, *ON, "--format", "svg").startswith("<svg ")
    assert "does not fit" in printed(
        capsys, "example:mixtral-8x22b-q4_k_m", "--on", "rtx-3060-12gb", "--ram", "16GiB", code=3
    )


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ((), "no model and no command"),
        (("--kv", "q8_0", "--", "llama-server", "-m", LLAMA), "--kv changes a plan, and a command is kept"),
        (("nowhere.gguf",), "nowhere.gguf"),
        ((LLAMA, "--backend", "nobody"), "nobody"),
    ],
)
def test_what_makes_no_sense(words: tuple[str, ...], cause: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["curve", *words]) == 2
    assert cause in capsys.readouterr().err
