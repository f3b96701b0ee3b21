"""Commands of pages run as they are written there."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from autofit.cli.main import main

from support import ROOT, quant_files


def commands(page: str) -> list[str]:
    """The `autofit` commands of a page's blocks for a shell, without their remarks."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("autofit ")]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the models that pages name, and one in llama.cpp's cache."""
    shutil.copyfile(ROOT / "autofit/_models/tiny.gguf", tmp_path / "model.gguf")
    quant_files.write(tmp_path / "Llama-3.1-8B-GGUF", ("Q4_K_M", "Q8_0"))
    (tmp_path / "Qwen3-32B").mkdir()
    shutil.copyfile(ROOT / "tests/data/vllm/configs/qwen3-32b/config.json", tmp_path / "Qwen3-32B/config.json")
    (tmp_path / "home").mkdir()
    shutil.copyfile(ROOT / "autofit/_models/tiny.gguf", tmp_path / "home/ORG_qwen-GGUF_qwen-Q8_0.gguf")
    (tmp_path / "start.sh").write_text("exec llama-server -m model.gguf -ngl 99\n")
    image = "ghcr.io/ggml-org/llama.cpp:server-cuda-b11311"
    service = f"image: {image}, gpus: all, command: -m /models/model.gguf, volumes: ['.:/models']"
    (tmp_path / "compose.yaml").write_text(f"services: {{llm: {{{service}}}}}\n")
    (tmp_path / "headers").mkdir()
    shutil.copyfile(ROOT / "autofit/_models/tiny.gguf", tmp_path / "headers/model.gguf")
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "LLAMA_CACHE", "OLLAMA_MODELS", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    return tmp_path


PAGES = ("names.md", "quants.md", "advise.md", "check-files.md", "formats.md")


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for page in PAGES for command in commands(page)])
def test_a_command_of_a_page_succeeds(command: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(command)[1:]) == 0
    printed = capsys.readouterr().out
    assert printed and "no models" not in printed


def test_recipes_that_pages_name_are_there() -> None:
    recipes = set(re.findall(r"^([a-z][a-z-]*)[^=\n]*:(?!=)", (ROOT / "justfile").read_text(), re.MULTILINE))
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]
    named = {word for page in pages for word in re.findall(r"(?:^|`)just ([a-z-]+)", page.read_text(), re.MULTILINE)}
    assert {"follow", "gen", "test", "engines"} <= named <= recipes
