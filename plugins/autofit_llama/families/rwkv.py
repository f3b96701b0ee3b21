"""RWKV: token shifts and a linear recurrence, alone or in place of a Qwen's attention."""

from __future__ import annotations

from autofit_llama.graph import ggml
from autofit_llama.graph.builder import Graph, Layer, RecurrentInput, every
from autofit_llama.graph.ggml import Tensor
from autofit_llama.model.architecture import Architecture, reads
from autofit_llama.model.caches import (
    RECURRENT,
)


@every(lambda h: h.rescale_every_n_layers)
def rwkv6(g: Graph) -> None:
    """src/models/rwkv6.cpp."""
    _rwkv(g)


def rwkv7(g: Graph) -> None:
    """src/models/rwkv7.cpp."""
    _rwkv(g)


def _rwkv(g: Graph) -> None:
    """Time mixing, then channel mixing, each with the token before."""
    h, n_seqs = g.h, g.n_seqs
    n, n_t = g.n_tokens, g.n_tokens // n_seqs
    x = g.norm(g.inp_embd(), g.weight("token_embd_norm", 0), 0, bias=g.weight("token_embd_norm.bias", 0), kind="layer")
    rs = g.inp_rs()
    out_ids = g.inp_out_ids()
    first_value: Tensor | None = None
    for il in g.layers():
        w = g.layer(il)
        x = ggml.reshape(x, h.n_embd, n_t, n_seqs)
        shift = _load_shift(g, rs, il)
        time_shift = ggml.view(shift, (h.n_embd, 1, n_seqs), shift.nb[1:3])
        channel_shift = ggml.view(shift, (h.n_embd, 1, n_seqs), shift.nb[1:3], h.n_embd * 4)
        time_in = g.layer_norm(x, w, "attn_norm", il)
        before = _before(time_shift, time_in)
        if h.arch == "rwkv6":
            cur = _time_mix6(g, rs, w, time_in, before, il)
        else:
            cur, first_value = _time_mix7(g, rs, w, time_in, before, first_value, il)
        x = ggml.add(cur, x)
        channel_in = g.layer_norm(x, w, "attn_norm_2", il)
        before = _before(channel_shift, channel_in)
        _store_shift(g, ggml.concat(_last(time_in), _last(channel_in), 1), il)
        x, channel_in, before = (ggml.reshape(t, h.n_embd, n) for t in (x, channel_in, before))
        if g.is_last(il):
            x, channel_in, before = g.select_outputs(out_ids, x, channel_in, before)
        x = ggml.add(_channel_mix(g, w, channel_in, before), x)
        if h.arch == "rwkv6" and h.rescale_every_n_layers and (il + 1) % h.rescale_every_n_layers == 0:
            x = ggml.scale(x)
    g.finish(x, kind="layer")


def rwkv6qwen2(g: Graph) -> None:
    """src/models/rwkv6qwen2.cpp, arwkv7.cpp: time mixing as attention, an ordinary feed-forward."""
    h, n_seqs = g.h, g.n_seqs
    n, n_t = g.n_tokens, g.n_tokens // n_seqs
    x = g.inp_embd()
    rs = g.inp_rs()
    out_ids = g.inp_out_ids()
    first_value: Tensor | None = None
    for il in g.layers():
        w = g.layer(il)
        x = ggml.reshape(x, h.n_embd, n_t, n_seqs)
        shift = _load_shift(g, rs, il)
        cur = g.norm(x, w["attn_norm"], il, bias=w["attn_norm.bias"])
        before = _before(shift, cur)
        if h.arch == "rwkv6qwen2":
            mixed = _time_mix6(g, rs, w, cur, before, il)
        else:
            mixed, first_value = _time_mix7(g, rs, w, cur, before, first_value, il)
        _store_shift(g, _last(cur), il)
        x = ggml.reshape(ggml.add(mixed, x), h.n_embd, n)
        if g.is_last(il):
            (x,) = g.select_outputs(out_ids, x)
        x = ggml.add(g.ffn(w, g.rms(x, w, "ffn_norm", il), il, bias=False), x)
    g.finish(x)


