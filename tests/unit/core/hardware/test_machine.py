"""Machines that one does not have: names, sizes, files, and the way to JSON and back."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from autofit.domain.machine import HOST_POOL, Device, Holder, Host, Link, Machine
from autofit.domain.units import GIB, MIB
from autofit.errors import HardwareError, UnknownHardwareError, UsageError
from autofit.hardware import load_machine, machine_from_dict, machine_to_dict
from autofit.hardware.report import profile_table
from autofit.hardware.working_set import working_set_bytes
from autofit.profiles import save

from support.recorded_machines import detect, machine


class TestNamesAndSizes:
    def test_repeated_names_are_several_devices(self) -> None:
        found = load_machine("rtx-3090", "rtx-3090", "rtx-4070-ti:11GiB", ram="64GiB")
        assert [(d.id, d.index, d.pool, d.profile) for d in found.devices] == [
            ("GPU0", 0, "GPU0", "rtx-3090"),
            ("GPU1", 1, "GPU1", "rtx-3090"),
            ("GPU2", 2, "GPU2", "rtx-4070-ti"),
        ]
        assert found.host == Host(total_bytes=64 * GIB, available_bytes=62 * GIB)
        assert found.origin == "profile"

    def test_a_size_is_free_memory(self) -> None:
        (card,) = load_machine("rtx-4070-ti:11GiB", ram="64GiB").devices
        assert (card.free_bytes, card.total_bytes) == (11 * GIB, 12282 * MIB)

    @pytest.mark.parametrize(("name", "offered"), [("a100-80gb:4", "4xa100-80gb"), ("3060:2", "2x3060")])
    def test_a_bare_number_after_the_colon_may_mean_a_count(self, name: str, offered: str) -> None:
        with pytest.raises(UsageError) as refused:
            load_machine(name)
        assert offered in (refused.value.hint or "")
        assert len(load_machine(offered).devices) == int(offered[0])

    def test_a_size_above_what_the_card_has_is_taken_and_said(self) -> None:
        found = load_machine("rtx-4070-ti:12GiB", ram="64GiB")
        assert (
            found.devices[0].free_bytes,
            found.devices[0].total_bytes,
            found.devices[0].reserved_bytes,
        ) == (12 * GIB, 12 * GIB, 0)
        assert "as stated" in found.findings[0]

    @pytest.mark.parametrize(("name", "api"), [("generic-cuda:24GiB", "cuda"), ("generic-rpc:24576MiB", "rpc")])
    def test_generic_devices_are_all_free_without_overhead(self, name: str, api: str) -> None:
        (device,) = load_machine(name, ram="1GiB").devices
        assert (device.api, device.total_bytes, device.free_bytes, device.runtime_bytes) == (
            api,
            24 * GIB,
            24 * GIB,
            0,
        )
        assert device.compute_capability == ((8, 9) if api == "cuda" else None)

    @pytest.mark.parametrize("name", ["generic-cuda", "generic-rpc"])
    def test_generic_devices_need_a_size(self, name: str) -> None:
        with pytest.raises(HardwareError, match="needs a size") as caught:
            load_machine(name)
        assert f"{name}:24GiB" in (caught.value.hint or "")

    @pytest.mark.parametrize("name", ["rtx-3090:0GiB", "rtx-3090:0"])
    def test_no_memory_is_refused(self, name: str) -> None:
        with pytest.raises(HardwareError, match="no memory is left"):
            load_machine(name)

    @pytest.mark.parametrize("name", ["rtx-3090:12XB", "rtx-3090:9999999999TiB", "rtx-3090:1e9"])
    def test_a_size_that_is_none(self, name: str) -> None:
        with pytest.raises(UsageError):
            load_machine(name)

    def test_ram_must_be_positive(self) -> None:
        with pytest.raises(HardwareError):
            load_machine("rtx-3090", ram=0)

    def test_cpu_is_a_machine_without_devices(self) -> None:
        found = load_machine("cpu", ram="32GiB")
        assert (found.devices, found.host.available_bytes) == ((), 30 * GIB)

    def test_without_ram_this_machine_s_stands_in_and_that_is_said(self) -> None:
        found = load_machine("rtx-3090")
        if found.host.available_bytes is not None:
            assert any("--ram" in finding for finding in found.findings)
        assert found.sources["host.available_bytes"] == "measured: this machine"

    def test_figures_keep_their_sources(self) -> None:
        found = load_machine("generic-cuda:24GiB", "rtx-3090", ram="64GiB")
        assert found.sources["GPU1.bandwidth_bytes_per_s"].startswith("exact:")
        assert found.sources["GPU0.runtime_bytes"].startswith("assumed:")

    @pytest.mark.parametrize(
        ("text", "profiles"),
        [
            ("2x3060", ["rtx-3060-12gb"] * 2),
            ("3060*2", ["rtx-3060-12gb"] * 2),
            ("3060x2", ["rtx-3060-12gb"] * 2),
            ("2 x RTX 3060", ["rtx-3060-12gb"] * 2),
            ("4xh100", ["h100-80gb"] * 4),
            ("3090, t4", ["rtx-3090", "t4"]),
            ("2x3090,4070-ti:11GiB", ["rtx-3090", "rtx-3090", "rtx-4070-ti"]),
            ("2*rtx-4070-ti:11GiB", ["rtx-4070-ti"] * 2),
            ("mi300x", ["mi300x"]),
            ("8xmi300x", ["mi300x"] * 8),
        ],
    )
    def test_counts_and_lists(self, text: str, profiles: list[str]) -> None:
        found = load_machine(text, ram="64GiB")
        assert [device.profile for device in found.devices] == profiles
        assert [device.id for device in found.devices] == [f"GPU{i}" for i in range(len(profiles))]

    @pytest.mark.parametrize("text", ["0x3060", "999x3060", "3060*0", "200x3060,200x3090"])
    def test_a_count_that_is_none(self, text: str) -> None:
        with pytest.raises(UnknownHardwareError, match="devices"):
            load_machine(text, ram="64GiB")

    def test_a_size_tells_cards_of_one_name_apart(self) -> None:
        assert load_machine("rtx-3080:10GiB", ram="64GiB").devices[0].profile == "rtx-3080-10gb"
        with pytest.raises(HardwareError, match="ambiguous"):
            load_machine("rtx-3080:6GiB", ram="64GiB")

    @pytest.mark.parametrize(("maker", "api"), [("nvidia", "cuda"), ("amd", "rocm"), ("intel", "sycl")])
    def test_a_card_that_is_not_listed_keeps_a_reserve_and_a_context(self, maker: str, api: str) -> None:
        (card,) = load_machine(f"{maker}:8GiB", ram="64GiB").devices
        assert (card.api, card.total_bytes, card.runtime_bytes) == (api, 8 * GIB, None)
        assert card.free_bytes is not None
        assert card.free_bytes == card.usable_bytes < 8 * GIB
        assert card.bandwidth_bytes_per_s is None

    @pytest.mark.parametrize("text", ["a100-80gb:4", "rtx-3090:24"])
    def test_a_size_without_a_unit_is_asked_about(self, text: str) -> None:
        with pytest.raises(UsageError, match="what"):
            load_machine(text, ram="64GiB")

    @pytest.mark.parametrize(
        ("name", "card", "n_sm", "gib", "eighths"),
        [
            ("a100-mig-1g.5gb", "a100-40gb", 14, 4.75, 1),
            ("a100-mig-3g.20gb", "a100-40gb", 42, 19.62, 4),
            ("a100-2g.20gb", "a100-80gb", 28, 19.5, 2),
            ("NVIDIA A100-SXM4-80GB MIG 7g.80gb", "a100-80gb", 108, 79, 8),
            ("h100-mig-2g.20gb", "h100-80gb", 32, 19.6, 2),
            ("H100-1g.10gb", "h100-80gb", 16, 9.6, 1),
            ("h200-mig-3g.71gb", "h200", 48, 69.6, 4),
            ("a30-mig-2g.12gb", "a30", 28, 11.6, 4),
        ],
    )
    def test_an_instance_has_its_part_of_the_card(
        self, name: str, card: str, n_sm: int, gib: float, eighths: int
    ) -> None:
        whole, part = (load_machine(each, ram="64GiB").devices[0] for each in (card, name))
        assert (part.profile, part.n_sm) == (card, n_sm)
        assert (part.total_bytes or 0) / GIB == pytest.approx(gib, abs=0.35)
        assert (whole.bandwidth_bytes_per_s or 0) * eighths // 8 == part.bandwidth_bytes_per_s

    @pytest.mark.parametrize(
        ("name", "hint"), [("a100-mig-5g.20gb", "3g.20gb"), ("h100-mig-1g.5gb", "1g.10gb"), ("a10-9g.99gb", None)]
    )
    def test_an_instance_that_there_is_not(self, name: str, hint: str | None) -> None:
        with pytest.raises(UnknownHardwareError, match="cut") as caught:
            load_machine(name, ram="64GiB")
        assert hint is None or hint in (caught.value.hint or "")


class TestSystemShare:
    """What the operating system of a machine that is described keeps of RAM."""

    @pytest.mark.parametrize(
        ("names", "ram", "gib"),
        [
            (("m3-max",), "36GB", 32),
            (("rtx-3090",), "32GB", 30),
            (("cpu",), "64GB:server", 63),
            (("rtx-3090", "t4"), "64GB:windows", 60),
            (("apple-m4",), "16GB", 14),
            (("strix-halo",), "64GiB:62.5GiB", 62.5),
            (("rtx-3090",), "64GiB:none", 64),
            (("generic-cuda:24GiB",), "64GiB", 64),
        ],
    )
    def test_it_is_taken_off(self, names: tuple[str, ...], ram: str, gib: float) -> None:
        found = load_machine(*names, ram=ram)
        assert found.host.available_bytes == gib * GIB

    @pytest.mark.parametrize(
        ("name", "ram", "said"),
        [
            ("m3-max", "36GB", "4.00 GiB of RAM are left to macOS and its desktop; --ram 36GiB:32GiB"),
            ("rtx-3090", "32GB", "2.00 GiB of RAM are left to the operating system and desktop"),
            ("rtx-3090", "32GB:server", "1.00 GiB of RAM are left"),
            ("rtx-3090", "32GiB:31GiB", ""),
            ("generic-cuda:24GiB", "32GiB", ""),
        ],
    )
    def test_it_is_said_unless_someone_stated_what_is_free(self, name: str, ram: str, said: str) -> None:
        findings = " ".join(load_machine(name, ram=ram).findings)
        assert said in findings
        assert bool(said) == ("left to" in findings)

    def test_a_rented_machine_has_no_desktop(self) -> None:
        found = load_machine("g5.xlarge")
        assert found.host.available_bytes == 15 * GIB

    def test_what_is_said_to_be_free_is(self) -> None:
        found = load_machine("strix-halo-128gb:127GiB")
        assert (found.host.available_bytes, found.devices[0].free_bytes) == (127 * GIB, 127 * GIB)


class TestUnified:
    @pytest.mark.parametrize("chip", ["strix-halo", "m4-max", "m3-ultra", "gb10"])
    def test_a_machine_of_a_size_is_one_machine_however_it_is_named(self, chip: str) -> None:
        size = {"strix-halo": 128, "m4-max": 128, "m3-ultra": 96, "gb10": 128}[chip]
        if chip == "gb10":  # sold with one size
            assert load_machine(chip, ram="128GB").host.total_bytes == 128 * GIB
            return
        by_ram = [load_machine(chip, ram=f"{size}{unit}") for unit in ("GB", "GiB", " gb")]
        assert all(found == load_machine(f"{chip}-{size}gb") for found in by_ram)

    def test_the_chip_of_a_size_is_the_one_that_was_sold_with_it(self) -> None:
        found = load_machine("m3-max", ram="36GB")
        assert found == load_machine("m3-max-36gb")
        assert found.devices[0].n_sm == 30

    @pytest.mark.parametrize(
        ("gib", "macos", "mib"),
        [
            (8, 26, 5461),
            (16, 26, 12124),
            (18, 26, 13639),
            (24, 26, 18186),
            (32, 26, 25559),
            (36, 26, 28753),
            (48, 26, 38338),
            (64, 26, 53084),
            (96, 26, 79626),
            (128, 26, 110100),
            (512, 26, 475136),
            (16, 15, 10922),
            (24, 15, 16384),
            (36, 15, 27648),
            (64, 15, 49152),
        ],
    )
    def test_the_working_set_is_as_logs_say(self, gib: int, macos: int, mib: int) -> None:
        assert working_set_bytes(gib * GIB, macos) // MIB == mib

    def test_one_pool_is_counted_once(self) -> None:
        found = load_machine("m2-max-64gb")
        (device,) = found.devices
        assert (device.pool, (device.total_bytes or 0) // MIB, found.host.total_bytes) == ("host", 53084, 64 * GIB)

    def test_size_in_the_name_or_by_ram(self) -> None:
        assert load_machine("apple-m2-max-96gb") == load_machine("m2 max", ram="96GiB")

    def test_a_size_that_was_never_sold(self) -> None:
        with pytest.raises(HardwareError, match="not sold with 40 GB") as caught:
            load_machine("m4-max-40gb")
        assert "36, 48, 64, 128 GB" in (caught.value.hint or "")

    def test_the_chip_with_the_narrow_bus_is_chosen_by_its_memory(self) -> None:
        assert load_machine("m4-max-36gb").devices[0].bandwidth_bytes_per_s == 409_584_000_000

    @pytest.mark.parametrize("size", [36, 64, 128])
    def test_a_size_that_was_sold_is_that_machine(self, size: int) -> None:
        assert load_machine(f"m4-max:{size}GiB") == load_machine(f"m4-max-{size}gb")

    def test_a_size_that_was_not_sold_is_what_is_free(self) -> None:
        found = load_machine("m4-max:40GiB")
        assert (found.devices[0].free_bytes, found.host.total_bytes) == (40 * GIB, 48 * GIB)

    def test_no_size_at_all(self) -> None:
        with pytest.raises(HardwareError, match="size of RAM is unknown"):
            load_machine("m4-max")

    def test_free_memory_stated(self) -> None:
        (device,) = load_machine("strix-halo-128gb:112GiB").devices
        assert (device.free_bytes, device.total_bytes, device.pool) == (112 * GIB, 112 * GIB, "host")

    def test_free_memory_never_exceeds_main_memory(self) -> None:
        (device,) = load_machine("strix-halo-64gb:112GiB").devices
        assert device.free_bytes == 64 * GIB

    def test_gb10(self) -> None:
        (device,) = load_machine("DGX Spark").devices
        assert (device.total_bytes, device.pool, device.compute_capability) == (124610 * MIB, "host", (12, 1))

    def test_two_machines_share_nothing(self) -> None:
        found = load_machine("gb10", "gb10")
        assert [(device.node, device.pool) for device in found.devices] == [("", HOST_POOL), ("node1", HOST_POOL)]

    def test_a_card_beside_a_machine(self) -> None:
        found = load_machine("g5.xlarge", "rtx-3090")
        assert [d.profile for d in found.devices] == ["a10g", "rtx-3090"]
        assert found.host.total_bytes == 16 * GIB


FULL = Machine(
    name="a box",
    host=Host(
        total_bytes=64 * GIB,
        available_bytes=60 * GIB,
        limit_bytes=62 * GIB,
        n_cores_physical=8,
        cpu_name="x",
        has_repack=True,
        notes=("n",),
    ),
    devices=(
        Device(
            id="GPU0",
            index=0,
            name="A",
            api="cuda",
            total_bytes=24 * GIB,
            free_bytes=None,
            compute_capability=(8, 6),
            held_by=(
                Holder(pid=1, name=None, used_bytes=None),
                Holder(pid=2, name="llama-server", used_bytes=5, ours=True),
            ),
        ),
        Device(
            id="GPU1",
            index=1,
            name="B",
            api="cuda",
            total_bytes=None,
            free_bytes=1,
            pool="host",
            integrated=True,
        ),
    ),
    links=(Link(a="GPU0", b="GPU1", kind="NVLink", bytes_per_s=1),),
    findings=("f",),
    sources={"GPU0.total_bytes": "measured: NVML"},
)
MINE = """\
schema = 1
kind = "machine"
name = "mine"
[host]
total_bytes = 68719476736
[[device]]
"""


class TestJson:
    def test_there_and_back(self) -> None:
        assert machine_from_dict(json.loads(json.dumps(machine_to_dict(FULL)))) == FULL

    def test_a_file_made_elsewhere_is_a_machine(self, tmp_path: Path) -> None:
        path = tmp_path / "their box.json"
        path.write_text(json.dumps(machine_to_dict(FULL)))
        assert load_machine(str(path)) == replace(FULL, origin="file")
        assert load_machine(str(path), ram="8GiB").host.available_bytes == 8 * GIB
        assert len(load_machine(str(path), "rtx-3090").devices) == 3

    @pytest.mark.parametrize(
        "name", ["rtx-3090-desktop", "h100-mig-container", "strix-halo-gtt", "four-a100-nvswitch", "cpu-only"]
    )
    def test_what_detection_finds(self, tmp_path: Path, name: str) -> None:
        found = detect(machine(name, tmp_path))
        assert machine_from_dict(json.loads(json.dumps(machine_to_dict(found)))) == found

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"schema": 2}, "not a machine of schema 1"),
            ({"kind": "plan"}, "not a machine"),
            ({"host": None}, "must be an object"),
            ({"host": {"total_bytes": 1}}, "host: available_bytes is missing"),
            ({"hosts": 1}, "no key 'hosts'"),
            ({"devices": [{"id": "GPU0"}]}, r"devices\[0\]: index is missing"),
            ({"devices": {}}, "devices: must be a list"),
            ({"host": {"total_bytes": "1", "available_bytes": 1}}, "host: total_bytes: must be int"),
            ({"host": {"total_bytes": True, "available_bytes": 1}}, "must be int"),
            ({"host": {"total_bytes": 1 << 70, "available_bytes": 1}}, "must be int"),
            ({"sources": {"a": 1}}, "must be an object of strings"),
        ],
    )
    def test_what_is_no_machine_is_refused(self, change: dict[str, object], message: str) -> None:
        with pytest.raises(HardwareError, match=message):
            machine_from_dict({**machine_to_dict(FULL), **change})

    def test_an_api_that_is_none(self) -> None:
        data = machine_to_dict(FULL)
        data["devices"][0]["api"] = "glide"
        with pytest.raises(HardwareError, match="must be one of cuda"):
            machine_from_dict(data)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"free_bytes": -5}, "free_bytes: must be int, is -5"),
            ({"bandwidth_bytes_per_s": 0}, "bandwidth_bytes_per_s: must be above 0"),
            ({"pool": "nowhere"}, "GPU0 draws on 'nowhere'"),
            ({"id": "GPU0\x1b[31m"}, r"x1b\[31m' is no id"),
            ({"id": "host", "pool": "host"}, "'host' is no id"),
            ({"id": "A" * 65}, "is no id"),
        ],
    )
    def test_a_device_that_cannot_be(self, change: dict[str, object], message: str) -> None:
        data = machine_to_dict(FULL)
        data["devices"][0] |= change
        with pytest.raises(HardwareError, match=message):
            machine_from_dict(data)

    def test_two_devices_of_one_id(self) -> None:
        data = machine_to_dict(FULL)
        data["devices"][1]["id"] = "GPU0"
        with pytest.raises(HardwareError, match="an id of its own"):
            machine_from_dict(data)

    @pytest.mark.parametrize(
        "text", ["", "{", "[1]", "null", "[" * 100_000, '{"schema": 1, "kind": "machine", "host": 1e999}']
    )
    def test_broken_files(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "x.json"
        path.write_text(text)
        with pytest.raises(HardwareError):
            load_machine(str(path))

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(HardwareError, match="No such file"):
            load_machine(str(tmp_path / "no.json"))


class TestTomlFiles:
    def test_a_profile_by_its_path(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.toml"
        path.write_text(MINE + 'profile = "rtx-3090"\ncount = 2\n')
        found = load_machine(str(path))
        assert [d.profile for d in found.devices] == ["rtx-3090", "rtx-3090"]

    def test_a_row_overrides_its_profile(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.toml"
        path.write_text(MINE + 'profile = "rtx-3090"\nlink_bytes_per_s = 3938461538\n')
        assert load_machine(str(path)).devices[0].link_bytes_per_s == 3938461538

    def test_links_to_devices_that_are_not_there(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.toml"
        path.write_text(MINE + 'profile = "t4"\n[[link]]\nkind = "x"\ndevices = [0, 3]\n')
        with pytest.raises(HardwareError, match="devices 0 to 0"):
            load_machine(str(path))

    def test_not_toml(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.toml"
        path.write_text("schema = \n")
        with pytest.raises(HardwareError, match="line 1"):
            load_machine(str(path))

    @pytest.mark.parametrize(
        "name", ["rtx-3090-desktop", "two-rtx-3090-nvlink", "strix-halo-gtt", "dgx-spark", "cgroup-v2-4gib"]
    )
    def test_a_detected_machine_saved_and_loaded_is_the_same_at_rest(self, tmp_path: Path, name: str) -> None:
        found = detect(machine(name, tmp_path))
        path = tmp_path / "saved.toml"
        save(path, profile_table(found, "saved"))
        again = load_machine(str(path))
        for before, after in zip(found.devices, again.devices, strict=True):
            same = (
                "name",
                "api",
                "pool",
                "uuid",
                "total_bytes",
                "reserved_bytes",
                "compute_capability",
                "n_sm",
                "bandwidth_bytes_per_s",
                "link_bytes_per_s",
            )
            assert [getattr(after, field) for field in same] == [getattr(before, field) for field in same]
        assert again.host.total_bytes == (found.host.limit_bytes or found.host.total_bytes)
        assert [replace(link) for link in again.links] == list(found.links)


def test_planning_for_other_hardware_loads_no_driver() -> None:
    import subprocess

    code = (
        "import sys\nfrom autofit.hardware import load_machine\nload_machine('rtx-3090', ram='64GiB')\n"
        "print([m for m in ('pynvml', 'subprocess', 'tomlkit', 'difflib', 'json') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_stands_after_the_colon_is_a_size() -> None:
    with pytest.raises(UsageError, match="not a size: 'lots'"):
        load_machine("rtx-3090:lots")


def test_a_card_that_vulkan_drives() -> None:
    (card, other) = load_machine("2xrx-7900-xtx@vulkan", ram="64GiB").devices
    plain = load_machine("rx-7900-xtx", ram="64GiB").devices[0]
    assert card.api == other.api == "vulkan"
    assert (card.name, card.free_bytes, card.bandwidth_bytes_per_s) == (
        plain.name,
        plain.free_bytes,
        plain.bandwidth_bytes_per_s,
    )
    assert load_machine("rtx-3090@vulkan:20GiB", ram="64GiB").devices[0].free_bytes == 20 << 30
    for wrong in ("rx-7900-xtx@cuda", "rx-7900-xtx@", "m3-max-36gb@vulkan"):
        with pytest.raises(UnknownHardwareError, match="does not drive"):
            load_machine(wrong, ram="64GiB")
