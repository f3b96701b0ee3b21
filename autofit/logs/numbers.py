"""Numbers in logs: sizes with a unit, printed with some digits."""

from __future__ import annotations

from autofit.domain.units import GIB, KIB, MIB

_UNITS = {
    "b": 1, "bytes": 1, "byte": 1,
    "kib": KIB, "mib": MIB, "gib": GIB, "tib": 1 << 40,
    # engines that write MB and GB here divide by powers of 1024
    "kb": KIB, "mb": MIB, "gb": GIB, "tb": 1 << 40,
}  # fmt: skip
MAX_DIGITS = 24


def bytes_of(number: str, unit: str) -> int | None:
    """Bytes of a printed number: `4403.49`, `MiB`. `None`: it is none."""
    scale = _UNITS.get(unit.lower())
    number = number.replace(",", "").strip()
    if scale is None or not number or len(number) > MAX_DIGITS:
        return None
    try:
        return round(float(number) * scale)
    except (ValueError, OverflowError):
        return None


def rounding_of(number: str, unit: str) -> int:
    """Bytes that a printed number may be off: half a unit of its last digit, and one for the fraction of a byte."""
    scale = _UNITS.get(unit.lower(), 1)
    _, dot, digits = number.strip().partition(".")
    step = scale / 10 ** min(len(digits), MAX_DIGITS) if dot else scale
    return int(step / 2) + 1 if scale > 1 else 0


def whole(text: str) -> int | None:
    """A count, with commas or without; `None`: it is none."""
    text = text.replace(",", "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None
