"""Rules of memory that changed from one build of llama.cpp to another, of all that an architecture follows.

Each is a `Change` in the module of its rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from autofit_llama.engine.versions import Change, Version
from autofit_llama.model.family_index import FAMILIES

_MODULES = (
    "engine.versions",
    "graph.allocator",
    "graph.buffers",
    "graph.builder",
    "graph.cuda",
    "graph.cuda_flash",
    "graph.cuda_fusion",
    "graph.devices",
    "graph.model",
    "graph.recurrent",
    "graph.scheduler",
    "graph.sparse",
    "memory.placement",
    "memory.weights",
    "model.architecture",
    "model.caches",
    "model.context",
    "model.resolve",
    "model.rules",
)


def changes_for(arch: str) -> Iterator[Change]:
    """Those of every model, and those of the architecture's family."""
    family = FAMILIES.get(arch)
    for name in (*_MODULES, *((f"families.{family}",) if family else ())):
        yield from (value for value in vars(import_module(f"autofit_llama.{name}")).values() if type(value) is Change)


def unsure(arch: str, version: Version) -> tuple[str, ...]:
    """Changes of which it is not known whether this build has them, in words: the larger rule is followed."""
    return tuple(dict.fromkeys(c.name for c in changes_for(arch) if c.is_between(version.build)))
