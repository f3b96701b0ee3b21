"""Which quantization of a model to take: every form that the engines know, planned as the form at hand would be."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from autofit.domain.machine import HOST_POOL
from autofit.domain.names import is_elsewhere
from autofit.domain.patterns import lazy_pattern
from autofit.domain.request import Request
from autofit.domain.text import printable
from autofit.domain.units import format_bytes, parse_size
from autofit.domain.values import dataclass, replace
from autofit.errors import AutofitError, ModelError, UsageError
from autofit.host import blamed, host
from autofit.machines import machine_of
from autofit.pipeline import plan_of, read_model, stated_options, with_engine
from autofit.quant_choice import FormFile, Row, recommend
from autofit.references import MAX_NEIGHBORS, locate
from autofit.settings.layers import HERE, Options, Surroundings

if TYPE_CHECKING:
    from typing import Unpack

    from autofit.backend import Backend
    from autofit.domain.machine import Machine
    from autofit.domain.memory import PoolUse
    from autofit.domain.model import ModelSpec
    from autofit.domain.plan import Plan
    from autofit.domain.quantization import Quantization, Recipe
    from autofit.settings.keywords import PlanOptions

SCHEMA = 1
FIT = "fit"  #: the size that fits on the machine
_TRIES = 14  #: at the largest size that fits
_NEAR_BYTES = 1 << 20
PLAIN_CACHE = "f16"
IN_RAM_TOKENS = 16_384  #: the context for which a form is planned that does not fit on the devices
#: names of a model's files differ by the quantization alone, at the end and behind one of these
_SEPARATORS = "-._"
_SHARD = lazy_pattern(r"-\d{5}-of-\d{5}(?=\.gguf$)", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quants:
    """Every form of a model, the largest first, and the one to take with each backend that has any.

    `recommended` is the first backend's that has one; first are those that take the model as it is.
    """

    model: ModelSpec
    machine: Machine
    rows: tuple[Row, ...]
    choices: Mapping[str, tuple[Row | None, str]]

    @property
    def recommended(self) -> Row | None:
        return next((row for row, _ in self.choices.values() if row is not None), None)

    @property
    def because(self) -> str:
        chosen = self.recommended
        return next(why for row, why in self.choices.values() if row is chosen)

    @property
    def n_parameters(self) -> int:
        """Of the model; of one without files, what an engine makes of its configuration."""
        return self.model.n_parameters or max((row.quantization.n_parameters for row in self.rows), default=0)

    def to_dict(self, *, tensors: bool = False) -> dict[str, Any]:
        """JSON values, schema 1 (`docs/quants.md`); with `tensors` the type of each tensor in each form."""
        chosen = self.recommended
        return {
            "schema": SCHEMA,
            "model": self.model.name,
            "architecture": self.model.architecture,
            "parameters": self.n_parameters,
            "recommended": None
            if chosen is None
            else {"backend": chosen.backend, "name": chosen.quantization.name, "because": self.because},
            "because": self.because,
            "choices": {
                name: {"name": None if row is None else row.quantization.name, "because": why}
                for name, (row, why) in self.choices.items()
            },
            "quantizations": [_row(row, tensors) for row in self.rows],
        }


def quantizations(
    model: ModelSpec | str | os.PathLike[str],
    machine: Machine | None = None,
    *,
    backend: str | None = None,
    quantize_args: Sequence[str] = (),
    settings: Surroundings | None = HERE,
    **options: Unpack[PlanOptions],
) -> Quants:
    """Every quantization of `model`: exact bytes, whether and how it fits on `machine`, and which one to take.

    `options` are those of `plan()`; `quantize_args` are flags of the program that quantizes. Without `backend`, every
    engine is asked that has a say.

    Raises:
        UsageError, ModelError, HardwareError, PluginError
    """
    named = isinstance(model, (str, os.PathLike))
    found: ModelSpec = read_model(model) if named else model  # type: ignore[arg-type, assignment]
    names = _that_know_the_version(options, settings) if backend is None else (backend,)
    rows: list[Row] = []
    refused: dict[str, tuple[Row | None, str]] = {}
    here = machine
    prefer = None
    floor = None
    for name in names:
        engine = host().backend(name)
        with blamed(name):
            try:
                forms = tuple(engine.quantizations(found, tuple(quantize_args)))
            except ModelError as error:
                if found.format in engine.formats or backend is not None:
                    raise
                refused[name] = None, error.message  # what it would have to be made into first
                continue
        if not forms:
            continue
        stated = stated_options(name, options, settings)
        prefer, floor = stated.get("prefer"), stated.get("min_tps")
        if here is None:
            here = machine_of(stated, None if settings is None else settings.variables)
        if machine is None:
            stated = with_engine(name, stated, settings)
        size_up = Sizing.of(host().adjust_machine(here, name), found)
        rows += [planned(name, form, here, stated, settings, size_up) for form in forms]
    if not rows or here is None:
        raise _without_forms(found, backend)
    rows = list(_with_files(rows, found))
    rows.sort(key=lambda row: (row.quantization.model is None, -row.weights_bytes))
    asked = sorted(dict.fromkeys(row.backend for row in rows), key=lambda name: _takes(name, found), reverse=True)
    choices = {
        name: recommend([row for row in rows if row.backend == name], prefer=prefer, min_tokens_per_s=floor)
        for name in asked
    }
    return Quants(model=found, machine=here, rows=tuple(rows), choices=choices | refused)


def _that_know_the_version(options: Mapping[str, Any], settings: Surroundings | None) -> tuple[str, ...]:
    """The engines that have the stated version: all where none is stated, or none has it."""
    names = tuple(host().backends())
    known = []
    for name in names:
        stated = stated_options(name, options, settings)
        if stated.get("engine_version") is None:
            return names
        with suppress(UsageError):
            version = with_engine(name, stated, settings).get("engine_version")
            host().backend(name).command(Request(engine_version=version))
            known.append(name)
    return tuple(known) or names


def _without_forms(model: ModelSpec, backend: str | None) -> ModelError:
    """The error for a model of which the engine that was asked, or all of them, know one form only."""
    name = printable(model.name, 80)
    others = [other for other in host().backends() if backend not in (None, other) and _takes(other, model)]
    if others:
        return ModelError(
            f"{name}: no other forms of a {model.format} model are known for {backend}",
            hint=f"those for {' and '.join(others)}: --backend {others[0]}; for {backend} name a repository or a "
            "directory with config.json",
        )
    return ModelError(
        f"{name}: no engine says how a {model.format} model is quantized",
        hint="name a GGUF file, or a directory with safetensors and config.json",
    )


def _takes(backend: str, model: ModelSpec) -> bool:
    """Whether a backend takes the model as it is."""
    return model.format in host().backend(backend).formats


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A form made to measure: how to make it, and its plan."""

    recipe: Recipe
    row: Row
    machine: Machine

    def to_dict(self) -> dict[str, Any]:
        """JSON values, schema 1."""
        return {
            "schema": SCHEMA,
            "argv": list(self.recipe.argv),
            "because": self.recipe.because,
            "quantization": _row(self.row, True),
        }


