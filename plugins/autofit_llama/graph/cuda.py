"""CUDA: what it runs, what a tensor takes there, and what its fusions keep alive.

ggml/src/ggml-cuda/ggml-cuda.cu (supports_op, get_alloc_size, graph_optimize) and fattn.cu. HIP builds the
same files; without tensor cores it has other kernels for single tokens, which only its generation graph
shows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from autofit_llama.engine.versions import Change, Version
from autofit_llama.graph.ggml import (
    BLOCKS,
    AttentionParams,
    Tensor,
    is_contiguous,
    is_contiguous_rows,
    is_quantized,
    n_elements,
    row_size,
    tensor_bytes,
)

ALIGNMENT = 128
ROW_PADDING = 512  #: MATRIX_ROW_PADDING
KQ_STRIDE = 256  #: FATTN_KQ_STRIDE


FLASH_SCRATCH = Change(
    without=9294,
    has=9538,
    source="ggml/src/ggml-cuda/ggml-cuda.cu:ggml_backend_cuda_buffer_type_get_alloc_size, with FLASH_ATTN_EXT",
    name="copies for flash attention in compute buffers",
)


def supports(t: Tensor, cc: int, version: Version) -> bool:
    """ggml_backend_cuda_device_supports_op for compute capability `cc` (890 is 8.9)."""
    if t.op == "FLASH_ATTN_EXT":
        return flash_attn_kernel(t, cc, version) != "none"
    check = _CHECKS.get(t.op)
    return check(t, version) if check is not None else t.op in _ALWAYS


def alloc_bytes(t: Tensor, cc: int, version: Version) -> int:
    """Bytes of `t` before alignment (ggml_backend_cuda_buffer_type_get_alloc_size)."""
    if t.op == "FLASH_ATTN_EXT":
        return flash_attn_bytes(t, cc, version) if version.follows(FLASH_SCRATCH) else tensor_bytes(t)
    n_bytes = tensor_bytes(t)
    if t.ne[0] % ROW_PADDING and is_quantized(t.type):
        n_bytes += row_size(t.type, ROW_PADDING - t.ne[0] % ROW_PADDING)
    return n_bytes


# what CUDA runs

_MATRIX_TYPES = frozenset(
    """
    f32 f16 bf16 q1_0 q2_0 q4_0 q4_1 q5_0 q5_1 q8_0 mxfp4 nvfp4 q2_K q3_K q4_K q5_K q6_K q8_K iq1_m iq1_s
    iq2_s iq2_xs iq2_xxs iq3_s iq3_xxs iq4_nl iq4_xs
    """.split()
)
_ROW_TYPES = frozenset(
    """
    f16 f32 bf16 i32 q1_0 q2_0 q4_0 q4_1 q5_0 q5_1 q8_0 q2_K q3_K q4_K q5_K q6_K iq2_xxs iq2_xs iq2_s
    iq3_xxs iq3_s iq1_s iq1_m iq4_xs
    """.split()
)
_SET_TYPES = frozenset("f32 f16 bf16 q4_0 q4_1 q5_0 q5_1 q8_0 iq4_nl".split())
_FLOATS = frozenset({"f32", "f16", "bf16"})
_COPIES = frozenset(
    [("f32", q) for q in ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "i32")]
    + [(q, "f32") for q in ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "i32")]
    + [("i32", "i32")]
)
_UNARY = frozenset(
    """
    abs sgn neg step gelu silu relu sigmoid hardsigmoid hardswish gelu_erf gelu_quick tanh exp expm1
    softplus elu xielu floor ceil round trunc
    """.split()
)
_GLU = frozenset("reglu geglu swiglu swiglu_oai geglu_erf geglu_quick swiglu_clamp".split())
_ALWAYS = frozenset(
    """
    NONE RESHAPE VIEW PERMUTE TRANSPOSE ADD_ID ADD1 SQR SQRT SIN COS CLAMP LOG DUP ARGMAX COUNT_EQUAL CONT
    DIAG_MASK_INF SOFT_MAX TOP_K ARGSORT PAD CONV_TRANSPOSE_2D POOL_1D POOL_2D UPSCALE PAD_REFLECT_1D ARANGE
    TIMESTEP_EMBEDDING LEAKY_RELU RWKV_WKV6 GATED_LINEAR_ATTN RWKV_WKV7 GATED_DELTA_NET FILL CUMSUM TRI DIAG
    SOLVE_TRI
    """.split()
)


XIELU = Change(
    without=6816,
    has=7698,
    source="ggml-cuda.cu:ggml_backend_cuda_device_supports_op, GGML_UNARY_OP_XIELU; ggml-org/llama.cpp#16725 without",
    name="xIELU on CUDA and ROCm",
    larger=False,
)


def _unary(t: Tensor, version: Version) -> bool:
    a = t.src[0]
    if t.param == "xielu" and (a.type == "bf16" or not version.follows(XIELU)):
        return False
    return t.param in _UNARY and is_contiguous(a)


def _glu(t: Tensor, _: Version) -> bool:
    a = t.src[0]
    if a.type == "bf16" and t.param in ("swiglu_oai", "swiglu_clamp"):
        return False
    return t.param in _GLU and is_contiguous(a, 1)


def _fwht(t: Tensor) -> bool:
    a, b = t.src
    return (
        t.param == "hadamard"
        and a.type == "f32"
        and b.type in ("f32", "f16")
        and is_contiguous(b)
        and is_contiguous(t)
        and b.ne == t.ne
    )


def _mul_mat(t: Tensor, _: Version) -> bool:
    a, b = t.src[0], t.src[1]
    if a.nb[0] != BLOCKS[a.type][1] or b.nb[0] != BLOCKS[b.type][1]:
        return False
    if b.type == "f16" and a.type != "f16" and not (t.op == "MUL_MAT" and _fwht(t)):
        return False
    if t.op == "MUL_MAT_ID" and t.param == "precise":
        return False
    return a.type in _MATRIX_TYPES


#: before `K_ROWS`
_FEW_ROW_TYPES = frozenset("f16 f32 bf16 i32 q4_0 q4_1 q5_0 q5_1 q8_0".split())
K_ROWS = Change(
    without=10088,
    has=10091,
    source="ggml/src/ggml-cuda/ggml-cuda.cu:ggml_backend_cuda_device_supports_op, GET_ROWS without and with K-quants",
    name="rows of K-quants on CUDA",
)


def _get_rows(t: Tensor, version: Version) -> bool:
    a = t.src[0]
    if not version.follows(K_ROWS):
        return a.type in _FEW_ROW_TYPES
    if a.type in ("iq4_nl", "mxfp4"):
        return a.ne[0] % 256 == 0
    return a.type in _ROW_TYPES


def _set_rows(t: Tensor, _: Version) -> bool:
    rows, ids = t.src[0], t.src[1]
    if ids.type not in ("i64", "i32"):
        return False
    return (t.type in _SET_TYPES and rows.type == "f32") or (t.type == "f16" and rows.type == "f16")


def _set(t: Tensor, _: Version) -> bool:
    return t.type in ("f32", "i32") and t.type == t.src[0].type == t.src[1].type


def _cpy(t: Tensor, _: Version) -> bool:
    a, b = t.src[0], t.src[1]
    if a.type in _FLOATS and b.type in _FLOATS:
        return True
    return (a.type, b.type) in _COPIES or (a.type == b.type and is_contiguous(a) and is_contiguous(b))


def _concat(t: Tensor, _: Version) -> bool:
    a, b = t.src[0], t.src[1]
    if a.type != b.type or a.type != t.type:
        return False
    if not is_quantized(a.type):
        return True
    per_block = BLOCKS[a.type][0]
    last = 4 if t.param == 3 else 3
    return is_contiguous(a, 0, last) and is_contiguous(b, 0, last) and not (a.ne[0] % per_block or b.ne[0] % per_block)


def _binary(t: Tensor, _: Version) -> bool:
    a, b = t.src[0].type, t.src[1].type
    if "bf16" in (a, b, t.type):
        return a == "bf16" and t.type == "bf16" and b in ("bf16", "f32")
    return a in ("f32", "f16") and b in ("f32", "f16") and t.type in ("f32", "f16")


SMALL_SCANS = Change(
    without=11200,
    has=11205,
    source="ggml/src/ggml-cuda/ggml-cuda.cu:ggml_backend_cuda_device_supports_op, SSM_SCAN from 128 and from 96",
    name="scans with 96 states on CUDA",
    larger=False,
)


def _ssm_scan(t: Tensor, version: Version) -> bool:
    s = t.src[0]
    if t.src[3].ne[0] == 1:  # mamba2
        sizes = (96, 128, 256) if version.follows(SMALL_SCANS) else (128, 256)
        return s.ne[0] in sizes and s.ne[1] % 16 == 0
    return t.param == 1 and s.ne[0] == 16 and s.ne[1] == 1 and s.ne[2] % 128 == 0 and t.src[4].ne[1] == 1


def _lightning_indexer(t: Tensor, _: Version) -> bool:
    q, k = t.src[0], t.src[1]
    if q.ne[0] != 128 or q.ne[1] not in (32, 64):
        return False
    if any(stride % 16 for x in (q, k) if not is_quantized(x.type) for stride in x.nb[1:]):
        return False
    return k.type in ("f32", "bf16", "f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")


def _all_f32(t: Tensor, _: Version) -> bool:
    return t.type == "f32" and all(s.type == "f32" for s in t.src)


_CHECKS: dict[str, Callable[[Tensor, Version], bool]] = {
    "UNARY": _unary,
    "GLU": _glu,
    "MUL_MAT": _mul_mat,
    "MUL_MAT_ID": _mul_mat,
    "OUT_PROD": _all_f32,
    "GET_ROWS": _get_rows,
    "SET_ROWS": _set_rows,
    "SET": _set,
    "CPY": _cpy,
    "REPEAT": lambda t, _: t.src[0].type in ("f32", "f16"),
    "CONCAT": _concat,
    "NORM": lambda t, _: is_contiguous_rows(t.src[0]),
    "RMS_NORM": lambda t, _: is_contiguous_rows(t.src[0]),
    "L2_NORM": lambda t, _: is_contiguous_rows(t.src[0]),
    "SCALE": lambda t, _: t.src[0].type in ("f32", "bf16") and t.type == t.src[0].type,
    "ADD": _binary,
    "SUB": _binary,
    "MUL": _binary,
    "DIV": _binary,
    "SSM_SCAN": _ssm_scan,
    "SSM_CONV": lambda t, _: t.src[0].ne[1] % 128 == 0,
    "ROLL": lambda t, _: t.src[0].type == "f32" and is_contiguous(t.src[0]),
    "ROPE": lambda t, _: t.src[0].nb[0] == BLOCKS[t.src[0].type][1] and is_contiguous(t.src[0], 2),
    "IM2COL": lambda t, _: is_contiguous(t.src[0]) and is_contiguous(t.src[1]),
    "ACC": lambda t, _: is_contiguous(t.src[0]) and is_contiguous(t.src[1]),
    "SUM": lambda t, _: is_contiguous_rows(t.src[0]),
    "SUM_ROWS": lambda t, _: t.type == "f32" and is_contiguous_rows(t.src[0]),
    "MEAN": lambda t, _: t.src[0].type == "f32" and is_contiguous_rows(t.src[0]),
    "GROUP_NORM": lambda t, _: is_contiguous(t.src[0]),
    "CONV_TRANSPOSE_1D": lambda t, _: t.src[0].type == t.src[1].type == "f32",
    "COL2IM_1D": lambda t, _: t.src[0].type in _FLOATS and is_contiguous(t.src[0]),
    "DSV4_HC_COMB": _all_f32,
    "DSV4_HC_PRE": _all_f32,
    "DSV4_HC_POST": _all_f32,
    "LIGHTNING_INDEXER": _lightning_indexer,
}


# flash attention on CUDA

_FA_TYPES = frozenset("f32 f16 bf16 q4_0 q4_1 q5_0 q5_1 q8_0".split())
_FA_EQUAL_HEADS = frozenset({40, 64, 72, 80, 96, 112, 128, 256})
#: pairs with a vector kernel in the default build (GGML_CUDA_FA_QUANTS)
_FA_VECTOR = frozenset({("f16", "f16"), ("bf16", "bf16"), ("q4_0", "q4_0"), ("q8_0", "q8_0")})


ANY_CACHE_PAIR = Change(
    without=10867,
    has=10878,
    source="ggml/src/ggml-cuda/fattn.cu:ggml_cuda_get_best_fattn_kernel, K and V of one type and of any",
    name="flash attention on CUDA with K and V of different types",
)
BF16_CACHES = Change(
    without=8390,
    has=8672,
    source="ggml/src/ggml-cuda/fattn.cu:ggml_cuda_get_best_fattn_kernel, without and with GGML_TYPE_BF16",
    name="flash attention on CUDA with bf16 caches",
    larger=False,
)
WIDE_HEADS = Change(
    without=8390,
    has=8672,
    source="ggml/src/ggml-cuda/fattn.cu:ggml_cuda_get_best_fattn_kernel, without and with heads of 512",
    name="flash attention on CUDA with heads of 512",
    larger=False,
)
UNEVEN_HEADS = Change(
    without=8929,
    has=9294,
    source="ggml/src/ggml-cuda/fattn.cu:ggml_cuda_get_best_fattn_kernel, without and with heads of 192 and 320",
    name="flash attention on CUDA with heads of 192 and 320",
    larger=False,
)
UNEVEN_GROUPS = Change(
    without=7698,
    has=8095,
    source="ggml/src/ggml-cuda/fattn.cu:ggml_cuda_get_best_fattn_kernel, gqa_opt_applies of even ratios and of all",
    name="grouped flash attention for uneven groups",
    larger=False,
)


def flash_attn_kernel(t: Tensor, cc: int, version: Version) -> str:
    """Which kernel runs the node (fattn.cu:ggml_cuda_get_best_fattn_kernel): none, vec, tile or mma."""
    p = t.param
    assert isinstance(p, AttentionParams)
    q, k, v = t.src[0], t.src[1], t.src[2]
    mask = t.src[3] if p.has_mask else None
    gqa_ratio = q.ne[2] // k.ne[2]
    gqa = gqa_ratio >= 2 and mask is not None and not p.has_alibi and k.ne[1] % KQ_STRIDE == 0
    uneven = version.follows(UNEVEN_GROUPS)
    if not uneven:
        gqa = gqa and gqa_ratio % 2 == 0
    for x in (q, k, v, mask):
        if uneven and x is not None and not is_quantized(x.type) and any(stride % 16 for stride in x.nb[1:]):
            gqa = False
    dk, dv = k.ne[0], v.ne[0]
    if dk in _FA_EQUAL_HEADS:
        fits = dv == dk
    elif (dk == 512 and not version.follows(WIDE_HEADS)) or (dk in (192, 320) and not version.follows(UNEVEN_HEADS)):
        fits = False
    elif dk == 192:
        fits = dv == 128 and gqa and gqa_ratio % 8 == 0
    elif dk == 320:
        fits = dv == 256 and gqa and gqa_ratio % 32 == 0
    elif dk in (512, 576):
        fits = dv == 512 and gqa and (uneven or gqa_ratio % 16 == 0)
    else:
        fits = False
    if not fits or not _fa_pair(k.type, v.type, version) or (mask is not None and mask.ne[2] != 1):
        return "none"

    n_q = q.ne[1]
    quantized = is_quantized(k.type) or is_quantized(v.type)
    vector = dk <= 256 and dk % 64 == 0 and dk != 192 and k.ne[1] % KQ_STRIDE == 0
    if cc >= 750 and dk not in (40, 72):
        if vector:
            if quantized:
                by_vector = n_q <= (2 if cc >= 890 else 1)
            else:
                sparse = gqa and gqa_ratio > 4 and dk == dv == 256 and _sparse(p, q, k, mask)
                long = gqa_ratio > 4 and (dk >= 256 or k.ne[1] >= 8192)
                by_vector = cc >= 890 and n_q == 1 and q.ne[3] == 1 and not sparse and not long
            if by_vector or (not gqa and n_q == 1):
                return "vec"
        return "mma"
    if cc == 700 and dk not in (40, 72):
        limit = 32 if dk == 320 else 16 if dk in (576, 192) else 8
        effective = 1
        while gqa_ratio % (2 * effective) == 0 and effective < limit:
            effective *= 2
        if vector and n_q * effective <= 2:
            return "vec"
        return "tile" if n_q * effective <= 16 else "mma"
    if vector and (n_q <= 2 if quantized else n_q == 1 and not gqa):
        return "vec"
    return "tile"


def _fa_pair(k: str, v: str, version: Version) -> bool:
    """Whether there is a kernel for caches of these types."""
    if version.follows(ANY_CACHE_PAIR):
        return k in _FA_TYPES and v in _FA_TYPES
    return k == v and (k in ("f32", "f16", "q4_0", "q8_0") or (k == "bf16" and version.follows(BF16_CACHES)))


def _sparse(p: AttentionParams, q: Tensor, k: Tensor, mask: Tensor | None) -> bool:
    """Whether so few cells are attended to that gathering them pays (shall_use_sparse, 1 by 8 columns)."""
    if mask is None or p.n_kv_max <= 0 or p.has_alibi or p.has_soft_cap:
        return False
    if mask.ne[0] != k.ne[1] or mask.ne[1] < q.ne[1] or mask.ne[2] != 1:
        return False
    return k.ne[1] >= max(4096, 2 * min(q.ne[1], 8) * p.n_kv_max)


def flash_attn_bytes(t: Tensor, cc: int, version: Version) -> int:
    """The result and, behind it, the f16 copies of K and V that the kernel works on
    (fattn.cu:ggml_cuda_flash_attn_ext_get_alloc_size).
    """
    kernel = flash_attn_kernel(t, cc, version)
    k, v = t.src[1], t.src[2]
    end = tensor_bytes(t)
    if kernel == "none":
        return end
    need_k = need_v = True
    if kernel == "vec":
        pair = ("f16" if k.type == "f32" else k.type, "f16" if v.type == "f32" else v.type)
        fallback = t.src[0].ne[0] not in (64, 128, 256) or pair not in _FA_VECTOR
        need_k, need_v = k.type == "f32" or fallback, v.type == "f32" or fallback
    if need_k and k.type != "f16":
        end = -(-end // 128) * 128 + 2 * n_elements(k)
    v_is_k = v.root is not None and (v.root is k or (v.root is k.root and v.offset == k.offset))
    if need_v and v.type != "f16" and not v_is_k:
        end = -(-end // 128) * 128 + 2 * n_elements(v)
    return end


# what CUDA keeps alive so that it can fuse

Keep = Callable[[Tensor, Tensor], None]  #: keep(tensor, until)


SHARED_EXPERTS = Change(
    without=11368,
    has=11393,
    source="ggml/src/ggml-cuda/ggml-cuda.cu:ggml_backend_cuda_graph_optimize, with match_shared_expert",
    name="shared experts fused with routed ones",
)


WEIGHTED_SUMS = Change(
    without=10739,
    has=10752,
    source="ggml/src/ggml-cuda/ggml-cuda.cu:ggml_backend_cuda_graph_optimize, without and with moe_weighted_reduction",
    name="weighted sums of experts that are fused",
)
ROUTING_KEPT = Change(
    without=11117,
    has=11138,
    source="ggml/src/ggml-cuda/ggml-cuda.cu:ggml_backend_cuda_graph_optimize, without and with topk_moe",
    name="tensors of expert routing kept for fusion",
)


def fusion_dependencies(nodes: list[Tensor], start: int, end: int, keep: Keep, version: Version) -> None:
    """Allocation dependencies of one split, nodes[start:end], some of which are moved together
    (ggml_backend_cuda_graph_optimize).
    """
    if version.follows(SHARED_EXPERTS):
        _join_shared_experts(nodes, start, end, keep)
    sums, routing = version.follows(WEIGHTED_SUMS), version.follows(ROUTING_KEPT)
    i = start
    while i < end:
        op = nodes[i].op
        if op == "MUL" and sums:
            match = _weighted_reduction(nodes, i, end)
            if match is not None:
                kept, result, count = match
                for t in kept:
                    keep(t, result)
                i += count - 1
                op = nodes[i].op
        if op in ("UNARY", "SOFT_MAX") and routing:
            count = _topk_moe(nodes, i, end)
            if count:
                until = nodes[i + count]
                for t in nodes[i : i + count]:
                    keep(t, until)
                    for src in t.src:
                        keep(src, until)
                i += count - 1
        i += 1


def _join_shared_experts(nodes: list[Tensor], start: int, end: int, keep: Keep) -> None:
    """Gate, up and activation of the shared experts right behind those of the routed ones."""
    i = start
    while i + 5 < end:
        if nodes[i].op == "MUL_MAT_ID":
            for j in range(i + 3, end - 2):
                if nodes[j].op == nodes[j + 1].op == "MUL_MAT_ID":
                    break
                if nodes[j].op == "MUL_MAT" and _match_shared_expert(nodes, i, j):
                    nodes[i + 3 : j + 3] = [*nodes[j : j + 3], *nodes[i + 3 : j]]
                    up = nodes[i + 2].src[1]
                    keep(up.src[1], nodes[i + 5])
                    keep(up.src[2], nodes[i + 5])
                    i += 5
                    break
        i += 1


def _match_shared_expert(nodes: Sequence[Tensor], i: int, j: int) -> bool:
    """ggml_cuda_match_shared_expert: the same activation of products with matrices of one type and size."""
    both = [*nodes[i : i + 3], *nodes[j : j + 3]]
    if [t.op for t in both] != ["MUL_MAT_ID", "MUL_MAT_ID", "GLU", "MUL_MAT", "MUL_MAT", "GLU"]:
        return False
    routed, shared = both[2], both[5]
    if not _fusable_subgraph(both, {id(routed), id(shared)}):
        return False
    for glu, first, second in ((routed, *both[:2]), (shared, *both[3:5])):
        if len(glu.src) != 2 or {id(t) for t in glu.src} != {id(first), id(second)} or not _fuses_products(glu):
            return False
    up, shared_up = routed.src[1], shared.src[1]
    weight, x, narrow, shared_x = up.src[0], up.src[1], shared_up.src[0], shared_up.src[1]
    return (
        weight.home is not None
        and is_quantized(weight.type)
        and x.op == "RESHAPE"
        and x.src[0] is shared_x
        and x.ne[1] == x.ne[3] == 1
        and is_contiguous(shared_x)
        and shared_x.ne[2:] == (1, 1)
        and weight.type == narrow.type
        and weight.ne[:2] == narrow.ne[:2]
        and weight.nb[1] == narrow.nb[1]
        and narrow.ne[2:] == (1, 1)
        and narrow.op == shared.src[0].src[0].op == "NONE"
        and routed.param == shared.param
    )


def _fuses_products(glu: Tensor) -> bool:
    """ggml_cuda_should_fuse_mul_mat, without biases and scales."""
    gate, up = glu.src
    a, b = up.src[0], gate.src[0]
    return (
        (a.type, a.ne, a.nb) == (b.type, b.ne, b.nb)
        and all(x is y for x, y in zip(up.src[1:], gate.src[1:], strict=True))
        and glu.param in ("swiglu", "geglu", "swiglu_oai", "swiglu_clamp")
    )


def _fusable(nodes: Sequence[Tensor], start: int, count: int, outputs: tuple[int, ...], end: int) -> bool:
    """ggml_can_fuse_subgraph of nodes that follow each other."""
    if start + count > end:
        return False
    return _fusable_subgraph(nodes[start : start + count], {id(nodes[k]) for k in outputs})


def _fusable_subgraph(inside: Sequence[Tensor], outputs: Collection[int]) -> bool:
    """ggml_can_fuse_subgraph_ext: apart from the nodes with the ids `outputs`, nothing inside is read, viewed or wanted
    outside.
    """
    ids = {id(t) for t in inside}
    for offset, t in enumerate(inside):
        if id(t) in outputs:
            continue
        if t.is_output:
            return False
        if sum(src is t for other in inside[offset + 1 :] for src in other.src) != t.uses:
            return False
        if t.root is not None and id(t.root) not in ids and not (t.root.home is not None and t.root.is_weight):
            return False
    return True


def _weighted_reduction(nodes: Sequence[Tensor], i: int, end: int) -> tuple[tuple[Tensor, ...], Tensor, int] | None:
    """experts * weights, one view per expert, and their sum (ggml_cuda_match_moe_weighted_reduction)."""
    first = nodes[i]
    if first.type != "f32" or not is_contiguous(first):
        return None
    weighted, kept, n_mul = first, _factors(first), 1
    result: tuple[Tensor, ...] | None = kept
    second = nodes[i + 1] if i + 1 < end else None
    if second is not None and second.op == "MUL" and second.type == "f32" and is_contiguous(second):
        outer = _factors(second)
        if outer is not None and outer[0] is first and kept is not None:
            weighted, n_mul, result = second, 2, (kept[0], outer[1], kept[1])
    if result is None:
        return None
    n_used, n_tokens = weighted.ne[1], weighted.ne[2] * weighted.ne[3]
    if not 2 <= n_used <= 15 or n_tokens <= 0:
        return None
    count = 2 * n_used + n_mul - 1
    if i + count > end:
        return None
    total = _sum_of_views(weighted, nodes[i + n_mul : i + count])
    if total is None or not is_contiguous(total):
        return None
    if total.ne != (weighted.ne[0], n_tokens, 1, 1) or not _fusable(nodes, i, count, (i + count - 1,), end):
        return None
    return result, total, count


def _factors(product: Tensor) -> tuple[Tensor, Tensor] | None:
    """What is multiplied, and the weights: one number for each of its rows."""
    narrow = (1, *product.ne[1:])
    a, b = product.src
    for full, weights in ((a, b), (b, a)):
        if (
            full.type == weights.type == "f32"
            and full.ne == product.ne
            and weights.ne == narrow
            and is_contiguous(full)
            and is_contiguous(weights)
        ):
            return full, weights
    return None


def _sum_of_views(weighted: Tensor, nodes: Sequence[Tensor]) -> Tensor | None:
    """The sum, where `nodes` are one view for each expert of `weighted`, in order, and what adds them up."""
    n_used, n_tokens = weighted.ne[1], weighted.ne[2] * weighted.ne[3]
    views: list[Tensor] = []
    total: Tensor | None = None
    n_adds = 0
    for t in nodes:
        if t.op == "VIEW":
            if (
                len(views) >= n_used
                or t.src[0] is not weighted
                or t.root is not weighted
                or t.ne != (weighted.ne[0], n_tokens, 1, 1)
                or t.nb[:2] != (weighted.nb[0], weighted.nb[2])
                or t.offset != len(views) * weighted.nb[1]
            ):
                return None
            views.append(t)
            continue
        if t.op != "ADD" or len(views) < 2 or n_adds + 1 >= len(views):
            return None
        left = views[0] if total is None else total
        if t.src[0] is not left or t.src[1] is not views[n_adds + 1] or t.type != "f32":
            return None
        total = t
        n_adds += 1
    return total if len(views) == n_used and n_adds == n_used - 1 else None


def _topk_moe(nodes: Sequence[Tensor], i: int, end: int) -> int:
    """Nodes of the expert routing that starts at `i` and that CUDA runs as one kernel, or 0."""
    gate = nodes[i]
    at = i
    if gate.op == "UNARY":
        if gate.param == "softplus" and i + 1 < end and nodes[i + 1].op == "SQRT" and nodes[i + 1].src[0] is gate:
            at += 1
        elif gate.param != "sigmoid":
            return 0
    last_gate = at

    def follows(index: int, op: str) -> bool:
        return index < end and nodes[index].op == op and nodes[index].src[0] is nodes[index - 1]

    at += 1
    if not follows(at, "RESHAPE"):
        return 0
    probs = nodes[at]
    at += 1
    if at < end and nodes[at].op == "ADD" and nodes[at].src[0] is nodes[last_gate]:
        at += 1
    if at >= end or nodes[at].op != "ARGSORT":
        return 0
    biased = at - last_gate == 3
    if nodes[at].src[0] is not (nodes[at - 1] if biased else nodes[last_gate]):
        return 0
    at += 1
    if not follows(at, "VIEW"):
        return 0
    ids_at = at
    at += 1
    if (
        at >= end
        or nodes[at].op != "GET_ROWS"
        or nodes[at].src[0] is not probs
        or nodes[at].src[1] is not nodes[at - 1]
    ):
        return 0
    at += 1
    if at < end:
        normed = (
            follows(at, "RESHAPE")
            and follows(at + 1, "SUM_ROWS")
            and follows(at + 2, "CLAMP")
            and at + 3 < end
            and nodes[at + 3].op == "DIV"
            and nodes[at + 3].src[1] is nodes[at + 2]
            and nodes[at + 3].src[0] is nodes[at]
            and follows(at + 4, "RESHAPE")
        )
        if normed:
            at += 5
        # a reshape that starts no normalization ends the match before the scale is looked for
        if (normed or nodes[at].op != "RESHAPE") and follows(at, "SCALE"):
            at += 1
    count = at - i
    if not _fusable(nodes, i, count, (ids_at, at - 1), end):
        return 0
    return count if _topk_moe_kernel(gate, nodes[ids_at], nodes[at - 1]) else 0


def _topk_moe_kernel(gate: Tensor, ids: Tensor, weights: Tensor) -> bool:
    """ggml_cuda_should_use_topk_moe."""
    n_expert = ids.nb[1] // ids.nb[0]
    if (n_expert & (n_expert - 1) or n_expert > 512) and n_expert not in (288, 576):
        return False
    logits = gate.src[0]
    if not is_contiguous(weights) or not is_contiguous(logits):
        return False
    if gate.op == "SOFT_MAX":
        return bool(gate.param) and len(gate.src) == 1
    return gate.param in ("sigmoid", "softplus")
