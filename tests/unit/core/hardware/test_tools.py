"""Programs and drivers' libraries that are asked: which ones, and what they cannot do to us."""

from __future__ import annotations

import faulthandler
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from autofit.domain.machine import Host
from autofit.hardware import system as system_module
from autofit.hardware.detect import detect as detect_all
from autofit.hardware.facts import Facts, Source
from autofit.hardware.output import run_tool
from autofit.hardware.programs import MAX_TEXT_BYTES, ToolError, ToolTimeoutError, find_program
from autofit.hardware.system import System, this_system

from support.recorded_machines import detect

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="programs of a POSIX system")


def program(path: Path, script: str = "echo ours") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize("path", ["", ":", "::/nonexistent", ".", "./", "bin", "bin:.", "../here", ":/nonexistent:"])
def test_nothing_is_started_from_the_current_directory(
    tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    for name in ("nvidia-smi", "bin/nvidia-smi", "nvidia-smi.exe"):
        program(here / name, "echo theirs")
    monkeypatch.chdir(here)
    monkeypatch.setenv("PATH", path)
    assert find_program("nvidia-smi", {"PATH": path}) is None
    with pytest.raises(ToolError, match="not installed"):
        run_tool(["nvidia-smi"], 1.0)


def test_windows_does_not_look_in_the_current_directory_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By simulation: a folder of this system stands in for `C:\\tools`."""
    program(tmp_path / "nvidia-smi.exe")
    program(tmp_path / "tools" / "nvidia-smi.exe")
    monkeypatch.chdir(tmp_path)
    (tmp_path / r"C:\tools").symlink_to("tools")
    for path in ("", ";", ".", r".\;", "tools", r"\tools", "C:tools", '""'):
        assert find_program("nvidia-smi", {"PATH": path}, "win32") is None, path
    for path in (r"C:\tools", r".;C:\tools", r'"C:\tools"'):
        found = find_program("nvidia-smi", {"PATH": path}, "win32")
        assert found == rf"C:\tools{os.sep}nvidia-smi.exe"


def test_a_program_given_by_its_path_is_that_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = program(tmp_path / "my-server")
    assert find_program(str(path), {"PATH": ""}) == str(path)
    monkeypatch.chdir(tmp_path)
    assert find_program("./my-server", {"PATH": ""}) == str(path)
    assert find_program(str(tmp_path), {}) is None


def test_the_first_of_its_name_on_the_path(tmp_path: Path) -> None:
    first, second = program(tmp_path / "a" / "x"), program(tmp_path / "b" / "x")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x").write_text("no program")
    assert find_program("x", {"PATH": f"{tmp_path}/c:{first.parent}:{second.parent}"}) == str(first)


@pytest.mark.parametrize("stream", ["", ">&2"])
def test_a_flood_is_cut_by_its_bytes(tmp_path: Path, stream: str) -> None:
    tool = program(tmp_path / "x", f"exec yes flood {stream}")
    start = time.monotonic()
    with pytest.raises(ToolError, match=f"more than {MAX_TEXT_BYTES} bytes"):
        run_tool([str(tool)], 20.0)
    assert time.monotonic() - start < 10


def test_a_tool_that_hangs_is_ended_with_what_it_started(tmp_path: Path) -> None:
    tool = program(tmp_path / "x", "sleep 30 & sleep 30")
    start = time.monotonic()
    with pytest.raises(ToolTimeoutError):
        run_tool([str(tool)], 0.2)
    assert time.monotonic() - start < 5


def test_what_a_tool_says(tmp_path: Path) -> None:
    assert run_tool([str(program(tmp_path / "x", "echo a; echo b >&2"))], 10.0) == "a\n"
    with pytest.raises(ToolError, match=r"exit code 3: b$"):
        run_tool([str(program(tmp_path / "y", "echo b >&2; exit 3"))], 10.0)


def aborts() -> object:
    faulthandler.disable()  # this end is meant
    os.abort()


def hangs() -> object:
    time.sleep(60)
    return None


def exits() -> object:
    os._exit(0)


def prints_and_raises() -> object:
    os.write(1, b"the driver says hello\n")
    os.write(2, b"the driver says hello\n")
    raise ToolError("no such library")


@pytest.mark.skipif(sys.platform != "linux", reason="a child process asks the library on Linux")
@pytest.mark.parametrize(
    ("library", "seconds"), [(aborts, 20.0), (exits, 20.0), (prints_and_raises, 20.0), (hangs, 0.3)]
)
def test_a_library_that_aborts_exits_or_hangs_takes_nothing_along(
    library: Callable[[], object],
    seconds: float,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(system_module, "load_nvml", library)
    (tmp_path / "libnvidia-ml.so.1").touch()
    system = this_system(
        {"AUTOFIT_DETECT_SECONDS": str(seconds), "PATH": "", "LD_LIBRARY_PATH": f"/nonexistent:{tmp_path}"}
    )
    assert system.isolates
    machine = detect(system)
    assert machine.host.total_bytes
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("cached", "path", "may"),
    [
        (None, "", True),  # another loader, which tells nobody what it knows
        (b"glibc-ld.so.cache1.1\0libc.so.6\0/lib/libc.so.6\0", "", False),
        (b"glibc-ld.so.cache1.1\0libnvidia-ml.so.1\0/usr/lib/wsl/lib/libnvidia-ml.so.1\0", "", True),
        (b"glibc-ld.so.cache1.1\0", "/nonexistent::/opt/driver", True),
        (b"\xff" * MAX_TEXT_BYTES, "", True),  # what is cut off may name it
    ],
)
def test_a_library_is_looked_for_where_the_loader_looks(
    tmp_path: Path, cached: bytes | None, path: str, may: bool
) -> None:
    driver = tmp_path / "opt" / "driver" / "libnvidia-ml.so.1"
    for file, data in ((tmp_path / "etc" / "ld.so.cache", cached), (driver, b"")):
        file.parent.mkdir(parents=True, exist_ok=True)
        if data is not None:
            file.write_bytes(data)
    system = this_system({"LD_LIBRARY_PATH": path}, tmp_path)
    assert system.may_load("libnvidia-ml.so.1") is may
    assert system.may_load("/opt/driver/libnvidia-ml.so.1") and not system.may_load("/dev/kfd")


@pytest.mark.skipif(sys.platform != "linux", reason="a child process asks the library on Linux")
def test_an_answer_comes_back_from_the_child_as_it_is() -> None:
    from autofit.domain.machine import Device
    from autofit.hardware.child import Child, ChildError

    device = Device(id="CUDA0", index=0, name="X", api="cuda", total_bytes=1 << 30, free_bytes=1, notes=("a",))
    facts = Facts(devices=(device,), findings=("b",), sources={"c": "d"}, seen=frozenset({"e"}))
    assert Child(lambda: facts).facts(20.0) == facts
    with pytest.raises(ChildError, match="SIGABRT"):
        Child(aborts).facts(20.0)  # type: ignore[arg-type]
    with pytest.raises(TimeoutError):
        Child(hangs).facts(0.1)  # type: ignore[arg-type]


FOLDERS = ("", ":/usr/bin:/bin", ".:/usr/bin:/bin", "bin:/usr/bin:/bin", "/usr/bin:/bin:")


@pytest.mark.skipif(sys.platform == "win32", reason="needs programs without an ending")
@pytest.mark.parametrize("path", FOLDERS)
def test_a_dry_run_is_of_no_program_of_the_current_directory(tmp_path: Path, path: str) -> None:
    for folder in (tmp_path, tmp_path / "bin"):
        folder.mkdir(exist_ok=True)
        for name in ("llama-fit-params", "llama-server"):
            program = folder / name
            program.write_text(f"#!/bin/sh\n/usr/bin/touch {tmp_path}/STARTED\n")
            program.chmod(0o755)
    words = ["verify", "example:tiny", "--", "llama-server", "-m", "example:tiny"]
    environ = {"PATH": path, "PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "autofit", *words], cwd=tmp_path, env=environ, capture_output=True, timeout=60
    )
    assert done.returncode not in (0, -9) and done.stdout == b""
    assert not (tmp_path / "STARTED").exists()


RAY = """
def init(**_): pass
def shutdown(): pass
def available_resources(): return {"GPU": 1.0}
def nodes():
    node = {"NodeName": "a", "NodeManagerAddress": "10.0.0.1", "Alive": True}
    return [{**node, "Resources": {"GPU": 1.0, "memory": 1e10, "accelerator_type:H100": 1.0}}]
"""


def test_a_cluster_is_not_asked_by_code_of_the_current_directory(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "ray.py").write_text(RAY)
    (tmp_path / "here").mkdir()
    for name in ("ray", "json"):
        (tmp_path / "here" / f"{name}.py").write_text(f"open({str(tmp_path / 'STARTED')!r}, 'w')\n" + RAY)
    code = "import autofit; print(autofit.load_machine('ray://auto').devices[0].name)"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "lib"), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path / "here", env=environ, capture_output=True, timeout=60
    )
    assert b"H100" in done.stdout, done.stderr
    assert not (tmp_path / "STARTED").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="libraries as glibc's loader finds them")
@pytest.mark.parametrize(
    ("signs", "is_asked"),
    [
        ((), True),
        (("no-such-tool", "/nonexistent/driver", "libnone.so.1"), False),
        (("/nonexistent/driver", "/proc/self"), True),
        (("a-tool",), True),
        (("libdriver.so.1",), True),
    ],
)
def test_a_source_is_asked_where_there_is_a_sign_of_it(tmp_path: Path, signs: tuple[str, ...], is_asked: bool) -> None:
    program(tmp_path / "bin" / "a-tool")
    (tmp_path / "libdriver.so.1").touch()
    asked = []

    def find(system: System, host: Host) -> Facts:
        asked.append(system)
        return Facts()

    system = this_system({"PATH": str(tmp_path / "bin"), "LD_LIBRARY_PATH": str(tmp_path)})
    detect_all(system, [Source("a maker's", find, signs=signs)])
    assert bool(asked) is is_asked
    detect_all(this_system({"PATH": ""}, tmp_path), [Source("a maker's", find, signs=signs)])
    assert len(asked) == 1 + is_asked  # a recorded tree may lack what else is on its machine
