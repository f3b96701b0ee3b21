"""Decoders with a state instead of keys and values, in all layers or in most."""

from __future__ import annotations

from autofit_vllm.architectures.builder import Builder, Scope
from autofit_vllm.architectures.config import Config
from autofit_vllm.architectures.facts import expert_count, experts_per_token
from autofit_vllm.architectures.families.experts import (
    granite_shared,
    known_routing,
    mixture,
    qwen_mixture,
    router,
)
from autofit_vllm.architectures.families.latent import latent_attention
from autofit_vllm.modules.model import LAST, Part


def mamba1_mixer(
    here: Scope, inner: int, *, state: int, rank: int, kernel: int, bias: bool, conv_bias: bool, norms: bool
) -> None:
    """layers/mamba/mamba_mixer.py: never quantized."""
    hidden = here.builder.hidden_size
    here.plain("A", inner, state, axis=0, dtype="float32")
    here.plain("D", inner, axis=0)
    here.column("conv1d", kernel, inner, bias=conv_bias, quantizable=False)
    here.column("in_proj", hidden, (("in_proj", inner), ("in_proj", inner)), bias=bias, quantizable=False)
    here.row("x_proj", inner, rank + 2 * state, quantizable=False)
    here.column("dt_proj", rank, inner, bias=True, quantizable=False)
    here.row("out_proj", inner, hidden, bias=bias, quantizable=False)
    if norms:
        here.norm("dt_layernorm", rank)
        here.norm("b_layernorm", state)
        here.norm("c_layernorm", state)
    here.state(kind="mamba1", conv_kernel=kernel, intermediate_size=inner, state_size=state)


def mamba2_mixer(
    here: Scope,
    inner: int,
    *,
    state: int,
    groups: int,
    heads: int,
    head_size: int,
    kernel: int,
    bias: bool = False,
    conv_bias: bool = True,
    norm: bool = True,
    cache: str = "",
) -> None:
    """layers/mamba/mamba_mixer2.py: heads divide over ranks, and groups unless there is only one."""
    hidden = here.builder.hidden_size
    shared = groups * state
    conv = (("conv1d", inner, 0), ("conv1d", shared, state), ("conv1d", shared, state))
    fused = (
        ("in_proj", inner, 0),
        ("in_proj", inner, 0),
        ("in_proj", shared, state),
        ("in_proj", shared, state),
        ("in_proj", heads, 0),
    )
    here.plain("A", heads, axis=0, dtype="float32")
    here.plain("D", heads, axis=0)
    here.plain("dt_bias", heads, axis=0)
    here.column("conv1d", kernel, conv, bias=conv_bias, quantizable=False)
    here.column("in_proj", hidden, fused, bias=bias)
    here.row("out_proj", inner, hidden, bias=bias)
    if norm:
        here.plain("norm.weight", inner, axis=0)
    here.state(
        cache,
        kind="mamba2",
        conv_kernel=kernel,
        intermediate_size=inner,
        groups=groups,
        heads=heads,
        head_size=head_size,
        state_size=state,
    )


def mamba(b: Builder) -> None:
    """models/mamba.py: Mamba and Falcon Mamba."""
    config = b.config
    inner = config.int("intermediate_size", default=b.hidden_size * config.int("expand", default=2))
    b.embedding("backbone.embeddings", everywhere=True)
    for layer in b.layers("backbone.layers"):
        mamba1_mixer(
            layer / "mixer",
            inner,
            state=config.int("state_size"),
            rank=_time_step_rank(config, b.hidden_size),
            kernel=config.int("conv_kernel"),
            bias=config.flag("use_bias"),
            conv_bias=config.flag("use_conv_bias", True),
            norms=False,
        )
        layer.norm("norm")
    b.final_norm("backbone.norm_f", everywhere=True)
    b.head(tied_to="backbone.embeddings", everywhere=True, quantizable=False)


