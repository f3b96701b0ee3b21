"""What llama.cpp knows about one architecture, as one record. The records are in families/*.py.

A field without a default is something that the engine's source spells out for every architecture, so that a record
without it is an error at import. A default is what the engine's source does with everything that it does not name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, Literal

from autofit.domain.values import NamedTuple, dataclass, field

from autofit_llama.engine.versions import Change
from autofit_llama.engine.vocabulary import Operation
from autofit_llama.model.caches import ATTENTION, Memory
from autofit_llama.model.family_index import FAMILIES
from autofit_llama.model.hparams import HParams, RopeType
from autofit_llama.model.metadata_reader import HParamsDraft
from autofit_llama.model.rules import Rule, recurrent_without_kv_heads

GraphBuilder = Callable[[Any], None]  #: of a `graph.builder.Graph`; models know no graphs
Scales = Literal["ffn", "experts", "shared"]

#: what becomes of a file without `output.weight` (load_arch_tensors): it is refused, or the output is
#: `token_embd`, made after it or before it; `from output`: `token_embd` may be the one that is missing
Output = Literal["own", "tied", "tied first", "from output"]


class Reads(NamedTuple):
    """load_arch_hparams: the fields that are read (a missing one is refused, unless marked `?`), then the rules."""

    fields: str
    rules: tuple[Rule, ...] = ()


def reads(fields: str, *rules: Rule) -> Reads:
    return Reads(fields, rules)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSplit:
    """How `-sm tensor` cuts an architecture, where that is not as with any other (src/llama-model.cpp).

    `gated_queries`: a gate beside each query head, and heads of linear attention in groups. `heads_apart`: keys and
    values of linear attention lie one after the other instead. `whole_states`: recurrent state is whole on each
    device. `grouped_output`: the output projection has groups. `whole`: nothing is cut.
    """

    gated_queries: bool = False
    heads_apart: bool = False
    whole_states: bool = False
    grouped_output: bool = False
    whole: bool = False


JOINED_SKIPPED = Change(
    without=10276,
    has=10298,
    source="src/llama-model.cpp:create_tensor_qkv, without and with a look at TENSOR_SKIP",
    name="biases and joined attention matrices of draft heads left out",
    larger=False,
)
JOINED_EXPERTS_SKIPPED = Change(
    without=11010,
    has=11028,
    source="src/llama-model.cpp:create_tensor_gate_up_exps, without and with a look at TENSOR_SKIP",
    name="joined experts of draft heads left out",
    larger=False,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftTensors:
    """Tensors of blocks behind the trunk: they are skipped where no draft head is asked for (TENSOR_SKIP).

    `loadable`: they are loaded with the draft head; else never. `skipped`: only these are skipped. `kept`: these
    never are. `once_always`: builds loaded them whatever was asked for (weights.py:DRAFT_HEADS_AS_ASKED).
    """

    loadable: bool = True
    skipped: frozenset[str] | None = None
    kept: frozenset[str] = frozenset()
    once_always: bool = False


#: of a block whose attention and joining matrices alone are skipped
ATTENTION_AND_JOIN = frozenset(
    "attn_norm attn_q attn_k attn_v attn_qkv attn_output ffn_norm nextn.eh_proj nextn.enorm nextn.hnorm".split()
)


def trunk(hp: HParams) -> Sequence[int]:
    return range(hp.n_layer or hp.n_layer_all)


def never(hp: HParams) -> bool:
    return False


def has_80_layers(hp: HParams) -> bool:
    return hp.n_layer == 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One architecture. `name` is `general.architecture` (src/llama-arch.cpp), `source` its file of src/models.

    The functions of the engine that each field stands for are named beside it.
    """

    name: str
    source: str
    hparams: Reads  #: load_arch_hparams
    rope: RopeType | Callable[[HParamsDraft], RopeType]  #: llama_model_rope_type
    output: Output  #: load_arch_tensors
    scales: tuple[Scales, ...]  #: what build_arch_graph hands the scales of NVFP4 files to, besides attention
    graph: GraphBuilder | None  #: build_arch_graph; `None`: not replayed, compute buffers are bounded

    # load_hparams
    sizes: Rule | None = None  #: reads what other architectures have in `embedding_length`
    lone_expert_is_dense: bool = False
    is_70b: Callable[[HParams], bool] = never  #: load_arch_hparams makes it LLM_TYPE_70B, which llama-quantize asks for
    windows_since: Change | None = None  #: before it the key of sliding windows is not read
    rotates_whole_heads: bool = False  #: `rope.dimension_count` has to be the head size

    # create_memory, llama_context
    memory: Memory = ATTENTION
    has_encoder: bool = False  #: llama_model_has_encoder
    flash_attention: bool = True
    one_cache_type: bool = False  #: K and V of one type, although the attention is not latent
    stands_alone: Literal["yes", "with its own ends", "never"] = "yes"  #: without a model to draft for

    # load_arch_tensors
    once_required: Mapping[str, Change] = field(default_factory=dict)  #: matrices that another layout does without
    once_in_heads: Mapping[str, Change] = field(default_factory=dict)  #: weights that draft heads had to have
    once_n_dims: Mapping[str, tuple[Change, int]] = field(default_factory=dict)  #: before it, of so many dimensions
    #: the last builds whose list of sliding blocks had to leave draft heads out, and from which change on it had to
    pattern_of_trunk: tuple[Change | None, Change] | None = None
    ops: Mapping[str, Operation] = field(default_factory=dict)  #: where not as in LLM_TENSOR_INFOS
    ops_before: Mapping[str, tuple[Change, Operation]] = field(default_factory=dict)  #: the same, until a change
    output_norm: str = "output_norm"
    lazy_embeddings: bool = False  #: per_layer_token_embd is made with TENSOR_READ_LAZY
    rope_factors: Callable[[HParams], Sequence[int]] = trunk  #: blocks that ask for rope factors
    draft_tensors: DraftTensors = DraftTensors()
    tensor_split: TensorSplit | None = TensorSplit()  #: `None`: llm_arch_supports_sm_tensor says no

    # build_arch_graph
    draft_graph: GraphBuilder | Literal["not replayed"] | None = None  #: LLM_GRAPH_TYPE_DECODER_MTP
    mixes_inputs: bool = True  #: llm_arch_supports_mixed_batch
    fused_clamp: bool = False  #: a clamped SwiGLU is one operation (build_ffn, build_moe_ffn)
    unused_output_bias: bool = False
    rank_activation: Literal["tanh", "gelu"] = "tanh"  #: build_pooling
    rank_softmax: bool = False
    reserves_one_sequence: bool = False  #: the last reserve is a prompt of one sequence (sched_reserve)


