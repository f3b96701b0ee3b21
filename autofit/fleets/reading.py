"""A fleet from a TOML file, from a mapping of the same keys, or from engines' commands."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autofit.domain.fleet import DEFAULT_PRIORITY, Fleet, FleetMachine, FleetModel
from autofit.domain.request import Margin
from autofit.domain.text import printable
from autofit.domain.values import replace
from autofit.errors import AutofitError, UsageError
from autofit.host import blamed, host
from autofit.inputs import split_assignments
from autofit.machines import load_machine, machine_of
from autofit.references import find
from autofit.settings.layers import Options
from autofit.settings.options import BY_NAME, parse_margins
from autofit.text.suggest import suggest

if TYPE_CHECKING:
    from autofit.domain.machine import Machine

MAX_COPIES = 1000
MAX_MACHINES = 1000
MAX_NAME = 60
MAX_NODE_NAME = 253  #: characters; of Kubernetes
MAX_PHASES = 64
CLUSTERS = ("kubernetes", "ray")  #: origins of machines that have names
FLEET_KEYS = ("schema", "summary", "when-full", "phases", "defaults", "machine", "model")
MACHINE_KEYS = ("name", "on", "ram", "margin", "count")
MODEL_KEYS = (
    "name", "model", "backend", "command", "engine-args", "priority", "replicas", "group", "phases", "machines",
    "devices", "layers-in-ram", "port",
)  # fmt: skip
#: options that a fleet answers itself, or that are for one command
_NOT_OF_MODELS = {
    "on": "machines are in [[machine]]",
    "ram": "machines are in [[machine]]",
    "device": "`devices` is how many a model takes; machines = [...] names where",
    "strict": "a fleet counts what memory grows to",
    "force": "--force is on the command line",
}


def read_fleet(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """The table of a fleet's file.

    Raises:
        UsageError: it cannot be read, or is not TOML.
    """
    from pathlib import Path

    from autofit.profiles import parse_toml, read_text

    return parse_toml(read_text(Path(path)), os.fspath(path))


def fleet_of(table: Mapping[str, Any], where: str = "fleet", *, machines: Sequence[FleetMachine] = ()) -> Fleet:
    """The fleet that a table describes, as `docs/fleet.md` has it. `machines` stand for those of the table.

    Raises:
        UsageError: an unknown key (with a suggestion), a value that makes no sense, names twice, no model at all.
        ModelError, HardwareError: what it names is not there.
    """
    if not isinstance(table, Mapping):
        raise UsageError(f"{where}: must be a table, not {type(table).__name__}")
    _check_keys(table, FLEET_KEYS, where)
    if table.get("schema", 1) != 1:
        raise UsageError(f"{where}: schema {table.get('schema')!r:.20} is not known", hint="schema = 1")
    phases, groups_of_phases = _phases(table.get("phases", ()), where)
    defaults = _options(_table(table.get("defaults", {}), f"{where}: defaults"), (), f"{where}: defaults")
    models = tuple(
        _model(one, number, defaults, groups_of_phases, where)
        for number, one in enumerate(_rows(table.get("model", ()), f"{where}: model"), 1)
    )
    if not models:
        raise UsageError(f"{where}: no model", hint='write [[model]] with name = "chat" and model = "chat.gguf"')
    named: Mapping[str, tuple[str, ...]] = {}
    if not machines:
        machines, named = _machines(table.get("machine", ()), where)
        models = tuple(replace(one, machines=_whole_rows(one.machines, named)) for one in models)
    when_full = _choice(table.get("when-full", "refuse"), ("refuse", "swap"), f"{where}: when-full")
    fleet = Fleet(
        machines=tuple(machines),
        models=models,
        phases=phases,
        when_full=when_full,  # type: ignore[arg-type]
        findings=_left_out(machines),
    )
    _check(fleet, where)
    return fleet


def fleet_of_commands(
    commands: Sequence[Sequence[str]], machines: Sequence[FleetMachine] = (), options: Mapping[str, Any] | None = None
) -> Fleet:
    """The fleet of engines' commands, each kept as it is and filled in where it leaves something open.

    Raises:
        UsageError: no backend understands a command, or it names no model.
    """
    models: list[FleetModel] = []
    for number, words in enumerate(commands, 1):
        own = _of_command(words, f"command {number}")
        taken = {model.name for model in models}
        name = next(
            n for i in range(1, MAX_COPIES + 2) if (n := own.name if i == 1 else f"{own.name}-{i}") not in taken
        )
        models.append(replace(own, name=name, options=dict(options or {})))
    if not models:
        raise UsageError("fleet: no command", hint="autofit fleet -- COMMAND1 --- COMMAND2")
    machines = tuple(machines) or (this_machine(),)
    fleet = Fleet(machines=machines, models=tuple(models), findings=_left_out(machines))
    _check(fleet, "fleet")
    return fleet


def machines_on(names: Sequence[str], ram: Any = None, margin: Margin | None = None) -> tuple[FleetMachine, ...]:
    """One machine of these hardware profiles, or this one where none is named."""
    if not names:
        return (replace(this_machine(), margin=margin),)
    return tuple(machines_of("machine", load_machine(*names, ram=ram), margin))


def this_machine() -> FleetMachine:
    return FleetMachine(name="here", machine=machine_of(Options()))


# -- parts ----------------------------------------------------------------------------------------------------


def machines_of(name: str, machine: Machine, margin: Margin | None = None, count: int = 1) -> list[FleetMachine]:
    """The machines of a fleet that one description stands for: so many copies of it, or each node of a cluster.

    Nodes keep the names that the cluster has for them.
    """
    from autofit.hardware.nodes import apart

    members = apart(machine)
    if machine.origin in CLUSTERS and all(_is_name(member.name, MAX_NODE_NAME) for member in members):
        names = [member.name for member in members]
    else:
        n = count * len(members)
        names = [name] if n == 1 else [f"{name}-{i}" for i in range(1, n + 1)]
    every = [member.machine for _ in range(count) for member in members]
    return [FleetMachine(name=one, machine=own, margin=margin) for one, own in zip(names, every, strict=False)]


def _left_out(machines: Sequence[FleetMachine]) -> tuple[str, ...]:
    """What a cluster says of nodes that are not there."""
    clusters = (one.machine for one in machines if one.machine.origin in CLUSTERS)
    return tuple(dict.fromkeys(said for machine in clusters for said in machine.findings))


def _whole_rows(names: Sequence[str], rows: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Names of machines, in which that of a description stands for all of its machines."""
    return tuple(dict.fromkeys(own for name in names for own in rows.get(name, (name,))))


