from __future__ import annotations

from pathlib import Path

import pytest
from autofit.deployments.reading import read_commands
from autofit.deployments.written import Written
from autofit.errors import UsageError
from autofit.text.launchers import unwrap

IMAGE = "example.org/engine:server"


def is_engine(argv: tuple[str, ...]) -> bool:
    if argv[:1] == ("docker",):
        return IMAGE in argv
    words = unwrap(argv).argv
    return bool(words) and words[0].rpartition("/")[2] == "engine"


def read(
    folder: Path,
    name: str,
    text: str,
    environ: dict[str, str] | None = None,
    mapped: tuple[tuple[str, str], ...] = (),
) -> tuple[Written, ...]:
    (folder / name).write_text(text)
    return read_commands(str(folder / name), is_engine, environ or {}, mapped)


def argv_of(found: tuple[Written, ...]) -> list[str]:
    return [" ".join(one.argv) for one in found]


COMPOSE = f"""
x-common: &common
  image: {IMAGE}
  deploy: {{resources: {{reservations: {{devices: [{{driver: nvidia, count: 2, capabilities: [gpu]}}]}}}}}}
services:
  one:
    <<: *common
    volumes: ["./models:/models:ro", {{type: bind, source: /data, target: /data}}, {{type: tmpfs, target: /tmp}}]
    environment:
      CTX: "${{CTX:-16384}}"
      HF_TOKEN: secret
    command: -m "/models/${{NAME}}.gguf" -n $$5
  two:
    image: {IMAGE}
    runtime: nvidia
    environment: [A=1, INHERITED, GONE]
    entrypoint: ["engine", "serve"]
    working_dir: /w
    command: ["-c", "${{CTX-1}}", "${{NOPE}}"]
  three:
    image: {IMAGE}
    gpus: [{{device_ids: ["0", "3"], capabilities: [gpu]}}]
    command: sh -c "exec engine -m $$M"
  database: {{image: postgres:16}}
  built: {{build: .}}
"""