#: an architecture without a record: what a bound can use, nothing that would make it smaller
UNKNOWN = Architecture(
    name="",
    source="",
    hparams=reads(
        "n_ff_exp? n_ff_shexp? n_expert_shared? n_layer_dense_lead? ssm_d_conv? ssm_d_inner? ssm_d_state?"
        " ssm_dt_rank? ssm_n_group? wkv_head_size? n_embd_head_kda? n_shortconv_l_cache? n_lora_q? n_lora_kv?"
        " rope_sections?",
        recurrent_without_kv_heads,
    ),
    rope="neox",
    output="own",
    scales=(),
    graph=None,
)

_records: dict[str, Architecture] = {}


def is_known(name: str) -> bool:
    """Whether there is a record for the architecture."""
    return name in FAMILIES


def architecture_of(name: str) -> Architecture:
    """The record of an architecture, `UNKNOWN` if there is none; its family is imported when first asked for."""
    found = _records.get(name)
    if found is not None:
        return found
    family = FAMILIES.get(name)
    if family is None:
        return UNKNOWN
    module = import_module(f"autofit_llama.families.{family}")
    _records.update((record.name, record) for record in module.ARCHITECTURES)
    return _records[name]


def every_architecture() -> Iterator[Architecture]:
    """The records of all families, which are imported for it: for documents and tests."""
    for family in sorted(set(FAMILIES.values())):
        yield from import_module(f"autofit_llama.families.{family}").ARCHITECTURES
