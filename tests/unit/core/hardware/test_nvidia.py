"""NVIDIA devices as NVML, nvidia-smi and the kernel module tell them, on recorded machines."""

from __future__ import annotations

from pathlib import Path

import pytest
from autofit.domain.machine import Machine
from autofit.domain.units import GIB, MIB
from autofit.hardware import nvidia
from autofit.hardware.nvml import Nvml

from support.recorded_machines import FakeNvml, detect, machine


def found(name: str, tmp_path: Path, **changes: object) -> Machine:
    return detect(machine(name, tmp_path, **changes))  # type: ignore[arg-type]


def said(result: Machine, *words: str) -> bool:
    return any(all(word in finding for word in words) for finding in result.findings)


def test_a_desktop_card_counts_what_is_free_and_who_holds_the_rest(tmp_path: Path) -> None:
    (card,) = found("rtx-3090-desktop", tmp_path).devices
    assert (card.id, card.index, card.api, card.profile) == ("GPU0", 0, "cuda", "rtx-3090")
    assert card.total_bytes == 24576 * MIB
    assert card.reserved_bytes == 441 * MIB
    assert card.free_bytes == (24576 - 441 - 5700) * MIB
    assert card.usable_bytes == (24576 - 441) * MIB
    assert [(h.pid, h.name, h.used_bytes, h.ours) for h in card.held_by] == [
        (4242, "llama-server", 5200 * MIB, True),
        (1203, "Xorg", 350 * MIB, False),
    ]
    assert card.compute_capability == (8, 6)
    assert card.n_sm == 82
    assert card.bandwidth_bytes_per_s == 936_000_000_000
    assert card.fp16_flops_per_s is not None
    # at rest the card has lowered its link to generation 1
    assert card.link_bytes_per_s == 16 * 1_969_230_769


def test_every_figure_has_a_source(tmp_path: Path) -> None:
    result = found("rtx-3090-desktop", tmp_path)
    for figure in (
        "total_bytes",
        "free_bytes",
        "reserved_bytes",
        "n_sm",
        "bandwidth_bytes_per_s",
        "link_bytes_per_s",
    ):
        assert result.sources[f"GPU0.{figure}"].split(":")[0] in {"measured", "derived", "exact"}
    assert result.sources["GPU0.free_bytes"] == "measured: NVML"


def test_unlike_cards_are_numbered_fastest_first_and_that_is_said(tmp_path: Path) -> None:
    result = found("two-unlike-cards", tmp_path)
    assert [d.name for d in result.devices] == ["NVIDIA GeForce RTX 3090", "NVIDIA GeForce RTX 3060"]
    assert said(result, "fastest first", "CUDA_DEVICE_ORDER=PCI_BUS_ID")
    assert "PCIe x4 in use, x16 possible" in result.devices[0].notes
    assert result.devices[0].link_bytes_per_s == 4 * 1_969_230_769


