"""Gemma 3n and 4: embeddings of their own for every layer, late layers that read earlier ones' caches."""

from __future__ import annotations

from autofit_vllm.architectures.builder import Builder, Scope
from autofit_vllm.architectures.facts import expert_count, experts_per_token
from autofit_vllm.architectures.families.experts import router
from autofit_vllm.architectures.rope import rope_parameters
from autofit_vllm.modules.model import EVERY

_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)


def _attention(layer: Scope, *, head_size: int, kv_heads: int, window: int | None, shared: bool, rope_of: str) -> None:
    """Attention with normalized heads; a layer that shares its cache projects queries only."""
    b = layer.builder
    config, hidden = b.config, b.hidden_size
    heads, bias = config.int("num_attention_heads"), config.flag("attention_bias")
    here = layer / "self_attn"
    if shared:
        here.column("q_proj", hidden, heads * head_size, bias=bias)
    else:
        here.qkv("qkv_proj", hidden, heads=heads, kv_heads=kv_heads, head_size=head_size, bias=bias)
        here.norm("k_norm", head_size)
    here.row("o_proj", heads * head_size, hidden, bias=bias)
    here.norm("q_norm", head_size)
    parameters = {**rope_parameters(config, rope_of), "of": rope_of}
    if parameters["rope_type"] == "proportional":  # The rest of the head turns by nothing, and is kept.
        parameters = {"rope_type": "proportional", "of": rope_of}
    here.rope(head_size, parameters=parameters)
    here.cache("attn", heads=heads, kv_heads=kv_heads, head_size=head_size, window=window, shared=shared)


def _per_layer_inputs(layer: Scope, width: int) -> None:
    hidden = layer.builder.hidden_size
    layer.replicated("per_layer_input_gate", hidden, width)
    layer.replicated("per_layer_projection", width, hidden)
    layer.norm("post_per_layer_input_norm")


def _layer_types(b: Builder, period: int) -> list[str]:
    """One kind per layer, the last of every `period` attending in full if the file does not say."""
    count = b.config.layers()
    types = [str(kind) for kind in b.config.items_of("layer_types")][:count]
    for index in range(len(types), count):
        types.append("sliding_attention" if (index + 1) % period else "full_attention")
    return types


def gemma4(b: Builder) -> None:
    """models/gemma4.py: full layers have wider heads, and fewer of them for keys; experts beside the dense
    feed-forward in the mixtures."""
    config, hidden = b.config, b.hidden_size
    count = config.layers()
    types = _layer_types(b, 6)
    if types:
        types[-1] = "full_attention"
    own = count - config.int("num_kv_shared_layers", default=0)
    width = config.int("hidden_size_per_layer_input", default=0)
    window = config.maybe_int("sliding_window")
    if config.text("use_bidirectional_attention") == "all" and window is not None:
        window = window // 2 + 1
    root = b.scope("model", EVERY)
    b.embedding(everywhere=True)
    if width:
        rows = config.int("vocab_size_per_layer_input", "vocab_size")
        b.embedding("model.embed_tokens_per_layer", rows=rows, columns=width * count, everywhere=True)
        root.column("per_layer_model_projection", hidden, width * count)
        root.norm("per_layer_projection_norm", width)
        for name in ("embed_scale_per_layer", "per_layer_input_scale", "per_layer_projection_scale"):
            root.buffer(f"model.{name}")
    root.buffer("model.normalizer")
    for layer in b.layers():
        full = types[layer.stage] == "full_attention"
        kv_heads = b.kv_heads
        if full and config.flag("attention_k_eq_v"):
            kv_heads = config.int("num_global_key_value_heads", default=kv_heads)
        _attention(
            layer,
            head_size=config.int("global_head_dim", default=512) if full else b.head_size,
            kv_heads=kv_heads,
            window=None if full else window,
            shared=layer.stage >= own,
            rope_of=types[layer.stage],
        )
        wide = config.flag("use_double_wide_mlp") and layer.stage >= own > 0
        layer.gated_mlp(intermediate_size=config.int("intermediate_size") * (2 if wide else 1))
        layer.norms(*_NORMS)
        if expert_count(config):
            _gemma4_experts(layer)
        if width:
            _per_layer_inputs(layer, width)
        layer.buffer(f"{layer.prefix}.layer_scalar", 1)
    b.finish(everywhere=True)


def _gemma4_experts(layer: Scope) -> None:
    config = layer.builder.config
    count = expert_count(config)
    here = layer / "router"
    here.plain("scale", layer.builder.hidden_size)
    here.plain("per_expert_scale", count)
    here.buffer(f"{here.prefix}.root_size")
    router(here, count, name="proj")
    layer.experts(
        "experts",
        count,
        config.int("moe_intermediate_size", "expert_intermediate_size"),
        top_k=experts_per_token(config),
        fused_routing=False,
    )
    layer.norms("post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2")


def gemma3n(b: Builder) -> None:
    """models/gemma3n.py: four streams mixed by AltUp, and a low-rank shortcut beside attention."""
    config, hidden = b.config, b.hidden_size
    count = config.layers()
    streams = config.layers("altup_num_inputs")
    width, rank = config.int("hidden_size_per_layer_input"), config.int("laurel_rank")
    own = count - config.int("num_kv_shared_layers", default=0)
    widths = config.items_of("intermediate_size")
    types = _layer_types(b, 5)
    root, early = b.scope("model", EVERY), b.scope("model.self_decoder", EVERY)
    for index in range(streams - 1):
        root.column(f"altup_unembed_projections.{index}", hidden, hidden)
        early.column(f"altup_projections.{index}", hidden, hidden)
    b.embedding("model.self_decoder.embed_tokens", everywhere=True)
    rows = config.int("vocab_size_per_layer_input")
    b.embedding("model.self_decoder.embed_tokens_per_layer", rows=rows, columns=width * count, everywhere=True)
    early.column("per_layer_model_projection", hidden, width * count)
    early.norm("per_layer_projection_norm", width)
    for name in ("embed_scale", "embed_scale_per_layer", "per_layer_input_scale", "per_layer_projection_scale"):
        early.buffer(f"model.self_decoder.{name}")
    for layer in b.layers():
        mixer = layer / "altup"
        mixer.plain("correct_output_scale", hidden, dtype="float32")
        mixer.replicated("correction_coefs", streams, streams)
        mixer.replicated("prediction_coefs", streams, streams**2)
        mixer.replicated("modality_router", hidden, streams)
        mixer.norm("router_norm")
        layer.buffer(f"{mixer.prefix}.router_input_scale")
        slides = types[layer.stage] == "sliding_attention"
        _attention(
            layer,
            head_size=b.head_size,
            kv_heads=b.kv_heads,
            window=b.sliding_window() if slides else None,
            shared=layer.stage >= own,
            rope_of=types[layer.stage],
        )
        feed = widths[layer.stage] if layer.stage < len(widths) else config.get("intermediate_size")
        layer.gated_mlp(intermediate_size=feed if isinstance(feed, int) else 0)
        shortcut = layer / "laurel"
        shortcut.column("linear_left", hidden, rank)
        shortcut.row("linear_right", rank, hidden)
        shortcut.norm("post_laurel_norm")
        _per_layer_inputs(layer, width)
        layer.norms(*_NORMS)
    b.final_norm(everywhere=True)
