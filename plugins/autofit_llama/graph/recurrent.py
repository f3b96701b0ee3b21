"""Blocks with a recurrent state: Mamba, Mamba-2, the gated delta net (src/models/mamba-base.cpp,
delta-net-base.cpp).
"""

from __future__ import annotations

from autofit_llama.engine.versions import Change, Version
from autofit_llama.graph import ggml
from autofit_llama.graph.builder import Fused, Graph, Layer, RecurrentInput
from autofit_llama.graph.ggml import Tensor


def snapshots(g: Graph) -> int:
    """States that are kept per sequence, the final one included."""
    return g.context.n_rs_seq + 1


def mamba(g: Graph, inp: RecurrentInput, w: Layer, x: Tensor, il: int) -> Tensor:
    """build_mamba_layer: x is [n_embd, n_tokens]."""
    h, n_seqs = g.h, g.n_seqs
    n_t = g.n_tokens // n_seqs
    d_conv, d_inner, d_state, dt_rank = h.ssm_d_conv, h.ssm_d_inner, h.ssm_d_state, h.ssm_dt_rank
    conv_cache, state_cache = g.state("r", il, h.n_embd_r), g.state("s", il, h.n_embd_s)
    conv = ggml.reshape(g.rs(inp, conv_cache, h.n_embd_r), d_conv - 1, d_inner, n_seqs)
    xz = g.linear(w, "ssm_in", ggml.reshape(x, x.ne[0], n_t, n_seqs))
    size = xz.nb[0]
    x = ggml.view(xz, (d_inner, *xz.ne[1:3]), xz.nb[1:3])
    z = ggml.view(xz, (d_inner, *xz.ne[1:3]), xz.nb[1:3], d_inner * size)
    conv_x = ggml.concat(conv, ggml.transpose(x), 0)
    last = ggml.view(conv_x, (d_conv - 1, d_inner, n_seqs), conv_x.nb[1:3], n_t * conv_x.nb[0])
    g.expand(ggml.cpy(last, ggml.view(conv_cache, ((d_conv - 1) * d_inner * n_seqs,))))
    x = ggml.silu(ggml.add(ggml.ssm_conv(conv_x, w.need("ssm_conv1d")), w.need("ssm_conv1d.bias")))

    x_db = g.linear(w, "ssm_x", x)
    dt = ggml.view(x_db, (dt_rank, n_t, n_seqs), x_db.nb[1:3])
    strides = (d_state * size, *x_db.nb[1:3])
    b = ggml.view(x_db, (d_state, 1, n_t, n_seqs), strides, size * dt_rank)
    c = ggml.view(x_db, (d_state, 1, n_t, n_seqs), strides, size * (dt_rank + d_state))
    dt_norm, b_norm, c_norm = w["ssm_dt_norm"], w["ssm_b_norm"], w["ssm_c_norm"]
    if h.ssm_dt_b_c_rms or (dt_norm is not None and b_norm is not None and c_norm is not None):
        dt, b, c = g.norm(dt, dt_norm, il), g.norm(b, b_norm, il), g.norm(c, c_norm, il)
    else:
        dt = ggml.cont(dt)
    dt = ggml.add(g.linear(w, "ssm_dt", dt), w.need("ssm_dt.bias"))
    cur = x
    x = ggml.reshape(x, 1, d_inner, n_t, n_seqs)
    a = w.need("ssm_a")

    def scan(states: Tensor, ids: Tensor) -> Tensor:
        return ggml.ssm_scan(ggml.reshape(states, d_state, 1, d_inner, states.ne[1]), x, dt, a, b, c, ids)

    y_ssm = g.rs(inp, state_cache, h.n_embd_s, scan)
    n_state = d_state * d_inner * n_seqs
    g.expand(ggml.cpy(ggml.view(y_ssm, (n_state,), (), x.nb[3] * x.ne[3]), ggml.view(state_cache, (n_state,))))
    y = ggml.view(y_ssm, (d_inner, n_t, n_seqs), x.nb[2:4])
    y = ggml.add(y, ggml.mul(cur, w.need("ssm_d")))
    y = ggml.glu(ggml.cont(z), y)
    out = g.linear(w, "ssm_out", y)
    return ggml.reshape(out, out.ne[0], n_t * n_seqs)


FLAT_PRODUCTS = Change(
    without=10603,
    has=10605,
    source="src/models/mamba-base.cpp:build_mamba2_layer, products of three dimensions and of two",
    name="flat products around Mamba-2",
)


