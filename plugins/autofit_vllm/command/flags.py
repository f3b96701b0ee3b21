"""The command line of `vllm serve`, taken apart by vLLM's own rules.

The options are data (`flags-VERSION.json`, written from vLLM's parser, and `engine/history.json` for older releases),
the rules are those of
utils/argparse_utils.py:FlexibleArgumentParser: underscores for dashes, prefixes, `--no-x`,
`--enable-x`/`--disable-x`,
dotted JSON, `-O3`, human integers, and a YAML file in `--config`. What vLLM refuses is refused here.
"""

from __future__ import annotations

import argparse
import functools
import json
import operator
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from autofit.domain.patterns import lazy_pattern
from autofit.errors import EngineRefusalError, UsageError
from autofit.files import read_bounded

from autofit_vllm.command.renamed import OMNI, REMOVED_FLAGS, RENAMED_KEYS
from autofit_vllm.engine.versions import NEWEST, Change, Engine

DECIMAL = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
BINARY = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
MAX_ARGUMENT_CHARS = 1 << 20
MAX_ARGUMENTS = 4096  #: argparse takes the square of their number
MAX_CONFIG_BYTES = 1 << 20
AUTO_LENGTH = -1

MAX_DIGITS = 19  #: what an integer of 64 bits has
_COUNT = lazy_pattern(r"(\d+(?:\.\d+)?)([kKmMgGtT])", re.ASCII)


class FlagError(argparse.ArgumentTypeError):
    """A value that its flag does not take; argparse names the flag."""


def parse_int(text: str) -> int:
    """A whole number of 64 bits: vLLM takes longer ones, and fails at them later."""
    if len(text.strip()) > MAX_DIGITS + 1:
        raise FlagError(f"{text[:20]}... has {len(text)} digits: more than 64 bits hold")
    return int(text)


def parse_count(text: str) -> int:
    """`32k` is 32000, `32K` is 32768, `1.5k` is 1500 and `1.5K` an error (human_readable_int)."""
    text = text.strip()
    match = _COUNT.fullmatch(text)
    if len(text) > MAX_DIGITS:
        raise FlagError(f"{text[:20]}... has {len(text)} digits: more than 64 bits hold")
    try:
        if match is None:
            return int(text)
        number, unit = match.groups()
        if unit in DECIMAL:
            return int(float(number) * DECIMAL[unit])
        return int(number) * BINARY[unit]
    except ValueError:
        if match is not None:
            raise FlagError(
                f"decimals are not allowed with {match[2]}; did you mean {match[1]}{match[2].lower()}?"
            ) from None
        raise FlagError(f"not an integer: {text[:40]!r} (32k is 32000, 32K is 32768)") from None


def parse_length(text: str) -> int:
    """A count, or `auto` and `-1`: the longest that fits (human_readable_int_or_auto)."""
    return AUTO_LENGTH if text.strip().lower() in ("-1", "auto") else parse_count(text)


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise FlagError(f"not JSON: {text[:60]!r}") from None


def _parse_config(text: str) -> Any:
    """JSON for a configuration class: its numbers may end in k, M and so on (_expand_json_human_readable_numbers)."""
    parts = re.split(r'("(?:[^"\\]|\\.)*")', text)
    parts[::2] = [re.sub(r"\b\d+(?:\.\d+)?[kKmMgGtT]\b", lambda m: str(parse_count(m[0])), part) for part in parts[::2]]
    return _parse_json("".join(parts))


def _parse_json_or_text(text: str) -> Any:
    return _parse_json(text) if re.fullmatch(r"(?s)\s*\{.*\}\s*", text) else text


def _parse_ids(text: str) -> list[int | str]:
    parts = [part.strip() for part in text.split(",")]
    return [int(part) if part.isdigit() else part for part in parts]


PARSERS: Mapping[str, Callable[[str], Any]] = {
    "str": str,
    "append": str,
    "int": parse_int,
    "float": float,
    "json": _parse_json,
    "config": _parse_config,
    "json or str": _parse_json_or_text,
    "count": parse_count,
    "length": parse_length,
    "ids": _parse_ids,
    "word": lambda text: text.lower().replace("-", "_"),
}


