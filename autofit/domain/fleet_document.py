"""The shape of a fleet's plan as JSON values, schema 1: what `FleetPlan.to_dict()` returns and
`docs/fleet.schema.json` describes. Nothing of this is imported while planning."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from autofit.domain.document import SIGNED, PlanDocument


class FleetProofDocument(TypedDict):
    """What is known of the answer, and how many places the search looked at."""

    kind: Annotated[
        Literal["best", "fits", "impossible", "not found"],
        "`best`: no placement of those considered is better; `fits`: the search ended before all were seen; "
        "`impossible`: none fits; `not found`: the search ended before all were seen",
    ]
    n_tried: int
    gap_fraction: Annotated[float, "by which models may be faster elsewhere at most, in the mean; 0: nothing is better"]


class FleetShareDocument(TypedDict):
    """What one copy of a model holds of a pool."""

    name: str
    claim_bytes: Annotated[int, "what its process may hold at most: this is what is added up"]
    used_bytes: Annotated[int, "what its plan says that it uses"]


class FleetPoolDocument(TypedDict):
    """One pool of a machine, with all that is placed on it."""

    id: Annotated[str, "`host`, or the device's"]
    name: str
    total_bytes: int | None
    free_bytes: int | None
    margin_bytes: Annotated[int, "left free, once for all models there"]
    budget_bytes: int | None
    peak_bytes: Annotated[int, "the most that any set holds which may run at once"]
    room_bytes: Annotated[int | None, SIGNED]
    together: Annotated[list[str], "a set that holds most"]
    shares: list[FleetShareDocument]


class FleetMachineDocument(TypedDict):
    """A machine of the fleet."""

    name: str
    pools: list[FleetPoolDocument]


class FleetModelDocument(TypedDict):
    """One copy of a model, with its place and its plan."""

    name: str
    model: str
    machine: str
    devices: list[str]
    priority: int
    group: str | None
    phases: list[str]
    port: Annotated[int | None, "that it listens on; null: its program listens on none"]
    measures_free_memory: Annotated[bool, "its engine sizes itself by what is free while it starts"]
    evicts: Annotated[list[str], "copies that must have ended before it starts"]
    claims: dict[str, int]
    plan: PlanDocument


class FleetChangeDocument(TypedDict):
    """A change with which all would fit."""

    kind: Literal["leave out", "lower", "fewer copies", "layers in RAM", "move", "swap", "add memory"]
    models: list[str]
    message: str


class FleetDocument(TypedDict):
    """The plan of a fleet, schema 1 (docs/fleet.md). Keys are only ever added."""

    schema: Literal[1]
    kind: Literal["fleet"]
    fits: bool
    proof: FleetProofDocument
    machines: list[FleetMachineDocument]
    models: list[FleetModelDocument]
    sets: Annotated[list[list[str]], "the largest sets that may run at once, 64 at most; so may every part of one"]
    order: Annotated[list[str], "in which copies are to start"]
    left_out: list[str]
    shortfall_bytes: int | None
    shortfall: str | None
    changes: list[FleetChangeDocument]
    findings: list[str]
