"""CUDA: what it runs, and what a tensor takes there.

ggml/src/ggml-cuda/ggml-cuda.cu (supports_op, get_alloc_size); flash attention is in `cuda_flash.py`, what fusions keep
alive in `cuda_fusion.py`. HIP builds the same files; without tensor cores it has other kernels for single tokens, which
only its generation graph shows.
"""

from __future__ import annotations

from collections.abc import Callable

from autofit_llama.engine.versions import Change, Version
from autofit_llama.graph.cuda_flash import flash_attn_bytes, flash_attn_kernel
from autofit_llama.graph.ggml import (
    BLOCKS,
    Tensor,
    is_contiguous,
    is_contiguous_rows,
    is_quantized,
    row_size,
    tensor_bytes,
)

ALIGNMENT = 128
ROW_PADDING = 512  #: MATRIX_ROW_PADDING


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
