"""Whatever the plain reader reads, `tomllib` reads alike; what it leaves alone, `tomllib` has to say."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from autofit import profiles
from autofit.text import toml
from hypothesis import example, given, settings
from hypothesis import strategies as st

OURS = sorted(profiles.data_dir().glob("*/*.toml"))
WORDS = r"""
a b-c a 1 _ é true false inf 0 00 1_000 1__0 _1 1_ -1 +1 0x1f 1.5 1. .5 1e5 0.25 01.5 1.5_0 123456789012345678
99999999999999999999 1979-05-27 "x" " "" 'x' '''  "a#b" "a,b" "a]b" "\n" "a=b" "ü" "a"
[ ] [[ ]] [a] [b] [[a]] [[b]] { } = , #
""".split()
PIECES = [
    *WORDS,
    *('"\N{NO-BREAK SPACE}"', " = ", "a = ", "b = ", "a.b = ", "[1, 2]", '["a",\n "b",\n]', "[1\n2]"),
    *(" ", "\t", "\n", "\n", "\n", "\r", "\r\n", " # x\n", "\0", "\x0b", "\u2028"),
]


def theirs(text: str) -> Any:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None


def same(a: Any, b: Any) -> bool:
    """Equal, kinds of numbers and all."""
    return repr(a) == repr(b)


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_our_own_files_are_read_without_tomllib(path: Path) -> None:
    text = path.read_text("utf-8")
    assert same(toml.read(text), tomllib.loads(text))


@settings(deadline=None)  # the first one loads modules
@given(st.lists(st.sampled_from(PIECES), max_size=24).map("".join))
@example('a = ["x\ny"]')
@example("a = [1\n2]")
@example("a = 1\n[[a]]\n")
@example("[[a]]\n[a]\n")
@example("a = []\n[[a]]\n")
@example('a = "x" "y"')
@example("a = 1 # \x7f")
@example("[a]#\n")
def test_it_reads_what_tomllib_reads(text: str) -> None:
    found = toml.read(text)
    assert found is None or same(found, theirs(text))


@settings(deadline=None)
@given(st.sampled_from(OURS), st.data())
def test_a_profile_with_a_few_characters_changed(path: Path, data: st.DataObject) -> None:
    text = path.read_text("utf-8")
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(st.sampled_from(PIECES)) + text[at + data.draw(st.integers(0, 4)) :]
    found = toml.read(text)
    assert found is None or same(found, theirs(text))
