"""Models with several residual streams that are mixed before and after each sublayer: DeepSeek V4, each layer of which
sees a window of tokens and, beside it, others compressed by 4 or 128; and Hunyuan 4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autofit.errors import EngineRefusalError

from autofit_vllm.architectures.builder import Builder, Scope
from autofit_vllm.architectures.config import Config
from autofit_vllm.architectures.facts import expert_count, experts_per_token
from autofit_vllm.architectures.families.experts import known_routing, mixture, router
from autofit_vllm.architectures.families.latent import latent_attention
from autofit_vllm.architectures.rope import rope_parameters
from autofit_vllm.modules.model import EVERY, LAST

_RATES = {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128}
_INDEXED = 4  #: layers compressed by this pick what they attend to
_STATE_BLOCK = {
    4: 4,
    128: 8,
}  #: tokens of a block of a compressor's state (deepseek_v4/compressor.py:CompressorStateCache)
_WINDOW_BLOCK = 64
_ROTARY = 64
_HASHED_LAYERS = 3
_HEADS = 64  #: that FlashMLA's kernel fills a rank's heads up to


def deepseek_v4(b: Builder) -> None:
    """models/deepseek_v4."""
    config = b.config
    rates = _rates(config)
    b.quantization = {"quant_method": "deepseek_v4_fp8", "expert_dtype": config.text("expert_dtype", "fp4")}

    def predictor(layer: Scope) -> None:
        layer.replicated("e_proj", b.hidden_size, b.hidden_size)
        layer.replicated("h_proj", b.hidden_size, b.hidden_size)
        streams(layer, "hc_head", config.int("hc_mult"))
        _block(layer / "mtp_block", 1)

    b.embedding(tied=False)
    for layer in b.layers():
        _block(layer, rates[layer.stage])
    b.final_norm()
    b.head(tied=False)
    streams(b.scope("model", EVERY), "hc_head", config.int("hc_mult"), scales=1)
    count = config.maybe_int("num_nextn_predict_layers")
    b.predict(count, predictor, "enorm", "hnorm", "norm", projection=None)


def _rates(config: Config) -> list[int]:
    """How many tokens a layer's rows stand for; 1: it sees nothing but its window
    (transformers: DeepseekV4Config.__post_init__)."""
    count = config.layers()
    given = {kind: rate for kind, rate in config.table("compress_rates").items() if isinstance(rate, int)}
    rates: Mapping[str, int] = {
        **_RATES,
        **given,
        **{
            kind: config.int(key)
            for kind, key in zip(_RATES, ("compress_rate_csa", "compress_rate_hca"), strict=True)
            if key in config
        },
    }
    kinds = [str(kind) for kind in config.items_of("layer_types")]
    if not kinds and config.items_of("compress_ratios"):
        found = config.items_of("compress_ratios")[:count]
    elif not kinds:
        heavy, indexed = rates["heavily_compressed_attention"], rates["compressed_sparse_attention"]
        found = [heavy] * min(count, 2) + [indexed if index % 2 else heavy for index in range(max(0, count - 2))]
    else:
        found = [rates.get(kind, 1) for kind in kinds]
    if any(rate not in (0, 1, *_STATE_BLOCK) for rate in found):
        raise EngineRefusalError(f"Invalid compress ratio: {min(set(found) - {0, 1, *_STATE_BLOCK})}")
    return [max(1, rate) for rate in found]


def streams(here: Scope, name: str, count: int, *, scales: int = 1, rows: int | None = None) -> None:
    """The weights that mix the residual streams into `rows` numbers."""
    rows = count if rows is None else rows
    here.plain(f"{name}_fn", rows, count * here.builder.hidden_size, dtype="float32")
    here.plain(f"{name}_base", rows, dtype="float32")
    here.plain(f"{name}_scale", scales, dtype="float32")


def _mixers(layer: Scope) -> None:
    count = layer.builder.config.int("hc_mult")
    for name in ("hc_attn", "hc_ffn"):
        streams(layer, name, count, scales=3, rows=(2 + count) * count)


def _block(layer: Scope, rate: int) -> None:
    _mixers(layer)
    _attention(layer / "attn", rate)
    _experts(layer / "ffn", layer.stage)
    layer.norms("attn_norm", "ffn_norm")


def rotary_size(config: Config) -> int:
    """What of a head is rotated: the class knows it as a share."""
    given = config.maybe_int("qk_rope_head_dim")
    if given is not None:
        return given
    share = config.number("partial_rotary_factor", 0.0)
    return int(config.int("head_dim") * share) if share else _ROTARY


def _attention(here: Scope, rate: int) -> None:
    """(deepseek_v4/attention.py:DeepseekV4Attention) one KV head that is key and value, projections by way of small
    vectors."""
    config, hidden = here.builder.config, here.builder.hidden_size
    heads, size = config.int("num_attention_heads"), config.int("head_dim")
    query, groups, out = config.int("q_lora_rank"), config.int("o_groups"), config.int("o_lora_rank")
    rotary = rotary_size(config)
    here.plain("attn_sink", heads, axis=0, multiple=_HEADS, dtype="float32")
    here.replicated("fused_wqa_wkv", hidden, (("wq_a", query), ("wkv", size)))
    here.norm("q_norm", query)
    here.column("wq_b", query, heads * size)
    here.norm("kv_norm", size)
    here.column("wo_a", heads * size // groups, groups * out)
    here.row("wo_b", groups * out, hidden)
    here.buffer(f"rope:{rate > 1}", _rows(config, rate > 1), rotary, dtype="float32")
    row = size + rotary + 8  # What is not rotated in fp8, what is in half precision, and scales.
    here.packed_cache(
        "swa_cache",
        "DEEPSEEK_SPARSE_SWA",
        row,
        plain_elements=size,
        aligned=True,
        block_tokens=_WINDOW_BLOCK,
        window_tokens=config.int("sliding_window"),
    )
    if rate == _INDEXED:
        indexer, index = here / "indexer", config.int("index_head_dim")
        index_heads = config.int("index_n_heads")
        indexer.replicated("wq_b", query, index_heads * index)
        indexer.replicated("weights_proj", hidden, index_heads, quantizable=False)
        _compressor(indexer / "compressor", rate, index)
        bytes_per_row = index + index // 128 * 4
        indexer.packed_cache("k_cache", "DEEPSEEK_V4_INDEXER", bytes_per_row, tokens_per_row=rate, aligned=True)
    if rate > 1:
        _compressor(here / "compressor", rate, size)
        here.packed_cache("", "FLASHMLA_SPARSE_DSV4", row, plain_elements=size, tokens_per_row=rate, aligned=True)


def _rows(config: Config, compressed: bool) -> int:
    """Positions of a rotary table (deepseek_v4/common/rope.py)."""
    positions = config.int("max_position_embeddings")
    parameters = rope_parameters(config)
    nested = parameters.get("compress")
    parameters = nested if isinstance(nested, Mapping) else parameters
    factor, original = parameters.get("factor"), parameters.get("original_max_position_embeddings")
    if compressed and isinstance(factor, int | float) and isinstance(original, int):
        return int(original * factor)
    return positions


def _compressor(here: Scope, rate: int, size: int) -> None:
    """Keys and scores of tokens become one row; those of an unfinished group are kept in fp32
    (deepseek_v4/compressor.py:DeepseekCompressor)."""
    width = (2 if rate == _INDEXED else 1) * size  # These groups overlap.
    here.plain("ape", rate, width, dtype="float32")
    parts = (("wkv", width), ("wgate", width))
    here.replicated("fused_wkv_wgate", here.builder.hidden_size, parts, quantizable=False)
    here.norm("norm", size)
    here.packed_cache(
        "state_cache",
        "CompressorBackend",
        2 * width * 4,
        aligned=True,
        block_tokens=_STATE_BLOCK[rate],
        window_tokens=width // size * rate,
    )


def _experts(here: Scope, index: int) -> None:
    """The first layers look up a token's experts by its number (deepseek_v4/nvidia/model.py:DeepseekV4MoE)."""
    config = here.builder.config
    count, top_k = expert_count(config), experts_per_token(config)
    kinds = config.items_of("mlp_layer_types")
    hashed = index < (kinds.count("hash_moe") if kinds else config.int("num_hash_layers", default=_HASHED_LAYERS))
    corrected = not hashed and config.text("topk_method") == "noaux_tc"
    router(here, count, bias="gate.e_score_correction_bias" if corrected else None)
    if hashed:
        here.plain("gate.tid2eid", config.int("vocab_size"), top_k, dtype="int32")
    width = config.int("moe_intermediate_size")
    shared = config.maybe_int("n_shared_experts")
    if shared:
        here.gated_mlp("shared_experts", width * shared, names=("w1", "w3"), down="down_proj", spreads_tokens=True)
    here.experts("experts", count, width, top_k=top_k, names=("w1", "w3", "w2"), fused_routing=False)


