"""What several architectures add to the keys that they read (load_arch_hparams of src/models/*.cpp)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from autofit_llama.engine.versions import Change
from autofit_llama.model.hparams import RopeType
from autofit_llama.model.metadata_reader import HParamsDraft, Metadata, fit

Rule = Callable[[HParamsDraft, Metadata], None]


PATTERN_LISTS = Change(
    without=11028,
    has=11040,
    source="src/llama-model.cpp:load_swa_pattern; before it, get_key_or_arr of one number in src/models",
    name="lists of sliding layers",
)


def _period(d: HParamsDraft, meta: Metadata, n_pattern: int, first: bool, lists: bool) -> None:
    """src/llama-model.cpp:load_swa_pattern: an array, a period, or the architecture's own period.

    `lists`: an array was read by every build.
    """
    pattern = meta.get("attention.sliding_window_pattern")
    if isinstance(pattern, tuple):
        d.is_swa = fit(meta.read("attention.sliding_window_pattern", "flags", 0, 0), d.n_layer_all)
        d.is_swa_by_period = () if lists else tuple(_sliding(d, n_pattern, first))
        return
    d.is_swa = _sliding(d, meta.number("attention.sliding_window_pattern", default=n_pattern), first)


def _sliding(d: HParamsDraft, n: int, first: bool) -> list[bool]:
    return [il < d.n_layer and (n == 0 or (il % n != 0 if first else il % n < n - 1)) for il in range(d.n_layer_all)]


def swa(n_pattern: int, *, first: bool = False, kind: str = "standard", lists: bool = False) -> Rule:
    """Sliding layers in a period; without a window (optional key) there are none."""

    def rule(d: HParamsDraft, meta: Metadata) -> None:
        if d.n_swa > 0:
            d.swa_type = kind
            _period(d, meta, n_pattern, first, lists)

    return rule


def swa_always(n_pattern: int, *, first: bool = False, kind: str = "standard", lists: bool = False) -> Rule:
    def rule(d: HParamsDraft, meta: Metadata) -> None:
        d.swa_type = kind
        _period(d, meta, n_pattern, first, lists)

    return rule


def swa_given(d: HParamsDraft, meta: Metadata) -> None:
    d.swa_type = "standard"


def default(**values: Any) -> Rule:
    """Set what no key of the file set."""

    def rule(d: HParamsDraft, meta: Metadata) -> None:
        for field, value in values.items():
            if field not in d.given:
                setattr(d, field, value)

    return rule


def force(**values: Any) -> Rule:
    def rule(d: HParamsDraft, meta: Metadata) -> None:
        for field, value in values.items():
            setattr(d, field, value)

    return rule


def gating(function: int) -> Rule:
    def rule(d: HParamsDraft, meta: Metadata) -> None:
        d.expert_gating_func = d.expert_gating_func or function

    return rule


SOFTMAX, SIGMOID, SQRT_SOFTPLUS = 1, 2, 4


def recurrent_without_kv_heads(d: HParamsDraft, meta: Metadata) -> None:
    d.is_recr = [il < d.n_layer and d.n_head_kv[il] == 0 for il in range(d.n_layer_all)]


def recurrent_without_kv_heads_all(d: HParamsDraft, meta: Metadata) -> None:
    d.is_recr = [n == 0 for n in d.n_head_kv]


def recurrent_interval(default: int) -> Rule:
    def rule(d: HParamsDraft, meta: Metadata) -> None:
        given = meta.read("attention.recurrent_layers", "layers", d.n_layer_all, d.n_layer)
        if given is not None:
            d.is_recr = given
            return
        interval = meta.number("full_attention_interval", default=default)
        if interval == 0:
            meta.refuse("full_attention_interval", "is 0")
        d.is_recr = [il < d.n_layer and (il + 1) % interval != 0 for il in range(d.n_layer_all)]

    return rule


def clamp_shared_as_routed(d: HParamsDraft, meta: Metadata) -> None:
    if "swiglu_clamp_shexp" not in d.given:
        d.swiglu_clamp_shexp = d.swiglu_clamp_exp


def finetuned_unless_told(d: HParamsDraft, meta: Metadata) -> None:
    d.rope_finetuned = d.rope_finetuned if "rope_finetuned" in d.given else True


def switch_rope(d: HParamsDraft, meta: Metadata) -> None:
    # Granite uses rope_finetuned as a switch for rope
    finetuned_unless_told(d, meta)
    d.rope_pattern = [d.rope_finetuned] * d.n_layer_all


def deepstack(d: HParamsDraft, meta: Metadata) -> None:
    used = {value for value in d.deepstack_mapping if value >= 0}
    d.n_deepstack_layers = len(used)
    if used and max(used) > len(used):
        meta.refuse("deepstack_mapping", f"index {max(used)} is beyond the {len(used)} embeddings")


def targets(d: HParamsDraft, meta: Metadata) -> None:
    n = meta.count("target_layers")
    if n is None:
        meta.refuse("target_layers", "is missing")
    d.n_target_layers = n


def require_sqrt_softplus(d: HParamsDraft, meta: Metadata) -> None:
    if d.expert_gating_func != SQRT_SOFTPLUS:
        meta.refuse("expert_gating_func", f"is {d.expert_gating_func}, the engine expects {SQRT_SOFTPLUS}")


def mrope_by_sections(otherwise: RopeType) -> Callable[[HParamsDraft], RopeType]:
    """llama_model_rope_type where files of both kinds exist."""

    def rope(d: HParamsDraft) -> RopeType:
        return "mrope" if d.rope_sections[0] > 0 and d.rope_sections[1] > 0 else otherwise

    return rope
