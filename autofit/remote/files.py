"""Files elsewhere as a `Storage`: the start of each, grown as readers ask for more; kept for the next time."""

from __future__ import annotations

import json
import re
import sys
from _thread import allocate_lock  # threading itself takes long to import
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING

from autofit.domain.patterns import lazy_pattern
from autofit.domain.text import printable
from autofit.domain.values import NamedTuple
from autofit.errors import ModelError, ModelNotFoundError, RemoteError
from autofit.remote.store import Store
from autofit.remote.vocabulary import header_bytes, stated_bytes

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    from autofit.remote.answers import Piece
    from autofit.remote.browser import BrowserClient
    from autofit.remote.http import Client

MAX_HEAD_BYTES = 1 << 27  #: of one file; readers accept less
MAX_HEADS_BYTES = 1 << 28  #: of all files of a model
N_CONNECTIONS = 32  #: side by side: a hub takes 50 to 200 ms for each shard's address, hardly more for many at once
STEP_BYTES = 1 << 17
HAS_THREADS = sys.platform != "emscripten"  #: a browser's worker has none
_SHARD = lazy_pattern(r"-\d{5}-of-\d{5}\.gguf$", re.ASCII)
_SHA256 = lazy_pattern(r"[0-9a-f]{64}")


class Listed(NamedTuple):
    """A file as its place lists it. `identity` is a hash of its content, or what changes with it."""

    url: str
    size_bytes: int
    identity: str


class RemoteFile:
    """The start of a file, as a `ByteFile`."""

    def __init__(self, path: str, listed: Listed, grow: Callable[[RemoteFile, int], None]) -> None:
        self.path = path
        self.listed = listed
        self.size_bytes = listed.size_bytes
        self.head = b""
        self.url = listed.url  #: where redirects have led
        self._grow = grow

    def read(self, offset_bytes: int, n_bytes: int, least_bytes: int | None = None) -> bytes:
        end = min(offset_bytes + n_bytes, self.size_bytes)
        least = end if least_bytes is None else min(offset_bytes + least_bytes, end)
        if least > len(self.head):
            self._grow(self, least)
        return self.head[offset_bytes:end]


