"""Metal: what its scratch adds to a tensor, and the attention that it runs.

ggml-metal.cpp:ggml_backend_metal_buffer_type_get_alloc_size, ggml-metal-ops.cpp:*_extra_*, ggml-metal-device.m.
"""

from __future__ import annotations

from autofit_llama.graph.ggml import AttentionParams, Tensor, n_elements, tensor_bytes

N_PART_AMAX = 256  #: N_MM_NPART_AMAX
CELLS, QUERIES = 64, 8  #: OP_FLASH_ATTN_EXT_NCPSG, _NQPSG
N_WORKGROUPS = 32
_HEADS = frozenset({32, 40, 48, 64, 72, 80, 96, 112, 128, 192, 256, 320, 512, 576})
_KV_TYPES = frozenset({"f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"})
_UNPACKED = frozenset({"q4_0", "q4_1", "q5_0", "q5_1", "q8_0"})


def flash_attn_supported(t: Tensor) -> bool:
    q, k, v = t.src[0], t.src[1], t.src[2]
    if q.ne[0] not in _HEADS or k.ne[0] < v.ne[0] or (k.ne[0] == 72 and v.ne[0] != 72):
        return False
    return k.type == v.type and k.type in _KV_TYPES


def alloc_bytes(t: Tensor) -> int:
    """Bytes of `t` before alignment, with the scratch that its kernel works in."""
    n_bytes = tensor_bytes(t)
    if t.op == "MUL_MAT_ID":
        n_expert, n_tokens = t.src[0].ne[2], t.src[2].ne[1]
        return n_bytes + 4 * n_expert * (1 + n_tokens) + 8 + 4 * N_PART_AMAX
    if t.op == "FLASH_ATTN_EXT":
        return n_bytes + _flash_attn_scratch(t)
    if t.op in ("CUMSUM", "ARGSORT"):
        return 2 * n_bytes
    if t.op == "TOP_K":
        return 8 * n_elements(t.src[0])
    return n_bytes


def _flash_attn_scratch(t: Tensor) -> int:
    """Padding of the last cells, blocks of the mask, partial results, and f16 copies of K and V."""
    p = t.param
    assert isinstance(p, AttentionParams)
    q, k, v = t.src[0], t.src[1], t.src[2]
    v_is_k = v.root is not None and (v.root is k or (v.root is k.root and v.offset == k.offset))
    unpacked = q.ne[1] >= 32 and k.type in _UNPACKED
    k_row, v_row = (2 * k.ne[0], 2 * (k if v_is_k else v).ne[0]) if unpacked else (k.nb[1], v.nb[1])
    n_bytes = CELLS * (k_row * k.ne[2] * k.ne[3] + v_row * v.ne[2] * v.ne[3])
    if p.has_mask:
        m = t.src[3]
        n_bytes += CELLS * 2 * m.ne[1] * m.ne[2] * m.ne[3]
        blocks = -(-q.ne[1] // QUERIES) * -(-m.ne[0] // CELLS) * m.ne[2] * m.ne[3]
        n_bytes += -(-blocks // 32) * 32
    n_bytes += 4 * min(q.ne[1], 32) * q.ne[2] * q.ne[3] * N_WORKGROUPS * (v.ne[0] + 2)
    n_bytes += -(-2 * n_elements(k) // 16) * 16
    return n_bytes if v_is_k else n_bytes + -(-2 * n_elements(v) // 16) * 16
