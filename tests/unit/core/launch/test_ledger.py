"""Reservations on disk: gone with their owner, however it ends; never two for the same bytes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from autofit.domain.machine import Host, Machine
from autofit.launch.ledger import (
    Ledger,
    ReservationError,
    keepers_of,
    reserved,
    standing,
    started_of,
    trees_of,
    without_reserved,
)
from autofit.launch.reservations import Claim

from support import ROOT

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="locks of POSIX")
CLAIMS = {"A": Claim(n_bytes=1000, free_bytes=5000)}


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "runtime").mkdir(mode=0o700)
    return {"XDG_RUNTIME_DIR": str(tmp_path / "runtime")}


class Forked:
    """A process that reserves, says so, and then does something."""

    def __init__(self, environ: dict[str, str], then: Callable[[], object] = signal.pause) -> None:
        reads, writes = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                ledger = Ledger(environ)
                with ledger.alone():
                    ledger.reserve("llama-server", CLAIMS)
                os.write(writes, b"x")
                os.close(writes)
                then()
            finally:
                os._exit(0)
        os.close(writes)
        assert os.read(reads, 1) == b"x"
        os.close(reads)

    def end(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)
        os.waitpid(self.pid, 0)


@pytest.fixture
def forked(environ: dict[str, str]) -> Iterator[Callable[..., Forked]]:
    made: list[Forked] = []

    def make(*args: Callable[[], object]) -> Forked:
        made.append(Forked(environ, *args))
        return made[-1]

    yield make
    for one in made:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            one.end()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_reservation_ends_with_its_process(
    number: int, environ: dict[str, str], forked: Callable[..., Forked]
) -> None:
    assert standing(environ) == ()
    owner = forked()
    (found,) = standing(environ)
    assert (found.pid, found.program, dict(found.claims)) == (owner.pid, "llama-server", CLAIMS)
    owner.end(number)
    assert standing(environ) == ()


def test_a_reservation_outlives_exec_and_belongs_to_what_it_started(
    environ: dict[str, str], forked: Callable[..., Forked]
) -> None:
    """The engine that the process becomes holds it, and a worker that outlives the engine does."""
    code = "import os, signal, time\nif os.fork(): signal.pause()\ntime.sleep(60)"
    owner = forked(lambda: os.execv(sys.executable, [sys.executable, "-c", code]))
    children, deadline = Path(f"/proc/{owner.pid}/task/{owner.pid}/children"), time.monotonic() + 20
    while not (workers := children.read_text(encoding="utf-8").split()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert workers and [one.pid for one in standing(environ)] == [owner.pid]
    owner.end()
    assert [one.pid for one in standing(environ)] == [owner.pid]
    for worker in workers:
        os.kill(int(worker), signal.SIGKILL)
    deadline = time.monotonic() + 10
    while standing(environ) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert standing(environ) == ()


def test_files_of_ended_processes_are_cleared_and_a_process_has_one(
    environ: dict[str, str], forked: Callable[..., Forked]
) -> None:
    forked().end()
    place = Path(environ["XDG_RUNTIME_DIR"]) / "autofit"
    (place / "1-abc.new").write_text("cut", encoding="utf-8")
    assert len(list(place.glob("*.json"))) == 1
    ledger = Ledger(environ)
    before = ledger.count
    with ledger.alone():
        os.close(ledger.reserve("first", CLAIMS))
    with ledger.alone():
        held = ledger.reserve("second", CLAIMS)
    assert [json.loads(path.read_text())["program"] for path in place.glob("*.json")] == ["second"]
    assert not list(place.glob("*.new")) and ledger.count == before + 2
    assert standing(environ) == ()  # one's own does not count
    os.close(held)


def test_what_is_no_reservation_is_none(environ: dict[str, str]) -> None:
    place = Path(environ["XDG_RUNTIME_DIR"]) / "autofit"
    place.mkdir(mode=0o700)
    texts = ["", "{", "[]", "{}", "null", '{"pid": -1}', "[" * 5000, '{"pid": true, "started": 1, "claims": {}}']
    good = {"pid": 1, "started": None, "program": "x", "at_s": 0, "claims": {"A": {"bytes": 1, "free_bytes": None}}}
    texts += [json.dumps({**good, **bad}) for bad in ({"claims": 3}, {"claims": {"A": {"bytes": 1e9}}}, {"at_s": "x"})]
    import fcntl

    held = []
    for i, text in enumerate([*texts, json.dumps(good)]):
        path = place / f"{i}.json"
        path.write_text(text, encoding="utf-8")
        held.append(path.open("rb"))
        fcntl.flock(held[-1], fcntl.LOCK_EX)
    os.mkfifo(place / "pipe.json")
    (place / "large.json").write_bytes(b" " * (1 << 17))
    assert [one.pid for one in standing(environ)] == [1]
    for file in held:
        file.close()


def test_a_directory_that_others_may_write_in_is_not_used(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    environ = {"XDG_RUNTIME_DIR": str(shared), "TMPDIR": str(tmp_path)}
    if Path(f"/run/user/{os.getuid()}").exists():
        pytest.skip("this system has a runtime directory of its own")
    (tmp_path / f"autofit-{os.getuid()}").mkdir(mode=0o777)
    (tmp_path / f"autofit-{os.getuid()}").chmod(0o777)
    with pytest.raises(ReservationError, match="not this user's alone"):
        Ledger(environ)
    assert standing(environ) == ()
    assert not (shared / "autofit").exists()


def test_an_owner_that_is_stopped_does_not_hold_others_up_for_ever(environ: dict[str, str]) -> None:
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        with Ledger(environ).alone():
            os.write(writes, b"x")
            signal.pause()
        os._exit(0)
    os.read(reads, 1)
    try:
        with pytest.raises(ReservationError, match="locked for 0 s"), Ledger(environ).alone(0.05):
            pass
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with Ledger(environ).alone(5):  # and ends with it
        pass
    os.close(reads)
    os.close(writes)


def test_a_plan_that_was_overtaken_is_made_again(environ: dict[str, str], forked: Callable[..., Forked]) -> None:
    plans = []

    def plan() -> int:
        plans.append(len(standing(environ)))
        if len(plans) <= 2:
            forked()
        return len(plans)

    answer, problem = reserved(environ, "x", plan, lambda n: CLAIMS)
    assert (answer, problem, plans) == (3, None, [0, 1, 2])


def test_what_does_not_fit_reserves_nothing(environ: dict[str, str]) -> None:
    assert reserved(environ, "x", lambda: "refused", lambda answer: None) == ("refused", None)
    assert not list((Path(environ["XDG_RUNTIME_DIR"]) / "autofit").glob("*.json"))


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="mounts a file system")
@pytest.mark.parametrize("options", ["size=4k,nr_inodes=3", "ro"])
def test_without_a_place_to_write_the_plan_is_still_made(options: str, tmp_path: Path) -> None:
    """A full or read-only file system costs the reservation, and nothing else."""
    code = (
        "import os, sys\nfrom autofit.launch.ledger import reserved\nfrom autofit.launch.reservations import Claim\n"
        "answer, problem = reserved(dict(os.environ), 'x', lambda: 'planned', lambda a: {'A': Claim(n_bytes=1)})\n"
        "print(answer, problem)"
    )
    place = tmp_path / "runtime"
    place.mkdir(mode=0o700)
    fill = "" if options == "ro" else 'mkdir -m 700 "$1/autofit" && head -c 9000 /dev/zero > "$1/autofit/lock";'
    script = f'mount -t tmpfs -o mode=700,{options} tmpfs "$1" && {{ {fill} XDG_RUNTIME_DIR="$1" "$0" -c "$2"; }}'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, sys.executable, str(place), code], capture_output=True, text=True
    )
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("mounts are not allowed here")
    assert done.stdout.startswith("planned ") and ("No space left" in done.stdout or "Read-only" in done.stdout), done


@pytest.mark.slow
def test_racing_launches_never_take_more_than_there_is(environ: dict[str, str]) -> None:
    """Eighty processes at once, for a device with memory for nine: each plans for what is left."""
    capacity, each = 9_500, 1_000
    reads, writes = os.pipe()
    begins, begin = os.pipe()

    def plan() -> bool:
        taken = sum(one.claims["A"].n_bytes for one in standing(environ))
        time.sleep(0.001)  # as real plans take a while
        return taken + each <= capacity

    pids = []
    for _ in range(80):
        pid = os.fork()
        if pid == 0:
            try:
                os.close(begin)
                os.read(begins, 1)
                fits, problem = reserved(environ, "x", plan, lambda fits: {"A": Claim(n_bytes=each)} if fits else None)
                os.write(writes, b"1" if fits and problem is None else b"0" if problem is None else b"!")
                signal.pause()
            finally:
                os._exit(1)
        pids.append(pid)
    os.close(begins)
    os.close(begin)
    answers = b""
    while len(answers) < len(pids):
        answers += os.read(reads, 100)
    try:
        assert answers.count(b"1") == 9 and answers.count(b"!") == 0
        assert len(standing(environ)) == 9
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(reads)
        os.close(writes)
    assert standing(environ) == ()


@pytest.mark.slow
def test_of_a_thousand_launches_none_is_booked_twice() -> None:
    """Started, planned and killed at any moment, 32 at a time; the script ends in an error where one is."""
    script = ROOT / "bench" / "launch_races.py"
    done = subprocess.run(
        [sys.executable, str(script), "--launches", "1000", "--full", "6"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1000 launches, 32 at once") and "; 0 double bookings" in done.stdout


def test_a_file_that_outlived_its_machine_is_none(environ: dict[str, str], forked: Callable[..., Forked]) -> None:
    """After a reboot, where the directory is on a disk: nobody holds the lock, whoever has the number now."""
    owner, other = forked(), os.getppid()
    (file,) = (Path(environ["XDG_RUNTIME_DIR"]) / "autofit").glob("*.json")
    data = json.loads(file.read_text())
    owner.end()
    file.write_text(json.dumps({**data, "pid": other, "started": started_of(other), "at_s": 1e9}))
    assert standing(environ) == ()
    ledger = Ledger(environ)
    with ledger.alone():
        os.close(ledger.reserve("next", CLAIMS))
    assert not file.exists()


def test_clocks_that_jump_change_nothing(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asks for the time of day, and what a file says of the time is no reason to drop it."""

    def no_clock() -> float:
        raise AssertionError("the time of day was asked for")

    monkeypatch.setattr("time.time", no_clock)
    owner = Forked(environ)
    try:
        for at_s in (-1e12, 0.0, 1e12):
            monkeypatch.setattr("autofit.launch.ledger.now_s", lambda at_s=at_s: at_s)
            assert [one.pid for one in standing(environ)] == [owner.pid]
    finally:
        owner.end()
    assert standing(environ) == ()


