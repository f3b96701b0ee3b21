"""Decoders with one attention and one feed-forward per layer, llama and what grew from it."""

from __future__ import annotations

from autofit.errors import EngineRefusalError, UnsupportedModelError

from autofit_vllm.architectures.builder import Builder, Scope
from autofit_vllm.architectures.config import Config
from autofit_vllm.modules.model import EVERY, LAST


def llama(b: Builder) -> None:
    """models/llama.py; Mistral, InternLM 3, IQuest Coder and TeleChat 3 are the same."""
    llama_layers(b, "model")
    b.head()


def llama_layers(b: Builder, prefix: str) -> None:
    """All of llama but its head."""
    config = b.config
    bias = config.flag("attention_bias") or config.flag("bias")
    b.embedding(f"{prefix}.embed_tokens")
    for layer in b.layers(f"{prefix}.layers"):
        layer.attention(
            bias=config.flag("qkv_bias", bias),
            out_bias=bias,
            names=_names(b),
            window=b.layer_window(layer.stage),
        )
        _llama_mlp(b, layer)
        layer.norms("input_layernorm", "post_attention_layernorm")
    b.final_norm(f"{prefix}.norm")


def _names(b: Builder) -> tuple[str, ...]:
    """Phi-3 checkpoints hold the projection fused."""
    return ("qkv_proj",) if b.config.model_type == "phi3" else ("q_proj", "k_proj", "v_proj")


def _llama_mlp(b: Builder, layer: Scope) -> None:
    fused = b.config.model_type == "phi3"
    layer.gated_mlp(bias=b.config.flag("mlp_bias"), names=("gate_up_proj",) if fused else ("gate_proj", "up_proj"))


def ernie4_5(b: Builder) -> None:
    """models/ernie45.py: llama whose output projection loses its bias."""
    config = b.config
    bias = config.flag("attention_bias") or config.flag("bias") or config.flag("use_bias")
    b.embedding()
    for layer in b.layers():
        layer.attention(bias=config.flag("attention_bias") or config.flag("bias"))
        layer.gated_mlp(bias=config.flag("mlp_bias"))
        layer.norms("input_layernorm", "post_attention_layernorm")
    if bias:
        b.notes.append("biases of this checkpoint are not loaded")
    b.finish()


def telechat2(b: Builder) -> None:
    """models/telechat2.py: llama with a bias on the output and down projections only."""
    config = b.config
    heads = config.int("n_head", "num_attention_heads")
    b.embedding()
    for layer in b.layers(count=config.layers("n_layer", "num_hidden_layers")):
        layer.attention(
            heads=heads,
            kv_heads=config.int("num_key_value_heads", default=heads),
            head_size=b.hidden_size // heads,
            out_bias=True,
            names=("query", "key", "value"),
        )
        here = layer / "mlp"
        size = config.int("ffn_hidden_size", "intermediate_size")
        here.column("gate_up_proj", b.hidden_size, (("gate_proj", size), ("up_proj", size)))
        here.row("down_proj", size, b.hidden_size, bias=True)
        layer.norms("input_layernorm", "post_attention_layernorm")
    b.finish()


def _one_kind_of_window(b: Builder) -> None:
    """(models/qwen2.py:Qwen2Model.__init__)

    Raises:
        EngineRefusalError: some layers slide and some do not.
    """
    last, count = b.config.maybe_int("max_window_layers"), b.config.layers()
    if len(set(b.layer_types())) > 1 and last != count:
        raise EngineRefusalError(
            "Sliding window for some but all layers is not supported. This model uses sliding window but "
            f"`max_window_layers` = {last} is less than `num_hidden_layers` = {count}."
        )


