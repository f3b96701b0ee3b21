"""The command line as a process sees it: what is on stdout, what is on stderr, and the exit code."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT

HEAVY = {
    "autofit.deployable",
    "tomllib",
    "argparse",
    "numpy",
    "dataclasses",
    "inspect",
    "pluggy",
    "torch",
    "gguf",
    "vllm",
    "llama_cpp",
    "pydantic",
    "rich",
    "tomlkit",
    "pynvml",
    "asyncio",
    "yaml",
}
MODEL = "example:mixtral-8x7b-q4_k_m"


def autofit(*args: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("AUTOFIT_", "LLAMA_ARG_", "VLLM_", "CUDA_"))}
    clean |= {"XDG_CONFIG_HOME": "/nonexistent", "AUTOFIT_DISABLE_PLUGIN_AUTOLOAD": "1", **(env or {})}
    return subprocess.run(
        [sys.executable, "-m", "autofit", *args],
        capture_output=True,
        text=True,
        env=clean,
        cwd=cwd,
        timeout=60,
    )


def test_help_names_every_command_and_the_exit_codes() -> None:
    done = autofit("--help")
    assert done.returncode == 0
    for word in ("llama", "vllm", "check", "inspect", "hardware", "plugins", "exit codes"):
        assert word in done.stdout
    rows = [row for row in done.stdout.splitlines() if row.startswith("  ")]
    begins = {re.match(r"  \S+ +", row).end() for row in rows}  # type: ignore[union-attr]
    assert len(rows) > 20 and len(begins) == 1, "the summaries are one column"


@pytest.mark.parametrize("command", ["llama", "vllm", "check", "inspect", "hardware", "plugins"])
def test_each_command_has_help(command: str) -> None:
    done = autofit(command, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: autofit")


@pytest.mark.parametrize(
    ("command", "kv_type", "refused"), [("llama", "q5_1", ("--mean-tokens", "--fill HOW")), ("vllm", "fp8_e5m2", ())]
)
def test_help_of_a_plan_shows_values_presets_and_examples(command: str, kv_type: str, refused: tuple[str, ...]) -> None:
    text = autofit(command, "--help").stdout
    assert kv_type in text
    assert not any(option in text for option in refused)
    for line in ("chat ", "coding-agent ", "long-context ", "throughput ", "low-memory ", "powershell "):
        assert re.search(rf"^  {line} *\S", text, re.MULTILINE), line
    assert "engine flags go after --" in text
    for example in re.findall(rf"^  autofit {command} MODEL(.*?)  ", text, re.MULTILINE)[:4]:
        done = autofit(command, "/nonexistent.gguf", *example.split())
        assert "no such file" in done.stderr, example


def test_a_plan_prints_one_command_on_stdout_and_all_else_on_stderr() -> None:
    done = autofit("llama", MODEL, "--on", "rtx-3090", "--ram", "64GiB")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1
    assert shlex.split(lines[0])[0] == "llama-server"
    assert "GPU0" in done.stderr


def test_json_is_the_documented_schema() -> None:
    done = autofit("llama", MODEL, "--on", "rtx-3090", "--ram", "64GiB", "--format", "json", "-q")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    plan = json.loads(done.stdout)
    documented = {
        line.split("`")[1] for line in (ROOT / "docs/json.md").read_text().splitlines() if line.startswith("| `")
    }
    assert documented <= plan.keys()
    assert plan["schema"] == 1
    assert [pool["id"] for pool in plan["pools"]] == ["GPU0", "host"]
    for pool in plan["pools"]:
        kinds = ("weights", "cache", "compute", "runtime", "transient")
        assert pool["used_bytes"] == sum(pool[f"{kind}_bytes"] for kind in kinds)
        assert pool["used_bytes"] <= pool["budget_bytes"] <= pool["free_bytes"]


def test_the_users_engine_flags_are_kept_exactly() -> None:
    flags = ["-ngl", "20", "--some-new-flag", "x y", "--ctx-size", "4096"]
    done = autofit("llama", MODEL, "--on", "rtx-3090", "--ram", "64GiB", "--engine-version", "b99999", "--", *flags)
    assert done.returncode == 0, done.stderr
    argv = shlex.split(done.stdout)
    at = argv.index("-ngl")
    assert argv[at : at + len(flags)] == flags
    assert argv.count("-ngl") == 1
    assert "-c" not in argv


def test_what_does_not_fit_exits_3_with_the_shortfall_and_no_command() -> None:
    done = autofit("llama", MODEL, "--on", "generic-cuda:4GiB", "--ram", "8GiB")
    assert done.returncode == 3
    assert done.stdout == "false\n"  # which fails in a shell
    assert "GiB" in done.stderr
    forced = autofit("llama", MODEL, "--on", "generic-cuda:4GiB", "--ram", "8GiB", "--force")
    assert forced.returncode == 3
    assert forced.stdout.startswith("llama-server")


def test_check_says_what_a_command_takes() -> None:
    done = autofit("check", "--on", "generic-cuda:40GiB", "--ram", "64GiB", "--format", "json", "-q",
                   "--", "llama-server", "-m", MODEL, "-ngl", "99", "-c", "8192")  # fmt: skip
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["argv"][:3] == ["llama-server", "-m", MODEL]
    assert plan["pools"][0]["weights_bytes"] > 24 << 30


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["frobnicate"], "no command 'frobnicate'"),
        (["llama"], "MODEL"),
        (["llama", MODEL, "--context", "-5"], "context"),
        (["llama", MODEL, "--context", "lots"], "not a token count"),
        (["llama", MODEL, "--on", "rtx-9999"], "rtx-9999"),
        (["llama", MODEL, "--format", "xml"], "no format"),
        (["llama", MODEL, "--unknown-wish"], "unknown-wish"),
        (["llama", MODEL, "--preset", "nope"], "nope"),
        (["llama", MODEL, "--ram", "-5GiB"], "--ram=VALUE also takes a value that begins with -"),
        (["models", "--on", "rtx-9999"], "rtx-9999"),
        (["models", "--context", "lots"], "not a token count"),
        (["check"], "no command"),
        (["check", "--", "./serve.sh"], "understands the command"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(args: list[str], message: str) -> None:
    done = autofit(*args)
    assert done.returncode in {1, 2} if "--on" in args else done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 2


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["check", MODEL, "-ngl", "20"], "the whole command of the engine goes after --: autofit check ... -- ENGINE"),
        (["check", "-ngl", "20"], "the whole command of the engine goes after --: autofit check ... -- ENGINE"),
        (["check", "-ngl", "20", "--", "llama-server", "-m", MODEL], "the whole command of the engine goes after --"),
        (
            ["check", "/opt/bin/llama-server", "-ngl", "9"],
            "goes after --: autofit check ... -- /opt/bin/llama-server -ngl 9",
        ),
        (["report", MODEL, "-ngl", "20"], "the whole command of the engine goes after --: autofit report"),
        (["llama", MODEL, "-ngl", "20"], "flags of the engine go after --: autofit llama ... -- -ngl 20"),
        (["check", "--rem", "1"], "did you mean --ram?"),
        (["inspect", MODEL, "-ngl", "20"], "autofit inspect --help"),
    ],
)
def test_what_belongs_to_the_engine_is_told_to_go_behind_the_dashes(args: list[str], hint: str) -> None:
    done = autofit(*args)
    assert done.returncode == 2
    assert hint in done.stderr


def test_a_missing_model_is_one_line_and_exit_2(tmp_path: Path) -> None:
    done = autofit("llama", str(tmp_path / "no such.gguf"))
    assert done.returncode == 2
    assert "no such.gguf" in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_a_path_with_shell_characters_is_quoted(tmp_path: Path) -> None:
    path = tmp_path / "my $(touch pwned) 'model';.gguf"
    path.write_bytes((ROOT / "autofit/_models/tiny.gguf").read_bytes())
    done = autofit("llama", str(path), "--on", "generic-cuda:8GiB", "--ram", "8GiB")
    assert done.returncode == 0, done.stderr
    assert str(path) in shlex.split(done.stdout)
    subprocess.run(["sh", "-c", "set -- " + done.stdout.strip()], check=True, cwd=tmp_path)
    assert not (tmp_path / "pwned").exists()


def test_settings_come_from_the_environment_and_the_file_here(tmp_path: Path) -> None:
    (tmp_path / "autofit.toml").write_text('context = "4k"\non = ["rtx-3090"]\nram = "64GiB"\n')
    done = autofit(
        "llama",
        MODEL,
        "--format",
        "json",
        "-q",
        cwd=tmp_path,
        env={"PYTHONPATH": os.environ.get("PYTHONPATH", "")},
    )
    assert json.loads(done.stdout)["context_tokens"] == 4096
    done = autofit("llama", MODEL, "--format", "json", "-q", cwd=tmp_path, env={"AUTOFIT_CONTEXT": "8k"})
    plan = json.loads(done.stdout)
    assert plan["context_tokens"] == 8192
    assert any(d["origin"] == "environment" for d in plan["decisions"])


def test_planning_imports_no_engine_and_nothing_heavy() -> None:
    code = (
        "import sys; from autofit.cli.main import main;"
        f"code = main(['llama', {MODEL!r}, '--on', 'rtx-3090', '--ram', '64GiB', '-q']);"
        f"heavy = {HEAVY!r} & set(sys.modules); assert not heavy, heavy; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