class RemoteStorage:
    """The files of one model or repository. `root` is the path that all of theirs begin with."""

    is_dear = True

    def __init__(
        self,
        root: str,
        files: Mapping[str, Listed],
        *,
        connect: Callable[[], Client | BrowserClient],
        disconnect: Callable[[], None],
        store: Store,
        authorization: Callable[[], str | None] | None = None,
        may_ask: bool = True,
    ) -> None:
        self.root = root
        self.files = {f"{root}/{name}": RemoteFile(f"{root}/{name}", each, self._grow) for name, each in files.items()}
        self._connect = connect
        self._disconnect = disconnect
        self._store = store
        self._authorization = authorization
        self._may_ask = may_ask
        self._loaded: set[str] = set()
        self._changed: set[str] = set()  #: groups with more than what is kept of them
        self._n_head_bytes = 0  #: of all files, those on their way included
        self._lock = allocate_lock()
        self._pool: ThreadPoolExecutor | None = None
        self._expected: dict[RemoteFile, Future[None]] = {}  #: on their way

    def open(self, path: str) -> AbstractContextManager[RemoteFile]:
        return _opened(self._file(path))

    def is_file(self, path: str) -> bool:
        return _slashed(path) in self.files

    def is_directory(self, path: str) -> bool:
        inside = _slashed(path).rstrip("/") + "/"
        return any(name.startswith(inside) for name in self.files)

    def names(self, directory: str) -> set[str]:
        inside = _slashed(directory).rstrip("/") + "/"
        below = (name.removeprefix(inside) for name in self.files if name.startswith(inside))
        return {name for name in below if "/" not in name}

    def expect(self, wanted: Mapping[str, int]) -> None:
        """Begin to read the start of several files side by side, but for what is here of them. `open` waits for its."""
        ends = {file: min(n, file.size_bytes) for path, n in wanted.items() if (file := self._file(path))}
        lacking = {file: end for file, end in ends.items() if len(file.head) < end}
        if (
            len(lacking) > 1 and self._pool is None and sys.platform != "emscripten"
        ):  # a browser's worker has no threads
            from concurrent.futures import ThreadPoolExecutor

            self._pool = ThreadPoolExecutor(N_CONNECTIONS)
        for file, end in lacking.items():
            if self._pool is None:
                self._fetch(file, end)
            else:
                self._expected[file] = self._pool.submit(self._fetch, file, end)

    def take(self, path: str, piece: Piece) -> None:
        """The start of a file, which was read before its size was known."""
        file = self.files[path]
        file.head, file.url = piece.data, piece.url
        self._n_head_bytes += len(piece.data)
        self._loaded.add(_group(path))
        self._changed.add(_group(path))

    def close(self) -> None:
        """Keep what was read, and end the connections."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        self._expected.clear()
        self._disconnect()
        for group in self._changed:
            self._store.put(self._key(group), _packed([f for f in self.files.values() if _group(f.path) == group]))
        self._changed.clear()

    def _file(self, path: str) -> RemoteFile:
        file = self.files.get(_slashed(path))
        if file is None:
            raise ModelNotFoundError(f"{printable(path)}: no such file there")
        self._load(_group(file.path))
        if (expected := self._expected.pop(file, None)) is not None:
            try:
                expected.result()
            except BaseException:
                self._abandon()  # the others would fail alike
                raise
        return file

    def _abandon(self) -> None:
        """Wait for nothing that is on its way."""
        for expected in self._expected.values():
            expected.cancel()
        self._connect().abort()

    def _fetch(self, file: RemoteFile, end: int) -> None:
        """Have the first `end` bytes of a file, and all of a header whose length it says."""
        self._grow(file, end)
        stated = stated_bytes(file.head, file.path)
        if stated is not None and len(file.head) < min(stated, file.size_bytes) and stated <= MAX_HEAD_BYTES:
            self._grow(file, stated)

    def _grow(self, file: RemoteFile, end: int) -> None:
        """Have the first `end` bytes of a file at least, and all of its header if that can be told."""
        if file.path.endswith(".json"):
            end = file.size_bytes  # read whole in any case, and small files are not served in parts everywhere
        if end > MAX_HEAD_BYTES:
            raise ModelError(f"{printable(file.path)}: a header of more than {MAX_HEAD_BYTES} bytes")
        if not self._may_ask:
            raise RemoteError(
                f"{printable(file.path)}: not kept from before, and nobody may be asked (HF_HUB_OFFLINE)",
                hint="download it, or unset HF_HUB_OFFLINE",
            )
        have = len(file.head)
        if have and (header := header_bytes(file.head)):
            # where that was too little, small steps would be many requests
            end = min(max(end, header, have + max(have // 16, STEP_BYTES)), MAX_HEAD_BYTES)
        end = min(end, file.size_bytes)
        self._count(end - have)
        piece = self._piece(file, have, end - have)
        if piece.linked_etag is not None and _differ(piece.linked_etag, file.listed.identity):
            raise RemoteError(f"{printable(file.path)}: it was replaced while it was read", hint="try again")
        file.head += piece.data
        file.url = piece.url
        self._changed.add(_group(file.path))

    def _count(self, n_bytes: int) -> None:
        """Count bytes before they are asked for: many files at once must not lie about their headers together."""
        with self._lock:
            self._n_head_bytes += n_bytes
            if self._n_head_bytes > MAX_HEADS_BYTES:
                raise ModelError(f"{self.root}: headers of more than {MAX_HEADS_BYTES} bytes in all")

    def _piece(self, file: RemoteFile, start: int, n_bytes: int) -> Piece:
        """From where redirects led before; an address that has run out is asked for again."""
        url, total = file.listed.url, file.size_bytes
        client = self._connect()
        secret = self._authorization() if self._authorization is not None else None
        if file.url != url:
            with suppress(RemoteError, ModelNotFoundError):
                return client.piece(url, start, n_bytes, authorization=secret, total_bytes=total, at=file.url)
        return client.piece(url, start, n_bytes, authorization=secret, total_bytes=total)

    # -- what is kept -----------------------------------------------------------------------------------------

    def _key(self, group: str) -> str:
        return f"heads\0{self.root}\0{group}"

    def _load(self, group: str) -> None:
        """Take the heads that are kept, of files that are still the same."""
        if group in self._loaded:
            return
        self._loaded.add(group)
        data = self._store.get(self._key(group))
        for path, url, size, identity, head in _unpacked(data) if data is not None else ():
            file = self.files.get(path)
            if file is not None and not file.head and Listed(url, size, identity) == file.listed:
                file.head = head
                self._n_head_bytes += len(head)


def side_by_side(ask: Callable[[str, int], Piece], urls: Iterable[str], n_bytes: Iterable[int]) -> list[Piece]:
    """The starts of several files, so many bytes of each, asked for at once where there are threads."""
    if not HAS_THREADS:
        return [ask(url, n) for url, n in zip(urls, n_bytes, strict=True)]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(N_CONNECTIONS) as pool:
        return list(pool.map(ask, urls, n_bytes))


@contextmanager
def _opened(file: RemoteFile) -> Iterator[RemoteFile]:
    yield file


def _slashed(path: str) -> str:
    """Readers make paths as the system does."""
    return path.replace("\\", "/")


def _group(path: str) -> str:
    """What is kept together: the shards of a GGUF model, or a checkpoint."""
    return _SHARD.sub("", path) if path.endswith(".gguf") else path.rpartition("/")[0]


def _differ(etag: str, identity: str) -> bool:
    """Whether two names of a content are of one kind, a SHA-256, and not the same."""
    name = etag.removeprefix("W/").strip('"')
    return bool(_SHA256.fullmatch(name) and _SHA256.fullmatch(identity)) and name != identity


def _packed(files: Sequence[RemoteFile]) -> bytes:
    held = [file for file in files if file.head]
    index = [[file.path, *file.listed, len(file.head)] for file in held]
    return b"\n".join([json.dumps(index).encode(), b"".join(file.head for file in held)])


def _unpacked(data: bytes) -> Iterator[tuple[str, str, int, str, bytes]]:
    index, _, heads = data.partition(b"\n")
    try:
        at = 0
        for path, url, size, identity, length in json.loads(index):
            head = heads[at : at + length]
            at += length
            if len(head) == length:
                yield path, url, size, identity, head
    except (ValueError, TypeError, RecursionError):
        return
