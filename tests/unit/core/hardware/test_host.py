"""RAM, control groups and cores, on recorded trees."""

from __future__ import annotations

from pathlib import Path

import pytest
from autofit.domain.machine import Host
from autofit.domain.units import GIB, MIB
from autofit.hardware import detect_machine
from autofit.hardware.host import parse_vm_stat, read_host

from support.recorded_machines import machine


def host_of(name: str, tmp_path: Path, **changes: object) -> Host:
    return read_host(machine(name, tmp_path, **changes)).host  # type: ignore[arg-type]


def test_available_is_what_the_kernel_says_not_the_total(tmp_path: Path) -> None:
    facts = read_host(machine("cpu-only", tmp_path))
    assert facts.host.total_bytes == int(23.5 * GIB)
    assert facts.host.available_bytes == int(22.5 * GIB)
    assert facts.sources["host.available_bytes"] == "measured: /proc/meminfo MemAvailable"


def test_without_memavailable_it_is_bounded_from_below(tmp_path: Path) -> None:
    assert host_of("meminfo-without-available", tmp_path).available_bytes == (2 + 3 - 1) * GIB


def test_swap_is_not_counted_and_that_is_said(tmp_path: Path) -> None:
    assert any("swap" in note for note in host_of("dgx-spark", tmp_path).notes)


class TestCgroup:
    def test_a_limit_of_4_gib_bounds_what_is_available(self, tmp_path: Path) -> None:
        facts = read_host(machine("cgroup-v2-4gib", tmp_path))
        assert facts.host.limit_bytes == 4 * GIB
        # 1 GiB in use, of which half a GiB is page cache that gives way
        assert facts.host.available_bytes == 4 * GIB - (1 * GIB - 500 * MIB)
        assert facts.host.total_bytes == 64 * GIB
        assert "/user.slice/autofit.scope" in facts.sources["host.available_bytes"]

    def test_a_nested_group_is_bound_by_its_parent(self, tmp_path: Path) -> None:
        host = host_of("cgroup-v2-nested", tmp_path)
        assert host.limit_bytes == 16 * GIB
        assert host.available_bytes == 16 * GIB - (10 - 2) * GIB

    def test_a_limit_above_physical_memory_does_not_bind(self, tmp_path: Path) -> None:
        host = host_of("cgroup-v2-above-physical", tmp_path)
        assert (host.limit_bytes, host.available_bytes) == (None, 56 * GIB)

    def test_memory_high_bounds_speed_and_so_the_plan(self, tmp_path: Path) -> None:
        host = host_of("cgroup-v2-high", tmp_path)
        assert (host.limit_bytes, host.available_bytes) == (8 * GIB, 6 * GIB)

    def test_version_1_in_docker_whose_mount_starts_at_the_container(self, tmp_path: Path) -> None:
        host = host_of("cgroup-v1-docker", tmp_path)
        assert (host.limit_bytes, host.available_bytes) == (4 * GIB, 3 * GIB)

    def test_version_1_says_unlimited_with_a_huge_number(self, tmp_path: Path) -> None:
        host = host_of("cgroup-v1-unlimited", tmp_path)
        assert (host.limit_bytes, host.available_bytes) == (None, 56 * GIB)

    def test_malformed_files_change_nothing(self, tmp_path: Path) -> None:
        assert host_of("cgroup-malformed", tmp_path).available_bytes == 56 * GIB

    def test_cpu_quota_of_a_parent_bounds_the_cores(self, tmp_path: Path) -> None:
        host = host_of("cgroup-v2-cpu-quota", tmp_path)
        assert (host.n_cores_physical, host.n_cores_logical) == (2, 2)
        assert any("2.5 of 16" in note for note in host.notes)

    def test_cpu_quota_of_version_1(self, tmp_path: Path) -> None:
        assert host_of("cgroup-v1-docker", tmp_path).n_cores_physical == 1


class TestKubernetes:
    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("cgroup-v2-nested", "burstable, memory request about 3.97 GiB"),
            ("kubernetes-guaranteed", "guaranteed"),
            ("kubernetes-best-effort", "best effort"),
            ("kubernetes-memory-qos", "memory request 6.00 GiB (memory.min)"),
        ],
    )
    def test_requests_are_visible(self, tmp_path: Path, name: str, words: str) -> None:
        assert any(words in note for note in host_of(name, tmp_path).notes)


class TestCores:
    def test_hyperthreads_are_not_cores(self, tmp_path: Path) -> None:
        host = host_of("cpu-only", tmp_path)
        assert (host.n_cores_physical, host.n_cores_logical, host.n_cores_performance) == (2, 4, 2)

    def test_efficiency_cores_are_told_apart(self, tmp_path: Path) -> None:
        host = host_of("hybrid-13900k", tmp_path)
        assert (host.n_cores_physical, host.n_cores_logical, host.n_cores_performance) == (24, 32, 8)

    def test_affinity_counts_what_may_be_used(self, tmp_path: Path) -> None:
        host = host_of("affinity-to-4-of-32", tmp_path)
        assert (host.n_cores_physical, host.n_cores_logical) == (2, 4)
        assert any("4 of 32" in note for note in host.notes)

    def test_numa_nodes_and_huge_pages(self, tmp_path: Path) -> None:
        host = host_of("two-numa-nodes-hugepages", tmp_path)
        assert (host.n_numa_nodes, host.hugepages_bytes) == (2, 512 * 2 * MIB)

    @pytest.mark.parametrize(
        ("name", "can"), [("cpu-only", True), ("old-cpu-without-avx2", False), ("jetson-orin-nano", True)]
    )
    def test_repacking_needs_avx2_or_neon(self, tmp_path: Path, name: str, can: bool) -> None:
        assert host_of(name, tmp_path).has_repack is can


def test_memlock_and_shared_memory(tmp_path: Path) -> None:
    host = host_of("cpu-only", tmp_path)
    assert (host.memlock_bytes, host.shm_bytes) == (8 * MIB, 64 * MIB)


def test_nothing_readable_is_nothing_known(tmp_path: Path) -> None:
    host = host_of("empty-root", tmp_path)
    assert (host.total_bytes, host.available_bytes, host.n_cores_physical, host.has_repack) == (
        None,
        None,
        None,
        None,
    )


def test_vm_stat_of_another_language_is_no_number() -> None:
    assert parse_vm_stat("Statistiques de mémoire virtuelle\n") is None


def test_a_recorded_tree_runs_nothing(tmp_path: Path) -> None:
    root = machine("cpu-only", tmp_path).root
    result = detect_machine({}, root)
    assert result.host.available_bytes == int(22.5 * GIB)
    assert not result.devices


def test_this_machine_is_detected() -> None:
    result = detect_machine()
    assert result.origin == "detected"
    assert result.host.total_bytes is None or result.host.total_bytes > 1 << 28
