"""What a llama.cpp context comes to for one model: its numbers, and its caches.

The arithmetic of llama_context's constructor and of sched_reserve (src/llama-context.cpp), and the arguments
that llama_init_from_model refuses.
"""

from __future__ import annotations

from autofit.domain.dtypes import GGML_TYPES_BY_NAME
from autofit.domain.units import round_up

from autofit_llama.engine.versions import Change
from autofit_llama.engine.vocabulary import POOLING_NONE, POOLING_UNSPECIFIED, FlashAttention
from autofit_llama.model.architecture import Architecture, architecture_of
from autofit_llama.model.caches import Cache
from autofit_llama.model.context import CELL_PADDING, MAX_SEQUENCES, Context, ContextParams, refuse
from autofit_llama.model.hparams import HParams

OUTPUTS_AS_ASKED = Change(
    without=9453,
    has=9464,
    source="src/llama-context.cpp:graph_reserve, rows of logits rounded up with the tokens and as asked for",
    name="rows of logits not rounded up",
    larger=False,
)
ONE_CACHE_TYPE = Change(
    without=10204,
    has=10216,
    source="src/llama-context.cpp:llama_init_from_model, without and with a look at is_mla",
    name="one type for both caches of latent attention",
)


def caches(hp: HParams, ctx: Context) -> tuple[Cache, ...]:
    """Every cache of the context, empty ones too (an empty one still costs a mask in the graph).

    Raises:
        EngineRefusalError: a row is not whole blocks of the cache's type.
    """
    return architecture_of(hp.arch).memory.caches(hp, ctx)


def resolve_context(hp: HParams, params: ContextParams) -> Context:
    """What the engine makes of `params` for this model.

    Raises:
        EngineRefusalError: llama_init_from_model or llama_context's constructor would fail.
    """
    arch = architecture_of(hp.arch)
    flash_attn = _check(hp, arch, params)
    causal = hp.causal_attn if params.causal is None else params.causal
    n_ctx = params.n_ctx or hp.n_ctx_train
    n_seq_max = max(1, params.n_seq_max)
    n_batch = min(n_ctx, params.n_batch) if causal else params.n_batch
    n_ubatch = min(n_batch, params.n_ubatch or params.n_batch)
    whole_batch = params.n_outputs_max == 0 or arch.has_encoder
    n_outputs_max = n_batch if whole_batch else params.n_outputs_max
    n_ctx = round_up(n_ctx, CELL_PADDING)
    n_ctx_seq = n_ctx if params.kv_unified else round_up(n_ctx // n_seq_max, CELL_PADDING)
    if n_ctx_seq == 0:
        refuse("n_ctx_seq == 0", "raise -c")
    if not params.kv_unified:
        n_ctx = n_ctx_seq * n_seq_max
    n_tokens = min(n_ctx, n_ubatch)
    rounded = round_up(n_tokens, n_seq_max)
    pooling = hp.pooling_type if params.pooling_type == POOLING_UNSPECIFIED else params.pooling_type
    return Context(
        n_ctx=n_ctx,
        n_ctx_seq=n_ctx_seq,
        n_streams=1 if params.kv_unified else n_seq_max,
        n_seq_max=n_seq_max,
        n_rs_seq=params.n_rs_seq if arch.memory.rolls_back else 0,
        n_batch=n_batch,
        n_ubatch=n_ubatch,
        n_outputs_max=n_outputs_max,
        n_tokens=rounded,
        n_outputs=min(n_tokens if params.version.follows(OUTPUTS_AS_ASKED) else rounded, n_outputs_max),
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
        version=params.version,
    )


def _check(hp: HParams, arch: Architecture, params: ContextParams) -> FlashAttention:
    """The refusals of llama_init_from_model, in its order; flash attention as it leaves them."""
    flash_attn: FlashAttention = params.flash_attn if arch.flash_attention else "off"
    k, v = GGML_TYPES_BY_NAME[params.type_k], GGML_TYPES_BY_NAME[params.type_v]
    if params.n_batch == 0 and params.n_ubatch == 0:
        refuse("n_batch and n_ubatch cannot both be zero")
    if params.n_ctx == 0 and hp.n_ctx_train == 0:
        refuse("the model states no trained context", "say -c")
    one_type = (hp.is_mla or arch.one_cache_type) and params.version.follows(ONE_CACHE_TYPE)
    if one_type and params.type_k != params.type_v:
        refuse(
            f"{hp.arch} does not support different K ({params.type_k}) and V ({params.type_v}) cache types",
            "give -ctk and -ctv the same type",
        )
    if v.block_elements > 1 and flash_attn != "on":
        if flash_attn == "off":
            why = "" if arch.flash_attention else f" (which {hp.arch} does not have)"
            refuse(f"a V cache of {params.type_v} requires flash attention{why}", "use -fa on, or -ctv f16")
        flash_attn = "on"
    if flash_attn != "off":
        for il in range(hp.n_layer):
            for side, ggml, head in (("K", k, hp.n_embd_head_k(il)), ("V", v, hp.n_embd_head_v(il))):
                if head % ggml.block_elements:
                    refuse(
                        f"{side} cache type {ggml.name} with blocks of {ggml.block_elements} does not divide "
                        f"the head size {head}",
                        "use f16",
                    )
    if params.n_seq_max > MAX_SEQUENCES:
        refuse(f"{params.n_seq_max} sequences, the engine takes at most {MAX_SEQUENCES}", "lower -np")
    if params.mtp and (hp.n_layer_nextn == 0 or hp.router_layer >= 0):
        refuse(f"draft-mtp asks for a draft head, and this {hp.arch} model has none")
    if params.mtp and hp.known and arch.draft_graph is None:
        refuse(f"draft-mtp asks for a draft head, and {hp.arch} has no graph for one")
    return flash_attn
