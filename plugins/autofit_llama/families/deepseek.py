"""DeepSeek's latent attention."""

from __future__ import annotations

from autofit.errors import EngineRefusalError

from autofit_llama.engine.versions import Change
from autofit_llama.graph import ggml
from autofit_llama.graph.builder import AttentionInput, Graph, Layer
from autofit_llama.graph.draft_head import head, join, routed_and_shared
from autofit_llama.graph.ggml import Tensor
from autofit_llama.graph.sparse import attn_selected, inp_attn_k_dsa, lightning_top_k
from autofit_llama.model.aborts import aborts
from autofit_llama.model.architecture import Architecture, DraftTensors, reads
from autofit_llama.model.caches import (
    KEYS_ALONE,
    NEXTN_WITH_ALL,
    Cache,
    Memory,
    indexer,
    kv,
    sliding,
    trunk_or_draft,
)
from autofit_llama.model.context import Context
from autofit_llama.model.hparams import HParams
from autofit_llama.model.metadata_reader import HParamsDraft, Metadata
from autofit_llama.model.rules import (
    SIGMOID,
    SOFTMAX,
    force,
    gating,
)


def deepseek2(g: Graph) -> None:
    """src/models/deepseek2.cpp (V2, V3, Kimi-K2, GigaChat), mistral4: with or without the absorbed key matrix;
    deepseek2ocr: plain attention.
    """
    h = g.h
    x = g.inp_embd()
    attn_scale = g.inp_attn_scale() if h.f_attn_temp_scale != 0.0 else None
    if attn_scale is not None and not h.n_attn_temp_floor_scale:  # with the first prompt
        fields = ["n_attn_temp_floor_scale", "f_attn_temp_scale"]
        raise aborts(h, "GGML_ASSERT(n_attn_temp_floor_scale != 0)", keys=fields)
    pos = g.inp_pos()
    inp = g.inp_attn_k() if h.is_mla and g.follows(KEYS_ALONE) else g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        residual = x
        cur = g.rms(x, w, "attn_norm", il)
        if h.arch == "deepseek2-ocr":
            q, k, v = g.qkv(w, cur, il)
            whole = ggml.Rotation(h.n_embd_head_k(0))
            q, k = ggml.rope(q, pos, rotation=whole), ggml.rope(k, pos, rotation=whole)
            cur = g.attn(inp, w, q, k, v, il, bias=False)
        else:
            cur = latent_attention(g, inp, w, cur, pos, attn_scale, il)
        if g.is_last(il):
            cur, residual = g.select_outputs(out_ids, cur, residual)
        ffn_inp = ggml.add(cur, residual)
        cur = g.rms(ffn_inp, w, "ffn_norm", il)
        if il < h.n_layer_dense_lead:
            cur = g.ffn(w, cur, il)
        else:
            routed = g.moe(
                w, cur, il, norm_weights=h.expert_weights_norm, weights_scale=h.expert_weights_scale,
                gating=h.expert_gating_func, precise=h.arch == "mistral4" and g.follows(PRECISE_EXPERTS),
            )  # fmt: skip
            shared = g.ffn(w, cur, il, up="ffn_up_shexp", gate="ffn_gate_shexp", down="ffn_down_shexp")
            cur = ggml.add(routed, shared)
        x = ggml.add(cur, ffn_inp)
    cur = g.final_norm(x)
    g.h_nextn = cur
    g.output(cur)


