"""A machine in plain text, for people and bug reports; and as the values of a profile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from autofit.domain.machine import HOST_POOL, Device, Host, Machine
from autofit.domain.text import printable
from autofit.domain.units import format_bytes


def describe(machine: Machine) -> str:
    """What there is, what is free, who holds the rest, what is unknown and how to state it."""
    lines = list(_host(machine.host))
    for device in machine.devices:
        lines += ["", *_device(device)]
    if not machine.devices:
        lines += ["", "no GPU"]
    lines += _links(machine)
    unknown = list(_unknown(machine))
    if unknown:
        lines += ["", "not known", *(f"  {line}" for line in unknown)]
    if machine.findings:
        lines += ["", "findings", *(f"  {printable(finding, 400)}" for finding in machine.findings)]
    return "\n".join(lines)


def describe_sources(machine: Machine) -> str:
    """Where each figure comes from."""
    return "\n".join(f"  {printable(key)}: {printable(source)}" for key, source in sorted(machine.sources.items()))


def _host(host: Host) -> Iterator[str]:
    fast = host.n_cores_performance
    cores = _joined(
        _count(host.n_cores_physical, "core"),
        f"{fast} of them performance cores" if fast not in (None, host.n_cores_physical) else None,
        _count(host.n_cores_logical, "thread"),
        _count(host.n_numa_nodes, "NUMA node"),
    )
    name = printable(host.cpu_name) if host.cpu_name else None
    yield f"host    {_joined(name, cores, sep=' · ') or 'processor unknown'}"
    memory = "unknown" if host.available_bytes is None else format_bytes(host.available_bytes)
    total = "" if host.total_bytes is None else f" of {format_bytes(host.total_bytes)}"
    yield f"memory  {memory} available{total}"
    details = _joined(
        None if host.limit_bytes is None else f"limited to {format_bytes(host.limit_bytes)} by a cgroup",
        None if host.bandwidth_bytes_per_s is None else _rate(host.bandwidth_bytes_per_s),
        None if host.shm_bytes is None else f"/dev/shm {format_bytes(host.shm_bytes)}",  # noqa: S108 - a name
        None if host.memlock_bytes is None else f"mlock up to {format_bytes(host.memlock_bytes)}",
        None if host.hugepages_bytes is None else f"huge pages {format_bytes(host.hugepages_bytes)}",
        {None: None, True: "weights can be repacked (AVX2 or NEON)", False: "no AVX2 or NEON"}[host.has_repack],
        sep=" · ",
    )
    if details:
        yield f"        {details}"
    for note in host.notes:
        yield f"        {printable(note)}"


def _device(device: Device) -> Iterator[str]:
    free = "free memory unknown" if device.free_bytes is None else f"{format_bytes(device.free_bytes)} free"
    total = "" if device.total_bytes is None else f" of {format_bytes(device.total_bytes)}"
    kept = f", the driver keeps {format_bytes(device.reserved_bytes)}" if device.reserved_bytes else ""
    where = ", out of RAM" if device.pool == HOST_POOL else ""
    yield f"{device.id:<7} {printable(device.name)} · {free}{total}{kept}{where}"
    details = _joined(
        device.api
        if device.compute_capability is None
        else f"{device.api}, compute capability {'.'.join(map(str, device.compute_capability))}",
        _count(device.n_sm, "SM" if device.vendor == "nvidia" else "compute unit"),
        None if device.bandwidth_bytes_per_s is None else _rate(device.bandwidth_bytes_per_s),
        None if device.fp16_flops_per_s is None else f"{device.fp16_flops_per_s / 1e12:.4g} TFLOP/s FP16",
        None if device.link_bytes_per_s is None else f"link {_rate(device.link_bytes_per_s)}",
        None if device.profile is None else f"profile {device.profile}",
        sep=" · ",
    )
    yield f"        {details}"
    if device.uuid:
        yield f"        {printable(device.uuid)}"
    for holder in device.held_by:
        name = printable(holder.name) if holder.name else "unknown process"
        size = "an unknown amount" if holder.used_bytes is None else format_bytes(holder.used_bytes)
        ours = ", an engine of yours" if holder.ours else ""
        yield f"        held by {name} (pid {holder.pid}{ours}): {size}"
    for note in device.notes:
        yield f"        {printable(note)}"


def _links(machine: Machine) -> Iterator[str]:
    if machine.links:
        yield ""
    kinds: dict[tuple[str, int | None], list[str]] = {}
    for link in machine.links:
        kinds.setdefault((link.kind, link.bytes_per_s), []).append(f"{link.a}-{link.b}")
    for (kind, rate), pairs in kinds.items():
        shown = ", ".join(pairs) if len(pairs) <= 6 else f"{len(pairs)} pairs, {pairs[0]} to {pairs[-1]}"
        yield f"{printable(kind)}  {shown}{'' if rate is None else f' · {_rate(rate)}'}"


def _unknown(machine: Machine) -> Iterator[str]:
    host = machine.host
    if host.available_bytes is None:
        yield "free RAM: state it with --ram SIZE"
    if host.bandwidth_bytes_per_s is None:
        way = "`autofit hardware calibrate` measures it" if machine.origin == "detected" else "profile key host.{key}"
        yield f"speed of RAM: {way.format(key='bandwidth_bytes_per_s')}"
    for device in machine.devices:
        if device.free_bytes is None:
            yield f"{device.id}, free memory: state it with --on {device.profile or 'NAME'}:SIZE"
        missing = [
            key
            for key in ("bandwidth_bytes_per_s", "fp16_flops_per_s", "link_bytes_per_s")
            if getattr(device, key) is None and not (key == "link_bytes_per_s" and device.pool == HOST_POOL)
        ]
        if missing:
            yield f"{device.id}, {', '.join(missing)}: `autofit hardware save NAME`, then write them there"


def _rate(bytes_per_s: int) -> str:
    return f"{bytes_per_s / 1e9:.4g} GB/s"


def _count(n: int | None, word: str) -> str | None:
    return None if n is None else f"{n} {word}{'' if n == 1 else 's'}"


def _joined(*parts: str | None, sep: str = ", ") -> str:
    return sep.join(part for part in parts if part)


def profile_table(machine: Machine, name: str) -> dict[str, Any]:
    """The machine as a profile of kind `machine`: what stays (totals, rates), not what is free just now."""
    host = machine.host
    total = host.total_bytes if host.limit_bytes is None else host.limit_bytes
    links = [
        _known(kind=link.kind, bytes_per_s=link.bytes_per_s, devices=_ends(machine, link.a, link.b))
        for link in machine.links
    ]
    return {
        "schema": 1,
        "kind": "machine",
        "name": name,
        "host": _known(
            total_bytes=total,
            cpu_name=None if host.cpu_name is None else printable(host.cpu_name),
            n_cores_physical=host.n_cores_physical,
            n_cores_logical=host.n_cores_logical,
            n_cores_performance=host.n_cores_performance,
            n_numa_nodes=host.n_numa_nodes,
            bandwidth_bytes_per_s=host.bandwidth_bytes_per_s,
            has_repack=host.has_repack,
        ),
        "device": [_device_table(device) for device in machine.devices],
        **({"link": links} if links else {}),
    }


def _device_table(device: Device) -> Mapping[str, Any]:
    shared = device.pool == HOST_POOL
    return _known(
        profile=device.profile,
        name=printable(device.name),
        vendor=device.vendor,
        api=device.api,
        uuid=device.uuid,
        integrated=device.integrated or None,
        pool=HOST_POOL if shared else None,
        memory_total_bytes=device.total_bytes,
        memory_reserved_bytes=None if shared else device.reserved_bytes,
        runtime_bytes=device.runtime_bytes,
        compute_capability=None if device.compute_capability is None else list(device.compute_capability),
        n_sm=device.n_sm,
        bandwidth_bytes_per_s=device.bandwidth_bytes_per_s,
        fp16_flops_per_s=device.fp16_flops_per_s,
        link_bytes_per_s=device.link_bytes_per_s,
    )


def _ends(machine: Machine, a: str, b: str) -> list[int]:
    ids = [device.id for device in machine.devices]
    return [ids.index(a), ids.index(b)]


def _known(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
