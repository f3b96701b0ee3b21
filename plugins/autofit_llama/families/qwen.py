"""The Qwen family."""

from __future__ import annotations

from collections.abc import Callable

from autofit_llama.engine.versions import Change
from autofit_llama.graph import ggml
from autofit_llama.graph.builder import DELTA_OPS, READY_INPUTS, Graph, Layer, RecurrentInput
from autofit_llama.graph.draft_head import head, join
from autofit_llama.graph.ggml import Tensor
from autofit_llama.graph.recurrent import FUSED_DELTA, conv_state, delta_net
from autofit_llama.model.architecture import Architecture, DraftTensors, TensorSplit, has_80_layers, reads
from autofit_llama.model.caches import (
    attending_in_trunk,
    hybrid,
)
from autofit_llama.model.rules import (
    recurrent_interval,
)

Convolve = Callable[[Graph, RecurrentInput, Tensor, Tensor, int, int], Tensor]


def qwen2(g: Graph) -> None:
    """src/models/qwen2.cpp."""
    _attention_and_ffn(g, qk_norm=False)


def qwen3(g: Graph) -> None:
    """src/models/qwen3.cpp, qwen3moe.cpp: queries and keys are normalized per head."""
    _attention_and_ffn(g, qk_norm=True)


def qwen3vl(g: Graph) -> None:
    """src/models/qwen3vl.cpp, qwen3vlmoe.cpp, qwen3tts: features of an image join the first blocks.

    A vocabulary may be wider going in than coming out; what is missing becomes minus infinity.
    """
    cur = g.final_norm(_blocks(g, qk_norm=True))
    g.embd = cur
    y = g.lm_head(cur)
    n_missing = g.need("token_embd").ne[1] - y.ne[0]
    if n_missing > 0:
        fill = ggml.scale(ggml.view(g.need("output_norm"), (1,)))
        y = ggml.concat(ggml.repeat_4d(fill, n_missing, y.ne[1], 1, 1), y, 0)
    g.logits = g.expand(y)


def _attention_and_ffn(g: Graph, *, qk_norm: bool) -> None:
    g.finish(_blocks(g, qk_norm=qk_norm))


def _blocks(g: Graph, *, qk_norm: bool) -> Tensor:
    h = g.h
    embeddings = x = g.inp_embd()
    pos = g.inp_pos()
    inp = g.inp_attn_kv()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        residual = x
        cur = g.rms(x, w, "attn_norm", il)
        q, k, v = g.qkv(w, cur, il)
        if qk_norm:
            q = g.rms(q, w, "attn_q_norm", il)
            k = g.rms(k, w, "attn_k_norm", il)
        cur = g.attn(inp, w, ggml.rope(q, pos), ggml.rope(k, pos), v, il)
        if g.is_last(il):
            cur, residual = g.select_outputs(out_ids, cur, residual)
        ffn_inp = ggml.add(cur, residual)
        cur = g.rms(ffn_inp, w, "ffn_norm", il)
        if w["ffn_gate_inp"] is None:
            cur = g.ffn(w, cur, il)
        else:
            cur = g.moe(w, cur, il, weights_scale=h.expert_weights_scale)
        x = ggml.add(cur, ffn_inp)
        if il < h.n_deepstack_layers and g.follows(READY_INPUTS):
            offset = (il + 1) * h.n_embd * 4
            x = ggml.add(x, ggml.view(embeddings, (h.n_embd, g.n_tokens), (embeddings.nb[1],), offset))
    return x


def qwen3next(g: Graph) -> None:
    """src/models/qwen3next.cpp: three gated delta nets, then one gated attention."""
    _hybrid(g, _qwen3next_linear, EVERY_ROW, gate_in_shape=not g.follows(GATE_AS_IT_IS))


def qwen35(g: Graph) -> None:
    """src/models/qwen35.cpp, qwen35moe.cpp: the same with separate alpha and beta, dense or with experts."""
    _hybrid(g, qwen35_linear, EVERY_ROW_35)


EVERY_ROW = Change(
    without=10235,
    has=10240,
    source="src/models/qwen3next.cpp, rows without logits left out in the last block, and after the last norm",
    name="hidden states of all tokens of Qwen3-Next",
)
EVERY_ROW_35 = Change(
    without=9493,
    has=9496,
    source="src/models/qwen35.cpp, rows without logits left out in the last block, and after the last norm",
    name="hidden states of all tokens of Qwen3.5",
)


