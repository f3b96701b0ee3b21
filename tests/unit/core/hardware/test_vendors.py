"""Intel, Apple, and what only an engine can list, on recorded machines."""

from __future__ import annotations

from pathlib import Path

import pytest
from autofit.domain.machine import Host, Machine
from autofit.domain.units import GIB, MIB

from autofit_llama.engine import devices
from support.recorded_machines import detect, machine

HOST = Host(total_bytes=64 * GIB, available_bytes=60 * GIB)


def found(name: str, tmp_path: Path, **changes: object) -> Machine:
    return detect(machine(name, tmp_path, **changes))  # type: ignore[arg-type]


def said(result: Machine, *words: str) -> bool:
    return any(all(word in finding for word in words) for finding in result.findings)


class TestIntel:
    def test_arc_is_counted_and_the_uhd_beside_it_is_not(self, tmp_path: Path) -> None:
        result = found("arc-b580-and-uhd", tmp_path)
        (device,) = result.devices
        assert (device.name, device.profile, device.api) == ("Intel Arc B580 Graphics", "arc-b580", "sycl")
        assert said(result, "Graphics a780", "not counted")

    def test_free_is_what_this_user_s_processes_leave(self, tmp_path: Path) -> None:
        result = found("arc-b580-and-uhd", tmp_path)
        (device,) = result.devices
        assert device.free_bytes == (12216 - 400) * MIB
        assert [(h.name, h.used_bytes) for h in device.held_by] == [("gnome-shell", 400 * MIB)]
        assert result.sources["GPU0.free_bytes"].startswith("derived: total less")

    def test_xpu_smi_knows_what_is_in_use(self, tmp_path: Path) -> None:
        result = found("arc-b580-xpu-smi", tmp_path)
        assert result.devices[0].free_bytes == (12216 - 1034) * MIB
        assert result.sources["GPU0.free_bytes"] == "measured: xpu-smi"

    def test_one_allocation_limit_is_noted(self, tmp_path: Path) -> None:
        (device,) = found("arc-b580-and-uhd", tmp_path).devices
        assert any("4 GiB" in note for note in device.notes)

    def test_integrated_alone_is_not_counted_unless_asked_for(self, tmp_path: Path) -> None:
        result = found("intel-uhd-only", tmp_path)
        assert not result.devices
        (device,) = found("intel-uhd-only", tmp_path / "again", env={"AUTOFIT_INTEGRATED": "1"}).devices
        # RAM, not the 1.6 of 52 GiB that SYCL shows
        assert (device.pool, device.total_bytes) == ("host", result.host.total_bytes)

    def test_i915_counts_local_memory_in_one_file(self, tmp_path: Path) -> None:
        (device,) = found("arc-a770-i915", tmp_path).devices
        assert (device.total_bytes, device.profile) == (16225243136, "arc-a770-16gb")


class TestApple:
    def test_working_set_is_three_quarters_above_36_gb(self, tmp_path: Path) -> None:
        result = found("mac-m2-max-96gb", tmp_path, platform="darwin")
        (device,) = result.devices
        assert (device.total_bytes, device.pool, device.api) == (72 * GIB, "host", "metal")
        assert (device.profile, device.n_sm, device.bandwidth_bytes_per_s) == (
            "apple-m2-max",
            38,
            409_600_000_000,
        )
        assert result.host.total_bytes == 96 * GIB
        assert (result.host.n_cores_physical, result.host.n_cores_performance) == (12, 8)
        assert result.host.has_repack is True

    def test_working_set_is_two_thirds_below(self, tmp_path: Path) -> None:
        (device,) = found("mac-m1-16gb", tmp_path, platform="darwin").devices
        assert device.total_bytes == 16 * GIB * 2 // 3  # 11453.25 MB, as llama.cpp logs it
        assert any("iogpu.wired_limit_mb" in note for note in device.notes)

    def test_wired_limit_is_taken_where_it_is_set(self, tmp_path: Path) -> None:
        result = found("mac-m4-max-128gb-wired-limit", tmp_path, platform="darwin")
        assert result.devices[0].total_bytes == 112 * GIB
        assert result.sources["GPU0.total_bytes"] == "measured: sysctl iogpu.wired_limit_mb"

    def test_free_is_bounded_by_what_is_available(self, tmp_path: Path) -> None:
        result = found("mac-m2-max-96gb", tmp_path, platform="darwin")
        pages = 1048576 + 1310720 + 32768 + 65536
        assert result.host.available_bytes == pages * 16384
        assert result.devices[0].free_bytes == pages * 16384

    def test_the_smaller_of_two_gpus_has_its_own_bandwidth(self, tmp_path: Path) -> None:
        (device,) = found("mac-m4-max-36gb-32-core", tmp_path, platform="darwin").devices
        assert (device.profile, device.bandwidth_bytes_per_s) == ("apple-m4-max-32core", 409_584_000_000)

    def test_an_intel_mac_has_no_pool_for_metal(self, tmp_path: Path) -> None:
        result = found("mac-intel", tmp_path, platform="darwin")
        assert not result.devices
        assert (result.host.total_bytes, result.host.n_cores_physical) == (32 * GIB, 8)


