"""Parameters, buffers and caches of many models as vLLM itself builds them: published configurations in many
quantizations, on several GPUs, split in several ways. Recorded byte for byte."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from typing import Any

import pytest
from autofit.errors import AutofitError

from autofit_vllm.architectures import Options, build_from_config
from autofit_vllm.memory.weights import weights_per_rank
from autofit_vllm.modules.model import (
    AttentionCache,
    IndexerCache,
    LatentCache,
    PackedCache,
    Parallel,
    StateCache,
    VllmModel,
)
from autofit_vllm.quantization import quantization_for
from support.vllm_models import GPUS
from support.vllm_recorded import recorded

#: how vLLM calls the kinds of cache
SPECS = {
    "full": "FullAttention",
    "sliding": "SlidingWindow",
    "chunked": "ChunkedLocalAttention",
    "cross": "CrossAttention",
}


def models() -> list[str]:
    return sorted({row["model"] for row in recorded()["rows"]})


def arguments(words: list[str]) -> tuple[Parallel, Options, str | None]:
    parallel: dict[str, Any] = {}
    options: dict[str, Any] = {}
    requested = None
    rest = iter(words)
    for word in rest:
        if word in ("-tp", "-pp", "-dp"):
            parallel[word[1:]] = int(next(rest))
        elif word == "-ep":
            parallel["expert_parallel"] = True
        elif word == "-q":
            requested = next(rest)
        elif word == "--runner":
            options["pooling"] = next(rest) == "pooling"
        elif word == "--convert":
            next(rest)
        elif word == "--language-model-only":
            options["language_model_only"] = True
        elif word == "--allow-deprecated-quantization":
            pass
        else:
            raise AssertionError(word)
    return Parallel(**parallel), Options(**options), requested


def configuration(row: dict[str, Any]) -> dict[str, Any]:
    config = dict(recorded()["configs"][row["model"]])
    if "quantisation" in row:
        config["quantization_config"] = recorded()["quantisations"][row["quantisation"]]
    return config


def predicted(row: dict[str, Any]) -> tuple[VllmModel, list[list[int]]]:
    """The model, and bytes of parameters and buffers of each stage."""
    parallel, options, requested = arguments(row["args"])
    model = build_from_config(configuration(row), options)
    quantization = quantization_for(
        model.quantization,
        capability=GPUS[row["gpu"]][1],
        requested=requested,
        model_type=model.model_type,
        architecture=model.architecture,
        allow_deprecated="--allow-deprecated-quantization" in row["args"],
    )
    stages = weights_per_rank(model, parallel, dtype=row.get("dtype", "bfloat16"), quantization=quantization)
    return model, [[stage.parameter_bytes, stage.buffer_bytes] for stage in stages]


def caches(model: VllmModel, row: dict[str, Any]) -> Counter[str]:
    """The layers' caches as recorded: kind, heads on a rank, sizes, window; or shapes and types of a state."""
    tp = arguments(row["args"])[0].tp
    found: Counter[str] = Counter()
    for cache_ in model.caches:
        match cache_:
            case StateCache():
                types = cache_.dtypes(row["dtype"], "auto", model.ssm_dtype or "auto")
                found[json.dumps(["state", cache_.shapes(tp), types])] += 1
            case LatentCache():
                found[json.dumps(["mla", cache_.head_size, cache_.window_tokens])] += 1
            case PackedCache():
                found[json.dumps(["packed", cache_.tokens_per_row, cache_.window_tokens])] += 1
            case IndexerCache():
                found[json.dumps(["mla", cache_.bytes_per_token // cache_.element_bytes, None])] += 1
            case AttentionCache():
                sizes = [cache_.kv_heads_per_rank(tp), cache_.head_size, cache_.head_size_v]
                found[json.dumps([SPECS[cache_.kind], *sizes, cache_.window_tokens or 0])] += 1
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", models())
def test_model(name: str) -> None:
    wrong = defaultdict(list)
    for row in recorded()["rows"]:
        if row["model"] != name:
            continue
        label = " ".join([row.get("quantisation", ""), row["gpu"], *row["args"]]).strip()
        try:
            model, ranks = predicted(row)
        except AutofitError as error:
            if "refused" not in row:
                wrong[label].append(f"refused: {error}")
            continue
        if "refused" in row:
            wrong[label].append(f"vLLM refuses: {row['refused']}")
        elif ranks != row["ranks"]:
            wrong[label].append(f"{ranks} is not {row['ranks']}")
        elif "caches" in row:
            want = Counter({json.dumps(key): count for key, count in row["caches"]})
            if caches(model, row) != want:
                wrong[label].append(f"{caches(model, row)} is not {want}")
    assert not wrong
