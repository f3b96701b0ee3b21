"""The options that every planning command shares."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

from autofit.settings.options import OPTIONS

if TYPE_CHECKING:
    import argparse

DEFAULT_FORMAT = "shell"


def plain_arguments(words: list[str], *, only: tuple[str, ...] = (), model: bool = True) -> SimpleNamespace | None:
    """What `argparse` makes of one `model` and options that are each a word and its value; None where it has to say.

    Most commands are so simple, and it takes a twentieth of a cold start to load and to be told all options. `only`
    restricts them, as for `add_options`.
    """
    taken = [option for option in OPTIONS if not only or option.name in only]
    known = {flag: option for option in taken for flag in (*option.flags, option.flag)}
    found = SimpleNamespace(model=None, format=DEFAULT_FORMAT, explain=False, quiet=False)
    vars(found).update((option.name, None) for option in taken)
    rest = iter(words)
    for word in rest:
        option = known.get(word)
        if word in ("-q", "--quiet", "--explain"):
            setattr(found, "explain" if word == "--explain" else "quiet", True)
        elif option is not None and option.metavar is None:
            setattr(found, option.name, True)
        elif model and word and not word.startswith("-") and found.model is None:
            found.model = word
        else:
            value = next(rest, "")
            if (option is None and word != "--format") or not value or value.startswith("-"):
                return None
            name = option.name if option else "format"
            setattr(found, name, [*(getattr(found, name) or ()), value] if option and option.many else value)
    return found


def add_options(parser: argparse.ArgumentParser, *, only: tuple[str, ...] = ()) -> None:
    """Add one flag per option; `only` restricts them."""
    group = parser.add_argument_group(
        "planning options", "each also as AUTOFIT_NAME, in autofit.toml (or --settings FILE), or in a preset"
    )
    for option in OPTIONS:
        if only and option.name not in only:
            continue
        names = [*option.flags, option.flag]
        if option.metavar is None:
            group.add_argument(*names, dest=option.name, action="store_true", default=None, help=option.help)
        elif option.many:
            group.add_argument(*names, dest=option.name, action="append", metavar=option.metavar, help=option.help)
        elif option.choices:
            group.add_argument(
                *names, dest=option.name, metavar=option.metavar, help=f"{option.help}: {', '.join(option.choices)}"
            )
        else:
            group.add_argument(*names, dest=option.name, metavar=option.metavar, help=option.help)


def given(args: object) -> dict[str, object]:
    """The options among parsed arguments, as text."""
    return {option.name: getattr(args, option.name, None) for option in OPTIONS}


def add_output(parser: argparse.ArgumentParser) -> None:
    from autofit.host import host

    group = parser.add_argument_group("output")
    words = ", ".join(host().renderers())
    group.add_argument("--format", default=DEFAULT_FORMAT, metavar="NAME", help=f"{words} (default {DEFAULT_FORMAT})")
    group.add_argument("--explain", action="store_true", help="explain each setting on stderr")
    group.add_argument("-q", "--quiet", action="store_true", help="print the result alone, without a summary")
