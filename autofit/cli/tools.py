"""What a program may ask of autofit by name, with JSON: plan, check, inspect, advise. Nothing of it starts an engine.

Inputs are typed and bounded by JSON Schema; results are JSON values. `autofit mcp` offers them to assistants.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from autofit.domain.text import printable
from autofit.errors import UsageError
from autofit.host import host
from autofit.settings.options import BY_NAME, CHECKED

if TYPE_CHECKING:
    from autofit.domain.machine import Machine
    from autofit.domain.plan import Plan
    from autofit.settings.options import Option

Schema = dict[str, Any]
MAX_TEXT = 4096
MAX_ITEMS = 64
MAX_WORDS, MAX_WORD = 4096, 1 << 17  #: of a command
MAX_ROWS = 50
_PLANNED = (
    "context", "min_context", "max_context", "parallel", "mean_tokens", "fill", "min_tps", "max_ttft", "margin",
    "device", "prefer", "kv", "preset", "engine_version",
)  # fmt: skip
_ADVISED = ("context", "min_context", "parallel", "mean_tokens", "fill", "min_tps", "margin", "ram", "prefer", "kv")
_TEXT: Schema = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT}
_MODEL = {**_TEXT, "description": "a file, a directory, a repository ORG/REPO[:QUANT], or example:NAME"}
_WORDS: Schema = {"type": "array", "maxItems": MAX_WORDS, "items": {"type": "string", "maxLength": MAX_WORD}}
_DETAILS = {"type": "boolean", "description": "every item, decision and alternative too (docs/json.md)"}
_HERE = "rtx-3090, 2xh100-80gb, rtx-4090:20GiB; without it, the machine that autofit runs on"


class Tool(NamedTuple):
    """One question: its name, what it is for, the schema of its arguments, and who answers."""

    name: str
    about: str
    schema: Schema
    answer: Callable[[Mapping[str, Any]], dict[str, Any]]


def tools() -> tuple[Tool, ...]:
    """Every tool, with the engines that are installed as plugins."""
    backends = list(host().backends())
    programs = " or ".join(ref.programs[0] for ref in host().backends().values() if ref.programs)
    backend = {"type": "string", "enum": backends, "description": "the engine"}
    return (
        Tool(
            "plan",
            "One launch command of an engine that fits the hardware, exact to the byte, and what it takes there.",
            _object(
                {
                    "backend": backend,
                    "model": _MODEL,
                    **_machine(),
                    **{name: _of_option(BY_NAME[name]) for name in _PLANNED},
                    "engine_args": {**_WORDS, "description": "flags of the engine, kept exactly"},
                    "details": _DETAILS,
                },
                ["backend", "model"],
            ),
            _plan,
        ),
        Tool(
            "check",
            "Whether an engine's command fits the hardware as it stands, and where each byte goes. It is not started.",
            _object(
                {
                    "command": {**_WORDS, "minItems": 1, "description": f"its words one by one: {programs}, and flags"},
                    **_machine(),
                    **{name: _of_option(BY_NAME[name]) for name in sorted(CHECKED) if name not in ("on", "ram")},
                    "details": _DETAILS,
                },
                ["command"],
            ),
            _check,
        ),
        Tool(
            "inspect",
            "What is in a model file: architecture, layers, tensors by group and type, sizes.",
            _object({"model": _MODEL}, ["model"]),
            _inspect,
        ),
        Tool(
            "advise",
            "Which hardware takes a model, the fewest and cheapest devices first, each with its plan.",
            _object(
                {
                    "model": _MODEL,
                    "backend": backend,
                    "budget": {**_TEXT, "description": "memory of all devices together, as it is sold: 24GiB"},
                    "max_price": {"type": "number", "exclusiveMinimum": 0},
                    "have": {**_names(), "description": "hardware that is there: what one more card brings"},
                    "offload": {"type": "boolean", "description": "also where a part of the weights waits in RAM"},
                    "rows": {"type": "integer", "minimum": 1, "maximum": MAX_ROWS},
                    **{name: _of_option(BY_NAME[name]) for name in _ADVISED},
                },
                ["model"],
            ),
            _advise,
        ),
    )


def _object(properties: Mapping[str, Schema], required: list[str]) -> Schema:
    return {"type": "object", "properties": dict(properties), "required": required, "additionalProperties": False}


def _names() -> Schema:
    return {"type": "array", "maxItems": MAX_ITEMS, "items": {"type": "string", "minLength": 1, "maxLength": 200}}


def _machine() -> dict[str, Schema]:
    ram: Schema = {"type": "string", "maxLength": 200, "description": BY_NAME["ram"].help}
    return {"on": {**_names(), "description": f"the hardware: {_HERE}"}, "ram": ram}


def _of_option(option: Option) -> Schema:
    """An option of the command line as a value of JSON."""
    about = option.help.replace("%%", "%")
    if option.metavar is None:
        return {"type": "boolean", "description": about}
    if option.many:
        return {**_names(), "description": about}
    if option.choices:
        return {"type": "string", "enum": list(option.choices), "description": about}
    return {"type": ["string", "number"], "maxLength": 200, "description": about}


# -- answers ---------------------------------------------------------------------------------------


def _plan(given: Mapping[str, Any]) -> dict[str, Any]:
    from autofit.pipeline import plan

    options: Any = _options(given, _PLANNED)
    found = plan(
        given["backend"],
        given["model"],
        _machine_of(given),
        engine_args=given.get("engine_args", ()),
        settings=None,
        **options,
    )
    return _told(found, given)


def _check(given: Mapping[str, Any]) -> dict[str, Any]:
    from autofit.pipeline import check

    options: Any = _options(given, [name for name in CHECKED if name not in ("on", "ram")])
    return _told(check(given["command"], _machine_of(given), settings=None, **options), given)


def _inspect(given: Mapping[str, Any]) -> dict[str, Any]:
    from autofit.cli.inspect import to_dict
    from autofit.pipeline import read_model

    return to_dict(read_model(given["model"]))


def _advise(given: Mapping[str, Any]) -> dict[str, Any]:
    from autofit.advice.forms import forms_of, rank_hardware
    from autofit.advice.hardware import ROWS, Limits
    from autofit.advice.prices import load_prices
    from autofit.cli.advise import to_dict
    from autofit.domain.units import parse_size
    from autofit.settings.options import parse_rate

    options = _options(given, _ADVISED)
    budget = parse_size(given["budget"]) if "budget" in given else None
    if budget is not None and budget <= 0:
        raise UsageError(f"budget {given['budget'][:40]}: no memory at all", hint="write a size, such as 24GiB")
    rate = options.get("min_tps")
    limits = Limits(
        budget_bytes=budget,
        max_price=given.get("max_price"),
        min_tokens_per_s=None if rate is None else parse_rate(str(rate)),
        offload=given.get("offload", False),
    )
    forms = forms_of(given["model"], given.get("backend"), options, None)
    have, n_rows = tuple(given.get("have", ())), given.get("rows", ROWS)
    return to_dict(rank_hardware(forms, load_prices(None), limits, have=have, n_rows=n_rows))


def _options(given: Mapping[str, Any], names: Any) -> dict[str, Any]:
    """Options as text, as the command line has them; what is empty or false is not given."""
    found: dict[str, Any] = {}
    for name in names:
        value = given.get(name)
        if value in (None, "", False, []):
            continue
        found[name] = value if isinstance(value, (bool, list)) else str(value)
    return found


def _machine_of(given: Mapping[str, Any]) -> Machine:
    """The hardware that is described, or this machine; no program of an engine is asked for its version."""
    from autofit.machines import detect_machine, load_machine

    names, ram = given.get("on") or (), given.get("ram") or None
    if not names and ram is not None:
        raise UsageError("ram goes with on: this machine's memory is measured", hint='without a GPU: "on": ["cpu"]')
    return load_machine(*names, ram=ram) if names else detect_machine()


def _told(plan: Plan, given: Mapping[str, Any]) -> dict[str, Any]:
    """A plan as JSON values: what one acts on, or with `details` all of it."""
    from autofit.render import text

    whole: dict[str, Any] = dict(plan.to_dict())
    if given.get("details"):
        return whole
    pools = [{key: value for key, value in pool.items() if key not in ("items", "limits")} for pool in whole["pools"]]
    kept = ("backend", "engine_version", "engine_source", "fits", "verdict", "argv", "env", "context_tokens", "speed")
    others = [{key: one[key] for key in ("title", "argv", "because")} for one in whole["alternatives"]]
    return {
        **{key: whole[key] for key in kept},
        "command": shlex.join(plan.argv),
        "why_not": None if plan.fits else printable(text.no_fit(plan), 1000),
        "pools": pools,
        "findings": whole["findings"],
        "alternatives": others,
    }
