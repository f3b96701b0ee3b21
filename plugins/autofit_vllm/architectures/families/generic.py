"""Decoders that vLLM runs through the model code of Transformers (models/transformers): the layers are those
of that library, linear ones replaced by parallel ones and fused where they can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autofit_vllm.architectures.builder import Builder, Scope
from autofit_vllm.architectures.facts import expert_count, experts_per_token
from autofit_vllm.modules.model import EVERY


def _rotary(b: Builder, size: int) -> None:
    """Inverse frequencies, twice, where vLLM's own models keep whole tables (some: for each kind
    of layer)."""
    root = b.scope("model.rotary_emb", EVERY)
    kinds = 1
    if b.config.model_type in ("olmo3", "mellum"):
        kinds = len(set(map(str, b.config.items_of("layer_types")))) or 1
    for index in range(kinds):
        for name in ("inv_freq", "original_inv_freq"):
            root.buffer(f"model.rotary_emb.{name}.{index}", size // 2, dtype="float32")


def _rotary_size(b: Builder) -> int:
    return int(b.head_size * b.config.number("partial_rotary_factor", 1.0))


def _decoder(
    b: Builder,
    *,
    bias: bool = False,
    out_bias: bool = False,
    head_norms: Sequence[str] = (),
    whole_norms: bool = False,
    norms: Sequence[str] = ("input_layernorm", "post_attention_layernorm"),
    norm_bias: bool = False,
    out: str = "o_proj",
    final: str = "model.norm",
    up_down: tuple[str, str] | None = None,
    mlp_bias: bool = False,
    experts: bool = False,
    packed: bool = False,
) -> None:
    config = b.config
    heads, kv_heads, size = config.int("num_attention_heads"), b.kv_heads, b.head_size
    b.scale_dtype = "model"
    b.embedding()
    for layer in b.layers():
        layer.attention(
            bias=bias,
            out_bias=out_bias,
            out=out,
            head_norms=() if whole_norms else head_norms,
            window=b.layer_window(layer.stage),
            rope=False,
        )
        if whole_norms:
            for name, count in zip(head_norms, (heads, kv_heads), strict=True):
                layer.plain(f"self_attn.{name}.weight", count * size)
        if experts and layer.stage >= config.int("first_k_dense_replace", default=0):
            _experts(layer)
        elif up_down is not None:
            layer.mlp("mlp", *up_down, config.int("intermediate_size"), bias=mlp_bias)
        elif packed:
            here, width = layer / "mlp", config.int("intermediate_size")
            here.column("gate_up_proj", b.hidden_size, 2 * width)
            here.row("down_proj", width, b.hidden_size)
        else:
            layer.gated_mlp(bias=mlp_bias)
        layer.norms(*norms, bias=norm_bias)
    if final:
        b.final_norm(final, bias=norm_bias)
    _rotary(b, _rotary_size(b))
    b.head()


def _experts(layer: Scope) -> None:
    config = layer.builder.config
    here = layer / "mlp.experts"
    count, width = expert_count(config), _number(config.get("moe_intermediate_size"), layer.stage)
    if not width:
        width = config.int("intermediate_size")
    gate = "gate.wg" if config.model_type == "hunyuan_v1_moe" else "experts.gate"
    linear = gate == "gate.wg"  # The other routers are no linear layers.
    (layer / "mlp").replicated(gate, layer.builder.hidden_size, count, quantizable=linear)
    shared = _number(config.get("num_shared_expert", config.get("n_shared_experts")), layer.stage)
    if shared:
        (here / "_shared_experts._layer").gated_mlp("shared_experts", width * shared)
    if config.model_type == "dots1":
        layer.buffer(f"{here.prefix}.gate.e_score_correction_bias", count, dtype="float32")
    (layer / "mlp").experts("experts", count, width, top_k=experts_per_token(config), fused_routing=False)


def _number(value: object, index: int) -> int:
    if isinstance(value, list):
        value = value[index] if index < len(value) else 0
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def llama_like(b: Builder) -> None:
    """CWM, SmolLM3, Nanbeige, Mellum: llama's layers; a bias where the file asks for one."""
    config = b.config
    bias = config.flag("attention_bias")
    out_bias = config.flag("attention_out_bias", bias)
    _decoder(b, bias=bias, out_bias=out_bias, mlp_bias=config.flag("mlp_bias"))


def glm(b: Builder) -> None:
    """Gate and up are one weight in the checkpoint, and stay one."""
    _decoder(b, bias=b.config.flag("attention_bias"), packed=True)


def olmo(b: Builder) -> None:
    """Norms without weights."""
    bias = b.config.flag("attention_bias")
    _decoder(b, bias=bias, out_bias=bias, norms=(), final="")


def olmo2(b: Builder) -> None:
    """Norms after the sublayers, Q and K normalized as a whole; Olmo 3 slides in three of four layers."""
    bias = b.config.flag("attention_bias")
    if b.config.model_type == "olmo3" and not b.config.items_of("layer_types"):
        count = b.config.layers()
        types = ["full_attention" if (i + 1) % 4 == 0 else "sliding_attention" for i in range(count)]
        b.config = b.config.replace(layer_types=types)
    _decoder(
        b,
        bias=bias,
        out_bias=bias,
        head_norms=("q_norm", "k_norm"),
        whole_norms=True,
        norms=("post_attention_layernorm", "post_feedforward_layernorm"),
    )


