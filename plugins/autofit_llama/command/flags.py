"""llama.cpp's command line and variables, taken apart exactly as its own parser does.

Source: common/arg.cpp:common_params_parse_ex (underscores in long flags, the last of a repeated flag, no
`--flag=value`), get_value_from_env (`LLAMA_ARG_...`, `LLAMA_ARG_NO_...`),
tools/llama-bench/llama-bench.cpp:parse_cmd_params.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import PurePath, PureWindowsPath
from shlex import quote
from typing import Literal

from autofit.domain.values import dataclass
from autofit.errors import UsageError

from autofit_llama.command.flag_table import TABLE
from autofit_llama.engine.versions import LATEST, LEGACY, Version

Program = Literal["llama-server", "llama-cli", "llama-completion", "llama-fit-params", "llama-bench"]
Kind = Literal["switch", "bool", "int", "unsigned", "real", "text", "pair", "removed"]
Origin = Literal["argv", "env", "file"]

_LETTERS: Mapping[str, Program] = {
    "s": "llama-server",
    "c": "llama-cli",
    "p": "llama-completion",
    "f": "llama-fit-params",
    "b": "llama-bench",
}
_NAMES: Mapping[str, Program] = {name: name for name in _LETTERS.values()}
#: words of the program `llama` (app/llama.cpp)
_WORDS: Mapping[str, Program] = {
    "serve": "llama-server",
    "server": "llama-server",
    "cli": "llama-cli",
    "client": "llama-cli",
    "completion": "llama-completion",
    "complete": "llama-completion",
    "fit-params": "llama-fit-params",
    "bench": "llama-bench",
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A command line taken apart.

    `unknown` are tokens that no known option takes, in order; `unread` the engine's variables that are set, and keys
    of its settings files, that this program and version never look at; `unsure` settings files of which that is not
    known.
    """

    program: Program
    words: tuple[str, ...]
    flags: tuple[Flag, ...]
    unknown: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()
    version: Version = LATEST

    def unwritten(self, origin: Origin) -> Iterator[tuple[Flag, bool]]:
        """Flags of variables or files, and whether a later one takes the place of each."""
        for i, flag in enumerate(self.flags):
            if flag.origin == origin:
                key = flag.option.key
                yield flag, key not in GROWING and any(other.option.key == key for other in self.flags[i + 1 :])

    def given(self, key: str) -> Flag | None:
        """The last flag of an option, which is the one that counts."""
        return next((flag for flag in reversed(self.flags) if flag.option.key == key), None)


def find_program(argv: Sequence[str]) -> tuple[Program, tuple[str, ...], tuple[str, ...]]:
    """The program, the words that name it and the rest; what begins with a flag is llama-server's.

    Raises:
        UsageError: another program.
    """
    if not argv or argv[0].startswith("-"):
        return "llama-server", (), tuple(argv)
    name = PureWindowsPath(PurePath(argv[0]).name).name.removesuffix(".exe")
    if name == "llama" and len(argv) > 1 and argv[1] in _WORDS:
        return _WORDS[argv[1]], tuple(argv[:2]), tuple(argv[2:])
    if name not in _NAMES:
        known = ", ".join(_LETTERS.values())
        raise UsageError(
            f"not a program of llama.cpp that can be planned for: {argv[0][:80]!r}", hint=f"known: {known}"
        )
    return _NAMES[name], (argv[0],), tuple(argv[1:])


