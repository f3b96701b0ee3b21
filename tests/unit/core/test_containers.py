"""`check` of a command that starts a container: the engine's command inside, the machine that it sees, its version."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import autofit
import pytest
from autofit.cli.main import main
from autofit.containers import opened
from autofit.domain.machine import Machine
from autofit.domain.plan import Plan
from autofit.domain.values import replace
from autofit.errors import UsageError

import support

CARD = autofit.load_machine("rtx-3090", "rtx-3090", ram="64GiB")
SERVER = "ghcr.io/ggml-org/llama.cpp:server-cuda-b10068"
FLAGS = ("-c", "512", "-ngl", "99")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    shutil.copy(support.TINY, tmp_path / "m.gguf")
    return tmp_path


def check(*words: str, machine: Machine = CARD) -> Plan:
    return autofit.check(words, machine, settings=None)


def used(plan: Plan) -> list[tuple[str, int]]:
    return [(pool.id, pool.used_bytes) for pool in plan.memory.pools]


def test_takes_what_the_command_inside_takes(models: Path) -> None:
    command = ("docker", "run", "--rm", "-v", f"{models}:/models", "--gpus", "all", SERVER, "-m", "/models/m.gguf")
    found = check(*command, *FLAGS)
    plain = autofit.check(
        ["llama-server", "-m", str(models / "m.gguf"), *FLAGS], CARD, settings=None, engine_version="b10068"
    )
    assert used(found) == used(plain)
    assert found.argv == (*command, *FLAGS) and not found.env
    assert found.engine_version == "b10068"
    assert found.engine_source == f"llama.cpp b10068, as the tag of {SERVER} says"


@pytest.mark.parametrize(
    ("options", "image", "words"),
    [
        ((), SERVER.replace("server", "full"), ("--server",)),
        (("--entrypoint", "/app/llama-server"), SERVER.replace("server", "light"), ()),
        ((), "local/llama.cpp:full-cuda", ("-s",)),
        ((), "registry:5000/mine@sha256:00", ("llama-server",)),
        ((), "mine:b9999", ("nice", "-n", "5", "./llama-server")),
        (("--entrypoint=llama-server",), "mine", ()),
    ],
)
def test_what_images_start(models: Path, options: tuple[str, ...], image: str, words: tuple[str, ...]) -> None:
    start = ("podman", "run", "--gpus=all", "-v", f"{models}:/m", *options, image, *words)
    found = check(*start, "-m", "/m/m.gguf", *FLAGS)
    assert found.backend == "llama" and found.context_tokens == 512
    assert next(pool.id for pool in found.memory.pools) == "GPU0"


def test_variables_come_from_the_command_alone(models: Path, tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("LLAMA_ARG_CTX_SIZE=256\nLLAMA_ARG_N_PARALLEL=1\n")
    words = ("docker", "run", "-v", f"{models}:/m", "--env-file", str(file), SERVER, "-m", "/m/m.gguf", "-ngl", "0")
    around = {"LLAMA_ARG_CTX_SIZE": "1024"}
    assert autofit.check(words, CARD, environ=around, settings=None).context_tokens == 256
    handed = (*words[:2], "-e", "LLAMA_ARG_CTX_SIZE", *words[2:])
    assert autofit.check(handed, CARD, environ=around, settings=None).context_tokens == 1024
    named = (*words[:4], "-e", "LLAMA_ARG_MODEL=/m/m.gguf", "-e", "LLAMA_ARG_CTX_SIZE=512", SERVER)
    assert autofit.check(named, CARD, settings=None).context_tokens == 512
    with pytest.raises(UsageError, match="No such file"):
        check("docker", "run", "--env-file", str(tmp_path / "none"), SERVER)


@pytest.mark.parametrize(
    ("given", "image", "seen"),
    [
        ("--gpus=all", SERVER, ["GPU0", "GPU1"]),
        ("--gpus=1", SERVER, ["GPU0"]),
        ("--gpus=device=1", SERVER, ["GPU1"]),
        ("--rm", SERVER, []),
        ("--device=/dev/dri", SERVER, []),
        ("--gpus=all", SERVER.replace("-cuda", ""), []),
        ("--gpus=all", SERVER.replace("cuda", "rocm"), []),
        ("--gpus=all", "vllm/vllm-openai:v0.17.0", ["GPU0", "GPU1"]),
        ("--gpus=all", "vllm/vllm-openai-rocm:v0.17.0", []),
    ],
)
def test_gpus_that_are_seen(given: str, image: str, seen: list[str]) -> None:
    inside = opened(("docker", "run", given, image, "-m", "x"), {}, may_ask=False)
    assert inside is not None
    machine = inside.machine(CARD)
    assert [device.id for device in machine.devices] == seen
    assert bool(set(machine.findings) - set(CARD.findings)) == (not seen)


def test_vulkan_drives_what_others_drive_too() -> None:
    inside = opened(("docker", "run", "--gpus", "all", SERVER.replace("cuda", "vulkan")), {}, may_ask=False)
    assert inside is not None
    assert {device.api for device in inside.machine(CARD).devices} == {"vulkan"}


@pytest.mark.parametrize("folder", ["/models", "/data/of/ours"])
def test_the_folder_to_mount_is_that_of_the_model(folder: str) -> None:
    with pytest.raises(UsageError) as refused:
        check("docker", "run", SERVER, "-m", f"{folder}/m.gguf")
    assert f"-v /path/of/models:{folder}," in (refused.value.hint or "")
    assert f"--map {folder}=" in (refused.value.hint or "")


def test_memory_limit_of_the_container() -> None:
    inside = opened(("docker", "run", "-m", "4g", SERVER), {}, may_ask=False)
    assert inside is not None
    assert inside.machine(CARD).host.available_bytes == 4 << 30
    small = replace(CARD, host=replace(CARD.host, available_bytes=1 << 30))
    assert inside.machine(small).host.available_bytes == 1 << 30


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((SERVER, "-m", "/models/m.gguf"), "inside the container, and no folder"),
        (("-v", "cache:/models", SERVER, "-m", "/models/m.gguf"), "in the volume cache"),
        ((SERVER, "-m", "m.gguf"), "/app/m.gguf is inside the container"),
        (("ubuntu", "bash", "-c", "llama-server"), "starts a shell"),
        (("ubuntu",), "nothing says what the image ubuntu starts"),
        (("mine", "-m", "x.gguf"), "not known which program of it takes -m"),
        (("ghcr.io/ggml-org/llama.cpp:full", "--quantize", "x"), "no program that is planned for"),
        (("ollama/ollama", "ollama", "serve"), "Ollama"),
        (("--gpus", "3", SERVER, "-m", "/m/m.gguf"), "there are 2 GPUs"),
        (("--gpus", "device=5", SERVER, "-m", "/m/m.gguf"), "no device '5'"),
        (("--gpus", "1", "-e", "CUDA_VISIBLE_DEVICES=0", SERVER), "by name or number"),
        (("rocm/vllm",), "starts what stands behind it"),
    ],
)
def test_refused(models: Path, words: tuple[str, ...], says: str) -> None:
    mounted = ("-v", f"{models}:/m") if "/m/m.gguf" in words else ()
    with pytest.raises(UsageError, match=says.replace("/", "[/]")):
        check("docker", "run", *mounted, *words)


def test_repositories_are_no_paths() -> None:
    inside = opened(("docker", "run", "vllm/vllm-openai:v0.17.0", "--model", "org/name"), {}, may_ask=False)
    assert inside is not None and inside.argv == ("vllm", "serve", "--model", "org/name")
    assert inside.reference("org/name") == "org/name"
    assert inside.reference("hf:org/name") == "hf:org/name"


def runner(folder: Path, config: object) -> Path:
    """A `docker` that says this of every image, and starts nothing."""
    program = folder / "docker"
    answer = json.dumps(config)
    program.write_text(f'#!/bin/sh\n[ "$1 $2" = "image inspect" ] || exit 9\ncat <<"END"\n{answer}\nEND\n')
    program.chmod(0o755)
    return program


def test_runner_is_asked_what_an_image_starts(models: Path, tmp_path: Path) -> None:
    config = {
        "Entrypoint": ["/app/llama-server"],
        "Cmd": ["--help"],
        "Env": ["LLAMA_ARG_CTX_SIZE=256", "PATH=/bin"],
        "Labels": {"org.opencontainers.image.version": "b9842"},
        "WorkingDir": "/m",
    }
    command = (str(runner(tmp_path, config)), "run", "-v", f"{models}:/m", "mine:latest", "-m", "m.gguf")
    inside = opened(command, {"PATH": "/nowhere"}, may_ask=True)
    assert inside is not None
    assert inside.argv == ("/app/llama-server", "-m", "m.gguf")
    assert inside.environ["LLAMA_ARG_CTX_SIZE"] == "256"
    assert inside.reference("m.gguf") == str(models / "m.gguf")
    backend = autofit.host.host().backend("llama")
    assert inside.engine(backend).version == "b9842"
    assert opened((*command[:2], SERVER), {}, may_ask=True).label is None  # type: ignore[union-attr] - its tag says it


@pytest.mark.parametrize("config", [[], 1, None, {"Entrypoint": 7, "Labels": [], "Env": "x", "Cmd": [1]}])
def test_answers_that_are_none(tmp_path: Path, config: object) -> None:
    command = (str(runner(tmp_path, config)), "run", "mine", "llama-server", "-m", "x")
    inside = opened(command, {}, may_ask=True)
    assert inside is not None and inside.argv == ("llama-server", "-m", "x") and inside.label is None


def test_command_line(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["docker", "run", "--gpus", "all", "-v", f"{models}:/m", SERVER, "-m", "/m/m.gguf", *FLAGS]
    assert main(["check", "--on", "rtx-3090", "--ram", "64GiB", "--", *command]) == 0
    out, err = capsys.readouterr()
    assert out.split() == command
    assert f"as the tag of {SERVER} says" in err
