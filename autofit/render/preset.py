"""A preset of autofit that keeps what was planned: `~/.config/autofit/presets/NAME.toml`, for `--preset NAME`."""

from __future__ import annotations

import tomlkit

from autofit.domain.plan import Plan
from autofit.domain.words import holds
from autofit.render.container import checked, deployment_of, heading


def render(plan: Plan) -> str:
    """The engine's flags, without the program, the model and what is loaded beside it.

    Raises:
        UsageError: a word that TOML cannot hold.
    """
    document = tomlkit.document()
    for row in heading(plan):
        document.add(tomlkit.comment(row))
    document.add("schema", tomlkit.item(1))
    document.add("summary", tomlkit.item(f"as planned: {plan.context_tokens} tokens of context"))
    table = tomlkit.table()
    table.add("engine-args", tomlkit.item([checked(word) for word in _flags(plan)]))
    document.add(plan.backend, table)
    return tomlkit.dumps(document).rstrip("\n")


def _flags(plan: Plan) -> list[str]:
    deployed = deployment_of(plan)
    flags: list[str] = []
    for word in plan.argv[len(deployed.program) :]:
        if not any(holds(word, name) for name in deployed.references):
            flags.append(word)
        elif flags and flags[-1].startswith("-"):  # the flag that the reference is the value of
            flags.pop()
    return flags
