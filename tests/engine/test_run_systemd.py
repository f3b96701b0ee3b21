"""`autofit run -- systemd-run …` and the units of `--format systemd`, with a real systemd that is booted for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from autofit.cli.main import main

from support import ROOT
from support.fake_engines import TINY, Engines

NEEDED = ("unshare", "nsenter", "systemd-run", "dbus-daemon")
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs to be root of a Linux"),
    pytest.mark.skipif(not all(map(shutil.which, NEEDED)), reason=f"needs {', '.join(NEEDED)}"),
]
OWN = f"{sys.executable} -P -m autofit run -q"


class Booted:
    """A systemd in namespaces of its own, and commands inside."""

    def __init__(self, folder: Path) -> None:
        self.shared, empty, self.log = folder / "shared", folder / "empty", folder / "log"
        self.shared.mkdir()
        empty.mkdir()
        spaces = ["--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc", "--cgroup"]
        script = ROOT / "tests/engine/boot_systemd.sh"
        with self.log.open("wb") as log:
            self.outside = subprocess.Popen(
                ["unshare", *spaces, "sh", str(script), str(empty), str(self.shared)], stdout=log, stderr=log
            )
        children = Path(f"/proc/{self.outside.pid}/task/{self.outside.pid}/children")
        deadline = time.monotonic() + 60
        self.prefix: list[str] = []
        while not self.is_up():
            if time.monotonic() > deadline or self.outside.poll() is not None:
                self.end()
                pytest.skip(f"no systemd can be booted here: {self.log.read_text().strip()[-200:]}")
            time.sleep(0.1)
            pids = children.read_text().split()
            self.prefix = ["nsenter", "-t", pids[0], *"-p -m -u -i -C -r -w".split()] if pids else []

    def is_up(self) -> bool:
        return bool(self.prefix) and self.run("systemctl is-active -q bus.target dbus.socket").returncode == 0

    def run(self, line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(line), capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)

    def command(self, line: str) -> list[str]:
        return [*self.prefix, "sh", "-c", f"cd {self.shared} && {line}"]

    def end(self) -> None:
        self.outside.kill()
        self.outside.wait()


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    one = Booted(tmp_path_factory.mktemp("systemd"))
    yield one
    one.end()


@pytest.fixture
def engines(booted: Booted, request: pytest.FixtureRequest) -> Engines:
    folder = booted.shared / str(abs(hash(request.node.name)))
    folder.mkdir()
    return Engines(folder)


@pytest.fixture
def sh(booted: Booted, engines: Engines) -> Callable[[str], str]:
    """A command inside, with the fake engines on `PATH`, as words of a shell."""

    def command(line: str) -> str:
        variables = " ".join(f"{name}={value}" for name, value in engines.environ.items())
        return f"cd {engines.folder} && env {variables} {line}"

    return command


WAITS = "import signal, time; signal.signal(15, lambda *_: sys.exit(44)); time.sleep(60)"


@pytest.mark.parametrize("options", ["--scope", "--wait --pipe", "-Pd --setenv PATH", "--wait -P nice -n 3"])
def test_words_output_and_the_exit_status_pass(
    options: str, booted: Booted, engines: Engines, sh: Callable[[str], str]
) -> None:
    """The program is found on the caller's PATH, as systemd-run finds it; the engine has what the unit leaves it."""
    is_scope = options == "--scope"
    if "nice" in options:
        options = f"-E PATH={engines.environ['PATH']} {options}"
    own = f"-q -E FAKE_SAYS={engines.says} -E \"FAKE_DOES=print('said');sys.exit(9)\" {'' if is_scope else '-p Nice=2'}"
    done = booted.run(sh(f"{OWN} -c 512 -- systemd-run {own} {options} llama-server -m {TINY} --port 9"))
    assert (done.returncode, done.stdout) == (9, "said\n"), done.stderr
    said = engines.said
    assert said["argv"][:6] == ["-m", TINY, "--port", "9", "-c", "512"]
    assert said["program"] == str(engines.bin / "llama-server")
    assert said["nice"] == (0 if is_scope else 5 if "nice" in options else 2)
    assert ("LC_ALL" in said["env"]) is is_scope
    assert said["cwd"] == (str(engines.folder) if is_scope or "-Pd" in options else "/")


@pytest.mark.parametrize("options", ["--scope -p MemoryMax=4G", "--wait --pipe", "--wait -Pd"])
def test_units_of_a_users_own_manager(options: str, booted: Booted, engines: Engines, sh: Callable[[str], str]) -> None:
    if booted.run("systemctl start user@0.service").returncode:
        pytest.skip("no manager of a user can be started here")
    engines.environ["XDG_RUNTIME_DIR"] = "/run/user/0"
    own = f'-q --user -E FAKE_SAYS={engines.says} -E "FAKE_DOES=sys.exit(9)"'
    done = booted.run(sh(f"{OWN} -c 512 -- systemd-run {own} {options} llama-server -m {TINY}"))
    assert done.returncode == 9, done.stderr
    assert engines.said["argv"][:4] == ["-m", TINY, "-c", "512"]
    here = str(engines.folder)
    assert engines.said["cwd"] == (here if "scope" in options or "-Pd" in options else engines.said["env"]["HOME"])


