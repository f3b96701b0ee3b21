"""What callers give and plugins return, checked at the door."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import TYPE_CHECKING

from autofit.domain.text import printable
from autofit.errors import IncompleteModelError, ModelError, PluginError, UsageError
from autofit.host import host
from autofit.settings.options import BY_NAME, OWN

if TYPE_CHECKING:
    from autofit.backend import Backend, ParsedCommand
    from autofit.domain.machine import Machine
    from autofit.domain.model import ModelSpec
    from autofit.domain.plan import Plan
    from autofit.settings.layers import Options


def check_names(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for name in given:
        if name not in known:
            from autofit.text.suggest import suggest

            raise UsageError(f"{where} got an unknown option {name!r}", hint=suggest(name, known))


def check_supported(backend: Backend, options: Options, used: Container[str] = BY_NAME) -> None:
    """Refuse what the backend would pass over, of the options in use.

    Raises:
        UsageError: an option that the backend does not support, or a KV type that its engine has not.
    """
    for name, origin in options.origins.items():
        if name in used and name not in OWN and name not in backend.supports:
            known = ", ".join(BY_NAME[other].flag for other in sorted(backend.supports)) or "none"
            by = "" if origin == "user" else f" (set in the {origin})"
            raise UsageError(f"{backend.name} does not support {BY_NAME[name].flag}{by}", hint=f"it supports: {known}")
    kv = options.get("kv") if "kv" in used else None
    if kv not in (None, "auto", *backend.kv_types):
        raise UsageError(
            f"--kv {kv}: not a KV cache type of {backend.engine}", hint=f"known: auto, {', '.join(backend.kv_types)}"
        )


def check_format(backend: Backend, model: ModelSpec) -> None:
    if model.format not in backend.formats:
        raise ModelError(
            f"{model.name}: {backend.name} serves {', '.join(backend.formats)} models, not {model.format}",
            hint=_other_backend(model.format, backend.name),
        )


def check_complete(model: ModelSpec) -> None:
    """Refuse what an engine refuses to start with: files that are not whole.

    Raises:
        IncompleteModelError
    """
    if model.missing_bytes and not model.n_missing_files:
        raise IncompleteModelError(
            f"{printable(model.files[0].path)}: {model.missing_bytes} of {model.weights_bytes} bytes of weights are "
            "missing",
            hint="the file is incomplete: download it to its end; a plan can be made meanwhile",
        )


def is_plan(found: object, backend: str) -> Plan:
    """A plan that is one, as far as those who print it rely on it.

    Raises:
        PluginError: it is none.
    """
    from autofit.domain.memory import Memory
    from autofit.domain.plan import Decision, Finding, Plan, Speed

    if not isinstance(found, Plan):
        raise PluginError(f"{backend} must return a Plan, not {type(found).__name__}")
    parts: list[tuple[str, object, type]] = [("memory", found.memory, Memory)]
    parts += [("argv", word, str) for word in found.argv]
    parts += [("findings", one, Finding) for one in found.findings]
    parts += [("decisions", one, Decision) for one in found.decisions]
    parts += [("speed", found.speed, Speed)] if found.speed is not None else []
    for name, value, kind in parts:
        if not isinstance(value, kind):
            raise PluginError(f"{backend}: {name} of its Plan must be {kind.__name__}, not {type(value).__name__}")
    return found


def is_command(found: object, backend: str) -> ParsedCommand:
    from autofit.backend import ParsedCommand

    if not isinstance(found, ParsedCommand):
        raise PluginError(f"{backend}: parse() must return a ParsedCommand, not {type(found).__name__}")
    return found


def is_model(value: object) -> bool:
    return hasattr(value, "tensors")


def arguments(where: str, words: Sequence[object]) -> tuple[str, ...]:
    """An argument list; numbers and paths are written out.

    Raises:
        UsageError: one text, which would have to be taken apart as a shell does, or no list.
    """
    if isinstance(words, (str, bytes)):
        raise UsageError(f"{where} takes a list of arguments, not a single string", hint="split it: shlex.split(text)")
    try:
        return tuple(map(str, words))
    except TypeError:
        raise UsageError(f"{where} takes a list of arguments, not {type(words).__name__}") from None


def is_machine(machine: Machine) -> Machine:
    if not hasattr(machine, "devices"):
        raise UsageError(
            f"a machine is needed, not {type(machine).__name__}", hint='such as autofit.load_machine("rtx-3090")'
        )
    return machine


def _other_backend(model_format: str, not_this: str) -> str | None:
    for name in host().backends():
        if name != not_this and model_format in host().backend(name).formats:
            return f"try `autofit {name}`"
    return None
