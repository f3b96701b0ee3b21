"""Whether a build of llama.cpp loads a file at all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module

from autofit.domain.model import ModelSpec
from autofit.domain.plan import Finding
from autofit.domain.text import printable
from autofit.errors import EngineRefusalError, ModelError

from autofit_llama.engine.codes import finding
from autofit_llama.engine.versions import REFERENCE, Version
from autofit_llama.loading.graphs import ASSERTED, CONDITIONS
from autofit_llama.loading.loader import Loader
from autofit_llama.loading.tensors.index import TENSORS
from autofit_llama.loading.vocabulary import check_keys
from autofit_llama.model.aborts import HINT
from autofit_llama.model.load import draft_of, read_hparams
from autofit_llama.model.metadata_reader import KEYS, key_of


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
            check_graph(one)
        except (ModelError, EngineRefusalError) as error:
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


def check_graph(model: ModelSpec) -> None:
    """Hold a file's hyperparameters to what the graph of its architecture asserts before it is built.

    Raises:
        EngineRefusalError: with the assertion, and the keys and values that it is about.
    """
    asserted = ASSERTED.get(model.architecture)
    if asserted is None or not model.tensors:
        return
    loader = Loader(model, draft_of(model))
    for number in asserted.split():
        condition, holds = CONDITIONS[int(number)]
        if not holds(loader):
            values = ", ".join(dict.fromkeys(_values(condition, loader)))
            raise EngineRefusalError(
                f"llama.cpp aborts with this {printable(model.architecture, 40)} model "
                f"at GGML_ASSERT({condition}): {values}",
                hint=HINT,
            )


def _values(condition: str, loader: Loader) -> Iterator[str]:
    """The figures that a condition speaks of, by key."""
    for name in re.findall(r"[a-z]\w+", condition):
        value = getattr(loader.hparams, name)
        value = value() if callable(value) else value
        key = key_of(name if name in KEYS or f"{name}_full" not in KEYS else f"{name}_full")
        yield f"{key} is {value}"
