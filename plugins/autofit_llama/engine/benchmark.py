"""llama-bench: one prompt and some generated tokens of a model. Source: b11311
(tools/llama-bench/llama-bench.cpp:json_printer)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from autofit.domain.text import printable
from autofit.errors import EngineError


def command(model: str) -> tuple[str, ...]:
    """Prompt of 512 and 64 generated tokens, three times, all layers offloaded."""
    return ("llama-bench", "-m", model, "-p", "512", "-n", "64", "-r", "3", "-ngl", "99", "-o", "json")


def parse(text: str) -> tuple[Mapping[str, Any], ...]:
    """The rows of its JSON.

    Raises:
        EngineError: not JSON, no row, or a row without its figures.
    """
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as cause:
        raise EngineError(f"llama-bench: its answer is not JSON: {cause}") from cause
    found = [_row(row) for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    if not found:
        raise EngineError("llama-bench: no result in its answer")
    return tuple(found)


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    n_prompt, n_gen, rate = row.get("n_prompt"), row.get("n_gen"), row.get("avg_ts")
    if not isinstance(n_prompt, int) or not isinstance(n_gen, int) or not isinstance(rate, (int, float)) or rate < 0:
        raise EngineError("llama-bench: a row without n_prompt, n_gen and avg_ts")
    layers = row.get("n_gpu_layers")
    return {
        "model": printable(str(row.get("model_type") or row.get("model_filename") or "?"), 80),
        "test": f"pp{n_prompt}" if n_prompt else f"tg{n_gen}",
        "tokens_per_s": round(float(rate), 2),
        **({"n_gpu_layers": layers} if isinstance(layers, int) else {}),
    }
