"""A model of a llama-swap configuration. Source: llama-swap v165 (config.example.yaml, proxy/config)."""

from __future__ import annotations

import os.path
import shlex

from autofit.domain.plan import Plan
from autofit.errors import UsageError
from autofit.render.container import at_home, check_one_machine, checked, commented, deployment_of
from autofit.render.yaml import dump


def render(plan: Plan) -> str:
    """`models:` with the command on the port that llama-swap gives it.

    Raises:
        UsageError: a word that holds a macro of llama-swap, or a plan for several machines.
    """
    check_one_machine(plan)
    paths = deployment_of(plan).paths
    argv = at_home(_on_its_port(plan.argv), paths)
    model = {"cmd": " ".join(_word(word) for word in argv)}
    if plan.env:
        model["env"] = [f"{name}={checked(value)}" for name, value in sorted(plan.env.items())]  # type: ignore[assignment]
    return commented(plan, dump({"models": {_name(plan): model}}))


def _on_its_port(argv: tuple[str, ...]) -> tuple[str, ...]:
    """The command with llama-swap's port in place of its own."""
    rest = list(argv)
    while "--port" in rest:
        at = rest.index("--port")
        del rest[at : at + 2]
    return (*(word for word in rest if not word.startswith("--port=")), "--port", "${PORT}")


def _word(word: str) -> str:
    if word == "${PORT}":
        return word
    if "${" in word:
        raise UsageError(f"{word}: llama-swap would take it for a macro", hint="--format json gives it exactly")
    return shlex.quote(checked(word))


def _name(plan: Plan) -> str:
    paths = deployment_of(plan).paths
    name = os.path.basename(paths[0].rstrip("/")) if paths else plan.backend  # noqa: PTH119
    return name.removesuffix(".gguf")
