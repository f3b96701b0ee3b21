"""Plans of fleets: where models go, the proof in bytes, who stays, and the laws that hold for all of them."""

from __future__ import annotations

import json
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import autofit
import pytest
from autofit.cli.main import main
from autofit.domain.fleet import FleetPlan
from autofit.domain.machine import Machine
from autofit.domain.values import replace
from autofit.settings.layers import Surroundings

from support import DATA, TINY
from support.fake_engines import write_program

LLAMA = "example:llama-3.1-8b-q4_k_m"
QWEN = str(DATA / "vllm/configs/qwen3-0.6b")
GIB = 1 << 30


def machine(*names: str, ram: str = "64GiB") -> Machine:
    return autofit.load_machine(*names, ram=ram)


def fleet(*models: dict[str, Any], on: Machine | dict[str, Machine], **more: Any) -> FleetPlan:
    rows = [{"name": f"m{i}", "model": LLAMA, **one} for i, one in enumerate(models)]
    return autofit.fleet({"model": rows, **more}, on, settings=None)


def within(plan: FleetPlan) -> None:
    """By the plan's own words: every allowed set is in every budget, with what each process may hold."""
    machines = {one.name: one.machine for one in plan.fleet.machines}
    by_name = {one.name: one for one in plan.placements}
    for some in plan.sets:
        for pool in plan.pools:
            here = [by_name[name] for name in some if name in by_name and by_name[name].machine == pool.machine]
            held = sum(one.claims.get(pool.id, 0) for one in here)
            assert held <= pool.peak_bytes
            if pool.free_bytes is not None:
                assert held + pool.margin_bytes <= pool.free_bytes
    for one in plan.placements:
        for used in one.plan.memory.pools:
            assert one.claims.get(used.id, 0) >= used.used_bytes or used.id == "host"
        assert {device.id for device in one.devices} <= {device.id for device in machines[one.machine].devices}


def test_two_cards_three_models_of_two_engines() -> None:
    plan = fleet({"priority": 80}, {"context": "32k"}, {"model": QWEN, "context": "8k"}, on=machine("2x rtx-3090"))
    assert (plan.fits, plan.proof, plan.left_out) == (True, "best", ())
    within(plan)
    assert plan.sets == (("m0", "m1", "m2"),)
    assert plan.order[0] == "m2"
    by_name = {one.name: one for one in plan.placements}
    assert by_name["m1"].plan.context_tokens == 32768
    # what is left over goes to a context that nobody has asked for
    assert (by_name["m0"].plan.context_tokens or 0) > 8192
    assert {one.port for one in plan.placements} == {8080, 8081, 8000}
    assert [one.measures for one in plan.placements] == [False, False, True]


def test_vllm_leaves_its_neighbors_their_bytes() -> None:
    plan = fleet({"context": "32k"}, {"model": QWEN, "context": "8k"}, on=machine("rtx-3090"))
    within(plan)
    neighbor, vllm = plan.placements
    share = float(vllm.plan.argv[vllm.plan.argv.index("--gpu-memory-utilization") + 1])
    (pool,) = [one for one in plan.pools if one.id == "GPU0"]
    total = pool.total_bytes or 0
    # it refuses to start where less is free than its share, beside its context
    context = sum(item.n_bytes for item in vllm.plan.memory.pools[0].items if item.label == "CUDA context")
    assert total * share + context <= (pool.free_bytes or 0) - neighbor.claims["GPU0"]
    assert vllm.claims["GPU0"] >= total * share + context
    assert vllm.claims["GPU0"] >= vllm.plan.memory.pools[0].used_bytes


def test_two_that_measure_start_one_after_the_other() -> None:
    wishes = {"model": QWEN, "context": "4k"}
    plan = fleet({"context": "4k", "priority": 99}, wishes, {**wishes, "priority": 70}, on=machine("rtx-3090"))
    within(plan)
    assert plan.order == ("m2", "m1", "m0")


