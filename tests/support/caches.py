"""Caches of other programs, as they lay them out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def hub(root: Path, repository: str, files: Mapping[str, Path], *, commit: str = COMMIT, branch: str = "main") -> Path:
    """A snapshot of a repository whose files are links into `blobs`; returns its directory."""
    folder = root / ("models--" + repository.replace("/", "--"))
    snapshot = folder / "snapshots" / commit
    for name, source in files.items():
        blob = folder / "blobs" / hashlib.sha256(name.encode()).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        if not blob.exists():
            source.rename(blob) if source.parent == root else blob.symlink_to(source)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    ref = folder / "refs" / branch
    ref.parent.mkdir(parents=True, exist_ok=True)
    ref.write_text(commit)
    return snapshot


def manifest(layers: Mapping[str, tuple[str, int]]) -> bytes:
    """A manifest of these media types' digests and sizes."""
    entries = [{"mediaType": kind, "digest": digest, "size": size} for kind, (digest, size) in layers.items()]
    return json.dumps({"schemaVersion": 2, "layers": entries}).encode()


def ollama(root: Path, name: str, model: Path, projector: Path | None = None) -> None:
    """A model under `HOST/NAMESPACE/MODEL/TAG`, its blobs links to these files."""
    layers = {"application/vnd.ollama.image.license": ("sha256:" + "0" * 64, 5)}
    for kind, path in (("model", model), ("projector", projector)):
        if path is not None:
            digest = hashlib.sha256(str(path).encode()).hexdigest()
            blob = root / "blobs" / f"sha256-{digest}"
            blob.parent.mkdir(parents=True, exist_ok=True)
            if not blob.exists():
                blob.symlink_to(path)
            layers[f"application/vnd.ollama.image.{kind}"] = (f"sha256:{digest}", path.stat().st_size)
    place = root / "manifests" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(manifest(layers))
