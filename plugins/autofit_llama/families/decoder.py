"""Plain decoders: one attention, one feed-forward, a residual around each or around both.

They differ in the kind of norm, in how positions enter, and in a few scales; `decoder` has these as options.
"""

from __future__ import annotations

from collections.abc import Callable

from autofit_llama.engine.versions import Change
from autofit_llama.graph import ggml
from autofit_llama.graph.builder import AttentionInput, Graph, Layer, every
from autofit_llama.graph.ggml import Tensor
from autofit_llama.model.architecture import Architecture, DraftTensors, has_80_layers, reads
from autofit_llama.model.caches import NEXTN_WITH_ALL, NO_CACHE, plain
from autofit_llama.model.metadata_reader import MAX_LAYERS, HParamsDraft, Metadata
from autofit_llama.model.rules import (
    default,
    force,
    mrope_by_sections,
    swa,
    swa_always,
)

Norm = Callable[[Tensor, Layer | None, str, int], Tensor]
InputOf = Callable[[Graph], AttentionInput]


class LayerAgain(Layer):
    """Block `il` run under the number `slot`: its weights, but the scales that have that number.

    The engine looks for scales last, when the blocks that share weights have all been numbered.
    """

    __slots__ = ("_slot",)

    def __init__(self, graph: Graph, il: int, slot: int) -> None:
        super().__init__(graph, il)
        self._slot = Layer(graph, slot)

    def __getitem__(self, name: str) -> Tensor | None:
        return self._slot[name] if name.endswith(".scale") else super().__getitem__(name)


def decoder(
    g: Graph,
    *,
    cache: InputOf = Graph.inp_attn_kv,
    kind: str = "rms",
    rope: bool = True,
    learned_positions: bool = False,
    embedding_norm: bool = False,
    embedding_scale: bool = False,
    factors: bool = False,
    qk_norm_after_rope: bool = False,
    query_scale: bool = False,
    output_bias: bool = True,
    ffn_bias: bool = True,
    post_norms: bool = False,
    ffn_norm: str = "ffn_norm",
    act: str = "silu",
    parallel_gate: bool = True,
    final_scale: bool = False,
) -> None:
    """Attention, then feed-forward, each on the normalized residual stream.

    `post_norms`: what each of them gives is normalized too. `factors`: the file may hold rotary factors.
    """
    norm: Norm = g.rms if kind == "rms" else g.layer_norm
    x = g.inp_embd()
    if embedding_scale:
        x = ggml.scale(x)
    pos = g.inp_pos()
    inp = cache(g)
    if learned_positions:
        x = ggml.add(x, ggml.get_rows(g.need("position_embd"), pos))
    if embedding_norm:
        x = g.norm(x, g.weight("token_embd_norm", 0), 0, bias=g.weight("token_embd_norm.bias", 0), kind=kind)
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        q, k, v = g.qkv(w, norm(x, w, "attn_norm", il), il)
        if rope:
            f = g.rope_factors(il) if factors else None
            q, k = ggml.rope(q, pos, f), ggml.rope(k, pos, f)
        if qk_norm_after_rope:
            q, k = norm(q, w, "attn_q_norm", il), norm(k, w, "attn_k_norm", il)
        if query_scale:
            q = ggml.scale(q)
        cur = g.attn(inp, w, q, k, v, il, bias=output_bias)
        if g.is_last(il):
            cur, x = g.select_outputs(out_ids, cur, x)
        if post_norms:
            cur = norm(cur, w, "post_attention_norm", il)
        ffn_inp = ggml.add(cur, x)
        cur = norm(ffn_inp, w, ffn_norm, il)
        cur = g.ffn(w, cur, il, act=act, parallel=parallel_gate, bias=ffn_bias)
        if post_norms:
            cur = norm(cur, w, "post_ffw_norm", il)
        x = ggml.add(cur, ffn_inp)
    g.finish(x, kind=kind, scale=final_scale)


def arcee(g: Graph) -> None:
    """src/models/arcee.cpp: squared ReLU without a gate."""
    decoder(g, factors=True, act="relu_sqr", parallel_gate=False)


def baichuan(g: Graph) -> None:
    """src/models/baichuan.cpp: rotary positions with 32 blocks (7B), ALiBi otherwise (13B)."""
    decoder(g, rope=g.h.n_layer == 32)


def bloom(g: Graph) -> None:
    """src/models/bloom.cpp: ALiBi, and a norm right after the embeddings."""
    decoder(g, kind="layer", rope=False, embedding_norm=True, act="gelu", parallel_gate=False)


def chatglm(g: Graph) -> None:
    """src/models/chatglm.cpp: gate and up in one matrix."""
    decoder(g, act="swiglu", parallel_gate=False)


def codeshell(g: Graph) -> None:
    """src/models/codeshell.cpp."""
    decoder(g, kind="layer", act="gelu", parallel_gate=False)


