"""Where reservations are kept: small files of the user's runtime directory, each locked by whoever holds it.

Whoever starts an engine keeps its file locked, and hands the descriptor on with `exec`: the kernel lets the lock go
when the last process with it ends, however it ends, and a file that nobody locks is of nobody. Clocks have no say in
that.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from autofit.domain.machine import Machine
from autofit.domain.text import printable
from autofit.errors import AutofitError
from autofit.files import is_own, read_bounded, runtime_dir
from autofit.launch.reservations import Claim, Reservation, reduced
from autofit.text.programs import RUNNERS

SCHEMA = 1
MAX_FILES = 512
MAX_FILE_BYTES = 1 << 16
WAIT_SECONDS = 60.0  #: for another launch that is about to reserve
FIRST_DESCRIPTOR = 100
TRIES = 3  #: plans that others may overtake, before one is made while they wait
_T = TypeVar("_T")

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class ReservationError(AutofitError):
    """The place of reservations cannot be used, or another launch does not let go of it."""


def standing(environ: Mapping[str, str]) -> tuple[Reservation, ...]:
    """The reservations of other processes that are there, oldest first. What cannot be read is none."""
    place = runtime_dir(environ)
    if fcntl is None or place is None or not is_own(place):
        return ()
    found = [one for path in _files(place) if (one := _read(path)) is not None and _is_locked(path)]
    return tuple(sorted((one for one in found if not _is_ours(one)), key=lambda one: one.at_s))


def _files(place: Path, suffix: str = ".json") -> Iterator[Path]:
    with suppress(OSError), os.scandir(place) as entries:
        for n, entry in enumerate(entries):
            if n >= MAX_FILES:
                return
            if entry.name.endswith(suffix):
                yield Path(entry.path)


def _read(path: Path) -> Reservation | None:
    import json

    try:
        data = json.loads(read_bounded(path, MAX_FILE_BYTES))
        claims = {
            str(key): Claim(n_bytes=_count(claim["bytes"]), free_bytes=_optional(claim["free_bytes"]))
            for key, claim in data["claims"].items()
        }
        started = data["started"]
        return Reservation(
            pid=_count(data["pid"]),
            started=None if started is None else str(started),
            program=str(data["program"])[:200],
            at_s=float(data["at_s"]),
            claims=claims,
            file=path.name,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 60:
        raise ValueError(value)
    return value


def _optional(value: object) -> int | None:
    return None if value is None else _count(value)


def _is_locked(path: Path) -> bool:
    """Whether somebody keeps this file: its owner, or a process that the owner started."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _is_ours(one: Reservation) -> bool:
    """Whether this process made it, before it became what it is now."""
    return one.pid == os.getpid() and one.started == started_of(os.getpid())


# -- reserving -----------------------------------------------------------------------------------------------


class Ledger:
    """The reservations of a user, for a launch that adds one.

    A launch reads `count`, plans, and reserves if the count is still the same: else somebody else has reserved
    meanwhile, and it plans again.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Raises:
        ReservationError: there is no place for them.
        """
        place = runtime_dir(environ)
        if fcntl is None or place is None:
            raise ReservationError("this system has no locks that end with a process")
        try:
            place.mkdir(mode=0o700, parents=False, exist_ok=True)
            if not is_own(place):
                raise ReservationError(f"{printable(str(place))} is not this user's alone")
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
            self._lock = os.open(place / "lock", flags, 0o600)
        except OSError as error:
            raise ReservationError(f"{printable(str(place))}: {error.strerror or error}") from error
        self.place = place

    @property
    def count(self) -> int:
        """How many reservations were made here so far."""
        text = os.pread(self._lock, 32, 0).split(b"\0")[0].strip()
        return int(text) if text.isdigit() else 0

    @contextmanager
    def alone(self, seconds: float = WAIT_SECONDS) -> Iterator[None]:
        """No other launch reserves meanwhile. The lock is the process's: a copy of it (`fork`) does not have it.

        Raises:
            ReservationError: another one does not let go.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() >= deadline:
                    hint = "a process that starts an engine is stopped, or hangs"
                    message = f"{printable(str(self.place / 'lock'))}: locked for {seconds:.0f} s"
                    raise ReservationError(message, hint=hint) from error
                time.sleep(0.005)
        try:
            yield
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN)

    def reserve(self, program: str, claims: Mapping[str, Claim]) -> int:
        """Reserve for this process, and for what it becomes; call it `alone`. Returns the descriptor that holds it.

        Raises:
            ReservationError: it cannot be written.
        """
        import json

        self._clear()
        data = {
            "schema": SCHEMA,
            "pid": os.getpid(),
            "started": started_of(os.getpid()),
            "program": program[:200],
            "at_s": now_s(),
            "claims": {key: {"bytes": one.n_bytes, "free_bytes": one.free_bytes} for key, one in claims.items()},
        }
        path = self.place / f"{os.getpid()}-{os.urandom(6).hex()}.json"
        temporary = path.with_suffix(".new")
        try:
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _write(descriptor, json.dumps(data).encode())
                _write(self._lock, b"%-31d" % (self.count + 1))
                temporary.rename(path)
            except OSError:
                os.close(descriptor)
                temporary.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise ReservationError(f"{printable(str(self.place))}: {error.strerror or error}") from error
        return _out_of_the_way(descriptor)

    def _clear(self) -> None:
        """Remove what is of nobody any more, and what this process made before."""
        for path in [*_files(self.place), *_files(self.place, ".new")]:
            one = _read(path)
            if (one is not None and _is_ours(one)) or not _is_locked(path):
                with suppress(OSError):
                    path.unlink()


def _out_of_the_way(descriptor: int) -> int:
    """The same descriptor, for what this process becomes, by a number that no script uses for its own."""
    try:
        moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD, FIRST_DESCRIPTOR)
    except OSError:  # more than this process may have
        os.set_inheritable(descriptor, True)
        return descriptor
    os.close(descriptor)
    return moved


def _write(descriptor: int, data: bytes) -> None:
    if os.pwrite(descriptor, data, 0) != len(data):
        raise OSError(28, os.strerror(28))


def reserved(
    environ: Mapping[str, str], program: str, plan: Callable[[], _T], claims: Callable[[_T], Mapping[str, Claim] | None]
) -> tuple[_T, ReservationError | None]:
    """What `plan` answers, with what it claims reserved; nothing if it claims `None`. The error says why it is not.

    Plans are made while others may reserve, and made again if one has. After `TRIES` of them the others wait.
    """
    try:
        ledger = Ledger(environ)
    except ReservationError as error:
        return plan(), error
    for _ in range(TRIES):
        before, answer = ledger.count, plan()
        claimed = claims(answer)
        if claimed is None:
            return answer, None
        try:
            with ledger.alone():
                if ledger.count == before:
                    ledger.reserve(program, claimed)
                    return answer, None
        except ReservationError as error:
            return answer, error
    try:
        with ledger.alone():
            answer = plan()
            if (claimed := claims(answer)) is not None:
                ledger.reserve(program, claimed)
            return answer, None
    except ReservationError as error:
        return answer, error


# -- processes -----------------------------------------------------------------------------------------------


def now_s() -> float:
    """Seconds of a clock that nobody sets, and that goes on while the machine sleeps where there is such a clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def started_of(pid: int) -> str | None:
    """When a process was started, in the kernel's own words; `None` where that is not told."""
    return _stat(f"/proc/{pid}/stat", 19)


