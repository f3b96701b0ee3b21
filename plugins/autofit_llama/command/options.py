"""The options of llama.cpp's programs: their spellings, variables and kinds of values, in each version.

Source: common/arg.cpp (common_params_parser_init; the table is generated from it), common/common.h,
tools/llama-bench/llama-bench.cpp:parse_cmd_params.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Literal

from autofit.domain.text import printable
from autofit.domain.values import dataclass, replace
from autofit.errors import UsageError

from autofit_llama.command.flag_table import TABLE
from autofit_llama.engine.builds import around, numbers, within
from autofit_llama.engine.numbers import integer, real, unsigned
from autofit_llama.engine.versions import NEWER, Version
from autofit_llama.engine.vocabulary import KV_TYPES

PYTHON_SERVER: Literal["llama_cpp.server"] = "llama_cpp.server"  #: the module of llama-cpp-python
Program = Literal[
    "llama-server", "llama-cli", "llama-completion", "llama-fit-params", "llama-bench", "llama_cpp.server"
]  # fmt: skip
Kind = Literal["switch", "bool", "int", "unsigned", "real", "text", "pair", "list", "removed"]
Origin = Literal["argv", "env", "file"]

#: by the letter that stands for the program in the tables
PROGRAMS: Mapping[str, Program] = {
    "s": "llama-server",
    "c": "llama-cli",
    "p": "llama-completion",
    "f": "llama-fit-params",
    "b": "llama-bench",
}

#: options whose values add up
GROWING = frozenset(
    (
        "override-tensor", "cpu-moe", "n-cpu-moe", "n-cpu-ffn", "rpc", "spec-type", "spec-draft-override-tensor",
        "spec-draft-cpu-moe", "spec-draft-n-cpu-moe", "lora", "lora-scaled", "control-vector", "control-vector-scaled",
        "override-kv",
    )
)  # fmt: skip
#: numbers for which there are words as well
_COUNTS = frozenset(("gpu-layers", "spec-draft-ngl"))
#: switches with which a program prints something and ends
INFORMING = frozenset(
    (
        "-h", "--help", "--usage", "--version", "--license", "-cl", "--cache-list", "--list-devices",
        "--completion-bash",
    )
)  # fmt: skip
#: flags whose value changes no byte of memory
IRRELEVANT = frozenset(
    (
        "--port", "--host", "--api-key", "--api-key-file", "--api-prefix", "-a", "--alias", "--path", "--log-file",
        "--ssl-key-file", "--ssl-cert-file", "-to", "--timeout", "-s", "--seed", "--temp", "--threads-http",
    )
)  # fmt: skip
FILES = frozenset(
    (
        "--api-key-file", "--ssl-key-file", "--ssl-cert-file", "--chat-template-file", "--grammar-file", "-jf",
        "--json-schema-file", "--media-path", "--path", "--ui-config-file", "--webui-config-file",
    )
)  # fmt: skip
"""Flags of files and folders that the server reads, beside models."""
SECRET = frozenset(("api-key", "hf-token"))

#: what to write instead of options that are gone
SUCCESSORS = {
    "mmap": "-lm mmap, or -lm none for --no-mmap",
    "mlock": "-lm mmap+mlock, or -lm mlock with --no-mmap",
    "direct-io": "-lm dio",
    "draft": "--spec-draft-n-max, or --spec-ngram-mod-n-max",
    "draft-min": "--spec-draft-n-min, or --spec-ngram-mod-n-min",
    "spec-ngram-size-n": "--spec-ngram-*-size-n",
    "spec-ngram-size-m": "--spec-ngram-*-size-m",
    "spec-ngram-min-hits": "--spec-ngram-*-min-hits",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option of the engine. `key` is the same in every build: the first long spelling of b11311, without dashes.

    Where an option can only be denied (`--no-mmap` of old builds), there are `negations` and no `spellings`.
    """

    key: str
    kind: Kind
    programs: frozenset[Program]
    env: str | None
    spellings: tuple[str, ...]
    negations: tuple[str, ...] = ()
    successor: str | None = None  #: what to write instead of a removed one

    @property
    def n_values(self) -> int:
        return {"switch": 0, "bool": 0, "pair": 2}.get(self.kind, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One option as it was given. `value` is a number (`int`), a truth value (`switch`, `bool`) or text."""

    option: Option
    value: str | int | bool
    second: str | None = None
    spelling: str  #: as written, or the name of the variable or key
    origin: Origin = "argv"
    path: str | None = None  #: of the settings file that it is from
    cut: str | None = None  #: the whole text, where only the number that it begins with counts
    n_words: int = 0  #: that it has in the command, where that does not follow from its option

    def written(self) -> tuple[str, ...]:
        """The arguments that say the same as this variable or key does."""
        spellings = self.option.negations if self.value is False else self.option.spellings
        if self.option.kind == "list":
            return (spellings[0], *str(self.value).split(","))
        if isinstance(self.value, bool) and self.option.n_values:
            return spellings[0], str(self.value).lower()
        return (spellings[0],) if self.option.n_values == 0 else (spellings[0], str(self.value))


def option(key: str, version: Version, program: Program = "llama-server") -> Option | None:
    """An option as it may be written in a command for this version; `None` where it is not sure to have it."""
    found: Option | None = None
    for build in around(version.build):
        here = _option_of(build, key, program)
        if here is None or (found is not None and here.n_values != found.n_values):
            return None
        found = here if found is None else _common(found, here)
    return found


def offers(version: Version, key: str, program: Program = "llama-server") -> bool:
    """Whether an option may be written in a command for this version."""
    return option(key, version, program) is not None


def _common(older: Option, newer: Option) -> Option | None:
    """The option with the spellings that both builds take."""
    spellings = tuple(name for name in newer.spellings if name in older.spellings)
    negations = tuple(name for name in newer.negations if name in older.negations)
    if not spellings and not negations:
        return None
    kind = older.kind if older.kind in ("int", "unsigned", "real") else newer.kind
    return replace(newer, kind=kind, spellings=spellings, negations=negations)


TRUE_WORDS = frozenset(("on", "enabled", "true", "1"))
FALSE_WORDS = frozenset(("off", "disabled", "false", "0"))
AUTO_WORDS = frozenset(("auto", "-1"))


def is_flag(token: str) -> bool:
    return bool(re.match(r"--?[A-Za-z]", token))


def make_flag(program: str, option: Option, text: str, spelling: str, origin: Origin) -> Flag:
    """A flag with one value.

    Raises:
        UsageError: it refuses this value.
    """
    return flag_of(program, option, True, (text,), spelling, origin)


def flag_of(program: str, option: Option, positive: bool, values: Sequence[str], spelling: str, origin: Origin) -> Flag:
    value: str | int | bool = positive
    cut: str | None = None
    if option.kind == "removed":
        raise UsageError(f"{program} refuses {spelling}: the argument has been removed", hint=f"use {option.successor}")
    if values:
        value = values[0]
    try:
        if option.key in _COUNTS:  # builds without the words for numbers take an int
            if option.kind == "int" or values[0] not in ("auto", "all"):
                _ = integer(values[0])
        elif option.kind == "int":
            value = integer(values[0])
        elif option.kind == "real":
            real(values[0])
        elif option.kind == "unsigned":
            unsigned(values[0])
        elif option.kind == "pair" and option.key == "control-vector-layer-range":
            _ = integer(values[0]), integer(values[1])
        elif option.kind == "pair":  # a file and its scale, which are one word since
            real(values[1])
            value, values = f"{values[0]}:{values[1]}", values[:1]
    except ValueError as error:
        raise UsageError(f"{program} refuses {spelling} {values[0][:40]!r}: {error}") from error
    if option.kind == "int" or option.key in _COUNTS:
        cut = None if re.fullmatch(r"\s*(?:[+-]?[0-9]+|auto|all)\s*", values[0]) else values[0]
    second = values[1] if len(values) > 1 else None
    return Flag(option=option, value=value, second=second, spelling=spelling, origin=origin, cut=cut)


@cache
def _lines() -> tuple[tuple[str, str], ...]:
    """The lines of the table: the builds that have one, and the rest."""
    return tuple(tuple(line.split(" ", 1)) for line in TABLE.strip().split("\n"))  # type: ignore[misc]


@cache
def _option(line: str) -> Option:
    key, kind, letters, env, *names = line.split(" ")
    return Option(
        key=key,
        kind=kind,  # type: ignore[arg-type]
        programs=frozenset(PROGRAMS[letter] for letter in letters if letter != "-"),
        env=None if env == "-" else env,
        spellings=() if names[0] == "-" else tuple(names[0].split(",")),
        negations=tuple(names[1].split(",")) if len(names) > 1 else (),
        successor=SUCCESSORS.get(key),
    )


@cache
def _of_build(build: int) -> tuple[Option, ...]:
    """The options of a recorded build."""
    return tuple(_option(line) for runs, line in _lines() if within(runs, build))


@cache
def _by_key() -> Mapping[str, tuple[tuple[str, str], ...]]:
    found: dict[str, tuple[tuple[str, str], ...]] = {}
    for runs, line in _lines():
        key = line[: line.index(" ")]
        found[key] = (*found.get(key, ()), (runs, line))
    return found


@cache
def _option_of(build: int, key: str, program: Program) -> Option | None:
    """An option of a recorded build, but for those that it has only to refuse them."""
    here = (_option(line) for runs, line in _by_key().get(key, ()) if within(runs, build))
    return next((option for option in here if program in option.programs and option.kind != "removed"), None)


def elsewhere(version: Version) -> frozenset[str]:
    """Every spelling of any program of this version."""
    return frozenset(
        name
        for build in around(version.build)
        for option in _of_build(build)
        for name in (*option.spellings, *option.negations)
    )


def builds_with(program: Program, spelling: str) -> tuple[int, ...]:
    """The recorded builds whose program takes a flag, oldest first."""
    found: list[int] = []
    for runs, line in _lines():
        if spelling in line:
            option = _option(line)
            names = (*option.spellings, *option.negations)
            if spelling in names and program in option.programs and option.kind != "removed":
                found += [build for build in numbers() if within(runs, build)]
    return tuple(sorted(set(found)))


@cache
def accepted(program: Program, version: Version) -> tuple[Option, ...]:
    """What a version may accept. Where two builds that it may be like differ in an option, it is the newer one's."""
    found: list[Option] = []
    taken: set[str] = set()
    newest_first = [option for build in reversed(around(version.build)) for option in _of_build(build)]
    for option in sorted(newest_first, key=lambda option: option.kind == "removed"):  # one of them may still take it
        names = {*option.spellings, *option.negations}
        if program in option.programs and not taken & names:
            found.append(option)
            taken |= names
    return tuple(found)


@cache
def spellings(program: Program, version: Version) -> Mapping[str, tuple[Option, bool]]:
    """Every spelling that a version may accept, with its option and whether it is the positive one."""
    found: dict[str, tuple[Option, bool]] = {}
    for option in accepted(program, version):
        found |= dict.fromkeys(option.spellings, (option, True))
        found |= dict.fromkeys(option.negations, (option, False))
    return found


def flags_of(program: str) -> Mapping[str, Sequence[str] | None]:
    """The flags of a program of the newest build, with the words that they take: none where any value may stand."""
    known = next((one for one in PROGRAMS.values() if one == program), None)
    if known is None:
        return {}
    words: Mapping[str, Sequence[str]] = {
        "flash-attn": ("on", "off", "auto"),
        "cache-type-k": KV_TYPES,
        "cache-type-v": KV_TYPES,
    }
    found: dict[str, Sequence[str] | None] = {}
    for name, (option, _) in spellings(known, NEWER).items():
        if option.kind != "removed":
            found[name] = words.get(option.key, ()) if option.n_values else None
    return found


def refusal(program: str, flag: Flag, error: ValueError) -> UsageError:
    value = "" if flag.option.n_values == 0 else f" '{printable(str(flag.value), 60)}'"
    return UsageError(f"{program} refuses {flag.spelling}{value}: {error}")
