"""Which attention backend vLLM takes for a layer, and what that means for its blocks.

The order is platforms/cuda.py:_get_backend_priorities, the conditions are each backend's own
(v1/attention/backends/*.py: supports_*, supports_combination). Only what decides block size, page size or a
refusal is modeled. FlashInfer and the FlashAttention builds of vLLM's wheels are taken as installed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from autofit.domain.values import dataclass, field
from autofit.errors import EngineRefusalError

HALF = ("float16", "bfloat16")
UNQUANTISED = ("auto", "float16", "bfloat16")
FP8 = ("fp8", "fp8_e4m3")
CUTLASS_BLOCK_SIZE = 128
FA4_HD256_PAGE_SIZE = 128


def is_quantized(kv_dtype: str) -> bool:
    """Whether the cache is kept in fewer bits than the model's type (is_quantized_kv_cache)."""
    return kv_dtype not in ("auto", "float16", "bfloat16", "float32", "half", "float", "int8")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerQuery:
    """What the choice depends on (v1/attention/selector.py:AttentionSelectorConfig). `cc` is the compute
    capability."""

    cc: tuple[int, int]
    head_size: int
    dtype: str
    kv_dtype: str = "auto"
    head_size_v: int | None = None
    block_size: int | None = None  #: only where the user fixed it
    n_heads: int = 1  #: query heads on a rank
    latent: bool = False
    sparse: bool = False
    sinks: bool = False
    mm_prefix: bool = False
    sliding: bool = False
    dcp: int = 1
    pcp: int = 1
    softcap: bool = False
    flash_version: int | None = None  #: `--attention-config.flash_attn_version`, or what vLLM forces
    rope_size: int = 64  #: latent attention only, as are the following
    nope_size: int = 128
    latent_size: int = 512
    index_topk: int | None = None
    cpu: bool = False


Rule = Callable[[LayerQuery], str | None]


def _always(_: LayerQuery) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionBackend:
    """One backend: block sizes are exact kernel sizes (`fixed`) or multiples of `multiple`."""

    name: str
    kv_dtypes: tuple[str, ...]
    dtypes: tuple[str, ...] = HALF
    fixed: tuple[int, ...] = ()
    multiple: int | None = None
    latent: bool = False
    sparse: bool = False
    mm_prefix: bool = False
    sinks: bool = False
    sliding: bool = True
    dcp: bool = False
    stride_rows: int = 0  #: blocks are so many rows apart, or a multiple (customize_spec)
    packs: bool = False  #: it wants the layers of a block behind each other (supported_kv_cache_layouts)
    rule: Rule = field(default=_always)

    def sizes(self, query: LayerQuery) -> tuple[tuple[int, bool], ...]:
        """(size, whether multiples count) of its kernels (get_supported_kernel_block_sizes)."""
        if self.name == "FLASH_ATTN" and _fa4_head_256(query):
            return ((FA4_HD256_PAGE_SIZE, False),)
        if self.name == "FLASH_ATTN" and query.cc[0] == 9 and query.head_size == 512 and query.kv_dtype in FP8:
            return ((64, False),)
        multiples = ((self.multiple, True),) if self.multiple else ()
        return tuple((size, False) for size in self.fixed) + multiples

    def supports_block(self, size: int, query: LayerQuery) -> bool:
        """A block may be split into kernel blocks, so any multiple of a kernel size will do."""
        return any(size % kernel == 0 for kernel, _ in self.sizes(query))

    def smallest_block(self, query: LayerQuery) -> int:
        return min(size for size, _ in self.sizes(query))

    def preferred_block(self, default: int, query: LayerQuery) -> int:
        """The default size where its kernels take it, else their smallest (get_preferred_block_size)."""
        if self.name == "FLASH_ATTN" and not self.multiple_only(query):
            return max(default, self.smallest_block(query))
        return default if self.supports_block(default, query) else self.smallest_block(query)

    def multiple_only(self, query: LayerQuery) -> bool:
        return all(is_multiple for _, is_multiple in self.sizes(query))

    def stride_kernel(self, query: LayerQuery) -> int | None:
        """The largest kernel block where all sizes are exact: blocks must stay whole kernel blocks apart
        (v1/worker/utils.py:customize_attention_spec)."""
        sizes = self.sizes(query)
        return max(size for size, _ in sizes) if sizes and not any(multiple for _, multiple in sizes) else None

    def reasons(self, query: LayerQuery) -> list[str]:
        """Why it cannot serve this layer; empty when it can (AttentionBackend.validate_configuration)."""
        found = []
        if query.dtype not in self.dtypes:
            found.append("dtype not supported")
        if query.kv_dtype not in self.kv_dtypes:
            found.append("kv_cache_dtype not supported")
        if query.block_size is not None and not self.supports_block(query.block_size, query):
            found.append("block_size not supported")
        if query.latent != self.latent:
            found.append("MLA not supported" if query.latent else "non-MLA not supported")
        if query.sparse != self.sparse:
            found.append("sparse not supported" if query.sparse else "non-sparse not supported")
        if query.mm_prefix and not self.mm_prefix:
            found.append("partial multimodal token full attention not supported")
        if query.sinks and not self.sinks:
            found.append("attention sinks not supported")
        if query.sliding and not self.sliding:
            found.append("sliding window not supported")
        if query.dcp > 1 and not self.dcp:
            found.append("DCP not supported")
        if query.pcp > 1 and not self.latent:
            found.append("PCP not supported")
        reason = self.rule(query)
        return [*found, reason] if reason else found


