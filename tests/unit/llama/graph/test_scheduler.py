"""The laws of ggml's scheduler."""

from __future__ import annotations

from collections.abc import Sequence

from autofit_llama.graph import ggml
from autofit_llama.graph.devices import CUDA, RPC, DeviceRules
from autofit_llama.graph.ggml import HOST, HOST_REPACKED, Tensor
from autofit_llama.graph.scheduler import PIPELINE_COPIES, Schedule, Scheduler

N, T = 256, 64
CPU = 2  #: after two devices


def weight(home: int, n: int = N, type_name: str = "f32") -> Tensor:
    t = ggml.new(type_name, n, n)
    t.home, t.is_weight = home, True
    return t


def given(n_tokens: int = T) -> Tensor:
    t = ggml.new("f32", N, n_tokens)
    t.is_input = True
    return t


def schedule(
    end: Tensor, devices: Sequence[DeviceRules] = (CUDA, CUDA), *, op_offload: bool = True, n_copies: int = 1
) -> tuple[Schedule, Scheduler]:
    scheduler = Scheduler(devices, op_offload=op_offload, n_copies=n_copies)
    leafs, nodes = _ordered(end)
    scheduler.assign(leafs, nodes)
    return scheduler.split(leafs, nodes), scheduler


def _ordered(end: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    leafs: list[Tensor] = []
    nodes: list[Tensor] = []

    def visit(t: Tensor) -> None:
        if t.seen:
            return
        t.seen = True
        for src in t.src:
            visit(src)
            src.uses += 1
        (leafs if t.op == ggml.NONE else nodes).append(t)

    visit(end)
    return leafs, nodes


def test_an_operation_runs_where_its_weight_is() -> None:
    a = ggml.mul_mat(weight(0), given())
    b = ggml.mul_mat(weight(1), a)
    c = ggml.mul_mat(weight(HOST), b)
    schedule(c, op_offload=False)
    assert (a.dev, b.dev, c.dev) == (0, 1, CPU)


def test_others_follow_their_neighbors_and_devices_come_before_the_cpu() -> None:
    a = ggml.mul_mat(weight(HOST), given())
    between = ggml.silu(a)
    b = ggml.mul_mat(weight(0), between)
    after = ggml.silu(b)
    schedule(after, op_offload=False)
    assert (a.dev, between.dev, b.dev, after.dev) == (CPU, 0, 0, 0)


def test_a_prompt_sized_operation_takes_its_host_weight_to_the_first_device() -> None:
    w = weight(HOST)
    y = ggml.mul_mat(w, given(32))
    found, _ = schedule(y)
    assert y.dev == 0
    assert found.splits[-1].inputs[0] is w, "the weight is copied"
    y = ggml.mul_mat(weight(HOST), given(31))
    schedule(y)
    assert y.dev == CPU
    y = ggml.mul_mat(weight(HOST_REPACKED), given(32))
    schedule(y)
    assert y.dev == CPU
    y = ggml.mul_mat(weight(HOST), given(32))
    schedule(y, (RPC, RPC))
    assert y.dev == CPU


def test_each_copied_weight_after_the_first_starts_a_split() -> None:
    x = given()
    for _ in range(3):
        x = ggml.mul_mat(weight(HOST), x)
    found, scheduler = schedule(x)
    assert [s.dev for s in found.splits] == [0, 0, 0]
    sizes, _ = scheduler.reserve(found)
    assert sizes[0] < 2 * 4 * N * N + 4 * 4 * N * T, "so that the copies are not held at the same time"


def test_an_unsupported_operation_falls_to_the_cpu_between_two_splits() -> None:
    a = ggml.mul_mat(weight(0), given())
    odd = ggml.unary(a, "hard_to_find")
    b = ggml.mul_mat(weight(0), odd)
    found, _ = schedule(b)
    assert [s.dev for s in found.splits] == [0, CPU, 0]


def test_rope_factors_do_not_decide_but_are_copied() -> None:
    factors = ggml.new("f32", N // 2)
    factors.home, factors.is_weight = HOST, True
    positions = ggml.new("i32", T)
    positions.is_input = True
    a = ggml.mul_mat(weight(0), given())
    y = ggml.rope(ggml.reshape(a, N, 1, T), positions, factors)
    found, _ = schedule(y)
    assert y.dev == 0
    assert factors in [t for s in found.splits for t in s.inputs]
    factors.home = 1
    y = ggml.rope(ggml.reshape(ggml.mul_mat(weight(0), given()), N, 1, T), positions, factors)
    schedule(y)
    assert y.dev == 1, "a device cannot read another one's memory"


def test_what_writes_to_a_cache_runs_where_the_cache_is() -> None:
    cache = ggml.new("f16", N, 512)
    cache.home = HOST
    ids = ggml.new("i64", T)
    ids.is_input = True
    a = ggml.mul_mat(weight(0), given())
    stored = ggml.set_rows(cache, a, ids)
    schedule(stored)
    assert (a.dev, stored.dev) == (0, CPU)


def test_an_input_is_copied_to_each_device_once() -> None:
    x = given()
    a = ggml.mul_mat(weight(0), x)
    b = ggml.mul_mat(weight(0), x)
    c = ggml.mul_mat(weight(1), x)
    found, _ = schedule(ggml.add(ggml.add(a, b), c))
    assert sum(t is x for s in found.splits for t in s.inputs) == 2


def test_a_pipeline_holds_four_of_every_input_and_cut() -> None:
    def sizes(n_copies: int) -> list[int]:
        x = given()
        y = ggml.mul_mat(weight(1), ggml.mul_mat(weight(0), x))
        found, scheduler = schedule(y, n_copies=n_copies)
        return scheduler.reserve(found)[0]

    one = 4 * N * T
    assert sizes(1) == [2 * one, 2 * one, one]
    assert sizes(PIPELINE_COPIES) == [5 * one, 5 * one, 4 * one]


def test_quantized_rows_are_padded_on_cuda_alone() -> None:
    t = Tensor("CONT", "q8_0", (64, 4, 1, 1))
    assert CUDA.alloc_bytes(t) == 68 * 4 + 34 * (512 - 64) // 32
    assert RPC.alloc_bytes(t) == 68 * 4


def attention(
    head_k: int,
    head_v: int,
    *,
    n_head: int = 8,
    n_kv: int = 2,
    kind: str = "f16",
    n_q: int = 64,
    mask: bool = True,
) -> Tensor:
    q = ggml.permute(ggml.new("f32", head_k, n_head, n_q), 0, 2, 1, 3)
    k = ggml.permute(ggml.new(kind, head_k, n_kv, 512), 0, 2, 1, 3)
    v = ggml.permute(ggml.new(kind, head_v, n_kv, 512), 0, 2, 1, 3)
    return ggml.flash_attn_ext(q, k, v, ggml.new("f16", 512, n_q) if mask else None, None)


def test_flash_attention_takes_the_head_sizes_that_have_kernels() -> None:
    assert CUDA.supports(attention(128, 128))
    assert CUDA.supports(attention(80, 80, mask=False))
    assert not CUDA.supports(attention(48, 48))
    assert not CUDA.supports(attention(128, 64))
    assert CUDA.supports(attention(576, 512, n_head=16, n_kv=1))
    assert not CUDA.supports(attention(576, 512, n_head=16, n_kv=16)), "needs grouped queries"
    assert not CUDA.supports(attention(576, 512, n_head=16, n_kv=1, mask=False))
    assert CUDA.supports(attention(192, 128, n_head=8, n_kv=1))
    assert not CUDA.supports(attention(192, 128, n_head=4, n_kv=1)), "eight queries per key at least"
    assert not CUDA.supports(attention(128, 128, kind="iq4_nl"))
    assert RPC.supports(attention(48, 48))


def test_a_quantized_cache_costs_its_f16_copy_in_the_node() -> None:
    plain = CUDA.alloc_bytes(attention(128, 128))
    assert CUDA.alloc_bytes(attention(128, 128, kind="q8_0")) == plain + 2 * 2 * (128 * 2 * 512)
    assert RPC.alloc_bytes(attention(128, 128, kind="q8_0")) == plain
    one_token = attention(128, 128, kind="q8_0", n_q=1)
    assert CUDA.alloc_bytes(one_token) == ggml.tensor_bytes(one_token), "the vector kernel reads q8_0 itself"
