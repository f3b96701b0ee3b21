"""Small programs in place of engines: they say what they were started with, and do what a test tells them."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import support

TINY = str(support.TINY)
#: writes what it was started with to a file that $FAKE_SAYS names, and ends as $FAKE_DOES says
_ENGINE = """\
#!{python} -IS
import json, os, signal, sys, time
argv = sys.argv[1:]
if argv == ["--version"]:
    print("version: 11311 (abc)")
    sys.exit(0)
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
said = {{
    "pid": os.getpid(), "program": sys.argv[0], "argv": argv, "env": dict(os.environ), "cwd": os.getcwd(),
    "nice": os.getpriority(os.PRIO_PROCESS, 0), "ppid": os.getppid(), "pgid": os.getpgid(0), "sid": os.getsid(0),
    "tty": [os.isatty(n) for n in (0, 1, 2)],
    "fds": [int(n) for n in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + n)],
    "children": [p for p in open(f"/proc/self/task/{{os.getpid()}}/children").read().split()],
    "blocked": status["SigBlk"], "threads": status["Threads"],
}}
place = os.environ.get("FAKE_SAYS")
if place:
    with open(place + ".new", "w") as file:
        json.dump(said, file)
    os.replace(place + ".new", place)
exec(os.environ.get("FAKE_DOES", ""))
"""


def write_program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return path


class Engines:
    """A folder of fake engines, first on `PATH`, and a home of its own."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.says = folder / "said.json"
        for name in names or ("llama-server", "llama-cli", "vllm"):
            write_program(self.bin / name, _ENGINE.format(python=sys.executable))
        self.environ = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "HOME": str(folder / "home"),
            "XDG_RUNTIME_DIR": str(folder / "runtime"),
            "FAKE_SAYS": str(self.says),
            "LC_ALL": "C.UTF-8",
            "AUTOFIT_DETECT_SECONDS": "5",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        (folder / "runtime").mkdir(mode=0o700, exist_ok=True)

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-P", "-m", "autofit", *words]

    def run(self, *words: str, does: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
        """Run autofit with these words to its end."""
        environ = {**self.environ, "FAKE_DOES": does, **options.pop("env", {})}
        options = {"cwd": self.folder, "timeout": 60, "stdin": subprocess.DEVNULL, **options}
        return subprocess.run(self.command(*words), env=environ, capture_output=True, text=True, check=False, **options)

    def start(self, *words: str, does: str = "", **options: Any) -> subprocess.Popen[str]:
        environ = {**self.environ, "FAKE_DOES": does, **options.pop("env", {})}
        options = {"cwd": self.folder, "stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, **options}
        return subprocess.Popen(self.command(*words), env=environ, text=True, **options)

    @property
    def said(self) -> dict[str, Any]:
        """What the last engine was started with."""
        found: dict[str, Any] = json.loads(self.says.read_text(encoding="utf-8"))
        return found

    def wait_for_engine(self, seconds: float = 30) -> dict[str, Any]:
        """What an engine says that is being started."""
        import time

        deadline = time.monotonic() + seconds
        while not self.says.exists():
            assert time.monotonic() < deadline, "no engine was started"
            time.sleep(0.01)
        return self.said


def is_alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in ("Z", "X")


def children_of(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text(encoding="utf-8")
        except OSError:
            continue
        if int(text.rpartition(")")[2].split()[1]) == pid:
            found.append(int(path.parent.name))
    return found