def test_a_margin_counts_once() -> None:
    """Two models that fill a card but for one margin of it."""
    free = machine("rtx-3090").devices[0].free_bytes or 0
    one = fleet({"context": "8k"}, on=machine("rtx-3090"))
    held = one.placements[0].claims["GPU0"]
    margin = next(pool.margin_bytes for pool in one.pools if pool.id == "GPU0")
    fits = replace(
        machine("rtx-3090"), devices=(replace(machine("rtx-3090").devices[0], free_bytes=2 * held + margin),)
    )
    short = replace(fits, devices=(replace(fits.devices[0], free_bytes=2 * held + margin - 1),))
    assert 2 * held + 2 * margin < free
    assert fleet({"context": "8k"}, {"context": "8k"}, on=fits).fits
    assert not fleet({"context": "8k"}, {"context": "8k"}, on=short).fits


def test_a_stated_margin_of_a_machine_counts_once() -> None:
    rows = [{"name": name, "model": LLAMA, "context": "8k"} for name in ("a", "b", "c")]
    of = {"name": "box", "on": ["rtx-3090"], "ram": "64GiB", "margin": "5GiB"}
    plan = autofit.fleet({"machine": [of], "model": rows}, settings=None)
    assert plan.fits
    assert next(pool.margin_bytes for pool in plan.pools if pool.id == "GPU0") == 5 * GIB
    within(plan)


def test_models_of_a_group_take_turns_and_phases_keep_apart() -> None:
    big = {"context": "64k"}
    plan = fleet(
        {**big, "group": "g"},
        {**big, "group": "g", "replicas": 1},
        {"context": "4k", "phases": ["day"]},
        {"context": "8k", "phases": ["night"]},
        on=machine("rtx-3090"),
        phases=["day", "night"],
    )
    assert plan.fits
    within(plan)
    assert set(plan.sets) == {("m0", "m2"), ("m1", "m2"), ("m0", "m3"), ("m1", "m3")}
    by_name = {one.name: one for one in plan.placements}
    assert by_name["m0"].evicts == ("m1",) and by_name["m2"].evicts == ("m3",)
    assert not fleet(big, big, on=machine("rtx-3090")).fits


def test_copies_of_a_model_run_side_by_side() -> None:
    plan = fleet({"context": "4k", "replicas": 3, "group": "g", "port": 9000}, on=machine("2x rtx-3090"))
    within(plan)
    assert [one.name for one in plan.placements] == ["m0-1", "m0-2", "m0-3"]
    assert [one.port for one in plan.placements] == [9000, 9001, 9002]
    assert plan.sets == (("m0-1", "m0-2", "m0-3"),)
    assert {one.devices[0].id for one in plan.placements} == {"GPU0", "GPU1"}


def test_machines_that_differ() -> None:
    both = {"small": machine("rtx-3060-12gb"), "large": machine("rtx-4090")}
    plan = fleet({"context": "64k"}, {"context": "4k", "machines": ["small"]}, on=both)
    within(plan)
    assert [one.machine for one in plan.placements] == ["large", "small"]


# -- who stays -----------------------------------------------------------------------------------------------


def test_who_stays_is_decided_by_priority() -> None:
    for first, second in ((80, 20), (20, 80)):
        plan = fleet(
            {"context": "64k", "priority": first}, {"context": "64k", "priority": second}, on=machine("rtx-3090")
        )
        assert (plan.fits, plan.proof) == (False, "impossible")
        assert plan.left_out == (("m1",) if first > second else ("m0",))
        assert [one.name for one in plan.placements] == [name for name in ("m0", "m1") if name not in plan.left_out]
        kinds = [one.kind for one in plan.changes]
        assert kinds == ["leave out", "lower", "layers in RAM", "swap", "add memory"]
        within(replace(plan, sets=tuple((one.name,) for one in plan.placements)))


def test_what_is_missing_is_exact() -> None:
    """With the bytes that it lacks it fits, and with one less it does not."""
    on = machine("rtx-3090")
    lacks = fleet({"context": "64k"}, {"context": "64k"}, on=on).shortfall_bytes
    assert lacks

    def with_more(n: int) -> Machine:
        card = on.devices[0]
        return replace(on, devices=(replace(card, free_bytes=(card.free_bytes or 0) + n),))

    assert fleet({"context": "64k"}, {"context": "64k"}, on=with_more(lacks)).fits
    assert not fleet({"context": "64k"}, {"context": "64k"}, on=with_more(lacks - 1)).fits


