from __future__ import annotations

import pytest
from autofit.domain.text import printable
from autofit.domain.units import format_bytes, parse_size, parse_tokens, round_up
from autofit.errors import UsageError
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("24GiB", 24 << 30),
        ("24 gib", 24 << 30),
        ("24GB", 24 * 10**9),
        ("1.5MiB", 3 << 19),
        ("7", 7),
        ("0", 0),
        (".5GiB", 1 << 29),
    ],
)
def test_size(text: str, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1GiB", "1e9", "1GiBs", "2000000000GiB", "١GiB", "1" * 50, "1.2.3GiB", "nan"]
)
def test_not_a_size(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


@given(st.integers(min_value=0, max_value=1 << 59))
def test_printed_sizes_read_back_within_their_rounding(n_bytes: int) -> None:
    back = parse_size(format_bytes(n_bytes).replace(" ", ""))
    assert abs(back - n_bytes) <= max(1, n_bytes * 0.006)


@pytest.mark.parametrize(("text", "n_tokens"), [("8192", 8192), ("64k", 65536), ("64K", 65536), ("1M", 1 << 20)])
def test_tokens(text: str, n_tokens: int) -> None:
    assert parse_tokens(text) == n_tokens


@pytest.mark.parametrize("text", ["0", "-5", "64kb", "1.5k", "", "9" * 13, "4000M"])
def test_not_tokens(text: str) -> None:
    with pytest.raises(UsageError):
        parse_tokens(text)


@given(st.integers(0, 1 << 60), st.integers(1, 1 << 20))
def test_round_up_is_the_next_multiple(n: int, multiple: int) -> None:
    up = round_up(n, multiple)
    assert up % multiple == 0
    assert n <= up < n + multiple


@given(st.text(max_size=300))
def test_printable_text_never_holds_a_control_character(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    shown.encode("utf-8")