def _load_shift(g: Graph, rs: RecurrentInput, il: int) -> Tensor:
    """build_rwkv_token_shift_load: what the last token of every sequence left."""
    h = g.h
    rows = g.rs(rs, g.state("r", il, h.n_embd_r), h.n_embd_r)
    return ggml.reshape(rows, h.n_embd, h.token_shift_count, g.n_seqs)


def _store_shift(g: Graph, shift: Tensor, il: int) -> None:
    n = g.h.n_embd_r * g.n_seqs
    g.expand(ggml.cpy(ggml.view(shift, (n,)), ggml.view(g.state("r", il, g.h.n_embd_r), (n,))))


def _last(x: Tensor) -> Tensor:
    return ggml.view(x, (x.ne[0], 1, x.ne[2]), x.nb[1:3], (x.ne[1] - 1) * x.nb[1])


def _before(shift: Tensor, x: Tensor) -> Tensor:
    """Every token's predecessor."""
    return ggml.concat(shift, ggml.view(x, (x.ne[0], x.ne[1] - 1, x.ne[2]), x.nb[1:3]), 1)


def _slices(x: Tensor, n_embd: int, n: int, count: int) -> list[Tensor]:
    return [ggml.view(x, (n_embd, n), (x.nb[1],), i * n_embd * n * 4) for i in range(count)]


def _store_state(g: Graph, y: Tensor, il: int) -> Tensor:
    """Keeps the state behind the recurrence's result; gives the result, [n_embd * tokens]."""
    h = g.h
    n_out, n_state = h.n_embd * g.n_tokens, h.n_embd * h.wkv_head_size * g.n_seqs
    cur = ggml.view(y, (n_out,))
    new = ggml.view(y, (n_state,), (), n_out * 4)
    g.expand(ggml.cpy(new, ggml.view(g.state("s", il, h.n_embd_s), (h.n_embd_s * g.n_seqs,))))
    return cur