_SPARSE_KINDS = ("deepseek_sparse_attention", "indexed_attention", "sparse_attention", "sparse")


def hy_v4(b: Builder) -> None:
    """models/hy_v4: gated latent attention with sinks, in most layers over what an indexer picks."""
    config, hidden = b.config, b.hidden_size
    heads, value = config.int("num_attention_heads"), config.int("v_head_dim")
    mixed, count = config.flag("enable_ihc"), config.int("hc_mult", default=4)
    attended, indexers = config.items_of("layer_types"), config.items_of("indexer_types")
    feeds, width = config.items_of("mlp_layer_types"), config.int("moe_intermediate_size")
    b.embedding()
    for layer in b.layers():
        index = layer.stage
        sparse = index < len(attended) and attended[index] in _SPARSE_KINDS
        indexed = indexers[index] == "full" if index < len(indexers) else index == 0 or index % 4 == 1
        latent_attention(layer, sparse=sparse, indexed=indexed, own_rope=False)
        here = layer / "self_attn"
        if config.flag("gated_mla"):
            per_head = 1 if config.text("gating_type") == "headwise" else value
            here.column("linear_gate", hidden, heads * per_head)
        if config.flag("learnable_sink"):
            here.plain("learnable_sink_param", heads, axis=0, dtype="float32" if sparse else None)
        layer.norms("input_layernorm", "post_attention_layernorm")
        for name in ("hc_attn_layer", "hc_mlp_layer") if mixed else ():
            streams(layer / name / "hc_pre", "hc", count, scales=2, rows=2 * count)
        if _is_dense(feeds, index, 1):
            layer.gated_mlp()
        else:
            mixture(
                layer,
                width=width,
                gate_dtype="float32",
                correction="expert_bias",
                shared=width * config.int("n_shared_experts", default=0),
                fused_routing=known_routing(config, scoring="sigmoid", corrected=True),
            )
    b.finish()
    if mixed:
        streams(b.scope("model.hc_head", LAST), "hc_head", count)