def dream(g: Graph) -> None:
    """src/models/dream.cpp, llada.cpp: diffusion, without a cache."""
    biased = g.h.arch != "llada"
    decoder(g, cache=Graph.inp_attn_no_cache, output_bias=biased, ffn_bias=biased)


def ernie4_5(g: Graph) -> None:
    """src/models/ernie4-5.cpp: a bias of the output matrix is loaded and not used."""
    decoder(g, output_bias=False)


def exaone(g: Graph) -> None:
    """src/models/exaone.cpp."""
    decoder(g, factors=True)


def gemma(g: Graph) -> None:
    """src/models/gemma.cpp: embeddings and queries are scaled."""
    decoder(g, embedding_scale=True, query_scale=True, act="gelu")


def gpt2(g: Graph) -> None:
    """src/models/gpt2.cpp, starcoder.cpp: learned positions."""
    decoder(g, kind="layer", rope=False, learned_positions=True, act="gelu", parallel_gate=False)


def internlm2(g: Graph) -> None:
    """src/models/internlm2.cpp."""
    decoder(g)


def jais(g: Graph) -> None:
    """src/models/jais.cpp: ALiBi with a gated feed-forward."""
    decoder(g, kind="layer", rope=False)


def jais2(g: Graph) -> None:
    """src/models/jais2.cpp."""
    decoder(g, kind="layer", act="relu_sqr", parallel_gate=False)


def maincoder(g: Graph) -> None:
    """src/models/maincoder.cpp: queries and keys are normalized after the rotation."""
    decoder(g, qk_norm_after_rope=True)


def nemotron(g: Graph) -> None:
    """src/models/nemotron.cpp: squared ReLU without a gate."""
    decoder(g, kind="layer", act="relu_sqr", parallel_gate=False)


def orion(g: Graph) -> None:
    """src/models/orion.cpp, olmo.cpp (whose norms have no weights)."""
    decoder(g, kind="layer")


def refact(g: Graph) -> None:
    """src/models/refact.cpp: ALiBi; biases of attention output and feed-forward are loaded and not used."""
    decoder(g, rope=False, output_bias=False, ffn_bias=False)


def seed_oss(g: Graph) -> None:
    """src/models/seed-oss.cpp: the feed-forward's norm goes by another name."""
    decoder(g, ffn_norm="post_attention_norm")


def glm4(g: Graph) -> None:
    """src/models/glm4.cpp: gate and up in one matrix, norms after attention and feed-forward too."""
    decoder(g, post_norms=True, act="swiglu", parallel_gate=False)


def falcon(g: Graph) -> None:
    """src/models/falcon.cpp: the feed-forward reads the attention's norm; one residual around both."""
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        normed = g.layer_norm(x, w, "attn_norm", il)
        cur = normed if w["attn_norm_2"] is None else g.layer_norm(x, w, "attn_norm_2", il)
        q, k, v = g.qkv(w, cur, il)
        cur = g.attn(inp, w, ggml.rope(q, pos), ggml.rope(k, pos), v, il)
        if g.is_last(il):
            cur, x, normed = g.select_outputs(out_ids, cur, x, normed)
        x = ggml.add(ggml.add(g.ffn(w, normed, il, act="gelu", parallel=False), cur), x)
    g.finish(x, kind="layer")


def gptneox(g: Graph) -> None:
    """src/models/gptneox.cpp: two norms of the same input side by side, unless the file says otherwise."""
    if not g.h.use_par_res:
        decoder(g, kind="layer", act="gelu", parallel_gate=False)
        return
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        q, k, v = g.qkv(w, g.layer_norm(x, w, "attn_norm", il), il)
        cur = g.attn(inp, w, ggml.rope(q, pos), ggml.rope(k, pos), v, il)
        if g.is_last(il):
            cur, x = g.select_outputs(out_ids, cur, x)
        ffn = g.ffn(w, g.layer_norm(x, w, "ffn_norm", il), il, act="gelu", parallel=False)
        x = ggml.add(ggml.add(ffn, x), cur)
    g.finish(x, kind="layer")


def command_r(g: Graph) -> None:
    """src/models/command-r.cpp: one norm for attention and feed-forward; q and k normalized in some sizes."""
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        normed = g.norm(x, w["attn_norm"], il, kind="layer")
        q, k, v = g.qkv(w, normed, il)
        if w["attn_q_norm"] is not None:
            q = g.norm(q, w["attn_q_norm"], il, kind="layer")
        if w["attn_k_norm"] is not None:
            k = g.norm(k, w["attn_k_norm"], il, kind="layer")
        cur = g.attn(inp, w, ggml.rope(q, pos), ggml.rope(k, pos), v, il)
        if g.is_last(il):
            cur, x, normed = g.select_outputs(out_ids, cur, x, normed)
        x = ggml.add(ggml.add(g.ffn(w, normed, il), x), cur)
    g.finish(x, kind="layer", scale=g.h.f_logit_scale != 0.0)


