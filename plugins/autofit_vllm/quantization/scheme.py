"""The parameters a layer creates under a quantization: names, shapes and types, as `create_weights` makes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from autofit.domain.values import NamedTuple, dataclass
from autofit.errors import EngineRefusalError

from autofit_vllm.modules.model import Experts, Linear, Vocabulary
from autofit_vllm.modules.sharding import ExpertsShape, LinearShape


class Tensor(NamedTuple):
    """One parameter of a layer on a rank; `suffix` follows the layer's name."""

    suffix: str
    shape: tuple[int, ...]
    dtype: str


class Scheme:
    """How one layer keeps its weights. The base is unquantized (layers/linear.py:UnquantizedLinearMethod)."""

    def linear(self, shape: LinearShape) -> Iterable[Tensor]:
        return (Tensor("weight", (shape.out_rank, shape.in_rank), shape.dtype),)

    def experts(self, shape: ExpertsShape) -> Iterable[Tensor]:
        """Parameters of all local experts; biases where the model has them."""
        yield Tensor("w13_weight", (shape.count, shape.w13_rows, shape.hidden_size), shape.dtype)
        yield Tensor("w2_weight", (shape.count, shape.hidden_size, shape.intermediate_rank), shape.dtype)
        yield from expert_biases(shape)

    def loaded_linear(self, shape: LinearShape) -> Iterable[Tensor]:
        """What `linear` has become once the weights are loaded: quantized on loading, or with scales beside it."""
        return self.linear(shape)

    def loaded_experts(self, shape: ExpertsShape) -> Iterable[Tensor]:
        return self.experts(shape)


UNQUANTISED = Scheme()


def expert_biases(shape: ExpertsShape, dtype: str | None = None) -> Iterator[Tensor]:
    if shape.bias:
        yield Tensor("w13_bias", (shape.count, shape.w13_rows), dtype or shape.dtype)
        yield Tensor("w2_bias", (shape.count, shape.hidden_size), dtype or shape.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """Which scheme each layer of a model gets. The base quantizes nothing.

    `name` is vLLM's word for it, `min_capability` the lowest compute capability times ten that it accepts.
    """

    name: str | None = None
    capability: int = 0  #: of the GPU, times ten
    min_capability: int = 0
    dtypes: tuple[str, ...] = ("bfloat16", "float16", "float32")  #: activations it accepts
    while_loading: bool = False  #: what is kept is not what was created: see `Scheme.loaded_linear`
    on_meta: tuple[str, ...] = ()  #: "linear", "experts": created without data, which only loading brings
    one_rank: bool = False  #: tensor parallelism cannot divide the blocks of its checkpoints
    eager: bool = False  #: its kernels cannot be captured in CUDA graphs
    kv_cache_dtype: str | None = None  #: what `--kv-cache-dtype auto` becomes

    def linear(self, module: Linear) -> Scheme:
        return UNQUANTISED

    def vocabulary(self, module: Vocabulary) -> Scheme:
        return UNQUANTISED

    def experts(self, module: Experts, shape: ExpertsShape) -> Scheme:
        return UNQUANTISED

    def attention(self, kv_heads: int, dtype: str, *, latent: bool) -> Iterable[Tensor]:
        """Scales that an attention layer gets for a quantized cache."""
        return ()


NONE = Quantization()


def group_size_of(config: Mapping[str, object], *keys: str, default: int | None = None) -> int:
    """Raises:
    EngineRefusalError: the key is missing or not a whole number.
    """
    for key in keys:
        value = config.get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        if not -1 <= value < 1 << 32 or (value == 0):
            raise EngineRefusalError(f"quantization_config: {key} is {value}")
        return value
    if default is None:
        raise EngineRefusalError(f"quantization_config does not say {keys[0]}")
    return default


def cdiv(amount: int, by: int) -> int:
    return -(-amount // by)