def test_compose(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("# names\nNAME='tiny'\nCTX=1\n")
    found = read(tmp_path, "docker-compose.yml", COMPOSE, {"CTX": "32768", "INHERITED": "x"})
    assert argv_of(found) == [
        f"docker run --gpus 2 -e CTX=32768 -v ./models:/models:ro -v /data:/data {IMAGE} -m /models/tiny.gguf -n $5",
        f"docker run --gpus all -e A=1 -e INHERITED=x -w /w --entrypoint engine {IMAGE} serve -c 32768 \0",
        f'docker run --gpus "device=0,3" --entrypoint engine {IMAGE} -m \0',
    ]
    assert [one.unknown for one in found] == [None, "$NOPE is not set here", "$M is not set here"]
    assert [one.line for one in found] == [12, 19, 23]
    assert {one.directory for one in found} == {str(tmp_path)}


KUBERNETES = f"""
apiVersion: v1
kind: List
items:
- kind: Deployment
  spec:
    template:
      spec:
        volumes: [{{name: m, hostPath: {{path: /srv/models}}}}, {{name: shm, emptyDir: {{}}}}]
        containers:
        - name: a
          image: {IMAGE}
          args: ["-m", "/models/$(NAME).gguf", "--port", "$(PORT)", "$$(NAME)"]
          env:
          - {{name: NAME, value: tiny}}
          - {{name: PORT, valueFrom: {{fieldRef: {{}}}}}}
          - {{name: API_KEY, value: secret}}
          volumeMounts: [{{name: m, mountPath: /models}}, {{name: shm, mountPath: /dev/shm}}]
          resources: {{limits: {{nvidia.com/gpu: 2, memory: 4Gi}}}}
        - name: side
          image: busybox
---
kind: Pod
spec:
  containers:
  - image: {IMAGE}
    command: ["/bin/sh", "-c"]
    args:
    - |
      set -e
      exec engine -m $M \\
        -c 1
    env: [{{name: M, value: x}}]
"""


def test_kubernetes(tmp_path: Path) -> None:
    found = read(tmp_path, "all.yaml", KUBERNETES)
    assert argv_of(found) == [
        (
            "docker run --gpus 2 -e NAME=tiny --memory 4294967296b -v /srv/models:/models "
            f"{IMAGE} -m /models/tiny.gguf --port \0 $(NAME)"
        ),
        f"docker run -e M=x --entrypoint engine {IMAGE} -m x -c 1",
    ]
    assert found[0].unknown == "$(PORT) has its value in the cluster alone"


def test_a_folder_of_models_stands_for_that_of_a_container(tmp_path: Path) -> None:
    here = tmp_path / "headers"
    (first, _) = read(tmp_path, "all.yaml", KUBERNETES, mapped=(("/models", str(here)),))
    assert f"-v {here}:/models {IMAGE} -m /models/tiny.gguf" in " ".join(first.argv)
    script = (
        "engine -m /srv/m/x.gguf --model=/srv/m -d /srv/more\ndocker run -v /srv/m:/m example.org/engine:server -m /m/x"
    )
    found = read(tmp_path, "start.sh", script, mapped=(("/srv/m/", str(here)),))
    assert argv_of(found) == [
        f"engine -m {here}/x.gguf --model={here} -d /srv/more",
        f"docker run -v {here}:/m {IMAGE} -m /m/x",
    ]


def test_dockerfile(tmp_path: Path) -> None:
    text = (
        '# syntax=docker/dockerfile:1\nARG TAG=server\nFROM example.org/engine:$TAG AS base\nENV A=1 B="x y"\n'
        "FROM base\nARG N=9\nENV C=${N} D ignored\nRUN <<EOF\nCMD no\nEOF\nWORKDIR /w\n"
        'CMD ["-m", "/x.gguf", \\\n  # text\n  "-c", "4096"]\n'
    )
    (found,) = read(tmp_path, "Dockerfile", text)
    assert argv_of((found,)) == [
        f"docker run --gpus all --privileged -e A=1 -e B=x y -e C=9 -w /w {IMAGE} -m /x.gguf -c 4096"
    ]
    assert found.line == 12
    (found,) = read(tmp_path, "x.dockerfile", "FROM ubuntu\nENV M x\nENTRYPOINT exec engine -m $M\n")
    assert (found.argv, found.environ) == (("exec", "engine", "-m", "x"), (("M", "x"),))
    (found,) = read(tmp_path, "Dockerfile.gpu", 'FROM ubuntu\nENTRYPOINT ["engine"]\nCMD ["-c", "1"]\n')
    assert found.argv == ("engine", "-c", "1")
    assert read(tmp_path, "Dockerfile", "FROM ubuntu\nRUN engine -c 1\n") == ()


def test_systemd(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("# text\nPORT=1\nMORE=-b 2\n")
    text = (
        "[Unit]\nExecStart=engine no\n[Service]\n"
        f'Environment="CTX=81 92" M=%h/x.gguf\nEnvironmentFile=-{tmp_path}/env\n'
        "EnvironmentFile=-/nowhere\nExecStartPre=engine no\nExecStart=engine first\nExecStart=\n"
        "ExecStart=-/usr/bin/engine -m ${M} \\\n  # text\n  -c '${CTX}' $MORE $$x 100%% --port $PORT --name %i\n"
        "[Install]\n"
    )
    (found,) = read(tmp_path, "engine.service", text, {"HOME": "/home/x"})
    assert argv_of((found,)) == ["/usr/bin/engine -m /home/x/x.gguf -c 81 92 -b 2 $x 100% --port 1 --name \0"]
    assert (found.argv[4], found.line, found.directory) == ("81 92", 10, "/")
    assert found.unknown == "%i has its value in the running unit alone"
    (found,) = read(
        tmp_path, "x.service", '[Service]\nWorkingDirectory=/w\nExecStart=/bin/sh -c "engine -c 1 > /log"\n'
    )
    assert found.argv == ("engine", "-c", "1")


def test_swap(tmp_path: Path) -> None:
    text = (
        "startPort: 9000\nmacros:\n  srv: engine --port ${PORT}\n  more: ${srv} -b 1\nmodels:\n  tiny:\n"
        "    macros: {ctx: 4096}\n    env: [A=1]\n    cmd: |\n      ${more}\n      # text\n"
        "      -m '${MODEL_ID}.gguf' \\\n"
        "      -c ${ctx}\n  b: {cmd: 'engine -m ${env.DIR}/x -n ${gone}'}\n  c: {cmd: other}\n"
    )
    found = read(tmp_path, "config.yaml", text, {"DIR": "/d"})
    assert argv_of(found) == ["engine --port 9000 -b 1 -m tiny.gguf -c 4096", "engine -m /d/x -n \0"]
    assert (found[0].environ, found[0].line, found[1].unknown) == ((("A", "1"),), 9, "${gone} is not set here")
    with pytest.raises(UsageError, match="macros grow"):
        read(tmp_path, "config.yaml", "macros: {a: '" + "${a}" * 100 + "'}\nmodels: {x: {cmd: '${a}'}}\n")


def test_procfile(tmp_path: Path) -> None:
    found = read(tmp_path, "Procfile", "# text\nweb: other\nserver: cd w && engine -m x --port $PORT\n", {"PORT": "1"})
    assert found == (Written(line=3, argv=("engine", "-m", "x", "--port", "1"), directory=f"{tmp_path}/w"),)


def test_secrets_of_the_surroundings_stay_there(tmp_path: Path) -> None:
    (found,) = read(tmp_path, "a.sh", "engine --api-key $MY_API_KEY -m $M", {"MY_API_KEY": "hush", "M": "x"})
    assert found.argv == ("engine", "--api-key", "\0", "-m", "x")


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b"engine\0", "zero bytes"),
        (b"x" * ((1 << 20) + 1), "larger than"),
        (b"engine '", "line 1: a ' without its end"),
    ],
)
def test_what_is_no_script_is_refused(tmp_path: Path, data: bytes, cause: str) -> None:
    (tmp_path / "a.sh").write_bytes(data)
    with pytest.raises(UsageError, match=f"a.sh: .*{cause}"):
        read_commands(str(tmp_path / "a.sh"), is_engine, {})


