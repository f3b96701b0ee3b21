"""Laws of the placement search, on real models and random machines."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from autofit.domain.machine import HOST_POOL, Device, Host, Machine
from autofit.domain.memory import Memory
from autofit.domain.request import Margin
from autofit.domain.units import GIB, MIB
from autofit.solve import Placement, Span, solve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autofit_llama.command.settings import LlamaSettings
from autofit_llama.engine.regex import searcher
from autofit_llama.memory.estimate import size
from autofit_llama.memory.placement import place_layers
from autofit_llama.planning.boundary import choices, split_of
from autofit_llama.planning.goals import Goals, reach, stretch
from autofit_llama.planning.problem import LaunchProblem
from autofit_llama.planning.search import Bounds, Candidate, Found, Search, shortfall_bytes
from autofit_llama.planning.tables import Split
from autofit_llama.planning.terms import patterns_of, terms_of
from support.descriptors import spec

MODELS = ("llama-3.1-8b-Q4_K_M", "mixtral-8x7b-Q4_K_M", "deepseek-v2-lite-Q4_K_M", "gemma-3-4b-Q4_K_M")
SIZED = {name: size(spec("models", name)) for name in MODELS}
SPEEDS = (300_000_000_000, 900_000_000_000)
SLOW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


def problem(name: str, devices: list[tuple[int, int]], ram: int | None, margin: int = 0) -> LaunchProblem:
    """A launch of a model on CUDA devices of (MiB, bytes/s)."""
    sized = SIZED[name]
    cards = tuple(
        Device(
            id=f"GPU{i}", index=i, name="a card", api="cuda", total_bytes=mib * MIB, free_bytes=mib * MIB,
            runtime_bytes=0, compute_capability=(8, 9), bandwidth_bytes_per_s=speed,
            link_bytes_per_s=16_000_000_000,
        )
        for i, (mib, speed) in enumerate(devices)
    )  # fmt: skip
    n = sized.hparams.n_layer_all + 1
    return LaunchProblem(
        model=sized.model,
        sized=sized,
        machine=Machine(host=Host(total_bytes=ram, available_bytes=ram), devices=cards),
        program="llama-server",
        settings=LlamaSettings(n_parallel=1, cache_ram_mib=0, n_checkpoints=0),
        devices=cards,
        bounds=Bounds(heads=range(n + 1), n_cpu_ffn=(0, n)),
        margins={card.id: Margin(n_bytes=margin) for card in cards},
    )


def candidate(n_ctx: int) -> Candidate:
    return Candidate(n_ctx, "f16", "f16", 512, 2048)


machines = st.lists(st.tuples(st.integers(600, 14_000), st.sampled_from(SPEEDS)), min_size=1, max_size=3)
contexts = st.sampled_from([1024, 4096, 16_384])


@SLOW
@given(st.sampled_from(MODELS), machines, contexts, st.one_of(st.none(), st.integers(2, 48)))
def test_what_is_said_to_fit_fits_everywhere(name: str, devices, n_ctx: int, ram_gib: int | None) -> None:
    launch = problem(name, devices, None if ram_gib is None else ram_gib * GIB, margin=100 * MIB)
    found = Search(launch).best(candidate(n_ctx))
    if found is None:
        return
    assert found.memory.fits
    assert found.memory == launch.measure(found.candidate, found.split)
    n_rows = launch.sized.hparams.n_layer_all + 1
    assert found.split.head + sum(count for _, count in found.split.rows) == n_rows
    assert all(count > 0 for _, count in found.split.rows)


@SLOW
@given(st.sampled_from(MODELS), machines, st.integers(0, 2), st.integers(1, 6_000))
def test_more_memory_is_never_slower(name: str, devices, which: int, more_mib: int) -> None:
    larger = list(devices)
    i = which % len(devices)
    larger[i] = larger[i][0] + more_mib, larger[i][1]
    before = Search(problem(name, devices, None)).best(candidate(4096))
    after = Search(problem(name, larger, None)).best(candidate(4096))
    assert before is not None
    assert after is not None
    # Whole layers in RAM are preferred to parts of them while they are at most 2 % slower.
    assert after.seconds <= before.seconds * 1.02


@SLOW
@given(st.sampled_from(MODELS), machines, st.randoms(use_true_random=False))
def test_the_order_of_devices_changes_nothing(name: str, devices, random) -> None:
    shuffled = list(devices)
    random.shuffle(shuffled)
    here = Search(problem(name, devices, 64 * GIB)).best(candidate(4096))
    there = Search(problem(name, shuffled, 64 * GIB)).best(candidate(4096))
    assert (here is None) == (there is None)
    if here is not None and there is not None:
        assert here.seconds == pytest.approx(there.seconds, rel=1e-9)
        assert sum(pool.used_bytes for pool in here.memory.pools) == sum(p.used_bytes for p in there.memory.pools)


@SLOW
@given(st.sampled_from(MODELS), machines, st.integers(100, 6_000))
def test_the_shortfall_is_exact(name: str, devices, ram_mib: int) -> None:
    launch = problem(name, devices, ram_mib * MIB)
    if Search(launch).best(candidate(4096)) is not None:
        return
    nearest = Search(launch).nearest(candidate(4096))
    assert nearest is not None
    assert not nearest.memory.fits
    missing = {pool.id: max(0, pool.shortfall_bytes) for pool in nearest.memory.pools}

    def with_more(less: int) -> bool:
        """Whether the same plan fits when every short pool gets what it lacks, `less` bytes short of it."""
        cards = tuple(
            replace(card, free_bytes=(card.free_bytes or 0) + max(0, missing.get(card.id, 0) - less))
            for card in launch.devices
        )
        host = replace(launch.machine.host, available_bytes=ram_mib * MIB + max(0, missing[HOST_POOL] - less))
        other = replace(launch, machine=Machine(host=host, devices=cards), devices=cards)
        return other.measure(nearest.candidate, nearest.split).fits

    assert with_more(0)
    assert not with_more(1)
    assert shortfall_bytes(nearest.memory) == sum(missing.values())


@pytest.mark.slow
@SLOW
@given(st.sampled_from(MODELS), machines, st.sampled_from([8_192, 40_000]))
def test_a_stretched_context_is_the_longest_that_fits(name: str, devices, most: int) -> None:
    launch = problem(name, devices, 64 * GIB)
    search = Search(launch)
    found = search.best(candidate(4096))
    if found is None:
        return
    longest = stretch(search, found, most)
    n_ctx = longest.candidate.n_ctx_seq
    assert longest.memory.fits
    assert n_ctx <= most
    if n_ctx < most:
        one_more = longest.candidate._replace(n_ctx_seq=min(most, (n_ctx // 256 + 1) * 256))
        assert not launch.measure(one_more, longest.split).fits


def test_a_preference_for_context_gets_one_at_a_decode_floor() -> None:
    launch = problem("mixtral-8x7b-Q4_K_M", [(12_000, 900_000_000_000)], 64 * GIB)
    fast = reach(Search(launch), Goals(prefer="speed", least=4096, most=24_576))
    long = reach(Search(launch), Goals(prefer="context", least=4096, most=24_576))
    assert fast is not None
    assert long is not None
    assert fast.found.seconds <= long.found.seconds
    assert fast.found.candidate.n_ctx_seq < long.found.candidate.n_ctx_seq == 24_576


def test_where_only_small_micro_batches_fit_the_faster_placement_is_taken() -> None:
    class Only(Search):
        def best(self, candidate: Candidate) -> Found | None:
            seconds = {256: 2.0, 128: 1.0}.get(candidate.n_ubatch)
            return None if seconds is None else Found(candidate, Split(1, (), seconds=seconds), Memory(pools=()))

        def resident(self, candidate: Candidate) -> Found | None:
            return None

    search = Only(problem(MODELS[0], [(600, 900_000_000_000)], None))
    found = reach(search, Goals(prefer="speed", least=4096, most=4096))
    assert found is not None
    assert found.found.candidate.n_ubatch == 128


def test_a_block_on_the_host_asks_for_no_expert_there_as_well() -> None:
    """The first block of this model has no experts; those of all others are on the card."""
    launch = problem("deepseek-v2-lite-Q4_K_M", [(24_000, 900_000_000_000)], None)
    search, wanted = Search(launch), candidate(4096)
    found = solve(search.known.assignment(wanted, search.tables(wanted), offload=True, heads=(1,)))
    assert found is not None
    assert (found.head, found.n_cpu_ffn) == (1, 1)


def test_a_device_that_would_hold_parts_alone_is_left_out() -> None:
    """The parts of block 10 for the second of three devices, and no block: they stay on the host."""
    launch = problem("llama-3.1-8b-Q4_K_M", [(4_000, 900_000_000_000)] * 3, None)
    tables, n_units = launch.tables(candidate(4096)), 4 * 32 + 1
    spans = (Span("GPU0", 0, 41), Span("GPU1", 41, 44), Span("GPU2", 44, n_units))
    split = tables.split(Placement(0, 0, spans, 0.0), fine=True)
    assert split.rows == (("GPU0", 11), ("GPU2", 22))
    assert split.moved == ()
    assert {slot for slot, _ in split.offloaded} == {10}
    assert set(tables.device_bytes(split)) == {"GPU0", "GPU2"}


@pytest.mark.parametrize("overflow", [False, True])
@pytest.mark.parametrize("n_cpu_ffn", [0, 3, 8, 9, 17, 20, 31])
def test_what_is_polished_stays_inside_every_device(n_cpu_ffn: int, overflow: bool) -> None:
    """Whichever device the last blocks with their feed-forward on the host is on."""
    launch = problem("mixtral-8x7b-Q4_K_M", [(24_000, 900_000_000_000)] * 3, None)
    tables = launch.tables(candidate(4096))
    split = Split(0, (("GPU0", 8), ("GPU1", 9), ("GPU2", 16)), n_cpu_ffn)
    rooms = {name: n_bytes + 500 * MIB for name, n_bytes in tables.device_bytes(split).items()}
    found = choices(tables, split, [0], rooms.__getitem__, overflow=overflow)
    assert found
    for choice in found:
        polished = split_of(tables, choice)
        used = tables.device_bytes(polished)
        assert all(used[name] <= rooms[name] for name in used)
        assert tables.host_bytes(polished) == choice.host_bytes
    assert tables.host_bytes(split) - found[0].host_bytes > (300 * MIB if n_cpu_ffn else -1)


def test_an_empty_machine_runs_on_its_processor() -> None:
    launch = problem("llama-3.1-8b-Q4_K_M", [], 32 * GIB)
    found = Search(launch).best(candidate(4096))
    assert found is not None
    assert found.split == Split(33, (), seconds=found.seconds)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=16))
def test_rows_per_device_are_what_the_engine_makes_of_them(rows: list[int]) -> None:
    split = Split(3, tuple((f"GPU{i}", count) for i, count in enumerate(rows)))
    terms = terms_of(split, [None] * (3 + sum(rows)), "dense")  # type: ignore[list-item]
    assert terms.n_gpu_layers == sum(rows)
    placement = place_layers(sum(rows) - 1, sum(rows), terms.tensor_split)
    homes = [*placement.blocks, placement.output]
    assert [homes.count(device) for device in range(len(rows))] == rows


@given(st.integers(0, 120), st.sampled_from(["up", "gate", "down"]))
def test_a_pattern_means_one_tensor_and_no_shell_reads_it_otherwise(layer: int, projection: str) -> None:
    (text,) = patterns_of(layer, projection, "experts")
    assert re.fullmatch(r"[a-z0-9._]+", text)
    matches = searcher(text)
    for slot in range(130):
        for name in ("up", "gate", "down"):
            wanted = slot == layer and name == projection
            assert matches(f"blk.{slot}.ffn_{name}_exps.weight") is wanted
            assert bool(re.search(text, f"blk.{slot}.ffn_{name}_exps.weight")) is wanted
        assert not matches(f"blk.{slot}.ffn_up_shexp.weight")
