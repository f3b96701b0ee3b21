"""The page in a real Chromium: what it answers, beside what the command line prints.

Needs `npm ci --prefix web` and a Chromium (`AUTOFIT_CHROMIUM`, else the one on PATH); `.ci/run` has both.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
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
from autofit.domain.machine import Device, Host, Machine
from autofit.domain.units import GIB
from autofit.hardware.record import machine_to_dict

from support import ROOT, ggufs
from support.hub_server import Content, Hub, content_of, serve
from support.safetensor_files import write_model
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


def printed(words: list[str], folder: Path, form: str = "json") -> str:
    """What the command line prints in a format, without the last line's end."""
    own, flags = split(words)
    return run_autofit([*own, "--format", form, "-q", *(["--", *flags] if flags else [])], folder)


def refused(words: list[str], folder: Path) -> str:
    """What the command line says on stderr."""
    command = [sys.executable, "-m", "autofit", *words]
    environ = {**os.environ, **NOTHING_AROUND}
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False).stderr


def run_autofit(words: list[str], folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "autofit", *words], cwd=folder, env={**os.environ, **NOTHING_AROUND},
        capture_output=True, text=True, check=False,
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


def job_files(folder: Path) -> dict[str, str | list[str]]:
    whole = ggufs.write_llama(folder / "whole.gguf")
    broken = folder / "broken.gguf"
    broken.write_bytes(whole.read_bytes()[:300])
    machine = folder / "recorded.json"
    card = Device(
        id="GPU0", index=0, name="Recorded card", api="cuda", total_bytes=16 * GIB, free_bytes=15 * GIB,
        runtime_bytes=0, compute_capability=(8, 9), pool="GPU0",
    )  # fmt: skip
    host = Host(total_bytes=64 * GIB, available_bytes=60 * GIB)
    machine.write_text(json.dumps(machine_to_dict(Machine(host=host, devices=(card,), origin="detected"))))
    (folder / "sharded").mkdir()
    shards = ggufs.write_split(folder / "sharded", "model", ggufs.llama(n_layer=6), 3)
    config, checkpoint = folder / "config" / "model", folder / "checkpoint" / "model"
    shutil.copytree(VLLM / "configs" / "qwen3-0.6b", config)
    write_model(checkpoint, n_shards=2)
    several = {"shards": shards, "config": config.iterdir(), "checkpoint": checkpoint.iterdir()}
    return {name: [str(path) for path in sorted(paths)] for name, paths in several.items()} | {
        "large": str(large_header(folder / "large.gguf")),
        "broken": str(broken),
        "machine": str(machine),
    }


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


@contextlib.contextmanager
def served_by_autofit(folder: Path) -> Iterator[str]:
    """The address that `autofit web` prints."""
    command = [sys.executable, "-m", "autofit", "web", "--no-open", "--page", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **NOTHING_AROUND})
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def hub_with_a_model(folder: Path) -> Hub:
    """A hub that lets pages read, and asks for a token."""
    path = ggufs.write_llama(folder / "model-Q4_K_M.gguf", n_layer=16, n_embd=4096, n_ff=11008)
    hub = Hub(token="hf_secret", lets_pages_read=True)
    hub.plain["plain.gguf"] = content_of(path)
    hub.repositories["org/repo"] = {"model-Q4_K_M.gguf": content_of(path), "README.md": Content(b"#", 1)}
    return hub


def asked_plans() -> Iterator[dict[str, Any]]:
    before = None
    for config, words in commands():
        texts = None
        if config is not None and config != before:
            texts = {path.name: path.read_text() for path in (VLLM / "configs" / config).iterdir()}
        before = config
        yield {"files": texts, "request": request_of(words)}


@pytest.fixture(scope="session")
def hub(files: Path) -> Iterator[Hub]:
    with serve(hub_with_a_model(files)) as found:
        yield found