def _machines(rows: Any, where: str) -> tuple[tuple[FleetMachine, ...], dict[str, tuple[str, ...]]]:
    """The machines, and for each row's name theirs."""
    found: list[FleetMachine] = []
    named: dict[str, tuple[str, ...]] = {}
    for number, row in enumerate(_rows(rows, f"{where}: machine"), 1):
        at = f"{where}: machine {number}"
        _check_keys(row, MACHINE_KEYS, at)
        name = _name(row.get("name"), at)
        at = f"{where}: machine {name}"
        count = _whole(row.get("count", 1), 1, MAX_MACHINES, f"{at}: count")
        if name in named:
            raise UsageError(f"{where}: machine {name} is there twice", hint="give each a name of its own")
        if len(found) + count > MAX_MACHINES:
            raise UsageError(f"{where}: more than {MAX_MACHINES} machines")
        own = machines_of(name, _machine(row, at), _margin(row.get("margin"), at), count)
        if len(found) + len(own) > MAX_MACHINES:
            raise UsageError(f"{where}: more than {MAX_MACHINES} machines")
        named[name] = tuple(one.name for one in own)
        found += own
    return tuple(found) or (this_machine(),), named


def _machine(row: Mapping[str, Any], at: str) -> Machine:
    names = _texts(row.get("on", ()), f"{at}: on")
    ram = row.get("ram")
    if not names:
        if ram is not None:
            raise UsageError(f"{at}: ram without on", hint='on = ["rtx-3090"] describes a machine; neither: this one')
        return this_machine().machine
    if ram is not None and (isinstance(ram, bool) or not isinstance(ram, (str, int))):
        raise UsageError(f"{at}: ram is text or bytes, not {type(ram).__name__}", hint='ram = "64GiB"')
    from autofit.domain.ram import parse_ram

    with _named(at):
        return load_machine(*names, ram=parse_ram(ram) if isinstance(ram, str) else ram)


