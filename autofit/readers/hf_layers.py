"""Blocks of a Hugging Face checkpoint, from its configuration and the names of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from autofit.domain.model import FeedForwardKind, LayerSpec, Mixer, TensorInfo
from autofit.domain.patterns import lazy_pattern
from autofit.domain.values import NamedTuple

MAX_LAYERS = 4096  #: blocks that a configuration alone may claim
MAX_FIGURE = 1 << 40  #: what a figure of a configuration must be below to be believed

_BLOCK = lazy_pattern(r"(?:(.*?)\.)?(\d{1,5})\.(.+)", re.ASCII | re.DOTALL)
_EXPERT = lazy_pattern(r"(^|\.)experts\.|_experts?\.\d")
_MIXING = lazy_pattern(
    r"(^|\.)(self_attn|self_attention|attn|attention|cross_attn|linear_attn|mixer|mamba|ssm|conv|short_conv"
    r"|time_mix\w*|temporal_block|SelfAttention|EncDecAttention)\."
)
_FEEDING = lazy_pattern(
    r"(^|\.)(mlp|ffn|feed_forward|ff|block_sparse_moe|moe|shared_experts?|shared_mlp|router|gate"
    r"|DenseReluDense|fc1|fc2)(\.|$)"
)
_RECURRENT = lazy_pattern(r"A_log|conv1d|dt_proj|in_proj_qkvz|time_mix|\bssm\b")
_KINDS: dict[str, Mixer] = {
    "full_attention": "full", "attention": "full", "global": "full", "hybrid": "full",
    "sliding_attention": "sliding", "local": "sliding", "chunked_attention": "chunked",
    "linear_attention": "recurrent", "mamba": "recurrent", "recurrent": "recurrent", "conv": "shortconv",
    "moe": "none", "mlp": "none",
}  # fmt: skip
#: layers that are a feed-forward and nothing else: beside them, the others have none
_FEEDS: dict[str, FeedForwardKind] = {"moe": "experts", "mlp": "dense"}
#: transformers: NemotronHConfig._pattern_to_list
_LETTERS = {"M": "mamba", "*": "attention", "E": "moe", "-": "mlp"}


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that describes the language model."""
    for key in ("text_config", "llm_config", "language_config", "thinker_config"):
        inner = config.get(key)
        if isinstance(inner, dict):
            return text_config(inner) if key == "thinker_config" else inner
    return config


def hf_group(name: str) -> str:
    """What a tensor belongs to, by its name; the words are those of `layers.Group`."""
    match = _BLOCK.fullmatch(name)
    part = match[3] if match else name
    if match:
        return _block_group(part)
    if "embed" in part or part.startswith(("wte", "wpe", "transformer.wte", "transformer.wpe")):
        return "embedding"
    if "lm_head" in part or part.startswith(("output", "score", "classifier")):
        return "output"
    return "norm" if "norm" in part or "ln_f" in part else "other"


def _block_group(part: str) -> str:
    if _EXPERT.search(part):
        return "experts"
    if "norm" in part or part.startswith(("ln_", "ln1", "ln2")):
        return "norm"
    if _MIXING.search(part):
        return "attention"
    return "feed-forward" if _FEEDING.search(part) else "other"


def hf_layers(config: Mapping[str, Any], tensors: Sequence[TensorInfo]) -> tuple[LayerSpec, ...]:
    """One entry per block, stack by stack; from the configuration alone where there are no tensors.

    `config` is the language model's. The stack with most bytes is the model's own; others keep their prefix.
    """
    kinds = _kinds(config)
    if not tensors:
        count = figure(config, "num_hidden_layers", "n_layer", "num_layers", "n_layers") or len(kinds.layers)
        return tuple(_layer(config, kinds, "", index, {}, set()) for index in range(min(count, MAX_LAYERS)))
    blocks: dict[tuple[str, int], dict[str, int]] = {}
    parts: dict[tuple[str, int], set[str]] = {}
    groups: dict[str, str] = {}
    weights: dict[str, int] = {}
    mixing: set[str] = set()
    head, n_head = "", 0  # most tensors are of the same block as the one before
    for name, _, _, n_bytes, _, _ in tensors:
        if not n_head or not name.startswith(head) or len(name) == n_head:
            match = _BLOCK.fullmatch(name)
            if match is None:
                n_head = 0
                continue
            n_head = match.start(3)
            head, block = name[:n_head], (match[1] or "", int(match[2]))
            weights, mixing = blocks.setdefault(block, {}), parts.setdefault(block, set())
        part = name[n_head:]
        group = groups.get(part)
        if group is None:
            group = groups[part] = _block_group(part)
        weights[group] = weights.get(group, 0) + n_bytes
        if group == "attention":
            mixing.add(part)
    totals: dict[str, int] = {}
    for (stack, _), weights in blocks.items():
        totals[stack] = totals.get(stack, 0) + sum(weights.values())
    main = max(totals, key=lambda stack: totals[stack], default="")
    rest = sorted(block for block in blocks if block[0] != main)
    own = sorted(block for block in blocks if block[0] == main)
    return (
        *(_layer(config, kinds, "", block[1], blocks[block], parts[block]) for block in own),
        *(_layer({}, _Kinds(), block[0], block[1], blocks[block], parts[block]) for block in rest),
    )


