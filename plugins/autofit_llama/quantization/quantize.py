"""The tensors of the file that `llama-quantize` would write: src/llama-quant.cpp:llama_model_quantize_impl."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from autofit.domain.dtypes import GGML_TYPES_BY_NAME, row_bytes
from autofit.domain.model import ModelSpec, TensorInfo
from autofit.domain.text import printable
from autofit.domain.values import NamedTuple, dataclass
from autofit.errors import EngineRefusalError

from autofit_llama.engine.regex import searcher
from autofit_llama.model.architecture import architecture_of
from autofit_llama.model.load import read_hparams
from autofit_llama.quantization.ftypes import FLOATS, UNREADABLE, Ftype
from autofit_llama.quantization.rules import (
    ATTN_V,
    Choice,
    Figures,
    Seen,
    Tensor,
    category_of,
    layer_of,
    picked_type,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of `llama-quantize` that change which type a tensor gets; types by ggml's names.

    `tensor_types` are (regular expression, type) in their order: the first that is found in a name counts.
    """

    imatrix: bool = False
    pure: bool = False
    leave_output: bool = False
    allow_requantize: bool = False
    keep_split: bool = False
    output_type: str | None = None
    token_embedding_type: str | None = None
    tensor_types: tuple[tuple[str, str], ...] = ()


NOTHING_SET = Options()


class Quantized(NamedTuple):
    """One tensor of the new file."""

    name: str
    type: str
    n_bytes: int
    was: str  #: its type in the source
    needs_imatrix: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model to be quantized, looked at once for all quantizations. Tensors come as llama-quantize walks them."""

    tensors: tuple[Tensor, ...]
    infos: tuple[TensorInfo, ...]
    figures: Figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What becomes of a model. `n_fallback` tensors have rows that are not whole blocks of the type they should get."""

    ftype: Ftype
    tensors: tuple[Quantized, ...]
    n_fallback: int

    @property
    def weights_bytes(self) -> int:
        return sum(tensor.n_bytes for tensor in self.tensors)

    @property
    def needs_imatrix(self) -> bool:
        return any(tensor.needs_imatrix for tensor in self.tensors)

    @property
    def requantized(self) -> tuple[Quantized, ...]:
        """Tensors that are quantized in the source already, and would be again."""
        return tuple(t for t in self.tensors if t.type != t.was and t.was not in FLOATS)


def source_of(model: ModelSpec) -> Source:
    """What the rules need of a model.

    Raises:
        UnsupportedModelError, CorruptModelError: llama.cpp cannot load it.
    """
    infos = sorted(model.tensors, key=lambda tensor: (layer_of(tensor.name), tensor.name.encode()))
    tensors = []
    for info in infos:
        name, ne = info.name, info.ne
        tensors.append(Tensor(name, ne, info.type, category_of(name), layer_of(name), False))
    figures = _figures(model, tensors)
    allowed = [allows_quantization(tensor.name, tensor.ne, figures.arch) for tensor in tensors]
    marked = (tensor._replace(quantizable=yes) for tensor, yes in zip(tensors, allowed, strict=True))
    return Source(tensors=tuple(marked), infos=tuple(infos), figures=figures)


def _figures(model: ModelSpec, tensors: Iterable[Tensor]) -> Figures:
    categories = [tensor.category for tensor in tensors]
    tied, n_attention_wv = "output" not in categories, sum(category in ATTN_V for category in categories)
    if model.architecture == "clip":  # only its tensors are looked at (src/llama-model.cpp:load_hparams)
        return Figures(
            arch="clip",
            n_layer_all=0,
            n_expert=0,
            n_gqa=None,
            is_70b=False,
            tied=tied,
            n_attention_wv=n_attention_wv,
        )
    hp = read_hparams(model)
    return Figures(
        arch=hp.arch,
        n_layer_all=hp.n_layer_all,
        n_expert=hp.n_expert,
        n_gqa=hp.n_head[0] // hp.n_head_kv[0] if hp.n_head_kv[0] else 0,
        is_70b=architecture_of(hp.arch).is_70b(hp),
        tied=tied,
        n_attention_wv=n_attention_wv,
    )


# src/llama-quant.cpp:tensor_allows_quantization
_KEPT = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj",
    "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight",
    *(f"time_mix_{part}.weight" for part in (
        "first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2", "decay_w1", "decay_w2",
        "lerp_fused",
    )),
    "attn_rel_b.weight", ".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd",
    ".patch_merger", "a.rvq.codebook", "mm.a.code_embd",
)  # fmt: skip
_KEPT_WHOLE = frozenset({"position_embd.weight", "token_types.weight"})
_KEPT_GLM5_NEXT = (
    "hc_", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj", "indexer_compressor_gate", "indexer_compressor_ape",
    "ssm_f_a.weight", "ssm_f_b.weight", "ssm_g_a.weight", "ssm_g_b.weight", "ssm_beta.weight",
    "attn_kv_a_mqa.weight", "attn_k_b.weight", "attn_v_b.weight",
)  # fmt: skip


def allows_quantization(name: str, ne: Sequence[int], arch: str) -> bool:
    """Whether a tensor may change its type at all; `--leave-output-tensor` apart."""
    if all(n == 1 for n in ne[1:]):  # ggml.c:ggml_n_dims
        return False
    # a name of five letters passes too: the place where `weight` would have to start is then "nowhere"
    if not name.endswith("weight") and len(name.encode()) != 5:
        return False
    if name in _KEPT_WHOLE or any(part in name for part in _KEPT):
        return False
    return arch != "glm5-next" or not any(part in name for part in _KEPT_GLM5_NEXT)


