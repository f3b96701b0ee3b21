"""Hyper-connections: parallel residual streams, [n_embd, streams, tokens], mixed anew around every part of a
block (the build_hc_* of src/models/deepseek4.cpp and glm5-next.cpp).
"""

from __future__ import annotations

from autofit_llama.graph import ggml
from autofit_llama.graph.builder import Fused, Graph, Layer
from autofit_llama.graph.ggml import Tensor


def streams(g: Graph, x: Tensor) -> Tensor:
    """The embeddings, once per stream."""
    n = x.ne[1]
    return ggml.repeat_4d(ggml.reshape(x, x.ne[0], 1, n), x.ne[0], g.h.dsv4_hc_mult, n, 1)


def flat(x: Tensor) -> Tensor:
    return ggml.reshape(x, x.ne[0] * x.ne[1], x.ne[2])


def selected_streams(g: Graph, x: Tensor, out_ids: Tensor) -> Tensor:
    """All streams of the rows that are wanted."""
    return ggml.reshape(ggml.get_rows(flat(x), out_ids), *x.ne[:2], g.n_outputs)


def narrow(g: Graph, w: Layer, x: Tensor, name: str, il: int) -> tuple[Tensor, Tensor, Tensor]:
    """build_hc_pre: the streams weighed into one, and what its result goes back with: weights and a mixture."""
    n_streams, n = x.ne[1:3]
    mixes = ggml.mul_mat(w.need(name + "_fn"), ggml.rms_norm(flat(x)))
    scale, base = w.need(name + "_scale"), w.need(name + "_base")

    def part(index: int, size: int) -> Tensor:
        y = ggml.view(mixes, (size, n), (mixes.nb[1],), index * n_streams * mixes.nb[0])
        y = ggml.mul(y, ggml.view(scale, (1,), (), index * scale.nb[0]))
        return ggml.add(y, ggml.view(base, (size,), (), index * n_streams * base.nb[0]))

    pre = ggml.scale(ggml.sigmoid(part(0, n_streams)))
    post = ggml.scale(ggml.sigmoid(part(1, n_streams)))
    if "hc_comb" in g.fused_hyper:
        comb = ggml.dsv4_hc_comb(mixes, scale, base)
        g.fused.append(Fused("hc_comb", comb, il))
    else:
        comb = ggml.reshape(part(2, n_streams**2), n_streams, n_streams, n)
        comb = _sinkhorn(comb, g.h.dsv4_hc_sinkhorn_iters)
    return weighed(g, x, pre, il), post, comb


def weighed(g: Graph, x: Tensor, weights: Tensor, il: int) -> Tensor:
    """The sum of the streams by their weights, [streams, tokens]."""
    if "hc_pre" in g.fused_hyper and il >= 0:
        y = ggml.dsv4_hc_pre(x, weights)
        g.fused.append(Fused("hc_pre", y, il))
        return y
    n = x.ne[2]
    parts = [
        ggml.mul(
            ggml.view(x, (x.ne[0], n), (x.nb[2],), i * x.nb[1]),
            ggml.view(weights, (1, n), (weights.nb[1],), i * weights.nb[0]),
        )
        for i in range(x.ne[1])
    ]
    total = parts[0]
    for t in parts[1:]:
        total = ggml.add(total, t)
    return total


def _sinkhorn(comb: Tensor, n_iter: int) -> Tensor:
    """Rows and columns are normalized in turn."""
    comb = ggml.soft_max(comb)
    eps = ggml.fill(ggml.new("f32", 1))
    comb = ggml.add(comb, eps)
    for i in range(max(1, n_iter)):
        if i:
            comb = ggml.div(comb, ggml.add(ggml.sum_rows(comb), eps))
        columns = ggml.sum_rows(ggml.cont(ggml.permute(comb, 1, 0, 2, 3)))
        comb = ggml.div(comb, ggml.permute(ggml.add(columns, eps), 1, 0, 2, 3))
    return comb


def widen(g: Graph, x: Tensor, residual: Tensor, post: Tensor, comb: Tensor, il: int) -> Tensor:
    """build_hc_post: the result, weighed, to every stream, and the streams mixed."""
    if "hc_post" in g.fused_hyper:
        y = ggml.dsv4_hc_post(x, residual, post, comb)
        g.fused.append(Fused("hc_post", y, il))
        return y
    n_embd, n = x.ne[:2]
    out: Tensor | None = None
    for to in range(residual.ne[1]):
        y = ggml.mul(x, ggml.view(post, (1, n), (post.nb[1],), to * post.nb[0]))
        for source in range(residual.ne[1]):
            stream = ggml.view(residual, (n_embd, n), (residual.nb[2],), source * residual.nb[1])
            weight = ggml.view(comb, (1, n), (comb.nb[2],), to * comb.nb[0] + source * comb.nb[1])
            y = ggml.add(y, ggml.mul(stream, weight))
        y = ggml.reshape(y, n_embd, 1, n)
        out = y if out is None else ggml.concat(out, y, 1)
    assert out is not None
    return out


def mean(x: Tensor) -> Tensor:
    """build_hc_mean."""
    views = [ggml.view(x, (x.ne[0], x.ne[2]), (x.nb[2],), i * x.nb[1]) for i in range(x.ne[1])]
    total = views[0]
    for t in views[1:]:
        total = ggml.add(total, t)
    return ggml.scale(total)