class _named:
    """Errors inside begin with where they are."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, AutofitError):
            error.message = f"{self.where}: {error.message}"
            error.args = (error.message,)


def _margin(given: Any, at: str) -> Margin | None:
    if given is None:
        return None
    with _named(f"{at}: margin"):
        margins = parse_margins(str(given))
    if len(margins) != 1:
        raise UsageError(f"{at}: margin is one value for all devices", hint='margin = "1GiB"')
    return margins[0]


def _model(
    row: Mapping[str, Any], number: int, defaults: Mapping[str, Any], phases: Mapping[str, tuple[str, ...]], where: str
) -> FleetModel:
    at = f"{where}: model {number}"
    name = _name(row.get("name"), at)
    at = f"{where}: model {name}"
    options = {**defaults, **_options(row, MODEL_KEYS, at)}
    own = _engine(row, name, at)
    return replace(
        own,
        name=name,
        options=options,
        priority=_whole(row.get("priority", DEFAULT_PRIORITY), 0, 100, f"{at}: priority"),
        replicas=_whole(row.get("replicas", 1), 1, MAX_COPIES, f"{at}: replicas"),
        group=None if row.get("group") is None else _name(row["group"], f"{at}: group"),
        phases=_phases_of(row.get("phases", ()), phases, f"{at}: phases"),
        machines=_texts(row.get("machines", ()), f"{at}: machines"),
        n_devices=None if row.get("devices") is None else _whole(row["devices"], 1, 256, f"{at}: devices"),
        layers_in_ram=_flag(row.get("layers-in-ram", False), f"{at}: layers-in-ram"),
        port=None if row.get("port") is None else _whole(row["port"], 1, 65535, f"{at}: port"),
    )


def _engine(row: Mapping[str, Any], name: str, at: str) -> FleetModel:
    """What is started: a command, or a model and its backend."""
    if (command := row.get("command")) is not None:
        if row.keys() & {"model", "backend", "engine-args"}:
            raise UsageError(f"{at}: a command names its model and engine itself", hint="leave model and backend out")
        if isinstance(command, str):
            try:
                words: Sequence[str] = shlex.split(command)
            except ValueError as error:
                raise UsageError(f"{at}: command: {error}", hint="write it as an argument list") from error
        else:
            words = _texts(command, f"{at}: command")
        return _of_command(words, f"{at}: command")
    reference = row.get("model")
    if not isinstance(reference, str) or not reference.strip():
        raise UsageError(f"{at}: no model", hint='model = "chat.gguf", or a name (docs/names.md)')
    backend = row.get("backend")
    if backend is None:
        backend = _backend_for(reference, at)
    elif not isinstance(backend, str) or backend not in host().backends():
        known = sorted(host().backends())
        raise UsageError(f"{at}: no backend '{printable(str(backend), 40)}'", hint=suggest(str(backend), known))
    args = _texts(row.get("engine-args", ()), f"{at}: engine-args")
    return FleetModel(name=name, backend=backend, reference=reference, engine_args=args)


def _backend_for(reference: str, at: str) -> str:
    """The first backend that serves the model's format."""
    with _named(at):
        form = find(reference).model.format
    for name in host().backends():
        if form in host().backend(name).formats:
            return name
    raise UsageError(f"{at}: no backend serves {form} models", hint=f"backends: {', '.join(host().backends())}")


def _of_command(words: Sequence[str], at: str) -> FleetModel:
    from autofit.text.launchers import unwrap

    assigned, rest = split_assignments(tuple(words))
    wrapped = unwrap(rest)
    if not wrapped.argv:
        raise UsageError(f"{at}: no command", hint="write the engine's whole command, with its model")
    if wrapped.programs:
        raise UsageError(
            f"{at}: {printable(wrapped.programs[0], 40)} starts the engine", hint="write the engine's command itself"
        )
    backend = host().backend_of_program(wrapped.argv)
    environ = {**wrapped.variables({}), **assigned}
    with blamed(backend.name):
        n_program = len(backend.program_in(wrapped.argv))
        if not n_program:
            raise UsageError(f"{at}: {printable(wrapped.argv[0], 40)} loads no model with these words")
        parsed = backend.parse(wrapped.argv, environ)
    if parsed.model is None:
        raise UsageError(f"{at}: the command names no model", hint="write it as the engine takes it, such as -m m.gguf")
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in os.path.basename(parsed.model.rstrip("/")))  # noqa: PTH119
    return FleetModel(
        name=name.removesuffix(".gguf")[:MAX_NAME].strip("-.") or backend.name,
        backend=backend.name,
        reference=None,
        program=wrapped.argv[:n_program],
        engine_args=wrapped.argv[n_program:],
        environ=environ,
    )


