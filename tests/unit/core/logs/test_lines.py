"""Lines of interest out of pieces of any size, whatever the log is kept in."""

from __future__ import annotations

import pytest
from autofit.logs.lines import MAX_LINE_BYTES, Lines, clean
from hypothesis import given
from hypothesis import strategies as st


def found(data: bytes, size: int | None = None) -> list[tuple[int, str]]:
    lines = Lines([b"word"])
    pieces = [data] if size is None else [data[i : i + size] for i in range(0, len(data), size)]
    return [line for piece in pieces for line in lines.feed(piece)] + list(lines.end())


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("size", [None, 1, 2, 7])
def test_lines_are_numbered_whatever_ends_them(end: bytes, size: int | None) -> None:
    data = end.join([b"nothing", b"a word", b"", b"the last word"])
    assert found(data, size) == [(2, "a word"), (4, "the last word")]


def test_a_progress_bar_is_lines_of_one_number() -> None:
    assert found(b"one\r10% word\r20% word\n30% word\n") == [(1, "10% word"), (1, "20% word"), (2, "30% word")]


def test_colors_go() -> None:
    assert clean(b"\x1b[32mI \x1b[0mword\x1b[0m") == "I word"
    assert clean(b'{"log":"\\u001b[32mI \\u001b[0mword"}') == '{"log":"I word"}'


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_windows_redirects_as_utf_16(encoding: str) -> None:
    mark = {"utf-16": b"", "utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}[encoding]
    data = mark + "first\r\na word of é\r\n".encode(encoding)
    for size in (None, 1, 3):
        assert found(data, size) == [(2, "a word of é")]


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert found(b"\x00\xff\xfe\nword \xff\n") == [(2, "word \ufffd")]


def test_an_endless_line_is_cut() -> None:
    data = b"word" + b"x" * (3 * MAX_LINE_BYTES) + b"\nword 2\n"
    (_, first), second = found(data, 1000)
    assert len(first) <= MAX_LINE_BYTES
    assert second == (2, "word 2")
    assert found(b"x" * (3 * MAX_LINE_BYTES) + b"word\nword 2\n", 1000) == [(2, "word 2")]


@given(st.binary(max_size=400), st.integers(1, 50))
def test_pieces_make_no_difference(data: bytes, size: int) -> None:
    data = data.replace(b"\xff\xfe", b"").replace(b"\xfe\xff", b"")  # marks of UTF-16 at the start
    data += b"\nword\n" + data
    assert found(data, size) == found(data)
