"""`autofit check --from`: one verdict for each command of an engine that files start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from autofit.cli.main import main

from support import ROOT

ON = ("--on", "rtx-3090", "--ram", "64GiB")
LARGE = "llama-server -m example:mixtral-8x22b-q4_k_m -ngl 99 -fit off"
SMALL = "llama-server -m example:tiny -ngl 99 -c 4096"


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nonexistent")

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["check", *ON, *words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def write(name: str, text: str) -> None:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text(text)


def test_a_script(check) -> None:  # type: ignore[no-untyped-def]
    write("start.sh", f"#!/bin/sh\nexport LLAMA_ARG_THREADS=4\n{SMALL} --port $PORT --api-key $SECRET_KEY\n")
    code, out, err = check("--from", "start.sh")
    assert (code, err) == (0, "")
    assert out.startswith("start.sh:3: fits: GPU0 ")
    assert " used of 23" in out


def test_the_worst_verdict_is_the_exit_code(check) -> None:  # type: ignore[no-untyped-def]
    write("a.sh", f"{SMALL}\n{LARGE}\n")
    write("b.sh", "llama-server -m $NOWHERE\nllama-server -m gone.gguf\nllama-server -m example:tiny --no-such-flag\n")
    write("c.sh", "echo nothing\n")
    code, out, err = check("--from", "a.sh", "b.sh", "--from", "c.sh")
    assert code == 3
    lines = out.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        ["a.sh:1", "fits"],
        ["a.sh:2", "does not fit"],
        ["b.sh:1", "not checked"],
        ["b.sh:2", "not checked"],
        ["b.sh:3", "not checked"],
    ]
    assert "$NOWHERE is not set here" in lines[2]
    assert "gone.gguf" in lines[3]
    assert "--no-such-flag" in lines[4]
    assert err == "autofit: c.sh: no command of an engine\n"
    assert check("--from", "b.sh")[0] == 2


def test_json(check) -> None:  # type: ignore[no-untyped-def]
    write("s.sh", f"export A=1 HF_TOKEN=hush\n{SMALL}\nllama-server -m x -c $(x)\n")
    code, out, _ = check("--from", "s.sh", "--format", "json")
    first, second = json.loads(out)["commands"]
    assert code == 2
    assert (first["file"], first["line"], first["exit_code"], first["env"]) == ("s.sh", 2, 0, {"A": "1"})
    assert first["argv"] == SMALL.split()
    assert first["plan"]["fits"]
    assert second["plan"] is None
    assert second["error"]["type"] == "UsageError"
    assert second["argv"][-1] == "?"
    assert "hush" not in out


def test_commands_start_in_their_folders(check, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    write("sub/vllm.yaml", "max-model-len: 10\n")
    write("sub/run.sh", 'cd "$(dirname "$0")"\nvllm serve x --config vllm.yaml\n')
    _, out, _ = check("--from", "sub/run.sh")
    assert "vllm.yaml" not in out
    assert Path.cwd() == tmp_path


def test_containers_of_a_compose_file_with_headers_here(check) -> None:  # type: ignore[no-untyped-def]
    from autofit.sources.examples import find_example

    Path("headers").mkdir()
    Path("headers/tiny.gguf").write_bytes(Path(find_example("tiny")).read_bytes())
    image = "ghcr.io/ggml-org/llama.cpp:server-cuda-b11311"
    service = f"services:\n  llm:\n    image: {image}\n    gpus: all\n    command: -m /models/tiny.gguf -ngl 99\n"
    write("compose.yaml", service)
    assert check("--from", "compose.yaml")[0] == 2
    code, out, _ = check("--from", "compose.yaml", "--map", "/models=headers")
    assert (code, out.partition(": GPU0")[0]) == (0, "compose.yaml:5: fits")
    code, out, _ = check("--from", "compose.yaml", "--map", "/models=headers", "--explain", "--format", "json")
    assert json.loads(out)["commands"][0]["plan"]["engine_version"] == "b11311"


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (("--from", "none.sh"), "none.sh: No such file"),
        (("--from", "empty.sh"), "empty.sh: no command of an engine in it"),
        (("--from", "empty.sh", "--", "llama-server"), "files and a command"),
        (("--from", "empty.sh", "--format", "nul"), "no format 'nul'"),
        (("--from", "empty.sh", "--map", "x"), "not PATH=HERE"),
        (("--from", "empty.sh", "--map", "/x=none"), "no such file or folder: none"),
    ],
)
def test_refused(check, words: tuple[str, ...], cause: str) -> None:  # type: ignore[no-untyped-def]
    write("empty.sh", "true\n")
    code, out, err = check(*words)
    assert (code, out) == (2, "")
    assert cause in err


def test_a_file_without_commands_is_told_once(check) -> None:  # type: ignore[no-untyped-def]
    write("empty.sh", "true\n")
    write("other.sh", "true\n")
    _, _, err = check("--from", "empty.sh")
    assert err.count("no command of an engine") == 1
    code, _, err = check("--from", "empty.sh", "--if-any")
    assert (code, err) == (0, "autofit: empty.sh: no command of an engine\n")
    _, _, err = check("--from", "empty.sh", "other.sh")
    assert "other.sh: no command of an engine\n" in err


def test_a_name_that_a_terminal_would_act_on(check) -> None:  # type: ignore[no-untyped-def]
    write("\x1b[31m.sh", SMALL)
    _, out, _ = check("--from", "\x1b[31m.sh")
    assert "\x1b" not in out


# -- a server of several models ------------------------------------------------------------------

ROUTER = ("--", "llama-server", "--models-preset", "models.ini")
TINY = str(ROOT / "autofit/_models/tiny.gguf")


def test_every_model_of_a_router(check) -> None:  # type: ignore[no-untyped-def]
    write(
        "models.ini",
        f"version = 1\n[*]\nctx-size = 512\n[one]\nmodel = {TINY}\nn-gpu-layers = 0\n[two]\nmodel = gone.gguf\n",
    )
    code, out, _ = check(*ROUTER, "-ngl", "99", "--port", "9000")
    assert code == 2
    assert [line.split(": ")[:2] for line in out.splitlines()] == [
        ["models.ini:4", "fits"],
        ["models.ini:7", "not checked"],
    ]
    code, out, _ = check("--format", "json", *ROUTER, "-ngl", "99", "--port", "9000")
    one, two = json.loads(out)["commands"]
    assert one["argv"] == ["llama-server", "--ctx-size", "512", "--model", TINY, "-ngl", "99"]
    assert "gone.gguf" in two["error"]["message"]


def test_models_of_a_router_that_fit_alone_and_not_together(check) -> None:  # type: ignore[no-untyped-def]
    row = "model = example:llama-3.1-8b-q4_k_m\nn-gpu-layers = 99\nfit = off\nctx-size = 32768\n"
    write("models.ini", "".join(f"[m{n}]\n{row}" for n in range(5)))
    code, out, _ = check(*ROUTER)
    assert code == 3
    *each, together = out.splitlines()
    assert [line.split(": ")[1] for line in each] == ["fits"] * 5
    assert together.startswith("models.ini: does not fit: 4 of these models may be loaded at once and take ")
    assert together.endswith("; --models-max 1 loads one")
    code, out, _ = check(*ROUTER, "--models-max", "1")
    assert (code, len(out.splitlines())) == (0, 5)


@pytest.mark.parametrize(
    ("text", "words", "cause"),
    [
        (None, ROUTER, "--models-preset models.ini: No such file"),
        ("[x]\nnonsense\n", ROUTER, "line 2: 'nonsense' is neither a section"),
        ("", ROUTER, "no model in it"),
        ("[x]\nmodel = a.gguf\n", ("--format", "compose", *ROUTER), "no format 'compose'"),
    ],
)
def test_files_of_a_router_that_are_none(check, text: str | None, words: tuple[str, ...], cause: str) -> None:  # type: ignore[no-untyped-def]
    if text is not None:
        write("models.ini", text)
    code, out, err = check(*words)
    assert (code, out) == (2, "")
    assert cause in err


def test_a_server_that_names_its_model_is_no_router(check) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = check(*ROUTER, "-m", TINY)
    assert (code, "models.ini" in out) == (0, True)  # the command itself, as it is given


def test_a_router_is_started_as_it_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write("models.ini", f"[one]\nmodel = {TINY}\n")
    assert main(["run", "-n", *ON, *ROUTER, "--port", "9000"]) == 0
    said = capsys.readouterr()
    assert said.out == "llama-server --models-preset models.ini --port 9000\n"
    assert "it starts its models by itself" in said.err


def test_what_is_not_told_inside_of_another_shell(check) -> None:  # type: ignore[no-untyped-def]
    write("start.sh", f'tmux new -d \'{SMALL.strip()} --port \'$PORT\nbash -c "llama-server -m $GONE"\nsh -c "$ALL"\n')
    code, out, _ = check("--from", "start.sh")
    first, second = out.splitlines()
    assert first.startswith("start.sh:1: fits: ")
    assert second.startswith("start.sh:2: not checked: not told without running it: $GONE is not set here")
    assert code == 2


def test_servers_of_several_models_in_files(check) -> None:  # type: ignore[no-untyped-def]
    """Each model by the line of its own file, from the folder that the server starts in; those that may be loaded at
    once together."""
    write(
        "etc/models.ini",
        "[small]\nmodel = example:tiny\n[large]\nmodel = example:mixtral-8x22b-q4_k_m\nngl = 99\nfit = off\n",
    )
    write("models.json", '{"models": [\n{"model": "example:tiny"},\n{"model": "example:tiny", "n_ctx": 99999999}]}')
    write("a.service", "[Service]\nWorkingDirectory=etc\nExecStart=/usr/bin/llama-server --models-preset models.ini\n")
    write("b.sh", "python3 -m llama_cpp.server --config_file models.json --port $PORT\n")
    write("c.sh", "llama-server --models-preset gone.ini\n")
    code, out, _ = check("--from", "a.service", "b.sh", "c.sh")
    assert code == 3 and [line.split(": ")[:2] for line in out.splitlines()] == [
        ["etc/models.ini:1", "fits"],
        ["etc/models.ini:3", "does not fit"],
        ["models.json:2", "fits"],
        ["models.json:3", "does not fit"],
        ["c.sh:1", "not checked"],
    ]
    model = "model = example:mixtral-8x7b-q4_k_m\nngl = 0\nlm = none\nc = 4096\ncram = 0\n"
    write("models.ini", f"[one]\n{model}[two]\n{model}[three]\n{model}")
    write("d.sh", "llama-server --models-preset models.ini\n")
    code, out, _ = check("--from", "d.sh")
    assert code == 3 and out.splitlines()[3].startswith("models.ini: does not fit: 3 of these models may be loaded")
    assert [line.split(": ")[1] for line in out.splitlines()[:3]] == ["fits"] * 3
