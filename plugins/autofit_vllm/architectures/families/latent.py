"""Multi-head latent attention: DeepSeek V2 and what took it over."""

from __future__ import annotations

from collections.abc import Callable

from autofit_vllm.architectures.builder import Builder, Scope
from autofit_vllm.architectures.facts import expert_count, experts_per_token
from autofit_vllm.architectures.families.experts import known_routing, mixture, router
from autofit_vllm.architectures.rope import rope_parameters

_INDEX_BLOCK = 128  #: keys of the indexer share one fp32 scale per this many elements


def latent_attention(
    layer: Scope,
    name: str = "self_attn",
    *,
    cache: str = "attn",
    sparse: bool = False,
    indexed: bool = True,
    own_rope: bool = True,
    pool: int = 1,
    gated: bool = False,
    rope_dtype: str | None = None,
    rope: bool = True,
) -> None:
    """(models/deepseek_v2.py:DeepseekV2MLAAttention) the down-projections are on every rank, the rest divides by
    heads; a `sparse` one that is not `indexed` attends to what another layer picked. An indexer has a table of its own
    (`own_rope`); it may keep one key for a pool of tokens."""
    b = layer.builder
    config, hidden = b.config, b.hidden_size
    heads = config.int("num_attention_heads")
    query_rank, rank = config.maybe_int("q_lora_rank"), config.int("kv_lora_rank")
    nope, rotary = config.int("qk_nope_head_dim"), config.int("qk_rope_head_dim")
    value = config.int("v_head_dim")
    here = layer / name
    if query_rank:
        parts = (("q_a_proj", query_rank), ("kv_a_proj_with_mqa", rank + rotary))
        if gated:
            copies = [(part, size, 0, 1) for part, size in parts]
            here.column("fused_qkv_a_g_proj", hidden, [*copies, ("g_proj", heads * value)])
        else:
            here.replicated("fused_qkv_a_proj", hidden, parts)
        here.norm("q_a_layernorm", query_rank)
        here.column("q_b_proj", query_rank, heads * (nope + rotary))
    else:
        here.replicated("kv_a_proj_with_mqa", hidden, rank + rotary)
        here.column("q_proj", hidden, heads * (nope + rotary))
        if gated:
            here.column("g_proj", hidden, heads * value)
    here.norm("kv_a_layernorm", rank)
    here.column("kv_b_proj", rank, heads * (nope + value))
    here.row("o_proj", heads * value, hidden)
    if sparse and indexed:
        _indexer(here, query_rank or hidden, rope_dtype, rope=own_rope, pool=pool)
    if rope:
        _rope(here, rotary, rope_dtype)
    here.latent_cache(cache, heads=heads, rank=rank, rope_size=rotary, sparse=sparse)


def _rope(here: Scope, rotary: int, dtype: str | None) -> None:
    """DeepSeek's YaRN keeps the positions of the original length times its factor."""
    parameters = dict(rope_parameters(here.builder.config))
    if parameters["rope_type"] != "default":
        parameters["rope_type"] = "deepseek_yarn"
    parameters.pop("partial_rotary_factor", None)
    here.rope(rotary, parameters=parameters, dtype=dtype)


def _indexer(here: Scope, query_rank: int, rope_dtype: str | None, *, rope: bool, pool: int) -> None:
    """What picks the tokens to attend to (models/deepseek_v32): not divided over ranks, its keys cached in fp8."""
    config = here.builder.config
    heads, size = config.int("index_n_heads"), config.int("index_head_dim")
    index = here / "indexer"
    index.replicated("wq_b", query_rank, heads * size)
    parts = (("wk", size), ("weights_proj", heads))
    index.replicated("wk_weights_proj", here.builder.hidden_size, parts, quantizable=False)
    index.norm("k_norm", size, bias=True, dtype="float32")
    row = size + size // _INDEX_BLOCK * 4
    if pool > 1:
        # The keys and scores of an unfinished pool are kept in half precision.
        index.plain("index_kpool_compress_ape", pool, size, dtype="float32")
        index.plain("index_kpool_compress_gate", size, here.builder.hidden_size)
        index.packed_cache("k_cache", "GLM5_NEXT_INDEXER", row, tokens_per_row=pool)
        index.packed_cache("tail_cache", "KPOOL_TAIL", 2 * size * 2, block_tokens=pool, ring=True)
    else:
        index.indexer_cache("k_cache", row)
    if not rope:
        return
    parameters = dict(rope_parameters(config))
    if parameters["rope_type"] != "default":
        parameters["rope_type"] = "deepseek_yarn"
    parameters.pop("partial_rotary_factor", None)
    index.rope(config.int("qk_rope_head_dim"), parameters={**parameters, "of": "indexer"}, dtype=rope_dtype)


