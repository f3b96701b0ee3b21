"""Which blocks are built, and when a shortened graph is believed."""

from __future__ import annotations

import pytest

from autofit_llama.graph.allocator import Held
from autofit_llama.graph.ggml import Tensor
from autofit_llama.graph.periods import Cut, choose_layers, is_periodic, moments
from autofit_llama.graph.scheduler import Schedule, Split


def test_a_uniform_stretch_keeps_its_lead_and_its_end() -> None:
    assert choose_layers("a" * 10) == ((0, 1, 2, 9), (Cut(3, 1),))


def test_a_pattern_keeps_its_phase() -> None:
    order, cuts = choose_layers("aaab" * 10)
    assert cuts == (Cut(12, 4),)
    assert order == (*range(12), *range(36, 40))


def test_what_does_not_repeat_is_built() -> None:
    assert choose_layers("abcdefgh") == (tuple(range(8)), ())
    assert choose_layers("aaaa") == ((0, 1, 2, 3), ()), "too short to gain anything"


def test_stretches_follow_each_other() -> None:
    order, cuts = choose_layers("x" + "a" * 8 + "b" * 8 + "y")
    assert order == (0, 1, 2, 3, 8, 9, 10, 11, 16, 17)
    assert cuts == (Cut(4, 1), Cut(8, 1))


@pytest.mark.parametrize("n", range(13, 40))
def test_with_slow_cycles_a_multiple_is_left_out(n: int) -> None:
    order, cuts = choose_layers("a" * n, {(None, "a"): 1})
    assert (n - len(order)) % 6 == 0
    assert order[-1] == n - 1
    assert len(cuts) == 1
    assert moments(cuts[0]) == [3, 4, 5, 6]


def test_more_effort_is_for_the_stretch_that_takes_it() -> None:
    order, cuts = choose_layers("a" * 20 + "b" * 20, {("a", "b"): 1})
    assert order == (0, 1, 2, 19, *range(20, 26), 38, 39)
    assert cuts == (Cut(3, 1), Cut(10, 1, level=1))
    assert cuts[1].edge == ("a", "b")


def test_where_no_effort_is_enough_the_stretch_is_built() -> None:
    assert choose_layers("a" * 20 + "b" * 20, {("a", "b"): 2}) == ((0, 1, 2, *range(19, 40)), (Cut(3, 1),))
    assert choose_layers("a" * 20 + "b" * 8, {("a", "b"): 1}) == ((0, 1, 2, *range(19, 28)), (Cut(3, 1),))


def _graph(*, n_blocks: int = 4, odd: int | None = None) -> tuple[Schedule, list[int]]:
    """Blocks of two nodes each; block `odd` differs."""
    nodes = [Tensor("ADD" if i // 2 == odd and i % 2 else "MUL", "f32", (8, 1, 1, 1)) for i in range(2 * n_blocks)]
    schedule = Schedule([Split(0, 0)], [], [(t, 0) for t in nodes], list(range(len(nodes) + 1)))
    return schedule, list(range(0, 2 * n_blocks + 1, 2))


def _held(index: int, addr: int = 0) -> Held:
    return {1000 + index: (index, addr, 32, 1, 0)}


HOLES = (((0, 32),),)


def test_a_state_that_moved_along_is_believed() -> None:
    schedule, starts = _graph()
    states = [(HOLES, _held(3)), (HOLES, _held(5))]
    assert is_periodic(schedule, starts, Cut(3, 1), states, n_copies=1)


def test_other_holes_other_addresses_or_other_nodes_are_not() -> None:
    schedule, starts = _graph()
    cut = Cut(3, 1)
    assert not is_periodic(schedule, starts, cut, [((((0, 64),),), _held(3)), (HOLES, _held(5))], n_copies=1)
    assert not is_periodic(schedule, starts, cut, [(HOLES, _held(3, 64)), (HOLES, _held(5))], n_copies=1)
    grown: Held = _held(3) | _held(5)
    assert not is_periodic(schedule, starts, cut, [(HOLES, _held(3)), (HOLES, grown)], n_copies=1)
    odd, starts = _graph(odd=3)
    assert not is_periodic(odd, starts, cut, [(HOLES, _held(3)), (HOLES, _held(5))], n_copies=1)


def test_a_pipeline_with_copies_in_every_block_is_not() -> None:
    schedule, starts = _graph()
    for i in (2, 4):
        schedule.splits[0].first_use.append(i)
    schedule.splits = [Split(0, 2, 4, [], [2]), Split(0, 4, 6, [], [4])]
    states = [(HOLES, _held(3)), (HOLES, _held(5))]
    assert is_periodic(schedule, starts, Cut(3, 1), states, n_copies=1)
    assert not is_periodic(schedule, starts, Cut(3, 1), states, n_copies=4)
