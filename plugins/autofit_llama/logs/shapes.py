"""Names and shapes of a model's tensors out of its hyperparameters, checked against what the log counts.

What hyperparameters do not say (a tied output, biases, norms of heads) is found by trying: the loader logs how many
tensors there are of each type and how many parameters in all, and only what agrees with both is taken.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from itertools import product
from math import prod
from typing import Any

from autofit.domain.values import dataclass

from autofit_llama.model.hparams import HParams

Shape = tuple[int, ...]
Named = tuple[str, Shape]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What two models of one architecture and of the same hyperparameters may differ in."""

    tied: bool = False
    rope_factors: int = 0  #: tensors of them
    biases: bool = False
    output_bias: bool = False
    head_norms: bool = True
    fused_qkv: bool = False
    router_bias: bool = False
    fused_experts: bool = False
    scaled_experts: bool = False
    scaled_layers: bool = False
    shared_values: bool = False  #: full layers beside sliding ones take keys as values


@cache
def names_of(arch: str) -> frozenset[str]:
    """Names of the tensors that llama.cpp may load for an architecture, without their block."""
    text = files("autofit_llama.logs").joinpath("tensor_names.json").read_text("utf-8")
    return frozenset(json.loads(text).get(arch, "").split())


def find_shapes(
    hp: HParams, metadata: Mapping[str, object], n_tensors: int, n_parameters: int, tolerance: int
) -> tuple[Named, ...] | None:
    """The tensors that agree with the log: their number exactly, parameters within `tolerance`. `None`: none do."""
    known = names_of(hp.arch)
    for traits in _candidates(known):
        tensors = tuple(_tensors(hp, metadata, known, traits))
        if len(tensors) == n_tensors and abs(sum(prod(ne) for _, ne in tensors) - n_parameters) <= tolerance:
            return tensors
    return None


def _candidates(known: frozenset[str]) -> Iterator[Traits]:
    """Combinations of what the architecture leaves open, plain ones first."""
    factors = [0, 1] if "rope_freqs.weight" in known else [0]
    factors += [2] if "rope_factors_long.weight" in known else []
    choices: dict[str, list[Any]] = {
        "fused_qkv": _open("attn_qkv.weight" in known and "attn_q.weight" in known),
        "fused_experts": _open("ffn_gate_up_exps.weight" in known),
        "tied": [False, True],
        "rope_factors": factors,
        "biases": _open("attn_q.bias" in known),
        "output_bias": _open("attn_output.bias" in known),
        "head_norms": [True, False],
        "router_bias": _open("exp_probs_b.bias" in known),
        "shared_values": _open("layer_output_scale.weight" in known),
        "scaled_layers": _open("layer_output_scale.weight" in known),
        "scaled_experts": _open("ffn_down_exps.scale" in known or "ffn_gate_inp.scale" in known),
    }
    for values in product(*choices.values()):
        yield Traits(**dict(zip(choices, values, strict=True)))


def _open(is_open: bool) -> list[Any]:
    return [False, True] if is_open else [False]


def _tensors(hp: HParams, metadata: Mapping[str, object], known: frozenset[str], traits: Traits) -> Iterator[Named]:
    yield "token_embd.weight", (hp.n_embd, hp.n_vocab)
    if not traits.tied:
        yield "output.weight", (hp.n_embd, hp.n_vocab)
    yield ("token_embd_norm.weight" if "token_embd_norm.weight" in known else "output_norm.weight"), (hp.n_embd,)
    n_rot = hp.n_rot_full // 2
    if traits.rope_factors == 1:
        yield "rope_freqs.weight", (n_rot,)
    if traits.rope_factors == 2:
        yield "rope_factors_long.weight", (n_rot,)
        yield "rope_factors_short.weight", (n_rot,)
    for il in range(hp.n_layer_all):
        for name, ne in _layer(hp, metadata, known, traits, il):
            yield f"blk.{il}.{name}", ne


#: norms over the embedding that a layer has where its architecture has them
_NORMS = ("post_attention_norm", "ffn_norm", "post_ffw_norm")


def _layer(
    hp: HParams, metadata: Mapping[str, object], known: frozenset[str], traits: Traits, il: int
) -> Iterator[Named]:
    yield "attn_norm.weight", (hp.n_embd,)
    if hp.is_recr[il] and hp.n_shortconv_l_cache:
        yield "shortconv.conv.weight", (hp.n_shortconv_l_cache, hp.n_embd)
        yield "shortconv.in_proj.weight", (hp.n_embd, 3 * hp.n_embd)
        yield "shortconv.out_proj.weight", (hp.n_embd, hp.n_embd)
    elif hp.is_recr[il] and _is_mamba(known):
        yield from _mamba(hp)
    elif hp.is_recr[il]:
        yield from _delta_net(hp, known)
    elif hp.n_lora_kv and hp.is_mla:
        yield from _latent(hp, metadata, il)
    elif hp.n_head_kv[il]:
        yield from _attention(hp, known, traits, il)
    for norm in _NORMS:
        if f"{norm}.weight" in known:
            yield f"{norm}.weight", (hp.n_embd,)
    if traits.scaled_layers:
        yield "layer_output_scale.weight", (1,)
    yield from _feed_forward(hp, metadata, known, traits, il)
    if il >= hp.n_layer:
        yield from _next_token(hp)


