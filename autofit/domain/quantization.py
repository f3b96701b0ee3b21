"""The forms in which an engine can be given one model: each with every tensor's type and exact bytes."""

from __future__ import annotations

from collections.abc import Mapping

from autofit.domain.model import ModelSpec
from autofit.domain.values import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """A published figure of what a quantization loses. It is of one model, and no more than a hint for another."""

    measure: str  #: what was measured, as its source says it
    value: float
    model: str  #: of which model
    source: str  #: file and release, or address


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """One form of a model. `name` is the word for it; `model` is what a plan is made for.

    `refusal` says why the engine would not make or take it: then there is no model, and no bytes. `kin` is the same
    for forms that stand for each other: of these the fastest is taken.
    """

    name: str
    model: ModelSpec | None = None
    weights_bytes: int | None = None  #: of all tensors, or of all parameters that the engine makes of them
    n_parameters: int = 0  #: of the model itself, without scales
    types_bytes: Mapping[str, int] = field(default_factory=dict)  #: of each tensor type, the heaviest first
    file_bytes: int | None = None  #: what lies on disk, headers included
    engine_args: tuple[str, ...] = ()  #: flags with which the engine takes the model in this form
    kin: str = ""
    is_float: bool = False  #: nothing is packed
    at_hand: bool = False  #: it is the form of the file that was named
    same_as: str = ""  #: the name of another form with the same types
    only_for: str = ""  #: which models it is meant for, where not for all
    needs: str = ""  #: what making it takes besides the original: an importance matrix
    refusal: str = ""
    notes: tuple[str, ...] = ()
    quality: tuple[Quality, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A form made to measure: the command that makes it, and what comes out of it."""

    argv: tuple[str, ...]
    quantization: Quantization
    because: str
