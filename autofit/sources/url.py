"""`https://…`: a file by its address, or a page of the hub."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from autofit.domain.model import ModelFiles
from autofit.domain.names import HUB_HOSTS, hub_of_url, is_file_name
from autofit.domain.patterns import lazy_pattern
from autofit.domain.text import printable
from autofit.errors import CorruptModelError, UsageError
from autofit.sources import hub
from autofit.sources.choice import split_name

if TYPE_CHECKING:
    from autofit.remote.answers import Piece

FIRST_BYTES = 1 << 20  #: of the first file, whose header is long
_DIGEST = lazy_pattern(r"sha256:[0-9a-f]{64}")  #: a blob of a registry
#: a model's page at ModelScope, on any of its tabs; its files have addresses like any
_MODELSCOPE_PAGE = lazy_pattern(
    r"https?://(?:www\.)?modelscope\.(?:cn|ai)/models/([^/?#]+/[^/?#]+)(?:/(?!resolve/)|[?#]|$)"
)
SHARD_BYTES = 1 << 16  #: of each other shard
MAX_SHARDS = 512


_DAMAGED, _AGAIN = (
    "what is kept of its headers is damaged",
    "remove $XDG_CACHE_HOME/autofit/headers (~/.cache/autofit/headers), and ask again",
)


def find(reference: str) -> ModelFiles:
    """The model at a URL: a repository's page, or a GGUF or safetensors file, with its shards beside it.

    Raises:
        UsageError: not a URL of a model. ModelNotFoundError, RemoteError: it is not there, or nobody answers.
    """
    host = urlsplit(hub.endpoint_of(os.environ)).hostname
    name = hub_of_url(reference, (*HUB_HOSTS, *([host] if host else [])))
    if name is not None:
        return hub.find_name(reference, name)
    if page := _MODELSCOPE_PAGE.match(reference):
        from autofit.sources import modelscope

        return modelscope.find(f"modelscope:{page[1]}")
    return _file(reference)


def _file(reference: str) -> ModelFiles:
    from urllib.parse import quote

    from autofit.remote.files import Listed, side_by_side
    from autofit.remote.policy import origin_of, shown
    from autofit.remote.session import Session

    origin_of(reference)
    parts = urlsplit(reference)
    path = unquote(parts.path).lstrip("/")
    file = path.rpartition("/")[2]
    if not is_file_name(path) or not (file.endswith((".gguf", ".safetensors")) or _DIGEST.fullmatch(file)):
        raise UsageError(
            f"{shown(reference)}: not the address of a model's file", hint="it should end in .gguf or .safetensors"
        )
    session = Session(printable(file, 60))
    folder = parts.path.removesuffix(parts.path.rpartition("/")[2])
    urls = {name: parts._replace(path=folder + quote(name)).geturl() for name in _shards(file)}
    pieces: dict[str, Piece] = {}

    def ask() -> list[list[Any]]:
        """Size of each file, and what changes with its content."""
        starts = [SHARD_BYTES if number else FIRST_BYTES for number in range(len(urls))]
        found = side_by_side(lambda url, n: session.client.piece(url, 0, n), urls.values(), starts)
        pieces.update(zip(urls, found, strict=True))
        return [[piece.total_bytes, piece.linked_etag or piece.etag or ""] for piece in pieces.values()]

    facts = _facts(session.remembered(f"file\0{reference}", ask), len(urls), shown(reference))
    listed = {name: Listed(url, *fact) for (name, url), fact in zip(urls.items(), facts, strict=True)}
    root = f"url:{parts.netloc}/{path.rpartition('/')[0]}".rstrip("/")
    storage = session.storage(root, listed)
    for name, piece in pieces.items():
        storage.take(f"{root}/{name}", piece)
    return ModelFiles(
        reference=reference,
        paths=(f"{root}/{file}",),
        storage=storage,
        written=reference,
        notes=tuple(session.notes),
    )


def _facts(found: Any, count: int, what: str) -> list[tuple[int, str]]:
    """Sizes and identities, as they are kept."""
    if not isinstance(found, list) or len(found) != count:
        raise CorruptModelError(what, _DAMAGED, hint=_AGAIN)
    facts = [tuple(each) for each in found if isinstance(each, list) and [*map(type, each)] == [int, str]]
    if len(facts) != count:
        raise CorruptModelError(what, _DAMAGED, hint=_AGAIN)
    return facts


def _shards(file: str) -> list[str]:
    name = split_name(file)
    if not file.endswith(".gguf") or not 1 < name.n_shards <= MAX_SHARDS:
        return [file]
    return [f"{name.prefix}-{number:05d}-of-{name.n_shards:05d}.gguf" for number in range(1, name.n_shards + 1)]
