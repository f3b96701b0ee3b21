"""Small files that somebody else may have put there: read in bounded time and memory; written whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

SHIM_MARK = "#!/bin/sh\n# autofit shim\n"  #: how one begins


def config_home(environ: Mapping[str, str]) -> Path:
    """`$XDG_CONFIG_HOME`, or `~/.config`; a place where nothing is when neither is an absolute path.

    A relative one would be a part of whatever directory the user is in, which others may have filled.
    """
    home = environ.get("HOME") or environ.get("USERPROFILE") or "~"
    for found in (Path(environ.get("XDG_CONFIG_HOME", "")), Path(home) / ".config"):
        # os.path leaves a `~` alone that it cannot look up, pathlib raises
        path = Path(os.path.expanduser(found))  # noqa: PTH111
        if path.is_absolute():
            return path
    return Path(os.devnull)


def cache_home(environ: Mapping[str, str]) -> Path | None:
    """`$XDG_CACHE_HOME`, or `~/.cache` (`%LOCALAPPDATA%` on Windows); `None` when neither is an absolute path."""
    home = environ.get("HOME") or environ.get("USERPROFILE") or ""
    for found in (environ.get("XDG_CACHE_HOME"), environ.get("LOCALAPPDATA"), home and f"{home}/.cache"):
        if found and Path(found).is_absolute():
            return Path(found)
    return None


def data_home(environ: Mapping[str, str]) -> Path | None:
    """`$XDG_DATA_HOME`, or `~/.local/share` (`%LOCALAPPDATA%` on Windows); `None` when neither is an absolute path."""
    home = environ.get("HOME") or environ.get("USERPROFILE") or ""
    for found in (environ.get("XDG_DATA_HOME"), environ.get("LOCALAPPDATA"), home and f"{home}/.local/share"):
        if found and Path(found).is_absolute():
            return Path(found)
    return None


def runtime_dir(environ: Mapping[str, str]) -> Path | None:
    """`autofit` below `$XDG_RUNTIME_DIR` or `/run/user/UID`, or `autofit-UID` below the directory for temporary files.

    It need not exist. `None` on systems without users' numbers.
    """
    if not hasattr(os, "getuid"):
        return None
    for home in (environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{os.getuid()}"):
        if os.path.isabs(home) and is_own(Path(home)):  # noqa: PTH117 - text that somebody set
            return Path(home) / "autofit"
    stated = environ.get("TMPDIR", "")
    return Path(stated if stated.startswith("/") else "/tmp") / f"autofit-{os.getuid()}"  # noqa: S108 - checked by `is_own`


def is_own(path: Path) -> bool:
    """Whether a directory is there, the user's, and nobody else may write in it."""
    try:
        found = path.lstat()
    except (OSError, ValueError):
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


def is_shim(path: str) -> bool:
    """Whether a file is a shim of autofit (`autofit shims`)."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - for each program that is looked up
            return file.read(64).startswith(SHIM_MARK.encode())
    except OSError:
        return False


def open_ordinary(path: str | os.PathLike[str]) -> int:
    """The descriptor of an ordinary file, open for reading; nothing else is waited for.

    Raises:
        OSError: not readable, or what it is instead: a pipe, a socket, a device, a directory.
    """
    # O_NONBLOCK: a pipe without a writer must not keep us waiting
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except ValueError as error:  # a zero byte
        raise OSError(errno.EINVAL, "not a path") from error
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.EINVAL, "a socket, not an ordinary file") from error
        raise
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    raise OSError(errno.EINVAL, f"{'a pipe' if stat.S_ISFIFO(mode) else 'a device'}, not an ordinary file")


def read_bounded(path: str | os.PathLike[str], limit_bytes: int) -> bytes:
    """The bytes of an ordinary file.

    Raises:
        OSError: not readable, no ordinary file (a pipe, a device), or larger than `limit_bytes`.
    """
    with open(open_ordinary(path), "rb", buffering=0) as file:
        parts: list[bytes] = []
        left = limit_bytes + 1
        while left and (part := file.read(left)):
            parts.append(part)
            left -= len(part)
    if not left:
        raise OSError(errno.EFBIG, f"larger than {limit_bytes} bytes")
    return b"".join(parts)


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file at once; whatever happens, there is the old one or the new one, and nothing else.

    Raises:
        OSError: it cannot be written.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    # a name of its own for each writer: two that save at the same time must not write into one file
    temporary = target.with_name(f".{target.name[:100]}.{os.getpid()}-{os.urandom(4).hex()}.new")
    with _no_signals():
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def _no_signals() -> Iterator[None]:
    """Signals that end the process wait until a small file is whole: they would leave a part of it behind."""
    import signal

    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
