"""DeepSeek-V4: a window of raw cells, and in most blocks cells that stand for several tokens each."""

from __future__ import annotations

from collections.abc import Callable

from autofit.domain.units import round_up
from autofit.domain.values import dataclass

from autofit_llama.engine.versions import Change
from autofit_llama.graph import ggml
from autofit_llama.graph.builder import CacheInput, Graph, Layer, hadamard
from autofit_llama.graph.ggml import Tensor
from autofit_llama.graph.hyper import narrow, selected_streams, streams, weighed, widen
from autofit_llama.graph.model import rotation_side
from autofit_llama.graph.sparse import top_k_mask
from autofit_llama.model.aborts import aborts
from autofit_llama.model.architecture import Architecture, TensorSplit, reads
from autofit_llama.model.caches import (
    Cache,
    CacheTensor,
    Memory,
    kv,
    sliding,
)
from autofit_llama.model.context import CELL_PADDING, Context
from autofit_llama.model.hparams import HParams
from autofit_llama.model.metadata_reader import HParamsDraft, Metadata
from autofit_llama.model.resolve import caches
from autofit_llama.model.rules import (
    clamp_shared_as_routed,
    require_sqrt_softplus,
)

_CSA_RATIO, _HCA_RATIO = 4, 128  #: tokens per cell: overlapping and selected by an indexer; or heavily


@dataclass(slots=True)
class _Compressed:
    """Inputs of one compressed cache (comp_input), at their size in a reserved graph.

    The last tokens of a sequence wait in a state until they fill a cell: `pos` tells them apart, `persist`
    takes them there, `read` gathers what completes cells, `restore` and `snapshot` go back by tokens.
    """

    name: str
    cells: Cache
    rows: Cache
    mask: Tensor
    k_rot: Tensor | None
    pos: Tensor
    persist: tuple[Tensor, Tensor]
    restore: tuple[Tensor, Tensor] | None
    snapshot: tuple[Tensor, Tensor] | None
    read: Tensor
    write: Tensor
    write_pos: Tensor


@dataclass(slots=True)
class _Inputs:
    raw: CacheInput
    cells: Cache
    csa: _Compressed
    hca: _Compressed
    lid: _Compressed


def deepseek4(g: Graph) -> None:
    """src/models/deepseek4.cpp: hyper-connections, three kinds of attention, experts by hash in the first
    blocks.
    """
    h = g.h
    x = g.inp_embd()
    assert g.tokens is not None
    tokens = g.tokens
    pos = g.inp_pos()
    out_ids = g.inp_out_ids()
    inp = _inputs(g)
    g.expand(inp.raw.mask)
    x = streams(g, x)
    for il in g.layers():
        w = g.layer(il)
        cur, post, comb = narrow(g, w, x, "hc_attn", il)
        cur = g.rms(cur, w, "attn_norm", il)
        cur = _attention(g, inp, w, cur, pos, il)
        x = widen(g, cur, x, post, comb, il)
        cur, post, comb = narrow(g, w, x, "hc_ffn", il)
        for t in (x, post, comb):
            g.expand(t)
        cur = g.rms(cur, w, "ffn_norm", il)
        experts_of = w["ffn_gate_tid2eid"]
        routed = g.moe(
            w, cur, il, biased=False, gating=h.expert_gating_func, norm_weights=h.expert_weights_norm,
            weights_scale=h.expert_weights_scale, probs_bias=experts_of is None,
            selected_in=None if experts_of is None else ggml.get_rows(experts_of, tokens),
        )  # fmt: skip
        shared = g.ffn(w, cur, il, bias=False, up="ffn_up_shexp", gate="ffn_gate_shexp", down="ffn_down_shexp")
        x = g.pin(widen(g, ggml.add(routed, shared), x, post, comb, il), il)
    x = selected_streams(g, x, out_ids)
    flat = ggml.reshape(x, h.n_embd * h.dsv4_hc_mult, g.n_outputs)
    weights = ggml.mul_mat(g.need("output_hc_fn"), ggml.rms_norm(flat))
    weights = ggml.add(ggml.mul(weights, g.need("output_hc_scale")), g.need("output_hc_base"))
    g.finish(weighed(g, x, ggml.scale(ggml.sigmoid(weights)), -1))


