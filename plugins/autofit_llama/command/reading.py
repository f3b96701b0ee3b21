"""llama.cpp's command line and variables, taken apart exactly as its own parser does.

Source: common/arg.cpp:common_params_parse_ex (underscores in long flags, the last of a repeated flag, no
`--flag=value`), get_value_from_env (`LLAMA_ARG_...`, `LLAMA_ARG_NO_...`),
tools/llama-bench/llama-bench.cpp:parse_cmd_params.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath, PureWindowsPath
from shlex import quote

from autofit.domain.text import printable
from autofit.domain.values import dataclass
from autofit.errors import UsageError
from autofit.text.suggest import close_flags

from autofit_llama.command.options import (
    FALSE_WORDS,
    GROWING,
    PROGRAMS,
    SUCCESSORS,
    TRUE_WORDS,
    Flag,
    Option,
    Origin,
    Program,
    accepted,
    builds_with,
    elsewhere,
    flag_of,
    is_flag,
    spellings,
)
from autofit_llama.engine.naming import stranger_of
from autofit_llama.engine.versions import LATEST, Version

_PROGRAMS: Mapping[str, Program] = {name: name for name in PROGRAMS.values()}
#: words of the program `llama` (app/llama.cpp)
WORDS: Mapping[str, Program] = {
    "serve": "llama-server",
    "server": "llama-server",
    "cli": "llama-cli",
    "client": "llama-cli",
    "completion": "llama-completion",
    "complete": "llama-completion",
    "fit-params": "llama-fit-params",
    "bench": "llama-bench",
}


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
    settings_file: str | None = None  #: that says all there is to say, whatever the flags do
    others: tuple[str, ...] = ()  #: models that take the place of the first when a request asks for them

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
    if name == "llama" and len(argv) > 1 and argv[1] in WORDS:
        return WORDS[argv[1]], tuple(argv[:2]), tuple(argv[2:])
    if name not in _PROGRAMS and (stranger := stranger_of(name)) is not None:
        raise UsageError(
            f"{printable(name, 60)} is {stranger}, whose flags and defaults are not known here",
            hint="write what it loads as a command of llama-server to see what that takes",
        )
    if name not in _PROGRAMS:
        known = ", ".join(PROGRAMS.values())
        raise UsageError(
            f"not a program of llama.cpp that can be planned for: {argv[0][:80]!r}", hint=f"known: {known}"
        )
    return _PROGRAMS[name], (argv[0],), tuple(argv[1:])


def read(argv: Sequence[str], env: Mapping[str, str] | None = None, *, version: Version = LATEST) -> Reading:
    """Take a command apart: settings files, then variables, then the command line, each in the engine's order.

    `env` holds variables by name, and the texts of settings files by path. Flags unknown to every version known here
    are kept with what follows them where another version is named, which may take them.

    Raises:
        UsageError: a flag or value that this version of the engine refuses.
    """
    program, words, rest = find_program(argv)
    known = spellings(program, version) if rest else {}
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
        flags.append(flag_of(program, option, positive, values, spelling, "argv"))
    return Reading(
        program=program,
        words=words,
        flags=tuple(flags),
        unknown=tuple(unknown),
        unread=(*unread_variables(env or {}, program, version=version), *unread),
        unsure=tuple(filter(_is_path, env or ())) if _may_read_files(version) else (),
        version=version,
    )


def unread_variables(env: Mapping[str, str], program: Program, *, version: Version = LATEST) -> tuple[str, ...]:
    """Names that look like the engine's variables and that this program and version never read."""
    if not any(name.startswith("LLAMA_ARG_") for name in env):
        return ()
    read_ones: set[str] = set()
    for option in () if program == "llama-bench" else accepted(program, version):
        if option.env is not None:
            read_ones.add(option.env)
            if option.negations:
                read_ones.add(option.env.replace("LLAMA_ARG_", "LLAMA_ARG_NO_"))
    return tuple(sorted(name for name in env if name.startswith("LLAMA_ARG_") and name not in read_ones))


def _may_read_files(version: Version) -> bool:
    """Whether it is not known if this version reads settings files."""
    return version.perhaps("settings_files", "on") and not version.surely("settings_files", "on")


def _is_path(name: str) -> bool:
    """Of a settings file, and not the name of a variable."""
    return "/" in name or "\\" in name


def _surroundings(program: Program, env: Mapping[str, str], version: Version) -> tuple[list[Flag], tuple[str, ...]]:
    """Flags of settings files and variables, and the keys of the files that are passed over."""
    files = {name: text for name, text in env.items() if _is_path(name)}
    if not files or not version.surely("settings_files", "on"):
        return list(_from_env(program, env, version)), ()
    from autofit_llama.command.config_file import flags_of

    flags, unread = flags_of(files, program, accepted(program, version))
    return [*flags, *_from_env(program, env, version)], unread


def _hint_of_value(option: Option) -> str | None:
    """Flash attention was a switch for years."""
    return f"write {option.spellings[0]} on" if option.key == "flash-attn" else None


def _from_env(program: Program, env: Mapping[str, str], version: Version) -> Iterator[Flag]:
    for option in accepted(program, version):
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
            yield flag_of(program, option, True, (text,), name, "env")


def _check_other_builds(program: Program, spelling: str, version: Version) -> None:
    """Refuse a flag that this version does not have, and others do; the newest there is may have it again."""
    for other in (program, *PROGRAMS.values()):
        having = builds_with(other, spelling)
        if not having:
            continue
        later = next((build for build in having if build > version.build), None)
        if later is not None:
            raise UsageError(
                f"{program} refuses {spelling}: llama.cpp {version.name} is too old for it",
                hint=f"b{later} has it; if that is the build: --engine-version b{later}",
            )
        key = spellings(other, Version(build=having[-1]))[spelling][0].key
        raise UsageError(
            f"{program} refuses {spelling}: removed from llama.cpp; b{having[-1]} was the last with it that is known",
            hint=f"write {SUCCESSORS[key]}" if key in SUCCESSORS else None,
        )


def _check_unknown(program: Program, token: str, spelling: str, version: Version) -> None:
    """Refuse bare words, `--flag=value`, and flags of other versions and programs."""
    if not is_flag(token):
        hint = "give its flags alone, without the program" if PurePath(token).name in _PROGRAMS else None
        raise UsageError(f"{program} refuses {token[:80]!r}: it takes no positional argument", hint=hint)
    name, equals, _ = spelling.partition("=")
    if equals and name in spellings(program, version):
        raise UsageError(
            f"{program} refuses {token[:80]!r}: llama.cpp does not read --flag=value",
            hint=f"write {name} {quote(token.partition('=')[2][:200])}",
        )
    for other in PROGRAMS.values():
        if spelling in spellings(other, version):
            raise UsageError(f"{program} refuses {spelling}: it is a flag of {other}")
    _check_other_builds(program, spelling, version)
    if spelling in elsewhere(version):
        raise UsageError(f"{program} refuses {spelling}: it is a flag of another program of llama.cpp")
    if not version.has_unknown_flags:
        hint = close_flags(spelling, spellings(program, version)) or f"{program} --help lists its flags"
        raise UsageError(
            f"{program} refuses {token[:80]!r}: invalid argument in llama.cpp {version.name}",
            hint=f"{hint}; if a newer build has it, name that: --engine-version b{version.build + 1}",
        )
