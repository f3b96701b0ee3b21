"""The answer: a command that fits, where each byte goes, and why each setting has its value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

from autofit.domain.memory import Memory, PoolUse
from autofit.domain.values import NamedTuple, dataclass, field

if TYPE_CHECKING:
    from autofit.domain.document import (
        AlternativeDocument,
        DecisionDocument,
        NodeDocument,
        PlanDocument,
        PlanLimitDocument,
        PoolDocument,
        RejectedDocument,
        SpeedDocument,
    )

SCHEMA: Final = 1
Origin = Literal[
    "user", "wrapped command", "environment", "settings file", "preset", "profile", "solved", "engine default"
]
Severity = Literal["info", "warning", "error"]
Verdict = Literal["fits", "starts", "does not fit"]
Pick = Literal["fastest", "longest context", "best quality"]
Role = Literal["head", "worker", "replica", "prefill", "decode", "router"]
Topic = Literal["model", "context", "placement", "batch", "other"]
HEAD_ADDRESS = "HEAD_ADDRESS"  #: stands in commands of several machines for the head's address, where nobody stated it


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something the user should know. It never changes the plan."""

    severity: Severity
    code: str  #: kebab-case and stable
    message: str


class Code(NamedTuple):
    """What a finding's code stands for, for everyone who reads codes. `remedy`: what to do, if anything."""

    severity: Severity
    meaning: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NextRejected:
    """The next better value of a setting, and what it lacks."""

    value: str
    pool: str | None = None
    shortfall_bytes: int | None = None
    because: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One setting of the plan: its value as the engine spells it, where it comes from and why."""

    setting: str
    value: str
    origin: Origin
    because: str
    next_rejected: NextRejected | None = None
    argv: tuple[str, ...] = ()  #: the arguments that it puts on the command line; none of a setting left as it is
    topic: Topic = "other"  #: what it is about, for those who read many


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What holds a plan back, and what the next step up would need.

    `what` is what would be better with more memory: the context, the decode rate. `because` is a sentence of its own:
    what that looks like now. `pool` is whose memory limits it, `None`: nothing does, and there is no `next_step` then.
    The `because` of that says where it lacks memory, if that is more than one pool.
    """

    what: str = ""
    because: str = ""
    pool: str | None = None
    next_step: NextRejected | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Expected rates, always with a band: `low` to `high` is where 9 of 10 machines should land."""

    decode_tokens_per_s: float  #: per sequence, with its context full
    low: float
    high: float
    start_tokens_per_s: float | None = None  #: the same while the context is nearly empty
    prefill_tokens_per_s: float | None = None  #: of a prompt that fills the context
    prefill_low: float | None = None
    prefill_high: float | None = None
    start_prefill_tokens_per_s: float | None = None  #: of a prompt of one micro-batch, the first in its context
    basis: str = ""
    decodes: bool = True  #: an embedding or reranking model reads its inputs, and decodes nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """Another plan worth knowing, and the one reason it is not the answer.

    A `pick` is the best at one thing of the plans that one or two options more give: `flags` are these options.
    """

    title: str
    argv: tuple[str, ...]
    context_tokens: int | None
    device_bytes: int
    host_bytes: int
    speed: Speed | None
    because: str
    pick: Pick | None = None
    flags: tuple[str, ...] = ()  #: of autofit, which give this plan; empty where no flag gives exactly it
    gains: tuple[str, ...] = ()
    costs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What it takes to start the plan elsewhere: in a container, a unit, a cluster.

    `program` are the words of the command that start the engine, `references` those that name the model and what is
    loaded beside it; `paths` are files and folders of this machine in its words (`autofit.domain.words`). `image` is a
    container image that brings the engine in the plan's version (`None`: none is known), `words` what stands behind it,
    `api` what its devices are driven by. The engine sees the first `n_devices` of the machine, or those of
    `device_ids`, for which `words` are; `has_workers`: it starts a process for each.
    """

    program: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    image: str | None = None
    words: tuple[str, ...] = ()
    api: str | None = None
    n_devices: int = 0
    device_ids: tuple[str, ...] = ()  #: the places of GPUs, where others come before them
    has_workers: bool = False
    port: int = 8000


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCommand:
    """What one of several machines starts for a plan: the head answers requests, workers lend it their devices.

    Of instances behind a router, which is one of the commands too, each `replica` answers requests, or those that
    `prefill` read prompts for those that `decode`.

    `commands` are argument lists, started in their order: all but the last come to an end, and the last one goes on.
    `env` are variables of each. `n_devices` of the machine's take part. `head_address` is the word of the commands that
    is the head's address, alone or before `:PORT`: `HEAD_ADDRESS` where it is to be filled in, `None`: it is in none.
    """

    node: str  #: the machine's name, unlike that of every other
    role: Role
    commands: tuple[tuple[str, ...], ...]
    env: Mapping[str, str] = field(default_factory=dict)
    n_devices: int = 0
    head_address: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything there is to say about one launch."""

    backend: str
    fits: bool
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    memory: Memory
    speed: Speed | None = None
    context_tokens: int | None = None
    safe_fill_tokens: int | None = None
    decisions: tuple[Decision, ...] = ()
    limit: Limit | None = None  #: `None`: not looked for
    alternatives: tuple[Alternative, ...] = ()
    findings: tuple[Finding, ...] = ()
    engine_report: Mapping[str, object] = field(default_factory=dict)
    engine_version: str | None = None
    engine_source: str | None = None  #: how it is known which version that is
    deployment: Deployment | None = None  #: not of a command that is only checked
    nodes: tuple[NodeCommand, ...] = ()  #: of several machines: the head and its workers, or instances and their router

    @property
    def verdict(self) -> Verdict:
        """`starts`: the engine answers, and memory runs short when it grows to what a long prompt or a cache takes."""
        if self.memory.starts and not self.memory.fits:
            return "starts"
        return "fits" if self.fits else "does not fit"

    def to_dict(self) -> PlanDocument:
        """The plan as JSON values, schema 1 (`docs/json.md`, `docs/plan.schema.json`)."""
        return {
            "schema": SCHEMA,
            "backend": self.backend,
            "engine_version": self.engine_version,
            "engine_source": self.engine_source,
            "fits": self.fits,
            "verdict": self.verdict,
            "argv": list(self.argv),
            "env": dict(self.env),
            "kwargs": _finite(dict(self.kwargs)),
            "pools": [pool_to_dict(pool) for pool in self.memory.pools],
            "speed": None if self.speed is None else speed_to_dict(self.speed),
            "context_tokens": self.context_tokens,
            "safe_fill_tokens": self.safe_fill_tokens,
            "decisions": [_decision_to_dict(decision) for decision in self.decisions],
            "limit": None if self.limit is None else _limit_to_dict(self.limit),
            "alternatives": [_alternative_to_dict(alternative) for alternative in self.alternatives],
            "findings": [{"severity": f.severity, "code": f.code, "message": f.message} for f in self.findings],
            "engine_report": _finite(dict(self.engine_report)),
            "nodes": [_node_to_dict(node) for node in self.nodes],
        }


def _node_to_dict(node: NodeCommand) -> NodeDocument:
    return {
        "node": node.node,
        "role": node.role,
        "commands": [list(command) for command in node.commands],
        "env": dict(node.env),
        "n_devices": node.n_devices,
        "head_address": node.head_address,
    }


def pool_to_dict(pool: PoolUse) -> PoolDocument:
    """A pool as JSON values."""
    return {
        "id": pool.id,
        "name": pool.name,
        "total_bytes": pool.total_bytes,
        "free_bytes": pool.free_bytes,
        "budget_bytes": pool.budget_bytes,
        "used_bytes": pool.used_bytes,
        "start_bytes": pool.start_bytes,
        "weights_bytes": pool.sum_bytes("weights"),
        "cache_bytes": pool.sum_bytes("cache"),
        "compute_bytes": pool.sum_bytes("compute"),
        "runtime_bytes": pool.sum_bytes("runtime"),
        "transient_bytes": pool.sum_bytes("transient"),
        "reserve_bytes": pool.sum_bytes("reserve"),
        "items": [
            {
                "kind": i.kind,
                "label": i.label,
                "bytes": i.n_bytes,
                "basis": i.basis,
                "mapped": i.mapped,
                "when": i.when,
                "source": i.source,
            }
            for i in pool.items
        ],
        "limits": [
            {"id": one.id, "name": one.name, "limit_bytes": one.limit_bytes, "used_bytes": one.used_bytes}
            for one in pool.limits
        ],
    }


def _decision_to_dict(decision: Decision) -> DecisionDocument:
    return {
        "setting": decision.setting,
        "value": decision.value,
        "origin": decision.origin,
        "because": decision.because,
        "next_rejected": _rejected_to_dict(decision.next_rejected),
        "topic": decision.topic,
    }


def _limit_to_dict(limit: Limit) -> PlanLimitDocument:
    return {
        "what": limit.what,
        "because": limit.because,
        "pool": limit.pool,
        "next_step": _rejected_to_dict(limit.next_step),
    }


def _rejected_to_dict(rejected: NextRejected | None) -> RejectedDocument | None:
    if rejected is None:
        return None
    return {
        "value": rejected.value,
        "pool": rejected.pool,
        "shortfall_bytes": rejected.shortfall_bytes,
        "because": rejected.because,
    }


def _alternative_to_dict(alternative: Alternative) -> AlternativeDocument:
    return {
        "title": alternative.title,
        "argv": list(alternative.argv),
        "context_tokens": alternative.context_tokens,
        "device_bytes": alternative.device_bytes,
        "host_bytes": alternative.host_bytes,
        "speed": None if alternative.speed is None else speed_to_dict(alternative.speed),
        "because": alternative.because,
        "pick": alternative.pick,
        "flags": list(alternative.flags),
        "gains": list(alternative.gains),
        "costs": list(alternative.costs),
    }


def _finite(value: Any) -> Any:
    """JSON values without the numbers that JSON lacks: NaN and infinities, which come in with an engine's own flags."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def speed_to_dict(speed: Speed) -> SpeedDocument:
    """The rates as JSON values."""
    start = speed.start_tokens_per_s if speed.decodes else None
    return {
        "decode_tokens_per_s": round(speed.decode_tokens_per_s, 2) if speed.decodes else None,
        "low": round(speed.low, 2) if speed.decodes else None,
        "high": round(speed.high, 2) if speed.decodes else None,
        "start_tokens_per_s": None if start is None else round(start, 2),
        "prefill_tokens_per_s": None if speed.prefill_tokens_per_s is None else round(speed.prefill_tokens_per_s, 1),
        "start_prefill_tokens_per_s": None
        if speed.start_prefill_tokens_per_s is None
        else round(speed.start_prefill_tokens_per_s, 1),
        "prefill_low": None if speed.prefill_low is None else round(speed.prefill_low, 1),
        "prefill_high": None if speed.prefill_high is None else round(speed.prefill_high, 1),
        "basis": speed.basis,
    }
