"""Opening what may be no ordinary file: bounded, never blocking, with errors in one line."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import islice
from pathlib import Path

from autofit.domain.model import Storage
from autofit.domain.text import printable
from autofit.domain.values import dataclass
from autofit.errors import ModelError, ModelNotFoundError

MAX_JSON_BYTES = 1 << 26
MAX_JSON_ITEMS = 1 << 21  #: commas: what a parsed document takes in memory grows with them, not with its bytes
_READ = (".gguf", ".safetensors", ".json.gz")
_MAX_LOOKED_AT = 1000  #: names of a folder, for one that is like a missing one

_KINDS = {
    stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class OpenFile:
    """An ordinary file, open for reading. Its bytes are copied: a mapped file that shrinks would end the process."""

    path: str
    descriptor: int
    size_bytes: int

    def read(self, offset_bytes: int, n_bytes: int, least_bytes: int | None = None) -> bytes:
        """`n_bytes` from `offset_bytes` on, or what there is of them.

        Raises:
            ModelError: not readable, or it has become shorter than it was when it was opened.
        """
        wanted = min(n_bytes, max(self.size_bytes - offset_bytes, 0))
        parts, have = [], 0
        try:
            os.lseek(self.descriptor, offset_bytes, os.SEEK_SET)
            while have < wanted and (part := os.read(self.descriptor, wanted - have)):
                parts.append(part)
                have += len(part)
        except (OSError, MemoryError) as error:
            raise explain(self.path, error) from error
        if have < wanted:
            raise ModelError(
                f"{printable(self.path)}: it had {self.size_bytes} bytes, and has become shorter while it was read",
                hint="wait until whatever writes it has finished",
            )
        return parts[0] if len(parts) == 1 else b"".join(parts)


@contextmanager
def open_file(path: str) -> Iterator[OpenFile]:
    """The ordinary file at `path`.

    Raises:
        ModelNotFoundError: there is none. ModelError: it is not an ordinary file, or cannot be read.
    """
    # O_NONBLOCK: a pipe without a writer must not keep us waiting
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as error:
        raise explain(path, error) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(
                f"{printable(path)}: {_KINDS.get(stat.S_IFMT(status.st_mode), 'something')}, not a model file"
            )
        yield OpenFile(path, descriptor, status.st_size)
    finally:
        os.close(descriptor)


class Disk:
    """The files of this machine, as a `Storage`."""

    is_dear = False

    def open(self, path: str) -> AbstractContextManager[OpenFile]:
        return open_file(path)

    def is_file(self, path: str) -> bool:
        return Path(path).is_file()

    def is_directory(self, path: str) -> bool:
        try:
            return Path(path).is_dir()
        except (OSError, ValueError) as error:
            raise explain(path, error) from error

    def names(self, directory: str) -> set[str]:
        """Names in a directory, but for a model file's that leads to a directory."""
        try:
            with os.scandir(directory) as entries:
                return {entry.name for entry in entries if not (_is_model(entry.name) and _leads_to_directory(entry))}
        except OSError as error:
            raise explain(directory, error) from error

    def expect(self, wanted: Mapping[str, int]) -> None:
        return None

    def close(self) -> None:
        return None


DISK = Disk()


def _is_model(name: str) -> bool:
    return name.endswith((".gguf", ".safetensors"))


def _leads_to_directory(entry: os.DirEntry[str]) -> bool:
    """A link is followed by its path: one that goes round in a circle leads nowhere."""
    return Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir()


def explain(path: str, error: Exception) -> ModelError:
    """The error of the operating system as one of ours."""
    if isinstance(error, FileNotFoundError):
        return ModelNotFoundError(f"{printable(path)}: no such file or directory", hint=_instead_of(path))
    if isinstance(error, NotADirectoryError):
        return ModelNotFoundError(f"{printable(path)}: a part of this path is not a directory")
    if isinstance(error, PermissionError):
        return ModelError(f"{printable(path)}: no permission to read it", hint="check its owner and mode: ls -l")
    if isinstance(error, MemoryError):
        return ModelError(f"{printable(path)}: not enough memory to read its header")
    if isinstance(error, OSError):
        if error.errno == errno.ELOOP:
            return ModelError(f"{printable(path)}: its symbolic links go round in a circle")
        if error.errno == errno.ENXIO:
            return ModelError(f"{printable(path)}: a socket or a device, not a model file")
        return ModelError(f"{printable(path)}: {error.strerror or type(error).__name__}")
    return ModelError(f"{printable(path)}: not a path")


def _instead_of(path: str) -> str:
    """What to name where nothing has this path: what is called nearly like that, and what lists models.

    Of a path whose folders are missing too, the first that is missing is looked for.
    """
    from autofit.text.suggest import close_files, did_you_mean

    folder, name = os.path.split(path.rstrip(os.sep))  # a path of any text, for which pathlib may raise
    is_model = True
    while folder and not os.path.isdir(folder) and os.path.dirname(folder) != folder:  # noqa: PTH112, PTH120
        (folder, name), is_model = os.path.split(folder), False
    found: list[str] = []
    with suppress(OSError, ValueError), os.scandir(folder or ".") as entries:
        seen = islice(entries, _MAX_LOOKED_AT)
        found += [entry.name for entry in seen if (is_model and entry.name.endswith(_READ)) or entry.is_dir()]
    near = did_you_mean([printable(os.path.join(folder, one)) for one in close_files(name, found)])  # noqa: PTH118
    lists = "`autofit models` lists the models in the caches of this machine"
    if near:
        return f"{near} {lists}"
    models = [printable(one) for one in sorted(found) if is_model and one.endswith(_READ)]
    there = f"{printable(folder) or 'this directory'} has {', '.join(models[:3])}{', ...' if models[3:] else ''}; "
    return f"{there if models else ''}{lists}; ORG/REPO:QUANT names one of the hub"


def read_small(path: str, limit: int, storage: Storage = DISK) -> bytes:
    """The whole file at `path`, which must not have more than `limit` bytes.

    Raises:
        ModelNotFoundError, ModelError: as `open_file`, or it is too large to be what it should be.
    """
    with storage.open(path) as file:
        if file.size_bytes > limit:
            raise ModelError(f"{printable(path)}: the file has {file.size_bytes} bytes; at most {limit} are accepted")
        return file.read(0, limit)


def first_bytes(path: str, count: int, storage: Storage = DISK) -> bytes:
    """Up to `count` bytes from the start of the file at `path`.

    Raises:
        ModelNotFoundError, ModelError: as `open_file`.
    """
    with storage.open(path) as file:
        return file.read(0, count)


def foreign(start: bytes) -> str | None:
    """What to do about a file that starts like this and is no model, if one can tell."""
    if start.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer, not the model: run `git lfs pull`"
    if start.startswith((b"<!", b"<html", b"<HTML", b"<?xml")):
        return "this is a web page, not the model: download the file itself"
    if start.startswith((b"PK", b"\x80\x02")):
        return "pickled weights are not supported: convert them to safetensors or GGUF"
    return None
