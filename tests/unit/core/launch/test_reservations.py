"""What a reservation still counts for: planned bytes, until the engine holds them."""

from __future__ import annotations

import autofit
from autofit.domain.machine import HOST_POOL, Device, Holder, Host, Machine
from autofit.domain.units import GIB
from autofit.domain.values import replace
from autofit.launch.reservations import Claim, Reservation, claims_of, key_of, outstanding, reduced
from hypothesis import given, settings
from hypothesis import strategies as st

import support


def reservation(pid: int, n_gib: float, *, free_gib: float | None = 24, at_s: float = 0, key: str = "A") -> Reservation:
    free = None if free_gib is None else int(free_gib * GIB)
    claim = Claim(n_bytes=int(n_gib * GIB), free_bytes=free)
    return Reservation(pid=pid, started=None, program="llama-server", at_s=at_s, claims={key: claim})


def counted(found: list[tuple[Reservation, int]]) -> dict[int, float]:
    return {one.pid: n / GIB for one, n in found}


def left(*reservations: Reservation, held: dict[int, int | None] | None = None, free_gib: float, now_s: float = 1):
    return counted(outstanding("A", reservations, held or {}, int(free_gib * GIB), now_s))


def test_what_the_driver_says_an_engine_holds_counts_no_more() -> None:
    assert left(reservation(1, 10), held={1: 0}, free_gib=24) == {1: 10}
    assert left(reservation(1, 10), held={1: 4 * GIB}, free_gib=20) == {1: 6}
    assert left(reservation(1, 10), held={1: 11 * GIB}, free_gib=13) == {}
    assert left(reservation(1, 10), reservation(2, 4), held={1: 10 * GIB, 2: 0}, free_gib=14) == {2: 4}


def test_without_such_a_driver_all_counts_until_free_memory_has_fallen_by_nearly_all() -> None:
    assert left(reservation(1, 10), free_gib=24) == left(reservation(1, 10), free_gib=15) == {1: 10}
    assert left(reservation(1, 10), free_gib=14.5) == {}
    # of two, neither counts less before both can be there: the fall may be either's, or a stranger's
    both = reservation(1, 10), reservation(2, 6, at_s=1, free_gib=14)
    assert left(*both, free_gib=14) == {1: 10, 2: 6}
    assert left(*both, free_gib=8) == {}


def test_after_ten_minutes_what_free_memory_fell_by_is_taken() -> None:
    assert left(reservation(1, 10), free_gib=20, now_s=599) == {1: 10}
    assert left(reservation(1, 10), free_gib=20, now_s=600) == {1: 6}
    late = reservation(2, 6, at_s=590, free_gib=14)
    assert left(reservation(1, 10), late, free_gib=20, now_s=601) == {1: 6, 2: 6}


def test_what_nobody_knows_counts_whole() -> None:
    assert left(reservation(1, 10, free_gib=None), free_gib=1, now_s=9999) == {1: 10}
    assert counted(outstanding("A", [reservation(1, 10)], {}, None, 9999)) == {1: 10}
    assert left(reservation(1, 10, key="B"), free_gib=24) == {}


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1 << 40), st.none() | st.integers(0, 1 << 40), st.floats(0, 1e6)), max_size=5),
    st.none() | st.integers(0, 1 << 41),
    st.floats(0, 2e6),
)
def test_nothing_counts_for_more_than_was_planned_or_for_less_than_nothing(planned, free, now_s) -> None:  # type: ignore[no-untyped-def]
    made = [
        Reservation(pid=i, started=None, program="x", at_s=at_s, claims={"A": Claim(n_bytes=n, free_bytes=before)})
        for i, (n, before, at_s) in enumerate(planned)
    ]
    found = {one.pid: n for one, n in outstanding("A", made, {}, free, now_s)}
    assert all(0 < n <= planned[pid][0] for pid, n in found.items())


CARD = Device(id="GPU0", index=0, name="card", api="cuda", total_bytes=24 * GIB, free_bytes=20 * GIB, uuid="A")
MACHINE = Machine(host=Host(total_bytes=64 * GIB, available_bytes=50 * GIB), devices=(CARD,))


def test_a_machine_less_what_is_reserved_says_so() -> None:
    claims = {"A": Claim(n_bytes=8 * GIB, free_bytes=20 * GIB), HOST_POOL: Claim(n_bytes=4 * GIB)}
    one = Reservation(pid=7, started=None, program="llama-server", at_s=0, claims=claims)
    found = reduced(MACHINE, [one], {7: [7, 8]}, {7: 1 * GIB}, 1)
    assert (found.devices[0].free_bytes, found.host.available_bytes) == (12 * GIB, 47 * GIB)
    assert found.findings == (
        "GPU0: 8.00 GiB are reserved for llama-server (process 7), which was started and has not taken them yet",
        "RAM: 3.00 GiB are reserved for llama-server (process 7), which was started and has not taken them yet",
    )
    held = replace(CARD, free_bytes=13 * GIB, held_by=(Holder(pid=8, name="x", used_bytes=7 * GIB),))
    there = reduced(Machine(host=MACHINE.host, devices=(held,)), [one], {7: [7, 8]}, {7: 4 * GIB}, 1)
    assert (there.devices[0].free_bytes, there.host.available_bytes) == (12 * GIB, 50 * GIB)


def test_more_than_there_is_leaves_nothing() -> None:
    one = reservation(7, 100)
    assert reduced(MACHINE, [one], {7: [7]}, {}, 1).devices[0].free_bytes == 0


def test_unified_memory_is_one_pool() -> None:
    shared = replace(CARD, pool=HOST_POOL, integrated=True, free_bytes=45 * GIB)
    assert key_of(shared) == HOST_POOL
    one = reservation(7, 10, key=HOST_POOL)
    found = reduced(Machine(host=MACHINE.host, devices=(shared,)), [one], {7: [7]}, {7: 0}, 1)
    assert (found.host.available_bytes, found.devices[0].free_bytes) == (40 * GIB, 40 * GIB)


def test_a_plan_claims_what_it_takes_of_each_pool() -> None:
    machine = autofit.load_machine("rtx-3090", ram="64GiB")
    plan = autofit.plan("llama", str(support.TINY), machine)
    claims = claims_of(plan.memory, machine)
    assert {key: one.n_bytes for key, one in claims.items()} == {
        key_of(machine.devices[0]): plan.memory.pools[0].used_bytes,
        HOST_POOL: plan.memory.pools[1].used_bytes,
    }
    assert claims[HOST_POOL].free_bytes == machine.host.available_bytes