@pytest.mark.parametrize("text", ["a: [", "- x\n y: :", 'services: {a: {image: x, command: "\'"}}', "a: &a {b: *a}"])
def test_what_is_no_yaml_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"a\.yaml"):
        read(tmp_path, "a.yaml", text)


@pytest.mark.parametrize("text", ["", "[]", "1", "services: 1", "services: {a: }", "models: {a: 1}", "containers: [1]"])
def test_yaml_without_commands(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, "a.yaml", text) == ()


def test_a_shell_inside_of_a_unit_has_its_variables_and_its_folder(tmp_path: Path) -> None:
    text = (
        "[Service]\nWorkingDirectory=/opt/x\nEnvironment=CUDA_VISIBLE_DEVICES=1 M=m.gguf\n"
        "ExecStart=/bin/bash -lc 'cd y && exec ./engine -m $$M --name %i'\n"
    )
    (found,) = read(tmp_path, "x.service", text, {"HOME": "/home/x"})
    assert found.argv == ("exec", "./engine", "-m", "m.gguf", "--name", "\0")
    assert dict(found.environ) == {"CUDA_VISIBLE_DEVICES": "1", "M": "m.gguf"}
    assert found.directory == "/opt/x/y"
    assert found.unknown == "%i has its value in the running unit alone"


def test_a_shell_of_a_swapped_model(tmp_path: Path) -> None:
    text = "models:\n  a:\n    env: [A=1]\n    cmd: |\n      bash -c 'cd /x && engine -m $A --port ${PORT}'\n"
    (found,) = read(tmp_path, "config.yaml", text)
    assert (found.argv, found.environ, found.directory) == (
        ("engine", "-m", "1", "--port", "5800"),
        (("A", "1"),),
        "/x",
    )


def test_variables_of_files_that_a_service_names(tmp_path: Path) -> None:
    (tmp_path / "a.env").write_text("CTX=1\nNAME='x y' # no\nB=2 # text\nexport C=\"3\"\n#D=4\nMY_TOKEN=hush\n")
    text = (
        f"services:\n  a:\n    image: {IMAGE}\n    env_file: [a.env, {{path: none, required: false}}]\n"
        "    environment: {B: 5}\n    command: -c 1\n"
        "  b: {build: ., env_file: ./a.env, command: engine -c 2}\n"
        "  c: {build: ., command: bash -c 'engine -c 3'}\n"
    )
    first, *built = read(tmp_path, "compose.yaml", text)
    assert first.argv[2:10] == ("-e", "CTX=1", "-e", "NAME=x y", "-e", "B=5", "-e", "C=3")
    assert [one.argv for one in built] == [("engine", "-c", "2"), ("engine", "-c", "3")]
    assert dict(built[0].environ)["B"] == "2"


