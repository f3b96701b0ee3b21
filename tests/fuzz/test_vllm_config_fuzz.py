"""Hostile configurations: whatever stands in them, an error of ours or a model, in bounded time."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
from autofit.errors import AutofitError

from autofit_vllm.architectures import build_from_config
from autofit_vllm.memory.weights import weights_per_rank
from autofit_vllm.modules.model import Parallel
from autofit_vllm.quantization import quantization_for
from support.vllm_recorded import recorded

ODD: list[Any] = [
    None,
    0,
    -1,
    1,
    3,
    True,
    2.5,
    float("inf"),
    1 << 39,
    1 << 70,
    "",
    "x",
    "\x1b[2J",
    [],
    [None],
    ["x"] * 3,
    {},
    {"rope_type": 7},
    {"x": {"y": []}},
]


def mutated(raw: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The configuration with a few values replaced by nonsense, at any depth."""
    raw = copy.deepcopy(raw)
    for _ in range(rng.randint(1, 4)):
        here: Any = raw
        while True:
            key = rng.choice(list(here))
            if isinstance(here[key], dict) and here[key] and rng.random() < 0.7:
                here = here[key]
                continue
            break
        if rng.random() < 0.2:
            del here[key]
        else:
            here[key] = rng.choice(ODD)
        if not raw:
            break
    return raw


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_nonsense_in_a_configuration(seed: int) -> None:
    rng = random.Random(seed)
    names = sorted(recorded()["configs"])
    quantizations = list(recorded()["quantisations"].values())
    for _ in range(60):
        raw = dict(recorded()["configs"][rng.choice(names)])
        if rng.random() < 0.4:
            raw["quantization_config"] = rng.choice(quantizations)
        raw = mutated(raw, rng)
        layout = Parallel(tp=rng.choice([1, 2, 3]), pp=rng.choice([1, 2]), expert_parallel=rng.random() < 0.3)
        try:
            model = build_from_config(raw)
            found = quantization_for(model.quantization, capability=(9, 0), model_type=model.model_type)
            stages = weights_per_rank(model, layout, dtype="bfloat16", quantization=found)
        except AutofitError as error:
            assert str(error).isprintable(), repr(str(error))
        else:
            assert all(stage.parameter_bytes >= 0 for stage in stages)
