"""What vLLM builds from a checkpoint's configuration: modules, caches, and the facts its own settings read.

A `VllmModel` is independent of how the model is spread: every module says how tensor, pipeline, data and
expert parallelism divide it, every cache says what one token (or one sequence) costs on a rank.

    model = checkpoint.build.build_model(spec, language_model_only=False)  # from a ModelSpec
    stages = weights.weights_per_rank(model, Parallel(tp=2), dtype="bfloat16", capability=(9, 0))
    first, last = weights.stage_layers(model.n_layers, Parallel(pp=2), 0)  # the layers of a stage

The KV planner reads `model.caches`; a cache belongs to the stage whose layers hold `cache.stage`.

Element types are spelled as torch spells them without the prefix: `bfloat16`, `float8_e4m3fn`, `int32`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from operator import attrgetter
from typing import Any, Literal

from autofit.domain.values import NamedTuple, dataclass, field, fields

from autofit_vllm.modules.dtypes import dtype_bytes

FIRST = -1  #: stage of modules that live on the first pipeline stage only (embeddings, towers)
LAST = -2  #: stage of modules that live on the last pipeline stage only (final norm, LM head)
EVERY = -3  #: stage of modules that every pipeline stage holds
Stage = int  #: a decoder layer's index, or one of the three above

LinearKind = Literal["column", "row", "replicated", "qkv"]
StateKind = Literal["mamba1", "mamba2", "gdn", "kda", "short_conv", "linear_attention"]
AttentionKind = Literal["full", "sliding", "chunked", "cross", "encoder_only"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    """How ranks share the work (config/parallel.py:ParallelConfig).

    A replica has `tp * pp * pcp` ranks, and there are `dp` replicas. `dcp` reuses the ranks of `tp`.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    pcp: int = 1
    dcp: int = 1
    expert_parallel: bool = False
    redundant_experts: int = 0
    layer_partition: tuple[int, ...] | None = None  #: `VLLM_PP_LAYER_PARTITION`
    vision_data_parallel: bool = False
    nnodes: int = 1  #: machines like this one, each with an equal part of the ranks  #: `--mm-encoder-tp-mode data`

    @property
    def spreads_tokens(self) -> bool:
        """Ranks of a replica share out the tokens around the experts (ParallelConfig.use_sequence_parallel_moe)."""
        return self.expert_parallel and self.tp > 1 and self.dp > 1

    @property
    def world_size(self) -> int:
        """Ranks of one replica."""
        return self.tp * self.pp * self.pcp


# -- Modules: what holds parameters


