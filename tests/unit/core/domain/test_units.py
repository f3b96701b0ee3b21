from __future__ import annotations

import pytest
from autofit.domain.ram import parse_ram
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
        ("1048576", 1 << 20),
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


@pytest.mark.parametrize(
    ("text", "meant"),
    [("32", "32GiB"), ("2", "2GiB"), (" 7 ", "7GiB"), ("1.5", "1.5GiB"), ("24139", "24139MiB"), ("4", "4GiB")],
)
def test_a_number_without_a_unit_is_asked_about(text: str, meant: str) -> None:
    with pytest.raises(UsageError, match="what") as caught:
        parse_size(text)
    assert caught.value.hint == f"write {meant}"


@pytest.mark.parametrize(
    ("text", "total", "share"),
    [
        ("64GiB", 64 << 30, 2 << 30),
        ("128GB", 128 << 30, 2 << 30),  # as it is sold
        ("8GB", 8 << 30, 1 << 30),
        ("1.5TB", 1536 << 30, 2 << 30),
        ("31GB", 31 * 10**9, 2 << 30),  # never sold
        ("31GiB", 31 << 30, 2 << 30),
        ("64GiB:60GiB", 64 << 30, 4 << 30),
        ("64GB:64GiB", 64 << 30, 0),
        ("64GB:server", 64 << 30, 1 << 30),
        ("64GB:Windows", 64 << 30, 4 << 30),
        ("64GB:none", 64 << 30, 0),
    ],
)
def test_main_memory_as_it_is_sold_and_what_the_system_keeps(text: str, total: int, share: int) -> None:
    found = parse_ram(text)
    assert (found.total_bytes, found.share_bytes("desktop")) == (total, share)


@pytest.mark.parametrize("text", ["0", "32", "64GiB:65GiB", "64GiB:0GiB", "64GiB:", "64GiB:beos", "64GiB:12", "lots"])
def test_main_memory_that_is_none(text: str) -> None:
    with pytest.raises(UsageError):
        parse_ram(text)


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


@pytest.mark.parametrize("text", ["2147483648", "4000M", "9" * 40])
def test_more_tokens_than_are_counted_are_told_apart_from_no_number(text: str) -> None:
    with pytest.raises(UsageError, match=r"is more than 2,147,483,647 tokens"):
        parse_tokens(text)
    assert parse_tokens("2147483647") == (1 << 31) - 1


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
