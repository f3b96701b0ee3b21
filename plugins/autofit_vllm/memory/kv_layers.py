"""Which cache each layer of a model gets: its attention backend, its block and its page.

Block sizes are chosen as in platforms/interface.py:update_block_size_for_backend; pages as the backends pack them
(customize_spec)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from autofit.domain.values import dataclass, replace
from autofit.errors import EngineRefusalError, ModelError

from autofit_vllm.config.engine import EngineConfig
from autofit_vllm.engine.versions import Change
from autofit_vllm.memory.attention_backends import (
    OWN,
    AttentionBackend,
    LayerQuery,
    common_block_size,
    is_quantized,
    select,
)
from autofit_vllm.memory.kv_pages import Kind, LayerCache, element_bytes, packed_bytes
from autofit_vllm.modules.model import (
    AttentionCache,
    Cache,
    IndexerCache,
    LatentCache,
    PackedCache,
    StateCache,
    VllmModel,
    alike,
)
from autofit_vllm.modules.sharding import round_up

DEFAULT_BLOCK_TOKENS = 16
CPU_BLOCK_TOKENS = 128
LATENT_ALIGNMENT = 128  #: hybrid models with latent attention (platforms/interface.py:_align_hybrid_block_size)
#: Gated delta nets of a class of their own, which exports no states
#: (layers/mamba/gdn/olmo_gdn_linear_attn.py)
OTHER_DELTA_NETS = frozenset({"OlmoHybridForCausalLM"})
KDA_CHECKPOINT_TOKENS = 16  #: mamba/kda_checkpoint.py
BLOCKS_BY_BACKEND = Change(
    since="0.18.0",
    source="platforms/interface.py:update_block_size_for_backend",
    before="0.17.1: platforms/cuda.py (check_and_update_config) knows latent attention, models/config.py hybrids",
)
FLASHINFER_LATENT = Change(
    since="0.15.0",
    source="platforms/cuda.py:_get_backend_priorities",
    before="0.14.1: dense latent attention is CUTLASS_MLA on compute capability 10",
)
STATE_EXPORTS = Change(
    since="0.33.0",
    source="mamba/gdn/qwen_gdn_linear_attn.py:_resolve_gdn_prefill_backend",
    before="0.32.0: gated delta nets export no states for prefixes, and align with none",
)
ALIGNED_STATES = Change(
    since="0.15.0",
    source="v1/kv_cache_interface.py:MambaSpec",
    before="0.14.1: without support of their own (Mamba 1 and 2), states are kept once, and prefixes not cached",
)
LAST_STATES = Change(
    since="0.28.0",
    source="models/config.py:MambaModelConfig",
    before="0.27.1: with prefix caching Mamba 1 and 2 keep a state for every block (mamba_cache_mode all)",
)
NO_WHOLE_STATES = Change(
    since="0.32.0",
    source="v1/kv_cache_interface.py:MambaSpec",
    before="0.31.0: --mamba-cache-mode all asks for a state for every block",
)
MAMBA_EXPORTS = Change(
    since="0.32.0",
    source="layers/mamba/mamba_mixer2.py:get_kv_cache_spec",
    before="0.31.0: num_prefill_checkpoint_blocks is 0",
)
_NO_CHUNK_TOKENS = 2048
GDN_CHECKPOINT_TOKENS = 64  #: qwen_gdn_linear_attn.py:FLASHINFER_GDN_CHECKPOINT_ALIGNMENT

_NOTHING = "config.json: a token takes no bytes in the cache of its attention layers"
_LATENT_BYTES = {"fp8_ds_mla": 656, "nvfp4_ds_mla": 352}  # mla_attention.py:get_kv_cache_spec
#: of DeepSeek V4: the format that FlashMLA reads, and the multiples that its pages and those of FlashInfer have
_PACKED_FORMAT = "fp8_ds_mla"
_PACKED_ALIGNMENT, _PLAIN_ALIGNMENT = 576, 512


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionLayer:
    """A cached attention layer with the backend that vLLM takes for it."""

    backend: AttentionBackend
    query: LayerQuery
    kv_dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLayout:
    """Every layer's cache, and the block size that vLLM reports."""

    layers: tuple[LayerCache, ...]
    block_tokens: int
    backends: tuple[str, ...]
    kv_dtype: str
    packed: bool = False  #: the layers of a block stand behind each other; else the blocks of a layer