def mamba2(g: Graph, inp: RecurrentInput, w: Layer, x: Tensor, il: int) -> Tensor:
    """build_mamba2_layer."""
    h, n_seqs = g.h, g.n_seqs
    n_t, kept = g.n_tokens // n_seqs, snapshots(g)
    d_conv, d_inner, d_state = h.ssm_d_conv, h.ssm_d_inner, h.ssm_d_state
    n_head, n_group = h.ssm_dt_rank, h.ssm_n_group
    head = d_inner // n_head
    width = d_inner + 2 * n_group * d_state
    conv_cache, state_cache = g.state("r", il, h.n_embd_r), g.state("s", il, h.n_embd_s)
    conv = ggml.reshape(g.rs(inp, conv_cache, h.n_embd_r), d_conv - 1, width, n_seqs)
    flat = g.follows(FLAT_PRODUCTS)
    zx = g.linear(w, "ssm_in", x if flat else ggml.reshape(x, x.ne[0], n_t, n_seqs))
    zx = ggml.reshape(zx, zx.ne[0], n_t, n_seqs) if flat else zx
    size = zx.nb[0]
    z = ggml.view(zx, (head, n_head, n_t, n_seqs), (head * size, *zx.nb[1:3]))
    x_bc = ggml.view(zx, (width, n_t, n_seqs), zx.nb[1:3], d_inner * size)
    dt = ggml.view(zx, (n_head, n_t, n_seqs), zx.nb[1:3], (2 * d_inner + 2 * n_group * d_state) * size)
    conv_x = ggml.concat(conv, ggml.transpose(x_bc), 0)
    rows = (d_conv - 1) * width
    for slot in range(min(n_t, kept)):
        last = ggml.view(conv_x, (d_conv - 1, width, n_seqs), conv_x.nb[1:3], (n_t - slot) * conv_x.nb[0])
        offset = slot * g.model.state_rows * rows * 4
        g.expand(ggml.cpy(last, ggml.view(conv_cache, (rows, n_seqs), (conv_cache.nb[1],), offset)))
    x_bc = ggml.silu(ggml.add(ggml.ssm_conv(conv_x, w.need("ssm_conv1d")), w.need("ssm_conv1d.bias")))

    x = ggml.view(x_bc, (head, n_head, n_t, n_seqs), (head * size, *x_bc.nb[1:3]))
    b = ggml.view(x_bc, (d_state, n_group, n_t, n_seqs), (d_state * size, *x_bc.nb[1:3]), d_inner * size)
    offset = (d_inner + n_group * d_state) * size
    c = ggml.view(x_bc, (d_state, n_group, n_t, n_seqs), (d_state * size, *x_bc.nb[1:3]), offset)
    dt = ggml.add(ggml.cont(dt), w.need("ssm_dt.bias"))
    a = w.need("ssm_a")

    def scan(states: Tensor, ids: Tensor) -> Tensor:
        ssm = ggml.reshape(states, d_state, head, n_head, states.ne[1])
        return ggml.ssm_scan(ssm, x, dt, a, b, c, ids, kept)

    y_ssm = g.rs(inp, state_cache, h.n_embd_s, scan)
    d, written = d_state * d_inner, min(n_t, kept)
    new = ggml.view(y_ssm, (d, n_seqs, written), (4 * d, 4 * d * n_seqs), ggml.n_elements(x) * 4)
    g.expand(
        ggml.cpy(new, ggml.view(state_cache, (d, n_seqs, written), (state_cache.nb[1], g.model.state_rows * 4 * d)))
    )
    stride = x.nb[1]
    y = ggml.view(y_ssm, (head, n_head, n_t, n_seqs), (stride, n_head * stride, n_t * n_head * stride))
    y = ggml.add(y, ggml.mul(x, w.need("ssm_d")))
    y = ggml.glu(ggml.cont(z), y)
    if w["ssm_norm"] is not None:
        y = g.rms(ggml.reshape(y, d_inner // n_group, n_group, n_t, n_seqs), w, "ssm_norm", il)
    if flat:
        return g.linear(w, "ssm_out", ggml.reshape(y, d_inner, n_t * n_seqs))
    out = g.linear(w, "ssm_out", ggml.reshape(y, d_inner, n_t, n_seqs))
    return ggml.reshape(out, out.ne[0], n_t * n_seqs)


def conv_state(g: Graph, inp: RecurrentInput, cache: Tensor, x: Tensor, kernel: int, channels: int) -> Tensor:
    """build_conv_state: the last columns of the previous batch before this one's; the new last ones are
    stored.
    """
    n_seqs, kept = g.n_seqs, snapshots(g)
    states = ggml.reshape(g.rs(inp, cache, g.h.n_embd_r), kernel - 1, channels, n_seqs)
    y = ggml.concat(states, ggml.transpose(x), 0)
    rows = (kernel - 1) * channels
    for t in range(1, kept + 1):
        first = max(0, y.ne[0] - states.ne[0] - kept + t)
        last = ggml.view(y, (kernel - 1, channels, n_seqs), y.nb[1:3], first * 4)
        offset = (kept - t) * g.model.state_rows * rows * 4
        g.expand(ggml.cpy(last, ggml.view(cache, (rows, n_seqs), (cache.nb[1],), offset)))
    return y


FUSED_DELTA = Change(
    without=8179,
    has=8390,
    source="src/models/delta-net-base.cpp: build_delta_net_chunking, and ggml_gated_delta_net",
    name="the delta net as one operation",
    larger=False,
)
UNTRIED_DELTA = Change(
    without=10605,
    has=10724,
    source="src/llama-context.cpp:llama_context, auto_fgdn true and false",
    name="the delta net as one operation wherever it runs",
    larger=False,
)
#: tokens of each sequence that it is tried with; more than 31 in all run on a GPU also where the block does not lie
DELTA_PROBES = {"gdn_ar": 1, "gdn_ch": 16}
_CHUNK, _CHUNK_OF_CHANNELS = 64, 16  #: the second with a decay per channel (KDA), since there is a fused operation


def delta_probes(version: Version) -> tuple[tuple[str, int], ...]:
    """Kinds of the fused delta net that the engine tries on a small graph, with the tokens of each sequence in it."""
    tries = version.follows(FUSED_DELTA) and not version.follows(UNTRIED_DELTA)
    return tuple(DELTA_PROBES.items()) if tries else ()


def _flipped(t: Tensor) -> Tensor:
    return ggml.cont(ggml.transpose(t))


def _decayed(sums: Tensor, k: Tensor, k_beta: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """k_beta and q times k within a chunk, with the decay between their tokens."""
    _, size, n_chunks, n = k.ne
    wide = ggml.repeat_4d(ggml.reshape(sums, 1, size, n_chunks, n), size, size, n_chunks, n)
    decay = ggml.exp(ggml.tri(ggml.sub(wide, sums)))
    return ggml.mul(ggml.mul_mat(k, k_beta), decay), ggml.mul(ggml.mul_mat(k, q), decay)


def _decayed_by_channel(sums: Tensor, k: Tensor, k_beta: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """The same with a decay per channel (KDA)."""
    head, size, n_chunks, n = k.ne
    every = n_chunks * n
    wide = ggml.repeat_4d(ggml.reshape(sums, 1, size, head, every), size, size, head, every)
    decay = ggml.exp(ggml.tri(ggml.sub(wide, ggml.reshape(sums, size, 1, head, every))))
    decay = ggml.cont(ggml.permute(decay, 2, 1, 0, 3), head, size, size, every)
    narrow = ggml.reshape(k, head, 1, size, every)
    both = [ggml.mul_mat(ggml.mul(decay, ggml.reshape(t, head, size, 1, every)), narrow) for t in (k_beta, q)]
    kb, kq = (_flipped(ggml.reshape(t, size, size, n_chunks, n)) for t in both)
    return kb, kq


def chunked_delta_net(
    g: Graph,
    cache: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor,
    beta: Tensor,
    state: Tensor,
) -> Tensor:
    """build_delta_net_chunking: chunks of 64 tokens, solved one by one; heads of q and k are as many as those of v.

    Before there was a fused operation, states were stored transposed.
    """
    head, n_head, n_t, n_seqs = v.ne
    transposed = not g.follows(FUSED_DELTA)
    size = _CHUNK if gate.ne[0] == 1 or transposed else _CHUNK_OF_CHANNELS
    padding = -n_t % size
    n_chunks, n = (n_t + padding) // size, n_head * n_seqs

    def chunks(t: Tensor) -> Tensor:
        return ggml.reshape(t, t.ne[0], size, n_chunks, n)

    def padded(t: Tensor) -> Tensor:
        return ggml.pad(ggml.permute(t, 0, 2, 1, 3), 0, padding)

    q, k, v, gate, beta = padded(ggml.scale(q)), padded(k), padded(v), padded(gate), padded(beta)
    v_beta, k_beta = chunks(ggml.mul(v, beta)), chunks(ggml.mul(k, beta))
    q, k = chunks(q), chunks(k)
    sums = ggml.cumsum(_flipped(chunks(gate)))
    products = _decayed if gate.ne[0] == 1 else _decayed_by_channel
    kb, kq = products(sums, k, k_beta, q)
    kq = ggml.tri(kq)
    lower = ggml.tri(kb)
    identity = ggml.diag(ggml.fill(ggml.view(lower, (size,))))
    solved = ggml.add(ggml.solve_tri(ggml.add(lower, identity), ggml.neg(lower)), identity)
    v = ggml.mul_mat(_flipped(v_beta), solved)
    grown = ggml.exp(sums)
    k_decayed = ggml.mul_mat(ggml.mul(_flipped(k_beta), grown), solved)
    q_grown = ggml.mul(q, _flipped(grown))
    last = ggml.cont(ggml.view(sums, (1, *sums.ne[1:]), sums.nb[1:], ggml.row_size(sums.type, sums.ne[0] - 1)))
    last_grown = ggml.transpose(ggml.exp(last))
    rest = _flipped(ggml.exp(ggml.neg(ggml.sub(sums, last))))
    k_rest = _flipped(ggml.mul(k, rest))
    s = ggml.cont(ggml.transpose(state), head, head, 1, n) if transposed else ggml.reshape(state, head, head, 1, n)
    v_flipped = _flipped(v)
    for i in range(n_chunks):

        def part(t: Tensor, i: int = i) -> Tensor:
            return ggml.view(t, (*t.ne[:2], 1, t.ne[3]), t.nb[1:], t.nb[2] * i)

        new = ggml.sub(part(v_flipped), ggml.mul_mat(part(k_decayed), s))
        own = ggml.mul_mat(new, part(kq))
        out = ggml.add(ggml.mul_mat(s, part(q_grown)), own)
        v = ggml.set_(v, out, inplace=True)
        s = ggml.add(ggml.mul(s, part(last_grown)), ggml.mul_mat(part(k_rest), new))
    new_state = ggml.reshape(s, head, head, n_head, n_seqs)
    if transposed:
        g.expand(ggml.cpy(ggml.transpose(new_state), ggml.view(cache, (g.h.n_embd_s * n_seqs,))))
    else:
        g.expand(ggml.cpy(new_state, ggml.view(cache, (g.h.n_embd_s, n_seqs), (cache.nb[1],))))
    row = ggml.row_size(v.type, head)
    strides = (row, row * size * n_chunks, row * size * n_chunks * n_head)
    return ggml.permute(ggml.view(v, (head, n_t, n_head, n_seqs), strides), 0, 2, 1, 3)


def delta_net(
    g: Graph,
    cache: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor,
    beta: Tensor,
    state: Tensor,
    il: int,
) -> Tensor:
    """build_recurrent_attn: one operation, or where that is not used or not there yet, chunks of many tokens."""
    h, kept = g.h, snapshots(g)
    kind = "gdn_ch" if q.ne[2] > 1 else "gdn_ar"
    if kind == "gdn_ch" and (not g.follows(FUSED_DELTA) or (kind not in g.fused_delta and kept == 1)):
        return chunked_delta_net(g, cache, q, k, v, gate, beta, state)
    head, n_head, n_seqs = state.ne[0], state.ne[2], state.ne[3]
    n_t = q.ne[2]
    y = ggml.gated_delta_net(q, k, v, gate, beta, state, kept)
    g.fused.append(Fused(kind, y, il))
    strides = (4 * head, 4 * head * n_head, 4 * head * n_head * n_t)
    out = ggml.view(y, (head, n_head, n_t, n_seqs), strides)
    scores = 4 * head * n_head * n_t * n_seqs
    if kept == 1:
        new = ggml.view(y, (head, head, n_head, n_seqs), (4 * head, 4 * head**2, 4 * head**2 * n_head), scores)
        g.expand(ggml.cpy(new, ggml.view(cache, (h.n_embd_s, n_seqs), (cache.nb[1],))))
        return out
    d, written = head * head * n_head, min(n_t, kept)
    new = ggml.view(y, (d, n_seqs, written), (4 * d, 4 * d * n_seqs), scores)
    stored = ggml.view(cache, (d, n_seqs, written), (cache.nb[1], g.model.state_rows * h.n_embd_s * 4))
    g.expand(ggml.cpy(new, stored))
    return out
