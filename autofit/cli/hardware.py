"""`autofit hardware`: what this machine has, or a profile of one that you do not have."""

from __future__ import annotations

import argparse
import os
import re
import sys
from typing import TYPE_CHECKING, Any

from autofit.domain.text import printable
from autofit.errors import EngineError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from autofit.domain.machine import Machine

BENCHMARK_SECONDS = 600.0
ACTIONS = {
    "detect": "what this machine has (the default); paste it into bug reports",
    "list": "the profiles that --on knows",
    "show": "one profile or machine, and where each figure comes from",
    "save": "write this machine, or what --on describes, as a profile of yours",
    "calibrate": "measure this machine's memory and, with --model, run an engine's benchmark",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "actions:\n" + "\n".join(f"  {name:<10} {about}" for name, about in ACTIONS.items())
    parser.add_argument("action", nargs="?", default="detect", choices=tuple(ACTIONS), metavar="ACTION")
    parser.add_argument("name", nargs="?", help="of a profile (show, save, calibrate) or a part of it (list)")
    parser.add_argument(
        "--on",
        action="append",
        metavar="NAME[:SIZE]",
        help="describe this hardware, not this machine; repeat for several devices",
    )
    parser.add_argument("--ram", metavar="SIZE", help="RAM of the hardware given by --on")
    parser.add_argument("--model", metavar="FILE", help="calibrate: the model that an engine's benchmark runs")
    parser.add_argument("--format", choices=("text", "json"), default="text")


def run(args: argparse.Namespace) -> int:
    if args.action in ("show", "save") and args.name is None:
        raise UsageError(f"hardware {args.action} needs a name", hint=f"autofit hardware {args.action} rtx-3090")
    if args.action == "detect" and args.name is not None:
        raise UsageError(
            f"hardware detect takes no name: {args.name[:40]!r}",
            hint=f"autofit hardware show {args.name[:40]}",
        )
    if args.ram is not None and not args.on and args.action != "show":
        raise UsageError(
            "--ram goes with --on: this machine's memory is measured",
            hint="a machine without a GPU: --on cpu --ram 64GiB",
        )
    actions = {"detect": _detect, "list": _list, "show": _show, "save": _save, "calibrate": _calibrate}
    return actions[args.action](args)


def _machine(args: argparse.Namespace) -> Machine:
    from autofit.machines import detect_machine, load_machine

    return load_machine(*args.on, ram=args.ram) if args.on else detect_machine()


def _detect(args: argparse.Namespace) -> int:
    machine = _machine(args)
    if args.format == "text" and not args.on:
        print(_about())
    _print(machine, args.format)
    if args.format == "text" and not args.on and (line := _disk()):
        print(f"\n{line}")
    return 0


def _show(args: argparse.Namespace) -> int:
    from autofit.machines import load_machine

    machine = load_machine(args.name, *(args.on or ()), ram=args.ram)
    _print(machine, args.format)
    if args.format == "text" and machine.sources:
        from autofit.hardware.report import describe_sources

        print(f"\nsources\n{describe_sources(machine)}")
    return 0


def _print(machine: Machine, format: str) -> None:
    if format == "json":
        import json

        from autofit.hardware import machine_to_dict

        print(json.dumps(machine_to_dict(machine), indent=2, allow_nan=False))
    else:
        from autofit.hardware.report import describe

        print(describe(machine))


def _about() -> str:
    """What a bug report needs to know beside the hardware."""
    import platform

    from autofit import __version__

    shown = [f"{name}={printable(os.environ[name])}" for name in VARIABLES if name in os.environ]
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return "\n".join([f"autofit {__version__} · {printable(system)} · Python {platform.python_version()}", *shown, ""])


def _disk() -> str | None:
    """The file system here: weights that exceed memory are paged from where they lie."""
    from pathlib import Path

    from autofit.domain.units import format_bytes
    from autofit.hardware.disk import disk_of
    from autofit.hardware.system import this_system

    try:
        here = Path.cwd()
    except OSError:  # it has been deleted
        return None
    disk = disk_of(this_system(), here)
    if disk is None:
        return None
    kind = f"{printable(disk.kind)}{', over the network' if disk.remote else ''}"
    kind += ", rotational" if disk.rotational else ", in memory" if disk.in_memory else ""
    free = "unknown space" if disk.free_bytes is None else format_bytes(disk.free_bytes)
    return f"disk    {free} free here on {printable(disk.mount)} ({kind})"


VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "NVIDIA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "AUTOFIT_INTEGRATED",
    "AUTOFIT_DETECT_SECONDS",
    "AUTOFIT_PROFILES",
)  #: what changes the devices that a process sees


