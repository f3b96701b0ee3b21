"""The command of a log: rebuilt from what its context and its load say, and changed flag by flag."""

from __future__ import annotations

import re
from collections.abc import Sequence

from autofit.domain.observed import Observed
from autofit.errors import UsageError

from autofit_llama.command.options import spellings
from autofit_llama.command.reading import find_program
from autofit_llama.engine.versions import Version
from autofit_llama.logs.devices import devices_of

#: of a remote device: its name (`RPC0`), and what older builds call it by (`RPC[HOST:PORT]`)
_ADDRESS = re.compile(r"(?<=RPC\[)[\w.-]{1,60}:\d{1,5}(?=\])|(?<= )[\w.-]{1,60}:\d{1,5}$")
_FLASH = {"0": "off", "1": "on", "disabled": "off", "enabled": "on"}


def command_of(observed: Observed, version: Version) -> tuple[str, ...]:
    """A command that comes to the same context, layers and caches. Placement of single tensors is not in a log."""
    facts = observed.facts
    argv = ["llama-server", "-m", str(facts.get("file", "model.gguf"))]
    known = spellings("llama-server", version)

    def add(flag: str, value: object) -> None:
        if value is not None and flag in known:
            argv.extend((flag, str(value)))

    offloaded, layers = facts.get("layers.offloaded"), facts.get("layers.all")
    devices = devices_of(observed)
    servers = [
        address[0]
        for device in devices
        if device.api == "rpc" and (address := _ADDRESS.search(f"{device.id} {device.name}"))
    ]
    add("--rpc", ",".join(servers) or None)
    if offloaded is not None and devices:
        add("-ngl", 99 if offloaded == layers else offloaded)
    elif devices:
        add("-ngl", 99)
    add("-c", facts.get("context.n_ctx"))
    for flag, name, default in (("-b", "n_batch", "2048"), ("-ub", "n_ubatch", "512")):
        value = facts.get(f"context.{name}")
        if value != default:
            add(flag, value)
    slots = facts.get("context.n_seq_max")
    unified = facts.get("context.kv_unified") == "true"
    if slots is not None and not (slots == "4" and unified):
        add("-np", slots)
        if unified and slots != "1" and "-kvu" in known:
            argv.append("-kvu")
    flash = _FLASH.get(str(facts.get("context.flash_attn")))
    if flash is not None and "-fa" in known:
        argv.extend(("-fa", flash) if known["-fa"][0].n_values else ("-fa",) if flash == "on" else ())
    for flag, name in (("-ctk", "type_k"), ("-ctv", "type_v")):
        value = facts.get(f"context.{name}")
        if value not in (None, "f16"):
            add(flag, value)
    return tuple(argv)


def with_flags(argv: Sequence[str], flags: Sequence[str], version: Version) -> tuple[str, ...]:
    """The command with these flags, in the place of the same options.

    Raises:
        UsageError: the version has none of that name.
    """
    program, words, rest = find_program(argv)
    known = spellings(program, version)
    keys = set()
    for flag in flags:
        if flag.startswith("-") and not flag.lstrip("-")[:1].isdigit():
            if flag not in known:
                raise UsageError(f"llama.cpp {version.name} has no {flag}")
            keys.add(known[flag][0].key)
    kept, at = list(words), 0
    while at < len(rest):
        token = rest[at]
        found = known.get(token.replace("_", "-") if token.startswith("--") else token)
        n = 1 + (found[0].n_values if found else 0)
        if found is None or found[0].key not in keys:
            kept += rest[at : at + n]
        at += n
    return (*kept, *flags)