def flash_attention_version(query: LayerQuery) -> int | None:
    """2, 3 or 4 (v1/attention/backends/fa_utils.py:get_flash_attn_version)."""
    major = query.cc[0]
    if major < 8:
        return None
    version = query.flash_version or (3 if major == 9 else 4 if major == 10 else 2)
    if version == 3 and major >= 10:
        version = 4 if major in (10, 11) else 2
    if (
        version == 3
        and major == 9
        and (query.head_size > 256 or (query.sinks and query.head_size_v not in (None, query.head_size)))
    ):
        version = 4
    if version == 4 and major in (10, 11) and query.head_size == 256 and _hd256_fallback(query):
        version = 2
    if version == 4 and major >= 10 and query.head_size > 128:
        dense_256 = query.head_size == 256 and query.head_size_v in (None, 256)
        if not dense_256 and not (query.head_size == 192 and query.head_size_v == 128):
            version = 2
    if version == 3 and major != 9:
        return None
    if version == 4 and major not in (9, 10, 11):
        return None
    return version


def _hd256_fallback(query: LayerQuery) -> bool:
    """When FA4's kernel for heads of 256 is not used (fa_utils.py:_fa4_hd256_fallback_reason)."""
    odd_block = query.block_size is not None and query.block_size % FA4_HD256_PAGE_SIZE != 0
    return query.sinks or query.softcap or is_quantized(query.kv_dtype) or odd_block or query.mm_prefix or query.dcp > 1


def _fa4_head_256(query: LayerQuery) -> bool:
    return (
        query.cc[0] in (10, 11)
        and query.head_size == 256
        and query.head_size_v in (None, 256)
        and flash_attention_version(query) == 4
    )


def _flash_attention(query: LayerQuery) -> str | None:
    if query.cc < (8, 0):
        return "compute capability not supported"
    largest = 512 if query.cc[0] in (9, 10, 11) else 256
    if query.head_size % 8 or query.head_size > largest:
        return "head_size not supported"
    version = flash_attention_version(query)
    if query.sinks and (query.cc < (9, 0) or version not in (3, 4)):
        return "attention sinks not supported"
    if is_quantized(query.kv_dtype):
        hopper = query.cc[0] == 9 and (version == 3 or (version == 4 and query.head_size == 512))
        if not hopper and not (query.cc[0] == 10 and version == 4):
            return "FP8 KV cache requires FA3 on SM90, FA4 with head_size=512 on SM90, or FA4 on SM100"
        if query.mm_prefix and query.cc == (9, 0):
            return "SM90 FP8 KV with mm_prefix requires Triton"
    if query.mm_prefix and version != 4:
        return "mm_prefix requires FlashAttention v4"
    return None