def _stat(path: str, at: int) -> str | None:
    """A column of a process's `stat`, counted behind its name, which may hold anything."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - one read of each process
            return file.read(4096).rpartition(b")")[2].split()[at].decode()
    except (OSError, IndexError):
        return None


def keepers_of(names: Collection[str]) -> dict[str, list[int]]:
    """The processes that keep each file of a reservation open, by the descriptor that was handed on to them."""
    found: dict[str, list[int]] = {name: [] for name in names}
    for pid in _processes():
        with suppress(OSError):
            for number in range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + 4):
                name = os.readlink(f"/proc/{pid}/fd/{number}").rpartition("/")[2]  # noqa: PTH115 - one call of many
                if name in found:
                    found[name].append(pid)
                    break
    return found


def _processes() -> Iterator[int]:
    with suppress(OSError), os.scandir("/proc") as entries:
        yield from (int(entry.name) for entry in entries if entry.name.isdecimal())


def trees_of(roots: Mapping[int, Sequence[int]]) -> dict[int, list[int]]:
    """Processes with all that they have started, and these in turn."""
    parents: dict[int, list[int]] = {}
    for pid in _processes():
        if (parent := _stat(f"/proc/{pid}/stat", 1)) is not None:
            parents.setdefault(int(parent), []).append(pid)
    found = {}
    for key, pids in roots.items():
        tree = list(dict.fromkeys(pids))
        for one in tree:  # which grows meanwhile
            tree += [child for child in parents.get(one, ()) if child not in tree]
        found[key] = tree
    return found


def ram_of(pids: Sequence[int]) -> int | None:
    """Bytes of RAM, or of swap, that processes hold and that are of no file; `None` where nobody tells."""
    total = None
    for pid in pids:
        with suppress(OSError, ValueError):
            for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines():
                name, _, value = line.partition(":")
                if name in ("RssAnon", "RssShmem", "VmSwap"):
                    total = (total or 0) + int(value.split()[0]) * 1024
    return total


def without_reserved(machine: Machine, environ: Mapping[str, str]) -> Machine:
    """This machine as a further launch finds it: less what others have reserved, and said so."""
    found = standing(environ)
    if not found:
        return machine
    keepers = keepers_of([one.file for one in found])
    trees = trees_of({one.pid: (one.pid, *keepers[one.file]) for one in found})
    in_ram = {one.pid: None if _is_with_a_service(one, trees[one.pid]) else ram_of(trees[one.pid]) for one in found}
    return reduced(machine, found, trees, in_ram, now_s())


def _is_with_a_service(one: Reservation, tree: Sequence[int]) -> bool:
    """Whether a container was started by a service of the system, as that of docker is: nothing tells its processes.

    podman is the parent of its containers by way of a monitor, which is none of its children.
    """
    return one.program in RUNNERS and all(_is_below(pid, one.pid) for pid in tree)


def _is_below(pid: int, root: int) -> bool:
    while pid > 1 and pid != root:
        pid = int(_stat(f"/proc/{pid}/stat", 1) or 0)
    return pid == root
