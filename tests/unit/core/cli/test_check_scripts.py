"""`autofit check -- ./start.sh`: each engine command of a script with its verdict, and no engine is started."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from autofit.cli import scripts
from autofit.cli.main import main

from support.fake_engines import TINY, Engines, write_program

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes as Linux has them")


@pytest.fixture
def engines(tmp_path: Path) -> Engines:
    return Engines(tmp_path)


def test_each_command_with_its_verdict(engines: Engines) -> None:
    write_program(
        engines.folder / "start.sh",
        f"""#!/bin/bash
# /opt/llama-server is not what is started
export LLAMA_ARG_CTX_SIZE=512
llama-server --version >/dev/null
nice -n 2 llama-server -m {TINY} --alias 'a b' &
cd {Path(TINY).parent} && llama-cli -m tiny.gguf -c 2000000000
vllm collect-env
wait
""",
    )
    done = engines.run("check", "-q", "--", "./start.sh")
    assert done.returncode == 3, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        "does not fit: llama-cli -m tiny.gguf -c 2000000000",
        f"fits: llama-server -m {TINY} --alias 'a b'",
        "loads no model: vllm collect-env",
    ]
    assert not engines.says.exists()
    assert engines.run("check", "-q", "--", "env", "A=1", "sh", "-c", f"llama-server -m {TINY}").returncode == 0
    assert not engines.says.exists()


def test_as_json(engines: Engines) -> None:
    script = f"llama-server -m {TINY} -c 512; llama-server -m /nowhere.gguf"
    done = engines.run("check", "--format", "json", "--", "bash", "-c", script)
    assert done.returncode == 1 and "no such file" in done.stderr
    first, second = json.loads(done.stdout)["commands"]
    assert (first["verdict"], first["context_tokens"]) == ("fits", 512)
    assert second == {"verdict": "unknown", "command": "llama-server -m /nowhere.gguf"}


def test_a_module_of_python_is_checked_by_itself_in_a_script_and_in_a_file(tmp_path: Path) -> None:
    engines = Engines(tmp_path, "python3")
    command = f"python3 -u -m llama_cpp.server --model {TINY} --n_ctx 512"
    (engines.folder / "start.sh").write_text(f"#!/bin/sh\n{command}\n", encoding="utf-8")
    for words in (("--", *command.split()), ("--", "sh", "-c", command), ("--from", "start.sh")):
        done = engines.run("check", "-q", *words)
        assert done.returncode == 0 and not done.stderr.startswith("autofit: not a program"), (words, done.stderr)
    short = engines.run("check", "-q", "--ram", "150MiB", "--", *command.split(), "--n_ctx", "400000")
    assert short.returncode == 3 and not engines.says.exists()


def test_servers_of_several_models_that_a_script_starts(tmp_path: Path) -> None:
    engines = Engines(tmp_path, "llama-server", "python3")
    (engines.folder / "models.ini").write_text(f"[one]\nmodel = {TINY}\n[two]\nmodel = /nowhere.gguf\n")
    models = [{"model": TINY}, {"model": TINY, "model_alias": "large", "n_ctx": 2_000_000_000}]
    (engines.folder / "models.json").write_text(json.dumps({"models": models}))
    script = "llama-server --models-preset models.ini; python3 -m llama_cpp.server --config_file models.json"
    done = engines.run("check", "-q", "--", "sh", "-c", script)
    assert done.returncode == 1 and not engines.says.exists()
    assert [line.partition(": ")[0] for line in done.stdout.splitlines()] == ["fits", "unknown", "fits", "does not fit"]
    assert "command 1 of 2: models.ini:3: not checked: /nowhere.gguf" in done.stderr
    answers = json.loads(engines.run("check", "--format", "json", "--", "sh", "-c", script).stdout)["commands"]
    assert [one["verdict"] for one in answers] == ["fits", "unknown", "fits", "does not fit"]


def test_a_program_without_a_plan_is_not_started_either(tmp_path: Path) -> None:
    engines = Engines(tmp_path, "llama-perplexity")
    done = engines.run("check", "--", "sh", "-c", f"llama-perplexity -m {TINY}")
    assert done.returncode == 1 and "no plan is made for it: it keeps the logits" in done.stderr
    assert done.stdout == f"unknown: llama-perplexity -m {TINY}\n" and not engines.says.exists()


def test_an_engine_of_a_script_need_not_be_there(tmp_path: Path) -> None:
    """A script for another machine is checked here; what would only inform is not there to do so."""
    engines = Engines(tmp_path, "vllm")
    done = engines.run("check", "-q", "--", "sh", "-c", f"llama-server --version; llama-server -m {TINY} -c 512")
    assert (done.returncode, done.stdout) == (0, f"fits: llama-server -m {TINY} -c 512\n")
    assert done.stderr.count("llama-server: not found") == 1
    assert engines.run("run", "--", "sh", "-c", f"llama-server -m {TINY}").returncode == 127


@pytest.mark.slow_but("/opt/*", "uv run*", "exit 4*")
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("/opt/llama/llama-server -m x", "starts a program by its path"),
        ("$BIN/llama-server -m x", "starts a program by its path"),
        ("/usr/bin/docker --debug run vllm/vllm-openai", "starts a program by its path"),
        ("source venv/bin/activate; vllm serve x", "puts other folders before the shims"),
        ("uv run vllm serve x", "puts other folders before the shims"),
        ("true", "no engine was started through PATH (it ended)"),
        ("exit 4", "it ended with exit code 4"),
    ],
)
def test_scripts_that_shims_cannot_answer_for(script: str, message: str, engines: Engines) -> None:
    done = engines.run("check", "--", "bash", "-c", script)
    assert (done.returncode, done.stdout) == (2, "") and message in done.stderr
    write_program(engines.folder / "start.sh", f"#!/bin/bash\n{script}\n")
    assert message in engines.run("check", "--", "./start.sh").stderr


def test_a_script_that_waits_for_its_engine_is_ended(
    engines: Engines, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in engines.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(scripts, "SECONDS", 2.0)
    script = f"llama-server -m {TINY} & until false; do sleep 0.05; done; llama-cli -m {TINY}"
    assert main(["check", "-q", "--", "bash", "-c", script]) == 0
    out, err = capfd.readouterr()
    assert out == f"fits: llama-server -m {TINY}\n"
    assert "it was ended after 2 s; commands behind that are not known" in err


@pytest.mark.parametrize("command", [["make", "all"], ["/bin/true"], ["./nothing.sh"]])
def test_other_programs_are_not_run(command: list[str], engines: Engines) -> None:
    done = engines.run("check", "--", *command)
    assert done.returncode == 2 and "no backend understands the command" in done.stderr
