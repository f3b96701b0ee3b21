"""`autofit run --watch`: a parent that is not noticed: signals, exit status, stdin, terminal; no process is left."""

from __future__ import annotations

import os
import pty
import resource
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.fake_engines import TINY, Engines, children_of, is_alive

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes as Linux has them")
WATCHED = ("run", "-q", "--watch", "--", "llama-server", "-m", TINY)
WAITS = "signal.pause()"
COUNTS = """
got = []
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
    signal.signal(number, lambda n, _: got.append(n))
print("waits", flush=True)
for _ in range(40):
    time.sleep(0.02)
print("got", [signal.Signals(n).name for n in got], flush=True)
"""


@pytest.fixture
def engines(tmp_path: Path) -> Engines:
    return Engines(tmp_path)


def wait_until(true: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("does", "code"),
    [("sys.exit(7)", 7), ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM), ("os.abort()", -6)],
)
def test_it_ends_as_the_engine_ends(does: str, code: int, engines: Engines) -> None:
    done = engines.run(*WATCHED, does=does)
    assert done.returncode == code, done.stderr
    assert engines.said["ppid"] != os.getpid()


def test_streams_pass_byte_by_byte(engines: Engines) -> None:
    does = "data = sys.stdin.buffer.read(); sys.stdout.buffer.write(data); sys.stderr.buffer.write(data[::-1])"
    data = bytes(range(256)) * 5000
    done = subprocess.run(
        engines.command(*WATCHED), env={**engines.environ, "FAKE_DOES": does}, input=data, capture_output=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, data, data[::-1])
    assert engines.said["tty"] == [False, False, False]


#: pieces of a log: of no interest, each line of interest, and one line without an end that begins as one of interest
FLOODS = {
    "noise": b"x" * 60 + b"\n",
    "lines": b"load_tensors:        CPU model buffer size =   123.45 MiB\n",
    "endless": b"load_tensors: CPU model buffer size = ",
}