def deepseek_mlp(
    layer: Scope,
    *,
    gate_dtype: str | None = None,
    correction: bool | None = None,
    spreads_tokens: bool = True,
    dense_spreads_tokens: bool = False,
) -> None:
    """Dense first, then experts every `moe_layer_freq`-th layer (models/deepseek_v2.py:DeepseekV2MoE)."""
    config = layer.builder.config
    count = expert_count(config)
    step = config.int("moe_layer_freq", default=1)
    if count == 0 or layer.stage < config.int("first_k_dense_replace", default=0) or layer.stage % step:
        layer.gated_mlp(spreads_tokens=dense_spreads_tokens)
        return
    here = layer / "mlp"
    width = config.int("moe_intermediate_size")
    corrected = config.text("topk_method") == "noaux_tc" if correction is None else correction
    bias = "gate.e_score_correction_bias" if corrected else None
    router(here, count, dtype=gate_dtype, bias=bias)
    shared = config.maybe_int("n_shared_experts")
    if shared:
        here.gated_mlp("shared_experts", width * shared, spreads_tokens=spreads_tokens)
    here.experts(
        "experts",
        count,
        width,
        top_k=experts_per_token(config),
        fused_routing=known_routing(
            config,
            scoring="sigmoid" if gate_dtype else config.text("scoring_func", "softmax"),
            corrected=corrected,
        ),
    )


def _finish(b: Builder) -> None:
    """The head is never tied, whatever the file says."""
    b.final_norm()
    b.head(tied=False)


def _decoder(b: Builder, *, sparse: bool = False, gate_dtype: str | None = None, fp32_rope: bool = False) -> None:
    def block(layer: Scope) -> None:
        latent_attention(layer, sparse=sparse, rope_dtype="float32" if fp32_rope else None)
        deepseek_mlp(
            layer,
            gate_dtype=gate_dtype,
            correction=True if gate_dtype else None,
            dense_spreads_tokens=sparse,
            spreads_tokens=gate_dtype is None,
        )
        layer.norms("input_layernorm", "post_attention_layernorm")

    b.embedding(tied=False)
    for layer in b.layers():
        block(layer)
    _finish(b)
    b.predict(b.config.maybe_int("num_nextn_predict_layers"), block, "enorm", "hnorm", "shared_head.norm")


def deepseek_v2(b: Builder) -> None:
    """DeepSeek V2, V3, R1, Kimi K2."""
    _decoder(b)


def deepseek_v32(b: Builder) -> None:
    """DeepSeek V3.2 and GLM-5: what is attended to is picked first."""
    yarn = rope_parameters(b.config)["rope_type"] != "default"
    _decoder(b, sparse=True, fp32_rope=yarn)


def glm4_moe_lite(b: Builder) -> None:
    """models/glm4_moe_lite.py: the router in fp32."""
    _decoder(b, gate_dtype="float32")


def deepseek(b: Builder) -> None:
    """The first DeepSeek MoE: plain attention (models/deepseek_v2.py:DeepseekForCausalLM)."""
    b.embedding(tied=False)
    for layer in b.layers():
        layer.attention(bias=b.config.flag("attention_bias"))
        deepseek_mlp(layer)
        layer.norms("input_layernorm", "post_attention_layernorm")
    _finish(b)


