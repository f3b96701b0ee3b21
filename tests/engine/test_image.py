"""The image of `Containerfile`, built and started by a real podman (`.ci/podman.sh`) as docs/install.md says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from autofit.cli.main import main

from support import ROOT, TINY
from support.podman import PODMAN, needs_podman

pytestmark = [pytest.mark.engine, needs_podman]
WISHES = ("llama", "model.gguf", "--on", "rtx-3090", "--ram", "64GiB")
SHARED = {
    "man/man1/autofit.1": "docs/autofit.1",
    "bash-completion/completions/autofit": "autofit/cli/completions/autofit.bash",
    "zsh/site-functions/_autofit": "autofit/cli/completions/_autofit",
}


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PATH": f"{Path(PODMAN).parent}:{os.environ['PATH']}"}
    return subprocess.run(["sh", "-c", line], cwd=folder, env=environ, capture_output=True, text=True, timeout=600)


def start() -> str:
    """The command of the page that starts the image, up to the image's own words."""
    page = (ROOT / "docs/install.md").read_text()
    build, whole = re.findall(r"`(podman (?:build|run)[^`]*)`", page)
    assert f"#   {build}\n#   {whole} --on" in (ROOT / "Containerfile").read_text()
    assert build == "podman build -t autofit ."
    return str(whole).removesuffix(" llama model.gguf")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, once the image is built of this tree."""
    done = shell("podman build -t autofit .", ROOT)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    folder = tmp_path_factory.mktemp("models")
    shutil.copyfile(TINY, folder / "model.gguf")
    folder.chmod(0o755)  # for the image's user
    return folder


def test_the_image_plans_as_the_tree_that_it_was_built_of(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nonexistent")
    for words in (["--help"], [*WISHES, "-q"], [*WISHES, "-q", "--format", "compose", "--force"]):
        code = main(words)
        inside = shell(f"{start()} {' '.join(words)}", folder)
        expected = capsys.readouterr().out.replace(str(folder), "/work")
        assert (inside.returncode, inside.stdout) == (code, expected), inside.stderr


@pytest.mark.parametrize("more", ["", "--read-only"])
def test_the_image_runs_without_a_right_to_write(more: str, folder: Path) -> None:
    done = shell(f"{start().replace(' run ', f' run {more} ')} llama model.gguf", folder)
    assert (done.returncode, done.stdout.split()[:3]) == (0, ["llama-server", "-m", "model.gguf"]), done.stderr
    assert "warning" not in done.stderr.lower()


def test_the_image_knows_the_memory_that_its_container_has(folder: Path) -> None:
    limited = start().replace(" run ", " run --memory 400m ")
    done = shell(f"{limited} hardware", folder)
    if "cgroup" in done.stderr and done.returncode in (125, 126):
        pytest.skip(f"no limit of memory here: {done.stderr.strip()[-200:]}")
    (available,) = re.findall(r"^memory +(\S+) MiB available", done.stdout, re.MULTILINE)
    assert 100 < float(available) <= 400 and "limited to 400.0 MiB by a cgroup" in done.stdout
    refused = shell(f"{limited} llama example:mixtral-8x22b-q4_k_m", folder)
    assert refused.returncode == 3, refused.stderr


def test_the_image_carries_its_manual_and_completions_and_no_sources(folder: Path) -> None:
    for name, source in SHARED.items():
        line = f"{start().replace(' autofit', ' --entrypoint cat autofit')} /usr/local/share/{name}"
        assert shell(line, folder).stdout == (ROOT / source).read_text()
    done = shell(f"{start().replace(' autofit', ' --entrypoint sh autofit')} -c 'echo /src/*; echo $PWD'", folder)
    assert done.stdout.split() == ["/src/*", "/work"]
