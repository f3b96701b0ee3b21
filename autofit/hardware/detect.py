"""All sources asked at once, and what they say joined into one machine.

A source runs in a thread of its own, so that a driver or tool that hangs costs its time-out and not the
answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from autofit.domain.machine import HOST_POOL, Device, Host, Machine
from autofit.domain.text import printable
from autofit.domain.values import replace
from autofit.errors import HardwareError
from autofit.hardware.facts import Facts, Source
from autofit.hardware.host import read_host
from autofit.hardware.programs import ToolError
from autofit.hardware.system import KILL_SECONDS, System
from autofit.profiles import THIS_MACHINE, user_dir

DISPLAY_CLASSES = ("0x0300", "0x0302", "0x0380", "0x1200")  #: VGA, 3D controller, other display, accelerator
GPU_VENDORS = {0x10DE: "NVIDIA", 0x1002: "AMD", 0x8086: "Intel", 0x19E5: "Huawei", 0x1ED5: "Moore Threads"}


def detect(system: System, sources: Sequence[Source]) -> Machine:
    """The machine behind `system`, as these sources know it."""
    facts = read_host(system)
    host, calibrated = _calibrated(system, facts.host)
    answers = _ask_all(system, host, [source for source in sources if not source.fills_gaps])
    findings = [finding for answer in answers for finding in answer.findings]
    origins = {**facts.sources, **calibrated}
    found = _distinct(device for answer in answers for device in answer.devices)
    for answer in answers:
        origins |= answer.sources
    links = [link for answer in answers for link in answer.links]
    seen = frozenset(pci for answer in answers for pci in answer.seen)
    unexplained = list(_unexplained(system, seen))
    blind = system.platform == "win32" and not found  # only NVML is asked there
    if unexplained or blind or any(device.free_bytes is None for device in found):
        explained, told = False, list(unexplained)
        for listed in _ask_all(system, host, [source for source in sources if source.fills_gaps]):
            found, origins, fills = _merge(found, origins, listed)
            explained = explained or fills
            told += listed.findings if unexplained or listed.devices or blind else ()
        findings += [] if explained else told
    counted = _counted(system, found, findings)
    names = {device.id: f"GPU{i}" for i, device in enumerate(counted)}
    devices = tuple(
        replace(device, id=names[device.id], pool=HOST_POOL if device.pool == HOST_POOL else names[device.id])
        for device in counted
    )
    if not devices and not found and not findings:
        findings.append("no GPU was found; --on NAME plans for one")
    return Machine(
        host=host,
        devices=devices,
        links=tuple(
            replace(link, a=names[link.a], b=names[link.b]) for link in links if link.a in names and link.b in names
        ),
        origin="detected",
        findings=tuple(dict.fromkeys(findings)),
        sources={_renamed(key, names): basis for key, basis in origins.items() if _kept(key, names)},
    )


def _calibrated(system: System, host: Host) -> tuple[Host, dict[str, str]]:
    """The host with what `hardware calibrate` measured on it, if it was."""
    path = user_dir(system.env) / "hardware" / f"{THIS_MACHINE}.toml"
    if system.root != Path("/") or not path.is_file():
        return host, {}
    from autofit.hardware.catalog import read_profile

    try:
        rate = read_profile(path).table.get("calibration", {}).get("ram_bandwidth_bytes_per_s")
    except HardwareError as error:
        return replace(host, notes=(*host.notes, error.message)), {}
    if rate is None:
        return host, {}
    return replace(host, bandwidth_bytes_per_s=rate), {"host.bandwidth_bytes_per_s": "measured: hardware calibrate"}


def _distinct(devices: Iterable[Device]) -> list[Device]:
    """Each device once: the first that names a UUID, and the first of an id."""
    found: list[Device] = []
    for device in devices:
        known = any(d.id == device.id or (d.uuid is not None and d.uuid == device.uuid) for d in found)
        if not known:
            found.append(device)
    return found


def _kept(key: str, names: dict[str, str]) -> bool:
    return key.startswith(f"{HOST_POOL}.") or key.partition(".")[0] in names


def _renamed(key: str, names: dict[str, str]) -> str:
    owner, dot, figure = key.partition(".")
    return f"{names.get(owner, owner)}{dot}{figure}"


def _ask_all(system: System, host: Host, sources: Sequence[Source]) -> list[Facts]:
    """Every source's answer, within the time that is left; one that hangs or fails is a finding."""
    sources = [source for source in sources if system.has_sign(source.signs)]
    if not sources:
        return []
    import threading

    answers: list[Facts | None] = [None] * len(sources)
    asked = [_isolated(system, host, source) for source in sources]  # before any thread starts

    def ask(position: int) -> None:
        name = printable(sources[position].name, 60)
        try:
            answer = asked[position]()
        except TimeoutError:
            return
        except Exception as error:  # a source must not take the others with it, whatever a driver sends back
            answer = Facts(findings=(f"{name}: {type(error).__name__}: {printable(str(error))}",))
        if not isinstance(answer, Facts):
            answer = Facts(findings=(f"{name}: it must return Facts, not {type(answer).__name__}",))
        answers[position] = answer

    started: list[threading.Thread] = []
    threads = [threading.Thread(target=ask, args=(position,), daemon=True) for position in range(len(sources))]
    for position, thread in enumerate(threads):
        try:
            thread.start()
        except RuntimeError:  # no more threads, or no memory for them
            ask(position)
        else:
            started.append(thread)
    for thread in started:
        thread.join(system.seconds_left)
    return [answer or _late(system, source) for answer, source in zip(answers, sources, strict=True)]


