"""Speech recognition: an encoder of sound, and a decoder that attends to it."""

from __future__ import annotations

from typing import Any

from autofit_vllm.architectures.builder import Builder, Scope
from autofit_vllm.modules.model import EVERY


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


def qwen2_audio(b: Builder) -> None:
    """models/qwen2_audio.py: Whisper's encoder as Transformers has it, which no rank shares."""
    from autofit_vllm.architectures.families.vision import language_model

    root = b.config
    audio = root.section("audio_config", model_type="qwen2_audio_encoder")
    tower, projector = b.tower("audio_tower", "audio"), b.tower("multi_modal_projector", "audio")
    if tower is not None and projector is not None:
        size, width = audio.int("d_model"), audio.int("encoder_ffn_dim")
        for name, channels in (("conv1", audio.int("num_mel_bins")), ("conv2", size)):
            tower.plain(f"{name}.weight", size, channels, 3)
            tower.plain(f"{name}.bias", size)
        tower.plain("embed_positions.weight", audio.int("max_source_positions"), size)
        more: dict[str, Any] = {"quantizable": False}
        for index in range(audio.layers("encoder_layers")):
            layer = tower / f"layers.{index}"
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                layer.replicated(f"self_attn.{name}", size, size, bias=name != "k_proj", **more)
            layer.replicated("fc1", size, width, bias=True, **more)
            layer.replicated("fc2", width, size, bias=True, **more)
            for name in ("self_attn_layer_norm", "final_layer_norm"):
                layer.norm(name, size, bias=True)
        tower.norm("layer_norm", size, bias=True)
        out = root.section("text_config").int("hidden_size")
        projector.replicated("linear", size, out, bias=True, **more)
    language_model(b)
