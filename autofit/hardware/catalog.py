"""Hardware profiles: read, checked against the schema, and found by name or by what a driver reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from autofit.domain.units import format_bytes
from autofit.domain.values import dataclass
from autofit.errors import HardwareError
from autofit.hardware import names, schema
from autofit.profiles import files, parse_toml, read_text

FIGURES = {
    "runtime_bytes": "runtime_bytes",
    "n_sm": "n_sm",
    "bandwidth_bytes_per_s": "bandwidth_bytes_per_s",
    "fp16_flops_per_s": "fp16_flops_per_s",
    "link_bytes_per_s": "link_bytes_per_s",
    "memory_total_bytes": "total_bytes",
    "memory_reserved_bytes": "reserved_bytes",
    "compute_capability": "compute_capability",
}  #: key of a profile -> field of a device


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A profile as read: checked, but not yet a device or a machine."""

    id: str
    path: Path
    table: Mapping[str, Any]

    @property
    def is_machine(self) -> bool:
        return bool(self.table["kind"] == "machine")

    @property
    def device_table(self) -> Mapping[str, Any]:
        """The figures of its device: the card itself, or the only kind of device of a machine."""
        if not self.is_machine:
            return self.table
        rows = self.table.get("device", [])
        return rows[0] if len(rows) == 1 else {}

    def summary_line(self) -> str:
        """One line for a list: memory and bandwidth, devices, name."""
        table = self.table
        if self.is_machine:
            counts: dict[str, int] = {}
            for row in table.get("device", ()):
                name = row.get("profile", row.get("name", "?"))
                counts[name] = counts.get(name, 0) + row.get("count", 1)
            rows = [f"{count} x {name}" for name, count in counts.items()]
            host = table.get("host", {})
            ram = host.get("total_bytes")
            memory = format_bytes(ram) if ram else f"{listed(host['sizes_gib'])}" if "sizes_gib" in host else "? RAM"
            return f"{table['name']}: {', '.join(rows) or 'no GPU'}, {memory} of RAM"
        total, rate = table.get("memory_total_bytes"), table.get("bandwidth_bytes_per_s")
        facts = [format_bytes(total) if total else "any size", f"{rate / 1e9:.4g} GB/s" if rate else None]
        return f"{table['name']}: {', '.join(fact for fact in facts if fact)}"

    def basis_of(self, figure: str) -> str | None:
        """`basis: document` of a figure, if the profile says."""
        for source in self.table.get("source", ()):
            if figure in source["figures"]:
                return f"{source['basis']}: {source['name']}"
        return None


def read_profile(path: Path) -> Profile:
    """A profile from its file.

    Raises:
        HardwareError: not readable, not TOML, or against the schema (with the line).
    """
    text = read_text(path, HardwareError)
    table = parse_toml(text, str(path), HardwareError)
    schema.check(table, str(path), text)
    return Profile(id=path.stem, path=path, table=table)


def load_profile(name: str, extra_dirs: Iterable[str | Path] = ()) -> Profile:
    """The profile a name means.

    Raises:
        HardwareError: unknown (with suggestions), more than one, or wrong.
    """
    return read_profile(names.resolve(name, extra_dirs))


def list_profiles(extra_dirs: Iterable[str | Path] = ()) -> list[Profile]:
    """Every profile, by name."""
    return [read_profile(path) for _, path in sorted(files("hardware", extra_dirs).items())]


def profile_of(
    driver_name: str,
    total_bytes: int | None,
    pci_id: str | None = None,
    extra_dirs: Iterable[str | Path] = (),
) -> Profile | None:
    """The profile of a device by the name its driver gives, or by `vendor:device` on the bus.

    Its memory must agree with `total_bytes` (within 4 %); `None` if none or several do.
    """
    try:
        found = names.find_driver(driver_name, extra_dirs) if driver_name else {}
        if not found and pci_id is not None:
            found = names.find_pci(pci_id, extra_dirs)
        profiles = [read_profile(path) for path in found.values()]
    except HardwareError:
        return None  # a broken file of the user's must not hide the device itself
    if total_bytes is not None:
        profiles = [profile for profile in profiles if _agrees(profile.device_table, total_bytes)]
    return profiles[0] if len(profiles) == 1 else None


def _agrees(table: Mapping[str, Any], total_bytes: int) -> bool:
    stated = table.get("memory_total_bytes")
    return stated is None or abs(stated - total_bytes) <= 0.04 * total_bytes


def listed(sizes: Iterable[int]) -> str:
    return ", ".join(f"{size}" for size in sizes) + " GB"
