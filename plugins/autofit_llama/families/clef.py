"""Clef: the blocks of Qwen3.5 without a memory, and a head that scores the options of questions in a text."""

from __future__ import annotations

from autofit_llama.families.qwen import gated_shared_moe, l2_norm
from autofit_llama.graph import ggml
from autofit_llama.graph.builder import AttentionInput, CacheInput, Graph, Layer
from autofit_llama.graph.ggml import Tensor
from autofit_llama.model.architecture import Architecture, DraftTensors, TensorSplit, reads
from autofit_llama.model.caches import NO_CACHE
from autofit_llama.model.metadata_reader import HParamsDraft, Metadata
from autofit_llama.model.rules import recurrent_interval


def clef(g: Graph) -> None:
    """src/models/clef.cpp; a reserve has one question with one option."""
    h, n = g.h, g.n_tokens
    x = g.inp_embd()
    pos = g.inp_pos()
    inp = AttentionInput("no_cache", CacheInput(g.input("f16" if g.flash_attn else "f32", n, n)))
    for il in g.layers():
        w = g.layer(il)
        cur = g.rms(x, w, "attn_norm", il)
        cur = _linear(g, w, cur, il) if h.is_recr[il] else _attention(g, inp, w, cur, pos, il)
        residual = ggml.add(cur, x)
        cur = g.rms(residual, w, "post_attention_norm", il)
        x = ggml.add(gated_shared_moe(g, w, cur, il), residual)
    scores = _head(g, g.final_norm(x))
    g.embd = g.expand(ggml.add(ggml.pad(scores, 0, n - scores.ne[1]), g.input("f32", 1)))


def _attention(g: Graph, inp: AttentionInput, w: Layer, x: Tensor, pos: Tensor, il: int) -> Tensor:
    """build_layer_attn: the queries' matrix makes a gate too."""
    h, n = g.h, g.n_tokens
    head, n_head, n_kv = h.n_embd_head_v(il), h.n_head[il], h.n_head_kv[il]
    both, k, v = g.qkv(w, x, il, head=2 * head, head_k=head, head_v=head, reshape=False)
    strides = (8 * head, 8 * head * n_head)
    q = g.rms(ggml.view(both, (head, n_head, n), strides), w, "attn_q_norm", il)
    k = g.rms(ggml.reshape(k, head, n_kv, n), w, "attn_k_norm", il)
    gate = ggml.cont(ggml.view(both, (head, n_head, n), strides, 4 * head), head * n_head, n)
    v = ggml.reshape(v, head, n_kv, n)
    cur = g.attn(inp, w, ggml.rope(q, pos), ggml.rope(k, pos), v, il, out=None)
    return g.linear(w, "attn_output", ggml.mul(cur, ggml.sigmoid(gate)))


