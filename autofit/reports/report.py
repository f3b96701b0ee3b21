"""Make, write, read and replay reports (schema 1): what `autofit report MODEL -- COMMAND` writes for a bug report."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autofit.domain.machine import Machine
from autofit.domain.memory import KINDS
from autofit.domain.model import ModelSpec
from autofit.domain.plan import Plan
from autofit.domain.text import printable
from autofit.errors import AutofitError, CorruptModelError, EngineRefusalError, UnsupportedModelError, UsageError

SCHEMA = 1
MAX_PACKED_BYTES = 1 << 20
MAX_BYTES = 1 << 25
_OPTIONS = ("device", "margin", "mean_tokens", "engine_version")
_SECRET_NAMES = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL")


def make_report(
    reference: str,
    argv: Sequence[str],
    machine: Machine,
    *,
    environ: Mapping[str, str],
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The report of an engine's command, on a model and a machine, as JSON values.

    `environ` are the variables of the process; those that the engine reads are kept. Settings files do not count.
    `options` are `device`, `margin`, `mean_tokens` and `engine_version` as for `check()`. The report is replayed:
    `replays` says whether what was left out changes no figure.

    Raises:
        UsageError: no backend understands the command. ModelError: no such model, or another engine's.
    """
    from autofit import __version__
    from autofit.hardware import machine_to_dict
    from autofit.host import host
    from autofit.inputs import engine_inputs, split_assignments
    from autofit.pipeline import read_model
    from autofit.reports.model import model_to_dict
    from autofit.reports.scrub import scrub_command, scrub_machine, scrub_variables
    from autofit.settings.layers import Surroundings

    assigned, words = split_assignments(argv)
    backend = host().backend_of_program(words)
    options = {name: value for name, value in (options or {}).items() if value is not None}
    environ = {**environ, **assigned}
    inputs = engine_inputs(backend, Surroundings(environ=environ))
    variables = {name: value for name, value in inputs.items() if name in environ}
    command = backend.parse(words, variables, version=options.get("engine_version"))
    model = read_model(reference, companions=command.companions)
    names = {uuid: each.id for each in machine.devices if (uuid := each.uuid)}
    names |= {path: role.upper() for role, path in command.companions.items()}
    names |= {text: "MODEL" for text in (command.model, reference) if text}
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "report",
        "autofit": __version__,
        "backend": backend.name,
        "options": {name: _scrubbed(value, names) for name, value in options.items()},
        "command": [os.path.basename(words[0]), *scrub_command(words[1:], names)],  # noqa: PTH119 - a program's name
        "environment": scrub_variables(variables, names),
        "machine": machine_to_dict(scrub_machine(machine)),
        "model": model_to_dict(model),
        "answer": _answer(words, model, machine, variables, options),
    }
    refuse_leaks(report, environ)
    try:
        report["replays"] = figures(replay(report)) == figures(report["answer"])
    except AutofitError:
        report["replays"] = False
    return report


def _scrubbed(value: Any, names: Mapping[str, str]) -> Any:
    """An option's text, or list of texts, without what is private."""
    from autofit.reports.scrub import scrub_command

    return scrub_command([value], names)[0] if isinstance(value, str) else scrub_command(value, names)


def refuse_leaks(report: Mapping[str, Any], environ: Mapping[str, str]) -> None:
    """What scrubbing missed must not leave: the home directory, and values of variables with secrets.

    Raises:
        UsageError: one of them is in the report.
    """
    text = json.dumps(report, ensure_ascii=False)
    for name, value in environ.items():
        private = name in ("HOME", "USERPROFILE") or any(part in name.upper() for part in _SECRET_NAMES)
        if private and len(value) >= 5 and value in text:
            raise UsageError(f"the report would hold the value of {name}", hint="take it out of the command")


