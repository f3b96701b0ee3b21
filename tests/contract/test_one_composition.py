"""Both doors, the command line and the Python functions, give one plan for the same settings, with their origins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_type_hints

import autofit
import pytest
from autofit.cli.main import main
from autofit.errors import UsageError
from autofit.settings.keywords import CheckOptions, PlanOptions
from autofit.settings.layers import Surroundings
from autofit.settings.options import CHECKED, OPTIONS

from support.vllm_truth import DATA

MODELS = {"llama": "example:tiny", "vllm": str(DATA / "configs" / "qwen3-0.6b")}
COMMANDS = {
    "llama": ["llama-server", "-m", "example:tiny", "-ngl", "2"],
    "vllm": ["vllm", "serve", MODELS["vllm"], "--max-num-seqs", "4"],
}
ON = {"on": ["rtx-3090"], "ram": "64GiB"}
BACKENDS = list(MODELS)


@pytest.fixture(autouse=True)
def nothing_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def flags_of(options: dict[str, Any]) -> list[str]:
    flags = []
    for name, value in options.items():
        for text in value if isinstance(value, list) else [value]:
            flags += ["--" + name.replace("_", "-"), *([] if text is True else [str(text)])]
    return flags


def both_doors(backend: str, capsys: pytest.CaptureFixture[str], *engine_args: str, **options: Any) -> Any:
    """The plan, which both doors give, as JSON values."""
    asked = {**ON, **options}
    after = ["--", *engine_args] if engine_args else []
    line = printed(backend, flags_of(asked), after, capsys)
    called = autofit.plan(backend, MODELS[backend], engine_args=engine_args, **asked)
    assert json.loads(json.dumps(called.to_dict())) == line
    return line


def printed(backend: str, flags: list[str], after: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    assert main([backend, MODELS[backend], *flags, "--format", "json", *after]) in (0, 3)
    return json.loads(capsys.readouterr().out)


def origin(found: Any, *settings: str) -> str:
    return next(one["origin"] for one in found["decisions"] if one["setting"] in settings)


CONTEXT = ("-c", "--max-model-len")


@pytest.mark.parametrize("backend", BACKENDS)
def test_flags_and_keywords(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = both_doors(backend, capsys, context="512", parallel=2, margin="1GiB,2GiB", prefer="context", kv="auto")
    assert found["context_tokens"] == 512
    assert origin(found, *CONTEXT) == "user"


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_layer_yields_to_the_one_before(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    presets, user = tmp_path / "profiles" / "presets", tmp_path / "config" / "autofit"
    presets.mkdir(parents=True)
    user.mkdir(parents=True)
    monkeypatch.setenv("AUTOFIT_PROFILES", str(presets.parent))
    (presets / "mine.toml").write_text("schema = 1\nname = 'mine'\nsummary = 'x'\ncontext = 256\n", encoding="utf-8")
    found = both_doors(backend, capsys, preset="mine")
    assert (found["context_tokens"], origin(found, *CONTEXT)) == (256, "preset")
    (user / "autofit.toml").write_text("context = 512\npreset = 'mine'\n", encoding="utf-8")
    found = both_doors(backend, capsys)
    assert (found["context_tokens"], origin(found, *CONTEXT)) == (512, "settings file")
    Path("autofit.toml").write_text(f"context = 9\n[{backend}]\ncontext = 768\n", encoding="utf-8")
    found = both_doors(backend, capsys)
    assert (found["context_tokens"], origin(found, *CONTEXT)) == (768, "settings file")
    monkeypatch.setenv("AUTOFIT_CONTEXT", "1024")
    found = both_doors(backend, capsys)
    assert (found["context_tokens"], origin(found, *CONTEXT)) == (1024, "environment")
    found = both_doors(backend, capsys, context=1280)
    assert (found["context_tokens"], origin(found, *CONTEXT)) == (1280, "user")
    alone = autofit.plan(backend, MODELS[backend], settings=None, **ON)
    assert alone.context_tokens not in (256, 512, 768, 1024, 1280)


@pytest.mark.parametrize(
    ("backend", "variable", "value", "setting"),
    [
        ("llama", "LLAMA_ARG_CTX_SIZE", "512", "-c"),
        ("vllm", "VLLM_PP_LAYER_PARTITION", "28", "VLLM_PP_LAYER_PARTITION"),
    ],
)
def test_the_engine_s_variables_count_at_both_doors(
    backend: str,
    variable: str,
    value: str,
    setting: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(variable, value)
    found = both_doors(backend, capsys)
    assert next(one["value"] for one in found["decisions"] if one["setting"] == setting) == value
    assert origin(found, setting) == "environment"
    stated = autofit.plan(backend, MODELS[backend], settings=Surroundings(environ={variable: value}), **ON)
    assert json.loads(json.dumps(stated.to_dict())) == found
    pure = autofit.plan(backend, MODELS[backend], settings=None, **ON)
    assert setting not in {one.setting for one in pure.decisions if one.origin == "environment"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_checks_are_one_as_well(
    backend: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUTOFIT_MARGIN", "2GiB")
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "512")
    command, asked = COMMANDS[backend], {**ON, "device": ["GPU0"]}
    assert main(["check", *flags_of(asked), "--format", "json", "--", *command]) in (0, 3)
    line = json.loads(capsys.readouterr().out)
    called = autofit.check(command, **asked)
    assert json.loads(json.dumps(called.to_dict())) == line
    assert called.memory.pool("GPU0").sum_bytes("reserve") == 2 << 30
    pure = autofit.check(command, settings=None, **asked)
    assert pure.memory.pool("GPU0").sum_bytes("reserve") != 2 << 30
    if backend == "llama":
        assert called.context_tokens == 512 != pure.context_tokens


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_refused_is_refused_at_both_doors(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="--kv no_such_type: not a KV cache type of") as caught:
        autofit.plan(backend, MODELS[backend], kv="no_such_type", **ON)
    assert main([backend, MODELS[backend], *flags_of(ON), "--kv", "no_such_type"]) == 2
    assert caught.value.message in capsys.readouterr().err


def test_keywords_are_the_options() -> None:
    assert list(get_type_hints(PlanOptions)) == [option.name for option in OPTIONS]
    assert set(get_type_hints(CheckOptions)) == {*CHECKED, "available_kv_bytes"}
    with pytest.raises(UsageError, match="unknown option 'contxt'"):
        autofit.plan("llama", MODELS["llama"], contxt=4)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="unknown option 'context'"):
        autofit.check(COMMANDS["llama"], context=4)  # type: ignore[call-arg]


@pytest.mark.parametrize("backend", BACKENDS)
def test_engine_flags_of_a_settings_file_are_told_as_the_files(backend: str, tmp_path: Path) -> None:
    config = tmp_path / "config" / "autofit"
    config.mkdir(parents=True)
    (config / "autofit.toml").write_text('engine-args = ["--port", "9000", "--api-key", "a"]\n')
    around = Surroundings(environ={"XDG_CONFIG_HOME": str(tmp_path / "config")}, directory=tmp_path)
    machine = autofit.load_machine("h100-80gb", ram="64GiB")
    plan = autofit.plan(
        backend, MODELS[backend], machine, settings=around, engine_args=["--api-key", "b", "--host", "::1"]
    )
    told = [(decision.setting, decision.origin, decision.because) for decision in plan.decisions]
    assert ("--port", "settings file", "set in the settings file") in told
    assert ("--host", "user", "kept as given") in told
    assert ("--api-key", "user", "kept as given") in told


def test_a_check_refuses_an_option_that_the_backend_has_not() -> None:
    machine = autofit.load_machine("h100-80gb", ram="64GiB")
    short, long = (
        autofit.check(COMMANDS["vllm"], machine, mean_tokens=n, environ={}).engine_report for n in ("1k", "16k")
    )
    assert short["mean_tokens"] == 1024 and long["mean_tokens"] == 16_384
    with pytest.raises(UsageError, match="llama does not support --mean-tokens"):
        autofit.check(COMMANDS["llama"], machine, mean_tokens="1k", environ={})