def _linear(g: Graph, w: Layer, x: Tensor, il: int) -> Tensor:
    """build_layer_attn_linear: states begin at zero, and none is kept."""
    h, n = g.h, g.n_tokens
    head_k, n_k, n_v = h.ssm_d_state, h.ssm_n_group, h.ssm_dt_rank
    head_v = h.ssm_d_inner // n_v
    mixed = g.linear(w, "attn_qkv", x)
    mixed = ggml.reshape(mixed, mixed.ne[0], n, 1)
    z = g.linear(w, "attn_gate", x)
    beta = ggml.sigmoid(ggml.reshape(g.linear(w, "ssm_beta", x), 1, n_v, n, 1))
    alpha = ggml.reshape(g.linear(w, "ssm_alpha", x), n_v, n, 1)
    gate = ggml.mul(ggml.softplus(ggml.add(alpha, w.need("ssm_dt.bias"))), w.need("ssm_a"))
    gate = ggml.reshape(gate, 1, n_v, n, 1)
    kernel = w.need("ssm_conv1d")
    states = ggml.fill(ggml.new("f32", kernel.ne[0] - 1, h.ssm_d_inner + 2 * n_k * head_k, 1))
    y = ggml.silu(ggml.ssm_conv(ggml.concat(states, ggml.transpose(mixed), 0), kernel))
    row = 4 * (2 * head_k * n_k + head_v * n_v)

    def part(head: int, n_head: int, offset: int) -> Tensor:
        return ggml.view(y, (head, n_head, n, 1), (4 * head, row, row * n), 4 * offset)

    q, k = l2_norm(g, part(head_k, n_k, 0)), l2_norm(g, part(head_k, n_k, head_k * n_k))
    v = part(head_v, n_v, 2 * head_k * n_k)
    state = ggml.fill(ggml.new("f32", head_v, head_v, n_v, 1))
    y = ggml.gated_delta_net(q, k, v, gate, beta, state)
    out = ggml.view(y, (head_v, n_v, n, 1), (4 * head_v, 4 * head_v * n_v, 4 * head_v * n_v * n))
    out = ggml.mul(g.rms(out, w, "ssm_norm", il), ggml.silu(ggml.reshape(z, head_v, n_v, n, 1)))
    out = g.linear(w, "ssm_out", ggml.reshape(out, head_v * n_v, n, 1))
    return ggml.reshape(out, h.n_embd, n)


def _head(g: Graph, x: Tensor) -> Tensor:
    """build_head: scores of options, by what is written of them and what was read between."""
    h, n = g.h, g.n_tokens
    need = g.need
    tokens, pool_q, pool_o = g.input("i32", n), g.input("f32", n, 1), g.input("f32", n, 1)
    types, owners, mask = g.input("i32", 1), g.input("i32", 1), g.input("f32", 1, 1)
    hidden = _norm(g, x, "decision.hidden_norm")
    memory = ggml.mul_mat(need("decision.proj_memory"), hidden)
    last = ggml.view(hidden, (h.n_embd, 1), (hidden.nb[1],), (n - 1) * hidden.nb[1])
    by_token = ggml.cont(ggml.transpose(hidden))
    question, context = ggml.mul_mat(by_token, pool_q), ggml.mul_mat(by_token, pool_o)
    lexical = ggml.get_rows(g.output_weight(), tokens)
    lexical = ggml.mul_mat(ggml.cont(ggml.transpose(lexical)), pool_o)

    options = ggml.mul_mat(need("decision.proj_option_context"), context)
    options = ggml.add(options, ggml.mul_mat(need("decision.proj_option_lexical"), lexical))
    asked = ggml.mul_mat(need("decision.proj_option_question"), question)
    options = ggml.add(options, ggml.get_rows(asked, owners))
    for il in range(h.n_layer_routing):
        blk = f"dec.blk.{il}."
        queries, keys = _norm(g, options, blk + "cross_attn_norm"), _norm(g, memory, blk + "cross_attn_norm_kv")
        options = ggml.add(options, _attend(g, queries, keys, blk + "cross_attn"))
        options = ggml.add(options, _ffn(g, options, blk))

    fields = ggml.mul_mat(need("decision.proj_question"), question)
    weights = ggml.scale(ggml.mul_mat(options, fields))
    weights = ggml.soft_max(ggml.add(weights, mask))
    summary = ggml.mul_mat(ggml.cont(ggml.transpose(options)), weights)
    fields = ggml.add(fields, _norm(g, summary, "decision.option_summary_norm"))
    fields = ggml.add(fields, ggml.mul_mat(need("decision.proj_global"), last))
    fields = ggml.add(fields, ggml.get_rows(need("token_types"), types))
    for il in range(h.n_layer_routing, h.n_layer_routing + h.n_layer_joint):
        blk = f"dec.blk.{il}."
        cur = _norm(g, fields, blk + "attn_norm")
        fields = ggml.add(fields, _attend(g, cur, cur, blk + "attn"))
        cur = _norm(g, fields, blk + "cross_attn_norm")
        fields = ggml.add(fields, _attend(g, cur, memory, blk + "cross_attn"))
        fields = ggml.add(fields, _ffn(g, fields, blk))
    fields = _norm(g, fields, "decision.field_norm")

    anchor = ggml.get_rows(ggml.l2_norm(ggml.add(question, last)), owners)
    prior = ggml.sum_rows(ggml.mul(ggml.l2_norm(lexical), anchor))
    options = _norm(g, options, "decision.option_norm")
    field = ggml.get_rows(fields, owners)
    cosine = ggml.sum_rows(ggml.mul(ggml.l2_norm(field), ggml.l2_norm(options)))
    features = ggml.concat(field, options, 0)
    features = ggml.concat(features, ggml.mul(field, options), 0)
    features = ggml.concat(features, ggml.unary(ggml.sub(field, options), "abs"), 0)
    residual = ggml.unary(_matrix(g, features, "decision.scorer"), "gelu_erf")
    residual = _matrix(g, residual, "decision.scorer_out")
    scales = [ggml.view(need("decision.scales"), (1,), (), 4 * i) for i in range(3)]
    joint = ggml.add(ggml.mul(cosine, scales[1]), residual)
    return ggml.add(ggml.mul(prior, scales[0]), ggml.mul(joint, scales[2]))


