"""Models that autofit ships: full-size ones described without their weights, and a tiny real one."""

from __future__ import annotations

from pathlib import Path

from autofit.domain.model import ModelFiles
from autofit.domain.text import printable
from autofit.errors import ModelNotFoundError

_MODELS = Path(__file__).parent.parent / "_models"
_SUFFIXES = (".gguf", ".json.gz")


def example_names() -> tuple[str, ...]:
    """Every NAME of `example:NAME`."""
    return tuple(sorted(path.name.removesuffix(suffix) for suffix in _SUFFIXES for path in _MODELS.glob(f"*{suffix}")))


def find(reference: str) -> ModelFiles:
    """The file of `example:NAME`."""
    return ModelFiles(reference=reference, paths=(find_example(reference.partition(":")[2]),))


def find_example(name: str) -> str:
    """The path of an example's file.

    Raises:
        ModelNotFoundError: no example has this name; the hint lists them.
    """
    paths = _paths()
    path = paths.get(name.lower())
    if path is None:
        raise ModelNotFoundError(
            f"example:{printable(name, 60)}: no such example", hint=f"examples: {', '.join(sorted(paths))}"
        )
    return str(path)


def _paths() -> dict[str, Path]:
    return {path.name.removesuffix(suffix): path for suffix in _SUFFIXES for path in _MODELS.glob(f"*{suffix}")}
