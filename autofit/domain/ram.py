"""RAM as people state it: `64GiB`, `128GB` as it is sold, `64GiB:60GiB` with what is free of it."""

from __future__ import annotations

from autofit.domain.units import GIB, parse_size
from autofit.domain.values import dataclass
from autofit.errors import UsageError

SYSTEM_SHARES = {"server": GIB, "desktop": 2 * GIB, "windows": 4 * GIB, "macos": 4 * GIB, "none": 0}
"""What an operating system and its desktop hold of RAM at rest, by kind: Linux without and with a desktop,
Windows 11, macOS. Assumed: round figures above what these systems report after start."""
MAX_SHARE = 8
"""A small machine runs a small system: the share is at most this part of RAM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ram:
    """RAM that was stated. `free_bytes` is `None` where the system's share decides; `system` names it."""

    total_bytes: int
    free_bytes: int | None = None
    system: str | None = None

    @property
    def stated_bytes(self) -> int:
        """What an engine may take, nothing left to the system: the free bytes where they are stated."""
        return self.total_bytes if self.free_bytes is None else self.free_bytes

    def share_bytes(self, system: str) -> int:
        """What is left to a system of this kind, unless another was stated."""
        if self.free_bytes is not None:
            return self.total_bytes - self.free_bytes
        return min(SYSTEM_SHARES[self.system or system], self.total_bytes // MAX_SHARE)


def parse_ram(text: str) -> Ram:
    """RAM from `SIZE`, `SIZE:FREE` or `SIZE:SYSTEM`.

    Raises:
        UsageError: not a size, no memory at all, more free than there is, or an unknown kind of system.
    """
    whole, colon, rest = text.partition(":")
    total = sold_bytes(whole)
    if total <= 0:
        raise UsageError(f"RAM of {total} bytes: a machine has some", hint="write --ram 64GiB")
    if not colon:
        return Ram(total_bytes=total)
    if rest.strip().lower() in SYSTEM_SHARES:
        return Ram(total_bytes=total, system=rest.strip().lower())
    if not rest.strip()[:1].isdigit():
        kinds = ", ".join(SYSTEM_SHARES)
        raise UsageError(f"not free memory: {rest[:40]!r}", hint=f"after the colon: what is free, or one of {kinds}")
    free = parse_size(rest)
    if not 0 < free <= total:
        raise UsageError(f"{rest.strip()} cannot be free of {whole.strip()}", hint="write --ram 64GiB:60GiB")
    return Ram(total_bytes=total, free_bytes=free)


def sold_bytes(text: str) -> int:
    """Bytes of RAM as it is sold: modules hold powers of two, so that `128GB` on a box is 128 GiB.

    A size in GB that no pair of modules adds up to (odd, or with a fraction) is 10**9 bytes each, as everywhere.

    Raises:
        UsageError: not a size.
    """
    n_bytes = parse_size(text)
    unit = text.strip().lstrip("0123456789. ").lower()
    n_gb, rest = divmod(n_bytes, 10**9)
    if unit in {"tb", "t"} and rest == 0 and n_gb % 500 == 0:
        return n_gb * 1024 // 1000 * GIB
    if unit in {"gb", "g"} and rest == 0 and n_gb % 2 == 0:
        return n_gb * GIB
    return n_bytes
