"""AMD devices out of sysfs, the KFD topology and rocm-smi, on recorded machines."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from autofit.domain.machine import Machine
from autofit.domain.units import GIB, MIB
from autofit.hardware.amd import gfx_name

from support.recorded_machines import detect, machine


def found(name: str, tmp_path: Path, **changes: object) -> Machine:
    return detect(machine(name, tmp_path, **changes))  # type: ignore[arg-type]


def said(result: Machine, *words: str) -> bool:
    return any(all(word in finding for word in words) for finding in result.findings)


class TestTwoRadeons:
    def test_order_is_that_of_the_kfd_not_of_the_bus(self, tmp_path: Path) -> None:
        result = found("two-radeons-and-igpu", tmp_path)
        assert [d.name for d in result.devices] == ["AMD Radeon RX 7900 XT", "AMD Radeon RX 7900 XTX"]
        assert [d.profile for d in result.devices] == ["rx-7900-xt", "rx-7900-xtx"]
        assert [d.n_sm for d in result.devices] == [84, 96]

    def test_memory_is_what_the_driver_counts(self, tmp_path: Path) -> None:
        xt, xtx = found("two-radeons-and-igpu", tmp_path).devices
        assert (xt.total_bytes, xt.free_bytes) == (20464 * MIB, (20464 - 26) * MIB)
        assert (xtx.total_bytes, xtx.free_bytes) == (24560 * MIB, (24560 - 1200) * MIB)

    def test_igpu_is_listed_and_not_counted(self, tmp_path: Path) -> None:
        result = found("two-radeons-and-igpu", tmp_path)
        assert said(result, "AMD Radeon Graphics", "not counted", "AUTOFIT_INTEGRATED=1")

    def test_igpu_is_counted_when_asked_for(self, tmp_path: Path) -> None:
        result = found("two-radeons-and-igpu", tmp_path, env={"AUTOFIT_INTEGRATED": "1"})
        assert len(result.devices) == 3
        assert result.devices[2].pool == "host"

    def test_holders_from_kfd_and_fdinfo(self, tmp_path: Path) -> None:
        _, xtx = found("two-radeons-and-igpu", tmp_path).devices
        # one client of the display server is open twice and counted once
        assert [(h.name, h.used_bytes) for h in xtx.held_by] == [
            ("llama-server", 900 * MIB),
            ("Xorg", 200 * MIB),
        ]

    def test_narrow_slot(self, tmp_path: Path) -> None:
        xt, xtx = found("two-radeons-and-igpu", tmp_path).devices
        assert xt.link_bytes_per_s == 4 * 1_969_230_769
        assert "PCIe x4 in use, x16 possible" in xt.notes
        assert xtx.link_bytes_per_s == 16 * 1_969_230_769

    @pytest.mark.parametrize(
        ("env", "names"),
        [
            ({"HIP_VISIBLE_DEVICES": "1"}, ["AMD Radeon RX 7900 XTX"]),
            ({"ROCR_VISIBLE_DEVICES": "1,0"}, ["AMD Radeon RX 7900 XTX", "AMD Radeon RX 7900 XT"]),
            ({"ROCR_VISIBLE_DEVICES": "1,0", "HIP_VISIBLE_DEVICES": "1"}, ["AMD Radeon RX 7900 XT"]),
            ({"ROCR_VISIBLE_DEVICES": "GPU-fedcba0987654321"}, ["AMD Radeon RX 7900 XTX"]),
            ({"CUDA_VISIBLE_DEVICES": "0"}, ["AMD Radeon RX 7900 XT"]),
            ({"CUDA_VISIBLE_DEVICES": "0", "HIP_VISIBLE_DEVICES": "1"}, ["AMD Radeon RX 7900 XTX"]),
            ({"HIP_VISIBLE_DEVICES": "-1"}, []),
        ],
    )
    def test_visible_devices(self, tmp_path: Path, env: dict[str, str], names: list[str]) -> None:
        assert [d.name for d in found("two-radeons-and-igpu", tmp_path, env=env).devices] == names


class TestStrixHalo:
    def test_gtt_is_the_pool_when_it_is_larger_than_the_carve_out(self, tmp_path: Path) -> None:
        result = found("strix-halo-gtt", tmp_path)
        (device,) = result.devices
        assert (device.pool, device.total_bytes, device.profile) == ("host", 120 * GIB, "strix-halo")
        assert device.free_bytes == result.host.available_bytes
        assert device.bandwidth_bytes_per_s == 256_000_000_000
        assert device.n_sm == 40

    def test_a_carve_out_of_96_gib_is_not_bounded_by_what_is_left_of_main_memory(self, tmp_path: Path) -> None:
        result = found("strix-halo-carve-out-96gib", tmp_path)
        (device,) = result.devices
        assert (device.pool, device.total_bytes) == ("GPU0", 96 * GIB)
        assert device.free_bytes == 96 * GIB - 300 * MIB
        assert result.host.available_bytes is not None
        assert result.host.available_bytes < 28 * GIB

    def test_gtt_used_does_not_follow_hipmalloc(self, tmp_path: Path) -> None:
        (device,) = found("strix-halo-gtt-used-lags", tmp_path).devices
        # sysfs says 0.2 of 120 GiB; only 40 GiB are really there
        assert device.free_bytes == 40 * GIB

    def test_a_small_carve_out_lies_idle(self, tmp_path: Path) -> None:
        (device,) = found("strix-halo-half-carve-out", tmp_path).devices
        assert device.total_bytes == 13 * GIB
        assert any("is unused" in note for note in device.notes)

    def test_one_pool_is_counted_once(self, tmp_path: Path) -> None:
        result = found("strix-halo-gtt", tmp_path)
        assert {d.pool for d in result.devices} | {"host"} == {"host"}


def test_r9700_has_the_memory_that_the_driver_counts_not_a_name_table_s(tmp_path: Path) -> None:
    (device,) = found("radeon-r9700", tmp_path).devices
    assert (device.total_bytes, device.profile) == (32624 * MIB, "r9700")


def test_instinct_takes_its_product_name(tmp_path: Path) -> None:
    (device,) = found("instinct-mi300x", tmp_path).devices
    assert (device.name, device.profile, device.n_sm) == ("AMD Instinct MI300X OAM", "mi300x", 304)
    assert device.uuid == "GPU-00000000000089ab"


def test_apu_without_rocm_is_told_by_its_metrics_table(tmp_path: Path) -> None:
    system = machine("apu-without-kfd", tmp_path)
    path = system.path("/sys/class/drm/card0/device/gpu_metrics")
    path.write_bytes(bytes([0x80, 0x00, 0x02, 0x03]) + bytes(124))
    result = detect(system)
    assert not result.devices
    assert said(result, "integrated", "not counted")
    path.write_bytes(bytes([0x78, 0x00, 0x01, 0x03]) + bytes(116))
    assert [d.integrated for d in detect(system).devices] == [False]


def test_rocm_smi_where_a_container_hides_sysfs(tmp_path: Path) -> None:
    (device,) = found("rocm-smi-in-container", tmp_path).devices
    assert (device.profile, device.free_bytes) == ("mi210", (65520 - 16) * MIB)


class FakeAmdsmi:
    """The part of AMD's package that is asked, with what it would answer on an MI210 (or not)."""

    class AmdSmiMemoryType:
        VRAM, VIS_VRAM, GTT = range(3)

    def __init__(self, **broken: Exception) -> None:
        self.broken = broken
        self.closed = False

    def __getattr__(self, name: str) -> Any:
        if name in self.broken:
            raise self.broken[name]
        answers: dict[str, Any] = {
            "amdsmi_init": lambda: None,
            "amdsmi_get_processor_handles": lambda: ["handle"],
            "amdsmi_get_gpu_memory_total": lambda handle, kind: (65520 * MIB, 0, 31 * GIB)[kind],
            "amdsmi_get_gpu_memory_usage": lambda handle, kind: (2048 * MIB, 0, 0)[kind],
            "amdsmi_get_gpu_asic_info": lambda handle: {
                "market_name": "AMD Instinct MI210",
                "asic_serial": "0x5A1B2C3D4E5F6071",
                "target_graphics_version": "gfx90a",
            },
            "amdsmi_get_gpu_process_list": lambda handle: [
                {"name": "N/A", "pid": 4242, "memory_usage": {"vram_mem": 2000 * MIB}},
                {"name": "idle", "pid": 4243, "memory_usage": {"vram_mem": 0}},
                {"pid": "N/A"},
            ],
            "amdsmi_shut_down": lambda: setattr(self, "closed", True),
        }
        return answers[name]