def _attention(hp: HParams, known: frozenset[str], traits: Traits, il: int) -> Iterator[Named]:
    q, k, v = hp.n_head[il] * hp.n_embd_head_k(il), hp.n_embd_k_gqa(il), hp.n_embd_v_gqa(il)
    gated = "attn_gate.weight" in known and any(hp.is_recr)  # full layers of these hybrids gate what they give
    wide = q * (2 if gated else 1)
    if traits.shared_values and hp.swa_type != "none" and not hp.is_swa[il]:
        v = 0
    fused = traits.fused_qkv or "attn_q.weight" not in known
    parts = [("attn_qkv", wide + k + v)] if fused else [("attn_q", wide), ("attn_k", k), ("attn_v", v)]
    for name, rows in parts:
        if rows:
            yield f"{name}.weight", (hp.n_embd, rows)
        if rows and traits.biases:
            yield f"{name}.bias", (rows,)
    yield "attn_output.weight", (hp.n_head[il] * hp.n_embd_head_v(il), hp.n_embd)
    if traits.output_bias:
        yield "attn_output.bias", (hp.n_embd,)
    if traits.head_norms and "attn_q_norm.weight" in known:
        yield "attn_q_norm.weight", (hp.n_embd_head_k(il),)
        yield "attn_k_norm.weight", (hp.n_embd_head_k(il),)
    if "attn_sinks.weight" in known:
        yield "attn_sinks.weight", (hp.n_head[il],)


def _latent(hp: HParams, metadata: Mapping[str, object], il: int) -> Iterator[Named]:
    """Multi-head latent attention (src/models/deepseek2.cpp)."""
    n_head, n_rot = hp.n_head[il], hp.n_rot_full
    k, v, lora = hp.n_embd_head_k_mla, hp.n_embd_head_v_mla, hp.n_lora_kv
    q_lora = metadata.get(f"{hp.arch}.attention.q_lora_rank", 0)
    if isinstance(q_lora, int) and q_lora:
        yield "attn_q_a_norm.weight", (q_lora,)
        yield "attn_q_a.weight", (hp.n_embd, q_lora)
        yield "attn_q_b.weight", (q_lora, n_head * k)
    else:
        yield "attn_q.weight", (hp.n_embd, n_head * k)
    yield "attn_kv_a_norm.weight", (lora,)
    yield "attn_kv_a_mqa.weight", (hp.n_embd, lora + n_rot)
    yield "attn_k_b.weight", (k - n_rot, lora, n_head)
    yield "attn_v_b.weight", (lora, v, n_head)
    yield "attn_output.weight", (n_head * v, hp.n_embd)