def qwen2(b: Builder) -> None:
    """models/qwen2.py and models/mimo.py: a bias on Q, K and V; some checkpoints normalize the heads."""
    config = b.config
    norms = ("q_norm", "k_norm") if config.flag("qk_norm") else ()
    _one_kind_of_window(b)

    def block(layer: Scope) -> None:
        layer.attention(bias=True, head_norms=norms, window=b.layer_window(layer.stage))
        layer.gated_mlp()
        layer.norms("input_layernorm", "post_attention_layernorm")

    b.embedding()
    for layer in b.layers():
        block(layer)
    b.finish()
    if config.model_type == "mimo":
        b.predict(
            config.maybe_int("num_nextn_predict_layers"),
            block,
            "token_layernorm",
            "hidden_layernorm",
            "final_layernorm",
            prefix="model.mtp_layers",
            projection="input_proj",
        )


def qwen3(b: Builder) -> None:
    """models/qwen3.py: normalized heads, no bias unless asked for."""
    bias = b.config.flag("attention_bias")
    _one_kind_of_window(b)
    b.embedding()
    for layer in b.layers():
        layer.attention(bias=bias, head_norms=("q_norm", "k_norm"), window=b.layer_window(layer.stage))
        layer.gated_mlp()
        layer.norms("input_layernorm", "post_attention_layernorm")
    b.finish()


def gemma(b: Builder) -> None:
    """models/gemma.py: the embedding is on every stage and serves as the head."""
    b.embedding(everywhere=True)
    for layer in b.layers():
        layer.attention()
        layer.gated_mlp()
        layer.norms("input_layernorm", "post_attention_layernorm")
    _finish_gemma(b)


def _finish_gemma(b: Builder) -> None:
    b.final_norm(everywhere=True)
    b.scope("", EVERY).buffer("normalizer")
    b.head()


_GEMMA_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)


def gemma2(b: Builder) -> None:
    """models/gemma2.py: every other layer slides."""
    bias = b.config.flag("attention_bias")
    b.embedding(everywhere=True)
    for layer in b.layers():
        slides = _slides(b, layer.stage, default=layer.stage % 2 == 0)
        layer.attention(bias=bias, out_bias=bias, window=b.sliding_window() if slides else None)
        layer.gated_mlp()
        layer.norms(*_GEMMA_NORMS)
    _finish_gemma(b)


def _slides(b: Builder, index: int, *, default: bool) -> bool:
    types = b.config.items_of("layer_types")
    return types[index] == "sliding_attention" if index < len(types) else default


def gemma3(b: Builder) -> None:
    """models/gemma3.py: all but every sixth layer slide, and rotate with a base of their own."""
    bias = b.config.flag("attention_bias")
    local = {"rope_type": "default", "of": "sliding"}
    period = b.config.int("sliding_window_pattern", "_sliding_window_pattern", default=6)
    b.embedding(everywhere=True)
    for layer in b.layers():
        slides = _slides(b, layer.stage, default=bool((layer.stage + 1) % period))
        layer.attention(
            bias=bias,
            out_bias=bias,
            head_norms=("q_norm", "k_norm"),
            window=b.sliding_window() if slides else None,
            rope=False,
        )
        nested = b.config.table("rope_parameters").get("sliding_attention")
        layer.rope(b.head_size, parameters=(nested or local) if slides else None)
        layer.gated_mlp()
        layer.norms(*_GEMMA_NORMS)
    _finish_gemma(b)


def rnj1(b: Builder) -> None:
    """models/rnj1.py: Gemma 3's layers without its local ones, a head of its own."""
    config = b.config
    bias = config.flag("attention_bias")
    b.embedding(everywhere=True)
    for layer in b.layers():
        types = config.items_of("layer_types")
        kind = str(types[layer.stage]) if layer.stage < len(types) else "full_attention"
        layer.attention(
            bias=bias,
            out_bias=bias,
            head_norms=("q_norm", "k_norm"),
            window=b.sliding_window() if kind == "chunked_attention" else None,
            rope=False,
        )
        layer.rope(b.head_size, layer_type=kind)
        layer.gated_mlp()
        layer.norms(*_GEMMA_NORMS)
    b.final_norm(everywhere=True)
    b.scope("", EVERY).buffer("normalizer")
    b.head(everywhere=True)


