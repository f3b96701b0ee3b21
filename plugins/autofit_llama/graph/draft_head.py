"""What draft heads (multi-token prediction) share: one block that reads a token and the hidden state before it.

The `graph_mtp` of src/models/*.cpp, which a context of type MTP builds; its block lies behind the trunk's.
"""

from __future__ import annotations

from autofit_llama.graph import ggml
from autofit_llama.graph.builder import AttentionInput, Graph, Layer
from autofit_llama.graph.ggml import Tensor


def join(g: Graph, w: Layer, *, kind: str = "rms", own_table: bool = True) -> Tensor:
    """The embedding of the token and the hidden state, each normalized, side by side into one matrix."""
    tokens, hidden = g.input("i32", g.n_tokens), g.input("f32", g.h.n_embd, g.n_tokens)
    table = w["nextn.embed_tokens"] if own_table else None
    x = ggml.get_rows(table if table is not None else g.need("token_embd"), tokens)
    e = g.norm(x, w["nextn.enorm"], w.il, kind=kind)
    h = g.norm(hidden, w["nextn.hnorm"], w.il, kind=kind)
    return g.linear(w, "nextn.eh_proj", ggml.concat(e, h, 0))


def head(g: Graph, w: Layer, x: Tensor, out_ids: Tensor | None, *, kind: str = "rms", scale: bool = False) -> None:
    """The head's norm, or the trunk's; the rows that are wanted; the head's matrix, or the trunk's."""
    norm = w["nextn.shared_head_norm"]
    cur = g.norm(x, norm if norm is not None else g.weight("output_norm"), -1, kind=kind)
    g.h_nextn = cur if g.h_nextn is None else g.h_nextn
    if out_ids is not None:
        cur = ggml.get_rows(cur, out_ids)
    if w["nextn.shared_head_head"] is not None:
        cur = g.linear(w, "nextn.shared_head_head", cur)
    else:
        cur = g.lm_head(cur)
    g.logits = g.expand(ggml.scale(cur) if scale else cur)


def routed_and_shared(g: Graph, w: Layer, x: Tensor, il: int) -> Tensor:
    h = g.h
    routed = g.moe(
        w,
        x,
        il,
        gating=h.expert_gating_func,
        norm_weights=h.expert_weights_norm,
        weights_scale=h.expert_weights_scale,
    )
    shared = g.ffn(w, x, il, up="ffn_up_shexp", gate="ffn_gate_shexp", down="ffn_down_shexp")
    return ggml.add(routed, shared)


def grouped_attention(
    g: Graph, inp: AttentionInput, w: Layer, x: Tensor, pos: Tensor, il: int, *, factors: bool = False
) -> Tensor:
    q, k, v = g.qkv(w, x, il)
    q = g.rms(q, w, "attn_q_norm", il) if w["attn_q_norm"] is not None else q
    k = g.rms(k, w, "attn_k_norm", il) if w["attn_k_norm"] is not None else k
    f = g.rope_factors(il) if factors else None
    return g.attn(inp, w, ggml.rope(q, pos, f), ggml.rope(k, pos, f), v, il)
