"""What detection elsewhere is known to get wrong, one test each, on recorded machines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from autofit.domain.machine import Device, Host, Machine
from autofit.domain.units import GIB, MIB
from autofit.hardware.disk import disk_of
from autofit.hardware.facts import Facts, Source
from autofit.hardware.system import System

from support.recorded_machines import detect, machine


@pytest.fixture
def found(tmp_path: Path) -> Any:
    def find(name: str, **changes: object) -> Machine:
        return detect(machine(name, tmp_path, **changes))  # type: ignore[arg-type]

    return find


class TestHeadroomAndOtherProcesses:
    def test_a_desktop_that_holds_3_5_gib_is_not_free_memory(self, found: Any) -> None:
        (card,) = found("desktop-holds-3.5-gib").devices
        assert card.free_bytes == (24576 - 441 - 3584) * MIB
        assert [(h.name, h.used_bytes, h.ours) for h in card.held_by] == [("gnome-shell", 3584 * MIB, False)]

    def test_windows_spills_to_shared_memory_silently(self, found: Any) -> None:
        (card,) = found("wsl2-rtx-4090").devices
        assert any("go to RAM, slowly" in note for note in card.notes)

    def test_vram_held_by_others_is_seen_and_named(self, found: Any) -> None:
        (card,) = found("memory-held-from-another-container").devices
        assert card.free_bytes == (24576 - 441) * MIB - 9 * GIB
        assert any("cannot be seen from here" in note for note in card.notes)

    def test_free_memory_and_not_the_total_counts(self, found: Any) -> None:
        (card,) = found("rtx-3090-desktop").devices
        assert card.free_bytes < card.usable_bytes < card.total_bytes

    def test_a_zombie_holder_leaves_19_77_of_22_05_gib(self, found: Any) -> None:
        (card,) = found("a10g-zombie-holder").devices
        # what vLLM compares: free against its share of what CUDA calls total
        assert round(card.free_bytes / GIB, 2) == 19.77
        assert round(card.usable_bytes / GIB, 2) == 22.05
        assert any("99999" in note for note in card.notes)

    def test_dead_processes_hold_mig_memory(self, found: Any) -> None:
        (card,) = found("mig-memory-held-by-dead-process").devices
        assert any("31337: dead" in note for note in card.notes)


class TestUnifiedMemoryAndVendors:
    def test_strix_halo_is_more_than_its_carve_out(self, found: Any) -> None:
        (device,) = found("strix-halo-gtt").devices
        assert device.total_bytes == 120 * GIB

    def test_strix_halo_with_96_gib_carved_out_is_not_27_5(self, found: Any) -> None:
        (device,) = found("strix-halo-carve-out-96gib").devices
        assert device.free_bytes == 96 * GIB - 300 * MIB

    def test_sysfs_gtt_used_does_not_follow_hipmalloc(self, found: Any) -> None:
        result = found("strix-halo-gtt-used-lags")
        assert result.devices[0].free_bytes == result.host.available_bytes == 40 * GIB

    def test_windows_auto_carve_out_shows_no_memory(self, found: Any) -> None:
        result = found("windows-radeon-auto-carve-out", platform="win32")
        assert not result.devices
        assert any("shows no memory" in finding and "--on NAME:SIZE" in finding for finding in result.findings)

    def test_a_radeon_on_windows_is_found_through_the_engine(self, found: Any) -> None:
        (device,) = found("windows-radeon", platform="win32").devices
        assert (device.api, device.free_bytes, device.profile) == ("vulkan", 23800 * MIB, "rx-7900-xtx")

    def test_gb10_answers_not_available_for_its_memory(self, found: Any) -> None:
        result = found("dgx-spark")
        assert result.devices[0].free_bytes == result.host.available_bytes

    def test_rtx_5090_has_memory_of_its_own(self, found: Any) -> None:
        (card,) = found("rtx-5090").devices
        assert card.free_bytes == (32607 - 498) * MIB
        assert card.pool == "GPU0"

    def test_sycl_reports_1_6_of_52_gib(self, found: Any) -> None:
        result = found("intel-uhd-only", env={"AUTOFIT_INTEGRATED": "1"})
        assert result.devices[0].total_bytes == result.host.total_bytes == 52 * GIB

    def test_one_intel_allocation_beyond_4_gib_fails(self, found: Any) -> None:
        (device,) = found("arc-a770-i915").devices
        assert any("UR_L0_ENABLE_RELAXED_ALLOCATION_LIMITS=1" in note for note in device.notes)

    def test_a_plan_past_apple_s_working_set_dies_and_sysctl_is_the_remedy(self, found: Any) -> None:
        (device,) = found("mac-m2-max-96gb", platform="darwin").devices
        assert device.total_bytes == 72 * GIB
        assert any("sudo sysctl iogpu.wired_limit_mb" in note for note in device.notes)

    @pytest.mark.parametrize(
        ("name", "total_mib", "profile"),
        [("radeon-r9700", 32624, "r9700"), ("laptop-a4000", 8192, None)],
    )
    def test_memory_comes_from_the_driver_and_never_from_a_name(
        self, found: Any, name: str, total_mib: int, profile: str | None
    ) -> None:
        (device,) = found(name).devices
        assert (device.total_bytes, device.profile) == (total_mib * MIB, profile)

    def test_an_igpu_is_no_second_card(self, found: Any) -> None:
        assert len(found("two-radeons-and-igpu").devices) == 2


class TestContainersAndMig:
    def test_a_mig_instance_is_not_the_smallest_gpu(self, found: Any) -> None:
        (card,) = found("h100-mig-container").devices
        assert (card.compute_capability, card.n_sm, card.total_bytes) == ((9, 0), 32, 19 * GIB)

    def test_the_parent_of_a_mig_instance_may_not_be_asked(self, found: Any) -> None:
        result = found("h100-mig-container")
        assert result.devices[0].free_bytes == 19 * GIB - 11 * MIB
        assert not any("unknown" in finding for finding in result.findings)

    def test_insufficient_permissions_is_not_insufficient_mib(self, found: Any) -> None:
        (card,) = found("nvidia-smi-insufficient-permissions").devices
        assert card.free_bytes is None

    def test_a_cpu_plan_compares_with_what_is_available_not_with_the_total(self, found: Any) -> None:
        host = found("cgroup-v2-4gib").host
        assert host.available_bytes < 4 * GIB < host.total_bytes


@pytest.mark.parametrize(
    ("path", "kind", "remote", "in_memory", "rotational"),
    [
        ("/home/u/m.gguf", "ext4", False, False, False),
        ("/mnt/old disk/m.gguf", "xfs", False, False, True),
        ("/net/m.gguf", "nfs4", True, False, None),
        ("/ram/m.gguf", "tmpfs", False, True, None),
        ("/fast/models/m.gguf", "btrfs", False, False, False),
    ],
)
def test_weights_are_paged_from_the_disk_they_lie_on(
    tmp_path: Path, path: str, kind: str, remote: bool, in_memory: bool, rotational: bool | None
) -> None:
    system = machine("disks", tmp_path)
    (system.root / "sys/dev/block/8:17").mkdir(parents=True, exist_ok=True)
    disk = disk_of(system, Path(path))
    assert disk is not None
    assert (disk.kind, disk.remote, disk.in_memory, disk.rotational) == (kind, remote, in_memory, rotational)


class TestFurtherSources:
    """Plugins add devices; one that fails is a finding and takes nothing with it."""

    CARD = Device(id="X0", index=0, name="Card X", api="cuda", total_bytes=8 * GIB, free_bytes=8 * GIB, uuid="GPU-x")

    def answer(self, tmp_path: Path, name: str, *devices: Device) -> Machine:
        def find(system: System, host: Host) -> Facts:
            return Facts(devices=devices, sources={"X0.free_bytes": "measured: x"})

        return detect(machine(name, tmp_path), Source("x", find))

    def test_a_device_is_added(self, tmp_path: Path) -> None:
        result = self.answer(tmp_path, "cpu-only", self.CARD)
        assert [(d.id, d.name) for d in result.devices] == [("GPU0", "Card X")]
        assert result.sources["GPU0.free_bytes"] == "measured: x"
        assert result.host.available_bytes is not None

    def test_a_device_that_is_known_by_its_uuid_is_not(self, tmp_path: Path) -> None:
        (known,) = detect(machine("rtx-3090-desktop", tmp_path / "a")).devices
        result = self.answer(tmp_path, "rtx-3090-desktop", replace(self.CARD, uuid=known.uuid))
        assert [d.name for d in result.devices] == ["NVIDIA GeForce RTX 3090"]

    def test_one_that_fails_is_a_finding(self, tmp_path: Path) -> None:
        def find(system: System, host: Host) -> Facts:
            raise RuntimeError("no\x1b[31m luck")

        result = detect(machine("rtx-3090-desktop", tmp_path), Source("x", find))
        assert len(result.devices) == 1
        assert result.findings == ("x: RuntimeError: no\\x1b[31m luck",)
