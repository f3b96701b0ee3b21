"""Codes of the findings about the engine's release."""

from __future__ import annotations

from functools import partial

from autofit.domain.plan import Code
from autofit.planning.findings import codes, tell

OWN = {
    "engine-version-between": Code("warning", "a vLLM between two known releases: the safer of both is taken"),
    "engine-version-newer": Code("warning", "a vLLM newer than the newest known: a margin is left, no figure is exact"),
}
finding = partial(tell, codes(OWN))