def _optional(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse_optional(text: str) -> Any:
        return None if text in ("", "None") else parse(text)

    parse_optional.__name__ = getattr(parse, "__name__", "value")
    return parse_optional


#: `--disable-x` for `--enable-x`; before that booleans had `--no-x` alone
OPPOSITES = Change(
    since="0.33.0",
    source="utils/argparse_utils.py:EnableDisableAction",
    before="0.32.0: argparse.BooleanOptionalAction, by _compute_kwargs of engine/arg_utils.py",
)
#: `-O3` is a level of its own; before that a field of the compilation configuration
LEVELS = Change(
    since="0.12.0",
    source="utils/argparse_utils.py:FlexibleArgumentParser",
    before="0.11.2: parse_args of FlexibleArgumentParser makes -O.mode of it, and -O.level before 0.11.1",
)
#: `-O.x` is no key of the compilation configuration any more
PLAIN_LEVELS = Change(
    since="0.14.0",
    source="utils/argparse_utils.py:FlexibleArgumentParser",
    before="0.13.0: parse_args of FlexibleArgumentParser writes -cc for it",
)


def negatives_of(option: str, *, opposites: bool = True) -> tuple[str, ...]:
    """The spellings that switch `option` off (argparse_utils.py:EnableDisableAction)."""
    if not option.startswith("--"):
        return ()
    if not opposites:
        return ("--no-" + option[2:],)
    opposite = {"--enable-": "--disable-", "--disable-": "--enable-"}
    swapped = tuple(new + option.removeprefix(old) for old, new in opposite.items() if option.startswith(old))
    return ("--no-" + option[2:], *swapped)


class _Switch(argparse.Action):
    """A flag with opposites: the last one given counts."""

    def __init__(self, option_strings: Sequence[str], dest: str, *, opposites: bool, **_: Any) -> None:
        self.off = {name for option in option_strings for name in negatives_of(option, opposites=opposites)}
        super().__init__([*option_strings, *sorted(self.off)], dest, nargs=0, default=argparse.SUPPRESS)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, option_string not in self.off)


class _Parser(argparse.ArgumentParser):
    _formatter: argparse.HelpFormatter | None = None

    def _get_formatter(self) -> argparse.HelpFormatter:
        # argparse asks for one per option, and each one asks the terminal for its size.
        if self._formatter is None:
            self._formatter = argparse.HelpFormatter(prog=self.prog, width=100)
        return self._formatter

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"vllm serve: {message}", hint="the flags are vLLM's own: see `vllm serve --help=all`")


@functools.cache
def _table(release: str) -> tuple[dict[str, Any], ...]:
    text = (Path(__file__).parent / f"flags-{NEWEST}.json").read_text(encoding="utf-8")
    newest = tuple(json.loads(text)["options"])
    if release == NEWEST:
        return newest
    from autofit_vllm.engine.history import options_at

    return options_at(release, newest)