def _flashinfer(query: LayerQuery) -> str | None:
    if not (8, 0) <= query.cc <= (12, 1):
        return "compute capability not supported"
    if query.head_size not in (64, 128, 256, 512):
        return "head_size not supported"
    if query.sinks and query.cc[0] not in (9, 10, 12):
        return "attention sinks not supported"
    if query.kv_dtype.startswith("nvfp4"):
        if query.cc[0] in (8, 9, 12):
            if query.kv_dtype != "nvfp4":
                return "kv_cache_dtype not supported"
            if query.head_size == 64:
                return "fa2 prefill misreads an NVFP4 KV cache at head_size 64"
            if query.sinks:
                return "the sink prefill wrapper cannot read an NVFP4 KV cache"
        elif query.cc[0] != 10:
            return "kv_cache_dtype not supported"
    return None


def _triton(query: LayerQuery) -> str | None:
    return "head_size not supported" if query.head_size < 32 else None


def _composite_hopper(query: LayerQuery) -> str | None:
    if query.cc[0] != 9:
        return "compute capability not supported"
    plain = _plain_prefix(query)
    return _triton(query) or _flash_attention(plain)


def _composite_blackwell(query: LayerQuery) -> str | None:
    if query.cc[0] != 10:
        return "compute capability not supported"
    return _triton(query) or _flashinfer(_plain_prefix(query))


def _plain_prefix(query: LayerQuery) -> LayerQuery:
    from autofit.domain.values import replace

    return replace(query, mm_prefix=False)


def _major(*majors: int) -> Rule:
    def rule(query: LayerQuery) -> str | None:
        return None if query.cc[0] in majors else "compute capability not supported"

    return rule


def _flashinfer_mla(query: LayerQuery) -> str | None:
    if query.cc[0] != 10:
        return "compute capability not supported"
    return (
        None
        if query.nope_size in (64, 128, 192)
        else "FlashInfer MLA kernel requires qk_nope_head_dim in [64, 128, 192]"
    )


def _tokenspeed_mla(query: LayerQuery) -> str | None:
    if query.cc[0] != 10:
        return "compute capability not supported"
    r1 = (query.latent_size, query.rope_size, query.nope_size) == (512, 64, 128)
    return None if r1 else "only DeepSeek-R1's dimensions are supported"


def _flash_mla_sparse(query: LayerQuery) -> str | None:
    if query.cc[0] not in (9, 10):
        return "compute capability not supported"
    if query.head_size not in (512, 576):
        return "head_size not supported"
    if query.head_size == 512 and (query.rope_size != 0 or query.cc[0] != 9):
        return "head_size 512 only for rope-free models on SM90"
    if query.kv_dtype == "nvfp4_ds_mla" and query.cc[0] != 10:
        return "nvfp4_ds_mla requires SM100"
    return None


def _flash_attn_mla_sparse(query: LayerQuery) -> str | None:
    if query.cc[0] != 9:
        return "compute capability not supported"
    if query.index_topk is None:
        return "a model with index_topk is required"
    return None


def _fa4_mla_sparse(query: LayerQuery) -> str | None:
    counts = (8, 16, 32, 64) if query.dcp > 1 else (8, 16, 32, 64, 128)
    if query.cc[0] != 10 or query.head_size != 576:
        return "compute capability or head_size not supported"
    if query.index_topk is None or query.index_topk % 128:
        return "index_topk % 128 == 0 is required"
    if (query.latent_size, query.rope_size) != (512, 64):
        return "(kv_lora_rank, qk_rope_head_dim) must be (512, 64)"
    return None if query.n_heads * query.dcp in counts else f"{counts} gathered query heads are required"


def _flashinfer_mla_sparse(query: LayerQuery) -> str | None:
    if query.cc[0] != 10:
        return "compute capability not supported"
    if query.index_topk is None:
        return "a model with index_topk is required"
    if query.rope_size == 0:
        return (
            None if (query.nope_size, query.latent_size) == (256, 512) else "rope-free MLA requires sizes 256 and 512"
        )
    return None if query.nope_size in (128, 192) else "qk_nope_head_dim must be 128 or 192"


def _flashinfer_mla_sparse_12(query: LayerQuery) -> str | None:
    if query.cc[0] != 12:
        return "compute capability not supported"
    return None if query.index_topk == 2048 else "index_topk=2048 is required"