def mpt(g: Graph) -> None:
    """src/models/mpt.cpp: ALiBi or learned positions; q and k may be normalized over all heads at once."""
    h, n = g.h, g.n_tokens
    x = g.inp_embd()
    inp = g.inp_attn_kv()
    table = g.weight("position_embd")
    if table is not None:
        x = ggml.add(x, ggml.get_rows(table, g.inp_pos()))
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        q, k, v = g.qkv(w, g.layer_norm(x, w, "attn_norm", il), il)
        if w["attn_q_norm"] is not None:
            head, n_head, n_kv = h.n_embd_head_k(il), h.n_head[il], h.n_head_kv[il]
            q, k = ggml.reshape(q, head * n_head, n), ggml.reshape(k, head * n_kv, n)
            q, k = g.layer_norm(q, w, "attn_q_norm", il), g.layer_norm(k, w, "attn_k_norm", il)
            q, k = ggml.reshape(q, head, n_head, n), ggml.reshape(k, head, n_kv, n)
        cur = g.attn(inp, w, q, k, v, il)
        if g.is_last(il):
            cur, x = g.select_outputs(out_ids, cur, x)
        ffn_inp = ggml.add(cur, x)
        cur = g.layer_norm(ffn_inp, w, "ffn_norm", il)
        cur = g.ffn(w, cur, il, act="gelu", parallel=False, act_scales=w["ffn.act.scales"])
        x = ggml.add(cur, ffn_inp)
    g.finish(x, kind="layer")


def deci(g: Graph) -> None:
    """src/models/deci.cpp: blocks may lack attention, have a matrix in its place, or lack a feed-forward."""
    h = g.h
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    cur = x
    for il in g.layers():
        w = g.layer(il)
        residual = x
        if h.n_head[il] == 0:
            cur = x
        else:
            cur = g.rms(x, w, "attn_norm", il)
        if h.n_head[il] > 0 and h.n_head_kv[il] == 0:
            cur = g.linear(w, "attn_output", cur)
        elif h.n_head[il] > 0:
            factors = g.rope_factors(il)
            q, k, v = g.qkv(w, cur, il)
            cur = g.attn(inp, w, ggml.rope(q, pos, factors), ggml.rope(k, pos, factors), v, il)
        if g.is_last(il):
            cur, residual = g.select_outputs(out_ids, cur, residual)
        if h.n_ff[il] == 0:
            continue
        ffn_inp = ggml.add(cur, residual) if h.n_head[il] > 0 else cur
        cur = g.ffn(w, g.rms(ffn_inp, w, "ffn_norm", il), il)
        x = cur = ggml.add(cur, ffn_inp)
    g.finish(cur)


def apertus(g: Graph) -> None:
    """src/models/apertus.cpp: q and k normalized per head, xIELU without a gate."""
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        cur = g.rms(x, w, "attn_norm", il)
        factors = g.rope_factors(il)
        q, k, v = g.qkv(w, cur, il)
        q, k = g.rms(q, w, "attn_q_norm", il), g.rms(k, w, "attn_k_norm", il)
        cur = g.attn(inp, w, ggml.rope(q, pos, factors), ggml.rope(k, pos, factors), v, il)
        if g.is_last(il):
            cur, x = g.select_outputs(out_ids, cur, x)
        ffn_inp = ggml.add(cur, x)
        up = g.linear(w, "ffn_up", g.rms(ffn_inp, w, "ffn_norm", il))
        x = ggml.add(g.linear(w, "ffn_down", ggml.unary(up, "xielu")), ffn_inp)
    g.finish(x)


def bitnet(g: Graph) -> None:
    """src/models/bitnet.cpp: a norm before each output matrix."""
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        q, k, v = g.qkv(w, g.rms(x, w, "attn_norm", il), il)
        cur = g.attn(inp, w, ggml.rope(q, pos), ggml.rope(k, pos), v, il, out=None)
        cur = g.linear(w, "attn_output", g.rms(cur, w, "attn_sub_norm", il), bias=True)
        if g.is_last(il):
            cur, x = g.select_outputs(out_ids, cur, x)
        ffn_inp = ggml.add(cur, x)
        cur = g.ffn(w, g.rms(ffn_inp, w, "ffn_norm", il), il, down=None)
        x = ggml.add(g.linear(w, "ffn_down", g.rms(cur, w, "ffn_sub_norm", il)), ffn_inp)
    cur = g.final_norm(x)
    g.embd = cur
    g.logits = g.expand(ggml.mul_mat(g.need("token_embd"), cur))