def test_a_stage_has_what_the_one_before_has(tmp_path: Path) -> None:
    text = (
        'FROM ubuntu AS Base\nARG N=1\nENV M=x N=$N\nWORKDIR /a\nENTRYPOINT\t["engine", "-c", "1"]\n'
        "FROM base\nARG N\nENV C=$N\nWORKDIR b\n"
    )
    (found,) = read(tmp_path, "Dockerfile", text)
    assert (found.argv, found.line) == (("engine", "-c", "1"), 5)
    assert dict(found.environ) == {"M": "x", "N": "1", "C": "1"}


def test_separators_of_unicode_end_no_line(tmp_path: Path) -> None:
    text = "[Service]\nEnvironment=A=1\x85\u2028\n\nExecStart=engine -c $A\n"
    (found,) = read(tmp_path, "x.service", text)
    assert (found.line, found.argv) == (4, ("engine", "-c", "1"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Dockerfile", "FROM x\nENV A=" + "x" * 1000 + "\n" + "ENV A=$A$A\n" * 40),
        ("Dockerfile", "FROM x\n" + "".join(f"ENV A{n}=1\n" for n in range(2000))),
        ("a.service", "[Service]\n" + "ExecStart=engine\n" * 2000),
        ("a.service", "[Service]\n" + "".join(f"Environment=A{n}=1\n" for n in range(2000))),
        ("Procfile", "a: x\n" * 2000),
        ("a.sh", "x " * 200_000),
        ("a.sh", "set -a\n" + "".join(f"A{n}=1\n" for n in range(2000)) + "engine\n"),
        ("a.yaml", "services:\n a: {image: x, command: '" + "${A:-" * 100_000 + "'}"),
        ("a.yaml", f"containers:\n- &a {{image: {IMAGE}, args: [x]}}\n" + "- *a\n" * 2000),
    ],
)
def test_files_without_measure_are_refused(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(UsageError, match=r"line \d+: .*(?:more than|beyond)"):
        read(tmp_path, name, text)


@pytest.mark.parametrize(
    ("limit", "given"),
    [
        ("4Gi", "4294967296b"),
        ("20G", "20000000000b"),
        ("1.5Mi", "1572864b"),
        ("2e3", "2000b"),
        ("128000m", "128b"),
        ("0", None),
        ("1Ei", None),
        ("x", None),
        ("-1Gi", None),
        ("1" * 60, None),
    ],
)
def test_limits_of_memory_in_kubernetes(tmp_path: Path, limit: str, given: str | None) -> None:
    text = f"containers:\n- image: {IMAGE}\n  args: [x]\n  resources: {{limits: {{memory: '{limit}'}}}}\n"
    (found,) = read(tmp_path, "pod.yaml", text)
    assert found.argv[2:-2] == (() if given is None else ("--memory", given))


@pytest.mark.parametrize(
    ("service", "given"),
    [
        ("mem_limit: 8g", "8g"),
        ("mem_limit: ${M:-512MB}", "512m"),
        ("mem_limit: 1048576", "1048576b"),
        ("deploy: {resources: {limits: {memory: 24G}}}", "24g"),
        ("mem_limit: 0", None),
    ],
)
def test_limits_of_memory_in_compose(tmp_path: Path, service: str, given: str | None) -> None:
    text = f"services:\n  a:\n    image: {IMAGE}\n    command: x\n    {service}\n"
    (found,) = read(tmp_path, "compose.yaml", text)
    assert found.argv[2:-2] == (() if given is None else ("--memory", given))


QUADLET = f"""
[Unit]
Description=engine

[Container]
Image={IMAGE}
Exec=-m "/models/a b.gguf" \\
  -c 4096
Volume=./models:/models:ro,z
Volume=/data:/data
Environment=A=1 "B=two words"
AddDevice=nvidia.com/gpu=0
AddDevice=-nvidia.com/gpu=2
AddDevice=/dev/dri:/dev/dri
PodmanArgs=--memory=4g --shm-size 1g
WorkingDir=/w

[Service]
Exec=nothing
"""


def test_containers_of_quadlet(tmp_path: Path) -> None:
    (one,) = read(tmp_path, "engine.container", QUADLET)
    assert one.line == 7
    assert one.directory == str(tmp_path)
    expected = ["docker", "run", "--gpus", "device=0,2", "--device", "/dev/dri", "-e", "A=1", "-e", "B=two words"]
    expected += ["--memory", "4g", "-v", f"{tmp_path}/./models:/models:ro,z", "-v", "/data:/data", "-w", "/w"]
    assert list(one.argv) == [*expected, IMAGE, "-m", "/models/a b.gguf", "-c", "4096"]


@pytest.mark.parametrize(
    ("text", "argv"),
    [
        ("[Container]\nExec=-m a\n", []),
        ("[Container]\nImage=postgres\nExec=-m a\n", []),
        (f"[Container]\nImage={IMAGE}\n", [f"docker run {IMAGE}"]),
        (f"[Container]\nImage={IMAGE}\nAddDevice=nvidia.com/gpu=all\n", [f"docker run --gpus all {IMAGE}"]),
        (f"[Container]\nImage={IMAGE}\nPodmanArgs=--gpus 2\n", [f"docker run --gpus 2 {IMAGE}"]),
        (
            f"[Container]\nImage={IMAGE}\nEntrypoint=engine\nExec=serve\n",
            [f"docker run --entrypoint engine {IMAGE} serve"],
        ),
        ("", []),
        ("[Container]\nImage=\nImage\n=x\n", []),
    ],
)
def test_what_quadlet_says_of_a_container(text: str, argv: list[str], tmp_path: Path) -> None:
    assert argv_of(read(tmp_path, "x.container", text)) == argv


def test_what_only_a_running_unit_knows_is_said(tmp_path: Path) -> None:
    (one,) = read(tmp_path, "x.container", f"[Container]\nImage={IMAGE}\nExec=-m %i\n")
    assert one.unknown == "%i has its value in the running unit alone"


@pytest.mark.parametrize(
    ("row", "argv"),
    [
        ("tmux new-session -d -s llm 'engine -m a.gguf -c 4096'", ["engine -m a.gguf -c 4096"]),
        ("tmux -L x new -ds llm -c /w engine -m 'a b'", ["engine -m a b"]),
        ('tmux send-keys -t llm "engine -m $M" C-m', ["engine -m given"]),
        ("tmux send-keys -t llm 'cd /w' Enter 'engine -m b' Enter 'engine -m c'", ["engine -m b"]),
        ("tmux new -d 'engine -m a' \\; split-window -h 'engine -m b'", ["engine -m a", "engine -m b"]),
        ("tmux new-session -d -e A=1 'exec engine -m a'", ["exec engine -m a"]),
        ("tmux attach -t llm", []),
        ("tmux", []),
        ("tmux new -d -s", []),
        ("tmux send-keys 'engine -m b'", []),
    ],
)
def test_what_tmux_starts(row: str, argv: list[str], tmp_path: Path) -> None:
    found = read(tmp_path, "start.sh", f"M=given\n{row}\n")
    assert argv_of(found) == argv


def test_variables_that_tmux_sets_come_along(tmp_path: Path) -> None:
    (one,) = read(tmp_path, "start.sh", "tmux new -d -e CUDA_VISIBLE_DEVICES=1 -c /w engine -m a\n")
    assert one.environ == (("CUDA_VISIBLE_DEVICES", "1"),)
    assert one.directory == "/w"


def test_a_procfile_has_an_end(tmp_path: Path) -> None:
    rows = [f"p{n}: {'a; ' * 130}" for n in range(1000)]
    with pytest.raises(UsageError, match=r"line 77: more than 20000 words in a Procfile"):
        read(tmp_path, "Procfile", "\n".join(rows))
    assert argv_of(read(tmp_path, "Procfile", f"web: engine -m {'a' * 100_000}\n")) == ["engine -m " + "a" * 100_000]
