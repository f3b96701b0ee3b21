"""The printed command: a shell reads back each argument exactly, and a terminal finds nothing to act on."""

from __future__ import annotations

import shutil
import subprocess
import sys
import unicodedata

import pytest
from autofit.domain.memory import Memory
from autofit.domain.plan import Plan
from autofit.domain.text import shell_join, shell_word
from autofit.render.shell import render

from support import TINY

WORDS = (
    "plain", "", "two words", "it's", "$(touch pwned)", "`x`", "a\\b", "!history", "~", "*", "-m",
    "\x1b[31mred", "a\nb", "tab\there", "\x7f", "\x9b2J",
    "\u202egnp.exe", "\u2028", "back\\slash\x1b'quote'\\", "\x1b9f",
    "é\x07ü", "\U000e0041", "\udcff\udc9b", "$'\x1b'", "\r", "\x011",
)  # fmt: skip
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@needs_bash
def test_a_shell_reads_back_every_word() -> None:
    script = b"printf '%s\\0' " + shell_join(WORDS).encode("utf-8", "surrogateescape")
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    assert done.stdout.split(b"\0")[:-1] == [word.encode("utf-8", "surrogateescape") for word in WORDS]


@needs_bash
def test_a_shell_reads_back_a_plan_with_its_variables() -> None:
    found = Plan(
        backend="llama", fits=True, argv=("bash", "-c", 'printf "%s|" "$X" "$@"', "-", "\x1b[0m", "it's"),
        env={"X": "a\x1bb"}, memory=Memory(pools=()),
    )  # fmt: skip
    done = subprocess.run(["bash", "-c", render(found)], capture_output=True, check=True)
    assert done.stdout == b"a\x1bb|\x1b[0m|it's|"


def test_words_without_such_characters_are_quoted_as_ever() -> None:
    assert [shell_word(word) for word in ("plain", "it's", "two words")] == ["plain", """'it'"'"'s'""", "'two words'"]


@pytest.mark.parametrize("plane", [0, 1, 14])
def test_no_character_that_a_terminal_acts_on_is_printed(plane: int) -> None:
    acts = [c for c in map(chr, range(plane << 16, (plane + 1) << 16)) if unicodedata.category(c) in ("Cc", "Zl", "Zp")]
    acts += [c for c in map(chr, range(plane << 16, (plane + 1) << 16)) if unicodedata.bidirectional(c) in BIDI]
    for char in acts:
        assert shell_word(f"a{char}").isascii(), hex(ord(char))
    assert acts or plane


BIDI = frozenset(("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"))


@pytest.mark.skipif(sys.platform == "win32", reason="names of files cannot hold such characters there")
@needs_bash
def test_a_command_line_with_such_a_file(tmp_path) -> None:
    path = tmp_path / "m\x1b[31m.gguf"
    path.write_bytes(TINY.read_bytes())
    argv = [sys.executable, "-m", "autofit", "llama", str(path), "--on", "rtx-3090", "--ram", "64GiB", "--explain"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    assert "\x1b" not in done.stdout + done.stderr
    script = f"printf '%s\\n' {done.stdout}"
    read_back = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert str(path) in read_back.stdout.split("\n")
