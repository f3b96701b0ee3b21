"""Whatever a plugin does, stdout holds the product alone and the user reads one line instead of a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT

PLUGIN = """
import sys
from autofit.hookspecs import BackendRef, CommandRef, HardwareSourceRef, RendererRef, hookimpl
print("noise at import")

@hookimpl
def autofit_register_backends():
    print("noise in a hook")
    return [BackendRef("bad", "x", "bad_backend:Bad", ("bad-server",))]

@hookimpl
def autofit_register_renderers():
    return [RendererRef(name, "x", f"bad_backend:{name}") for name in ("raises", "number", "noisy")]

@hookimpl
def autofit_register_commands():
    return [CommandRef("explode", "x", "bad_command")]
"""

BACKEND = """
import sys
from autofit.backend import Backend, ParsedCommand
from autofit.domain.memory import Memory
from autofit.domain.plan import Plan

class Own(BaseException):
    pass

def raises(plan): raise Own("no format")
def number(plan): return 7
def noisy(plan):
    print("noise in a format")
    return "product"

class Bad(Backend):
    name, engine, programs, formats = "bad", "Bad", ("bad-server",), ("gguf", "safetensors")

    def parse(self, argv, env=None, *, version=None, model=None):
        if "parse" in argv:
            sys.exit("no license")
        return ParsedCommand(program=argv[:1], model="example:tiny", companions={}, settings=tuple(argv))

    def plan(self, command, model, machine, request):
        what = command.settings[-1]
        print("noise in plan")
        if what == "raises":
            raise Own("no plan")
        if what == "type":
            return "a plan"
        memory = Memory(pools=()) if what != "memory" else None
        return Plan(backend="bad", fits=True, argv=("bad-server",), memory=memory)

    def check(self, command, model, machine, request):
        return self.plan(command, model, machine, request)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("site")
    info = site / "bad-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[autofit]\nbad = bad_plugin\nleaves = bad_leaves\n")
    (site / "bad_plugin.py").write_text(PLUGIN)
    (site / "bad_backend.py").write_text(BACKEND)
    (site / "bad_command.py").write_text("def add_arguments(parser): pass\ndef run(args): raise BaseException('no')\n")
    (site / "bad_leaves.py").write_text("class Leave(BaseException): pass\nraise Leave('at import')\n")
    return site


def autofit(site: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "plugins"), str(site)])
    environ = {"PATH": os.environ["PATH"], "HOME": str(site), "PYTHONPATH": path}
    command = [sys.executable, "-m", "autofit", *argv]
    return subprocess.run(command, capture_output=True, text=True, env=environ, cwd=site, timeout=60, check=False)


ON = ("--on", "rtx-3090", "--ram", "64GiB")


@pytest.mark.parametrize(
    ("argv", "code", "product", "message"),
    [
        (("llama", "example:tiny", *ON, "--format", "noisy"), 0, "product\n", "noise in a format"),
        (("llama", "example:tiny", *ON, "--format", "raises"), 1, "", "bad_backend:raises: Own: no format"),
        (("llama", "example:tiny", *ON, "--format", "number"), 1, "", "must return text, not int"),
        (("bad", "example:tiny", *ON), 0, "bad-server\n", "noise in plan"),
        (("bad", "example:tiny", *ON, "--", "raises"), 1, "", "bad: Own: no plan"),
        (("bad", "example:tiny", *ON, "--", "type"), 1, "", "must return a Plan, not str"),
        (("bad", "example:tiny", *ON, "--", "memory"), 1, "", "memory of its Plan must be Memory, not NoneType"),
        (("bad", "example:tiny", *ON, "--", "parse"), 1, "", "SystemExit: no license"),
        (("bad", "example:tiny", *ON, "--kv", "q8_0"), 2, "", "bad does not support --kv"),
        (("bad", "example:tiny", *ON, "--prefer", "speed"), 2, "", "bad does not support --prefer"),
        (("check", *ON, "--", "bad-server", "type"), 1, "", "must return a Plan, not str"),
        (("explode",), 1, "", "bad_command: BaseException: no"),
        (("plugins",), 0, None, ""),
    ],
)
def test_a_line_instead_of_a_traceback(
    site: Path, argv: tuple[str, ...], code: int, product: str | None, message: str
) -> None:
    done = autofit(site, *argv)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert message in done.stderr
    assert "noise" not in done.stdout
    if product is None:
        assert "Leave: at import" in done.stdout
    else:
        assert done.stdout == product
