"""What a plan predicted beside what the engine reported."""

from __future__ import annotations

from autofit.domain.memory import Memory, MemoryItem, PoolUse
from autofit.domain.observed import Observed, ReportedPart
from autofit.planning.compare import compare


def item(kind, n_bytes):
    return MemoryItem(kind=kind, n_bytes=n_bytes, basis="exact", label="x")


def pool(name, *items):
    return PoolUse(id=name, name=name, total_bytes=None, free_bytes=None, budget_bytes=None, items=items)


MEMORY = Memory(
    pools=(
        pool("GPU0", item("weights", 100), item("cache", 50), item("compute", 10)),
        pool("host", item("weights", 7), item("compute", 3)),
    )
)
PLACES = {"CUDA0": "GPU0"}


def part(place, kind, n_bytes, **more):
    return ReportedPart(place=place, kind=kind, n_bytes=n_bytes, label="x", **more)


def differences(*parts):
    return compare(MEMORY, Observed(engine="toy", parts=parts), PLACES)


def test_parts_of_one_kind_add_up_per_pool() -> None:
    found = differences(part("CUDA0", "weights", 60), part("CUDA0", "weights", 45), part("CUDA0", "compute", 9))
    assert [(one.pool, one.kind, one.predicted_bytes, one.reported_bytes, one.over_bytes) for one in found] == [
        ("GPU0", "weights", 100, 105, 5),
        ("GPU0", "compute", 10, 9, -1),
    ]


def test_what_the_log_rounds_off_is_no_difference() -> None:
    (one,) = differences(part("CUDA0", "weights", 102, rounding_bytes=2))
    assert one.over_bytes == 0


def test_places_in_ram_need_no_name_and_unknown_ones_are_left_out() -> None:
    found = differences(part("CUDA_Host", "compute", 4, is_host=True), part("Vulkan7", "cache", 1))
    assert [(one.pool, one.kind, one.over_bytes) for one in found] == [("host", "compute", 1)]


def test_a_range_of_a_mapped_file_is_not_compared() -> None:
    assert differences(part("CPU_Mapped", "weights", 999, is_host=True, mapped=True)) == ()
