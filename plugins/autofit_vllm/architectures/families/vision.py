"""Models that see: a language model behind the towers that encode images and video."""

from __future__ import annotations

import math
from typing import Any

from autofit_vllm.architectures.builder import Builder, Scope
from autofit_vllm.architectures.builders import ModelBuilder, causal_lm_builder
from autofit_vllm.architectures.config import Config

_VISION = ("image", "video")


def language_model(b: Builder, *keys: str, prefix: str = "language_model", build: ModelBuilder | None = None) -> None:
    """The language model below `prefix`; whether its head is tied, the whole model's file says
    (config/vllm.py:with_hf_config)."""
    text = b.config.section(*(keys or ("text_config",)))
    if not text.given:
        text = b.config
    if "tie_word_embeddings" in b.config:
        text = text.replace(tie_word_embeddings=b.config.flag("tie_word_embeddings"))
    b.config, b.prefix = text, prefix
    (build or causal_lm_builder(text))(b)


def clip(tower: Scope, config: Config, *, layers: int, post_norm: bool) -> None:
    """models/clip.py:CLIPVisionModel."""
    here = tower / "vision_model"
    hidden, patch = config.int("hidden_size"), config.int("patch_size")
    positions = (config.int("image_size") // patch) ** 2 + 1
    here.plain("embeddings.class_embedding", hidden)
    here.plain("embeddings.patch_embedding.weight", hidden, config.int("num_channels", default=3), patch, patch)
    here.plain("embeddings.position_embedding.weight", positions, hidden)
    here.buffer("embeddings.position_ids", 1, positions, dtype="int64")
    here.norm("pre_layrnorm", hidden, bias=True)
    _siglip_layers(here, config, layers)
    if post_norm:
        here.norm("post_layernorm", hidden, bias=True)


def siglip(
    tower: Scope,
    config: Config,
    *,
    layers: int | None = None,
    position_ids: bool = True,
    post_norm: bool = True,
) -> None:
    """models/siglip.py:SiglipVisionModel."""
    here = tower / "vision_model"
    hidden, patch = config.int("hidden_size"), config.int("patch_size")
    positions = (config.int("image_size") // patch) ** 2
    here.plain("embeddings.patch_embedding.weight", hidden, config.int("num_channels", default=3), patch, patch)
    here.plain("embeddings.patch_embedding.bias", hidden)
    here.plain("embeddings.position_embedding.weight", positions, hidden)
    if position_ids:
        here.buffer("embeddings.position_ids", 1, positions, dtype="int64")
    _siglip_layers(here, config, config.layers() if layers is None else layers, aligned_only=position_ids)
    if post_norm:
        here.norm("post_layernorm", hidden, bias=True)


def _siglip_layers(here: Scope, config: Config, count: int, *, aligned_only: bool = False, feeds: str = "mlp") -> None:
    hidden, heads = config.int("hidden_size"), config.int("num_attention_heads")
    for index in range(count):
        block = here / f"encoder.layers.{index}"
        sizes: dict[str, Any] = {"heads": heads, "kv_heads": heads, "head_size": hidden // heads}
        block.qkv("self_attn.qkv_proj", hidden, bias=True, **sizes)
        block.row("self_attn.out_proj", hidden, hidden, bias=True)
        block.norm("layer_norm1", hidden, bias=True)
        feed = config.int("intermediate_size")
        aligned = (hidden % 64 == 0 and feed % 64 == 0) or not aligned_only
        block.mlp(feeds, "fc1", "fc2", feed, hidden_size=hidden, quantizable=aligned)
        block.norm("layer_norm2", hidden, bias=True)


def pixtral(tower: Scope, config: Config) -> None:
    """models/pixtral.py:PixtralHFVisionModel."""
    hidden, heads = config.int("hidden_size"), config.int("num_attention_heads")
    patch, size = config.int("patch_size"), config.int("head_dim", default=hidden // heads)
    tower.plain("patch_conv.weight", hidden, config.int("num_channels", default=3), patch, patch)
    tower.norm("ln_pre", hidden)
    for index in range(config.layers()):
        block = tower / f"transformer.layers.{index}"
        block.norm("attention_norm", hidden)
        block.qkv("attention.qkv_proj", hidden, heads=heads, kv_heads=heads, head_size=size)
        block.row("attention.o_proj", hidden, hidden)
        block.gated_mlp("feed_forward", config.int("intermediate_size"), hidden_size=hidden)
        block.norm("ffn_norm", hidden)
    for name in ("inv_freq", "original_inv_freq"):
        tower.buffer(f"patch_positional_embedding.{name}", size // 2, dtype="float32")


def _vision_layers(vision: Config, feature_layer: object) -> tuple[int, bool]:
    """How many blocks are built to reach the layer whose output is used, and whether it is the last
    (models/vision.py:get_num_selected_vision_tokens via vision_feature_layer)."""
    total = vision.layers()
    chosen = feature_layer if isinstance(feature_layer, list) else [feature_layer]
    depths = [
        layer + 1 + total if layer < 0 else layer
        for layer in chosen
        if isinstance(layer, int) and not isinstance(layer, bool)
    ]
    depth = max(depths, default=total)
    return min(depth, total), depth >= total


def _clip_family(b: Builder, *, newline: bool = False) -> None:
    root = b.config
    vision, text = root.section("vision_config"), root.section("text_config")
    tower = b.tower("vision_tower", "image")
    if tower is not None:
        layers, whole = _vision_layers(vision, root.get("vision_feature_layer", -2))
        if vision.model_type == "pixtral":
            pixtral(tower, vision)
        elif vision.model_type == "siglip_vision_model":
            siglip(tower, vision, layers=layers)
        else:
            clip(tower, vision, layers=layers, post_norm=whole)
        projector = b.tower("multi_modal_projector", "image")
        assert projector is not None
        bias = root.flag("multimodal_projector_bias", True)
        hidden = text.int("hidden_size")
        projector.column("linear_1", vision.int("hidden_size"), hidden, bias=bias)
        projector.row("linear_2", hidden, hidden, bias=bias)
    if newline:
        b.scope("", -3).plain("image_newline", text.int("hidden_size"))
    language_model(b)


def llava(b: Builder) -> None:
    """models/llava.py, with a CLIP, SigLIP or Pixtral tower."""
    _clip_family(b)


def llava_next(b: Builder) -> None:
    _clip_family(b, newline=True)


def mistral3(b: Builder) -> None:
    """models/mistral3.py: a Pixtral tower, patches merged before they are projected."""
    root = b.config
    vision, hidden = root.section("vision_config"), root.section("text_config").int("hidden_size")
    tower, projector = b.tower("vision_tower", "image"), b.tower("multi_modal_projector", "image")
    if tower is not None and projector is not None:
        pixtral(tower, vision)
        width, merge = vision.int("hidden_size"), root.int("spatial_merge_size", default=2)
        bias = root.flag("multimodal_projector_bias")
        projector.norm("norm", width)
        projector.replicated("patch_merger.merging_layer", width * merge**2, width, quantizable=False)
        projector.column("linear_1", width, hidden, bias=bias)
        projector.row("linear_2", hidden, hidden, bias=bias)
    language_model(b)


def gemma3(b: Builder) -> None:
    """models/gemma3_mm.py."""
    root = b.config
    vision, hidden = root.section("vision_config"), root.section("text_config").int("hidden_size")
    tower, projector = b.tower("vision_tower", "image"), b.tower("multi_modal_projector", "image")
    if tower is not None and projector is not None:
        siglip(tower, vision)
        width = vision.int("hidden_size")
        projector.plain("mm_input_projection_weight", width, hidden)
        projector.norm("mm_soft_emb_norm", width)
    language_model(b)


def cohere2_vision(b: Builder) -> None:
    """models/cohere2_vision.py: SigLIP, four patches to one through a gated projector."""
    root = b.config
    vision, hidden = root.section("vision_config"), root.section("text_config").int("hidden_size")
    tower, projector = b.tower("vision_tower", "image"), b.tower("multi_modal_projector", "image")
    if tower is not None and projector is not None:
        siglip(tower, vision)
        width = root.int("alignment_intermediate_size") // 2
        merged = vision.int("hidden_size") * root.int("downsample_factor", default=2) ** 2
        parts = (("linear_1", width), ("linear_1", width))
        projector.column("linear_1", merged, parts, bias=True, quantizable=False)
        projector.row("linear_2", width, hidden, bias=True, quantizable=False)
    language_model(b)


def qwen3_omni(b: Builder) -> None:
    """models/qwen3_omni_moe_thinker.py: what hears and sees; what speaks is not built."""
    from autofit_vllm.architectures.families.experts import qwen3_moe

    thinker = b.config.section("thinker_config")
    b.config = thinker if thinker.given else b.config
    tower = b.tower("audio_tower", "audio")
    if tower is not None:
        _qwen3_hearing(tower, b.config.section("audio_config", model_type="qwen3_omni_moe_audio_encoder"))
    tower = b.tower("visual", *_VISION)
    if tower is not None:
        _qwen3_omni_sight(tower, b.config.section("vision_config", model_type="qwen3_omni_moe_vision_encoder"))
    language_model(b, build=qwen3_moe)


def _qwen3_hearing(tower: Scope, audio: Config) -> None:
    hidden, heads, feed = (audio.int(k) for k in ("d_model", "encoder_attention_heads", "encoder_ffn_dim"))
    narrow, mels = audio.int("downsample_hidden_size"), audio.int("num_mel_bins", default=128)
    more: dict[str, Any] = {"quantizable": False, "divides": heads}
    for index, channels in enumerate((1, narrow, narrow), start=1):
        tower.plain(f"conv2d{index}.weight", narrow, channels, 3, 3)
        tower.plain(f"conv2d{index}.bias", narrow)
    tower.replicated("conv_out", narrow * -(-mels // 8), hidden, quantizable=False)
    sizes: dict[str, Any] = {"heads": heads, "kv_heads": heads, "head_size": hidden // heads}
    for index in range(audio.layers("encoder_layers")):
        block = tower / f"layers.{index}"
        block.qkv("self_attn.qkv_proj", hidden, bias=True, **sizes, **more)
        block.row("self_attn.out_proj", hidden, hidden, bias=True, **more)
        block.column("fc1", hidden, feed, bias=True, **more)
        block.row("fc2", feed, hidden, bias=True, **more)
        for norm in ("self_attn_layer_norm", "final_layer_norm"):
            block.norm(norm, hidden, bias=True)
    tower.norm("ln_post", hidden, bias=True)
    tower.replicated("proj1", hidden, hidden, bias=True, quantizable=False)
    tower.replicated("proj2", hidden, audio.int("output_dim"), bias=True, quantizable=False)
    tower.buffer(f"{tower.prefix}.positional_embedding", audio.int("max_source_positions"), hidden, dtype="float32")


def _qwen3_omni_sight(tower: Scope, vision: Config) -> None:
    hidden, heads, out = (vision.int(k) for k in ("hidden_size", "num_heads", "out_hidden_size"))
    merged = hidden * vision.int("spatial_merge_size", default=2) ** 2
    _patches(tower, vision, hidden, bias=True)
    tower.plain("pos_embed.weight", (vision.int("image_size") // vision.int("patch_size")) ** 2, hidden)
    for index in range(vision.layers("depth")):
        block = tower / f"blocks.{index}"
        _block_attention(block, hidden, heads, bias=True)
        block.mlp("mlp", "linear_fc1", "linear_fc2", vision.int("intermediate_size"), hidden_size=hidden)
        for norm in ("norm1", "norm2"):
            block.norm(norm, hidden, bias=True)
    deep = len(vision.items_of("deepstack_visual_indexes"))
    for name, width in (("merger", hidden), *((f"merger_list.{index}", merged) for index in range(deep))):
        here = tower / name
        here.norm("ln_q", width, bias=True)
        here.column("mlp.0", merged, merged, bias=True)
        here.row("mlp.2", merged, out, bias=True)
    _tower_rope(tower, hidden // heads)


def paligemma(b: Builder) -> None:
    """models/paligemma.py."""
    vision = b.config.section("vision_config")
    tower, projector = b.tower("vision_tower", "image"), b.tower("multi_modal_projector", "image")
    if tower is not None and projector is not None:
        siglip(tower, vision)
        projector.plain("linear.weight", vision.int("projection_dim"), vision.int("hidden_size"))
        projector.plain("linear.bias", vision.int("projection_dim"))
    language_model(b)


def idefics3(b: Builder) -> None:
    """models/idefics3.py and smolvlm.py: the language model has no wrapper of its own."""
    root = b.config
    vision, text = root.section("vision_config"), root.section("text_config")
    tower, connector = b.tower("model", "image"), b.tower("model.connector", "image")
    if tower is not None and connector is not None:
        siglip(tower, vision, position_ids=False)
        width = vision.int("hidden_size") * root.int("scale_factor", default=2) ** 2
        connector.replicated("modality_projection.proj", width, text.int("hidden_size"))
    from autofit_vllm.architectures.families.dense import llama_layers

    b.config = text.replace(tie_word_embeddings=root.flag("tie_word_embeddings"))
    llama_layers(b, "model.text_model")
    b.head(tied_to="model.text_model.embed_tokens")


def qwen2_vl(b: Builder) -> None:
    """models/qwen2_vl.py."""
    vision = b.config.section("vision_config")
    tower = b.tower("visual", *_VISION)
    if tower is not None:
        hidden, heads = vision.int("embed_dim"), vision.int("num_heads")
        out = vision.int("hidden_size")
        wide = int(hidden * vision.number("mlp_ratio", 4))
        _patches(tower, vision, hidden, bias=False)
        for index in range(vision.layers("depth")):
            block = tower / f"blocks.{index}"
            block.column("attn.qkv", hidden, 3 * hidden, bias=True)
            block.row("attn.proj", hidden, hidden, bias=True)
            block.mlp("mlp", "fc1", "fc2", wide, hidden_size=hidden)
            for norm in ("norm1", "norm2"):
                block.norm(norm, hidden, bias=True)
        tower.norm("merger.ln_q", hidden, bias=True)
        merged = hidden * vision.int("spatial_merge_size", default=2) ** 2
        tower.column("merger.mlp.0", merged, merged, bias=True)
        tower.row("merger.mlp.2", merged, out, bias=True)
        _tower_rope(tower, hidden // heads)
    from autofit_vllm.architectures.families.dense import qwen2

    language_model(b, build=qwen2)


def qwen2_5_vl(b: Builder) -> None:
    """models/qwen2_5_vl.py: gated feed-forwards, RMS norms."""
    vision = b.config.section("vision_config")
    tower = b.tower("visual", *_VISION)
    if tower is not None:
        hidden, heads = vision.int("hidden_size"), vision.int("num_heads")
        _patches(tower, vision, hidden, bias=False)
        for index in range(vision.layers("depth")):
            block = tower / f"blocks.{index}"
            _block_attention(block, hidden, heads, bias=True)
            block.gated_mlp("mlp", vision.int("intermediate_size"), hidden_size=hidden, bias=True)
            for norm in ("norm1", "norm2"):
                block.norm(norm, hidden)
        tower.norm("merger.ln_q", hidden)
        merged = hidden * vision.int("spatial_merge_size", default=2) ** 2
        tower.column("merger.mlp.0", merged, merged, bias=True)
        tower.row("merger.mlp.2", merged, vision.int("out_hidden_size"), bias=True)
        _tower_rope(tower, hidden // heads)
    from autofit_vllm.architectures.families.dense import qwen2

    language_model(b, build=qwen2)


def qwen3_tower(b: Builder) -> None:
    """models/qwen3_vl.py:Qwen3_VisionTransformer; some hand features of inner blocks to the decoder."""
    vision = b.config.section("vision_config")
    tower = b.tower("visual", *_VISION)
    if tower is None:
        return
    hidden, heads = vision.int("hidden_size"), vision.int("num_heads")
    out = vision.int("out_hidden_size")
    merged = hidden * vision.int("spatial_merge_size", default=2) ** 2
    _patches(tower, vision, hidden, bias=True)
    tower.plain("pos_embed.weight", vision.int("num_position_embeddings"), hidden)
    for index in range(vision.layers("depth")):
        block = tower / f"blocks.{index}"
        _block_attention(block, hidden, heads, bias=True)
        block.mlp("mlp", "linear_fc1", "linear_fc2", vision.int("intermediate_size"), hidden_size=hidden)
        for norm in ("norm1", "norm2"):
            block.norm(norm, hidden, bias=True)
    deep = vision.items_of("deepstack_visual_indexes")
    mergers = [("merger", hidden), *((f"deepstack_merger_list.{i}", merged) for i in range(len(deep)))]
    for name, width in mergers:
        here = tower / name
        here.norm("norm", width, bias=True)
        here.column("linear_fc1", merged, merged, bias=True)
        here.row("linear_fc2", merged, out, bias=True)
    _tower_rope(tower, hidden // heads)


def qwen3_vl(b: Builder) -> None:
    from autofit_vllm.architectures.families.dense import qwen3

    qwen3_tower(b)
    language_model(b, build=qwen3)


def qwen3_vl_moe(b: Builder) -> None:
    from autofit_vllm.architectures.families.experts import qwen3_moe

    qwen3_tower(b)
    language_model(b, build=qwen3_moe)


def qwen3_5(b: Builder) -> None:
    """models/qwen3_5.py with its tower: dense and experts alike."""
    from autofit_vllm.architectures.families.recurrent import qwen3_next

    qwen3_tower(b)
    language_model(b, build=qwen3_next)


def _patches(tower: Scope, vision: Config, hidden: int, *, bias: bool) -> None:
    patch, frames = vision.int("patch_size"), vision.int("temporal_patch_size", default=2)
    channels = vision.int("in_channels", "in_chans", default=3)
    tower.plain("patch_embed.proj.weight", hidden, channels, frames, patch, patch)
    if bias:
        tower.plain("patch_embed.proj.bias", hidden)


def _block_attention(block: Scope, hidden: int, heads: int, *, bias: bool) -> None:
    block.qkv(
        "attn.qkv",
        hidden,
        heads=heads,
        kv_heads=heads,
        head_size=hidden // heads,
        names=("qkv",),
        bias=bias,
    )
    block.row("attn.proj", hidden, hidden, bias=bias)


def _tower_rope(tower: Scope, head_size: int) -> None:
    """Half of a head rotates, over 8192 positions."""
    tower.buffer(f"{tower.prefix}.rotary_pos_emb", 8192, head_size // 2)


def glm4v(b: Builder) -> None:
    """models/glm4_1v.py."""
    vision = b.config.section("vision_config")
    tower = b.tower("visual", *_VISION)
    if tower is not None:
        hidden, heads, out = (vision.int(key) for key in ("hidden_size", "num_heads", "out_hidden_size"))
        merge = vision.int("spatial_merge_size", default=2)
        _patches(tower, vision, hidden, bias=True)
        bias = vision.flag("attention_bias")
        for index in range(vision.layers("depth")):
            block = tower / f"blocks.{index}"
            _block_attention(block, hidden, heads, bias=bias)
            # The blocks are as wide as what they hand over, whatever `intermediate_size` says.
            block.gated_mlp("mlp", out, hidden_size=hidden)
            for norm in ("norm1", "norm2"):
                block.norm(norm, hidden)
        tower.column("merger.proj", out, out)
        tower.norm("merger.post_projection_norm", out, bias=True)
        tower.column(
            "merger.gate_up_proj",
            out,
            (("gate_proj", vision.int("intermediate_size")), ("up_proj", vision.int("intermediate_size"))),
        )
        tower.row("merger.down_proj", vision.int("intermediate_size"), out)
        positions = (vision.int("image_size") // vision.int("patch_size")) ** 2
        tower.plain("embeddings.position_embedding.weight", positions, hidden)
        tower.buffer("embeddings.position_ids", 1, positions, dtype="int64")
        tower.norm("post_conv_layernorm", hidden)
        tower.plain("downsample.weight", out, hidden, merge, merge)
        tower.plain("downsample.bias", out)
        tower.norm("post_layernorm", hidden)
        _tower_rope(tower, hidden // heads)
    from autofit_vllm.architectures.families.dense import glm4
    from autofit_vllm.architectures.families.experts import glm4_moe

    language_model(b, build=glm4_moe if b.config.model_type == "glm4v_moe" else glm4)


def glm_ocr(b: Builder) -> None:
    """models/glm_ocr.py and glm5next: a tower whose heads are normalized."""
    from autofit_vllm.architectures.families.compressed import glm5_next
    from autofit_vllm.architectures.families.dense import glm4

    root = b.config
    later = root.model_type.startswith("glm5")
    vision = root.section("vision_config", model_type="glm5_next_vision" if later else "glm_ocr_vision")
    text = root.section("text_config", model_type="glm5_next_text" if later else "glm_ocr_text")
    tower = b.tower("visual", *_VISION)
    if tower is not None:
        hidden, heads, out = (vision.int(key) for key in ("hidden_size", "num_heads", "out_hidden_size"))
        merge, width = vision.int("spatial_merge_size", default=2), vision.int("intermediate_size")
        bias = vision.flag("attention_bias")
        _patches(tower, vision, hidden, bias=True)
        for index in range(vision.layers("depth")):
            block = tower / f"blocks.{index}"
            _block_attention(block, hidden, heads, bias=bias)
            for norm in ("attn.q_norm", "attn.k_norm"):
                block.norm(norm, hidden // heads)
            block.gated_mlp("mlp", width, hidden_size=hidden, bias=bias)
            for norm in ("norm1", "norm2"):
                block.norm(norm, hidden)
        merger = tower / "merger"
        merger.column("proj", out, out)
        merger.norm("post_projection_norm", out, bias=True)
        inner = vision.int("projection_intermediate_size") if later else text.int("intermediate_size")
        merger.gated_mlp("", inner, hidden_size=out)
        tower.plain("downsample.weight", out, hidden, merge, merge)
        tower.plain("downsample.bias", out)
        tower.norm("post_layernorm", hidden)
        positions = text.int("max_position_embeddings") if later else 8192
        tower.buffer(f"{tower.prefix}.rotary_pos_emb", positions, hidden // heads // 2)
    language_model(b, build=glm5_next if later else glm4)


def internvl_hf(b: Builder) -> None:
    """models/internvl.py through Transformers' layout (interns1_vit.py)."""
    root = b.config
    vision, text = root.section("vision_config"), root.section("text_config")
    tower, projector = b.tower("vision_tower", *_VISION), b.tower("multi_modal_projector", *_VISION)
    if tower is not None and projector is not None:
        hidden = vision.int("hidden_size")
        sides = vision.items_of("image_size") or [vision.int("image_size")] * 2
        patches = vision.items_of("patch_size") or [vision.int("patch_size")] * 2
        positions = (int(sides[0]) // int(patches[0])) * (int(sides[1]) // int(patches[1]))
        tower.plain("embeddings.cls_token", 1, 1, hidden)
        tower.plain("embeddings.position_embeddings", 1, positions + 1, hidden)
        channels = vision.int("num_channels", default=3)
        tower.plain("embeddings.patch_embeddings.projection.weight", hidden, channels, *patches)
        tower.plain("embeddings.patch_embeddings.projection.bias", hidden)
        bias = vision.flag("attention_bias")
        for index in range(vision.layers()):
            block = tower / f"encoder.layer.{index}"
            for name in ("lambda_1", "lambda_2"):
                block.plain(name, hidden)
            for name in ("q_proj", "k_proj", "v_proj"):
                block.plain(f"attention.{name}.weight", hidden, hidden)
                if bias:
                    block.plain(f"attention.{name}.bias", hidden)
            if vision.flag("use_qk_norm"):
                block.norm("attention.q_norm", hidden)
                block.norm("attention.k_norm", hidden)
            block.plain("attention.projection_layer.weight", hidden, hidden)
            block.plain("attention.projection_layer.bias", hidden)
            feed = vision.int("intermediate_size")
            block.mlp("mlp", "fc1", "fc2", feed, hidden_size=hidden, quantizable=False)
            layer_norm = vision.text("norm_type", "layer_norm") == "layer_norm"
            for norm in ("layernorm_before", "layernorm_after"):
                block.norm(norm, hidden, bias=layer_norm)
        if not vision.flag("use_mean_pooling", True):
            tower.norm("layernorm", hidden, bias=True)
        wide = int(hidden / root.number("downsample_ratio", 0.5) ** 2)
        out = text.int("hidden_size")
        projector.norm("layer_norm", wide, bias=True)
        for name, inner in (("linear_1", wide), ("linear_2", out)):
            projector.plain(f"{name}.weight", out, inner)
            projector.plain(f"{name}.bias", out)
    language_model(b)


def internvl_chat(b: Builder) -> None:
    """models/internvl.py with OpenGVLab's own layout (intern_vit.py)."""
    root = b.config
    vision = root.section("vision_config")
    text = root.section("llm_config", "text_config")
    tower, projector = b.tower("vision_model", *_VISION), b.tower("mlp1", *_VISION)
    if tower is not None and projector is not None:
        hidden, heads, patch = (vision.int(k) for k in ("hidden_size", "num_attention_heads", "patch_size"))
        positions = (vision.int("image_size") // patch) ** 2 + 1
        tower.plain("embeddings.class_embedding", 1, 1, hidden)
        tower.plain("embeddings.position_embedding", 1, positions, hidden)
        tower.plain("embeddings.patch_embedding.weight", hidden, vision.int("num_channels", default=3), patch, patch)
        tower.plain("embeddings.patch_embedding.bias", hidden)
        for index in range(vision.layers()):
            block = tower / f"encoder.layers.{index}"
            block.plain("ls1", hidden)
            block.plain("ls2", hidden)
            block.qkv(
                "attn.qkv",
                hidden,
                heads=heads,
                kv_heads=heads,
                head_size=hidden // heads,
                names=("qkv",),
                bias=vision.flag("qkv_bias"),
            )
            if vision.flag("qk_normalization"):
                block.norm("attn.q_norm", hidden)
                block.norm("attn.k_norm", hidden)
            block.row("attn.proj", hidden, hidden, bias=True)
            block.mlp("mlp", "fc1", "fc2", vision.int("intermediate_size"), hidden_size=hidden)
            layer_norm = vision.text("norm_type", "rms_norm") == "layer_norm"
            for norm in ("norm1", "norm2"):
                block.norm(norm, hidden, bias=layer_norm)
        wide = int(hidden / root.number("downsample_ratio", 0.5) ** 2)
        out = text.int("hidden_size")
        projector.norm("0", wide, bias=True)
        for name, inner in (("1", wide), ("3", out)):
            projector.plain(f"{name}.weight", out, inner)
            projector.plain(f"{name}.bias", out)
    language_model(b, "llm_config", "text_config")


def llama4(b: Builder) -> None:
    """models/mllama4.py: the encoder is never quantized."""
    from autofit_vllm.architectures.families.experts import llama4 as language

    root = b.config
    vision = root.section("vision_config", model_type="llama4_vision_model")
    tower, projector = b.tower("vision_model", "image"), b.tower("multi_modal_projector", "image")
    if tower is not None and projector is not None:
        hidden, heads = vision.int("hidden_size"), vision.int("num_attention_heads")
        patch = vision.int("patch_size")
        positions = (vision.int("image_size") // patch) ** 2 + 1
        tower.plain("class_embedding", hidden)
        tower.plain("positional_embedding_vlm", positions, hidden)
        tower.column(
            "patch_embedding.linear", vision.int("num_channels", default=3) * patch**2, hidden, quantizable=False
        )
        tower.norm("layernorm_pre", hidden, bias=True)
        tower.norm("layernorm_post", hidden, bias=True)
        for index in range(vision.layers()):
            block = tower / f"model.layers.{index}"
            sizes: dict[str, Any] = {"heads": heads, "kv_heads": heads, "head_size": hidden // heads}
            block.qkv("self_attn.qkv_proj", hidden, bias=True, quantizable=False, **sizes)
            block.row("self_attn.o_proj", hidden, hidden, bias=True, quantizable=False)
            block.mlp("mlp", "fc1", "fc2", vision.int("intermediate_size"), hidden_size=hidden, quantizable=False)
            for norm in ("input_layernorm", "post_attention_layernorm"):
                block.norm(norm, hidden, bias=True)
        ratio = vision.number("pixel_shuffle_ratio", 0.5)
        wide, mid = vision.int("projector_input_dim"), vision.int("projector_output_dim")
        tower.column("vision_adapter.mlp.fc1", int(hidden / ratio**2), wide, quantizable=False)
        tower.row("vision_adapter.mlp.fc2", wide, mid, quantizable=False)
        # One complex number per pair of rotated elements, of eight bytes.
        tower.buffer("vision_model.rope", positions, hidden // heads // 2, dtype="int64")
        out = root.section("text_config").int("hidden_size")
        projector.column("linear_1", vision.int("vision_output_dim"), out, quantizable=False)
    language_model(b, build=language)


def moonvit(tower: Scope, vision: Config, *, bias: bool = True, **more: Any) -> None:
    """models/moonvit.py, and kimi_k25_vit.py, which knows time too."""
    hidden, heads, patch = (vision.int(k) for k in ("hidden_size", "num_attention_heads", "patch_size"))
    inner = vision.int("qkv_hidden_size", default=hidden)
    tower.plain("patch_embed.proj.weight", hidden, 3, patch, patch)
    if bias:
        tower.plain("patch_embed.proj.bias", hidden)
    rows, columns = (vision.int(f"init_pos_emb_{side}", f"pos_emb_{side}", default=64) for side in ("height", "width"))
    tower.plain("patch_embed.pos_emb.weight", rows, columns, hidden)
    sizes: dict[str, Any] = {"heads": heads, "kv_heads": heads, "head_size": inner // heads}
    for index in range(vision.layers()):
        block = tower / f"encoder.blocks.{index}"
        for norm in ("norm0", "norm1"):
            block.norm(norm, hidden, bias=bias)
        block.mlp("mlp", "fc0", "fc1", vision.int("intermediate_size"), hidden_size=hidden, bias=bias, **more)
        block.qkv("wqkv", hidden, names=("wqkv",), bias=bias, **sizes, **more)
        block.row("wo", inner, hidden, bias=bias, **more)
    tower.norm("encoder.final_layernorm", hidden, bias=bias)


def _merged_patches(projector: Scope, vision: Config, out: int, **more: Any) -> None:
    hidden = vision.int("hidden_size")
    merged = hidden * math.prod(vision.items_of("merge_kernel_size") or [2, 2])
    projector.norm("pre_norm", hidden, bias=True)
    projector.replicated("linear_1", merged, merged, bias=True, **more)
    projector.replicated("linear_2", merged, out, bias=True, **more)


def kimi_vl(b: Builder) -> None:
    """models/kimi_vl.py: a MoonViT before a DeepSeek decoder."""
    from autofit_vllm.architectures.families.latent import deepseek_v2

    root = b.config
    vision = root.section("vision_config", model_type="moonvit")
    tower, projector = b.tower("vision_tower", "image"), b.tower("multi_modal_projector", "image")
    if tower is not None and projector is not None:
        moonvit(tower, vision, quantizable=False)
        _merged_patches(projector, vision, root.section("text_config").int("hidden_size"), quantizable=False)
    # Its class of configuration is DeepSeek V2's, whose defaults differ.
    b.config = root.replace(text_config={"norm_topk_prob": False, **root.table("text_config")})
    language_model(b, build=deepseek_v2)


def kimi_k25(b: Builder) -> None:
    """models/kimi_k25.py: Kimi K2.5 and K2.6. compressed-tensors leaves its tower alone."""
    from autofit_vllm.architectures.families.latent import deepseek_v2

    root = b.config
    vision, text = root.section("vision_config", model_type="kimi_k25_vision"), root.section("text_config")
    quantized = root.table("quantization_config") or text.table("quantization_config")
    method = quantized.get("quant_method")
    told = method not in (None, "compressed-tensors")
    tower, projector = b.tower("vision_tower", "vision_chunk"), b.tower("mm_projector", "vision_chunk")
    if tower is not None and projector is not None:
        moonvit(tower, vision, quantizable=told)
        frames = vision.int("init_pos_emb_time", "pos_emb_time", default=4)
        dtype = "float32" if told else None
        tower.buffer(f"{tower.prefix}.time_weight", frames, 1, vision.int("hidden_size"), dtype=dtype)
        # Whatever it was made of, the projector is cast to the model's type.
        _merged_patches(projector, vision, text.int("hidden_size"), quantizable=False)
    language_model(b, build=deepseek_v2)


def gemma4(b: Builder) -> None:
    """models/gemma4_mm.py: towers of Transformers, which no rank shares."""
    root = b.config
    hidden = root.section("text_config").int("hidden_size")
    vision = root.section("vision_config", model_type="gemma4_vision")
    tower, embedder = b.tower("vision_tower", *_VISION), b.tower("embed_vision", *_VISION)
    if tower is not None and embedder is not None:
        width = vision.int("hidden_size")
        _gemma4_vision(tower, vision)
        embedder.replicated("embedding_projection", width, hidden, quantizable=_in_64s(b, vision))
    audio = root.section("audio_config", model_type="gemma4_audio")
    tower, embedder = b.tower("audio_tower", "audio"), b.tower("embed_audio", "audio")
    if audio.given and tower is not None and embedder is not None:
        _gemma4_audio(tower, audio)
        out = audio.int("output_proj_dims", default=1536)
        embedder.replicated("embedding_projection", out, hidden, quantizable=_in_64s(b, audio))
    language_model(b)


def _in_64s(b: Builder, config: Config) -> bool:
    """(gemma4_mm.py:_get_tower_quant_config) some methods take any size, the others multiples of 64."""
    if b.root.table("quantization_config").get("quant_method") in ("bitsandbytes", "torchao", "compressed-tensors"):
        return True
    return not any(config.int(key, default=0) % 64 for key in ("hidden_size", "intermediate_size"))


def _clipped(here: Scope, name: str, in_size: int, out_size: int, *, quantizable: bool, clips: bool) -> None:
    """A linear layer whose input and output may be held between four learned numbers."""
    here.replicated(f"{name}.linear", in_size, out_size, quantizable=quantizable)
    for bound in ("input_min", "input_max", "output_min", "output_max") if clips else ():
        here.buffer(f"{here.prefix}.{name}.{bound}")


def _gemma4_vision(tower: Scope, vision: Config) -> None:
    hidden, feed, size = vision.int("hidden_size"), vision.int("intermediate_size"), vision.int("head_dim")
    heads, kv_heads = vision.int("num_attention_heads"), vision.int("num_key_value_heads")
    more = {"quantizable": _in_64s(tower.builder, vision), "clips": vision.flag("use_clipped_linears")}
    here = tower / "patch_embedder"
    here.plain("position_embedding_table", 2, vision.int("position_embedding_size", default=10240), hidden)
    here.replicated("input_proj", 3 * vision.int("patch_size") ** 2, hidden, quantizable=more["quantizable"])
    for index in range(vision.layers()):
        block = tower / f"encoder.layers.{index}"
        _clipped(block, "self_attn.q_proj", hidden, heads * size, **more)
        _clipped(block, "self_attn.k_proj", hidden, kv_heads * size, **more)
        _clipped(block, "self_attn.v_proj", hidden, kv_heads * size, **more)
        _clipped(block, "self_attn.o_proj", heads * size, hidden, **more)
        block.norm("self_attn.q_norm", size)
        block.norm("self_attn.k_norm", size)
        _clipped(block, "mlp.gate_proj", hidden, feed, **more)
        _clipped(block, "mlp.up_proj", hidden, feed, **more)
        _clipped(block, "mlp.down_proj", feed, hidden, **more)
        for norm in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            block.norm(f"{norm}_layernorm", hidden)
    if vision.flag("standardize"):
        for name in ("std_bias", "std_scale"):
            tower.buffer(f"{tower.prefix}.{name}", hidden)
    for name in ("inv_freq", "original_inv_freq"):
        tower.buffer(f"{tower.prefix}.rotary_emb.{name}", size // 4, dtype="float32")


def _gemma4_audio(tower: Scope, audio: Config) -> None:
    hidden, heads = audio.int("hidden_size"), audio.int("num_attention_heads")
    more = {"quantizable": _in_64s(tower.builder, audio), "clips": audio.flag("use_clipped_linears", True)}
    first, second = (audio.items_of("subsampling_conv_channels") or [128, 32])[:2]
    here = tower / "subsample_conv_projection"
    here.plain("layer0.conv.weight", first, 1, 3, 3)
    here.norm("layer0.norm", first)
    here.plain("layer1.conv.weight", second, first, 3, 3)
    here.norm("layer1.norm", second)
    here.replicated("input_proj_linear", second * first // 4, hidden, quantizable=more["quantizable"])
    tower.buffer(f"{tower.prefix}.inv_timescales", 1, 1, hidden // 2)
    for index in range(audio.layers()):
        block = tower / f"layers.{index}"
        for name in ("feed_forward1", "feed_forward2"):
            _clipped(block, f"{name}.ffw_layer_1", hidden, 4 * hidden, **more)
            _clipped(block, f"{name}.ffw_layer_2", 4 * hidden, hidden, **more)
            block.norm(f"{name}.pre_layer_norm", hidden)
            block.norm(f"{name}.post_layer_norm", hidden)
        block.plain("self_attn.per_dim_scale", hidden // heads)
        for name in ("q_proj", "k_proj", "v_proj", "post"):
            _clipped(block, f"self_attn.{name}", hidden, hidden, **more)
        block.replicated("self_attn.relative_k_proj", hidden, hidden, quantizable=more["quantizable"])
        block.buffer(f"{block.prefix}.self_attn.softcap")
        _clipped(block, "lconv1d.linear_start", hidden, 2 * hidden, **more)
        _clipped(block, "lconv1d.linear_end", hidden, hidden, **more)
        block.plain("lconv1d.depthwise_conv1d.weight", hidden, 1, audio.int("conv_kernel_size", default=5))
        block.norm("lconv1d.pre_layer_norm", hidden)
        block.norm("lconv1d.conv_norm", hidden)
        for name in ("norm_pre_attn", "norm_post_attn", "norm_out"):
            block.norm(name, hidden)
    out = audio.int("output_proj_dims", default=1536)
    tower.replicated("output_proj", hidden, out, bias=True, quantizable=more["quantizable"])


def minimax_m3(b: Builder) -> None:
    """models/minimax_m3: a CLIP tower over pairs of frames, two projections after it."""
    root = b.config
    vision, text = root.section("vision_config"), root.section("text_config")
    out = root.int("projector_hidden_size", default=text.int("hidden_size"))
    tower = b.tower("vision_tower", *_VISION)
    if tower is not None:
        here, hidden, patch = tower / "vision_model", vision.int("hidden_size"), vision.int("patch_size")
        merged = vision.section("img_token_compression_config")
        frames, side = merged.int("temporal_patch_size", default=2), merged.int("spatial_merge_size", default=2)
        channels, wide = vision.int("num_channels", default=3), side * side * out
        here.plain("embeddings.patch_embedding.weight", hidden, channels, frames, patch, patch)
        here.norm("pre_layrnorm", hidden, bias=True)
        _siglip_layers(here, vision, vision.layers(), feeds="")
        third = 2 * (hidden // vision.int("num_attention_heads") // 2 // 3)
        for axis in "thw":
            here.buffer(f"inv_freq_{axis}", third // 2, dtype="float32")
        last = text.int("hidden_size")
        for name, size, inner in (("multi_modal_projector", hidden, out), ("patch_merge_mlp", wide, out)):
            (tower / name).mlp("", "linear_1", "linear_2", inner, hidden_size=size, out_size=last)
    language_model(b)


def kimi_k3(b: Builder) -> None:
    """models/kimi_k3: a MoonViT without biases, its norms RMS."""
    from autofit_vllm.architectures.families.recurrent import kimi_linear

    root = b.config
    vision, text = root.section("vision_config", model_type="kimi_k3_vision"), root.section("text_config")
    tower, projector = b.tower("vision_tower", "vision_chunk"), b.tower("mm_projector", "vision_chunk")
    if tower is not None and projector is not None:
        # (transformers_utils/configs/kimi_k3.py:KimiK3VisionConfig)
        vision = vision.replace(
            patch_size=vision.int("patch_size", default=14),
            hidden_size=vision.int("vt_hidden_size", default=1024),
            intermediate_size=vision.int("vt_intermediate_size", default=4096),
            num_hidden_layers=vision.int("vt_num_hidden_layers", default=27),
            num_attention_heads=vision.int("vt_num_attention_heads", default=12),
            qkv_hidden_size=vision.int("qkv_hidden_size", default=1536),
        )
        hidden, out = vision.int("hidden_size"), text.int("hidden_size")
        merged = hidden * math.prod(vision.items_of("merge_kernel_size") or [2, 2])
        moonvit(tower, vision, bias=False, divides=vision.int("num_attention_heads"))
        frames = vision.int("init_pos_emb_time", default=4)
        tower.buffer(f"{tower.prefix}.time_weight", frames, 1, hidden, dtype="float32")
        projector.replicated("linear_1", merged, merged, quantizable=False)
        projector.replicated("linear_2", merged, out, quantizable=False)
        projector.norm("post_norm", out)
    language_model(b, build=kimi_linear)


def llava_onevision(b: Builder) -> None:
    """models/llava_onevision.py: the tower ends with its layers, the projector is on every rank."""
    root = b.config
    vision, hidden = root.section("vision_config"), root.section("text_config").int("hidden_size")
    tower, projector = b.tower("vision_tower", *_VISION), b.tower("multi_modal_projector", *_VISION)
    if tower is not None and projector is not None:
        layers, _ = _vision_layers(vision, root.get("vision_feature_layer", -1))
        if vision.model_type == "siglip_vision_model":
            siglip(tower, vision, layers=layers, post_norm=False)
        else:
            clip(tower, vision, layers=layers, post_norm=False)
        bias = root.flag("multimodal_projector_bias", True)
        projector.replicated("linear_1", vision.int("hidden_size"), hidden, bias=bias, quantizable=False)
        projector.replicated("linear_2", hidden, hidden, bias=bias, quantizable=False)
    b.scope("", -3).plain("image_newline", hidden)
    language_model(b)


def paddleocr(b: Builder) -> None:
    """models/paddleocr_vl.py: SigLIP with a rope, patches merged before they are projected, an Ernie decoder."""
    from autofit_vllm.architectures.families.dense import ernie4_5

    root = b.config
    vision = root.section("vision_config", model_type="paddleocr_vl_vision")
    text = root.section("text_config", model_type="paddleocr_vl_text")
    tower, projector = b.tower("visual", "image"), b.tower("mlp_AR", "image")
    if tower is not None and projector is not None:
        siglip(tower, vision)
        size = vision.int("hidden_size") // vision.int("num_attention_heads")
        tower.buffer(f"{tower.prefix}.inv_freq", size // 4, dtype="float32")
        _merged_patches(projector, vision, (text if text.given else root).int("hidden_size"), quantizable=False)
    language_model(b, build=ernie4_5)


def lfm2_vl(b: Builder) -> None:
    """models/lfm2_vl.py: SigLIP 2 over flattened patches, neighbors folded before they are projected."""
    root = b.config
    vision, out = root.section("vision_config"), root.section("text_config").int("hidden_size")
    tower, projector = b.tower("vision_tower", "image"), b.tower("multi_modal_projector", "image")
    if tower is not None and projector is not None:
        here, hidden, patch = tower / "vision_model", vision.int("hidden_size"), vision.int("patch_size")
        here.plain("embeddings.patch_embedding.weight", hidden, vision.int("num_channels", default=3) * patch * patch)
        here.plain("embeddings.patch_embedding.bias", hidden)
        here.plain("embeddings.position_embedding.weight", vision.int("num_patches"), hidden)
        _siglip_layers(here, vision, vision.layers())
        here.norm("post_layernorm", hidden, bias=True)
        folded, inner = hidden * root.int("downsample_factor", default=2) ** 2, root.int("projector_hidden_size")
        if root.flag("projector_use_layernorm", True):
            projector.norm("layer_norm", folded, bias=True)
        bias = root.flag("projector_bias", True)
        projector.replicated("linear_1", folded, inner, bias=bias, quantizable=False)
        projector.replicated("linear_2", inner, out, bias=bias, quantizable=False)
    language_model(b)


def minicpmv4_6(b: Builder) -> None:
    """models/minicpmv4_6.py: SigLIP, windows of patches merged within the tower and again after it."""
    root = b.config
    vision = root.section("vision_config", model_type="minicpmv4_6_vision")
    out = root.section("text_config").int("hidden_size")
    tower, within, after = (b.tower(name, *_VISION) for name in ("vpm", "vit_merger", "merger"))
    if tower is not None and within is not None and after is not None:
        hidden, heads, patch = (vision.int(k) for k in ("hidden_size", "num_attention_heads", "patch_size"))
        tower.plain("embeddings.patch_embedding.weight", hidden, vision.int("num_channels", default=3), patch, patch)
        tower.plain("embeddings.patch_embedding.bias", hidden)
        tower.plain("embeddings.position_embedding.weight", (vision.int("image_size") // patch) ** 2, hidden)
        _siglip_layers(tower, vision, vision.layers())
        tower.norm("post_layernorm", hidden, bias=True)
        sizes: dict[str, Any] = {"heads": heads, "kv_heads": heads, "head_size": hidden // heads}
        within.qkv("self_attn.qkv_proj", hidden, bias=True, **sizes)
        within.row("self_attn.out_proj", hidden, hidden, bias=True)
        within.norm("layer_norm1", hidden, bias=True)
        folded, width = 4 * hidden, 4 * vision.int("intermediate_size")
        within.norm("pre_norm", folded, bias=True)
        within.replicated("linear_1", folded, width, bias=True, quantizable=False)
        within.replicated("linear_2", width, hidden, bias=True, quantizable=False)
        last = after / "mlp.0"
        last.norm("pre_norm", folded, bias=True)
        last.replicated("linear_1", folded, folded, bias=True, quantizable=False)
        last.replicated("linear_2", folded, out, bias=True, quantizable=False)
    # Whether the head is tied, the text's own configuration says here.
    b.config = root.replace(tie_word_embeddings=root.section("text_config").flag("tie_word_embeddings"))
    language_model(b)
