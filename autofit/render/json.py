"""The plan as JSON, schema 1."""

from __future__ import annotations

import json

from autofit.domain.plan import Plan


def render(plan: Plan) -> str:
    return json.dumps(plan.to_dict(), indent=2, allow_nan=False)