def hyperclovax(b: Builder) -> None:
    """models/hyperclovax.py: llama, with two more norms in some."""
    config = b.config
    bias = config.flag("attention_bias")
    b.embedding()
    for layer in b.layers():
        layer.attention(bias=bias, out_bias=bias)
        layer.gated_mlp(bias=config.flag("mlp_bias"))
        layer.norms("input_layernorm", "post_attention_layernorm")
        if config.flag("use_post_norm"):
            layer.norms("post_norm1", "post_norm2")
    b.finish()


def gemma3_encoder(b: Builder) -> None:
    """Embedding Gemma: Gemma 3 without a head; attention both ways caches nothing."""
    b.headless = True
    gemma3(b)
    if b.config.flag("use_bidirectional_attention"):
        b.caches.clear()


def cohere(b: Builder) -> None:
    """models/commandr.py: attention and feed-forward side by side behind one norm, tied embeddings."""
    config = b.config
    heads, size = config.int("num_attention_heads"), b.head_size
    period = config.int("sliding_window_pattern", "_sliding_window_pattern", default=4)
    interleaved = config.model_type.startswith("cohere2")
    b.embedding(everywhere=True)
    for layer in b.layers():
        slides = interleaved and _slides(b, layer.stage, default=bool((layer.stage + 1) % period))
        window = b.sliding_window() if slides else None
        # The window of a Cohere layer counts the token itself.
        layer.attention(window=None if window is None else window + 1)
        if config.flag("use_qk_norm"):
            layer.plain("self_attn.q_norm.weight", heads, size, axis=0)
            layer.plain("self_attn.k_norm.weight", b.kv_heads, size, axis=0)
        layer.gated_mlp()
        layer.norm("input_layernorm")
    b.final_norm(everywhere=True)


def granite(b: Builder) -> None:
    """models/granite.py."""
    config = b.config
    bias = config.flag("attention_bias")
    b.embedding()
    for layer in b.layers():
        layer.attention(bias=bias, out_bias=bias, window=b.layer_window(layer.stage))
        layer.gated_mlp(bias=config.flag("mlp_bias"))
        layer.norms("input_layernorm", "post_attention_layernorm")
    b.finish()


def glm4(b: Builder) -> None:
    """models/glm4.py: two more norms, after attention and after the feed-forward."""
    if b.config.get("partial_rotary_factor") is None:
        b.config = b.config.replace(partial_rotary_factor=0.5)
    b.embedding()
    for layer in b.layers():
        layer.attention(bias=b.config.flag("attention_bias"))
        layer.gated_mlp(names=("gate_up_proj",))
        layer.norms(
            "input_layernorm",
            "post_attention_layernorm",
            "post_self_attn_layernorm",
            "post_mlp_layernorm",
        )
    b.finish()


def apertus(b: Builder) -> None:
    """models/apertus.py: the activation has two learned numbers."""
    config = b.config
    bias = config.flag("attention_bias") or config.flag("bias")
    b.embedding()
    for layer in b.layers():
        layer.attention(bias=bias, out_bias=bias, head_norms=("q_norm", "k_norm"), window=b.layer_window(layer.stage))
        layer.mlp("mlp", "up_proj", "down_proj", config.int("intermediate_size"), bias=config.flag("mlp_bias"))
        for name in ("alpha_p", "alpha_n"):
            layer.plain(f"mlp.act_fn.{name}", 1)
        for name in ("beta", "eps"):
            layer.buffer(f"{layer.prefix}.mlp.act_fn.{name}")
        layer.norms("attention_layernorm", "feedforward_layernorm")
    b.finish()


def minicpm(b: Builder) -> None:
    """models/minicpm.py: llama with residuals scaled, and experts in one of them.

    Raises:
        UnsupportedModelError: the mixture of experts.
    """
    config = b.config
    if config.int("num_experts", default=0):
        raise UnsupportedModelError("MiniCPM's mixture of experts is not supported")
    bias = config.flag("attention_bias")
    b.embedding(everywhere=True)
    for layer in b.layers():
        layer.attention(bias=bias)
        layer.gated_mlp()
        layer.norms("input_layernorm", "post_attention_layernorm")
    b.finish(everywhere=True)


