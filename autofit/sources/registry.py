"""Registries of containers that hold models: a manifest names blobs by their digests."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from autofit.domain.patterns import lazy_pattern
from autofit.domain.text import printable
from autofit.domain.values import NamedTuple
from autofit.errors import CorruptModelError, ModelNotFoundError

if TYPE_CHECKING:
    from autofit.remote.files import RemoteStorage
    from autofit.remote.session import Session

MAX_MANIFEST_BYTES = 1 << 20
ACCEPT = "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json"
_DIGEST = lazy_pattern(r"sha256:[0-9a-f]{64}")


class Layer(NamedTuple):
    """A GGUF file of a manifest. `role` is `model`, or that of a companion."""

    role: str
    digest: str
    size_bytes: int


def parse_manifest(raw: bytes | str, name: str, role_of: Callable[[str], str | None]) -> tuple[Layer, ...]:
    """The GGUF files that a manifest names, the model first; `role_of` tells what a media type is, if it is one.

    Raises:
        CorruptModelError: it is no manifest. ModelNotFoundError: none of its layers is a GGUF model.
    """
    try:
        layers = json.loads(raw)["layers"]
        found = [
            Layer(role, layer["digest"], layer["size"])
            for layer in layers
            if isinstance(layer["mediaType"], str) and (role := role_of(layer["mediaType"])) is not None
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptModelError(printable(name), "its manifest is not JSON with a list of layers") from error
    if any(not _is_sound(layer) for layer in found):
        raise CorruptModelError(printable(name), "a layer of its manifest has no valid digest or size")
    models = [layer for layer in found if layer.role == "model"]
    if not models:
        raise ModelNotFoundError(
            f"{printable(name)}: its manifest names no GGUF file",
            hint="it is kept in another format, or runs elsewhere: name the model's repository instead",
        )
    return (models[0], *(layer for layer in found if layer.role != "model"))


def blobs(
    root: str,
    layers: Mapping[str, tuple[str, Layer]],
    session: Session,
    authorization: Callable[[], str | None] | None = None,
) -> RemoteStorage:
    """Blobs as files: name -> (address, layer)."""
    from autofit.remote.files import Listed

    listed = {name: Listed(url, layer.size_bytes, layer.digest) for name, (url, layer) in layers.items()}
    return session.storage(root, listed, authorization)


def _is_sound(layer: Layer) -> bool:
    return (
        isinstance(layer.digest, str)
        and bool(_DIGEST.fullmatch(layer.digest))
        and type(layer.size_bytes) is int
        and 0 <= layer.size_bytes < 1 << 60
    )