# src/llama-quant.cpp:tensor_type_fallback, for blocks of 256 elements (of Q2_0: 64)
_FALLBACKS = {
    **dict.fromkeys(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs"), "iq4_nl"),
    **dict.fromkeys(("q2_0", "q2_K", "q3_K", "tq1_0", "tq2_0"), "q4_0"),
    "q4_K": "q5_0",
    "q5_K": "q5_1",
    "q6_K": "q8_0",
}


def fallback(type_name: str, n_elements: int) -> str:
    """The type for rows of `n_elements` that should get `type_name`.

    Raises:
        EngineRefusalError: they are not whole blocks of it, and llama-quantize knows no other.
    """
    block = GGML_TYPES_BY_NAME[type_name].block_elements
    if n_elements % block == 0:
        return type_name
    found = _FALLBACKS.get(type_name, type_name if block <= 32 else None)
    if found is None:
        raise EngineRefusalError(
            f"llama-quantize has no other type for rows of {n_elements} elements, "
            f"which are not whole {type_name} blocks of {block}",
            hint="--tensor-type sets another type for these tensors",
        )
    return found if n_elements % GGML_TYPES_BY_NAME[found].block_elements == 0 else "f16"


_IMATRIX_TYPES = frozenset({"iq3_xxs", "iq2_xxs", "iq2_xs", "iq2_s", "iq1_m", "iq1_s"})


def requires_imatrix(tensor: Tensor, type_name: str, ftype: Ftype) -> bool:
    """src/llama-quant.cpp:tensor_requires_imatrix"""
    if tensor.category in ("token_embd", "output"):
        return False
    return type_name in _IMATRIX_TYPES or (type_name == "q2_K" and ftype.name == "Q2_K_S")


def quantize(source: Source, ftype: Ftype, options: Options = NOTHING_SET) -> Outcome:
    """The tensors of the new file, in the order of the rules.

    Raises:
        EngineRefusalError: llama-quantize would stop.
    """
    asked = Choice(ftype, options.imatrix, options.output_type, options.token_embedding_type)
    patterns = [(searcher(pattern), type_name) for pattern, type_name in options.tensor_types]
    seen = Seen()
    found, n_fallback = [], 0
    for tensor, info in zip(source.tensors, source.infos, strict=True):
        quantizable = tensor.quantizable and not (options.leave_output and tensor.name == "output.weight")
        if quantizable:
            wanted, free = _wanted(tensor, source.figures, asked, options, patterns, seen)
            target = fallback(wanted, tensor.ne[0]) if free else wanted
            n_fallback += target != wanted
        else:
            target = tensor.type
        n_bytes = info.n_bytes if target == tensor.type else _n_bytes(tensor, target)
        needs = quantizable and requires_imatrix(tensor, target, ftype)
        found.append(Quantized(tensor.name, target, n_bytes, tensor.type, needs and not options.imatrix))
    outcome = Outcome(ftype=ftype, tensors=tuple(found), n_fallback=n_fallback)
    _check_readable(outcome, options)
    return outcome


def _wanted(
    tensor: Tensor,
    figures: Figures,
    asked: Choice,
    options: Options,
    patterns: Sequence[tuple[Callable[[str], bool], str]],
    seen: Seen,
) -> tuple[str, bool]:
    """The type for a tensor, and whether its shape may still change it (src/llama-quant.cpp:llama_tensor_get_type)."""
    named = next((type_name for matches, type_name in patterns if matches(tensor.name)), None)
    follows = named is None or tensor.name != "per_layer_token_embd.weight"
    if options.token_embedding_type is not None and tensor.category == "token_embd" and follows:
        return options.token_embedding_type, False
    if options.output_type is not None and tensor.category == "output":
        return options.output_type, False
    default = asked.ftype.default
    if default in FLOATS:
        return default, False
    if named is not None:
        return named, True
    return (default if options.pure else picked_type(tensor, figures, asked, seen)), True


def _n_bytes(tensor: Tensor, type_name: str) -> int:
    try:
        row = row_bytes(type_name, tensor.ne[0])
    except ValueError as error:
        raise EngineRefusalError(
            f"llama-quantize aborts at {printable(tensor.name)}: {error}", hint="set another type for it"
        ) from None
    for dim in tensor.ne[1:]:
        row *= dim
    return row


def _check_readable(outcome: Outcome, options: Options) -> None:
    """Refuse what cannot be read back into floats, or must not be without being asked for."""
    changed = [tensor for tensor in outcome.tensors if tensor.type != tensor.was]
    unreadable = next((tensor for tensor in changed if tensor.was in UNREADABLE), None)
    if unreadable is not None:
        raise EngineRefusalError(
            f"llama-quantize cannot convert {printable(unreadable.name)}, which is {unreadable.was}",
            hint="quantize a file in F32, F16 or BF16",
        )
    again = outcome.requantized
    if again and not options.allow_requantize:
        raise EngineRefusalError(
            f"llama-quantize stops: {len(again)} tensors are quantized already, {printable(again[0].name)} "
            f"as {again[0].was}",
            hint="quantize a file in F32, F16 or BF16; --allow-requantize goes on, and loses quality twice",
        )
