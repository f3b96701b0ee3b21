"""Repositories of a hub as its clients keep them on disk.

The layout is that of the Hub's clients: `models--ORG--NAME/{refs,blobs,snapshots/COMMIT}`, where a snapshot holds links
into `blobs`. llama.cpp keeps the same one (common/hf-cache.cpp), and kept plain files before,
`ORG_NAME_FILE.gguf`, in a cache of its own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from autofit.domain.model import StoredModel
from autofit.domain.names import HubName
from autofit.domain.patterns import lazy_pattern
from autofit.domain.values import NamedTuple
from autofit.files import read_bounded
from autofit.sources.choice import GgufModel, choose, models_of, with_file
from autofit.sources.folders import Entry, below, files_below, folders_in, home

PLACE = "Hugging Face"
OWN_PLACE = "llama.cpp"
_COMMIT = lazy_pattern(r"[0-9a-f]{40}")
_PREFIX = "models--"


class Snapshot(NamedTuple):
    """The files of one revision of a repository, by their paths in it."""

    directory: Path
    files: Mapping[str, Entry]

    @property
    def models(self) -> tuple[GgufModel, ...]:
        """Its GGUF models of which no shard is missing."""
        return tuple(m for m in models_of({name: e.size_bytes for name, e in self.files.items()}) if m.is_whole)

    @property
    def is_checkpoint(self) -> bool:
        """Whether it has a configuration and weights of which none is missing by their index or numbers."""
        return "config.json" in self.files and _has_all_weights(self)


def roots(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Folders of repositories: that of the Hub's own clients, and that of llama.cpp where it is another one.

    Source: common/hf-cache.cpp:get_cache_directory.
    """
    hub = below(
        environ,
        {
            "HF_HUB_CACHE": "",
            "HUGGINGFACE_HUB_CACHE": "",
            "HF_HOME": "hub",
            "XDG_CACHE_HOME": "huggingface/hub",
        },
        ".cache/huggingface/hub",
    )
    own = environ.get("LLAMA_CACHE")
    return (Path(own), hub) if own and Path(own) != hub else (hub,)


def own_cache(environ: Mapping[str, str]) -> Path:
    """Where llama.cpp keeps what `-mu` and `-dr` download (common/common.cpp:fs_get_cache_directory)."""
    if local := environ.get("LOCALAPPDATA"):
        return Path(environ.get("LLAMA_CACHE") or Path(local) / "llama.cpp")
    mac = home(environ) / "Library" / "Caches"
    if mac.is_dir() and not environ.get("LLAMA_CACHE"):
        return mac / "llama.cpp"
    return below(environ, {"LLAMA_CACHE": "", "XDG_CACHE_HOME": "llama.cpp"}, ".cache/llama.cpp")


def find(name: HubName, environ: Mapping[str, str]) -> Snapshot | None:
    """The newest revision of a repository that is here, or the one that is named."""
    for root in roots(environ):
        repository = root / (_PREFIX + name.repository.replace("/", "--"))
        commit = _commit(repository, name.revision)
        directory = repository / "snapshots" / commit if commit else None
        if directory is not None and directory.is_dir():
            return Snapshot(directory, {entry.name: entry for entry in files_below(directory)})
    return None


def find_model(name: HubName, environ: Mapping[str, str]) -> tuple[Snapshot, GgufModel] | None:
    """The GGUF model of a snapshot that a name chooses, if all of its files are here."""
    snapshot = find(name, environ)
    if snapshot is None:
        return None
    models = snapshot.models
    model = with_file(models, name.file) if name.file else choose(models, name.quantization)
    return None if model is None else (snapshot, model)


def find_plain(name: HubName, environ: Mapping[str, str]) -> Entry | None:
    """The file of a repository as llama.cpp kept it before it took the Hub's layout."""
    prefix = name.repository.replace("/", "_") + "_"
    entries = [e for e in files_below(own_cache(environ), max_depth=1) if e.name.startswith(prefix)]
    by_name = {entry.name.removeprefix(prefix): entry for entry in entries}
    models = [m for m in models_of({n: e.size_bytes for n, e in by_name.items()}) if m.is_whole]
    file = name.file.replace("/", "_") if name.file else None
    model = with_file(models, file) if file else choose(models, name.quantization)
    return None if model is None else by_name[model.files[0]]


def stored(environ: Mapping[str, str]) -> Iterator[StoredModel]:
    """Every model of these caches."""
    for root in roots(environ):
        for folder in folders_in(root):
            repository = folder.removeprefix(_PREFIX).replace("--", "/")
            snapshot = find(HubName(repository), environ) if folder.startswith(_PREFIX) else None
            if snapshot is not None:
                yield from _models(repository, snapshot)
    plain = [e for e in files_below(own_cache(environ), max_depth=1) if e.path.endswith(".gguf")]
    sizes = {entry.name: entry.size_bytes for entry in plain}
    paths = {entry.name: entry.path for entry in plain}
    for model in models_of(sizes):
        if model.is_whole:
            yield StoredModel(paths[model.files[0]], paths[model.files[0]], model.size_bytes, OWN_PLACE)


def _models(repository: str, snapshot: Snapshot) -> Iterator[StoredModel]:
    models = snapshot.models
    tags = Counter(model.quantization for model in models)
    for model in models:
        path = snapshot.files[model.files[0]].path
        tag = model.quantization
        # a quantization that two models share does not name one of them
        word = tag if tag and tags[tag] == 1 else model.files[0]
        yield StoredModel(f"{repository}:{word}", path, model.size_bytes, PLACE)
    if not models and snapshot.is_checkpoint:
        size = sum(e.size_bytes for e in snapshot.files.values() if e.name.endswith(".safetensors"))
        yield StoredModel(repository, str(snapshot.directory), size, PLACE)


def _commit(repository: Path, revision: str | None) -> str | None:
    """The commit of a revision: a branch by its name in `refs`, or itself; `main`, else the first branch there is."""
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    refs = repository / "refs"
    names = [revision] if revision else ["main", *(e.name for e in files_below(refs, max_depth=3))]
    for name in names:
        try:
            text = read_bounded(refs / name, 100).decode("ascii", "replace").strip()
        except OSError:
            continue
        if _COMMIT.fullmatch(text):
            return text
    return None


def _has_all_weights(snapshot: Snapshot) -> bool:
    weights = {name for name in snapshot.files if name.endswith(".safetensors") and "/" not in name}
    matches = [re.fullmatch(r"(.+)-[0-9]{5}-of-([0-9]{5,6})\.safetensors", name) for name in weights]
    shards = [(match[1], match[2]) for match in matches if match]
    counts = Counter(count for _, count in shards)
    for prefix, count in set(shards):
        if f"{prefix}-{int(count):05d}-of-{count}.safetensors" not in weights or counts[count] < int(count):
            return False
    return bool(weights)