def _isolated(system: System, host: Host, source: Source) -> Callable[[], Facts]:
    """A source as a call; one that loads a driver's library has been asked in a child process by then."""
    ask = partial(source.find, system, host)
    if not system.isolates or not source.library or not system.may_load(source.library):
        return ask
    from autofit.hardware.child import Child, ChildError

    try:
        child = Child(ask)
    except OSError:  # no more processes
        return ask

    def answer() -> Facts:
        try:
            return child.facts(system.seconds_left - KILL_SECONDS)
        except ChildError as cause:
            fails = _fails(str(cause))
            return source.find(replace(system, load_nvml=fails, load_amdsmi=fails), host)

    return answer


def _fails(why: str) -> Callable[[], Any]:
    def load() -> Any:
        raise ToolError(why)

    return load


def _late(system: System, source: Source) -> Facts:
    why = f"no answer within {system.seconds:g} s, AUTOFIT_DETECT_SECONDS=5 waits longer"
    if source.unanswered and (known := source.unanswered(system, why)).devices:
        return known
    return Facts(findings=(f"{printable(source.name, 60)}: {why}",))


def _unexplained(system: System, seen: frozenset[str]) -> Iterable[str]:
    """Devices on the bus, or nodes in /dev, that no source has accounted for."""
    for pci in system.names("/sys/bus/pci/devices"):
        base = f"/sys/bus/pci/devices/{pci}"
        if pci.lower() in seen or not (system.text(f"{base}/class") or "").startswith(DISPLAY_CLASSES):
            continue
        vendor = system.number(f"{base}/vendor") or 0
        if vendor in GPU_VENDORS:
            driver = system.link(f"{base}/driver")
            state = f"its driver {printable(driver)} reports no figures" if driver else "no driver is bound to it"
            number = f"{vendor:04x}:{system.number(f'{base}/device') or 0:04x}"
            yield f"{GPU_VENDORS[vendor]} device {printable(pci)} ({number}) is on the bus, but {state}"
    if any(name.startswith("davinci") and name[7:].isdecimal() for name in system.names("/dev")):
        yield "Ascend devices are there (/dev/davinci*); only an engine can tell their memory"


def _merge(found: list[Device], origins: dict[str, str], listed: Facts) -> tuple[list[Device], dict[str, str], bool]:
    """Free memory for devices that lack it, and devices that nobody else found, from an engine's list."""
    explained = False
    for device in listed.devices:
        same = [d for d in found if d.name == device.name or (d.api == device.api and d.index == device.index)]
        if same:
            if same[0].free_bytes is None:
                explained = True
                found = [replace(d, free_bytes=device.free_bytes) if d is same[0] else d for d in found]
                free = listed.sources.get(f"{device.id}.free_bytes", "measured")
                origins = {**origins, f"{same[0].id}.free_bytes": free}
        elif not any(d.vendor is not None and d.name in device.name for d in found):
            explained = True
            found = [*found, device]
            known = {key: basis for key, basis in listed.sources.items() if key.startswith(f"{device.id}.")}
            origins = {**origins, **known}
    return found, origins, explained


def _counted(system: System, found: list[Device], findings: list[str]) -> list[Device]:
    """The devices one engine will use: no graphics of the processor beside real cards, and one back end.

    llama.cpp takes an integrated device only where there is no other (llama.cpp:llama_prepare_model_devices).
    A chip known as a unified-memory machine counts; any other does when `AUTOFIT_INTEGRATED=1` asks for it.
    """
    asked = system.env.get("AUTOFIT_INTEGRATED", "") not in ("", "0")
    discrete = [device for device in found if not device.integrated]
    small = [] if asked else [device for device in found if _is_small(device, bool(discrete))]
    findings.extend(
        f"{device.name} (integrated, shares RAM) is not counted; AUTOFIT_INTEGRATED=1 counts it" for device in small
    )
    counted = [device for device in found if device not in small]
    apis = list(dict.fromkeys(device.api for device in counted))
    if len(apis) > 1:
        most = max(apis, key=lambda api: sum(d.total_bytes or 0 for d in counted if d.api == api))
        findings.extend(
            f"{device.name} ({device.api}) is not counted: one build of an engine drives only {most}"
            for device in counted
            if device.api != most
        )
        counted = [device for device in counted if device.api == most]
    return counted


def _is_small(device: Device, beside_cards: bool) -> bool:
    """Graphics of a processor, as against a machine that is built around its GPU."""
    known = device.profile is not None or device.api in ("cuda", "metal")
    return device.integrated and (beside_cards or not known)