def _list(args: argparse.Namespace) -> int:
    from autofit.hardware.catalog import list_profiles
    from autofit.hardware.names import key_of
    from autofit.host import host

    wanted = key_of(args.name) if args.name else ""
    known = list_profiles(host().profile_dirs())
    rows = [p for p in known if wanted in key_of(p.id) or wanted in key_of(p.table["name"])]
    if args.format == "json":
        import json

        print(json.dumps([{"id": p.id, "path": str(p.path), **p.table} for p in rows], indent=2, allow_nan=False))
        return 0
    if not rows:
        raise UsageError(f"no hardware profile has {args.name[:40]!r} in its name", hint="autofit hardware list")
    width = max(len(p.id) for p in rows)
    for profile in rows:
        print(f"{profile.id:<{width}}  {printable(profile.summary_line())}")
    return 0


def _save(args: argparse.Namespace) -> int:
    from autofit.hardware.report import profile_table
    from autofit.profiles import save

    path = _path(args.name)
    machine = _machine(args)
    save(path, profile_table(machine, args.name), _heading(args.name))
    print(path)
    print(f"use it with --on {args.name}; edit it by hand as you like, comments stay", file=sys.stderr)
    return 0


def _heading(name: str) -> tuple[str, ...]:
    return (
        f"A machine of yours: `autofit llama MODEL --on {name}`. Keys that are missing are not known;",
        "`autofit hardware show` prints them with their sources. Comments survive a second save.",
    )


def _path(name: str) -> Path:
    from autofit.profiles import user_dir

    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,63}", name):
        raise UsageError(
            f"not a name for a profile: '{printable(name, 60)}'", hint="use small letters, digits, dots and dashes"
        )
    return user_dir() / "hardware" / f"{name}.toml"


def _calibrate(args: argparse.Namespace) -> int:
    import datetime

    from autofit.domain.values import replace
    from autofit.hardware.calibrate import measure_ram
    from autofit.hardware.report import profile_table
    from autofit.machines import detect_machine
    from autofit.profiles import THIS_MACHINE, save

    if args.on:
        raise UsageError("hardware calibrate measures this machine and takes no --on")
    name = args.name or THIS_MACHINE
    path = _path(name)
    machine = detect_machine()
    print("measuring RAM ...", file=sys.stderr)
    measured = measure_ram(machine)
    if args.model:
        measured = replace(measured, benchmark=_benchmark(args.model))
    table = {
        **profile_table(machine, name),
        "calibration": measured.to_table(datetime.date.today().isoformat()),
    }
    save(path, table, _heading(name))
    rate = measured.ram_bandwidth_bytes_per_s
    spread = f"{len(measured.passes)} passes, the slowest {min(measured.passes) / 1e9:.1f}"
    print(f"RAM  {rate / 1e9:.1f} GB/s read by {measured.n_threads} threads ({spread})")
    for row in measured.benchmark:
        print(f"{row['test']:<12} {row['tokens_per_s']} tokens/s  {printable(str(row['model']), 80)}")
    print(f"written to {path}", file=sys.stderr)
    return 0


def _benchmark(model: str) -> tuple[Mapping[str, Any], ...]:
    """What the benchmark of the first engine that has one says of a model.

    Raises:
        EngineError: not installed, failed, or its answer is not understood.
    """
    from autofit.hardware.programs import ToolError
    from autofit.hardware.system import this_system
    from autofit.host import host

    for name in host().backends():
        backend = host().backend(name)
        argv = backend.benchmark(model)
        if not argv:
            continue
        print(f"running {argv[0]} ...", file=sys.stderr)
        try:
            return tuple(backend.read_benchmark(this_system().run(argv, BENCHMARK_SECONDS)))
        except ToolError as cause:
            raise EngineError(str(cause), hint="without --model only RAM is measured") from None
    raise EngineError("no engine with a benchmark is known", hint="without --model only RAM is measured")
