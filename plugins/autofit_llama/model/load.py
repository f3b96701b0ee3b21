"""From a file's metadata to the hyperparameters: llama_model::load_hparams (src/llama-model.cpp).

What an architecture reads and adds by itself (load_arch_hparams) is in its record.
"""

from __future__ import annotations

from collections.abc import Mapping

from autofit.domain.model import ModelSpec
from autofit.domain.values import fields
from autofit.errors import UnsupportedModelError

from autofit_llama.model.architecture import Architecture, architecture_of, is_known
from autofit_llama.model.hparams import HParams
from autofit_llama.model.metadata_reader import KEYS, MAX_LAYERS, HParamsDraft, Kind, Metadata, fit, read, words
from autofit_llama.model.validate import validate

MAX_EXPERTS = 1024  #: src/llama-hparams.h

# The engine's own defaults where they are not zero (src/llama-hparams.h).
_DEFAULTS: Mapping[str, object] = {
    "n_layer_kv_from_start": -1,
    "router_layer": -1,
    "expert_group_scale": 0.05,
    "f_attn_logit_softcapping": 50.0,
    "f_router_logit_softcapping": 30.0,
    "f_final_logit_softcapping": 30.0,
    "token_shift_count": 2,
    "n_no_rope_layer_step": 4,
    "indexer_kpool_select_tail": True,
    "kda_gate_lower_bound": float("-inf"),
    "situ_beta": 1.0,
    "n_altup": 4,
    "laurel_rank": 64,
    "n_embd_altup": 256,
    "n_cls_out": 1,
    "n_loops": 1,
    "swa_type": "none",
    "hidden_act": "",
    "rope_sections": (0, 0, 0, 0),
}
_ZERO: Mapping[Kind, object] = {"int": 0, "float": 0.0, "bool": False, "str": ""}
_OTHER_ZEROS = words("""
    n_embd_inp n_embd_inp_enc n_embd_out i_altup_act n_embd_head_la n_target_layers ple_n_heads ple_head_dim
    ple_ngram_size ple_heads_per_ngram ple_conv_kernel posnet_n_embd posnet_n_layer convnext_n_embd
    convnext_n_layer
""")


def read_hparams(model: ModelSpec) -> HParams:
    """The hyperparameters of a GGUF model.

    Raises:
        CorruptModelError: a key is missing, has the wrong type or a value that the engine's loader rejects.
        UnsupportedModelError: llama.cpp names the architecture but cannot load it as a language model.
    """
    draft = draft_of(model)
    read_ones = vars(draft)
    return validate(HParams(**{field.name: read_ones[field.name] for field in fields(HParams)}), model)


def draft_of(model: ModelSpec) -> HParamsDraft:
    """All that the engine reads, also what only its loader asks about; raises as `read_hparams` does."""
    meta = Metadata(model)
    if meta.arch == "clip":
        raise UnsupportedModelError(
            "clip is not a language model", hint="give it to llama-server with --mmproj, together with its model"
        )
    arch = architecture_of(meta.arch)
    d = _base(meta, arch)
    read(d, meta, arch.hparams.fields)
    for rule in arch.hparams.rules:
        rule(d, meta)
    _finish(d, arch)
    return d


def _base(meta: Metadata, arch: Architecture) -> HParamsDraft:
    """src/llama-model.cpp:load_hparams up to load_arch_hparams."""
    d = HParamsDraft(arch=meta.arch, given=set(), n_vocab=meta.n_vocab)
    for field, (_, kind) in KEYS.items():
        if kind in _ZERO:
            setattr(d, field, _ZERO[kind])
    for field in _OTHER_ZEROS:
        setattr(d, field, 0)
    for field, value in _DEFAULTS.items():
        setattr(d, field, value)
    d.is_swa_by_period = ()
    d.use_alibi = d.attn_soft_cap = d.use_kq_norm = False
    d.f_attn_temp_offset = 0.0

    d.n_ctx_train = meta.number("context_length")
    d.n_ctx_orig_yarn = meta.number("rope.scaling.original_context_length", default=d.n_ctx_train)
    d.n_embd = meta.number("embedding_length")
    d.n_embd_out = meta.number("embedding_length_out", default=0)
    d.causal_attn = meta.read("attention.causal", "bool", 0, 0) is not False
    d.pooling_type = meta.number("pooling_type", default=-1)
    d.pooling_type_cls = meta.number("classifier.pooling_type", default=-1)
    d.n_layer_all = n = meta.number("block_count")
    if not 0 < n <= MAX_LAYERS:
        meta.refuse("block_count", f"is {n}, the engine takes 1 to {MAX_LAYERS}")
    d.n_layer_nextn = meta.number("nextn_predict_layers", default=0)
    if d.n_layer_nextn > n:
        meta.refuse("nextn_predict_layers", f"is {d.n_layer_nextn} of {n} blocks")
    d.n_layer = n - d.n_layer_nextn
    if arch.sizes is not None:
        arch.sizes(d, meta)
    if d.n_embd == 0:
        meta.refuse("embedding_length", "is 0")
    _experts(d, meta, arch)
    _layers(d, meta, arch)
    d.rope_finetuned = bool(meta.read("rope.scaling.finetuned", "bool", 0, 0))
    _heads(d, meta, arch)
    d.n_cls_out = meta.count("classifier.output_labels") or 1
    return d


