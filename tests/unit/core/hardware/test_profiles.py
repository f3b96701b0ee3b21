"""The profiles that ship: schema, units, arithmetic, sources, names."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import autofit
import pytest
from autofit.domain.units import GIB, MIB
from autofit.errors import AutofitError, HardwareError
from autofit.hardware import load_machine, names, schema
from autofit.hardware.catalog import Profile, load_profile, profile_of, read_profile
from autofit.profiles import data_dir, parse_toml

PROFILES = sorted((data_dir() / "hardware").glob("*.toml"))
GENERIC = {"generic-cuda", "generic-rpc", "nvidia", "amd", "intel"}


@cache
def shipped() -> tuple[Profile, ...]:
    return tuple(read_profile(path) for path in PROFILES)


def devices() -> list[tuple[str, Any]]:
    found = [(p.id, p.table) for p in shipped() if not p.is_machine]
    found += [
        (p.id, row) for p in shipped() if p.is_machine for row in p.table.get("device", []) if "profile" not in row
    ]
    return [(id, table) for id, table in found if id not in GENERIC]


def test_there_are_enough_and_each_holds_against_the_schema() -> None:
    assert len(shipped()) >= 70


def test_bandwidth_is_bus_width_times_rate() -> None:
    for id, table in devices():
        if "bus_width_bits" in table:
            computed = table["bus_width_bits"] * table["memory_rate_bits_per_s"] / 8
            assert abs(computed - table["bandwidth_bytes_per_s"]) <= 1, id
    for profile in shipped():
        host = profile.table.get("host", {})
        if "bus_width_bits" in host:
            assert (
                abs(host["bus_width_bits"] * host["memory_rate_bits_per_s"] / 8 - host["bandwidth_bytes_per_s"]) <= 1
            ), profile.id


def test_a_device_has_what_a_plan_needs() -> None:
    for id, table in devices():
        assert {"vendor", "api", "n_sm", "bandwidth_bytes_per_s"} <= table.keys(), id
        assert "memory_total_bytes" in table or table.get("pool") == "host", id
        assert (table["api"] == "cuda") == ("compute_capability" in table), id


def test_the_driver_s_reserve_is_small_and_stated_for_nvidia_cards() -> None:
    for id, table in devices():
        if table["api"] == "cuda" and table.get("pool") != "host":
            assert 0.002 < table["memory_reserved_bytes"] / table["memory_total_bytes"] < 0.06, id


def test_every_figure_names_its_source_once() -> None:
    about = {
        "schema",
        "kind",
        "name",
        "aliases",
        "summary",
        "vendor",
        "api",
        "integrated",
        "pool",
        "pci_ids",
        "source",
        "host",
        "device",
        "link",
    }
    for profile in shipped():
        figures = [figure for source in profile.table["source"] for figure in source["figures"]]
        stated = {key for key in profile.table if key not in about or (key == "link" and not profile.is_machine)}
        stated |= {f"host.{key}" for key in profile.table.get("host", {}) if key not in ("cpu_name", "has_repack")}
        for row in profile.table.get("device", ()):
            stated |= {key for key in row if key not in about and key not in ("profile", "count")}
        assert sorted(figures) == sorted(stated), profile.id


def test_an_exact_or_derived_source_is_a_document_with_an_address() -> None:
    for profile in shipped():
        for source in profile.table["source"]:
            documented = source["basis"] == "exact" and source["figures"] != ["memory_host_fraction"]
            assert not documented or re.match(r"https://[\w.-]+/", source.get("url", "")), (
                profile.id,
                source,
            )


def test_no_two_profiles_share_a_name() -> None:
    owners: dict[str, set[str]] = {}
    for profile in shipped():
        for key in {names.key_of(profile.id), *names.alias_keys(profile.path)}:
            owners.setdefault(key, set()).add(profile.id)
    shared = {key: ids for key, ids in owners.items() if len(ids) > 1}
    # one driver's name for two sizes: the memory decides, and a user is asked
    for ids in shared.values():
        totals = [load_profile(id).table["memory_total_bytes"] for id in ids]
        assert len(set(totals)) == len(ids)
    assert set(shared) == {
        "arca770",
        "rtx3080",
        "rtx3080laptop",
        "rtx3080mobile",
        "rtx4060ti",
        "rtx5060ti",
        "rx9060xt",
    }


def test_file_names_are_kebab_case() -> None:
    assert [path.stem for path in PROFILES if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", path.stem)] == []


def test_cloud_machines_name_profiles_that_exist() -> None:
    for profile in shipped():
        for row in profile.table.get("device", ()):
            if "profile" in row:
                assert not load_profile(row["profile"]).is_machine


@pytest.mark.parametrize(
    ("name", "low_gib", "high_gib"),
    [
        ("t4", 14.55, 14.57),
        ("rtx-3060-12gb", 11.62, 11.64),
        ("rtx-3090", 23.56, 23.58),
        ("rtx-4090", 23.5, 23.53),
        ("rtx-5090", 31.35, 31.84),
        ("l40s", 44.38, 44.4),
        ("a100-40gb", 39.38, 39.4),
        ("a100-80gb", 79.24, 79.26),
        ("h100-80gb", 79.17, 79.22),
        ("h200", 139.79, 139.81),
        ("b200", 178.34, 178.36),
    ],
)
def test_total_less_reserve_is_what_cuda_calls_total(name: str, low_gib: float, high_gib: float) -> None:
    (card,) = load_machine(name, ram="64GiB").devices
    assert card.usable_bytes == card.free_bytes
    assert low_gib <= (card.usable_bytes or 0) / GIB <= high_gib


class TestNames:
    @pytest.mark.parametrize(
        ("spellings", "profile"),
        [
            (
                (
                    "3090",
                    "RTX 3090",
                    "rtx3090",
                    "NVIDIA GeForce RTX 3090",
                    "geforce-rtx-3090",
                    "GeForce RTX 3090",
                ),
                "rtx-3090",
            ),
            (("4070 Ti Super", "NVIDIA GeForce RTX 4070 Ti SUPER", "rtx4070tisuper"), "rtx-4070-ti-super"),
            (("3060", "RTX 3060", "rtx 3060 12GB"), "rtx-3060-12gb"),
            (("T4", "Tesla T4", "NVIDIA T4"), "t4"),
            (("H100", "H100 SXM5", "NVIDIA H100 80GB HBM3"), "h100-80gb"),
            (("A100 80GB", "a100-80", "NVIDIA A100-SXM4-80GB"), "a100-80gb"),
            (("A6000", "RTX A6000", "NVIDIA RTX A6000"), "rtx-a6000"),
            (("RTX 6000 Ada", "NVIDIA RTX 6000 Ada Generation"), "rtx-6000-ada"),
            (("7900 XTX", "RX 7900 XTX", "AMD Radeon RX 7900 XTX", "rx7900xtx"), "rx-7900-xtx"),
            (("MI300X", "AMD Instinct MI300X"), "mi300x"),
            (("A770", "Arc A770 16GB"), "arc-a770-16gb"),
            (("Intel(R) Arc(TM) B580 Graphics", "b580"), "arc-b580"),
            (("RTX 4090 Laptop GPU", "4090 laptop"), "rtx-4090-laptop"),
            (("4060 Ti 16GB", "rtx-4060-ti-16gb"), "rtx-4060-ti-16gb"),
        ],
    )
    def test_as_people_and_drivers_write_them(self, spellings: tuple[str, ...], profile: str) -> None:
        assert {load_profile(spelling).id for spelling in spellings} == {profile}

    @pytest.mark.parametrize("name", ["p5.48xlarge", "AWS p5.48xlarge", "aws-p5-48xlarge"])
    def test_cloud_instances(self, name: str) -> None:
        machine = load_machine(name)
        assert [d.profile for d in machine.devices] == ["h100-80gb"] * 8
        assert machine.host.total_bytes == 2048 * GIB
        assert len(machine.links) == 28

    @pytest.mark.parametrize(
        ("name", "first"),
        [
            ("rtx-3900", "rtx-3090"),
            ("h10", "h20"),
            ("rtx-3600", "rtx-3060-12gb"),
            ("4060 lapto", "rtx-4060-laptop"),
            ("strix-hallo", "strix-halo"),
            ("RX 7900 XXT", "rx-7900-xt"),
            ("stryx halo", "strix-halo"),
        ],
    )
    def test_an_unknown_name_gets_a_suggestion(self, name: str, first: str) -> None:
        with pytest.raises(HardwareError) as caught:
            load_machine(name)
        assert first in (caught.value.hint or "")
        assert name in caught.value.message

    @pytest.mark.parametrize(
        ("name", "choices"),
        [
            ("RTX 3080", "rtx-3080-10gb, rtx-3080-12gb"),
            ("A100", "a100-40gb, a100-80gb, a100-80gb-pcie"),
            ("v100", "v100-16gb, v100-32gb"),
        ],
    )
    def test_a_name_of_several_cards_is_not_guessed(self, name: str, choices: str) -> None:
        with pytest.raises(HardwareError, match="is ambiguous") as caught:
            load_machine(name)
        assert choices in (caught.value.hint or "")

    @pytest.mark.parametrize(("name", "far"), [("rtx-3600", "rtx-3090"), ("rtx-3600", "h200"), ("a111", "a40")])
    def test_a_suggestion_is_the_nearest_name(self, name: str, far: str) -> None:
        with pytest.raises(HardwareError) as caught:
            load_machine(name)
        assert far not in (caught.value.hint or "")
        assert caught.value.exit_code == 2

    @pytest.mark.parametrize(
        ("name", "maker"),
        [("rtx-7090", "nvidia"), ("rx-480", "amd"), ("mi60", "amd"), ("arc-x999", "intel"), ("q", "nvidia")],
    )
    def test_an_unknown_card_can_be_given_by_maker_and_size(self, name: str, maker: str) -> None:
        with pytest.raises(HardwareError) as caught:
            load_machine(f"{name}:12GiB")
        assert f"{maker}:12GiB" in (caught.value.hint or "")

    @pytest.mark.parametrize(
        ("spellings", "profile", "gib", "rate"),
        [
            (("rtx-4060-laptop", "NVIDIA GeForce RTX 4060 Laptop GPU", "RTX 4060 mobile"), "rtx-4060-laptop", 8, 256),
            (("rtx 3070 ti laptop",), "rtx-3070-ti-laptop", 8, 448),
            (("rtx-3080-laptop-16gb",), "rtx-3080-laptop-16gb", 16, 448),
            (("5070 ti laptop",), "rtx-5070-ti-laptop", 12, 672),
            (("GeForce RTX 2070 with Max-Q Design",), "rtx-2070-laptop", 8, 448),
        ],
    )
    def test_a_laptop_s_card_is_not_the_desktop_s(
        self, spellings: tuple[str, ...], profile: str, gib: int, rate: int
    ) -> None:
        for spelling in spellings:
            found = load_profile(spelling)
            assert found.id == profile
            assert round(found.table["memory_total_bytes"] / GIB) == gib
            assert found.table["bandwidth_bytes_per_s"] == rate * 10**9
            desktop = load_profile(profile.partition("-laptop")[0] + ("-10gb" if "3080-laptop" in profile else ""))
            assert found.table["fp16_flops_per_s"] < desktop.table["fp16_flops_per_s"]

    def test_a_hostile_name_is_escaped(self) -> None:
        with pytest.raises(HardwareError) as caught:
            load_machine("\x1b[31mevil\x07" * 50)
        assert caught.value.message.isprintable()

    def test_the_driver_s_name_and_the_memory_tell_sizes_apart(self) -> None:
        found = [profile_of("NVIDIA GeForce RTX 3080", n * MIB) for n in (10240, 12288, 20480)]
        assert [profile.id if profile else None for profile in found] == [
            "rtx-3080-10gb",
            "rtx-3080-12gb",
            None,
        ]
        small = profile_of("NVIDIA GeForce RTX 3060", 8192 * MIB)
        assert small is not None
        assert small.id == "rtx-3060-8gb"

    def test_a_number_on_the_bus_stands_in_for_a_name(self) -> None:
        found = profile_of("", 20464 * MIB, "1002:744c")
        assert found is not None
        assert found.id == "rx-7900-xt"

    def test_a_file_name_needs_no_other_file(self, monkeypatch: pytest.MonkeyPatch) -> None:
        read: list[Path] = []
        real = names.read_text
        monkeypatch.setattr(names, "read_text", lambda path, *rest: (read.append(path), real(path, *rest))[1])
        load_profile("GeForce RTX 3090")
        load_profile("3090")
        assert read == []


GOOD = """\
schema = 1
kind = "gpu"
name = "A card"
vendor = "nvidia"
api = "cuda"
memory_total_bytes = 25_769_803_776
compute_capability = [8, 6]