def made_to_measure(
    model: ModelSpec | str | os.PathLike[str],
    machine: Machine | None = None,
    *,
    size: int | str = FIT,
    backend: str | None = None,
    quantize_args: Sequence[str] = (),
    settings: Surroundings | None = HERE,
    **options: Unpack[PlanOptions],
) -> Measured:
    """The largest form of at most `size` bytes that can be made of `model`, and the command that makes it.

    `size` is a number of bytes, a text such as `20GiB`, or `fit`: what fits on the devices of `machine` as asked, with
    a context of 16,384 tokens and an f16 cache where none are.

    Raises:
        UsageError: nothing is that small. ModelError: no engine makes forms of this model to measure.
    """
    found: ModelSpec = read_model(model) if isinstance(model, (str, os.PathLike)) else model
    is_given = machine is not None
    for name in host().backends() if backend is None else (backend,):
        stated = stated_options(name, options, settings)
        if machine is None:
            machine = machine_of(stated, None if settings is None else settings.variables)
        if not is_given:
            stated = with_engine(name, stated, settings)
        if size == FIT:
            stated = _with_plain_cache(stated, host().backend(name))
        made = partial(_made, name, found, machine, stated, settings, tuple(quantize_args))
        if size == FIT:
            done = _largest(made, Sizing.of(host().adjust_machine(machine, name), found))
        else:
            done = made(size if isinstance(size, int) else parse_size(size))
        if done is not None:
            return done
    raise ModelError(f"{printable(found.name, 80)}: no engine makes forms of a {found.format} model to measure")


def _with_plain_cache(options: Options, backend: Backend) -> Options:
    """An f16 cache, if none is asked for: a type chosen by what fits would come and go with the size."""
    if options.get("kv") is not None or "kv" not in backend.supports or not backend.kv_types:
        return options
    return replace(options, values={**options.values, "kv": PLAIN_CACHE if PLAIN_CACHE in backend.kv_types else None})


