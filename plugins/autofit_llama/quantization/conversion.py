"""The GGUF that llama.cpp's converter would make of a checkpoint, as far as names, shapes and figures go.

Source: llama.cpp b11311, conversion/base.py (TextModel.set_gguf_parameters, prepare_tensors), conversion/llama.py,
qwen.py, gemma.py, command_r.py, phi.py, granite.py and olmo.py, gguf-py/gguf/tensor_mapping.py. A decoder is described
by its norms, biases and fused matrices; what a converter does to the values, such as permuting rows, changes no size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal

from autofit.domain.dtypes import row_bytes
from autofit.domain.model import ModelFile, ModelSpec, TensorInfo
from autofit.domain.text import printable
from autofit.domain.values import NamedTuple, dataclass
from autofit.errors import UnsupportedModelError

MAX_LAYERS = 512


class _Family(NamedTuple):
    """A kind of decoder.

    `arch` in GGUF; `norms` of a layer; `biases` of queries, keys and values; `head_norms` of queries and keys: of one
    head, or of all at once; `is_fused`: queries, keys and values are one matrix, gate and up another; `is_tied`: it has
    no output matrix of its own; `keys` of the configuration that GGUF has, and as what.
    """

    arch: str
    norms: tuple[str, ...] = ("attn_norm", "ffn_norm")
    biases: bool = False
    head_norms: Literal["", "each", "all"] = ""
    is_fused: bool = False
    is_tied: bool = False
    has_head_dim: bool = True  #: else the configuration's is passed over
    keys: Mapping[str, str] = MappingProxyType({})


_BOTH_SIDES = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
_WINDOW = {"sliding_window": "attention.sliding_window"}
_FAMILIES = {
    "LlamaForCausalLM": _Family("llama"),
    "MistralForCausalLM": _Family("llama"),
    "MixtralForCausalLM": _Family("llama"),
    "SmolLM3ForCausalLM": _Family("smollm3"),
    "GraniteForCausalLM": _Family(
        "granite",
        has_head_dim=False,
        keys={
            "attention_multiplier": "attention.scale",
            "embedding_multiplier": "embedding_scale",
            "residual_multiplier": "residual_scale",
            "logits_scaling": "logit_scale",
        },
    ),
    "Qwen2ForCausalLM": _Family("qwen2", biases=True),
    "Qwen3ForCausalLM": _Family("qwen3", head_norms="each"),
    "Qwen3MoeForCausalLM": _Family("qwen3moe", head_norms="each"),
    "GemmaForCausalLM": _Family("gemma", is_tied=True),
    "Gemma2ForCausalLM": _Family(
        "gemma2",
        norms=_BOTH_SIDES,
        is_tied=True,
        keys={
            **_WINDOW,
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
    ),
    "Cohere2ForCausalLM": _Family(
        "cohere2",
        norms=("attn_norm",),
        is_tied=True,
        keys={**_WINDOW, "logit_scale": "logit_scale", "layer_norm_eps": "attention.layer_norm_epsilon"},
    ),
    "Olmo2ForCausalLM": _Family("olmo2", norms=("post_attention_norm", "post_ffw_norm"), head_norms="all"),
    "Phi3ForCausalLM": _Family("phi3", is_fused=True, keys=_WINDOW),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """Sizes of a decoder."""

    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_vocab: int
    n_expert: int
    n_expert_used: int
    n_ff_exp: int
    tied: bool
    n_rope_factors: tuple[tuple[str, int], ...]  #: tensors of them


def converted(model: ModelSpec) -> ModelSpec:
    """The model as a GGUF in F16, not quantized.

    Raises:
        UnsupportedModelError: its kind is not known here, it is quantized, lacks a figure, or has other tensors.
    """
    family, config = _FAMILIES.get(model.architecture), model.metadata
    if family is None:
        raise UnsupportedModelError(
            f"{printable(model.architecture, 60)}: what llama.cpp's converter makes of it is not told beforehand",
            hint=f"convert it, and name the GGUF; known are {', '.join(_FAMILIES)}",
        )
    shape = _shape_of(family, model, config)
    tensors = [_tensor(name, ne) for name, ne in _tensors(family, shape)]
    if model.tensors and sum(t.n_elements for t in tensors if not t.name.startswith("rope_")) != model.n_parameters:
        raise UnsupportedModelError(
            f"{printable(model.name, 80)}: its tensors are not those of {model.architecture} alone",
            hint="convert it with llama.cpp, and name the GGUF",
        )
    return ModelSpec(
        name=model.name,
        format="gguf",
        architecture=family.arch,
        files=(ModelFile(path=f"{model.name}-F16.gguf", size_bytes=0),),
        tensors=tuple(tensors),
        layers=(),
        metadata=_metadata(family, shape, config),
        hidden_elements=shape.n_embd,
        n_vocab=shape.n_vocab,
        context_train_tokens=model.context_train_tokens,
    )


def _shape_of(family: _Family, model: ModelSpec, config: Mapping[str, object]) -> _Shape:
    if config.get("quantization_config"):
        raise UnsupportedModelError(
            f"{printable(model.name, 80)}: a quantized checkpoint is not what llama.cpp's files are made from",
            hint="name the original",
        )

    def figure(key: str, default: int | None = None) -> int:
        value = config.get(key, default)
        if value is None:
            value = default
        if type(value) is not int or not 0 <= value < 1 << 24:
            raise UnsupportedModelError(f"{printable(model.name, 80)}: config.json has no usable {key}")
        return value

    n_embd, n_head, n_layer = figure("hidden_size"), figure("num_attention_heads"), figure("num_hidden_layers")
    if not (n_embd and n_head and 0 < n_layer <= MAX_LAYERS):
        raise UnsupportedModelError(
            f"{printable(model.name, 80)}: config.json has hidden_size {n_embd}, num_attention_heads {n_head} and "
            f"num_hidden_layers {n_layer}; each must be above 0, and layers at most {MAX_LAYERS}"
        )
    if not family.biases and (config.get("attention_bias") is True or config.get("mlp_bias") is True):
        raise UnsupportedModelError(f"{printable(model.name, 80)}: its matrices have biases that its kind lacks")
    n_ff, head_dim = figure("intermediate_size", 0), n_embd // n_head
    if family.has_head_dim:
        head_dim = figure("head_dim", head_dim)
    if figure("decoder_sparse_step", 1) != 1 or config.get("mlp_only_layers"):
        raise UnsupportedModelError(f"{printable(model.name, 80)}: only some of its layers have experts")
    return _Shape(
        n_layer=n_layer,
        n_embd=n_embd,
        n_ff=n_ff,
        n_head=n_head,
        n_head_kv=figure("num_key_value_heads", n_head),
        head_dim=head_dim,
        n_vocab=figure("vocab_size"),
        n_expert=figure("num_local_experts", figure("num_experts", 0)),
        n_expert_used=figure("num_experts_per_tok", 0),
        n_ff_exp=figure("moe_intermediate_size", n_ff),
        tied=family.is_tied or config.get("tie_word_embeddings") is True,
        n_rope_factors=tuple(_rope_factors(config, head_dim)),
    )


def _rope_factors(config: Mapping[str, object], head_dim: int) -> Iterator[tuple[str, int]]:
    """Tensors with a factor for each pair of dimensions (llama.py, phi.py: generate_extra_tensors)."""
    scaling = config.get("rope_scaling")
    scaling = scaling if isinstance(scaling, Mapping) else {}
    kind, part = scaling.get("rope_type") or scaling.get("type"), config.get("partial_rotary_factor", 1.0)
    if kind == "llama3":
        yield "rope_freqs.weight", head_dim // 2
    elif kind in ("longrope", "su"):
        n_factors = int((part if isinstance(part, (int, float)) and 0 < part <= 1 else 1.0) * head_dim) // 2
        yield "rope_factors_long.weight", n_factors
        yield "rope_factors_short.weight", n_factors


def _tensors(family: _Family, s: _Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and dimensions, innermost first; experts of a layer are one tensor (conversion/qwen.py:modify_tensors)."""
    yield "token_embd.weight", (s.n_embd, s.n_vocab)
    if not s.tied:
        yield "output.weight", (s.n_embd, s.n_vocab)
    yield "output_norm.weight", (s.n_embd,)
    for name, n_factors in s.n_rope_factors:
        yield name, (n_factors,)
    wide, narrow = s.n_head * s.head_dim, s.n_head_kv * s.head_dim
    for i in range(s.n_layer):
        for norm in family.norms:
            yield f"blk.{i}.{norm}.weight", (s.n_embd,)
        apart = (("attn_q", wide), ("attn_k", narrow), ("attn_v", narrow))
        for name, rows in (("attn_qkv", wide + 2 * narrow),) if family.is_fused else apart:
            yield f"blk.{i}.{name}.weight", (s.n_embd, rows)
            if family.biases:
                yield f"blk.{i}.{name}.bias", (rows,)
        if family.head_norms:
            yield f"blk.{i}.attn_q_norm.weight", (s.head_dim if family.head_norms == "each" else wide,)
            yield f"blk.{i}.attn_k_norm.weight", (s.head_dim if family.head_norms == "each" else narrow,)
        yield f"blk.{i}.attn_output.weight", (wide, s.n_embd)
        if family.is_fused:
            yield f"blk.{i}.ffn_up.weight", (s.n_embd, 2 * s.n_ff)
            yield f"blk.{i}.ffn_down.weight", (s.n_ff, s.n_embd)
            continue
        if not s.n_expert:
            yield f"blk.{i}.ffn_gate.weight", (s.n_embd, s.n_ff)
            yield f"blk.{i}.ffn_up.weight", (s.n_embd, s.n_ff)
            yield f"blk.{i}.ffn_down.weight", (s.n_ff, s.n_embd)
            continue
        yield f"blk.{i}.ffn_gate_inp.weight", (s.n_embd, s.n_expert)
        yield f"blk.{i}.ffn_gate_exps.weight", (s.n_embd, s.n_ff_exp, s.n_expert)
        yield f"blk.{i}.ffn_up_exps.weight", (s.n_embd, s.n_ff_exp, s.n_expert)
        yield f"blk.{i}.ffn_down_exps.weight", (s.n_ff_exp, s.n_embd, s.n_expert)