def _flashinfer_mla_sparse_9(query: LayerQuery) -> str | None:
    if query.cc[0] != 9:
        return "compute capability not supported"
    return None if query.latent_size == 512 and query.rope_size in (0, 64) else "kv_lora_rank=512 is required"


_TURBOQUANT = ("turboquant_k8v4", "turboquant_4bit_nc", "turboquant_k3v4_nc", "turboquant_3bit_nc")
_TRITON_KV = (
    *UNQUANTISED,
    *FP8,
    "fp8_e5m2",
    "int4_per_token_head",
    "int8_per_token_head",
    "fp8_per_token_head",
)
_FLASHINFER_KV = (*UNQUANTISED, *FP8, "fp8_e5m2", "nvfp4", "nvfp4_4over6")
_ANY = ("float16", "bfloat16", "float32")

_BACKENDS = {
    backend.name: backend
    for backend in (
        AttentionBackend(
            name="FLASH_ATTN",
            kv_dtypes=(*UNQUANTISED, *FP8),
            multiple=16,
            mm_prefix=True,
            sinks=True,
            dcp=True,
            rule=_flash_attention,
        ),
        AttentionBackend(
            name="FLASHINFER",
            kv_dtypes=_FLASHINFER_KV,
            fixed=(16, 32, 64),
            sinks=True,
            dcp=True,
            rule=_flashinfer,
        ),
        AttentionBackend(
            name="TRITON_ATTN",
            kv_dtypes=_TRITON_KV,
            dtypes=_ANY,
            multiple=16,
            mm_prefix=True,
            sinks=True,
            rule=_triton,
        ),
        AttentionBackend(name="FLEX_ATTENTION", kv_dtypes=UNQUANTISED, dtypes=_ANY, multiple=16, mm_prefix=True),
        AttentionBackend(name="TURBOQUANT", kv_dtypes=_TURBOQUANT, fixed=(16, 32, 64, 128), sliding=False),
        AttentionBackend(
            name="TRITON_FLASH_ATTN",
            kv_dtypes=(*UNQUANTISED, *FP8),
            multiple=16,
            mm_prefix=True,
            sinks=True,
            rule=_composite_hopper,
        ),
        AttentionBackend(
            name="TRITON_FLASHINFER",
            kv_dtypes=(*UNQUANTISED, *FP8, "fp8_e5m2"),
            fixed=(16, 32, 64),
            mm_prefix=True,
            sinks=True,
            rule=_composite_blackwell,
        ),
        AttentionBackend(
            name="CPU_ATTN",
            kv_dtypes=(*UNQUANTISED, *FP8, "fp8_e5m2"),
            dtypes=_ANY,
            multiple=32,
            mm_prefix=True,
            sinks=True,
        ),
        AttentionBackend(name="CPU_MLA", kv_dtypes=("auto",), dtypes=_ANY, fixed=(16,), latent=True),
        AttentionBackend(
            name="FLASH_ATTN_MLA",
            kv_dtypes=UNQUANTISED,
            multiple=16,
            latent=True,
            sliding=False,
            dcp=True,
            rule=_major(9),
        ),
        AttentionBackend(
            name="FLASHMLA",
            kv_dtypes=(*UNQUANTISED, *FP8),
            fixed=(64,),
            latent=True,
            sliding=False,
            dcp=True,
            rule=_major(9),
        ),
        AttentionBackend(
            name="FLASHINFER_MLA",
            kv_dtypes=(*UNQUANTISED, *FP8),
            fixed=(32, 64),
            latent=True,
            sliding=False,
            dcp=True,
            rule=_flashinfer_mla,
        ),
        AttentionBackend(
            name="TOKENSPEED_MLA",
            kv_dtypes=FP8,
            fixed=(32, 64),
            latent=True,
            sliding=False,
            dcp=True,
            rule=_tokenspeed_mla,
        ),
        AttentionBackend(
            name="CUTLASS_MLA",
            kv_dtypes=(*UNQUANTISED, *FP8),
            fixed=(CUTLASS_BLOCK_SIZE,),
            latent=True,
            sliding=False,
            dcp=True,
            rule=_major(10),
        ),
        AttentionBackend(name="TRITON_MLA", kv_dtypes=(*UNQUANTISED, *FP8), multiple=16, latent=True, dcp=True),
        AttentionBackend(
            name="FLASH_ATTN_MLA_SPARSE",
            kv_dtypes=UNQUANTISED,
            multiple=64,
            latent=True,
            sparse=True,
            stride_rows=1,
            rule=_flash_attn_mla_sparse,
        ),
        AttentionBackend(
            name="FLASHMLA_SPARSE",
            kv_dtypes=("auto", "bfloat16", "fp8_ds_mla", "fp8", "nvfp4_ds_mla"),
            dtypes=("bfloat16",),
            multiple=64,
            latent=True,
            sparse=True,
            stride_rows=1,
            dcp=True,
            rule=_flash_mla_sparse,
        ),
        AttentionBackend(
            name="FLASHINFER_MLA_SPARSE",
            kv_dtypes=(*UNQUANTISED, *FP8),
            multiple=32,
            latent=True,
            sparse=True,
            stride_rows=32,
            dcp=True,
            rule=_flashinfer_mla_sparse,
        ),
        AttentionBackend(
            name="FLASH_ATTN_MLA_SPARSE_FA4",
            kv_dtypes=("auto", "bfloat16"),
            dtypes=("bfloat16",),
            multiple=64,
            latent=True,
            sparse=True,
            stride_rows=1,
            dcp=True,
            rule=_fa4_mla_sparse,
        ),
        AttentionBackend(
            name="FLASHINFER_MLA_SPARSE_SM90",
            kv_dtypes=("auto", "bfloat16", *FP8),
            dtypes=("bfloat16",),
            multiple=64,
            latent=True,
            sparse=True,
            stride_rows=1,
            rule=_flashinfer_mla_sparse_9,
        ),
        AttentionBackend(
            name="FLASHINFER_MLA_SPARSE_SM120",
            kv_dtypes=("auto", *FP8, "fp8_ds_mla"),
            dtypes=("bfloat16",),
            multiple=64,
            latent=True,
            sparse=True,
            stride_rows=64,
            rule=_flashinfer_mla_sparse_12,
        ),
    )
}
#: those that the models' own classes bring
OWN = {
    backend.name: backend
    for backend in (
        AttentionBackend(name="DEEPSEEK_V32_INDEXER", kv_dtypes=(), fixed=(64,)),
        AttentionBackend(name="MINIMAX_M3_SPARSE", kv_dtypes=(), fixed=(128,)),
        AttentionBackend(name="MINIMAX_M3_SPARSE_INDEXER", kv_dtypes=(), fixed=(128,)),
        AttentionBackend(name="GLM5_NEXT_INDEXER", kv_dtypes=(), fixed=(512, 1024)),
        AttentionBackend(name="KPOOL_TAIL", kv_dtypes=(), multiple=1, packs=True),
        AttentionBackend(name="FLASHMLA_SPARSE_DSV4", kv_dtypes=(), fixed=(256,)),
        AttentionBackend(name="FLASHINFER_MLA_SPARSE_DSV4", kv_dtypes=(), fixed=(256,)),
        AttentionBackend(name="DEEPSEEK_V4_INDEXER", kv_dtypes=(), fixed=(256,), packs=True),
        AttentionBackend(name="DEEPSEEK_SPARSE_SWA", kv_dtypes=(), multiple=32),
        AttentionBackend(name="CompressorBackend", kv_dtypes=(), multiple=1),
    )
}


