"""The Gemma models with an embedding per layer: gemma3n's alternating updates, gemma4.

Later blocks have no cache of their own and read that of the last block of their kind that has one.
"""

from __future__ import annotations

from autofit_llama.engine.versions import Change
from autofit_llama.graph import ggml
from autofit_llama.graph.builder import AttentionInput, Graph, Layer, first
from autofit_llama.graph.ggml import HOST, Tensor
from autofit_llama.model.architecture import Architecture, reads
from autofit_llama.model.caches import (
    NO_CACHE,
    Cache,
    Memory,
    attention,
)
from autofit_llama.model.context import Context
from autofit_llama.model.hparams import HParams
from autofit_llama.model.metadata_reader import HParamsDraft, Metadata
from autofit_llama.model.rules import (
    force,
    swa_always,
)

N_SPARSE_LAYERS = 10  #: src/models/models.h:llama_model_gemma3n, n_layer_sparsity


def _share_caches(g: Graph) -> None:
    h = g.h
    g.cache_source = lambda il: il if h.has_kv(il) else h.n_layer_kv_from_start - (2 if h.is_swa[il] else 1)


def _slice(x: Tensor, i: int) -> Tensor:
    return ggml.view(x, x.ne[:2], (ggml.row_size(x.type, x.ne[0]),), i * x.ne[0] * x.ne[1] * 4)


TABLE_FIRST = Change(
    without=8390,
    has=9093,
    source="src/models/gemma3n.cpp, rows of per_layer_token_embd beside their projection, and before it",
    name="the second table of embeddings read first",
    larger=False,
)


def _per_layer_inputs(g: Graph, x: Tensor, width: int) -> Tensor:
    """[width, tokens, layers]: what the tokens' second table says, and a projection of their embeddings."""
    h, n = g.h, g.n_tokens
    rows = ggml.get_rows(g.need("per_layer_token_embd"), g.input("i32", n))
    rows = ggml.scale(ggml.reshape(rows, width, h.n_layer, n))
    if g.follows(TABLE_FIRST):
        g.expand(rows)
    projected = ggml.scale(ggml.mul_mat(g.need("per_layer_model_proj"), x))
    projected = ggml.reshape(projected, width, h.n_layer, n)
    projected = g.norm(projected, g.weight("per_layer_proj_norm"), -1)
    return ggml.cont(ggml.permute(ggml.scale(ggml.add(projected, rows)), 0, 2, 1, 3))


EVERY_ROW = Change(
    without=9548,
    has=9553,
    source="src/models/gemma4.cpp, rows without logits left out in the last block, and after the last norm",
    name="hidden states of all tokens of Gemma 4",
)


def gemma4(g: Graph) -> None:
    """src/models/gemma4.cpp: dense, or experts beside the feed-forward; values may be the keys."""
    h = g.h
    _share_caches(g)
    x = g.inp_embd(scaled=True)
    pos = g.inp_pos()
    inp = g.inp_attn_kv_iswa()
    out_ids = g.inp_out_ids()
    has_inputs = g.weight("per_layer_token_embd") is not None
    inputs = _per_layer_inputs(g, x, h.n_embd_per_layer) if has_inputs else None
    for il in g.layers():
        w = g.layer(il)
        cur = _gemma4_attention(g, inp, w, g.rms(x, w, "attn_norm", il), pos, il)
        if g.narrows(il, EVERY_ROW):
            cur, x = g.select_outputs(out_ids, cur, x)
        attn_out = ggml.add(g.rms(cur, w, "post_attention_norm", il), x)
        if w["ffn_gate_inp"] is not None:
            cur = _gemma4_experts(g, w, attn_out, il)
        else:
            cur = g.ffn(w, g.rms(attn_out, w, "ffn_norm", il), il, act="gelu")
        x = ggml.add(g.rms(cur, w, "post_ffw_norm", -1), attn_out)
        if inputs is not None:
            gate, here = ggml.gelu(g.linear(w, "inp_gate", x)), _slice(inputs, il)
            cur = ggml.mul(gate, ggml.get_rows(here, out_ids) if g.narrows(il, EVERY_ROW) else here)
            x = ggml.add(x, g.rms(g.linear(w, "proj", cur), w, "post_norm", il))
        scale = w["layer_output_scale"]
        x = ggml.mul(x, scale) if scale is not None else x
    cur = g.final_norm(x)
    if g.follows(EVERY_ROW):
        g.h_nextn = cur
        cur = ggml.get_rows(cur, out_ids) if g.keeps_rows(EVERY_ROW) else cur
    g.output(cur, soft_cap=h.f_final_logit_softcapping != 0.0)


