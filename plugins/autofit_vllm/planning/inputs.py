"""What is planned or checked: the model as vLLM builds it, its weights on a rank, and the GPUs that are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autofit.domain.machine import Device, Machine, Node
from autofit.domain.model import ModelSpec
from autofit.domain.request import Request
from autofit.domain.values import replace

from autofit_vllm.checkpoint.draft import (
    DraftModel,
    add_weights,
    attach,
    build_draft,
    draft_reference,
    is_here,
    read_draft,
    with_own_layers,
)
from autofit_vllm.command.settings import VllmSettings
from autofit_vllm.config.cluster import is_cluster, n_nodes, taken
from autofit_vllm.config.devices import across_nodes, count_nodes, n_machines, select_devices
from autofit_vllm.config.engine import EngineConfig, Gpu
from autofit_vllm.modules.model import StageWeights, VllmModel, Vocabulary
from autofit_vllm.planning.evaluation import gpu_of
from autofit_vllm.quantization import Quantization, quantization_for

if TYPE_CHECKING:
    from autofit_vllm.planning.problem import Problem

CPU_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"  #: GiB of KV cache in RAM


def problem_of(settings: VllmSettings, model: ModelSpec, machine: Machine, request: Request) -> Problem:
    """What is asked, with what `weigh` needs."""
    from autofit_vllm.planning.problem import Problem

    vllm_model = read_vllm_model(model, settings)
    several = is_cluster(machine)
    visible = () if several or is_cpu_build(settings, machine) else select_devices(machine, settings)
    whole, devices = on_nodes(machine, settings, request.device)
    quantization = read_quantization(vllm_model, model, settings, gpu_of(devices))
    draft = draft_of(model, settings, gpu_of(devices))
    vllm_model = attach(vllm_model, draft)
    known: dict[tuple[object, ...], tuple[StageWeights, ...]] = {}

    def weigh_once(config: EngineConfig) -> tuple[StageWeights, ...]:
        key = (config.parallel, config.dtype, config.draft is None)
        if key not in known:
            known[key] = weigh(vllm_model, config, settings, quantization, draft)
        return known[key]

    def changed(change: Mapping[str, Any]) -> Problem:
        return problem_of(replace(settings, **change), model, machine, request)

    return Problem(
        model=vllm_model,
        settings=settings,
        request=request,
        machine=whole,
        devices=devices,
        visible=visible,
        quantization=quantization,
        weigh=weigh_once,
        vision=vision_of(model),
        nodes=count_nodes(devices),
        changed=changed,
    )


def on_nodes(
    machine: Machine, settings: VllmSettings, wanted: Sequence[str], *, checked: bool = False
) -> tuple[Machine, tuple[Device, ...]]:
    """The machine with those of `--nnodes` that are like it, and the GPUs that vLLM will use on all.

    Of machines that are described, all are used, but for a command that is `checked`: it says how many.
    """
    if is_cpu_build(settings, machine):
        return machine, ()
    if is_cluster(machine):
        own = sum(not device.node for device in machine.devices if device.api == "cuda")
        count = n_machines(settings, own) if checked else n_nodes(machine)
        there = taken(machine, count, wanted)
        return there, there.devices
    local = select_devices(machine, settings, wanted)
    devices = across_nodes(local, n_machines(settings, len(local)))
    others = devices[len(local) :]
    names = dict.fromkeys(device.node for device in others)
    nodes = (*machine.nodes, *(Node(name=name) for name in names))
    links = (
        *machine.links,
        *(replace(link, a=f"{name}/{link.a}", b=f"{name}/{link.b}") for name in names for link in machine.links),
    )
    return replace(machine, devices=(*machine.devices, *others), nodes=nodes, links=links), devices


def read_vllm_model(model: ModelSpec, settings: VllmSettings) -> VllmModel:
    """What vLLM builds from this checkpoint under these settings.

    Raises:
        UnsupportedModelError, EngineRefusalError
    """
    from autofit_vllm.checkpoint.build import build_model

    notes: tuple[str, ...] = ()
    if model.format == "gguf":
        from autofit_vllm.checkpoint.gguf import as_checkpoint

        model, notes = as_checkpoint(model, settings)
    if isinstance(settings.hf_overrides, Mapping):
        # what `torch_dtype` was is in `dtype` when overrides come, and the old name changes nothing any more
        overrides = {key: value for key, value in settings.hf_overrides.items() if key != "torch_dtype"}
        metadata = _overridden(model.metadata, overrides)
        model = replace(model, metadata=metadata)
    built = build_model(
        model,
        language_model_only=settings.language_model_only,
        disabled_modalities=settings.disabled_modalities,
        pooling=settings.pooling,
        engine=settings.version,
    )
    built = with_own_layers(replace(built, notes=(*built.notes, *notes)) if notes else built, settings)
    if not settings.pooling:
        return built
    # A generative model that is made to embed loses its head (model_executor/models/adapters.py).
    kept = tuple(part for part in built.modules if not (isinstance(part, Vocabulary) and part.head))
    return replace(built, modules=kept)


def _overridden(config: Mapping[str, object], overrides: Mapping[str, Any]) -> dict[str, object]:
    """`--hf-overrides` applied to a configuration, mappings within it key by key."""
    result = dict(config)
    for key, value in overrides.items():
        own = result.get(key)
        both = isinstance(own, Mapping) and isinstance(value, Mapping)
        result[key] = _overridden(own, value) if both else value  # type: ignore[arg-type]
    return result


def read_quantization(model: VllmModel, spec: ModelSpec, settings: VllmSettings, gpu: Gpu) -> Quantization:
    """How the weights are kept on this kind of GPU.

    Raises:
        EngineRefusalError, UnsupportedModelError
    """
    packed = (tensor.name.removesuffix(".qweight") for tensor in spec.tensors if tensor.name.endswith(".qweight"))
    return quantization_for(
        model.quantization,
        capability=(10, 0) if gpu.cpu else gpu.cc,
        requested=settings.quantization.lower() if settings.quantization else None,
        model_type=model.model_type,
        architecture=model.architecture,
        quantized_layers=packed,
        ggml_types={tensor.name: tensor.type for tensor in spec.tensors} if spec.format == "gguf" else None,
        allow_deprecated=settings.allow_deprecated_quantization,
        env=settings.env,
        engine=settings.version,
    )


def draft_of(model: ModelSpec, settings: VllmSettings, gpu: Gpu, *, needed: bool = True) -> DraftModel | None:
    """The draft model; one that is not on this machine is an error where it is `needed`."""
    reference = draft_reference(settings)
    if not needed and reference is not None and "draft" not in model.companions and not is_here(reference):
        return None
    spec = read_draft(model, settings)
    return None if spec is None else build_draft(spec, gpu)


def weigh(
    model: VllmModel,
    config: EngineConfig,
    settings: VllmSettings,
    quantization: Quantization,
    draft: DraftModel | None = None,
) -> tuple[StageWeights, ...]:
    """The weights of each pipeline stage on one rank."""
    from autofit_vllm.memory.weights import LoraSpec, weights_per_rank

    lora = None
    if settings.enable_lora:
        lora = LoraSpec(
            max_loras=settings.max_loras,
            max_rank=settings.max_lora_rank,
            dtype=config.dtype if settings.lora_dtype == "auto" else settings.lora_dtype,
            fully_sharded=settings.fully_sharded_loras,
        )
    stages = weights_per_rank(
        model,
        config.parallel,
        dtype=config.dtype,
        quantization=quantization,
        lora=lora,
        with_draft=draft is None and config.draft is not None,
    )
    return add_weights(stages, draft, config)


def is_cpu_build(settings: VllmSettings, machine: Machine) -> bool:
    """Whether the environment speaks of vLLM's CPU build: there is no GPU, and its own variable is set."""
    cuda = any(device.api == "cuda" for device in machine.devices)
    return not cuda and bool(settings.env.get(CPU_VARIABLE))


def vision_of(model: ModelSpec) -> Mapping[str, object] | None:
    vision = model.metadata.get("vision_config")
    if not isinstance(vision, Mapping):
        return None
    extra = {key: model.metadata[key] for key in ("mm_tokens_per_image",) if key in model.metadata}
    return {**vision, **extra}
