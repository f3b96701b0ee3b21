"""Encoders of the BERT family: no cache, LayerNorm after each sub-block."""

from __future__ import annotations

from autofit_llama.graph import ggml
from autofit_llama.graph.builder import Graph, every
from autofit_llama.model.architecture import Architecture, reads
from autofit_llama.model.caches import (
    NO_CACHE,
)
from autofit_llama.model.hparams import GATING_SOFTMAX
from autofit_llama.model.metadata_reader import HParamsDraft, Metadata
from autofit_llama.model.rules import (
    force,
    swa,
)


@every(lambda h: h.moe_every_n_layers)
def bert(g: Graph) -> None:
    """src/models/bert.cpp; also jina-bert-v2, jina-bert-v3, nomic-bert, nomic-bert-moe."""
    h, arch = g.h, g.h.arch
    pos = g.inp_pos()
    x = g.inp_embd()
    types = g.weight("token_types")
    if types is not None:
        x = ggml.add(x, ggml.view(types, (h.n_embd,)))
    if arch == "bert":
        x = ggml.add(ggml.get_rows(g.need("position_embd"), pos), x)
    x = g.norm(x, g.weight("token_embd_norm"), 0, bias=g.weight("token_embd_norm.bias"), kind="layer")
    inp = g.inp_attn_no_cache()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        q, k, v = g.qkv(w, x, il)
        if w["attn_q_norm"] is not None:
            q = ggml.reshape(
                g.layer_norm(ggml.reshape(q, q.ne[0] * q.ne[1], g.n_tokens), w, "attn_q_norm", il), *q.ne[:3]
            )
        if w["attn_k_norm"] is not None:
            k = ggml.reshape(
                g.layer_norm(ggml.reshape(k, k.ne[0] * k.ne[1], g.n_tokens), w, "attn_k_norm", il), *k.ne[:3]
            )
        if arch in ("nomic-bert", "nomic-bert-moe", "jina-bert-v3"):
            q, k = ggml.rope(q, pos), ggml.rope(k, pos)
        cur = g.attn(inp, w, q, k, v, il)
        if g.is_last(il):
            cur, x = g.select_outputs(out_ids, cur, x)
        cur = g.layer_norm(ggml.add(cur, x), w, "attn_output_norm", il)
        if w["attn_norm_2"] is not None:
            cur = g.layer_norm(ggml.add(cur, x), w, "attn_norm_2", il)
        ffn_inp = cur
        if h.moe_every_n_layers > 0 and il % h.moe_every_n_layers == 1:
            cur = g.moe(
                w, cur, il, n_used=h.n_expert_used[0], act="gelu", norm_weights=False, gating=GATING_SOFTMAX,
                weights_scale=h.expert_weights_scale,
            )  # fmt: skip
        elif arch in ("bert", "nomic-bert-moe", "jina-bert-v3"):
            cur = g.ffn(w, cur, il, act="gelu", gate=None)
        elif arch == "jina-bert-v2":
            both = w["ffn_gate"] is None and w.need("ffn_up").ne[1] != h.n_ff[0]
            cur = g.ffn(w, cur, il, act="geglu" if both else "gelu")
        else:
            cur = g.ffn(w, cur, il)
        cur = ggml.add(cur, ffn_inp)
        x = g.layer_norm(cur, w, "layer_output_norm", il)
    g.embd = g.expand(x)


def neo_bert(g: Graph) -> None:
    """src/models/neo-bert.cpp: gate and up in one matrix."""
    _pre_normed(g, act="swiglu", output_norm="enc.output_norm")


def eurobert(g: Graph) -> None:
    """src/models/eurobert.cpp."""
    _pre_normed(g, parallel_gate=True)


def modern_bert(g: Graph) -> None:
    """src/models/modern-bert.cpp: sliding windows; a norm after the embeddings, and perhaps none in block 0."""
    acts = {"silu": "swiglu", "swish": "swiglu", "swiglu": "swiglu", "relu": "relu", "reglu": "reglu"}
    _pre_normed(g, kind="layer", act=acts.get(g.h.hidden_act, "geglu"), embedding_norm=True)