def parallel_decoder(g: Graph, *, kind: str, query_scale: bool, act: str, parallel_gate: bool) -> None:
    """Attention and feed-forward side by side on one norm, both added to the residual."""
    norm: Norm = g.rms if kind == "rms" else g.layer_norm
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        normed = norm(x, w, "attn_norm", il)
        q, k, v = g.qkv(w, normed, il)
        q, k = ggml.rope(q, pos), ggml.rope(k, pos)
        if query_scale:
            q = ggml.scale(q)
        cur = g.attn(inp, w, q, k, v, il)
        if g.is_last(il):
            cur, x, normed = g.select_outputs(out_ids, cur, x, normed)
        ffn = g.ffn(w, normed, il, act=act, parallel=parallel_gate)
        first, second = (cur, ffn) if query_scale else (ffn, cur)
        x = ggml.add(ggml.add(first, second), x)
    g.finish(x, kind=kind)


def phi2(g: Graph) -> None:
    """src/models/phi2.cpp: biases throughout; the attention's result comes first in the sum."""
    parallel_decoder(g, kind="layer", query_scale=True, act="gelu", parallel_gate=False)


def plamo(g: Graph) -> None:
    """src/models/plamo.cpp."""
    parallel_decoder(g, kind="rms", query_scale=False, act="silu", parallel_gate=True)


@every(lambda h: h.n_no_rope_layer_step)
def smollm3(g: Graph) -> None:
    """src/models/smollm3.cpp: every n-th block has no positions."""
    step = g.h.n_no_rope_layer_step
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        q, k, v = g.qkv(w, g.rms(x, w, "attn_norm", il), il)
        if (il + 1) % step:
            q, k = ggml.rope(q, pos), ggml.rope(k, pos)
        cur = g.attn(inp, w, q, k, v, il)
        if g.is_last(il):
            cur, x = g.select_outputs(out_ids, cur, x)
        ffn_inp = ggml.add(cur, x)
        x = ggml.add(g.ffn(w, g.rms(ffn_inp, w, "ffn_norm", il), il), ffn_inp)
    g.finish(x)


def stablelm(g: Graph) -> None:
    """src/models/stablelm.cpp: q and k may be normalized; the feed-forward may share the attention's norm."""
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        normed = g.layer_norm(x, w, "attn_norm", il)
        q, k, v = g.qkv(w, normed, il)
        if w["attn_q_norm"] is not None:
            q = g.norm(q, w["attn_q_norm"], il, kind="layer")
        if w["attn_k_norm"] is not None:
            k = g.norm(k, w["attn_k_norm"], il, kind="layer")
        cur = g.attn(inp, w, ggml.rope(q, pos), ggml.rope(k, pos), v, il)
        if g.is_last(il):
            cur, x, normed = g.select_outputs(out_ids, cur, x, normed)
        ffn_inp = ggml.add(cur, x)
        cur = normed if w["ffn_norm"] is None else g.layer_norm(ffn_inp, w, "ffn_norm", il)
        x = ggml.add(g.ffn(w, cur, il), ffn_inp)
    g.finish(x, kind="layer")


def exaone4(g: Graph) -> None:
    """src/models/exaone4.cpp: no norm before, one after each half; no positions in full attention."""
    h = g.h
    sliding = h.swa_type != "none"
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv_iswa() if sliding else g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        factors = g.rope_factors(il)
        q, k, v = g.qkv(w, x, il)
        q, k = g.rms(q, w, "attn_q_norm", il), g.rms(k, w, "attn_k_norm", il)
        if h.is_swa[il] or not sliding:
            q, k = ggml.rope(q, pos, factors), ggml.rope(k, pos, factors)
        cur = g.attn(inp, w, q, k, v, il)
        if g.is_last(il):
            cur, x = g.select_outputs(out_ids, cur, x)
        ffn_inp = ggml.add(g.rms(cur, w, "post_attention_norm", il), x)
        cur = g.rms(g.ffn(w, ffn_inp, il), w, "post_ffw_norm", -1)
        x = ggml.add(cur, ffn_inp)
    g.finish(x)


def olmo2(g: Graph) -> None:
    """src/models/olmo2.cpp: norms after each half, q and k normalized over all heads at once."""
    h, n = g.h, g.n_tokens
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv_iswa() if h.swa_type != "none" else g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        head, n_head, n_kv = h.n_embd_head_v(il), h.n_head[il], h.n_head_kv[il]
        q, k, v = g.qkv(w, x, il, head=head, reshape=False)
        q, k = g.rms(q, w, "attn_q_norm", il), g.rms(k, w, "attn_k_norm", il)
        q, k, v = (ggml.reshape(t, head, m, n) for t, m in ((q, n_head), (k, n_kv), (v, n_kv)))
        cur = g.attn(inp, w, ggml.rope(q, pos), ggml.rope(k, pos), v, il)
        if g.is_last(il):
            cur, x = g.select_outputs(out_ids, cur, x)
        ffn_inp = ggml.add(g.rms(cur, w, "post_attention_norm", il), x)
        cur = g.rms(g.ffn(w, ffn_inp, il), w, "post_ffw_norm", -1)
        x = ggml.add(cur, ffn_inp)
    g.finish(x)


VALUES_IN_PLACE = Change(
    without=7698,
    has=8095,
    source="src/models/openelm.cpp, Vcur with ggml_cont and as a view",
    name="values of OpenELM that are not copied",
    larger=False,
)


