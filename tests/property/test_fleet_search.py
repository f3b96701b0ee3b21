"""Places of a fleet against plain enumeration: who may run at once, what they hold at most, and where they go."""

from __future__ import annotations

import runpy
from collections.abc import Iterator, Sequence
from itertools import combinations, permutations, product

import pytest
from autofit.domain.values import replace
from autofit.fleets.prices import Prices
from autofit.fleets.problem import Kind, Outcome, Place, Problem, Shape, Take
from autofit.fleets.search import solve
from autofit.fleets.together import Copy, Together
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support import ROOT

#: a loaded machine is no failure
calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
GROUPS = (None, None, "a", "b")


@st.composite
def togethers(draw: st.DrawFn, most: int = 6) -> Together:
    n_models = draw(st.integers(1, most))
    copies: list[Copy] = []
    for model in range(n_models):
        group, phases = draw(st.sampled_from(GROUPS)), draw(st.integers(1, 7))
        n = draw(st.integers(1, 2)) if len(copies) < most - 1 else 1
        copies += [Copy(name=f"m{model}-{i}", model=model, group=group, phases=phases) for i in range(n)]
    return Together(copies=tuple(copies[:most]))


def is_allowed(together: Together, some: Sequence[int]) -> bool:
    """By the two rules as they are written: a phase in common, and one model of each group."""
    copies = [together.copies[i] for i in some]
    shared = 7
    for one in copies:
        shared &= one.phases
    return bool(shared) and all(
        a.group is None or a.group != b.group or a.model == b.model for a, b in combinations(copies, 2)
    )


def allowed(together: Together) -> Iterator[tuple[int, ...]]:
    n = len(together.copies)
    for size in range(1, n + 1):
        yield from (some for some in combinations(range(n), size) if is_allowed(together, some))


@pytest.mark.slow
@settings(calm, max_examples=60)
@given(togethers(), st.lists(st.integers(0, 9), min_size=6, max_size=6))
def test_the_peak_is_that_of_the_fullest_allowed_set(together: Together, sizes: list[int]) -> None:
    held = {i: sizes[i] for i in range(len(together.copies)) if sizes[i]}
    most = max((sum(held.get(i, 0) for i in some) for some in allowed(together)), default=0)
    n_bytes, running = together.peak(held)
    assert n_bytes == most == sum(held[i] for i in running)
    assert not running or is_allowed(together, running)
    by_slot = [0] * together.n_slots
    for i, n in held.items():
        by_slot[together.slots[i]] += n
    assert together.most(by_slot) == most


@settings(calm, max_examples=20)
@given(togethers(), st.lists(st.integers(0, 9), min_size=6, max_size=6))
def test_what_others_hold_beside_a_copy(together: Together, sizes: list[int]) -> None:
    held = {i: sizes[i] for i in range(len(together.copies)) if sizes[i]}
    for i in range(len(together.copies)):
        with_it = [some for some in allowed(together) if i in some]
        most = max(sum(held.get(j, 0) for j in some if j != i) for some in with_it)
        assert together.beside(i, held) == most
        beside = {j for some in with_it for j in some}
        assert set(together.evicted(i)) == set(range(len(together.copies))) - beside


@settings(calm, max_examples=60)
@given(togethers())
def test_the_sets_that_are_listed_are_the_largest(together: Together) -> None:
    every = [frozenset(some) for some in allowed(together)]
    largest = {one for one in every if not any(one < other for other in every)}
    listed = [frozenset(some) for some in together.sets(limit=10_000)]
    assert largest <= set(listed) <= set(every)


# -- places -------------------------------------------------------------------------------------------------


