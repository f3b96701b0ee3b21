"""`ollama:NAME[:TAG]`: a manifest and its blobs, as Ollama keeps them on disk and in its registry.

A manifest names layers by media type and digest; `blobs/sha256-DIGEST` is a GGUF file.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from autofit.domain.model import ModelFiles, StoredModel
from autofit.domain.text import printable
from autofit.domain.values import NamedTuple
from autofit.errors import CorruptModelError, ModelNotFoundError, UsageError
from autofit.files import read_bounded
from autofit.sources.folders import below, files_below

PLACE = "Ollama"
HOST, NAMESPACE, TAG = "registry.ollama.ai", "library", "latest"
MAX_MANIFEST_BYTES = 1 << 20
_MODEL = "application/vnd.ollama.image.model"
_ROLES = {"application/vnd.ollama.image.projector": "mmproj", "application/vnd.ollama.image.adapter": "lora"}
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"
_NAME = re.compile(rf"(?:(?:([A-Za-z0-9.-]+(?::\d+)?)/)?({_PART})/)?({_PART})(?::({_PART}))?")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
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


class Layer(NamedTuple):
    """A GGUF file of a manifest. `role` is `model`, or that of a companion."""

    role: str
    digest: str
    size_bytes: int


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


def parse_manifest(raw: bytes, name: str) -> tuple[Layer, ...]:
    """The GGUF files that a manifest names, the model first.

    Raises:
        CorruptModelError: it is no manifest. ModelNotFoundError: none of its layers is a GGUF model.
    """
    try:
        layers = json.loads(raw)["layers"]
        found = [
            Layer(_ROLES.get(layer["mediaType"], "model"), layer["digest"], layer["size"])
            for layer in layers
            if layer["mediaType"] in (_MODEL, *_ROLES)
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptModelError(printable(name), "not a manifest of Ollama's") from error
    if any(not _is_sound(layer) for layer in found):
        raise CorruptModelError(printable(name), "a layer of its manifest has no valid digest or size")
    models = [layer for layer in found if layer.role == "model"]
    if not models:
        raise ModelNotFoundError(
            f"{printable(name)}: its manifest names no GGUF file",
            hint="it is kept in another format, or runs in the cloud: name the model's repository instead",
        )
    return (models[0], *(layer for layer in found if layer.role != "model"))


def find(reference: str) -> ModelFiles | None:
    """The blobs of a model on this disk; `None` if it is not here.

    Raises:
        UsageError: it is spelled otherwise. CorruptModelError, ModelNotFoundError: as `parse_manifest`.
    """
    name = parse(reference)
    for root in roots(os.environ):
        try:
            raw = read_bounded(root / "manifests" / _relative(name), MAX_MANIFEST_BYTES)
        except OSError:
            continue
        layers = parse_manifest(raw, reference)
        paths = [root / "blobs" / layer.digest.replace(":", "-") for layer in layers]
        if not paths[0].is_file():
            return None
        beside = {layer.role: str(path) for layer, path in zip(layers[1:], paths[1:], strict=True)}
        return ModelFiles(reference=reference, paths=(str(paths[0]),), beside=beside)
    return None


def stored(environ: Mapping[str, str]) -> Iterator[StoredModel]:
    """Every model that has a manifest and its blob here."""
    for root in roots(environ):
        for entry in files_below(root / "manifests", max_depth=4):
            parts = entry.name.split("/")
            if len(parts) != 4 or not all(re.fullmatch(_PART, part) for part in parts[1:]):
                continue
            name = OllamaName(*parts)
            try:
                layers = parse_manifest(read_bounded(entry.path, MAX_MANIFEST_BYTES), entry.name)
                path = root / "blobs" / layers[0].digest.replace(":", "-")
                size = path.stat().st_size
            except (OSError, ModelNotFoundError, CorruptModelError):
                continue
            yield StoredModel(name.written(), str(path), size, PLACE)


def _relative(name: OllamaName) -> Path:
    return Path(name.host.replace(":", "_"), name.namespace, name.model, name.tag)


def _is_sound(layer: Layer) -> bool:
    return (
        isinstance(layer.digest, str)
        and bool(_DIGEST.fullmatch(layer.digest))
        and type(layer.size_bytes) is int
        and 0 <= layer.size_bytes < 1 << 60
    )
