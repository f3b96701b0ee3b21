"""One architecture of vLLM: its class, and what the class can do."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from autofit.domain.values import dataclass

from autofit_vllm.architectures.registry import CLASSES
from autofit_vllm.engine.versions import NEWEST


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What vLLM's registry says of one word of `architectures` (model_executor/models/registry.py:_ModelInfo).

    There are no defaults: an ability without a field, or a field that nobody fills, is an error.
    """

    name: str
    class_name: str
    pipeline: bool  #: its layers may be spread over pipeline stages
    lora: bool  #: adapters may be loaded
    multimodal: bool  #: it takes more than text
    hybrid: bool  #: attention and recurrent layers
    attention_free: bool
    pooling: bool  #: it embeds, classifies or ranks, and never generates
    encoder_only: bool  #: attention both ways, no cache


ABILITIES = ("pipeline", "lora", "multimodal", "hybrid", "attention_free", "pooling", "encoder_only")
#: a class that vLLM's registry does not name: one that its Transformers backend takes
_TRANSFORMERS = "transformers:TransformersForCausalLM pipeline lora"


@cache
def classes_at(release: str) -> Mapping[str, str]:
    """The registry of a release: class and abilities by architecture."""
    if release == NEWEST:
        return CLASSES
    from autofit_vllm.engine.history import table_at

    return table_at("classes", release, {name: entry.partition(":")[2] for name, entry in CLASSES.items()})


def is_missing(name: str, release: str) -> bool:
    """Whether a release surely has no class for an architecture that the newest one has a class for."""
    return release != NEWEST and name in CLASSES and name not in classes_at(release)


@cache
def architecture_of(name: str, release: str = NEWEST) -> Architecture:
    """The record of an architecture, whether or not its layers are known here.

    Raises:
        ValueError: the generated registry has a word that is no ability.
    """
    where, *words = classes_at(release).get(name, _TRANSFORMERS).split()
    if unknown := set(words).difference(ABILITIES):
        raise ValueError(f"{name}: no field for {', '.join(sorted(unknown))}")
    class_name = where.rpartition(":")[2]
    return Architecture(name=name, class_name=class_name, **{ability: ability in words for ability in ABILITIES})