def _layers(d: HParamsDraft, meta: Metadata, arch: Architecture) -> None:
    """What each layer has of its own."""
    n = d.n_layer_all
    d.n_ff = meta.read("feed_forward_length", "layers", n, n) or [0] * n
    d.n_head = meta.read("attention.head_count", "layers", n, n) or [0] * n
    d.n_head_kv = meta.read("attention.head_count_kv", "layers", n, n) or list(d.n_head)
    for key, values in (
        ("feed_forward_length", d.n_ff),
        ("attention.head_count", d.n_head),
        ("attention.head_count_kv", d.n_head_kv),
    ):
        if min(values) < 0:
            meta.refuse(key, f"holds {min(values)}")
    if not arch.memory.is_recurrent and is_known(meta.arch) and not any(d.n_head):
        meta.refuse("attention.head_count", "is 0 or missing")
    d.n_ff_exp = [0] * n
    d.swiglu_clamp_exp, d.swiglu_clamp_shexp = [0.0] * n, [0.0] * n
    d.rope_pattern = [True] * n
    d.is_swa, d.is_indexer_full, d.is_ple = [False] * n, [False] * n, [False] * n
    d.is_recr = [arch.memory.is_recurrent] * n
    d.deepstack_mapping, d.dsv4_compress_ratios = [-1] * n, [0] * n


def _heads(d: HParamsDraft, meta: Metadata, arch: Architecture) -> None:
    """Sizes of a head, with the full context and in a window."""
    n_head = d.n_head[0]
    if n_head > 0:
        d.n_embd_head_k_full = meta.number("attention.key_length", default=d.n_embd // n_head)
        d.n_embd_head_v_full = meta.number("attention.value_length", default=d.n_embd // n_head)
        d.n_rot_full = meta.number("rope.dimension_count", default=d.n_embd_head_k_full)
        if arch.rotates_whole_heads and d.n_rot_full != d.n_embd_head_k_full:
            meta.refuse("rope.dimension_count", f"is {d.n_rot_full}, the engine expects {d.n_embd_head_k_full}")
    d.n_embd_head_k_swa = meta.number("attention.key_length_swa", default=d.n_embd_head_k_full)
    d.n_embd_head_v_swa = meta.number("attention.value_length_swa", default=d.n_embd_head_v_full)
    d.n_rot_swa = meta.number("rope.dimension_count_swa", default=d.n_rot_full)


def _experts(d: HParamsDraft, meta: Metadata, arch: Architecture) -> None:
    n = d.n_layer_all
    d.n_expert = meta.number("expert_count", default=0)
    d.n_expert_used = meta.read("expert_used_count", "layers", n, n) or [0] * n
    d.n_expert_groups = meta.number("expert_group_count", default=0)
    d.n_group_used = meta.number("expert_group_used_count", default=0)
    if arch.lone_expert_is_dense and d.n_expert <= 1:
        d.n_expert, d.n_expert_used = 0, [0] * n
    used = max(d.n_expert_used)
    if d.n_expert > MAX_EXPERTS:
        meta.refuse("expert_count", f"is {d.n_expert}, the engine takes at most {MAX_EXPERTS}")
    if used > d.n_expert or min(d.n_expert_used) < 0 or (d.n_expert and not used):
        meta.refuse("expert_used_count", f"is {used} of {d.n_expert} experts")
    groups = d.n_expert_groups
    if groups and groups >= d.n_expert:
        meta.refuse("expert_group_count", f"is {groups} for {d.n_expert} experts")
    if groups > 1 and (d.n_expert % groups or not 0 < d.n_group_used < groups):
        meta.refuse("expert_group_used_count", f"is {d.n_group_used} of {groups} groups of {d.n_expert} experts")


_PER_LAYER: Mapping[str, object] = {
    "n_head": 0, "n_head_kv": 0, "n_ff": 0, "n_ff_exp": 0, "n_expert_used": 0, "dsv4_compress_ratios": 0,
    "deepstack_mapping": -1, "rope_pattern": True, "is_swa": False, "is_recr": False, "is_ple": False,
    "is_indexer_full": False, "swiglu_clamp_exp": 0.0, "swiglu_clamp_shexp": 0.0,
}  # fmt: skip


def _finish(d: HParamsDraft, arch: Architecture) -> None:
    for field, fill in _PER_LAYER.items():
        values = fit(getattr(d, field), d.n_layer_all, fill)
        setattr(d, field, tuple(map(bool, values)) if isinstance(fill, bool) else tuple(values))
    d.use_alibi = d.f_max_alibi_bias > 0.0
    d.rope_type = arch.rope if isinstance(arch.rope, str) else arch.rope(d)
    d.n_embd_inp = d.n_embd_inp or d.n_embd * (1 + d.n_deepstack_layers)
    d.known = is_known(d.arch)