def _delta_net(hp: HParams, known: frozenset[str]) -> Iterator[Named]:
    """Gated delta net (src/models/qwen3next.cpp, src/models/qwen35.cpp)."""
    heads, wide = hp.ssm_dt_rank, hp.ssm_d_inner
    channels = wide + 2 * hp.ssm_n_group * hp.ssm_d_state
    yield "attn_qkv.weight", (hp.n_embd, channels)
    yield "attn_gate.weight", (hp.n_embd, wide)
    yield "ssm_conv1d.weight", (hp.ssm_d_conv, channels)
    yield "ssm_dt.bias", (heads,)
    yield "ssm_a", (heads,)
    if "ssm_ba.weight" not in known:
        yield "ssm_beta.weight", (hp.n_embd, heads)
        yield "ssm_alpha.weight", (hp.n_embd, heads)
    else:
        yield "ssm_ba.weight", (hp.n_embd, 2 * heads)
    yield "ssm_norm.weight", (wide // heads if heads else 0,)
    yield "ssm_out.weight", (wide, hp.n_embd)


def _mamba(hp: HParams) -> Iterator[Named]:
    """Mamba 2 (src/models/mamba2.cpp, src/models/nemotron-h.cpp)."""
    heads, wide, groups = hp.ssm_dt_rank, hp.ssm_d_inner, hp.ssm_n_group
    channels = wide + 2 * groups * hp.ssm_d_state
    yield "ssm_in.weight", (hp.n_embd, wide + channels + heads)
    yield "ssm_conv1d.weight", (hp.ssm_d_conv, channels)
    yield "ssm_conv1d.bias", (channels,)
    yield "ssm_dt.bias", (heads,)
    yield "ssm_a", (1, heads)
    yield "ssm_d", (1, heads)
    yield "ssm_norm.weight", (wide // groups if groups else 0, groups)
    yield "ssm_out.weight", (wide, hp.n_embd)


def _feed_forward(
    hp: HParams, metadata: Mapping[str, object], known: frozenset[str], traits: Traits, il: int
) -> Iterator[Named]:
    has_experts = bool(hp.n_expert) and il >= hp.n_layer_dense_lead and "ffn_down_exps.weight" in known
    both = "ffn_gate_inp.scale" in known and has_experts  # a dense part beside the experts
    if not has_experts or both:
        yield from _dense(hp, known, il)
    if not has_experts or not (hp.n_ff[il] or hp.n_ff_exp[il]) or _is_bare(hp, known, il):
        return
    n_ff = hp.n_ff_exp[il] or hp.n_ff[il]
    yield "ffn_gate_inp.weight", (hp.n_embd, hp.n_expert)
    gate_up = (
        [("ffn_gate_up_exps", 2 * n_ff)] if traits.fused_experts else [("ffn_gate_exps", n_ff), ("ffn_up_exps", n_ff)]
    )
    shapes = [(name, (hp.n_embd, rows, hp.n_expert)) for name, rows in gate_up if f"{name}.weight" in known]
    for name, ne in (*shapes, ("ffn_down_exps", (n_ff, hp.n_embd, hp.n_expert))):
        yield f"{name}.weight", ne
        if f"{name}.bias" in known:
            yield f"{name}.bias", (ne[1], hp.n_expert)
    if "ffn_gate_inp.bias" in known:
        yield "ffn_gate_inp.bias", (hp.n_expert,)
    if both:
        yield "ffn_gate_inp.scale", (hp.n_embd,)
        for norm in ("pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2"):
            yield f"{norm}.weight", (hp.n_embd,)
    if traits.scaled_experts:
        yield "ffn_down_exps.scale", (hp.n_expert,)
    if traits.router_bias:
        yield "exp_probs_b.bias", (hp.n_expert,)
    shared = _shared_ff(hp, metadata, n_ff)
    for part, flat in (("gate", (hp.n_embd, shared)), ("up", (hp.n_embd, shared)), ("down", (shared, hp.n_embd))):
        if shared and f"ffn_{part}_shexp.weight" in known:
            yield f"ffn_{part}_shexp.weight", flat
    if shared and "ffn_gate_inp_shexp.weight" in known:
        yield "ffn_gate_inp_shexp.weight", (hp.n_embd,)


def _is_bare(hp: HParams, known: frozenset[str], il: int) -> bool:
    """Whether a layer is a mixer alone: these hybrids give each part a layer (src/models/nemotron-h.cpp)."""
    return _is_mamba(known) and (hp.is_recr[il] or hp.n_head_kv[il] > 0)


def _is_mamba(known: frozenset[str]) -> bool:
    return "ssm_in.weight" in known and "attn_gate.weight" not in known


def _dense(hp: HParams, known: frozenset[str], il: int) -> Iterator[Named]:
    n_ff = hp.n_ff[il]
    if not n_ff:
        return
    gated = "ffn_gate.weight" in known
    if gated:
        yield "ffn_gate.weight", (hp.n_embd, n_ff)
    # without a gate of its own, the rows of both are one tensor where the activation wants a gate
    wide = n_ff if gated or hp.arch not in _JOINED else 2 * n_ff
    yield "ffn_up.weight", (hp.n_embd, wide)
    yield "ffn_down.weight", (n_ff, hp.n_embd)


#: architectures whose graphs cut gate and up out of one tensor (src/models/phi3.cpp, src/models/glm4.cpp)
_JOINED = frozenset({"phi3", "phimoe", "glm4", "chatglm", "jina-bert-v2"})


def _shared_ff(hp: HParams, metadata: Mapping[str, object], n_ff: int) -> int:
    """The width of shared experts: told as it is, or as how many there are."""
    n = metadata.get(f"{hp.arch}.expert_shared_count", 0)
    return hp.n_ff_shexp or (n * n_ff if isinstance(n, int) else 0)


def _next_token(hp: HParams) -> Iterator[Named]:
    """What the head of a multi-token prediction adds to its block (src/models/qwen35.cpp)."""
    yield "nextn.eh_proj.weight", (2 * hp.n_embd, hp.n_embd)
    yield "nextn.enorm.weight", (hp.n_embd,)
    yield "nextn.hnorm.weight", (hp.n_embd,)
    yield "nextn.shared_head_norm.weight", (hp.n_embd,)
