"""Which of several models of one name to plan for: the largest that fits as asked at full speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from autofit.domain.machine import HOST_POOL, Machine
from autofit.domain.model import Offer
from autofit.domain.plan import Plan
from autofit.domain.text import printable
from autofit.domain.units import format_bytes
from autofit.errors import EngineRefusalError, UnsupportedModelError

MAX_TRIES = 6  #: headers that are read and planned for
_FLOATS = ("F32", "F16", "BF16", "FP16", "FP32")


def choose(
    offers: Sequence[Offer], machine: Machine, prefer: str | None, plan_one: Callable[[Offer], Plan]
) -> tuple[Plan, str] | None:
    """The plan for the largest that fits at full speed, and a sentence that says so; `None` if none of them does.

    Files of floats are left to `prefer` "quality": they decode at half the rate of 8 bits.
    """
    limit = memory_bytes(machine)
    fitting = [offer for offer in offers if limit is None or offer.size_bytes <= limit]
    packed = [offer for offer in fitting if offer.quantization not in _FLOATS]
    tried = fitting if prefer == "quality" or not packed else packed
    for offer in sorted(tried, key=lambda offer: -offer.size_bytes)[:MAX_TRIES]:
        try:
            plan = plan_one(offer)
        except (EngineRefusalError, UnsupportedModelError):
            continue
        if at_full_speed(plan):
            return plan, _said(offer, offers)
    return None


def memory_bytes(machine: Machine) -> int | None:
    """Free bytes of all devices, or of RAM where there is none; `None`: not known."""
    pools = {device.pool: device.free_bytes for device in machine.devices if device.pool != HOST_POOL}
    if not pools:
        return machine.host.available_bytes
    return None if None in pools.values() else sum(n for n in pools.values() if n is not None)


def at_full_speed(plan: Plan) -> bool:
    """Whether a plan fits with no weights left in RAM that a device could hold."""
    return plan.fits and not any(found.code == "weights-in-ram" for found in plan.findings)


def _said(taken: Offer, offers: Sequence[Offer]) -> str:
    name, size = printable(taken.quantization or taken.reference, 80), format_bytes(taken.size_bytes)
    smaller = sorted((o for o in offers if o.size_bytes < taken.size_bytes), key=lambda o: -o.size_bytes)
    others = (f"{printable(o.quantization or o.reference, 80)} ({format_bytes(o.size_bytes)})" for o in smaller[:4])
    more = f"; smaller ones: {', '.join(others)}" if smaller else ""
    return f"of {len(offers)} models of that name {name} ({size}) is the largest that fits as asked at full speed{more}"
