"""A command that starts a container, taken apart."""

from __future__ import annotations

import pytest
from autofit.errors import UsageError
from autofit.text.containers import Container, Gpus, Mount, container_of, env_file, repository_of, tag_of
from hypothesis import given
from hypothesis import strategies as st

IMAGE = "ghcr.io/ggml-org/llama.cpp:server-cuda-b10068"


def read(words: str) -> Container:
    found = container_of(tuple(words.split()))
    assert found is not None
    return found


def test_options_end_at_the_image() -> None:
    found = read(f"docker run --rm -it -p 8080:8080 --name=x --gpus all {IMAGE} -m /models/m.gguf --gpus 3")
    assert found.image == IMAGE
    assert found.words == ("-m", "/models/m.gguf", "--gpus", "3")
    assert found.nvidia == Gpus()
    assert found.prefix[-1] == IMAGE


@pytest.mark.parametrize(
    "written", ["-v /data:/models", "-v/data:/models", "-itv /data:/models:ro", "--volume=/data/:/models/"]
)
def test_spellings_of_a_mount(written: str) -> None:
    assert read(f"docker run {written} {IMAGE}").mounts == (Mount(target="/models", source="/data"),)


def test_mount_with_keys() -> None:
    [mount] = read(f"docker run --mount type=bind,src=/data,dst=/models,readonly {IMAGE}").mounts
    assert (mount.source, mount.target) == ("/data", "/models")
    [volume] = read(f"docker run --mount source=cache,target=/models {IMAGE}").mounts
    assert volume.source is None and "cache" in volume.name


@pytest.mark.parametrize(
    ("written", "gpus"),
    [
        ("--gpus all", Gpus()),
        ("--gpus=2", Gpus(count=2)),
        ("--gpus device=1", Gpus(words=("1",))),
        ('--gpus "device=0,2"', Gpus(words=("0", "2"))),
        ("--gpus all,capabilities=utility", Gpus()),
        ("--device nvidia.com/gpu=all", Gpus()),
        ("--device nvidia.com/gpu=0 --device=nvidia.com/gpu=1", Gpus(words=("0", "1"))),
        ("--runtime nvidia", Gpus()),
        ("--runtime=nvidia -e NVIDIA_VISIBLE_DEVICES=1,2", Gpus(words=("1", "2"))),
        ("--runtime=nvidia -e NVIDIA_VISIBLE_DEVICES=void", None),
        ("--device /dev/dri", None),
        ("", None),
    ],
)
def test_gpus_of_nvidia(written: str, gpus: Gpus | None) -> None:
    assert read(f"podman run {written} {IMAGE}").nvidia == gpus


@pytest.mark.parametrize(
    ("written", "gpus"),
    [
        ("--device /dev/kfd --device /dev/dri", Gpus()),
        ("--device=/dev/dri:/dev/dri:rw", Gpus()),
        ("--privileged", Gpus()),
        ("--device amd.com/gpu=all", Gpus()),
        ("--gpus all", None),
    ],
)
def test_gpus_of_other_makers(written: str, gpus: Gpus | None) -> None:
    assert read(f"docker run {written} {IMAGE}").others == gpus


@pytest.mark.parametrize(("written", "size"), [("8g", 8 << 30), ("512m", 512 << 20), ("1.5GiB", 3 << 29), ("7", 7)])
def test_memory_limit(written: str, size: int) -> None:
    assert read(f"docker run -m {written} {IMAGE}").memory_bytes == size


def test_variables() -> None:
    found = read(f"docker run -e A=1 --env B -eC=x=y -e D {IMAGE}")
    assert found.variables({"B": "2", "E": "5"}) == {"A": "1", "B": "2", "C": "x=y"}
    assert env_file("# note\nA=1\n\n  B\n") == (("A", "1"), ("B", None))


def test_paths_both_ways() -> None:
    found = read(f"docker run -v /data:/models -v /data/deep:/models/deep -v /lora:/l {IMAGE}")
    for inside, outside in [
        ("/models/m.gguf", "/data/m.gguf"),
        ("/models/deep/m.gguf", "/data/deep/m.gguf"),
        ("/models/a.gguf,/l/b.gguf:0.5", "/data/a.gguf,/lora/b.gguf:0.5"),
        ('{"model": "/l/draft"}', '{"model": "/lora/draft"}'),
        ("--model=/models", "--model=/data"),
        ("/modelsX/m.gguf", "/modelsX/m.gguf"),
        ("x/models/m.gguf", "x/models/m.gguf"),
    ]:
        assert found.outside(inside) == outside
        assert found.inside(outside) == inside


def test_the_whole_host_mounted() -> None:
    found = read(f"docker run -v /:/host {IMAGE}")
    assert found.outside("/host/data/m.gguf") == "/data/m.gguf"
    assert found.inside("/data/m.gguf") == "/host/data/m.gguf"


def test_entrypoint_of_podman_is_a_list() -> None:
    found = container_of(("podman", "run", "--entrypoint", '["/app/llama-server", "-v"]', IMAGE))
    assert found is not None and found.entrypoint == ("/app/llama-server", "-v")
    assert read(f"docker run --entrypoint= {IMAGE}").entrypoint == ()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("docker run", "no image"),
        ("docker run --rm", "no image"),
        ("docker exec box llama-server", "exec"),
        ("docker compose up", "compose"),
        ("docker", "nothing"),
        ("docker --context far run image", "another machine"),
        ("docker run --fresh x image", "--fresh is an unknown"),
        ("docker run -y image", "-y is an unknown"),
        ("docker run -e", "a value is expected"),
        ("docker run --gpus device=0,1 image", "docker refuses"),
        ("docker run --gpus some image", "neither all nor a number"),
        ("docker run --gpus 0 image", "neither all nor a number"),
        ("docker run --device /dev/dri/renderD129 image", "cannot be told"),
        ("docker run -m lots image", "not a size"),
        ("docker run -v /data:models image", "begins with /"),
        ("docker run --volumes-from other image", "another container"),
        ("podman run --entrypoint [1] image", "neither a program nor JSON"),
        ("docker run $IMAGE", "names no image"),
    ],
)
def test_refused(words: str, says: str) -> None:
    with pytest.raises(UsageError, match=says.replace("$", r"\$")):
        container_of(tuple(words.split()))


def test_other_programs_start_no_container() -> None:
    assert container_of(("llama-server", "run", "x")) is None
    assert container_of(()) is None


@pytest.mark.parametrize(
    ("image", "name", "tag"),
    [
        (IMAGE, "ghcr.io/ggml-org/llama.cpp", "server-cuda-b10068"),
        ("localhost:5000/vllm", "localhost:5000/vllm", ""),
        ("vllm/vllm-openai:v0.17.0@sha256:1234", "vllm/vllm-openai", "v0.17.0"),
    ],
)
def test_name_and_tag(image: str, name: str, tag: str) -> None:
    assert (repository_of(image), tag_of(image)) == (name, tag)


WORDS = st.sampled_from(
    [
        "-v",
        "--gpus",
        "all",
        "--rm",
        "-it",
        "/a:/b",
        "image",
        "--",
        "-",
        "",
        "-e",
        "A=1",
        "--env=",
        "--mount",
        "a=b",
        "=",
    ]
) | st.text(max_size=12)


@given(st.lists(WORDS, max_size=8))
def test_any_words_are_read_or_refused(words: list[str]) -> None:
    try:
        found = container_of(("docker", "run", *words))
    except UsageError:
        return
    assert found is not None
    assert (*found.prefix, *found.words) == ("docker", "run", *words)