def test_changes_do_what_they_say() -> None:
    on = machine("rtx-3090")
    plan = fleet({"context": "64k"}, {"context": "64k"}, on=on)
    assert "m1" in plan.changes[1].message and "32768" in plan.changes[1].message
    assert fleet({"context": "64k"}, {"context": "32k"}, on=on).fits
    assert fleet({"context": "64k", "group": "g"}, {"context": "64k", "group": "g"}, on=on).fits
    turns = fleet({"context": "64k"}, {"context": "64k"}, on=on, **{"when-full": "swap"})
    assert turns.fits and "take turns" in turns.findings[-1]
    within(turns)


def test_how_many_copies_have_a_place_is_said() -> None:
    on = machine("rtx-3090")
    plan = fleet({"context": "4k", "replicas": 40, "priority": 10}, {"context": "4k"}, on=on)
    (fewer,) = (one for one in plan.changes if one.kind == "fewer copies")
    n = int(fewer.message.split()[3])
    assert fewer.message == f"with replicas = {n} for m0 all would fit"
    assert fleet({"context": "4k", "replicas": n}, {"context": "4k"}, on=on).fits
    assert not fleet({"context": "4k", "replicas": n + 1}, {"context": "4k"}, on=on).fits


def test_layers_in_ram_are_offered_where_they_are_enough() -> None:
    on = machine("rtx-3090")
    plan = fleet({"context": "64k"}, {"context": "64k", "priority": 10}, on=on)
    (change,) = (one for one in plan.changes if one.kind == "layers in RAM")
    assert change.models == ("m1",) and "layers-in-ram = true for m1" in change.message
    changed = fleet({"context": "64k"}, {"context": "64k", "layers-in-ram": True}, on=on)
    assert changed.fits
    within(changed)
    assert fleet({"devices": 3}, on=on).shortfall == "m0 takes 3 devices, and its machines have 1 at most"


def test_a_model_that_fits_nowhere_is_named() -> None:
    plan = fleet(
        {"model": "example:mixtral-8x22b-q4_k_m", "context": "8k"},
        {"context": "4k"},
        on=machine("rtx-3090", ram="16GiB"),
    )
    assert plan.left_out == ("m0",)
    assert "m0 does not fit even alone" in (plan.shortfall or "")
    assert not fleet({"model": "example:mixtral-8x22b-q4_k_m"}, on=machine("rtx-3090", ram="16GiB")).placements


# -- laws ----------------------------------------------------------------------------------------------------

FLEETS = (
    ({"context": "32k"}, {"context": "16k", "priority": 10}, {"model": QWEN, "context": "4k"}),
    ({"group": "g", "context": "64k"}, {"group": "g", "context": "32k"}, {"context": "16k"}),
)


@pytest.mark.slow_but("models0")
@pytest.mark.parametrize("models", FLEETS)
def test_more_memory_never_loses_a_fleet(models: tuple[dict[str, Any], ...]) -> None:
    fitted = False
    for gib in (10, 16, 22, 40):
        plan = fleet(*models, on=machine(f"generic-cuda:{gib}GiB"))
        within(plan) if plan.fits else None
        assert plan.fits or not fitted
        fitted = plan.fits
    assert fitted


@pytest.mark.slow_but("models0")
@pytest.mark.parametrize("models", FLEETS)
def test_a_fleet_with_fewer_models_fits_as_well(models: tuple[dict[str, Any], ...]) -> None:
    on = machine("generic-cuda:22GiB")
    named = [{"name": f"n{i}", **one} for i, one in enumerate(models)]
    assert fleet(*named, on=on).fits
    for some in combinations(named, len(named) - 1):
        plan = fleet(*some, on=on)
        assert plan.fits
        within(plan)


def test_the_order_of_models_and_of_machines_alike_does_not_matter() -> None:
    models = [{"name": "a", "context": "32k"}, {"name": "b", "context": "16k"}, {"name": "c", "context": "64k"}]
    held = set()
    for order in (models, models[::-1], [models[1], models[2], models[0]]):
        plan = fleet(*order, on={"x": machine("rtx-3090"), "y": machine("rtx-3090")})
        within(plan)
        held.add(tuple(sorted((one.name, *sorted(one.claims.items())) for one in plan.placements)))
    assert len({tuple((name, dict(rest)["GPU0"]) for name, *rest in one) for one in held}) == 1


