"""GGUF files, as vLLM's plugin keeps them: the file's own blocks, under one type per weight (vllm_gguf_plugin)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from autofit.domain.dtypes import GGML_TYPES_BY_NAME
from autofit.domain.values import dataclass
from autofit.errors import EngineRefusalError, UnsupportedModelError

from autofit_vllm.modules.model import Experts, Linear, Vocabulary
from autofit_vllm.modules.sharding import ExpertsShape, LinearShape
from autofit_vllm.quantization.names import bare
from autofit_vllm.quantization.scheme import UNQUANTISED, Quantization, Scheme, Tensor

_PLAIN = frozenset({"f32", "f16", "bf16"})  #: loaded in the model's type
#: what the plugin has kernels for (quantization/utils.py:DEQUANT_TYPES)
_KERNELS = frozenset(
    (
        "q4_0 q4_1 q5_0 q5_1 q8_0 q8_1 q2_K q3_K q4_K q5_K q6_K "
        "iq1_m iq1_s iq2_xxs iq2_xs iq2_s iq3_xxs iq3_s iq4_xs iq4_nl"
    ).split()
)
#: the file's name of a layer's weight, by the checkpoint's
_LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
}
_OTHER_NAMES = {"embed_tokens": "token_embd", "lm_head": "output"}


def gguf_name(name: str) -> str | None:
    """The tensor of a GGUF file that holds a module's weight, without its suffix; `None`: not one we know."""
    short = bare(name)
    if short.startswith("layers."):
        _, index, rest = short.split(".", 2)
        own = _LAYER_NAMES.get(rest)
        return own and f"blk.{index}.{own}"
    return _OTHER_NAMES.get(short)


def _bytes(kind: str, n_elements: int, what: str) -> int:
    """Bytes of a rank's part of a row.

    Raises:
        EngineRefusalError: the part ends inside a block.
    """
    block = GGML_TYPES_BY_NAME[kind]
    if n_elements % block.block_elements:
        raise EngineRefusalError(
            f"{what}: {n_elements} weights per rank are not whole {kind} blocks of {block.block_elements}",
            hint="use a smaller tensor parallel size",
        )
    return n_elements // block.block_elements * block.block_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufScheme(Scheme):
    """Blocks row by row, one type per fused part; shorter rows are filled up to the longest
    (quantization/linear.py)."""

    name: str
    kinds: tuple[str, ...]

    def linear(self, shape: LinearShape) -> Iterator[Tensor]:
        row = max(_bytes(kind, shape.in_rank, self.name) for kind in self.kinds)
        yield Tensor("qweight", (shape.out_rank, row), "uint8")
        yield Tensor("qweight_type", (len(shape.outs_rank),), "uint8")

    def experts(self, shape: ExpertsShape) -> Iterator[Tensor]:
        """The types of gate, up and down (quantization/fused_moe.py); gate and up share one tensor."""
        gate, up, down = self.kinds
        if gate != up:
            raise EngineRefusalError(f"{self.name}: gate is {gate} and up is {up}, which cannot be fused")
        yield Tensor("w13_qweight", (shape.count, shape.w13_rows, _bytes(gate, shape.hidden_size, self.name)), "uint8")
        yield Tensor(
            "w2_qweight", (shape.count, shape.hidden_size, _bytes(down, shape.intermediate_rank, self.name)), "uint8"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Gguf(Quantization):
    """vllm_gguf_plugin's quantization/config.py:GGUFConfig."""

    types: Mapping[str, str]  #: ggml type by tensor name

    def linear(self, module: Linear) -> Scheme:
        return self._of(module.name, tuple(self._type(shard) for shard in module.shards))

    def vocabulary(self, module: Vocabulary) -> Scheme:
        return self._of(module.name, (self._type(module.name),))

    def experts(self, module: Experts, shape: ExpertsShape) -> Scheme:
        kinds = tuple(self._type(f"{module.name}.{name}") for name in module.names)
        if _PLAIN.intersection(kinds):
            raise EngineRefusalError(f"{module.name}: the plugin loads quantized experts only, not {kinds[0]}")
        return self._of(module.name, kinds)

    def _of(self, name: str, kinds: tuple[str, ...]) -> Scheme:
        plain = [kind in _PLAIN for kind in kinds]
        if all(plain):
            return UNQUANTISED
        if any(plain):
            raise EngineRefusalError(
                f"Detected some but not all shards of {name} are quantized ({', '.join(kinds)}). All shards of "
                "fused layers to have the same precision."
            )
        return GgufScheme(name=name, kinds=kinds)

    def _type(self, name: str) -> str:
        own = gguf_name(name)
        kind = None if own is None else self.types.get(f"{own}.weight")
        if kind is None:
            raise UnsupportedModelError(f"the GGUF file has no weight for {name}")
        if kind not in _KERNELS and kind not in _PLAIN:
            raise EngineRefusalError(f"Unsupported GGUF quantization type {kind} in layer {name}.")
        return kind


def gguf(types: Mapping[str, str]) -> Gguf:
    return Gguf(name="gguf", min_capability=60, dtypes=("float16", "bfloat16", "float32"), types=types)
