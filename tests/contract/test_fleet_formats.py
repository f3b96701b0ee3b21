"""Formats of fleets, each read by what reads it: the same commands, what may run at once, and the order of starts."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import autofit
import pytest
import yaml
from autofit.cli.main import main
from autofit.domain.fleet import FleetFile, FleetPlan
from autofit.domain.values import replace
from autofit.host import host, resolve
from jsonschema import Draft202012Validator

from support import DATA, ROOT, TINY

QWEN = str(DATA / "vllm/configs/qwen3-0.6b")
TOOL = runpy.run_path(str(ROOT / "tools/gen/fleets.py"))


@pytest.fixture(scope="module")
def plan() -> FleetPlan:
    found: FleetPlan = TOOL["plan"]()
    assert found.fits and len(found.sets) == 4
    return found


def files(plan: FleetPlan, form: str) -> tuple[FleetFile, ...]:
    found: tuple[FleetFile, ...] = resolve(host().renderers()[form].fleet)(plan)
    assert all(one.text and not one.path.startswith("/") for one in found)
    return found


@pytest.mark.skipif(os.name == "nt", reason="paths of POSIX")
def test_files_of_every_format_are_as_recorded(plan: FleetPlan) -> None:
    """What the tests below read; `python tools/gen/fleets.py` writes them anew."""
    made = dict(TOOL["files"](plan))
    folder = ROOT / "tests/data/fleets"
    assert made.keys() == {path.relative_to(folder).as_posix() for path in folder.glob("*/*")}
    assert {path.partition("/")[0] for path in made} == {n for n, ref in host().renderers().items() if ref.fleet}
    for path, text in made.items():
        assert text == (folder / path).read_text(encoding="utf-8"), path


@pytest.mark.skipif(os.name == "nt", reason="paths of POSIX")
def test_files_are_the_same_in_every_process() -> None:
    done = subprocess.run(
        [sys.executable, "tools/gen/fleets.py", "--check"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_the_schema_holds(plan: FleetPlan) -> None:
    schema = json.loads((ROOT / "docs/fleet.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    tight = autofit.fleet(plan.fleet, autofit.load_machine("generic-cuda:4GiB", ram="64GiB"), settings=None)
    for one in (plan, tight):
        told = json.loads(json.dumps(one.to_dict(), allow_nan=False))
        assert [error.message for error in Draft202012Validator(schema).iter_errors(told)] == []
    assert not one.fits and one.shortfall


def evicted(groups: dict[str, Any], target: str, running: set[str]) -> set[str]:
    """source: llama-swap, internal/router/group.go:EvictionFor, the same since groups are there"""
    group_of = {name: key for key, one in groups.items() for name in one["members"]}
    own = groups[group_of[target]]
    found = set()
    for name in running - {target}:
        if group_of[name] == group_of[target]:
            found |= {name} if own["swap"] else set()
        elif own["exclusive"] and not groups[group_of[name]]["persistent"]:
            found.add(name)
    return found


def test_groups_of_llama_swap_load_what_may_run_at_once_whatever_is_asked_for(plan: FleetPlan) -> None:
    ((path, text),) = files(plan, "llama-swap")
    config = yaml.safe_load(text)
    names = sorted(config["models"])
    assert path == "config.yaml" and set(names) == {one.name for one in plan.placements}
    assert "matrix" not in config and config["healthCheckTimeout"] >= 15
    groups = config["groups"]
    assert sorted(name for one in groups.values() for name in one["members"]) == names  # each in one, and only one
    reached = {frozenset[str]()}
    waiting = list(reached)
    while waiting:  # every request in every state that requests lead to
        running = set(waiting.pop())
        for target in names:
            after = frozenset((running - evicted(groups, target, running)) | {target})
            assert any(after <= set(one) for one in plan.sets)
            if after not in reached:
                reached.add(after)
                waiting.append(after)
    assert {frozenset(one) for one in plan.sets} <= reached


def test_a_matrix_of_llama_swap_lists_what_groups_cannot_say() -> None:
    """Each model in two of three phases, and a group within one of them."""
    rows = [
        {"name": "chat", "phases": ["a", "b"], "priority": 80},
        {"name": "other", "phases": ["b", "c"]},
        {"name": "helper", "phases": ["a", "c"], "group": "g", "priority": 10},
        {"name": "last", "phases": ["c"], "group": "g"},
    ]
    models = [{"model": str(TINY), "context": "1k", **row} for row in rows]
    on = autofit.load_machine("rtx-3090", ram="64GiB")
    plan = autofit.fleet({"phases": ["a", "b", "c"], "model": models}, on, settings=None)
    ((_, text),) = files(plan, "llama-swap")
    config = yaml.safe_load(text)
    assert "groups" not in config
    matrix = config["matrix"]
    # source: llama-swap v251, config.example.yaml: `a & b` is the set of both, and every part of a set is valid
    sets = [frozenset(matrix["vars"][word] for word in dsl.split(" & ")) for dsl in matrix["sets"].values()]
    names = sorted(config["models"])
    assert all(word.isalnum() and len(word) <= 8 for word in matrix["vars"])
    for n in range(1, len(names) + 1):
        for some in map(frozenset, combinations(names, n)):
            assert any(some <= one for one in sets) == any(some <= set(one) for one in plan.sets)
    assert len(plan.sets) == 4
    costs = {matrix["vars"][word]: cost for word, cost in matrix["evict_costs"].items()}
    assert costs["chat"] > costs["other"] > costs["helper"] > 0


@pytest.mark.parametrize("form", ["llama-swap", "systemd", "compose", "shell"])
def test_commands_are_read_back(form: str, plan: FleetPlan, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for one in files(plan, form):
        (tmp_path / one.path).write_text(one.text)
        paths.append(str(tmp_path / one.path))
    assert main(["check", "--on", "2x3090", "--ram", "64GiB", "--format", "json", "-q", "--from", *paths]) in (0, 3)
    commands = json.loads(capsys.readouterr().out)["commands"]
    assert [one["error"] for one in commands] == [None] * len(commands)
    found = {tuple(pool["weights_bytes"] for pool in one["plan"]["pools"]) for one in commands}
    running = [one for one in plan.placements if form != "shell" or one.name in plan.first_set]
    assert len(commands) == len(running)
    if form != "compose":  # where devices are numbered from 0
        assert found == {tuple(p.sum_bytes("weights") for p in one.plan.memory.pools) for one in running}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_takes_the_units(plan: FleetPlan, tmp_path: Path) -> None:
    for name in ("llama-server", "vllm"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    units = []
    for path, text in files(plan, "systemd"):
        units.append(tmp_path / path)
        units[-1].write_text(text.replace("ExecStart=", f"ExecStart={tmp_path}/"))
    done = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_units_stop_what_never_runs_beside_them(plan: FleetPlan) -> None:
    units = dict(files(plan, "systemd"))
    for one in plan.placements:
        text = units[f"{one.name}.service"]
        rows = text.splitlines()
        assert {row for row in rows if row.startswith("Conflicts=")} == {f"Conflicts={n}.service" for n in one.evicts}
        for other in one.evicts:  # an order, in one of the two
            after = [
                f"After={other}.service" in rows,
                f"After={one.name}.service" in units[f"{other}.service"].splitlines(),
            ]
            assert sum(after) == 1
        assert ("ExecStartPost=" in text) == one.measures
        assert ("[Install]" in text) == (one.name in plan.first_set)
    embed, helper = (units[f"{name}.service"].splitlines() for name in ("embed", "helper"))
    assert "After=embed.service" in helper and "After=helper.service" not in embed


def test_the_schema_of_compose_takes_the_file(plan: FleetPlan, tmp_path: Path) -> None:
    pytest.importorskip("check_jsonschema")
    ((_, text),) = files(plan, "compose")
    (tmp_path / "compose.yaml").write_text(text)
    words = ["check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(tmp_path / "compose.yaml")]
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
    services = yaml.safe_load(text)["services"]
    assert services.keys() == {"chat", "other", "embed", "batch-1", "helper"}
    first = {name for name, one in services.items() if "profiles" not in one}
    assert first == {name.lower().replace("_", "-") for name in plan.first_set}
    assert services["helper"]["depends_on"] == {"embed": {"condition": "service_healthy"}}
    ports = [one["ports"][0] for one in services.values()]
    assert len(set(ports)) == len(ports)


def test_the_schema_of_kubernetes_takes_the_objects(plan: FleetPlan) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    ((_, text),) = files(plan, "kubernetes")
    objects = list(yaml.safe_load_all(text))
    assert [one["kind"] for one in objects] == ["Deployment", "Service"] * len(plan.placements)
    for one in objects:
        validator.validate(one, "1.34", strict=True)
    deployments = {one["metadata"]["name"]: one["spec"] for one in objects if one["kind"] == "Deployment"}
    assert {name: one["replicas"] for name, one in deployments.items()} == {
        one.name.lower().replace("_", "-"): int(one.name in plan.first_set) for one in plan.placements
    }
    pods = [one["template"]["spec"] for one in deployments.values()]
    assert {pod["nodeSelector"]["kubernetes.io/hostname"] for pod in pods} == {"box"}
    # two pods on one GPU: none asks the scheduler for it
    assert all("nvidia.com/gpu" not in pod["containers"][0]["resources"]["limits"] for pod in pods)
    assert all(any(e["name"] == "NVIDIA_VISIBLE_DEVICES" for e in pod["containers"][0]["env"]) for pod in pods)


def test_pods_with_gpus_of_their_own_ask_the_scheduler() -> None:
    rows = [{"name": name, "model": QWEN, "context": "1k"} for name in ("a", "b")]
    found = autofit.fleet({"model": rows}, autofit.load_machine("2x rtx-3090", ram="64GiB"), settings=None)
    assert {one.devices[0].id for one in found.placements} == {"GPU0", "GPU1"}
    ((_, text),) = files(found, "kubernetes")
    pods = [one["spec"]["template"]["spec"] for one in yaml.safe_load_all(text) if one["kind"] == "Deployment"]
    assert [pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] for pod in pods] == ["1", "1"]


# -- llama-server's router -----------------------------------------------------------------------------------


def router(n_models: int, gib: float, **more: Any) -> tuple[FleetPlan, str]:
    rows = [{"name": f"m{i}", "model": "example:llama-3.1-8b-q4_k_m", "context": "4k", **more} for i in range(n_models)]
    on = autofit.load_machine(f"generic-cuda:{gib}GiB", ram="64GiB")
    found = autofit.fleet({"model": rows}, on, settings=None)
    assert found.fits
    ((_, text),) = files(found, "llama-presets")
    return found, text


def test_the_router_keeps_as_many_as_fit_whichever_they_are() -> None:
    _, text = router(3, 20)
    assert "--models-max 3\n" in text and text.count("load-on-startup = true") == 3
    _, text = router(3, 8, group="g")  # one at a time: no choice of two is allowed
    assert "--models-max 1\n" in text and text.count("load-on-startup = true") == 1


def test_the_router_is_checked_as_it_is_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, text = router(3, 20)
    path = tmp_path / "models.ini"
    path.write_text(text)
    words = ["check", "--on", "generic-cuda:20GiB", "--ram", "64GiB", "-q", "--format", "json", "--from", str(path)]
    assert main(words) == 0
    commands = json.loads(capsys.readouterr().out)["commands"]
    weights = [[pool["weights_bytes"] for pool in one["plan"]["pools"]] for one in commands if one["plan"]]
    assert weights[:3] == [[p.sum_bytes("weights") for p in one.plan.memory.pools] for one in found.placements]


def test_a_fleet_without_llama_server_has_no_presets() -> None:
    on = autofit.load_machine("rtx-3090", ram="64GiB")
    found = autofit.fleet({"model": [{"name": "a", "model": QWEN}]}, on, settings=None)
    with pytest.raises(autofit.UsageError, match="llama-server"):
        files(found, "llama-presets")


# -- scripts ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="a script of a POSIX shell")
def test_a_script_starts_what_measures_first_and_waits_for_it(plan: FleetPlan, tmp_path: Path) -> None:
    """With programs that say their names; `curl` has an answer when the engine before it has said its own."""
    ((path, text),) = files(plan, "shell")
    (tmp_path / path).write_text(text)
    programs = {
        "vllm": 'echo "vllm $*" >> said',
        "llama-server": 'echo "llama-server $*" >> said',
        "curl": 'until grep -q vllm said 2>/dev/null; do :; done; echo "curl $*" >> said',
    }
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    subprocess.run(["sh", path], cwd=tmp_path, env=environ, timeout=60, check=True)
    said = [line.split()[0] for line in (tmp_path / "said").read_text().splitlines()]
    assert said.index("vllm") < said.index("curl") < said.index("llama-server")
    assert said.count("vllm") == sum(one.measures for one in plan.placements if one.name in plan.first_set)


@pytest.mark.skipif(os.name == "nt", reason="a script of a POSIX shell")
def test_a_script_waits_only_for_what_measures_on_the_same_devices(tmp_path: Path) -> None:
    """Two engines that measure, each on its own card, start at once; a third beside one of them waits for that one."""
    rows = [{"name": name, "model": QWEN, "context": "1k", "engine-args": ["--gpu-memory-utilization", "0.4"]}
            for name in ("a", "b", "c")]  # fmt: skip
    on = autofit.load_machine("2x rtx-3090", ram="64GiB")
    found = autofit.fleet({"model": rows}, on, settings=None)
    ((_, text),) = files(found, "shell")
    lines = text.splitlines()
    at = {one.name: next(i for i, row in enumerate(lines) if row.startswith(f"# {one.name} on ")) for one in
          found.placements}  # fmt: skip
    waits = [i for i, row in enumerate(lines) if row.startswith("until ")]
    first = next(one for one in found.on("machine") if one.devices == found.placements[2].devices)
    assert at["a"] < at["b"] < waits[0] < at["c"] and len(waits) == 1
    assert f":{first.port}/health" in lines[waits[0]]


def test_several_machines_have_folders_of_their_own() -> None:
    rows = [{"name": name, "model": str(TINY), "machines": [on]} for name, on in (("a", "x"), ("b", "y"))]
    on = autofit.load_machine("rtx-3090", ram="64GiB")
    found = autofit.fleet({"model": rows}, {"x": on, "y": on}, settings=None)
    paths = {form: [one.path for one in files(found, form)] for form in ("systemd", "compose", "llama-presets")}
    assert paths == {
        "systemd": ["x/a.service", "y/b.service"],
        "compose": ["x/compose.yaml", "y/compose.yaml"],
        "llama-presets": ["x/models.ini", "y/models.ini"],
    }


@pytest.mark.parametrize("form", ["systemd", "compose", "kubernetes", "llama-swap", "llama-presets"])
def test_words_that_a_file_cannot_hold_are_refused(form: str, plan: FleetPlan) -> None:
    (one,) = (one for one in plan.placements if one.name == "chat")
    deployed = one.plan.deployment
    assert deployed is not None
    for word in ("a\nb", "a\x1b[0m"):
        own = replace(one.plan, argv=(*one.plan.argv, "--chat-template", word),
                      deployment=replace(deployed, words=(*deployed.words, "--chat-template", word)))  # fmt: skip
        bad = replace(plan, placements=(replace(one, plan=own),), sets=(("chat",),), order=("chat",))
        with pytest.raises(autofit.UsageError):
            files(bad, form)
