"""Names of hardware as people and drivers write them, and the profiles they mean.

`3090`, `RTX 3090`, `NVIDIA GeForce RTX 3090` and `geforce-rtx-3090` are one card. A name is reduced to a key
(small letters and digits, without makers' words); file names answer first, the aliases inside the files only
on a miss.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from autofit.domain.patterns import lazy_pattern
from autofit.domain.text import printable
from autofit.errors import HardwareError, UnknownHardwareError
from autofit.profiles import files, find_file, read_text

_NOISE = lazy_pattern(
    r"\((?:r|tm|c)\)|[®™]|\b(?:nvidia|geforce|amd|radeon|intel|apple|tesla|graphics|accelerator|corporation|gpu|inc)\b"
)
#: what people leave out: `3090`, `a770`, `p5.48xlarge`
_FAMILY = lazy_pattern(r"^(?:rtx|gtx|rx|arcpro|arc|aws|gcp|azure)")
_SIZED_STEM = lazy_pattern(r"(.+)-\d+gb(?:-pcie)?")
_ALIASES = lazy_pattern(r"^aliases\s*=\s*\[(.*?)\]", re.MULTILINE | re.DOTALL)
_PCI_IDS = lazy_pattern(r"^pci_ids\s*=\s*\[(.*?)\]", re.MULTILINE | re.DOTALL)
_NAME = lazy_pattern(r'^name\s*=\s*"([^"]*)"', re.MULTILINE)
_QUOTED = lazy_pattern(r'"([^"]*)"')


def key_of(name: str) -> str:
    """What two spellings of one name have in common: `NVIDIA GeForce RTX 3090` -> `rtx3090`."""
    spaced = re.sub(r"[\s_\-/]+", " ", name.lower())
    words = _NOISE.sub(" ", spaced)
    return re.sub(r"[^a-z0-9+]", "", words) or re.sub(r"[^a-z0-9+]", "", spaced)


def find(name: str, extra_dirs: Iterable[str | Path] = ()) -> dict[str, Path]:
    """The profiles a name means: none, one, or several that differ in memory. Name -> file."""
    extra_dirs = tuple(extra_dirs)
    if (path := find_file("hardware", name, extra_dirs)) is not None:
        return {name: path}
    known, key = files("hardware", extra_dirs), key_of(name)
    return (
        {stem: path for stem, path in known.items() if key in _keys(stem)}
        or {stem: path for stem, path in known.items() if key in alias_keys(path)}
        or _sizes(key, known)
    )


def is_named(name: str, extra_dirs: Iterable[str | Path] = ()) -> bool:
    """Whether a file is called so; no file is read."""
    known, key = files("hardware", extra_dirs), key_of(name)
    return name in known or any(key in _keys(stem) for stem in known)


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
        UnknownHardwareError: no profile, or several; the hint names them.
    """
    extra_dirs = tuple(extra_dirs)
    found = find(name, extra_dirs)
    if len(found) == 1:
        return next(iter(found.values()))
    shown = printable(name, 80)
    if found:
        raise UnknownHardwareError(f"{shown!r} is ambiguous", hint=f"write one of: {', '.join(sorted(found))}")
    raise UnknownHardwareError(f"no hardware profile {shown!r}", hint=_hint(name, files("hardware", extra_dirs)))


def _hint(name: str, known: Mapping[str, Path]) -> str:
    tail = f"`autofit hardware list` shows all; a card that is not listed: {maker_of(name)}:12GiB, its size"
    close = closest(name, known)
    listed = " or ".join(filter(None, [", ".join(close[:-1]), *close[-1:]]))
    return f"did you mean {listed}? ({tail})" if close else tail


def maker_of(name: str) -> str:
    """The maker that a name speaks of, as the profile of its unlisted cards is called; NVIDIA where it does not say."""
    key = re.sub(r"[^a-z0-9]+", " ", name.lower())
    if re.search(r"\b(?:amd|radeon|rx|instinct|firepro|mi\d+x?|w[5-9]\d00)\b", key):
        return "amd"
    return "intel" if re.search(r"\b(?:intel|arc|iris|[ab]\d{3})\b", key) else "nvidia"


def closest(name: str, known: Mapping[str, Path]) -> list[str]:
    """The profiles whose names differ from `name` by the fewest edits, then by the smallest step of their number."""
    key = key_of(name[:80])
    longer = sorted(stem for stem in known if len(key) > 3 and key_of(stem).startswith(key))
    if longer:
        return longer[:3]
    ranked = sorted(
        (min((edits(key, other), _step(key, other)) for other in _spellings(stem, path)), stem)
        for stem, path in known.items()
    )
    most = max(1, len(key) // 4)
    near = [(rank, stem) for rank, stem in ranked if rank[0] <= most]
    if not near:  # a known name with more behind it: `rtx-2070-max-q`
        begun = max(
            (key_of(stem) for stem in known if len(stem) > 4 and key.startswith(key_of(stem))), key=len, default=""
        )
        return sorted(stem for stem in known if begun and key_of(stem).startswith(begun))[:3]
    return [stem for rank, stem in near if rank[0] == near[0][0][0]][:3]


def _spellings(stem: str, path: Path) -> set[str]:
    """Keys that a file answers to: its own, without family and size, and its aliases."""
    sized = _SIZED_STEM.fullmatch(stem)
    try:
        aliases = alias_keys(path)
    except HardwareError:  # a broken file of the user's must not hide the hint
        aliases = frozenset()
    return {*_keys(stem), *(_keys(sized[1]) if sized else ()), *aliases}


def _step(a: str, b: str) -> int:
    """How far apart the numbers in two names are."""
    first, second = re.search(r"\d+", a), re.search(r"\d+", b)
    return abs(int(first[0]) - int(second[0])) if first and second else 1 << 30


def edits(a: str, b: str) -> int:
    """Insertions, deletions, replacements and swaps of neighbors that make `b` of `a`."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a):
        new = [i + 1]
        for j, y in enumerate(b):
            cost = min(row[j] + (x != y), row[j + 1] + 1, new[j] + 1)
            if i and j and x == b[j - 1] and a[i - 1] == y:
                cost = min(cost, before[j - 1] + 1)
            new.append(cost)
        before, row = row, new
    return row[-1]
