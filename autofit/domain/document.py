"""The shape of a plan as JSON values, schema 1: what `Plan.to_dict()` returns and `docs/plan.schema.json` describes.

mypy holds `to_dict` to these types, and `tools/gen/schema.py` writes the JSON Schema from them, so that neither can say
what the other does not. Bytes, tokens and counts are never negative; `None` is unknown. Nothing of this is imported
while planning.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypedDict

from autofit.domain.memory import Basis, Kind
from autofit.domain.plan import Origin, Pick, Role, Severity, Topic, Verdict

SIGNED = "signed"  #: of an int: it may be negative


class ItemDocument(TypedDict):
    """One figure of a pool."""

    kind: Kind
    label: str
    bytes: int
    basis: Annotated[Basis, "how the figure is known"]
    mapped: Annotated[bool, "file-backed pages: they need memory to be fast, but are not allocated"]
    when: Annotated[str, "what makes memory grow to this after the start; empty: it is there from the start"]
    source: str


class LimitDocument(TypedDict):
    """What one device without memory of its own may take of the pool."""

    id: str
    name: str
    limit_bytes: int
    used_bytes: int


class PoolDocument(TypedDict):
    """What the plan takes of one device, or of the host."""

    id: Annotated[str, "`host`, or the device's"]
    name: str
    total_bytes: int | None
    free_bytes: int | None
    budget_bytes: Annotated[int | None, "what the plan may take: free memory minus the margin"]
    used_bytes: Annotated[int, "the sum of all kinds but the reserve"]
    start_bytes: Annotated[int, "what of it is needed before the engine answers"]
    weights_bytes: int
    cache_bytes: Annotated[int, "KV cache and recurrent state"]
    compute_bytes: Annotated[int, "buffers of the compute graph, and of its outputs"]
    runtime_bytes: Annotated[int, "context, libraries, captured graphs"]
    transient_bytes: Annotated[int, "what appears after the start: long prompts, images"]
    reserve_bytes: Annotated[int, "the margin that is left free"]
    items: list[ItemDocument]
    limits: list[LimitDocument]


class SpeedDocument(TypedDict):
    """Expected rates; `low` to `high` is where 9 of 10 machines should land. The decode rates are null of a model that
    decodes nothing."""

    decode_tokens_per_s: Annotated[float | None, "of each sequence, with its context full"]
    low: float | None
    high: float | None
    start_tokens_per_s: Annotated[float | None, "the same while the context is nearly empty"]
    prefill_tokens_per_s: Annotated[float | None, "of a prompt that fills the context"]
    start_prefill_tokens_per_s: Annotated[float | None, "of the first micro-batch of a prompt"]
    prefill_low: float | None
    prefill_high: float | None
    basis: str


class RejectedDocument(TypedDict):
    """The next better value of a setting, and what it lacks."""

    value: str
    pool: str | None
    shortfall_bytes: int | None
    because: str


class DecisionDocument(TypedDict):
    """One setting: its value as the engine spells it, where it comes from and why."""

    setting: str
    value: str
    origin: Origin
    because: str
    next_rejected: RejectedDocument | None
    topic: Topic


class PlanLimitDocument(TypedDict):
    """What holds a plan back, and what the next step up would need."""

    what: Annotated[str, "what more memory would make better; empty: nothing"]
    because: str
    pool: Annotated[str | None, "whose memory limits it; null: nothing does"]
    next_step: RejectedDocument | None


class AlternativeDocument(TypedDict):
    """Another plan, and the reason why it is not the answer."""

    title: str
    argv: list[str]
    context_tokens: int | None
    device_bytes: int
    host_bytes: int
    speed: SpeedDocument | None
    because: str
    pick: Annotated[Pick | None, "what it is the best at, of plans that one or two options more give"]
    flags: Annotated[list[str], "options of autofit that give exactly this plan; empty where none do"]
    gains: list[str]
    costs: list[str]


class FindingDocument(TypedDict):
    """Something to know; it changes nothing. Codes: docs/findings.md."""

    severity: Severity
    code: str
    message: str


class NodeDocument(TypedDict):
    """What one of several machines starts."""

    node: str
    role: Role
    commands: Annotated[list[list[str]], "argument lists, started in their order; the last one stays"]
    env: dict[str, str]
    n_devices: int
    head_address: Annotated[str | None, "the word of the commands that stands for the head's address"]


class PlanDocument(TypedDict):
    """A plan of autofit, schema 1 (docs/json.md). Keys are only ever added; a change of meaning is a new schema."""

    schema: Literal[1]
    backend: str
    engine_version: Annotated[str | None, "the version that is planned for"]
    engine_source: Annotated[str | None, "how it is known which version that is"]
    fits: bool
    verdict: Annotated[Verdict, "`starts`: memory runs short later, when it grows to what a long prompt takes"]
    argv: Annotated[list[str], "the engine's command"]
    env: Annotated[dict[str, str], "variables to set for it"]
    kwargs: Annotated[dict[str, Any], "the same settings for the engine's Python class; empty: it cannot say them"]
    pools: Annotated[list[PoolDocument], "the devices in the engine's order, the host last"]
    speed: SpeedDocument | None
    context_tokens: Annotated[int | None, "tokens that one sequence may hold"]
    safe_fill_tokens: Annotated[int | None, "how far it can be filled before memory that grows would not fit"]
    decisions: list[DecisionDocument]
    limit: Annotated[PlanLimitDocument | None, "null: not looked for, as of a command that is checked"]
    alternatives: list[AlternativeDocument]
    findings: list[FindingDocument]
    engine_report: Annotated[dict[str, Any], "figures by the names that the engine itself logs"]
    nodes: Annotated[list[NodeDocument], "of a plan for several machines: the head, then the workers"]


class ErrorDocument(TypedDict):
    """Why a command could not be checked. Types: docs/errors.md."""

    type: str
    message: str
    hint: str | None


class FileCommandDocument(TypedDict):
    """One command of a file: a plan, or an error."""

    file: str
    line: int
    argv: list[str]
    env: Annotated[dict[str, str], "variables that the file sets for it, without those that look like secrets"]
    exit_code: Annotated[int, "what `autofit check` ends with for this command"]
    plan: PlanDocument | None
    error: ErrorDocument | None


class UnplannedDocument(TypedDict):
    """A command of a script that has no plan."""

    verdict: Literal["loads no model", "refused", "unknown"]
    command: str


class CommandsDocument(TypedDict):
    """What `autofit check --from FILE` and `autofit check -- SCRIPT` say of every command, with `--format json`."""

    schema: Literal[1]
    commands: list[FileCommandDocument | PlanDocument | UnplannedDocument]


class PointDocument(TypedDict):
    """One context with its plan."""

    context_tokens: int
    fits: bool
    because: Annotated[str | None, "why there is no plan, or why it does not fit"]
    kv: Annotated[str | None, "the type of the cache, where it is not the engine's default"]
    argv: Annotated[list[str], "the plan's command; empty: there is no plan"]
    pools: list[PoolDocument]
    speed: Annotated[SpeedDocument | None, "of a plan that fits"]


class StageDocument(TypedDict):
    """What the plan takes from some moment on."""

    what: str
    used_bytes: Annotated[dict[str, int], "of each pool"]
    room_bytes: Annotated[int | None, SIGNED, "what the tightest pool has left; negative: it is missing"]


class CurveDocument(TypedDict):
    """What `autofit curve --format json` prints (docs/curves.md)."""

    schema: Literal[1]
    backend: str
    title: str
    context_tokens: Annotated[int | None, "of the plan that is asked for; it is among the points"]
    safe_fill_tokens: int | None
    points: list[PointDocument]
    stages: Annotated[list[StageDocument], "of the plan that is asked for, over time"]
