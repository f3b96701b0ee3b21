"""The laws of ggml's graph allocator."""

from __future__ import annotations

from autofit_llama.graph import ggml
from autofit_llama.graph.allocator import CHUNK_STRIDE, Arena, allocate
from autofit_llama.graph.ggml import Tensor, tensor_bytes

KIB = 1024


def peak(*nodes: Tensor, alignment: int = 32) -> int:
    """Bytes that a graph of one backend needs; sources come before their readers."""
    arena = Arena(alignment)
    allocate([], [(t, 0) for t in nodes], [arena], lambda t, _: tensor_bytes(t))
    return arena.size_bytes


def matrix(n: int = 256, m: int = 1) -> Tensor:
    """A result that can be nobody's place: a product with a weight."""
    weight = ggml.new("f32", 8, n)
    weight.home, weight.is_weight = ggml.HOST, True
    source = ggml.new("f32", 8, m)
    source.home = ggml.HOST
    return ggml.mul_mat(weight, source)


def test_the_smallest_hole_that_fits_is_taken() -> None:
    arena = Arena(1)
    big, kept_1, small, kept_2 = (arena.allocate(n) for n in (100, 10, 40, 10))
    arena.free(big, 100)
    arena.free(small, 40)
    assert arena.allocate(40) == small
    assert arena.allocate(60) == big
    assert arena.allocate(41) == 160, "the open end, since no hole is large enough"
    assert (kept_1, kept_2) == (100, 150)


def test_of_equal_holes_the_last_is_taken() -> None:
    arena = Arena(1)
    first, _, second, _ = (arena.allocate(n) for n in (32, 8, 32, 8))
    arena.free(first, 32)
    arena.free(second, 32)
    assert arena.allocate(32) == second


def test_neighboring_holes_merge() -> None:
    arena = Arena(1)
    a, b, c, _ = (arena.allocate(n) for n in (10, 10, 10, 10))
    for addr in (a, c, b):
        arena.free(addr, 10)
    assert arena.state() == (((0, 30), (40, arena.max_chunk_bytes - 40)),)
    assert arena.size_bytes == 40


def test_freeing_what_is_empty_leaves_an_empty_hole_inside() -> None:
    """The engine's allocator does not look at the size; a later search passes over the hole."""
    arena = Arena(32)
    empty = arena.allocate(0)
    arena.allocate(64)
    arena.free(empty, 0)
    assert arena.state()[0][0] == (0, 0)
    assert arena.allocate(32) == 64


def test_a_largest_buffer_starts_a_new_chunk() -> None:
    arena = Arena(1, max_chunk_bytes=100)
    assert [arena.allocate(60), arena.allocate(60), arena.allocate(30)] == [0, CHUNK_STRIDE, 60]
    assert arena.size_bytes == 90 + 60
    assert arena.allocate(500) == 2 * CHUNK_STRIDE, "a single tensor may be larger"


def test_sizes_are_aligned() -> None:
    assert peak(matrix(3), matrix(3), alignment=128) == 2 * 128


def test_an_operation_takes_the_place_of_a_source_that_it_alone_reads() -> None:
    a = matrix()
    assert peak(a, ggml.silu(a)) == KIB
    a, b = matrix(), matrix()
    assert peak(a, b, ggml.add(a, b)) == 2 * KIB


def test_a_source_with_two_readers_keeps_its_place() -> None:
    a = matrix()
    b = ggml.silu(a)
    assert peak(a, b, ggml.silu(a)) == 2 * KIB
    a = matrix()
    b, c = ggml.silu(a), ggml.silu(a)
    assert peak(a, b, c, ggml.add(b, c)) == 2 * KIB, "the second reader is the only one left"


def test_a_source_behind_a_view_keeps_its_place() -> None:
    a = matrix(256)
    flat = ggml.reshape(a, 16, 16)
    assert peak(a, flat, ggml.silu(flat)) == 2 * KIB


def test_a_view_keeps_its_root_until_it_is_read() -> None:
    a = matrix(256)
    half = ggml.view(a, (128,))
    b = ggml.cont(half)
    c, d = matrix(256), matrix(256)
    assert peak(a, half, c, b, d) == 2 * KIB + 512
    a = matrix(256)
    assert peak(a, ggml.view(a, (128,)), matrix(256), matrix(256)) == 3 * KIB, "a view that nobody reads"


def test_other_operations_take_no_place() -> None:
    a = matrix()
    assert peak(a, ggml.cont(a)) == 2 * KIB
    a = matrix()
    assert peak(a, ggml.norm(a)) == 2 * KIB
    a = matrix()
    assert peak(a, ggml.rms_norm(a)) == KIB


def test_a_different_layout_takes_no_place() -> None:
    """A gated unit of halves is smaller than its source, and not among those in place anyway; add_id is."""
    a, bias, ids = matrix(64, 4), matrix(64), ggml.new("i32", 1, 4)
    a = ggml.reshape(a, 64, 1, 4)
    assert peak(ggml.add_id(a, bias, ids)) > KIB


def test_outputs_are_never_freed_or_taken_over() -> None:
    a = matrix()
    a.is_output = True
    assert peak(a, ggml.silu(a), matrix()) == 3 * KIB


def test_inputs_come_first_and_unused_ones_stay() -> None:
    used, unused = ggml.new("f32", 256), ggml.new("f32", 256)
    used.is_input = unused.is_input = True
    arena = Arena(32)
    y = ggml.silu(used)
    allocate([(used, 0), (unused, 0)], [(y, 0), (matrix(), 0)], [arena], lambda t, _: tensor_bytes(t))
    assert (used.addr, unused.addr, y.addr) == (0, KIB, 0)
    assert arena.size_bytes == 3 * KIB


def test_a_dependency_keeps_its_sources() -> None:
    a = matrix()
    b = ggml.silu(a)
    keeps = Tensor(ggml.NONE, "f32", a.ne, [a], root=a)
    assert peak(a, b, keeps) == 2 * KIB


def test_a_cast_is_its_own_second_source() -> None:
    a = matrix(256)
    half = ggml.cast(a, "f16")
    assert half.src == [a, half]
    assert peak(a, half, matrix(256)) == KIB + 512, "nobody else reads it, so it is freed at once"