@pytest.fixture(scope="session")
def results(page: Path, files: Path, hub: Hub) -> dict[str, dict[str, Any]]:
    """What each scenario came to, by its name."""
    chromium = os.environ.get("AUTOFIT_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.fail("no Chromium: install one, or name it in AUTOFIT_CHROMIUM")
    with served(page) as url, served_by_autofit(page) as own:
        job = {
            "url": url,
            "served": own,
            "hub": hub.url,
            "chromium": chromium,
            "modules": str(ROOT / "web" / "node_modules"),
            "files": job_files(files),
            "log": LOG,
            "commands": list(asked_plans()),
            "only": [name for name in os.environ.get("AUTOFIT_SCENARIOS", "").split(",") if name],
            "shots": os.environ.get("AUTOFIT_SHOTS"),
        }
        done = subprocess.run(
            ["node", str(HERE / "drive.mjs")], input=json.dumps(job), text=True, capture_output=True, timeout=900,
            check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {each["name"]: each for each in found}


LOG = (
    "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9216.00 MiB on device 0: cudaMalloc failed: out of memory\n"
    "llama_kv_cache_init: failed to allocate buffer for kv cache\n"
)


def facts_of(results: dict[str, dict[str, Any]], name: str) -> Any:
    found = results[name]
    assert found["ok"], found["error"]
    return found["facts"]


#: scenarios that judge for themselves
NAMES = (
    "loads from an empty cache",
    "keeps a dropped file in its link",
    "says what is wrong with a damaged link",
    "moves sliders",
    "draws curves and a table of cards",
    "takes a card of own figures and a machine from a file",
    "is used by keyboard alone",
    "fits a phone",
    "works without a network after the first visit",
    "has no fault that axe finds",
)


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


def test_scripts_keep_to_the_types_of_a_plan() -> None:
    modules = ROOT / "web" / "node_modules"
    done = subprocess.run(
        ["node", str(modules / "typescript" / "bin" / "tsc"), "-p", str(ROOT / "web")], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")


def test_every_scenario_is_judged(results: dict[str, dict[str, Any]]) -> None:
    judged = {*NAMES, *re.findall(r'facts_of\(results, "([^"]+)"\)', Path(__file__).read_text(encoding="utf-8"))}
    assert judged == set(results)


def test_formats_are_the_command_lines(results: dict[str, dict[str, Any]], files: Path) -> None:
    facts = facts_of(results, "writes every format")
    options = facts["request"]["options"]
    words = ["llama", facts["request"]["model"], "--on", *options["on"], "--ram", options["ram"]]
    assert len(facts["texts"]) > 12
    for name, text in facts["texts"].items():
        if text.startswith("autofit: "):
            assert text in refused([*words, "--format", name], files)
        else:
            assert text == printed(words, files, name), name


def test_a_hub_is_asked_for_the_header_alone(results: dict[str, dict[str, Any]], hub: Hub) -> None:
    facts = facts_of(results, "asks a hub for the header alone")
    assert facts["refused"].startswith("org/none: no such file or directory; as a repository: org/none at 127.0.0.1: ")
    size = hub.repositories["org/repo"]["model-Q4_K_M.gguf"].size
    assert 0 < sum(request.sent_bytes for request in hub.requests) < size / 50
    assert {request.authorization for request in hub.requests if "/resolve/" in request.path} == {"Bearer hf_secret"}


def test_commands_and_logs_are_checked_in_the_command_lines_words(
    results: dict[str, dict[str, Any]], files: Path
) -> None:
    facts = facts_of(results, "checks a command and explains a log")
    assert facts["command"].startswith("It ")
    assert "--no-such-flag" in facts["problem"]


def test_a_server_is_asked_when_somebody_names_it(results: dict[str, dict[str, Any]]) -> None:
    assert facts_of(results, "asks no server that a link names")["argv"][0] == "llama-server"


def test_files_that_belong_together_are_one_model(results: dict[str, dict[str, Any]], files: Path) -> None:
    answers = facts_of(results, "takes shards, a configuration and a checkpoint")["answers"]
    asked = {"shards": ("sharded", "llama", "model-00001-of-00003.gguf"), "config": ("config", "vllm", "./model")}
    for name, (folder, backend, model) in {**asked, "checkpoint": ("checkpoint", "vllm", "./model")}.items():
        words = [backend, model, "--on", "rtx-3090", "--ram", "64GiB"]
        assert answers[name] == printed(words, files / folder), name


def test_autofit_web_plans_for_this_machine(results: dict[str, dict[str, Any]], files: Path) -> None:
    found = json.loads(facts_of(results, "is served by autofit web with this machine filled in")["json"])
    machine = json.loads(run_autofit(["hardware", "detect", "--format", "json"], files))
    assert found["pools"][-1]["total_bytes"] == machine["host"]["total_bytes"]
