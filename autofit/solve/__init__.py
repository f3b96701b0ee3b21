"""Exact search: where the blocks of a model run, the Pareto front, and the largest value that passes."""

from __future__ import annotations

from autofit.solve.assignment import (
    HEAD,
    Floor,
    LayerAssignment,
    Placement,
    Room,
    Site,
    Span,
    Tails,
    balance,
    excess_bytes,
    host_bytes,
    seconds,
    solve,
)
from autofit.solve.front import dominates, largest, pareto_front

__all__ = [
    "HEAD",
    "Floor",
    "LayerAssignment",
    "Placement",
    "Room",
    "Site",
    "Span",
    "Tails",
    "balance",
    "dominates",
    "excess_bytes",
    "host_bytes",
    "largest",
    "pareto_front",
    "seconds",
    "solve",
]
