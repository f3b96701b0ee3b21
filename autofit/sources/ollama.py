"""`ollama:NAME[:TAG]`: a manifest and its blobs, as Ollama keeps them on disk and in its registry.

A manifest names layers by media type and digest; `blobs/sha256-DIGEST` is a GGUF file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from autofit.domain.model import ModelFiles, StoredModel
from autofit.domain.patterns import lazy_pattern
from autofit.domain.text import printable
from autofit.domain.values import NamedTuple
from autofit.errors import CorruptModelError, ModelNotFoundError, UsageError
from autofit.files import read_bounded
from autofit.sources.folders import below, files_below
from autofit.sources.registry import ACCEPT, MAX_MANIFEST_BYTES, blobs, parse_manifest

PLACE = "Ollama"
HOST, NAMESPACE, TAG = "registry.ollama.ai", "library", "latest"
_MODEL = "application/vnd.ollama.image.model"
_ROLES = {"application/vnd.ollama.image.projector": "mmproj", "application/vnd.ollama.image.adapter": "lora"}
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"
_NAME = lazy_pattern(rf"(?:(?:([A-Za-z0-9.-]+(?::\d+)?)/)?({_PART})/)?({_PART})(?::({_PART}))?")
_SYSTEM = Path("/usr/share/ollama/.ollama/models")  #: of the service that its Linux installer sets up


class OllamaName(NamedTuple):
    host: str
    namespace: str
    model: str
    tag: str

    def written(self) -> str:
        parts = [self.model, self.namespace if self.namespace != NAMESPACE else "", self.host]
        kept = parts[: 3 if self.host != HOST else 2]
        return f"ollama:{'/'.join(part for part in reversed(kept) if part)}:{self.tag}"


def parse(reference: str) -> OllamaName:
    """`[[HOST/]NAMESPACE/]MODEL[:TAG]` behind `ollama:`.

    Raises:
        UsageError: it is spelled otherwise.
    """
    match = _NAME.fullmatch(reference.partition(":")[2].removeprefix("//"))
    if match is None or ".." in match[0]:
        raise UsageError(f"{printable(reference)}: not a name of Ollama's", hint="write ollama:NAME or ollama:NAME:TAG")
    host, namespace, model, tag = match.groups()
    return OllamaName(host or HOST, namespace or NAMESPACE, model, tag or TAG)


def roots(environ: Mapping[str, str]) -> tuple[Path, ...]:
    own = below(environ, {"OLLAMA_MODELS": ""}, ".ollama/models")
    return (own,) if environ.get("OLLAMA_MODELS") else (own, _SYSTEM)


def role_of(media_type: str) -> str | None:
    """What a layer is, if it is a GGUF file."""
    return "model" if media_type == _MODEL else _ROLES.get(media_type)


def find(reference: str) -> ModelFiles:
    """The blobs of a model: those on this disk, else those of its registry.

    Raises:
        UsageError: it is spelled otherwise. CorruptModelError, ModelNotFoundError: as `parse_manifest`.
        RemoteError: the registry does not answer.
    """
    name = parse(reference)
    return on_disk(reference, name) or elsewhere(reference, name)


def on_disk(reference: str, name: OllamaName) -> ModelFiles | None:
    """The blobs of a model on this disk; `None` if it is not here."""
    for root in roots(os.environ):
        try:
            raw = read_bounded(root / "manifests" / _relative(name), MAX_MANIFEST_BYTES)
        except OSError:
            continue
        layers = parse_manifest(raw, reference, role_of)
        paths = [root / "blobs" / layer.digest.replace(":", "-") for layer in layers]
        if not paths[0].is_file():
            return None
        beside = {layer.role: str(path) for layer, path in zip(layers[1:], paths[1:], strict=True)}
        return ModelFiles(reference=reference, paths=(str(paths[0]),), beside=beside)
    return None


def elsewhere(reference: str, name: OllamaName) -> ModelFiles:
    """The blobs of a model in its registry."""
    from autofit.remote.session import Session

    session = Session(printable(name.written().partition(":")[2], 60))
    base = f"{_scheme(name.host)}://{name.host}/v2/{name.namespace}/{name.model}"
    url = f"{base}/manifests/{name.tag}"

    def ask() -> str:
        label = f"{name.written().partition(':')[2]} at {name.host}"
        return session.client.document(url, MAX_MANIFEST_BYTES, accept=ACCEPT, label=label)[0].decode(
            "utf-8", "replace"
        )

    layers = parse_manifest(str(session.remembered(f"manifest\0{url}", ask)), reference, role_of)
    files = {f"{layer.role}.gguf": (f"{base}/blobs/{layer.digest}", layer) for layer in layers}
    root = f"ollama:{name.host}/{name.namespace}/{name.model}/{name.tag}"
    return ModelFiles(
        reference=reference,
        paths=(f"{root}/model.gguf",),
        storage=blobs(root, files, session),
        written=files["model.gguf"][0],
        notes=tuple(session.notes),
    )


def stored(environ: Mapping[str, str]) -> Iterator[StoredModel]:
    """Every model that has a manifest and its blob here."""
    for root in roots(environ):
        for entry in files_below(root / "manifests", max_depth=4):
            parts = entry.name.split("/")
            if len(parts) != 4 or not all(re.fullmatch(_PART, part) for part in parts[1:]):
                continue
            name = OllamaName(*parts)
            try:
                layers = parse_manifest(read_bounded(entry.path, MAX_MANIFEST_BYTES), entry.name, role_of)
                path = root / "blobs" / layers[0].digest.replace(":", "-")
                size = path.stat().st_size
            except (OSError, ModelNotFoundError, CorruptModelError):
                continue
            yield StoredModel(name.written(), str(path), size, PLACE)


def _scheme(host: str) -> str:
    """A registry of this machine speaks without encryption; no other is spoken to so."""
    return "http" if host.partition(":")[0] in ("127.0.0.1", "localhost") else "https"


def _relative(name: OllamaName) -> Path:
    return Path(name.host.replace(":", "_"), name.namespace, name.model, name.tag)
