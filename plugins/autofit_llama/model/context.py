"""The numbers that a llama.cpp context is asked for, and those that it works with: cells, streams, batch, outputs."""

from __future__ import annotations

from typing import NoReturn

from autofit.domain.dtypes import row_bytes
from autofit.domain.units import round_up
from autofit.domain.values import dataclass
from autofit.errors import EngineRefusalError

from autofit_llama.engine.versions import LATEST, Version
from autofit_llama.engine.vocabulary import (
    POOLING_LAST,
    POOLING_RANK,
    POOLING_UNSPECIFIED,
    FlashAttention,
)

MAX_SEQUENCES = 256  #: LLAMA_MAX_SEQ (src/llama-cparams.h)
CELL_PADDING = 256  #: GGML_PAD of the context and of sliding-window caches


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextParams:
    """What a program asks llama.cpp for (struct llama_context_params); the defaults are llama-fit-params'.

    `n_ctx` 0 is the trained context, `n_outputs_max` 0 the whole batch. `mtp` asks for the context of the
    draft head.
    """

    n_ctx: int = 0
    n_batch: int = 2048
    n_ubatch: int = 512
    n_seq_max: int = 1
    n_rs_seq: int = 0
    n_outputs_max: int = 0
    kv_unified: bool = False
    type_k: str = "f16"
    type_v: str = "f16"
    flash_attn: FlashAttention = "auto"
    swa_full: bool = False
    offload_kqv: bool = True
    op_offload: bool = True
    embeddings: bool = False
    pooling_type: int = POOLING_UNSPECIFIED
    causal: bool | None = None  #: `--attention`; `None`: as the model says
    mtp: bool = False
    version: Version = LATEST


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The same as the engine uses it (struct llama_cparams).

    `n_tokens` and `n_outputs` are those of the worst-case prompt graph. `flash_attn` `auto` is decided while
    the graph is reserved; caches are laid out as if it were on.
    """

    n_ctx: int
    n_ctx_seq: int  #: cells of one stream of a full cache
    n_streams: int
    n_seq_max: int
    n_rs_seq: int
    n_batch: int
    n_ubatch: int
    n_outputs_max: int
    n_tokens: int
    n_outputs: int
    kv_unified: bool
    type_k: str
    type_v: str
    flash_attn: FlashAttention
    swa_full: bool
    offload_kqv: bool
    op_offload: bool
    embeddings: bool
    pooling_type: int
    causal: bool
    mtp: bool
    version: Version = LATEST

    @property
    def v_transposed(self) -> bool:
        """Without flash attention V is stored transposed, all layers as wide as the widest."""
        return self.flash_attn == "off"

    def splits_inputs(self, has_cache: bool) -> bool:
        """Whether a server reads one input in several micro-batches (server-context.cpp:server_slot::can_split)."""
        reads_last = self.pooling_type == POOLING_LAST or (self.pooling_type == POOLING_RANK and self.causal)
        return not self.embeddings or (has_cache and reads_last)

    def window_cells(self, n_swa: int, *, unified: bool) -> int:
        """Cells of one stream of a sliding-window cache (src/llama-kv-cache-iswa.cpp)."""
        if self.swa_full:
            return self.n_ctx_seq
        n_windows = self.n_seq_max if unified else 1
        return round_up(min(self.n_ctx_seq, n_swa * n_windows + self.n_ubatch), CELL_PADDING)


def cache_row_bytes(type_name: str, n_elements: int) -> int:
    """Bytes of one cache row.

    Raises:
        EngineRefusalError: the row is not whole blocks of the type.
    """
    try:
        return row_bytes(type_name, n_elements)
    except ValueError:
        refuse(f"a cache of {type_name} cannot hold rows of {n_elements} elements", "use f16")


def refuse(cause: str, hint: str | None = None) -> NoReturn:
    raise EngineRefusalError(f"llama.cpp refuses: {cause}", hint=hint)