def priorities(query: LayerQuery) -> tuple[str, ...]:
    """Backends in the order in which vLLM tries them (platforms/cuda.py:_get_backend_priorities)."""
    if query.cpu:
        return ("CPU_MLA",) if query.latent else ("CPU_ATTN",)
    major = query.cc[0]
    if not query.latent:
        if major == 10:
            composite = ("TRITON_FLASHINFER",) if query.mm_prefix else ()
            return (*composite, "FLASHINFER", "FLASH_ATTN", "TRITON_ATTN", "FLEX_ATTENTION", "TURBOQUANT")
        composite = ("TRITON_FLASH_ATTN",) if major == 9 and query.mm_prefix else ()
        return (*composite, "FLASH_ATTN", "FLASHINFER", "TRITON_ATTN", "FLEX_ATTENTION", "TURBOQUANT")
    if major == 10:
        sparse: tuple[str, ...] = ("FLASHMLA_SPARSE", "FLASHINFER_MLA_SPARSE")
        if is_quantized(query.kv_dtype):
            sparse = ("FLASHINFER_MLA_SPARSE", "FLASHMLA_SPARSE")
        elif query.n_heads <= 16:
            sparse = ("FLASH_ATTN_MLA_SPARSE_FA4", "FLASHINFER_MLA_SPARSE", "FLASHMLA_SPARSE")
        dense = (
            "FLASHINFER_MLA",
            "TOKENSPEED_MLA",
            "CUTLASS_MLA",
            "FLASH_ATTN_MLA",
            "FLASHMLA",
            "TRITON_MLA",
        )
        return (*dense, *sparse)
    if major == 12:
        return ("TRITON_MLA", "FLASHINFER_MLA_SPARSE_SM120")
    tail = ["FLASH_ATTN_MLA_SPARSE", "FLASHMLA_SPARSE"]
    tail.insert(0 if query.head_size == 512 else 2, "FLASHINFER_MLA_SPARSE_SM90")
    return ("FLASH_ATTN_MLA", "FLASHMLA", "FLASHINFER_MLA", "TRITON_MLA", *tail)


