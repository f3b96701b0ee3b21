"""What `--speculative-config` adds: a second model, or a checkpoint's own layers (v1/spec_decode)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from autofit.domain.model import ModelSpec
from autofit.domain.text import printable
from autofit.domain.values import dataclass, replace
from autofit.errors import AutofitError, ModelError, ModelNotFoundError, UnsupportedModelError

from autofit_vllm.command.settings import VllmSettings
from autofit_vllm.config.engine import EngineConfig, Gpu
from autofit_vllm.modules.model import (
    Cache,
    Draft,
    Linear,
    Module,
    Parallel,
    Part,
    Plain,
    StageWeights,
    StateCache,
    VllmModel,
)
from autofit_vllm.quantization import Quantization, quantization_for

#: Heads that read the target's hidden states: one decoder layer of the target's family, mostly.
HEAD_CLASS = "LlamaForCausalLM"
#: Methods that read no second model (config/speculative.py:SpeculativeMethod).
WITHOUT_MODEL = ("ngram", "ngram_gpu", "suffix", "mtp", "custom_class", "extract_hidden_states")


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftModel:
    """A model that proposes tokens. It is divided over the tensor-parallel ranks of the last stage."""

    model: VllmModel
    quantization: Quantization
    file_bytes: int  #: of its tensors, 0 if there are none
    approximate: bool  #: a class that is not known: taken for a decoder of its shape

    @property
    def layers(self) -> Draft:
        """What the target's plan counts beside its own caches."""
        return Draft(n_layers=self.model.n_layers, modules=(), caches=self.model.caches)

    def n_bytes(self, config: EngineConfig) -> int:
        """Weights on a rank.

        Raises:
            EngineRefusalError: it does not divide like the target.
        """
        from autofit_vllm.memory.weights import weights_per_rank

        target = config.parallel
        parallel = Parallel(tp=target.tp, dp=target.dp, expert_parallel=target.expert_parallel)
        (stage,) = weights_per_rank(self.model, parallel, dtype=config.dtype, quantization=self.quantization)
        if self.approximate:
            return max(stage.total_bytes, self.file_bytes)
        return stage.total_bytes


def draft_reference(settings: VllmSettings) -> str | None:
    """The model that `--speculative-config` names beside the target."""
    config = settings.speculative_config or {}
    name, method = config.get("model"), config.get("method")
    if method in WITHOUT_MODEL or not isinstance(name, str) or name == settings.model:
        return None
    return name


def is_here(reference: str) -> bool:
    """Whether a draft model's files are on this machine."""
    from autofit.sources import resolve

    try:
        return all(os.path.lexists(path) for path in resolve(reference).paths)
    except (AutofitError, OSError, ValueError):
        return False


def read_draft(spec: ModelSpec, settings: VllmSettings) -> ModelSpec | None:
    """The draft model: a companion that was read already, or else its own files. `None`: none is named."""
    reference = draft_reference(settings)
    if reference is None:
        return None
    if "draft" in spec.companions:
        return spec.companions["draft"]
    from autofit.domain.names import parse_bare
    from autofit.readers import read_model
    from autofit.sources import resolve

    try:
        return read_model(resolve(reference))
    except ModelNotFoundError as error:
        if parse_bare(reference) is None:
            raise
        raise ModelNotFoundError(
            f"the draft model {printable(reference, 80)} is not on this machine, and no repository that can be read",
            hint="check its name in --speculative-config; HF_TOKEN opens what is not public",
        ) from error


def build_draft(spec: ModelSpec, gpu: Gpu) -> DraftModel:
    """What vLLM makes of a draft model.

    Raises:
        ModelError: it is not one that vLLM can read.
    """
    from autofit_vllm.checkpoint.build import build_model

    approximate = False
    try:
        model = build_model(spec)
    except UnsupportedModelError:
        approximate = True
        shaped = replace(spec, metadata={**spec.metadata, "architectures": [HEAD_CLASS]}, tensors=())
        model = build_model(shaped)
    if not model.caches and not model.modules:
        raise ModelError(f"{spec.name}: not a draft model that can be counted")
    quantization = quantization_for(
        model.quantization,
        capability=(10, 0) if gpu.cpu else gpu.cc,
        model_type=model.model_type,
        architecture=model.architecture,
    )
    return DraftModel(
        model=model,
        quantization=quantization,
        file_bytes=sum(tensor.n_bytes for tensor in spec.tensors),
        approximate=approximate,
    )


