"""The files that a command names, as references for whoever reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath

from autofit.domain.model import ModelSpec
from autofit.domain.text import printable
from autofit.errors import EngineRefusalError

from autofit_llama.command.settings import LlamaSettings


def model_of(settings: LlamaSettings) -> str | None:
    """The model: a path, or a remote name with its scheme."""
    return settings.model or _remote(settings.hf_repo, settings.model_url, settings.docker_repo)


def check_first(reference: str, model: ModelSpec) -> None:
    """Refuse a part of a split model that is not the first, though all parts were found from it.

    Raises:
        EngineRefusalError: the library loads a model by its first part alone (llama-model-loader.cpp).
    """
    names = [PurePath(file.path).name for file in model.files]
    if PurePath(reference).name in names[1:]:
        raise EngineRefusalError(
            f"llama.cpp refuses {printable(PurePath(reference).name)}: a model must be loaded with its first part",
            hint=f"give {printable(names[0])}",
        )


def companions_of(settings: LlamaSettings) -> Mapping[str, str]:
    """Other files by their role: `mmproj`, `draft`, `lora`, `lora1` ..., `control-vector`, `control-vector1` ..."""
    found = {
        "mmproj": settings.mmproj or settings.mmproj_url,
        "draft": settings.draft_model or _remote(settings.draft_hf_repo),
    }
    found |= {f"lora{i or ''}": path for i, path in enumerate(settings.loras)}
    found |= {f"control-vector{i or ''}": path for i, path in enumerate(settings.control_vectors)}
    return {role: reference for role, reference in found.items() if reference is not None}


def _remote(repository: str | None = None, url: str | None = None, docker: str | None = None) -> str | None:
    if repository is not None:
        return f"hf:{repository}"
    return url if url is not None or docker is None else f"docker:{docker}"


def beside(names: Sequence[str]) -> Mapping[str, str]:
    """Of the files in a model's folder, the projector and the draft model by the names that publishers give them.

    Of several projectors the one in f16 is taken, as it is what most repositories recommend.
    """
    found = {}
    for role in ("mmproj", "draft"):
        fitting = [name for name in names if name.lower().endswith(".gguf") and role in name.lower()]
        half = [name for name in fitting if "f16" in name.lower() and "bf16" not in name.lower()]
        if fitting:
            found[role] = (half or fitting)[0]
    return found