def deepseek32(g: Graph) -> None:
    """src/models/deepseek32.cpp, glm-dsa.cpp, src/models/dots3note.cpp: latent attention to what an indexer selects.

    glm-dsa: some blocks take the selection of the block before. dots3note: sliding blocks select nothing, and
    a gate per head weighs what attention gives.
    """
    h, n = g.h, g.n_tokens
    if h.arch == "glm-dsa" and not g.follows(GLM_INDEXED):
        deepseek2(g)
        return
    sliding = h.swa_type != "none"
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = inp_attn_k_dsa(g, rotated=True, swa=sliding)
    out_ids = g.inp_out_ids()
    top_k: Tensor | None = None
    for il in g.layers():
        w = g.layer(il)
        residual = x
        cur = g.rms(x, w, "attn_norm", il)
        q_latent = g.rms(ggml.mul_mat(w.need("attn_q_a"), cur), w, "attn_q_a_norm", il)
        is_swa = sliding and h.is_swa[il]
        if not is_swa and (h.arch != "glm-dsa" or h.is_indexer_full[il]):
            top_k = lightning_top_k(g, inp, w, cur, q_latent, pos, il)
        q, k, latent = absorbed_qkv(g, w, ggml.mul_mat(w.need("attn_q_b"), q_latent), cur, pos, il)
        v_b = w.need("attn_v_b")
        if is_swa and inp.swa is not None:
            attn = g.attn(inp.swa, w, q, k, latent, il, out=None, v_mla=v_b)
        else:
            assert top_k is not None
            attn = attn_selected(g, inp, q, k, latent, top_k, il, v_mla=v_b)
        if w["attn_gate"] is not None:
            gate = ggml.sigmoid(g.linear(w, "attn_gate", cur, scale=False))
            heads = ggml.reshape(attn, v_b.ne[1], v_b.ne[2], n)
            attn = ggml.reshape(ggml.mul(heads, ggml.reshape(gate, 1, v_b.ne[2], n)), v_b.ne[1] * v_b.ne[2], n)
        cur = g.linear(w, "attn_output", attn)
        if g.is_last(il):
            cur, residual = g.select_outputs(out_ids, cur, residual)
        ffn_inp = ggml.add(cur, residual)
        cur = g.rms(ffn_inp, w, "ffn_norm", il)
        x = ggml.add(dense_or_shared_moe(g, w, cur, il), ffn_inp)
    cur = g.final_norm(x)
    if h.arch != "dots3note":
        g.h_nextn = cur
    g.output(cur)


def dense_or_shared_moe(g: Graph, w: Layer, x: Tensor, il: int) -> Tensor:
    """Dense in the leading blocks, then routed experts and a shared one."""
    h = g.h
    norm_weights = h.expert_weights_norm or h.arch == "kimi-linear"
    if il < h.n_layer_dense_lead:
        return g.ffn(w, x, il, bias=False)
    routed = g.moe(
        w, x, il, biased=False, gating=h.expert_gating_func,
        norm_weights=norm_weights, weights_scale=h.expert_weights_scale,
    )  # fmt: skip
    shared = g.ffn(w, x, il, bias=False, up="ffn_up_shexp", gate="ffn_gate_shexp", down="ffn_down_shexp")
    return ggml.add(routed, shared)


