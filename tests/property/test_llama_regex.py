"""The pattern engine against Python's `re`, where the two languages agree."""

from __future__ import annotations

import re

import pytest
from autofit.errors import AutofitError
from hypothesis import given, settings
from hypothesis import strategies as st

from autofit_llama.engine import regex
from autofit_llama.engine.regex import searcher

ATOMS = st.sampled_from(["a", "b", "blk", r"\.", ".", r"\d", "[0-3]", "[^a]", "1", "attn", r"\w", r"\b"])


def _repeat(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    marks = st.sampled_from(["", "*", "+", "?", "{2}", "{1,3}", "*?", "{0,}"])
    grouped = inner.map(lambda text: f"({text})")
    return st.one_of(
        st.tuples(grouped, marks).map("".join),
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
    )


PATTERNS = st.recursive(ATOMS, _repeat, max_leaves=8)
NAMES = st.text(alphabet="ab.blk01234attn_ ", max_size=24)


@settings(max_examples=400, deadline=None)
@given(PATTERNS, st.booleans(), st.booleans(), st.lists(NAMES, min_size=1, max_size=5))
def test_finds_what_re_finds(pattern: str, start: bool, end: bool, texts: list[str]) -> None:
    pattern = ("^" if start else "") + pattern + ("$" if end else "")
    try:
        matches = searcher(pattern)
    except AutofitError:
        return  # grew beyond what is taken
    expected = re.compile(pattern.removesuffix("$") + (r"\Z" if end else ""), re.ASCII)
    for text in texts:
        assert matches(text) == bool(expected.search(text)), (pattern, text)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab()[]{}|*+?.^$\\-,0123=:!<", max_size=20), NAMES)
def test_any_text_is_a_pattern_or_one_line_of_error(pattern: str, text: str) -> None:
    try:
        searcher(pattern)(text)
    except AutofitError as error:
        assert "\n" not in error.message


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|aa)+$", "(a*)*b", "(.*a){20}b", "([a-z]+)*_exps", "(a?){60}a{60}", "(x+x+)+y"]
)
def test_patterns_that_blow_up_elsewhere(pattern: str) -> None:
    """Each of these takes a backtracking engine longer than anyone waits."""
    matches = searcher(pattern)
    assert not matches("a" * 40 + "!")
    assert not matches("x" * 40)


@pytest.mark.parametrize("pattern", ["(" * 3000 + "a", "(?=" * 500 + "a" + ")" * 500, "a" + "*" * 3000, "(?:a" * 101])
def test_nests_without_end_are_refused(pattern: str) -> None:
    with pytest.raises(AutofitError) as caught:
        searcher(pattern)
    assert "100" in caught.value.message


def test_what_is_forgotten_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"blk.{i}.ffn_{kind}_exps.weight" for i in range(30) for kind in ("up", "down")]
    wanted = [searcher(r"(?:blk\.(1|2)+\..*exps)+")(name) for name in names]
    monkeypatch.setattr(regex, "MAX_PLACES", 3)
    monkeypatch.setattr(regex, "MAX_ANSWERS", 3)
    searcher.cache_clear()
    again = searcher(r"(?:blk\.(1|2)+\..*exps)+")
    assert [again(name) for name in names + names] == wanted + wanted and any(wanted) and not all(wanted)
    searcher.cache_clear()


def test_a_group_that_refers_to_itself_is_refused() -> None:
    with pytest.raises(AutofitError, match="open group"):
        searcher(r"(a\1)")