def gemma_embedding2(g: Graph) -> None:
    """src/models/gemma-embedding2.cpp: an encoder whose layers read a projection of the embeddings; none of its own."""
    h, n = g.h, g.n_tokens
    x = g.inp_embd(scaled=True)
    pos = g.inp_pos()
    inp = g.inp_attn_no_cache()
    out_ids = g.inp_out_ids()
    inputs = ggml.scale(ggml.mul_mat(g.need("per_layer_model_proj"), x))
    inputs = g.norm(ggml.reshape(inputs, h.n_embd_per_layer, h.n_layer, n), g.weight("per_layer_proj_norm"), -1)
    inputs = ggml.cont(ggml.permute(inputs, 0, 2, 1, 3))
    for il in g.layers():
        w = g.layer(il)
        head, n_head, n_kv = h.n_embd_head_k(il), h.n_head[il], h.n_head_kv[il]
        cur = g.rms(x, w, "attn_norm", il)
        q, k, v = (g.linear(w, name, cur) for name in ("attn_q", "attn_k", "attn_v"))
        q, k, v = (ggml.reshape(t, head, m, n) for t, m in ((q, n_head), (k, n_kv), (v, n_kv)))
        q, k, v = g.rms(q, w, "attn_q_norm", il), g.rms(k, w, "attn_k_norm", il), ggml.rms_norm(v)
        cur = g.attn(inp, w, ggml.rope(q, pos), ggml.rope(k, pos), v, il, bias=False)
        if g.is_last(il):
            cur, x = g.select_outputs(out_ids, cur, x)
        attn_out = ggml.add(g.rms(cur, w, "post_attention_norm", il), x)
        cur = g.ffn(w, g.rms(attn_out, w, "ffn_norm", il), il, act="gelu")
        x = ggml.add(g.rms(cur, w, "post_ffw_norm", -1), attn_out)
        gate, here = ggml.gelu(g.linear(w, "inp_gate", x)), _slice(inputs, il)
        cur = ggml.mul(gate, ggml.get_rows(here, out_ids) if g.is_last(il) else here)
        x = ggml.add(x, g.rms(g.linear(w, "proj", cur), w, "post_norm", il))
        x = ggml.mul(x, w.need("layer_output_scale"))
    g.embd = g.expand(g.linear(None, "output", g.final_norm(x)))


def _gemma4_attention(g: Graph, inp: AttentionInput, w: Layer, x: Tensor, pos: Tensor, il: int) -> Tensor:
    h, n = g.h, g.n_tokens
    head, n_head, n_kv = h.n_embd_head_k(il), h.n_head[il], h.n_head_kv[il]
    factors = None if h.is_swa[il] else g.weight("rope_freqs", il)
    fused = g.linear(w, "attn_qkv", x) if w["attn_qkv"] is not None else None

    def part(first: int, count: int) -> Tensor:
        assert fused is not None
        return ggml.cont(ggml.view(fused, (head * count, n), (fused.nb[1],), 4 * head * first))

    q = part(0, n_head) if fused is not None else g.linear(w, "attn_q", x)
    own = ggml.Rotation(h.n_rot(il))
    q = ggml.rope(g.rms(ggml.reshape(q, head, n_head, n), w, "attn_q_norm", il), pos, factors, rotation=own)
    if not h.has_kv(il):
        return g.attn(inp, w, q, None, None, il, bias=False)
    if fused is not None:
        k, v = part(n_head, n_kv), part(n_head + n_kv, n_kv)
    else:
        k = g.linear(w, "attn_k", x)
        v = g.linear(w, "attn_v", x) if w["attn_v"] is not None else k
    k, v = ggml.reshape(k, head, n_kv, n), ggml.reshape(v, head, n_kv, n)
    k = ggml.rope(g.rms(k, w, "attn_k_norm", il), pos, factors, rotation=own)
    return g.attn(inp, w, q, k, ggml.rms_norm(v), il, bias=False)


