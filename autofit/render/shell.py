"""One command line, quoted so that a shell reads back exactly the argument list."""

from __future__ import annotations

import shlex

from autofit.domain.plan import Plan


def render(plan: Plan) -> str:
    """`NAME=value ... program arguments`, on one line."""
    assignments = [f"{name}={shlex.quote(value)}" for name, value in sorted(plan.env.items())]
    return " ".join([*assignments, shlex.join(plan.argv)])
