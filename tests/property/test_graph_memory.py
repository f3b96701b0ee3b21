"""Whatever the graph, what is alive does not overlap."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from autofit_llama.graph import ggml
from autofit_llama.graph.allocator import Arena, allocate
from autofit_llama.graph.ggml import Tensor, tensor_bytes


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 12)), max_size=60), st.sampled_from([1, 32, 128]))
def test_blocks_of_an_arena_never_overlap(steps: list[tuple[bool, int]], alignment: int) -> None:
    arena = Arena(alignment)
    live: list[tuple[int, int]] = []
    highest = 0
    for is_free, n in steps:
        if is_free and live:
            arena.free(*live.pop(n % len(live)))
        else:
            size = arena.pad(n * 40 + 1)
            live.append((arena.allocate(size), size))
            highest = max(highest, live[-1][0] + size)
        spans = sorted([*live, *((o, s) for chunk in arena.state() for o, s in chunk)])
        assert all(a + size == b for (a, size), (b, _) in pairwise(spans)), "no overlap, and nothing is lost"
        assert all(a % alignment == 0 for a, _ in live)
    assert arena.size_bytes == highest
    for block in live:
        arena.free(*block)
    assert all(len(chunk) == 1 for chunk in arena.state())


@st.composite
def graphs(draw: st.DrawFn) -> list[Tensor]:
    """Nodes in order: products with a weight, unary and binary operations, views; some are outputs."""
    weight = ggml.new("f32", 8, 64)
    weight.home, weight.is_weight = ggml.HOST, True
    nodes: list[Tensor] = []
    for _ in range(draw(st.integers(1, 25))):
        kind = draw(st.integers(0, 4))
        if kind == 0 or not nodes:
            source = ggml.new("f32", 8, draw(st.integers(1, 4)))
            source.home = ggml.HOST
            nodes.append(ggml.mul_mat(weight, source))
        else:
            a = nodes[draw(st.integers(0, len(nodes) - 1))]
            same = [t for t in nodes if t.ne == a.ne and t.nb == a.nb]
            b = same[draw(st.integers(0, len(same) - 1))]
            made = [ggml.silu(a), ggml.add(a, b), ggml.reshape(a, *a.ne), ggml.cont(a)][kind - 1]
            nodes.append(made)
        nodes[-1].is_output = draw(st.integers(0, 9)) == 0 and nodes[-1].root is None
    return nodes


@settings(max_examples=200, deadline=None)
@given(graphs())
def test_a_tensor_keeps_its_memory_until_its_last_reader(nodes: list[Tensor]) -> None:
    arena = Arena(32)
    allocate([], [(t, 0) for t in nodes], [arena], lambda t, _: tensor_bytes(t))
    for i, node in enumerate(nodes):
        if node.root is not None:
            continue
        for earlier in nodes[:i]:
            if earlier.root is not None or not _overlap(node, earlier):
                continue
            assert not _wanted_from(earlier, i + 1, nodes), (node, earlier)
            if _wanted_from(earlier, i, nodes):
                assert any(src is earlier for src in node.src), "only a source is replaced while it is read"
                assert node.addr == earlier.addr
    assert arena.size_bytes <= sum(arena.pad(tensor_bytes(t)) for t in nodes if t.root is None)


def _wanted_from(t: Tensor, i: int, nodes: list[Tensor]) -> bool:
    """Whether node `i` or a later one reads `t`, directly or through a view, or it is an output."""
    return t.is_output or any(src is t or src.root is t for node in nodes[i:] for src in node.src)


def _overlap(a: Tensor, b: Tensor) -> bool:
    return a.addr < b.addr + b.n_bytes and b.addr < a.addr + a.n_bytes
