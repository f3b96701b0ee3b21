"""The command and the keyword arguments of a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autofit.domain.values import replace

from autofit_vllm.command.flags import flag_of, is_frontend
from autofit_vllm.command.settings import VllmSettings


def command(
    settings: VllmSettings, values: Mapping[str, object], *, program: Sequence[str], model: str | None
) -> tuple[str, ...]:
    """The command of a plan; `model` as for `whole`."""
    solved = [written(name, value) for name, value in values.items() if name not in settings.given]
    return whole(settings, [word for words in solved for word in words], program=program, model=model)


def whole(
    settings: VllmSettings, solved: Sequence[str], *, program: Sequence[str], model: str | None
) -> tuple[str, ...]:
    """The model, then what was solved, then the user's flags exactly as given.

    `model` `None`: the flags name it. They come first then: it may be the positional argument.
    """
    if model is None:
        return (*program, *settings.args, *solved)
    return (*program, model, *solved, *settings.args)


def written(name: str, value: object) -> tuple[str, ...]:
    """The arguments of one value."""
    flag = flag_of(name)
    if value is True:
        return (flag,)
    if value is None or value is False:
        return ()
    if isinstance(value, (tuple, list)):
        return (flag, *map(str, value))
    return flag, str(value)


def keyword_arguments(settings: VllmSettings, values: Mapping[str, object], model: str) -> dict[str, object]:
    """Arguments of `vllm.LLM` and `AsyncEngineArgs` that mean the same."""
    result: dict[str, object] = {"model": model}
    for name, value in {**values, **settings.given}.items():
        if name == "model" or value is None or is_frontend(name, settings.version):
            continue
        if name == "optimization_level" and isinstance(value, str):
            value = int(value)  # an enumeration of numbers (config/vllm.py:OptimizationLevel)
        result[name] = list(value) if isinstance(value, tuple) else value
    return result


def replace_settings(settings: VllmSettings, values: Mapping[str, Any]) -> VllmSettings:
    """`settings` with `values` where the user pinned none."""
    return replace(settings, **{name: value for name, value in values.items() if name not in settings.given})