def absorbed_qkv(
    g: Graph, w: Layer, q: Tensor, x: Tensor, pos: Tensor | None, il: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and latent values with the key matrix absorbed into the queries; rotated if `pos`.

    q is [heads * (nope + rope), tokens], x the block's input.
    """
    n = g.n_tokens
    k_b, kv_a = w.need("attn_k_b"), w.need("attn_kv_a_mqa")
    nope, rank, n_head = k_b.ne[:3]
    rope = kv_a.ne[1] - rank
    row = ggml.row_size(q.type, nope + rope)
    q_nope = ggml.view(q, (nope, n_head, n), (row, row * n_head))
    q_pe = ggml.view(q, (rope, n_head, n), (row, row * n_head), ggml.row_size(q.type, nope))
    kv_pe = ggml.mul_mat(kv_a, x)
    row = ggml.row_size(kv_pe.type, rank + rope)
    latent = ggml.view(kv_pe, (rank, n), (row,))
    k_pe = ggml.view(kv_pe, (rope, 1, n), (row, row), ggml.row_size(kv_pe.type, rank))
    if w["attn_k_norm"] is not None:
        k_pe = g.rms(k_pe, w, "attn_k_norm", il)
    if pos is not None:
        q_pe, k_pe = ggml.rope(q_pe, pos), ggml.rope(k_pe, pos)
    latent = g.rms(latent, w, "attn_kv_a_norm", il)
    absorbed = ggml.mul_mat(k_b, ggml.permute(q_nope, 0, 2, 1, 3))
    q = ggml.concat(ggml.permute(absorbed, 0, 2, 1, 3), q_pe, 0)
    latent = ggml.reshape(latent, rank, 1, n)
    return q, ggml.concat(latent, k_pe, 0), latent


def minicpm3(g: Graph) -> None:
    """src/models/minicpm3.cpp: compressed keys that are cached decompressed; scaled residuals."""
    x = ggml.scale(g.inp_embd())
    pos = g.inp_pos()
    inp = g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        cur = g.rms(x, w, "attn_norm", il)
        cur = latent_attention(g, inp, w, cur, pos, None, il, g.rope_factors(il))
        if g.is_last(il):
            cur, x = g.select_outputs(out_ids, cur, x)
        ffn_inp = ggml.add(ggml.scale(cur), x)
        cur = g.ffn(w, g.rms(ffn_inp, w, "ffn_norm", il), il)
        x = ggml.add(ggml.scale(cur), ffn_inp)
    cur = g.final_norm(x)
    g.embd = cur
    g.logits = g.expand(g.lm_head(ggml.scale(cur)))


def plm(g: Graph) -> None:
    """src/models/plm.cpp: compressed keys that are cached decompressed, no gate.

    Its values are flat, which only the transposed cache takes.
    """
    if g.flash_attn:
        raise EngineRefusalError("llama.cpp aborts: plm does not run with flash attention", hint="use -fa off")
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        cur = latent_attention(g, inp, w, g.rms(x, w, "attn_norm", il), pos, None, il)
        if g.is_last(il):
            cur, x = g.select_outputs(out_ids, cur, x)
        ffn_inp = ggml.add(cur, x)
        cur = g.rms(ffn_inp, w, "ffn_norm", il)
        x = ggml.add(g.ffn(w, cur, il, act="relu_sqr", gate=None), ffn_inp)
    g.finish(x)


PRECISE_EXPERTS = Change(
    without=11104,
    has=11117,
    source="src/llama-graph.cpp:build_moe_ffn, without and with ggml_prec_set_src for LLM_ARCH_MISTRAL4",
    name="experts of Mistral 4 that CUDA does not multiply",
)
GLM_INDEXED = Change(
    without=10103,
    has=10142,
    source="src/models/glm-dsa.cpp, the graph of DeepSeek 2 and its own; src/llama-model.cpp:create_memory",
    name="GLM DSA with an indexer",
)
_GLM_APART = Change(
    without=10173,
    has=10178,
    source="src/llama-model.cpp:create_memory, without and with filters for LLM_ARCH_GLM_DSA",
    name="no caches for blocks of GLM DSA that predict further",
    larger=False,
)
_DSA_APART = Change(
    without=10235,
    has=10240,
    source="src/llama-model.cpp:create_memory, without and with filters for LLM_ARCH_DEEPSEEK32",
    name="no caches for blocks of DeepSeek 3.2 that predict further",
    larger=False,
)
WHOLE_ROPE = Change(
    without=10549,
    has=10568,
    source="src/models/deepseek2.cpp, minicpm3.cpp, plm.cpp: rotated parts joined, and ggml_rope_set_offset",
    name="queries rotated without taking them apart",
    larger=False,
)


def latent_attention(
    g: Graph,
    inp: AttentionInput,
    w: Layer,
    x: Tensor,
    pos: Tensor,
    attn_scale: Tensor | None,
    il: int,
    factors: Tensor | None = None,
) -> Tensor:
    """Multi-head latent attention: keys compressed to one latent row and a rotated part per token."""
    h, n = g.h, g.n_tokens
    head_k, head_v, n_head = h.n_embd_head_k_mla, h.n_embd_head_v_mla, h.n_head[il]
    rope, rank = h.n_rot(0), h.n_lora_kv
    nope = head_k - rope
    if w["attn_q"] is None:
        q = ggml.mul_mat(w.need("attn_q_a"), x)
        q = g.rms(q, w, "attn_q_a_norm", il)
        q = ggml.mul_mat(w.need("attn_q_b"), q)
    else:
        q = ggml.mul_mat(w.need("attn_q"), x)
    q = ggml.reshape(q, head_k, n_head, n)
    kv_pe = ggml.mul_mat(w.need("attn_kv_a_mqa"), x)
    row = ggml.row_size(kv_pe.type, rank + rope)
    latent = ggml.view(kv_pe, (rank, n), (row,))
    k_pe = ggml.view(kv_pe, (rope, 1, n), (row, row), ggml.row_size(kv_pe.type, rank))
    k_pe = ggml.rope(k_pe, pos, factors)
    latent = g.rms(latent, w, "attn_kv_a_norm", il)
    if h.is_mla:
        q_nope = ggml.view(q, (nope, n_head, n), q.nb[1:3])
        q_pe = ggml.rope(ggml.view(q, (rope, n_head, n), q.nb[1:3], ggml.row_size(q.type, nope)), pos)
        absorbed = ggml.mul_mat(w.need("attn_k_b"), ggml.permute(q_nope, 0, 2, 1, 3))
        q = ggml.concat(ggml.permute(absorbed, 0, 2, 1, 3), q_pe, 0)
        latent = ggml.reshape(latent, rank, 1, n)
        k = ggml.concat(latent, k_pe, 0)
        if attn_scale is not None:
            q = ggml.mul(q, attn_scale)
        return g.attn(inp, w, q, k, latent, il, bias=False, v_mla=w.need("attn_v_b"))
    kv = ggml.mul_mat(w.need("attn_kv_b"), latent)
    head_row = ggml.row_size(kv.type, nope + head_v)
    k_nope = ggml.view(kv, (nope, n_head, n), (head_row, head_row * n_head))
    v = ggml.view(kv, (head_v, n_head, n), (head_row, head_row * n_head), ggml.row_size(kv.type, nope))
    v = ggml.cont(v)
    if h.arch == "plm":
        v = ggml.view(v, (head_v * n_head, n), (ggml.row_size(v.type, head_v * n_head),))
    if g.follows(WHOLE_ROPE):
        q = ggml.rope(q, pos, factors, rotation=ggml.Rotation(n_offs=nope))
    else:
        q_pe = ggml.view(q, (rope, n_head, n), q.nb[1:3], ggml.row_size(q.type, nope))
        q = ggml.concat(ggml.view(q, (nope, n_head, n), q.nb[1:3]), ggml.rope(q_pe, pos, factors), 0)
    k = ggml.concat(k_nope, ggml.repeat_4d(k_pe, rope, n_head, n, 1), 0)
    if attn_scale is not None:
        q = ggml.mul(q, attn_scale)
    return g.attn(inp, w, q, k, v, il, bias=False)


def deepseek2_draft(g: Graph) -> None:
    """deepseek2.cpp, deepseek32.cpp, glm-dsa.cpp: latent attention without an indexer."""
    il = g.h.n_layer
    w = g.layer(il)
    residual = join(g, w)
    cur = g.rms(residual, w, "attn_norm", il)
    cur = latent_attention(g, g.inp_attn_k(), w, cur, g.inp_pos(), None, il)
    ffn_inp = ggml.add(cur, residual)
    cur = routed_and_shared(g, w, g.rms(ffn_inp, w, "ffn_norm", il), il)
    head(g, w, ggml.add(cur, ffn_inp), g.inp_out_ids())


def _load_deepseek2(d: HParamsDraft, meta: Metadata) -> None:
    lite = d.n_layer in (26, 27) or (d.n_layer == 48 and d.n_vocab == 128256)
    d.n_lora_q = 0 if lite else meta.number("attention.q_lora_rank")
    glm_lite = d.n_layer in (47, 48) and d.n_vocab == 154880
    d.expert_gating_func = d.expert_gating_func or (SIGMOID if glm_lite else SOFTMAX)


def _load_glm_dsa(d: HParamsDraft, meta: Metadata) -> None:
    gating(SIGMOID)(d, meta)
    if "is_indexer_full" not in d.given:
        # files of GLM 5 and 5.1 (all layers full) carry no types; 5.2 shares between three of four layers
        shared = d.n_ctx_train >= 1048576
        n_named = 2 + 4 * 19
        d.is_indexer_full = [not shared or (il < n_named and (il < 2 or il % 4 == 2)) for il in range(d.n_layer_all)]


def _dsa_caches(hp: HParams, ctx: Context) -> tuple[Cache, ...]:
    """deepseek32, glm-dsa: the MLA cache and the indexer's keys (src/llama-kv-cache-dsa.cpp)."""
    if ctx.mtp and hp.n_layer_nextn:
        return (kv(hp, ctx, "base", lambda il: il >= hp.n_layer, ctx.n_ctx_seq, ctx.n_streams),)
    full = hp.arch != "glm-dsa"
    if not full and not ctx.version.follows(GLM_INDEXED):
        n_cached = hp.n_layer_all if ctx.version.follows(NEXTN_WITH_ALL) else hp.n_layer
        return (kv(hp, ctx, "base", lambda il: il < n_cached, ctx.n_ctx_seq, ctx.n_streams),)
    apart = ctx.version.follows(_DSA_APART if full else _GLM_APART)
    n_layer = hp.n_layer if apart else hp.n_layer_all
    index = indexer(hp, ctx, lambda il: il < n_layer and (full or hp.is_indexer_full[il]))
    return kv(hp, ctx, "base", lambda il: il < n_layer, ctx.n_ctx_seq, ctx.n_streams), index


def _dots3note_caches(hp: HParams, ctx: Context) -> tuple[Cache, ...]:
    if ctx.mtp and hp.n_layer_nextn:
        return (kv(hp, ctx, "base", lambda il: il >= hp.n_layer, ctx.n_ctx_seq, ctx.n_streams),)
    full, window = sliding(hp, ctx, trunk_or_draft(hp, ctx), ctx.n_streams, unified=ctx.kv_unified)
    return full, indexer(hp, ctx, lambda il: il < hp.n_layer and hp.is_indexer_full[il]), window


ARCHITECTURES = (
    Architecture(
        name="deepseek2",
        source="deepseek2.cpp",
        hparams=reads(
            """
            f_norm_rms_eps n_layer_dense_lead? n_lora_kv n_embd_head_k_mla_impl? n_embd_head_v_mla_impl?
            n_ff_exp n_expert_shared expert_weights_scale? expert_weights_norm? expert_gating_func?
            f_attn_temp_scale? n_attn_temp_floor_scale?
            """,
            _load_deepseek2,
        ),
        rope="norm",
        output="tied",
        scales=(),
        graph=deepseek2,
        tensor_split=None,
        draft_graph=deepseek2_draft,
    ),
    Architecture(
        name="deepseek2-ocr",
        source="deepseek2ocr.cpp",
        hparams=reads(
            """
            f_norm_rms_eps n_layer_dense_lead? n_ff_exp n_expert_shared expert_weights_scale?
            expert_weights_norm? expert_gating_func?
            """,
            gating(SOFTMAX),
        ),
        rope="norm",
        output="tied",
        scales=(),
        graph=deepseek2,
    ),
    Architecture(
        name="deepseek32",
        source="deepseek32.cpp",
        hparams=reads(
            """
            f_norm_rms_eps rope_sections? n_ff_exp n_expert_shared expert_weights_scale? expert_weights_norm?
            n_layer_dense_lead? n_lora_q n_lora_kv n_embd_head_k_mla_impl? n_embd_head_v_mla_impl?
            indexer_n_head indexer_head_size indexer_top_k expert_gating_func
            """,
            force(f_norm_eps=1e-06),
        ),
        rope="norm",
        output="tied",
        scales=("ffn", "experts", "shared"),
        graph=deepseek32,
        memory=Memory(caches=_dsa_caches),
        draft_tensors=DraftTensors(kept=frozenset(("exp_probs_b",))),
        tensor_split=None,
        draft_graph=deepseek2_draft,
    ),
    Architecture(
        name="dots3note",
        source="dots3note.cpp",
        hparams=reads(
            """
            f_norm_rms_eps n_ff_exp n_expert_shared expert_weights_scale? expert_weights_norm?
            n_layer_dense_lead expert_gating_func n_lora_q n_lora_kv n_embd_head_k_mla_impl
            n_embd_head_v_mla_impl n_lora_kv_swa n_embd_head_k_mla_swa n_embd_head_v_mla_swa n_swa is_swa
            indexer_n_head indexer_head_size indexer_top_k is_indexer_full[]
            """,
            force(f_norm_eps=1e-06, swa_type="standard"),
        ),
        rope="norm",
        output="tied",
        scales=("ffn", "experts", "shared"),
        graph=deepseek32,
        memory=Memory(caches=_dots3note_caches),
        draft_tensors=DraftTensors(loadable=False),
        tensor_split=None,
    ),
    Architecture(
        name="glm-dsa",
        source="glm-dsa.cpp",
        hparams=reads(
            """
            f_norm_rms_eps rope_sections? n_ff_exp n_expert_shared expert_weights_scale? expert_weights_norm?
            n_layer_dense_lead? n_lora_q n_lora_kv n_embd_head_k_mla_impl? n_embd_head_v_mla_impl?
            indexer_n_head indexer_head_size indexer_top_k expert_gating_func? is_indexer_full?
            """,
            _load_glm_dsa,
        ),
        rope="norm",
        output="tied",
        scales=("ffn", "experts", "shared"),
        graph=deepseek32,
        memory=Memory(caches=_dsa_caches),
        draft_tensors=DraftTensors(kept=frozenset(("exp_probs_b",))),
        tensor_split=None,
        draft_graph=deepseek2_draft,
    ),
    Architecture(
        name="minicpm3",
        source="minicpm3.cpp",
        hparams=reads("f_norm_rms_eps n_lora_q n_lora_kv"),
        rope="neox",
        output="tied",
        scales=(),
        graph=minicpm3,
        tensor_split=None,
    ),
    Architecture(
        name="mistral4",
        source="mistral4.cpp",
        hparams=reads(
            """
            f_norm_rms_eps n_layer_dense_lead? n_lora_kv n_embd_head_k_mla_impl? n_embd_head_v_mla_impl?
            n_ff_exp n_expert_shared expert_weights_scale? expert_weights_norm? expert_gating_func?
            f_attn_temp_scale? n_attn_temp_floor_scale?
            """,
            _load_deepseek2,
        ),
        rope="norm",
        output="tied",
        scales=(),
        graph=deepseek2,
        tensor_split=None,
    ),
    Architecture(
        name="plm",
        source="plm.cpp",
        hparams=reads("f_norm_rms_eps n_lora_kv"),
        rope="norm",
        output="tied",
        scales=(),
        graph=plm,
    ),
)