def minicpm3(b: Builder) -> None:
    """models/minicpm3.py: latent projections, but keys and values are cached in full."""
    config, hidden = b.config, b.hidden_size
    heads = config.int("num_attention_heads")
    query_rank, rank = config.int("q_lora_rank"), config.int("kv_lora_rank")
    nope, rotary = config.int("qk_nope_head_dim"), config.int("qk_rope_head_dim")
    value = config.int("v_head_dim", default=hidden // heads)
    b.embedding(everywhere=True)
    for layer in b.layers():
        here = layer / "self_attn"
        here.replicated("q_a_proj", hidden, query_rank)
        here.norm("q_a_layernorm", query_rank)
        here.column("q_b_proj", query_rank, heads * (nope + rotary))
        here.replicated("kv_a_proj_with_mqa", hidden, rank + rotary)
        here.norm("kv_a_layernorm", rank)
        here.column("kv_b_proj", rank, heads * (nope + value))
        here.row("o_proj", heads * value, hidden)
        here.rope(rotary)
        here.cache("attn", heads=heads, kv_heads=heads, head_size=nope + rotary)
        layer.gated_mlp()
        layer.norms("input_layernorm", "post_attention_layernorm")
    b.final_norm(everywhere=True)
    b.head()


def longcat_flash(b: Builder) -> None:
    """models/longcat_flash.py: two attentions and two dense feed-forwards around one set of experts."""
    config = b.config
    count = expert_count(config)
    empty = config.int("zero_expert_num", default=0)
    feed = config.int("ffn_hidden_size", "intermediate_size")
    b.embedding(tied=False)
    for layer in b.layers(count=config.layers("num_layers")):
        for half in ("0", "1"):
            latent_attention(layer, f"self_attn.{half}")
            layer.gated_mlp(f"mlps.{half}", feed)
            layer.norms(f"input_layernorm.{half}", f"post_attention_layernorm.{half}")
        here = layer / "mlp"
        here.replicated("router.classifier", b.hidden_size, count + empty, quantizable=False, dtype="float32")
        here.plain("router.e_score_correction_bias", count + empty, dtype="float32")
        width = config.int("expert_ffn_hidden_size", "moe_intermediate_size")
        here.experts("experts", count, width, top_k=experts_per_token(config), fused_routing=False)
    _finish(b)


def axk1(b: Builder) -> None:
    """models/AXK1.py: DeepSeek's layers with one more norm."""

    def block(layer: Scope) -> None:
        latent_attention(layer)
        deepseek_mlp(layer, correction=b.config.text("topk_method", "noaux_tc") == "noaux_tc")
        layer.norms("input_layernorm", "post_attention_layernorm", "post_mlp_layernorm")

    _plain_decoder(b, block)


def pangu_ultra(b: Builder) -> None:
    """models/openpangu.py: DeepSeek's layers, two more norms in most."""
    norms = ("pre_mlp_layernorm", "post_mlp_layernorm") if b.config.flag("sandwich_norm") else ()

    def block(layer: Scope) -> None:
        latent_attention(layer)
        deepseek_mlp(layer, correction=b.config.flag("router_enable_expert_bias"))
        layer.norms("input_layernorm", "post_attention_layernorm", *norms)

    _plain_decoder(b, block)


def _plain_decoder(b: Builder, block: Callable[[Scope], None]) -> None:
    b.embedding()
    for layer in b.layers():
        block(layer)
    b.finish()


def sarvam_mla(b: Builder) -> None:
    """models/sarvam.py."""
    config = b.config
    width = config.int("moe_intermediate_size")
    shared = config.int("moe_shared_expert_intermediate_size", default=width)
    b.embedding()
    for layer in b.layers():
        latent_attention(layer)
        past = layer.stage - config.int("first_k_dense_replace", default=1)
        if expert_count(config) and past >= 0 and past % config.int("moe_layer_freq", default=1) == 0:
            mixture(
                layer,
                width=width,
                correction="gate.e_score_correction_bias"
                if config.flag("moe_router_enable_expert_bias", True)
                else None,
                shared=shared * config.int("num_shared_experts", default=1),
                fused_routing=known_routing(config, scoring="sigmoid", corrected=True, default=True),
            )
        else:
            layer.gated_mlp()
        layer.norms("input_layernorm", "post_attention_layernorm")
    b.finish()
