"""Lines of interest out of pieces of any size, whatever the log is kept in."""

from __future__ import annotations

import json

import pytest
from autofit.logs.commands import words_of
from autofit.logs.lines import MAX_COMMAND_LINES, MAX_LINE_BYTES, Lines, clean
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
    assert clean(b'{"log":"\\u001b[32mI \\u001b[0mword"}') == "I word"
    assert clean(b'say "\\u001b[32mI \\u001b[0mword"') == 'say "I word"'


@pytest.mark.parametrize("name", ["log", "MESSAGE", "line", "message", "textPayload"])
def test_records_of_json_are_the_text_that_they_hold(name: str) -> None:
    record = json.dumps({"stream": "stderr", name: 'a word of "\u00e9"\n', "time": "2026-11-01T10:00:00Z"}).encode()
    assert found(b"no record\n" + record + b"\r\n") == [(2, 'a word of "\u00e9"')]
    text = "a word \U0001f600 \\ \b\f\n\r\t/ \x7f end"
    assert clean(json.dumps({"a": 1, name: text}).encode()) == text
    assert clean(b'{"log": "a \\\\ud83d word \\\\x41"}') == "a \\ud83d word \\x41"
    for other in (
        b'{"line": 12, "msg": "a word"}',
        b"{a word}",
        b'{"log": [{"a": "word"}]}',
        b'{"log": "a word}',
        b"[" * 9000 + b"word}",
    ):
        assert found(other) == [(1, other.decode())]


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-16", b""),
        ("utf-16-le", b"\xff\xfe"),
        ("utf-16-be", b"\xfe\xff"),
        ("utf-16-le", b""),
        ("utf-16-be", b""),
    ],
)
def test_windows_redirects_as_utf_16(encoding: str, mark: bytes) -> None:
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


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("mark", [b"\\", b"^", b"`"])
@pytest.mark.parametrize("size", [None, 1, 5])
def test_a_command_over_several_lines_is_one(end: bytes, mark: bytes, size: int | None) -> None:
    lines = [b"$ word -m x " + mark, b">   -c 1 " + mark, b"  -d 2", b"nothing", b"a word", b"the last word " + mark]
    assert found(end.join(lines), size) == [
        (1, "$ word -m x -c 1 -d 2"),
        (5, "a word"),
        (6, f"the last word {mark.decode()}"),
    ]


def test_a_command_ends_with_an_empty_line_and_does_not_go_on_for_ever() -> None:
    assert found(b"word \\\n\nother\nword 2\n") == [(1, "word "), (4, "word 2")]
    endless = found(b"word \\\n" + b"x \\\n" * 1000 + b"word 2\n")
    assert endless[-1] == (1002, "word 2")
    assert len(endless[0][1]) < 2 * MAX_COMMAND_LINES + 10


def test_a_line_that_only_looks_like_a_command_that_goes_on_costs_no_line() -> None:
    assert found(b"a word in /\\\nword 2\n") == [(1, "a word in /\\"), (2, "word 2")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("llama-server -m 'a b.gguf' -np 2 > log", ("llama-server", "-m", "a b.gguf", "-np", "2")),
        ("llama-server -m x 2>&1 | tee log", ("llama-server", "-m", "x")),
        ("llama-server -m x --t '<|im|>' && echo", ("llama-server", "-m", "x", "--t", "<|im|>")),
        ("llama-server -m x -c 1 &", ("llama-server", "-m", "x", "-c", "1")),
        ("llama-server -m x#1 -c 1'", ("llama-server", "-m", "x#1", "-c", "1")),
        ("llama-server -m 'x -c 1", ()),
        ("a " * 10_000, ()),
    ],
)
def test_words_of_a_command_end_where_the_shell_ends_it(text: str, words: tuple[str, ...]) -> None:
    assert words_of(text) == words


@given(st.text(max_size=200))
def test_any_text_has_words_or_none(text: str) -> None:
    assert all(isinstance(word, str) for word in words_of(text))
