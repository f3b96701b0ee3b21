from __future__ import annotations

import re
import unicodedata
from functools import cache

import autofit
import pytest
from autofit.domain.memory import KINDS
from autofit.domain.values import replace
from autofit.render.picture import Terminal, picture, terminal_of

LARGE = "example:mixtral-8x7b-q4_k_m"
PLANS: dict[str, tuple[str, list[str], str | None]] = {
    "one card": (LARGE, ["rtx-3090"], "64GiB"),
    "eight": ("example:mixtral-8x7b-f16", ["8xh100-80gb"], "256GiB"),
    "no fit": (LARGE, ["rtx-3060-12gb"], "8GiB"),
    "unified": ("example:tiny", ["m4-max:64GiB"], None),
    "limit": ("example:tiny", ["gb10"], None),
}


@cache
def planned(name: str) -> autofit.Plan:
    model, on, ram = PLANS[name]
    return autofit.plan("llama", model, on=on, ram=ram, settings=None)


def lines(plan: autofit.Plan, columns: int = 80, *, color: bool = False, blocks: bool = True) -> list[str]:
    return list(picture(plan, Terminal(columns, color, blocks)))


def plain(line: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", line)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("columns", [28, 40, 80, 132, 200])
@pytest.mark.parametrize("color", [False, True])
def test_no_line_is_wider_than_the_terminal(name: str, columns: int, color: bool) -> None:
    found = lines(planned(name), columns, color=color)
    for line in map(plain, found):
        words = [word for word in line.split() if len(word) > columns - 4]
        assert len(line) <= columns or words, line  # a word alone may be longer: a path
    assert all(unicodedata.east_asian_width(c) in "NaAH" or c.isascii() for line in found for c in plain(line))


def test_bars_are_to_scale() -> None:
    pool = planned("one card").memory.pools[0]
    bar = next(line for line in lines(planned("one card")) if line.startswith("  ["))[3:-1]
    assert len(bar) == 76
    assert pool.free_bytes is not None
    for kind, mark in zip(KINDS, "█▓▒░╱·", strict=True):
        exact = pool.sum_bytes(kind) * 76 / pool.free_bytes
        assert abs(bar.count(mark) - exact) <= 2, kind
        assert (bar.count(mark) > 0) == (pool.sum_bytes(kind) > 0)


def test_equal_cards_are_one_line() -> None:
    found = lines(planned("eight"))
    assert sum("[" in line for line in found) == 2
    assert any(line.startswith("  GPU0 and GPU1  2 × NVIDIA H100") for line in found)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (("GPU0", "GPU1", "GPU2"), "GPU0 to GPU2  3 ×"),
        (("GPU2", "GPU0", "GPU1"), "GPU2, GPU0 and GPU1  3 ×"),
        (("GPU0", "GPU1", "GPU2", "b/GPU0", "b/GPU1", "b/GPU2"), "GPU0 to GPU2 and b/GPU0 to b/GPU2  6 ×"),
        (("a1", "GPU9", "GPU10", "GPU11"), "a1 and GPU9 to GPU11  4 ×"),
    ],
)
def test_equal_cards_are_named(ids: tuple[str, ...], said: str) -> None:
    cards = tuple(replace(planned("eight").memory.pools[0], id=name) for name in ids)
    plan = planned("eight")
    found = lines(replace(plan, memory=replace(plan.memory, pools=cards)))
    assert any(line.startswith(f"  {said} NVIDIA H100") for line in found)


def test_a_pool_with_a_limit_of_its_device_is_drawn() -> None:
    assert planned("limit").memory.pools[0].limits
    assert lines(planned("limit"))[0].startswith("  host  unified memory")
    assert any(
        re.match(r"  GPU0  NVIDIA GB10: .* used of the .* that it may take of", line)
        for line in lines(planned("limit"))
    )


def test_wide_terminals_keep_a_name_and_its_room_together() -> None:
    head, bar = lines(planned("one card"), 200)[:2]
    assert len(head) <= len(bar) + 1


def test_more_than_there_is_is_drawn_beyond_a_line() -> None:
    """A bar of what is needed is to scale, and so is the line where memory ends."""
    pool = planned("no fit").memory.pool("host")
    drawn = [line for line in lines(planned("no fit")) if line.startswith("  [")][-1][3:-1]
    assert pool.free_bytes is not None and len(drawn) == 76 and drawn.count("|") == 1
    assert abs(drawn.index("|") - 76 * pool.free_bytes / pool.used_bytes) <= 1
    assert any(line.endswith(" free") and " needed, " in line for line in lines(planned("no fit")))


def test_words_stay_whole() -> None:
    """Flags, names and paths are broken nowhere, however narrow the terminal."""
    words = set(" ".join(plain(line) for line in lines(planned("one card"), 500)).split())
    for columns in (40, 60, 80):
        assert (
            set(" ".join(plain(line) for line in lines(planned("one card"), columns) if "[" not in line).split())
            <= words
        )


def test_a_fact_stays_in_one_line_where_there_is_room() -> None:
    assert any(
        re.fullmatch(r"  decode ~.* · prompt processing ~.* tokens/s \(.*\)", line)
        for line in lines(planned("one card"))
    )


def test_without_bars_all_is_words() -> None:
    """For those who hear the terminal: no line of characters that stand for sizes."""
    found = list(picture(planned("one card"), Terminal(80, has_bars=False)))
    assert found[0] == "  GPU0 NVIDIA GeForce RTX 3090: 23.26 GiB used of 23.57 GiB free"
    assert found[1].startswith("    weights 20.45 GiB, cache 2.03 GiB, ")
    assert not any(set("█▓▒░╱[") & set(line) for line in found)


def test_numbers_stay_with_their_units_and_flags_with_their_values() -> None:
    for columns in range(40, 81, 4):
        text = "\n".join(lines(planned("one card"), columns))
        assert not re.search(r"\d\n +([KMG]iB|tokens)\b|--(ram|kv)\n", text), text


def test_without_color_and_without_blocks() -> None:
    assert not any("\x1b" in line for line in lines(planned("one card")))
    bars = [line for line in lines(planned("one card"), blocks=False) if line.startswith("  [")]
    assert bars and all(line.isascii() for line in bars)
    colored = lines(planned("one card"), color=True)
    assert [plain(line) for line in colored] == lines(planned("one card"))


@pytest.mark.parametrize(
    ("environ", "encoding", "color", "blocks"),
    [
        ({"TERM": "xterm-256color"}, "utf-8", True, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, "UTF-8", False, True),
        ({"TERM": "dumb"}, "utf-8", False, False),
        ({}, "utf-8", False, False),
        ({"TERM": "linux"}, "ascii", True, False),
        ({"TERM": "linux"}, None, True, False),
    ],
)
def test_what_a_terminal_shows(environ: dict[str, str], encoding: str | None, color: bool, blocks: bool) -> None:
    found = terminal_of(environ, 7, encoding)
    assert (found.has_color, found.has_blocks, found.columns) == (color, blocks, 28)
    assert found.has_bars is (environ.get("TERM", "dumb") != "dumb")