def _norm(g: Graph, x: Tensor, name: str) -> Tensor:
    return g.norm(x, g.weight(name), -1, bias=g.weight(name + ".bias"), kind="layer")


def _matrix(g: Graph, x: Tensor, name: str) -> Tensor:
    return ggml.add(ggml.mul_mat(g.need(name), x), g.need(name + ".bias"))


def _attend(g: Graph, q: Tensor, kv: Tensor, name: str) -> Tensor:
    """build_head_attn: every query to all keys, without a mask."""
    width, n_head = q.ne[0], g.h.n_head_decision
    head = width // n_head
    queries = _matrix(g, q, name + "_q")
    keys = _matrix(g, kv, name + "_k")
    values = _matrix(g, kv, name + "_v")
    queries = ggml.permute(ggml.reshape(queries, head, n_head, q.ne[1]), 0, 2, 1, 3)
    keys = ggml.permute(ggml.reshape(keys, head, n_head, kv.ne[1]), 0, 2, 1, 3)
    values = ggml.cont(ggml.permute(ggml.reshape(values, head, n_head, kv.ne[1]), 1, 2, 0, 3))
    weights = ggml.soft_max(ggml.mul_mat(keys, queries), plain=False)
    cur = ggml.permute(ggml.mul_mat(values, weights), 0, 2, 1, 3)
    return _matrix(g, ggml.cont(cur, width, q.ne[1]), name + "_o")


def _ffn(g: Graph, x: Tensor, blk: str) -> Tensor:
    cur = _matrix(g, _norm(g, x, blk + "ffn_norm"), blk + "ffn_up")
    return _matrix(g, ggml.unary(cur, "gelu_erf"), blk + "ffn_down")


def _load(d: HParamsDraft, meta: Metadata) -> None:
    recurrent_interval(4)(d, meta)
    if d.n_head_decision == 0:
        meta.refuse("decision.head_count", "is 0")
    d.n_embd_out = 1


ARCHITECTURES = (
    Architecture(
        name="clef",
        source="clef.cpp",
        hparams=reads(
            """
            f_norm_rms_eps rope_sections ssm_d_conv ssm_d_inner ssm_d_state ssm_dt_rank ssm_n_group
            n_layer_routing n_layer_joint n_head_decision f_norm_eps
            """,
            _load,
        ),
        rope="imrope",
        output="tied",
        scales=("ffn",),
        graph=clef,
        memory=NO_CACHE,
        draft_tensors=DraftTensors(once_always=True),
        tensor_split=TensorSplit(gated_queries=True),
    ),
)