class TestEngineList:
    def test_vulkan_only_device(self, tmp_path: Path) -> None:
        (device,) = found("vulkan-only-moore-threads", tmp_path).devices
        assert (device.name, device.api, device.free_bytes) == ("MTT S80", "vulkan", 15900 * MIB)

    def test_ascend(self, tmp_path: Path) -> None:
        (device,) = found("ascend-910b", tmp_path).devices
        assert (device.name, device.api, device.total_bytes) == ("Ascend910B3", "cann", 62420 * MIB)

    def test_ascend_without_an_engine_says_who_could_tell(self, tmp_path: Path) -> None:
        result = found("ascend-without-engine", tmp_path)
        assert not result.devices
        assert said(result, "Ascend", "only an engine")

    def test_a_management_controller_s_display_is_no_gpu(self, tmp_path: Path) -> None:
        assert found("bmc-display-only", tmp_path).findings == ("no GPU was found; --on NAME plans for one",)

    def test_the_engine_is_not_asked_where_all_is_known(self, tmp_path: Path) -> None:
        asked = []

        def run(argv: object, seconds: float) -> str:
            asked.append(argv)
            raise AssertionError("no program is needed here")

        system = machine("rtx-3090-desktop", tmp_path)
        object.__setattr__(system, "run", run)
        assert len(detect(system).devices) == 1
        assert not asked

    def test_sycl_that_says_all_is_free_is_not_believed_blindly(self) -> None:
        (device,) = devices.parse("  SYCL0: Intel(R) Arc(TM) A770 Graphics (15473 MiB, 15473 MiB free)\n", HOST).devices
        assert any("ZES_ENABLE_SYSMAN" in note for note in device.notes)

    @pytest.mark.parametrize(
        ("line", "name", "api", "pool"),
        [
            (
                "  CUDA1: NVIDIA GeForce RTX 3090 (24135 MiB, 23500 MiB free)",
                "NVIDIA GeForce RTX 3090",
                "cuda",
                "CUDA1",
            ),
            (
                "  Vulkan0: AMD Radeon RX 7900 XTX (RADV NAVI31) (24560 MiB, 24000 MiB free)",
                "AMD Radeon RX 7900 XTX (RADV NAVI31)",
                "vulkan",
                "Vulkan0",
            ),
            ("  MTL0: Apple M2 (12124 MiB, 12123 MiB free)", "Apple M2", "metal", "host"),
            ("  RPC0[10.0.0.2:50052]: NVIDIA T4 (15000 MiB, 14000 MiB free)", "NVIDIA T4", "rpc", "RPC0"),
        ],
    )
    def test_lines(self, line: str, name: str, api: str, pool: str) -> None:
        (device,) = devices.parse(f"Available devices:\n{line}\n", HOST).devices
        assert (device.name, device.api, device.pool) == (name, api, pool)

    @pytest.mark.parametrize(
        "line",
        ["", "Available devices:", "  CPU: AMD EPYC (64000 MiB, 1 MiB free)", "CUDA0: x (1 MiB)", "\x1b[31m"],
    )
    def test_other_lines_are_skipped(self, line: str) -> None:
        assert devices.parse(line, HOST).devices == ()