def _gemma4_experts(g: Graph, w: Layer, x: Tensor, il: int) -> Tensor:
    """The feed-forward as the shared expert, and routed ones chosen by another norm of the same input."""
    dense = g.ffn(w, g.rms(x, w, "ffn_norm", il), il, act="gelu")
    dense = g.rms(dense, w, "post_ffw_norm_1", il)
    normed = g.rms(x, w, "pre_ffw_norm_2", il)
    router = ggml.mul(ggml.scale(ggml.rms_norm(x)), w.need("ffn_gate_inp.scale"))
    logits = g.linear(w, "ffn_gate_inp", router, scale=False)
    routed = g.moe(w, normed, il, act="gelu", probs_in=logits, probs_bias=False)
    return ggml.add(dense, g.rms(routed, w, "post_ffw_norm_2", il))


@first(lambda h: N_SPARSE_LAYERS)
def gemma3n(g: Graph) -> None:
    """src/models/gemma3n.cpp: several streams, one of which is updated by each block and corrects the others."""
    h, n = g.h, g.n_tokens
    n_streams, active = h.n_altup, h.i_altup_act
    _share_caches(g)
    x = g.inp_embd(scaled=True)
    pos = g.inp_pos()
    inp = g.inp_attn_kv_iswa()
    inputs = _per_layer_inputs(g, x, h.n_embd_altup)
    magnitude = _magnitude(x)
    added = ggml.mul_mat(g.need("altup_proj"), ggml.repeat_4d(x, h.n_embd, n, n_streams - 1, 1))
    x = ggml.concat(x, _with_magnitude(added, magnitude), 2)
    for il in g.layers():
        w = g.layer(il)
        predictions = _altup_predict(g, w, x, il)
        predicted = _slice(predictions, active)
        normed = g.rms(predicted, w, "attn_norm", il)
        laurel = g.linear(w, "laurel_r", g.linear(w, "laurel_l", normed))
        laurel = ggml.add(g.rms(laurel, w, "laurel_post_norm", il), normed)
        cur = _gemma3n_attention(g, inp, w, normed, pos, il)
        cur = ggml.add(g.rms(cur, w, "post_attention_norm", il), predicted)
        attn_laurel = ggml.scale(ggml.add(cur, laurel))
        cur = _gemma3n_ffn(g, w, g.rms(attn_laurel, w, "ffn_norm", il), sparse=il < N_SPARSE_LAYERS)
        cur = ggml.add(g.rms(cur, w, "post_ffw_norm", -1), attn_laurel)
        corrected = _altup_correct(g, w, predictions, cur, il)
        cur = ggml.mul(_slice(corrected, active), w.need("altup_correct_scale"))
        cur = ggml.mul(ggml.gelu(g.linear(w, "inp_gate", cur)), _slice(inputs, il))
        cur = g.rms(g.linear(w, "proj", cur), w, "post_norm", il)
        x = ggml.concat(_slice(corrected, 0), ggml.add(_others(corrected), cur), 2)
    magnitude = _magnitude(_slice(x, active))
    others = _with_magnitude(ggml.mul_mat(g.need("altup_unembd_proj"), _others(x)), magnitude)
    cur = _slice(x, 0)
    for i in range(n_streams - 1):
        cur = ggml.add(cur, _slice(others, i))
    cur = ggml.get_rows(ggml.scale(cur), g.inp_out_ids())
    g.finish(cur, soft_cap=True)


def _magnitude(x: Tensor) -> Tensor:
    return ggml.sqrt(ggml.sum_rows(ggml.sqr(x)))


def _with_magnitude(x: Tensor, magnitude: Tensor) -> Tensor:
    return ggml.div(ggml.mul(x, magnitude), _magnitude(x))


def _others(x: Tensor) -> Tensor:
    """All streams but the first."""
    size = x.ne[0] * x.ne[1] * 4
    return ggml.view(x, (x.ne[0], x.ne[1], x.ne[2] - 1), (x.ne[0] * 4, size), size)