# -- engines that are no children of what was started ------------------------------------------------

HELD_MIB = 256
#: as podman does it: the container's monitor is nobody's child, keeps what it was handed, and starts the engine
_MONITOR = f"""\
import os, signal, subprocess, sys
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    code = "import time; held = bytearray(b'x') * ({HELD_MIB} << 20); print('held', flush=True); time.sleep(60)"
    engine = subprocess.Popen([sys.executable, "-c", code], close_fds=True)
    sys.exit(engine.wait())
signal.pause()
"""


def available(environ: dict[str, str]) -> int:
    machine = Machine(host=Host(total_bytes=64 << 30, available_bytes=32 << 30), devices=())
    left = without_reserved(machine, environ).host.available_bytes
    assert left is not None
    return left


def starter(environ: dict[str, str], program: str, code: str) -> subprocess.Popen[str]:
    """A process that reserves 1 GiB of RAM as `autofit run` does, and becomes Python with this code."""
    first = (
        "import os, sys; from autofit.launch.ledger import Ledger; from autofit.launch.reservations import Claim\n"
        "ledger = Ledger(dict(os.environ))\n"
        "with ledger.alone(): ledger.reserve(sys.argv[1], {'host': Claim(n_bytes=1 << 30, free_bytes=32 << 30)})\n"
        "os.execv(sys.executable, [sys.executable, '-c', sys.argv[2]])\n"
    )
    command = [sys.executable, "-c", first, program, code]
    return subprocess.Popen(command, env={**os.environ, **environ}, stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(sys.platform != "linux", reason="processes as Linux has them")
def test_a_container_counts_by_the_monitor_that_keeps_its_reservation(environ: dict[str, str]) -> None:
    client = starter(environ, "podman", _MONITOR)
    assert client.stdout is not None and client.stdout.readline() == "held\n"
    try:
        outstanding = (32 << 30) - available(environ)
        assert 0 < outstanding <= (1 << 30) - (HELD_MIB << 20)
        client.kill()
        client.wait()
        (one,) = standing(environ)  # with the container, which goes on without its client
        assert one.pid == client.pid
        assert abs((32 << 30) - available(environ) - outstanding) < 64 << 20
    finally:
        client.kill()
        keepers = keepers_of([path.name for path in Path(environ["XDG_RUNTIME_DIR"], "autofit").glob("*.json")])
        for pid in trees_of({0: [pid for pids in keepers.values() for pid in pids]})[0]:
            os.kill(pid, signal.SIGKILL)
        client.stdout.close()
    deadline = time.monotonic() + 10
    while standing(environ) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert standing(environ) == () and available(environ) == 32 << 30


@pytest.mark.skipif(sys.platform != "linux", reason="processes as Linux has them")
@pytest.mark.parametrize(("program", "counts"), [("docker", True), ("llama-server", False)])
def test_a_client_of_a_service_holds_nothing_of_its_container(
    program: str, counts: bool, environ: dict[str, str]
) -> None:
    """What a client itself takes is none of the bytes that were planned for the engine; an engine's own are."""
    client = starter(
        environ, program, f"import time; held = bytearray({HELD_MIB} << 20); print('held'); time.sleep(60)"
    )
    try:
        assert client.stdout is not None
        deadline = time.monotonic() + 30
        while not standing(environ) or b"held" not in Path(f"/proc/{client.pid}/cmdline").read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert (available(environ) == (31 << 30)) is counts
    finally:
        client.kill()
        client.communicate()
