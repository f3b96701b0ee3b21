"""The database of measured starts: one small SQLite file of the user's, shared by all processes.

It is opened when there is one, and only then is SQLite imported. Nothing that is wrong with it ever stops a plan: what
cannot be read is no entry, and what cannot be written is not kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autofit.calibration.place import VARIABLE, place
from autofit.calibration.rule import MAX_BYTES, MAX_STARTS, Entry, Key, first_start
from autofit.errors import AutofitError

if TYPE_CHECKING:
    import sqlite3

SCHEMA = 1
MAX_ENTRIES = 4096
#: for others that write: a plan waits less long than what is lost otherwise
READ_SECONDS, WRITE_SECONDS = 2.0, 15.0
_TABLE = """CREATE TABLE IF NOT EXISTS starts (
    engine TEXT NOT NULL, build TEXT NOT NULL, api TEXT NOT NULL, device TEXT NOT NULL, architecture TEXT NOT NULL,
    imported INTEGER NOT NULL, n INTEGER NOT NULL, mean REAL NOT NULL, squares REAL NOT NULL, most INTEGER NOT NULL,
    PRIMARY KEY (engine, build, api, device, architecture, imported)
) WITHOUT ROWID"""
_FIELDS = "engine, build, api, device, architecture, imported, n, mean, squares, most"
_WHERE = "engine=? AND build=? AND api=? AND device=? AND architecture=? AND imported=?"


class CalibrationError(AutofitError):
    """The database cannot be used."""


def entries(environ: Mapping[str, str]) -> tuple[Entry, ...]:
    """All entries. Of a file that is not there, damaged, or of a newer autofit there are none."""
    try:
        return read(environ)
    except CalibrationError:
        return ()


def read(environ: Mapping[str, str]) -> tuple[Entry, ...]:
    """All entries.

    Raises:
        CalibrationError: the file is damaged, of a newer autofit, or cannot be read.
    """
    path = place(environ)
    if path is None or not os.path.exists(path):  # noqa: PTH110 - one stat, on the way of every plan
        return ()
    with _opened(path, writes=False) as database:
        rows = database.execute(f"SELECT {_FIELDS} FROM starts LIMIT {MAX_ENTRIES}").fetchall()  # noqa: S608
    return tuple(entry for row in rows if (entry := _entry(row)) is not None)


def add(environ: Mapping[str, str], key: Key, beyond_bytes: int) -> None:
    """Count one start that was measured here.

    Raises:
        CalibrationError: the file cannot be written.
    """
    if abs(beyond_bytes) > MAX_BYTES:
        return

    def updated(before: Entry | None) -> Entry:
        return first_start(key, beyond_bytes) if before is None else before.with_start(beyond_bytes)

    path = _writable(environ)
    with _opened(path, writes=True) as database:
        before = _find(database, key, imported=False)
        if before is None or before.n_starts < MAX_STARTS:
            _put(database, updated(before))


def put(environ: Mapping[str, str], found: tuple[Entry, ...]) -> None:
    """Keep entries, each in the place of one of the same key and origin.

    Raises:
        CalibrationError: the file cannot be written.
    """
    with _opened(_writable(environ), writes=True) as database:
        for entry in found:
            _put(database, entry)


def forget(environ: Mapping[str, str]) -> int:
    """Remove the database, whatever is in it; returns how many entries it had.

    Raises:
        CalibrationError: it cannot be removed.
    """
    path = place(environ)
    if path is None or not path.exists():
        return 0
    n = len(entries(environ))
    try:
        for name in (path, *(path.with_name(path.name + end) for end in ("-journal", "-wal", "-shm"))):
            name.unlink(missing_ok=True)
    except OSError as error:
        raise CalibrationError(f"{path}: {error.strerror or error}") from error
    return n


def _writable(environ: Mapping[str, str]) -> Path:
    path = place(environ)
    if path is None:
        raise CalibrationError("calibration is turned off, or there is no place for it", hint=f"unset {VARIABLE}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise CalibrationError(f"{path.parent}: {error.strerror or error}") from error
    return path


@contextmanager
def _opened(path: Path, *, writes: bool) -> Iterator[sqlite3.Connection]:
    """The database, in one transaction where it is written.

    Raises:
        CalibrationError
    """
    import sqlite3

    try:
        mode = "rwc" if writes else "ro"
        seconds = WRITE_SECONDS if writes else READ_SECONDS
        database = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=seconds)
        try:
            database.isolation_level = None
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA:
                raise CalibrationError(f"{path} is of a newer autofit (schema {version}, this one knows {SCHEMA})")
            if writes:
                database.execute("BEGIN IMMEDIATE")
                database.execute(_TABLE)
                database.execute(f"PRAGMA user_version = {SCHEMA}")
            yield database
            if writes:
                database.execute("COMMIT")
        finally:
            database.close()
    except (sqlite3.Error, OSError, ValueError, OverflowError) as error:
        is_busy = getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
        hint = "another process is writing to it: try again" if is_busy else "`autofit calibration forget` removes it"
        raise CalibrationError(f"{path}: {error}", hint=hint) from error


def _find(database: sqlite3.Connection, key: Key, *, imported: bool) -> Entry | None:
    row = database.execute(
        f"SELECT {_FIELDS} FROM starts WHERE {_WHERE}",  # noqa: S608
        (*_columns(key), int(imported)),
    ).fetchone()
    return None if row is None else _entry(row)


def _put(database: sqlite3.Connection, entry: Entry) -> None:
    n = database.execute("SELECT COUNT(*) FROM starts").fetchone()[0]
    if n >= MAX_ENTRIES and _find(database, entry.key, imported=entry.imported) is None:
        return
    database.execute(
        f"INSERT OR REPLACE INTO starts ({_FIELDS}) VALUES (?,?,?,?,?,?,?,?,?,?)",  # noqa: S608
        (
            *_columns(entry.key),
            int(entry.imported),
            entry.n_starts,
            entry.mean_bytes,
            entry.squares,
            entry.most_bytes,
        ),
    )


def _columns(key: Key) -> tuple[str, str, str, str, str]:
    return key.engine, key.build, key.api, key.device, key.architecture


def _entry(row: Any) -> Entry | None:
    """A row as an entry; `None` for one that nobody of ours wrote."""
    engine, build, api, device, architecture, imported, n, mean, squares, most = row
    if not all(isinstance(text, str) and len(text) <= 200 for text in (engine, build, api, device, architecture)):
        return None
    if not isinstance(n, int) or not 0 < n <= MAX_STARTS or not isinstance(most, int) or abs(most) > MAX_BYTES:
        return None
    if not isinstance(mean, float) or not isinstance(squares, float):
        return None
    if not abs(mean) <= MAX_BYTES or not 0 <= squares <= float(MAX_BYTES) ** 2 * n or mean > most + 1:
        return None
    key = Key(engine=engine, build=build, api=api, device=device, architecture=architecture)
    return Entry(key=key, n_starts=n, mean_bytes=mean, squares=squares, most_bytes=most, imported=bool(imported))
