"""A fleet: models with wishes, priorities and phases, the machines for them, and where each model goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from autofit.domain.machine import Device, Machine
from autofit.domain.plan import Plan
from autofit.domain.request import Margin
from autofit.domain.values import NamedTuple, dataclass, field

if TYPE_CHECKING:
    from autofit.domain.fleet_document import FleetDocument, FleetMachineDocument, FleetModelDocument

SCHEMA: Literal[1] = 1
DEFAULT_PRIORITY = 50
MAX_SETS = 64  #: that are listed; what is proven holds for all
WhenFull = Literal["refuse", "swap"]
Proof = Literal["best", "fits", "impossible", "not found"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetMachine:
    """A machine of a fleet under its name. `margin` is left free on each device, once for all models on it; `None`: the
    largest margin of the engines there."""

    name: str
    machine: Machine
    margin: Margin | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetModel:
    """A model of a fleet, and how it is to run.

    `options` are autofit's own, by name, as for `autofit.plan`. Of a command, `program` are the words that start its
    engine, `environ` the variables before it, and `reference` is `None`: `engine_args` name the model. `n_devices` is
    how many devices it takes; `None`: as few as hold it.
    """

    name: str
    backend: str
    reference: str | None
    options: Mapping[str, Any] = field(default_factory=dict)
    engine_args: tuple[str, ...] = ()
    program: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    priority: int = DEFAULT_PRIORITY  #: 0...100; the higher stays
    replicas: int = 1
    group: str | None = None  #: models of one group never run together
    phases: tuple[str, ...] = ()  #: none: it runs in all phases
    machines: tuple[str, ...] = ()  #: names of machines that it may be on; none: all
    n_devices: int | None = None
    layers_in_ram: bool = False  #: it may lie in part in RAM, and decode slower, where devices have no more
    port: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What is to run where. Models that share no phase never run together; `phases` none: there is one."""

    machines: tuple[FleetMachine, ...]
    models: tuple[FleetModel, ...]
    phases: tuple[str, ...] = ()
    when_full: WhenFull = "refuse"
    findings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One running copy of a model: its machine, devices and plan.

    `claims` are bytes of each pool that its process holds at most. Beside the plan's own estimate they count what an
    engine takes that fills up to a share of the device.
    """

    name: str  #: of the copy: the model's, with its number where there are several
    model: FleetModel
    machine: str
    devices: tuple[Device, ...]
    plan: Plan
    claims: Mapping[str, int]
    port: int | None  #: that it listens on; `None`: its program listens on none
    measures: bool = False  #: its engine sizes itself at the start by what is free then
    evicts: tuple[str, ...] = ()  #: copies that must have ended before it starts


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolShare:
    """What one copy holds of a pool at most, and what its plan says that it uses."""

    name: str
    claim_bytes: int
    used_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPool:
    """A pool of one machine: what all that may run at once takes of it, with the margin counted once.

    `peak_bytes` is the most that any allowed set holds, and `together` such a set.
    """

    machine: str
    id: str
    name: str
    total_bytes: int | None
    free_bytes: int | None
    margin_bytes: int
    peak_bytes: int
    together: tuple[str, ...]
    shares: tuple[PoolShare, ...]

    @property
    def budget_bytes(self) -> int | None:
        return None if self.free_bytes is None else max(0, self.free_bytes - self.margin_bytes)

    @property
    def room_bytes(self) -> int | None:
        """What is left in the fullest allowed set; negative: it is missing. `None`: free memory is not known."""
        return None if self.budget_bytes is None else self.budget_bytes - self.peak_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The nearest change with which a fleet would fit: a model to leave out, to lower, to have fewer copies of, to put
    in RAM in part, or to take turns with."""

    kind: Literal["leave out", "lower", "fewer copies", "layers in RAM", "move", "swap", "add memory"]
    models: tuple[str, ...]
    message: str


class FleetFile(NamedTuple):
    """A file that a format makes of a fleet: its path below a folder of the user's, and its text."""

    path: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPlan:
    """Where everything goes. `proof` says what is known of it:

    `best`: no placement of the considered ones is better. `fits`: it fits, and the search ended before all were seen.
    `impossible`: none of them fits. `not found`: none was found, and the search ended before all were seen.
    """

    fits: bool
    placements: tuple[Placement, ...]
    pools: tuple[FleetPool, ...]
    proof: Proof
    n_tried: int  #: shapes and places that the search has looked at
    fleet: Fleet
    gap_fraction: float = 0.0  #: by which models may be faster elsewhere at most, in the mean; 0: nothing is better
    sets: tuple[tuple[str, ...], ...] = ()  #: the largest sets that may run at once; every part of one may too
    left_out: tuple[str, ...] = ()  #: models without a place
    shortfall_bytes: int | None = None
    shortfall: str | None = None  #: the fact, in a sentence
    changes: tuple[Change, ...] = ()
    order: tuple[str, ...] = ()  #: in which copies are to start
    findings: tuple[str, ...] = ()

    @property
    def first_set(self) -> tuple[str, ...]:
        """Of the sets that may run at once, the one with most priority, in the order of the start."""
        ranks = {one.name: one.model.priority for one in self.placements}
        most = max(self.sets, key=lambda names: sum(1 + ranks.get(name, 0) for name in names), default=())
        return tuple(name for name in self.order if name in most)

    def on(self, machine: str) -> tuple[Placement, ...]:
        """What is on a machine, in the order of the start."""
        by_name = {one.name: one for one in self.placements if one.machine == machine}
        return tuple(by_name[name] for name in self.order if name in by_name)

    def to_dict(self) -> FleetDocument:
        """The fleet's plan as JSON values, schema 1 (`docs/fleet.md`)."""
        return {
            "schema": SCHEMA,
            "kind": "fleet",
            "fits": self.fits,
            "proof": {"kind": self.proof, "n_tried": self.n_tried, "gap_fraction": self.gap_fraction},
            "machines": [_machine_to_dict(one, self) for one in self.fleet.machines],
            "models": [_placement_to_dict(one) for one in self.placements],
            "sets": [list(names) for names in self.sets],
            "order": list(self.order),
            "left_out": list(self.left_out),
            "shortfall_bytes": self.shortfall_bytes,
            "shortfall": self.shortfall,
            "changes": [{"kind": c.kind, "models": list(c.models), "message": c.message} for c in self.changes],
            "findings": list(self.findings),
        }


def _machine_to_dict(one: FleetMachine, plan: FleetPlan) -> FleetMachineDocument:
    return {
        "name": one.name,
        "pools": [
            {
                "id": pool.id,
                "name": pool.name,
                "total_bytes": pool.total_bytes,
                "free_bytes": pool.free_bytes,
                "margin_bytes": pool.margin_bytes,
                "budget_bytes": pool.budget_bytes,
                "peak_bytes": pool.peak_bytes,
                "room_bytes": pool.room_bytes,
                "together": list(pool.together),
                "shares": [
                    {"name": share.name, "claim_bytes": share.claim_bytes, "used_bytes": share.used_bytes}
                    for share in pool.shares
                ],
            }
            for pool in plan.pools
            if pool.machine == one.name
        ],
    }


def _placement_to_dict(one: Placement) -> FleetModelDocument:
    return {
        "name": one.name,
        "model": one.model.name,
        "machine": one.machine,
        "devices": [device.id for device in one.devices],
        "priority": one.model.priority,
        "group": one.model.group,
        "phases": list(one.model.phases),
        "port": one.port,
        "measures_free_memory": one.measures,
        "evicts": list(one.evicts),
        "claims": dict(one.claims),
        "plan": one.plan.to_dict(),
    }
