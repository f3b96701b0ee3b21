"""One command line, quoted so that a shell reads back exactly the argument list."""

from __future__ import annotations

from autofit.domain.plan import Plan
from autofit.domain.text import shell_join, shell_word


def render(plan: Plan) -> str:
    """`NAME=value ... program arguments`, on one line."""
    assignments = [f"{name}={shell_word(value)}" for name, value in sorted(plan.env.items())]
    return " ".join([*assignments, shell_join(plan.argv)])