def _is_dense(feeds: Sequence[object], index: int, n_first: int) -> bool:
    """By `mlp_layer_types`; without them the configuration's class makes the first `n_first` dense."""
    return feeds[index] == "dense" if index < len(feeds) else index < n_first


def glm5_next(b: Builder) -> None:
    """models/glm5next: Kimi delta attention, every fourth layer latent attention over pools of tokens."""
    config = b.config
    kinds, feeds = config.items_of("layer_types"), config.items_of("mlp_layer_types")
    indexers, width = config.items_of("indexer_types"), config.int("moe_intermediate_size")
    b.embedding()
    for layer in b.layers():
        index = layer.stage
        if config.flag("mhc"):
            _mixers(layer)
        if kinds[index] == "linear_attention" if index < len(kinds) else index % 4 != 3:
            _delta_attention(layer / "self_attn")
        else:
            indexed = index >= len(indexers) or indexers[index] == "full"
            pool = config.int("index_kpool", default=1)
            rotates = config.int("qk_rope_head_dim") > 0 and not config.flag("mla_use_nope")
            latent_attention(layer, sparse=True, indexed=indexed, own_rope=False, rope=rotates, pool=pool)
        if _is_dense(feeds, index, 3):
            layer.gated_mlp()
        else:
            mixture(
                layer,
                width=width,
                correction="gate.e_score_correction_bias" if config.text("topk_method") == "noaux_tc" else None,
                shared=width * config.int("n_shared_experts", default=0),
                fused_routing=known_routing(config, scoring=config.text("scoring_func", "softmax"), corrected=True),
            )
        layer.norms("input_layernorm", "post_attention_layernorm")
    b.finish()


def _delta_attention(here: Scope) -> None:
    """(common/kda.py:Glm5NextLinearAttention) its projections keep the model's type."""
    config, hidden = here.builder.config, here.builder.hidden_size
    heads, size = config.int("linear_num_heads"), config.int("linear_head_dim")
    kernel, inner = config.int("linear_conv_kernel_dim"), heads * size
    parts = (
        ("q_proj", inner),
        ("k_proj", inner),
        ("v_proj", inner),
        ("b_proj", heads),
        ("f_a_proj", size, 0, 1),
        ("g_a_proj", size, 0, 1),
    )
    here.column("in_proj_qkvbfg_a", hidden, parts)
    for name in ("f_b_proj", "g_b_proj"):
        here.column(name, size, inner)
    here.plain("dt_bias", inner, axis=0, dtype="float32")
    for name in ("q_conv1d", "k_conv1d", "v_conv1d"):
        here.column(name, kernel, inner, quantizable=False, dtype="float32")
    here.plain("A_log", 1, 1, heads, 1, axis=2, dtype="float32")
    here.norm("o_norm", size)
    here.row("o_proj", inner, hidden)
    bounded = config.get("linear_lower_bound") is not None
    here.state(kind="kda", conv_kernel=kernel, heads=heads, head_size=size, bounded=bounded)
