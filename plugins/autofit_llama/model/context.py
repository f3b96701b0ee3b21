"""From flags to the numbers that a llama.cpp context works with: cells, streams, batch, outputs.

The arithmetic of llama_context's constructor and of sched_reserve (src/llama-context.cpp), and the arguments
that llama_init_from_model refuses.
"""

from __future__ import annotations

from typing import NoReturn

from autofit.domain.dtypes import GGML_TYPES_BY_NAME, row_bytes
from autofit.domain.units import round_up
from autofit.domain.values import dataclass
from autofit.errors import EngineRefusalError

from autofit_llama.engine.vocabulary import (
    POOLING_LAST,
    POOLING_NONE,
    POOLING_RANK,
    POOLING_UNSPECIFIED,
    FlashAttention,
)
from autofit_llama.model.hparams import HParams

MAX_SEQUENCES = 256  #: LLAMA_MAX_SEQ (src/llama-cparams.h)
CELL_PADDING = 256  #: GGML_PAD of the context and of sliding-window caches

#: llm_arch_supports_rs_rollback: others keep one row of recurrent state per sequence
_ROLLBACK = frozenset(
    (
        "kimi-k3", "qwen35", "qwen35moe", "qwen4exp", "deepseek4", "glm5-next", "nemotron_h",
        "nemotron_h_moe", "lfm2", "lfm2moe", "bailingmoe3",
    )
)  # fmt: skip
#: build_arch_graph knows LLM_GRAPH_TYPE_DECODER_MTP, or there is no other graph; others fail on a cache without a trunk
_DRAFT_GRAPHS = frozenset(
    (
        "bailingmoe3", "cohere2moe", "deepseek2", "deepseek32", "deepseek4", "gemma4-assistant", "glm-dsa", "glm4moe",
        "glm5-next", "hy_v3", "mimo2", "nemotron_h_moe", "qwen35", "qwen35moe", "qwen3next", "step35",
    )
)  # fmt: skip
_ENCODERS = frozenset(("t5", "t5encoder", "eagle3", "dflash"))  #: llama_model_has_encoder


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextParams:
    """What a program asks llama.cpp for (struct llama_context_params); the defaults are llama-fit-params'.

    `n_ctx` 0 is the trained context, `n_outputs_max` 0 the whole batch. `mtp` asks for the context of the
    draft head.
    """

    n_ctx: int = 0
    n_batch: int = 2048
    n_ubatch: int = 512
    n_seq_max: int = 1
    n_rs_seq: int = 0
    n_outputs_max: int = 0
    kv_unified: bool = False
    type_k: str = "f16"
    type_v: str = "f16"
    flash_attn: FlashAttention = "auto"
    swa_full: bool = False
    offload_kqv: bool = True
    op_offload: bool = True
    embeddings: bool = False
    pooling_type: int = POOLING_UNSPECIFIED
    causal: bool | None = None  #: `--attention`; `None`: as the model says
    mtp: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The same as the engine uses it (struct llama_cparams).

    `n_tokens` and `n_outputs` are those of the worst-case prompt graph. `flash_attn` `auto` is decided while
    the graph is reserved; caches are laid out as if it were on.
    """

    n_ctx: int
    n_ctx_seq: int  #: cells of one stream of a full cache
    n_streams: int
    n_seq_max: int
    n_rs_seq: int
    n_batch: int
    n_ubatch: int
    n_outputs_max: int
    n_tokens: int
    n_outputs: int
    kv_unified: bool
    type_k: str
    type_v: str
    flash_attn: FlashAttention
    swa_full: bool
    offload_kqv: bool
    op_offload: bool
    embeddings: bool
    pooling_type: int
    causal: bool
    mtp: bool

    @property
    def v_transposed(self) -> bool:
        """Without flash attention V is stored transposed, all layers as wide as the widest."""
        return self.flash_attn == "off"

    def splits_inputs(self, has_cache: bool) -> bool:
        """Whether a server reads one input in several micro-batches (server-context.cpp:server_slot::can_split)."""
        reads_last = self.pooling_type == POOLING_LAST or (self.pooling_type == POOLING_RANK and self.causal)
        return not self.embeddings or (has_cache and reads_last)

    def window_cells(self, n_swa: int, *, unified: bool) -> int:
        """Cells of one stream of a sliding-window cache (src/llama-kv-cache-iswa.cpp)."""
        if self.swa_full:
            return self.n_ctx_seq
        n_windows = self.n_seq_max if unified else 1
        return round_up(min(self.n_ctx_seq, n_swa * n_windows + self.n_ubatch), CELL_PADDING)


def resolve_context(hp: HParams, params: ContextParams) -> Context:
    """What the engine makes of `params` for this model.

    Raises:
        EngineRefusalError: llama_init_from_model or llama_context's constructor would fail.
    """
    flash_attn = _check(hp, params)
    causal = hp.causal_attn if params.causal is None else params.causal
    n_ctx = params.n_ctx or hp.n_ctx_train
    n_seq_max = max(1, params.n_seq_max)
    n_batch = min(n_ctx, params.n_batch) if causal else params.n_batch
    n_ubatch = min(n_batch, params.n_ubatch or params.n_batch)
    whole_batch = params.n_outputs_max == 0 or hp.arch in _ENCODERS
    n_outputs_max = n_batch if whole_batch else params.n_outputs_max
    n_ctx = round_up(n_ctx, CELL_PADDING)
    n_ctx_seq = n_ctx if params.kv_unified else round_up(n_ctx // n_seq_max, CELL_PADDING)
    if n_ctx_seq == 0:
        _refuse("n_ctx_seq == 0", "raise -c")
    if not params.kv_unified:
        n_ctx = n_ctx_seq * n_seq_max
    n_tokens = min(n_ctx, n_ubatch)
    pooling = hp.pooling_type if params.pooling_type == POOLING_UNSPECIFIED else params.pooling_type
    return Context(
        n_ctx=n_ctx,
        n_ctx_seq=n_ctx_seq,
        n_streams=1 if params.kv_unified else n_seq_max,
        n_seq_max=n_seq_max,
        n_rs_seq=params.n_rs_seq if hp.arch in _ROLLBACK else 0,
        n_batch=n_batch,
        n_ubatch=n_ubatch,
        n_outputs_max=n_outputs_max,
        n_tokens=round_up(n_tokens, n_seq_max),
        n_outputs=min(n_tokens, n_outputs_max),
        kv_unified=params.kv_unified,
        type_k=params.type_k,
        type_v=params.type_v,
        flash_attn=flash_attn,
        swa_full=params.swa_full,
        offload_kqv=params.offload_kqv,
        op_offload=params.op_offload,
        embeddings=params.embeddings,
        pooling_type=POOLING_NONE if pooling == POOLING_UNSPECIFIED else pooling,
        causal=causal,
        mtp=params.mtp,
    )


def _check(hp: HParams, params: ContextParams) -> FlashAttention:
    """The refusals of llama_init_from_model, in its order; flash attention as it leaves them."""
    flash_attn: FlashAttention = "off" if hp.arch == "grok" else params.flash_attn
    k, v = GGML_TYPES_BY_NAME[params.type_k], GGML_TYPES_BY_NAME[params.type_v]
    if params.n_batch == 0 and params.n_ubatch == 0:
        _refuse("n_batch and n_ubatch cannot both be zero")
    if params.n_ctx == 0 and hp.n_ctx_train == 0:
        _refuse("the model states no trained context", "say -c")
    if (hp.is_mla or hp.arch == "deepseek4") and params.type_k != params.type_v:
        _refuse(
            f"{hp.arch} does not support different K ({params.type_k}) and V ({params.type_v}) cache types",
            "give -ctk and -ctv the same type",
        )
    if v.block_elements > 1 and flash_attn != "on":
        if flash_attn == "off":
            why = " (which grok does not have)" if hp.arch == "grok" else ""
            _refuse(f"a V cache of {params.type_v} requires flash attention{why}", "use -fa on, or -ctv f16")
        flash_attn = "on"
    if flash_attn != "off":
        for il in range(hp.n_layer):
            for side, ggml, head in (("K", k, hp.n_embd_head_k(il)), ("V", v, hp.n_embd_head_v(il))):
                if head % ggml.block_elements:
                    _refuse(
                        f"{side} cache type {ggml.name} with blocks of {ggml.block_elements} does not divide "
                        f"the head size {head}",
                        "use f16",
                    )
    if params.n_seq_max > MAX_SEQUENCES:
        _refuse(f"{params.n_seq_max} sequences, the engine takes at most {MAX_SEQUENCES}", "lower -np")
    if params.mtp and (hp.n_layer_nextn == 0 or hp.router_layer >= 0):
        _refuse(f"draft-mtp asks for a draft head, and this {hp.arch} model has none")
    if params.mtp and hp.known and hp.arch not in _DRAFT_GRAPHS:
        _refuse(f"draft-mtp asks for a draft head, and {hp.arch} has no graph for one")
    return flash_attn


def cache_row_bytes(type_name: str, n_elements: int) -> int:
    """Bytes of one cache row.

    Raises:
        EngineRefusalError: the row is not whole blocks of the type.
    """
    try:
        return row_bytes(type_name, n_elements)
    except ValueError:
        _refuse(f"a cache of {type_name} cannot hold rows of {n_elements} elements", "use f16")


def _refuse(cause: str, hint: str | None = None) -> NoReturn:
    raise EngineRefusalError(f"llama.cpp refuses: {cause}", hint=hint)
