"""CUDA: which kernel of flash attention runs a node, and the copies that it needs (ggml/src/ggml-cuda/fattn.cu)."""

from __future__ import annotations

from autofit_llama.engine.versions import Change, Version
from autofit_llama.graph.ggml import (
    AttentionParams,
    Tensor,
    is_quantized,
    n_elements,
    tensor_bytes,
)

KQ_STRIDE = 256  #: FATTN_KQ_STRIDE
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
