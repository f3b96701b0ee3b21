"""Systems with parts missing, limits and signals: an answer or one line, and nothing half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from autofit.hardware.report import describe

from support.recorded_machines import detect, machine

PLAN = ("llama", "example:tiny", "--on", "rtx-3090", "--ram", "64GiB")
SAVE = ("hardware", "save", "box", "--on", "rtx-3090", "--ram", "64GiB")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs limits and signals of Linux")


@pytest.fixture(autouse=True)
def _signals_are_heard() -> Iterator[None]:
    """What starts the tests may ignore signals (nohup, a job in the background), and children would inherit that."""
    ignored = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None))
        if number is not None and signal.getsignal(number) == signal.SIG_IGN
    ]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


def start(*args: str, before: str = "", cwd: Path | None = None, **env: str) -> subprocess.Popen[bytes]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("AUTOFIT_", "LLAMA_ARG_", "VLLM_", "CUDA_"))}
    clean |= {"XDG_CONFIG_HOME": "/nonexistent", "AUTOFIT_DISABLE_PLUGIN_AUTOLOAD": "1", **env}
    script = f'{before} exec "$0" -m autofit "$@"'
    command = ["sh", "-c", script, sys.executable, *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean, cwd=cwd)


def autofit(*args: str, before: str = "", cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[bytes]:
    process = start(*args, before=before, cwd=cwd, **env)
    stdout, stderr = process.communicate(timeout=60)
    return subprocess.CompletedProcess(args, process.returncode, stdout, stderr)


def python(script: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)


# -- parts of the system that are missing


def test_without_proc_and_sys_the_machine_says_what_it_does_not_know(tmp_path: Path) -> None:
    system = machine("rtx-3090-desktop", tmp_path)
    for path in sorted(system.root.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
    found = detect(system)
    assert found.host.total_bytes is None or found.host.total_bytes > 0
    assert describe(found)


@pytest.mark.slow_but("*/proc /sys*")
@linux
@pytest.mark.parametrize("hidden", [("/proc",), ("/sys",), ("/proc", "/sys"), ("/dev",)], ids=" ".join)
@pytest.mark.parametrize("args", [("hardware",), ("hardware", "--format", "json"), ("llama", "example:tiny")])
def test_nothing_is_mounted(hidden: tuple[str, ...], args: tuple[str, ...]) -> None:
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("only root mounts")
    mounts = " ".join(f"mount -t tmpfs none {path};" for path in hidden)
    command = ["unshare", "-m", "sh", "-c", f'{mounts} exec "$0" -m autofit "$@"', sys.executable, *args]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("args", [SAVE, ("trust", ".")], ids=" ".join)
@pytest.mark.parametrize("home", ["file", "missing"])
def test_a_home_that_cannot_be_written(tmp_path: Path, args: tuple[str, ...], home: str) -> None:
    (tmp_path / "autofit.toml").write_text("parallel = 2\n")
    (tmp_path / "file").write_text("")
    where = tmp_path / "file" if home == "file" else Path("/proc/nonexistent")
    done = autofit(*args, cwd=tmp_path, XDG_CONFIG_HOME=str(where))
    assert (done.returncode, done.stdout) == (2, b"")
    assert str(where).encode() in done.stderr and len(done.stderr.splitlines()) <= 2
    assert autofit(*PLAN, cwd=tmp_path, XDG_CONFIG_HOME=str(where)).returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="homes are stated by other variables")
@pytest.mark.parametrize("env", [{"XDG_CONFIG_HOME": "sub"}, {"XDG_CONFIG_HOME": "", "HOME": "sub"}], ids=str)
def test_a_relative_home_does_not_make_a_download_the_users_own_settings(tmp_path: Path, env: dict[str, str]) -> None:
    for folder in ("sub/autofit", "sub/.config/autofit"):
        (tmp_path / folder / "presets").mkdir(parents=True)
        (tmp_path / folder / "autofit.toml").write_text('engine-args = ["--host", "0.0.0.0"]\n')
        (tmp_path / folder / "presets" / "x.toml").write_text('engine-args = ["--host", "0.0.0.0"]\n')
    (tmp_path / "home").mkdir()
    env = {"HOME": str(tmp_path / "home"), **env}
    done = autofit(*PLAN, cwd=tmp_path, **env)
    assert done.returncode == 0, done.stderr
    assert b"0.0.0.0" not in done.stdout
    assert b"no preset" in autofit(*PLAN, "--preset", "x", cwd=tmp_path, **env).stderr


# -- locales


@pytest.mark.parametrize("locale", ["POSIX", "C.UTF-8", "xx_XX.nowhere", "en_US.ISO-8859-1", "de_DE@euro", ""])
def test_any_locale_and_one_that_is_not_installed(locale: str) -> None:
    done = autofit(*PLAN, LC_ALL=locale, PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"llama-server")


@pytest.mark.parametrize("encoding", ["latin-1", "ascii:strict", "utf-16"])
def test_any_encoding_of_streams(encoding: str) -> None:
    done = autofit("hardware", "--on", "rtx-3090", PYTHONIOENCODING=encoding)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr


# -- limits


@linux
@pytest.mark.parametrize("limit", ["-v 80000", "-n 8", "-f 0", "-t 20", "-c 0"])
def test_a_small_limit_still_plans(limit: str) -> None:
    done = autofit(*PLAN, before=f'trap "" XFSZ; ulimit {limit};')
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"llama-server")


@linux
def test_no_memory_is_one_line() -> None:
    script = """