class Part(NamedTuple):
    """One slice of a module's output that is divided on its own, and loaded from a weight of its own.

    `name` is the checkpoint's name for it beside the module's own (`q_proj` in `qkv_proj`); neighbors of one
    name are one tensor there.
    """

    name: str
    size: int  #: output features, of all ranks together
    unit: int = 0  #: when set, every rank has at least this much: the groups of Mamba 2
    heads: int = 0  #: when set, so many heads, of which every rank has at least one


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A linear layer (model_executor/layers/linear.py).

    `column` divides the output, `row` the input, `replicated` neither; `qkv` divides query heads and keeps at
    least one KV head per rank. `parts` are the fused weights; one part means the layer is not fused.
    """

    name: str
    stage: Stage
    kind: LinearKind
    in_size: int
    parts: tuple[Part, ...]
    bias: bool = False
    quantizable: bool = True
    dtype: str | None = None  #: `None`: the model's
    heads: int = 0  #: qkv only: query heads, KV heads, and the sizes of a head of K and of V
    kv_heads: int = 0
    head_size: int = 0
    head_size_v: int = 0
    tower: str | None = None  #: the modality this module encodes, if it belongs to an encoder
    lora: bool = True  #: LoRA may wrap it
    spreads_tokens: bool = False  #: undivided where ranks share out tokens: `Parallel.spreads_tokens`
    fp32_without_kernel: bool = False  #: in fp32 on GPUs that have no kernel for routers
    undivided_with: frozenset[str] = frozenset()  #: methods of quantization under which every rank has it all
    divides: int = 0  #: when set, every rank has it all unless this divides among them
    multiple: int = 1  #: that a rank's output is filled up to

    @property
    def out_size(self) -> int:
        return sum(part.size for part in self.parts)

    @property
    def shards(self) -> tuple[str, ...]:
        """Names of the checkpoint's modules that are fused here, in full; the module's own if none are."""
        parent, _, own = self.name.rpartition(".")
        names = dict.fromkeys(part.name for part in self.parts)
        if len(names) == 1 and own in names:
            return (self.name,)
        return tuple(f"{parent}.{name}" if parent else name for name in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """An embedding or LM head, divided over the vocabulary (model_executor/layers/vocab_parallel_embedding.py)."""

    name: str
    stage: Stage
    rows: int
    columns: int
    padding: int = 64  #: rows are rounded up to a multiple of this
    head: bool = False  #: an LM head: quantized when the checkpoint says so
    bias: bool = False
    tied_to: str | None = None  #: shares the parameter of that module when both are on one stage
    dtype: str | None = None
    tower: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """All routed experts of one layer (model_executor/layers/fused_moe/layer.py:FusedMoEFactory)."""

    name: str
    stage: Stage
    count: int
    top_k: int
    hidden_size: int
    intermediate_size: int
    gated: bool = True  #: gate and up; otherwise one projection in
    bias: bool = False
    quantizable: bool = True
    least_width: int = 0  #: a rank's slice of each expert is filled up to this where ranks slice them
    plain_class: bool = True  #: `RoutedExperts` itself, which is all that compressed-tensors quantizes
    fused_routing: bool = True  #: FlashInfer's TRT-LLM kernels for Blackwell know how a token's experts are chosen
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")  #: the checkpoint's, of one expert


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """A parameter that is nobody's linear layer: norms, biases of routers, A_log, sinks."""

    name: str
    stage: Stage
    shape: tuple[int, ...]
    axis: int | None = None  #: the dimension tensor parallelism divides; `None`: replicated
    multiple: int = 1  #: that a rank's part of it is filled up to
    dtype: str | None = None  #: `None`: the model's
    tower: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """The attention of a layer, which holds nothing but scales (layers/attention/attention.py)."""

    name: str
    stage: Stage
    kv_heads: int
    latent: bool = False  #: MLA
    quantizable: bool = True
    scale_dtype: str | None = None  #: of its scales; `None`: the quantization's, `model`: the model's


Module = Linear | Vocabulary | Experts | Plain | Attention


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffer:
    """Memory that no checkpoint holds but that stays on the GPU: one rope's cosines and sines, say.

    Buffers of one name are one tensor, which every stage holds that has a layer using it.
    """

    name: str
    stage: Stage
    shape: tuple[int, ...]
    parts: tuple[Part, ...] = ()  #: the last dimension, where tensor parallelism divides it
    dtype: str | None = None  #: `None`: the model's
    tower: str | None = None


