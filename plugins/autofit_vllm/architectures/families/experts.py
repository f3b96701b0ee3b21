"""Decoders whose feed-forward is a choice of experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autofit_vllm.architectures.builder import Builder, Scope
from autofit_vllm.architectures.config import Config
from autofit_vllm.architectures.facts import expert_count, experts_per_token


def router(
    here: Scope,
    count: int,
    *,
    name: str = "gate",
    dtype: str | None = None,
    bias: str | None = None,
    linear_bias: bool = False,
    quantizable: bool = False,
    fp32_without_kernel: bool = False,
) -> None:
    """The gate, which few models let be quantized; `bias` names the correction that some add to its scores, in fp32."""
    here.replicated(
        name,
        here.builder.hidden_size,
        count,
        quantizable=quantizable,
        dtype=dtype,
        bias=linear_bias,
        fp32_without_kernel=fp32_without_kernel,
    )
    if bias is not None:
        here.plain(bias, count, dtype="float32")


def mixture(
    layer: Scope,
    name: str = "mlp",
    *,
    width: int,
    count: int | None = None,
    gate: str = "gate",
    gate_dtype: str | None = None,
    correction: str | None = None,
    shared: int = 0,
    shared_name: str = "shared_experts",
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    fused_routing: bool = True,
) -> None:
    """A router, its experts of `width`, and `shared` features that every token passes."""
    config = layer.builder.config
    here = layer / name
    count = expert_count(config) if count is None else count
    router(here, count, name=gate, dtype=gate_dtype, bias=correction)
    if shared:
        here.gated_mlp(shared_name, shared)
    here.experts(
        "experts",
        count,
        width,
        top_k=experts_per_token(config),
        names=names,
        fused_routing=fused_routing,
    )


def known_routing(config: Config, *, scoring: str = "softmax", corrected: bool = False, default: bool = False) -> bool:
    """Whether kernels that route and compute in one know this way of choosing
    (fused_moe/config.py:get_routing_method_type, fused_moe/experts/trtllm_bf16_moe.py)."""
    normalized = config.flag("norm_topk_prob", default)
    if corrected:
        return scoring == "sigmoid" and normalized
    return scoring == "sigmoid" or normalized


def _norms(layer: Scope) -> None:
    layer.norms("input_layernorm", "post_attention_layernorm")


def mixtral(b: Builder) -> None:
    """models/mixtral.py."""
    b.embedding(everywhere=True)
    for layer in b.layers():
        layer.attention(window=b.layer_window(layer.stage))
        mixture(layer, "block_sparse_moe", width=b.config.int("intermediate_size"), names=("w1", "w3", "w2"))
        _norms(layer)
    b.finish(everywhere=True)


def _is_sparse(config: Config, index: int) -> bool:
    """Qwen's rule: every `decoder_sparse_step`-th layer, but those of `mlp_only_layers`."""
    step = config.int("decoder_sparse_step", default=1)
    dense = config.items_of("mlp_only_layers")
    return index not in dense and expert_count(config) > 0 and step > 0 and (index + 1) % step == 0


def qwen_mixture(layer: Scope, *, spreads_tokens: bool = False, gate_quantizable: bool = False) -> None:
    """(models/qwen2_moe.py:Qwen2MoeSparseMoeBlock) the shared expert has a gate of its own."""
    config = layer.builder.config
    here = layer / "mlp"
    count = expert_count(config)
    router(here, count, quantizable=gate_quantizable)
    shared = config.int("shared_expert_intermediate_size", default=0)
    if shared:
        here.replicated("shared_expert_gate", layer.builder.hidden_size, 1, quantizable=False)
        here.gated_mlp("shared_expert", shared, spreads_tokens=spreads_tokens)
    here.experts(
        "experts",
        count,
        config.int("moe_intermediate_size"),
        top_k=experts_per_token(config),
        fused_routing=known_routing(config, default=spreads_tokens),
    )


