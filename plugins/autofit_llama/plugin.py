"""Registers the llama.cpp backend; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable

from autofit.hookspecs import BackendRef, hookimpl

from autofit_llama.engine.programs import PROGRAMS


@hookimpl
def autofit_register_backends() -> Iterable[BackendRef]:
    return (
        BackendRef(
            "llama",
            "plan a llama-server command for a GGUF model",
            "autofit_llama.backend:LlamaBackend",
            PROGRAMS,
            ("llama.cpp",),
        ),
    )
