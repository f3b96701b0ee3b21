"""What is kept of answers: headers and lists of files, in files of this user's cache; bounded in size.

Each entry is one file, named by a hash of its key, replaced at once, and packed by zlib, whose check finds damage. An
entry that is not what it should be is as if it were not there; what cannot be kept is not kept.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from autofit.files import cache_home, read_bounded, write_whole

MAX_BYTES = 1 << 28  #: of all entries
MAX_ENTRY_BYTES = 1 << 26  #: of one, as it lies on disk
MAX_UNPACKED_BYTES = 1 << 28
_MAGIC = b"autofit 1\n"
_SUFFIX = ".entry"


class Store:
    """Entries by key. `folder` `None`: nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def get(self, key: str) -> bytes | None:
        """The data of an entry; `None` if there is none that is sound."""
        if self.folder is None:
            return None
        path = self._path(key)
        try:
            raw = read_bounded(path, MAX_ENTRY_BYTES)
            head = _head(key)
            if not raw.startswith(head):
                return None
            unpacker = zlib.decompressobj()
            data = unpacker.decompress(raw[len(head) :], MAX_UNPACKED_BYTES)
            if not unpacker.eof:
                return None
        except (OSError, zlib.error, MemoryError):
            return None
        with suppress(OSError):
            os.utime(path)  # the longest unused go first
        return data

    def put(self, key: str, data: bytes) -> None:
        """Keep an entry, where there is a place for it."""
        if self.folder is None or len(data) > MAX_UNPACKED_BYTES:
            return
        packed = _head(key) + zlib.compress(data, 1)
        if len(packed) > MAX_ENTRY_BYTES:
            return
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_whole(self._path(key), packed)
            self._prune()

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / (hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:40] + _SUFFIX)

    def _prune(self) -> None:
        """Remove the longest unused entries beyond the limit, and what writers that were killed have left."""
        assert self.folder is not None
        with os.scandir(self.folder) as entries:
            found = sorted((e.stat().st_mtime, e.stat().st_size, e.path) for e in entries if e.is_file())
        total = sum(size for _, size, _ in found)
        if total <= MAX_BYTES:
            return
        for _, size, path in found:
            with suppress(OSError):
                os.unlink(path)  # noqa: PTH108 - a path as text
            total -= size
            if total <= MAX_BYTES * 3 // 4:
                break


def default_store(environ: Mapping[str, str]) -> Store:
    """That of this user, below `$XDG_CACHE_HOME` or `~/.cache`."""
    home = cache_home(environ)
    return Store(None if home is None else home / "autofit" / "headers")


def _head(key: str) -> bytes:
    name = key.encode("utf-8", "surrogatepass")
    return _MAGIC + len(name).to_bytes(4, "little") + name
