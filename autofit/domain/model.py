"""What is in a model file: tensors with exact sizes, and one entry per layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from typing import Literal, Protocol

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


class ByteFile(Protocol):
    """A file of which pieces can be read; where it lies is its storage's affair."""

    @property
    def path(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...

    def read(self, offset_bytes: int, n_bytes: int, least_bytes: int | None = None) -> bytes:
        """`n_bytes` from `offset_bytes` on, or what there is of them; fewer, but `least_bytes`, where more are dear."""


class Storage(Protocol):
    """Where files of models lie: the disk, or a repository elsewhere. Paths are its own."""

    def open(self, path: str) -> AbstractContextManager[ByteFile]:
        """The file at `path`, for reading. Raises: ModelNotFoundError, ModelError."""

    @property
    def is_dear(self) -> bool:
        """Whether every byte costs: what can be told from other files is not read."""

    def is_file(self, path: str) -> bool: ...
    def is_directory(self, path: str) -> bool: ...
    def names(self, directory: str) -> Collection[str]:
        """Names of the files in a directory. Raises: ModelNotFoundError, ModelError."""

    def expect(self, wanted: Mapping[str, int]) -> None:
        """These files are opened next, and about so many bytes of each one's start are read; does not wait for them."""

    def close(self) -> None:
        """All that was wanted has been read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """Where a reference led: files in order, or one directory. `reference` is what the user wrote.

    `storage` is where the paths are, `None` for this machine's disk. `written` is what a command says for the model
    where that is no path. `beside` maps roles (`mmproj`) to references of files that the same place offers with it;
    `offers` are all models of the place; `is_chosen`: the name says which of them. `notes` are facts that a plan should
    tell.
    """

    reference: str
    paths: tuple[str, ...]
    storage: Storage | None = None
    written: str | None = None
    beside: Mapping[str, str] = field(default_factory=dict)
    offers: tuple[Offer, ...] = ()
    is_chosen: bool = False
    notes: tuple[str, ...] = ()


class Offer(NamedTuple):
    """One of several models that a place offers."""

    reference: str
    quantization: str  #: as its files' names spell it, in capitals; empty where they say none
    size_bytes: int


class StoredModel(NamedTuple):
    """A model that lies in a cache on this machine."""

    name: str  #: what to write for MODEL
    path: str  #: its first file, or its directory
    size_bytes: int  #: of all of its files
    place: str  #: whose cache it is


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    path: str
    size_bytes: int
    header_bytes: int | None = None  #: before the padding that leads to the data


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
    `StringArray`. `metadata_types` are the GGUF types of its values (`u32`, `str`; `u32[]` of an array), where the file
    was read and nothing has replaced them: engines refuse a number of another type. `companions` maps a
    role (`mmproj`, `draft`, `lora`) to another model.
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
    metadata_types: Mapping[str, str] = field(default_factory=dict)
    companions: Mapping[str, ModelSpec] = field(default_factory=dict)
    missing_bytes: int = 0  #: of the weights, which the files lack: a download that is not finished
    n_missing_files: int = 0  #: files that an index names and that are not there; the figures are the configuration's

    @property
    def weights_bytes(self) -> int:
        return sum(tensor.n_bytes for tensor in self.tensors)

    @property
    def n_parameters(self) -> int:
        return sum(tensor.n_elements for tensor in self.tensors)