def read(argv: Sequence[str], env: Mapping[str, str] | None = None, *, version: Version = LATEST) -> Reading:
    """Take a command apart: settings files, then variables, then the command line, each in the engine's order.

    `env` holds variables by name, and the texts of settings files by path. Flags unknown to every version known here
    are kept with what follows them, for a newer engine may take them.

    Raises:
        UsageError: a flag or value that this version of the engine refuses.
    """
    program, words, rest = find_program(argv)
    known = _spellings(program, version) if rest else {}
    flags, unread = _surroundings(program, env, version) if env and program != "llama-bench" else ([], ())
    unknown: list[str] = []
    at, in_unknown = 0, False
    while at < len(rest):
        token = rest[at]
        spelling = token.replace("_", "-") if token.startswith("--") else token
        at += 1
        found = known.get(spelling)
        if found is None:
            if in_unknown and not is_flag(token):
                unknown.append(token)
                continue
            last = flags[-1] if flags else None
            if last is not None and not is_flag(token) and last.option.n_values == 1 and str(last.value) in known:
                raise UsageError(
                    f"{program} refuses {token[:80]!r}: {last.spelling} takes a value, and took {last.value}",
                    hint=_hint_of_value(last.option),
                )
            _check_unknown(program, token, spelling, version)
            unknown.append(token)
            in_unknown = True
            continue
        in_unknown = False
        option, positive = found
        values = rest[at : at + option.n_values]
        if len(values) < option.n_values:
            raise UsageError(f"{program} refuses {spelling}: a value is expected", hint=_hint_of_value(option))
        at += option.n_values
        flags.append(_flag(program, option, positive, values, spelling, "argv"))
    return Reading(
        program=program,
        words=words,
        flags=tuple(flags),
        unknown=tuple(unknown),
        unread=(*unread_variables(env or {}, program, version=version), *unread),
        unsure=() if version.reads_files or not version.may_read_files else tuple(filter(_is_path, env or ())),
        version=version,
    )


def unread_variables(env: Mapping[str, str], program: Program, *, version: Version = LATEST) -> tuple[str, ...]:
    """Names that look like the engine's variables and that this program and version never read."""
    if not any(name.startswith("LLAMA_ARG_") for name in env):
        return ()
    read_ones: set[str] = set()
    for option in () if program == "llama-bench" else _accepted(program, version):
        if option.env is not None:
            read_ones.add(option.env)
            if option.negations:
                read_ones.add(option.env.replace("LLAMA_ARG_", "LLAMA_ARG_NO_"))
    return tuple(sorted(name for name in env if name.startswith("LLAMA_ARG_") and name not in read_ones))


def option(key: str, program: Program = "llama-server") -> Option:
    """An option of the newest version by its key."""
    found = (_option(key, line) for line in _lines().get(key, ()))
    return next(option for option in found if program in option.programs)


def integer(text: str) -> int:
    """`std::stoi`: what begins like a number counts as far as it goes.

    Raises:
        ValueError: no number, or outside 32 bits.
    """
    found = re.match(r"[ \t\n\v\f\r]*([+-]?[0-9]{1,40})", text)
    if not found:
        raise ValueError("not a number")
    number = int(found[1])
    if not -(1 << 31) <= number < 1 << 31:
        raise ValueError("outside the range of a 32-bit number")
    return number


def real(text: str) -> float:
    """`std::stof`, but for hexadecimal numbers.

    Raises:
        ValueError: no number, or outside single precision.
    """
    found = re.match(
        r"[ \t\n\v\f\r]*([+-]?(?:[0-9]{1,400}\.?[0-9]{0,400}|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,6})?)", text
    )
    if not found:
        word = re.match(r"\s*([+-]?(?:nan|inf))", text, re.IGNORECASE)
        if not word:
            raise ValueError("not a number")
        return float(word[1])
    number = float(found[1])
    if abs(number) > MAX_SINGLE or (number != 0 and abs(number) < 1.1754943508222875e-38):
        raise ValueError("outside the range of a single-precision number")
    return number


def _unsigned(text: str) -> int:
    """`std::stoul`, which also takes negative numbers."""
    found = re.match(r"[ \t\n\v\f\r]*([+-]?[0-9]{1,40})", text)
    if not found:
        raise ValueError("not a number")
    number = int(found[1])
    if abs(number) >= 1 << 64:
        raise ValueError("outside the range of a 64-bit number")
    return number


MAX_SINGLE = 3.4028235e38  #: the greatest number of single precision
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
    return _flag(program, option, True, (text,), spelling, origin)


def _is_path(name: str) -> bool:
    """Of a settings file, and not the name of a variable."""
    return "/" in name or "\\" in name


def _surroundings(program: Program, env: Mapping[str, str], version: Version) -> tuple[list[Flag], tuple[str, ...]]:
    """Flags of settings files and variables, and the keys of the files that are passed over."""
    files = {name: text for name, text in env.items() if _is_path(name)}
    if not files or not version.reads_files:
        return list(_from_env(program, env, version)), ()
    from autofit_llama.command.config_file import flags_of

    flags, unread = flags_of(files, program, _accepted(program, version))
    return [*flags, *_from_env(program, env, version)], unread


