"""More decoders whose feed-forward is a choice of experts, each with an attention of its own."""

from __future__ import annotations

from collections.abc import Mapping

from autofit_vllm.architectures.builder import Builder, Scope
from autofit_vllm.architectures.config import Config
from autofit_vllm.architectures.facts import expert_count, experts_per_token
from autofit_vllm.architectures.families.experts import known_routing, mixture, router
from autofit_vllm.architectures.rope import rope_parameters


def _kind(b: Builder, index: int, key: str = "layer_types") -> str:
    kinds = b.config.items_of(key)
    return str(kinds[index]) if index < len(kinds) else ""


def exaone_moe(b: Builder) -> None:
    """models/exaone_moe.py: K-EXAONE. Its layers that predict further are dense."""
    config = b.config
    bias = config.flag("attention_bias") or config.flag("bias")
    windows = config.items_of("sliding_windows")
    width = config.int("moe_intermediate_size")

    def attention(layer: Scope, *, predicts: bool = False) -> None:
        index = layer.stage - config.layers() if predicts else layer.stage
        kind = (predicts and _kind(b, index, "mtp_layer_types")) or _kind(b, index)
        own = (config.items_of("mtp_sliding_windows") if predicts else []) or windows
        window = own[index] if index < len(own) else b.sliding_window()
        window = None if kind == "full_attention" else window
        layer.attention(bias=bias, out_bias=bias, head_norms=("q_norm", "k_norm"), window=window)

    def dense(layer: Scope) -> None:
        attention(layer, predicts=True)
        layer.gated_mlp(bias=config.flag("mlp_bias"))
        layer.norms("input_layernorm", "post_attention_layernorm")

    b.embedding()
    for layer in b.layers():
        attention(layer)
        if _kind(b, layer.stage, "mlp_layer_types") == "sparse":
            mixture(
                layer,
                width=width,
                gate_dtype=None,
                correction="e_score_correction_bias",
                shared=width * config.int("num_shared_experts", default=0),
                fused_routing=known_routing(config, scoring="sigmoid", corrected=True),
            )
        else:
            layer.gated_mlp(bias=config.flag("mlp_bias"))
        layer.norms("input_layernorm", "post_attention_layernorm")
    b.finish()
    b.predict(
        config.maybe_int("num_nextn_predict_layers"),
        dense,
        "pre_fc_norm_hidden",
        "pre_fc_norm_embedding",
        prefix="mtp.layers",
        projection="fc",
    )


def hy_v3(b: Builder) -> None:
    """models/hy_v3.py: Hunyuan 3, the router in fp32, the first layers dense."""
    config = b.config
    width = config.int("expert_hidden_dim", "moe_intermediate_size")
    norms = ("q_norm", "k_norm") if config.flag("qk_norm") else ()
    b.embedding(everywhere=True)
    for layer in b.layers():
        layer.attention(head_norms=norms)
        if layer.stage < config.int("first_k_dense_replace"):
            layer.gated_mlp()
        else:
            mixture(
                layer,
                width=width,
                gate_dtype="float32",
                correction="expert_bias",
                shared=width * config.int("num_shared_experts", default=0),
                shared_name="shared_mlp",
                fused_routing=config.flag("route_norm"),
            )
        layer.norms("input_layernorm", "post_attention_layernorm")
    b.finish(everywhere=True)


def cohere2_moe(b: Builder) -> None:
    """models/cohere2_moe.py: attention and feed-forward side by side behind one norm, tied embeddings."""
    config = b.config
    dense_prefix = 0
    while _kind(b, dense_prefix, "mlp_layer_types") == "dense":
        dense_prefix += 1
    layer_norm = config.get("rms_norm_eps") is None
    b.embedding(everywhere=True)
    for layer in b.layers():
        window = b.sliding_window() if _kind(b, layer.stage) == "sliding_attention" else None
        layer.attention(window=None if window is None else window + 1)
        if layer.stage < dense_prefix:
            layer.gated_mlp(
                intermediate_size=config.int("prefix_dense_intermediate_size", "intermediate_size"),
            )
        else:
            width = config.int("intermediate_size")
            mixture(
                layer,
                width=width,
                shared=width * config.int("num_shared_experts", default=0),
                fused_routing=config.text("expert_selection_fn") != "sigmoid" and config.flag("norm_topk_prob", True),
            )
        layer.norm("input_layernorm", bias=False)
    b.final_norm(everywhere=True)
    if layer_norm:
        b.notes.append("norms are LayerNorm without bias")


def step3(b: Builder) -> None:
    """models/step3_text.py: one KV head, queries by way of a smaller vector, both on every rank."""
    config, hidden = b.config, b.hidden_size
    heads, size = config.int("num_attention_heads"), b.head_size
    queries = config.maybe_int("share_q_dim") or size
    listed = config.text("moe_layers_enum")
    sparse = [int(word) for word in listed.split(",")] if listed else range(1, config.layers())
    b.embedding()
    for layer in b.layers():
        here = layer / "self_attn"
        here.replicated("qkv_proj", hidden, queries + 2 * size)
        here.row("o_proj", heads * size, hidden)
        here.norm("inter_norm", queries)
        here.column("wq", queries, heads * size)
        here.rope(size, max_position=config.int("max_position_embedding", "max_position_embeddings"))
        here.cache("attn", heads=heads, kv_heads=1, head_size=size, quantizable=False)
        if layer.stage in sparse:
            moe = layer / "moe"
            router(moe, expert_count(config))
            moe.experts(
                "experts",
                expert_count(config),
                config.int("moe_intermediate_size"),
                top_k=experts_per_token(config),
                fused_routing=config.flag("norm_expert_weight"),
            )
            layer.gated_mlp("share_expert", config.int("share_expert_dim"))
        else:
            layer.gated_mlp()
        layer.norms("input_layernorm", "post_attention_layernorm")
    b.finish()


