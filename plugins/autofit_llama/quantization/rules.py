"""Which type llama.cpp picks for a tensor: src/llama-quant.cpp:llama_tensor_get_type_impl, branch by branch.

The rules look at what a tensor is for, at how many of its kind came before it, and at a few figures of the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from autofit.domain.dtypes import GGML_TYPES_BY_NAME
from autofit.domain.patterns import lazy_pattern
from autofit.domain.values import NamedTuple, dataclass
from autofit.errors import EngineRefusalError

from autofit_llama.quantization.ftypes import FLOATS, Ftype

Category = Literal[
    "token_embd", "attn_q", "attn_v", "attn_k", "attn_qkv", "attn_kv_b", "attn_output",
    "ffn_up", "ffn_gate", "ffn_down", "output", "other",
]  # fmt: skip

# src/llama-quant.cpp:tensor_get_category, in its order
_PARTS: tuple[tuple[str, Category], ...] = (
    ("attn_qkv.weight", "attn_qkv"),
    ("attn_kv_b.weight", "attn_kv_b"),
    ("attn_v.weight", "attn_v"),
    ("attn_k.weight", "attn_k"),
    ("attn_q.weight", "attn_q"),
    ("attn_output.weight", "attn_output"),
    ("ffn_up", "ffn_up"),
    ("ffn_gate", "ffn_gate"),
    ("ffn_down", "ffn_down"),
)
EMBEDDINGS = frozenset({"token_embd.weight", "per_layer_token_embd.weight"})
ATTN_V = frozenset({"attn_v", "attn_qkv", "attn_kv_b"})  #: src/llama-quant.cpp:category_is_attn_v

_LOW = frozenset({"IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ1_S", "IQ1_M"})
_IQ2_SM = frozenset({"IQ2_S", "IQ2_M"})
_ASKS_GQA = frozenset("Q2_K Q2_K_S IQ3_XXS IQ3_XS IQ3_S IQ4_NL IQ4_XS".split())
_BLOCK = lazy_pattern(r"blk\.\s*([+-]?\d{1,9})", re.ASCII)  # what sscanf reads with "blk.%d."

# Types that attn_output gets with 8 experts, whatever the rest of the file is.
_WIDER_OUTPUT = frozenset("Q2_K IQ3_XS IQ3_XXS Q3_K_S Q3_K_M IQ4_NL Q4_K_S Q4_K_M IQ3_S IQ3_M IQ4_XS".split())


class Tensor(NamedTuple):
    """A tensor as the rules see it."""

    name: str
    ne: tuple[int, ...]  #: ggml's order; trailing ones may be missing
    type: str  #: of the source
    category: Category
    layer: int  #: of `blk.N.`; -1: of no layer
    quantizable: bool  #: else it keeps its type


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the rules ask of a model (src/llama-hparams.h)."""

    arch: str
    n_layer_all: int
    n_expert: int
    n_gqa: int | None  #: query heads for each K/V head, of the first layer; `None`: asking for them aborts
    is_70b: bool  #: LLM_TYPE_70B
    tied: bool  #: there is no output.weight: the token embeddings are the output too
    n_attention_wv: int  #: tensors of the kinds `ATTN_V`


class Choice(NamedTuple):
    """What is asked for one file."""

    ftype: Ftype
    imatrix: bool
    output_type: str | None  #: --output-tensor-type
    token_embedding_type: str | None  #: --token-embedding-type


@dataclass(slots=True)
class Seen:
    """How many tensors of a kind the rules have been asked for: `i_attention_wv` and the like."""

    attention_wv: int = 0
    ffn_down: int = 0
    ffn_gate: int = 0
    ffn_up: int = 0


def category_of(name: str) -> Category:
    if name == "output.weight":
        return "output"
    if name in EMBEDDINGS:
        return "token_embd"
    return next((category for part, category in _PARTS if part in name), "other")


def layer_of(name: str) -> int:
    """The number in `blk.N.`, -1 without one, as sscanf reads it."""
    match = _BLOCK.match(name)
    return int(match[1]) if match else -1


