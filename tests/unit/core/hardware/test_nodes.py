"""Several machines: described, recorded, in Kubernetes; what is damaged or missing of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import autofit
import pytest
from autofit.errors import HardwareError, UnknownHardwareError, UsageError
from autofit.hardware import machine_to_dict
from autofit.hardware.nodes import Member, apart, join

A3 = "gcp-a3-highgpu-8g"


def test_machines_of_profiles() -> None:
    machine = autofit.load_machine(f"2x{A3}", "aws-p5e-48xlarge")
    assert [node.name for node in machine.nodes] == ["node1", "node2"] and machine.node is not None
    assert len(machine.devices) == 24
    assert [machine.devices[at].id for at in (0, 7, 8, 16)] == ["GPU0", "GPU7", "node1/GPU0", "node2/GPU0"]
    assert [machine.devices[at].node for at in (0, 8, 16)] == ["", "node1", "node2"]
    assert machine.devices[16].name != machine.devices[8].name
    ends = {device.id: device.node for device in machine.devices}
    assert machine.links and all(ends[link.a] == ends[link.b] for link in machine.links)
    assert machine.nodes[0].host is not None and machine.nodes[0].host.total_bytes == machine.host.total_bytes


def test_a_thousand_machines_share_what_is_alike() -> None:
    machine = autofit.load_machine(f"1000x{A3}")
    assert len(machine.nodes) == 999 and len(machine.devices) == 8000
    with pytest.raises(UnknownHardwareError, match="at most 1024"):
        autofit.load_machine(f"1000x{A3}", f"100x{A3}")


def test_cards_beside_machines_belong_to_none() -> None:
    with pytest.raises(UnknownHardwareError, match="is no machine"):
        autofit.load_machine(A3, A3, "rtx-3090")


def test_recorded_machines_are_called_as_their_files(tmp_path: Path) -> None:
    for name in ("left", "right"):
        machine = autofit.load_machine("2x rtx-3090", ram="64GiB")
        (tmp_path / f"{name}.json").write_text(json.dumps(machine_to_dict(machine)))
    found = autofit.load_machine(str(tmp_path / "left.json"), str(tmp_path / "right.json"))
    assert found.node is not None and found.node.name == "left" and found.nodes[0].name == "right"
    again = tmp_path / "both.json"
    again.write_text(json.dumps(machine_to_dict(found)))
    assert [one.node for one in autofit.load_machine(str(again)).devices] == ["", "", "right", "right"]


def test_machines_that_were_joined_come_apart_as_they_were() -> None:
    named = {"a": A3, "b": "m3-max-36gb", "c": "aws-p5e-48xlarge"}
    members = [Member(name, autofit.load_machine(on, ram="64GiB" if name == "b" else None), f"10.0.0.{at}")
               for at, (name, on) in enumerate(named.items())]  # fmt: skip
    found = apart(join(members))
    assert [(one.name, one.address) for one in found] == [(one.name, one.address) for one in members]
    for before, after in zip(members, found, strict=True):
        assert after.machine.devices == before.machine.devices
        assert after.machine.host == before.machine.host
        assert after.machine.node is None and not after.machine.nodes
        assert set(after.machine.links) == set(before.machine.links)
    alone = autofit.load_machine("2x rtx-3090", ram="64GiB")
    assert [one.machine for one in apart(alone)] == [alone]


def node(name: str, gpus: str | None = "8", **changes: Any) -> dict[str, Any]:
    allocatable = {"cpu": "208", "memory": "2000000000Ki", **({"nvidia.com/gpu": gpus} if gpus else {})}
    return {
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "nvidia.com/gpu.memory": "81559"},
        },
        "spec": {},
        "status": {
            "allocatable": allocatable,
            "addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": "10.0.0.7"}],
            "conditions": [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": "True"}],
        },
        **changes,
    }


def listed(path: Path, *nodes: Mapping[str, Any]) -> str:
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(nodes)}))
    return str(path)


def test_nodes_of_kubernetes(tmp_path: Path) -> None:
    drained = node("drained", spec={"unschedulable": True})
    late = node("late")
    late["status"]["conditions"][1]["status"] = "Unknown"
    path = listed(tmp_path / "nodes.json", node("a"), node("cpu", None), drained, node("b", "4"), late)
    machine = autofit.load_machine(path)
    assert machine.origin == "kubernetes" and machine.node is not None
    assert (machine.node.name, machine.node.address) == ("a", "10.0.0.7")
    assert [(one.name, one.address) for one in machine.nodes] == [("b", "10.0.0.7")]
    assert len(machine.devices) == 12 and {one.profile for one in machine.devices} == {"h100-80gb"}
    assert machine.host.available_bytes == 2_000_000_000 * 1024
    assert [said for said in machine.findings if "left out" in said] == [
        "node drained is left out: it takes no pods (unschedulable)", "node late is left out: it is not ready",
    ]  # fmt: skip
    assert {link.a.partition("/")[0] for link in machine.links} == {"node1", *(f"GPU{at}" for at in range(7))}


def test_gpus_of_kubernetes_may_be_stated(tmp_path: Path) -> None:
    plain = node("a")
    plain["metadata"]["labels"] = {}
    path = listed(tmp_path / "nodes.json", plain)
    with pytest.raises(HardwareError, match=r"no label nvidia\.com/gpu\.product") as raised:
        autofit.load_machine(path)
    assert "=h100-80gb" in (raised.value.hint or "")
    assert autofit.load_machine(f"{path}=l40s").devices[0].profile == "l40s"
    with pytest.raises(HardwareError):
        autofit.load_machine(f"{path}=no-such-card")


@pytest.mark.parametrize(
    "item",
    [
        {},
        {"kind": "Node"},
        node("a\x1b[2J"),
        {**node("a"), "status": []},
        {**node("a"), "status": {"allocatable": {"nvidia.com/gpu": "99999999"}}},
        {**node("a"), "status": {"allocatable": {"nvidia.com/gpu": 8}}},
        {**node("a"), "metadata": {"name": "a", "labels": {"nvidia.com/gpu.product": ["x"]}}},
    ],
)
def test_nodes_that_are_none(item: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(HardwareError) as raised:
        autofit.load_machine(listed(tmp_path / "nodes.json", {"kind": "Node", **item}))
    assert raised.value.message.isprintable()


def test_a_cluster_without_ray_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(HardwareError, match="not installed") as raised:
        autofit.load_machine("ray://auto")
    assert "pip install ray" in (raised.value.hint or "")


def test_names_are_told_apart_and_none_are_too_many() -> None:
    machine = autofit.load_machine("rtx-3090", ram="64GiB")
    found = join([Member("a", machine), Member("a", machine), Member("a", machine)])
    assert [one.name for one in found.nodes] == ["node1", "node2"]
    with pytest.raises(UnknownHardwareError):
        join([])


def test_engines_of_one_machine_refuse_several() -> None:
    with pytest.raises(UsageError, match="runs on one machine, and 2 are described") as raised:
        autofit.plan("llama", "example:tiny", on=f"2x{A3}")
    assert "@rpc" in (raised.value.hint or "")
    with pytest.raises(UsageError, match="--on describes several"):
        autofit.plan("vllm", "example:tiny", on=f"2x{A3}", nodes=2)
