"""`config.json` of a Hugging Face model: values that make no sense, at any depth, and quantizations."""

from __future__ import annotations

import json
import random
from functools import cache
from typing import Any

import autofit
from autofit.domain.machine import Machine
from autofit.domain.model import ModelFile, ModelSpec
from autofit.errors import CorruptModelError
from autofit.readers.documents import parse_json
from autofit.readers.hf_layers import figure, hf_layers, text_config

from support.fuzzing.gguf import sound
from support.fuzzing.values import mutate_tree
from support.vllm_recorded import recorded

MACHINES = (("h100-80gb",), ("rtx-3090", "rtx-3090"), ("generic-cuda:4GiB",), ("b200",) * 4, ("gb10",))
FLAGS: tuple[tuple[str, ...], ...] = (
    (), (), (), ("-tp", "2"), ("-pp", "2"), ("--max-model-len", "4096"), ("--quantization", "fp8"),
    ("--kv-cache-dtype", "fp8"),
    ("--enable-expert-parallel",), ("--dtype", "float16"), ("--trust-remote-code",), ("--enforce-eager",),
)  # fmt: skip
LISTS = ("ignore", "modules_to_not_convert", "targets", "exclude_modules")
PATTERNS = ("re:(a+)+$", "re:([a-z._0-9]+)+!$", "re:.*", "re:(", "re:[", "*", "", "re:" + "(" * 200, "re:^(.|..)*z$",
            "model.layers.0.mlp", "re:.*(\\d+)+x.*", "Linear", 3, None)  # fmt: skip


def make(rng: random.Random) -> Any:
    configs, quantizations = recorded()["configs"], recorded()["quantisations"]
    raw = dict(configs[rng.choice(sorted(configs))])
    if rng.random() < 0.35:
        raw["quantization_config"] = json.loads(json.dumps(quantizations[rng.choice(sorted(quantizations))]))
        if rng.random() < 0.5:
            where = raw["quantization_config"]
            if isinstance(where, dict):
                where[rng.choice(LISTS)] = [rng.choice(PATTERNS) for _ in range(rng.choice((1, 3, 200)))]
    changed = mutate_tree(raw, rng, rng.choice((1, 1, 1, 2, 4, 8)))
    return {"config": changed, "on": rng.randrange(len(MACHINES)), "flags": rng.choice(FLAGS)}


@cache
def machine(number: int) -> Machine:
    return autofit.load_machine(*MACHINES[number], ram="256GiB")


def model_of(config: Any) -> ModelSpec:
    """The model of a `config.json`, by the reader's own steps, but for the file."""
    metadata = parse_json(json.dumps(config).encode(), "config.json")
    if not isinstance(metadata, dict):
        raise CorruptModelError("config.json", "not a JSON object")
    text = text_config(metadata)
    classes = metadata.get("architectures")
    first = classes[0] if isinstance(classes, list) and classes else metadata.get("model_type")
    return ModelSpec(
        name="m", format="config", architecture=first if isinstance(first, str) else "unknown",
        files=(ModelFile(path="m/config.json", size_bytes=1),), tensors=(), layers=hf_layers(text, ()),
        metadata=metadata,
        hidden_elements=figure(text, "hidden_size"), n_vocab=figure(text, "vocab_size"),
        context_train_tokens=figure(text, "max_position_embeddings"),
    )  # fmt: skip


def run(given: Any) -> None:
    model = model_of(given["config"])
    sound(autofit.plan("vllm", model, machine(given["on"]), engine_args=given["flags"], settings=None))
    sound(autofit.check(["vllm", "serve", "m", *given["flags"]], machine(given["on"]), model=model))
