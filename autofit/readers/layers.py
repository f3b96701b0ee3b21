"""Blocks of a GGUF model: which tensors make up each, how it mixes tokens, and what its parts weigh.

Only what file and metadata say: rules that an engine adds (a default sliding window, say) are the engine's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from autofit.domain.model import FeedForwardKind, LayerSpec, Mixer, StringArray, TensorInfo
from autofit.domain.text import is_number

Group = Literal["embedding", "attention", "feed-forward", "experts", "norm", "output", "other"]

_STACKS = {
    "enc",
    "dec",
    "v",
    "a",
}  # encoder, decoder, vision and audio blocks; the model's own have no prefix
_MIXING = ("attn_", "cross_attn_", "ssm_", "shortconv", "time_mix_", "indexer", "vis_attn_")
_FEEDING = ("ffn", "channel_mix_", "exp_probs_b", "vis_")
_NORMS = ("ln1", "ln2", "enorm", "hnorm")


def gguf_group(name: str) -> Group:
    """What a tensor belongs to, by its name (src/llama-arch.cpp:LLM_TENSOR_NAMES)."""
    _, _, part = split_block(name)
    stem = part.removesuffix(".weight").removesuffix(".bias")
    if "norm" in stem or stem in _NORMS:
        return "norm"
    if part is not name:
        return _block_group(stem)
    if stem.startswith(("token_embd", "position_embd", "token_types", "per_layer_")):
        return "embedding"
    return "output" if stem.startswith(("output", "cls")) else "other"


def split_block(name: str) -> tuple[str, int | None, str]:
    """Stack, block number and rest of a name such as `enc.blk.7.ffn_up.weight`, or no number and `name`."""
    head, _, rest = name.partition(".")
    stack = ""
    if head in _STACKS:
        stack = head
        head, _, rest = rest.partition(".")
    if head == "blk":
        number, _, part = rest.partition(".")
        if is_number(number, 6) and part:
            return stack, int(number), part
    return "", None, name


def _block_group(stem: str) -> Group:
    if stem.startswith(_MIXING):
        return "attention"
    if stem.startswith(_FEEDING):
        # ffn_gate.3: one tensor per expert, as old Mixtral files have them
        return (
            "experts"
            if stem.endswith("exps") or (stem[-1:].isdecimal() and stem.startswith("ffn_"))
            else "feed-forward"
        )
    return "other"


def gguf_layers(
    architecture: str, metadata: Mapping[str, object], tensors: Sequence[TensorInfo]
) -> tuple[LayerSpec, ...]:
    """One entry per block, stack by stack."""
    blocks: dict[tuple[str, int], dict[str, int]] = {}
    parts: dict[tuple[str, int], set[str]] = {}
    for tensor in tensors:
        stack, number, part = split_block(tensor.name)
        if number is None:
            continue
        stem = part.removesuffix(".weight").removesuffix(".bias")
        group = "norm" if "norm" in stem or stem in _NORMS else _block_group(stem)
        weights = blocks.setdefault((stack, number), {})
        weights[group] = weights.get(group, 0) + tensor.n_bytes
        parts.setdefault((stack, number), set()).add(stem)
    keys = _Keys(architecture, metadata)
    return tuple(
        _layer(keys, stack, index, blocks[stack, index], parts[stack, index]) for stack, index in sorted(blocks)
    )


class _Keys:
    """Metadata under the architecture's name, read per layer: a value is one number or an array of them."""

    def __init__(self, architecture: str, metadata: Mapping[str, object]) -> None:
        self.architecture = architecture
        self.metadata = metadata

    def at(self, key: str, index: int) -> int | None:
        value = self.metadata.get(f"{self.architecture}.{key}")
        if isinstance(value, tuple):
            value = value[index] if index < len(value) else None
        return int(value) if isinstance(value, int) else None

    def has(self, key: str) -> bool:
        return f"{self.architecture}.{key}" in self.metadata

    def sliding(self, index: int) -> bool | None:
        """Whether layer `index` sees a window only, or `None` if the file does not say (llama_hparams)."""
        pattern = self.metadata.get(f"{self.architecture}.attention.sliding_window_pattern")
        if isinstance(pattern, StringArray) or pattern is None or not self.at("attention.sliding_window", index):
            return None
        if isinstance(pattern, tuple):
            return bool(pattern[index]) if index < len(pattern) else None
        return isinstance(pattern, int) and pattern > 0 and index % pattern < pattern - 1


def _layer(keys: _Keys, stack: str, index: int, weights: Mapping[str, int], parts: set[str]) -> LayerSpec:
    own = stack in {"", "enc", "dec"}
    n_heads = keys.at("attention.head_count", index) if own else None
    n_kv_heads = keys.at("attention.head_count_kv", index) if own else None
    width = keys.at("embedding_length", index) if own else None
    head_dim = width // n_heads if width and n_heads else None
    has_experts = weights.get("experts", 0) > 0
    mixer, beside = _mixer(keys, index, parts, n_kv_heads)
    feed_forward: FeedForwardKind = "experts" if has_experts else "dense" if weights.get("feed-forward") else "none"
    attends = mixer in {"full", "sliding", "chunked", "latent"}
    return LayerSpec(
        index=index,
        stack=stack,
        mixer=mixer,
        also_recurrent=beside,
        feed_forward=feed_forward,
        n_heads=n_heads if attends else None,
        n_kv_heads=(n_heads if n_kv_heads is None else n_kv_heads) if attends else None,
        key_dim=(keys.at("attention.key_length", index) or head_dim) if attends and own else None,
        value_dim=(keys.at("attention.value_length", index) or head_dim) if attends and own else None,
        window_tokens=keys.at("attention.sliding_window", index) if mixer == "sliding" else None,
        n_experts=(keys.at("expert_count", index) or 0) if has_experts else 0,
        n_experts_used=(keys.at("expert_used_count", index) or 0) if has_experts else 0,
        attention_bytes=weights.get("attention", 0),
        feed_forward_bytes=weights.get("feed-forward", 0),
        expert_bytes=weights.get("experts", 0),
        other_bytes=weights.get("norm", 0) + weights.get("other", 0),
    )


def _mixer(keys: _Keys, index: int, parts: set[str], n_kv_heads: int | None) -> tuple[Mixer, bool]:
    """How a block mixes tokens, and whether a recurrent state stands beside its attention."""
    is_said = bool(keys.at("attention.recurrent_layers", index))
    recurrent = is_said or any(part.startswith(("ssm_", "time_mix_")) for part in parts)
    if "attn_kv_a_mqa" in parts:
        return ("latent" if keys.has("attention.key_length_mla") else "full"), recurrent
    # a linear-attention block has a joint projection too: only separate keys say that it attends
    attends = "attn_k" in parts or "attn_q" in parts or (bool({"attn_qkv", "attn_kv"} & parts) and not recurrent)
    if recurrent and (not attends or is_said or n_kv_heads == 0):
        return "recurrent", False
    if "shortconv.conv" in parts:
        return "shortconv", False
    if not attends or n_kv_heads == 0:
        return "none", False
    return ("sliding" if keys.sliding(index) else "full"), recurrent
