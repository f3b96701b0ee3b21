"""What tmux is told to run: the command of a session, window or pane, or the keys that are typed into one.

Source: tmux(1) of tmux 3.5.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

_OWN = "cfLST"  #: options of tmux itself that take a value
#: subcommand -> its options that take a value
_STARTING: Mapping[str, str] = {
    "new-session": "ceFfnstxy", "new": "ceFfnstxy",
    "new-window": "ceFnt", "neww": "ceFnt",
    "split-window": "ceFlpt", "splitw": "ceFlpt",
    "respawn-pane": "cet", "respawnp": "cet",
    "respawn-window": "cet", "respawnw": "cet",
}  # fmt: skip
_TYPING = frozenset(("send-keys", "send"))
_ENTER = frozenset(("Enter", "C-m", "C-j", "KPEnter"))


def script_in_tmux(argv: Sequence[str]) -> str | None:
    """The script of a command of tmux; `None`: it is none, or starts nothing."""
    if not argv or argv[0].rpartition("/")[2] != "tmux":
        return None
    _, rest = _options(argv[1:], _OWN)
    parts: list[str] = []
    while rest:
        end = next((at for at, word in enumerate(rest) if word == ";"), len(rest))
        found = _command(rest[:end])
        parts += [found] if found else []
        rest = rest[end + 1 :]
    return "\n".join(parts) or None


def _command(words: Sequence[str]) -> str | None:
    name, *rest = words or ("",)
    if name in _TYPING:
        return _typed(_options(rest, "Nct")[1])
    if name not in _STARTING:
        return None
    given, operands = _options(rest, _STARTING[name])
    if not operands:
        return None
    command = operands[0] if len(operands) == 1 else shlex.join(operands)
    variables = [f"export {shlex.quote(value)}" for flag, value in given if flag == "e" and "=" in value]
    folder = [f"cd {shlex.quote(value)}" for flag, value in given if flag == "c"]
    return f"({'; '.join((*variables, *folder, command))}\n)"


def _typed(keys: Sequence[str]) -> str | None:
    """What is typed, as far as it is entered."""
    rows = [""]
    for key in keys:
        if key in _ENTER:
            rows.append("")
        else:
            rows[-1] += " " if key == "Space" else key
    return "\n".join(rows[:-1]) or None


def _options(words: Sequence[str], valued: str) -> tuple[list[tuple[str, str]], list[str]]:
    """Options with their values, and the words behind them, as getopt reads them."""
    given: list[tuple[str, str]] = []
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] != "-":
        word = words[at]
        at += 1
        if word == "--":
            break
        for place, letter in enumerate(word[1:], 1):
            if letter in valued:
                value = word[place + 1 :] or "".join(words[at : at + 1])
                at += not word[place + 1 :]
                given.append((letter, value))
                break
            given.append((letter, ""))
    return given, list(words[at:])
