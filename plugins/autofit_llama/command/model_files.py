"""The files that a command names, as references for whoever reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath

from autofit.domain.model import ModelSpec
from autofit.domain.names import is_elsewhere, parse_hub
from autofit.domain.text import printable
from autofit.errors import EngineRefusalError

from autofit_llama.command.settings import LlamaSettings

#: programs that load the projector of a repository with its model (common/arg.cpp:mmproj_examples)
_WITH_PROJECTOR = ("llama-server", "llama-cli")


def model_of(settings: LlamaSettings) -> str | None:
    """The model: a path, or a remote name with its scheme. A repository is loaded whatever `-m` says.

    Source: common/arg.cpp:common_models_handler_apply.
    """
    if settings.hf_repo is not None:
        return _remote(settings.hf_repo, file=settings.hf_file)
    return settings.model or _remote(url=settings.model_url, docker=settings.docker_repo)


def model_flags(reference: str) -> tuple[str, ...]:
    """How a command names the model of a reference: `-m PATH`, `-hf REPO`, `-mu URL` or `-dr NAME`."""
    scheme, _, rest = reference.partition(":")
    if not is_elsewhere(reference) or scheme in ("url", "ollama"):
        return "-m", reference
    if scheme == "docker":
        return "-dr", rest
    name = parse_hub(rest) if scheme == "hf" else None
    if name is None:
        return "-mu", reference
    if name.file is not None:
        return "-hf", name.repository, "-hff", name.file
    return "-hf", f"{name.repository}:{name.choice}" if name.choice else name.repository


def loaded_with(program: str, settings: LlamaSettings, written: str, offered: Mapping[str, str]) -> Mapping[str, str]:
    """The projector that a repository offers, which `-hf` loads with the model.

    Source: common/arg.cpp:common_models_handler_init.
    """
    from_hub = settings.hf_repo is not None or model_flags(written)[0] == "-hf"
    named = settings.mmproj or settings.mmproj_url
    if not from_hub or named or settings.mmproj_auto is False or program not in _WITH_PROJECTOR:
        return {}
    return {role: reference for role, reference in offered.items() if role == "mmproj"}


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


def _remote(
    repository: str | None = None, url: str | None = None, docker: str | None = None, file: str | None = None
) -> str | None:
    if repository is not None:
        # a file that is named is taken, whatever quantization stands behind the repository
        return f"hf:{repository.partition(':')[0]}:{file}" if file else f"hf:{repository}"
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