def test_a_large_fleet_fits_with_the_least_of_each() -> None:
    """Beyond what is searched exactly: found by going through the largest first, and nothing can be better."""
    box = {"name": "box", "on": ["4x generic-cuda:8GiB"], "ram": "256GiB", "count": 20}
    rows = [{"name": "a", "model": LLAMA, "replicas": 60}, {"name": "b", "model": str(TINY), "replicas": 60}]
    plan = autofit.fleet({"machine": [box], "model": rows}, settings=None)
    assert (plan.fits, plan.proof, len(plan.placements)) == (True, "best", 120)
    assert {one.plan.context_tokens for one in plan.placements if one.model.name == "a"} == {8192}
    within(plan)


@pytest.mark.skipif(sys.platform != "linux", reason="a program of a POSIX shell")
def test_on_this_machine_the_version_is_that_of_the_installed_engine(tmp_path: Path) -> None:
    write_program(tmp_path / "llama-server", "#!/bin/sh\necho 'version: 11100 (abc)' >&2\n")
    around = Surroundings(environ={"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)}, directory=tmp_path)
    rows = {"model": [{"name": "a", "model": str(TINY)}]}
    versions = [
        autofit.fleet(rows, replace(machine("rtx-3090"), origin=origin), settings=around)
        .placements[0]
        .plan.engine_version
        for origin in ("detected", "profile")
    ]
    assert versions == ["b11100", "b11311"]


def test_unified_memory_is_one_pool_with_a_limit_for_its_devices() -> None:
    plan = fleet({"context": "8k"}, {"context": "16k"}, on=machine("m3-max-36gb", ram="36GiB"))
    assert plan.fits
    within(plan)
    held = {pool.id: pool.peak_bytes for pool in plan.pools}
    assert 0 < held["GPU0"] < held["host"]
    vllm = fleet({"model": QWEN, "context": "4k"}, {"context": "8k"}, on=machine("gb10", ram="128GiB"))
    assert vllm.fits
    within(vllm)


def test_weights_go_to_ram_where_a_model_is_whole_nowhere() -> None:
    mixtral = {"model": "example:mixtral-8x7b-q4_k_m", "context": "4k"}
    plan = fleet(mixtral, {"context": "4k", "priority": 90}, on=machine("rtx-3090"))
    assert plan.fits
    within(plan)
    assert any(found.code == "weights-in-ram" for found in plan.placements[0].plan.findings)
    assert not any(found.code == "weights-in-ram" for found in plan.placements[1].plan.findings)


def test_caches_in_ram_shrink_where_ram_is_short() -> None:
    plan = fleet({"context": "4k", "replicas": 4}, on=machine("a100-80gb", ram="16GiB"))
    assert plan.fits
    within(plan)


# -- the command line ----------------------------------------------------------------------------------------


def test_commands_are_judged_together(capsys: pytest.CaptureFixture[str]) -> None:
    one = ["llama-server", "-m", LLAMA, "-c", "65536"]
    assert main(["fleet", "--on", "rtx-3090", "--ram", "64GiB", "--format", "json", "--", *one, "---", *one]) == 3
    document = json.loads(capsys.readouterr().out)
    assert (document["fits"], document["left_out"]) == (False, ["example-llama-3.1-8b-q4_k_m-2"])
    assert main(["fleet", "--on", "2x3090", "--ram", "64GiB", "-q", "--format", "json", "--", *one, "---", *one]) == 0
    document = json.loads(capsys.readouterr().out)
    argvs = [one["plan"]["argv"] for one in document["models"]]
    assert [words[:5] for words in argvs] == [one, one]
    assert {tuple(one["devices"]) for one in document["models"]} == {("GPU0",), ("GPU1",)}


def test_devices_that_a_command_names_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    one = ["llama-server", "-m", LLAMA, "-c", "8192"]
    words = [*one, "-dev", "CUDA1", "---", "CUDA_VISIBLE_DEVICES=1", *one, "---", *one]
    assert main(["fleet", "--on", "2x3090", "--ram", "64GiB", "-q", "--format", "json", "--", *words]) == 0
    document = json.loads(capsys.readouterr().out)
    first, second, _ = document["models"]
    assert (first["devices"], second["devices"]) == (["GPU1"], ["GPU1"])
    assert second["plan"]["env"] == {"CUDA_VISIBLE_DEVICES": "1"}


def test_devices_that_a_command_of_vllm_names_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    one = ["vllm", "serve", QWEN, "--max-model-len", "512", "--gpu-memory-utilization", "0.9"]
    words = [*one, "--device-ids", "1", "---", *one, "---", *one, "-tp", "2", "--device-ids", "3,2"]
    assert main(["fleet", "--on", "4x3090", "--ram", "64GiB", "-q", "--format", "json", "--", *words]) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert [one["devices"] for one in models] == [["GPU1"], ["GPU0"], ["GPU2", "GPU3"]]


def test_a_port_is_written_only_where_a_program_listens_on_one(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["llama-cli", "-m", str(TINY), "-p", "a 'b\" $c", "---", "llama-bench", "-m", str(TINY), "---"]
    words += ["llama-server", "-m", str(TINY), "---", "llama", "serve", "-m", str(TINY), "--port", "8080", "---"]
    words += ["vllm", "serve", QWEN, "--max-model-len", "512"]
    assert main(["fleet", "--on", "3090", "--ram", "64GiB", "-q", "--format", "json", "--", *words]) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert [one["port"] for one in models] == [None, None, 8081, 8080, 8000]
    argvs = [one["plan"]["argv"] for one in models]
    assert argvs[0][:5] == ["llama-cli", "-m", str(TINY), "-p", "a 'b\" $c"]
    assert [words.count("--port") for words in argvs] == [0, 0, 1, 1, 1]
    assert main(["fleet", "--on", "3090", "--ram", "64GiB", "--format", "llama-swap", "--", *words[:5]]) == 2
    assert "tiny listens on no port" in capsys.readouterr().err


def test_two_that_run_at_once_have_not_one_port() -> None:
    on = machine("2x rtx-3090")
    one = ["llama-server", "-m", str(TINY), "--port", "9000"]
    with pytest.raises(autofit.UsageError, match="tiny and tiny-2 both listen on port 9000"):
        autofit.fleet([one, one], on, settings=None)
    with pytest.raises(autofit.UsageError, match="m0-1 and m0-2 both listen on port 9000"):
        fleet({"model": str(TINY), "replicas": 2, "engine-args": ["--port", "9000"]}, on=on)
    stated = {"model": str(TINY), "engine-args": ["--port", "9000"]}
    turns = fleet({**stated, "group": "g"}, {**stated, "group": "g"}, on=on)
    assert [one.port for one in turns.placements] == [9000, 9000]
    apart = fleet({**stated, "machines": ["x"]}, {**stated, "machines": ["y"]}, on={"x": on, "y": on})
    assert [one.port for one in apart.placements] == [9000, 9000]


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["fleet"], "no file"),
        (["fleet", "--"], "no file"),
        (["fleet", "--", "---"], "an empty command"),
        (["fleet", "x.toml", "--", "llama-server", "-m", "m.gguf"], "a file and commands"),
        (["fleet", "none.toml"], "none.toml"),
        (["fleet", "none.toml", "--format", "dockerfile"], "no format 'dockerfile' of fleets"),
        (["fleet", "--margin", "1GiB,2GiB", "--", "llama-server", "-m", str(TINY)], "one value for all devices"),
    ],
)
def test_what_the_command_line_refuses(words: list[str], cause: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert cause in capsys.readouterr().err


def test_files_go_into_a_folder_once(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fleet", "--on", "rtx-3090", "--ram", "64GiB", "-q", "--into", str(tmp_path / "out")]
    words += ["--", "llama-server", "-m", str(TINY)]
    assert main(words) == 0
    assert (tmp_path / "out/machine.sh").read_text().startswith("#!/bin/sh\n")
    assert capsys.readouterr().out == ""
    assert main(words) == 2
    assert "is there already" in capsys.readouterr().err
