"""What a plan says of a vLLM whose rules are not known to the byte: a margin, no figure called exact, and why."""

from __future__ import annotations

from collections.abc import Sequence

from autofit.domain.plan import Finding, Plan
from autofit.domain.request import Margin
from autofit.domain.values import replace

from autofit_vllm.engine.codes import finding
from autofit_vllm.engine.versions import NEWEST, Engine

#: Of a GPU's memory, left free beside the margin for an engine that is newer than any known: weights and one full
#: request of a recorded row grew by 4.6 % of it from 0.24 to 0.26 and by no more between any other two recorded
#: releases (tools/accuracy/vllm_versions.py --moves).
NEWER_FRACTION = 0.05


def margins_for(engine: Engine, margins: Sequence[Margin]) -> tuple[Margin, ...]:
    """`margins` with what is left free for rules that may have moved."""
    if engine.status != "newer":
        return tuple(margins)
    return tuple(replace(each, fraction=each.fraction + NEWER_FRACTION) for each in margins)


def safer(one: Plan, other: Plan) -> Plan:
    """Of two accounts of one command that which leaves less."""
    return min((one, other), key=lambda plan: (plan.fits, _capacity(plan), -_used_bytes(plan)))


def _capacity(plan: Plan) -> int:
    blocks = plan.engine_report.get("kv_cache_tokens")
    return blocks if isinstance(blocks, int) else 0


def _used_bytes(plan: Plan) -> int:
    return sum(pool.used_bytes for pool in plan.memory.pools)


def told(plan: Plan, engine: Engine) -> Plan:
    """The plan; figures of an engine that is not known are no longer exact, and it says why."""
    if engine.status == "known":
        return plan
    pools = tuple(
        replace(
            pool,
            items=tuple(
                replace(item, basis="assumed" if item.basis in ("exact", "derived") else item.basis)
                for item in pool.items
            ),
        )
        for pool in plan.memory.pools
    )
    memory = replace(plan.memory, pools=pools)
    warning: Finding = finding(f"engine-version-{engine.status}", _caution(engine))
    return replace(plan, memory=memory, findings=(*plan.findings, warning))


def _caution(engine: Engine) -> str:
    if engine.status == "between":
        before, after = engine.neighbors
        return f"vLLM {engine.version} lies between {before} and {after}: figures are those of the one that leaves less"
    return (
        f"vLLM {engine.version} may be newer than {NEWEST}, whose rules these are: {NEWER_FRACTION:.0%} of each GPU is "
        "left free beside the margin, as much as releases have grown from one to the next"
    )
