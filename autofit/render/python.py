"""Keyword arguments as Python writes them."""

from __future__ import annotations

import pprint

from autofit.domain.plan import Plan
from autofit.errors import UsageError


def render(plan: Plan) -> str:
    """A dictionary for `llama_cpp.Llama(**...)` or `vllm.LLM(**...)`, which `ast.literal_eval` reads.

    Raises:
        UsageError: the engine's class cannot say this plan.
    """
    if plan.fits and not plan.kwargs:
        why = next((one.because for one in plan.decisions if one.setting == "kwargs"), "the class cannot say this plan")
        raise UsageError(f"{plan.backend}: {why}", hint="--format shell is the server's command")
    return pprint.pformat(dict(plan.kwargs), sort_dicts=False, width=100)
