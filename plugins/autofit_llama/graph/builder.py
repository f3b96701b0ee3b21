"""The blocks that every architecture is made of, as src/llama-graph.cpp puts them together.

A `Graph` holds the weights and caches of one model in one context and collects nodes in the engine's order:
`expand` is ggml_build_forward_expand. Whatever decides memory is the order of nodes, which sources are views,
and where weights and caches live; so an architecture has to expand where the engine expands, and nothing else
matters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

from autofit.domain.values import dataclass, field
from autofit.errors import EngineRefusalError

from autofit_llama.engine.versions import Change
from autofit_llama.engine.vocabulary import POOLING_CLS, POOLING_LAST, POOLING_MEAN, POOLING_NONE, POOLING_RANK
from autofit_llama.graph import ggml
from autofit_llama.graph.ggml import HOST, HOST_PINNED, NONE, Tensor
from autofit_llama.graph.model import GraphModel
from autofit_llama.model.aborts import aborts
from autofit_llama.model.architecture import Architecture, architecture_of
from autofit_llama.model.context import Context
from autofit_llama.model.hparams import (
    GATING_SIGMOID,
    GATING_SOFTMAX,
    GATING_SOFTMAX_WEIGHT,
    GATING_SQRT_SOFTPLUS,
    HParams,
)

READY_INPUTS = Change(
    without=7698,
    has=8095,
    source="src/llama-graph.cpp:build_inp_embd, with one branch and with two",
    name="a branch of the graph for ready-made embeddings",
)
MIXED_INPUTS = Change(
    without=11393,
    has=11401,
    source="src/llama-graph.cpp:build_inp_embd, with two branches and with three",
    name="a branch of the graph for tokens beside embeddings",
)
ONE_GATHER = Change(
    without=11368,
    has=11393,
    source="src/llama-graph.cpp:build_rs, from state_copy_main and state_copy_extra, and from state_copy",
    name="recurrent states gathered all at once",
)

HALF_MASKS = Change(
    without=9409,
    has=9415,
    source="src/llama-graph.cpp:build_attn_inp_kq_mask, an f32 input with a cast and an f16 input",
    name="attention masks in half precision",
    larger=False,
)
FUSED_CLAMPS = Change(
    without=10705,
    has=10724,
    source="src/llama-graph.cpp:build_ffn, ggml_swiglu_split of two clamps and ggml_swiglu_clamp",
    name="clamps inside gated units",
    larger=False,
)
CLAMPS_APART = Change(
    without=10605,
    has=10615,
    source="ggml/src/ggml.c:ggml_clamp, a view and a tensor of its own",
    name="clamps that are no views",
)
SUMS_AT_ONCE = Change(
    without=8390,
    has=9093,
    source="src/llama-graph.cpp:build_moe_ffn, sums of experts later and at once",
    name="experts of a block summed up at once",
    larger=False,
)

ROWS_AS_ASKED = Change(
    without=11434,
    has=11549,
    source="src/models/*.cpp, embeddings_nextn_masked in the last block; src/llama-graph.h, crop_before_nextn",
    name="rows without logits kept where a block that predicts further asks for them",
    larger=False,
)
TOKENS_FIRST = Change(
    without=11434,
    has=11549,
    source="src/llama-graph.cpp:build_inp_embd, with ggml_build_forward_expand and ggml_build_forward_order",
    name="embeddings of tokens before all else",
)

#: parts of hyper-connections that may be fused, each by itself
HYPER_OPS = frozenset(("hc_pre", "hc_comb", "hc_post"))
#: the delta net of one token of each sequence, and of several
DELTA_OPS = frozenset(("gdn_ar", "gdn_ch"))


@dataclass(slots=True)
class CacheInput:
    """The inputs of one attention cache (llm_graph_input_attn_*): where rows go, who sees whom, rotations."""

    mask: Tensor
    k_idxs: Tensor | None = None
    v_idxs: Tensor | None = None
    k_rot: Tensor | None = None
    v_rot: Tensor | None = None


@dataclass(slots=True)
class AttentionInput:
    """`kind` is what the engine names its input by: kv, kv_iswa, k, k_iswa or no_cache."""

    kind: str
    full: CacheInput
    swa: CacheInput | None = None


@dataclass(slots=True)
class RecurrentInput:
    """Which rows of the state caches the sequences read (llm_graph_input_rs): all, this batch's, and the others, or
    all but the first.
    """

    ids: Tensor
    main: Tensor
    others: Tensor


def missing(name: str) -> EngineRefusalError:
    """The file lacks a tensor that the architecture's graph reads."""
    return EngineRefusalError(f"llama.cpp refuses: missing tensor {name!r}", hint="the file is damaged or incomplete")


_GATINGS = (GATING_SOFTMAX, GATING_SIGMOID, GATING_SOFTMAX_WEIGHT, GATING_SQRT_SOFTPLUS)


def _gated(logits: Tensor, gating: int, hp: HParams) -> Tensor:
    """The scores of experts (src/llama-graph.cpp:build_moe_ffn)."""
    if gating not in _GATINGS:
        raise aborts(hp, "build_moe_ffn, which knows no such function", keys=["expert_gating_func"])
    if gating == GATING_SOFTMAX:
        return ggml.soft_max(logits)
    if gating == GATING_SIGMOID:
        return ggml.sigmoid(logits)
    return ggml.sqrt(ggml.softplus(logits)) if gating == GATING_SQRT_SOFTPLUS else logits


class Layer:
    """The weights of one block by their names in the file: `w["attn_q"]`, `w["attn_q.bias"]`; `None` if
    absent.
    """

    __slots__ = ("_graph", "_prefix", "il")

    def __init__(self, graph: Graph, il: int, prefix: str = "blk") -> None:
        self._graph = graph
        self._prefix = f"{prefix}.{il}."
        self.il = il

    def __getitem__(self, name: str) -> Tensor | None:
        return self._graph.weight(self._prefix + name, self.il)

    def need(self, name: str) -> Tensor:
        """A weight that this architecture always has."""
        t = self[name]
        if t is None:
            raise missing(self._prefix + name)
        return t


