"""llama.cpp's own dry run: llama-fit-params prints what each device would take, and takes nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from autofit.domain.memory import Kind
from autofit.domain.observed import Observed, ReportedPart
from autofit.domain.units import MIB
from autofit.errors import UsageError
from autofit.hardware.programs import find_program as program_on_path

from autofit_llama.command.options import spellings
from autofit_llama.command.reading import find_program
from autofit_llama.engine.versions import LATEST
from autofit_llama.logs.places import is_host, place_of
from autofit_llama.memory.estimate import REPACKED

PROGRAM = "llama-fit-params"
_KINDS: tuple[tuple[Kind, str], ...] = (("weights", "model"), ("cache", "context"), ("compute", "compute"))
_LINE = re.compile(
    r"^(?P<place>[A-Za-z]\w{0,40}(?:\[\S{1,80}\])?) (?P<model>\d{1,9}) (?P<context>\d{1,9}) (?P<compute>\d{1,9}) *$",
    re.MULTILINE,
)


def dry_run_of(argv: Sequence[str], environ: Mapping[str, str]) -> tuple[str, ...]:
    """The command with the program that estimates, in the folder of its own program or in `PATH`; flags that it does
    not have are left out. Empty: it is not installed.

    Source: tools/fit-params/fit-params.cpp
    """
    _, words, rest = find_program(argv)
    beside = Path(words[0]).parent / PROGRAM if words and "/" in words[0] else None
    path = str(beside) if beside is not None and beside.is_file() else program_on_path(PROGRAM, environ)
    if path is None:
        return ()
    known, kept, at = spellings(PROGRAM, LATEST), [path], 0
    server = spellings("llama-server", LATEST)
    while at < len(rest):
        token = rest[at].replace("_", "-") if rest[at].startswith("--") else rest[at]
        option = known.get(token) or server.get(token)
        n = 1 + (option[0].n_values if option else 0)
        if token in known:
            kept += rest[at : at + n]
        at += n
    return (*kept, "-fitp", "on")


def read_dry_run(text: str, engine: str) -> Observed:
    """A line per device, `CUDA0 2093 544 172`: MiB of model, context and compute, cut to whole ones.

    The host's line sums buffers that are the host's own: those of `CPU_REPACK` are not, as their type is no host type.

    Raises:
        UsageError: there is no such line.
    """
    parts = []
    for match in _LINE.finditer(text):
        place = place_of(match["place"])
        for kind, name in _KINDS:
            parts.append(
                ReportedPart(
                    place=place,
                    kind=kind,
                    n_bytes=int(match[name]) * MIB + MIB // 2,
                    label=name,
                    rounding_bytes=MIB // 2 + 1,
                    is_host=is_host(place),
                    excludes=(REPACKED,) if is_host(place) else (),
                )
            )
    if not parts:
        raise UsageError("llama-fit-params prints no figures", hint="builds before b7400 have no -fitp")
    return Observed(engine=engine, stage="compute", parts=tuple(parts), n_lines=len(parts) // 3)