def replay(report: Mapping[str, Any]) -> dict[str, Any]:
    """What is said today about a report's command: as its `answer`.

    Raises:
        CorruptModelError: a part of the report is not what it should be. UsageError: its command is not one.
    """
    from autofit.hardware import machine_from_dict
    from autofit.reports.model import model_from_dict

    try:
        model = model_from_dict(report["model"])
        machine = machine_from_dict(report["machine"])
        command = [str(word) for word in report["command"]]
        variables = {str(name): str(value) for name, value in report["environment"].items()}
        options = {name: report["options"][name] for name in _OPTIONS if name in report["options"]}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptModelError("report", f"not a report of schema {SCHEMA}") from error
    return _answer(command, model, machine, variables, options)


def figures(answer: Mapping[str, Any]) -> dict[str, Any]:
    """What must stay: the refusal, or bytes by pool and kind, the context and the verdict."""
    pools = {
        pool["id"]: {kind: sum(item["bytes"] for item in pool["items"] if item["kind"] == kind) for kind in KINDS}
        for pool in answer["pools"]
    }
    return {"refused": answer["refused"], "fits": answer["fits"], "context": answer["context_tokens"], "pools": pools}


def pack(report: Mapping[str, Any]) -> bytes:
    """The bytes of a report's file.

    Raises:
        UsageError: more than `MAX_PACKED_BYTES`.
    """
    packed = gzip.compress(json.dumps(report, separators=(",", ":")).encode(), 9, mtime=0)
    if len(packed) > MAX_PACKED_BYTES:
        raise UsageError(f"the report takes {len(packed):,} bytes; at most {MAX_PACKED_BYTES:,} are written")
    return packed


def read_report(path: str | Path) -> dict[str, Any]:
    """The report in the file at `path`.

    Raises:
        ModelNotFoundError: no such file. CorruptModelError: it is no report of this schema.
    """
    from autofit.readers.documents import parse_json
    from autofit.readers.files import read_small

    name = printable(str(path))
    unpacker = zlib.decompressobj(wbits=31)
    try:
        data = unpacker.decompress(read_small(str(path), MAX_PACKED_BYTES), MAX_BYTES)
    except zlib.error as error:
        raise CorruptModelError(name, "not gzip", offset_bytes=0) from error
    if not unpacker.eof:
        raise CorruptModelError(
            name,
            f"the file is cut off, or unpacks to more than {MAX_BYTES:,} bytes",
            hint="make one with `autofit report`",
        )
    report = parse_json(data, str(path))
    if not isinstance(report, dict) or report.get("schema") != SCHEMA or report.get("kind") != "report":
        raise CorruptModelError(name, f"not a report of schema {SCHEMA}", hint="make one with `autofit report`")
    return report


def _answer(
    words: Sequence[str],
    model: ModelSpec,
    machine: Machine,
    variables: Mapping[str, str],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    from autofit.pipeline import check
    from autofit.reports.scrub import scrub_json

    try:
        plan = check(
            words,
            machine,
            model=model,
            environ=variables,
            settings=None,
            **options,
        )
    except (EngineRefusalError, UnsupportedModelError) as error:
        return {
            "refused": type(error).__name__,
            "engine_version": options.get("engine_version"),
            "fits": False,
            "context_tokens": None,
            "pools": [],
            "decode_tokens_per_s": None,
            "report": {},
        }
    answer: dict[str, Any] = scrub_json(_plan_to_dict(plan))
    return answer


def _plan_to_dict(plan: Plan) -> dict[str, Any]:
    whole = plan.to_dict()
    keys = ("id", "total_bytes", "free_bytes", "budget_bytes", "items")
    items = ("kind", "label", "bytes", "basis", "mapped")
    rows: list[dict[str, Any]] = [{**pool} for pool in whole["pools"]]
    pools = [{key: pool[key] for key in keys} for pool in rows]
    for pool in pools:
        pool["items"] = [{key: item[key] for key in items} for item in pool["items"]]
    return {
        "refused": None,
        "engine_version": plan.engine_version,
        "fits": plan.fits,
        "context_tokens": plan.context_tokens,
        "pools": pools,
        "decode_tokens_per_s": None if whole["speed"] is None else whole["speed"]["decode_tokens_per_s"],
        "report": whole["engine_report"],
    }
