"""A file as llama.cpp's loader takes it: what it asks for has to be there, in shape, and nothing else.

The functions of the generated modules are load_arch_tensors (src/models); a `Loader` stands for the model that they
fill: `tensor` is create_tensor, other names are fields of it, and `hparams` is the engine's own struct.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from autofit.domain.model import ModelSpec, TensorInfo
from autofit.domain.text import printable
from autofit.errors import CorruptModelError

from autofit_llama.model.load import read_hparams
from autofit_llama.model.metadata_reader import HParamsDraft

OPTIONAL, DUPLICATED, SKIP, RESHAPE = 1, 2, 4, 8  #: flags of create_tensor (src/llama-model-loader.h)
MAX_DIMS = 4  #: ggml.h:GGML_MAX_DIMS
#: tried in a rotation, whether the graph has one (src/llama-model-loader.cpp:weight_buft_supported)
ROTATED = ("rope_freqs", "rope_factors_long", "rope_factors_short")
LONG_ROPE = "LLAMA_ROPE_SCALING_TYPE_LONGROPE"

Shape = Sequence[int]


class Fields:
    """A struct of the engine's: what nobody has set is `None`."""

    def __getattr__(self, name: str) -> Any:
        return None

    if TYPE_CHECKING:

        def __setattr__(self, name: str, value: Any) -> None: ...


class _Layers(dict[int, Fields]):
    """The blocks; to set one is to copy it, as with structs."""

    def __missing__(self, il: int) -> Fields:
        super().__setitem__(il, Fields())
        return self[il]

    def __setitem__(self, il: int, layer: Fields) -> None:
        copy = Fields()
        vars(copy).update(vars(layer))
        super().__setitem__(il, copy)


