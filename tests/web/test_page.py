"""The page in a real Chromium: what it answers, beside what the command line prints.

Needs `npm ci --prefix web` and a Chromium (`AUTOFIT_CHROMIUM`, else the one on PATH); `.ci/run` has both.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from autofit.cli import plan as plan_command
from autofit.cli.main import main, new_parser
from autofit.cli.options import given

from support import ROOT, ggufs
from support.vllm_truth import DATA as VLLM

pytestmark = pytest.mark.web
HERE = Path(__file__).parent
GB = 10**9


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """A static host, as simple as there is one."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def commands() -> list[tuple[str | None, list[str]]]:
    """The commands of `plans.txt`, each with the configuration that it is about, if it needs one."""
    found: list[tuple[str | None, list[str]]] = []
    config = None
    for line in (HERE / "plans.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            config = line.strip("[]")
        elif not line.startswith("#"):
            found.append((config, shlex.split(line)))
    return found


def split(words: list[str]) -> tuple[list[str], list[str]]:
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def request_of(words: list[str]) -> dict[str, Any]:
    """What the page asks for that plans as this command does."""
    own, flags = split(words)
    parser = new_parser(own[0], "")
    plan_command.add_arguments(parser)
    args: argparse.Namespace = parser.parse_args(own[1:])
    options = {name: value for name, value in given(args).items() if value is not None}
    return {"backend": own[0], "model": args.model, "options": options, "flags": flags}


def printed(words: list[str], folder: Path) -> str:
    """What the command line prints with `--format json`, without the last line's end."""
    own, flags = split(words)
    done = subprocess.run(
        [sys.executable, "-m", "autofit", *own, "--format", "json", "-q", *(["--", *flags] if flags else [])],
        cwd=folder, env={**os.environ, **NOTHING_AROUND}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.removesuffix("\n")


NOTHING_AROUND = {"AUTOFIT_DISABLE_PLUGIN_AUTOLOAD": "1", "XDG_CONFIG_HOME": "/nothing", "XDG_CACHE_HOME": "/nothing"}


def large_header(path: Path) -> Path:
    """A model of 100 GB whose header has more than 5 MB, most of it vocabulary."""
    model = ggufs.llama(
        n_layer=80, n_embd=8192, n_head=64, n_head_kv=8, n_ff=28_672, n_vocab=256_000, weight_type="f16",
        output_type="f16",
    )  # fmt: skip
    vocabulary = {"tokenizer.ggml.tokens": ggufs.Strings(256_000, [f"a longer token {n}" for n in range(256_000)])}
    grown = ggufs.Gguf(metadata={**model.metadata, **vocabulary}, tensors=model.tensors)
    grown.write(path)
    assert len(grown.header()) > 5_000_000
    assert path.stat().st_size > 100 * GB
    return path


def job_files(folder: Path) -> dict[str, str]:
    whole = ggufs.write_llama(folder / "whole.gguf")
    broken = folder / "broken.gguf"
    broken.write_bytes(whole.read_bytes()[:300])
    return {"large": str(large_header(folder / "large.gguf")), "broken": str(broken)}


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page, built."""
    if not (ROOT / "web" / "node_modules" / "playwright-core").is_dir():
        pytest.fail("npm packages are missing: npm ci --prefix web")
    folder = tmp_path_factory.mktemp("page") / "dist"
    subprocess.run([sys.executable, str(ROOT / "tools" / "build_web.py"), "--out", str(folder)], check=True, cwd=ROOT)
    return folder


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="session")
def results(page: Path, files: Path) -> dict[str, dict[str, Any]]:
    """What each scenario came to, by its name."""
    chromium = os.environ.get("AUTOFIT_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.fail("no Chromium: install one, or name it in AUTOFIT_CHROMIUM")
    asked, before = [], None
    for config, words in commands():
        texts = None
        if config is not None and config != before:
            texts = {path.name: path.read_text() for path in (VLLM / "configs" / config).iterdir()}
        before = config
        asked.append({"files": texts, "request": request_of(words)})
    with served(page) as url:
        job = {
            "url": url,
            "chromium": chromium,
            "modules": str(ROOT / "web" / "node_modules"),
            "files": job_files(files),
            "commands": asked,
        }
        done = subprocess.run(
            ["node", str(HERE / "drive.mjs")], input=json.dumps(job), text=True, capture_output=True, timeout=600,
            check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {each["name"]: each for each in found}


def facts_of(results: dict[str, dict[str, Any]], name: str) -> Any:
    found = results[name]
    assert found["ok"], found["error"]
    return found["facts"]


NAMES = ("loads from an empty cache",)


@pytest.mark.parametrize("name", NAMES)
def test_the_page(name: str, results: dict[str, dict[str, Any]]) -> None:
    facts_of(results, name)


def test_answers_are_the_command_lines_to_the_byte(
    results: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:  # fmt: skip
    answers = facts_of(results, "gives the command line's JSON to the byte")["answers"]
    monkeypatch.chdir(tmp_path)
    for name, value in NOTHING_AROUND.items():
        monkeypatch.setenv(name, value)
    wrong, before = [], None
    for (config, words), answer in zip(commands(), answers, strict=True):
        if config is not None and config != before:
            shutil.rmtree("model", ignore_errors=True)
            shutil.copytree(VLLM / "configs" / config, "model")
        before = config
        own, flags = split(words)
        main([*own, "--format", "json", "-q", *(["--", *flags] if flags else [])])
        if capfdbinary.readouterr().out.decode() != f"{answer}\n":
            wrong.append((words, answer[:300]))
    assert wrong == []
    assert len(answers) == 50


def test_a_large_file_is_answered_from_its_header(results: dict[str, dict[str, Any]], files: Path) -> None:
    facts = facts_of(results, "answers for a file of 100 GB with a header of 5 MB")
    request = facts["request"]
    on = [word for name in request["options"]["on"] for word in ("--on", name)]
    words = [request["backend"], "large.gguf", *on, "--ram", request["options"]["ram"]]
    assert facts["json"] == printed(words, files)


def test_a_broken_file_is_refused_in_the_command_lines_words(results: dict[str, dict[str, Any]], files: Path) -> None:
    said = facts_of(results, "refuses a broken file in the command line's words")
    done = subprocess.run(
        [sys.executable, "-m", "autofit", "llama", "broken.gguf", "--on", "rtx-3090", "--ram", "64GiB"],
        cwd=files, env={**os.environ, **NOTHING_AROUND}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [f"autofit: {said['message']}", *([f"  {said['hint']}"] if said["hint"] else [])]
    assert done.stderr.splitlines() == lines
    assert done.returncode == 1


def test_a_shared_link_is_the_plan_of_its_command(results: dict[str, dict[str, Any]], files: Path) -> None:
    facts = facts_of(results, "restores a shared link")
    words = (
        "llama example:mixtral-8x7b-q4_k_m --on 2xrtx-3060-12gb --on rtx-4090:20GiB --ram 32GiB -c 8k -- --n-cpu-moe 4"
    )
    assert facts["json"] == printed(shlex.split(words), files)
