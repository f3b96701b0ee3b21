"""A fleet's file: what it says, and what is refused with the name of the place and the nearest word."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import autofit
import pytest
from autofit.domain.fleet import FleetMachine
from autofit.fleets.plan import plan_fleet, task_of
from autofit.fleets.reading import MAX_COPIES, fleet_of, fleet_of_commands, read_fleet
from autofit.hardware import machine_to_dict

from support import TINY

A3 = "gcp-a3-highgpu-8g"
TINY_ALONE = [{"name": "a", "model": "example:tiny"}]
HERE = (FleetMachine(name="box", machine=autofit.load_machine("generic-cuda:1GiB", ram="8GiB")),)


def of(*models: dict[str, Any], **more: Any) -> Any:
    return fleet_of({"model": [{"name": f"m{i}", "model": str(TINY), **one} for i, one in enumerate(models)], **more},
                    machines=HERE)  # fmt: skip


def test_what_a_file_says(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(
        f"""schema = 1
phases = {{ day = [], night = [], always = ["day", "night"] }}
when-full = "swap"
[defaults]
context = "2k"
margin = "64MiB"
[[machine]]
name = "big"
on = ["2x rtx-3090"]
ram = "64GiB"
margin = "1GiB"
count = 2
[[model]]
name = "chat"
model = "{TINY}"
context = "1k"
min-tps = 5
priority = 90
replicas = 2
group = "g"
phases = ["always"]
machines = ["big-2"]
devices = 2
layers-in-ram = true
port = 9000
engine-args = ["--no-mmap"]
[[model]]
name = "other"
command = "llama-server -m '{TINY}' -ngl 1"
phases = ["day"]
"""
    )
    fleet = fleet_of(read_fleet(path))
    assert [one.name for one in fleet.machines] == ["big-1", "big-2"]
    assert fleet.machines[0].margin is not None and fleet.machines[0].margin.n_bytes == 1 << 30
    assert (fleet.phases, fleet.when_full) == (("day", "night"), "swap")
    chat, other = fleet.models
    assert (chat.backend, chat.reference, chat.engine_args) == ("llama", str(TINY), ("--no-mmap",))
    assert chat.options == {"context": "1k", "margin": "64MiB", "min_tps": "5"}
    assert (chat.priority, chat.replicas, chat.group, chat.phases) == (90, 2, "g", ("day", "night"))
    assert (chat.machines, chat.n_devices, chat.layers_in_ram, chat.port) == (("big-2",), 2, True, 9000)
    assert (other.program, other.engine_args[:1], other.phases) == (("llama-server",), ("-m",), ("day",))
    assert other.options["context"] == "2k"


def nodes(path: Path, *names: str, ready: str = "True", kib: int = 500_000_000) -> str:
    """What `kubectl get nodes -o json` prints of nodes with two L40S each, and as many KiB of RAM but for a few."""
    items = [
        {
            "kind": "Node",
            "metadata": {"name": name, "labels": {"nvidia.com/gpu.product": "NVIDIA-L40S",
                                                  "nvidia.com/gpu.memory": "46068"}},
            "status": {"allocatable": {"memory": f"{kib + at % 7 * 4}Ki", "nvidia.com/gpu": "2"},
                       "conditions": [{"type": "Ready", "status": "True" if at else ready}]},
        }
        for at, name in enumerate(names)
    ]  # fmt: skip
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    return str(path)


def test_nodes_of_a_cluster_are_machines(tmp_path: Path) -> None:
    on = nodes(tmp_path / "nodes.json", "gone", "gpu-a.example.org", "gpu-b", ready="Unknown")
    rows = [
        {"name": "a", "model": str(TINY), "machines": ["cluster"]},
        {"name": "b", "model": str(TINY), "machines": ["gpu-b"]},
    ]
    fleet = fleet_of({"machine": [{"name": "cluster", "on": on, "margin": "2GiB"}], "model": rows})
    assert [one.name for one in fleet.machines] == ["gpu-a.example.org", "gpu-b"]
    assert [device.id for device in fleet.machines[1].machine.devices] == ["GPU0", "GPU1"]
    assert [one.machines for one in fleet.models] == [("gpu-a.example.org", "gpu-b"), ("gpu-b",)]
    assert fleet.findings[-1] == "node gone is left out: it is not ready"
    assert {one.margin and one.margin.n_bytes for one in fleet.machines} == {2 << 30}
    plan = plan_fleet(fleet)
    assert plan.fits and "it is not ready" in plan.findings[0]
    with pytest.raises(autofit.UsageError, match="no machine 'gone'"):
        rows[1]["machines"] = ["gone"]
        fleet_of({"machine": [{"name": "cluster", "on": on}], "model": rows})
    with pytest.raises(autofit.HardwareError, match=r"machine cluster: .*no node that is ready"):
        alone = nodes(tmp_path / "none.json", "gone", ready="Unknown")
        fleet_of({"machine": [{"name": "cluster", "on": alone}], "model": rows})


def test_nodes_with_a_few_pages_more_or_less_are_alike(tmp_path: Path) -> None:
    on = nodes(tmp_path / "nodes.json", *(f"n{i}" for i in range(200)))
    fleet = fleet_of({"machine": [{"name": "cluster", "on": on}], "model": TINY_ALONE})
    assert len(fleet.machines) == 200 and len(task_of(fleet).kinds) == 1


def test_a_rows_name_stands_for_all_of_its_machines() -> None:
    rows = [{"name": "node", "on": "rtx-3090", "ram": "64GiB", "count": 3}, {"name": "x", "on": f"2x {A3}"}]
    models = [{"name": "a", "model": str(TINY), "machines": ["node", "x-2"]}]
    fleet = fleet_of({"machine": rows, "model": models})
    assert fleet.models[0].machines == ("node-1", "node-2", "node-3", "x-2")
    assert [one.name for one in fleet.machines] == ["node-1", "node-2", "node-3", "x-1", "x-2"]
    assert all(not one.machine.nodes for one in fleet.machines)


def test_a_recorded_machine_is_a_machine(tmp_path: Path) -> None:
    machine = autofit.load_machine("2x rtx-3090", ram="64GiB")
    (tmp_path / "box.json").write_text(json.dumps(machine_to_dict(machine)))
    fleet = fleet_of({"machine": [{"name": "box", "on": str(tmp_path / "box.json")}], "model": TINY_ALONE})
    assert fleet.machines[0].machine.devices == machine.devices


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (lambda: of(), "no model"),
        (lambda: of({}, modle=[]), "unknown key 'modle'"),
        (lambda: of({"contxt": "4k"}), "model m0: unknown key 'contxt'"),
        (lambda: of({"min_context": "4k"}), "unknown key 'min_context'"),
        (lambda: of({"context": "many"}), "context: not a token count"),
        (lambda: of({"device": "GPU0"}), "device is not of a model"),
        (lambda: of({"name": "a b"}), "is no name"),
        (lambda: of({"name": "\x1b[31m"}), "is no name"),
        (lambda: of({"name": "x" * 61}), "at most 60 characters"),
        (lambda: of({"name": "m1"}, {}), "model m1 is there twice"),
        (lambda: of({"name": "a", "replicas": 2}, {"name": "a-2"}), "model a-2 is there twice"),
        (lambda: of({"priority": 101}), "priority: '101' is no number from 0 to 100"),
        (lambda: of({"replicas": 0}), "replicas"),
        (lambda: of({"replicas": True}), "replicas"),
        (lambda: of({"replicas": MAX_COPIES}, {}), f"{MAX_COPIES + 1} copies of models"),
        (lambda: of({"machines": ["bx"]}), "no machine 'bx'"),
        (lambda: of({"phases": ["day"]}), "no phase 'day'"),
        (lambda: of({"phases": ["dya"]}, phases=["day"]), "no phase 'dya'"),
        (lambda: of({}, phases={"a": ["b"], "b": ["c"], "c": ["a"]}), "a -> b -> c -> a is a circle"),
        (lambda: of({}, phases={"a": ["a"]}), "a -> a is a circle"),
        (lambda: of({}, phases={"a": ["b"]}), "no phase 'b'"),
        (lambda: of({}, phases=["d", "n", "d"]), "phase d is there twice"),
        (lambda: of({}, **{"when-full": "swp"}), "when-full"),
        (lambda: fleet_of({"model": TINY_ALONE, "machine": [{"name": "x", "on": "cpu", "margin": "-5"}]}),
         "machine x: margin: not a size"),
        (lambda: fleet_of({"model": TINY_ALONE, "machine": [{"name": "x", "on": "cpu"}] * 2}), "x is there twice"),
        (lambda: of({}, schema=2), "schema 2"),
        (lambda: of({"port": 80}, {"port": 80}), "m0 and m1 both have port 80"),
        (lambda: of({"port": 80, "replicas": 2}, {"port": 81}), "both have port 81"),
        (lambda: of({"port": 65535, "replicas": 2}), "2 copies from port 65535 on need port 65536"),
        (lambda: of({"model": 5}), "no model"),
        (lambda: of({"backend": "lama"}), "no backend 'lama'"),
        (lambda: of({"engine-args": [1]}), "list of texts"),
        (lambda: of({"command": "llama-server"}), "names its model and engine itself"),
        (lambda: fleet_of({"model": {}}, machines=HERE), "list of tables"),
        (lambda: fleet_of({"model": [5]}, machines=HERE), "is a table"),
        (lambda: fleet_of({"model": [{}] * 1001}, machines=HERE), "1001 of them"),
        (lambda: fleet_of({"model": [{"name": "a", "model": "/nonexistent.gguf"}]}, machines=HERE), "model a: "),
        (lambda: fleet_of({"model": [{"name": "a", "command": "'"}]}, machines=HERE), "command: No closing quotation"),
        (lambda: fleet_of({"model": [{"name": "a", "command": "rm -rf /"}]}, machines=HERE), "no backend understands"),
        (lambda: fleet_of({"model": TINY_ALONE, "machine": [{"name": "x", "on": "rtx-3091"}]}),
         "machine x: "),
        (lambda: fleet_of({"model": TINY_ALONE, "machine": [{"name": "x", "ram": "8GiB"}]}),
         "ram without on"),
        (lambda: fleet_of({"model": TINY_ALONE, "machine": [{"name": "x", "on": "cpu", "count": 1001}]}), "count"),
        (lambda: fleet_of_commands([], HERE), "no command"),
        (lambda: fleet_of_commands([["llama-server"]], HERE), "names no model"),
        (lambda: fleet_of_commands([["llama-server", "--help"]], HERE), "loads no model"),
        (lambda: fleet_of_commands([["A=1"]], HERE), "no command"),
        (lambda: fleet_of_commands([["nice", "llama-server", "-m", "x.gguf"]], HERE), "nice starts the engine"),
    ],
)  # fmt: skip
def test_what_is_refused(make: Callable[[], object], cause: str) -> None:
    with pytest.raises(autofit.AutofitError) as refused:
        make()
    assert cause in refused.value.message
    assert refused.value.message.isprintable()


def test_one_port_for_those_that_never_meet() -> None:
    assert of({"port": 80, "group": "g"}, {"port": 80, "group": "g"}).models[1].port == 80
    assert of({"port": 80, "phases": ["a"]}, {"port": 80, "phases": ["b"]}, phases=["a", "b"]).phases == ("a", "b")


def test_suggestions() -> None:
    with pytest.raises(autofit.UsageError) as refused:
        of({"contxt": "4k"})
    assert "context" in (refused.value.hint or "")


def test_names_of_commands() -> None:
    words = ["llama-server", "-m", str(TINY)]
    names = [one.name for one in fleet_of_commands([words, words, ["X=1", *words]], HERE).models]
    assert names == ["tiny", "tiny-2", "tiny-3"]


@pytest.mark.parametrize("text", ["[[model]\n", "\x00", "model = [" * 400])
def test_files_that_are_no_toml(text: str, tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    with pytest.raises(autofit.UsageError):
        read_fleet(path)
    with pytest.raises(autofit.UsageError):
        read_fleet(tmp_path / "none.toml")