@st.composite
def problems(draw: st.DrawFn, *, plain: bool = False) -> Problem:
    """One or two machines with up to three devices of two classes, and up to four copies."""
    classes = tuple(sorted(draw(st.lists(st.integers(0, 1), min_size=1, max_size=3))))
    free = {number: draw(st.integers(4, 12)) for number in (0, 1)}
    kinds = [Kind(classes=classes, free_bytes=tuple(free[one] for one in classes), host_bytes=draw(st.integers(2, 9)))]
    machines = [0] * draw(st.integers(1, 2))
    if draw(st.booleans()):
        kinds.append(Kind(classes=(0,), free_bytes=(free[0],), host_bytes=5))
        machines = [0, 1]
    together = draw(togethers(most=4))
    if plain:
        together = Together(copies=tuple(replace(one, group=None, phases=1) for one in together.copies))
    of_models: dict[int, tuple[Shape, ...]] = {}
    for model in {one.model for one in together.copies}:
        of_models[model] = tuple(draw(st.lists(shapes(kinds), min_size=1, max_size=3)))
    forbidden = {}
    if len(machines) > 1 and draw(st.integers(0, 2)) == 0:
        model = draw(st.sampled_from([one.model for one in together.copies]))
        where = frozenset([draw(st.integers(0, 1))])
        forbidden = {i: where for i, one in enumerate(together.copies) if one.model == model}
    return Problem(
        kinds=tuple(kinds),
        machines=tuple(machines),
        shapes=tuple(of_models[one.model] for one in together.copies),
        together=together,
        forbidden=forbidden,
    )


@st.composite
def shapes(draw: st.DrawFn, kinds: list[Kind]) -> Shape:
    number = draw(st.integers(0, len(kinds) - 1))
    classes = kinds[number].classes
    chosen = draw(st.sampled_from(sorted(set(classes))))
    n = draw(st.integers(1, classes.count(chosen)))
    takes = [Take(chosen, n, draw(st.integers(1, 6)), draw(st.integers(0, 2)))]
    others = sorted(set(classes) - {chosen})
    if others and draw(st.integers(0, 3)) == 0:
        takes.append(Take(others[0], 1, draw(st.integers(1, 6)), 1))
    fixed = None
    if len(takes) == 1 and draw(st.integers(0, 3)) == 0:
        own = [i for i, one in enumerate(classes) if one == chosen]
        fixed = tuple(own[-n:])
    return Shape(number, tuple(takes), draw(st.integers(0, 3)), 0, draw(st.integers(0, 3)), None, fixed)


def every_place(problem: Problem, shape: Shape) -> Iterator[Place]:
    for machine, kind in enumerate(problem.machines):
        if kind == shape.kind and shape.fixed is not None:
            yield Place(machine, shape.fixed, shape)
        elif kind == shape.kind:
            own = problem.kinds[kind].classes
            ways = [
                combinations([i for i, one in enumerate(own) if one == take.device_class], take.n_devices)
                for take in shape.takes
            ]
            for chosen in product(*ways):
                yield Place(machine, tuple(i for some in chosen for i in some), shape)


def holds(problem: Problem, places: Sequence[Place]) -> bool:
    """Whether every allowed set fits into every pool with the largest margin of all that is placed there, once."""
    if any(place.machine in problem.forbidden.get(i, ()) for i, place in enumerate(places)):
        return False
    for machine, kind_number in enumerate(problem.machines):
        kind = problem.kinds[kind_number]
        for pool in range(len(kind.classes) + 1):
            held, margin = {}, 0
            for i, place in enumerate(places):
                if place.machine != machine:
                    continue
                if pool == len(kind.classes):
                    held[i], own = place.shape.host_bytes, place.shape.host_margin_bytes
                elif pool in place.devices:
                    take = next(one for one in place.shape.takes if one.device_class == kind.classes[pool])
                    held[i], own = take.n_bytes, take.margin_bytes
                else:
                    continue
                margin = max(margin, own)
            free = kind.host_bytes if pool == len(kind.classes) else kind.free_bytes[pool]
            for some in allowed(problem.together):
                if sum(held.get(i, 0) for i in some) + margin > free:
                    return False
    return True


