"""llama-server's `--models-preset`: an INI file with a section for each model, written and read.

Source: common/preset.cpp (parse_ini_from_file, load_from_ini, parse_bool_arg, to_args), common/arg.cpp
(common_params_add_preset_options) of b11311.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from autofit.domain.text import printable
from autofit.errors import UsageError
from autofit.render.container import checked, deployment_of, heading

from autofit_llama.command.options import FALSE_WORDS, Option
from autofit_llama.command.reading import read
from autofit_llama.engine.naming import find_version
from autofit_llama.engine.versions import LATEST, Version

if TYPE_CHECKING:
    from autofit.domain.plan import Plan

PROGRAM = "llama-server"
#: options of presets alone
_OWN = frozenset(("version", "load-on-startup", "stop-timeout", "dedup-cache-models"))
#: options that the router sets for its servers
_ROUTERS = frozenset(("host", "port", "alias", "api-key", "models-dir", "models-max", "models-preset"))
_NAME_MODELS = frozenset(("model", "model-url", "hf-repo", "docker-repo"))
_REPOSITORY = re.compile(r"[^\s/:]+/[^\s/:]+(?::\S+)?")  #: a section of this name has the model of the cache
MAX_MODELS = 1000
_SECTION = re.compile(r"\[[ \t]*([^\]]+?)[ \t]*\]")
_PAIR = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]*)[ \t]*=[ \t]*([^;#]*?)[ \t]*(?:[;#].*)?")


def render(plan: Plan) -> str:
    """A section named after the model, with an option a line.

    Raises:
        UsageError: a value that such a file cannot hold, or an option with two values.
    """
    found = read(plan.argv, version=find_version(plan.engine_version)[0])
    if found.program != PROGRAM:
        raise UsageError(f"{found.program} reads no presets", hint="they are llama-server's")
    deployed = deployment_of(plan)
    rows = [*(f"; {row}" for row in heading(plan)), f"[{_name(plan)}]"]
    for flag in found.flags:
        if flag.option.key in _ROUTERS:
            continue
        if flag.second is not None:
            raise UsageError(f"{flag.spelling} takes two values, which presets cannot hold", hint="--format shell")
        if flag.option.n_values:
            value = str(flag.value)
            rows.append(f"{flag.option.key} = {_value(_absolute(value) if value in deployed.paths else value)}")
        else:
            rows.append(f"{flag.spelling.lstrip('-').replace('_', '-')} = true")
    return "\n".join(rows)


def commands(text: str, version: Version = LATEST) -> list[tuple[int, tuple[str, ...]]]:
    """The commands that the router starts its models with, each with the line of its section.

    Raises:
        UsageError: a line that is no part of such a file.
    """
    sections: dict[str, tuple[int, dict[str, str]]] = {}
    current: dict[str, str] = {}
    for line, row in enumerate(text.split("\n"), 1):
        row = row.strip()
        if not row or row[0] in ";#":
            continue
        if match := _SECTION.match(row):
            if len(sections) > MAX_MODELS:
                raise UsageError(f"line {line}: more than {MAX_MODELS} models")
            current = {}
            sections[match[1]] = (line, current)
        elif match := _PAIR.fullmatch(row):
            current[match[1]] = match[2]
        else:
            raise UsageError(f"line {line}: {printable(row, 60)!r} is neither a section nor `key = value`")
    _, everywhere = sections.pop("*", (0, {}))
    find = _finder(version)
    return [
        (line, (PROGRAM, *_of_name(name, {**everywhere, **own}, find), *_arguments({**everywhere, **own}, find)))
        for name, (line, own) in sections.items()
        if name != "default"
    ]


def _of_name(
    name: str, values: Mapping[str, str], find: Callable[[str], tuple[Option, bool] | None]
) -> tuple[str, ...]:
    """The model of a section that is called as one of the cache, and names none itself."""
    found = map(find, values)
    names_one = any(option is not None and option[0].key in _NAME_MODELS for option in found)
    return () if names_one or not _REPOSITORY.fullmatch(name) else ("-hf", name)


def _arguments(values: Mapping[str, str], find: Callable[[str], tuple[Option, bool] | None]) -> list[str]:
    words: list[str] = []
    for key, value in values.items():
        found = find(key)
        if key in _OWN:
            continue
        if found is None:
            words += [f"--{key}", value]  # refused with the command, by its name
            continue
        option, positive = found
        if option.n_values:
            words += [(option.spellings or option.negations)[-1], value]
        elif (value in FALSE_WORDS) is positive:
            words += option.negations[-1:]
        else:
            words += option.spellings[-1:]
    return words


def _finder(version: Version) -> Callable[[str], tuple[Option, bool] | None]:
    """Options by what a key may be: a flag without its dashes, or a variable."""
    from autofit_llama.command.options import accepted, spellings

    by_flag = {spelling.lstrip("-"): found for spelling, found in spellings(PROGRAM, version).items()}
    by_variable = {option.env: (option, True) for option in accepted(PROGRAM, version) if option.env}
    return lambda key: by_flag.get(key) or by_variable.get(key)


def _name(plan: Plan) -> str:
    named = deployment_of(plan).references
    name = (named[0] if named else plan.backend).replace("\\", "/").rpartition("/")[2].removesuffix(".gguf")
    return re.sub(r"[^A-Za-z0-9_.:-]", "-", name)


def _value(text: str) -> str:
    if re.search(r"[;#]", checked(text)) or text != text.strip():
        raise UsageError(
            f"{printable(text, 80)}: a preset's value ends at ; and #", hint="--format shell gives the command"
        )
    return text


def _absolute(path: str) -> str:
    import os.path

    return os.path.abspath(path)  # noqa: PTH100