def _hint_of_value(option: Option) -> str | None:
    """Flash attention was a switch for years."""
    return f"write {option.spellings[0]} on" if option.key == "flash-attn" else None


def _flag(program: str, option: Option, positive: bool, values: Sequence[str], spelling: str, origin: Origin) -> Flag:
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
            _unsigned(values[0])
        elif option.kind == "pair":  # the one there is holds two layer numbers
            _ = integer(values[0]), integer(values[1])
    except ValueError as error:
        raise UsageError(f"{program} refuses {spelling} {values[0][:40]!r}: {error}") from error
    if option.kind == "int" or option.key in _COUNTS:
        cut = None if re.fullmatch(r"\s*(?:[+-]?[0-9]+|auto|all)\s*", values[0]) else values[0]
    second = values[1] if len(values) > 1 else None
    return Flag(option=option, value=value, second=second, spelling=spelling, origin=origin, cut=cut)


def _from_env(program: Program, env: Mapping[str, str], version: Version) -> Iterator[Flag]:
    for option in _accepted(program, version):
        if option.env is None:
            continue
        negative = option.env.replace("LLAMA_ARG_", "LLAMA_ARG_NO_")
        name = negative if option.negations and negative in env else option.env
        text = env.get(name)
        if text is None:
            continue
        if option.kind == "switch":
            if text in TRUE_WORDS:
                yield Flag(option=option, value=True, spelling=name, origin="env")
        elif option.kind == "bool":
            value = name == option.env and text in TRUE_WORDS
            if name == option.env and text not in TRUE_WORDS | FALSE_WORDS:
                raise UsageError(f"{program} refuses {name}={text[:40]!r}: not a truth value", hint="write on or off")
            yield Flag(option=option, value=value, spelling=name, origin="env")
        else:
            yield _flag(program, option, True, (text,), name, "env")


def _check_unknown(program: Program, token: str, spelling: str, version: Version) -> None:
    """Refuse bare words, `--flag=value`, and flags of other versions and programs."""
    if not is_flag(token):
        hint = "give its flags alone, without the program" if PurePath(token).name in _NAMES else None
        raise UsageError(f"{program} refuses {token[:80]!r}: it takes no positional argument", hint=hint)
    for legacy in LEGACY:
        if spelling in (*legacy.spellings, *legacy.negations) and version.has(legacy.change):
            raise UsageError(f"{program} refuses {spelling}: removed from llama.cpp", hint=f"write {legacy.successor}")
    name, equals, _ = spelling.partition("=")
    if equals and name in _spellings(program, version):
        raise UsageError(
            f"{program} refuses {token[:80]!r}: llama.cpp does not read --flag=value",
            hint=f"write {name} {quote(token.partition('=')[2][:200])}",
        )
    for other in _LETTERS.values():
        if spelling in _spellings(other, version):
            raise UsageError(f"{program} refuses {spelling}: it is a flag of {other}")
        newest = _spellings(other, LATEST).get(spelling)
        if newest is not None and version.refuses(newest[0].key):
            raise UsageError(f"{program} refuses {spelling}: llama.cpp {version.name} is too old for it")
    if spelling in _elsewhere():
        raise UsageError(f"{program} refuses {spelling}: it is a flag of another program of llama.cpp")


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
        programs=frozenset(_LETTERS[letter] for letter in letters if letter != "-"),
        env=None if env == "-" else env,
        spellings=tuple(names[0].split(",")),
        negations=tuple(names[1].split(",")) if len(names) > 1 else (),
        successor=_SUCCESSORS.get(key),
    )


@cache
def _options() -> tuple[Option, ...]:
    return tuple(_option(key, line) for key, lines in _lines().items() for line in lines)


@cache
def _elsewhere() -> frozenset[str]:
    return frozenset(name for option in _options() for name in (*option.spellings, *option.negations))


@cache
def _accepted(program: Program, version: Version) -> tuple[Option, ...]:
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
def _spellings(program: Program, version: Version) -> Mapping[str, tuple[Option, bool]]:
    """Every spelling that a version may accept, with its option and whether it is the positive one."""
    found: dict[str, tuple[Option, bool]] = {}
    for option in _accepted(program, version):
        found |= dict.fromkeys(option.spellings, (option, True))
        found |= dict.fromkeys(option.negations, (option, False))
    return found