def _made(
    backend: str,
    model: ModelSpec,
    machine: Machine,
    stated: Options,
    settings: Surroundings | None,
    words: tuple[str, ...],
    n_bytes: int,
) -> Measured | None:
    """The recipe for a size, with its plan."""
    with blamed(backend):
        recipe = host().backend(backend).recipe(model, n_bytes, words)
    if recipe is None:
        return None
    sizing = Sizing.of(host().adjust_machine(machine, backend), model)
    row = planned(backend, recipe.quantization, machine, sizing.with_context(stated), settings, sizing)
    return Measured(recipe=recipe, row=row, machine=machine)


def _largest(made: Callable[[int], Measured | None], sizing: Sizing) -> Measured | None:
    """The largest form that fits on the devices: guessed by what is left, then halved."""
    most = sizing.device_bytes if sizing.device_bytes is not None else sizing.all_bytes
    if most is None:
        raise UsageError("free memory is unknown, so there is nothing to fit", hint="name a size: --size 20GiB")
    best: Measured | None = None
    low, high, guess = 0, most, most * 7 // 8
    for _ in range(_TRIES):
        found = made(guess)
        if found is None:
            return None
        if found.row.full_speed:
            best, low = found, guess
            left = sum(max(0, pool.room_bytes or 0) for pool in _device_pools(found.row.plan))
            guess = min(low + left, (low + high) // 2) if left > _NEAR_BYTES else (low + high) // 2
        else:
            high = guess
            guess = (low + high) // 2
        if high - low < _NEAR_BYTES:
            break
    if best is None:
        raise UsageError("no file leaves the asked context on the devices", hint="ask for a shorter context: -c 8k")
    return best


def _device_pools(plan: Plan | None) -> Iterator[PoolUse]:
    """The pools of devices, or the host's where there are none."""
    pools = () if plan is None else plan.memory.pools
    yield from [pool for pool in pools if pool.id != HOST_POOL] or pools


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """What can be said of a form from the bytes of its weights alone. Unknown memory is no limit."""

    device_bytes: int | None
    all_bytes: int | None
    context_tokens: int  #: with which a form is planned that leaves weights in RAM, unless a context is asked for

    @classmethod
    def of(cls, machine: Machine, model: ModelSpec) -> Sizing:
        pools = {device.pool: device.free_bytes for device in machine.devices if device.pool != HOST_POOL}
        on_devices = None if None in pools.values() else sum(n for n in pools.values() if n is not None)
        host_bytes = machine.host.available_bytes
        return cls(
            device_bytes=on_devices if pools else None,
            all_bytes=None if on_devices is None or host_bytes is None else on_devices + host_bytes,
            context_tokens=min(IN_RAM_TOKENS, model.context_train_tokens or IN_RAM_TOKENS),
        )

    def shortfall_bytes(self, form: Quantization) -> int:
        """What the weights alone lack in all memory there is."""
        return max(0, (form.weights_bytes or 0) - self.all_bytes) if self.all_bytes is not None else 0

    def options_for(self, form: Quantization, options: Options) -> Options:
        """Where weights stay in RAM, a longer context is paid with the rate, and looking for the longest takes long."""
        if self.device_bytes is None or (form.weights_bytes or 0) <= self.device_bytes:
            return options
        return self.with_context(options)

    def with_context(self, options: Options) -> Options:
        """The options with a context, where none is asked for."""
        if any(options.get(name) is not None for name in ("context", "min_context", "max_context")):
            return options
        return replace(options, values={**options.values, "context": self.context_tokens})


def planned(
    backend: str,
    form: Quantization,
    machine: Machine,
    options: Options,
    settings: Surroundings | None,
    sizing: Sizing,
) -> Row:
    """The plan of a form; what the engine refuses is said, and no reason to stop."""
    if form.model is None:
        return Row(backend=backend, quantization=form, because=form.refusal)
    if lacking := sizing.shortfall_bytes(form):
        because = f"its weights alone need {format_bytes(lacking)} ({lacking} bytes) more than all memory"
        return Row(backend=backend, quantization=form, because=because)
    try:
        wanted = sizing.options_for(form, options)
        plan = plan_form(backend, form, machine, wanted, settings)
        if not plan.fits and wanted is not options:
            plan = plan_form(backend, form, machine, options, settings)
    except UsageError:
        raise  # of the options, which are the same for all
    except AutofitError as error:
        return Row(backend=backend, quantization=form, because=error.message)
    because = next((f.message for f in plan.findings if f.severity == "error"), "") if not plan.fits else ""
    return Row(backend=backend, quantization=form, plan=plan, because=because)


def plan_form(
    backend: str, form: Quantization, machine: Machine, options: Options, settings: Surroundings | None
) -> Plan:
    assert form.model is not None
    words = form.engine_args
    return plan_of(backend, form.model, machine, options, settings, engine_args=words, details=False, nearest=False)


def _with_files(rows: Sequence[Row], model: ModelSpec) -> Iterator[Row]:
    """The rows with the files of the model's folder whose names say that they have a form."""
    files = _neighbors(model)
    prefix = _prefix(os.path.basename(model.files[0].path), rows) if model.files else None  # noqa: PTH119
    for row in rows:
        name = row.quantization.name.casefold()
        wanted = {f"{prefix}{separator}{name}" for separator in _SEPARATORS} if prefix else set()
        found = next((file for stem, file in files.items() if stem in wanted), None)
        yield row if found is None else replace(row, file=found)


def _prefix(file_name: str, rows: Sequence[Row]) -> str:
    """What the names of a model's files have in common: one without what names its quantization."""
    stem = _stem(file_name)
    for row in sorted(rows, key=lambda row: -len(row.quantization.name)):
        end = row.quantization.name.casefold()
        if stem.endswith(end) and stem[: -len(end)].endswith(tuple(_SEPARATORS)):
            return stem[: -len(end) - 1]
    return stem


def _stem(file_name: str) -> str:
    return _SHARD.sub("", file_name.casefold()).removesuffix(".gguf")


def _neighbors(model: ModelSpec) -> Mapping[str, FormFile]:
    """Files of the model's folder by the stems of their names, shards together; nothing of what is not on disk."""
    path = model.files[0].path if model.files else ""
    if is_elsewhere(path):
        with suppress(AutofitError):
            return {
                _stem(offer.reference.replace(":", "/").rpartition("/")[2]): FormFile(
                    path=offer.reference, size_bytes=offer.size_bytes
                )
                for offer in locate(path).offers
            }
    found: dict[str, FormFile] = {}
    if not os.path.isfile(path):  # noqa: PTH113 - a path of any text; an example has no file
        return found
    with suppress(OSError), os.scandir(os.path.dirname(path) or ".") as entries:  # noqa: PTH120
        for entry in sorted(islice(entries, MAX_NEIGHBORS), key=lambda entry: entry.name):
            with suppress(OSError):
                if entry.name.casefold().endswith(".gguf") and entry.is_file():
                    stem, size = _stem(entry.name), entry.stat().st_size
                    first = found.get(stem)
                    found[stem] = FormFile(
                        path=entry.path if first is None else first.path,
                        size_bytes=size + (0 if first is None else first.size_bytes),
                    )
    return found


def _row(row: Row, tensors: bool) -> dict[str, Any]:
    from autofit.domain.plan import speed_to_dict

    form = row.quantization
    weights = form.weights_bytes
    return {
        "backend": row.backend,
        "name": form.name,
        "weights_bytes": weights,
        "file_bytes": form.file_bytes,
        "bits_per_weight": round(row.bits_per_weight, 4) or None,
        "types": dict(form.types_bytes),
        "at_hand": form.at_hand,
        "file": None if row.file is None else {"path": row.file.path, "size_bytes": row.file.size_bytes},
        "kin": form.kin or None,
        "same_as": form.same_as or None,
        "only_for": form.only_for or None,
        "needs": form.needs or None,
        "refusal": form.refusal or None,
        "notes": list(form.notes),
        "quality": [
            {"measure": q.measure, "value": q.value, "model": q.model, "source": q.source} for q in form.quality
        ],
        "engine_args": list(form.engine_args),
        "fits": row.fits,
        "full_speed": row.full_speed,
        "because": row.because or None,
        "context_tokens": row.context_tokens,
        "speed": None if row.speed is None else speed_to_dict(row.speed),
        "pools": [] if row.plan is None else _pools(row.plan),
        **({"tensors": {t.name: t.type for t in form.model.tensors}} if tensors and form.model is not None else {}),
    }


def _pools(plan: Plan) -> list[dict[str, Any]]:
    return [
        {"id": pool.id, "used_bytes": pool.used_bytes, "budget_bytes": pool.budget_bytes} for pool in plan.memory.pools
    ]


def device_shortfall(row: Row) -> str:
    """What a form that does not fit lacks, in few words."""
    if row.plan is None:
        return ""
    worst = max(row.plan.memory.pools, key=lambda pool: pool.shortfall_bytes, default=None)
    if worst is None or not worst.shortfall_bytes:
        return ""
    where = "RAM" if worst.id == HOST_POOL else worst.id
    return f"{format_bytes(worst.shortfall_bytes)} more {where}"
