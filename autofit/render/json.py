"""The plan as JSON, schema 1."""

from __future__ import annotations

import json

from autofit.domain.fleet import FleetFile, FleetPlan
from autofit.domain.plan import Plan


def render(plan: Plan) -> str:
    return json.dumps(plan.to_dict(), indent=2, allow_nan=False)


def render_fleet(fleet: FleetPlan) -> tuple[FleetFile, ...]:
    return (FleetFile("fleet.json", json.dumps(fleet.to_dict(), indent=2, allow_nan=False)),)
