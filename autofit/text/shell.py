"""Words of a command line as a shell reads them back: byte for byte, and without a character that a terminal acts on.

Three grammars: POSIX (dash, bash, zsh, ksh, mksh, busybox), fish and PowerShell. A word of printable characters is
quoted the plain way. Any other word of a POSIX shell is written with `printf`, whose octal escapes POSIX has defined
since its first edition: `$'...'` is not known to dash, which would end it at `\\'` and run what follows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from autofit.domain.patterns import lazy_pattern
from autofit.domain.text import printable
from autofit.errors import UsageError

_PLAIN = lazy_pattern(r"[A-Za-z0-9@%+:,./_-][A-Za-z0-9@%+=:,./_-]*")  # `=word` is a path in zsh
_FISH_PLAIN = lazy_pattern(r"[A-Za-z0-9@+:,./_-][A-Za-z0-9@+=:,./_-]*")
_POWERSHELL_PLAIN = lazy_pattern(
    r"0|[1-9][0-9]{0,8}|-{1,2}[A-Za-z][A-Za-z0-9-]*"
)  # all else may be another number (007, 1e5, 2kb), a list, two words
_PRINTF_PLAIN = lazy_pattern(r"[A-Za-z0-9@+=:,./_ -]")
_NAME = lazy_pattern(r"[A-Za-z_][A-Za-z0-9_]*")
_OPTION = lazy_pattern(r"'?--?[A-Za-z]")  # also in quotes
_INDENT = "  "


def word(text: str, *, always: bool = False) -> str:
    """`text` as one word of a POSIX shell, in quotes where it needs them, or `always`.

    Raises:
        UsageError: no shell reads it back: a line break at its end, which `$(...)` drops, or no bytes at all.
    """
    text = _checked(text)
    if all(map(_is_shown, text)):
        return text if not always and _PLAIN.fullmatch(text) else "'" + text.replace("'", "'\"'\"'") + "'"
    if text.endswith("\n"):
        raise _refusal(text, "an argument that ends in a line break cannot be written on one line")
    first, rest = text[0], text[1:]
    body = (_octal(first) if first == "-" else _printf(first)) + "".join(map(_printf, rest))
    return f"\"$(printf '{body}')\""


def fish_word(text: str) -> str:
    """`text` as one word of fish, whose quotes know two escapes, and which takes other bytes outside of them.

    Raises:
        UsageError: no bytes stand for it.
    """
    text = _checked(text)
    if _FISH_PLAIN.fullmatch(text):
        return text
    parts = [
        "'" + run.replace("\\", "\\\\").replace("'", "\\'") + "'"
        if run.isprintable()
        else "".join(f"\\X{byte:02x}" for byte in _bytes(run))
        for run in _runs(text, str.isprintable)
    ]
    return "".join(parts) or "''"


def powershell_word(text: str) -> str:
    """`text` as one argument of PowerShell; for a program, versions before 7.3 lose `"` and empty arguments.

    Raises:
        UsageError: it is not Unicode, which is all that PowerShell's strings hold.
    """
    text = _checked(text)
    if any("\udc80" <= c <= "\udcff" for c in text):
        raise _refusal(text, "a name that is not Unicode cannot be written for PowerShell")
    if _POWERSHELL_PLAIN.fullmatch(text):
        return text
    if all(map(_is_shown, text)):
        return _powershell_quoted(text)
    parts = [
        _powershell_quoted(run) if run.isprintable() else "+".join(f"[char]{unit}" for unit in _utf16(run))
        for run in _runs(text, str.isprintable)
    ]
    return "(''+" + "+".join(parts) + ")"


def command(
    words: Iterable[str], env: Iterable[tuple[str, str]] = (), *, always: bool = False, columns: int | None = None
) -> str:
    """One line of a POSIX shell: assignments, program, arguments. With `columns`, for people to read: a longer line is
    several that the shell reads as one, cut before options.

    Raises:
        UsageError: a word that cannot be written.
    """
    assignments = [f"{_name(name)}={word(value, always=always)}" for name, value in env]
    program, *arguments = words
    quoted = word(program, always=always or "=" in program)  # else it would be an assignment
    return _joined([*assignments, quoted, *(word(text, always=always) for text in arguments)], columns, "\\")


def fish_command(words: Iterable[str], env: Iterable[tuple[str, str]] = (), *, columns: int | None = None) -> str:
    """One line of fish, or with `columns` several, as `command`."""
    assignments = [f"{_name(name)}={fish_word(value)}" for name, value in env]
    return _joined([*assignments, *map(fish_word, words)], columns, "\\")


def powershell_command(words: Iterable[str], env: Iterable[tuple[str, str]] = (), *, columns: int | None = None) -> str:
    """One line of PowerShell, or with `columns` several, as `command`; the variables stay set."""
    assignments = [f"$env:{_name(name)} = {powershell_word(value)};" for name, value in env]
    program, *arguments = words
    quoted = powershell_word(program) if not program[:1].isdigit() else _powershell_quoted(program)
    return _joined([*assignments, f"& {quoted}", *map(powershell_word, arguments)], columns, "`")


def _joined(quoted: Sequence[str], columns: int | None, continued: str) -> str:
    """Words of a shell with a blank between them, or, where that is longer than `columns`, on lines that end in
    `continued`, which makes one of them: cut before options, and before a value only where it has no room beside its
    option. A word is never cut: one that is longer than a line stays so.
    """
    whole = " ".join(quoted)
    if columns is None or len(whole) <= columns:
        return whole
    room = columns - len(continued) - 1
    lines = [""]
    for part in _cut(quoted, room - len(_INDENT)):
        if lines[-1].strip() and len(lines[-1]) + 1 + len(part) > room:
            lines.append(_INDENT)
        lines[-1] += part if not lines[-1].strip() else f" {part}"
    return f" {continued}\n".join(lines)


def _cut(quoted: Iterable[str], room: int) -> Iterator[str]:
    """The words, each option in one with its values where there is room for that."""
    group: list[str] = []
    for text in quoted:
        if group and (_OPTION.match(text) or not _OPTION.match(group[0]) or len(" ".join([*group, text])) > room):
            yield " ".join(group)
            group = []
        group.append(text)
    yield " ".join(group)


def separated(words: Iterable[str], env: Iterable[tuple[str, str]], end: str) -> str:
    """Words as they are, each with `end` after it; variables through `env`, since no shell sets them.

    Raises:
        UsageError: a word holds `end`, or for lines any character that a terminal acts on.
    """
    assigned = [f"{_name(name)}={value}" for name, value in env]
    found = [*(["env", *assigned] if assigned else []), *words]
    for text in found:
        if end in _checked(text) or (end == "\n" and not all(map(_is_shown, text))):
            raise _refusal(text, "an argument with a control character cannot be written on one line")
    return "".join(f"{text}{end}" for text in found)


def shown(words: Iterable[str], columns: int | None = None) -> str:
    """A command for people to read: `command`, or its words escaped where a shell cannot be given them."""
    words = tuple(words)
    try:
        return command(words, columns=columns) if words else ""
    except UsageError:
        return " ".join(printable(text, 1000) for text in words)


# -- characters ---------------------------------------------------------------------------------------------


def _is_shown(char: str) -> bool:
    """Whether a terminal shows this character as itself: no control, format or separator of lines.

    A byte that is no text (U+DCA0 and on, PEP 383) is shown in some way; those below are controls of 8 bits.
    """
    return char.isprintable() or "\udca0" <= char <= "\udcff"


def _checked(text: str) -> str:
    """The text as its bytes read: two halves of a character that came as bytes are that character.

    Raises:
        UsageError: a zero byte, or half of a pair of surrogates: no argument can hold them.
    """
    if text.isascii() and "\0" not in text:
        return text
    try:
        found = _bytes(text).decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise _refusal(text, "a name with half a character (a lone surrogate) cannot be an argument") from None
    if "\0" in found:
        raise _refusal(text, "an argument cannot contain a NUL byte")
    return found


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _refusal(text: str, cause: str) -> UsageError:
    return UsageError(f"{printable(text, 400)}: {cause}", hint="--format json gives it exactly; or rename the file")


def _name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(f"{printable(name, 80)}: not the name of a variable")
    return name


def _printf(char: str) -> str:
    """One character inside `printf '...'`, itself inside double quotes: what either may act on as octal bytes."""
    return char if _PRINTF_PLAIN.fullmatch(char) or (not char.isascii() and _is_shown(char)) else _octal(char)


def _octal(char: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in _bytes(char))


def _runs(text: str, key: Callable[[str], bool]) -> list[str]:
    """The text cut where characters that are `key` meet others."""
    from itertools import groupby

    return ["".join(chars) for _, chars in groupby(text, key)]


def _powershell_quoted(text: str) -> str:
    """In single quotes, of which PowerShell knows five."""
    return "'" + re.sub("['\u2018-\u201b]", lambda quote: quote[0] * 2, text) + "'"


def _utf16(text: str) -> list[int]:
    data = text.encode("utf-16-le")
    return [int.from_bytes(data[at : at + 2], "little") for at in range(0, len(data), 2)]
