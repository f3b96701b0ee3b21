"""llama.cpp's container images: which program each starts, and what it computes with.

Source: .devops/*.Dockerfile (ENTRYPOINT of the stages full, light and server), .devops/tools.sh,
.github/workflows/docker.yml (tags: VARIANT, VARIANT-ACCELERATOR, either with -bBUILD).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from autofit.backend import Contained
from autofit.domain.text import printable
from autofit.errors import UsageError
from autofit.text.containers import tag_of

DIRECTORY = "/app"
OWNER, NAME = "ghcr.io/ggml-org", "llama.cpp"
_TAG = re.compile(r"(full|light|server)(?:-([a-z0-9]+?))??(?:-?b[0-9]+)?(?:-[0-9a-f]{7,40})?")
_PROGRAMS = {"light": "llama-cli", "server": "llama-server"}
#: the first word behind a full image -> the program; all others convert or quantize
_TOOLS: Mapping[str, str] = {
    "--server": "llama-server", "-s": "llama-server", "--run": "llama-cli", "-r": "llama-cli",
    "--run-legacy": "llama-completion", "-l": "llama-completion", "--bench": "llama-bench", "-b": "llama-bench",
}  # fmt: skip
_APIS = {"cuda": "cuda", "rocm": "rocm", "vulkan": "vulkan", "intel": "sycl", "musa": "cuda", "cann": "cann"}


#: what devices are driven by -> the word in the tag
_ACCELERATORS = {"cuda": "-cuda", "rocm": "-rocm", "vulkan": "-vulkan", "sycl": "-intel", None: ""}


def image_of(version: str | None, api: str | None) -> str | None:
    """The image of llama-server of a build; `None`: there is none for such devices, or the build has no number."""
    if api not in _ACCELERATORS or version is None or not re.fullmatch(r"b[0-9]+", version):
        return None
    return f"{OWNER}/{NAME}:server{_ACCELERATORS[api]}-{version}"


def in_image(image: str, words: Sequence[str], entrypoint: Sequence[str] | None) -> Contained | None:
    """The command of llama.cpp that a container of one of its images runs; `None`: a tag of another kind.

    Raises:
        UsageError: words that start no program whose memory is planned.
    """
    found = _TAG.fullmatch(tag_of(image))
    if found is None and entrypoint is None:
        return None
    apis = None if found is None else _apis(found[2] or "")
    if entrypoint is not None:
        return Contained(argv=(*entrypoint, *words), apis=apis, directory=DIRECTORY)
    variant = found[1] if found is not None else ""
    if variant in _PROGRAMS:
        return Contained(argv=(_PROGRAMS[variant], *words), apis=apis, directory=DIRECTORY)
    first = words[0] if words else ""
    if first not in _TOOLS:
        raise UsageError(
            f"{printable(first, 60) or 'nothing'} behind a full image of llama.cpp: no program that is planned for",
            hint=f"its first word is one of {', '.join(word for word in _TOOLS if word.startswith('--'))}",
        )
    return Contained(argv=(_TOOLS[first], *words[1:]), apis=apis, directory=DIRECTORY)


def _apis(accelerator: str) -> frozenset[str]:
    name = accelerator.rstrip("0123456789")
    return frozenset((_APIS[name],)) if name in _APIS else frozenset()
