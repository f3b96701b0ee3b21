"""Whether a plan for which nobody named a build would also hold with the newest one that is recorded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from autofit.domain.machine import HOST_POOL, Machine
from autofit.domain.plan import Finding
from autofit.domain.request import Margin
from autofit.domain.units import format_bytes
from autofit.domain.values import replace
from autofit.errors import AutofitError

from autofit_llama.engine.codes import finding
from autofit_llama.engine.versions import NEWEST, STEP_BYTES, Version
from autofit_llama.memory.estimate import Estimate, Run, estimate


def with_newest(run: Run, found: Estimate, machine: Machine, margins: Sequence[Margin]) -> Iterator[Finding]:
    """One line where it would take more than there is room for, half of the margin kept; asked only where it is tight.

    No device has taken `STEP_BYTES` more in a newer one of two recorded builds.
    """
    rooms = [pool.room_bytes for pool in found.memory.pools if pool.id != HOST_POOL and pool.room_bytes is not None]
    if not found.memory.fits or not rooms or min(rooms) >= STEP_BYTES:
        return
    arguments = run.arguments
    context = replace(arguments.context, version=Version(build=NEWEST))
    halves = [replace(each, n_bytes=each.n_bytes // 2, fraction=each.fraction / 2) for each in margins]
    try:
        other = estimate(replace(run, arguments=replace(arguments, context=context)), machine, halves)
        if not other.memory.fits and other.layout.compute.n_copies > 1:  # which the engine then does without
            alone = replace(arguments, context=context, pipeline=False)
            other = estimate(replace(run, arguments=alone), machine, halves)
    except AutofitError:
        return  # which that build says when it is named
    if other.memory.fits:
        return
    short = max(other.memory.pools, key=lambda pool: pool.shortfall_bytes)
    before = next((pool.used_bytes for pool in found.memory.pools if pool.id == short.id), 0)
    yield finding(
        "newest-build-short",
        f"llama.cpp b{NEWEST} would take {format_bytes(short.used_bytes - before)} more on {short.id} with this "
        f"command and lack {format_bytes(short.shortfall_bytes)} there: --engine-version b{NEWEST} plans for it",
    )