def _gemma3n_attention(g: Graph, inp: AttentionInput, w: Layer, x: Tensor, pos: Tensor, il: int) -> Tensor:
    h, n = g.h, g.n_tokens
    head, n_head = h.n_embd_head_k(il), h.n_head[il]
    if h.has_kv(il):
        q, k, v = g.qkv(w, x, il)
        q, k = g.rms(q, w, "attn_q_norm", il), g.rms(k, w, "attn_k_norm", il)
        return g.attn(inp, w, ggml.rope(q, pos), ggml.rope(k, pos), ggml.rms_norm(v), il, bias=False)
    if w["attn_qkv"] is not None:
        y = g.linear(w, "attn_qkv", x, scale=False)
        q = ggml.cont(ggml.view(y, (head * n_head, n), (y.nb[1],)))
    else:
        q = g.linear(w, "attn_q", x, scale=False)
    q = g.rms(ggml.reshape(q, head, n_head, n), w, "attn_q_norm", il)
    return g.attn(inp, w, ggml.rope(q, pos), None, None, il, bias=False)


def _gemma3n_ffn(g: Graph, w: Layer, x: Tensor, *, sparse: bool) -> Tensor:
    """Gated; in the first blocks only the gate's outliers, by mean and deviation, are let through."""
    up = g.linear(w, "ffn_up", x, scale=False)
    gate = g.linear(w, "ffn_gate", x, scale=False)
    if sparse:
        mean = ggml.mean(gate)
        deviation = ggml.sqrt(ggml.scale(ggml.sum_rows(ggml.sqr(ggml.sub(gate, mean)))))
        gate = ggml.relu(ggml.sub(gate, ggml.add(mean, ggml.scale(deviation))))
    return g.linear(w, "ffn_down", ggml.mul(up, ggml.gelu(gate)), scale=False)


def _altup_modalities(g: Graph, w: Layer, x: Tensor, il: int) -> Tensor:
    x = ggml.scale(g.rms(x, w, "altup_router_norm", il))
    return ggml.tanh(ggml.mul_mat(w.need("altup_router"), x))


def _altup_predict(g: Graph, w: Layer, x: Tensor, il: int) -> Tensor:
    n_streams = g.h.n_altup
    modalities = _altup_modalities(g, w, _slice(x, g.h.i_altup_act), il)
    coefficients = g.linear(w, "altup_predict_coef", modalities)
    coefficients = ggml.reshape(coefficients, n_streams, n_streams, g.n_tokens)
    predictions = ggml.mul_mat(ggml.cont(ggml.permute(x, 1, 2, 0, 3)), coefficients)
    return ggml.add(ggml.cont(ggml.permute(predictions, 0, 2, 1, 3)), x)


def _altup_correct(g: Graph, w: Layer, predictions: Tensor, activated: Tensor, il: int) -> Tensor:
    h, n = g.h, g.n_tokens
    modalities = _altup_modalities(g, w, activated, il)
    innovation = ggml.sub(activated, _slice(predictions, h.i_altup_act))
    coefficients = ggml.scale(g.linear(w, "altup_correct_coef", modalities))
    coefficients = ggml.cont(ggml.transpose(coefficients), 1, n, h.n_altup)
    innovation = ggml.repeat_4d(innovation, h.n_embd, n, h.n_altup, 1)
    return ggml.add(ggml.mul(innovation, coefficients), predictions)


