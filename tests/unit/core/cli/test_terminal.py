"""On a terminal the summary is a picture; stdout stays the command."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")


def on_terminal(*words: str, alone: bool = False, **environ: str) -> tuple[bytes, str]:
    """What a command prints: its stdout, a pipe unless all is `alone` on the terminal, and what stays on that."""
    out, shown = run_on_terminal("-m", "autofit", *words, alone=alone, **environ)
    return out, re.sub(r"\r[^\n\r]*?\x1b\[K", "", shown)


def run_on_terminal(*words: str, alone: bool = False, **environ: str) -> tuple[bytes, str]:
    """The same of any words after Python's own name."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "XDG_CONFIG_HOME": "/nonexistent", "TERM": "xterm-256color", "COLUMNS": "60", **environ}
    done = subprocess.Popen(
        [sys.executable, *words],
        stdout=theirs if alone else subprocess.PIPE,
        stderr=theirs,
        stdin=theirs,
        env=env,
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
    return out or b"", shown.decode().replace("\r\n", "\n")


PLAN = ("llama", "example:tiny", "--on", "rtx-3090", "--ram", "64GiB")


def test_a_picture() -> None:
    out, shown = on_terminal(*PLAN)
    assert out.startswith(b"llama-server ") and b"\x1b" not in out
    assert "\x1b[38;5;" in shown and "[" in shown and "nothing is short" in shown
    assert on_terminal(*PLAN, NO_COLOR="1")[1].count("\x1b") == 0


def test_quiet() -> None:
    assert on_terminal(*PLAN, "-q")[1] == ""


def test_a_dumb_terminal() -> None:
    shown = on_terminal(*PLAN, TERM="dumb")[1]
    assert "\x1b" not in shown and not set("█▓[#=") & set(shown)
    assert "GPU0 NVIDIA GeForce RTX 3090: " in shown and "\n    weights 354.0 KiB, cache" in shown


def test_what_else_there_is_to_choose_comes_after_the_answer() -> None:
    """Only where somebody reads: `eval "$(autofit ...)"` does not wait for it."""
    words = ("llama", "example:llama-3.1-8b-q4_k_m", "--on", "rtx-3060-12gb", "--ram", "64GiB")
    assert "or -c max" not in on_terminal(*words)[1]
    shown = on_terminal(*words, alone=True, COLUMNS="70", NO_COLOR="1")[1]
    assert shown.startswith("llama-server ")
    assert "\n  or -c max, the longest context: 131,072 instead of 56,064 tokens" in shown
    assert max(map(len, shown.splitlines()[1:])) <= 70
    assert shown.count("or -c") == 1
    told = on_terminal(*words, "-q", alone=True, COLUMNS="200")[1]
    assert told.startswith("llama-server ") and told.count("\n") == 1


@pytest.mark.slow_but("80")
@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_command_is_cut_at_options_where_somebody_reads_it(columns: int) -> None:
    """And nowhere else: what goes into a pipe is one line."""
    words = ("llama", "example:llama-3.1-8b-q4_k_m", "--on", "rtx-3060-12gb", "--ram", "64GiB", "-q")
    told = on_terminal(*words, alone=True, COLUMNS=str(columns))[1]
    line = on_terminal(*words, COLUMNS=str(columns))[0].decode()
    assert line.count("\n") == 1 and max(map(len, told.splitlines())) <= columns
    assert told.replace(" \\\n  ", " ") == line
    json = on_terminal(*words, "--format", "json", alone=True, COLUMNS=str(columns))[1]
    assert "\\\n" not in json


SLOW = """
import sys, time
from autofit.cli.main import main
from autofit.host import host
backend = type(host().backend("llama"))
plan, waited = backend.plan, []
def slow(*args, **options):
    if not waited:
        waited.append(time.sleep(1.3))
    return plan(*args, **options)
backend.plan = slow
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow_but("advise*")
@pytest.mark.parametrize(
    "words",
    [
        ("quants", "example:tiny", "--on", "rtx-3090"),
        ("quants", "example:tiny", "--on", "rtx-3090", "--size", "fit"),
        ("advise", "example:tiny", "--rows", "1"),
        ("advise", "example:tiny", "--here", "--have", "rtx-3090"),
    ],
    ids=" ".join,
)
def test_tables_that_take_longer_than_a_second_say_what_they_wait_for(words: tuple[str, ...]) -> None:
    out, shown = run_on_terminal("-c", SLOW, *words)
    assert re.search(r"\r  (planning|looking) [a-z ]+: 1 s\x1b\[K", shown)
    assert out and b"\x1b" not in out and b"\r" not in out
    assert "planning for" not in run_on_terminal("-c", SLOW, *words, TERM="dumb")[1]


WAITS = """
import sys, time
from autofit.cli.telling import Waiting
with Waiting("planning") as waiting:
    time.sleep(1.3)
    waiting.stop()
    print("the answer", file=sys.stderr)
    waiting.start("looking for more")
    time.sleep(0.1)
print("the end", file=sys.stderr)
"""


def test_what_takes_longer_than_a_second_says_so_and_takes_it_back() -> None:
    shown = run_on_terminal("-c", WAITS)[1]
    assert shown == "\r  planning: 1 s\x1b[K\r\x1b[Kthe answer\nthe end\n"
    assert run_on_terminal("-c", WAITS, TERM="dumb")[1] == "the answer\nthe end\n"


def test_into_a_pipe_nobody_is_told_to_wait() -> None:
    done = subprocess.run([sys.executable, "-c", WAITS], capture_output=True, check=True)
    assert done.stderr == b"the answer\nthe end\n"
