"""llama-server's `--models-preset`: an INI file with a section for each model, written and read.

Source: common/preset.cpp (parse_ini_from_file, load_from_ini, parse_bool_arg, to_args), common/arg.cpp
(common_params_add_preset_options) of b11311.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from autofit.backend import Served
from autofit.domain.text import printable
from autofit.errors import UsageError
from autofit.files import read_bounded
from autofit.render.container import at_home, checked, deployment_of, heading

from autofit_llama.command.model_files import model_of
from autofit_llama.command.options import FALSE_WORDS, Flag, Option
from autofit_llama.command.parse import runs_of
from autofit_llama.command.reading import find_program, read
from autofit_llama.engine.naming import find_version
from autofit_llama.engine.versions import LATEST, Version

if TYPE_CHECKING:
    from autofit.domain.plan import Plan

PROGRAM = "llama-server"
#: options of presets alone
_OWN = frozenset(("version", "load-on-startup", "stop-timeout", "dedup-cache-models"))
#: options that the router sets for its servers
_ROUTERS = frozenset(
    ("host", "port", "alias", "api-key", "models-dir", "models-max", "models-preset", "models-autoload")
)
#: options of the router that it does not hand on
_RESERVED = _ROUTERS | {"api-key-file", "ssl-key-file", "ssl-cert-file", "log-file"}
MAX_AT_ONCE = 4
"""Models that a router keeps loaded, unless `--models-max` says another number (common/common.h:models_max)."""
MAX_BYTES = 1 << 20
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
    return "\n".join([*(f"; {row}" for row in heading(plan)), *section(plan, _name(plan))])


def section(plan: Plan, name: str) -> list[str]:
    """The lines of a model's section. Raises as `render`."""
    found = read(plan.argv, version=find_version(plan.engine_version)[0])
    if found.program != PROGRAM:
        raise UsageError(f"{found.program} reads no presets", hint="they are llama-server's")
    deployed = deployment_of(plan)
    rows = [f"[{name}]"]
    for flag in found.flags:
        if flag.option.key in _ROUTERS:
            continue
        if flag.second is not None:
            raise UsageError(f"{flag.spelling} takes two values, which presets cannot hold", hint="--format shell")
        if flag.option.n_values:
            (value,) = at_home([str(flag.value)], deployed.paths)
            rows.append(f"{flag.option.key} = {_value(value)}")
        else:
            rows.append(f"{flag.spelling.lstrip('-').replace('_', '-')} = true")
    return rows


def served(argv: Sequence[str], environ: Mapping[str, str], version: Version) -> Served | None:
    """The commands of a router that is given such a file, with its own flags in each; `None`: it loads a model itself.

    Source: tools/server/server-models.cpp:load_models, tools/server/server.cpp (without a model it is a router).

    Raises:
        UsageError: the file is not there, or not well formed.
    """
    if find_program(argv)[0] != PROGRAM:
        return None
    reading = read(argv, environ, version=version)
    preset, most = reading.given("models-preset"), reading.given("models-max")
    if preset is None or model_of(runs_of(reading)[0]) is not None:
        return None
    path = str(preset.value)
    try:
        text = read_bounded(path, MAX_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"--models-preset {printable(path)}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"--models-preset {printable(path)}: not UTF-8 text") from None
    own = [flag for flag in reading.flags if flag.option.key not in _RESERVED and flag.origin == "argv"]
    at_once = int(most.value) if most is not None else MAX_AT_ONCE
    found = commands(text, version, own)
    return Served(path=path, commands=tuple(found), at_once=at_once if at_once > 0 else None, limit="--models-max")


def commands(text: str, version: Version = LATEST, own: Sequence[Flag] = ()) -> list[tuple[int, tuple[str, ...]]]:
    """The commands that the router starts its models with, each with the line of its section; `own` are flags of the
    router itself, which take the place of theirs.

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
            raise UsageError(f"line {line}: '{printable(row, 60)}' is neither a section nor `key = value`")
    _, everywhere = sections.pop("*", (0, {}))
    find = _finder(version)
    replaced = {flag.option.key for flag in own}
    last = [word for flag in own for word in (flag.spelling, *_behind(flag))]
    found = []
    for name, (line, its) in sections.items():
        values = {**everywhere, **its}
        kept = {key: value for key, value in values.items() if not ((it := find(key)) and it[0].key in replaced)}
        if name != "default":
            found.append((line, (PROGRAM, *_of_name(name, values, find), *_arguments(kept, find), *last)))
    return found


def _behind(flag: Flag) -> tuple[str, ...]:
    """The values behind a flag."""
    values = (str(flag.value), *(() if flag.second is None else (flag.second,)))
    return values if flag.option.n_values else ()


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