def _tensor(name: str, ne: tuple[int, ...]) -> TensorInfo:
    """One dimension, norms and routers are kept in F32 (conversion/base.py:prepare_tensors)."""
    kind = "f32" if len(ne) == 1 or "ffn_gate_inp" in name else "f16"
    n_bytes = row_bytes(kind, ne[0])
    for dim in ne[1:]:
        n_bytes *= dim
    return TensorInfo(name, kind, ne[::-1], n_bytes, 0, 0)


def _metadata(family: _Family, s: _Shape, config: Mapping[str, object]) -> dict[str, object]:
    keys: dict[str, Any] = {
        "block_count": s.n_layer,
        "context_length": config.get("max_position_embeddings", 0),
        "embedding_length": s.n_embd,
        "feed_forward_length": s.n_ff,
        "attention.head_count": s.n_head,
        "attention.head_count_kv": s.n_head_kv,
        "attention.layer_norm_rms_epsilon": float(str(config.get("rms_norm_eps", 1e-5))),
        "attention.key_length": s.head_dim,
        "attention.value_length": s.head_dim,
        "rope.dimension_count": s.head_dim,
        "vocab_size": s.n_vocab,
    }
    if s.n_expert:
        keys |= {"expert_count": s.n_expert, "expert_used_count": s.n_expert_used}
        keys |= {"expert_feed_forward_length": s.n_ff_exp} if s.n_ff_exp != s.n_ff else {}
    keys |= {key: config[name] for name, key in family.keys.items() if isinstance(config.get(name), (int, float))}
    named = {f"{family.arch}.{key}": value for key, value in keys.items()}
    return {"general.architecture": family.arch, "general.file_type": 1, **named}