def _head_norm(w: Layer, x: Tensor, n_embd: int, n_head: int, n: int) -> Tensor:
    """A norm per head, if there is one."""
    scale, bias = w["time_mix_ln"], w["time_mix_ln.bias"]
    if scale is None or bias is None:
        return ggml.reshape(x, n_embd, n)
    x = ggml.norm(ggml.reshape(x, n_embd // n_head, n_head, n))
    return ggml.add(ggml.mul(ggml.reshape(x, n_embd, n), scale), bias)


def _channel_mix(g: Graph, w: Layer, x: Tensor, before: Tensor) -> Tensor:
    """build_rwkv6_channel_mix, build_rwkv7_channel_mix."""
    delta = ggml.sub(before, x)
    for_key = ggml.add(ggml.mul(delta, w.need("channel_mix_lerp_k")), x)
    if g.h.arch != "rwkv6":
        key = ggml.sqr(ggml.relu(ggml.mul_mat(w.need("channel_mix_key"), for_key)))
        return ggml.mul_mat(w.need("channel_mix_value"), key)
    for_gate = ggml.add(ggml.mul(delta, w.need("channel_mix_lerp_r")), x)
    gate = ggml.sigmoid(ggml.mul_mat(w.need("channel_mix_receptance"), for_gate))
    key = ggml.sqr(ggml.relu(ggml.mul_mat(w.need("channel_mix_key"), for_key)))
    return ggml.mul(gate, ggml.mul_mat(w.need("channel_mix_value"), key))


def _time_mix6(g: Graph, rs: RecurrentInput, w: Layer, x: Tensor, before: Tensor, il: int) -> Tensor:
    """build_rwkv6_time_mix; without a bonus for the current token it is gated linear attention."""
    h, n, n_seqs = g.h, g.n_tokens, g.n_seqs
    n_embd, size = h.n_embd, h.wkv_head_size
    n_head, n_head_kv = n_embd // size, h.n_head_kv[il]
    bonus = w["time_mix_first"]
    delta = ggml.reshape(ggml.sub(before, x), n_embd, n)
    x = ggml.reshape(x, n_embd, n)
    w1, w2 = w.need("time_mix_w1"), w.need("time_mix_w2")
    lerp = ggml.add(ggml.mul(delta, w.need("time_mix_lerp_x")), x)
    lerp = ggml.reshape(ggml.tanh(ggml.mul_mat(w1, lerp)), w1.ne[1] // 5, 1, 5, n)
    lerp = ggml.cont(ggml.permute(lerp, 0, 1, 3, 2))
    lerp = ggml.mul_mat(ggml.reshape(w2, w2.ne[0], w2.ne[1], 1, 5), lerp)
    fused = w["time_mix_lerp_fused"]
    if fused is not None:
        delta, x = ggml.reshape(delta, n_embd, 1, n), ggml.reshape(x, n_embd, 1, n)
        lerp = ggml.add(ggml.mul(ggml.add(lerp, fused), delta), x)
        parts = _slices(lerp, n_embd, n, 5)
    else:
        parts = [
            ggml.add(ggml.mul(ggml.add(part, w.need("time_mix_lerp_" + name)), delta), x)
            for part, name in zip(_slices(lerp, n_embd, n, 5), "wkvrg", strict=True)
        ]
    for_decay, for_k, for_v, for_r, for_gate = parts

    def project(name: str, t: Tensor) -> Tensor:
        y = ggml.mul_mat(w.need(name), t)
        bias = w[name + ".bias"]
        return y if bias is None else ggml.add(y, bias)

    r = project("time_mix_receptance", for_r)
    k, v = project("time_mix_key", for_k), project("time_mix_value", for_v)
    gate = ggml.mul_mat(w.need("time_mix_gate"), for_gate)
    gate = ggml.sigmoid(gate) if bonus is None else ggml.silu(gate)
    if n_head_kv not in (0, n_head):
        k, v = (
            ggml.repeat_4d(ggml.reshape(t, size, 1, n_head_kv, n), size, n_head // n_head_kv, n_head_kv, n)
            for t in (k, v)
        )
    k, v, r = (ggml.reshape(t, size, n_head, n) for t in (k, v, r))
    decay = ggml.tanh(ggml.mul_mat(w.need("time_mix_decay_w1"), for_decay))
    decay = ggml.add(ggml.mul_mat(w.need("time_mix_decay_w2"), decay), w.need("time_mix_decay"))
    decay = ggml.reshape(ggml.exp(ggml.neg(ggml.exp(decay))), size, n_head, n)
    if bonus is None:
        k = ggml.sub(k, ggml.mul(k, decay))
    state = g.rs(rs, g.state("s", il, h.n_embd_s), h.n_embd_s)
    if bonus is None:
        y = ggml.gated_linear_attn(k, v, r, decay, state)
    else:
        y = ggml.rwkv_wkv6(k, v, r, bonus, decay, state)
    cur = _store_state(g, y, il)
    cur = ggml.reshape(cur, n_embd, n) if bonus is None else _head_norm(w, cur, n_embd, n_head, n)
    cur = ggml.mul_mat(w.need("time_mix_output"), ggml.mul(cur, gate))
    return ggml.reshape(cur, n_embd, n // n_seqs, n_seqs)


def _time_mix7(
    g: Graph, rs: RecurrentInput, w: Layer, x: Tensor, before: Tensor, first_value: Tensor | None, il: int
) -> tuple[Tensor, Tensor]:
    """build_rwkv7_time_mix: also gives the values of the first block, which later ones take up."""
    h, n, n_seqs = g.h, g.n_tokens, g.n_seqs
    n_embd, size = h.n_embd, h.wkv_head_size
    n_t, n_head = n // n_seqs, n_embd // size
    g1, g2 = w["time_mix_g1"], w["time_mix_g2"]
    gated = g1 is not None and g2 is not None
    count = 6 if gated else 5
    delta = ggml.repeat_4d(ggml.sub(before, x), n_embd, n_t, n_seqs, count)
    lerp = ggml.add(ggml.mul(delta, w.need("time_mix_lerp_fused")), x)
    for_r, for_decay, for_k, for_v, for_a, *for_gate = _slices(lerp, n_embd, n, count)

    def low_rank(name: str, t: Tensor) -> Tensor:
        return ggml.mul_mat(w.need(f"time_mix_{name}2"), ggml.mul_mat(w.need(f"time_mix_{name}1"), t))

    r = ggml.mul_mat(w.need("time_mix_receptance"), for_r)
    decay = ggml.tanh(ggml.mul_mat(w.need("time_mix_w1"), for_decay))
    decay = ggml.add(ggml.mul_mat(w.need("time_mix_w2"), decay), w.need("time_mix_w0"))
    decay = ggml.exp(ggml.scale(ggml.sigmoid(decay)))
    k = ggml.mul_mat(w.need("time_mix_key"), for_k)
    v = ggml.mul_mat(w.need("time_mix_value"), for_v)
    if first_value is None:
        first_value = v
    else:
        part = ggml.sigmoid(ggml.add(low_rank("v", for_v), w.need("time_mix_v0")))
        v = ggml.add(v, ggml.mul(ggml.sub(first_value, v), part))
    gate: Tensor | None = None
    if g1 is not None and g2 is not None:
        gate = ggml.mul_mat(g2, ggml.sigmoid(ggml.mul_mat(g1, for_gate[0])))
    a = ggml.sigmoid(ggml.add(low_rank("a", for_a), w.need("time_mix_a0")))
    kk = ggml.l2_norm(ggml.reshape(ggml.mul(k, w.need("time_mix_k_k")), size, n_head, n))
    ka = ggml.mul(k, w.need("time_mix_k_a"))
    k = ggml.add(k, ggml.sub(ggml.mul(a, ka), ka))
    r, decay, k, v, a = (ggml.reshape(t, size, n_head, n) for t in (r, decay, k, v, a))
    state = g.rs(rs, g.state("s", il, h.n_embd_s), h.n_embd_s)
    y = ggml.rwkv_wkv7(r, decay, k, v, ggml.neg(kk), ggml.mul(kk, a), state)
    cur = _head_norm(w, _store_state(g, y, il), n_embd, n_head, n)
    bonus = ggml.mul(ggml.mul(k, r), ggml.reshape(w.need("time_mix_r_k"), size, n_head))
    cur = ggml.add(cur, ggml.reshape(ggml.mul(v, ggml.sum_rows(bonus)), n_embd, n))
    cur = cur if gate is None else ggml.mul(cur, gate)
    cur = ggml.mul_mat(w.need("time_mix_output"), cur)
    return ggml.reshape(cur, n_embd, n_t, n_seqs), first_value


ARCHITECTURES = (
    Architecture(
        name="arwkv7",
        source="arwkv7.cpp",
        hparams=reads("""
            f_norm_eps? f_norm_rms_eps? wkv_head_size token_shift_count? n_lora_decay n_lora_iclr
            n_lora_value_res_mix n_lora_gate?
            """),
        rope="none",
        output="own",
        scales=(),
        graph=rwkv6qwen2,
        memory=RECURRENT,
    ),
    Architecture(
        name="rwkv6",
        source="rwkv6.cpp",
        hparams=reads("""
            f_norm_eps? f_norm_rms_eps? wkv_head_size token_shift_count? time_mix_extra_dim time_decay_extra_dim
            rescale_every_n_layers?
            """),
        rope="none",
        output="own",
        scales=(),
        graph=rwkv6,
        memory=RECURRENT,
    ),
    Architecture(
        name="rwkv6qwen2",
        source="rwkv6qwen2.cpp",
        hparams=reads("""
            f_norm_eps? f_norm_rms_eps? wkv_head_size token_shift_count? time_mix_extra_dim time_decay_extra_dim
            rescale_every_n_layers?
            """),
        rope="none",
        output="own",
        scales=(),
        graph=rwkv6qwen2,
        memory=RECURRENT,
    ),
    Architecture(
        name="rwkv7",
        source="rwkv7.cpp",
        hparams=reads("""
            f_norm_eps? f_norm_rms_eps? wkv_head_size token_shift_count? n_lora_decay n_lora_iclr
            n_lora_value_res_mix n_lora_gate?
            """),
        rope="none",
        output="own",
        scales=(),
        graph=rwkv7,
        memory=RECURRENT,
    ),
)
