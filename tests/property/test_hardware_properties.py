"""Laws of device selection, control groups and hypothetical machines."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from autofit.domain.units import GIB, MIB
from autofit.hardware import load_machine, machine_from_dict, machine_to_dict
from autofit.hardware.host import read_host
from autofit.hardware.programs import ToolError
from autofit.hardware.system import System
from autofit.hardware.visible import select
from hypothesis import given, settings
from hypothesis import strategies as st

from support.recorded_machines import runner, unpack

UUIDS = [f"GPU-{digit * 8}-0000-1111-2222-333344445555" for digit in "abcd"]
ENTRIES = st.one_of(
    st.integers(-2, 6).map(str), st.sampled_from(UUIDS), st.sampled_from(["", "GPU-", "GPU-aa", "x", " 1 "])
)
LISTS = st.lists(ENTRIES, min_size=1, max_size=6).map(",".join)


@given(text=LISTS, rocm=st.booleans())
def test_a_selection_holds_each_device_once_and_only_real_ones(text: str, rocm: bool) -> None:
    chosen = select("V", text, UUIDS, rocm=rocm).chosen
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= set(range(len(UUIDS)))


@given(order=st.permutations(range(4)), by_uuid=st.booleans())
def test_a_selection_of_all_is_in_the_order_of_the_list(order: list[int], by_uuid: bool) -> None:
    text = ",".join(UUIDS[i] if by_uuid else str(i) for i in order)
    assert select("V", text, UUIDS).chosen == tuple(order)


@given(text=LISTS, tail=LISTS)
def test_what_follows_the_end_of_a_list_changes_nothing_but_a_device_named_twice(text: str, tail: str) -> None:
    assert select("V", f"{text},-1,{tail}", UUIDS).chosen == select("V", text, UUIDS).chosen


def no_nvml() -> None:
    raise ToolError("none")


def tree_of(files: dict[str, str], root: Path) -> System:
    unpack("\n".join(f"=== {path}\n{text}" for path, text in files.items()), root)
    return System(root=root, env={}, run=runner([]), load_nvml=no_nvml, space=lambda path: None)


@settings(max_examples=40, deadline=None)
@given(
    limits=st.lists(st.one_of(st.none(), st.integers(0, 128 * GIB)), min_size=1, max_size=4),
    used=st.integers(0, 64 * GIB),
    cache=st.integers(0, 64 * GIB),
    available=st.integers(1, 64 * GIB).map(lambda n: n // 1024 * 1024),
)
def test_no_ancestor_s_limit_is_exceeded(limits: list[int | None], used: int, cache: int, available: int) -> None:
    total = 64 * GIB
    files = {
        "/proc/meminfo": f"MemTotal: {total // 1024} kB\nMemAvailable: {available // 1024} kB",
        "/proc/self/mountinfo": "1 0 0:1 / /cg rw - cgroup2 cgroup2 rw",
        "/proc/self/cgroup": "0::" + "".join(f"/g{i}" for i in range(len(limits))),
    }
    path = "/cg"
    for i, limit in enumerate(limits):
        path += f"/g{i}"
        files[f"{path}/memory.max"] = "max" if limit is None else str(limit)
        files[f"{path}/memory.current"] = str(used)
        files[f"{path}/memory.stat"] = f"active_file {min(cache, used)}\ninactive_file 0"
    with tempfile.TemporaryDirectory() as directory:
        host = read_host(tree_of(files, Path(directory))).host
    binding = [limit for limit in limits if limit is not None and limit < total]
    assert host.limit_bytes == min(binding, default=None)
    assert host.available_bytes is not None
    assert 0 <= host.available_bytes <= available
    assert all(host.available_bytes <= limit for limit in binding)
    if not binding:
        assert host.available_bytes == available


@given(
    sizes=st.lists(st.integers(1, 512), min_size=1, max_size=6),
    ram=st.integers(1, 4096),
    api=st.sampled_from(["generic-cuda", "generic-rpc"]),
)
def test_a_generic_device_has_exactly_what_is_stated(sizes: list[int], ram: int, api: str) -> None:
    machine = load_machine(*(f"{api}:{size}MiB" for size in sizes), ram=f"{ram}GiB")
    assert [device.free_bytes for device in machine.devices] == [size * MIB for size in sizes]
    assert [device.id for device in machine.devices] == [f"GPU{i}" for i in range(len(sizes))]
    assert machine.host.available_bytes == ram * GIB
    assert machine_from_dict(json.loads(json.dumps(machine_to_dict(machine)))) == machine
