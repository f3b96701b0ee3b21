"""Registers the llama.cpp backend; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable

from autofit.hookspecs import BackendRef, HardwareSourceRef, RendererRef, hookimpl

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


@hookimpl
def autofit_register_hardware_sources() -> Iterable[HardwareSourceRef]:
    return (
        HardwareSourceRef(
            "llama.cpp", "`llama-server --list-devices`", "autofit_llama.engine.devices:find", fills_gaps=True
        ),
    )


@hookimpl
def autofit_register_renderers() -> Iterable[RendererRef]:
    return (
        RendererRef(
            "llama-presets",
            "llama-server --models-preset",
            "autofit_llama.command.presets:render",
            "; it does not fit",
            "autofit_llama.command.router:render_fleet",
        ),
    )
