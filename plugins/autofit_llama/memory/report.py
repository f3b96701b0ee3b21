"""The shape of `engine_report` in a plan's JSON: llama.cpp's figures by the names that it logs."""

from __future__ import annotations

from typing import Annotated, NotRequired, TypedDict


class BreakdownDocument(TypedDict):
    """A row of the memory breakdown that the engine prints at its end.

    Source: common/fit.cpp:common_memory_breakdown_print.
    """

    model_bytes: int
    context_bytes: int
    compute_bytes: int


class DeviceBreakdownDocument(BreakdownDocument):
    """The row of a device."""

    id: str


class FitDocument(TypedDict):
    """What the engine's own `--fit` makes of a checked command."""

    arguments: Annotated[list[str], "as llama-fit-params prints them"]
    gave_up: Annotated[str | None, "why it could not reach its target"]


class LlamaReportDocument(TypedDict):
    """Figures of llama.cpp."""

    devices: list[DeviceBreakdownDocument]
    host: BreakdownDocument
    n_ctx: int
    n_ctx_seq: int
    n_batch: int
    n_ubatch: int
    n_seq_max: int
    flash_attn: bool
    sched_copies: int
    allocated_compute_bytes: NotRequired[
        Annotated[dict[str, int], "what compute buffers really take, by pool, where the dry run differs"]
    ]
    fit: NotRequired[FitDocument]