@functools.cache
def _parser(release: str, *, opposites: bool) -> _Parser:
    parser = _Parser(prog="vllm serve", add_help=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("model_tag", nargs="?", default=argparse.SUPPRESS)
    for row in _table(release):
        kind = row["kind"]
        if kind == "switch":
            parser.add_argument(*row["options"], dest=row["dest"], action=_Switch, opposites=opposites)
        elif kind == "true":
            parser.add_argument(*row["options"], dest=row["dest"], action="store_true", default=argparse.SUPPRESS)
        elif kind == "append":
            parser.add_argument(*row["options"], dest=row["dest"], action="append")
        else:
            parse = _optional(PARSERS[kind]) if row.get("optional") else PARSERS[kind]
            choices = row.get("choices")
            if choices is not None and row.get("optional"):
                choices = [*choices, None]
            parser.add_argument(*row["options"], dest=row["dest"], type=parse, nargs=row.get("nargs"), choices=choices)
    return parser


@functools.cache
def _by_dest(release: str) -> dict[str, dict[str, Any]]:
    return {row["dest"]: row for row in _table(release)}


def flag_of(dest: str) -> str:
    """The long spelling of a setting."""
    return "--" + dest.replace("_", "-")


def spellings(dest: str) -> tuple[str, ...]:
    """Every spelling of a setting of the newest release, with dashes."""
    return tuple(_by_dest(NEWEST)[dest]["options"])


def flags_of() -> Mapping[str, Sequence[str] | None]:
    """The flags of `vllm serve` in the newest release, with the words that they take: none where any value may be."""
    found: dict[str, Sequence[str] | None] = {}
    for row in _table(NEWEST):
        is_switch = row["kind"] in ("switch", "true")
        off = [name for option in row["options"] for name in negatives_of(option)] if row["kind"] == "switch" else []
        words = None if is_switch else tuple(map(str, row.get("choices") or ()))
        found |= dict.fromkeys([*row["options"], *off], words)
    return found


def takes_list(dest: str, engine: Engine) -> bool:
    """Whether a flag has several values behind it, each a word of its own."""
    return _by_dest(engine.release).get(dest, {}).get("nargs") == "+"


def is_frontend(dest: str, engine: Engine) -> bool:
    """Whether a setting is the HTTP server's, and so no argument of `vllm.LLM`."""
    return bool(_by_dest(engine.release).get(dest, {}).get("frontend"))


def parse_flags(args: Sequence[str], engine: Engine, model: str | None = None) -> dict[str, Any]:
    """Values by destination, of what is given only. `args` are those after `vllm serve`, or after its `model`. With
    `--omni`, flags that vLLM does not know are vllm-omni's.

    Raises:
        UsageError: what this release's parser refuses; removed flags are named with their successor.
    """
    if len(args) > MAX_ARGUMENTS or sum(map(len, args)) > MAX_ARGUMENT_CHARS:
        raise UsageError(
            f"vllm serve: the command line has {len(args):,} arguments of {sum(map(len, args)):,} characters; at most "
            f"{MAX_ARGUMENTS:,} of {MAX_ARGUMENT_CHARS:,} are read"
        )
    parser = _parser(engine.release, opposites=engine.has(OPPOSITES))
    omni = OMNI in args
    args = [arg for arg in args if arg != OMNI]
    named = _model_first([*([] if model is None else [model]), *args])
    expanded = _expand(_optimizing(_insert_config(named, parser), engine))
    known = parser._option_string_actions
    removed = [arg for arg in expanded if (name := arg.partition("=")[0]) in REMOVED_FLAGS and name not in known]
    if removed:  # before argparse takes one for an abbreviation
        _refuse(removed, engine, parser)
    if not omni:
        expanded = _with_few_unknown(expanded, parser)
    try:
        values, unknown = parser.parse_known_args(expanded)
    except RecursionError:
        raise UsageError(
            "vllm serve: a JSON value has too many brackets within one another", hint="write it with fewer"
        ) from None
    if unknown and not omni:
        _refuse(unknown, engine, parser)
    result = vars(values)
    for dest, value in result.items():
        _check_keys(flag_of(dest), _with_underscores(dest, value), _by_dest(engine.release).get(dest, {}).get("keys"))
    # A positional model wins over one from `--config` (entrypoints/cli/serve.py).
    if "model_tag" in result:
        result["model"] = result.pop("model_tag")
    return result


def _with_underscores(dest: str, value: Any) -> Any:
    """Of this option alone, keys may have dashes (arg_utils.py:create_speculative_config)."""
    if dest != "speculative_config" or not isinstance(value, dict):
        return value
    return {key.replace("-", "_"): inner for key, inner in value.items()}


def _check_keys(where: str, value: Any, keys: Any) -> None:
    """What a configuration class takes: its own keys, and of some only certain words.

    Raises:
        UsageError
    """
    if isinstance(keys, dict) and isinstance(value, dict):
        for key, inner in value.items():
            if key not in keys:
                hint = RENAMED_KEYS.get(key) or _close(key, keys) or f"known: {', '.join(sorted(keys))}"
                raise UsageError(f"vllm serve: {where} has no key {key[:60]!r}", hint=hint)
            _check_keys(f"{where}.{key}", inner, keys[key])
    elif isinstance(keys, list) and isinstance(value, (str, int)) and _word(str(value)) not in map(_word, keys):
        raise UsageError(f"vllm serve: {where} is not {str(value)[:40]!r}", hint=f"it is one of {', '.join(keys)}")


def _close(word: str, known: Iterable[str]) -> str | None:
    from difflib import get_close_matches

    close = get_close_matches(word, list(known), n=1, cutoff=0.7)
    return f"did you mean {close[0]}?" if close else None


def _word(text: str) -> str:
    return text.lower().replace("-", "_")


_LIMITS: Mapping[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "gt": ("above", operator.gt),
    "ge": ("at least", operator.ge),
    "lt": ("below", operator.lt),
    "le": ("at most", operator.le),
}


def device_ids_alone(argv: Sequence[str]) -> tuple[tuple[int, ...], tuple[str, ...]] | None:
    """The places of GPUs in `--device-ids`, and the command with their places among themselves; `None`: there is no
    such flag, or its devices have other names."""
    found: tuple[tuple[int, ...], tuple[str, ...]] | None = None
    for at, word in enumerate(argv):
        flag, equals, value = word.replace("_", "-").partition("=")
        text = value if equals else argv[at + 1] if at + 1 < len(argv) else ""
        if flag != "--device-ids" or not re.fullmatch(r"[0-9]{1,4}(,[0-9]{1,4})*", text):
            continue
        ids = [int(part) for part in text.split(",")]
        places = sorted(ids)
        renamed = ",".join(str(places.index(one)) for one in ids)
        words = (f"{flag}={renamed}",) if equals else (word, renamed)
        found = tuple(places), (*argv[:at], *words, *argv[at + len(words) :])
    return found


def check_limits(given: Mapping[str, Any], engine: Engine) -> None:
    """Numbers and words that the parser takes and vLLM's configuration classes do not.

    Raises:
        EngineRefusalError
    """
    rows = _by_dest(engine.release)
    for dest, value in given.items():
        row = rows.get(dest, {})
        limits = row.get("limits")
        if not limits or value is None or ("when" in row and not given.get(row["when"])):
            continue
        words = limits.get("one_of")
        if words and str(value) not in words:
            raise EngineRefusalError(f"{dest} is one of {', '.join(words)}, not {str(value)[:40]!r}")
        bounds = [(*_LIMITS[name], limits[name]) for name in _LIMITS if name in limits]
        if isinstance(value, (int, float)) and not all(holds(value, bound) for _, holds, bound in bounds):
            allowed = " and ".join(f"{word} {bound:g}" for word, _, bound in bounds)
            raise EngineRefusalError(f"{dest} must be {allowed}, not {value}")


MAX_UNKNOWN = 16  #: flags that no option begins with; one of them is named, and argparse takes longer for each more


def _with_few_unknown(args: list[str], parser: _Parser) -> list[str]:
    """`args` up to a number of unknown flags, the first of which is what the command is refused for."""
    options = sorted(parser._option_string_actions)
    n = 0
    for at, arg in enumerate(args):
        name = arg.partition("=")[0]
        if arg == "--":
            break
        if arg.startswith("--") and " " not in arg:
            near = options[bisect_left(options, name) :][:1]
            n += not near or not near[0].startswith(name)
            if n > MAX_UNKNOWN:
                return args[:at]
    return args


def _refuse(unknown: Sequence[str], engine: Engine, parser: _Parser) -> NoReturn:
    first = next((arg for arg in unknown if arg.startswith("-")), unknown[0])
    name = first.partition("=")[0]
    if first == unknown[0] and not name.startswith("-"):
        raise UsageError(
            f"vllm serve: unexpected argument {name[:60]!r}", hint="the model is named once, in front or by --model"
        )
    hint = _elsewhere(name, engine) or _close(name, parser._option_string_actions) or "see `vllm serve --help=all`"
    shown = name if name in REMOVED_FLAGS else repr(name[:60])
    raise UsageError(f"vLLM {engine.version} has no flag {shown}", hint=hint)


def _elsewhere(name: str, engine: Engine) -> str | None:
    """Which release has a flag that this one has not, and what to write instead."""
    instead = REMOVED_FLAGS.get(name)
    if engine.newest:
        return instead
    from autofit_vllm.engine.history import first_with

    dest = next((row["dest"] for row in _table(NEWEST) if name in row["options"]), None)
    since = None if dest is None else first_with("flags", dest)
    return f"vLLM {since} and newer have it" if since else instead


def _model_first(args: list[str]) -> list[str]:
    """The first `--model` goes to the front, so that one which is there already is one too many (parse_args)."""
    at = next((at for at, arg in enumerate(args) if arg == "--model" or arg.startswith("--model=")), None)
    if at is None or args[at:] == ["--model"]:
        return args
    value = [args[at + 1]] if args[at] == "--model" else [args[at].removeprefix("--model=")]
    return [*value, *args[:at], *args[at + 1 + (args[at] == "--model") :]]


def _insert_config(args: list[str], parser: _Parser) -> list[str]:
    """`--config FILE`: its settings go where the command line can still override them
    (_pull_args_from_config)."""
    if args.count("--config") > 1:
        raise UsageError("vllm serve: more than one --config file")
    if "--config" not in args:
        return args
    at = args.index("--config")
    if at + 1 == len(args):
        raise UsageError("vllm serve: --config needs a file")
    given = _config_arguments(args[at + 1], parser)
    rest = args[:at] + args[at + 2 :]
    n_model = 1 if rest and not rest[0].startswith("-") else 0
    return rest[:n_model] + given + rest[n_model:]


def _config_arguments(path: str, parser: _Parser) -> list[str]:
    if not path.endswith((".yaml", ".yml")):
        raise UsageError(f"--config {path}: the file must end in .yaml or .yml")
    args: list[str] = []
    for key, value in _config_values(path).items():
        option = f"--{key}"
        if isinstance(value, bool):
            if value:
                args.append(option)
            elif f"--no-{key}" in parser._option_string_actions:
                args.append(f"--no-{key}")
        elif isinstance(value, list):
            args += [option, *map(str, value)] if value else []
        elif isinstance(value, dict):
            try:
                args += [option, json.dumps(value)]
            except TypeError as error:  # a date, which JSON has not
                raise UsageError(f"--config {path}: {option}: {error}", hint="write it in quotes") from None
        else:
            args += [option, str(value)]
    return args


def _config_values(path: str) -> dict[Any, Any]:
    """The mapping in a YAML file (FlexibleArgumentParser.load_config_file: yaml.safe_load).

    Raises:
        UsageError: unreadable, too large, or no mapping.
    """
    from autofit.text.yaml import load

    try:
        values = load(read_bounded(path, MAX_CONFIG_BYTES).decode("utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8 text") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", hint=error.hint) from None
    if values is not None and not isinstance(values, dict):
        raise UsageError(f"{path}: a mapping of settings is expected")
    return values or {}


def _optimizing(args: Sequence[str], engine: Engine) -> list[str]:
    """`-O3` and `-O.key` as releases had them in which `-O` was the compilation configuration."""
    if engine.has(PLAIN_LEVELS):
        return list(args)
    if engine.has(LEVELS):
        return [f"--compilation-config{arg[2:]}" if arg.startswith("-O.") else arg for arg in args]
    keys = _by_dest(engine.release)["compilation_config"].get("keys", {})
    field = "--compilation-config." + ("mode" if "mode" in keys else "level")
    result = []
    for index, arg in enumerate(args):
        level = re.fullmatch(r"-O=?(\w+)", arg)
        spaced = arg == "-O" and tuple(args[index + 1 : index + 2]) in (("0",), ("1",), ("2",), ("3",))
        if level is not None:
            result.append(f"{field}={level[1]}")
        elif arg.startswith("-O."):
            result.append(f"--compilation-config{arg[2:]}")
        else:
            result.append(field if spaced else arg)
    return result


def _expand(args: Sequence[str]) -> list[str]:
    """Spellings that argparse does not know: underscores, `-O3`, and `--a.b value` for `--a '{"b":
    value}'`."""
    plain: list[str] = []
    nested: dict[str, dict[str, Any]] = {}
    pending = [_normalize(arg) for arg in args]
    queue = [part for index, arg in enumerate(pending) for part in _optimization(arg, pending[index + 1 : index + 2])]
    position = 0
    while position < len(queue):
        arg = queue[position]
        position += 1
        name, equals, value = arg.partition("=")
        if not arg.startswith("-") or "." not in name:
            plain.append(arg)
            continue
        if not equals:
            if position == len(queue):
                raise UsageError(f"vllm serve: {arg[:60]} needs a value")
            value = queue[position]
            position += 1
        if name.endswith("+"):
            name, value = name[:-1], json.dumps(value.split(","))
        option, *keys = name.split(".")
        _merge(nested.setdefault(option, {}), keys, _dotted_value(value))
    for option, mapping in nested.items():
        plain += [option, json.dumps(mapping)]
    return plain


def _normalize(arg: str) -> str:
    if not arg.startswith("--"):
        return arg
    name, equals, value = arg.partition("=")
    head, dot, tail = name.partition(".")
    return head.replace("_", "-") + dot + tail + equals + value


def _optimization(arg: str, following: Sequence[str]) -> list[str]:
    if arg.startswith("-O") and arg != "-O":
        return ["--optimization-level", arg[3:] if arg[2] == "=" else arg[2:]]
    if arg == "-O" and following and following[0] in ("0", "1", "2", "3"):
        return ["--optimization-level"]
    return [arg]


def _dotted_value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return parse_count(text)
    except FlagError:
        return text


def _merge(mapping: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    *path, last = keys
    for key in path:
        inner = mapping.get(key)
        if not isinstance(inner, dict):
            inner = mapping[key] = {}
        mapping = inner
    if isinstance(value, list) and isinstance(mapping.get(last), list):
        mapping[last] += value
    elif isinstance(value, dict) and isinstance(mapping.get(last), dict):
        for key, inner in value.items():
            _merge(mapping[last], [key], inner)
    else:
        mapping[last] = value
