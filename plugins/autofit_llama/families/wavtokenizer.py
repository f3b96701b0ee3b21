"""WavTokenizer's decoder: convolutions over time from audio tokens to spectra, without attention caches."""

from __future__ import annotations

from autofit_llama.graph import ggml
from autofit_llama.graph.builder import Graph, Layer
from autofit_llama.graph.ggml import Tensor
from autofit_llama.model.architecture import Architecture, reads
from autofit_llama.model.caches import (
    NO_CACHE,
)
from autofit_llama.model.metadata_reader import HParamsDraft, Metadata


def wavtokenizer_dec(g: Graph) -> None:
    """src/models/wavtokenizer-dec.cpp: features by time; transposed, [time, features], around convolutions."""
    h = g.h
    x = _conv(g, None, "conv1d", _transposed(g.inp_embd()))
    for i in range(h.posnet_n_layer):
        w = Layer(g, i, "posnet")
        if i in (0, 1, 3, 4):
            cur = _conv(g, w, "conv1", _gated(_group_norm(g, w, "norm1", x)))
            cur = _conv(g, w, "conv2", _gated(_group_norm(g, w, "norm2", cur)))
            x = ggml.add(cur, x)
        elif i == 2:
            x = ggml.add(_posnet_attention(g, w, _group_norm(g, w, "attn_norm", x)), x)
        else:
            x = _group_norm(g, w, "attn_norm", x)
    norm, bias = g.weight("token_embd_norm"), g.weight("token_embd_norm.bias")
    x = _transposed(g.norm(_transposed(x), norm, 0, bias=bias, kind="layer"))
    for i in range(h.convnext_n_layer):
        w = Layer(g, i, "convnext")
        cur = ggml.conv_1d_depthwise_half(w.need("dw"), x, 1, 1)
        cur = _transposed(ggml.add(cur, w.need("dw.bias")))
        cur = g.norm(cur, w["norm"], -1, bias=w["norm.bias"], kind="layer")
        cur = g.ffn(w, cur, i, act="gelu", up="pw1", gate=None, down="pw2")
        x = ggml.add(_transposed(ggml.mul(cur, w.need("gamma"))), x)
    cur = g.final_norm(_transposed(x), kind="layer")
    g.embd = g.expand(g.lm_head(cur))


def _posnet_attention(g: Graph, w: Layer, x: Tensor) -> Tensor:
    q, k, v = (ggml.conv_1d_half(w.need(name), x, 1, 1) for name in ("attn_q", "attn_k", "attn_v"))
    q = ggml.add(q, w.need("attn_q.bias"))
    k = ggml.add(k, w.need("attn_k.bias"))
    v = ggml.add(v, w.need("attn_v.bias"))
    kq = ggml.soft_max(ggml.mul_mat(_transposed(k), _transposed(q)), plain=False)
    return _conv(g, w, "attn_output", ggml.mul_mat(kq, v))


def _conv(g: Graph, w: Layer | None, name: str, x: Tensor) -> Tensor:
    need = g.need if w is None else w.need
    return ggml.add(ggml.conv_1d_half(need(name), x, 1, 1), need(name + ".bias"))


def _group_norm(g: Graph, w: Layer, name: str, x: Tensor) -> Tensor:
    return g.norm(x, w[name], 0, bias=w[name + ".bias"], kind="group")


def _gated(x: Tensor) -> Tensor:
    return ggml.mul(ggml.sigmoid(x), x)


def _transposed(x: Tensor) -> Tensor:
    return ggml.cont(ggml.transpose(x))


def _load_wavtokenizer(d: HParamsDraft, meta: Metadata) -> None:
    d.n_embd_out = d.n_embd
    d.n_embd = meta.number("features_length")
    d.posnet_n_embd, d.posnet_n_layer = (
        meta.number("posnet.embedding_length"),
        meta.number("posnet.block_count"),
    )
    d.convnext_n_embd = meta.number("convnext.embedding_length")
    d.convnext_n_layer = meta.number("convnext.block_count")
    if max(d.posnet_n_layer, d.convnext_n_layer) > d.n_layer_all:
        meta.refuse("posnet.block_count", "or convnext.block_count is beyond block_count")


ARCHITECTURES = (
    Architecture(
        name="wavtokenizer-dec",
        source="wavtokenizer-dec.cpp",
        hparams=reads("f_norm_eps f_norm_group_eps n_norm_groups"),
        rope="none",
        output="own",
        scales=(),
        graph=wavtokenizer_dec,
        sizes=_load_wavtokenizer,
        memory=NO_CACHE,
    ),
)
