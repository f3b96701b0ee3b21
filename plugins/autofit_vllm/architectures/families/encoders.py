"""Models that read a text once and give a vector: attention both ways, nothing cached."""

from __future__ import annotations

from typing import Any

from autofit_vllm.architectures.builder import Builder, Scope
from autofit_vllm.modules.model import EVERY, Attention

_HEAD_DTYPE = "float32"  #: of what turns a vector into a score (config/model.py:head_dtype)


def labels(b: Builder) -> int:
    """Scores that a classifier gives (transformers: `num_labels` is the length of `id2label`)."""
    names = b.root.table("id2label")
    return len(names) or b.root.int("num_labels", default=2)


def _attends(layer: Scope, name: str, heads: int) -> None:
    """Attention without a cache; a kernel's scales are there all the same."""
    b = layer.builder
    b.modules.append(Attention(name=f"{layer.prefix}.{name}", stage=layer.stage, kv_heads=heads))


def _embeddings(root: Scope, b: Builder, *, positions: bool) -> None:
    config, hidden = b.config, b.hidden_size
    here = root / "embeddings"
    here.embedding("word_embeddings", config.int("vocab_size"), hidden)
    if positions:
        count = config.int("max_position_embeddings")
        here.embedding("position_embeddings", count, hidden)
        here.buffer(f"{here.prefix}.position_ids", 1, count, dtype="int64")
    if config.int("type_vocab_size", default=0):
        here.embedding("token_type_embeddings", config.int("type_vocab_size"), hidden)
    here.norm("LayerNorm", bias=True)


def _bert(b: Builder, prefix: str) -> None:
    """models/bert.py and roberta.py."""
    config, hidden = b.config, b.hidden_size
    heads, width = config.int("num_attention_heads"), config.int("intermediate_size")
    root = b.scope(prefix, EVERY)
    _embeddings(root, b, positions=True)
    for layer in b.layers(f"{prefix}.encoder.layer"):
        attention = layer / "attention"
        sizes: dict[str, Any] = {"heads": heads, "kv_heads": heads, "head_size": hidden // heads}
        names = ("query", "key", "value")
        (attention / "self").qkv("qkv_proj", hidden, bias=True, names=names, **sizes)
        _attends(attention, "self.attn", heads)
        (attention / "output").row("dense", hidden, hidden, bias=True)
        attention.norm("output.LayerNorm", bias=True)
        layer.column("intermediate.dense", hidden, width, bias=True)
        layer.row("output.dense", width, hidden, bias=True)
        layer.norm("output.LayerNorm", bias=True)


def bert(b: Builder) -> None:
    _bert(b, "model")


def bert_classifier(b: Builder) -> None:
    """A pooler and a linear layer on the first token."""
    _bert(b, "bert")
    hidden = b.hidden_size
    top = b.scope("", EVERY)
    top.column("bert.pooler.dense", hidden, hidden, bias=True)
    top.replicated("classifier", hidden, labels(b), bias=True, quantizable=False, dtype=_HEAD_DTYPE)


def roberta_classifier(b: Builder) -> None:
    _bert(b, "roberta")
    hidden = b.hidden_size
    top = b.scope("classifier", EVERY)
    top.replicated("dense", hidden, hidden, bias=True, quantizable=False, dtype=_HEAD_DTYPE)
    top.replicated("out_proj", hidden, labels(b), bias=True, quantizable=False, dtype=_HEAD_DTYPE)


def with_rope(b: Builder) -> None:
    """models/bert_with_rope.py: GTE and Nomic, gated feed-forwards and rotated heads."""
    config = b.config
    nomic = config.model_type == "nomic_bert"
    if nomic:
        rows = config.int("max_position_embeddings", default=2048)
        b.config = config = config.replace(
            hidden_size=config.int("n_embd", "hidden_size"),
            num_attention_heads=config.int("n_head", "num_attention_heads"),
            intermediate_size=config.int("n_inner", "intermediate_size"),
            max_position_embeddings=min(rows, config.int("max_trained_positions", default=rows)),
        )
    hidden, heads = b.hidden_size, config.int("num_attention_heads")
    width = config.int("intermediate_size")
    bias = config.flag("qkv_proj_bias", True) if nomic else True
    _embeddings(b.scope("", EVERY), b, positions=False)
    for layer in b.layers("encoder.layers", config.layers("num_hidden_layers", "n_layer")):
        attention = layer / "attn"
        sizes: dict[str, Any] = {"heads": heads, "kv_heads": heads, "head_size": hidden // heads}
        attention.qkv("qkv_proj", hidden, bias=bias, names=("qkv_proj",), **sizes)
        attention.row("out_proj", hidden, hidden, bias=bias)
        attention.rope(hidden // heads)
        _attends(attention, "attn", heads)
        if config.text("activation_function") == "gelu":
            layer.mlp("mlp", "up_proj", "down_proj", width, bias=bias)
        else:
            here = layer / "mlp"
            here.column("gate_up_proj", hidden, (("up_gate_proj", width), ("up_gate_proj", width)))
            here.row("down_proj", width, hidden, bias=bias)
        layer.norms("attn_ln", "mlp_ln", bias=True)


def _modernbert(b: Builder, prefix: str) -> None:
    """models/modernbert.py: every third layer looks at the whole text, the others near by."""
    config, hidden = b.config, b.hidden_size
    heads, width = config.int("num_attention_heads"), config.int("intermediate_size")
    bias, norm_bias = config.flag("attention_bias"), config.flag("norm_bias")
    every = max(1, config.int("global_attn_every_n_layers", default=3))
    root = b.scope(prefix, EVERY)
    (root / "embeddings").embedding("tok_embeddings", config.int("vocab_size"), hidden)
    root.norm("embeddings.norm", bias=norm_bias)
    start = f"{prefix}." if prefix else ""
    for layer in b.layers(f"{start}encoder_layer.layers"):
        here = layer / "attn"
        sizes: dict[str, Any] = {"heads": heads, "kv_heads": heads, "head_size": hidden // heads}
        here.qkv("Wqkv", hidden, bias=bias, names=("Wqkv",), **sizes)
        here.row("Wo", hidden, hidden, bias=bias)
        kind = "global" if layer.stage % every == 0 else "local"
        here.rope(hidden // heads, parameters={"rope_type": "default", "of": kind})
        _attends(here, "attn", heads)
        if layer.stage:
            layer.norm("attn_norm", bias=norm_bias)
        layer.norm("mlp_norm", bias=norm_bias)
        mlp_bias = config.flag("mlp_bias")
        (layer / "mlp").column("Wi", hidden, (("Wi", width), ("Wi", width)), bias=mlp_bias)
        (layer / "mlp").row("Wo", width, hidden, bias=mlp_bias)
    root.norm("final_norm", bias=norm_bias)


def modernbert(b: Builder) -> None:
    _modernbert(b, "")


def modernbert_classifier(b: Builder) -> None:
    _modernbert(b, "model")
    hidden = b.hidden_size
    top = b.scope("", EVERY)
    top.replicated("classifier", hidden, labels(b), bias=True, quantizable=False, dtype=_HEAD_DTYPE)
    bias = b.config.flag("classifier_bias")
    top.replicated("pooling.dense", hidden, hidden, bias=bias, quantizable=False, dtype=_HEAD_DTYPE)
    top.norm("pooling.norm", dtype=_HEAD_DTYPE)


def classifier(b: Builder) -> None:
    """What a causal model gets in place of its head (models/adapters.py:as_seq_cls_model)."""
    b.scope("", EVERY).replicated("score", b.hidden_size, labels(b), quantizable=False, dtype=_HEAD_DTYPE)