import sys
from autofit.cli import main
def none(arguments): raise MemoryError
main.run = none
sys.exit(main.main(["x"]))
"""
    done = python(script)
    assert (done.returncode, done.stderr) == (1, b"autofit: out of memory\n")


@linux
def test_without_threads_sources_are_asked_one_after_the_other() -> None:
    script = """
import sys, threading
def none(self): raise RuntimeError("can't start new thread")
threading.Thread.start = none
from autofit.cli.main import main
sys.exit(main(["hardware"]))
"""
    done = python(script)
    assert done.returncode == 0, done.stderr
    assert b"host" in done.stdout


# -- signals


@linux
@pytest.mark.parametrize(("name", "codes"), [("INT", {130, -2}), ("TERM", {-15}), ("HUP", {-1})])
def test_a_signal_at_any_stage_ends_it_with_the_code_that_shells_know(name: str, codes: set[int]) -> None:
    number = signal.Signals[f"SIG{name}"]
    script = """
import os, sys, threading
from autofit.cli import main
once = main.run
def again_and_again(arguments):
    threading.Timer(float(sys.argv[1]), os.kill, (os.getpid(), int(sys.argv[2]))).start()
    while True:
        once(arguments)
main.run = again_and_again
sys.exit(main.main(sys.argv[3:]))
"""
    for moment in (0.0, 0.02, 0.05, 0.1, 0.2, 0.3):
        command = [sys.executable, "-c", script, str(moment), str(int(number)), *PLAN, "--format", "json"]
        done = subprocess.run(command, capture_output=True, timeout=60)
        assert done.returncode in codes, (moment, done.stderr)
        assert b"Traceback" not in done.stderr


@linux
def test_a_reader_that_goes_away_is_no_traceback() -> None:
    process = start(*PLAN, "--explain")
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"Traceback" not in stderr and b"BrokenPipe" not in stderr


@linux
@pytest.mark.parametrize("name", ["INT", "TERM", "HUP"])
def test_a_signal_while_a_file_is_written_waits_until_it_is_whole(tmp_path: Path, name: str) -> None:
    script = f"""
import os, signal
from pathlib import Path
from autofit.files import write_whole
signal.signal(signal.SIGINT, signal.SIG_DFL)
fsync = os.fsync
def interrupted(number):
    os.kill(os.getpid(), signal.SIG{name})
    fsync(number)
os.fsync = interrupted
write_whole(Path({str(tmp_path / "x")!r}), b"new")
print("unreachable")
"""
    (tmp_path / "x").write_text("old")
    done = python(script)
    assert (done.returncode, done.stdout) == (-int(signal.Signals[f"SIG{name}"]), b"")
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "new"


@linux
def test_a_child_that_hangs_does_not_outlive_a_parent_that_was_killed(tmp_path: Path) -> None:
    script = f"""
import ctypes, os, signal
from pathlib import Path
from autofit.hardware import child
child.MAX_SECONDS = 1
def hang():
    Path({str(tmp_path / "pid")!r}).write_text(str(os.getpid()))
    ctypes.CDLL(None).pause()  # no handler of Python's runs inside a library
    ctypes.CDLL(None).sleep(60)
made = child.Child(hang)
while not Path({str(tmp_path / "pid")!r}).exists(): pass
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.Popen([sys.executable, "-c", script]).wait(30)
    pid = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 20
    while time.monotonic() < end and is_running(pid):
        time.sleep(0.05)
    assert not is_running(pid)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# -- many at once


@linux
def test_directories_that_are_trusted_at_the_same_time_are_all_remembered(tmp_path: Path) -> None:
    folders = [tmp_path / str(n) for n in range(16)]
    for folder in folders:
        folder.mkdir()
        (folder / "autofit.toml").write_text("parallel = 2\n")

    def trust(folder: Path) -> int:
        return autofit("trust", str(folder), XDG_CONFIG_HOME=str(tmp_path / "config")).returncode

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(trust, folders)) == [0] * 16
    listed = autofit("trust", XDG_CONFIG_HOME=str(tmp_path / "config")).stdout.decode().splitlines()
    assert listed == sorted(str((folder / "autofit.toml").resolve()) for folder in folders)
