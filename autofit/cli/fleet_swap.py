"""A llama-swap configuration as a fleet: its models' commands, and each set that may be loaded at once as a phase."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from autofit.cli.commands import is_engine
from autofit.deployments.reading import read_swap
from autofit.domain.text import printable
from autofit.errors import UsageError
from autofit.inputs import split_assignments
from autofit.text.launchers import unwrap

ENDS = (".yaml", ".yml")


def table_of(path: str) -> dict[str, Any]:
    """The table of the fleet (`docs/fleet.md`) that a configuration describes. What is not an engine's command is left
    out, and that is said on stderr.

    Raises:
        UsageError: no model of it is an engine's, a macro has no value here, or the file is damaged.
    """
    models, sets = read_swap(path, _is_engine, os.environ)
    where = printable(path, 200)
    commands: dict[str, list[str]] = {}
    for name, own in models:
        if len(own) != 1:
            said = f"{printable(name, 60)}: no engine that is known starts it: its memory does not count"
            print(f"autofit: {where}: {said}", file=sys.stderr)
        elif own[0].unknown is not None:
            raise UsageError(f"{where}: {printable(name, 60)}: {own[0].unknown}")
        else:
            commands[name] = [*(f"{key}={value}" for key, value in own[0].environ), *own[0].argv]
    if not commands:
        raise UsageError(f"{where}: no model of llama-swap that an engine serves is in it")
    names = _names(list(commands))
    ours = [some.intersection(commands) for some in sets]
    largest = [some for some in dict.fromkeys(ours) if some and not any(some < other for other in ours)]
    phases = {name: [f"set{i}" for i, some in enumerate(largest, 1) if name in some] for name in commands}
    return {
        "phases": [f"set{i}" for i in range(1, len(largest) + 1)],
        "model": [{"name": names[name], "command": words, "phases": phases[name]} for name, words in commands.items()],
    }


def _is_engine(argv: tuple[str, ...]) -> bool:
    try:
        return is_engine(unwrap(split_assignments(argv)[1]).argv)
    except UsageError:
        return False


def _names(models: Sequence[str]) -> dict[str, str]:
    """A fleet's name for each model."""
    found: dict[str, str] = {}
    for model in models:
        plain = re.sub(r"[^A-Za-z0-9._-]", "-", model).lstrip("._-")[:50] or "model"
        name, n = plain, 2
        while name in found.values():
            name, n = f"{plain}-{n}", n + 1
        found[model] = name
    return found