def _options(row: Mapping[str, Any], own: Iterable[str], at: str) -> dict[str, Any]:
    """autofit's options among the keys of a table."""
    found: dict[str, Any] = {}
    known = (*own, *(name.replace("_", "-") for name in BY_NAME if name not in _NOT_OF_MODELS))
    for key, value in row.items():
        if key in own:
            continue
        name = key.replace("-", "_")
        if name in _NOT_OF_MODELS:
            raise UsageError(f"{at}: {key} is not of a model", hint=_NOT_OF_MODELS[name])
        if name not in BY_NAME or "_" in key:
            raise UsageError(f"{at}: unknown key '{printable(key, 40)}'", hint=suggest(key, known))
        option = BY_NAME[name]
        items = value if isinstance(value, list) else [value]
        if any(isinstance(item, (Mapping, list)) for item in items):
            raise UsageError(f"{at}: {key} is a table, not a value")
        text = ",".join(str(item).lower() if isinstance(item, bool) else str(item) for item in items)
        option.value_of(text, f"{at}: {key}")
        found[name] = text
    return found


# -- phases ---------------------------------------------------------------------------------------------------


def _phases(given: Any, where: str) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """The phases, and for each name those that it stands for: a list of names, or a table in which a name may stand
    for others.

    Raises:
        UsageError: a name that stands for itself, or for one that is not there.
    """
    if not isinstance(given, Mapping):
        names = [_name(one, f"{where}: phases") for one in _texts(given, f"{where}: phases")]
        if (twice := next((name for i, name in enumerate(names) if name in names[:i]), None)) is not None:
            raise UsageError(f"{where}: phase {twice} is there twice", hint="give each a name of its own")
        given = dict.fromkeys(names, ())
    table = {_name(name, f"{where}: phases"): _texts(of, f"{where}: phases: {name}") for name, of in given.items()}
    if len(table) > MAX_PHASES:
        raise UsageError(f"{where}: {len(table)} phases; at most {MAX_PHASES}")
    phases = tuple(name for name, of in table.items() if not of)
    return phases, {name: _resolved(name, table, (), where) for name in table}


def _resolved(name: str, table: Mapping[str, Sequence[str]], through: tuple[str, ...], where: str) -> tuple[str, ...]:
    if name in through:
        circle = " -> ".join((*through[through.index(name) :], name))
        raise UsageError(f"{where}: phases: {circle} is a circle", hint="a phase stands for others, not for itself")
    if name not in table:
        raise UsageError(f"{where}: phases: {through[-1]}: no phase {name!r:.60}", hint=suggest(name, list(table)))
    found = [phase for other in table[name] for phase in _resolved(other, table, (*through, name), where)]
    return tuple(dict.fromkeys(found)) or (name,)


def _phases_of(given: Any, known: Mapping[str, tuple[str, ...]], at: str) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for name in _texts(given, at):
        if name not in known:
            hint = suggest(name, list(known)) if known else 'write phases = ["day", "night"] at the top of the file'
            raise UsageError(f"{at}: no phase '{printable(name, 60)}'", hint=hint)
        found |= dict.fromkeys(known[name])
    return tuple(found)


# -- checks ---------------------------------------------------------------------------------------------------


