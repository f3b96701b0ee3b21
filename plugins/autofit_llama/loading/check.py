"""Whether a build of llama.cpp loads a file at all."""

from __future__ import annotations

from importlib import import_module

from autofit.domain.model import ModelSpec
from autofit.domain.plan import Finding
from autofit.errors import ModelError

from autofit_llama.engine.codes import finding
from autofit_llama.engine.versions import REFERENCE, Version
from autofit_llama.loading.loader import Loader
from autofit_llama.loading.tensors.index import TENSORS
from autofit_llama.loading.vocabulary import check_keys
from autofit_llama.model.load import draft_of, read_hparams


def check_loads(model: ModelSpec, version: Version) -> tuple[Finding, ...]:
    """Refuse a file that the engine's loader refuses; what is asked for is known of the reference build.

    Another build may ask for less, so there it is only told.

    Raises:
        CorruptModelError: with the key or tensor, its value and what the engine expects.
    """
    found = []
    for one in (model, model.companions.get("draft")):
        if one is None or one.architecture == "clip":
            continue
        read_hparams(one)  # its figures are bounded before anything is counted by them
        try:
            check_keys(one)
            check_tensors(one)
        except ModelError as error:
            if version.build == REFERENCE and version.fork is None:
                raise
            found.append(finding("file-may-be-refused", f"{error.message} (b{REFERENCE}; {version.name} may differ)"))
    return tuple(found)


def check_tensors(model: ModelSpec) -> None:
    """Hold a file's tensors to what b11311 asks for.

    Architectures without a record are not held to anything.

    Raises:
        CorruptModelError: a tensor is missing, has another shape, or is one too many
            (src/llama-model-loader.cpp: create_tensor, check_tensor_dims, done_getting_tensors).
    """
    home = TENSORS.get(model.architecture)
    if home is None or not model.tensors:
        return
    loader = Loader(model, draft_of(model))
    for module, function in (home, ("scales", "load")):
        load = getattr(import_module(f"autofit_llama.loading.tensors.{module}"), function)
        try:
            load(loader)
        except ZeroDivisionError:
            loader.refuse("its hyperparameters divide by 0")
    loader.done()