def lay_out(model: VllmModel, config: EngineConfig) -> KvLayout:
    """The cache of each layer under these settings.

    Raises:
        EngineRefusalError: no backend, or no block size, serves this model so.
    """
    caches = [*model.caches, *(config.draft.caches if config.draft else ())]
    kinds = tuple(alike(caches)) if config.draft else model.cache_kinds
    known: dict[tuple[int, bool], AttentionLayer] = {}  # of layers that are alike one asks for its backend
    parts: list[AttentionLayer | None] = []
    for kind, cache in zip(kinds, caches, strict=True):
        if isinstance(cache, StateCache):
            parts.append(None)
            continue
        key = kind, _skipped(cache, config)
        if key not in known:
            known[key] = _attention(cache, model, config)
        parts.append(known[key])
    attention = list(known.values())
    states = [cache for cache in caches if isinstance(cache, StateCache)]
    kv_dtype = _canonical_kv_dtype(attention, config)
    block, state_page, skip_page = _block_size(attention, model, config, states, kv_dtype)
    aligned = config.prefix_caching and bool(states)
    checkpoints = _checkpoint_tokens(states, model, config) is not None
    layers: list[LayerCache] = []
    for part, cache in zip(parts, caches, strict=True):
        if isinstance(cache, StateCache):
            layers.append(_state_layer(cache, config, block, state_page, aligned=aligned, checkpoints=checkpoints))
        elif part is not None:
            layer = _attention_layer(part, cache, config, block, skip_page, kv_dtype)
            if layer is not None:
                layers.append(layer)
    return KvLayout(
        layers=tuple(layers),
        block_tokens=block,
        backends=tuple(sorted({part.backend.name for part in attention})),
        kv_dtype=kv_dtype,
        packed=any(part.backend.packs for part in attention),
    )


def _skipped(cache: Cache, config: EngineConfig) -> bool:
    """Kept in the model's type (attention/attention.py:Attention.__init__, kv_cache_dtype_skip_layers)."""
    skip = config.kv_skip_layers
    if not skip:
        return False
    windowed = isinstance(cache, AttentionCache) and cache.kind == "sliding" and config.sliding_window
    return (windowed and "sliding_window" in skip) or str(cache.stage) in skip


