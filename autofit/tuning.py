"""`autofit.tune(llama_cpp.Llama, "model.gguf")`: keyword arguments with which an engine's class fits into memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from autofit.errors import NoFitError, UsageError
from autofit.host import host
from autofit.pipeline import plan
from autofit.settings.layers import HERE

if TYPE_CHECKING:
    from typing import Unpack

    from autofit.backend import Backend
    from autofit.domain.machine import Machine
    from autofit.domain.model import ModelSpec
    from autofit.domain.plan import Plan
    from autofit.settings.keywords import PlanOptions
    from autofit.settings.layers import Surroundings


def tune(
    engine: type | str,
    model: ModelSpec | str | os.PathLike[str],
    machine: Machine | None = None,
    *,
    engine_args: Sequence[object] = (),
    settings: Surroundings | None = HERE,
    **options: Unpack[PlanOptions],
) -> dict[str, Any]:
    """Keyword arguments that fit `engine`, such as `llama_cpp.Llama` or `vllm.LLM`: `Llama(**tune(Llama, "m.gguf"))`.

    `engine` is the class, one derived from it, or its name as text, `"llama_cpp.Llama"`. The rest is as for `plan()`;
    this machine is measured where none is given. The arguments are those of the class alone, which is a program of its
    own: it has other defaults than the engine's server, and keeps other buffers.

    Raises:
        NoFitError: nothing fits, with the plan that comes nearest. UsageError: no backend plans for the class, the
        class cannot say what fits, or this version of it takes other arguments. Others as for `plan()`.
    """
    backend = _backend_of(engine)
    found = plan(backend.name, model, machine, engine_args=engine_args, settings=settings, **options)
    if not found.fits:
        message = _finding(found, "does-not-fit") or f"{backend.name}: nothing fits"
        raise NoFitError(message, plan=found, hint=_finding(found, "would-fit"))
    if not found.kwargs:
        why = next((one.because for one in found.decisions if one.setting == "kwargs"), "it cannot say this plan")
        raise UsageError(f"{backend.python_class}: {why}", hint="the server can: plan(...).argv")
    if isinstance(engine, type):
        _check_taken(engine, found.kwargs)
    return dict(found.kwargs)


def _backend_of(engine: type | str) -> Backend:
    """The backend of a class, by its package and name, or by those of a class that it is derived from."""
    if isinstance(engine, str):
        names = [engine]
    elif isinstance(engine, type):
        names = [f"{one.__module__.partition('.')[0]}.{one.__qualname__}" for one in engine.__mro__]
    else:
        raise UsageError(f"tune() takes a class or its name first, not {type(engine).__name__}", hint=_known())
    for name in names:
        for ref in host().backends().values():
            if (backend := host().backend(ref.name)).python_class == name:
                return backend
    raise UsageError(f"no backend plans for the class {names[0]}", hint=_known())


def _known() -> str:
    classes = (host().backend(name).python_class for name in host().backends())
    return f"known: {', '.join(name for name in classes if name)}"


def _check_taken(engine: type, names: Iterable[str]) -> None:
    """Refuse arguments that this version of the class does not have; one that takes any is trusted."""
    import inspect

    try:
        taken = inspect.signature(engine).parameters
    except (TypeError, ValueError):
        return
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in taken.values()):
        return
    lacking = [name for name in names if name not in taken]
    if lacking:
        raise UsageError(
            f"{engine.__qualname__} of this version takes no {', '.join(lacking)}",
            hint="name its version: engine_version=..., or update the engine",
        )


def _finding(found: Plan, code: str) -> str | None:
    return next((one.message for one in found.findings if one.code == code), None)