def test_the_memory_that_a_unit_is_held_to_is_what_is_planned_for(
    booted: Booted, engines: Engines, sh: Callable[[str], str]
) -> None:
    for options in ("--scope", "--wait --pipe --setenv=FAKE_SAYS"):
        for limit, code in (("80M", 3), ("4G", 0)):
            line = f"{OWN} -- systemd-run -q {options} -p MemoryMax={limit} llama-server -m {TINY}"
            done = booted.run(sh(line))
            assert done.returncode == code, done.stderr
            assert ("not started: does not fit" in done.stderr) is (code == 3)
            assert engines.says.exists() is (code == 0)
        assert engines.said["argv"][-1] == "off"
        engines.says.unlink()


def test_a_signal_to_a_scope_is_the_engines(booted: Booted, engines: Engines, sh: Callable[[str], str]) -> None:
    line = sh(f'FAKE_DOES="{WAITS}" {OWN} -- systemd-run -q --scope --unit=one llama-server -m {TINY}')
    process = subprocess.Popen(booted.command(line))
    engines.wait_for_engine(60)
    assert booted.run("systemctl is-active one.scope").stdout == "active\n"
    assert booted.run("systemctl kill -s TERM one.scope").returncode == 0
    assert process.wait(30) == 44
    assert booted.run("systemctl is-active one.scope").stdout == "inactive\n"


def test_a_unit_starts_what_was_planned_and_ends_it(
    booted: Booted, engines: Engines, sh: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder whose name needs quotes, of which systemd would read parts as variables and as specifiers."""
    folder = engines.folder / 'my $HOME models 100% "a" \\x'
    folder.mkdir()
    shutil.copyfile(TINY, folder / "model.gguf")
    words = ["llama", str(folder / "model.gguf"), "-q", "-c", "512", "--on", "cpu", "--ram", "8GiB", "--format"]
    assert main([*words, "systemd", "--", "--alias", "a'b ${HOME} %n"]) == 0
    unit = capsys.readouterr().out
    assert unit.count("ExecStart=llama-server ") == 1
    run = Path("/run/systemd/system/llama.service")
    own = engines.folder / "llama.service"
    variables = f'Environment="FAKE_SAYS={engines.says}" "FAKE_DOES={WAITS}"\n'
    program = engines.bin / "llama-server"
    own.write_text(unit.replace("[Service]\n", f"[Service]\n{variables}").replace("=llama-server ", f"={program} "))
    done = booted.run(f"mkdir -p {run.parent} && cp '{own}' {run} && systemctl daemon-reload && systemctl start llama")
    assert done.returncode == 0, done.stderr
    said = engines.wait_for_engine(30)
    assert said["argv"][:2] == ["-m", str(folder / "model.gguf")]
    assert said["argv"][said["argv"].index("--alias") + 1] == "a'b ${HOME} %n"
    assert booted.run("systemctl is-active llama").stdout == "active\n"
    engines.says.unlink()
    assert booted.run("systemctl kill -s KILL llama").returncode == 0
    assert engines.wait_for_engine(30)["argv"] == said["argv"]  # again, after RestartSec=5
    assert booted.run("systemctl stop llama").returncode == 0
    shown = booted.run("systemctl show -P ExecMainStatus -P NRestarts llama").stdout
    assert shown.split() == ["1", "44"] or shown.split() == ["44", "1"]


def test_units_of_a_fleet_stop_what_never_runs_beside_them(
    booted: Booted, engines: Engines, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(engines.folder)
    shutil.copyfile(TINY, "a.gguf")
    models = [("chat", "day"), ("batch", "night"), ("always", None)]
    rows = ['phases = ["day", "night"]', '[[machine]]\nname = "box"\non = ["cpu"]\nram = "64GiB"']
    rows += [
        f'[[model]]\nname = "{name}"\nmodel = "a.gguf"' + (f'\nphases = ["{phase}"]' if phase else "")
        for name, phase in models
    ]
    Path("fleet.toml").write_text("\n".join(rows))
    into = engines.folder / "units"
    assert main(["fleet", "fleet.toml", "-q", "--format", "systemd", "--into", str(into)]) == 0, capsys.readouterr().err
    program = engines.bin / "llama-server"
    for unit in into.glob("*.service"):
        text = unit.read_text().replace("=llama-server ", f"={program} ")
        unit.write_text(text.replace("[Service]\n", f'[Service]\nEnvironment="FAKE_DOES={WAITS}"\n'))
    booted.run(f"mkdir -p /run/systemd/system && cp {into}/*.service /run/systemd/system && systemctl daemon-reload")

    def active() -> list[str]:
        return booted.run("systemctl is-active chat batch always").stdout.split()

    assert booted.run("systemctl start chat always").returncode == 0 and active() == ["active", "inactive", "active"]
    assert booted.run("systemctl start batch").returncode == 0
    assert active()[1:] == ["active", "active"] and active()[0] in ("inactive", "failed")
    assert booted.run("systemctl stop batch always").returncode == 0
