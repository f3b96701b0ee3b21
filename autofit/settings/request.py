"""What the options ask of a backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autofit.domain.request import Request
from autofit.errors import UsageError
from autofit.settings.layers import Options


def to_request(
    options: Options,
    *,
    program: Sequence[str] = (),
    engine_args: Sequence[str] = (),
    engine_env: Mapping[str, str] | None = None,
    alternatives: bool = True,
    nearest: bool = True,
    in_ram: bool = True,
    explain: bool = True,
    measured: Mapping[str, Any] | None = None,
) -> Request:
    """The request of these options.

    Raises:
        UsageError: options that contradict each other.
    """
    context, low, high = (options.get(name) for name in ("context", "min_context", "max_context"))
    if low and high and low > high:
        raise UsageError(f"--min-context {low} is above --max-context {high}")
    if context and low and context < low:
        raise UsageError(f"--context {context} is below --min-context {low}")
    if context and high and context > high:
        raise UsageError(f"--context {context} is above --max-context {high}")
    mean, most = options.get("mean_tokens"), context or high
    if mean and most and mean > most:
        raise UsageError(f"--mean-tokens {mean} is above --{'context' if context else 'max-context'} {most}")
    if mean and options.get("fill") == "full":
        raise UsageError("--mean-tokens contradicts --fill full", hint="--fill full keeps a full context for each")
    requests = options.get("disaggregate")
    if requests and mean:
        raise UsageError("--mean-tokens contradicts --disaggregate, which says how long requests are")
    if requests and options.get("fill") == "full":
        raise UsageError("--fill full contradicts --disaggregate, which says how long requests are")
    if requests and most and most < sum(requests):
        name = "context" if context else "max-context"
        raise UsageError(f"--{name} {most} is below the {sum(requests)} tokens of a request of --disaggregate")
    return Request(
        context=context,
        min_context=low,
        max_context=high,
        parallel=options.get("parallel"),
        mean_tokens=mean,
        fill=options.get("fill", "mean"),
        min_tps=options.get("min_tps"),
        max_ttft=options.get("max_ttft"),
        replicas=options.get("replicas"),
        disaggregate=requests,
        margin=options.get("margin", ()),
        prefer=options.get("prefer", "speed"),
        kv=options.get("kv"),
        device=tuple(options.get("device", ())),
        engine_version=options.get("engine_version"),
        program=tuple(program),
        engine_args=(*options.engine_args, *engine_args),
        arg_origins=(*options.arg_origins, *(["wrapped command"] * len(engine_args) if program else ())),
        engine_env=dict(engine_env or {}),
        alternatives=alternatives,
        nearest=nearest,
        in_ram=in_ram,
        explain=explain,
        measured=dict(measured or {}),
        origins=dict(options.origins),
    )
