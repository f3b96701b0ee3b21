"""Hyperparameters that llama.cpp itself cannot work with: refused here, with key and value, before any arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from autofit.domain.text import printable
from autofit.domain.values import fields
from autofit.errors import CorruptModelError

from autofit_llama.model.metadata_reader import key_of

if TYPE_CHECKING:
    from autofit.domain.model import ModelSpec

_Figures = TypeVar("_Figures", bound=Any)  #: `HParams`, which imports this module

MAX_FIGURE = (1 << 31) - 1  #: llama.cpp reads 32 bits without a sign and goes on with int32_t and ggml's int64_t
MAX_WIDTH = 1 << 24  #: of anything that is a dimension of a tensor in the graph: rows of 16 million elements
MAX_NODES = 81_920  #: llama-context.cpp:graph_max_nodes: 40 nodes for each of 2048 tokens, if that is more than:
NODES_PER_TENSOR = 32

MAY_BE_NEGATIVE = frozenset(
    "n_layer_kv_from_start router_layer deepstack_mapping i_altup_act n_no_rope_layer_step rope_sections".split()
)
NO_FIGURES = frozenset({"pooling_type", "pooling_type_cls"})  #: names of a kind, 2^32 - 1 for none
POSITIVE = frozenset("n_embd n_layer_all n_embd_inp n_embd_out n_vocab".split())
#: figures that are no width: counts of tokens, limits and bases
FREE = frozenset(
    """n_ctx_train n_ctx_orig_yarn n_swa attn_temp_length n_attn_temp_floor_scale indexer_top_k
    expert_gating_func""".split()
)
#: how often a graph repeats something in each layer
LOOPS = frozenset(
    """ple_conv_kernel ple_ngram_size ple_n_heads dsv4_hc_mult dsv4_hc_sinkhorn_iters n_loops n_hrm_h_cycles
    n_hrm_l_cycles n_hrm_layers_per_stack n_altup n_deepstack_layers n_adapters posnet_n_layer convnext_n_layer
    dec_n_layer n_expert_groups n_group_used dflash_conv_kernel_size ssm_d_conv n_target_layers dflash_block_size
    attn_res_block_size n_layer_routing n_layer_joint n_value_expert_used""".split()
)


@contextmanager
def contradictions(model: ModelSpec) -> Iterator[None]:
    """What goes wrong in the arithmetic of a graph or a layout inside is a contradiction of the file's.

    Sound models are held to recorded runs byte for byte, so what is left is a file whose hyperparameters and tensors
    do not belong together: the engine refuses it in one of its many checks of shapes, or aborts in ggml.

    Raises:
        CorruptModelError: anything of the kind.
    """
    try:
        yield
    except (ArithmeticError, LookupError, ValueError, TypeError, AssertionError, AttributeError) as error:
        odd = [
            f"{printable(key, 60)} is {value}"
            for key, value in model.metadata.items()
            if key.startswith(f"{model.architecture}.") and type(value) is int and not 0 < value <= MAX_WIDTH
        ]
        raise CorruptModelError(
            printable(model.name, 80),
            f"{', '.join(odd[:4])}{': ' if odd else ''}hyperparameters and tensors contradict each other "
            f"({type(error).__name__}: {printable(str(error), 80)})",
            hint="if llama.cpp loads it, this is an error of autofit: `autofit report` makes a file to send",
        ) from error


def validate(hp: _Figures, model: ModelSpec) -> _Figures:
    """`hp`, if the engine can build a graph from it.

    Raises:
        CorruptModelError: a figure is negative, beyond what the engine's types hold, or repeats something more often
            than a graph may have nodes (llama-context.cpp:graph_max_nodes, at which the engine aborts).
    """
    n_nodes = max(MAX_NODES, NODES_PER_TENSOR * len(model.tensors))
    kind: Any = type(hp)
    for name, is_list in _figures(kind):
        value = getattr(hp, name)
        for each in value if is_list else (value,):
            if type(each) is not int:
                continue
            cause = _wrong(name, each, n_nodes // max(hp.n_layer_all, 1))
            if cause:
                raise CorruptModelError(printable(model.name, 80), f"{hp.arch}.{key_of(name)} is {each}: {cause}")
    return hp


def _wrong(name: str, value: int, max_loops: int) -> str | None:
    if value < 0 and name not in MAY_BE_NEGATIVE:
        return "it cannot be negative"
    if value == 0 and name in POSITIVE:
        return "it cannot be 0"
    if abs(value) > (MAX_FIGURE if name in FREE or name in MAY_BE_NEGATIVE else MAX_WIDTH):
        return "more than the engine can hold"
    if name in LOOPS and value > max_loops:
        return f"the graph would have too many nodes (at most {max_loops} such steps)"
    return None


@cache
def _figures(kind: type[Any]) -> tuple[tuple[str, bool], ...]:
    """The whole numbers among the hyperparameters, and whether there is one for each layer."""
    found = ((field.name, str(field.type)) for field in fields(kind))
    return tuple((name, "tuple" in text) for name, text in found if "int" in text and name not in NO_FIGURES)