def _attention(
    cache: AttentionCache | LatentCache | IndexerCache | PackedCache, model: VllmModel, config: EngineConfig
) -> AttentionLayer:
    kv_dtype = "auto" if _skipped(cache, config) else config.kv_cache_dtype
    tp = config.parallel.tp
    query = LayerQuery(
        cc=config.gpu.cc,
        cpu=config.gpu.cpu,
        head_size=128 if isinstance(cache, IndexerCache | PackedCache) else cache.head_size,
        head_size_v=cache.head_size_v if isinstance(cache, AttentionCache) else None,
        dtype=config.dtype,
        kv_dtype=kv_dtype,
        block_size=config.block_size,
        mm_prefix=config.mm_prefix,
        dcp=config.parallel.dcp,
        pcp=config.parallel.pcp,
        softcap=bool(model.config.get("attn_logit_softcapping")),
        flash_version=config.flash_version,
    )
    if isinstance(cache, PackedCache):
        kernel = OWN[_own_backend(cache, config)]
        if cache.backend == "GLM5_NEXT_INDEXER" and config.gpu.cc[0] == 12:
            kernel = replace(kernel, fixed=kernel.fixed[1:])  # (utils/deep_gemm.py:get_paged_mqa_page_sizes)
        return AttentionLayer(backend=kernel, query=query, kv_dtype=kv_dtype)
    if isinstance(cache, IndexerCache):
        return AttentionLayer(backend=OWN[cache.backend], query=query, kv_dtype=kv_dtype)
    if isinstance(cache, LatentCache):
        topk = model.config.get("index_topk")
        nope = model.config.get("qk_nope_head_dim")
        query = replace(
            query,
            latent=True,
            sparse=cache.sparse,
            sliding=cache.window_tokens is not None,
            mm_prefix=False,
            n_heads=max(1, cache.heads // tp),
            rope_size=cache.rope_size,
            latent_size=cache.kv_lora_rank,
            nope_size=nope if isinstance(nope, int) else 1,
            index_topk=topk if isinstance(topk, int) else None,
        )
    else:
        query = replace(
            query,
            sinks=cache.sinks,
            sliding=cache.kind == "sliding" and config.sliding_window,
            n_heads=max(1, cache.heads // tp),
        )
        if cache.kind == "chunked":
            query = replace(query, mm_prefix=False)
    own = cache.backend if isinstance(cache, AttentionCache) else None
    backend = OWN[own] if own else select(query, config.attention_backend)
    if (
        isinstance(cache, AttentionCache)
        and cache.kind == "sliding"
        and config.sliding_window
        and config.parallel.dcp > 1
    ):
        raise EngineRefusalError("DCP not support sliding window.", hint="use --decode-context-parallel-size 1")
    return AttentionLayer(backend=backend, query=query, kv_dtype=kv_dtype)


def _own_backend(cache: PackedCache, config: EngineConfig) -> str:
    """FlashInfer's kernels replace FlashMLA's where they are asked for, and on newer GPUs
    (models/deepseek_v4/nvidia/model.py:_select_dsv4_attn_cls)."""
    name, wanted = cache.backend, config.attention_backend
    if name != "FLASHMLA_SPARSE_DSV4":
        return name
    if wanted in ("FLASHINFER_MLA_SPARSE", "FLASHINFER_MLA_SPARSE_SM120"):
        raise EngineRefusalError(
            f"{wanted} is not a DeepSeek V4 attention backend. Use FLASHINFER_MLA_SPARSE_DSV4 for DeepSeek V4 "
            "FlashInfer sparse MLA."
        )
    flashinfer = wanted == "FLASHINFER_MLA_SPARSE_DSV4" or (wanted is None and config.gpu.cc[0] == 12)
    return "FLASHINFER_MLA_SPARSE_DSV4" if flashinfer else name


def _packs_rows(backend: str, config: EngineConfig) -> bool:
    """Whether rows are in DeepSeek's format (models/deepseek_v4/attention.py:_resolve_dsv4_kv_cache_dtype).

    Raises:
        EngineRefusalError: a type that this format has no room for.
    """
    if backend == "FLASHINFER_MLA_SPARSE_DSV4" and config.gpu.cc[0] != 12:
        return False
    if config.kv_cache_dtype != "auto" and not config.kv_cache_dtype.startswith("fp8"):
        raise EngineRefusalError(
            f"DeepseekV4 fp8_ds_mla layout only supports fp8 kv-cache, got {config.kv_cache_dtype}. Please set "
            "`--kv-cache-dtype fp8` or select a backend that supports bfloat16 KV cache.",
            hint="use --kv-cache-dtype fp8, or --attention-backend FLASHINFER_MLA_SPARSE_DSV4",
        )
    return True


_DSA_INDEXERS = ("DEEPSEEK_V32_INDEXER", "DEEPSEEK_V4_INDEXER")


def _indexer_row(row_bytes: int, config: EngineConfig) -> int:
    """128 keys in fp8 and an fp32 scale, or in MXFP4 two a byte and a scale per 32 (sparse_attn_indexer.py)."""
    if config.indexer_kv_dtype != "mxfp4":
        return row_bytes
    keys = row_bytes * 128 // 132
    return keys // 2 + keys // 32


def _packed_layer(
    part: AttentionLayer, cache: PackedCache, config: EngineConfig, block: int, kv_dtype: str
) -> LayerCache:
    packed, tokens = kv_dtype == _PACKED_FORMAT, cache.block_tokens or block
    row, page = cache.row_bytes, None
    if cache.backend in _DSA_INDEXERS:
        row = _indexer_row(row, config)
    if cache.plain_elements and not packed:
        row = cache.plain_elements * element_bytes(kv_dtype, "bfloat16")
    if cache.aligned:
        page = round_up(tokens // cache.tokens_per_row * row, _PACKED_ALIGNMENT if packed else _PLAIN_ALIGNMENT)
    kind: Kind = "latent" if cache.window_tokens is None else "sliding latent"
    if cache.ring:
        pools = -(-(tokens + config.speculative_tokens) // tokens)
        kind, tokens = "ring", tokens << (pools - 1).bit_length()
    return LayerCache(
        name=cache.name,
        stage=cache.stage,
        kind=kind,
        block_tokens=tokens,
        token_bytes=row,
        identity=("packed", cache.backend, cache.tokens_per_row),
        window_tokens=cache.window_tokens,
        row_tokens=cache.tokens_per_row,
        padded_bytes=page,
        stride_kernel=part.backend.stride_kernel(part.query),
    )


def _canonical_kv_dtype(attention: Iterable[AttentionLayer], config: EngineConfig) -> str:
    """The format that sparse latent attention reads
    (mla_attention.py:_canonicalize_sparse_mla_kv_cache_dtype)."""
    for part in attention:
        name, kv_dtype = part.backend.name, config.kv_cache_dtype
        if name.endswith("_DSV4") and _packs_rows(name, config):
            return _PACKED_FORMAT
        if name == "FLASHMLA_SPARSE" and is_quantized(kv_dtype) and kv_dtype != "nvfp4_ds_mla":
            return "fp8_ds_mla"
        if name == "FLASHINFER_MLA_SPARSE_SM120" and kv_dtype in ("auto", "fp8", "fp8_e4m3"):
            return "fp8_ds_mla"
    return config.kv_cache_dtype


def _attention_layer(
    part: AttentionLayer,
    cache: AttentionCache | LatentCache | IndexerCache | PackedCache,
    config: EngineConfig,
    block: int,
    skip_page: int | None,
    kv_dtype: str,
) -> LayerCache | None:
    query = part.query
    if isinstance(cache, PackedCache):
        return _packed_layer(part, cache, config, block, kv_dtype)
    if isinstance(cache, IndexerCache):
        return LayerCache(
            name=cache.name,
            stage=cache.stage,
            kind="latent",
            block_tokens=block,
            token_bytes=_indexer_row(cache.bytes_per_token, config)
            if cache.backend in _DSA_INDEXERS
            else cache.bytes_per_token,
            identity=("indexer",),
            stride_kernel=part.backend.stride_kernel(query),
        )
    if isinstance(cache, LatentCache):
        return _latent_layer(part, cache, config, block, kv_dtype)
    if cache.kind == "encoder_only":
        return None
    heads = cache.kv_heads_per_rank(config.parallel.tp)
    head_size_v = 0 if cache.key_only else cache.head_size_v
    token = heads * packed_bytes(part.kv_dtype, config.dtype, cache.head_size, head_size_v)
    if not token:
        raise ModelError(_NOTHING)
    kind: Kind = cache.kind if cache.kind != "sliding" or config.sliding_window else "full"
    padded = None
    if kind == "sliding":
        block = _largest_block_within(part.backend, query, token, skip_page or token * block)
        padded = skip_page
    return LayerCache(
        name=cache.name,
        stage=cache.stage,
        kind=kind,
        block_tokens=block,
        token_bytes=token,
        identity=(heads, cache.head_size, head_size_v, part.kv_dtype),
        padded_bytes=padded,
        window_tokens=cache.window_tokens if kind in ("sliding", "chunked") else None,
        stride_kernel=part.backend.stride_kernel(query),
        encoder_tokens=config.max_num_batched_tokens if kind == "cross" else 0,
    )


def _latent_layer(
    part: AttentionLayer, cache: LatentCache, config: EngineConfig, block: int, kv_dtype: str
) -> LayerCache:
    size = _LATENT_BYTES.get(kv_dtype) or cache.head_size * element_bytes(kv_dtype, config.dtype)
    windowed = cache.window_tokens is not None and config.sliding_window
    return LayerCache(
        name=cache.name,
        stage=cache.stage,
        kind="sliding latent" if windowed else "latent",
        block_tokens=block,
        token_bytes=size,
        identity=("latent", cache.head_size, kv_dtype),
        window_tokens=cache.window_tokens if windowed else None,
        stride_kernel=part.backend.stride_kernel(part.query),
        stride_bytes_multiple=max(1, part.backend.stride_rows * size),
    )


def _largest_block_within(backend: AttentionBackend, query: LayerQuery, token_bytes: int, page_bytes: int) -> int:
    """The largest kernel block whose page fits (attention/attention.py:_largest_kernel_block_within)."""
    most = page_bytes // token_bytes
    sizes = [max(size, most // size * size) if multiple else size for size, multiple in backend.sizes(query)]
    fitting = [size for size in sizes if size * token_bytes <= page_bytes]
    return max(fitting) if fitting else min(sizes)


# -- States of recurrent layers --------------------------------------------------------------------


def _state_bytes(cache: StateCache, config: EngineConfig) -> int:
    return cache.state_bytes(
        tp=config.parallel.tp,
        model_dtype=config.dtype,
        cache_dtype=config.mamba_cache_dtype,
        ssm_dtype=config.mamba_ssm_dtype,
        speculative_tokens=config.speculative_tokens,
    )


def _state_layer(
    cache: StateCache, config: EngineConfig, block: int, page: int | None, *, aligned: bool, checkpoints: bool
) -> LayerCache:
    speculative = 0 if config.replay_ssm else config.speculative_tokens
    n_pages = 1 + speculative
    if aligned and _keeps_whole_states(cache, config):
        n_pages = -(-config.max_model_len // block) + speculative
    elif aligned and not config.engine.has(ALIGNED_STATES):
        aligned = False
    elif aligned:
        own = cache.kind == "mamba2" and config.engine.has(MAMBA_EXPORTS)
        exports = own or (cache.kind in ("gdn", "kda") and checkpoints)
        n_pages = 2 + speculative + exports
    tokens = block if aligned else config.mamba_block_size or config.max_model_len
    return LayerCache(
        name=cache.name,
        stage=cache.stage,
        kind="state",
        block_tokens=tokens,
        token_bytes=_state_bytes(cache, config),
        identity=("state", cache.kind, cache.shapes(config.parallel.tp, config.speculative_tokens)),
        padded_bytes=page,
        state_pages=n_pages,
    )


def _keeps_whole_states(cache: StateCache, config: EngineConfig) -> bool:
    """Whether a state is kept for every block of a prefix, and not only the last ones."""
    if cache.kind not in ("mamba1", "mamba2") or config.engine.has(NO_WHOLE_STATES):
        return False
    return config.mamba_cache_mode == "all" if config.engine.has(LAST_STATES) else config.mamba_cache_mode != "align"


def _chunk_tokens(model: VllmModel, config: EngineConfig) -> int:
    """Tokens that a Mamba kernel goes through at a time (config/model.py:get_mamba_chunk_size)."""
    found = config.mamba_block_size or model.config.get("mamba_chunk_size") or model.config.get("chunk_size")
    return found if isinstance(found, int) and found > 0 else _NO_CHUNK_TOKENS


def _checkpoint_tokens(states: Sequence[StateCache], model: VllmModel, config: EngineConfig) -> int | None:
    """Grid of the states that a prefill can export, if every recurrent layer can
    (mamba/abstract.py:get_mamba_prefill_checkpoint_alignment)."""
    if not states or not config.prefix_caching or model.architecture in OTHER_DELTA_NETS:
        return None
    if config.engine.has(STATE_EXPORTS) and all(_flashinfer_gdn(cache, config) for cache in states):
        return GDN_CHECKPOINT_TOKENS
    return KDA_CHECKPOINT_TOKENS if all(_flash_kda(cache, config) for cache in states) else None


def _flash_kda(cache: StateCache, config: EngineConfig) -> bool:
    """Whether FlashKDA does the prefill (models/glm5next/common/kda.py:_resolve_kda_prefill_backend)."""
    fits = cache.kind == "kda" and cache.bounded and cache.head_size == 128
    return fits and config.dtype == "bfloat16" and config.gpu.cc[0] in (9, 10, 12)


def _flashinfer_gdn(cache: StateCache, config: EngineConfig) -> bool:
    """Whether FlashInfer's kernel does the prefill (qwen_gdn_linear_attn.py:_resolve_gdn_prefill_backend)."""
    if cache.kind != "gdn" or config.gdn_backend not in ("auto", "flashinfer") or config.gpu.cpu:
        return False
    cc = config.gpu.cc
    return cc == (9, 0) or (cc[0] in (10, 12) and cache.key_head_size == 128)


# -- Block sizes -----------------------------------------------------------------------------------


def _block_size(
    attention: Sequence[AttentionLayer],
    model: VllmModel,
    config: EngineConfig,
    states: Sequence[StateCache],
    kv_dtype: str,
) -> tuple[int, int | None, int | None]:
    """(tokens per block, padded page of a state, padded page of a skipped layer)
    (platforms/interface.py:update_block_size_for_backend)."""
    distinct: dict[str, AttentionLayer] = {}
    for part in attention:
        distinct.setdefault(part.backend.name, part)
    parts = list(distinct.values())
    default = CPU_BLOCK_TOKENS if config.gpu.cpu else DEFAULT_BLOCK_TOKENS
    if not parts:
        return config.block_size or default, None, None
    if config.engine.has(BLOCKS_BY_BACKEND):
        block = config.block_size or common_block_size(((part.backend, part.query) for part in parts), default)
    else:
        block = _older_block(config.block_size or default, model, config, parts)
    before, state_page, skip_page = block, None, None
    if states and model.is_hybrid:
        block, state_page = _align_states(parts, model, config, states, block, kv_dtype)
    if config.kv_skip_layers:
        block, skip_page = _align_skipped(parts[0], model, config, block, state_page)
        if skip_page is not None and state_page is not None:
            state_page = skip_page
    if block != before:
        rejecting = [part.backend.name for part in parts if not part.backend.supports_block(block, part.query)]
        if rejecting:
            raise EngineRefusalError(
                f"Aligned KV cache block size {block} is not supported by attention backend(s): {', '.join(rejecting)}."
            )
    return block, state_page, skip_page


def _older_block(block: int, model: VllmModel, config: EngineConfig, parts: Sequence[AttentionLayer]) -> int:
    """What releases before `BLOCKS_BY_BACKEND` make of a block size: latent attention alone has sizes of its own."""
    if not model.uses_mla or config.gpu.cpu:
        return block
    sparse = any(part.query.sparse for part in parts)
    if sparse:
        return 64
    if config.gpu.cc[0] == 10:
        nope = model.config.get("qk_nope_head_dim")
        if config.engine.has(FLASHINFER_LATENT) and nope == 128:
            return block if block == 32 or block % 64 == 0 else 64
        return block if block % 128 == 0 else 128
    dense = config.gpu.cc[0] == 9 and config.attention_backend in (None, "FLASHMLA")
    return 64 if dense and block % 64 else block


def _align_states(
    parts: Sequence[AttentionLayer],
    model: VllmModel,
    config: EngineConfig,
    states: Sequence[StateCache],
    block: int,
    kv_dtype: str,
) -> tuple[int, int | None]:
    """Blocks of attention grow until their page holds a state (_align_hybrid_block_size)."""
    token = _token_page_bytes(model, config, kv_dtype)
    if config.kv_cache_dtype.startswith("turboquant_") and config.kv_skip_layers:
        token = math.lcm(token, _token_page_bytes(model, config, "auto"))
    state = max(_state_bytes(cache, config) for cache in states)
    if not state:
        return block, None
    if not token:
        raise ModelError(_NOTHING)
    alignment = max(parts[0].backend.smallest_block(parts[0].query), block)
    common = math.lcm(*(part.backend.smallest_block(part.query) for part in parts))
    if model.uses_mla:
        alignment = max(alignment, LATENT_ALIGNMENT)
    if config.prefix_caching:
        alignment = math.lcm(alignment, _checkpoint_tokens(states, model, config) or 1)
    if config.prefix_caching and any(_keeps_whole_states(cache, config) for cache in states):
        alignment = math.lcm(alignment, _chunk_tokens(model, config))
    needed = alignment * -(-state // (alignment * token))
    needed = common * -(-needed // common)
    block = max(block, needed)
    page = block * token
    return block, page if page != state else None


def _align_skipped(
    first: AttentionLayer, model: VllmModel, config: EngineConfig, block: int, state_page: int | None
) -> tuple[int, int | None]:
    """Quantized blocks grow until their page holds an unquantized one
    (_align_heterogeneous_kv_block_size)."""
    primary = _token_page_bytes(model, config, config.kv_cache_dtype, backend=first.backend)
    largest = _token_page_bytes(model, config, "auto", backend=first.backend)
    if largest == primary:
        return block, None
    kernel = first.backend.smallest_block(first.query)
    alignment = max(kernel, block)
    needed = max(largest * kernel, state_page or 0)
    block = max(block, alignment * -(-needed // (alignment * primary)))
    return block, block * primary


def _token_page_bytes(
    model: VllmModel, config: EngineConfig, kv_dtype: str, *, backend: AttentionBackend | None = None
) -> int:
    """Bytes of one token in one layer, by the model-wide sizes that vLLM aligns with.

    `backend` packs what it knows; another's format counts unpacked, one byte per element.
    """
    if model.uses_mla:
        return model.head_size * element_bytes(kv_dtype, config.dtype)
    heads = max(1, model.n_kv_heads // config.parallel.tp)
    if backend is not None and kv_dtype not in backend.kv_dtypes and is_quantized(kv_dtype):
        return heads * 2 * model.head_size * element_bytes(kv_dtype, config.dtype)
    return heads * packed_bytes(kv_dtype, config.dtype, model.head_size, model.head_size)