def openelm(g: Graph) -> None:
    """src/models/openelm.cpp: heads differ per block; q, k and v are views of one matrix' result."""
    h, n = g.h, g.n_tokens
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        head, n_head, n_kv = h.n_embd_head_k(il), h.n_head[il], h.n_head_kv[il]
        y = g.linear(w, "attn_qkv", g.rms(x, w, "attn_norm", il), scale=False)
        y = ggml.reshape(y, head, n_head + 2 * n_kv, n)
        q = ggml.view(y, (head, n_head, n), y.nb[1:3])
        k = ggml.view(y, (head, n_kv, n), y.nb[1:3], y.nb[1] * n_head)
        v = ggml.view(y, (head, n_kv, n), y.nb[1:3], y.nb[1] * (n_head + n_kv))
        if not g.follows(VALUES_IN_PLACE):
            v = ggml.cont(v)
        q, k = g.rms(q, w, "attn_q_norm", il), g.rms(k, w, "attn_k_norm", il)
        cur = g.attn(inp, w, ggml.rope(q, pos), ggml.rope(k, pos), v, il)
        if g.is_last(il):
            x, cur = g.select_outputs(out_ids, x, cur)
        ffn_inp = ggml.add(x, cur)
        x = ggml.add(g.ffn(w, g.rms(ffn_inp, w, "ffn_norm", il), il), ffn_inp)
    g.finish(x)


def talkie(g: Graph) -> None:
    """src/models/talkie.cpp: norms without weights, the embeddings added again in every block."""
    x = g.norm(g.inp_embd(), None, -1)
    embeddings = x
    pos = g.inp_pos()
    inp = g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        skip = embeddings
        q, k, v = g.qkv(w, g.norm(x, None, il), il)
        q, k = ggml.rope(q, pos), ggml.rope(k, pos)
        q, k = g.rms(q, w, "attn_q_norm", il), g.norm(k, None, il)
        cur = g.attn(inp, w, q, k, v, il)
        if g.is_last(il):
            cur, x, skip = g.select_outputs(out_ids, cur, x, skip)
        ffn_inp = ggml.add(cur, x)
        cur = g.ffn(w, g.norm(ffn_inp, None, il), il, down=None)
        cur = ggml.add(g.linear(w, "ffn_down", cur), ffn_inp)
        x = ggml.add(cur, ggml.mul(skip, w.need("layer_output_scale")))
    g.output(g.norm(x, None, -1), scale=True)


def hunyuan(g: Graph) -> None:
    """src/models/hunyuan-vl.cpp, hunyuan-dense.cpp: keys, then queries are normalized after the rotation."""
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        factors = g.rope_factors(il)
        q, k, v = g.qkv(w, g.rms(x, w, "attn_norm", il), il)
        q, k = ggml.rope(q, pos, factors), ggml.rope(k, pos, factors)
        k, q = g.rms(k, w, "attn_k_norm", il), g.rms(q, w, "attn_q_norm", il)
        cur = g.attn(inp, w, q, k, v, il)
        if g.is_last(il):
            cur, x = g.select_outputs(out_ids, cur, x)
        ffn_inp = ggml.add(cur, x)
        x = ggml.add(g.ffn(w, g.rms(ffn_inp, w, "ffn_norm", il), il), ffn_inp)
    g.finish(x)


def plamo3(g: Graph) -> None:
    """src/models/plamo3.cpp: one matrix for q, k and v, norms before and after each half."""
    h, n = g.h, g.n_tokens
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv_iswa() if h.swa_type != "none" else g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        head_q, head_v = h.n_embd_head_k(0), h.n_embd_head_v(0)
        n_head, n_kv = h.n_head[il], h.n_head_kv[il]
        y = g.linear(w, "attn_qkv", g.rms(x, w, "attn_norm", il), scale=False)
        after_q, after_k = head_q * n_head, head_q * (n_head + n_kv)
        q = ggml.view(y, (head_q, n_head, n), (4 * head_q, y.nb[1]))
        k = ggml.view(y, (head_q, n_kv, n), (4 * head_q, y.nb[1]), 4 * after_q)
        v = ggml.view(y, (head_v, n_kv, n), (4 * head_v, y.nb[1]), 4 * after_k)
        q, k = g.rms(q, w, "attn_q_norm", il), g.rms(k, w, "attn_k_norm", il)
        cur = g.attn(inp, w, ggml.rope(q, pos), ggml.rope(k, pos), v, il)
        if g.is_last(il):
            cur, x = g.select_outputs(out_ids, cur, x)
        x = ggml.add(g.rms(cur, w, "post_attention_norm", il), x)
        cur = g.ffn(w, g.rms(x, w, "ffn_norm", il), il, act="swiglu", parallel=False)
        x = ggml.add(g.rms(cur, w, "post_ffw_norm", il), x)
    g.finish(x)


