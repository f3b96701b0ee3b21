"""Names of hardware as people and drivers write them, and the profiles they mean.

`3090`, `RTX 3090`, `NVIDIA GeForce RTX 3090` and `geforce-rtx-3090` are one card. A name is reduced to a key
(small letters and digits, without makers' words); file names answer first, the aliases inside the files only
on a miss.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from autofit.domain.text import printable
from autofit.errors import HardwareError
from autofit.profiles import files, read_text, suggest

_NOISE = re.compile(
    r"\((?:r|tm|c)\)|[®™]|\b(?:nvidia|geforce|amd|radeon|intel|apple|tesla|graphics|accelerator|corporation|gpu|inc)\b"
)
#: what people leave out: `3090`, `a770`, `p5.48xlarge`
_FAMILY = re.compile(r"^(?:rtx|gtx|rx|arcpro|arc|aws|gcp|azure)")
_SIZED_STEM = re.compile(r"(.+)-\d+gb(?:-pcie)?")
_ALIASES = re.compile(r"^aliases\s*=\s*\[(.*?)\]", re.MULTILINE | re.DOTALL)
_PCI_IDS = re.compile(r"^pci_ids\s*=\s*\[(.*?)\]", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r'^name\s*=\s*"([^"]*)"', re.MULTILINE)
_QUOTED = re.compile(r'"([^"]*)"')


def key_of(name: str) -> str:
    """What two spellings of one name have in common: `NVIDIA GeForce RTX 3090` -> `rtx3090`."""
    spaced = re.sub(r"[\s_\-/]+", " ", name.lower())
    words = _NOISE.sub(" ", spaced)
    return re.sub(r"[^a-z0-9+]", "", words) or re.sub(r"[^a-z0-9+]", "", spaced)


def find(name: str, extra_dirs: Iterable[str | Path] = ()) -> dict[str, Path]:
    """The profiles a name means: none, one, or several that differ in memory. Name -> file."""
    known = files("hardware", extra_dirs)
    if name in known:
        return {name: known[name]}
    key = key_of(name)
    return (
        {stem: path for stem, path in known.items() if key in _keys(stem)}
        or {stem: path for stem, path in known.items() if key in alias_keys(path)}
        or _sizes(key, known)
    )


def find_driver(name: str, extra_dirs: Iterable[str | Path] = ()) -> dict[str, Path]:
    """The profiles that a driver's name may mean: it often leaves out what memory a card has."""
    return {**_sizes(key_of(name), files("hardware", extra_dirs)), **find(name, extra_dirs)}


def _sizes(key: str, known: Mapping[str, Path]) -> dict[str, Path]:
    """Files whose name says how much memory, where the key does not: `rtx3080` -> 10 GB and 12 GB."""
    bases = {stem: _SIZED_STEM.fullmatch(stem) for stem in known}
    return {stem: known[stem] for stem, base in bases.items() if base and key in _keys(base[1])}


def _keys(stem: str) -> tuple[str, str]:
    """A file's own keys: as it is written, and without its family."""
    key = key_of(stem)
    return key, _FAMILY.sub("", key)


def find_pci(pci_id: str, extra_dirs: Iterable[str | Path] = ()) -> dict[str, Path]:
    """The profiles of a device on the bus (`1002:744c`): cards that differ in memory may share a number."""
    return {
        stem: path
        for stem, path in files("hardware", extra_dirs).items()
        if pci_id in _quoted(_PCI_IDS, read_text(path))
    }


def _quoted(pattern: re.Pattern[str], text: str) -> list[str]:
    return [value for block in pattern.findall(text) for value in _QUOTED.findall(block)]


def alias_keys(path: Path) -> frozenset[str]:
    """Keys of every name in a file. Read by pattern: parsing every profile would cost more than the plan."""
    text = read_text(path, HardwareError)
    head = text.partition("\n[")[0]
    return frozenset(map(key_of, _NAME.findall(head) + _quoted(_ALIASES, head)))


def resolve(name: str, extra_dirs: Iterable[str | Path] = ()) -> Path:
    """The one profile a name means.

    Raises:
        HardwareError: no profile, or several; the hint names them.
    """
    found = find(name, extra_dirs)
    if len(found) == 1:
        return next(iter(found.values()))
    shown = printable(name, 80)
    if found:
        raise HardwareError(f"{shown!r} is ambiguous", hint=f"write one of: {', '.join(sorted(found))}")
    raise HardwareError(f"no hardware profile {shown!r}", hint=_hint(name, files("hardware", extra_dirs)))


def _hint(name: str, known: Mapping[str, Path]) -> str:
    tail = "`autofit hardware list` shows all; a card without one: generic-cuda:24GiB"
    close = suggest(re.sub(r"[\s_]+", "-", name.lower().strip()), known) or suggest(key_of(name), known)
    return f"{close} ({tail})" if close else tail
