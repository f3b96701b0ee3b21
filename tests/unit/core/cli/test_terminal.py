"""On a terminal the summary is a picture; stdout stays the command."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")


def on_terminal(*words: str, **environ: str) -> tuple[bytes, str]:
    """What a command prints: its stdout, which is a pipe, and what its terminal shows."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "XDG_CONFIG_HOME": "/nonexistent", "TERM": "xterm-256color", "COLUMNS": "60", **environ}
    done = subprocess.Popen(
        [sys.executable, "-m", "autofit", *words], stdout=subprocess.PIPE, stderr=theirs, stdin=theirs, env=env
    )
    os.close(theirs)
    shown = bytearray()
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(ours)
    out, _ = done.communicate(timeout=60)
    return out, shown.decode()


PLAN = ("llama", "example:tiny", "--on", "rtx-3090", "--ram", "64GiB")


def test_a_picture() -> None:
    out, shown = on_terminal(*PLAN)
    assert out.startswith(b"llama-server ") and b"\x1b" not in out
    assert "\x1b[38;5;" in shown and "[" in shown and "the fullest" in shown
    assert on_terminal(*PLAN, NO_COLOR="1")[1].count("\x1b") == 0


def test_quiet() -> None:
    assert on_terminal(*PLAN, "-q")[1] == ""


def test_a_dumb_terminal() -> None:
    shown = on_terminal(*PLAN, TERM="dumb")[1]
    assert "\x1b" not in shown and "█" not in shown and "[#" in shown
