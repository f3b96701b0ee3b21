"""llama.cpp's own settings files, which every program but llama-bench reads before variables and arguments.

Source: common/arg.cpp:common_params_apply_system_config, common/preset.cpp (parse_ini_from_file, load_from_ini,
apply_to_params).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence

from autofit.domain.patterns import lazy_pattern
from autofit.domain.text import printable
from autofit.errors import UsageError

from autofit_llama.command.options import TRUE_WORDS, Flag, Option, make_flag

_KEY = lazy_pattern(r"([A-Za-z_][A-Za-z0-9_.-]*)[ \t]*=[ \t]*")
_VALUE_END = lazy_pattern(r"[;#\r\n]|\Z")
_LINE_END = lazy_pattern(r"[ \t]*(?:[;#][^\r\n]*)?(?:\r\n|\n|\r|\Z)")
_GLOBAL, _DEFAULT = "*", "default"


def paths(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Where settings files may be: the system's, then the user's."""
    if sys.platform == "win32":
        folders = [environ.get("PROGRAMDATA"), environ.get("APPDATA")]
        return tuple(f"{folder}\\llama.cpp\\config.ini" for folder in folders if folder)
    home = environ.get("HOME")
    user = environ.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home else None)
    return ("/etc/llama.cpp/config.ini", *([f"{user}/llama.cpp/config.ini"] if user else []))


def flags_of(
    files: Mapping[str, str], program: str, options: Sequence[Option]
) -> tuple[tuple[Flag, ...], tuple[str, ...]]:
    """What `files`, texts by path, say in the order that the engine applies it, and the keys that it passes over.

    Raises:
        UsageError: a file or a value that ends the engine.
    """
    by_key: dict[str, Option] = {}
    for option in options:
        if option.env is not None:
            by_key[option.env] = option
            if option.negations:
                by_key[option.env.replace("LLAMA_ARG_", "LLAMA_ARG_NO_")] = option
        by_key |= {name.lstrip("-"): option for name in (*option.spellings, *option.negations)}
    flags: list[Flag] = []
    unread: list[str] = []
    for path, text in files.items():
        try:
            sections = parse(text)
        except ValueError as error:
            raise UsageError(f"{program} refuses {printable(path, 120)}: {error}", hint="correct that file") from error
        for section in sections.values():
            unread += [f"{key} of {path}" for key in sorted(section) if key not in by_key and key != "version"]
        for name in (_GLOBAL, _DEFAULT):
            flags += _section(sections.get(name, {}), program, path, by_key)
    return tuple(flags), tuple(unread)


def _section(section: Mapping[str, str], program: str, path: str, by_key: Mapping[str, Option]) -> Iterator[Flag]:
    """Of several keys for one option the last by name counts; options come in the order of their names."""
    chosen = {by_key[key].spellings[0]: key for key in sorted(section) if key in by_key and key != "version"}
    for _, key in sorted(chosen.items()):
        option, text = by_key[key], section[key]
        if option.kind == "pair":
            raise UsageError(f"{program} refuses {key} in {printable(path, 120)}: an option with two values")
        if option.kind == "switch":  # whatever its value
            value: str | int | bool = True
        elif option.kind == "bool":
            value = (text in TRUE_WORDS) != (key in {name.lstrip("-") for name in option.negations})
        else:
            value = make_flag(program, option, text, f"{key} of {printable(path, 120)}", "file").value
        yield Flag(option=option, value=value, spelling=key, origin="file", path=path)


def parse(text: str) -> Mapping[str, Mapping[str, str]]:
    """Sections of `key = value`; a section that begins again begins anew.

    Raises:
        ValueError: a line that is none, with its number.
    """
    sections: dict[str, dict[str, str]] = {}
    current, at = _DEFAULT, 0
    while at < len(text):
        begin = at
        if text[at] == "[":
            close = text.find("]", at)
            current = text[at + 1 : close].lstrip(" \t") if close > 0 else ""
            sections[current] = {}
            at = close + 1 if current else -1
        elif key := _KEY.match(text, at):
            stop = _VALUE_END.search(text, key.end())
            assert stop is not None  # the end of the text is one
            value = text[key.end() : stop.start()].rstrip(" \t")
            sections.setdefault(current, {})[key[1]] = value
            at = key.end() + len(value)
        end = None if at < 0 else _LINE_END.match(text, at)
        if end is None:
            line = 1 + len(re.findall(r"\r\n|\n|\r", text[:begin]))
            raise ValueError(f"line {line} is not `key = value`, [section] or a comment")
        at = end.end()
    return sections