def _inputs(g: Graph) -> _Inputs:
    h, n = g.h, g.n_tokens
    by_name = {cache.name: cache for cache in caches(h, g.context)}
    head, mask_type = h.n_embd_head_k(0), "f16" if g.flash_attn else "f32"

    def rotation(size: int, cache: Cache, *, forced: bool) -> Tensor | None:
        quantized = ggml.is_quantized(g.context.type_k) and size % 64 == 0
        if not forced and not (quantized and cache.tensors):
            return None
        side = rotation_side(size)
        return g.input("f32", side, side)

    def mask(type_name: str, cache: Cache) -> Tensor:
        return g.input(type_name, cache.n_cells, n // g.n_seqs, 1, g.n_seqs)

    def compressed(name: str, ratio: int, size: int, mask_type: str, *, overlap: bool) -> _Compressed:
        cells, rows = by_name[name], by_name[name + "_state"]
        n_blocks = n // ratio + g.n_seqs
        n_rows, kept = rows.n_cells * g.n_seqs, g.context.n_rs_seq

        def pair(count: int) -> tuple[Tensor, Tensor]:
            return g.input("i32", count), g.input("i32", count)

        return _Compressed(
            name,
            cells,
            rows,
            mask(mask_type, cells),
            rotation(size, cells, forced=h.indexer_head_size in (size, h.n_embd_head_k_full)),
            g.input("i32", n),
            pair(min(n, n_rows)),
            pair(n_rows) if kept else None,
            pair(n_rows * kept) if kept else None,
            g.input("i32", (2 if overlap else 1) * ratio * n_blocks),
            g.input("i64", n_blocks),
            g.input("i32", n_blocks),
        )

    raw = by_name["swa"]
    return _Inputs(
        CacheInput(
            mask(mask_type, raw),
            g.input("i64", n),
            k_rot=rotation(head, raw, forced=h.n_embd_head_k_full == h.indexer_head_size),
        ),
        raw,
        compressed("csa", _CSA_RATIO, head, mask_type, overlap=True),
        compressed("hca", _HCA_RATIO, head, mask_type, overlap=False),
        compressed("lid", _CSA_RATIO, h.indexer_head_size, "f16", overlap=True),
    )


def _cache(g: Graph, cells: Cache, il: int, width: int) -> Tensor:
    return g.extra_cache(cells.name, il, g.context.type_k, width, cells.n_cells, cells.n_streams)


def _cells(cache: Tensor) -> Tensor:
    """A cache with one head, as [head, 1, cells, streams]."""
    row = ggml.row_size(cache.type, cache.ne[0])
    return ggml.view(cache, (cache.ne[0], 1, *cache.ne[1:3]), (row, row, row * cache.ne[1]))


def _attention(g: Graph, inp: _Inputs, w: Layer, x: Tensor, pos: Tensor, il: int) -> Tensor:
    h, n = g.h, g.n_tokens
    head, n_head, groups = h.n_embd_head_k(0), h.n_head[0], h.dsv4_o_group_count
    if head != h.n_embd_head_v(0):
        raise aborts(h, "GGML_ASSERT(n_embd_head == n_embd_head_v)", (head, h.n_embd_head_v(0)))
    if h.n_head_kv[il] != 1:
        raise aborts(h, "set_rows: GGML_ASSERT(a->ne[0] == b->ne[0])", keys=["n_head_kv"])
    if groups == 0 or n_head % groups:
        raise aborts(h, "GGML_ASSERT(n_head % n_groups == 0)", keys=["n_head", "dsv4_o_group_count"])
    q_latent = g.rms(ggml.mul_mat(w.need("attn_q_a"), x), w, "attn_q_a_norm", il)
    q = ggml.reshape(ggml.mul_mat(w.need("attn_q_b"), q_latent), head, n_head, n)
    q = g.rope_end(ggml.rms_norm(q), pos, h.n_rot(0))
    kv = g.rms(ggml.mul_mat(w.need("attn_kv"), x), w, "attn_kv_a_norm", il)
    kv = g.rope_end(ggml.reshape(kv, head, 1, n), pos, h.n_rot(0))
    ratio = h.dsv4_compress_ratios[il]
    compressed = {_CSA_RATIO: inp.csa, _HCA_RATIO: inp.hca}.get(ratio)
    if compressed is not None:
        _compress(g, compressed, w, "attn_compressor", x, head, il)
    top_k: Tensor | None = None
    if ratio == _CSA_RATIO:
        _compress(g, inp.lid, w, "indexer_compressor", x, h.indexer_head_size, il)
        top_k = _top_k(g, inp.lid, w, x, q_latent, pos, il)

    rotation = inp.raw.k_rot
    if rotation is not None:
        q, kv = hadamard(q, rotation), hadamard(kv, rotation)
    g.expand(q)
    g.expand(kv)
    assert inp.raw.k_idxs is not None
    raw = _cache(g, inp.cells, il, head)
    g.store_k(kv, inp.raw.k_idxs, il, raw)
    keys, mask, n_kv_max = _cells(raw), inp.raw.mask, 0
    if compressed is not None:
        cells = _cells(_cache(g, compressed.cells, il, head))
        keys = ggml.concat(keys, ggml.view(cells, cells.ne, cells.nb[1:]), 2)
        more = compressed.mask
        if top_k is not None:
            more = top_k_mask(more, top_k, more.type)
            n_kv_max = min(mask.ne[0], h.n_swa) + top_k.ne[0]
        mask = ggml.concat(mask, more, 0)
    y = g.mha(q, keys, keys, il, mask=mask, sinks=w["attn_sinks"], n_kv_max=n_kv_max)
    if rotation is not None:
        y = hadamard(y, rotation)
    y = g.rope_end(ggml.reshape(y, head, n_head, n), pos, h.n_rot(0))
    y = ggml.permute(ggml.reshape(y, n_head // groups * head, groups, n), 0, 2, 1, 3)
    y = ggml.permute(ggml.mul_mat(_of_groups(w.need("attn_output_a"), groups), y), 0, 2, 1, 3)
    y = ggml.cont(y, h.dsv4_o_lora_rank * groups, n)
    return ggml.mul_mat(w.need("attn_output_b"), y)


def _of_groups(weight: Tensor, groups: int) -> Tensor:
    """One matrix per group, as which a file's single matrix is loaded."""
    if weight.ne[2] == 1:
        weight.ne = (weight.ne[0], weight.ne[1] // groups, groups, 1)
        weight.nb = ggml.contiguous_strides(weight.type, weight.ne)
    return weight


def _compress(g: Graph, inp: _Compressed, w: Layer, name: str, x: Tensor, head: int, il: int) -> None:
    """What this batch completes goes to the cache, what it leaves to the state."""
    n_rows = inp.rows.n_cells * g.n_seqs
    overlap = inp.name != "hca"
    width = head * (2 if overlap else 1)
    values = ggml.mul_mat(w.need(name + "_kv"), x)
    scores = ggml.mul_mat(w.need(name + "_gate"), x)
    scores = ggml.add(scores, ggml.get_rows(w.need(name + "_ape"), inp.pos))
    current = (values, scores)

    def state(side: str) -> Tensor:
        rows = n_rows * (1 + g.context.n_rs_seq)
        t = g.extra_cache(f"{inp.rows.name} {side}", il, "f32", width, rows)
        return ggml.view(t, (width, rows), (t.nb[1],))

    def restored(side: str) -> Tensor:
        t = state(side)
        if inp.restore is None:
            return t
        return ggml.set_rows(state(side), ggml.get_rows(t, inp.restore[0]), inp.restore[1])

    before = (restored("kv"), restored("score"))
    old_values, old_scores = (ggml.view(t, (width, n_rows), (t.nb[1],)) for t in before)
    combine = _overlapping if overlap else _plain
    cells = combine(inp, ggml.concat(old_values, values, 1), ggml.concat(old_scores, scores, 1), head)
    cells = g.rope_end(g.rms(cells, w, name + "_norm", il), inp.write_pos, g.h.n_rot(0))
    if inp.k_rot is not None:
        cells = hadamard(cells, inp.k_rot)
    g.store_k(cells, inp.write, il, _cache(g, inp.cells, il, head))

    for target, sources_of in ((inp.snapshot, before), (inp.persist, None)):
        if target is None:
            continue
        stored = []
        for side, new, old in zip(("kv", "score"), current, sources_of or current, strict=True):
            source = ggml.concat(old, new, 1) if sources_of is not None else new
            stored.append(ggml.set_rows(state(side), ggml.get_rows(source, target[0]), target[1]))
        for t in stored:
            g.expand(t)


def _plain(inp: _Compressed, values: Tensor, scores: Tensor, head: int) -> Tensor:
    n_blocks = inp.write.ne[0]
    values, scores = (
        ggml.reshape(ggml.get_rows(t, inp.read), head, inp.read.ne[0] // n_blocks, n_blocks) for t in (values, scores)
    )
    return _weighed_rows(values, scores)


def _overlapping(inp: _Compressed, values: Tensor, scores: Tensor, head: int) -> Tensor:
    """Half of every row belongs to the cell before; the first cell reads an empty row."""
    n_blocks = inp.write.ne[0]
    n_read = inp.read.ne[0] // 2

    def halves(t: Tensor) -> Tensor:
        empty = ggml.reshape(ggml.scale(ggml.view(t, (t.ne[0],))), t.ne[0], 1)
        rows = ggml.get_rows(ggml.concat(t, empty, 1), inp.read)
        parts = [
            ggml.cont(ggml.view(rows, (head, n_read), (rows.nb[1],), offset))
            for offset in (0, n_read * rows.nb[1] + head * rows.nb[0])
        ]
        previous, current = (ggml.reshape(t, head, n_read // n_blocks, n_blocks) for t in parts)
        return ggml.concat(previous, current, 1)

    return _weighed_rows(halves(values), halves(scores))


def _weighed_rows(values: Tensor, scores: Tensor) -> Tensor:
    values, scores = (ggml.cont(ggml.permute(t, 1, 0, 2, 3)) for t in (values, scores))
    cells = ggml.sum_rows(ggml.mul(values, ggml.soft_max(scores)))
    return ggml.cont(ggml.permute(cells, 1, 0, 2, 3))


def _top_k(g: Graph, inp: _Compressed, w: Layer, x: Tensor, q_latent: Tensor, pos: Tensor, il: int) -> Tensor:
    """The lightning indexer over compressed cells (build_lid_top_k)."""
    h, n, n_seqs = g.h, g.n_tokens, g.n_seqs
    head, n_head = h.indexer_head_size, h.indexer_n_head
    assert inp.k_rot is not None
    q = ggml.reshape(ggml.mul_mat(w.need("indexer.attn_q_b"), q_latent), head, n_head, n)
    q = hadamard(g.rope_end(q, pos, h.n_rot(0)), inp.k_rot)
    weights = ggml.scale(ggml.mul_mat(w.need("indexer.proj"), x))
    keys = _cells(_cache(g, inp.cells, il, head))
    keys = ggml.view(keys, keys.ne, keys.nb[1:])
    q = ggml.view(q, (head, n_head, n // n_seqs, n_seqs), (q.nb[1], q.nb[2], q.nb[3] // n_seqs))
    strides = (weights.nb[1], weights.nb[2] // n_seqs, weights.nb[3] // n_seqs)
    weights = ggml.view(weights, (n_head, n // n_seqs, 1, n_seqs), strides)
    scores = ggml.lightning_indexer(q, keys, weights, inp.mask)
    return ggml.cont(ggml.top_k(scores, min(scores.ne[0], h.indexer_top_k)))


GROUPS_APART = Change(
    without=10240,
    has=10362,
    source="src/models/deepseek4.cpp: LLM_TENSOR_ATTN_OUT_A of two dimensions, and with TENSOR_ALLOW_RESHAPE",
    name="files of DeepSeek 4 with the groups of attention apart",
)


def _load_deepseek4(d: HParamsDraft, meta: Metadata) -> None:
    if d.n_layer_nextn and f"blk.{d.n_layer}.nextn.eh_proj.weight" not in meta.tensor_names:
        d.n_layer_nextn, d.n_layer = 0, d.n_layer_all
    d.n_embd_out = d.dsv4_hc_mult * d.n_embd
    if len(d.dsv4_compress_ratios) < d.n_layer_all:
        meta.refuse("attention.compress_ratios", f"has fewer than {d.n_layer_all} entries")
    require_sqrt_softplus(d, meta)
    d.swa_type, d.is_swa = "standard", [True] * d.n_layer_all


_CSA_RATIO, _HCA_RATIO = 4, 128  #: src/llama-kv-cache-dsv4.cpp


def _caches(hp: HParams, ctx: Context) -> tuple[Cache, ...]:
    """A raw window, compressed caches of two ratios, an indexer, and their compressors' states
    (src/llama-kv-cache-dsv4.cpp). Always one stream per sequence, also when the rest would be unified."""
    if ctx.mtp:
        return sliding(hp, ctx, lambda il: il >= hp.n_layer, ctx.n_streams, unified=ctx.kv_unified)
    n_streams = ctx.n_seq_max
    ratios = hp.dsv4_compress_ratios

    def compressed(name: str, ratio: int, key: Callable[[int], int] | None = None) -> Cache:
        n_cells = round_up(max(1, -(-ctx.n_ctx_seq // ratio)), CELL_PADDING)
        return kv(hp, ctx, name, lambda il: ratios[il] == ratio, n_cells, n_streams, key=key, k_only=True)

    def state(name: str, ratio: int, n_rows: int, n_elements: int) -> Cache:
        n_planes = n_streams * (1 + ctx.n_rs_seq)
        tensors = (
            CacheTensor(name, side, il, "f32", n_elements, n_rows * n_planes)
            for il in range(hp.n_layer)
            if ratios[il] == ratio
            for side in ("kv", "score")
        )
        return Cache(name=name, n_cells=n_rows, n_streams=n_planes, tensors=tuple(tensors))

    head = hp.n_embd_head_k(0)
    return (
        *sliding(hp, ctx, lambda il: True, n_streams, unified=False, k_only=True),
        compressed("csa", _CSA_RATIO),
        compressed("hca", _HCA_RATIO),
        compressed("lid", _CSA_RATIO, key=lambda il: hp.indexer_head_size),
        state("csa_state", _CSA_RATIO, 2 * _CSA_RATIO, 2 * head),
        state("hca_state", _HCA_RATIO, _HCA_RATIO, head),
        state("lid_state", _CSA_RATIO, 2 * _CSA_RATIO, 2 * hp.indexer_head_size),
    )


ARCHITECTURES = (
    Architecture(
        name="deepseek4",
        source="deepseek4.cpp",
        once_n_dims={"attn_output_a": (GROUPS_APART, 2)},
        hparams=reads(
            """
            f_norm_rms_eps n_lora_q n_swa n_ff_exp n_expert_shared expert_weights_scale expert_weights_norm
            expert_gating_func swiglu_clamp_exp swiglu_clamp_shexp? indexer_n_head indexer_head_size
            indexer_top_k dsv4_o_group_count dsv4_o_lora_rank dsv4_compress_rope_base dsv4_hc_mult
            dsv4_hc_sinkhorn_iters dsv4_hc_eps dsv4_hash_layer_count dsv4_compress_ratios
            """,
            _load_deepseek4,
            clamp_shared_as_routed,
        ),
        rope="norm",
        output="own",
        scales=(),
        graph=deepseek4,
        mixes_inputs=False,
        memory=Memory(caches=_caches, rolls_back=True),
        one_cache_type=True,
        tensor_split=TensorSplit(grouped_output=True),
        draft_graph="not replayed",
        fused_clamp=True,
    ),
)