def qwen2_moe(b: Builder) -> None:
    b.embedding(everywhere=True)
    for layer in b.layers():
        layer.attention(bias=b.config.flag("qkv_bias", True), window=b.layer_window(layer.stage))
        if _is_sparse(b.config, layer.stage):
            qwen_mixture(layer)
        else:
            layer.gated_mlp()
        _norms(layer)
    b.finish(everywhere=True)


def qwen3_moe(b: Builder) -> None:
    """models/qwen3_moe.py: normalized heads, no shared expert unless the file has one."""
    b.embedding(everywhere=True)
    for layer in b.layers():
        layer.attention(
            bias=b.config.flag("attention_bias"),
            head_norms=("q_norm", "k_norm"),
            window=b.layer_window(layer.stage),
        )
        if _is_sparse(b.config, layer.stage):
            qwen_mixture(layer, gate_quantizable=True)
        else:
            layer.gated_mlp()
        _norms(layer)
    b.finish(everywhere=True)


def olmoe(b: Builder) -> None:
    """models/olmoe.py: Q and K normalized as a whole, on every rank."""
    config = b.config
    heads, kv_heads, size = config.int("num_attention_heads"), b.kv_heads, b.head_size
    b.embedding(everywhere=True)
    for layer in b.layers():
        layer.attention()
        layer.plain("self_attn.q_norm.weight", heads * size)
        layer.plain("self_attn.k_norm.weight", kv_heads * size)
        mixture(layer, width=config.int("intermediate_size"), fused_routing=False)
        _norms(layer)
    b.finish(everywhere=True)


def gpt_oss(b: Builder) -> None:
    """models/gpt_oss.py: attention sinks, biases throughout, every other layer slides."""
    config = b.config
    heads = config.int("num_attention_heads")
    b.embedding("model.embedding", everywhere=True)
    for layer in b.layers():
        here = layer / "attn"
        here.plain("sinks", heads, axis=0)
        # The engine asks the layer's number, not `layer_types`.
        layer.attention(
            "attn",
            bias=True,
            out_bias=True,
            window=b.sliding_window() if layer.stage % 2 == 0 else None,
            sinks=True,
            rope=False,
        )
        here.rope(b.head_size, dtype="float32")
        mlp = layer / "mlp"
        count = expert_count(config)
        router(mlp, count, name="router", linear_bias=True)
        mlp.experts(
            "experts",
            count,
            config.int("intermediate_size"),
            top_k=experts_per_token(config),
            bias=True,
            fused_routing=False,
        )
        _norms(layer)
    b.final_norm(everywhere=True)
    b.head(tied_to="model.embedding", everywhere=True, quantizable=False)


def minimax_m2(b: Builder) -> None:
    """models/minimax_m2.py: Q and K normalized over all heads."""
    config = b.config
    heads, kv_heads, size = config.int("num_attention_heads"), b.kv_heads, b.head_size
    b.embedding()
    for layer in b.layers():
        layer.attention(rope=False, window=b.layer_window(layer.stage))
        rotary = config.int("rotary_dim", default=size)
        layer.rope(size, parameters={"rope_type": "default", "partial_rotary_factor": rotary / size})
        layer.plain("self_attn.q_norm.weight", heads * size, axis=0)
        layer.plain("self_attn.k_norm.weight", kv_heads * size, axis=0)
        mixture(
            layer,
            "block_sparse_moe",
            width=config.int("intermediate_size"),
            gate_dtype="float32",
            correction="e_score_correction_bias" if config.flag("use_routing_bias") else None,
            names=("w1", "w3", "w2"),
            fused_routing=config.text("scoring_func", "sigmoid") == "sigmoid",
        )
        _norms(layer)
    b.finish()


