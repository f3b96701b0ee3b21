"""Plug-ins of vLLM itself: what it takes from outside its own package, and whether it is there (vllm/plugins)."""

from __future__ import annotations

from collections.abc import Mapping

from autofit.errors import UnsupportedModelError

GROUP = "vllm.general_plugins"
ALLOWED = "VLLM_PLUGINS"  #: the only plugins that vLLM loads, where it is set

#: entry point, distribution, and what to install for each method of quantization that left vLLM's own package
_OUTSIDE = {
    "bitsandbytes": ("bitsandbytes", "vllm-bnb-plugin", "vllm-bnb-plugin bitsandbytes"),
    "gguf": ("gguf", "vllm-gguf-plugin", "vllm-gguf-plugin"),
}

OUTSIDE = frozenset(_OUTSIDE)


def require(method: str, env: Mapping[str, str]) -> None:
    """Whoever names the plugin in VLLM_PLUGINS has it where the plan will run; else it must be installed here.

    Raises:
        UnsupportedModelError: neither, or VLLM_PLUGINS leaves it out.
    """
    entry, distribution, packages = _OUTSIDE[method]
    allowed = env.get(ALLOWED)
    if allowed is not None:
        if entry in allowed.split(","):
            return
        raise UnsupportedModelError(
            f"vLLM supports {method} only through the plugin {distribution}, and {ALLOWED} excludes it",
            hint=f"add {entry} to {ALLOWED}",
        )
    if not _is_installed(entry):
        raise UnsupportedModelError(
            f"vLLM supports {method} only through the plugin {distribution}, and it is not installed here",
            hint=f"pip install {packages}, or set {ALLOWED}={entry} if the plugin is installed where vLLM runs"
            + ("; or use `autofit llama`" if method == "gguf" else ""),
        )


def _is_installed(entry: str) -> bool:
    from importlib.metadata import entry_points

    return any(point.name == entry for point in entry_points(group=GROUP))