class _Kinds(NamedTuple):
    """What each layer is, where the configuration lists it; `apart`: mixing tokens, or feeding forward, never both."""

    layers: Sequence[str | None] = ()
    apart: bool = False


def _kinds(config: Mapping[str, Any]) -> _Kinds:
    kinds = config.get("layer_types") or config.get("layers_block_type")
    pattern = config.get("hybrid_override_pattern")
    if not isinstance(kinds, list) and isinstance(pattern, str):
        kinds = [_LETTERS.get(letter) for letter in pattern[:MAX_LAYERS]]
    if not isinstance(kinds, list):
        return _Kinds()
    layers = [kind if isinstance(kind, str) else None for kind in kinds[:MAX_LAYERS]]
    return _Kinds(layers, any(kind in _FEEDS for kind in layers))


def _layer(
    config: Mapping[str, Any],
    kinds: _Kinds,
    stack: str,
    index: int,
    weights: Mapping[str, int],
    parts: set[str],
) -> LayerSpec:
    kind = kinds.layers[index] if index < len(kinds.layers) else None
    mixer = _mixer(config, kind, index, parts, bool(weights))
    attends = mixer in {"full", "sliding", "chunked", "latent"}
    n_heads = figure(config, "num_attention_heads", "n_head", "num_heads")
    hidden = figure(config, "hidden_size", "d_model", "n_embd")
    head_dim = figure(config, "head_dim", "d_kv") or (hidden // n_heads if hidden and n_heads else None)
    rope = figure(config, "qk_rope_head_dim")
    n_experts = figure(config, "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts") or 0
    routed = weights.get("experts", 0) > 0 if weights else n_experts > 0 and _is_sparse(config, index)
    feed_forward: FeedForwardKind = (
        "experts" if routed else "dense" if weights.get("feed-forward") or not weights else "none"
    )
    if kinds.apart:
        feed_forward = _FEEDS.get(kind or "", "none")
        routed = feed_forward == "experts"
    latent = mixer == "latent"
    window = config.get({"sliding": "sliding_window", "chunked": "attention_chunk_size"}.get(mixer, ""))
    return LayerSpec(
        index=index,
        stack=stack,
        mixer=mixer,
        also_recurrent=attends and any(_RECURRENT.search(part) for part in parts),
        feed_forward=feed_forward,
        n_heads=n_heads if attends else None,
        n_kv_heads=(1 if latent else figure(config, "num_key_value_heads", "num_kv_heads", "n_head_kv") or n_heads)
        if attends
        else None,
        key_dim=((figure(config, "kv_lora_rank") or 0) + (rope or 0) if latent else head_dim) if attends else None,
        value_dim=(figure(config, "kv_lora_rank") if latent else head_dim) if attends else None,
        window_tokens=window if type(window) is int else None,
        n_experts=n_experts if routed else 0,
        n_experts_used=(figure(config, "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k") or 0)
        if routed
        else 0,
        attention_bytes=weights.get("attention", 0),
        feed_forward_bytes=weights.get("feed-forward", 0),
        expert_bytes=weights.get("experts", 0),
        other_bytes=weights.get("norm", 0) + weights.get("other", 0),
    )


def _mixer(config: Mapping[str, Any], kind: str | None, index: int, parts: set[str], has_weights: bool) -> Mixer:
    interval = figure(config, "full_attention_interval")
    if kind is None and interval and "linear_num_value_heads" in config:
        kind = "linear_attention" if (index + 1) % interval else "full_attention"
    period = figure(config, "sliding_window_pattern")
    if kind is None and period and figure(config, "sliding_window"):
        kind = "sliding_attention" if (index + 1) % period else "full_attention"
    if kind in _KINDS:
        found = _KINDS[kind]
        return "latent" if found == "full" and figure(config, "kv_lora_rank") else found
    if has_weights and not parts:
        return "none"
    if any(_RECURRENT.search(part) for part in parts) and not any(
        "k_proj" in part or "qkv_proj" in part for part in parts
    ):
        return "recurrent"
    if figure(config, "kv_lora_rank"):
        return "latent"
    return "full"


def _is_sparse(config: Mapping[str, Any], index: int) -> bool:
    """Whether block `index` has routed experts, by the keys that configurations say it with."""
    dense = config.get("mlp_only_layers")
    if index < (figure(config, "first_k_dense_replace") or 0) or (isinstance(dense, list) and index in dense):
        return False
    last_of = figure(config, "decoder_sparse_step", "interleave_moe_layer_step")
    if last_of:
        return (index + 1) % last_of == 0
    return index % (figure(config, "moe_layer_freq") or 1) == 0


def figure(config: Mapping[str, Any], *keys: str) -> int | None:
    """The first of these keys that holds a positive number."""
    for key in keys:
        value = config.get(key)
        if type(value) is int and 0 < value < MAX_FIGURE:
            return value
    return None
