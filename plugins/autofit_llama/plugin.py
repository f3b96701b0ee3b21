"""Registers the llama.cpp backend; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable

from autofit.hookspecs import BackendRef, hookimpl


@hookimpl
def autofit_register_backends() -> Iterable[BackendRef]:
    return (
        BackendRef(
            "llama",
            "plan a llama-server command for a GGUF model",
            "autofit_llama.backend:LlamaBackend",
            (
                "llama-server",
                "llama-cli",
                "llama-fit-params",
                "llama-bench",
                "llama-completion",
                "llama",
                # engines made from llama.cpp, whose commands are refused by name
                "llamafile",
                "koboldcpp",
                "ollama",
                "lms",
            ),
            ("llama.cpp",),
        ),
    )
