"""What a command puts where, compute buffers left out: weights and caches per device and on the host."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from autofit.domain.model import ModelSpec
from autofit.domain.units import round_up

from autofit_llama.command.parse import settings_of
from autofit_llama.command.reading import read
from autofit_llama.graph.devices import CUDA, RPC, DeviceRules, device_bytes
from autofit_llama.graph.ggml import HOST
from autofit_llama.launch.defaults import buffer_names, check_launch, check_stands_alone, chosen, launch_of
from autofit_llama.memory.placement import buffer_rules, place_layers
from autofit_llama.memory.weights import HOST_ALIGNMENT, WeightPlan, loaded_weights, place_weights
from autofit_llama.model.context import Context
from autofit_llama.model.hparams import HParams
from autofit_llama.model.load import read_hparams
from autofit_llama.model.resolve import caches, resolve_context
from support.descriptors import DATA, spec

RULES = {"cuda": CUDA, "rpc": RPC}
NAMES = {"cuda": "CUDA", "rpc": "RPC"}

Row = Mapping[str, Any]


class Placed(NamedTuple):
    context: Context
    weights: WeightPlan
    device_cache_bytes: list[int]
    host_cache_bytes: int


@cache
def model_of(part: str, name: str) -> tuple[ModelSpec, HParams]:
    model = spec(part, name)
    return model, read_hparams(model)


@cache
def tiny_rows() -> tuple[Row, ...]:
    lines = gzip.decompress((Path(DATA) / "tiny_runs.jsonl.gz").read_bytes()).decode().splitlines()
    return tuple(map(json.loads, lines))


def place(model: ModelSpec, hp: HParams, argv: Sequence[str], free_mib: Sequence[int], api: str) -> Placed:
    """Raises:
    AutofitError: the command is refused.
    """
    reading = read(argv)
    launch = launch_of(settings_of(reading), reading.program)
    check_stands_alone(hp, {tensor.name for tensor in model.tensors})
    check_launch(launch, hp, (api,) * len(free_mib))
    places = chosen(launch, len(free_mib))
    devices: list[DeviceRules] = [RULES[api]] * len(places)
    free = [float(free_mib[i] << 20) for i in places]
    split = (*launch.tensor_split, *[0.0] * len(places))[: len(places)]
    context = resolve_context(hp, launch.context)
    placement = place_layers(hp.n_layer_all, launch.n_gpu_layers, split if any(split) else free, len(places))
    buffers = buffer_rules(
        devices,
        names=buffer_names([f"{NAMES[api]}{i}" for i in places], launch.rpc),
        overrides=launch.overrides,
        no_host=launch.no_host,
        repack=launch.repack,
    )
    weights = loaded_weights(model, hp, load_mtp=launch.load_mtp, lazy_mode=launch.lazy_mode)
    plan = place_weights(weights, hp, placement, buffers)
    on_device, on_host = [0] * len(places), 0
    for kept in caches(hp, context):
        for tensor in kept.tensors:
            home = placement.of(tensor.il) if context.offload_kqv else HOST
            if home == HOST:
                on_host += round_up(tensor.n_bytes, HOST_ALIGNMENT)
            else:
                on_device[home] += device_bytes(devices[home], tensor.type, tensor.n_elements, tensor.n_bytes)
    return Placed(context, plan, on_device, on_host)
