"""Registers the vLLM backend; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable

from autofit.hookspecs import BackendRef, RendererRef, hookimpl


@hookimpl
def autofit_register_backends() -> Iterable[BackendRef]:
    return (
        BackendRef(
            "vllm",
            "plan a vllm serve command for a safetensors model",
            "autofit_vllm.backend:VllmBackend",
            ("vllm",),
            (
                "vllm/vllm-openai",
                "vllm/vllm-openai-rocm",
                "vllm/vllm-openai-cpu",
                "rocm/vllm",
                "rocm/vllm-dev",
                "nvidia/vllm",
            ),
        ),
    )


NO_FIT = "# it does not fit"


@hookimpl
def autofit_register_renderers() -> Iterable[RendererRef]:
    return (
        RendererRef("vllm-config", "vllm serve --config", "autofit_vllm.command.config:render", NO_FIT),
        RendererRef("helm", "values of the vLLM production stack", "autofit_vllm.command.stack:render", NO_FIT),
        RendererRef("ray-serve", "an application of Ray Serve LLM", "autofit_vllm.command.ray:render", NO_FIT),
        RendererRef("kuberay", "a RayService of KubeRay", "autofit_vllm.command.kuberay:render", NO_FIT),
    )