def test_pci_bus_order_is_kept_when_asked_for(tmp_path: Path) -> None:
    result = found("two-unlike-cards", tmp_path, env={"CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
    assert [d.name for d in result.devices] == ["NVIDIA GeForce RTX 3060", "NVIDIA GeForce RTX 3090"]
    assert not result.findings


def test_visible_devices_choose_and_renumber_in_cuda_order(tmp_path: Path) -> None:
    result = found("two-unlike-cards", tmp_path, env={"CUDA_VISIBLE_DEVICES": "1"})
    (card,) = result.devices
    assert (card.id, card.index, card.name) == ("GPU0", 0, "NVIDIA GeForce RTX 3060")


def test_visible_devices_by_uuid_prefix(tmp_path: Path) -> None:
    result = found("two-unlike-cards", tmp_path, env={"CUDA_VISIBLE_DEVICES": "GPU-9a0d,GPU-4fb6"})
    assert [d.name for d in result.devices] == ["NVIDIA GeForce RTX 3060", "NVIDIA GeForce RTX 3090"]


def test_hidden_devices_are_said_to_be_hidden(tmp_path: Path) -> None:
    result = found("two-unlike-cards", tmp_path, env={"CUDA_VISIBLE_DEVICES": ""})
    assert not result.devices
    assert said(result, "CUDA_VISIBLE_DEVICES is empty")


def test_nvlink_bridge_joins_two_cards(tmp_path: Path) -> None:
    (link,) = found("two-rtx-3090-nvlink", tmp_path).links
    assert (link.a, link.b, link.kind, link.bytes_per_s) == ("GPU0", "GPU1", "NVLink", 56_250_000_000)


def test_nvlink_switch_joins_every_pair(tmp_path: Path) -> None:
    result = found("four-a100-nvswitch", tmp_path)
    assert len(result.devices) == 4
    assert len(result.links) == 6
    assert {link.bytes_per_s for link in result.links} == {300_000_000_000}
    assert "ECC on" in result.devices[0].notes
    assert result.host.n_numa_nodes == 8


def test_links_of_hidden_cards_are_gone(tmp_path: Path) -> None:
    result = found("four-a100-nvswitch", tmp_path, env={"CUDA_VISIBLE_DEVICES": "3,1"})
    assert [(link.a, link.b) for link in result.links] == [("GPU0", "GPU1")]


class TestMig:
    def test_parent_query_forbidden_in_a_container(self, tmp_path: Path) -> None:
        result = found("h100-mig-container", tmp_path)
        (card,) = result.devices
        assert card.name == "NVIDIA H100 80GB HBM3 MIG 2g.20gb"
        assert card.uuid == "MIG-3eb87630-93d5-5b2b-b8ff-9b359caf4ee2"
        assert card.total_bytes == 19 * GIB
        assert card.free_bytes == 19 * GIB - 11 * MIB
        assert card.n_sm == 32
        # the share of the card's bandwidth goes with its share of memory
        assert card.bandwidth_bytes_per_s is not None
        assert 0.2 < card.bandwidth_bytes_per_s / 3_350_000_000_000 < 0.26

    def test_one_process_sees_one_instance_and_the_others_are_named(self, tmp_path: Path) -> None:
        result = found("h100-mig-container", tmp_path)
        assert said(result, "one MIG instance", "MIG-8fb93ab3-9e2c-5bd6-9e0f-6fbf27a4a58d")

    def test_chosen_by_uuid(self, tmp_path: Path) -> None:
        env = {"CUDA_VISIBLE_DEVICES": "MIG-8fb93ab3-9e2c-5bd6-9e0f-6fbf27a4a58d"}
        (card,) = found("h100-mig-container", tmp_path, env=env).devices
        assert card.n_sm == 60
        assert card.total_bytes == 39 * GIB

    def test_chosen_by_the_old_spelling(self, tmp_path: Path) -> None:
        env = {"CUDA_VISIBLE_DEVICES": "MIG-GPU-b1028956-cfa2-0990-bf4a-5da9abb51763/1/0"}
        (card,) = found("h100-mig-container", tmp_path, env=env).devices
        assert card.n_sm == 60

    def test_index_names_the_card_and_gives_its_first_instance(self, tmp_path: Path) -> None:
        (card,) = found("h100-mig-container", tmp_path, env={"CUDA_VISIBLE_DEVICES": "0"}).devices
        assert card.n_sm == 32

    def test_a_card_without_instances_shows_nothing(self, tmp_path: Path) -> None:
        result = found("h100-mig-without-instances", tmp_path)
        assert not result.devices
        assert said(result, "MIG mode without an instance")

    def test_dead_process_holds_memory(self, tmp_path: Path) -> None:
        (card,) = found("mig-memory-held-by-dead-process", tmp_path).devices
        assert card.free_bytes == 14 * GIB - 11 * MIB
        assert [(h.pid, h.name) for h in card.held_by] == [(31337, None)]
        assert any("31337" in note and "dead" in note for note in card.notes)


def test_vgpu_is_said_to_share_its_card(tmp_path: Path) -> None:
    (card,) = found("a10-vgpu", tmp_path).devices
    assert any(note.startswith("vGPU") for note in card.notes)
    assert card.free_bytes == (24512 - 1700) * MIB


def test_memory_held_from_another_container_is_named(tmp_path: Path) -> None:
    (card,) = found("memory-held-from-another-container", tmp_path).devices
    assert any("9.00 GiB in use by processes that cannot be seen" in note for note in card.notes)


class TestUnified:
    def test_gb10_memory_not_supported_is_main_memory(self, tmp_path: Path) -> None:
        result = found("dgx-spark", tmp_path)
        (card,) = result.devices
        assert (card.pool, card.integrated, card.profile) == ("host", True, "gb10")
        assert card.total_bytes == result.host.total_bytes
        assert card.free_bytes == result.host.available_bytes
        assert card.bandwidth_bytes_per_s == 273_056_000_000
        assert result.host.n_cores_performance == 20  # both kinds are above half of the fastest
        assert result.host.has_repack is True

    def test_gb10_through_nvidia_smi_na(self, tmp_path: Path) -> None:
        from autofit.hardware.programs import ToolError

        system = machine("dgx-spark", tmp_path)
        object.__setattr__(system, "load_nvml", lambda: (_ for _ in ()).throw(ToolError("not installed")))
        (card,) = detect(system).devices
        assert (card.pool, card.free_bytes is not None) == ("host", True)

    def test_jetson_without_nvml_is_found_by_its_device_tree(self, tmp_path: Path) -> None:
        (card,) = found("jetson-orin-nano", tmp_path).devices
        assert card.compute_capability == (8, 7)
        assert (card.pool, card.profile) == ("host", "jetson-orin-nano-8gb")

    def test_rtx_5090_is_not_taken_for_unified(self, tmp_path: Path) -> None:
        (card,) = found("rtx-5090", tmp_path).devices
        assert (card.pool, card.integrated) == ("GPU0", False)
        assert card.free_bytes == (32607 - 498) * MIB


class TestWindows:
    def test_wsl_names_the_spill_zone(self, tmp_path: Path) -> None:
        (card,) = found("wsl2-rtx-4090", tmp_path).devices
        assert any(note.startswith("WDDM") for note in card.notes)
        assert card.free_bytes == (24564 - 487 - 1800) * MIB

    def test_wddm_processes_hold_an_unknown_amount(self, tmp_path: Path) -> None:
        (card,) = found("wsl2-rtx-4090", tmp_path).devices
        assert {h.used_bytes for h in card.held_by} == {None}
        assert not any("cannot be seen" in note for note in card.notes)

    def test_wddm_on_windows_itself(self, tmp_path: Path) -> None:
        facts = nvidia.find(
            machine("windows-wddm", tmp_path, platform="win32"), detect(machine("cpu-only", tmp_path)).host
        )
        assert any(note.startswith("WDDM") for note in facts.devices[0].notes)


class TestDeclines:
    """NVML's ways of not answering are told apart."""

    @pytest.mark.parametrize(
        ("number", "reason"),
        [
            (3, "not supported"),
            (4, "no permission"),
            (13, "missing symbol"),
            (15, "lost"),
            (18, "driver mismatch"),
            (999, "unknown error"),
        ],
    )
    def test_by_number(self, number: int, reason: str) -> None:
        nvml = Nvml(FakeNvml({"devices": [{"name": {"error": number}}]}))
        assert nvml.ask("nvmlDeviceGetName", {"name": {"error": number}}).reason == reason

    def test_a_module_older_than_a_function(self) -> None:
        assert (
            Nvml(FakeNvml({"devices": [], "missing": ["nvmlDeviceGetMigMode"]})).ask("nvmlDeviceGetMigMode", {}).reason
            == "missing symbol"
        )

    def test_a_module_older_than_an_argument(self) -> None:
        assert Nvml(FakeNvml({"devices": []})).ask("nvmlDeviceGetCount", 1, 2, 3).reason == "version mismatch"

    def test_driver_mismatch_says_what_to_do(self, tmp_path: Path) -> None:
        result = found("driver-mismatch", tmp_path)
        assert not result.devices
        assert said(result, "NVIDIA GeForce RTX 3090", "driver mismatch", "reboot")
        assert len(result.findings) == 1  # the bus has nothing to add

    def test_lost_and_reset_required_devices_leave_the_others(self, tmp_path: Path) -> None:
        result = found("lost-gpu", tmp_path)
        assert [d.uuid for d in result.devices] == ["GPU-0c0ffee0-1111-2222-3333-444455556666"]
        assert said(result, "device 0", "lost")
        assert said(result, "RTX 3060", "reset required")

    def test_driver_without_the_second_memory_query(self, tmp_path: Path) -> None:
        (card,) = found("driver-470-without-memory-v2", tmp_path).devices
        assert card.reserved_bytes is None
        assert card.free_bytes == (15109 - 400) * MIB
        assert card.bandwidth_bytes_per_s == 320_000_000_000
        assert card.n_sm == 40

    def test_prohibited_compute_mode(self, tmp_path: Path) -> None:
        result = found("prohibited-compute-mode", tmp_path)
        assert not result.devices
        assert said(result, "compute mode prohibited")

    def test_no_permission_leaves_a_card_whose_memory_is_unknown(self, tmp_path: Path) -> None:
        result = found("nvml-without-permission", tmp_path)
        (card,) = result.devices
        assert (card.name, card.free_bytes, card.total_bytes) == ("NVIDIA GeForce RTX 3090", None, None)
        assert said(result, "no permission", "--on")

    def test_a_card_without_a_driver_is_named_from_the_bus(self, tmp_path: Path) -> None:
        result = found("no-driver", tmp_path)
        assert not result.devices
        assert said(result, "0000:01:00.0", "10de:2204", "no driver is bound")


class TestHanging:
    def test_detection_ends_in_time_when_nvml_hangs(self, tmp_path: Path) -> None:
        system = machine("nvml-hangs", tmp_path, seconds=0.3)
        hang = system.load_nvml().hang
        result = detect(system)  # comes back although the driver does not
        assert not hang.is_set()
        hang.set()
        # the kernel module names the card: a plan must not pass it over because its memory is unknown
        assert [(d.name, d.total_bytes, d.free_bytes) for d in result.devices] == [
            ("NVIDIA GeForce RTX 3090", None, None)
        ]
        assert said(result, "no answer within 0.3 s", "AUTOFIT_DETECT_SECONDS", "--on rtx-3090:SIZE")

    def test_a_driver_that_is_slow_and_not_dead_is_waited_for(self, tmp_path: Path) -> None:
        system = machine("nvml-hangs", tmp_path, seconds=10.0)
        system.load_nvml().hang.set()
        (card,) = detect(system).devices
        assert card.free_bytes == (24576 - 441) * MIB


class TestNvidiaSmi:
    """The way that is left where the library cannot be loaded."""

    def test_total_free_reserved(self, tmp_path: Path) -> None:
        result = found("nvidia-smi-only", tmp_path)
        assert [d.free_bytes for d in result.devices] == [19770 * MIB, 22579 * MIB]
        assert {d.reserved_bytes for d in result.devices} == {449 * MIB}
        assert {d.profile for d in result.devices} == {"a10g"}
        assert result.sources["GPU1.free_bytes"] == "measured: nvidia-smi"

    def test_one_that_hangs_is_told(self, tmp_path: Path) -> None:
        result = found("cpu-only", tmp_path, tools=[[["nvidia-smi"], {"seconds": 60, "stdout": ""}]])
        assert not result.devices
        assert said(result, "NVIDIA: nvidia-smi: no answer", "AUTOFIT_DETECT_SECONDS")

    def test_unlike_cards_are_numbered_by_what_is_known_of_their_speed(self, tmp_path: Path) -> None:
        lines = [f"{i}, NVIDIA GeForce RTX {n}, GPU-{i}, 24576, 24000, 300, 8.6" for i, n in enumerate((3090, 4090))]
        tools = [[["nvidia-smi"], {"stdout": lines}]]
        fast, slow = found("cpu-only", tmp_path, tools=tools).devices
        assert (fast.profile, slow.profile) == ("rtx-4090", "rtx-3090")
        by_bus = found("cpu-only", tmp_path, tools=tools, env={"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}).devices
        assert [card.profile for card in by_bus] == ["rtx-3090", "rtx-4090"]

    def test_visible_devices_apply_here_too(self, tmp_path: Path) -> None:
        (card,) = found("nvidia-smi-only", tmp_path, env={"CUDA_VISIBLE_DEVICES": "1"}).devices
        assert card.free_bytes == 22579 * MIB

    def test_an_old_one_refuses_new_fields(self, tmp_path: Path) -> None:
        (card,) = found("nvidia-smi-old", tmp_path).devices
        assert (card.total_bytes, card.free_bytes, card.reserved_bytes) == (16160 * MIB, 16157 * MIB, None)

    def test_insufficient_permissions_is_not_a_number(self, tmp_path: Path) -> None:
        result = found("nvidia-smi-insufficient-permissions", tmp_path)
        (card,) = result.devices
        assert (card.pool, card.total_bytes, card.free_bytes) == ("GPU0", None, None)
        assert said(result, "free memory is unknown", "--on")

    def test_malformed_lines_are_skipped_and_names_are_harmless(self, tmp_path: Path) -> None:
        (card,) = found("nvidia-smi-malformed", tmp_path).devices
        assert card.name.isprintable()
        assert (card.total_bytes, card.free_bytes) == (24576 * MIB, None)


def test_the_recording_answers_like_pynvml() -> None:
    pynvml = pytest.importorskip("pynvml")
    names = [name for name in dir(FakeNvml) if name.startswith("nvml")]
    assert [name for name in names if not hasattr(pynvml, name)] == []
    assert FakeNvml.nvmlMemory_v2 == pynvml.nvmlMemory_v2
    assert pynvml.NVMLError(18).value == 18