def laguna(b: Builder) -> None:
    """models/laguna.py: heads may differ by layer, attention is gated, gate and up are not fused."""
    config, hidden = b.config, b.hidden_size
    per_layer = config.items_of("num_attention_heads_per_layer")
    gating, size = config.get("gating"), b.head_size
    shared = config.int("shared_expert_intermediate_size", default=0)
    listed = config.items_of("mlp_only_layers")
    b.embedding()
    for layer in b.layers():
        heads = per_layer[layer.stage] if layer.stage < len(per_layer) else config.int("num_attention_heads")
        kind = _kind(b, layer.stage) or "full_attention"
        slides = kind == "sliding_attention"
        bias = config.flag("attention_bias")
        sinks = slides and config.flag("swa_attention_sink_enabled")
        layer.attention(
            heads=heads,
            bias=bias,
            out_bias=bias,
            head_norms=("q_norm", "k_norm"),
            window=b.sliding_window() if slides else None,
            sinks=sinks,
            rope=False,
        )
        here = layer / "self_attn"
        if gating:
            here.column("g_proj", hidden, heads if gating in (True, "per-head") else heads * size)
        if sinks:
            here.plain("sink", heads, axis=0)
        own = config.get("swa_rope_parameters") if slides else None
        here.rope(size, parameters=own if isinstance(own, Mapping) else rope_parameters(config, kind))
        sparse = _kind(b, layer.stage, "mlp_layer_types") != "dense" and layer.stage not in listed
        if not sparse:
            _unfused(layer, "mlp", config.int("intermediate_size"))
        else:
            mlp = layer / "mlp"
            router(mlp, expert_count(config))
            if shared:
                _unfused(layer, "mlp.shared_expert", shared)
            mlp.plain("experts.e_score_correction_bias", expert_count(config), dtype="float32")
            mlp.experts(
                "experts", expert_count(config), config.int("moe_intermediate_size"), top_k=experts_per_token(config)
            )
        layer.norms("input_layernorm", "post_attention_layernorm")
    b.finish()


def _unfused(layer: Scope, name: str, width: int) -> None:
    here, hidden = layer / name, layer.builder.hidden_size
    here.column("gate_proj", hidden, width)
    here.column("up_proj", hidden, width)
    here.row("down_proj", width, hidden)


def minimax_m3(b: Builder) -> None:
    """models/minimax_m3: most layers attend to blocks that an indexer of half precision picks."""
    config, hidden = b.config, b.hidden_size
    heads, kv_heads, size = config.int("num_attention_heads"), b.kv_heads, b.head_size
    sparse = config.section("sparse_attention_config")
    width = config.int("intermediate_size")
    shared = config.int("shared_intermediate_size", default=width)
    parameters = {"rope_type": "default", "partial_rotary_factor": config.int("rotary_dim", default=size) / size}

    def marked(key: str, where: Config, index: int) -> bool:
        marks = where.items_of(key)
        return bool(marks[index]) if index < len(marks) else not marks

    b.embedding()
    for layer in b.layers():
        here = layer / "self_attn"
        if marked("sparse_attention_freq", sparse, layer.stage) and sparse.flag("use_sparse_attention", True):
            index_heads, index = sparse.int("sparse_num_index_heads"), sparse.int("sparse_index_dim")
            parts = (
                ("q_proj", heads * size),
                ("k_proj", kv_heads * size, 0, kv_heads),
                ("v_proj", kv_heads * size, 0, kv_heads),
                ("index_q_proj", index_heads * index, 0, index_heads),
                ("index_k_proj", index, 0, 1),
            )
            here.column("qkv_proj", hidden, parts)
            here.row("o_proj", heads * size, hidden)
            for name in ("q_norm", "k_norm"):
                here.norm(name, size)
                here.norm(f"index_{name}", index)
            here.cache("", heads=heads, kv_heads=kv_heads, head_size=size, backend="MINIMAX_M3_SPARSE")
            here.indexer_cache("indexer", 2 * index, element_bytes=2, backend="MINIMAX_M3_SPARSE_INDEXER")
        else:
            layer.attention(head_norms=("q_norm", "k_norm"), rope=False)
        here.rope(size, parameters=parameters)
        if marked("moe_layer_freq", config, layer.stage):
            mixture(
                layer,
                "block_sparse_moe",
                width=width,
                gate_dtype="float32",
                correction="e_score_correction_bias" if config.flag("use_routing_bias") else None,
                shared=shared * config.int("n_shared_experts", default=0),
                names=("w1", "w3", "w2"),
                fused_routing=config.text("scoring_func", "sigmoid") == "sigmoid",
            )
        else:
            layer.gated_mlp(intermediate_size=config.int("dense_intermediate_size"))
        layer.norms("input_layernorm", "post_attention_layernorm")
    b.finish()
