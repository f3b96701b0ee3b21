"""Devices that a command names, and the same command where it sees these alone.

Source: common/arg.cpp:parse_device_list, ggml/src/ggml-cuda/ggml-cuda.cu:ggml_backend_cuda_reg.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from autofit_llama.command.reading import read
from autofit_llama.engine.versions import Version

_NAMING = ("device", "spec-draft-device", "override-tensor", "spec-draft-override-tensor")
_CUDA = re.compile(r"(?<![A-Za-z0-9_])CUDA([0-9]{1,3})(?![A-Za-z0-9_])")


def alone(argv: Sequence[str], version: Version) -> tuple[tuple[int, ...], tuple[str, ...]] | None:
    """The numbers of CUDA devices that a command names, in order, and the command in which they begin at 0; `None`: it
    leaves the choice open, or names others."""
    reading = read(argv, version=version)
    chosen = reading.given("device")
    if chosen is None or not all(map(_CUDA.fullmatch, str(chosen.value).split(","))):
        return None
    flags = {spelling for flag in reading.flags if flag.option.key in _NAMING for spelling in flag.option.spellings}
    values = [at for at in range(1, len(argv)) if argv[at - 1] in flags]
    numbers = sorted({int(match[1]) for at in values for match in _CUDA.finditer(argv[at])})
    place = {number: at for at, number in enumerate(numbers)}
    words = list(argv)
    for at in values:
        words[at] = _CUDA.sub(lambda match: f"CUDA{place[int(match[1])]}", words[at])
    return tuple(numbers), tuple(words)