def picked_type(tensor: Tensor, model: Figures, asked: Choice, seen: Seen) -> str:
    """The type of a quantizable tensor before its shape is looked at. `seen` is moved on.

    Raises:
        EngineRefusalError: llama-quantize would stop at this tensor.
    """
    picked, category, ftype = asked.ftype.default, tensor.category, asked.ftype.name
    if model.arch == "glm5-next" and picked not in FLOATS and _kept_wide(tensor.name):
        return "q8_0"
    if category == "output" or (model.tied and category == "token_embd"):
        return _output(tensor, model, asked)
    if ftype == "MXFP4_MOE":
        return "mxfp4" if _is_expert(tensor, model) else "q8_0"
    if category == "token_embd":
        return _token_embd(asked)
    if ftype in _LOW:
        return _low(picked, tensor, model, ftype, seen)
    if category in ATTN_V:
        return _attn_v(picked, tensor, model, asked, seen)
    rule = _RULES.get(category)
    return picked if rule is None else rule(picked, tensor, model, asked, seen)


def _kept_wide(name: str) -> bool:
    return "attn_q_a" in name or "attn_q_b" in name or "nextn.eh_proj" in name


def _output(tensor: Tensor, model: Figures, asked: Choice) -> str:
    if asked.output_type is not None:
        return asked.output_type
    default, ftype = asked.ftype.default, asked.ftype.name
    whole = tensor.ne[0] % GGML_TYPES_BY_NAME[default].block_elements == 0
    if ftype == "MXFP4_MOE" or model.arch == "falcon" or not whole:
        return "q8_0"
    if ftype in _LOW or ftype == "IQ3_XXS":
        return "q5_K"
    return default if default == "q8_0" else "q6_K"


def _is_expert(tensor: Tensor, model: Figures) -> bool:
    """Projections of latent attention have three dimensions too; of bailingmoe3 roles are asked for instead."""
    if len(tensor.ne) < 3 or tensor.ne[2] == 1:
        return False
    return model.arch != "bailingmoe3" or tensor.category in ("ffn_up", "ffn_gate", "ffn_down")


def _token_embd(asked: Choice) -> str:
    if asked.token_embedding_type is not None:
        return asked.token_embedding_type
    ftype = asked.ftype.name
    if ftype in ("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"):
        return "q2_K"
    if ftype in ("IQ2_S", "IQ2_M", "IQ3_XXS"):
        return "iq3_s"
    return "q4_K" if ftype in ("TQ1_0", "TQ2_0", "Q2_0") else asked.ftype.default


def _low(picked: str, tensor: Tensor, model: Figures, ftype: str, seen: Seen) -> str:
    """Files of 1 and 2 bits: where a few more bits go."""
    wider = "iq3_s" if ftype in _IQ2_SM else "q2_K"
    category = tensor.category
    if category in ATTN_V:
        seen.attention_wv += 1
        return "q4_K" if _gqa(model, tensor) >= 4 or model.n_expert >= 4 else wider
    if model.n_expert == 8 and category == "attn_k":
        return "q4_K"
    if category == "ffn_down":
        seen.ffn_down += 1
        return wider if seen.ffn_down - 1 < model.n_layer_all // 8 else picked
    if category == "attn_output":
        if model.n_expert == 8:
            return "q5_K"
        if ftype in ("IQ1_S", "IQ1_M"):
            return "iq2_xxs"
        return "iq3_s" if ftype in _IQ2_SM else picked
    return picked


def _gqa(model: Figures, tensor: Tensor) -> int:
    if model.n_gqa is None:
        raise EngineRefusalError(
            f"llama-quantize aborts at {tensor.name}: a {model.arch} file has no heads to choose its type by",
            hint="a type that asks for none, such as Q8_0, works",
        )
    return model.n_gqa


def _attn_v(picked: str, tensor: Tensor, model: Figures, asked: Choice, seen: Seen) -> str:
    ftype = asked.ftype.name
    many = ftype in _ASKS_GQA and _gqa(model, tensor) >= 4
    if ftype == "Q2_K":
        picked = "q4_K" if many else "q3_K"
    elif ftype in ("Q2_K_S", "IQ3_XS", "IQ3_S") and many:
        picked = "q4_K"
    elif ftype == "IQ3_XXS":
        picked = "q4_K" if many else "iq3_xxs" if asked.imatrix else "iq3_s"
    elif ftype == "IQ3_M":
        picked = "q4_K"
    elif ftype == "Q3_K_M":
        picked = "q5_K" if seen.attention_wv < 2 else "q4_K"
    elif ftype == "Q3_K_L" or (ftype in ("IQ4_NL", "IQ4_XS") and many):
        picked = "q5_K"
    elif ftype in ("Q4_K_M", "Q5_K_M") and _more_bits(seen.attention_wv, model.n_attention_wv):
        picked = "q6_K"
    elif ftype == "Q4_K_S" and seen.attention_wv < 4:
        picked = "q5_K"
    if model.is_70b and picked in ("q3_K", "q4_K"):
        picked = "q5_K"
    if model.n_expert == 8:
        picked = "q8_0"
    seen.attention_wv += 1
    return picked