[[source]]
figures = ["memory_total_bytes", "compute_capability"]
basis = "measured"
name = "nvidia-smi"
"""


class TestSchema:
    def check(self, text: str) -> None:
        schema.check(parse_toml(text, "my.toml"), "my.toml", text)

    def test_a_good_one(self) -> None:
        self.check(GOOD)

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("schema = 1", "schema = 2", "line 1: schema: must say schema = 1"),
            ('kind = "gpu"', 'kind = "card"', "line 2: kind: must be one of gpu, machine"),
            ("memory_total_bytes =", "memory_totl_bytes =", "line 6: memory_totl_bytes: no such key"),
            ("25_769_803_776", '"24GiB"', "line 6: memory_total_bytes: must be a whole number"),
            ("25_769_803_776", "24", "line 6: memory_total_bytes: 24 is out of range"),
            ("25_769_803_776", "true", "line 6: memory_total_bytes: must be a whole number"),
            ('"cuda"', '"cude"', "line 5: api: must be one of cuda"),
            ("[8, 6]", "[8]", "line 7: compute_capability: must be [major, minor]"),
            ("[8, 6]", '["8", "6"]', "line 7: compute_capability: must be [major, minor]"),
            ('"measured"', '"guessed"', "line 11: source.basis: must be one of exact"),
            ('name = "nvidia-smi"', "", "source.name: is missing"),
            (
                'name = "A card"',
                'name = "A \\u001b card"',
                "line 3: name: must be 1 to 400 printable characters",
            ),
            ("[[source]]", "[source]", "source: must be a list"),
        ],
    )
    def test_a_mistake_is_found_at_its_line(self, old: str, new: str, message: str) -> None:
        assert old in GOOD
        with pytest.raises(HardwareError) as caught:
            self.check(GOOD.replace(old, new, 1))
        assert message in caught.value.message

    def test_an_unknown_key_gets_a_suggestion(self) -> None:
        with pytest.raises(HardwareError) as caught:
            self.check(GOOD.replace("memory_total_bytes =", "memory_total_byte =", 1))
        assert "memory_total_bytes" in (caught.value.hint or "")

    def test_a_reserve_above_the_total(self) -> None:
        with pytest.raises(HardwareError, match="must be below memory_total_bytes"):
            self.check(GOOD.replace("25_769_803_776", "1_073_741_824\nmemory_reserved_bytes = 2_147_483_648"))

    def test_a_device_of_a_machine_needs_a_name_or_a_profile(self) -> None:
        text = 'schema = 1\nkind = "machine"\nname = "x"\n\n[[device]]\ncount = 2\n'
        with pytest.raises(HardwareError, match=r"line 5: device.profile: a device needs a profile"):
            self.check(text)

    def test_every_key_is_held_to_a_unit_by_its_name(self) -> None:
        keys = {**schema.DEVICE, **schema.HOST, **schema.LINK}
        for name, key in keys.items():
            if key.type is int and name != "count":
                assert re.search(r"_(bytes|bits|per_s)$|^n_|^bytes_per_s$", name), name


@pytest.mark.parametrize(
    "n_bytes", [-1, 0, 1 << 61, 10**400, -(10**5000)], ids=["-1", "0", "2^61", "10^400", "-10^5000"]
)
def test_ram_that_no_machine_has_is_refused(n_bytes: int) -> None:
    with pytest.raises(AutofitError, match="is not between 1 byte and 1,073,741,824 GiB"):
        autofit.load_machine("rtx-3090", ram=n_bytes)
