"""The quantizations of one model that a folder or a repository has, ranked together: each is planned for like one file.

What is best of several quantizations depends on what counts: of those that no other one is better than in price,
memory, rate and quality, each is somebody's answer.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from autofit.advice.hardware import ROWS, HardwareAdvice, Limits, advise_hardware, in_price, marked
from autofit.advice.subject import HardwareRow, Subject
from autofit.domain.quantization import Quantization
from autofit.domain.text import printable
from autofit.domain.values import dataclass, replace
from autofit.errors import AutofitError, EngineRefusalError, ModelError, UnsupportedModelError
from autofit.host import blamed, host
from autofit.quant_choice import quality_ranks
from autofit.references import Found, locate, read
from autofit.sources.choice import split_name

if TYPE_CHECKING:
    from autofit.advice.prices import Prices
    from autofit.domain.model import ModelSpec, Offer
    from autofit.settings.layers import Surroundings

MAX_FORMS = 24  #: headers that are read
LEAST_EACH = 4  #: rows that are planned of each quantization, where several are ranked


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One quantization. `quality`: its place among all of them, 0 the least (`autofit.quant_choice.quality_ranks`)."""

    subject: Subject
    quantization: Quantization
    quality: int = 0

    @property
    def name(self) -> str:
        """As its files spell it; empty where the model that was named is the only one."""
        return self.quantization.name

    @property
    def bits_per_weight(self) -> float:
        return _bits(self.quantization)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forms:
    """The quantizations of a model, the smallest first; of what is `left_out` the reason."""

    forms: tuple[Form, ...]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """What hardware each quantization takes (`found`, in the order of `forms`), and the rows to show of all, by price.

    `on_front` of a row: no other one, of any quantization, is as good in price, memory, rate and quality.
    """

    forms: tuple[Form, ...]
    found: tuple[HardwareAdvice, ...]
    rows: tuple[tuple[Form, HardwareRow], ...]
    left_out: tuple[str, ...] = ()

    @property
    def is_several(self) -> bool:
        return len(self.forms) > 1 or bool(self.forms[0].name)

    @property
    def least_bytes(self) -> int:
        """Of weights and cache on devices, of the quantization that takes the least."""
        return min(one.needs.device_bytes for one in self.found)

    @property
    def nearest(self) -> tuple[Form, HardwareRow] | None:
        """The smallest that takes one of them beyond the limits, where nothing within takes any."""
        near = [
            (form, one.nearest) for form, one in zip(self.forms, self.found, strict=True) if one.nearest is not None
        ]
        return min(near, key=lambda pair: in_price(pair[1].candidate)[1:], default=None) if not self.rows else None


def forms_of(reference: str, backend: str | None, given: Mapping[str, Any], settings: Surroundings | None) -> Forms:
    """What a reference leads to: the one model that it names, or every quantization that its place has of one.

    Raises:
        ModelError, UsageError: as for `Subject`; none of several can be planned for.
    """
    files = locate(reference)
    if files.is_chosen or len(files.offers) < 2:
        subject = Subject(reference, backend, given, settings, Found(read(files), files))
        return Forms(forms=(_form(subject, "", {}),))
    offers = sorted(files.offers, key=lambda offer: offer.size_bytes)
    names = names_of([offer.reference for offer in offers])
    subjects, refused = _subjects(offers[:MAX_FORMS], names, backend, given, settings)
    refused += [f"{name}: only the {MAX_FORMS} smallest are compared" for name in names[MAX_FORMS:]]
    if not subjects:
        raise ModelError(
            f"{printable(reference)}: none of {len(offers)} quantizations can be planned for", hint=refused[0]
        )
    most = max(subject.ram_bytes for subject in subjects.values())  # one computer for all
    for subject in subjects.values():
        subject.ram_bytes = most
    published = _published(next(iter(subjects.values())))
    found = [_form(subject, name, published) for name, subject in subjects.items()]
    found.sort(key=lambda form: form.quantization.weights_bytes or 0)
    ranks = quality_ranks([form.quantization for form in found])
    ranked = [replace(form, quality=each) for form, each in zip(found, ranks, strict=True)]
    return Forms(forms=tuple(ranked), left_out=tuple(refused))