def _time_step_rank(config: Config, hidden: int, *keys: str) -> int:
    for key in keys or ("time_step_rank",):
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return config.int(key)
    return -(-hidden // 16)


def mamba2(b: Builder) -> None:
    """models/mamba2.py."""
    config = b.config
    inner = config.int("intermediate_size", default=b.hidden_size * config.int("expand", default=2))
    b.embedding("backbone.embeddings", everywhere=True)
    for layer in b.layers("backbone.layers"):
        mamba2_mixer(
            layer / "mixer",
            inner,
            state=config.int("state_size"),
            groups=config.int("n_groups"),
            heads=config.int("num_heads"),
            head_size=config.int("head_dim"),
            kernel=config.int("conv_kernel"),
            bias=config.flag("use_bias"),
            conv_bias=config.flag("use_conv_bias", True),
        )
        layer.norm("norm")
    b.final_norm("backbone.norm_f", everywhere=True)
    b.head(tied_to="backbone.embeddings", everywhere=True, quantizable=False)


def jamba(b: Builder) -> None:
    """models/jamba.py: one layer in eight attends, every other one has experts."""
    config = b.config
    inner = b.hidden_size * config.int("mamba_expand", default=2)
    width = config.int("intermediate_size")
    b.quantized_caches = False
    b.embedding(everywhere=True)
    for layer in b.layers():
        period, offset = config.int("attn_layer_period", default=8), config.int("attn_layer_offset", default=4)
        if layer.stage % period == offset:
            layer.attention("", rope=False)
        else:
            mamba1_mixer(
                layer / "mamba",
                inner,
                state=config.int("mamba_d_state"),
                rank=_time_step_rank(config, b.hidden_size, "mamba_dt_rank"),
                kernel=config.int("mamba_d_conv"),
                bias=config.flag("mamba_proj_bias"),
                conv_bias=config.flag("mamba_conv_bias", True),
                norms=True,
            )
        period, offset = config.int("expert_layer_period", default=2), config.int("expert_layer_offset", default=1)
        count = expert_count(config)
        here = layer / "feed_forward"
        if count > 1 and layer.stage % period == offset:
            router(here, count, name="router")
            here.experts("experts", count, width, top_k=experts_per_token(config), fused_routing=False)
        else:
            layer.gated_mlp("feed_forward")
        layer.norms("input_layernorm", "pre_ff_layernorm")
    b.final_norm("model.final_layernorm", everywhere=True)
    b.head(everywhere=True, quantizable=False)


def falcon_h1(b: Builder) -> None:
    """models/falcon_h1.py: attention and Mamba 2 side by side in every layer."""
    config = b.config
    inner = config.int("mamba_d_ssm", default=b.hidden_size * config.int("mamba_expand", default=2))
    state, groups = config.int("mamba_d_state"), config.int("mamba_n_groups")
    heads = config.int("mamba_n_heads")
    b.embedding()
    for layer in b.layers():
        layer.attention("self_attn", head_size=config.maybe_int("head_dim"), cache="")
        here = layer / "mamba"
        mamba2_mixer(
            here / "mamba",
            inner,
            state=state,
            groups=groups,
            heads=heads,
            head_size=config.int("mamba_d_head"),
            kernel=config.int("mamba_d_conv"),
            bias=config.flag("mamba_proj_bias"),
            conv_bias=config.flag("mamba_conv_bias", True),
            norm=config.flag("mamba_rms_norm"),
        )
        scaled = (
            Part("z", inner),
            Part("x", inner),
            Part("B", groups * state, state),
            Part("C", groups * state, state),
            Part("dt", heads),
        )
        here.buffer(f"{here.prefix}.mup_vector", 1, sum(part.size for part in scaled), parts=scaled)
        layer.gated_mlp("feed_forward")
        layer.norms("input_layernorm", "pre_ff_layernorm")
    b.final_norm("model.final_layernorm")
    b.head(quantizable=False)


def nemotron_h(b: Builder) -> None:
    """models/nemotron_h.py: each layer is one thing: Mamba 2, attention, a feed-forward or experts."""
    config = b.config
    kinds = _nemotron_layers(config)
    head_size = config.maybe_int("head_dim", "attention_head_dim")
    heads, size = config.int("mamba_num_heads"), config.int("mamba_head_dim")
    b.embedding(everywhere=True)
    for layer in b.layers(count=len(kinds)):
        here = layer / "mixer"
        kind = kinds[layer.stage]
        if kind == "mamba":
            mamba2_mixer(
                here,
                heads * size,
                state=config.int("ssm_state_size"),
                groups=config.int("n_groups"),
                heads=heads,
                head_size=size,
                kernel=config.int("conv_kernel"),
                bias=config.flag("use_bias"),
                conv_bias=config.flag("use_conv_bias", True),
            )
        elif kind == "attention":
            layer.attention("mixer", head_size=head_size, rope=False, bias=config.flag("attention_bias"))
        elif kind == "moe":
            _nemotron_experts(here)
        else:
            feed = config.get("intermediate_size")
            width = feed[sum(k == "mlp" for k in kinds[: layer.stage])] if isinstance(feed, list) else feed
            bias = config.flag("mlp_bias")
            layer.mlp("mixer", "up_proj", "down_proj", int(width or 0), bias=bias)
        layer.norm("norm")
    b.final_norm("model.norm_f", everywhere=True)
    b.head(everywhere=True)


def _nemotron_layers(config: Config) -> list[str]:
    letters = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
    pattern = config.text("hybrid_override_pattern")
    if pattern:
        return [letters[letter] for letter in pattern[:4096] if letter in letters]
    words = {"linear_attention": "mamba", "full_attention": "attention"}
    types = config.items_of("layers_block_type") or config.items_of("layer_types")
    return [words.get(str(kind), str(kind)) for kind in types[:4096]]


def _nemotron_experts(here: Scope) -> None:
    """Up and down without a gate, sometimes in a narrower space than the model's."""
    config = here.builder.config
    count, width = expert_count(config), config.int("moe_intermediate_size")
    hidden = here.builder.hidden_size
    latent = config.maybe_int("moe_latent_size")
    router(here, count, bias="gate.e_score_correction_bias", fp32_without_kernel=True)
    shared = config.int("n_shared_experts", default=0)
    if shared:
        size = config.int("moe_shared_expert_intermediate_size", default=width) * shared
        here.mlp("shared_experts", "up_proj", "down_proj", size, bias=config.flag("mlp_bias"), spreads_tokens=True)
    if latent:
        here.replicated("fc1_latent_proj", hidden, latent, bias=config.flag("mlp_bias"))
        here.replicated("fc2_latent_proj", latent, hidden, bias=config.flag("mlp_bias"))
    here.experts(
        "experts",
        count,
        width,
        top_k=experts_per_token(config),
        hidden_size=latent or hidden,
        gated=False,
        fused_routing=known_routing(config, scoring="sigmoid", corrected=True),
        names=("up_proj", "up_proj", "down_proj"),
    )


def granite_hybrid(b: Builder) -> None:
    """models/granitemoehybrid.py: Granite 4."""
    config = b.config
    types = config.items_of("layer_types") or config.items_of("layers_block_type")
    heads, size = config.int("mamba_n_heads"), config.get("mamba_d_head")
    inner = b.hidden_size * config.int("mamba_expand", default=2)
    rotates = config.text("position_embedding_type") == "rope"
    bias = config.flag("attention_bias")
    count, shared = expert_count(config), config.int("shared_intermediate_size", default=0)
    b.embedding(everywhere=True)
    for layer in b.layers():
        if types[layer.stage] in ("attention", "full_attention"):
            layer.attention(bias=bias, out_bias=bias, rope=rotates)
        else:
            mamba2_mixer(
                layer / "mamba",
                inner,
                state=config.int("mamba_d_state"),
                groups=config.int("mamba_n_groups"),
                heads=heads,
                head_size=size if isinstance(size, int) else inner // heads,
                kernel=config.int("mamba_d_conv"),
                bias=config.flag("mamba_proj_bias"),
                conv_bias=config.flag("mamba_conv_bias", True),
            )
        if count:
            mixture(
                layer,
                "block_sparse_moe",
                width=config.int("intermediate_size"),
                names=("w1", "w3", "w2"),
            )
        if shared:
            granite_shared(layer, shared)
        layer.norms("input_layernorm", "post_attention_layernorm")
    b.finish(everywhere=True)


def lfm2(b: Builder) -> None:
    """models/lfm2.py: short convolutions, some layers attend."""
    config = b.config
    width = config.int("block_ff_dim", "intermediate_size")
    if config.flag("block_auto_adjust_ff_dim"):
        width = int(2 * width / 3)
        multiplier = config.get("block_ffn_dim_multiplier")
        if isinstance(multiplier, int | float):
            width = int(multiplier * width)
        multiple = config.int("block_multiple_of", default=256)
        width = multiple * -(-width // multiple)
    b.quantized_caches = False
    b.embedding(everywhere=True)
    for layer in b.layers():
        _lfm2_mixer(layer)
        layer.gated_mlp("feed_forward", width, fused="w13", names=("w1", "w3"), down="w2")
        layer.norms("operator_norm", "ffn_norm")
    b.final_norm("model.embedding_norm")
    b.head()


def lfm2_moe(b: Builder) -> None:
    """models/lfm2_moe.py."""
    config = b.config
    b.quantized_caches = False
    b.embedding(everywhere=True)
    for layer in b.layers():
        _lfm2_mixer(layer)
        if layer.stage < config.int("num_dense_layers", default=0):
            layer.gated_mlp("feed_forward", fused="w13", names=("w1", "w3"), down="w2")
        else:
            here = layer / "feed_forward"
            count = expert_count(config)
            bias = "gate.e_score_correction_bias" if config.flag("use_expert_bias") else None
            router(here, count, bias=bias, quantizable=True)
            width = config.int("moe_intermediate_size")
            here.experts(
                "experts",
                count,
                width,
                top_k=experts_per_token(config),
                names=("w1", "w3", "w2"),
                fused_routing=known_routing(config, scoring="sigmoid", corrected=bias is not None),
            )
        layer.norms("operator_norm", "ffn_norm")
    b.final_norm("model.embedding_norm")
    b.head()


def _lfm2_mixer(layer: Scope) -> None:
    b = layer.builder
    config = b.config
    if config.items_of("layer_types")[layer.stage] == "full_attention":
        layer.attention(out="out_proj", head_norms=("q_layernorm", "k_layernorm"))
        return
    here = layer / "short_conv"
    width = config.int("conv_dim", default=b.hidden_size)
    kernel, bias = config.int("conv_L_cache"), config.flag("conv_bias")
    here.column("conv", kernel, width, bias=bias, quantizable=False)
    parts = (("in_proj", width),) * 3
    here.column("in_proj", width, parts, bias=bias)
    here.row("out_proj", width, b.hidden_size, bias=bias)
    here.state(kind="short_conv", conv_kernel=kernel, intermediate_size=width)


def delta_net(layer: Scope, *, log_dtype: str = "float32") -> None:
    """A gated delta net (layers/mamba/gdn/qwen_gdn_linear_attn.py)."""
    b = layer.builder
    config, hidden = b.config, b.hidden_size
    key_heads, value_heads = config.int("linear_num_key_heads"), config.int("linear_num_value_heads")
    key_size, value_size = config.int("linear_key_head_dim"), config.int("linear_value_head_dim")
    kernel = config.int("linear_conv_kernel_dim")
    keys, values = key_heads * key_size, value_heads * value_size
    here = layer / "linear_attn"
    here.plain("dt_bias", value_heads, axis=0)
    here.plain("A_log", value_heads, axis=0, dtype=log_dtype)
    here.column("conv1d", kernel, (("conv1d", keys), ("conv1d", keys), ("conv1d", values)), quantizable=False)
    if config.model_type == "qwen3_next":  # One weight, its rows interleaved by key head.
        here.column("in_proj_qkvz", hidden, 2 * keys + 2 * values)
        here.column("in_proj_ba", hidden, 2 * value_heads)
    else:
        names = ("in_proj_qkv", "in_proj_qkv", "in_proj_qkv", "in_proj_z")
        here.column("in_proj_qkvz", hidden, tuple(zip(names, (keys, keys, values, values), strict=True)))
        here.column(
            "in_proj_ba",
            hidden,
            (("in_proj_b", value_heads), ("in_proj_a", value_heads)),
            undivided_with=frozenset({"auto_gptq", "auto_awq", "inc"}),
        )
    here.norm("norm", value_size)
    here.row("out_proj", values, hidden)
    here.state(
        kind="gdn",
        conv_kernel=kernel,
        heads=value_heads,
        head_size=value_size,
        key_heads=key_heads,
        key_head_size=key_size,
    )


def _linear_layers(config: Config) -> list[bool]:
    """Which layers have a state; the others attend."""
    types = config.items_of("layer_types")
    if types:
        return [kind == "linear_attention" for kind in types]
    interval = config.int("full_attention_interval", default=4)
    return [bool((index + 1) % interval) for index in range(config.layers())]


def qwen3_next(b: Builder) -> None:
    """models/qwen3_next.py and qwen3_5.py: three delta nets to one attention with an output gate."""
    config = b.config
    linear = _linear_layers(config)
    heads, size = config.int("num_attention_heads"), b.head_size
    gated = config.flag("attn_output_gate", True)
    sparse_step = config.int("decoder_sparse_step", default=1)
    dense = config.items_of("mlp_only_layers")

    def attend(layer: Scope) -> None:
        here = layer / "self_attn"
        here.qkv(
            "qkv_proj",
            b.hidden_size,
            heads=heads * (2 if gated else 1),
            kv_heads=b.kv_heads,
            head_size=size,
            bias=config.flag("attention_bias") or config.flag("qkv_bias"),
        )
        here.row("o_proj", heads * size, b.hidden_size)
        here.norm("q_norm", size)
        here.norm("k_norm", size)
        here.rope(size)
        here.cache("attn", heads=heads, kv_heads=b.kv_heads, head_size=size)

    def feed(layer: Scope) -> None:
        count, index = expert_count(config), layer.stage
        if count and sparse_step and index not in dense and (index + 1) % sparse_step == 0:
            qwen_mixture(layer, spreads_tokens=True)
        else:
            layer.gated_mlp()
        layer.norms("input_layernorm", "post_attention_layernorm")

    def predict(layer: Scope) -> None:
        attend(layer)
        feed(layer)

    b.embedding(everywhere=True)
    for layer in b.layers():
        if linear[layer.stage]:
            delta_net(layer)
        else:
            attend(layer)
        feed(layer)
    b.final_norm()
    first = config.model_type == "qwen3_next"
    b.head(everywhere=first, quantizable=not first)
    b.predict(
        config.int("num_nextn_predict_layers", default=1) if first else config.maybe_int("mtp_num_hidden_layers"),
        predict,
        "norm",
        "pre_fc_norm_hidden",
        "pre_fc_norm_embedding",
        prefix="mtp.layers",
        projection="fc",
        divided=True,
        first=0,
    )


def olmo_hybrid(b: Builder) -> None:
    """models/olmo_hybrid.py."""
    config, hidden = b.config, b.hidden_size
    linear = _linear_layers(config)
    heads, kv_heads, size = config.int("num_attention_heads"), b.kv_heads, b.head_size
    key_heads, value_heads = config.int("linear_num_key_heads"), config.int("linear_num_value_heads")
    key_size, value_size = config.int("linear_key_head_dim"), config.int("linear_value_head_dim")
    kernel = config.int("linear_conv_kernel_dim")
    keys, values = key_heads * key_size, value_heads * value_size
    b.embedding(everywhere=True)
    for layer in b.layers():
        if linear[layer.stage]:
            here = layer / "linear_attn"
            here.plain("dt_bias", value_heads, axis=0)
            here.plain("A_log", value_heads, axis=0)
            fused = (("q_proj", keys), ("k_proj", keys), ("v_proj", values), ("g_proj", values))
            here.column("in_proj_qkvg", hidden, fused)
            here.column("b_proj", hidden, value_heads)
            here.column("a_proj", hidden, value_heads)
            conv = (("q_conv1d", keys), ("k_conv1d", keys), ("v_conv1d", values))
            here.column("conv1d", kernel, conv, quantizable=False)
            here.norm("o_norm", value_size)
            here.row("o_proj", values, hidden)
            here.state(
                kind="gdn",
                conv_kernel=kernel,
                heads=value_heads,
                head_size=value_size,
                key_heads=key_heads,
                key_head_size=key_size,
            )
            layer.norms("input_layernorm", "post_attention_layernorm")
        else:
            layer.attention()
            layer.plain("self_attn.q_norm.weight", heads * size)
            layer.plain("self_attn.k_norm.weight", kv_heads * size)
            layer.norms("post_attention_layernorm", "post_feedforward_layernorm")
        layer.gated_mlp()
    b.finish(everywhere=True)


def kimi_linear(b: Builder) -> None:
    """models/kimi_k3: Kimi delta attention, every fourth layer latent attention without positions. In Kimi K3 experts
    work on a smaller vector, attention is gated, and layers read the outputs of earlier blocks."""
    config = b.config
    linear = config.section("linear_attn_config")
    smaller = config.maybe_int("routed_expert_hidden_size")
    rereads = config.get("attn_res_block_size") is not None
    recurrent = set(linear.items_of("kda_layers"))  # Counted from one.
    count, width = expert_count(config), config.int("moe_intermediate_size")
    step = config.int("moe_layer_freq", default=1)
    b.embedding(tied=False)
    for layer in b.layers():
        if layer.stage + 1 in recurrent:
            _kimi_delta(layer, linear)
        else:
            latent_attention(layer, cache="", rope=False, gated=config.flag("mla_use_output_gate"))
            layer.buffer(f"{layer.prefix}.self_attn._one_scale", 1, dtype="float32")
        sparse = layer.stage >= config.int("first_k_dense_replace", default=0) and layer.stage % step == 0
        if count and sparse:
            here = layer / "block_sparse_moe"
            router(here, count, bias="gate.e_score_correction_bias")
            shared = width * config.int("num_shared_experts", default=0)
            if shared:
                here.gated_mlp("shared_experts", shared, spreads_tokens=True)
            if smaller:
                here.replicated("routed_expert_down_proj", b.hidden_size, smaller)
                here.replicated("routed_expert_up_proj", smaller, b.hidden_size)
                if config.flag("latent_moe_use_norm"):
                    here.norm("routed_expert_norm", smaller)
            here.experts(
                "experts",
                count,
                width,
                top_k=experts_per_token(config),
                hidden_size=smaller,
                names=("w1", "w3", "w2"),
                least_width=config.int("min_moe_intermediate_per_partition", default=256),
                fused_routing=config.text("moe_router_activation_func", "sigmoid") == "sigmoid"
                and config.flag("moe_renormalize", True),
            )
        else:
            layer.gated_mlp(spreads_tokens=True)
        layer.norms("input_layernorm", "post_attention_layernorm")
        for name in ("self_attention_res", "mlp_res") if rereads else ():
            _reading(layer, name)
    b.final_norm()
    if rereads:
        _reading(b.scope("model", LAST), "output_attn_res")
    b.head(tied=False)


def _reading(here: Scope, name: str) -> None:
    """What weighs the outputs of earlier blocks."""
    here.norm(f"{name}_norm")
    here.plain(f"{name}_proj.weight", 1, here.builder.hidden_size)


def _kimi_delta(layer: Scope, linear: Config) -> None:
    """layers/mamba/gdn/kimi_gdn_linear_attn.py, and nvidia/kda.py where the gate has its full rank."""
    hidden = layer.builder.hidden_size
    heads, size = linear.int("num_heads"), linear.int("head_dim")
    kernel, inner = linear.int("short_conv_kernel_size"), heads * size
    full = linear.flag("use_full_rank_gate")
    here = layer / "self_attn"
    narrow = (("b_proj", heads), ("f_a_proj", size, 0, 1))
    wide = [(name, inner) for name in ("q_proj", "k_proj", "v_proj", *(("g_proj",) if full else ()))]
    here.column("in_proj_qkvgfab", hidden, (*wide, *narrow), multiple=16 if full else 1)
    here.column("f_b_proj", size, inner)
    here.plain("dt_bias", inner, axis=0, dtype="float32")
    conv = (("q_conv1d", inner), ("k_conv1d", inner), ("v_conv1d", inner))
    here.column("conv1d", kernel, conv, quantizable=False, dtype="float32")
    here.plain("A_log", heads, axis=0, dtype="float32")
    if not full:
        here.replicated("g_a_proj", hidden, size)
        here.column("g_b_proj", size, inner)
    here.norm("o_norm", size)
    here.row("o_proj", inner, hidden)
    bounded = full and linear.number("gate_lower_bound", 0.0) < 0
    here.state(kind="kda", conv_kernel=kernel, heads=heads, head_size=size, bounded=bounded)


def zamba2(b: Builder) -> None:
    """models/zamba2.py: Mamba 2 throughout, a few shared attention blocks with adapters used over and over."""
    config, hidden = b.config, b.hidden_size
    kinds = config.items_of("layers_block_type")
    hybrid = [index for index, kind in enumerate(kinds) if kind == "hybrid"]
    blocks = config.int("num_mem_blocks", default=1)
    heads = config.int("num_attention_heads")
    size = config.int("attention_head_dim")
    wide = config.int("attention_hidden_size", default=2 * hidden)
    rank, feed = config.int("adapter_rank"), config.int("intermediate_size")
    b.quantized_caches = False
    b.embedding(everywhere=True)
    for order, index in enumerate(hybrid):
        here = b.scope(f"model.layers.{index}.shared_transformer", index)
        attention = here / "self_attn"
        if order < blocks:
            attention.qkv("qkv_proj", wide, heads=heads, kv_heads=heads, head_size=size)
            attention.row("o_proj", heads * size, hidden)
            if config.flag("use_mem_rope"):
                attention.rope(size)
            here.gated_mlp("feed_forward", feed, names=("gate_up_proj",))
            for adapter in range(order, len(hybrid), blocks):
                low = here / f"feed_forward.gate_up_proj_adapter_list.{adapter}"
                low.column("A", hidden, rank)
                low.column("B", rank, (("B", feed), ("B", feed)))
            here.norm("input_layernorm", 2 * hidden)
            here.norm("pre_ff_layernorm")
        attention.cache(f"dpa_list.{order}", heads=heads, kv_heads=heads, head_size=size)
        b.scope(f"model.layers.{index}", index).replicated("linear", hidden, hidden)
    for layer in b.layers():
        here = layer / "mamba_decoder" if layer.stage in hybrid else layer
        inner = hidden * config.int("mamba_expand", default=2)
        mamba_heads = config.int("n_mamba_heads")
        mamba2_mixer(
            here / "mamba",
            inner,
            state=config.int("mamba_d_state"),
            groups=config.int("mamba_ngroups"),
            heads=mamba_heads,
            head_size=inner // mamba_heads,
            kernel=config.int("mamba_d_conv"),
            bias=config.flag("add_bias_linear"),
        )
        here.norm("input_layernorm")
    b.final_norm("model.final_layernorm", everywhere=True)
    b.head(everywhere=True, quantizable=False)


def bailing_linear(b: Builder) -> None:
    """models/bailing_moe_linear.py: Ling 2.5, latent attention in the last layer of each group, linear in the rest."""
    config = b.config
    group, width = config.int("layer_group_size", default=1), config.int("moe_intermediate_size")
    shared = config.int("moe_shared_expert_intermediate_size", default=width)
    b.embedding("model.word_embeddings")
    for layer in b.layers():
        if group and (layer.stage + 1) % group:
            _bailing_linear_attention(layer / "self_attn")
        else:
            latent_attention(layer)
        if expert_count(config) > 1 and layer.stage >= config.int("first_k_dense_replace", default=0):
            mixture(
                layer,
                width=width,
                gate_dtype="float32" if config.text("router_dtype", "fp32") == "fp32" else None,
                correction="gate.expert_bias" if config.flag("moe_router_enable_expert_bias") else None,
                shared=shared * config.int("num_shared_experts", default=0),
                fused_routing=known_routing(
                    config, scoring=config.text("score_function", "softmax"), corrected=True, default=True
                ),
            )
        else:
            layer.gated_mlp()
        layer.norms("input_layernorm", "post_attention_layernorm")
    b.final_norm()
    b.head(tied=False)


def _bailing_linear_attention(here: Scope) -> None:
    """layers/mamba/linear/bailing_linear_attn.py."""
    config, hidden = here.builder.config, here.builder.hidden_size
    heads, size = config.int("num_attention_heads"), here.builder.head_size
    inner = heads * size
    parts = ("query_key_value",) * 3
    bias = config.flag("use_bias") or config.flag("use_qkv_bias")
    here.column("query_key_value", hidden, [(name, inner) for name in parts], bias=bias)
    if config.flag("use_qk_norm"):
        here.norm("query_layernorm", size)
        here.norm("key_layernorm", size)
    here.column("g_proj", hidden, inner)
    here.row("dense", inner, hidden, bias=config.flag("use_bias"))
    here.plain("g_norm.weight", inner, axis=0)
    here.rope(size)
    here.state(kind="linear_attention", heads=heads, head_size=size)
