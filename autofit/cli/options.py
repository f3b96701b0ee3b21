"""The options that every planning command shares."""

from __future__ import annotations

import argparse

from autofit.settings.options import OPTIONS


def add_options(parser: argparse.ArgumentParser, *, only: tuple[str, ...] = ()) -> None:
    """Add one flag per option; `only` restricts them."""
    group = parser.add_argument_group("planning options", "each also as AUTOFIT_NAME, in autofit.toml or in a preset")
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


def given(args: argparse.Namespace) -> dict[str, object]:
    """The options among parsed arguments, as text."""
    return {option.name: getattr(args, option.name, None) for option in OPTIONS}


def add_output(parser: argparse.ArgumentParser) -> None:
    from autofit.host import host

    group = parser.add_argument_group("output")
    words = ", ".join(host().renderers())
    group.add_argument("--format", default="shell", metavar="NAME", help=f"{words} (default shell)")
    group.add_argument("--explain", action="store_true", help="explain each setting on stderr")
    group.add_argument("-q", "--quiet", action="store_true", help="print the result alone, without a summary")
