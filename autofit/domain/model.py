"""What is in a model file: tensors with exact sizes, and one entry per layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from autofit.domain.values import NamedTuple, dataclass, field

Mixer = Literal["full", "sliding", "chunked", "latent", "recurrent", "shortconv", "none"]
FeedForwardKind = Literal["dense", "experts", "none"]


class TensorInfo(NamedTuple):
    """One tensor of the file. A NamedTuple, since a model may have 90 000 of them and start-up counts."""

    name: str
    type: str  #: storage type as its format spells it: `q4_K`, `f16` (ggml) or `BF16`, `F8_E4M3` (safetensors)
    shape: tuple[int, ...]  #: outermost first, as in numpy and safetensors; ggml's `ne` reversed
    n_bytes: int  #: exact bytes of the data, without padding
    file_index: int  #: which of `ModelSpec.files`
    offset_bytes: int  #: from the start of that file

    @property
    def ne(self) -> tuple[int, ...]:
        """The dimensions in ggml's order, innermost (the row a block runs along) first."""
        return self.shape[::-1] or (1,)  # of a tensor without dimensions ggml makes a row of one

    @property
    def n_elements(self) -> int:
        n = 1
        for dim in self.shape:
            n *= dim
        return n


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """Where a reference led: files in order, or one directory. `reference` is what the user wrote."""

    reference: str
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    path: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StringArray:
    """A metadata array that was skipped, not read: a vocabulary, its scores or merges."""

    count: int
    element_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """One block of the model, as far as file and configuration tell. Unknown is `None`."""

    index: int
    mixer: Mixer
    feed_forward: FeedForwardKind
    stack: str = ""  #: which stack of blocks: the model's own, or one beside it (`enc`, `dec`, `v`, `vision_tower`)
    also_recurrent: bool = False  #: a recurrent state stands beside the attention
    n_heads: int | None = None
    n_kv_heads: int | None = None
    key_dim: int | None = None
    value_dim: int | None = None
    window_tokens: int | None = None
    n_experts: int = 0
    n_experts_used: int = 0
    attention_bytes: int = 0
    feed_forward_bytes: int = 0  #: dense and shared experts
    expert_bytes: int = 0  #: routed experts only
    other_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model: files, every tensor, every layer, and the metadata that the engines read.

    `metadata` holds the GGUF keys as they are spelled, or the parsed `config.json`; vocabulary arrays are
    `StringArray`. `companions` maps a role (`mmproj`, `draft`, `lora`) to another model.
    """

    name: str
    format: Literal["gguf", "safetensors", "config"]
    architecture: str
    files: tuple[ModelFile, ...]
    tensors: tuple[TensorInfo, ...]
    layers: tuple[LayerSpec, ...]
    metadata: Mapping[str, object]
    hidden_elements: int | None = None
    n_vocab: int | None = None
    context_train_tokens: int | None = None
    companions: Mapping[str, ModelSpec] = field(default_factory=dict)

    @property
    def weights_bytes(self) -> int:
        return sum(tensor.n_bytes for tensor in self.tensors)

    @property
    def n_parameters(self) -> int:
        return sum(tensor.n_elements for tensor in self.tensors)
