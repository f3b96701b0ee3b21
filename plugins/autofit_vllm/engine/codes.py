"""Codes of the findings about the engine's release."""

from __future__ import annotations

from functools import partial

from autofit.domain.plan import Code
from autofit.planning.findings import codes, tell

OWN = {
    "engine-version-between": Code(
        "warning",
        "vLLM is between two recorded releases: of their figures the larger ones are taken",
        "compare with the log of a start: `autofit verify --log FILE`",
    ),
    "engine-version-newer": Code(
        "warning",
        "vLLM is newer than the newest recorded release: a margin is left, and no figure is exact",
        "a newer autofit, or `autofit verify --log FILE` to compare with the log of a start",
    ),
}
finding = partial(tell, codes(OWN))