def nemotron_nas(b: Builder) -> None:
    """models/nemotron_nas.py: llama whose layers a search has thinned, some to nothing."""
    config, hidden = b.config, b.hidden_size
    blocks = config.items_of("block_configs")
    bias = config.flag("attention_bias") or config.flag("bias")
    heads = config.int("num_attention_heads")
    b.embedding()
    for layer in b.layers():
        block = Config(blocks[layer.stage]) if layer.stage < len(blocks) else Config({})
        attention, feed = block.section("attention"), block.section("ffn")
        if not attention.flag("no_op"):
            layer.attention(
                bias=config.flag("qkv_bias", bias),
                out_bias=bias,
                kv_heads=heads // max(1, attention.int("n_heads_in_group")),
            )
            layer.norm("input_layernorm")
        if not feed.flag("no_op"):
            width = feed.maybe_int("intermediate_size")
            if "ffn_mult" in feed:
                width = -(-int(2 * feed.number("ffn_mult", 1.0) * hidden / 3) // 256) * 256
            layer.gated_mlp(intermediate_size=width, bias=config.flag("mlp_bias"))
            layer.norm("post_attention_layernorm")
    b.finish()


def bloom(b: Builder) -> None:
    """models/bloom.py: ALiBi, biases throughout, the embedding is the head."""
    config = b.config
    hidden, heads = b.hidden_size, config.int("n_head", "num_attention_heads")
    b.embedding("transformer.word_embeddings", everywhere=True)
    b.scope("", EVERY).norm("transformer.word_embeddings_layernorm", bias=True)
    for layer in b.layers("transformer.h", config.layers("n_layer", "num_hidden_layers")):
        layer.attention(
            "self_attention",
            heads=heads,
            kv_heads=heads,
            head_size=hidden // heads,
            qkv="query_key_value",
            names=("query_key_value",),
            out="dense",
            bias=True,
            out_bias=True,
            rope=False,
        )
        layer.mlp("mlp", "dense_h_to_4h", "dense_4h_to_h", 4 * hidden)
        layer.norms("input_layernorm", "post_attention_layernorm", bias=True)
    b.scope("", EVERY).norm("transformer.ln_f", bias=True)
    if not config.flag("tie_word_embeddings", True):
        b.head(tied=False, everywhere=True, quantizable=False)


def chatglm(b: Builder) -> None:
    """models/chatglm.py."""
    config = b.config
    heads = config.int("num_attention_heads")
    size = b.hidden_size // heads
    vocabulary = config.int("padded_vocab_size", "vocab_size")
    grouped = config.flag("multi_query_attention")
    linear_bias = config.flag("add_bias_linear")
    qkv_bias = linear_bias or config.flag("add_qkv_bias")
    b.embedding("transformer.embedding", rows=vocabulary, everywhere=True)
    for layer in b.layers("transformer.encoder.layers", config.layers("num_layers", "num_hidden_layers")):
        layer.attention(
            "self_attention",
            heads=heads,
            kv_heads=config.int("multi_query_group_num") if grouped else heads,
            head_size=size,
            qkv="query_key_value",
            names=("query_key_value",),
            out="dense",
            bias=qkv_bias,
            out_bias=linear_bias,
            rope=False,
        )
        layer.rope(
            size,
            parameters={"rope_type": "default", "partial_rotary_factor": 0.5},
            max_position=config.int("seq_length", default=8192),
        )
        feed = config.int("ffn_hidden_size")
        here = layer / "mlp"
        here.column(
            "dense_h_to_4h", b.hidden_size, (("dense_h_to_4h", feed), ("dense_h_to_4h", feed)), bias=linear_bias
        )
        here.row("dense_4h_to_h", feed, b.hidden_size, bias=linear_bias)
        layer.norms("input_layernorm", "post_attention_layernorm", bias=not config.flag("rmsnorm", True))
    if config.flag("post_layer_norm", True):
        b.scope("", EVERY).norm("transformer.encoder.final_layernorm", bias=not config.flag("rmsnorm", True))
    b.head("transformer.output_layer", rows=vocabulary, tied_to="transformer.embedding", everywhere=True)


def falcon(b: Builder) -> None:
    """models/falcon.py: 7B shares one KV head, 40B and later group them."""
    config = b.config
    hidden, heads = b.hidden_size, config.int("num_attention_heads")
    new, parallel = config.flag("new_decoder_architecture"), config.flag("parallel_attn", True)
    kv = config.int("num_kv_heads", default=heads) if new else 1 if config.flag("multi_query") else heads
    bias = config.flag("bias")
    b.embedding("transformer.word_embeddings", everywhere=True)
    for layer in b.layers("transformer.h"):
        layer.attention(
            "self_attention",
            heads=heads,
            kv_heads=kv,
            head_size=hidden // heads,
            qkv="query_key_value",
            names=("query_key_value",),
            out="dense",
            bias=bias,
            out_bias=bias,
            rope=not config.flag("alibi"),
        )
        layer.mlp("mlp", "dense_h_to_4h", "dense_4h_to_h", 4 * hidden, bias=bias)
        norms = config.maybe_int("num_ln_in_parallel_attn") or (2 if new else 0)
        if not parallel:
            layer.norms("input_layernorm", "post_attention_layernorm", bias=True)
        elif norms == 2:
            layer.norms("ln_attn", "ln_mlp", bias=True)
        else:
            layer.norm("input_layernorm", bias=True)
    b.scope("", EVERY).norm("transformer.ln_f", bias=True)
    b.head(
        tied_to="transformer.word_embeddings",
        tied=config.flag("tie_word_embeddings", True),
        everywhere=True,
    )


def gpt2(b: Builder) -> None:
    """models/gpt2.py."""
    config = b.config
    hidden, heads = b.hidden_size, config.int("num_attention_heads")
    b.embedding("transformer.wte", everywhere=True)
    b.scope("", EVERY).plain("transformer.wpe.weight", config.int("max_position_embeddings"), hidden)
    for layer in b.layers("transformer.h"):
        layer.attention(
            "attn",
            heads=heads,
            kv_heads=heads,
            head_size=hidden // heads,
            qkv="c_attn",
            names=("c_attn",),
            out="c_proj",
            bias=True,
            out_bias=True,
            rope=False,
        )
        layer.mlp("mlp", "c_fc", "c_proj", config.int("n_inner", default=4 * hidden))
        layer.norms("ln_1", "ln_2", bias=True)
    b.scope("", EVERY).norm("transformer.ln_f", bias=True)
    b.head(tied_to="transformer.wte", everywhere=True)


def gptj(b: Builder) -> None:
    """models/gpt_j.py."""
    config = b.config
    hidden, heads = b.hidden_size, config.int("num_attention_heads")
    b.embedding("transformer.wte", everywhere=True)
    for layer in b.layers("transformer.h"):
        layer.attention(
            "attn",
            heads=heads,
            kv_heads=heads,
            head_size=hidden // heads,
            out="out_proj",
            rope=False,
        )
        rotary = config.int("rotary_dim", default=64) / (hidden // heads)
        layer.rope(
            hidden // heads,
            parameters={"rope_type": "default", "partial_rotary_factor": rotary},
            max_position=config.int("max_position_embeddings", default=8192),
        )
        layer.mlp("mlp", "fc_in", "fc_out", config.int("n_inner", default=4 * hidden))
        layer.norm("ln_1", bias=True)
    b.scope("", EVERY).norm("transformer.ln_f", bias=True)
    b.head(bias=True, tied=False, everywhere=True)


def opt(b: Builder) -> None:
    """models/opt.py: learned positions, biases throughout; small ones project the embedding."""
    config = b.config
    hidden, heads = b.hidden_size, config.int("num_attention_heads")
    narrow = config.int("word_embed_proj_dim", default=hidden)
    bias = config.flag("enable_bias", True)
    affine = config.flag("layer_norm_elementwise_affine", True)
    root = b.scope("model.decoder", EVERY)
    b.embedding("model.decoder.embed_tokens", columns=narrow, everywhere=True)
    root.plain("embed_positions.weight", config.int("max_position_embeddings") + 2, hidden)
    if narrow != hidden:
        root.replicated("project_out", hidden, narrow)
        root.replicated("project_in", narrow, hidden)
    if config.flag("do_layer_norm_before", True) and not config.flag("_remove_final_layer_norm") and affine:
        root.norm("final_layer_norm", bias=True)
    for layer in b.layers("model.decoder.layers"):
        layer.attention(
            heads=heads,
            kv_heads=heads,
            head_size=hidden // heads,
            out="out_proj",
            bias=bias,
            out_bias=bias,
            rope=False,
        )
        layer.column("fc1", hidden, config.int("ffn_dim"), bias=bias)
        layer.row("fc2", config.int("ffn_dim"), hidden, bias=bias)
        if affine:
            layer.norms("self_attn_layer_norm", "final_layer_norm", bias=True)
    b.head(
        columns=narrow,
        tied_to="model.decoder.embed_tokens",
        tied=config.flag("tie_word_embeddings", True),
        everywhere=True,
        quantizable=False,
    )


def stablelm(b: Builder) -> None:
    """models/stablelm.py."""
    config = b.config
    b.embedding(everywhere=True)
    for layer in b.layers():
        layer.attention(bias=config.flag("use_qkv_bias"))
        layer.gated_mlp()
        layer.norms("input_layernorm", "post_attention_layernorm", bias=True)
    b.finish(bias=True, everywhere=True)


def nemotron(b: Builder) -> None:
    """models/nemotron.py: squared ReLU between up and down, norms with a bias."""
    config = b.config
    bias = config.flag("attention_bias") or config.flag("bias")
    b.embedding()
    for layer in b.layers():
        layer.attention(bias=bias, out_bias=bias)
        layer.mlp("mlp", "up_proj", "down_proj", config.int("intermediate_size"), bias=config.flag("mlp_bias"))
        layer.norms("input_layernorm", "post_attention_layernorm", bias=True)
    b.finish(bias=True)


def exaone(b: Builder) -> None:
    """models/exaone.py."""
    config = b.config
    bias = config.flag("attention_bias") or config.flag("bias")
    b.embedding("transformer.wte")
    for layer in b.layers("transformer.h", config.layers("num_layers", "num_hidden_layers")):
        layer.attention("attn.attention", bias=bias, out_bias=bias, out="out_proj")
        layer.gated_mlp(
            fused="gate_up_proj",
            names=("c_fc_0", "c_fc_1"),
            down="c_proj",
            bias=config.flag("mlp_bias"),
        )
        layer.norms("ln_1", "ln_2")
    b.scope("", LAST).norm("transformer.ln_f")
    b.head(tied_to="transformer.wte")


def exaone4(b: Builder) -> None:
    """models/exaone4.py: norms after, not before; three of four layers slide in the larger ones."""
    config = b.config
    bias = config.flag("attention_bias") or config.flag("bias")
    b.embedding()
    for layer in b.layers():
        layer.attention(bias=bias, out_bias=bias, head_norms=("q_norm", "k_norm"), window=b.layer_window(layer.stage))
        layer.gated_mlp(bias=config.flag("mlp_bias"))
        layer.norms("post_attention_layernorm", "post_feedforward_layernorm")
    b.finish()


def internlm2(b: Builder) -> None:
    """models/internlm2.py."""
    b.embedding("model.tok_embeddings", everywhere=True)
    for layer in b.layers():
        layer.attention("attention", qkv="wqkv", names=("wqkv",), out="wo")
        layer.gated_mlp("feed_forward", names=("w1", "w3"), down="w2")
        layer.norms("attention_norm", "ffn_norm")
    b.final_norm(everywhere=True)
    b.head("output", tied_to="model.tok_embeddings", everywhere=True)


def orion(b: Builder) -> None:
    """models/orion.py: llama with LayerNorm."""
    b.embedding(everywhere=True)
    for layer in b.layers():
        layer.attention()
        layer.gated_mlp()
        layer.norms("input_layernorm", "post_attention_layernorm", bias=True)
    b.finish(bias=True, everywhere=True)


def solar(b: Builder) -> None:
    """models/solar.py."""
    config = b.config
    bias = config.flag("attention_bias") or config.flag("bias")
    b.embedding()
    for layer in b.layers():
        layer.attention(bias=bias, out_bias=bias, window=b.model_window())
        layer.gated_mlp(bias=config.flag("mlp_bias"))
        layer.norms("input_layernorm", "post_attention_layernorm")
    b.finish()


def pangu_embedded(b: Builder) -> None:
    """models/openpangu.py: llama whose projections have biases where the file says so."""
    config = b.config
    bias = config.flag("attention_bias") or config.flag("bias")
    b.embedding()
    for layer in b.layers():
        layer.attention(bias=config.flag("qkv_bias", bias), out_bias=bias)
        layer.gated_mlp(bias=config.flag("mlp_bias"))
        layer.norms("input_layernorm", "post_attention_layernorm")
        if config.flag("sandwich_norm"):
            layer.norms("pre_mlp_layernorm", "post_mlp_layernorm")
    b.finish()


def plamo3(b: Builder) -> None:
    """models/plamo3.py: windows by layer, a rope for each kind of layer, norms before and after."""
    config = b.config
    windows = config.items_of("interleaved_sliding_window") or config.items_of("sliding_window")
    kinds = config.items_of("layer_types")
    local = {"rope_type": "default", "rope_theta": config.get("rope_local_theta"), "of": "sliding"}
    b.embedding(everywhere=True)
    for layer in b.layers("model.layers.layers"):
        index = layer.stage
        slides = index < len(kinds) and kinds[index] == "sliding_attention"
        window = windows[index] if index < len(windows) else b.sliding_window() if slides else None
        layer.attention("mixer", head_norms=("q_norm", "k_norm"), window=window, rope=False)
        nested = config.table("rope_parameters").get(str(kinds[index]) if index < len(kinds) else "")
        (layer / "mixer").rope(b.head_size, parameters=nested or (local if slides else None))
        layer.gated_mlp()
        layer.norms("pre_mixer_norm", "post_mixer_norm", "pre_mlp_norm", "post_mlp_norm")
    b.final_norm(everywhere=True)
    b.head(everywhere=True)


def step1(b: Builder) -> None:
    """models/step1.py: ALiBi by square roots, which one backend knows."""
    config = b.config
    heads = config.int("num_attention_heads")
    bias = config.flag("attention_bias")
    b.embedding()
    for layer in b.layers():
        layer.attention(
            kv_heads=config.int("num_attention_groups", "num_key_value_heads", default=1),
            head_size=b.hidden_size // heads,
            bias=bias,
            out_bias=bias,
            rope=False,
        )
        layer.gated_mlp(bias=config.flag("mlp_bias"))
        layer.norms("input_layernorm", "post_attention_layernorm")
    b.finish()


def iquest_loop(b: Builder) -> None:
    """models/iquest_loopcoder.py: llama's layers, passed several times; later passes have a window of their own."""
    config = b.config
    heads, passes = config.int("num_attention_heads"), config.times("loop_num", default=2, each=config.layers())
    size = b.hidden_size // heads
    b.embedding(everywhere=True)
    for layer in b.layers():
        here = layer / "self_attn"
        here.qkv("qkv_proj", b.hidden_size, heads=heads, kv_heads=b.kv_heads, head_size=size)
        here.row("o_proj", heads * size, b.hidden_size)
        here.rope(size)
        window = config.int("loop_window_size", default=64)
        for turn in range(passes):
            here.cache(
                f"attn.{turn}", heads=heads, kv_heads=b.kv_heads, head_size=size, window=window if turn else None
            )
        layer.gated_mlp()
        layer.norms("input_layernorm", "post_attention_layernorm")
    for gate in b.layers("model.gate_projections"):
        gate.column("gate_proj", size, heads, bias=True)
    b.finish(everywhere=True)