@pytest.mark.parametrize("flood", FLOODS)
@pytest.mark.parametrize("n_mb", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_a_flood_passes_whole_in_bounded_time_and_memory(n_mb: int, flood: str, engines: Engines) -> None:
    """Of 100 MB the parent reads each byte; it takes no more memory for the last than for the first MB."""
    piece = FLOODS[flood] * ((1 << 16) // len(FLOODS[flood]))
    n_pieces = -(-n_mb * 1_000_000 // len(piece))
    does = (
        f"piece = {FLOODS[flood]!r} * {(1 << 16) // len(FLOODS[flood])}\nfor _ in range({n_pieces}): os.write(2, piece)"
    )
    before_s = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    process = engines.start(*WATCHED, does=does, stderr=subprocess.PIPE)
    assert process.stderr is not None
    n, n_wrong, peak_kb = 0, 0, []
    while part := os.read(process.stderr.fileno(), 1 << 16):
        at = n % len(piece)
        n_wrong += part != (piece * 2)[at : at + len(part)]
        if n // 1_000_000 != (n + len(part)) // 1_000_000:
            status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            peak_kb += [int(line.split()[1]) for line in status if line.startswith("VmHWM:")]
        n += len(part)
    process.stderr.close()
    assert (process.wait(60), n, n_wrong) == (0, n_pieces * len(piece), 0)
    assert peak_kb[-1] - peak_kb[0] < 8 << 10, peak_kb
    spent_s = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before_s
    assert spent_s < 2 + n_mb / 10  # of a processor


@pytest.mark.slow_but("True-SIGTERM", "False-SIGINT", "True-SIGHUP")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
@pytest.mark.parametrize("to_group", [False, True])
def test_a_signal_reaches_the_engine_once(name: str, to_group: bool, engines: Engines) -> None:
    """Sent to autofit alone, or to its whole group, as a terminal, `timeout` and systemd do."""
    process = engines.start(*WATCHED, does=COUNTS, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None and process.stdout.readline() == "waits\n"
    number = getattr(signal, name)
    (os.killpg if to_group else os.kill)(process.pid, number)
    assert process.stdout.readline() == f"got ['{name}']\n"
    process.stdout.close()
    assert process.wait(30) == 0


def test_no_process_is_left(engines: Engines) -> None:
    """Neither when autofit is killed, nor when the engine is."""
    process = engines.start(*WATCHED, does=WAITS)
    engine = engines.wait_for_engine()["pid"]
    others = children_of(process.pid)
    assert engine in others and len(others) == 2
    process.kill()
    process.wait(30)
    wait_until(lambda: not any(map(is_alive, others)))
    engines.says.unlink()
    second = engines.start(*WATCHED, does=WAITS)
    engine = engines.wait_for_engine()["pid"]
    others = children_of(second.pid)
    os.kill(engine, signal.SIGKILL)
    assert second.wait(30) == -signal.SIGKILL
    assert not any(map(is_alive, others))


def test_a_reader_that_goes_away(engines: Engines) -> None:
    words = " ".join(WATCHED)
    does = "signal.signal(signal.SIGPIPE, signal.SIG_DFL)\nwhile True: print('x' * 1000)"
    done = subprocess.run(
        ["bash", "-c", f'"$0" -P -m autofit {words} | head -n 1; echo ${{PIPESTATUS[0]}}', sys.executable],
        env={**engines.environ, "FAKE_DOES": does},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines() == ["x" * 1000, str(128 + signal.SIGPIPE)]


def test_what_holds_the_output_open_does_not_hold_up_the_end(engines: Engines) -> None:
    does = "\nif os.fork() == 0:\n time.sleep(30)\n"
    began = time.monotonic()
    assert engines.run(*WATCHED, does=does).returncode == 0
    assert time.monotonic() - began < 20


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, engines: Engines, command: list[str], does: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(command[0], command, {**engines.environ, "FAKE_DOES": does, "PS1": "$ "})
        self.seen = b""

    def until(self, text: bytes, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.fd, 4096)
                except OSError:
                    break
        assert text in self.seen, self.seen
        self.seen = self.seen[self.seen.index(text) + len(text) :]

    def type(self, data: bytes) -> None:
        os.write(self.fd, data)

    def end(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


def test_the_terminal_is_the_engines(engines: Engines) -> None:
    """Size, input, Ctrl-C: the engine ends by it, and so does autofit."""
    does = "print('size', os.get_terminal_size(), flush=True); print('read', input(), flush=True); signal.pause()"
    terminal = Terminal(engines, engines.command(*WATCHED), does)
    import fcntl
    import termios

    terminal.until(b"size os.terminal_size(columns=")
    fcntl.ioctl(terminal.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
    said = engines.wait_for_engine()
    assert said["tty"] == [True, True, True] and said["sid"] == terminal.pid and said["pgid"] == terminal.pid
    terminal.type(b"a line\n")
    terminal.until(b"read a line\r\n")
    terminal.type(b"\x03")
    assert terminal.end() == -signal.SIGINT
    assert not is_alive(said["pid"])


def test_the_job_stops_and_goes_on(engines: Engines) -> None:
    """Ctrl-Z under a shell stops the engine and autofit; `fg` lets both go on."""
    words = " ".join([sys.executable, "-P", "-m", "autofit", *WATCHED])
    does = "signal.signal(signal.SIGCONT, lambda *_: os.write(1, b'goes on\\n')); print('waits', flush=True)\n"
    does += "for _ in range(1000): time.sleep(0.05)"
    terminal = Terminal(engines, ["/bin/bash", "--norc", "-i"], does)
    terminal.until(b"$ ")
    terminal.type(f"{words}; echo code $?\n".encode())
    terminal.until(b"waits\r\n")
    engine = engines.wait_for_engine()["pid"]
    terminal.type(b"\x1a")
    terminal.until(b"Stopped")
    wait_until(lambda: Path(f"/proc/{engine}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    terminal.type(b"fg\n")
    terminal.until(b"goes on")
    terminal.type(b"\x03")
    terminal.until(b"$ ")
    terminal.type(b"exit\n")
    terminal.end()
    wait_until(lambda: not is_alive(engine))


def test_an_engine_that_cannot_be_started(engines: Engines) -> None:
    (engines.bin / "llama-server").write_text("#!/nowhere/sh\n", encoding="utf-8")
    done = engines.run(*WATCHED)
    assert done.returncode == 127 and "the interpreter that its first line names" in done.stderr


@pytest.mark.parametrize("stream", [1, 2])
def test_streams_that_are_closed(stream: int, engines: Engines) -> None:
    words = " ".join(WATCHED)
    done = subprocess.run(
        ["bash", "-c", f'"$0" -P -m autofit {words} {stream}>&-', sys.executable],
        env={**engines.environ, "FAKE_DOES": "sys.exit(5)"},
        timeout=60,
    )
    assert done.returncode == 5
