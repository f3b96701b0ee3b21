"""docs/plan.schema.json and docs/commands.schema.json hold for every plan, and hold for nothing else."""

from __future__ import annotations

import json
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import autofit
import pytest
from autofit.cli.main import main
from autofit.host import host
from jsonschema import Draft202012Validator

from support import ROOT, descriptors, plan_cases
from support.fake_engines import TINY, Engines
from support.vllm_truth import DATA

LLAMA_8B = "example:llama-3.1-8b-q4_k_m"
CONFIGS = DATA / "configs"

#: every kind of answer of a plan: backend, model, machine, wishes, the engine's flags
PLANS: dict[str, tuple[str, str, list[str], dict[str, Any], list[str]]] = {
    "llama, fits": ("llama", LLAMA_8B, ["rtx-3090"], {}, []),
    "llama, does not fit": ("llama", LLAMA_8B, ["rtx-3060-12gb"], {"context": "64M"}, []),
    "llama, no device": ("llama", LLAMA_8B, ["cpu"], {}, []),
    "llama, one memory for all": ("llama", LLAMA_8B, ["m3-max-36gb"], {}, []),
    "llama, Vulkan on shared memory": ("llama", LLAMA_8B, ["strix-halo-128gb"], {}, []),
    "llama, RPC": ("llama", LLAMA_8B, ["generic-rpc:8GiB", "rtx-3060-12gb"], {}, []),
    "llama, uneven cards": ("llama", LLAMA_8B, ["rtx-3060-12gb", "t4"], {"context": "64k", "parallel": 2}, []),
    "llama, a rate that is not known": ("llama", LLAMA_8B, ["generic-cuda:12GiB"], {}, []),
    "llama, tensors cut": ("llama", LLAMA_8B, ["2xrtx-3090"], {}, ["-sm", "tensor"]),
    "llama, a flag that is NaN": ("llama", LLAMA_8B, ["rtx-3090"], {}, ["--temp", "nan"]),
    "vllm, fits": ("vllm", "qwen3-8b", ["rtx-4090"], {}, []),
    "vllm, does not fit": ("vllm", "llama3-70b", ["t4"], {}, []),
    "vllm, experts": ("vllm", "qwen3-30b-a3b", ["2xa100-40gb"], {"mean_tokens": 500, "parallel": 8}, []),
    "vllm, stages": ("vllm", "llama3-70b", ["3xa100-80gb"], {}, ["-pp", "3"]),
    "vllm, replicas": ("vllm", "qwen3-8b", ["2xh100-80gb"], {}, ["-dp", "2"]),
    "vllm, weights in RAM": ("vllm", "qwen3-32b", ["rtx-4090"], {"min_tps": "0.1"}, ["--cpu-offload-gb", "50"]),
    "vllm, two machines": ("vllm", "llama3-70b", ["8xh100-80gb"], {}, ["--nnodes", "2"]),
    "vllm, one memory for all": ("vllm", "qwen3-8b", ["gb10"], {}, []),
    "vllm, two kinds of cache": ("vllm", "nemotron-3-super", ["2xh100-80gb"], {}, []),
    "vllm, sinks and windows": ("vllm", "gpt-oss-20b", ["rtx-4090"], {}, []),
}
WHOLE = ("m3-max-36gb", "strix-halo-128gb", "gb10")  #: machines that are sold with their RAM
CHECKS: dict[str, tuple[list[str], list[str], dict[str, Any]]] = {
    "llama, --fit": (["llama-server", "-m", LLAMA_8B], ["rtx-3060-12gb"], {}),
    "llama, does not fit": (["llama-server", "-m", LLAMA_8B, "-fit", "off", "-c", "0"], ["rtx-3060-12gb"], {}),
    "llama, starts": (["llama-cli", "-m", LLAMA_8B, "-c", "4096", "-ngl", "99"], ["rtx-3060-12gb"], {"ram": "4GiB"}),
    "llama, several runs": (["llama-bench", "-m", LLAMA_8B, "-p", "512,1024", "-n", "0"], ["rtx-3090"], {}),
    "vllm, fits": (["vllm", "serve", "qwen3-8b"], ["rtx-4090"], {"mean_tokens": 300}),
    "vllm, does not fit": (["vllm", "serve", "llama3-70b"], ["rtx-4090"], {}),
}


