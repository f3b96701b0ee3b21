"""Machines that one does not have, put together from profiles, sizes and files.

A name is `rtx-3090` (idle), `rtx-4070-ti:11GiB` (that much is free), `m2-max-64gb` (a machine with that much main
memory), `generic-cuda:24GiB`, `cpu`, a TOML profile or a JSON file of `autofit hardware detect --format json`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from autofit.domain.machine import HOST_POOL, Device, Host, Link, Machine
from autofit.domain.text import printable
from autofit.domain.units import GIB, format_bytes, parse_size
from autofit.domain.values import dataclass, replace
from autofit.errors import HardwareError
from autofit.hardware import names
from autofit.hardware.catalog import FIGURES, Profile, listed, load_profile, read_profile
from autofit.hardware.record import machine_from_json
from autofit.profiles import files, read_text

_SIZED_NAME = re.compile(r"(.+?)[\s_-]+(\d{1,4})\s*gi?b", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """What one name adds to a machine."""

    devices: tuple[Device, ...]
    host: Host | None = None
    links: tuple[Link, ...] = ()
    name: str
    findings: tuple[str, ...] = ()
    sources: Mapping[str, str]


def load_machine(
    *wanted: str,
    ram: str | int | None = None,
    host: Host | None = None,
    profile_dirs: Iterable[str | Path] = (),
) -> Machine:
    """The machine that these names describe. A repeated name is one more device; `ram` is all free.

    Without `ram`, and without a machine among the names, `host` stands in (else what this machine has), and a
    finding says so.

    Raises:
        HardwareError: an unknown name, a generic device without a size, two machines at once.
        UsageError: a size that is none.
    """
    ram_bytes = parse_size(ram) if isinstance(ram, str) else ram
    if ram_bytes is not None and ram_bytes <= 0:
        raise HardwareError(f"main memory of {ram_bytes} bytes makes no sense", hint="write --ram 64GiB")
    if len(wanted) == 1 and _is_path(wanted[0]) and wanted[0].lower().endswith(".json"):
        recorded = machine_from_json(read_text(Path(wanted[0]), HardwareError), wanted[0])
        return replace(_with_ram(recorded, ram_bytes), origin="file")
    parts = [_part(name, ram_bytes, tuple(profile_dirs)) for name in wanted]
    hosts = [part for part in parts if part.host is not None]
    if len(hosts) > 1:
        raise HardwareError(
            f"{hosts[0].name} and {hosts[1].name} are two machines",
            hint="plan for one of them; add single cards with --on",
        )
    findings = [finding for part in parts for finding in part.findings]
    sources: dict[str, str] = {}
    if hosts:
        main = hosts[0].host
    elif ram_bytes is not None:
        main, sources["host.available_bytes"] = (
            Host(total_bytes=ram_bytes, available_bytes=ram_bytes),
            "stated: --ram",
        )
    else:
        main = host if host is not None else _this_host()
        sources["host.available_bytes"] = "measured: this machine"
        if main.available_bytes is not None:
            here = format_bytes(main.available_bytes)
            findings.append(f"main memory is taken from this machine, {here} free; --ram SIZE states another")
    assert main is not None
    devices: list[Device] = []
    links: list[Link] = []
    for part in parts:
        renamed = {}
        for device in part.devices:
            new = f"GPU{len(devices)}"
            renamed[device.id] = new
            pool = HOST_POOL if device.pool == HOST_POOL else new
            devices.append(replace(device, id=new, index=len(devices), pool=pool))
            sources |= {f"{new}.{figure}": basis for figure, basis in _of(part.sources, device.id)}
        links += [replace(link, a=renamed[link.a], b=renamed[link.b]) for link in part.links]
    sources |= {f"host.{figure}": basis for part in hosts for figure, basis in _of(part.sources, HOST_POOL)}
    return Machine(
        host=main,
        devices=tuple(devices),
        links=tuple(links),
        name=" + ".join(part.name for part in parts) or None,
        origin="profile",
        findings=tuple(findings),
        sources=sources,
    )


def _of(sources: Mapping[str, str], owner: str) -> list[tuple[str, str]]:
    return [(key.removeprefix(f"{owner}."), value) for key, value in sources.items() if key.startswith(f"{owner}.")]


def _this_host() -> Host:
    from autofit.hardware.host import read_host
    from autofit.hardware.system import this_system

    return read_host(this_system()).host


def _with_ram(machine: Machine, ram_bytes: int | None) -> Machine:
    if ram_bytes is None:
        return machine
    host = replace(machine.host, total_bytes=ram_bytes, available_bytes=ram_bytes, limit_bytes=None)
    return replace(machine, host=host, sources={**machine.sources, "host.available_bytes": "stated: --ram"})


def _is_path(name: str) -> bool:
    return name.lower().endswith((".toml", ".json"))


def _part(wanted: str, ram_bytes: int | None, dirs: tuple[str | Path, ...]) -> _Part:
    """What one name, with the size behind it, adds."""
    name, free_bytes = _split_size(wanted)
    if names.key_of(name) == "cpu" and free_bytes is None:
        return _Part(devices=(), name="cpu", sources={})
    if _is_path(name):
        if name.lower().endswith(".json"):
            machine = machine_from_json(read_text(Path(name), HardwareError), name)
            return _Part(
                devices=machine.devices,
                host=machine.host,
                links=machine.links,
                name=machine.name or name,
                findings=machine.findings,
                sources=machine.sources,
            )
        profile = read_profile(Path(name))
    else:
        profile, sold_ram = _named(name, dirs)
        if free_bytes is not None and ram_bytes is None and profile.table.get("host", {}).get("sizes_gib"):
            sold = _sizes_sold(name, dirs).get(free_bytes // GIB)
            if sold is not None and free_bytes % GIB == 0:  # m4-max:64GiB is a machine, as m4-max-64gb is
                profile, sold_ram, free_bytes = sold, free_bytes, None
        ram_bytes = ram_bytes if ram_bytes is not None else sold_ram
    if profile.is_machine:
        return _machine(profile, ram_bytes, free_bytes, dirs)
    device, findings = _device("0", profile.table, profile, free_bytes, None)
    return _Part(devices=(device,), name=device.name, findings=findings, sources=_sources("0", profile))


def _split_size(wanted: str) -> tuple[str, int | None]:
    """`rtx-4070-ti:11GiB` -> the name and the free bytes; the colon of a Windows drive is no separator."""
    name, colon, size = wanted.rpartition(":")
    if not colon or _is_path(wanted):
        return wanted.strip(), None
    free_bytes = parse_size(size)
    if free_bytes <= 0:
        raise HardwareError(
            f"{printable(wanted)}: no memory is left",
            hint="write the free memory after the colon, such as :11GiB",
        )
    return name.strip(), free_bytes


def _named(name: str, dirs: tuple[str | Path, ...]) -> tuple[Profile, int | None]:
    """A profile, and the main memory that a name such as `m2-max-64gb` states."""
    sized = _SIZED_NAME.fullmatch(name)
    if sized and not names.find(name, dirs):
        sizes = _sizes_sold(sized[1], dirs)
        if int(sized[2]) in sizes:
            return sizes[int(sized[2])], int(sized[2]) * GIB
        if sizes:
            raise HardwareError(
                f"{next(iter(names.find(sized[1], dirs)))} was not sold with {sized[2]} GB",
                hint=f"sizes: {listed(sorted(sizes))}; --ram SIZE states another",
            )
    return load_profile(name, dirs), None


def _sizes_sold(name: str, dirs: tuple[str | Path, ...]) -> dict[int, Profile]:
    """The machines of one chip by their main memory in GiB; a chip may come with two GPUs: m4-max, m4-max-32core."""
    bases = names.find(name, dirs)
    known = files("hardware", dirs)
    variants = {s: path for s, path in known.items() if any(s.startswith(f"{base}-") for base in bases)}
    sizes: dict[int, Profile] = {}
    for profile in map(read_profile, {**bases, **variants}.values()):
        for size in profile.table.get("host", {}).get("sizes_gib", ()) if profile.is_machine else ():
            sizes.setdefault(size, profile)
    return sizes


def _device(
    id: str, table: Mapping[str, Any], profile: Profile | None, free_bytes: int | None, host: Host | None
) -> tuple[Device, tuple[str, ...]]:
    """A device as its profile describes it, idle unless `free_bytes` says otherwise."""
    findings: list[str] = []
    total = table.get("memory_total_bytes")
    reserved = table.get("memory_reserved_bytes")
    on_host = table.get("pool") == HOST_POOL
    if on_host:
        total = _shared_bytes(table, host)
    elif total is None and free_bytes is None:
        shown = profile.id if profile else table["name"]
        raise HardwareError(f"{shown} needs a size", hint=f"write {shown}:24GiB; that much is taken as free")
    usable = free_bytes if total is None else total - (reserved or 0)
    assert usable is not None
    free = usable if free_bytes is None else free_bytes
    if on_host and host is not None and host.available_bytes is not None:
        free = min(free, host.available_bytes)
    if total is None or free > usable:
        if total is not None:
            findings.append(f"{table['name']}: {format_bytes(free)} free as stated; idle it has {format_bytes(usable)}")
        total, reserved = free, 0
    capability = table.get("compute_capability")
    return Device(
        id=id,
        index=0,
        name=table["name"],
        api=table["api"],
        total_bytes=total,
        free_bytes=free,
        pool=HOST_POOL if on_host else id,
        vendor=table.get("vendor"),
        uuid=table.get("uuid"),
        profile=profile.id if profile else None,
        integrated=table.get("integrated", False),
        reserved_bytes=reserved,
        runtime_bytes=table.get("runtime_bytes"),
        compute_capability=None if capability is None else (capability[0], capability[1]),
        n_sm=table.get("n_sm"),
        bandwidth_bytes_per_s=table.get("bandwidth_bytes_per_s"),
        fp16_flops_per_s=table.get("fp16_flops_per_s"),
        link_bytes_per_s=table.get("link_bytes_per_s"),
    ), tuple(findings)


def working_set_bytes(total_bytes: int) -> int:
    """What Metal recommends as working set (`recommendedMaxWorkingSetSize`) while no limit is set.

    Two thirds of main memory up to 36 GB, three quarters above, as llama.cpp's Metal back end logs it.
    """
    return total_bytes * 3 // 4 if total_bytes > 36 * GIB else total_bytes * 2 // 3


def _shared_bytes(table: Mapping[str, Any], host: Host | None) -> int:
    """What a device of a unified machine may take of main memory."""
    if host is None or host.total_bytes is None:
        raise HardwareError(f"{table['name']} shares main memory, whose size is unknown", hint="write --ram 64GiB")
    if table.get("memory_total_bytes") is not None:
        return int(min(table["memory_total_bytes"], host.total_bytes))
    if table["api"] == "metal":
        return working_set_bytes(host.total_bytes)
    return int(host.total_bytes * table.get("memory_host_fraction", 1.0))


def _machine(profile: Profile, ram_bytes: int | None, free_bytes: int | None, dirs: tuple[str | Path, ...]) -> _Part:
    """A profile of kind `machine`: its host and all its devices."""
    table = profile.table.get("host", {})
    total = ram_bytes or table.get("total_bytes") or _sold_with(profile, free_bytes)
    host = Host(
        total_bytes=total,
        available_bytes=total,
        n_cores_physical=table.get("n_cores_physical"),
        n_cores_logical=table.get("n_cores_logical"),
        n_cores_performance=table.get("n_cores_performance"),
        n_numa_nodes=table.get("n_numa_nodes"),
        cpu_name=table.get("cpu_name"),
        bandwidth_bytes_per_s=profile.table.get("calibration", {}).get("ram_bandwidth_bytes_per_s")
        or table.get("bandwidth_bytes_per_s"),
        has_repack=table.get("has_repack"),
    )
    devices: list[Device] = []
    findings: list[str] = []
    sources = _sources(HOST_POOL, profile, "host.")
    for row in profile.table.get("device", ()):
        card = load_profile(row["profile"], dirs) if "profile" in row else None
        full = {**(card.table if card else {}), **row}
        for _ in range(row.get("count", 1)):
            id = str(len(devices))
            device, said = _device(id, full, card, free_bytes, host)
            sources |= _sources(id, card) if card else _sources(id, profile)
            devices.append(device)
            findings += said
    return _Part(
        devices=tuple(devices),
        host=host,
        links=tuple(link for row in profile.table.get("link", ()) for link in _links(row, devices, profile)),
        name=profile.table["name"],
        findings=tuple(dict.fromkeys(findings)),
        sources=sources,
    )


def _sold_with(profile: Profile, free_bytes: int | None) -> int:
    """Main memory of a machine that is sold with several sizes: the smallest that can have so much free."""
    sizes = profile.table.get("host", {}).get("sizes_gib", [])
    if len(sizes) == 1:
        return int(sizes[0]) * GIB
    for size in sorted(sizes):
        if free_bytes is not None and size * GIB >= free_bytes:
            return int(size) * GIB
    hint = "write --ram 64GiB"
    if sizes:
        hint = f"it is sold with {listed(sizes)}: write {profile.id}-{sizes[0]}gb, or --ram SIZE"
    raise HardwareError(f"{profile.id}: the size of main memory is unknown", hint=hint)


def _links(row: Mapping[str, Any], devices: list[Device], profile: Profile) -> Iterable[Link]:
    joined = row.get("devices", list(range(len(devices))))
    if not all(isinstance(i, int) and 0 <= i < len(devices) for i in joined):
        raise HardwareError(f"{profile.path}: link.devices: this machine has devices 0 to {len(devices) - 1}")
    for i, a in enumerate(joined):
        for b in joined[i + 1 :]:
            yield Link(a=devices[a].id, b=devices[b].id, kind=row["kind"], bytes_per_s=row.get("bytes_per_s"))


def _sources(owner: str, profile: Profile, prefix: str = "") -> dict[str, str]:
    """`owner.field` -> basis and document, for what the profile vouches for."""
    found = {}
    for source in profile.table.get("source", ()):
        for figure in source["figures"]:
            if figure.startswith(prefix) and (prefix or "." not in figure):
                key = figure.removeprefix(prefix)
                found[f"{owner}.{FIGURES.get(key, key)}"] = f"{source['basis']}: {source['name']}"
    return found