def select(query: LayerQuery, wanted: str | None = None) -> AttentionBackend:
    """The backend of a layer; `wanted` is `--attention-backend`.

    Raises:
        EngineRefusalError: none will do, or the one that was asked for.
    """
    if wanted is not None:
        backend = _BACKENDS.get(wanted)
        if backend is None:
            raise EngineRefusalError(f"attention backend {wanted} is not one that runs on CUDA")
        reasons = backend.reasons(query)
        if reasons:
            raise EngineRefusalError(
                f"Selected backend {wanted} is not valid for this configuration: {', '.join(reasons)}"
            )
        return _checked(backend, query)
    rejected = []
    for name in priorities(query):
        reasons = _BACKENDS[name].reasons(query)
        if not reasons:
            return _checked(_BACKENDS[name], query)
        rejected.append(f"{name}: {', '.join(reasons)}")
    raise EngineRefusalError(
        f"No valid attention backend found for head_size={query.head_size}, dtype={query.dtype}, "
        f"kv_cache_dtype={query.kv_dtype}, block_size={query.block_size}",
        hint="; ".join(rejected),
    )


def _checked(backend: AttentionBackend, query: LayerQuery) -> AttentionBackend:
    """Triton's kernels need fp8 in hardware (triton_attn.py:TritonAttentionImpl)."""
    if backend.name in ("TRITON_ATTN", "TRITON_MLA") and query.kv_dtype.startswith("fp8") and query.cc < (8, 9):
        raise EngineRefusalError(
            f"FP8 KV cache is not supported by the Triton attention backend on compute capability "
            f"{query.cc[0]}.{query.cc[1]}; native FP8 requires 8.9",
            hint=f"use --kv-cache-dtype {'bfloat16' if query.cc >= (8, 0) else 'float16'}",
        )
    return backend


def common_block_size(backends: Iterable[tuple[AttentionBackend, LayerQuery]], default: int) -> int:
    """The smallest block size that every backend takes
    (platforms/interface.py:_preferred_block_size_for_backends).

    Raises:
        EngineRefusalError: there is none.
    """
    pairs = list(backends)
    if len(pairs) == 1:
        backend, query = pairs[0]
        return backend.preferred_block(default, query)
    if all(backend.supports_block(default, query) for backend, query in pairs):
        return default
    candidates = {1}
    for backend, query in pairs:
        sizes = [size for size, _ in backend.sizes(query)]
        candidates = {math.lcm(one, size) for one in candidates for size in sizes}
    for size in sorted(candidates):
        if all(backend.supports_block(size, query) for backend, query in pairs):
            return size
    raise EngineRefusalError("The attention backends share no supported KV cache block size")
