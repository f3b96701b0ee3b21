"""Speech recognition: an encoder of sound, and a decoder that attends to it."""

from __future__ import annotations

from typing import Any

from autofit_vllm.architectures.builder import Builder, Scope
from autofit_vllm.model import EVERY


def whisper(b: Builder) -> None:
    """models/whisper.py: what the encoder found is kept per sequence, as keys and values of every layer."""
    config = b.config
    size = config.int("d_model")
    heads, encoder_heads = config.int("decoder_attention_heads"), config.int("encoder_attention_heads")
    encoder, decoder = b.scope("model.encoder", EVERY), b.scope("model.decoder", EVERY)
    encoder.plain("conv1.weight", size, config.int("num_mel_bins"), 3)
    encoder.plain("conv1.bias", size)
    encoder.plain("conv2.weight", size, size, 3)
    encoder.plain("conv2.bias", size)
    encoder.plain("embed_positions.weight", config.int("max_source_positions"), size)
    for index in range(config.layers("encoder_layers")):
        layer = encoder / f"layers.{index}"
        _projections(layer, size, encoder_heads)
        _feed_forward(layer, size, config.int("encoder_ffn_dim"))
    encoder.norm("layer_norm", size, bias=True)
    decoder.plain("embed_tokens.weight", config.int("vocab_size"), size)
    decoder.plain("embed_positions.weight", config.int("max_target_positions"), size)
    for layer in b.layers("model.decoder.layers", config.layers("decoder_layers")):
        sizes: dict[str, Any] = {"heads": heads, "kv_heads": heads, "head_size": size // heads}
        _projections(layer, size, heads)
        (layer / "self_attn").cache("attn", **sizes)
        cross = layer / "encoder_attn"
        cross.column("q_proj", size, size, bias=True)
        cross.column("kv_proj", size, (("k_proj", size), ("v_proj", size)), bias=True)
        cross.row("out_proj", size, size, bias=True)
        cross.cache("attn", kind="cross", **sizes)
        layer.norm("encoder_attn_layer_norm", size, bias=True)
        _feed_forward(layer, size, config.int("decoder_ffn_dim"))
    decoder.norm("layer_norm", size, bias=True)


def _projections(layer: Scope, size: int, heads: int) -> None:
    here = layer / "self_attn"
    here.qkv("qkv_proj", size, heads=heads, kv_heads=heads, head_size=size // heads, bias=True)
    here.row("out_proj", size, size, bias=True)
    layer.norm("self_attn_layer_norm", size, bias=True)


def _feed_forward(layer: Scope, size: int, width: int) -> None:
    layer.mlp("mlp", "fc1", "fc2", width, hidden_size=size)
    layer.norm("final_layer_norm", size, bias=True)