def least_cost(problem: Problem) -> int | None:
    choices = [[place for shape in some for place in every_place(problem, shape)] for some in problem.shapes]
    costs = [sum(one.shape.cost for one in places) for places in product(*choices) if holds(problem, places)]
    return min(costs, default=None)


def check(problem: Problem, found: Outcome) -> None:
    assert found.is_proven
    assert (None if found.places is None else found.cost) == least_cost(problem)
    if found.places is not None:
        assert holds(problem, found.places)
        assert found.cost == sum(place.shape.cost for place in found.places)


@pytest.mark.slow
@settings(calm, max_examples=80)
@given(problems())
def test_the_search_finds_what_enumeration_finds(problem: Problem) -> None:
    check(problem, solve(problem))


@settings(calm, max_examples=20)
@given(problems(plain=True))
def test_so_it_does_where_all_run_at_once(problem: Problem) -> None:
    check(problem, solve(problem))


@settings(calm, max_examples=40)
@given(problems(), st.integers(0, 3), st.integers(0, 2))
def test_more_memory_and_fewer_copies_never_lose_a_place(problem: Problem, more: int, gone: int) -> None:
    before = solve(problem)
    kinds = tuple(
        replace(one, free_bytes=tuple(n + more for n in one.free_bytes), host_bytes=one.host_bytes + more)
        for one in problem.kinds
    )
    after = solve(replace(problem, kinds=kinds))
    assert before.places is None or (after.places is not None and after.cost <= before.cost)
    kept = [i for i in range(len(problem.shapes)) if i != gone]
    if kept and len(kept) < len(problem.shapes):
        fewer = solve(
            replace(
                problem,
                forbidden={new: problem.forbidden.get(i, frozenset()) for new, i in enumerate(kept)},
                shapes=tuple(problem.shapes[i] for i in kept),
                together=Together(copies=tuple(problem.together.copies[i] for i in kept)),
            )
        )
        assert before.places is None or (fewer.places is not None and fewer.cost <= before.cost)


@settings(calm, max_examples=30)
@given(problems(), st.randoms(use_true_random=False))
def test_the_order_of_models_and_machines_does_not_matter(problem: Problem, random: object) -> None:
    before = solve(problem)
    order = list(range(len(problem.shapes)))
    random.shuffle(order)  # type: ignore[attr-defined]
    last = len(problem.machines) - 1
    turned = replace(
        problem,
        machines=problem.machines[::-1],
        forbidden={
            new: frozenset(last - machine for machine in problem.forbidden.get(i, ())) for new, i in enumerate(order)
        },
        shapes=tuple(problem.shapes[i] for i in order),
        together=Together(copies=tuple(problem.together.copies[i] for i in order)),
    )
    after = solve(turned)
    assert (before.places is None, before.cost) == (after.places is None, after.cost)


def test_a_copy_that_must_be_on_a_machine_keeps_others_like_it_off() -> None:
    """The larger one comes first and may be anywhere; the first of the machines alike is the only one of the other."""
    machine = Kind(classes=(0,), free_bytes=(10,), host_bytes=1)
    of = (Shape(0, (Take(0, 1, 8, 0),), 0, 0, 0),), (Shape(0, (Take(0, 1, 7, 0),), 0, 0, 0),)
    together = plain([8, 7], 1, 10).together
    both = Problem(kinds=(machine,), machines=(0, 0), shapes=of, together=together, forbidden={1: frozenset([1])})
    check(both, solve(both))
    two = Kind(classes=(0, 0), free_bytes=(10, 10), host_bytes=1)
    named = (of[0], (of[1][0]._replace(fixed=(0,)),))
    one = Problem(kinds=(two,), machines=(0,), shapes=named, together=together)
    check(one, solve(one))
    assert both != one and solve(both).places is not None and solve(one).places is not None