def cogvlm(g: Graph) -> None:
    """src/models/cogvlm.cpp, for text: q, k and v are views of one matrix' result; every row gets logits."""
    h, n = g.h, g.n_tokens
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv()
    for il in g.layers():
        w = g.layer(il)
        head, n_head, n_kv = h.n_embd_head_v(il), h.n_head[il], h.n_head_kv[il]
        y = g.linear(w, "attn_qkv", g.rms(x, w, "attn_norm", il), scale=False)
        q = ggml.view(y, (head, n_head, n), (4 * head, y.nb[1]))
        k = ggml.view(y, (head, n_kv, n), (4 * head, y.nb[1]), 4 * h.n_embd)
        v = ggml.view(y, (head, n_kv, n), (4 * head, y.nb[1]), 8 * h.n_embd)
        cur = g.attn(inp, w, ggml.rope(q, pos), ggml.rope(k, pos), v, il)
        ffn_inp = ggml.add(cur, x)
        x = ggml.add(g.ffn(w, g.rms(ffn_inp, w, "ffn_norm", il), il), ffn_inp)
    g.finish(x)


@every(lambda h: h.n_layer_all // h.n_loops)
def nanbeige(g: Graph) -> None:
    """src/models/nanbeige.cpp: the blocks are run several times, with a cache for each pass; norms between."""
    h = g.h
    n_blocks = h.n_layer_all // h.n_loops
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = LayerAgain(g, il % n_blocks, il)
        factors = g.rope_factors(w.il)
        q, k, v = g.qkv(w, g.rms(x, w, "attn_norm", il), il)
        cur = g.attn(inp, w, ggml.rope(q, pos, factors), ggml.rope(k, pos, factors), v, il)
        if g.is_last(il):
            cur, x = g.select_outputs(out_ids, cur, x)
        ffn_inp = ggml.add(cur, x)
        x = ggml.add(g.ffn(w, g.rms(ffn_inp, w, "ffn_norm", il), il), ffn_inp)
        if (il + 1) % n_blocks == 0 and not g.is_last(il) and not h.skip_loop_final_norm:
            x = g.norm(x, g.weight("output_norm"), il)
    g.finish(x)


def _load_baichuan(d: HParamsDraft, meta: Metadata) -> None:
    if d.n_layer == 40:  # 13B
        d.f_max_alibi_bias = 8.0


def _load_exaone4(d: HParamsDraft, meta: Metadata) -> None:
    if d.n_layer == 64:
        default(n_swa=4096)(d, meta)
        swa_always(4)(d, meta)


def _load_nanbeige(d: HParamsDraft, meta: Metadata) -> None:
    if d.n_loops < 1 or d.n_layer * d.n_loops > MAX_LAYERS:
        meta.refuse("num_loops", f"is {d.n_loops}, the engine takes at most {MAX_LAYERS} blocks")
    if d.n_loops > 1:
        for field in ("n_head", "n_head_kv", "n_ff", "is_swa", "is_recr"):
            setattr(d, field, getattr(d, field)[: d.n_layer] * d.n_loops)
        d.n_layer_all = d.n_layer * d.n_loops


ARCHITECTURES = (
    Architecture(
        name="apertus",
        source="apertus.cpp",
        hparams=reads("f_norm_rms_eps"),
        rope="neox",
        output="own",
        scales=(),
        graph=apertus,
    ),
    Architecture(
        name="arcee",
        source="arcee.cpp",
        hparams=reads("f_norm_rms_eps"),
        rope="norm",
        output="tied",
        scales=(),
        graph=arcee,
    ),
    Architecture(
        name="baichuan",
        source="baichuan.cpp",
        hparams=reads("f_norm_rms_eps", _load_baichuan),
        rope="norm",
        output="own",
        scales=(),
        graph=baichuan,
    ),
    Architecture(
        name="bitnet",
        source="bitnet.cpp",
        hparams=reads("f_norm_rms_eps"),
        rope="neox",
        output="own",
        scales=("ffn",),
        graph=bitnet,
        tensor_split=None,
    ),
    Architecture(
        name="bloom",
        source="bloom.cpp",
        hparams=reads("f_norm_eps", force(f_max_alibi_bias=8.0)),
        rope="none",
        output="tied",
        scales=(),
        graph=bloom,
    ),
    Architecture(
        name="chatglm",
        source="chatglm.cpp",
        hparams=reads("f_norm_rms_eps"),
        rope="norm",
        output="tied",
        scales=(),
        graph=chatglm,
    ),
    Architecture(
        name="codeshell",
        source="codeshell.cpp",
        hparams=reads("f_norm_eps"),
        rope="neox",
        output="from output",
        scales=(),
        graph=codeshell,
    ),
    Architecture(
        name="cogvlm",
        source="cogvlm.cpp",
        hparams=reads("f_norm_rms_eps"),
        rope="neox",
        output="tied",
        scales=(),
        graph=cogvlm,
        mixes_inputs=False,
    ),
    Architecture(
        name="command-r",
        source="command-r.cpp",
        hparams=reads("f_logit_scale? f_norm_eps"),
        rope="norm",
        output="tied",
        scales=(),
        graph=command_r,
    ),
    Architecture(
        name="deci",
        source="deci.cpp",
        hparams=reads("f_norm_rms_eps"),
        rope="norm",
        output="tied",
        scales=(),
        graph=deci,
        rotates_whole_heads=True,
        is_70b=has_80_layers,
    ),
    Architecture(
        name="dream",
        source="dream.cpp",
        hparams=reads("f_norm_rms_eps", force(causal_attn=False)),
        rope="neox",
        output="tied",
        scales=(),
        graph=dream,
        memory=NO_CACHE,
        unused_output_bias=True,
    ),
    Architecture(
        name="ernie4_5",
        source="ernie4-5.cpp",
        hparams=reads("rope_sections? f_norm_rms_eps"),
        rope="norm",
        output="tied",
        scales=(),
        graph=ernie4_5,
    ),
    Architecture(
        name="exaone",
        source="exaone.cpp",
        hparams=reads("f_norm_rms_eps"),
        rope="neox",
        output="tied",
        scales=(),
        graph=exaone,
    ),
    Architecture(
        name="exaone4",
        source="exaone4.cpp",
        hparams=reads("n_swa? f_norm_rms_eps", _load_exaone4),
        rope="neox",
        output="tied",
        scales=(),
        graph=exaone4,
        draft_tensors=DraftTensors(loadable=False),
    ),
    Architecture(
        name="falcon",
        source="falcon.cpp",
        hparams=reads("f_norm_eps"),
        rope="neox",
        output="tied",
        scales=(),
        graph=falcon,
        rotates_whole_heads=True,
    ),
    Architecture(
        name="gemma",
        source="gemma.cpp",
        hparams=reads("f_norm_rms_eps"),
        rope="neox",
        output="tied",
        scales=(),
        graph=gemma,
    ),
    Architecture(
        name="glm4",
        source="glm4.cpp",
        hparams=reads("f_norm_rms_eps rope_sections?"),
        rope=mrope_by_sections("norm"),
        output="tied",
        scales=(),
        graph=glm4,
        memory=plain(until=NEXTN_WITH_ALL),
        draft_tensors=DraftTensors(loadable=False),
    ),
    Architecture(
        name="gpt2",
        source="gpt2.cpp",
        hparams=reads("f_norm_eps"),
        rope="none",
        output="tied",
        scales=(),
        graph=gpt2,
    ),
    Architecture(
        name="gptneox",
        source="gptneox.cpp",
        hparams=reads("f_norm_eps use_par_res"),
        rope="neox",
        output="own",
        scales=(),
        graph=gptneox,
    ),
    Architecture(
        name="hunyuan-dense",
        source="hunyuan-dense.cpp",
        hparams=reads("f_norm_rms_eps rope_sections?"),
        rope="neox",
        output="tied",
        scales=(),
        graph=hunyuan,
        lone_expert_is_dense=True,
    ),
    Architecture(
        name="hunyuan_vl",
        source="hunyuan-vl.cpp",
        hparams=reads("f_norm_rms_eps rope_sections?"),
        rope=mrope_by_sections("neox"),
        output="tied",
        scales=(),
        graph=hunyuan,
        lone_expert_is_dense=True,
    ),
    Architecture(
        name="internlm2",
        source="internlm2.cpp",
        hparams=reads("f_norm_rms_eps"),
        rope="norm",
        output="own",
        scales=(),
        graph=internlm2,
    ),
    Architecture(
        name="jais",
        source="jais.cpp",
        hparams=reads("f_norm_eps f_max_alibi_bias?"),
        rope="none",
        output="own",
        scales=(),
        graph=jais,
    ),
    Architecture(
        name="jais2",
        source="jais2.cpp",
        hparams=reads("f_norm_eps"),
        rope="neox",
        output="tied",
        scales=(),
        graph=jais2,
        is_70b=lambda hp: hp.n_layer == 68,
    ),
    Architecture(
        name="llada",
        source="llada.cpp",
        hparams=reads("f_norm_rms_eps", force(causal_attn=False)),
        rope="norm",
        output="tied",
        scales=(),
        graph=dream,
        memory=NO_CACHE,
    ),
    Architecture(
        name="maincoder",
        source="maincoder.cpp",
        hparams=reads("f_norm_rms_eps"),
        rope="norm",
        output="tied",
        scales=(),
        graph=maincoder,
    ),
    Architecture(
        name="mpt",
        source="mpt.cpp",
        hparams=reads("f_norm_eps f_clamp_kqv? f_max_alibi_bias?"),
        rope="none",
        output="tied",
        scales=(),
        graph=mpt,
        tensor_split=None,
    ),
    Architecture(
        name="nanbeige",
        source="nanbeige.cpp",
        hparams=reads("f_norm_rms_eps n_loops? skip_loop_final_norm?", _load_nanbeige),
        rope="norm",
        output="tied",
        scales=("ffn",),
        graph=nanbeige,
        rope_factors=lambda hp: range(hp.n_layer_all // hp.n_loops),
    ),
    Architecture(
        name="nemotron",
        source="nemotron.cpp",
        hparams=reads("f_norm_eps"),
        rope="neox",
        output="own",
        scales=(),
        graph=nemotron,
    ),
    Architecture(
        name="olmo",
        source="olmo.cpp",
        hparams=reads("f_norm_eps f_clamp_kqv?"),
        rope="norm",
        output="tied",
        scales=(),
        graph=orion,
        is_70b=has_80_layers,
    ),
    Architecture(
        name="olmo2",
        source="olmo2.cpp",
        hparams=reads("f_norm_rms_eps n_swa?", swa(4)),
        rope="neox",
        output="own",
        scales=(),
        graph=olmo2,
        tensor_split=None,
    ),
    Architecture(
        name="openelm",
        source="openelm.cpp",
        hparams=reads("f_norm_rms_eps"),
        rope="neox",
        output="tied",
        scales=(),
        graph=openelm,
    ),
    Architecture(
        name="orion",
        source="orion.cpp",
        hparams=reads("f_norm_eps"),
        rope="neox",
        output="own",
        scales=(),
        graph=orion,
    ),
    Architecture(
        name="paddleocr",
        source="paddleocr.cpp",
        hparams=reads("rope_sections? f_norm_rms_eps"),
        rope="mrope",
        output="tied",
        scales=(),
        graph=internlm2,
    ),
    Architecture(
        name="pangu-embedded",
        source="pangu-embed.cpp",
        hparams=reads("f_norm_rms_eps"),
        rope="neox",
        output="tied",
        scales=(),
        graph=internlm2,
    ),
    Architecture(
        name="phi2",
        source="phi2.cpp",
        hparams=reads("f_norm_eps"),
        rope="neox",
        output="own",
        scales=(),
        graph=phi2,
    ),
    Architecture(
        name="plamo",
        source="plamo.cpp",
        hparams=reads("f_norm_rms_eps"),
        rope="neox",
        output="own",
        scales=(),
        graph=plamo,
    ),
    Architecture(
        name="plamo3",
        source="plamo3.cpp",
        hparams=reads("f_norm_rms_eps n_swa?", swa(8)),
        rope="neox",
        output="tied",
        scales=(),
        graph=plamo3,
    ),
    Architecture(
        name="pockettts",
        source="pockettts.cpp",
        hparams=reads("f_norm_eps"),
        rope="norm",
        output="tied",
        scales=(),
        graph=codeshell,
    ),
    Architecture(
        name="qwen",
        source="qwen.cpp",
        hparams=reads("f_norm_rms_eps"),
        rope="neox",
        output="own",
        scales=(),
        graph=internlm2,
    ),
    Architecture(
        name="qwen2vl",
        source="qwen2vl.cpp",
        hparams=reads("rope_sections"),
        rope="mrope",
        output="tied",
        scales=(),
        graph=internlm2,
        unused_output_bias=True,
    ),
    Architecture(
        name="refact",
        source="refact.cpp",
        hparams=reads("f_norm_rms_eps", force(f_max_alibi_bias=8.0)),
        rope="none",
        output="tied",
        scales=(),
        graph=refact,
    ),
    Architecture(
        name="seed_oss",
        source="seed-oss.cpp",
        hparams=reads("f_norm_rms_eps"),
        rope="neox",
        output="tied",
        scales=(),
        graph=seed_oss,
    ),
    Architecture(
        name="smollm3",
        source="smollm3.cpp",
        hparams=reads("f_norm_rms_eps"),
        rope="norm",
        output="tied",
        scales=(),
        graph=smollm3,
    ),
    Architecture(
        name="stablelm",
        source="stablelm.cpp",
        hparams=reads("f_norm_eps"),
        rope="neox",
        output="own",
        scales=(),
        graph=stablelm,
    ),
    Architecture(
        name="starcoder",
        source="starcoder.cpp",
        hparams=reads("f_norm_eps"),
        rope="norm",
        output="tied",
        scales=(),
        graph=gpt2,
    ),
    Architecture(
        name="starcoder2",
        source="starcoder2.cpp",
        hparams=reads("f_norm_eps"),
        rope="neox",
        output="tied",
        scales=(),
        graph=codeshell,
    ),
    Architecture(
        name="talkie",
        source="talkie.cpp",
        hparams=reads("f_norm_rms_eps f_logit_scale"),
        rope="neox",
        output="own",
        scales=(),
        graph=talkie,
    ),
    Architecture(
        name="xverse",
        source="xverse.cpp",
        hparams=reads("f_norm_rms_eps"),
        rope="norm",
        output="own",
        scales=(),
        graph=internlm2,
    ),
)