NORM_FIRST = Change(
    without=8121,
    has=8179,
    source="src/models/qwen3next.cpp, attn_norm before the projections that need it, and before all",
    name="norms of Qwen3-Next before all that reads them",
    larger=False,
)


HEADS_APART = Change(
    without=7698,
    has=8121,
    source="src/models/qwen3next.cpp, ssm_in as it was required by src/llama-model.cpp, and optional beside attn_qkv",
    name="files of Qwen3-Next with queries, keys and values apart from the gate",
)
GATE_AS_IT_IS = Change(
    without=10235,
    has=10240,
    source="src/models/qwen3next.cpp, the sigmoid of the gate put in shape again, and multiplied as it is",
    name="gates of Qwen3-Next",
    larger=False,
)


def _hybrid(
    g: Graph,
    linear: Callable[[Graph, RecurrentInput, Layer, Tensor, int], Tensor],
    every_row: Change,
    *,
    gate_in_shape: bool = False,
) -> None:
    h = g.h
    x = g.inp_embd()
    rs = g.inp_rs()
    inp = g.inp_attn_kv()
    pos = g.inp_pos()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        residual = x
        cur = g.rms(x, w, "attn_norm", il)
        if g.follows(NORM_FIRST):
            g.expand(cur)
        if h.is_recr[il]:
            cur = linear(g, rs, w, cur, il)
        else:
            q, k, v, gate = gated_qkv(g, w, cur, il)
            cur = g.attn(inp, w, ggml.rope(q, pos), ggml.rope(k, pos), v, il, out=None)
            cur = gated_output(g, w, cur, gate, in_shape=gate_in_shape)
        if g.narrows(il, every_row):
            cur, residual = g.select_outputs(out_ids, cur, residual)
        residual = ggml.add(cur, residual)
        cur = g.rms(residual, w, "post_attention_norm", il)
        cur = gated_shared_moe(g, w, cur, il)
        x = ggml.add(cur, residual)
    cur = g.final_norm(x)
    if g.follows(every_row):
        g.h_nextn = cur
        cur = ggml.get_rows(cur, out_ids) if g.keeps_rows(every_row) else cur
    g.output(cur)


