"""What a rotary embedding keeps: a table of cosines and sines (model_executor/layers/rotary_embedding)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autofit_vllm.architectures.config import Config

_BY_LAYER_TYPE = frozenset(
    {
        "full_attention",
        "sliding_attention",
        "chunked_attention",
        "linear_attention",
        "sparse_attention",
        "main",
        "compress",
    }
)
_MROPE_FACTOR = 4  #: layers/rotary_embedding/mrope.py keeps four times the positions, in case video is pruned


def rope_parameters(config: Config, layer_type: str | None = None) -> Mapping[str, Any]:
    """`rope_parameters`, or the older `rope_scaling`, with `partial_rotary_factor` beside it folded in.

    Models that rotate differently per kind of layer nest one table per `layer_type`.
    """
    given = config.table("rope_parameters") or config.table("rope_scaling")
    if given and set(given) <= _BY_LAYER_TYPE:
        nested = given.get(layer_type or "full_attention")
        given = nested if isinstance(nested, Mapping) else {}
    parameters = dict(given)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    parameters["rope_type"] = {"su": "longrope", "mrope": "default"}.get(kind, kind)
    for key in ("partial_rotary_factor", "rotary_pct", "rotary_emb_fraction"):
        factor = config.get(key)
        if isinstance(factor, int | float) and "partial_rotary_factor" not in parameters:
            parameters["partial_rotary_factor"] = factor
    if "original_max_position_embeddings" not in parameters:
        original = config.maybe_int("original_max_position_embeddings")
        if original is not None:
            parameters["original_max_position_embeddings"] = original
    return parameters


def all_rope_parameters(config: Config) -> list[Mapping[str, Any]]:
    """The tables of every kind of layer (transformers_utils/config.py:iter_rope_parameters)."""
    given = config.table("rope_parameters") or config.table("rope_scaling")
    if given and set(given) <= _BY_LAYER_TYPE:
        return [rope_parameters(config, kind) for kind, own in given.items() if isinstance(own, Mapping) and own]
    if given or config.get("rope_theta") is not None:
        return [rope_parameters(config)]
    return []


def rotary_size(parameters: Mapping[str, Any], head_size: int) -> int:
    """Elements of a head that are rotated: the columns of the table."""
    if rope_dim := parameters.get("rope_dim"):
        return int(rope_dim)
    return int(head_size * float(parameters.get("partial_rotary_factor") or 1.0))


def rope_cache_rows(parameters: Mapping[str, Any], max_position: int, mrope_factor: int = _MROPE_FACTOR) -> int:
    """Positions that the table holds (layers/rotary_embedding/__init__.py:get_rope and its classes)."""
    kind = parameters.get("rope_type", "default")
    factor = float(parameters.get("factor") or 1.0)
    original = int(parameters.get("original_max_position_embeddings") or max_position)
    if kind == "yarn":
        rows = int(original * factor)
        return rows * mrope_factor if "mrope_section" in parameters else rows
    if kind in ("deepseek_yarn", "deepseek_llama_scaling"):
        return int(original * factor)
    if kind == "longrope":
        return original + max_position
    if kind == "linear":
        return int(max_position * factor)
    if kind == "default" and "mrope_section" in parameters:
        return max_position * mrope_factor
    return max_position