def glm4_moe(b: Builder) -> None:
    """models/glm4_moe.py: the router in fp32, dense layers first."""
    config = b.config
    norms = ("q_norm", "k_norm") if config.flag("use_qk_norm") else ()
    width = config.int("moe_intermediate_size")

    def block(layer: Scope) -> None:
        layer.attention(bias=config.flag("attention_bias"), head_norms=norms)
        if layer.stage >= config.int("first_k_dense_replace", default=0):
            mixture(
                layer,
                width=width,
                gate_dtype="float32",
                correction="gate.e_score_correction_bias",
                fused_routing=known_routing(config, scoring="sigmoid", corrected=True),
                shared=width * config.int("n_shared_experts", default=0),
            )
        else:
            layer.gated_mlp()
        _norms(layer)

    b.embedding()
    for layer in b.layers():
        block(layer)
    b.finish()
    b.predict(config.maybe_int("num_nextn_predict_layers"), block, "enorm", "hnorm", "shared_head.norm")


def afmoe(b: Builder) -> None:
    """models/afmoe.py: gated attention, four norms, three of four layers slide."""
    config = b.config
    heads, size = config.int("num_attention_heads"), b.head_size
    width = config.int("moe_intermediate_size")
    period = config.int("global_attn_every_n_layers", default=4)
    types = config.items_of("layer_types")
    b.embedding()
    for layer in b.layers():
        slides = (
            types[layer.stage] == "sliding_attention" if layer.stage < len(types) else bool((layer.stage + 1) % period)
        )
        layer.attention(head_norms=("q_norm", "k_norm"), window=b.sliding_window() if slides else None, rope=False)
        if slides:
            layer.rope(size)
        layer.column("self_attn.gate_proj", b.hidden_size, heads * size)
        if layer.stage >= config.int("num_dense_layers", default=0):
            mixture(
                layer,
                width=width,
                gate_dtype="float32",
                correction="expert_bias",
                fused_routing=config.text("score_func", "sigmoid") == "sigmoid" and config.flag("route_norm", True),
                shared=width * config.int("num_shared_experts", default=0),
            )
        else:
            layer.gated_mlp()
        layer.norms("input_layernorm", "post_attention_layernorm", "pre_mlp_layernorm", "post_mlp_layernorm")
    b.finish()


def ernie4_5_moe(b: Builder) -> None:
    """models/ernie45_moe.py: experts between two layer numbers, every `moe_layer_interval`-th."""
    config = b.config
    count, bias = expert_count(config), config.flag("use_bias")
    start = config.int("moe_layer_start_index", default=0)
    end = config.int("moe_layer_end_index", default=config.layers() - 1)
    step = config.int("moe_layer_interval", default=1)
    width = config.int("moe_intermediate_size")
    b.embedding()
    for layer in b.layers():
        layer.attention(bias=bias, out_bias=bias)
        sparse = count > 0 and start <= layer.stage <= end and step > 0 and (layer.stage + 1) % step == 0
        if sparse:
            mixture(
                layer,
                width=width,
                gate_dtype="float32",
                correction="gate.e_score_correction_bias",
                fused_routing=False,
                shared=width * config.int("moe_num_shared_experts", default=0),
            )
        else:
            layer.gated_mlp(bias=bias)
        _norms(layer)
    b.finish()

    def dense(layer: Scope) -> None:
        layer.attention()
        layer.gated_mlp()
        _norms(layer)

    b.predict(
        config.maybe_int("num_nextn_predict_layers"),
        dense,
        "mtp_emb_norm",
        "mtp_hidden_norm",
        projection="mtp_linear_proj",
    )


def granite_moe(b: Builder) -> None:
    """models/granitemoe.py and granitemoeshared.py."""
    config = b.config
    bias = config.flag("attention_bias")
    shared = config.int("shared_intermediate_size", default=0)
    b.embedding(everywhere=True)
    for layer in b.layers():
        layer.attention(bias=bias, out_bias=bias, window=b.layer_window(layer.stage))
        mixture(layer, "block_sparse_moe", width=config.int("intermediate_size"), names=("w1", "w3", "w2"))
        if shared:
            granite_shared(layer, shared)
        _norms(layer)
    b.finish(everywhere=True)