def plain(sizes: Sequence[int], n_devices: int, free: int, margin: int = 0) -> Problem:
    """Copies of these sizes on devices of one class, all at once."""
    return Problem(
        kinds=(Kind(classes=(0,) * n_devices, free_bytes=(free,) * n_devices, host_bytes=1),),
        machines=(0,),
        shapes=tuple((Shape(0, (Take(0, 1, size, margin),), 0, 0, 0),) for size in sizes),
        together=Together(copies=tuple(Copy(name=f"m{i}", model=i, group=None, phases=1) for i in range(len(sizes)))),
    )


def test_twelve_models_on_eight_devices_are_settled_either_way() -> None:
    """Sizes that leave no byte over, and one byte more than there is."""
    full = plain([60, 40, 50, 50, 70, 30, 80, 20, 90, 55, 45, 65], 8, 100)
    assert solve(full).places is not None and solve(full).is_proven
    none = solve(plain([51] * 12, 8, 100))
    assert none.places is None and none.is_proven
    odd = solve(plain([34, 34, 34, 34, 34, 33, 33, 33, 33, 33, 33, 33] + [67] * 5, 8, 100))
    assert odd.is_proven


@pytest.mark.slow
def test_twelve_models_on_eight_unlike_cards_are_proven() -> None:
    """Each model costs something else on each card; with phases and groups in half of them."""
    unlike = runpy.run_path(str(ROOT / "bench/fleet.py"))["unlike"]
    found = [solve(unlike(12, 8, number)) for number in range(48)]
    assert all(one.is_proven for one in found)
    assert sum(one.places is None for one in found) < 12
    assert max(one.n_tried for one in found) < 100_000  # a fifth of what is looked at before a search ends


def test_the_least_that_any_places_cost() -> None:
    """Of a search that ended early, and of one for which there are too many copies to be exact."""
    unlike = runpy.run_path(str(ROOT / "bench/fleet.py"))["unlike"]
    for number in range(8):
        whole, early = solve(unlike(12, 8, number)), solve(unlike(12, 8, number), max_tried=10)
        assert whole.is_proven and whole.least_cost == whole.cost
        assert early.least_cost <= whole.cost and (early.places is None or whole.cost <= early.cost)
        large = solve(unlike(25, 8, number))
        assert large.is_proven == (large.least_cost == large.cost and large.places is not None)
        assert 0 < large.least_cost <= large.cost or large.places is None


@settings(calm, max_examples=60)
@given(problems())
def test_bounds_hold_whatever_the_search_finds(problem: Problem) -> None:
    least = least_cost(problem)
    bound = Prices(problem, 1 + sum(max(shape.cost for shape in shapes) for shapes in problem.shapes)).bound
    assert least is None or bound <= least


def test_a_margin_counts_once_for_a_device() -> None:
    assert solve(plain([40, 40], 1, 100, margin=20)).places is not None
    assert solve(plain([40, 41], 1, 100, margin=20)).places is None


def test_a_search_that_ends_early_says_so() -> None:
    """Cards that differ in size and in cost, where the first answer is not the best."""
    sizes = [37, 41, 43, 47, 53, 31, 29, 23, 38]
    free, costs = (90, 110, 70, 100), (0, 3, 7, 9)
    cards = Problem(
        kinds=(Kind(classes=(0, 1, 2, 3), free_bytes=free, host_bytes=1),),
        machines=(0,),
        shapes=tuple(
            tuple(Shape(0, (Take(card, 1, size, 0),), 0, 0, costs[card] * (1 + size % 3)) for card in range(4))
            for size in sizes
        ),
        together=plain(sizes, 1, 1).together,
    )
    early, whole = solve(cards, max_tried=40), solve(cards)
    assert early.places is not None and whole.places is not None
    assert (early.is_proven, whole.is_proven) == (False, True)
    assert early.cost >= whole.cost


def test_permuted_devices_of_a_class_are_one_place() -> None:
    """The number of places looked at does not grow with devices that are alike."""
    assert all(solve(plain([60] * 9, n, 100)).n_tried < 200 for n in (2, 4, 8))
    assert {solve(plain(list(sizes), 2, 100)).places is None for sizes in permutations((60, 40, 50, 51))} == {True}