def gemma4_assistant(g: Graph) -> None:
    """gemma4-assistant.cpp: a model of its own that reads the target's embeddings and its last layers' caches.

    Both are taken to lie as its own would, and the caches to have the widths that its own heads need.
    """
    h, n = g.h, g.n_tokens
    g.cache_source = lambda il: h.is_swa.index(h.is_swa[il])
    tokens, hidden = g.input("i32", n), g.input("f32", h.n_embd_inp, n)
    table = ggml.new("f16", h.n_embd_inp, h.n_vocab)
    table.home, table.is_weight = HOST, True
    x = ggml.concat(ggml.scale(ggml.get_rows(table, tokens)), hidden, 0)
    x = ggml.mul_mat(g.need("nextn.pre_projection", 0), x)
    inp = g.inp_attn_kv_iswa()
    pos, out_ids = g.inp_pos(), g.inp_out_ids()
    for il in range(h.n_layer_nextn):
        w = g.layer(il)
        q = g.linear(w, "attn_q", g.rms(x, w, "attn_norm", il), scale=False)
        q = g.rms(ggml.reshape(q, h.n_embd_head_k(il), h.n_head[il], n), w, "attn_q_norm", il)
        factors = None if h.is_swa[il] else g.weight("rope_freqs", il)
        q = ggml.rope(q, pos, factors, rotation=ggml.Rotation(h.n_rot(il)))
        cur = g.linear(w, "attn_output", g.attn(inp, w, q, None, None, il, out=None), scale=False)
        if il == h.n_layer_nextn - 1:
            cur, x = g.select_outputs(out_ids, cur, x)
        attn_out = ggml.add(g.rms(cur, w, "post_attention_norm", il), x)
        cur = g.ffn(w, g.rms(attn_out, w, "ffn_norm", il), il, act="gelu")
        x = ggml.add(g.rms(cur, w, "post_ffw_norm", -1), attn_out)
        x = ggml.mul(x, w.need("layer_output_scale"))
    cur = g.final_norm(x)
    g.logits = g.expand(ggml.mul_mat(g.output_weight(), cur))
    g.h_nextn = g.expand(ggml.mul_mat(g.need("nextn.post_projection"), cur))


def _load_gemma_embedding2(d: HParamsDraft, meta: Metadata) -> None:
    swa_always(6, kind="symmetric")(d, meta)
    d.causal_attn, d.f_attention_scale = False, 1.0
    if d.n_embd_head_k_full != d.n_embd_head_v_full or d.n_embd_head_k_swa != d.n_embd_head_v_swa:
        meta.refuse("attention.value_length", "is not attention.key_length")


def _load_gemma4(d: HParamsDraft, meta: Metadata) -> None:
    d.swa_type, d.f_attention_scale = "standard", 1.0
    d.n_layer_kv_from_start = d.n_layer_all - meta.number("attention.shared_kv_layers", default=0)


def _load_gemma4_assistant(d: HParamsDraft, meta: Metadata) -> None:
    d.swa_type, d.f_attention_scale = "standard", 1.0
    d.n_embd_inp = d.n_embd_out or d.n_embd


def _borrowed_caches(hp: HParams, ctx: Context) -> tuple[Cache, ...]:
    """Every layer reads a cache of the model that it drafts for."""
    return attention(hp, ctx, lambda il: False)


ARCHITECTURES = (
    Architecture(
        name="gemma-embedding2",
        source="gemma-embedding2.cpp",
        hparams=reads("n_swa f_norm_rms_eps n_embd_per_layer", _load_gemma_embedding2),
        rope="neox",
        output="own",
        scales=("ffn",),
        graph=gemma_embedding2,
        memory=NO_CACHE,
    ),
    Architecture(
        name="gemma3n",
        source="gemma3n.cpp",
        hparams=reads("n_swa f_norm_rms_eps", swa_always(5), force(n_layer_kv_from_start=20, f_attention_scale=1.0)),
        rope="neox",
        output="tied first",
        scales=(),
        graph=gemma3n,
        tensor_split=None,
    ),
    Architecture(
        name="gemma4",
        source="gemma4.cpp",
        hparams=reads(
            """
            is_swa n_swa f_norm_rms_eps n_embd_head_k_swa n_embd_head_v_swa n_ff_exp? n_embd_per_layer
            f_final_logit_softcapping?
            """,
            _load_gemma4,
        ),
        rope="neox",
        output="tied first",
        scales=("ffn", "experts"),
        graph=gemma4,
        lazy_embeddings=True,
        rope_factors=lambda hp: [il for il in range(hp.n_layer) if not hp.is_swa[il]],
    ),
    Architecture(
        name="gemma4-assistant",
        source="gemma4-assistant.cpp",
        hparams=reads("is_swa n_swa f_norm_rms_eps n_embd_head_k_swa n_embd_head_v_swa", _load_gemma4_assistant),
        rope="neox",
        output="tied",
        scales=(),
        graph=None,
        mixes_inputs=False,
        memory=Memory(caches=_borrowed_caches),
        stands_alone="never",
        rope_factors=lambda hp: [il for il in range(hp.n_layer_nextn) if not hp.is_swa[il]],
        draft_graph=gemma4_assistant,
    ),
)