# -- Caches: what a layer keeps per token or per sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCache:
    """Keys and values of one attention layer (v1/kv_cache_interface.py:FullAttentionSpec and siblings)."""

    name: str
    stage: Stage
    kind: AttentionKind
    heads: int  #: query heads, of all ranks together
    kv_heads: int
    head_size: int
    head_size_v: int
    window_tokens: int | None = None  #: of `sliding`, or the chunk of `chunked`
    sinks: bool = False  #: attention sinks restrict the backend
    key_only: bool = False
    backend: str | None = None  #: where the model's own class brings one

    def kv_heads_per_rank(self, tp: int) -> int:
        return max(1, self.kv_heads // tp)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentCache:
    """One compressed vector per token, the same on every rank (MLAAttentionSpec)."""

    name: str
    stage: Stage
    heads: int
    kv_lora_rank: int
    rope_size: int
    sparse: bool = False  #: attends only to what an indexer selects
    window_tokens: int | None = None

    @property
    def head_size(self) -> int:
        return self.kv_lora_rank + self.rope_size


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexerCache:
    """The keys of a sparse-attention indexer: in fp8 with their fp32 scales, or in half precision."""

    name: str
    stage: Stage
    bytes_per_token: int
    element_bytes: int = 1
    backend: str = "DEEPSEEK_V32_INDEXER"


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedCache:
    """Rows that a model's own attention classes lay out, one for every `tokens_per_row` tokens; blocks of all
    such layers are packed behind each other (models/deepseek_v4)."""

    name: str
    stage: Stage
    backend: str  #: that of the classes, which decides the blocks
    row_bytes: int
    plain_elements: int = 0  #: of a row where its backend keeps rows in the cache's type; 0: always `row_bytes`
    tokens_per_row: int = 1
    block_tokens: int | None = None  #: `None`: the model's block
    window_tokens: int | None = None
    aligned: bool = False  #: pages are filled up to the multiples of its backend
    ring: bool = False  #: one block per request, of the tokens of an unfinished row and those speculated beyond


@dataclass(frozen=True, slots=True, kw_only=True)
class StateCache:
    """The state of a recurrent layer, of fixed size per sequence (layers/mamba/mamba_utils.py).

    Which of the sizes are meaningful depends on `kind`; `shapes` knows.
    """

    name: str
    stage: Stage
    kind: StateKind
    conv_kernel: int = 0
    intermediate_size: int = 0  #: mamba1, mamba2, short_conv
    groups: int = 0  #: mamba2
    heads: int = 0  #: mamba2, kda, linear attention; value heads of gdn
    head_size: int = 0  #: of those heads
    state_size: int = 0  #: mamba1, mamba2
    key_heads: int = 0  #: gdn
    key_head_size: int = 0  #: gdn
    bounded: bool = False  #: kda: its gate has a lower bound, which the faster kernel needs

    def shapes(self, tp: int, speculative_tokens: int = 0) -> tuple[tuple[int, ...], ...]:
        """The tensors of one state on a rank: the convolution's first, then the recurrent one."""
        window = self.conv_kernel - 1
        if self.kind == "mamba1":
            width = self.intermediate_size // tp
            return (window, width), (width, self.state_size)
        window += speculative_tokens
        if self.kind == "mamba2":
            groups = self.groups if self.groups % tp == 0 else tp
            width = (self.intermediate_size + 2 * groups * self.state_size) // tp
            return (window, width), (self.heads // tp, self.head_size, self.state_size)
        if self.kind == "gdn":
            width = (2 * self.key_heads * self.key_head_size + self.heads * self.head_size) // tp
            return (window, width), (self.heads // tp, self.head_size, self.key_head_size)
        if self.kind == "kda":
            width = 3 * self.heads * self.head_size // tp
            return (window, width), (self.heads // tp, self.head_size, self.head_size)
        if self.kind == "short_conv":
            return ((window, self.intermediate_size // tp),)
        return ((self.heads // tp, self.head_size, self.head_size),)

    def dtypes(self, model_dtype: str, cache_dtype: str = "auto", ssm_dtype: str = "auto") -> tuple[str, ...]:
        """Element types of `shapes`; `--mamba-cache-dtype` and `--mamba-ssm-cache-dtype` may name them."""
        conv = model_dtype if cache_dtype == "auto" else cache_dtype
        if self.kind in ("short_conv", "linear_attention"):
            return (conv,)
        if ssm_dtype != "auto":
            return conv, ssm_dtype
        return conv, "float32" if self.kind == "kda" else conv

    def state_bytes(
        self,
        *,
        tp: int,
        model_dtype: str,
        cache_dtype: str = "auto",
        ssm_dtype: str = "auto",
        speculative_tokens: int = 0,
    ) -> int:
        """Bytes of one state on a rank, before padding to a page (MambaSpec.page_size_bytes)."""
        shapes = self.shapes(tp, speculative_tokens)
        types = self.dtypes(model_dtype, cache_dtype, ssm_dtype)
        return sum(math.prod(shape) * dtype_bytes(dtype) for shape, dtype in zip(shapes, types, strict=True))


Cache = AttentionCache | LatentCache | IndexerCache | PackedCache | StateCache


# -- The model


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """The multi-token-prediction layers of a checkpoint: built only when speculation asks for them."""

    n_layers: int
    modules: tuple[Module, ...]
    caches: tuple[Cache, ...]


def alike(parts: Iterable[Module | Cache]) -> Iterator[int]:
    """Of each part the number of the first that differs from it in its layer alone, and in the name before the last
    dot: most layers of a model are alike, and what holds for one need not be found out for sixty."""
    getters: dict[type, Any] = {}
    first: dict[tuple[object, ...], int] = {}
    for number, part in enumerate(parts):
        of = type(part)
        if of not in getters:
            getters[of] = attrgetter(*(f.name for f in fields(part) if f.name not in ("name", "stage")))
        key = of, part.name[part.name.rfind(".") :], getters[of](part)
        yield first.setdefault(key, number)


@dataclass(frozen=True, kw_only=True)
class VllmModel:
    """A model as vLLM sees it, before any flag is applied."""

    architecture: str  #: the word of `architectures` that decides the class
    model_type: str
    modules: tuple[Module, ...]
    buffers: tuple[Buffer, ...]
    caches: tuple[Cache, ...]
    dtype: str  #: the checkpoint's; `float32` where it does not say
    n_layers: int  #: decoder layers, which pipeline stages share
    hidden_size: int
    intermediate_size: int  #: the widest dense feed-forward, of all ranks; 0 if none
    vocab_size: int
    n_heads: int
    n_kv_heads: int
    head_size: int
    max_len_tokens: int | None  #: derived from the configuration; `None`: it does not say (vLLM takes 2048)
    max_len_key: str | None  #: the key that `max_len_tokens` came from
    default_len_tokens: int | None  #: what `--max-model-len` is when not given (differs for longrope)
    n_experts: int = 0
    n_experts_per_token: int = 0
    moe_intermediate_size: int = 0
    sliding_window: int | None = None  #: the configuration's, for `--disable-sliding-window`
    uses_mla: bool = False
    is_hybrid: bool = False  #: attention and recurrent layers
    is_attention_free: bool = False
    is_multimodal: bool = False
    is_pooling: bool = False
    is_encoder_decoder: bool = False
    is_encoder_only: bool = False  #: attention both ways: no chunked prefill, no prefix cache, no KV
    supports_pipeline: bool = True
    supports_lora: bool = True  #: else vLLM stops at `--enable-lora` (lora_model_runner_mixin.py:load_lora_model)
    modalities: tuple[str, ...] = ()
    quantization: Mapping[str, object] | None = None  #: the checkpoint's quantization configuration
    ssm_dtype: str | None = None  #: the checkpoint's recurrent state type, where vLLM takes it
    draft: Draft | None = None
    basis: Literal["derived", "bound"] = "derived"  #: `bound`: an upper bound for an unknown architecture
    notes: tuple[str, ...] = ()  #: what a reader of the plan ought to know
    config: Mapping[str, object] = field(default_factory=dict)  #: of the text model, defaults filled in

    @property
    def is_moe(self) -> bool:
        return self.n_experts > 0

    @cached_property
    def places(self) -> frozenset[Stage]:
        """Where there are modules."""
        return frozenset(module.stage for module in self.modules)

    @cached_property
    def module_kinds(self) -> tuple[int, ...]:
        """Of each module the number of the first that is like it: see `alike`."""
        return tuple(alike(self.modules))

    @cached_property
    def distinct_caches(self) -> tuple[Cache, ...]:
        """One cache of each kind: what one rank of a layer keeps is the same for all of a kind."""
        return tuple(cache for number, cache in enumerate(self.caches) if self.cache_kinds[number] == number)

    @cached_property
    def cache_kinds(self) -> tuple[int, ...]:
        """Of each cache the number of the first that is like it: see `alike`."""
        return tuple(alike(self.caches))


# -- Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class StageWeights:
    """What the first tensor-parallel rank of one pipeline stage holds once the model is loaded."""

    stage: int
    n_layers: int
    parameter_bytes: int  #: as created, before any post-processing
    expert_bytes: int  #: the routed experts among them
    embedding_bytes: int  #: embedding and LM head among them, which CPU offload never moves
    tower_bytes: int  #: encoders of images, sound, video among them
    buffer_bytes: int  #: rope caches and the like
    extra_bytes: int  #: what post-processing adds for good: W_UK and W_UV, padding of kernels
    lora_bytes: int
    draft_bytes: int
    on_meta: tuple[str, ...] = ()  #: "linear", "experts": parameters without data until they are loaded

    @property
    def total_bytes(self) -> int:
        loaded = self.parameter_bytes + self.buffer_bytes + self.extra_bytes
        return loaded + self.lora_bytes + self.draft_bytes
