"""The command as text that a shell, or `xargs`, takes apart into exactly the argument list."""

from __future__ import annotations

from autofit.domain.plan import Plan
from autofit.text import shell


def render(plan: Plan) -> str:
    """`NAME=value ... program arguments` on one line of any POSIX shell, with quotes where they are needed."""
    return shell.command(plan.argv, sorted(plan.env.items()))


def render_eval(plan: Plan) -> str:
    """The same with every word in quotes, for `eval "$(autofit ...)"`."""
    return shell.command(plan.argv, sorted(plan.env.items()), always=True)


def render_nul(plan: Plan) -> str:
    """Each word as it is, with a zero byte after it, for `xargs -0`."""
    return shell.separated(plan.argv, sorted(plan.env.items()), "\0")


def render_lines(plan: Plan) -> str:
    """Each word as it is on a line of its own, for `mapfile -t` and `while read -r`."""
    return shell.separated(plan.argv, sorted(plan.env.items()), "\n").removesuffix("\n")


def render_fish(plan: Plan) -> str:
    return shell.fish_command(plan.argv, sorted(plan.env.items()))


def render_powershell(plan: Plan) -> str:
    return shell.powershell_command(plan.argv, sorted(plan.env.items()))
