"""Files for containers, started by a real podman (`.ci/podman.sh`): the engine gets the words of the plan."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import autofit
import pytest
from autofit.cli.main import main
from autofit.domain.values import replace
from autofit.host import host, resolve

from support import TINY
from support.podman import IMAGE, PODMAN, build_engine, needs_podman

pytestmark = [pytest.mark.engine, needs_podman]
FILES = {"dockerfile": "Dockerfile", "compose": "compose.yaml", "kubernetes": "deployment.yaml"}
STARTS = {"compose": "podman-compose -p one up -d", "kubernetes": "podman kube play --network bridge deployment.yaml"}
ALIAS = 'a\'b "c" $HOME ${HOME} 100% \\\\x'


@pytest.fixture(scope="module", autouse=True)
def image(tmp_path_factory: pytest.TempPathFactory) -> None:
    build_engine(tmp_path_factory.mktemp("image"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of models whose name is made of the files' own characters; no container is left."""
    models = tmp_path / "my $HOME models 100% #1"
    models.mkdir()
    shutil.copyfile(TINY, models / "model.gguf")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nonexistent")
    yield models
    shell("podman pod rm --all --force; podman rm --all --force --time 1; podman network prune --force")


def shell(line: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PATH": f"{Path(PODMAN).parent}:{os.environ['PATH']}"}
    return subprocess.run(["sh", "-c", line], env=environ, input=stdin, capture_output=True, text=True, timeout=120)


def planned(form: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Write the file, and return the words that the engine is to get."""
    wishes = ["llama", str(folder / "model.gguf"), "--on", "cpu", "--ram", "8GiB", "-c", "512", "-q", "--format"]
    engine = ["--", "--alias", ALIAS]
    assert main([*wishes, "json", *engine]) == 0
    plan: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert main([*wishes, form, *engine]) == 0
    Path(FILES[form]).write_text(capsys.readouterr().out)
    return [word.replace(str(folder), "/models") for word in plan["argv"][1:]]


def words_of(container: str) -> list[str]:
    """The engine's arguments, as it says them."""
    log, deadline = "", time.monotonic() + 30
    while not log and time.monotonic() < deadline:
        log = shell(f"podman logs {container}").stdout
    words: list[str] = json.loads(log.splitlines()[0])["argv"]
    return words


@pytest.mark.parametrize("name", ["", "a:b, \"c\" `d` 'e'"])
def test_a_dockerfile_is_built_and_run_as_its_comments_say(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also of a folder whose name `-v` would take apart."""
    folder = folder.rename(folder.parent / name) if name else folder
    words = planned("dockerfile", folder, capsys)
    flags = re.findall(r"^# docker run with (.*)$", Path("Dockerfile").read_text(), re.MULTILINE)
    assert len(flags) == 2
    assert shell("podman build -q -t served .").returncode == 0
    done = shell(f"podman run --rm -i --network bridge -e ANSWER=3 {' '.join(flags)} served", "x")
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout.splitlines()[0])["argv"] == words
    read = 'python3 -c \'print(len(open("/models/model.gguf", "rb").read()))\''
    seen = shell(f"podman run --rm --entrypoint= --network bridge {' '.join(flags)} served {read}")
    assert seen.stdout == f"{TINY.stat().st_size}\n", seen.stderr


@pytest.mark.parametrize("form", STARTS)
def test_files_of_containers_start_what_was_planned(
    form: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = planned(form, folder, capsys)
    done = shell(STARTS[form])
    assert done.returncode == 0, done.stderr
    (name,) = shell(f"podman ps --filter ancestor={IMAGE} --format '{{{{.Names}}}}'").stdout.split()
    assert words_of(name) == words
    seen = shell(f'podman exec {name} python3 -c \'print(len(open("/models/model.gguf", "rb").read()))\'')
    assert seen.stdout == f"{TINY.stat().st_size}\n", seen.stderr
    written = shell(f'podman exec {name} python3 -c \'open("/models/x", "w")\'')
    assert "Read-only file system" in written.stderr and not (folder / "x").exists()
    ports = shell(f"podman port {name}").stdout
    assert "8080" in ports


def test_variables_are_the_same_in_every_file(folder: Path) -> None:
    """Values with what each file would read as its own. podman leaves `$$` and `$(NAME)` in variables of a pod as they
    are, which Kubernetes does not: tests/contract/test_formats.py."""
    values = {"ONE": "é $HOME ${HOME} 100% \\\\x \"y\" 'z' #", "TWO": "a: b, {c} - d\\"}
    plan = autofit.plan("llama", str(folder / "model.gguf"), on=["cpu"], ram="8GiB", settings=None)
    seen = "python3 -c 'import json, os; print(json.dumps(dict(os.environ)))'"
    for form, name in FILES.items():
        render = resolve(host().renderers()[form].factory)
        Path(name).write_text(render(replace(plan, env=values)))
    assert shell("podman build -q -t served .").returncode == 0
    starts = {"dockerfile": "podman run -d --name served served", **STARTS}
    for form, line in starts.items():
        assert shell(line).returncode == 0, form
        (container,) = shell("podman ps --format '{{.Names}}' --filter status=running").stdout.split()[-1:]
        environ = json.loads(shell(f"podman exec {container} {seen}").stdout)
        assert {key: environ[key] for key in values} == values, form
        shell("podman pod rm --all --force; podman rm --all --force --time 1")


# -- several models ------------------------------------------------------------------------------------

FLEET = """\
phases = ["day", "night"]
[[machine]]
name = "box"
on = ["cpu"]
ram = "64GiB"
[[model]]
name = "chat"
model = "a.gguf"
phases = ["day"]
[[model]]
name = "batch"
model = "b.gguf"
phases = ["night"]
engine-args = ["--alias", "a'b $HOME 100%"]
[[model]]
name = "always"
model = "b.gguf"
"""


def running() -> set[str]:
    """The models whose containers run, by the names of these."""
    names = shell("podman ps --format '{{.Names}}'").stdout.split()
    return {one for one in ("chat", "batch", "always") for name in names if one in name}


@pytest.mark.parametrize("form", ["compose", "kubernetes"])
def test_the_first_set_of_a_fleet_starts_and_the_other_when_it_is_asked_for(
    form: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.gguf", "b.gguf"):
        shutil.copyfile(TINY, name)
    Path("fleet.toml").write_text(FLEET)
    assert main(["fleet", "fleet.toml", "-q", "--format", form]) == 0
    text = capsys.readouterr().out
    Path(FILES[form]).write_text(text)
    done = shell(STARTS[form])
    assert (done.returncode, running()) == (0, {"chat", "always"}), done.stderr
    if form == "compose":
        (commands,) = re.findall(r"^# (docker compose stop .*)$", text, re.MULTILINE)
        done = shell(commands.replace("docker compose", "podman-compose -p one"))
        assert (done.returncode, running()) == (0, {"batch", "always"}), done.stderr
        argv = words_of("one_batch_1")
        assert argv[argv.index("--alias") + 1] == "a'b $HOME 100%"