class Loader(Fields):
    """The model that load_arch_tensors fills, with the names of LLAMA_LOAD_LOCALS (src/llama-model.h) as fields."""

    load_mtp = False  #: nobody asks for a draft head that is in the file: its tensors are looked at and left out

    def __init__(self, model: ModelSpec, draft: HParamsDraft) -> None:
        hp = self.hparams = _Hparams(draft, model)
        self._path = model.files[0].path if model.files else model.name
        self._by_name = {tensor.name: tensor for tensor in model.tensors}
        self._n_created = 0
        self._asked: set[str] = set()
        self.arch = model.architecture
        self.ml = self
        self.layers = _Layers()
        self.n_layer, self.n_layer_all, self.n_layer_nextn = hp.n_layer, hp.n_layer_all, hp.n_layer_nextn
        self.n_head, self.n_head_kv = hp.n_head(), hp.n_head_kv()
        self.n_embd, self.n_ff, self.n_rot = hp.n_embd, hp.n_ff(), hp.n_rot()
        self.n_embd_k_gqa, self.n_embd_v_gqa = hp.n_embd_k_gqa(), hp.n_embd_v_gqa()
        self.n_embd_gqa = self.n_embd_v_gqa
        self.n_embd_head_k, self.n_embd_head_v = hp.n_embd_head_k(), hp.n_embd_head_v()
        self.n_vocab, self.n_ctx_train = hp.n_vocab, hp.n_ctx_train
        self.n_token_types = number_of(model, "tokenizer.ggml.token_type_count")
        self.n_expert, self.n_expert_used = hp.n_expert, hp.n_expert_used()
        self.n_adapters, self.max_lora_rank = hp.n_adapters, hp.max_lora_rank  # fields of granite-switch.cpp's model
        self.n_loops, self.n_layer_phys = hp.n_loops, hp.n_layer // hp.n_loops  # and of nanbeige.cpp's

    def refuse(self, cause: str) -> NoReturn:
        raise CorruptModelError(printable(self._path), f"llama.cpp refuses it as {printable(self.arch, 40)}: {cause}")

    def must(self, condition: Any, text: str) -> None:
        """GGML_ASSERT, at which the engine ends."""
        if not condition:
            self.refuse(f"it expects {text.replace('m.hparams.', '').replace('m.', '')}")

    def name(self, tensor: str, block: int) -> str:
        return tensor.replace("%d", str(block))

    def get_weight(self, name: str) -> TensorInfo | None:
        return self._by_name.get(name)

    get_tensor_meta = get_weight

    def ne(self, tensor: TensorInfo, i: int) -> int:
        return _ne(tensor)[i]

    def tensor(self, name: str, ne: Shape, flags: int) -> TensorInfo | None:
        """create_tensor: the tensor, if there is one and it is loaded."""
        found = self._by_name.get(name)
        if found is None:
            if flags & OPTIONAL:
                return None
            self.refuse(f"it has no tensor {name}{_shape(ne)}")
        has = _ne(found)
        if flags & RESHAPE:
            right = found.n_elements == _product(ne)
        else:
            right = has == (*ne, 1, 1, 1, 1)[: max(MAX_DIMS, len(ne))]
        if not right:
            self.refuse(f"tensor {name} has the shape{_shape(_trimmed(has))}, it expects{_shape(ne)}")
        self._asked.add(name)
        if flags & SKIP:
            self._n_created += 1
            return None
        if found.type != "f32" and name.removesuffix(".weight").rpartition(".")[2] in ROTATED:
            self.refuse(f"tensor {name} is {found.type}, it expects f32 (GGML_ASSERT(c->type == GGML_TYPE_F32))")
        if not flags & DUPLICATED:
            self._n_created += 1
        return found

    def done(self) -> None:
        """done_getting_tensors: as many have been asked for as there are."""
        n = len(self._by_name)
        if self._n_created == n:
            return
        others = [name for name in self._by_name if name not in self._asked]
        which = f", among them {', '.join(printable(name, 60) for name in others[:3])}" if others else ""
        self.refuse(f"it has {n} tensors, {self._n_created} are asked for{which and f'; {len(others)} are not{which}'}")

    def tensor_qkv(self, layer: Any, i: int, n_embd: int, n_q: int, n_k: int, n_v: int, flags: int) -> None:
        """src/llama-model.cpp:create_tensor_qkv: one matrix, or three."""
        n_qkv = n_q + n_k + n_v
        if flags & SKIP:
            flags = OPTIONAL | SKIP
            self.tensor(f"blk.{i}.attn_qkv.weight", (n_embd, n_qkv), flags)
            self.tensor(f"blk.{i}.attn_qkv.bias", (n_qkv,), flags)
        else:
            layer.wqkv = self.tensor(f"blk.{i}.attn_qkv.weight", (n_embd, n_qkv), OPTIONAL)
            if layer.wqkv:
                layer.wqkv_b = self.tensor(f"blk.{i}.attn_qkv.bias", (n_qkv,), OPTIONAL)
                if layer.wqkv_b:
                    return
        for name, n in (("q", n_q), ("k", n_k), ("v", n_v)):
            if not layer.wqkv:
                setattr(layer, f"w{name}", self.tensor(f"blk.{i}.attn_{name}.weight", (n_embd, n), flags))
            bias = self.tensor(f"blk.{i}.attn_{name}.bias", (n,), flags if flags & SKIP else OPTIONAL)
            setattr(layer, f"w{name}_b", bias)

    def tensor_gate_up_exps(self, layer: Any, i: int, n_embd: int, n_ff: int, n_expert: int, flags: int) -> None:
        """src/llama-model.cpp:create_tensor_gate_up_exps: one tensor, or two."""
        joined = (n_embd, n_ff * 2, n_expert)
        if flags & SKIP:
            flags = OPTIONAL | SKIP
        layer.ffn_gate_up_exps = self.tensor(f"blk.{i}.ffn_gate_up_exps.weight", joined, flags | OPTIONAL)
        if layer.ffn_gate_up_exps is None:
            layer.ffn_gate_exps = self.tensor(f"blk.{i}.ffn_gate_exps.weight", (n_embd, n_ff, n_expert), flags)
            layer.ffn_up_exps = self.tensor(f"blk.{i}.ffn_up_exps.weight", (n_embd, n_ff, n_expert), flags)


