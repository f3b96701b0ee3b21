"""The metadata of a model out of a log: the keys that the loader dumps, and `print_info` for what it cuts off."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from autofit.domain.model import StringArray
from autofit.domain.observed import Observed

MAX_LIST = 4096
_ARRAY = re.compile(r"arr\[(\w{1,8}),(\d{1,12})\]")
#: how `print_info` calls what a key of the architecture sets (src/llama-model.cpp:print_info)
_INFO = {
    "n_ctx_train": "context_length",
    "n_embd": "embedding_length",
    "n_layer_all": "block_count",
    "n_head": "attention.head_count",
    "n_head_kv": "attention.head_count_kv",
    "n_embd_head_k": "attention.key_length",
    "n_embd_head_v": "attention.value_length",
    "n_rot": "rope.dimension_count",
    "n_swa": "attention.sliding_window",
    "n_ff": "feed_forward_length",
    "n_expert": "expert_count",
    "n_expert_used": "expert_used_count",
    "n_vocab": "vocab_size",
    "ssm_d_conv": "ssm.conv_kernel",
    "ssm_d_inner": "ssm.inner_size",
    "ssm_d_state": "ssm.state_size",
    "ssm_dt_rank": "ssm.time_step_rank",
    "ssm_n_group": "ssm.group_count",
    "n_ff_exp": "expert_feed_forward_length",
    "n_ff_shexp": "expert_shared_feed_forward_length",
    "n_expert_shared": "expert_shared_count",
    "n_layer_dense_lead": "leading_dense_block_count",
    "n_lora_q": "attention.q_lora_rank",
    "n_lora_kv": "attention.kv_lora_rank",
    "n_embd_head_k_mla": "attention.key_length_mla",
    "n_embd_head_v_mla": "attention.value_length_mla",
    "n_layer_nextn": "nextn_predict_layers",
    "n_embd_head_k_swa": "attention.key_length_swa",
    "n_embd_head_v_swa": "attention.value_length_swa",
    "n_rot_swa": "rope.dimension_count_swa",
}
#: printed for every model, where 0 stands for a key that the file does not have
_MAY_BE_ABSENT = frozenset(
    {"n_swa", "n_expert", "n_expert_used", "ssm_d_conv", "ssm_d_inner", "ssm_d_state", "ssm_dt_rank", "ssm_n_group"}
    | {"n_ff_exp", "n_ff_shexp", "n_expert_shared", "n_layer_dense_lead", "n_lora_q", "n_lora_kv", "n_layer_nextn"}
    | {"n_embd_head_k_mla", "n_embd_head_v_mla"}
)
_FLOATS = {
    "f_norm_eps": "attention.layer_norm_epsilon",
    "f_norm_rms_eps": "attention.layer_norm_rms_epsilon",
    "freq_base_train": "rope.freq_base",
}
#: lists of the file that print_info shows whole
_WHOLE = {"attention.head_count": "n_head", "attention.head_count_kv": "n_head_kv", "feed_forward_length": "n_ff"}


def metadata_of(observed: Observed) -> dict[str, object]:
    """Keys and values as the file has them; without an architecture there are none.

    Numbers are what the log rounds them to; lists that it cuts off are completed from `print_info`, or go on as they
    began. Keys of which nothing certain is left are not there.
    """
    arch = _architecture(observed.facts)
    if not arch:
        return {}
    found: dict[str, object] = {"general.architecture": arch}
    for name, fact in observed.facts.items():
        if name.startswith("kv.") and isinstance(fact, tuple):
            key = name.removeprefix("kv.")
            value = _value(observed.facts, arch, key, str(fact[0]), str(fact[1]))
            if value is not None:
                found[key] = value
    return {**_from_info(observed.facts, arch), **found}


def _architecture(facts: Mapping[str, object]) -> str:
    fact = facts.get("kv.general.architecture")
    if isinstance(fact, tuple):
        return str(fact[1])[:60]
    return str(facts.get("info.arch", ""))[:60]


def _value(facts: Mapping[str, object], arch: str, key: str, kind: str, text: str) -> object:
    array = _ARRAY.fullmatch(kind)
    if array:
        return _list(facts, key.removeprefix(f"{arch}."), array[1], int(array[2]), text)
    if kind == "str":
        return None if text.endswith("...") and len(text) >= 40 else text
    if kind == "bool":
        return text == "true"
    return _number(text, is_float=kind.startswith("f"))


def _number(text: str, *, is_float: bool) -> int | float | None:
    try:
        return float(text) if is_float else int(text)
    except ValueError:
        return None


def _list(facts: Mapping[str, object], key: str, kind: str, count: int, text: str) -> object:
    if kind == "str" or count > MAX_LIST:
        return StringArray(count=count, element_type=kind)
    whole = facts.get(f"info.{_WHOLE[key]}") if key in _WHOLE else None
    words = [
        word.strip() for word in str(text if whole is None else whole).strip("[] .").split(",") if word.strip(" .")
    ]
    values: list[Any] = [
        word == "true" if kind == "bool" else _number(word, is_float=kind.startswith("f")) for word in words
    ]
    if not values or None in values:
        return None
    if len(values) < count:
        values = _continued(values, count)
    return tuple(values[:count])


def _continued(values: list[Any], count: int) -> list[Any]:
    """A list that goes on as it began: with the period after which its first other value came."""
    other = next((at for at, value in enumerate(values) if value != values[0]), None)
    period = values[: other + 1] if other is not None else values[:1]
    return (period * (count // len(period) + 1))[:count]


def _from_info(facts: Mapping[str, object], arch: str) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, key in _INFO.items():
        text = facts.get(f"info.{name}", facts.get("info.n_layer") if name == "n_layer_all" else None)
        if text is None:
            continue
        values = [_number(word.strip(), is_float=False) for word in str(text).strip("[]").split(",")[:MAX_LIST]]
        if None in values or (name in _MAY_BE_ABSENT and not any(values)):
            continue
        found[f"{arch}.{key}"] = values[0] if len(values) == 1 else tuple(values)
    for name, key in _FLOATS.items():
        number = _number(str(facts.get(f"info.{name}", "")), is_float=True)
        if number:
            found[f"{arch}.{key}"] = number
    return found