def _check(fleet: Fleet, where: str) -> None:
    """Refuse names twice, machines that are not there, too many copies, and ports that two would have at once."""
    for what, names in (
        ("machine", [one.name for one in fleet.machines]),
        ("model", _copy_names(fleet)),
    ):
        twice = next((name for i, name in enumerate(names) if name in names[:i]), None) if len(names) < 64 else None
        twice = twice or (None if len(set(names)) == len(names) else "a name")
        if twice is not None:
            raise UsageError(f"{where}: {what} {twice} is there twice", hint="give each a name of its own")
    if (n := sum(model.replicas for model in fleet.models)) > MAX_COPIES:
        raise UsageError(f"{where}: {n} copies of models; at most {MAX_COPIES} are planned for")
    here = [one.name for one in fleet.machines]
    for model in fleet.models:
        for name in model.machines:
            if name not in here:
                raise UsageError(
                    f"{where}: model {model.name}: no machine '{printable(name, 60)}'", hint=suggest(name, here)
                )
        if model.port is not None and model.port + model.replicas - 1 > 65535:
            last = model.port + model.replicas - 1
            raise UsageError(
                f"{where}: model {model.name}: {model.replicas} copies from port {model.port} on need port {last}; the "
                "highest is 65535",
                hint=f"write a port of at most {65536 - model.replicas}",
            )
    _check_ports(fleet, where)


def _copy_names(fleet: Fleet) -> list[str]:
    return [
        name
        for model in fleet.models
        for name in ([model.name] if model.replicas == 1 else [f"{model.name}-{i + 1}" for i in range(model.replicas)])
    ]


def _check_ports(fleet: Fleet, where: str) -> None:
    """Two models on one port may be there only where they never run together, or on different machines."""
    by_port: dict[int, list[FleetModel]] = {}
    for model in fleet.models:
        for port in () if model.port is None else range(model.port, model.port + model.replicas):
            for other in by_port.get(port, ()):
                if other.name != model.name and _may_meet(model, other):
                    raise UsageError(
                        f"{where}: {other.name} and {model.name} both have port {port}", hint="give each its own"
                    )
            by_port.setdefault(port, []).append(model)


def _may_meet(one: FleetModel, other: FleetModel) -> bool:
    apart = one.group is not None and one.group == other.group
    apart = apart or bool(one.phases and other.phases and not set(one.phases) & set(other.phases))
    return not apart and not (one.machines and other.machines and not set(one.machines) & set(other.machines))


# -- values ---------------------------------------------------------------------------------------------------


def _check_keys(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise UsageError(f"{where}: unknown key '{printable(str(key), 40)}'", hint=suggest(str(key), list(known)))


def _rows(given: Any, where: str) -> Sequence[Mapping[str, Any]]:
    if isinstance(given, Mapping) or not isinstance(given, (list, tuple)):
        raise UsageError(f"{where} is a list of tables", hint=f"write [[{where.rpartition(' ')[2]}]]")
    if len(given) > MAX_COPIES:
        raise UsageError(f"{where}: {len(given)} of them; at most {MAX_COPIES}")
    return [_table(one, where) for one in given]


def _table(given: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise UsageError(f"{where} is a table, not {type(given).__name__}")
    return given


def _texts(given: Any, where: str) -> tuple[str, ...]:
    items = [given] if isinstance(given, str) else given
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, (str, os.PathLike)) for item in items):
        raise UsageError(f"{where} is a list of texts")
    return tuple(os.fspath(item) for item in items)


def _name(given: Any, where: str) -> str:
    if not isinstance(given, str) or not given or len(given) > MAX_NAME:
        raise UsageError(f"{where}: needs a name of at most {MAX_NAME} characters", hint='name = "chat"')
    if not _is_name(given, MAX_NAME):
        raise UsageError(
            f"{where}: '{printable(given, 60)}' is no name", hint="letters, digits and . _ - behind the first"
        )
    return given


def _is_name(text: str, most: int) -> bool:
    plain = text.isascii() and all(c.isalnum() or c in "._-" for c in text)
    return plain and 0 < len(text) <= most and text[0] not in "._-"


def _whole(given: Any, least: int, most: int, where: str) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or not least <= given <= most:
        raise UsageError(f"{where}: '{printable(str(given), 40)}' is no number from {least} to {most}")
    return given


def _flag(given: Any, where: str) -> bool:
    if not isinstance(given, bool):
        raise UsageError(f"{where} is true or false")
    return given


def _choice(given: Any, known: Sequence[str], where: str) -> str:
    if given not in known:
        raise UsageError(f"{where}: '{printable(str(given), 40)}'", hint=f"known: {', '.join(known)}")
    return str(given)