@cache
def validator(name: str) -> Draft202012Validator:
    schema = json.loads((ROOT / "docs" / f"{name}.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def hold(name: str, value: Any) -> None:
    """That the schema has no word against `value`, as JSON gives it back."""
    told = json.loads(json.dumps(value, allow_nan=False))
    assert [f"{list(error.path)}: {error.message}"[:300] for error in validator(name).iter_errors(told)] == []


@pytest.fixture(autouse=True)
def among_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS)


@pytest.mark.parametrize("name", PLANS)
def test_plans(name: str) -> None:
    backend, model, on, wishes, flags = PLANS[name]
    machine = autofit.load_machine(*on, ram=None if on[0] in WHOLE else "64GiB")
    hold("plan", autofit.plan(backend, model, machine, engine_args=flags, settings=None, **wishes).to_dict())


@pytest.mark.parametrize("name", CHECKS)
def test_checked_commands(name: str) -> None:
    argv, on, options = CHECKS[name]
    hold("plan", autofit.check(argv, settings=None, **{"on": on, "ram": "64GiB", **options}).to_dict())


@pytest.mark.slow_cases("qwen3-next*", "qwen3-30b*")
@pytest.mark.parametrize("case", list(plan_cases.cases(25, seed=16)), ids=lambda case: case.label)
def test_random_plans_of_llama(case: plan_cases.Case) -> None:
    backend = host().backend("llama")
    try:
        command = backend.command(case.request, model=f"{case.name}.gguf")
        plan = backend.plan(command, case.model, case.machine, case.request)
    except autofit.AutofitError:
        return  # a refusal has no plan
    hold("plan", plan.to_dict())


@pytest.mark.parametrize("name", ["bge-large-en-v1.5-F16", "mamba-2.8b-F16", "gemma-3-4b-Q4_K_M"])
def test_models_of_other_kinds(name: str) -> None:
    machine = autofit.load_machine("rtx-3060-12gb", ram="64GiB")
    hold("plan", autofit.plan("llama", descriptors.spec("models", name), machine, settings=None).to_dict())


def test_the_command_line_prints_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["llama", LLAMA_8B, "--on", "rtx-3090", "--ram", "64GiB", "--format", "json", "-q"]) == 0
    hold("plan", json.loads(capsys.readouterr().out))


def test_commands_of_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "start.sh"
    script.write_text(
        f"llama-server -m {LLAMA_8B}\nllama-server -m {LLAMA_8B} --no-such\nllama-server -m nowhere.gguf\n"
    )
    assert main(["check", "--on", "rtx-3090", "--ram", "64GiB", "--from", str(script), "--format", "json"]) == 2
    whole = json.loads(capsys.readouterr().out)
    assert [one["error"] is None for one in whole["commands"]] == [True, False, False]
    hold("commands", whole)


def test_commands_of_scripts(tmp_path: Path) -> None:
    script = f"llama-server -m {TINY} -c 512; llama-server -m /nowhere.gguf; vllm collect-env"
    done = Engines(tmp_path).run("check", "--format", "json", "--", "bash", "-c", script)
    whole = json.loads(done.stdout)
    assert len(whole["commands"]) == 3, done.stderr
    hold("commands", whole)


def _plan() -> dict[str, Any]:
    return dict(json.loads(_written()))


@cache
def _written() -> str:
    machine = autofit.load_machine("rtx-3060-12gb", ram="64GiB")
    return json.dumps(autofit.plan("llama", LLAMA_8B, machine, settings=None).to_dict())


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every object in `value`, by its path; of lists the one that says most."""
    found: list[tuple[Any, ...]] = []
    if isinstance(value, dict):
        found.append(path)
        for key, inner in value.items():
            found += _places(inner, (*path, key))
    elif isinstance(value, list) and value:
        place = max(range(len(value)), key=lambda i: len(json.dumps(value[i])))
        found += _places(value[place], (*path, place))
    return found


def test_nothing_may_be_missing_or_be_more() -> None:
    whole = _plan()
    open_places = {("env",), ("kwargs",)}
    places = [path for path in _places(whole) if path not in open_places]
    assert len(places) > 10
    assert any("next_rejected" in path for path in places) and any("alternatives" in path for path in places)
    for path in places:
        more = deepcopy(whole)
        _at(more, path)["another"] = 1
        assert not validator("plan").is_valid(more), f"{path} takes any key"
        for key in _at(whole, path):
            less = deepcopy(whole)
            del _at(less, path)[key]
            assert not validator("plan").is_valid(less), f"{path}: {key} may be missing"


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema",), 2),
        (("verdict",), "maybe"),
        (("pools", 0, "used_bytes"), -1),
        (("pools", 0, "used_bytes"), 1.5),
        (("pools", 0, "used_bytes"), None),
        (("pools", 0, "items", 0, "basis"), "guessed"),
        (("decisions", 0, "origin"), "the moon"),
        (("argv", 0), None),
        (("env",), {"A": 1}),
        (("context_tokens",), "4096"),
        (("engine_report", "n_ctx"), "4096"),
    ],
)
def test_other_values_are_refused(path: tuple[Any, ...], value: Any) -> None:
    whole = _plan()
    assert validator("plan").is_valid(whole)
    _at(whole, path[:-1])[path[-1]] = value
    assert not validator("plan").is_valid(whole)


def test_another_plugin_s_report_is_its_own() -> None:
    whole = {**_plan(), "backend": "hearth", "engine_report": {"anything": [1]}}
    hold("plan", whole)
