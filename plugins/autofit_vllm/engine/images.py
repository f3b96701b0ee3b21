"""vLLM's container images: what they start.

Source: docker/Dockerfile (ENTRYPOINT of vllm-openai), docker/Dockerfile.rocm (vllm-openai-rocm), docker/Dockerfile.cpu;
AMD's and NVIDIA's own images start what stands behind them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from autofit.backend import Contained
from autofit.errors import UsageError
from autofit.text.containers import repository_of

#: the end of a name -> what it computes with
OWN = {
    "vllm/vllm-openai": frozenset(("cuda",)),
    "vllm/vllm-openai-rocm": frozenset(("rocm",)),
    "vllm/vllm-openai-cpu": frozenset[str](),
}
#: images without a program of their own
BARE = {"rocm/vllm": frozenset(("rocm",)), "rocm/vllm-dev": frozenset(("rocm",)), "nvidia/vllm": frozenset(("cuda",))}


def image_of(version: str | None, api: str | None) -> str | None:
    """The image of a release; `None`: there is none for such devices."""
    name = {"cuda": "vllm/vllm-openai", "rocm": "vllm/vllm-openai-rocm"}.get(api or "")
    if name is None or version is None or not re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+", version):
        return None
    return f"{name}:v{version}"


def in_image(image: str, words: Sequence[str], entrypoint: Sequence[str] | None) -> Contained | None:
    """The command that a container of one of these images runs.

    Raises:
        UsageError: nothing is started.
    """
    repository = f"/{repository_of(image)}"
    name = next((name for name in (*OWN, *BARE) if repository.endswith(f"/{name}")), None)
    if name is None:
        return None
    apis = {**OWN, **BARE}[name]
    if entrypoint is not None:
        return Contained(argv=(*entrypoint, *words), apis=apis)
    if name in BARE:
        if not words:
            raise UsageError("the image starts what stands behind it, which is nothing", hint="add vllm serve MODEL")
        return Contained(argv=tuple(words), apis=apis)
    return Contained(argv=("vllm", "serve", *words), apis=apis)
