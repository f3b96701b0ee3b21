"""What may stand where the cursor is, in a command line of autofit; the shells ask, and show it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from autofit.errors import AutofitError
from autofit.host import host, resolve
from autofit.settings.options import BY_NAME
from autofit.text.programs import program_name

Offer = tuple[str, str]  #: a word, and one line about it
_PLAIN = re.compile(r"[\w.+@%/:=,-]+", re.ASCII)  #: words that mean themselves to every shell
_FILES = frozenset(("FILE", "DIR", "LOG", "MODEL", "PATH=HERE"))
_COUNT = re.compile(r"[0-9]+x")
MAX_WORDS = 1000


def complete(words: Sequence[str]) -> list[Offer] | None:
    """Offers for the last of the words behind `autofit`, which may be empty; `None`: names of files.

    What cannot be told, such as a number, is an empty list.
    """
    *before, current = words[-MAX_WORDS:] or ("",)
    try:
        found = _commands() if not before else _arguments(before, current)
    except AutofitError:  # a plugin that fails, or a command that is none
        return []
    if found is None:
        return None
    return [(word, about) for word, about in found if word.startswith(current) and _PLAIN.fullmatch(word)]


def _commands() -> Iterator[Offer]:
    refs: tuple[Mapping[str, object], ...] = (host().backends(), host().commands())
    for known in refs:
        yield from ((name, str(getattr(ref, "summary", ""))) for name, ref in known.items())
    yield from (("--help", "what there is"), ("--version", "of autofit"))


def _arguments(before: Sequence[str], current: str) -> Iterable[Offer] | None:
    """What fits behind a command and the words after it."""
    command, *given = before
    parser = parser_of(command)
    if parser is None:
        return []
    if "--" in given:
        return _of_engine(command, given[given.index("--") + 1 :], current)
    by_flag = {flag: action for action in parser._actions for flag in action.option_strings}
    flag, equals, _ = current.partition("=")
    if equals and flag in by_flag:
        offers = _values(by_flag[flag], command, current.removeprefix(f"{flag}="))
        return offers and [(f"{flag}={word}", about) for word, about in offers]
    if current.startswith("-"):
        return _flags(parser)
    waiting = _waiting(given, by_flag)
    if waiting is not None:
        return _values(waiting, command, current)
    return _positional(parser, _n_positional(given, by_flag), command, current)


def _of_engine(command: str, given: Sequence[str], current: str) -> Iterable[Offer] | None:
    """Behind `--`: flags of the engine that is planned for, or of the program whose command it is."""
    backends = host().backends()
    if command in backends:
        return _engine_flags(host().backend(command).flags(), given, current)
    programs = {program: name for name in backends for program in host().backend(name).programs}
    if not given:
        return [(program, host().backend(name).engine) for program, name in programs.items()] if current else None
    program = program_name(given)
    if program not in programs:
        return None
    return _engine_flags(host().backend(programs[program]).flags(program), given[1:], current)


def _engine_flags(
    flags: Mapping[str, Sequence[str] | None], given: Sequence[str], current: str
) -> Iterable[Offer] | None:
    flag, equals, _ = current.partition("=")
    if equals and flag.startswith("-"):
        words = flags.get(flag)
        return [(f"{flag}={word}", "") for word in words] if words else None
    if current.startswith("-"):
        return [(name, "") for name in flags]
    words = flags.get(given[-1]) if given else None
    return [(word, "") for word in words] if words else None


def parser_of(command: str) -> argparse.ArgumentParser | None:
    """The parser of a command's own options; `None`: there is no such command.

    Raises:
        PluginError: it cannot be made.
    """
    from autofit.cli import plan
    from autofit.cli.main import new_parser
    from autofit.host import blamed

    if command in host().backends():
        parser = new_parser(command, "")
        plan.add_arguments(parser)
        return parser
    ref = host().commands().get(command)
    if ref is None:
        return None
    parser = new_parser(command, ref.summary)
    module = resolve(ref.factory)
    with blamed(ref.factory):
        module.add_arguments(parser)
    return parser


def _flags(parser: argparse.ArgumentParser) -> Iterator[Offer]:
    for action in parser._actions:
        if action.help != argparse.SUPPRESS:
            about = re.split(r": | \(", (action.help or "").replace("%%", "%"))[0]
            yield from ((flag, about) for flag in action.option_strings)
    yield "--settings", "a settings file in place of autofit.toml here"


def _takes(action: argparse.Action) -> bool:
    return action.nargs != 0


def _waiting(given: Sequence[str], by_flag: Mapping[str, argparse.Action]) -> argparse.Action | None:
    """The option whose value comes next."""
    for at, word in enumerate(reversed(given)):
        if word.startswith("-"):
            action = by_flag.get(word)
            if word == "--settings" and at == 0:
                return argparse.Action([word], "settings", metavar="FILE")
            if action is None or not _takes(action):
                return None
            return action if at == 0 or action.nargs in ("+", "*") else None
    return None


def _n_positional(given: Sequence[str], by_flag: Mapping[str, argparse.Action]) -> int:
    """How many words before the cursor are values of no option."""
    n, skips = 0, False
    for word in given:
        action = by_flag.get(word)
        if skips or word.startswith("-"):
            skips = word == "--settings" or (action is not None and _takes(action))
        else:
            n += 1
    return n


def _positional(parser: argparse.ArgumentParser, n: int, command: str, current: str) -> Iterable[Offer] | None:
    actions = [action for action in parser._actions if not action.option_strings]
    if not actions:
        return _flags(parser)
    many = actions[-1].nargs in ("+", "*")
    if n >= len(actions) and not many:
        return _flags(parser)
    return _values(actions[min(n, len(actions) - 1)], command, current)


def _values(action: argparse.Action, command: str, current: str) -> Iterable[Offer] | None:
    """Values of an option or of a place; `None`: names of files."""
    if action.choices is not None:
        return [(str(word), "") for word in action.choices]
    option = BY_NAME.get(action.dest)
    if option is not None and option.choices:
        return [(word, "") for word in option.choices]
    if action.dest in _KNOWN:
        return _KNOWN[action.dest](command, current)
    if action.metavar == "MODEL":
        return _models(current)
    metavar = str(action.metavar)
    return None if metavar in _FILES or "." in metavar else []


def _models(current: str) -> list[Offer] | None:
    """Models inside of autofit, where a word begins as they do; else names of files."""
    from autofit.sources.examples import example_names

    names = [(f"example:{name}", "described inside autofit") for name in example_names()]
    return names if current and any(name.startswith(current) for name, _ in names) else None


def _hardware(command: str, current: str) -> list[Offer]:
    from autofit.profiles import files, parse_toml, read_text

    match = _COUNT.match(current)
    count = match[0] if match else ""
    found = [(f"{count}cpu", "no GPU")] if not count else []
    for name, path in sorted(files("hardware", host().profile_dirs()).items()):
        if not f"{count}{name}".startswith(current):
            continue
        about = parse_toml(read_text(path), name).get("name", "")
        found.append((count + name, about if isinstance(about, str) else ""))
    return found


def _presets(command: str, current: str) -> list[Offer]:
    from autofit.profiles import list_presets

    return list(list_presets(host().profile_dirs()).items())


def _formats(command: str, current: str) -> list[Offer]:
    return [(name, ref.summary) for name, ref in host().renderers().items()]


def _backends(command: str, current: str) -> list[Offer]:
    return [(name, ref.summary) for name, ref in host().backends().items()]


def _kv(command: str, current: str) -> list[Offer]:
    names = [command] if command in host().backends() else list(host().backends())
    kinds = [kind for name in names for kind in host().backend(name).kv_types]
    return [(kind, "") for kind in dict.fromkeys(("auto", *kinds))]


_KNOWN: Mapping[str, Callable[[str, str], list[Offer]]] = {
    "on": _hardware,
    "have": _hardware,
    "name": _hardware,
    "preset": _presets,
    "format": _formats,
    "backend": _backends,
    "kv": _kv,
}
