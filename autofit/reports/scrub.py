"""What of a command, a configuration or a machine may leave it: no paths, no names of people or hosts, no secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from autofit.domain.machine import Machine
from autofit.domain.patterns import lazy_pattern
from autofit.domain.values import replace

HIDDEN = "hidden"
MAX_CHARS = 1000  #: longer text is prose (a chat template), which no figure depends on
_PLACE = lazy_pattern(
    r"/|^~|^[A-Za-z]:\\|^\\\\|@|\.(?:gguf|safetensors|json|jinja|txt|log|pem|key|crt|ya?ml|toml|ini)$"
)
_PRIVATE = lazy_pattern(
    r"-a$|.*[-_.](?:keys?|token|password|secret|auth|user(?:name)?|host(?:name)?|alias|name|headers?|cookie"
    r"|cert(?:file)?|keyfile|proxy|ur[li]|prompt|template|root(?:path)?|origins|file|dir|path|log|api)$",
    re.IGNORECASE,
)
_ADDRESS = lazy_pattern(r"\b((?:\d{1,3}\.){3}\d{1,3}|localhost|[A-Za-z][\w-]*(?:\.[A-Za-z][\w-]*)+)(?=:\d+\b)")


def scrub_command(words: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """The words of a command with what is private replaced; `names` says what known references are called."""
    kept: list[str] = []
    hide_next = False
    addresses: dict[str, str] = {}
    for word in words:
        for known in sorted(names, key=len, reverse=True):
            word = word.replace(known, names[known])
        if not word.startswith("-"):
            kept.append(HIDDEN if hide_next else _value(word, addresses))
            hide_next = False
            continue
        flag, equals, value = word.partition("=")
        private = _PRIVATE.match(flag) is not None
        kept.append(f"{flag}={HIDDEN if private else _value(value, addresses)}" if equals else flag)
        hide_next = private and not equals
    return kept


def scrub_variables(environ: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
    """Variables by name, with private values replaced as in a command."""
    pairs = (scrub_command([f"--{name}={value}"], names)[0] for name, value in sorted(environ.items()))
    return dict(pair.removeprefix("--").split("=", 1) for pair in pairs)


def scrub_json(value: Any) -> Any:
    """A JSON value without the strings that are places or prose. Lists keep their length."""
    if isinstance(value, str):
        return HIDDEN if len(value) > MAX_CHARS or _PLACE.search(value) else value
    if isinstance(value, Mapping):
        return {key: scrub_json(item) for key, item in value.items() if isinstance(key, str) and not _PLACE.search(key)}
    if isinstance(value, (list, tuple)):
        return [scrub_json(item) for item in value]
    return value


def scrub_machine(machine: Machine) -> Machine:
    """The machine without its name, its serial numbers and what runs on it."""
    devices = tuple(replace(device, uuid=None, held_by=(), notes=()) for device in machine.devices)
    host = replace(machine.host, notes=())
    return replace(machine, host=host, devices=devices, name=None, findings=(), sources={})


def _value(text: str, addresses: dict[str, str]) -> str:
    if text[:1] in ("{", "["):
        try:
            return json.dumps(scrub_json(json.loads(text)), separators=(",", ":"))
        except (ValueError, RecursionError):
            pass
    text = _ADDRESS.sub(lambda found: addresses.setdefault(found[1], f"host{len(addresses) + 1}"), text)
    return HIDDEN if len(text) > MAX_CHARS or _PLACE.search(text) else text
