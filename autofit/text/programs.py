"""Which program a command starts, and which module of Python."""

from __future__ import annotations

import re
from collections.abc import Sequence

RUNNERS = ("docker", "podman", "nerdctl")  #: of containers, whose options `autofit.text.containers` reads
_TAKES_VALUE = ("-X", "-W", "--check-hash-based-pycs")


def program_name(argv: Sequence[str]) -> str:
    """The name of a command's program, without its folder, and without `.exe`."""
    return argv[0].replace("\\", "/").rpartition("/")[2].removesuffix(".exe") if argv else ""


def n_module_words(argv: Sequence[str]) -> int:
    """How many words there are up to the module of `python [options] -m MODULE`, which is the last of them; 0: none."""
    at = 1 if program_name(argv).startswith("python") else len(argv)
    while at < len(argv) and argv[at].startswith("-"):
        if re.fullmatch(r"-[A-Za-z]*m", argv[at]) and argv[at][1] not in "XW":
            return at + 2 if at + 1 < len(argv) else 0
        if re.fullmatch(r"-[A-Za-z]*c.*|--?", argv[at], re.DOTALL) and argv[at][1:2] not in ("X", "W"):
            return 0
        at += 2 if argv[at] in _TAKES_VALUE else 1
    return 0
