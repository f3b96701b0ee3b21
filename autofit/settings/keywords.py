"""Types of the keywords of `autofit.plan` and `autofit.check`: for type checkers, never imported to plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, TypedDict

from autofit.domain.request import Margin

Names: TypeAlias = str | int | Sequence[str | int]


class CheckOptions(TypedDict, total=False):
    """Keywords of `autofit.check`, as text or as values; `None` is not given.

    `available_kv_bytes` replaces the backend's own figure: the KV memory that the engine has logged, for all
    pipeline stages or one for each.
    """

    on: str | Sequence[str] | None
    ram: str | int | None
    rpc: str | None
    link: str | None
    nodes: str | int | None
    device: Names | None
    margin: str | int | Sequence[str | int] | tuple[Margin, ...] | None
    mean_tokens: str | int | None
    engine_version: str | None
    strict: bool | None
    available_kv_bytes: int | Sequence[int] | None


class PlanOptions(TypedDict, total=False):
    """Keywords of `autofit.plan`, as text or as values; `None` is not given."""

    context: str | int | None
    min_context: str | int | None
    max_context: str | int | None
    parallel: str | int | None
    mean_tokens: str | int | None
    fill: str | None
    min_tps: str | float | None
    max_ttft: str | float | None
    margin: str | int | Sequence[str | int] | tuple[Margin, ...] | None
    on: str | Sequence[str] | None
    ram: str | int | None
    rpc: str | None
    link: str | None
    nodes: str | int | None
    replicas: str | int | None
    disaggregate: str | None
    device: Names | None
    prefer: str | None
    kv: str | None
    preset: str | None
    engine_version: str | None
    strict: bool | None
    force: bool | None