def attach(target: VllmModel, draft: DraftModel | None) -> VllmModel:
    """The target with the draft's caches on its last layer's stage; without a draft, its own layers go."""
    if draft is None:
        return target
    caches = tuple(
        replace(cache, name=f"draft_model.{cache.name}", stage=max(0, target.n_layers - 1))
        for cache in draft.layers.caches
    )
    note: Mapping[bool, tuple[str, ...]] = {
        True: (f"the draft model's class is not known: counted as {HEAD_CLASS} of its shape",),
        False: (),
    }
    return replace(
        target,
        draft=replace(draft.layers, caches=caches),
        notes=(*target.notes, *note[draft.approximate]),
    )


def add_weights(
    stages: tuple[StageWeights, ...], draft: DraftModel | None, config: EngineConfig
) -> tuple[StageWeights, ...]:
    """The draft's weights lie on the last stage."""
    if draft is None:
        return stages
    last = stages[-1]
    grown = replace(last, draft_bytes=last.draft_bytes + draft.n_bytes(config))
    return (*stages[:-1], grown)


# -- A checkpoint's own layers ---------------------------------------------------------------------

#: Model types whose checkpoints carry layers that predict further (config/speculative.py:hf_config_override),
#: and how their two inputs are joined: undivided and never quantized, or divided over the output.
_JOINED_WHOLE = frozenset(
    {
        "deepseek_v3",
        "deepseek_v32",
        "glm_moe_dsa",
        "kimi_k2",
        "glm4_moe",
        "glm4_moe_lite",
        "ernie4_5_moe",
        "mimo",
        "longcat_flash",
        "step3p5",
    }
)
_JOINED_APART = frozenset(
    {"qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "exaone_moe", "nemotron_h"}
)
_ONE_BY_DEFAULT = frozenset({"qwen3_next", "longcat_flash"})
_COUNTS = ("mtp_num_hidden_layers", "num_nextn_predict_layers")


def with_own_layers(model: VllmModel, settings: VllmSettings) -> VllmModel:
    """The model with the multi-token-prediction layers that `--speculative-config` asks for.

    Each is one more decoder layer that attends, made like the model's last, behind a projection of the hidden
    state and the next token's embedding; embedding and head are the model's own.
    """
    method = (settings.speculative_config or {}).get("method")
    known = model.model_type in _JOINED_WHOLE or model.model_type in _JOINED_APART
    if model.draft is not None or not isinstance(method, str) or not method.endswith("mtp") or not known:
        return model
    values = (model.config.get(key) for key in _COUNTS)
    count = next((value for value in values if isinstance(value, int)), None)
    if count is None and model.model_type in _ONE_BY_DEFAULT:
        count = 1
    like = max((cache.stage for cache in model.caches if not isinstance(cache, StateCache)), default=None)
    if not count or like is None:
        return model
    modules: list[Module] = []
    caches: list[Cache] = []
    for index in range(count):
        name = f"mtp.layers.{index}"
        modules += [_renamed(part, like, name) for part in model.modules if part.stage == like]
        caches += [_renamed(cache, like, name) for cache in model.caches if cache.stage == like]
        modules += _joint(model, name)
    return replace(model, draft=Draft(n_layers=count, modules=tuple(modules), caches=tuple(caches)))


def _joint(model: VllmModel, name: str) -> list[Module]:
    size, last = model.hidden_size, max(0, model.n_layers - 1)
    whole = model.model_type in _JOINED_WHOLE
    return [
        Linear(
            name=f"{name}.fc",
            stage=last,
            kind="replicated" if whole else "column",
            in_size=2 * size,
            parts=(Part("fc", size),),
            quantizable=not whole,
        ),
        *(Plain(name=f"{name}.{norm}.weight", stage=last, shape=(size,)) for norm in ("enorm", "hnorm", "norm")),
    ]


def _renamed(part: Any, like: int, name: str) -> Any:
    """The same under another name, on the last layer's stage."""
    return replace(part, name=re.sub(rf"^.*?layers\.{like}\.", f"{name}.", part.name))