def names_of(references: Sequence[str]) -> list[str]:
    """What tells files of one model apart, of their names: `UD-Q4_K_XL` of `m-UD-Q4_K_XL-00001-of-00002.gguf`."""
    stems = [split_name(reference).prefix for reference in references]
    bases = [stem.replace(os.sep, "/").rpartition("/")[2] for stem in stems]
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*(base.casefold() for base in bases), strict=False))
    common = "".join(letters[0] for letters in same)
    start = max(common.rfind(mark) for mark in "-.") + 1
    return [base[start:] if bases.count(base) == 1 else stem for base, stem in zip(bases, stems, strict=True)]


def _subjects(
    offers: Sequence[Offer],
    names: Sequence[str],
    backend: str | None,
    given: Mapping[str, Any],
    settings: Surroundings | None,
) -> tuple[dict[str, Subject], list[str]]:
    """Each quantization by its name, and why one is left out: it cannot be read or served, or is another model."""
    read: dict[str, Subject] = {}
    refused = []
    for name, offer in zip(names, offers, strict=False):
        try:
            read[name] = Subject(offer.reference, backend, given, settings)
        except (ModelError, EngineRefusalError, UnsupportedModelError) as error:
            refused.append(f"{printable(name, 40)}: {error.message}")
    shapes = Counter(_shape(one.model) for one in reversed(read.values()))  # of as many the largest file's
    usual = max(shapes, key=lambda shape: shapes[shape], default=None)
    others = {name: one for name, one in read.items() if _shape(one.model) != usual}
    refused += [
        f"{printable(name, 40)}: another model, {printable(one.model.name, 80)}" for name, one in others.items()
    ]
    return {name: one for name, one in read.items() if name not in others}, refused


def _shape(model: ModelSpec) -> tuple[object, ...]:
    return model.architecture, len(model.layers), model.hidden_elements, model.n_vocab


def _published(subject: Subject) -> Mapping[str, Quantization]:
    """The engine's own forms by their names, for what is published of them."""
    with blamed(subject.backend):
        try:
            forms = host().backend(subject.backend).quantizations(subject.model)
        except AutofitError:
            return {}  # nothing is known to be made of it
    return {form.name.casefold(): form for form in forms}


def _form(subject: Subject, name: str, published: Mapping[str, Quantization]) -> Form:
    model, known = subject.model, published.get(name.casefold(), Quantization(name=name))
    quantization = Quantization(
        name=name,
        model=model,
        weights_bytes=model.weights_bytes,
        n_parameters=model.n_parameters or 0,
        is_float=known.is_float,
        at_hand=True,
        quality=known.quality,
    )
    return Form(subject=subject, quantization=quantization)


def _bits(form: Quantization) -> float:
    return (form.weights_bytes or 0) * 8 / form.n_parameters if form.n_parameters else 0.0


def rank_hardware(
    several: Forms, prices: Prices, limits: Limits, *, have: Sequence[str] = (), n_rows: int = ROWS
) -> Ranking:
    """The hardware for each quantization, and at most `n_rows` of all: those first that no other is better than, as
    many of each quantization as of the others.

    Raises:
        As `advise_hardware`.
    """
    forms = several.forms
    n_each = n_rows if len(forms) == 1 else max(LEAST_EACH, 2 * n_rows // len(forms))
    found = tuple(advise_hardware(form.subject, prices, limits, have=have, n_rows=n_each) for form in forms)
    pairs = [(form, row) for form, one in zip(forms, found, strict=True) for row in one.rows]
    qualities = [form.quality for form, _ in pairs]
    rows = marked([row for _, row in pairs], qualities)
    ranked = [(form, row) for (form, _), row in zip(pairs, rows, strict=True)]
    shown = sorted(_evenly(ranked)[:n_rows], key=lambda pair: (in_price(pair[1].candidate), -pair[0].quality))
    return Ranking(forms=forms, found=found, rows=tuple(shown), left_out=several.left_out)


def _evenly(ranked: Sequence[tuple[Form, HardwareRow]]) -> list[tuple[Form, HardwareRow]]:
    """The first row of each quantization, then the second: those on the front before others, the cheapest first."""
    placed = []
    for name in dict.fromkeys(form.name for form, _ in ranked):
        own = [pair for pair in ranked if pair[0].name == name]
        own.sort(key=lambda pair: (not pair[1].on_front, in_price(pair[1].candidate)))
        placed += [(n, -pair[0].quality, pair) for n, pair in enumerate(own)]
    return [pair for _, _, pair in sorted(placed, key=lambda each: each[:2])]
