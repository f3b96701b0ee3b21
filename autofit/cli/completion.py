"""`autofit completion SHELL`: the script with which a shell completes autofit's commands, options and names."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.resources import files

from autofit.errors import UsageError

TAKES_COMMAND = True
SHELLS = {
    "bash": ("autofit.bash", 'eval "$(autofit completion bash)" in ~/.bashrc'),
    "zsh": ("_autofit", 'eval "$(autofit completion zsh)" in ~/.zshrc, behind compinit'),
    "fish": ("autofit.fish", "autofit completion fish > ~/.config/fish/completions/autofit.fish"),
    "powershell": ("autofit.ps1", "autofit completion powershell | Out-String | Invoke-Expression in $PROFILE"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join(("to have it in every shell:", *(f"  {how}" for _, how in SHELLS.values())))
    parser.add_argument("shell", nargs="?", choices=tuple(SHELLS), metavar="SHELL", help=", ".join(SHELLS))
    parser.add_argument("--for", dest="asks", choices=tuple(SHELLS), help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    if args.asks is not None:
        return _answer(args.asks, args.engine_args or [])
    if args.shell is None or args.engine_args is not None:
        raise UsageError("completion needs a shell", hint=f"autofit completion {'|'.join(SHELLS)}")
    name, _ = SHELLS[args.shell]
    sys.stdout.write((files("autofit.cli") / "completions" / name).read_text(encoding="utf-8"))
    return 0


def _answer(shell: str, words: Sequence[str]) -> int:
    """What a shell's script asks: `files` or `words` on the first line, then a word and a tab and a line about it."""
    from autofit.cli.completing import complete
    from autofit.domain.text import printable

    asked, hidden = _as_typed(shell, words)
    found = complete(asked)
    if found is None:
        print("files")
        return 0
    print("words")
    for word, about in found:
        print(f"{word[hidden:]}\t{printable(about, 100)}")
    return 0


def _as_typed(shell: str, words: Sequence[str]) -> tuple[list[str], int]:
    """The words as they were typed, and how much of the last one the shell does not want back: bash takes a word apart
    at `=` and `:`, PowerShell's script marks the last one."""
    if shell == "powershell":
        return [*words[:-1], "".join(words[-1:]).removeprefix("=")], 0
    if shell != "bash":
        return list(words), 0
    typed: list[str] = []
    joins = False
    for word in words:
        is_mark = word in ("=", ":", "=:")
        if typed and (is_mark or joins):
            typed[-1] += word
        else:
            typed.append(word)
        joins = is_mark
    last = "".join(typed[-1:])
    return typed, max(last.rfind("="), last.rfind(":")) + 1
