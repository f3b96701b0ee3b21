"""A machine as JSON values and back: what `hardware detect --format json` prints, and `--on` reads."""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from autofit.domain.machine import HOST_POOL, Device, Holder, Host, Link, Machine, Node
from autofit.domain.patterns import lazy_pattern
from autofit.domain.text import printable
from autofit.domain.values import MISSING, fields, is_dataclass
from autofit.errors import HardwareError

SCHEMA = 1
MAX_DEVICES = 256
MAX_TEXT = 4000  #: characters
_ID = lazy_pattern(r"[\w.:/-]{1,64}", re.ASCII)  #: with the node before it, of several machines


def machine_to_dict(machine: Machine) -> dict[str, Any]:
    """The machine as JSON values, schema 1; every field, unknown ones as null."""
    return {"schema": SCHEMA, "kind": "machine", **_plain(machine)}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def machine_from_json(text: str, name: str) -> Machine:
    """A machine from a JSON file made on another one.

    Raises:
        HardwareError: not JSON, or not a machine.
    """
    import json

    try:
        return machine_from_dict(json.loads(text), name)
    except (ValueError, RecursionError) as cause:
        raise HardwareError(f"{name}: not JSON: {cause}") from cause


def machine_from_dict(data: object, name: str = "machine") -> Machine:
    """The machine that `machine_to_dict` described.

    Raises:
        HardwareError: a key that is unknown, missing or of the wrong type, devices that are numbered twice.
    """
    if not isinstance(data, Mapping) or data.get("schema") != SCHEMA or data.get("kind") != "machine":
        raise HardwareError(
            f"{name}: not a machine of schema {SCHEMA}",
            hint="make one with `autofit hardware detect --format json`",
        )
    machine: Machine = _build(Machine, {k: v for k, v in data.items() if k not in ("schema", "kind")}, name)
    ids = [device.id for device in machine.devices]
    if len(set(ids)) != len(ids) or len(ids) > MAX_DEVICES * (1 + len(machine.nodes)):
        raise HardwareError(f"{name}: devices: each needs an id of its own, {MAX_DEVICES} at most")
    for device in machine.devices:
        if not _ID.fullmatch(device.id) or device.id == HOST_POOL:
            raise HardwareError(f"{name}: devices: '{printable(device.id, 60)}' is no id", hint="such as GPU0")
        if device.pool not in (device.id, HOST_POOL):
            raise HardwareError(
                f"{name}: devices: {device.id} draws on '{printable(device.pool, 60)}'",
                hint=f"pool is {device.id}, or {HOST_POOL} where memory is unified",
            )
    return machine


_VALUES = (Machine, Host, Device, Link, Holder, Node)
_HINTS: dict[type, dict[str, Any]] = {}


def _build(cls: Any, data: object, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise HardwareError(f"{where}: must be an object")
    if cls not in _HINTS:
        # `Device` names `Holder` before it is defined, so the hints are looked up where all are known
        _HINTS[cls] = get_type_hints(cls, localns={value.__name__: value for value in _VALUES})
    known = {field.name: field for field in fields(cls)}
    values = {}
    for key, value in data.items():
        if key not in known:
            from autofit.text.suggest import close_names

            raise HardwareError(f"{where}: no key '{printable(str(key), 60)}'", hint=close_names(str(key), known))
        values[key] = _convert(_HINTS[cls][key], value, f"{where}: {key}")
        if (key.endswith("_per_s") or key.startswith(("n_cores", "n_numa", "n_sm"))) and value == 0:
            raise HardwareError(f"{where}: {key}: must be above 0", hint="null says that it is unknown")
    for key, field in known.items():
        if key not in values and field.default is MISSING and field.default_factory is MISSING:
            raise HardwareError(f"{where}: {key} is missing")
    return cls(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`; JSON knows no tuples."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in get_args(hint):
            return None
        return _convert(next(arg for arg in get_args(hint) if arg is not type(None)), value, where)
    if origin is Literal:
        if value in get_args(hint):
            return value
        raise HardwareError(f"{where}: must be one of {', '.join(get_args(hint))}")
    if origin is tuple:
        return _convert_tuple(get_args(hint), value, where)
    if origin is not None:  # a mapping of strings
        if isinstance(value, Mapping) and all(isinstance(k, str) and isinstance(v, str) for k, v in value.items()):
            return {printable(k, MAX_TEXT): printable(v, MAX_TEXT) for k, v in value.items()}
        raise HardwareError(f"{where}: must be an object of strings")
    if is_dataclass(hint):
        return _build(hint, value, where)
    if hint is str and isinstance(value, str):
        return printable(value, MAX_TEXT)
    if type(value) is not hint or (hint is int and not 0 <= value <= 1 << 60):
        raise HardwareError(f"{where}: must be {hint.__name__}, is {printable(repr(value), 40)}")
    return value


def _convert_tuple(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list) or len(value) > 1 << 12:
        raise HardwareError(f"{where}: must be a list")
    if args[-1] is Ellipsis:
        return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if len(value) != len(args):
        raise HardwareError(f"{where}: must hold {len(args)} values")
    return tuple(_convert(arg, item, f"{where}[{i}]") for i, (arg, item) in enumerate(zip(args, value, strict=True)))
