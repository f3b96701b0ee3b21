"""Less of the model, where all of it does not fit: without its image encoder, or with weights of 8 bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from autofit.domain.plan import Finding
from autofit.domain.units import format_rate
from autofit.domain.values import replace
from autofit.errors import AutofitError

from autofit_vllm.planning.codes import finding
from autofit_vllm.planning.problem import LOSSY_KV, Candidate, Problem
from autofit_vllm.planning.ranking import score, timed
from autofit_vllm.planning.relief import gpus_finding
from autofit_vllm.planning.search import search


class Lighter(NamedTuple):
    """A change, in words, and the plan that it makes possible."""

    flags: str
    what: str
    candidate: Candidate

    @property
    def text(self) -> str:
        candidate = self.candidate
        kv = " with an fp8 KV cache" if candidate.values.get("kv_cache_dtype") == LOSSY_KV else ""
        rate = f" at ~{format_rate(candidate.rate)} tokens/s" if candidate.speed else ""
        return f"{self.flags} ({self.what}) holds {candidate.length:,} tokens{kv}{rate}"


def lighter(problem: Problem, length: int) -> Lighter | None:
    """The first of these with which a context of `length` fits with all weights on GPUs."""
    for change, flags, what in _ways(problem):
        try:
            other = problem.changed(change)
            wished = replace(other, request=replace(other.request, min_tps=None, max_ttft=None))
            found = [timed(candidate, wished) for candidate in search(wished, eager=False)[0]]
        except AutofitError:  # not for this model, or this GPU
            continue
        fitting = [candidate for candidate in found if candidate.fits and candidate.length >= length]
        if fitting:
            return Lighter(flags, what, max(fitting, key=lambda candidate: score(candidate, wished)))
    return None


def other_hardware(problem: Problem, length: int) -> list[Finding]:
    """What would hold a command's context where no change of its settings does: less of the model, or more GPUs."""
    less = lighter(problem, length)
    found = [finding("would-fit", f"nearest: {less.text}")] if less else []
    return [*found, *gpus_finding(problem, length)]


def _ways(problem: Problem) -> Iterator[tuple[Mapping[str, Any], str, str]]:
    """Settings, their flags and what they mean, the least loss first."""
    settings, model = problem.settings, problem.model
    if problem.vision is not None and not settings.language_model_only and not settings.pins("language_model_only"):
        yield {"language_model_only": True}, "-- --language-model-only", "for text alone"
    if model.quantization is None and settings.quantization is None:
        yield {"quantization": "fp8"}, "-- --quantization fp8", "weights of 8 bits, made while loading"
