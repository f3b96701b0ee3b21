"""The options that every planning command shares, and how they become a request."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autofit.settings import (
    SETTINGS_FILE,
    WISHES,
    Wishes,
    from_environment,
    from_flags,
    merge,
    read_settings_file,
)

if TYPE_CHECKING:
    from autofit.domain.plan import Origin


def add_wishes(parser: argparse.ArgumentParser, *, only: tuple[str, ...] = ()) -> None:
    """Add one option per wish; `only` restricts them."""
    group = parser.add_argument_group("wishes", "each also as AUTOFIT_NAME, in autofit.toml or in a preset")
    for wish in WISHES:
        if only and wish.name not in only:
            continue
        names = [*wish.flags, wish.option]
        if wish.metavar is None:
            group.add_argument(*names, dest=wish.name, action="store_true", default=None, help=wish.help)
        elif wish.many:
            group.add_argument(*names, dest=wish.name, action="append", metavar=wish.metavar, help=wish.help)
        elif wish.choices:
            group.add_argument(
                *names, dest=wish.name, metavar=wish.metavar, help=f"{wish.help}: {', '.join(wish.choices)}"
            )
        else:
            group.add_argument(*names, dest=wish.name, metavar=wish.metavar, help=wish.help)


def add_output(parser: argparse.ArgumentParser) -> None:
    from autofit.host import host

    group = parser.add_argument_group("output")
    words = ", ".join(host().renderers())
    group.add_argument("--format", default="shell", metavar="NAME", help=f"{words} (default shell)")
    group.add_argument("--explain", action="store_true", help="explain each setting on stderr")
    group.add_argument("-q", "--quiet", action="store_true", help="print the result alone, without a summary")


def collect(args: argparse.Namespace, backend: str) -> Wishes:
    """Wishes from flags, environment, settings files and preset, in that order.

    Raises:
        UsageError: a value that makes no sense, with the place it comes from.
    """
    given = vars(args)
    layers: list[tuple[Origin, dict[str, Any]]] = [
        ("user", from_flags(given)),
        ("environment", from_environment(os.environ)),
    ]
    layers += [("settings file", read_settings_file(path, backend)) for path in settings_files()]
    name = next((layer["preset"] for _, layer in layers if "preset" in layer), None)
    if name is not None:
        from autofit.pipeline import preset

        layers.append(("preset", preset(name, backend)))
    return merge(layers)


def settings_files() -> list[Path]:
    """`autofit.toml` here, then the user's."""
    config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    # os.path leaves a `~` alone that it cannot look up, pathlib raises
    places = [Path(SETTINGS_FILE), Path(os.path.expanduser(config)) / "autofit" / SETTINGS_FILE]  # noqa: PTH111
    return [path for path in places if path.is_file()]