def _attn_k(picked: str, tensor: Tensor, model: Figures, asked: Choice, seen: Seen) -> str:
    return "q8_0" if model.n_expert == 8 else _attn_q(picked, tensor, model, asked, seen)


def _attn_q(picked: str, tensor: Tensor, model: Figures, asked: Choice, seen: Seen) -> str:
    return {"IQ3_XS": "iq3_xxs", "IQ3_XXS": "iq2_s"}.get(asked.ftype.name, picked)


def _ffn_down(picked: str, tensor: Tensor, model: Figures, asked: Choice, seen: Seen) -> str:
    i, n = _place(tensor, model, seen.ffn_down), model.n_layer_all
    seen.ffn_down += 1
    ftype, early, falcon = asked.ftype.name, i < n // 8, model.arch == "falcon"
    if ftype == "Q2_K":
        return "q3_K"
    if ftype == "Q2_K_S":
        return "q4_K" if early else picked
    if ftype == "IQ3_XXS" and not asked.imatrix:
        return "q4_K" if early else "q3_K"
    if ftype == "Q3_K_M":
        return "q5_K" if i < n // 16 else "q4_K" if not falcon or _more_bits(i, n) else "q3_K"
    if ftype == "IQ3_M" and (early or (model.n_expert == 8 and _more_bits(i, n))):
        return "q4_K"
    if ftype == "Q3_K_L":
        return "q4_K" if falcon else "q5_K"
    if ftype == "Q4_K_M" and falcon:
        return "q6_K" if i < n // 16 else "q5_K" if _more_bits(i, n) else "q4_K"
    if ftype in ("Q4_K_M", "Q5_K_M"):
        return "q6_K" if _more_bits(i, n) else picked
    if not early:
        return picked
    if ftype in ("IQ4_NL", "IQ4_XS") and not asked.imatrix:
        return "q5_K"
    if ftype == "Q4_K_S" and not falcon:
        return "q5_K"
    return {"Q4_0": "q4_1", "Q5_0": "q5_1"}.get(ftype, picked) if asked.imatrix else picked


def _attn_output(picked: str, tensor: Tensor, model: Figures, asked: Choice, seen: Seen) -> str:
    ftype = asked.ftype.name
    if model.arch == "falcon":
        return "q4_K" if ftype == "Q3_K_L" else picked
    if model.n_expert == 8:
        return "q5_K" if ftype in _WIDER_OUTPUT else picked
    wider = {"Q2_K": "q3_K", "IQ3_XXS": "iq3_s", "Q3_K_M": "q4_K", "Q3_K_L": "q5_K", "IQ3_M": "q4_K"}
    return wider.get(ftype, picked)


def _ffn_gate(picked: str, tensor: Tensor, model: Figures, asked: Choice, seen: Seen) -> str:
    i = _place(tensor, model, seen.ffn_gate)
    seen.ffn_gate += 1
    return _middle(picked, i, model, asked)


def _ffn_up(picked: str, tensor: Tensor, model: Figures, asked: Choice, seen: Seen) -> str:
    i = _place(tensor, model, seen.ffn_up)
    seen.ffn_up += 1
    return _middle(picked, i, model, asked)


def _middle(picked: str, i: int, model: Figures, asked: Choice) -> str:
    n = model.n_layer_all
    return "iq3_xxs" if asked.ftype.name == "IQ3_XS" and n // 8 <= i < 7 * n // 8 else picked


def _place(tensor: Tensor, model: Figures, n_seen: int) -> int:
    """The layer that a feed-forward tensor counts as: its number with experts, else how many came before it."""
    if model.n_expert <= 1:
        return n_seen
    if not 0 <= tensor.layer < model.n_layer_all:
        raise EngineRefusalError(
            f"llama-quantize stops at {tensor.name}: no layer of 0 to {model.n_layer_all - 1} is in its name",
            hint="with experts it places feed-forward tensors by the number in blk.N.",
        )
    return tensor.layer


def _more_bits(i: int, n: int) -> bool:
    """The first and last eighth, and every third between (`use_more_bits`)."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


_Rule = Callable[[str, Tensor, Figures, Choice, Seen], str]
_RULES: dict[Category, _Rule] = {
    "attn_k": _attn_k,
    "attn_q": _attn_q,
    "ffn_down": _ffn_down,
    "attn_output": _attn_output,
    "ffn_gate": _ffn_gate,
    "ffn_up": _ffn_up,
}