def phi(b: Builder) -> None:
    _decoder(
        b,
        bias=True,
        out_bias=True,
        out="dense",
        head_norms=("q_layernorm", "k_layernorm") if b.config.flag("qk_layernorm") else (),
        norms=("input_layernorm",),
        norm_bias=True,
        final="model.final_layernorm",
        up_down=("fc1", "fc2"),
        mlp_bias=True,
    )


def starcoder2(b: Builder) -> None:
    bias = b.config.flag("use_bias", True)
    _decoder(b, bias=bias, out_bias=bias, norm_bias=True, up_down=("c_fc", "c_proj"), mlp_bias=bias)


def arcee(b: Builder) -> None:
    bias = b.config.flag("attention_bias")
    _decoder(b, bias=bias, out_bias=bias, up_down=("up_proj", "down_proj"), mlp_bias=b.config.flag("mlp_bias"))


def hunyuan(b: Builder) -> None:
    bias = b.config.flag("attention_bias")
    _decoder(
        b,
        bias=bias,
        out_bias=bias,
        head_norms=("query_layernorm", "key_layernorm"),
        experts=expert_count(b.config) > 0,
    )


def dots1(b: Builder) -> None:
    # The file's window is not used: no layer is marked as sliding.
    b.config = b.config.replace(sliding_window=None)
    bias = b.config.flag("attention_bias")
    _decoder(b, bias=bias, out_bias=bias, head_norms=("q_norm", "k_norm"), experts=True)


def gpt_neox(b: Builder) -> None:
    """Attention and feed-forward in parallel, everything biased, the projection fused in the checkpoint."""
    config, hidden = b.config, b.hidden_size
    heads = config.int("num_attention_heads")
    bias = config.flag("attention_bias", True)
    b.scale_dtype = "model"
    b.embedding("model.embed_in")
    for layer in b.layers():
        here = layer / "attention"
        here.column("query_key_value", hidden, 3 * hidden, bias=bias)
        here.row("dense", hidden, hidden, bias=bias)
        here.cache("attn", heads=heads, kv_heads=heads, head_size=hidden // heads)
        layer.mlp("mlp", "dense_h_to_4h", "dense_4h_to_h", config.int("intermediate_size"))
        layer.norms("input_layernorm", "post_attention_layernorm", bias=True)
    b.final_norm("model.final_layer_norm", bias=True)
    _rotary(b, int(hidden // heads * config.number("rotary_pct", 0.25)))
    b.head(tied_to="model.embed_in")


def gpt_bigcode(b: Builder) -> None:
    """One KV head for all, learned positions; Transformers has no plan that divides the feed-forward."""
    config, hidden = b.config, b.hidden_size
    heads = config.int("num_attention_heads")
    size = hidden // heads
    positions = config.int("max_position_embeddings")
    kv_heads = 1 if config.flag("multi_query", True) else heads
    b.scale_dtype = "model"
    b.embedding("model.wte")
    b.scope("", EVERY).plain("model.wpe.weight", positions, hidden)
    for layer in b.layers("model.h"):
        here = layer / "attn"
        sizes: dict[str, Any] = {"heads": heads, "kv_heads": kv_heads, "head_size": size}
        here.qkv("c_attn", hidden, names=("c_attn",), bias=True, **sizes)
        here.row("c_proj", hidden, hidden, bias=True)
        here.cache("attn", heads=heads, kv_heads=kv_heads, head_size=size)
        feed = layer / "mlp"
        feed.replicated("c_fc", hidden, config.int("n_inner", default=4 * hidden), bias=True)
        feed.replicated("c_proj", config.int("n_inner", default=4 * hidden), hidden, bias=True)
        layer.norms("ln_1", "ln_2", bias=True)
    b.final_norm("model.ln_f", bias=True)
    b.scope("", EVERY).buffer("model.bias", positions, positions, dtype="bool")
    b.head(tied_to="model.wte")


def jais2(b: Builder) -> None:
    bias, feed = b.config.flag("attention_bias", True), b.config.flag("mlp_bias", True)
    _decoder(b, bias=bias, out_bias=bias, norm_bias=True, up_down=("up_proj", "down_proj"), mlp_bias=feed)


def vaultgemma(b: Builder) -> None:
    """Gemma 2 without the norms after attention and feed-forward."""
    bias = b.config.flag("attention_bias")
    _decoder(b, bias=bias, out_bias=bias, norms=("input_layernorm", "pre_feedforward_layernorm"))
    b.scope("", EVERY).buffer("embed_scale")


def flex_olmo(b: Builder) -> None:
    bias = b.config.flag("attention_bias")
    _decoder(
        b,
        bias=bias,
        out_bias=bias,
        head_norms=("q_norm", "k_norm"),
        whole_norms=True,
        norms=("post_attention_layernorm", "post_feedforward_layernorm"),
        experts=True,
    )


def mellum(b: Builder) -> None:
    """Qwen 3's experts, windows by layer type."""
    if not b.config.items_of("layer_types"):
        b.config = b.config.replace(sliding_window=None)
    _decoder(b, bias=b.config.flag("attention_bias"), head_norms=("q_norm", "k_norm"), experts=True)