def _pre_normed(
    g: Graph,
    *,
    kind: str = "rms",
    act: str = "silu",
    parallel_gate: bool = False,
    embedding_norm: bool = False,
    output_norm: str = "output_norm",
) -> None:
    """Encoders with rotary positions and the norms before each half."""
    pos = g.inp_pos()
    x = g.inp_embd()
    if embedding_norm:
        x = g.norm(x, g.weight("token_embd_norm"), 0, kind=kind)
    inp = g.inp_attn_no_cache()
    out_ids = g.inp_out_ids()
    for il in g.layers():
        w = g.layer(il)
        cur = x if w["attn_norm"] is None else g.norm(x, w["attn_norm"], il, kind=kind)
        q, k, v = g.qkv(w, cur, il)
        cur = g.attn(inp, w, ggml.rope(q, pos), ggml.rope(k, pos), v, il, bias=False)
        if g.is_last(il):
            cur, x = g.select_outputs(out_ids, cur, x)
        ffn_inp = ggml.add(cur, x)
        cur = g.norm(ffn_inp, w["ffn_norm"], il, kind=kind)
        x = ggml.add(g.ffn(w, cur, il, act=act, parallel=parallel_gate), ffn_inp)
    g.embd = g.expand(g.final_norm(x, output_norm, kind=kind))


def _load_modern_bert(d: HParamsDraft, meta: Metadata) -> None:
    swa(3, first=True, kind="symmetric")(d, meta)
    if d.pooling_type_cls == -1:
        d.pooling_type_cls = 1  # mean


ARCHITECTURES = (
    Architecture(
        name="bert",
        source="bert.cpp",
        hparams=reads("f_norm_eps"),
        rope="neox",
        output="own",
        scales=(),
        graph=bert,
        memory=NO_CACHE,
    ),
    Architecture(
        name="eurobert",
        source="eurobert.cpp",
        hparams=reads("f_norm_rms_eps"),
        rope="neox",
        output="own",
        scales=(),
        graph=eurobert,
        memory=NO_CACHE,
    ),
    Architecture(
        name="jina-bert-v2",
        source="jina-bert-v2.cpp",
        hparams=reads("f_norm_eps", force(f_max_alibi_bias=8.0)),
        rope="none",
        output="own",
        scales=(),
        graph=bert,
        memory=NO_CACHE,
    ),
    Architecture(
        name="jina-bert-v3",
        source="jina-bert-v3.cpp",
        hparams=reads("f_norm_eps"),
        rope="neox",
        output="own",
        scales=(),
        graph=bert,
        memory=NO_CACHE,
    ),
    Architecture(
        name="modern-bert",
        source="modern-bert.cpp",
        hparams=reads("n_swa? f_norm_eps hidden_act?", _load_modern_bert),
        rope="neox",
        output="own",
        scales=(),
        graph=modern_bert,
        memory=NO_CACHE,
        rank_activation="gelu",
    ),
    Architecture(
        name="neo-bert",
        source="neo-bert.cpp",
        hparams=reads("f_norm_rms_eps"),
        rope="norm",
        output="own",
        scales=(),
        graph=neo_bert,
        memory=NO_CACHE,
    ),
    Architecture(
        name="nomic-bert",
        source="nomic-bert.cpp",
        hparams=reads("f_norm_eps"),
        rope="neox",
        output="own",
        scales=(),
        graph=bert,
        memory=NO_CACHE,
    ),
    Architecture(
        name="nomic-bert-moe",
        source="nomic-bert-moe.cpp",
        hparams=reads("f_norm_eps moe_every_n_layers?"),
        rope="neox",
        output="own",
        scales=(),
        graph=bert,
        memory=NO_CACHE,
    ),
)
