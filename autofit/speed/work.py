"""What has to be read and computed for a step: free of engine, of placement and of any particular machine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from autofit.domain.model import FeedForwardKind, Mixer, TensorInfo
from autofit.domain.values import NamedTuple, dataclass

QuantClass = Literal["float", "byte", "block", "super", "super3", "codebook"]
_FLOAT = ("f", "bf", "tf")


def quant_class(type_name: str) -> QuantClass:
    """How a storage type is unpacked, which decides how much of the bandwidth its kernels reach.

    `float` needs nothing, `byte` a scale per block (q8_0, FP8, int8), `block` 4 or 5 bits and a scale (q4_0,
    MXFP4, NVFP4, the int4 of GPTQ and AWQ), `super` two levels of scales (q4_K to q6_K), `super3` the same
    with bits split over several planes (q2_K, q3_K, the ternary types), `codebook` a table look-up (iq1 to
    iq3).

    An unknown name counts as `block`, the middle of the range.
    """
    name = type_name.lower()
    if name.startswith("iq"):
        return "codebook" if not name.startswith("iq4") else "block"
    if name.startswith(("f8", "q8")) or name in ("i8", "u8", "int8", "fp8"):
        return "byte"
    if name.startswith(_FLOAT):
        return "float"
    if name in ("q2_k", "q3_k") or name.startswith("tq"):
        return "super3"
    if name.endswith("_k"):
        return "super"
    return "block"


class Read(NamedTuple):
    """Weights of one storage type: what they take in memory, and how many numbers they stand for."""

    type: str
    n_bytes: int
    n_elements: int


def reads(tensors: Iterable[TensorInfo]) -> tuple[Read, ...]:
    """The tensors' bytes and elements by storage type, in order of first appearance."""
    sums: dict[str, tuple[int, int]] = {}
    for tensor in tensors:
        n_bytes, n_elements = sums.get(tensor.type, (0, 0))
        sums[tensor.type] = n_bytes + tensor.n_bytes, n_elements + tensor.n_elements
    return tuple(Read(name, n_bytes, n_elements) for name, (n_bytes, n_elements) in sums.items())


# Kernels that one token starts in one block beside its norms, counted on graphs with fused
# kernels (an activation's quantization is a kernel of its own). The time of one is fitted, so only
# the ratios matter.
_MIXER_KERNELS: dict[Mixer, int] = {
    "full": 13, "sliding": 13, "chunked": 13, "latent": 17, "recurrent": 22, "shortconv": 9, "none": 0,
}  # fmt: skip
_FEED_FORWARD_KERNELS: dict[FeedForwardKind, int] = {"dense": 5, "experts": 10, "none": 0}
_SHARED_EXPERT_KERNELS = 6


def n_kernels(
    mixer: Mixer, feed_forward: FeedForwardKind, *, n_norms: int = 2, has_shared_experts: bool = False
) -> int:
    """About how many kernels one step starts in such a block; `n_norms` counts its norm weights."""
    shared = _SHARED_EXPERT_KERNELS if has_shared_experts and feed_forward == "experts" else 0
    return _MIXER_KERNELS[mixer] + _FEED_FORWARD_KERNELS[feed_forward] + shared + n_norms


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWork:
    """One block, or the output stage, as a step sees it.

    `dense` is read whole in every step, `experts` (all routed experts of the block) as far as tokens choose
    them. `cache_token_bytes` is moved per token that is cached and at most `window_tokens` of them: K and V
    rows, for latent attention the K row alone, and what an engine unpacks of a quantized row in between.
    `state_bytes` is a sequence's recurrent state, read and written in each step. `attention_flops` are the
    operations of one query against one cached token: 2 · heads · (key + value dimension); `prompt_attention_flops`
    those of a prompt's, where an engine unpacks a latent for many queries. `hidden_bytes` is what a token hands to
    the next block: hidden size times the bytes of the activation type.
    `mask_bytes` is what one query says of one cached token, which a device on another machine is sent in every step.
    `result_bytes` is what a sequence's last block hands to the processor in each step: its logits.
    `last_token_only` marks the output stage: of a prompt only the last token needs logits.
    """

    dense: tuple[Read, ...] = ()
    experts: tuple[Read, ...] = ()
    n_experts: int = 0
    n_experts_used: int = 0
    cache_token_bytes: int = 0
    cache_is_quantized: bool = False
    window_tokens: int | None = None
    state_bytes: int = 0
    attention_flops: int = 0
    prompt_attention_flops: int | None = None
    n_kernels: int = 0
    hidden_bytes: int = 0
    mask_bytes: int = 0
    result_bytes: int = 0
    last_token_only: bool = False


class Place(NamedTuple):
    """Where a block runs: a `Device.id`, or `host`.

    `experts` and `cache` name another place that holds (and, for experts, computes) that part; `None` is the
    same. `ranks` are the devices that share the block by tensor parallelism; `device` is then the first, and
    `shares` the part of the block that each has, if not the same.
    """

    device: str
    experts: str | None = None
    cache: str | None = None
    ranks: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """Every place that takes part."""
        names = (self.device, self.experts, self.cache, *self.ranks)
        return tuple(name for name in names if name is not None)


class Step(NamedTuple):
    """One pass through the model: `n_tokens` in all, of `n_sequences`, each with `n_filled` tokens cached."""

    n_tokens: int = 1
    n_sequences: int = 1
    n_filled: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """Speculative decoding: `n_tokens` are drafted by `layers` and checked together in one step of the model.

    The layers run once per drafted token, or once per round when `is_parallel` (block diffusion drafts).
    `acceptance` is the chance that a drafted token is kept when all before it were; `None` takes the fitted
    one.
    """

    layers: tuple[tuple[LayerWork, Place], ...]
    n_tokens: int
    acceptance: float | None = None
    is_parallel: bool = False
