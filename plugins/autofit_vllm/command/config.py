"""A settings file for `vllm serve --config FILE`, and what files of other programs have of a plan's settings.

Source: vllm/utils/argparse_utils.py:FlexibleArgumentParser (load_config_file, 0.33.0): `key: value` becomes
`--key value`, `true` a flag alone, `false` its opposite, a list several values, a mapping JSON.
"""

from __future__ import annotations

import os.path
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autofit.domain.words import renamed
from autofit.errors import UsageError
from autofit.render.container import checked, commented, deployment_of
from autofit.render.yaml import dump

from autofit_vllm.command.flags import takes_list
from autofit_vllm.command.settings import flags_of
from autofit_vllm.engine.versions import find_engine

if TYPE_CHECKING:
    from autofit.domain.plan import Plan


def given(plan: Plan, words: Sequence[str] | None = None) -> dict[str, Any]:
    """What the flags of a plan set, by the names of vLLM's arguments; `words` are other flags than those of its
    command.

    Raises:
        UsageError: a word that is no text, or the plan is another engine's, or of a command that was checked.
    """
    if plan.backend != "vllm":
        raise UsageError(
            f"this format is for plans of vLLM, and the plan is one of {plan.backend}",
            hint="`autofit plugins` lists the formats",
        )
    program = deployment_of(plan).program
    argv = plan.argv if words is None else (*program, *words)
    values = flags_of(argv[len(program) :], find_engine(plan.engine_version), None)
    return {name: _text(value) for name, value in values.items() if value is not None}


def render(plan: Plan) -> str:
    """The file's text; the path of a model is absolute.

    Raises:
        UsageError: a word that is no text, or a flag that a file cannot say.
    """
    whole = {path: os.path.abspath(path) for path in deployment_of(plan).paths}  # noqa: PTH100
    found: dict[str, Any] = {}
    for name, value in given(plan).items():
        key = name.replace("_", "-")
        if isinstance(value, list) and not takes_list(name, find_engine(plan.engine_version)):
            value = _one(key, value)
        found[key] = at_home(value, whole)
    return commented(plan, dump(found))


def _one(key: str, values: list[Any]) -> str:
    """The one word of a flag that comes to several values: numbers of devices, or a flag that may be repeated.

    Raises:
        UsageError: it is repeated, and a file has each key once.
    """
    if key == "device-ids":
        return ",".join(map(str, values))
    if len(values) > 1:
        raise UsageError(f"--{key} is there more than once, which a file cannot say", hint="--format shell")
    return str(values[0])


def at_home(value: Any, whole: Mapping[str, str]) -> Any:
    """A value with the paths of models in it absolute."""
    if isinstance(value, str):
        return renamed(value, whole)
    if isinstance(value, dict):
        return {key: at_home(inner, whole) for key, inner in value.items()}
    return [at_home(inner, whole) for inner in value] if isinstance(value, list) else value


def _text(value: Any) -> Any:
    """A value whose texts are text."""
    if isinstance(value, str):
        return checked(value)
    if isinstance(value, dict):
        return {_text(key): _text(inner) for key, inner in value.items()}
    return [_text(inner) for inner in value] if isinstance(value, (list, tuple)) else value