@dataclass(slots=True)
class Fused:
    """A node whose device decides whether the engine uses the fused operation at all."""

    kind: str
    node: Tensor
    il: int


@dataclass(slots=True)
class Graph:
    """One compute graph under construction (llm_graph_context).

    `n_tokens`, `n_seqs`, `n_outputs` describe the micro-batch. `layer_order` is which blocks are built: all,
    or enough of them (see periods.py). `starts` holds the number of nodes when each of them began.
    """

    model: GraphModel
    n_tokens: int
    n_seqs: int
    n_outputs: int
    flash_attn: bool
    layer_order: tuple[int, ...]
    fused_hyper: frozenset[str] = HYPER_OPS
    fused_delta: frozenset[str] = DELTA_OPS
    nodes: list[Tensor] = field(default_factory=list)
    leafs: list[Tensor] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    pins: list[tuple[Tensor, int]] = field(default_factory=list)
    fused: list[Fused] = field(default_factory=list)
    logits: Tensor | None = None
    embd: Tensor | None = None
    h_nextn: Tensor | None = None
    tokens: Tensor | None = None
    cache_source: Callable[[int], int] | None = None  #: layer whose cache a layer reads, where it has none
    _weights: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    _caches: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    # the model

    @property
    def h(self) -> HParams:
        return self.model.hparams

    @property
    def arch(self) -> Architecture:
        return architecture_of(self.model.hparams.arch)

    @property
    def context(self) -> Context:
        return self.model.context

    def follows(self, rule: Change) -> bool:
        return self.model.version.follows(rule)

    def clamp(self, x: Tensor) -> Tensor:
        return ggml.clamp(x, inplace=not self.follows(CLAMPS_APART))

    def weight(self, name: str, il: int = -1) -> Tensor | None:
        """The weight `name` (".weight" may be left out), as it lies for block `il`; the same object every
        time.
        """
        homes = self.model.homes
        if name + ".weight" in homes:
            name += ".weight"
        elif name not in homes:
            return None
        return self._loaded(name, self.model.home(name, il))

    def _loaded(self, name: str, home: int) -> Tensor:
        t = self._weights.get((name, home))
        if t is None:
            info = self.model.tensors[name]
            t = Tensor(NONE, info.type, ggml.shape(*info.ne))
            t.home, t.is_weight, t.name = (HOST if home == HOST_PINNED else home), True, name
            self._weights[name, home] = t
        return t

    def need(self, name: str, il: int = -1) -> Tensor:
        t = self.weight(name, il)
        if t is None:
            raise missing(name)
        return t

    def output_weight(self) -> Tensor:
        """The matrix that makes logits: its own, or the embeddings again where the output layer runs."""
        t = self.weight("output")
        return t if t is not None else self._loaded("token_embd.weight", self.model.output_home)

    def layer(self, il: int) -> Layer:
        return Layer(self, il)

    def layers(self) -> Iterator[int]:
        """The blocks to build. Not all are visited, so nothing may be carried from block to block but
        tensors.
        """
        for il in self.layer_order:
            self.starts.append(len(self.nodes))
            yield il
        self.starts.append(len(self.nodes))

    def is_last(self, il: int) -> bool:
        return il == self.h.n_layer - 1

    def keeps_rows(self, rule: Change | None = None) -> bool:
        """Whether all rows go through the last block, for one that predicts further: since `rule`, if not always."""
        return (rule is None or self.follows(rule)) and not self.follows(ROWS_AS_ASKED)

    def narrows(self, il: int, rule: Change | None = None) -> bool:
        """Whether rows without logits end in this block: the last one, where not all are kept."""
        return self.is_last(il) and not self.keeps_rows(rule)

    # nodes

    def expand(self, t: Tensor) -> Tensor:
        """Adds `t` and what it needs, sources first and in order (ggml_visit_parents_graph)."""
        if t.seen:
            return t
        t.seen = True
        nodes, leafs = self.nodes, self.leafs
        stack = [(t, iter(t.src))]
        while stack:
            node, sources = stack[-1]
            for src in sources:
                src.uses += 1
                if not src.seen:
                    src.seen = True
                    if src.src:
                        stack.append((src, iter(src.src)))
                        break
                    (leafs if src.op == NONE else nodes).append(src)
            else:
                stack.pop()
                (leafs if node.op == NONE else nodes).append(node)
        return t

    def input(self, type_name: str, *dims: int) -> Tensor:
        t = ggml.new(type_name, *dims)
        t.is_input = True
        return t

    def pin(self, t: Tensor, il: int) -> Tensor:
        """Asks for block `il`'s device, as the engine does for norms (llama-context.cpp:graph_get_cb)."""
        if il >= 0 and (self.n_tokens < 32 or self.model.full_offload):
            self.pins.append((t, self.model.layer_dev[il]))
        return t

    # small blocks

    def linear(self, w: Layer | None, name: str, x: Tensor, *, bias: bool = False, scale: bool = True) -> Tensor:
        """build_lora_mm: matrix, its scale if the file has one, and its bias if asked for and there."""
        get = w.__getitem__ if w is not None else self.weight
        matrix = get(name)
        if matrix is None:
            raise missing(name)
        y = ggml.mul_mat(matrix, x)
        factor = get(name + ".scale") if scale else None
        if factor is not None:
            y = ggml.mul(y, factor)
        b = get(name + ".bias") if bias else None
        return y if b is None else ggml.add(y, b)

    def norm(
        self, x: Tensor, weight: Tensor | None, il: int, *, bias: Tensor | None = None, kind: str = "rms"
    ) -> Tensor:
        """build_norm; `kind` is rms, layer or group."""
        if kind == "rms":
            y = ggml.rms_norm(x)
        elif kind == "layer":
            y = ggml.norm(x)
        else:
            y = ggml.group_norm(ggml.reshape(x, x.ne[0], 1, x.ne[1]))
            y = ggml.reshape(y, y.ne[0], y.ne[2])
        if weight is not None or bias is not None:
            self.pin(y, il)
        if weight is not None:
            y = ggml.mul(y, weight)
        if bias is not None:
            y = ggml.add(y, bias)
        return y

    def layer_norm(self, x: Tensor, w: Layer | None, name: str, il: int) -> Tensor:
        """LayerNorm with the weight and, if the file has it, the bias of `name`."""
        get = w.__getitem__ if w is not None else self.weight
        return self.norm(x, get(name), il, bias=get(name + ".bias"), kind="layer")

    def rms(self, x: Tensor, w: Layer | None, name: str, il: int) -> Tensor:
        """RMSNorm with the weight of `name`."""
        return self.norm(x, (w.__getitem__ if w is not None else self.weight)(name), il)

    def rope_factors(self, il: int) -> Tensor | None:
        """llama_model::get_rope_factors: one per file, or long and short ones by context."""
        t = self.weight("rope_freqs", il)
        if t is not None:
            return t
        long_context = self.context.n_ctx_seq > self.h.n_ctx_orig_yarn
        return self.weight("rope_factors_long" if long_context else "rope_factors_short", il)

    def rope_end(self, x: Tensor, positions: Tensor, n_rot: int) -> Tensor:
        """The last elements of each head rotated (ggml.c:ggml_rope_set_offset)."""
        if n_rot > x.ne[0]:
            raise aborts(self.h, "rope: GGML_ASSERT(n_offs >= 0)", (x.ne[0],), keys=["n_rot_full", "n_rot_swa"])
        return ggml.rope(x, positions, rotation=ggml.Rotation(n_rot, x.ne[0] - n_rot))

    # inputs

    def inp_embd(self, table: Tensor | None = None, *, scaled: bool = False) -> Tensor:
        """Rows of the embedding table, beside the input for ready-made embeddings (build_inp_embd).

        `scaled`: what is made of tokens is multiplied by a number of the architecture's.
        """
        h, mixed = self.h, self.follows(MIXED_INPUTS)
        self.tokens = tokens = self.input("i32", self.n_tokens)
        if not self.follows(READY_INPUTS):
            x = ggml.get_rows(table if table is not None else self.need("token_embd"), tokens)
            x = self.expand(ggml.scale(x) if h.f_embedding_scale != 0.0 else x)
            return ggml.scale(x) if scaled else x
        embd = self.input("f32", h.n_embd_inp, self.n_tokens)
        mixed = mixed and self.arch.mixes_inputs and not self.context.mtp
        x, ids = self._embedded(table, tokens), self.input("i32", self.n_tokens)
        others = self._embedded(table, ids) if mixed else None
        for t in (x, others) if self.follows(TOKENS_FIRST) else ():
            if t is not None:
                self.expand(t.src[0] if t.op == "PAD" else t)
        self.expand(x)
        self.expand(embd)
        if others is not None:
            slots = self.input("i64", self.n_tokens)
            rows = ggml.dup(self.input("f32", h.n_embd_inp, self.n_tokens))
            self.expand(ggml.set_rows(rows, others, slots))
        if h.n_embd_inp != h.n_embd:
            x = ggml.view(x, (h.n_embd, self.n_tokens), (x.nb[1],))
        by_row = self.follows(MIXED_INPUTS) and (scaled or (h.f_embedding_scale != 0.0 and h.n_deepstack_layers > 0))
        if (by_row or h.f_embedding_scale != 0.0) and not ggml.is_contiguous(x):
            x = ggml.cont(x)
        if by_row:
            return self.expand(ggml.mul(x, self.input("f32", 1, self.n_tokens)))
        if h.f_embedding_scale != 0.0:
            x = ggml.scale(x)
        self.expand(x)
        return ggml.scale(x) if scaled else x

    def _embedded(self, table: Tensor | None, tokens: Tensor) -> Tensor:
        h = self.h
        x = ggml.get_rows(table if table is not None else self.need("token_embd"), tokens)
        return x if h.n_embd_inp == h.n_embd else ggml.pad(x, h.n_embd_inp - h.n_embd)

    def inp_pos(self) -> Tensor:
        return self.input("i32", self.n_tokens * self.h.n_pos_per_embd)

    def inp_out_ids(self) -> Tensor:
        return self.input("i32", self.n_outputs)

    def inp_attn_scale(self) -> Tensor:
        return self.input("f32", 1, 1, self.n_tokens)

    def _cache_input(self, *, swa: bool, values: bool = True) -> CacheInput:
        m = self.model
        cells = m.swa_cells if swa else m.full_cells
        n_stream = 1 if self.context.kv_unified else self.n_seqs
        mask = self._mask(cells, self.n_tokens // n_stream, 1, n_stream)
        inp = CacheInput(mask, self.input("i64", self.n_tokens))
        if values:
            inp.v_idxs = self.input("i64", self.n_tokens * (self.h.n_embd_v_gqa_max() if m.v_trans else 1))
        k_rot, v_rot = m.rotations(swa=swa)
        inp.k_rot = self.input("f32", k_rot, k_rot) if k_rot else None
        inp.v_rot = self.input("f32", v_rot, v_rot) if v_rot and values else None
        return inp

    def _mask(self, *dims: int) -> Tensor:
        """An input that says which cells are seen, in the type that attention reads (build_attn_inp_kq_mask)."""
        if self.flash_attn and not self.follows(HALF_MASKS):
            return ggml.cast(self.input("f32", *dims), "f16")
        return self.input("f16" if self.flash_attn else "f32", *dims)

    def inp_attn_kv(self) -> AttentionInput:
        return AttentionInput("kv", self._cache_input(swa=False))

    def inp_attn_kv_iswa(self, *, hybrid: bool = False) -> AttentionInput:
        """A full and a sliding cache; beside recurrent state (build_inp_mem_hybrid_iswa) not rotated."""
        if self.h.swa_type == "none":  # llama_model::create_memory makes another cache than the graph takes it for
            what = "build_attn_inp_kv_iswa: the cache has no windows"
            raise aborts(self.h, what, keys=["n_swa"], how="crashes")
        inp = AttentionInput("kv_iswa", self._cache_input(swa=False), self._cache_input(swa=True))
        for side in (inp.full, inp.swa):
            if hybrid and side is not None:
                side.k_rot = side.v_rot = None
        return inp

    def inp_attn_k(self) -> AttentionInput:
        """Keys only (MLA); without rotations."""
        inp = self._cache_input(swa=False, values=False)
        inp.k_rot = None
        return AttentionInput("k", inp)

    def inp_attn_k_iswa(self) -> AttentionInput:
        return AttentionInput(
            "k_iswa", self._cache_input(swa=False, values=False), self._cache_input(swa=True, values=False)
        )

    def inp_attn_no_cache(self) -> AttentionInput:
        n = self.n_tokens
        swa = CacheInput(self._mask(n, n)) if self.h.swa_type != "none" else None
        return AttentionInput("no_cache", CacheInput(self._mask(n, n)), swa)

    def inp_rs(self) -> RecurrentInput:
        n_rs, n_seqs = self.model.state_rows, self.n_seqs
        ids = self.input("i32", n_rs)
        first = 1 if self.follows(ONE_GATHER) else n_seqs
        return RecurrentInput(ids, ggml.view(ids, (n_seqs,)), ggml.view(ids, (n_rs - first,), (), first * 4))

    # attention

    def cache_k(self, il: int, kind: str = "k") -> Tensor:
        """The K (or V) cache of a layer: [row, cells, streams] (llama-kv-cache.cpp:llama_kv_cache)."""
        if self.cache_source is not None:
            il = self.cache_source(il)
        t = self._caches.get((kind, il))
        if t is None:
            m, h = self.model, self.h
            c = self.context
            cells = m.swa_cells if m.has_swa_cache and h.is_swa[il] else m.full_cells
            if kind == "k":
                t = ggml.new(c.type_k, h.n_embd_k_gqa(il), cells, m.n_streams)
            else:
                width = h.n_embd_v_gqa_max() if m.v_trans else h.n_embd_v_gqa(il)
                t = ggml.new(c.type_v, width, cells, m.n_streams)
            t.home = m.cache_home(il)
            self._caches[kind, il] = t
        return t

    def cache_v(self, il: int) -> Tensor:
        return self.cache_k(il, "v")

    def extra_cache(self, name: str, il: int, type_name: str, *dims: int) -> Tensor:
        """A cache beside K and V: recurrent state, an indexer's keys."""
        t = self._caches.get((name, il))
        if t is None:
            t = ggml.new(type_name, *dims)
            t.home = self.model.cache_home(il)
            self._caches[name, il] = t
        return t

    def get_k(self, il: int) -> Tensor:
        h, k = self.h, self.cache_k(il)
        head, row = h.n_embd_head_k(il), k.ne[0]
        return ggml.view(
            k,
            (head, h.n_head_kv[il], k.ne[1], k.ne[2]),
            (ggml.row_size(k.type, head), ggml.row_size(k.type, row), ggml.row_size(k.type, row * k.ne[1])),
        )

    def get_v(self, il: int) -> Tensor:
        h, v = self.h, self.cache_v(il)
        head, row, cells = h.n_embd_head_v(il), v.ne[0], v.ne[1]

        def size(n: int) -> int:
            return ggml.row_size(v.type, n)

        if not self.model.v_trans:
            return ggml.view(v, (head, h.n_head_kv[il], cells, v.ne[2]), (size(head), size(row), size(row * cells)))
        return ggml.view(
            v, (cells, h.n_head_kv[il], head, v.ne[2]), (size(cells * head), size(cells), size(cells * row))
        )

    def store_k(self, k_cur: Tensor, ids: Tensor, il: int, cache: Tensor | None = None) -> None:
        """llama_kv_cache::cpy_k."""
        cache = cache if cache is not None else self.cache_k(il)
        rows = ggml.view(k_cur, (k_cur.ne[0] * k_cur.ne[1], k_cur.ne[2]), (k_cur.nb[2],))
        if cache.ne[2] > 1:
            cache = ggml.reshape(cache, cache.ne[0], cache.ne[1] * cache.ne[2])
        self.expand(ggml.set_rows(cache, rows, ids))

    def store_v(self, v_cur: Tensor, ids: Tensor, il: int) -> None:
        """llama_kv_cache::cpy_v: rows, or with a transposed cache one row per element."""
        cache = self.cache_v(il)
        width, n = v_cur.ne[0] * v_cur.ne[1], v_cur.ne[2]
        if not self.model.v_trans:
            rows = ggml.view(v_cur, (width, n), (v_cur.nb[2],))
            if cache.ne[2] > 1:
                cache = ggml.reshape(cache, cache.ne[0], cache.ne[1] * cache.ne[2])
            self.expand(ggml.set_rows(cache, rows, ids))
            return
        merged = ggml.row_size(v_cur.type, width) == v_cur.nb[2]
        rows = ggml.reshape(v_cur, width, n) if merged else ggml.cont(v_cur, width, n)
        if width < cache.ne[0]:
            rows = ggml.pad(rows, cache.ne[0] - width)
        elements = ggml.reshape(cache, 1, ggml.n_elements(cache))
        self.expand(ggml.set_rows(elements, ggml.reshape(rows, 1, ggml.n_elements(rows)), ids))

    def qkv(
        self,
        w: Layer,
        x: Tensor,
        il: int,
        *,
        head: int | None = None,
        n_head: int | None = None,
        n_head_kv: int | None = None,
        head_k: int | None = None,
        head_v: int | None = None,
        reshape: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values as [head, heads, tokens] (build_qkv): from one matrix or three."""
        h, n = self.h, self.n_tokens
        head_q = head if head is not None else h.n_embd_head_k(il)
        head_k = head_k if head_k is not None else head if head is not None else h.n_embd_head_k(il)
        head_v = head_v if head_v is not None else head if head is not None else h.n_embd_head_v(il)
        heads = n_head if n_head is not None else h.n_head[il]
        heads_kv = n_head_kv if n_head_kv is not None else h.n_head_kv[il]
        clamp = reshape and h.f_clamp_kqv > 0.0
        sizes = ((head_q, heads), (head_k, heads_kv), (head_v, heads_kv))

        if w["attn_qkv"] is not None:
            y = self.linear(w, "attn_qkv", x)
            bias = w["attn_qkv.bias"]
            parts = [w["attn_q.bias"], w["attn_k.bias"], w["attn_v.bias"]]
            if bias is not None:
                y = ggml.add(y, bias)
            elif parts[0] is not None and parts[1] is not None and parts[2] is not None:
                y = ggml.add(y, ggml.concat(ggml.concat(parts[0], parts[1], 0), parts[2], 0))
            if clamp:
                y = self.clamp(y)
            out, offset = [], 0
            for size, count in sizes:
                if reshape:
                    part = ggml.view(y, (size, count, n), (ggml.row_size(y.type, size), y.nb[1]), offset)
                else:
                    part = ggml.cont(ggml.view(y, (size * count, n), (y.nb[1],), offset))
                out.append(part)
                offset += ggml.row_size(y.type, size * count)
            return out[0], out[1], out[2]

        out = []
        for name in ("attn_q", "attn_k", "attn_v"):
            y = self.linear(w, name, x, bias=True)
            out.append(self.clamp(y) if clamp else y)
        if reshape:
            out = [ggml.reshape(y, size, count, n) for y, (size, count) in zip(out, sizes, strict=True)]
        return out[0], out[1], out[2]

    def attn(
        self,
        inp: AttentionInput,
        w: Layer | None,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        il: int,
        *,
        out: str | None = "attn_output",
        bias: bool = True,
        kq_b: Tensor | None = None,
        sinks: Tensor | None = None,
        v_mla: Tensor | None = None,
    ) -> Tensor:
        """Attention over a cache, or over the batch, and its output matrix (build_attn).

        `out` names the output matrix in `w` (its bias and scale go with it, `bias=False` leaves the bias
        out); `None` leaves all of it to the caller. `v_mla` decompresses the values of MLA.
        """
        kind = inp.kind
        swa = kind.endswith("iswa") or kind == "no_cache"
        side = inp.swa if swa and inp.swa is not None and self.h.is_swa[il] else inp.full
        if side.k_rot is not None:
            q = hadamard(q, side.k_rot)
            k = hadamard(k, side.k_rot) if k is not None else None
        if side.v_rot is not None and v is not None:
            v = hadamard(v, side.v_rot)
        self.expand(q)
        order = (v, k) if kind in ("kv", "k") else (k, None) if kind == "k_iswa" else (k, v)
        for t in order:
            if t is not None:
                self.expand(t)

        if kind == "no_cache":
            assert k is not None and v is not None
            keys, values = k, v
        else:
            if k is not None and side.k_idxs is not None:
                self.store_k(k, side.k_idxs, il)
            if v is not None and side.v_idxs is not None:
                self.store_v(v, side.v_idxs, il)
            keys = self.get_k(il)
            if kind in ("k", "k_iswa"):
                assert v is not None
                values = ggml.view(keys, (v.ne[0], *keys.ne[1:]), keys.nb[1:])
            else:
                values = self.get_v(il)
        cur = self.mha(q, keys, values, il, mask=side.mask, kq_b=kq_b, sinks=sinks, v_mla=v_mla)
        if kind == "k_iswa":
            cur = hadamard(cur, side.k_rot) if side.k_rot is not None else cur
        elif side.v_rot is not None:
            cur = hadamard(cur, side.v_rot)
        if out is not None:
            assert w is not None
            cur = self.linear(w, out, cur, bias=bias)
        return cur

    def mha(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        il: int,
        *,
        mask: Tensor | None,
        kq_b: Tensor | None = None,
        sinks: Tensor | None = None,
        v_mla: Tensor | None = None,
        n_kv_max: int = 0,
    ) -> Tensor:
        """Flash attention, or two products with a soft max between (build_attn_mha)."""
        h = self.h
        v_trans = v.nb[1] > v.nb[2]
        n_stream = k.ne[3]
        per_stream = q.ne[2] // n_stream
        q = ggml.view(q, (q.ne[0], q.ne[1], per_stream, n_stream), (q.nb[1], q.nb[2], q.nb[2] * per_stream))
        q, k, v = (ggml.permute(t, 0, 2, 1, 3) for t in (q, k, v))
        if self.flash_attn and kq_b is None:
            if v_trans:
                v = ggml.transpose(v)
            k = ggml.cast(k, "f16") if k.type == "f32" else k
            v = ggml.cast(v, "f16") if v.type == "f32" else v
            cur = ggml.flash_attn_ext(
                q,
                k,
                v,
                mask,
                sinks,
                has_alibi=h.f_max_alibi_bias > 0.0,
                has_soft_cap=h.attn_soft_cap,
                n_kv_max=n_kv_max,
            )
            self.fused.append(Fused("flash_attn", cur, il))
            if v_mla is not None:
                cur = ggml.mul_mat(v_mla, ggml.permute(cur, 0, 2, 1, 3))
                cur = ggml.cont(ggml.permute(cur, 0, 2, 1, 3))
            cur = ggml.reshape(cur, cur.ne[0] * cur.ne[1], cur.ne[2] * cur.ne[3])
            return self.expand(cur)
        kq = ggml.mul_mat(k, q)
        if h.attn_soft_cap:
            kq = ggml.scale(ggml.tanh(ggml.scale(kq)))
        if kq_b is not None:
            kq = ggml.add(kq, kq_b)
        kq = ggml.soft_max(kq, mask, sinks, plain=False)
        if not v_trans:
            v = ggml.cont(ggml.transpose(v))
        kqv = ggml.mul_mat(v, kq)
        if v_mla is not None:
            kqv = ggml.mul_mat(v_mla, kqv)
        cur = ggml.permute(kqv, 0, 2, 1, 3)
        cur = ggml.cont(cur, cur.ne[0] * cur.ne[1], cur.ne[2] * cur.ne[3])
        if not self.context.offload_kqv:
            self.pins.append((cur, HOST))
        return self.expand(cur)

    # feed-forward

    def ffn(
        self,
        w: Layer,
        x: Tensor,
        il: int,
        *,
        act: str = "silu",
        gate: str | None = "ffn_gate",
        up: str = "ffn_up",
        down: str | None = "ffn_down",
        parallel: bool = True,
        act_scales: Tensor | None = None,
        bias: bool = True,
    ) -> Tensor:
        """build_ffn: up and gate, side by side (`parallel`) or one after the other, activation, down.

        `act`: silu, gelu, relu, relu_sqr, swiglu_oai with or without gate; swiglu, geglu, reglu split one
        matrix.
        """
        h = self.h
        parts = (
            ".bias" if bias else "",
            ".scale" if ("shared" if up.endswith("_shexp") else "ffn") in self.arch.scales else "",
        )
        tmp = self._ffn_linear(w, up, x, parts) if w[up] is not None else x
        gated = gate is not None and w[gate] is not None
        cur = self._ffn_linear(w, gate, x if parallel else tmp, parts) if gated and gate is not None else tmp
        side_by_side = gated and parallel
        if act == "silu" and side_by_side and il >= 0 and h.swiglu_clamp_shexp[il] > 1e-6:
            cur = self._clamped_swiglu(cur, tmp)
        elif act in ("silu", "gelu", "relu") and side_by_side:
            cur = ggml.glu(cur, tmp, {"silu": "swiglu", "gelu": "geglu", "relu": "reglu"}[act])
        elif act == "swiglu_oai":
            cur = ggml.glu(cur, tmp, "swiglu_oai")
        elif act in ("swiglu", "geglu", "reglu"):
            cur = ggml.glu(cur, kind=act)
        elif act == "relu_sqr":
            cur = ggml.sqr(ggml.relu(cur))
            cur = ggml.mul(cur, tmp) if side_by_side else cur
        else:
            cur = ggml.unary(cur, act)
            cur = ggml.div(cur, act_scales) if act_scales is not None else cur
        return cur if down is None or w[down] is None else self._ffn_linear(w, down, cur, parts)

    def _ffn_linear(self, w: Layer, name: str, x: Tensor, parts: tuple[str, str]) -> Tensor:
        """Matrix, bias, scale: here the bias comes first."""
        y = ggml.mul_mat(w.need(name), x)
        for part, combine in zip(parts, (ggml.add, ggml.mul), strict=True):
            t = w[name + part] if part else None
            y = combine(y, t) if t is not None else y
        return y

    def _clamped_swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        if self.arch.fused_clamp:
            if self.follows(FUSED_CLAMPS):
                return ggml.glu(gate, up, "swiglu_clamp")
            up = self.clamp(up)
            return ggml.glu(self.clamp(gate), up, "swiglu")
        up = self.clamp(up)
        return ggml.mul(self.clamp(ggml.silu(gate)), up)

    def linear_id(self, w: Layer, name: str, x: Tensor, ids: Tensor) -> Tensor:
        """build_lora_mm_id: one matrix per selected expert, and their scales."""
        y = ggml.mul_mat_id(w.need(name), x, ids)
        scale = w[name + ".scale"] if "experts" in self.arch.scales else None
        if scale is not None:
            s = ggml.repeat_4d(ggml.reshape(scale, 1, scale.ne[0], 1), 1, scale.ne[0], x.ne[2], 1)
            y = ggml.mul(y, ggml.get_rows(s, ids))
        return y

    def moe(
        self,
        w: Layer,
        x: Tensor,
        il: int,
        *,
        n_expert: int | None = None,
        n_used: int | None = None,
        act: str = "silu",
        gating: int = GATING_SOFTMAX,
        norm_weights: bool = True,
        weights_scale: float = 0.0,
        gate_inp: str = "ffn_gate_inp",
        suffix: str = "exps",
        probs_in: Tensor | None = None,
        selected_in: Tensor | None = None,
        biased: bool = True,
        probs_bias: bool = True,
        select_by: Literal["probs", "logits", "sigmoid"] = "probs",
        weigh_inputs: bool = False,
        precise: bool = False,
    ) -> Tensor:
        """Routing, the selected experts, and their weighted sum (build_moe_ffn).

        Weights are found by name: `ffn_{up,gate,gate_up,down}_{suffix}` with their biases and scales
        (`biased`), `gate_inp` with its bias, and `exp_probs_b` (`probs_bias`), which only takes part in the
        selection. `select_by`: what the best experts are chosen by. `weigh_inputs`: the weights scale what experts
        read instead of what they make. `precise`: inputs of the last product exceed half precision, and CUDA has no
        kernel for that.
        """
        n_expert = n_expert if n_expert is not None else self.h.n_expert
        n_used = n_used if n_used is not None else self.h.n_expert_used[il]
        logits = probs_in
        if logits is None:
            logits = self.linear(w, gate_inp, x)
            gate_bias = w[gate_inp + ".bias"] if biased else None
            logits = ggml.add(logits, gate_bias) if gate_bias is not None else logits
        probs = _gated(logits, gating, self.h)
        selected = selected_in
        if selected is None:
            by = {"probs": probs, "logits": logits}[select_by] if select_by != "sigmoid" else ggml.sigmoid(logits)
            bias = (w["exp_probs_b.bias"] or w["exp_probs_b"]) if probs_bias and select_by == "probs" else None
            by = ggml.add(by, bias) if bias is not None else by
            by = self._grouped(by, n_expert) if self.h.n_expert_groups > 1 and x.ne[1] > 0 else by
            selected = ggml.argsort_top_k(by, n_used)
        if n_expert != self.h.n_expert:  # the experts' own scores choose a group's
            selected = ggml.cast(ggml.scale(ggml.cast(selected, "f32")), "i32")
        weights = self._expert_weights(probs, selected, gating, norm_weights, weights_scale)
        experts = self._experts(w, x, selected, weights if weigh_inputs else None, act, suffix, biased, precise, il)
        return self._summed(experts if weigh_inputs else ggml.mul(experts, weights), self.h.n_expert_used[il])

    def _expert_weights(
        self, probs: Tensor, selected: Tensor, gating: int, norm_weights: bool, weights_scale: float
    ) -> Tensor:
        """The scores of the selected experts, [1, used, tokens]."""
        n_used, n_tokens = selected.ne[0], probs.ne[1]
        weights = ggml.get_rows(ggml.reshape(probs, 1, self.h.n_expert, n_tokens), selected)
        if gating == GATING_SOFTMAX_WEIGHT:
            weights = ggml.soft_max(ggml.reshape(weights, n_used, n_tokens))
            weights = ggml.reshape(weights, 1, n_used, n_tokens)
        if norm_weights:
            weights = ggml.reshape(weights, n_used, n_tokens)
            weights = ggml.div(weights, self.clamp(ggml.sum_rows(weights)))
            weights = ggml.reshape(weights, 1, n_used, n_tokens)
        if weights_scale not in (0.0, 1.0):
            weights = ggml.scale(weights)
        return self.expand(weights)

    def _experts(
        self,
        w: Layer,
        x: Tensor,
        selected: Tensor,
        weights: Tensor | None,
        act: str,
        suffix: str,
        biased: bool,
        precise: bool,
        il: int,
    ) -> Tensor:
        """What each selected expert makes of `x`, which `weights` scale where they are given."""

        def add_bias(name: str, y: Tensor) -> Tensor:
            bias = w[name + ".bias"] if biased else None
            return ggml.add_id(y, bias, selected) if bias is not None else y

        n_embd, n_tokens = x.ne[0], x.ne[1]
        cur = ggml.reshape(x, n_embd, 1, n_tokens)
        if weights is not None:
            cur = ggml.mul(ggml.repeat_4d(cur, n_embd, selected.ne[0], n_tokens, 1), weights)
        up_name, gate_name, both_name, down_name = (
            f"ffn_{part}_{suffix}" for part in ("up", "gate", "gate_up", "down")
        )
        separate_gate = w[gate_name] is not None
        if w[both_name] is not None:
            both = add_bias(both_name, ggml.mul_mat_id(w.need(both_name), cur, selected))
            n_ff = both.ne[0] // 2
            gate = ggml.view(both, (n_ff, *both.ne[1:3]), both.nb[1:3])
            up = ggml.view(both, (n_ff, *both.ne[1:3]), both.nb[1:3], n_ff * both.nb[0])
            gated = True
        else:
            up = add_bias(up_name, self.linear_id(w, up_name, cur, selected))
            gate = self.linear_id(w, gate_name, cur, selected) if separate_gate else up
            gate = add_bias(gate_name, gate)
            gated = separate_gate
        cur = self._expert_activation(act, gate, up, gated, separate_gate, il)
        experts = self.linear_id(w, down_name, cur, selected)
        if precise:
            experts.param = "precise"
        return add_bias(down_name, experts)

    def _summed(self, experts: Tensor, n_used: int) -> Tensor:
        """The sum over the experts of each token, one addition after the other."""
        at_once = self.follows(SUMS_AT_ONCE)
        if at_once:
            self.expand(experts)
        n_embd, n_tokens = experts.ne[0], experts.ne[2]
        views = [ggml.view(experts, (n_embd, n_tokens), (experts.nb[2],), i * experts.nb[1]) for i in range(n_used)]
        for t in views:
            self.expand(t)
        total = views[0]
        for t in views[1:]:
            total = ggml.add(total, t)
            if at_once:
                self.expand(total)
        return ggml.cont(total) if n_used == 1 else total

    def _expert_activation(
        self, act: str, gate: Tensor, up: Tensor, gated: bool, separate_gate: bool, il: int
    ) -> Tensor:
        h = self.h
        if act == "silu" and separate_gate and il >= 0 and h.swiglu_clamp_exp[il] > 1e-6:
            return self._clamped_swiglu(gate, up)
        if act in ("silu", "gelu", "relu") and gated:
            return ggml.glu(gate, up, {"silu": "swiglu", "gelu": "geglu", "relu": "reglu"}[act])
        if act == "swiglu_oai":
            return ggml.glu(gate, up, "swiglu_oai")
        if act == "situ":
            y = ggml.mul(ggml.scale(ggml.tanh(ggml.scale(gate))), ggml.sigmoid(gate))
            if h.situ_linear_beta > 0.0:
                up = ggml.scale(ggml.tanh(ggml.scale(up)))
            return ggml.mul(y, up)
        if act == "relu_sqr":
            return ggml.sqr(ggml.relu(gate))
        return ggml.unary(gate, act)

    def _grouped(self, selection: Tensor, n_expert: int) -> Tensor:
        """Only the best groups of experts stay eligible (DeepSeek-V3)."""
        h, n_tokens = self.h, selection.ne[1]
        groups = ggml.reshape(selection, n_expert // h.n_expert_groups, h.n_expert_groups, n_tokens)
        scores = ggml.argsort_top_k(groups, 2)
        scores = ggml.get_rows(ggml.reshape(groups, 1, *groups.ne[:3]), scores)
        scores = ggml.sum_rows(ggml.reshape(scores, *scores.ne[1:4]))
        scores = ggml.reshape(scores, scores.ne[1], scores.ne[2])
        best = ggml.argsort_top_k(scores, h.n_group_used)
        kept = ggml.get_rows(groups, best)
        return ggml.reshape(ggml.set_rows(ggml.fill(groups), kept, best), n_expert, n_tokens)

    # recurrent state

    def state(self, name: str, il: int, width: int) -> Tensor:
        """A layer's row cache of recurrent state: `r` or `s` (llama-memory-recurrent.cpp)."""
        return self.extra_cache(name, il, "f32", width, self.model.state_cells)

    def rs(
        self,
        inp: RecurrentInput,
        cache: Tensor,
        width: int,
        get_rows: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The state rows of this batch's sequences (build_rs); rows of others are moved along."""
        n_seqs, n_rs = self.n_seqs, self.model.state_rows
        states = ggml.reshape(cache, width, cache.ne[1])
        self.expand(ggml.scale(ggml.view(states, (width,)), inplace=True))
        if self.follows(ONE_GATHER):
            copied = inp.ids if get_rows is None else inp.others
            every = ggml.get_rows(states, copied)
            first = n_rs - copied.ne[0]
            own = ggml.view(every, (width, n_seqs), (every.nb[1],)) if get_rows is None else get_rows(states, inp.main)
            rows = self.expand(own)
            extra = ggml.view(every, (width, n_rs - n_seqs), (every.nb[1],), (n_seqs - first) * every.nb[1])
        else:
            rows = self.expand((get_rows or ggml.get_rows)(states, inp.main))
            extra = ggml.get_rows(states, inp.others)
        rest = ggml.view(cache, (width, n_rs - n_seqs), (cache.nb[1],), n_seqs * cache.nb[1])
        self.expand(ggml.cpy(extra, rest))
        return rows

    # the end

    def select_outputs(self, out_ids: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Only the rows whose logits are wanted."""
        return tuple(ggml.get_rows(t, out_ids) for t in tensors)

    def final_norm(self, cur: Tensor, name: str = "output_norm", *, kind: str = "rms") -> Tensor:
        return self.norm(cur, self.weight(name), -1, bias=self.weight(name + ".bias"), kind=kind)

    def output(self, cur: Tensor, *, soft_cap: bool = False, scale: bool = False) -> None:
        """Logits of `cur`, which is what embeddings are made of; optionally scaled or soft-capped."""
        self.embd = cur
        y = self.lm_head(cur)
        if scale:
            y = ggml.scale(y)
        if soft_cap:
            y = ggml.scale(ggml.tanh(ggml.scale(y)))
        self.logits = self.expand(y)

    def lm_head(self, cur: Tensor) -> Tensor:
        """The output matrix, its scale and bias."""
        y = ggml.mul_mat(self.output_weight(), cur)
        scale, bias = self.weight("output.scale"), self.weight("output.bias")
        y = ggml.mul(y, scale) if scale is not None else y
        if self.arch.unused_output_bias:
            return y
        return ggml.add(y, bias) if bias is not None else y

    def finish(self, cur: Tensor, *, kind: str = "rms", soft_cap: bool = False, scale: bool = False) -> None:
        """The usual end: final norm, logits."""
        self.output(self.final_norm(cur, kind=kind), soft_cap=soft_cap, scale=scale)

    def pooling(self) -> None:
        """build_pooling, when embeddings are asked for."""
        if not self.context.embeddings or self.embd is None:
            return
        inp, kind = self.embd, self.context.pooling_type
        if kind == POOLING_NONE:
            self._project(self.expand(inp)).is_output = True
            return
        if kind == POOLING_MEAN or (kind == POOLING_RANK and self.h.pooling_type_cls == POOLING_MEAN):
            means = self.input("f32", self.n_tokens, self.n_seqs)
            cur = ggml.mul_mat(ggml.cont(ggml.transpose(inp)), means)
        elif kind in (POOLING_CLS, POOLING_LAST, POOLING_RANK):
            cur = ggml.get_rows(inp, self.input("i32", self.n_seqs))
        else:
            return
        if kind == POOLING_RANK:
            cur = self._rank(cur)
        self._project(self.expand(cur)).is_output = True

    def _project(self, cur: Tensor) -> Tensor:
        """build_dense_out: the dense layers that sentence transformers put after pooling."""
        for name in ("dense_2", "dense_3"):
            matrix, bias = self.weight(name), self.weight(name + ".bias")
            cur = ggml.mul_mat(matrix, cur) if matrix is not None else cur
            cur = ggml.add(cur, bias) if bias is not None else cur
        return self.expand(cur)

    def _rank(self, cur: Tensor) -> Tensor:
        for name in ("cls", "cls.output"):
            matrix, bias = self.weight(name), self.weight(name + ".bias")
            if matrix is None:
                continue
            cur = ggml.mul_mat(matrix, cur)
            cur = ggml.add(cur, bias) if bias is not None else cur
            if name == "cls":
                cur = ggml.unary(cur, self.arch.rank_activation)
                norm = self.weight("cls.norm")
                cur = self.norm(cur, norm, -1, kind="layer") if norm is not None else cur
        return ggml.soft_max(cur) if self.arch.rank_softmax else cur

    def set_outputs(self) -> None:
        """What callers read stays allocated (llm_graph_result::set_outputs)."""
        for t in (self.logits, self.embd, self.h_nextn):
            if t is not None:
                t.is_output = True


def hadamard(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotates heads before they are quantized (llama-impl.h:llama_mul_mat_hadamard)."""
    n = rotation.ne[0]
    rows = ggml.n_elements(x) // n
    y = ggml.reshape(x, n, rows) if ggml.is_contiguous(x) else ggml.cont(x, n, rows)
    return ggml.reshape(ggml.mul_mat(rotation, y, hadamard=True), *x.ne)


Builder = Callable[[Graph], None]


def every(step: Callable[[HParams], int]) -> Callable[[Builder], Builder]:
    """Marks a builder whose blocks also depend on their number modulo `step`, by a rule of its own."""

    def mark(builder: Builder) -> Builder:
        builder.every = step  # type: ignore[attr-defined]
        return builder

    return mark


def first(number: Callable[[HParams], int]) -> Callable[[Builder], Builder]:
    """Marks a builder whose first `number` blocks differ from the rest, by a rule of its own."""

    def mark(builder: Builder) -> Builder:
        builder.first = number  # type: ignore[attr-defined]
        return builder

    return mark