def granite_shared(layer: Scope, width: int) -> None:
    """The feed-forward that every token passes (models/granitemoeshared.py:GraniteMoeSharedMLP)."""
    layer.gated_mlp("shared_mlp", width, fused="input_linear", names=("input_linear",), down="output_linear")


def phimoe(b: Builder) -> None:
    """models/phimoe.py: LayerNorm, a bias on all of attention and on the head."""
    config = b.config
    bias = config.flag("attention_bias")
    b.embedding(everywhere=True)
    for layer in b.layers():
        layer.attention(bias=bias, out_bias=bias, window=b.model_window())
        mixture(
            layer,
            "block_sparse_moe",
            width=config.int("intermediate_size"),
            names=("w1", "w3", "w2"),
            fused_routing=False,
        )
        layer.norms("input_layernorm", "post_attention_layernorm", bias=True)
    b.final_norm(bias=True, everywhere=True)
    b.head(bias=True, everywhere=True, quantizable=False)


def dbrx(b: Builder) -> None:
    """models/dbrx.py."""
    config = b.config
    attention = config.section("attn_config")
    feed = config.section("ffn_config")
    hidden, heads = config.int("d_model"), config.int("n_heads")
    b.embedding("transformer.wte", columns=hidden, everywhere=True)
    for layer in b.layers("transformer.blocks", config.layers("n_layers")):
        here = layer / "norm_attn_norm"
        here.attention(
            "attn",
            heads=heads,
            kv_heads=attention.int("kv_n_heads", default=heads),
            head_size=hidden // heads,
            qkv="Wqkv",
            names=("Wqkv",),
            out="out_proj",
            rope=False,
        )
        parameters = {"rope_type": "default", "rope_theta": attention.get("rope_theta")}
        here.rope(hidden // heads, parameters=parameters, max_position=config.int("max_seq_len"))
        here.norms("norm_1", "norm_2")
        ffn = layer / "ffn"
        count = feed.int("moe_num_experts")
        ffn.replicated("router.layer", hidden, count, quantizable=False)
        ffn.experts(
            "experts",
            count,
            feed.int("ffn_hidden_size"),
            top_k=feed.int("moe_top_k", default=1),
            plain_class=False,
        )
    b.final_norm("transformer.norm_f", size=hidden, everywhere=True)
    b.head(columns=hidden, tied_to="transformer.wte", everywhere=True)


def bailing_moe(b: Builder) -> None:
    """models/bailing_moe.py: Ling and Ring."""
    config = b.config
    heads = config.int("num_attention_heads")
    size = b.head_size
    bias = config.flag("use_bias") or config.flag("use_qkv_bias")
    width = config.int("moe_intermediate_size")
    correction = "gate.expert_bias" if config.flag("moe_router_enable_expert_bias") else None
    gate_dtype = "float32" if config.text("router_dtype") == "fp32" else None
    b.quantized_caches = False
    b.embedding("model.word_embeddings")
    for layer in b.layers():
        layer.attention(
            "attention",
            heads=heads,
            qkv="query_key_value",
            names=("query_key_value",),
            out="dense",
            bias=bias,
            out_bias=config.flag("use_bias"),
        )
        if config.flag("use_qk_norm"):
            for name in ("query_layernorm", "key_layernorm"):
                (layer / "attention").norm(name, size, bias=not config.flag("use_rmsnorm", False))
        if layer.stage >= config.int("first_k_dense_replace", default=0):
            mixture(
                layer,
                width=width,
                gate_dtype=gate_dtype,
                correction=correction,
                fused_routing=known_routing(
                    config,
                    scoring=config.text("score_function", "softmax"),
                    corrected=correction is not None,
                ),
                shared=width * config.int("num_shared_experts", default=0),
            )
        else:
            layer.gated_mlp(bias=config.flag("use_bias"))
        _norms(layer)
    b.final_norm()
    b.head(tied_to="model.word_embeddings")


def llama4(b: Builder) -> None:
    """models/llama4.py: chunks but for every fourth layer, one shared expert, some layers dense."""
    config = b.config
    chunk = config.maybe_int("attention_chunk_size")
    step = config.int("interleave_moe_layer_step", default=1)
    listed = config.items_of("moe_layers")
    nope = config.items_of("no_rope_layers")
    width = config.int("intermediate_size")
    b.embedding()
    for layer in b.layers():
        index = layer.stage
        rotates = bool(nope[index]) if index < len(nope) else (index + 1) % 4 != 0
        layer.attention(rope=False, window=chunk if rotates else None, kind="chunked" if rotates and chunk else None)
        if rotates:
            layer.rope(b.head_size)
        sparse = index in listed if listed else step > 0 and (index + 1) % step == 0
        if sparse:
            here = layer / "feed_forward"
            router(here, expert_count(config), name="router")
            here.gated_mlp("shared_expert", width, spreads_tokens=True)
            here.experts("experts", expert_count(config), width, top_k=experts_per_token(config))
        else:
            layer.gated_mlp("feed_forward", config.int("intermediate_size_mlp"))
        _norms(layer)
    b.finish()


def step3p5(b: Builder) -> None:
    """models/step3p5.py: sliding layers may have more heads, attention is gated per head, the router in fp32."""
    config = b.config
    types = config.items_of("layer_types")
    other = config.section("attention_other_setting")
    width, count = config.int("moe_intermediate_size"), expert_count(config)
    positions = config.int("max_position_embeddings")
    bases, shares = config.items_of("rope_theta"), config.items_of("partial_rotary_factors")
    yarned = config.items_of("yarn_only_types")
    b.embedding()
    for layer in b.layers():
        kind = str(types[layer.stage]) if layer.stage < len(types) else "full_attention"
        slides = kind == "sliding_attention"
        heads = config.int("num_attention_heads")
        if slides:
            own = other.maybe_int("num_attention_heads") if other.text("attention_type") == kind else None
            heads = config.maybe_int("num_sliding_attention_heads") or own or heads
        kv_heads, size = config.int("num_attention_groups"), b.head_size
        here = layer / "self_attn"
        bias = config.flag("attention_bias")
        here.qkv("qkv_proj", b.hidden_size, heads=heads, kv_heads=kv_heads, head_size=size, bias=bias)
        here.row("o_proj", heads * size, b.hidden_size)
        parameters = dict(config.table("rope_scaling")) if not yarned or kind in yarned else {}
        parameters.setdefault("rope_type", "default")
        if layer.stage < len(bases):
            parameters["rope_theta"] = bases[layer.stage]
        if layer.stage < len(shares):
            parameters["partial_rotary_factor"] = shares[layer.stage]
        nested = config.table("rope_parameters").get(kind)
        here.rope(size, parameters=nested if isinstance(nested, Mapping) else parameters, max_position=positions)
        here.norm("q_norm", size)
        here.norm("k_norm", size)
        if config.flag("use_head_wise_attn_gate"):
            here.column("g_proj", b.hidden_size, heads)
        window = config.maybe_int("sliding_window") if slides else None
        here.cache("attn", heads=heads, kv_heads=kv_heads, head_size=size, window=window)
        if _step_is_sparse(config, layer.stage):
            moe = layer / "moe"
            router(moe, count, dtype="float32", bias="router_bias")
            moe.gated_mlp("share_expert", config.int("share_expert_dim"))
            sigmoid = config.text("moe_router_activation", "sigmoid") == "sigmoid"
            plain = not _at(config.items_of("swiglu_limits"), layer.stage)
            moe.experts(
                "experts",
                count,
                width,
                top_k=experts_per_token(config),
                fused_routing=sigmoid and config.flag("norm_expert_weight") and plain,
            )
        else:
            layer.gated_mlp()
        _norms(layer)
    b.finish()


def _step_is_sparse(config: Config, index: int) -> bool:
    kinds = config.items_of("mlp_layer_types")
    if kinds:
        return bool(_at(kinds, index) == "sparse")
    listed = config.text("moe_layers_enum")
    if listed:
        return str(index) in [number.strip() for number in listed.split(",")]
    return index > 0


def _at(values: Sequence[Any], index: int) -> Any:
    return values[index] if index < len(values) else None


def mimo_v2(b: Builder) -> None:
    """models/mimo_v2.py: sliding layers have heads and sizes of their own, values are narrower than keys."""
    config = b.config
    pattern = config.items_of("hybrid_layer_pattern")
    frequency = config.items_of("moe_layer_freq")
    width = config.int("moe_intermediate_size")
    b.embedding()
    for layer in b.layers():
        slides = bool(pattern[layer.stage]) if layer.stage < len(pattern) else False
        prefix = "swa_" if slides else ""
        heads = config.int(f"{prefix}num_attention_heads", "num_attention_heads")
        kv_heads = config.int(f"{prefix}num_key_value_heads", "num_key_value_heads")
        size = config.int(f"{prefix}head_dim", "head_dim")
        value = config.int(f"{prefix}v_head_dim", "v_head_dim", default=size)
        here = layer / "self_attn"
        here.qkv(
            "qkv_proj",
            b.hidden_size,
            heads=heads,
            kv_heads=kv_heads,
            head_size=size,
            head_size_v=value,
            bias=config.flag("attention_bias"),
        )
        here.row("o_proj", heads * value, b.hidden_size)
        sinks = config.flag("add_swa_attention_sink_bias" if slides else "add_full_attention_sink_bias")
        if sinks:
            here.plain("attention_sink_bias", heads, axis=0)
        theta = config.get("swa_rope_theta" if slides else "rope_theta")
        here.rope(
            size,
            parameters={
                "rope_type": "default",
                "rope_theta": theta,
                "partial_rotary_factor": config.number("partial_rotary_factor", 1.0),
            },
        )
        here.cache(
            "attn",
            heads=heads,
            kv_heads=kv_heads,
            head_size=size,
            head_size_v=value,
            window=config.int("sliding_window_size", "sliding_window") if slides else None,
            sinks=sinks,
        )
        if layer.stage < len(frequency) and frequency[layer.stage]:
            mixture(
                layer,
                width=width,
                gate_dtype="float32",
                correction="gate.e_score_correction_bias",
                fused_routing=known_routing(config, scoring="sigmoid", corrected=True),
            )
        else:
            layer.gated_mlp()
        _norms(layer)
    b.finish()


def param2moe(b: Builder) -> None:
    """models/param2moe.py: the router in fp32, the shared experts' width whole where the file names it."""
    config = b.config
    width = config.int("moe_intermediate_size")
    norms = ("q_layernorm", "k_layernorm") if config.flag("use_qk_norm") else ()
    shared = config.maybe_int("moe_shared_expert_intermediate_size")
    count = config.int("num_shared_experts", default=1)
    b.embedding()
    for layer in b.layers():
        layer.attention(bias=config.flag("use_qkv_bias"), out_bias=config.flag("use_bias"), head_norms=norms)
        if layer.stage >= config.int("first_k_dense_replace", default=1):
            mixture(
                layer,
                width=width,
                gate_dtype="float32",
                correction="gate.e_score_correction_bias"
                if config.flag("moe_router_enable_expert_bias", True)
                else None,
                shared=(shared or width * count) if count else 0,
                fused_routing=known_routing(config, scoring="sigmoid", corrected=True, default=True),
            )
        else:
            layer.gated_mlp()
        _norms(layer)
    b.finish()
