"""What a graph is built from: one model, placed, in one context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autofit.domain.dtypes import GGML_TYPES_BY_NAME
from autofit.domain.model import TensorInfo
from autofit.domain.values import dataclass

from autofit_llama.engine.versions import Change, Version
from autofit_llama.graph.ggml import HOST
from autofit_llama.model.architecture import architecture_of
from autofit_llama.model.caches import CELLS_OF_A_STREAM
from autofit_llama.model.context import Context
from autofit_llama.model.hparams import HParams
from autofit_llama.model.resolve import caches

ROTATED_CACHES = Change(
    without=8390,
    has=9093,
    source="src/llama-kv-cache.cpp:build_input_k_rot, from no such input on",
    name="quantized caches rotated",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphModel:
    """Hyperparameters, tensors and where they lie, and the resolved context.

    `layer_dev[il]` is the device of block il, `HOST` for the CPU; the last entry is the output layer's.
    `homes` has every loaded tensor; `copies` the home of a tensor's second copy for a block (rope factors) or
    the output layer. `full_offload`: -ngl covers the output layer.
    """

    hparams: HParams
    context: Context
    tensors: Mapping[str, TensorInfo]
    layer_dev: Sequence[int]
    homes: Mapping[str, int]
    copies: Mapping[tuple[str, int], int]
    full_offload: bool

    def home(self, name: str, il: int) -> int:
        """Where a loaded weight lies for block `il` (-1: for none in particular)."""
        return self.copies[name, il] if (name, il) in self.copies else self.homes[name]

    @property
    def version(self) -> Version:
        return self.context.version

    @property
    def output_home(self) -> int:
        """Where the output matrix lies that is the embeddings again."""
        return self.home("token_embd.weight", self.hparams.n_layer_all)

    @property
    def n_streams(self) -> int:
        return self.context.n_streams

    @property
    def v_trans(self) -> bool:
        return self.context.v_transposed

    @property
    def has_swa_cache(self) -> bool:
        return self.hparams.swa_type != "none"

    @property
    def full_cells(self) -> int:
        """Cells of one stream of a full cache."""
        c = self.context
        if architecture_of(self.hparams.arch).memory.is_hybrid and not self.version.follows(CELLS_OF_A_STREAM):
            return c.n_ctx
        return c.n_ctx_seq

    @property
    def swa_cells(self) -> int:
        return self.context.window_cells(self.hparams.n_swa, unified=self.context.kv_unified)

    @property
    def state_rows(self) -> int:
        """Sequences that the recurrent state has room for."""
        return max(1, self.context.n_seq_max)

    @property
    def state_cells(self) -> int:
        """Its rows, with those kept for going back."""
        return self.state_rows * (1 + self.context.n_rs_seq)

    def cache_home(self, il: int) -> int:
        return self.layer_dev[il] if self.context.offload_kqv else HOST

    def rotations(self, *, swa: bool) -> tuple[int, int]:
        """Sides of the Hadamard matrices for quantized K and V, 0 for none.

        llama-kv-cache.cpp: only where all layers of the cache have heads of one size, and it has layers at
        all.
        """
        h, context = self.hparams, self.context
        if not self.version.follows(ROTATED_CACHES):
            return 0, 0
        if not _quantized(context.type_k) and not _quantized(context.type_v):
            return 0, 0
        name = "swa" if swa else "base"
        layers = next((cache.layers for cache in caches(h, context) if cache.name == name), ())
        heads_k, heads_v = {h.n_embd_head_k(il) for il in layers}, {h.n_embd_head_v(il) for il in layers}
        k = v = 0
        if _quantized(context.type_k) and len(heads_k) == 1 and h.n_embd_head_k(0) % 64 == 0:
            k = rotation_side(max(heads_k))
        if _quantized(context.type_v) and len(heads_v) == 1 and h.n_embd_head_v(0) % 64 == 0 and not h.is_mla:
            v = 64
        return k, v


def rotation_side(head: int) -> int:
    """The largest power of two from 64 on that divides `head`; 64 if none does."""
    side = 64
    while head > 0 and head % (2 * side) == 0:
        side *= 2
    return side


def _quantized(type_name: str) -> bool:
    return GGML_TYPES_BY_NAME[type_name].block_elements > 1
