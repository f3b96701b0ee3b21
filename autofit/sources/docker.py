"""`docker:NAME[:TAG]`: a model of Docker's registry, as `llama-server -dr` takes it (common/download.cpp)."""

from __future__ import annotations

import os
from urllib.parse import quote

from autofit.domain.model import ModelFiles
from autofit.domain.patterns import lazy_pattern
from autofit.domain.text import printable
from autofit.errors import CorruptModelError, UsageError
from autofit.sources.hub_cache import own_cache
from autofit.sources.registry import ACCEPT, MAX_MANIFEST_BYTES, blobs, parse_manifest

REGISTRY = "https://registry-1.docker.io"
TOKENS = "https://auth.docker.io/token"
SERVICE = "registry.docker.io"
NAMESPACE, TAG = "ai", "latest"
_PART = r"[a-z0-9](?:[a-z0-9._-]{0,126}[a-z0-9])?"
_NAME = lazy_pattern(rf"(?:({_PART})/)?({_PART})(?::([A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}}))?")
_TOKEN = lazy_pattern(r"[\x21-\x7e]{1,8192}")


def find(reference: str) -> ModelFiles:
    """The file of a model that llama.cpp has downloaded, else that of the registry.

    Raises:
        UsageError: it is spelled otherwise. ModelNotFoundError, RemoteError: it is not there, or nobody answers.
    """
    match = _NAME.fullmatch(reference.partition(":")[2].removeprefix("//"))
    if match is None:
        raise UsageError(f"{printable(reference)}: not a name of Docker's", hint="write docker:ai/NAME:TAG")
    repository, tag = f"{match[1] or NAMESPACE}/{match[2]}", match[3] or TAG
    here = own_cache(os.environ) / f"{repository.replace('/', '_')}_{tag}.gguf"
    if here.is_file():
        return ModelFiles(reference=reference, paths=(str(here),))
    return elsewhere(reference, repository, tag)


def role_of(media_type: str) -> str | None:
    """What a layer is, if it is a GGUF file; a projector has a media type of its own."""
    if "mmproj" in media_type:
        return "mmproj"
    return "model" if "gguf" in media_type else None


def elsewhere(reference: str, repository: str, tag: str) -> ModelFiles:
    """The file of a model in the registry."""
    from autofit.remote.session import Session

    session = Session(printable(f"{repository}:{tag}", 60))
    base = f"{REGISTRY}/v2/{repository}"
    label = f"{repository}:{tag} at {SERVICE}"
    tokens: list[str] = []

    def authorization() -> str:
        """What the registry wants of everybody; it is not the user's."""
        if not tokens:
            url = f"{TOKENS}?service={SERVICE}&scope={quote(f'repository:{repository}:pull')}"
            tokens.append(_token(session.client.document(url, MAX_MANIFEST_BYTES, label=label)[0], reference))
        return tokens[0]

    def ask() -> str:
        url = f"{base}/manifests/{tag}"
        raw, _ = session.client.document(
            url, MAX_MANIFEST_BYTES, authorization=authorization(), accept=ACCEPT, label=label
        )
        return raw.decode("utf-8", "replace")

    layers = parse_manifest(str(session.remembered(f"manifest\0{base}\0{tag}", ask)), reference, role_of)
    files = {f"{layer.role}.gguf": (f"{base}/blobs/{layer.digest}", layer) for layer in layers}
    root = f"docker:{repository}/{tag}"
    return ModelFiles(
        reference=reference,
        paths=(f"{root}/model.gguf",),
        storage=blobs(root, files, session, None if session.is_offline else authorization),
        written=f"docker:{repository}:{tag}",
        notes=tuple(session.notes),
    )


def _token(raw: bytes, reference: str) -> str:
    from autofit.remote.session import parse_document

    document = parse_document(raw, printable(reference))
    token = document.get("token") if isinstance(document, dict) else None
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise CorruptModelError(
            printable(reference), "the registry gives no token to read with", hint="try again later"
        )
    return f"Bearer {token}"
