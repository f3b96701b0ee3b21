"""The start of autofit.pyz: its packages, put once into a folder of the user's cache, from where Python imports them.

Inside of the archive nothing could be imported fast, and its data files would be no files. The folder is named after
its contents, and is used again; without a cache that belongs to the user alone, it lasts as long as the process.
"""

import atexit
import contextlib
import os
import shutil
import stat
import sys
import tempfile
import zipfile

PATH = os.path.abspath(os.path.dirname(__file__))  #: of the archive
NAME = "site"  #: the folder inside of it
MARK = "BUILD"  #: a file with the hash of all that is in it


def add() -> None:
    """Put the packages on Python's path."""
    sys.path.insert(0, _folder())


def main() -> int:
    """autofit itself."""
    if sys.version_info < (3, 11):
        sys.stderr.write("autofit: this is Python {}.{}, and 3.11 is needed\n".format(*sys.version_info))
        return 1
    add()
    from autofit.cli.main import main as run

    return run()


def _folder() -> str:
    with zipfile.ZipFile(PATH) as archive:
        build = archive.read(MARK).decode("ascii").strip()
        for cache in _caches():
            folder = os.path.join(cache, "app-" + build)
            if _is_ours(folder):
                return folder
            with contextlib.suppress(OSError):
                os.makedirs(cache, mode=0o700, exist_ok=True)
                if _is_ours(cache):
                    return _unpacked(archive, cache, folder)
        folder = tempfile.mkdtemp(prefix="autofit-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        _extract(archive, folder)
        return folder


def _caches():
    """Where users keep what can be made again."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    local = os.environ.get("LOCALAPPDATA")
    roots = [local] if sys.platform == "win32" and local else [home]
    return [os.path.join(root, "autofit") for root in roots if os.path.isabs(root)]


def _is_ours(folder: str) -> bool:
    """Whether a folder is there, belongs to the user, and nobody else writes into it."""
    try:
        found = os.lstat(folder)
    except OSError:
        return False
    if not stat.S_ISDIR(found.st_mode):
        return False
    return not hasattr(os, "geteuid") or (found.st_uid == os.geteuid() and not found.st_mode & 0o022)


def _unpacked(archive: zipfile.ZipFile, cache: str, folder: str) -> str:
    """The folder, made whole before it has its name: two that start at once both find one."""
    made = tempfile.mkdtemp(prefix="app-", dir=cache)
    try:
        _extract(archive, made)
        os.rename(made, folder)
    except OSError:
        shutil.rmtree(made, ignore_errors=True)
        if not _is_ours(folder):
            raise
    return folder


def _extract(archive: zipfile.ZipFile, folder: str) -> None:
    prefix = NAME + "/"
    for member in archive.infolist():
        if member.filename.startswith(prefix) and not member.is_dir():
            path = os.path.join(folder, *member.filename[len(prefix) :].split("/"))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(archive.read(member))