def in_container(tmp_path: Path, library: FakeAmdsmi) -> Machine:
    system = machine("rocm-smi-in-container", tmp_path, env={"ROCR_VISIBLE_DEVICES": "GPU-5a1b2c3d4e5f6071"})
    return detect(dataclasses.replace(system, load_amdsmi=lambda: library))


class TestAmdsmiWhereAContainerHidesSysfs:
    def test_it_is_asked_before_rocm_smi(self, tmp_path: Path) -> None:
        library = FakeAmdsmi()
        result = in_container(tmp_path, library)
        (device,) = result.devices
        assert (device.profile, device.total_bytes, device.free_bytes) == ("mi210", 65520 * MIB, 63472 * MIB)
        assert device.uuid == "GPU-5a1b2c3d4e5f6071"
        assert [(h.pid, h.used_bytes) for h in device.held_by] == [(4242, 2000 * MIB)]
        assert result.sources["GPU0.free_bytes"] == "measured: amdsmi"
        assert library.closed

    def test_a_figure_that_it_lacks_is_unknown(self, tmp_path: Path) -> None:
        library = FakeAmdsmi(amdsmi_get_gpu_memory_usage=AttributeError(), amdsmi_get_gpu_process_list=OSError())
        (device,) = in_container(tmp_path, library).devices
        assert (device.total_bytes, device.free_bytes, device.held_by) == (65520 * MIB, None, ())

    def test_rocm_smi_answers_where_it_cannot(self, tmp_path: Path) -> None:
        system = machine("rocm-smi-in-container", tmp_path)
        library = FakeAmdsmi(amdsmi_init=RuntimeError("AMDSMI_STATUS_INIT_ERROR"))
        result = detect(dataclasses.replace(system, load_amdsmi=lambda: library))
        assert result.sources["GPU0.free_bytes"] == "measured: rocm-smi"

    def test_both_reasons_are_said_where_neither_can(self, tmp_path: Path) -> None:
        system = machine("rocm-smi-broken", tmp_path)
        library = FakeAmdsmi(amdsmi_init=RuntimeError("AMDSMI_STATUS_INIT_ERROR"))
        result = detect(dataclasses.replace(system, load_amdsmi=lambda: library))
        assert not result.devices
        assert said(result, "amdsmi: AMDSMI_STATUS_INIT_ERROR", "rocm-smi", "not JSON")


def test_rocm_smi_that_prints_no_json(tmp_path: Path) -> None:
    result = found("rocm-smi-broken", tmp_path)
    assert not result.devices
    assert said(result, "rocm-smi", "not JSON")


@pytest.mark.parametrize(
    ("version", "name"),
    [(90010, "gfx90a"), (110501, "gfx1151"), (90402, "gfx942"), (100306, "gfx1036"), (0, None)],
)
def test_names_of_instruction_sets(version: int, name: str | None) -> None:
    assert gfx_name(version) == name
