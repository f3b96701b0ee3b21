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
from autofit.domain.values import dataclass
from autofit.errors import UsageError

from autofit_llama.command.flag_table import TABLE
from autofit_llama.engine.numbers import integer, real, unsigned
from autofit_llama.engine.versions import LEGACY, Version

Program = Literal["llama-server", "llama-cli", "llama-completion", "llama-fit-params", "llama-bench"]
Kind = Literal["switch", "bool", "int", "unsigned", "real", "text", "pair", "removed"]
Origin = Literal["argv", "env", "file"]

#: by the letter that stands for the program in the tables
PROGRAMS: Mapping[str, Program] = {
    "s": "llama-server",
    "c": "llama-cli",
    "p": "llama-completion",
    "f": "llama-fit-params",
    "b": "llama-bench",
}

#: tools/llama-bench/llama-bench.cpp:parse_cmd_params; every value may be a list
_BENCH_TABLE = """
switch b - -h,--help
switch b - --version
text b - -m,--model
text b - -hf,-hfr,--hf-repo
text b - -hff,--hf-file
text b HF_TOKEN -hft,--hf-token
switch b - --offline
text b - -p,--n-prompt
text b - -n,--n-gen
text b - -pg
text b - -d,--n-depth
text b - -b,--batch-size
text b - -ub,--ubatch-size
text b - -ctk,--cache-type-k
text b - -ctv,--cache-type-v
text b - -dev,--device
switch b - --list-devices
text b - -t,--threads
text b - -C,--cpu-mask
text b - --cpu-strict
text b - --poll
text b - -ngl,--n-gpu-layers
text b - -ncmoe,--n-cpu-moe
text b - -rpc,--rpc
text b - -sm,--split-mode
text b - -lm,--load-mode
text b - -lzm,--lazy-mode
text b - -mg,--main-gpu
text b - -nkvo,--no-kv-offload
text b - --numa
text b - -fa,--flash-attn
text b - -embd,--embeddings
text b - -nopo,--no-op-offload
text b - --no-host
text b - --repack
text b - -ts,--tensor-split
text b - -ot,--override-tensor
int b - -r,--repetitions
int b - --prio
int b - --delay
text b - -o,--output
text b - -oe,--output-err
switch b - -v,--verbose
switch b - --progress
switch b - --no-warmup
text b - -fitt,--fit-target
text b - -fitc,--fit-ctx
"""

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
SECRET = frozenset(("api-key", "hf-token"))

#: of options that the parser still knows, to refuse them
_SUCCESSORS = {
    "draft": "--spec-draft-n-max, or --spec-ngram-mod-n-max",
    "draft-min": "--spec-draft-n-min, or --spec-ngram-mod-n-min",
    "spec-ngram-size-n": "--spec-ngram-*-size-n",
    "spec-ngram-size-m": "--spec-ngram-*-size-m",
    "spec-ngram-min-hits": "--spec-ngram-*-min-hits",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option of the engine. `key` is its first long spelling without dashes."""

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

    def written(self) -> tuple[str, ...]:
        """The arguments that say the same as this variable or key does."""
        spellings = self.option.negations if self.value is False else self.option.spellings
        return (spellings[0],) if self.option.n_values == 0 else (spellings[0], str(self.value))


def option(key: str, program: Program = "llama-server") -> Option:
    """An option of the newest version by its key."""
    found = (_option(key, line) for line in _lines().get(key, ()))
    return next(option for option in found if program in option.programs)


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
        if option.kind == "int":
            value = integer(values[0])
        elif option.key in _COUNTS and values[0] not in ("auto", "all"):
            _ = integer(values[0])
        elif option.kind == "real":
            real(values[0])
        elif option.kind == "unsigned":
            unsigned(values[0])
        elif option.kind == "pair":  # the one there is holds two layer numbers
            _ = integer(values[0]), integer(values[1])
    except ValueError as error:
        raise UsageError(f"{program} refuses {spelling} {values[0][:40]!r}: {error}") from error
    if option.kind == "int" or option.key in _COUNTS:
        cut = None if re.fullmatch(r"\s*(?:[+-]?[0-9]+|auto|all)\s*", values[0]) else values[0]
    second = values[1] if len(values) > 1 else None
    return Flag(option=option, value=value, second=second, spelling=spelling, origin=origin, cut=cut)


@cache
def _lines() -> Mapping[str, tuple[str, ...]]:
    """The lines of the tables by the key of their option: a key may mean another thing to another program."""
    found: dict[str, tuple[str, ...]] = {}
    for line in (*TABLE.strip().splitlines(), *_BENCH_TABLE.strip().splitlines()):
        spellings = line.split(" ", 4)[3].split(",")
        key = next((name for name in spellings if name.startswith("--")), spellings[0]).lstrip("-")
        found[key] = (*found.get(key, ()), line)
    return found


@cache
def _option(key: str, line: str) -> Option:
    kind, letters, env, *names = line.split(" ")
    return Option(
        key=key,
        kind=kind,  # type: ignore[arg-type]
        programs=frozenset(PROGRAMS[letter] for letter in letters if letter != "-"),
        env=None if env == "-" else env,
        spellings=tuple(names[0].split(",")),
        negations=tuple(names[1].split(",")) if len(names) > 1 else (),
        successor=_SUCCESSORS.get(key),
    )


@cache
def _options() -> tuple[Option, ...]:
    return tuple(_option(key, line) for key, lines in _lines().items() for line in lines)


@cache
def elsewhere() -> frozenset[str]:
    return frozenset(name for option in _options() for name in (*option.spellings, *option.negations))


@cache
def accepted(program: Program, version: Version) -> tuple[Option, ...]:
    """What a version may accept; a legacy option replaces the one that is kept to refuse it."""
    legacy = tuple(
        Option(
            key=old.spellings[-1].lstrip("-"),
            kind=old.kind,  # type: ignore[arg-type]
            programs=frozenset((program,)),
            env=old.env,
            spellings=old.spellings,
            negations=old.negations,
            successor=old.successor,
        )
        for old in LEGACY
        if program != "llama-bench" and not version.has(old.change)
    )
    taken = {name for option in legacy for name in option.spellings}
    return legacy + tuple(
        option
        for option in _options()
        if program in option.programs and not version.refuses(option.key) and option.spellings[0] not in taken
    )


@cache
def spellings(program: Program, version: Version) -> Mapping[str, tuple[Option, bool]]:
    """Every spelling that a version may accept, with its option and whether it is the positive one."""
    found: dict[str, tuple[Option, bool]] = {}
    for option in accepted(program, version):
        found |= dict.fromkeys(option.spellings, (option, True))
        found |= dict.fromkeys(option.negations, (option, False))
    return found


def refusal(program: str, flag: Flag, error: ValueError) -> UsageError:
    value = "" if flag.option.n_values == 0 else f" {printable(str(flag.value), 60)!r}"
    return UsageError(f"{program} refuses {flag.spelling}{value}: {error}")