def gated_qkv(g: Graph, w: Layer, x: Tensor, il: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values and the output gate, which shares the queries' matrix; q and k normalized."""
    h, n = g.h, g.n_tokens
    head, n_head, n_kv = h.n_embd_head_v(il), h.n_head[il], h.n_head_kv[il]
    q, k, v = g.qkv(w, x, il, head=2 * head, head_k=head, head_v=head, reshape=False)
    q = ggml.reshape(q, 2 * head, n_head, n, 1)
    gate = ggml.view(q, (head, n_head, n, 1), q.nb[1:], head * q.nb[0])
    q = ggml.view(q, (head, n_head, n, 1), q.nb[1:])
    k, v = ggml.reshape(k, head, n_kv, n), ggml.reshape(v, head, n_kv, n)
    return g.rms(q, w, "attn_q_norm", il), g.rms(k, w, "attn_k_norm", il), v, gate


def gated_output(g: Graph, w: Layer, cur: Tensor, gate: Tensor, *, in_shape: bool = False) -> Tensor:
    """`in_shape`: a view of the gate is multiplied."""
    gate = ggml.sigmoid(ggml.cont(gate, gate.ne[0] * gate.ne[1], g.n_tokens))
    if in_shape:
        gate = ggml.reshape(gate, gate.ne[0], gate.ne[1])
    return g.linear(w, "attn_output", ggml.mul(cur, gate))


def gated_shared_moe(g: Graph, w: Layer, x: Tensor, il: int) -> Tensor:
    """Routed experts and, if there is one, a shared expert behind a sigmoid gate; or a dense feed-forward."""
    if w["ffn_gate_inp"] is None:
        return g.ffn(w, x, il)
    routed = g.moe(w, x, il, weights_scale=g.h.expert_weights_scale)
    if w["ffn_up_shexp"] is None:
        return routed
    shared = g.ffn(w, x, il, up="ffn_up_shexp", gate="ffn_gate_shexp", down="ffn_down_shexp")
    gate = ggml.sigmoid(g.linear(w, "ffn_gate_inp_shexp", x))
    return ggml.add(routed, ggml.mul(shared, gate))


def _qwen3next_linear(g: Graph, rs: RecurrentInput, w: Layer, x: Tensor, il: int) -> Tensor:
    """build_layer_attn_linear."""
    h, n_seqs = g.h, g.n_seqs
    n_t = g.n_tokens // n_seqs
    n_k, n_v = h.ssm_n_group, h.ssm_dt_rank
    head_v = h.ssm_d_inner // n_v
    if w["attn_qkv"] is not None:
        mixed = g.linear(w, "attn_qkv", x, scale=False)
        mixed = ggml.reshape(mixed, mixed.ne[0], n_t, n_seqs)
        z = g.linear(w, "attn_gate", x, scale=False)
    else:
        mixed, z = _split_qkvz(g, g.linear(w, "ssm_in", x, scale=False), n_t)
    ba = g.linear(w, "ssm_ba", x)
    per_key = n_v // n_k
    ba = ggml.reshape(ba, 2 * per_key, n_k, n_t, n_seqs)
    beta = ggml.sigmoid(ggml.cont(ggml.view(ba, (per_key, n_k, n_t, n_seqs), ba.nb[1:])))
    alpha = ggml.cont(ggml.view(ba, (per_key, n_k, n_t, n_seqs), ba.nb[1:], per_key * ba.nb[0]), n_v, n_t, n_seqs)
    gate = ggml.mul(ggml.softplus(ggml.add(alpha, w.need("ssm_dt.bias"))), w.need("ssm_a"))
    beta, gate = ggml.reshape(beta, 1, n_v, n_t, n_seqs), ggml.reshape(gate, 1, n_v, n_t, n_seqs)
    out = gated_delta(g, rs, w, mixed, z, beta, gate, il, repeat_interleaved=True)
    out = g.linear(w, "ssm_out", ggml.reshape(out, head_v * n_v, n_t, n_seqs), scale=False)
    return ggml.reshape(out, h.n_embd, n_t * n_seqs)


def qwen35_linear(
    g: Graph,
    rs: RecurrentInput,
    w: Layer,
    x: Tensor,
    il: int,
    *,
    conv: Convolve = conv_state,
    output_gate: str = "silu",
) -> Tensor:
    """build_layer_attn_linear of qwen35: heads of K and V are matched by the fused operation itself."""
    h, n_seqs = g.h, g.n_seqs
    n_t, n_v = g.n_tokens // n_seqs, h.ssm_dt_rank
    mixed = g.linear(w, "attn_qkv", x)
    mixed = ggml.reshape(mixed, mixed.ne[0], n_t, n_seqs)
    z = g.linear(w, "attn_gate", x)
    beta = ggml.sigmoid(ggml.reshape(g.linear(w, "ssm_beta", x), 1, n_v, n_t, n_seqs))
    alpha = ggml.reshape(g.linear(w, "ssm_alpha", x), n_v, n_t, n_seqs)
    gate = ggml.mul(ggml.softplus(ggml.add(alpha, w.need("ssm_dt.bias"))), w.need("ssm_a"))
    gate = ggml.reshape(gate, 1, n_v, n_t, n_seqs)
    out = gated_delta(g, rs, w, mixed, z, beta, gate, il, repeat_interleaved=False, conv=conv, output_gate=output_gate)
    out = g.linear(w, "ssm_out", ggml.reshape(out, h.ssm_d_inner, n_t, n_seqs))
    return ggml.reshape(out, h.n_embd, n_t * n_seqs)


def gated_delta(
    g: Graph,
    rs: RecurrentInput,
    w: Layer,
    mixed: Tensor,
    z: Tensor,
    beta: Tensor,
    gate: Tensor,
    il: int,
    *,
    repeat_interleaved: bool,
    conv: Convolve = conv_state,
    output_gate: str = "silu",
) -> Tensor:
    """Convolution, delta net over q, k, v, and the gated norm; what qwen3next and qwen3.5 share."""
    h, n_seqs = g.h, g.n_seqs
    n_t = g.n_tokens // n_seqs
    head_k, n_k, n_v = h.ssm_d_state, h.ssm_n_group, h.ssm_dt_rank
    head_v = h.ssm_d_inner // n_v
    channels = h.ssm_d_inner + 2 * n_k * head_k
    kernel = w.need("ssm_conv1d")
    conv_cache, state_cache = g.state("r", il, h.n_embd_r), g.state("s", il, h.n_embd_s)
    conv_in = conv(g, rs, conv_cache, mixed, kernel.ne[0], channels)
    state = ggml.reshape(g.rs(rs, state_cache, h.n_embd_s), head_v, head_v, n_v, n_seqs)
    y = ggml.silu(ggml.ssm_conv(conv_in, kernel))
    row = 4 * (2 * head_k * n_k + head_v * n_v)

    def part(head: int, n_head: int, offset: int) -> Tensor:
        return ggml.view(y, (head, n_head, n_t, n_seqs), (4 * head, row, row * n_t), 4 * offset)

    q = l2_norm(g, part(head_k, n_k, 0))
    k = l2_norm(g, part(head_k, n_k, head_k * n_k))
    v = part(head_v, n_v, 2 * head_k * n_k)
    whole = g.follows(FUSED_DELTA) and g.fused_delta == DELTA_OPS
    if (repeat_interleaved or not whole) and n_k != n_v:
        times, n = n_v // n_k, n_t * n_seqs
        q, k = (
            ggml.reshape(
                ggml.repeat_4d(ggml.reshape(t, head_k, 1, n_k, n), head_k, times, n_k, n),
                head_k,
                n_v,
                n_t,
                n_seqs,
            )
            for t in (q, k)
        )
    out = delta_net(g, state_cache, q, k, v, gate, beta, state, il)
    z = ggml.reshape(z, head_v, n_v, n_t, n_seqs)
    return ggml.mul(g.rms(out, w, "ssm_norm", il), ggml.unary(z, output_gate))


SCALED_NORMS = Change(
    without=10825,
    has=10830,
    source="src/models/delta-net-base.cpp: ggml_l2_norm, and build_gdn_l2_norm",
    name="L2 norms made of scaled RMS norms",
)


def l2_norm(g: Graph, x: Tensor) -> Tensor:
    """build_gdn_l2_norm: an RMSNorm, scaled."""
    return ggml.scale(ggml.rms_norm(x)) if g.follows(SCALED_NORMS) else ggml.l2_norm(x)


def _split_qkvz(g: Graph, qkvz: Tensor, n_t: int) -> tuple[Tensor, Tensor]:
    """The older layout: q, k, v and z interleaved per key head."""
    h, n_seqs = g.h, g.n_seqs
    head_k, n_k, n_v = h.ssm_d_state, h.ssm_n_group, h.ssm_dt_rank
    wide = h.ssm_d_inner // n_v * n_v // n_k
    t = ggml.reshape(qkvz, 2 * head_k + 2 * wide, n_k, n_t, n_seqs)
    parts, offset = [], 0
    for size in (head_k, head_k, wide, wide):
        parts.append(ggml.view(t, (size, n_k, n_t, n_seqs), t.nb[1:], offset * t.nb[0]))
        offset += size
    z = ggml.cont(parts[3])
    q, k, v = (ggml.cont(p, p.ne[0] * n_k, n_t, n_seqs) for p in parts[:3])
    return ggml.concat(ggml.concat(q, k, 0), v, 0), z


def qwen35_draft(g: Graph) -> None:
    """qwen35.cpp, qwen35moe.cpp."""
    il = g.h.n_layer
    w = g.layer(il)
    residual = join(g, w)
    cur = ggml.add(_gated_attention(g, w, g.rms(residual, w, "attn_norm", il), il), residual)
    x = g.rms(cur, w, "post_attention_norm", il)
    head(g, w, ggml.add(gated_shared_moe(g, w, x, il), cur), g.inp_out_ids())


def qwen3next_draft(g: Graph) -> None:
    """qwen3next.cpp: rows are selected before the feed-forward."""
    il = g.h.n_layer
    w = g.layer(il)
    residual = join(g, w)
    cur = _gated_attention(g, w, g.rms(residual, w, "attn_norm", il), il)
    cur, residual = g.select_outputs(g.inp_out_ids(), cur, residual)
    cur = ggml.add(cur, residual)
    x = g.rms(cur, w, "post_attention_norm", il)
    head(g, w, ggml.add(gated_shared_moe(g, w, x, il), cur), None)


def _gated_attention(g: Graph, w: Layer, x: Tensor, il: int) -> Tensor:
    pos = g.inp_pos()
    q, k, v, gate = gated_qkv(g, w, x, il)
    cur = g.attn(g.inp_attn_kv(), w, ggml.rope(q, pos), ggml.rope(k, pos), v, il, out=None)
    return gated_output(g, w, cur, gate)


ARCHITECTURES = (
    Architecture(
        name="qwen2",
        source="qwen2.cpp",
        hparams=reads("f_norm_rms_eps"),
        rope="neox",
        output="tied",
        scales=(),
        graph=qwen2,
        is_70b=has_80_layers,
    ),
    Architecture(
        name="qwen3",
        source="qwen3.cpp",
        hparams=reads("f_norm_rms_eps"),
        rope="neox",
        output="tied",
        scales=("ffn",),
        graph=qwen3,
        rank_softmax=True,
    ),
    Architecture(
        name="qwen35",
        source="qwen35.cpp",
        hparams=reads(
            """
            f_norm_rms_eps rope_sections ssm_d_conv ssm_d_inner ssm_d_state ssm_dt_rank ssm_n_group
            """,
            recurrent_interval(4),
        ),
        rope="imrope",
        output="tied",
        scales=("ffn",),
        graph=qwen35,
        draft_tensors=DraftTensors(once_always=True),
        memory=hybrid(rolls_back=True, attends=attending_in_trunk, plain_draft=True),
        tensor_split=TensorSplit(gated_queries=True),
        draft_graph=qwen35_draft,
    ),
    Architecture(
        name="qwen35moe",
        source="qwen35moe.cpp",
        hparams=reads(
            """
            n_ff_exp? n_ff_shexp? f_norm_rms_eps rope_sections ssm_d_conv ssm_d_inner ssm_d_state ssm_dt_rank
            ssm_n_group
            """,
            recurrent_interval(4),
        ),
        rope="imrope",
        output="tied",
        scales=("experts", "shared"),
        graph=qwen35,
        draft_tensors=DraftTensors(once_always=True),
        memory=hybrid(rolls_back=True, attends=attending_in_trunk, plain_draft=True),
        tensor_split=TensorSplit(gated_queries=True),
        draft_graph=qwen35_draft,
    ),
    Architecture(
        name="qwen3moe",
        source="qwen3moe.cpp",
        hparams=reads("n_ff_exp? f_norm_rms_eps"),
        rope="neox",
        output="tied",
        scales=("experts",),
        graph=qwen3,
    ),
    Architecture(
        name="qwen3next",
        source="qwen3next.cpp",
        once_required={"ssm_in": HEADS_APART},
        hparams=reads(
            """
            n_ff_exp? n_ff_shexp? f_norm_rms_eps ssm_d_conv ssm_d_inner ssm_d_state ssm_dt_rank ssm_n_group
            """,
            recurrent_interval(4),
        ),
        rope="neox",
        output="tied",
        scales=("experts", "shared"),
        graph=qwen3next,
        memory=hybrid(rolls_back=False, attends=attending_in_trunk, plain_draft=True),
        tensor_split=TensorSplit(gated_queries=True, heads_apart=True),
        draft_graph=qwen3next_draft,
    ),
    Architecture(
        name="qwen3tts",
        source="qwen3tts.cpp",
        hparams=reads("n_deepstack_layers? rope_sections f_norm_rms_eps"),
        rope="imrope",
        output="tied",
        scales=(),
        graph=qwen3vl,
        tensor_split=None,
    ),
    Architecture(
        name="qwen3vl",
        source="qwen3vl.cpp",
        hparams=reads("n_deepstack_layers? rope_sections f_norm_rms_eps"),
        rope="imrope",
        output="tied",
        scales=(),
        graph=qwen3vl,
        rank_softmax=True,
    ),
    Architecture(
        name="qwen3vlmoe",
        source="qwen3vlmoe.cpp",
        hparams=reads("n_deepstack_layers? rope_sections n_ff_exp? f_norm_rms_eps"),
        rope="imrope",
        output="tied",
        scales=(),
        graph=qwen3vl,
    ),
)
