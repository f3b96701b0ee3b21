"""Machines that one does not have, put together from profiles, sizes and files.

A name is `rtx-3090` (idle), `rtx-4070-ti:11GiB` (that much is free), `m2-max-64gb` (a machine with that much main
memory), `a100-3g.20gb` (a MIG instance), `nvidia:8GiB` (a card that is not listed), `generic-cuda:24GiB`, `cpu`, a TOML
profile or a JSON file of `autofit hardware detect --format json`. `2x3060`, `3060*2` and `3060,3060` are two cards.
`rx-7900-xtx@vulkan` is a card that an engine's Vulkan build drives; `rtx-3090@rpc` and `strix-halo-128gb@rpc` are in
another machine, which lends what it has over RPC.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from autofit.domain.machine import HOST_POOL, Device, Host, Link, Machine, Node
from autofit.domain.patterns import lazy_pattern
from autofit.domain.ram import Ram, parse_ram
from autofit.domain.text import printable
from autofit.domain.units import GIB, MAX_BYTES, format_bytes, parse_size
from autofit.domain.values import dataclass, replace
from autofit.errors import HardwareError, UnknownHardwareError, UsageError
from autofit.hardware import names
from autofit.hardware.catalog import FIGURES, Profile, listed, load_profile, read_profile
from autofit.profiles import files, find_file, read_text

MAX_DEVICES = 256
MAX_NODES = 1024
_COUNT_FIRST = lazy_pattern(r"(\d{1,3}|1000|1024)\s*[x×*]\s*(.+)", re.IGNORECASE)
_COUNT_LAST = lazy_pattern(r"(.+?)\s*(?:\*|×|\bx|(?<=\d)x)\s*(\d{1,3})", re.IGNORECASE)
_API = lazy_pattern(r"@([^:@]*)(?=:|$)")
_DRIVEN_BY_VULKAN = ("cuda", "rocm", "sycl", "vulkan")
_SIZED_NAME = lazy_pattern(r"(.+?)[\s_-]+(\d{1,4})\s*gi?b", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """What one name adds to a machine."""

    devices: tuple[Device, ...]
    host: Host | None = None
    links: tuple[Link, ...] = ()
    name: str
    findings: tuple[str, ...] = ()
    sources: Mapping[str, str]
    lends: bool = False  #: another machine, whose devices are reached over RPC


def load_machine(
    *wanted: str,
    ram: Ram | str | int | None = None,
    host: Host | None = None,
    profile_dirs: Iterable[str | Path] = (),
) -> Machine:
    """The machine that these names describe. A repeated name is one more device.

    Of `ram`, and of the RAM of a machine among the names, the operating system keeps its share, which a
    finding states; not beside generic devices alone, which stand for what is free. Without either, `host` stands in
    (else what this machine has), and a finding says so.

    Raises:
        UnknownHardwareError: an unknown name, a generic device without a size, a card beside several machines.
        HardwareError: a file that is wrong. UsageError: a size that is none.
    """
    memory = Ram(total_bytes=ram) if isinstance(ram, int) else parse_ram(ram) if isinstance(ram, str) else ram
    if memory is not None and not 0 < memory.total_bytes <= MAX_BYTES:
        least = f" of {memory.total_bytes} bytes" if abs(memory.total_bytes) <= MAX_BYTES else ""
        raise UnknownHardwareError(
            f"RAM{least} is not between 1 byte and {MAX_BYTES >> 30:,} GiB", hint="write --ram 64GiB"
        )
    dirs = tuple(profile_dirs)
    if len(wanted) == 1 and (cluster := _cluster(wanted[0], dirs)) is not None:
        return cluster if memory is None else _with_ram(cluster, memory)
    each = [name for text in wanted for name in _each(text, dirs)]
    if len(each) > MAX_NODES:
        raise UnknownHardwareError(f"{len(each)} devices or machines; at most {MAX_NODES} are planned for")
    if len(each) == 1 and _is_path(each[0]) and each[0].lower().endswith(".json"):
        recorded = _recorded(each[0])
        return replace(_with_ram(recorded, memory), origin="file")
    known: dict[str, _Part] = {}
    parts = [known.get(name) or known.setdefault(name, _part(name, memory, dirs)) for name in each]
    if sum(part.host is not None for part in parts) > 1:
        return _several(parts, each, dirs)
    if sum(len(part.devices) for part in parts) > MAX_DEVICES:
        raise UnknownHardwareError(f"more than {MAX_DEVICES} devices; at most {MAX_DEVICES} are planned for")
    nodes = tuple(Node(name=f"worker-{at}") for at in range(1, sum(part.lends for part in parts) + 1))
    hosts = [part for part in parts if part.host is not None]
    findings = [finding for part in parts for finding in part.findings]
    sources: dict[str, str] = {}
    if hosts:
        main = hosts[0].host
    elif memory is not None:
        free_only = bool(parts) and all(device.runtime_bytes == 0 for part in parts for device in part.devices)
        share = memory.share_bytes("none" if free_only and any(part.devices for part in parts) else "desktop")
        main, sources["host.available_bytes"] = _host_of(memory, share), "stated: --ram"
        findings += _share_finding(memory, share)
    else:
        main = host if host is not None else _this_host()
        sources["host.available_bytes"] = "measured: this machine" if host is None else "stated"
        if host is None and main.available_bytes is not None:
            here = format_bytes(main.available_bytes)
            findings.append(f"RAM is taken from this machine, {here} free; --ram SIZE states another")
    assert main is not None
    devices, links, stated = _joined(parts, [node.name for node in nodes])
    sources |= stated
    links += _on_boards(devices, links, dirs)
    sources |= {f"host.{figure}": basis for part in hosts for figure, basis in _of(part.sources, HOST_POOL)}
    return Machine(
        host=main,
        devices=tuple(devices),
        links=tuple(links),
        name=" + ".join(part.name for part in parts) or None,
        origin="profile",
        findings=tuple(dict.fromkeys(findings)),
        sources=sources,
        nodes=nodes,
    )


def _cluster(text: str, dirs: tuple[str | Path, ...]) -> Machine | None:
    """The machines of a running cluster, or of a file that `kubectl get nodes -o json` wrote; `None`: it is neither.

    `=CARD` behind either says what its GPUs are.

    Raises:
        HardwareError: a cluster that does not answer, nodes whose GPUs nobody knows.
    """
    if text.startswith("ray://"):
        from autofit.hardware.ray import ray_machine

        return ray_machine(text, partial(_of_cards, dirs))
    path, _, card = text.partition("=")
    if not path.lower().endswith(".json"):
        return None
    import json

    from autofit.hardware.nodes import from_kubernetes, is_cluster

    try:
        data = json.loads(read_text(Path(path), HardwareError))
    except (ValueError, RecursionError):
        return None  # told where a machine is read
    return from_kubernetes(data, path, card or None, dirs, partial(_of_cards, dirs)) if is_cluster(data) else None


def _of_cards(dirs: tuple[str | Path, ...], card: str, count: int, ram_bytes: int | None) -> Machine:
    """A machine with so many cards of one kind, idle, and RAM of which all is free that a pod may have."""
    load_profile(card, dirs)  # a card, whose name is resolved in words of its own
    host = Host(total_bytes=ram_bytes, available_bytes=ram_bytes)
    return load_machine(f"{count}x{card}", host=host, profile_dirs=dirs)


def _several(parts: Sequence[_Part], names_of: Sequence[str], dirs: tuple[str | Path, ...]) -> Machine:
    """Machines that work on one model: each name is one of them.

    Raises:
        UnknownHardwareError: a single card, or devices that are lent over RPC, among them.
    """
    from autofit.hardware.nodes import Member, join

    made: dict[int, Machine] = {}
    for part, name in zip(parts, names_of, strict=True):
        if part.host is None:
            raise UnknownHardwareError(
                f"{printable(name, 60)} is no machine, and others beside it are",
                hint="name machines alone; NAME@rpc lends a machine's devices to another one",
            )
        if id(part) not in made:
            devices, links, sources = _joined([part], [])
            links += _on_boards(devices, links, dirs)
            sources |= {f"host.{figure}": basis for figure, basis in _of(part.sources, HOST_POOL)}
            made[id(part)] = Machine(
                host=part.host,
                devices=tuple(devices),
                links=tuple(links),
                name=part.name,
                origin="profile",
                findings=part.findings,
                sources=sources,
            )
    stems = [Path(name).stem if _is_path(name) else f"node{at}" for at, name in enumerate(names_of)]
    return join([Member(printable(stem, 60), made[id(part)]) for stem, part in zip(stems, parts, strict=True)])


def _joined(parts: Iterable[_Part], nodes: Sequence[str]) -> tuple[list[Device], list[Link], dict[str, str]]:
    """Devices of all parts under new numbers, their links, and where figures come from. `nodes` are those that lend."""
    names = iter(nodes)
    devices: list[Device] = []
    links: list[Link] = []
    sources: dict[str, str] = {}
    for part in parts:
        renamed = {}
        node = next(names) if part.lends else ""
        for device in part.devices:
            new = f"GPU{len(devices)}"
            renamed[device.id] = new
            pool = HOST_POOL if device.pool == HOST_POOL else new
            devices.append(replace(device, id=new, index=len(devices), pool=pool, node=node or device.node))
            sources |= {f"{new}.{figure}": basis for figure, basis in _of(part.sources, device.id)}
        links += [replace(link, a=renamed[link.a], b=renamed[link.b]) for link in part.links]
    return devices, links, sources


def _each(text: str, dirs: tuple[str | Path, ...]) -> list[str]:
    """The names in one text: `2x3060`, `3060*2` and `3060,3060` are two; a path is one, whatever is in it.

    Raises:
        UnknownHardwareError: a count of none.
    """
    if _is_path(text):
        return [text]
    found: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))) if "," in text else [text]:
        first, last = _COUNT_FIRST.fullmatch(part), _COUNT_LAST.fullmatch(part)
        name = part.partition(":")[0]
        if not (first or last) or names.is_named(name, dirs):
            found.append(part)
            continue
        count, name = (int(first[1]), first[2]) if first else (int(last[2]), last[1])  # type: ignore[index]
        if not 0 < count <= MAX_NODES:
            raise UnknownHardwareError(f"{printable(part, 60)}: {count} devices", hint=f"write 2x{name.strip()[:40]}")
        found += [name.strip()] * count
    return found


def _host_of(memory: Ram, share_bytes: int) -> Host:
    return Host(total_bytes=memory.total_bytes, available_bytes=memory.total_bytes - share_bytes)


def _share_finding(memory: Ram, share_bytes: int, system: str = "the operating system and desktop") -> list[str]:
    """What is said of the share, unless someone stated what is free."""
    if memory.free_bytes is not None or not share_bytes:
        return []
    total = f"{memory.total_bytes / GIB:.4g}GiB"
    free = f"{(memory.total_bytes - share_bytes) / GIB:.4g}GiB"
    kept = f"{format_bytes(share_bytes)} of RAM are left to {system}"
    return [f"{kept}; --ram {total}:{free} states free memory"]


def _of(sources: Mapping[str, str], owner: str) -> list[tuple[str, str]]:
    return [(key.removeprefix(f"{owner}."), value) for key, value in sources.items() if key.startswith(f"{owner}.")]


def _this_host() -> Host:
    from autofit.hardware.host import read_host
    from autofit.hardware.system import this_system

    return read_host(this_system()).host


def _with_ram(machine: Machine, memory: Ram | None) -> Machine:
    """A recorded machine with other RAM: all that is stated is free, as in the record."""
    if memory is None:
        return machine
    host = replace(machine.host, total_bytes=memory.total_bytes, available_bytes=memory.stated_bytes, limit_bytes=None)
    return replace(machine, host=host, sources={**machine.sources, "host.available_bytes": "stated: --ram"})


def _is_path(name: str) -> bool:
    return name.lower().endswith((".toml", ".json"))


def _part(wanted: str, memory: Ram | None, dirs: tuple[str | Path, ...]) -> _Part:
    """What one name adds, with the size and the API behind it.

    Raises:
        UnknownHardwareError: an API that does not drive the card.
    """
    found = _API.search(wanted) if "@" in wanted and not _is_path(wanted) else None
    if found is None:
        return _of_name(wanted, memory, dirs)
    part = _of_name(wanted[: found.start()] + wanted[found.end() :], memory, dirs)
    api = found[1].strip().lower()
    if api == "rpc":
        return _lent(part)
    for device in part.devices:
        if api != device.api and not (api == "vulkan" and device.api in _DRIVEN_BY_VULKAN):
            raise UnknownHardwareError(
                f"{printable(wanted, 60)}: {printable(api, 20) or 'nothing'} does not drive {device.name}",
                hint=f"it is planned for with {device.api}"
                + (", or @vulkan" if device.api in _DRIVEN_BY_VULKAN else ""),
            )
    devices = tuple(replace(device, api=api) for device in part.devices)  # type: ignore[arg-type]
    return replace(part, devices=devices)


def _lent(part: _Part) -> _Part:
    """What a part has for an engine on another machine: its devices alone, each with memory of its own.

    Raises:
        UnknownHardwareError: it has none.
    """
    if not part.devices:
        raise UnknownHardwareError(
            f"{part.name}@rpc lends nothing", hint="write generic-rpc:24GiB for RAM that it lends"
        )
    devices = tuple(
        replace(
            device, api="rpc", behind=device.behind or device.api, pool=device.id, integrated=False, total_bytes=total
        )
        if device.api != "rpc"
        else device
        for device in part.devices
        for total in [device.free_bytes if device.pool == HOST_POOL else device.total_bytes]
    )
    return replace(part, devices=devices, host=None, lends=True, name=f"{part.name} over RPC")


def _of_name(wanted: str, memory: Ram | None, dirs: tuple[str | Path, ...]) -> _Part:
    """What a name, with the size behind it, adds."""
    name, free_bytes = _split_size(wanted)
    if names.key_of(name) == "cpu" and free_bytes is None:
        return _Part(devices=(), name="cpu", sources={})
    if _is_path(name):
        if name.lower().endswith(".json"):
            machine = _recorded(name)
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
        profile, sold_ram = _named(name, free_bytes, dirs)
        if profile.table.get("host", {}).get("sizes_gib"):
            # m4-max:64GiB and m4-max with --ram 64GiB are a machine that is sold, as m4-max-64gb is
            size = sold_ram or (memory.total_bytes if memory else free_bytes or 0)
            sold = _sizes_sold(name, dirs).get(size // GIB) if size % GIB == 0 and sold_ram is None else None
            if sold is not None:
                profile, sold_ram = sold, size
                free_bytes = free_bytes if memory is not None else None
        if memory is None and sold_ram is not None:
            memory = Ram(total_bytes=sold_ram)
    if profile.is_machine:
        return _machine(profile, memory, free_bytes, dirs)
    device, findings = _device("0", profile.table, profile, free_bytes, None)
    part = _Part(devices=(device,), name=device.name, findings=findings, sources=_sources("0", profile))
    return replace(part, lends=device.api == "rpc")


def _recorded(path: str) -> Machine:
    """The machine that a JSON file describes."""
    from autofit.hardware.record import machine_from_json

    return machine_from_json(read_text(Path(path), HardwareError), path)


def _split_size(wanted: str) -> tuple[str, int | None]:
    """`rtx-4070-ti:11GiB` -> the name and the free bytes; the colon of a Windows drive is no separator."""
    name, colon, size = wanted.rpartition(":")
    if not colon or _is_path(wanted):
        return wanted.strip(), None
    try:
        free_bytes = parse_size(size)
    except UsageError as error:
        if re.fullmatch(r"[1-9][0-9]{0,2}", size.strip(), re.ASCII):  # a count is as likely to be meant
            count, card = size.strip(), printable(name.strip())
            error.hint = f"{error.hint} after the colon, or {count}x{card} for {count} of them"
        raise
    if free_bytes <= 0:
        raise UnknownHardwareError(
            f"{printable(wanted)}: no memory is left",
            hint="write the free memory after the colon, such as :11GiB",
        )
    return name.strip(), free_bytes


def _named(name: str, size_bytes: int | None, dirs: tuple[str | Path, ...]) -> tuple[Profile, int | None]:
    """A profile, and the RAM that a name such as `m2-max-64gb` states.

    Of cards that differ in memory alone, `size_bytes` chooses: `rtx-3080:10GiB`.
    """
    if (path := find_file("hardware", name, dirs)) is not None:
        return read_profile(path), None
    from autofit.hardware import mig

    if (instance := mig.find(name, dirs)) is not None:
        return instance, None
    sized = _SIZED_NAME.fullmatch(name)
    if sized and not names.find(name, dirs):
        sizes = _sizes_sold(sized[1], dirs)
        if int(sized[2]) in sizes:
            return sizes[int(sized[2])], int(sized[2]) * GIB
        if sizes:
            raise UnknownHardwareError(
                f"{next(iter(names.find(sized[1], dirs)))} was not sold with {sized[2]} GB",
                hint=f"sizes: {listed(sorted(sizes))}; --ram SIZE states another",
            )
    found = names.find(name, dirs)
    if len(found) > 1 and size_bytes is not None:
        fitting = [p for p in map(read_profile, found.values()) if _holds(p, size_bytes)]
        if len(fitting) == 1:
            return fitting[0], None
    return load_profile(name, dirs), None


def _holds(card: Profile, free_bytes: int) -> bool:
    """Whether a card is sold with about this size (GB or GiB alike)."""
    total = card.table.get("memory_total_bytes")
    return total is not None and 0.9 * total <= free_bytes <= 1.05 * total


def _sizes_sold(name: str, dirs: tuple[str | Path, ...]) -> dict[int, Profile]:
    """The machines of one chip by their RAM in GiB; a chip may come with two GPUs: m4-max, m4-max-32core."""
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
        meaning = "the size it is sold with" if "memory_reserved_fraction" in table else "that much is taken as free"
        raise UnknownHardwareError(f"{shown} needs a size", hint=f"write {shown}:24GiB; {meaning}")
    if total is None and free_bytes is not None and "memory_reserved_fraction" in table:
        total, free_bytes = free_bytes, None
        reserved = round(total * table["memory_reserved_fraction"])
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
        gfx=table.get("gfx"),
        n_sm=table.get("n_sm"),
        bandwidth_bytes_per_s=table.get("bandwidth_bytes_per_s"),
        fp16_flops_per_s=table.get("fp16_flops_per_s"),
        link_bytes_per_s=table.get("link_bytes_per_s"),
    ), tuple(findings)


def _shared_bytes(table: Mapping[str, Any], host: Host | None) -> int:
    """What a device of a unified machine may take of RAM."""
    if host is None or host.total_bytes is None:
        raise UnknownHardwareError(f"{table['name']} shares RAM, whose size is unknown", hint="write --ram 64GiB")
    if table.get("memory_total_bytes") is not None:
        return int(min(table["memory_total_bytes"], host.total_bytes))
    if table["api"] == "metal":
        from autofit.hardware.working_set import working_set_bytes

        return working_set_bytes(host.total_bytes)
    return int(host.total_bytes * table.get("memory_host_fraction", 1.0))


def _machine(profile: Profile, memory: Ram | None, free_bytes: int | None, dirs: tuple[str | Path, ...]) -> _Part:
    """A profile of kind `machine`: its host and all its devices."""
    table = profile.table.get("host", {})
    rows = profile.table.get("device", ())
    if memory is None:
        memory = Ram(total_bytes=table.get("total_bytes") or _sold_with(profile, free_bytes))
    system, of_whom = _system_of(rows)
    share = memory.share_bytes(system)
    if any(row.get("pool") == HOST_POOL for row in rows) and free_bytes is not None:
        share = min(share, max(memory.total_bytes - free_bytes, 0))  # what was stated as free is
    host = Host(
        total_bytes=memory.total_bytes,
        available_bytes=memory.total_bytes - share,
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
    findings = _share_finding(memory, share, of_whom) if free_bytes is None else []
    sources = _sources(HOST_POOL, profile, "host.")
    for row in rows:
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


def _system_of(rows: Iterable[Mapping[str, Any]]) -> tuple[str, str]:
    """The kind of operating system that a machine with these devices runs, and its name for people.

    Machines of whole cards by their profiles are those that clouds rent: servers.
    """
    rows = tuple(rows)
    if any(row.get("api") == "metal" for row in rows):
        return "macos", "macOS and its desktop"
    if rows and all("profile" in row for row in rows):
        return "server", "the operating system"
    return "desktop", "the operating system and desktop"


def _sold_with(profile: Profile, free_bytes: int | None) -> int:
    """RAM of a machine that is sold with several sizes: the smallest that can have so much free."""
    sizes = profile.table.get("host", {}).get("sizes_gib", [])
    if len(sizes) == 1:
        return int(sizes[0]) * GIB
    for size in sorted(sizes):
        if free_bytes is not None and size * GIB >= free_bytes:
            return int(size) * GIB
    hint = "write --ram 64GiB"
    if sizes:
        hint = f"it is sold with {listed(sizes)}: write {profile.id}-{sizes[0]}gb, or --ram SIZE"
    raise UnknownHardwareError(f"{profile.id}: the size of RAM is unknown", hint=hint)


def _on_boards(devices: Sequence[Device], known: Iterable[Link], dirs: tuple[str | Path, ...]) -> Iterator[Link]:
    """Links between modules of one kind, which are sold on boards that link them all."""
    linked = {frozenset((link.a, link.b)) for link in known}
    several = {name for name, n in Counter(device.profile for device in devices).items() if name and n > 1}
    tables = {name: load_profile(name, dirs).table for name in sorted(several)}
    for at, a in enumerate(devices):
        table = tables.get(a.profile or "", {})
        if not table.get("nvlink_switched"):
            continue
        kind = "NVLink" if a.api == "cuda" else "Infinity Fabric"
        for b in devices[at + 1 :]:
            if b.profile == a.profile and frozenset((a.id, b.id)) not in linked:
                yield Link(a=a.id, b=b.id, kind=kind, bytes_per_s=table.get("nvlink_bytes_per_s"))


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