class _Hparams:
    """llama_hparams (src/llama-hparams.h) by its own names; functions of a block mean the first where none is said."""

    def __init__(self, draft: HParamsDraft, model: ModelSpec) -> None:
        self._draft = draft
        self._model = model
        scaling = model.metadata.get(f"{model.architecture}.rope.scaling.type")
        self.rope_scaling_type_train = LONG_ROPE if scaling == "longrope" else ""
        self.n_ff_arr = draft.n_ff
        self.n_layer = draft.n_layer_all - draft.n_layer_nextn

    def __getattr__(self, name: str) -> Any:
        return getattr(self._draft, name)

    def n_head(self, il: int = 0) -> int:
        return int(self._draft.n_head[il])

    def n_head_kv(self, il: int = 0) -> int:
        return int(self._draft.n_head_kv[il])

    def n_ff(self, il: int = 0) -> int:
        return int(self._draft.n_ff[il])

    def n_ff_exp(self, il: int = 0) -> int:
        return int(self._draft.n_ff_exp[il])

    def n_expert_used(self, il: int = 0) -> int:
        return int(self._draft.n_expert_used[il])

    def n_embd_head_k(self, il: int = 0) -> int:
        return int(self._draft.n_embd_head_k_swa if self.is_swa(il) else self._draft.n_embd_head_k_full)

    def n_embd_head_v(self, il: int = 0) -> int:
        return int(self._draft.n_embd_head_v_swa if self.is_swa(il) else self._draft.n_embd_head_v_full)

    def n_embd_k_gqa(self, il: int = 0) -> int:
        return self.n_embd_head_k(il) * self.n_head_kv(il)

    def n_embd_v_gqa(self, il: int = 0) -> int:
        return self.n_embd_head_v(il) * self.n_head_kv(il)

    def n_rot(self, il: int = 0) -> int:
        return int(self._draft.n_rot_swa if self.is_swa(il) else self._draft.n_rot_full)

    def n_embd_r(self) -> int:
        return read_hparams(self._model).n_embd_r

    def is_swa(self, il: int) -> bool:
        return bool(self._draft.is_swa[il])

    def is_recr(self, il: int) -> bool:
        return bool(self._draft.is_recr[il])

    def is_indexer_full(self, il: int) -> bool:
        return bool(self._draft.is_indexer_full[il])

    def is_ple(self, il: int) -> bool:
        return bool(self._draft.is_ple[il])

    def is_mla(self) -> bool:
        return bool(self._draft.n_embd_head_k_mla_impl and self._draft.n_embd_head_v_mla_impl)

    def n_embd_head_k_mla(self) -> int:
        return int(self._draft.n_embd_head_k_mla_impl) if self.is_mla() else self.n_embd_head_k()

    def n_embd_head_v_mla(self) -> int:
        return int(self._draft.n_embd_head_v_mla_impl) if self.is_mla() else self.n_embd_head_v()

    def has_kv(self, il: int) -> bool:
        return bool(self._draft.n_layer_kv_from_start < 0 or il < self._draft.n_layer_kv_from_start)

    def n_embd_inp(self) -> int:
        return int(self._draft.n_embd_inp)

    def n_embd_inp_enc(self) -> int:
        return int(self._draft.n_embd_inp_enc or self._draft.n_embd_inp)

    def n_embd_out(self) -> int:
        return int(self._draft.n_embd_out or self._draft.n_embd)


def number_of(model: ModelSpec, key: str) -> int:
    value = model.metadata.get(key)
    return value if type(value) is int else 0


def _ne(tensor: TensorInfo) -> tuple[int, ...]:
    return (*tensor.ne, 1, 1, 1, 1)[:MAX_DIMS]


def _trimmed(ne: Shape) -> Shape:
    """Without the ones at the end."""
    n = len(ne)
    while n > 1 and ne[n - 1] == 1:
        n -= 1
    return ne[:n]


def _shape(ne: Shape) -> str:
    return f" [{', '.join(map(str, ne))}]"


def _product(ne: Shape) -> int:
    n = 1
    for each in ne:
        n *= each
    return n
