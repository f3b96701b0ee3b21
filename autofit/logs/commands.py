"""Commands that people paste before an engine's output: over several lines, behind a prompt, with redirections."""

from __future__ import annotations

import re
import shlex

MAX_WORDS = 400
#: what a shell's line ends in that goes on: of sh, of cmd.exe and of PowerShell, each behind a space
_GOES_ON = re.compile(r"\s[\\^`]\s*$")
#: what stands before the rest of it: a quotation's mark, or the prompt of an unfinished command
_SECOND_PROMPT = re.compile(r"^(?:\s|>(?=\s))+")
#: standard streams that are sent elsewhere; the number is none of the command's words
_STREAM = re.compile(r"\s[0-2](?=[<>])")
_OPERATORS = "();<>|&"


def goes_on(line: str) -> bool:
    """Whether a line is the start of a command that the next one completes."""
    return _GOES_ON.search(line) is not None


def joined(start: str, line: str) -> str:
    """A line that goes on, and the next one."""
    return f"{_GOES_ON.sub('', start).rstrip()} {_SECOND_PROMPT.sub('', line)}"


def words_of(text: str) -> tuple[str, ...]:
    """The words of a command up to where a shell ends it or sends its output elsewhere; nothing where it is none."""
    text = _STREAM.sub(" ", text.strip())
    try:
        return _words(text)
    except ValueError:
        pass
    try:  # the quotation mark behind a command that is quoted as a whole
        return _words(text[:-1]) if text[-1:] in ("'", '"') else ()
    except ValueError:
        return ()


def _words(text: str) -> tuple[str, ...]:
    """Raises: ValueError: a quotation does not end."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=_OPERATORS)
    lexer.commenters = ""
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if word and set(word) <= set(_OPERATORS):
            break
        words.append(word)
        if len(words) > MAX_WORDS:
            return ()
    return tuple(words)
