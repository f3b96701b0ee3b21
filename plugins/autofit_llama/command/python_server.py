"""The command line of `python -m llama_cpp.server`: its own flags, variables and file, and what they pin.

Its flags are the fields of its settings, read by argparse: `--n_ctx 4096`, `--n_ctx=4096`, and any beginning that is of
one alone. A variable of a field's name counts where the flag is not given, in capitals or not. With a file of settings
no other flag counts: it lists the models, and variables count for what it leaves open of each. The first is loaded at
the start; one that a request names is loaded in its place, after that was let go.

Source: llama_cpp/server/settings.py:ModelSettings, llama_cpp/server/cli.py:add_args_from_model,
llama_cpp/server/__main__.py:main, llama_cpp/server/model.py:LlamaProxy (llama-cpp-python 0.3.36).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

from autofit.backend import Served
from autofit.domain.text import printable
from autofit.domain.units import MIB
from autofit.domain.values import NamedTuple
from autofit.errors import UsageError
from autofit.files import read_bounded

from autofit_llama.command.options import PYTHON_SERVER, Flag, Kind, Option, Origin, is_flag
from autofit_llama.command.python_class import TYPES, python_arguments
from autofit_llama.command.reading import Reading
from autofit_llama.command.settings import LlamaSettings
from autofit_llama.command.values import ALL_LAYERS, parse_kv_overrides
from autofit_llama.engine.programs import PYTHON_VARIABLES
from autofit_llama.engine.versions import Version
from autofit_llama.engine.vocabulary import MAX_DEVICES, SplitMode

MAX_FILE_BYTES = 1 << 20
CONFIG_FILE = "config_file"
_SPLIT_MODES: tuple[SplitMode, ...] = ("none", "layer", "row", "tensor")
_TRUE = frozenset(("1", "on", "t", "true", "y", "yes"))
_FALSE = frozenset(("0", "off", "f", "false", "n", "no"))
_CACHE_BYTES = 2 << 30  #: of the cache of past prompts, where it is on

_Read = Literal["text", "int", "real", "bool", "reals", "texts", "json"]


class Field(NamedTuple):
    """A field of the settings: the key of llama.cpp's option that means the same, how it is read, its least value."""

    key: str
    read: _Read = "text"
    least: int | None = None


#: of the model, then of the server
_OF_MODEL: Mapping[str, Field] = {
    "model": Field("model"),
    "model_alias": Field("alias"),
    "n_gpu_layers": Field("gpu-layers", "int", -1),
    "split_mode": Field("split-mode", "int"),
    "main_gpu": Field("main-gpu", "int", 0),
    "tensor_split": Field("tensor-split", "reals"),
    "vocab_only": Field("vocab-only", "bool"),
    "use_mmap": Field("mmap", "bool"),
    "use_mlock": Field("mlock", "bool"),
    "kv_overrides": Field("override-kv", "texts"),
    "rpc_servers": Field("rpc"),
    "seed": Field("seed", "int"),
    "n_ctx": Field("ctx-size", "int", 0),
    "n_batch": Field("batch-size", "int", 1),
    "n_ubatch": Field("ubatch-size", "int", 1),
    "n_threads": Field("threads", "int"),
    "n_threads_batch": Field("threads-batch", "int"),
    "rope_scaling_type": Field("rope-scaling", "int"),
    "rope_freq_base": Field("rope-freq-base", "real"),
    "rope_freq_scale": Field("rope-freq-scale", "real"),
    "yarn_ext_factor": Field("yarn-ext-factor", "real"),
    "yarn_attn_factor": Field("yarn-attn-factor", "real"),
    "yarn_beta_fast": Field("yarn-beta-fast", "real"),
    "yarn_beta_slow": Field("yarn-beta-slow", "real"),
    "yarn_orig_ctx": Field("yarn-orig-ctx", "int"),
    "mul_mat_q": Field("mul-mat-q", "bool"),
    "logits_all": Field("logits-all", "bool"),
    "embedding": Field("embedding", "bool"),
    "offload_kqv": Field("kv-offload", "bool"),
    "flash_attn": Field("flash-attn", "bool"),
    "last_n_tokens_size": Field("repeat-last-n", "int", 0),
    "lora_base": Field("lora-base"),
    "lora_path": Field("lora"),
    "numa": Field("numa", "bool"),
    "chat_format": Field("chat-format"),
    "chat_template_kwargs": Field("chat-template-kwargs", "json"),
    "clip_model_path": Field("mmproj"),
    "cache": Field("cache", "bool"),
    "cache_type": Field("cache-type"),
    "cache_size": Field("cache-size", "int"),
    "hf_tokenizer_config_path": Field("tokenizer-config"),
    "hf_pretrained_model_name_or_path": Field("tokenizer"),
    "hf_model_repo_id": Field("hf-repo"),
    "draft_model": Field("prompt-lookup"),
    "draft_model_num_pred_tokens": Field("prompt-lookup-tokens", "int"),
    "type_k": Field("cache-type-k", "int"),
    "type_v": Field("cache-type-v", "int"),
    "verbose": Field("verbose", "bool"),
}
_OF_SERVER: Mapping[str, Field] = {
    "host": Field("host"),
    "port": Field("port", "int"),
    "ssl_keyfile": Field("ssl-key-file"),
    "ssl_certfile": Field("ssl-cert-file"),
    "api_key": Field("api-key"),
    "interrupt_requests": Field("interrupt-requests", "bool"),
    "disable_ping_events": Field("disable-ping-events", "bool"),
    "root_path": Field("api-prefix"),
}
FIELDS: Mapping[str, Field] = {**_OF_MODEL, **_OF_SERVER, CONFIG_FILE: Field(CONFIG_FILE)}
_NAMES = {field.key: name for name, field in FIELDS.items()}
_KINDS: Mapping[_Read, Kind] = {"int": "int", "real": "real", "reals": "list", "texts": "list"}


def spelled(key: str) -> str:
    """The flag of the field that means what this option of llama.cpp does."""
    return f"--{_NAMES[key]}"


def read_server(words: Sequence[str], rest: Sequence[str], env: Mapping[str, str], version: Version) -> Reading:
    """A command of the server taken apart; `rest` is what stands behind the module.

    Raises:
        UsageError: a flag or value that it refuses, or a file that it cannot read.
    """
    flags, unknown = _read_flags(rest, version)
    config = _file_named(flags, env)
    unread: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    if config:
        unread = tuple(f.spelling for f in flags if f.option.key != CONFIG_FILE)
        first, *later = _of_file(config, version)
        flags = [*_of_variables(env), *first.flags]
        others = tuple(str(one.given("model")) for one in later)
    else:
        flags = [*_of_variables(env), *flags]
        unread = tuple(f.spelling for f in flags if f.option.key == "rpc")
    return Reading(
        program=PYTHON_SERVER, words=tuple(words), flags=tuple(flags), unknown=unknown, unread=unread, version=version,
        settings_file=config, others=others,
    )  # fmt: skip


def _read_flags(rest: Sequence[str], version: Version) -> tuple[list[Flag], tuple[str, ...]]:
    flags: list[Flag] = []
    unknown: list[str] = []
    at = 0
    while at < len(rest):
        token = rest[at]
        at += 1
        if not token.startswith("--"):
            if unknown:
                unknown.append(token)
                continue
            raise UsageError(f"{PYTHON_SERVER} refuses '{printable(token, 80)}': it takes no positional argument")
        name, equals, value = token[2:].partition("=")
        full = _completed(name)
        if full is None:
            if not version.has_unknown_flags:
                from autofit.text.suggest import suggest

                hint = suggest(name, FIELDS) or "its flags are the fields of its settings, such as --n_ctx"
                raise UsageError(f"{PYTHON_SERVER} refuses '{printable(token, 80)}': it has no such flag", hint=hint)
            unknown.append(token)
            continue
        field = FIELDS[full]
        values = [value] if equals else _values(rest[at:], field)
        at += 0 if equals else len(values)
        if not values and field.read not in ("reals", "texts"):
            raise UsageError(f"{PYTHON_SERVER} refuses {printable(token, 80)}: a value is expected")
        n_words = 1 if equals else 1 + len(values)
        flags.append(_flag(full, values, printable(token, 80), "argv", n_words=n_words))
    return flags, tuple(unknown)


def _completed(name: str) -> str | None:
    """The field that a flag means, by its name or a beginning that is of one alone."""
    if name in FIELDS:
        return name
    found = [known for known in FIELDS if known.startswith(name)]
    return found[0] if len(found) == 1 and name else None


def _values(rest: Sequence[str], field: Field) -> list[str]:
    """The words that a flag takes: one, or all up to the next flag."""
    n_most = len(rest) if field.read in ("reals", "texts") else 1
    found: list[str] = []
    for word in rest[:n_most]:
        if is_flag(word) or word == "--":
            break
        found.append(word)
    return found


def _of_variables(env: Mapping[str, str]) -> Iterator[Flag]:
    for variable in PYTHON_VARIABLES:
        text = env.get(variable)
        name = variable.lower()
        if text is None or name == CONFIG_FILE:
            continue
        values = [text]
        if FIELDS[name].read in ("reals", "texts"):
            parsed = _json(text, variable)
            values = [str(one) for one in parsed] if isinstance(parsed, list) else [text]
        yield _flag(name, values, variable, "env")


class Listed(NamedTuple):
    """A model of a file of settings: where it stands in it, and what is said of it."""

    line: int
    flags: list[Flag]

    def given(self, name: str) -> str | int | bool | None:
        return next((flag.value for flag in self.flags if flag.spelling == name), None)


def served(words: Sequence[str], rest: Sequence[str], env: Mapping[str, str], version: Version) -> Served | None:
    """The models of a command's file as commands of their own, one at a time; `None`: it has no file, or one model.

    Of models with one alias the last is there to be asked for; the first of all is loaded in any case.

    Raises:
        UsageError: as `read_server`.
    """
    flags, _ = _read_flags(rest, version)
    path = _file_named(flags, env)
    listed = [] if path is None else _of_file(path, version)
    if path is None or len(listed) < 2:
        return None
    asked_for = {one.given("model_alias") or one.given("model"): one for one in listed}
    shown = [listed[0], *(one for one in asked_for.values() if one is not listed[0])]
    commands = ((one.line, (*words, *(word for flag in one.flags for word in _written(flag)))) for one in shown)
    return Served(path=path, commands=tuple(commands), at_once=1, limit="", loads_first=True)


def _file_named(flags: Sequence[Flag], env: Mapping[str, str]) -> str | None:
    stated = (str(flag.value) for flag in flags if flag.option.key == CONFIG_FILE)
    return env.get(CONFIG_FILE.upper()) or next(stated, None) or None


def _written(flag: Flag) -> list[str]:
    """A setting of a file as the flag that says the same."""
    many = FIELDS[flag.spelling].read in ("reals", "texts")
    values = str(flag.value).split(",") if many else [_text(flag.value)]
    return [f"--{flag.spelling}", *values]


def _of_file(path: str, version: Version) -> list[Listed]:
    """The models of a file of settings.

    Raises:
        UsageError: it cannot be read, is no such file, or lists no model.
    """
    from autofit.text import yaml

    shown = printable(path, 120)
    try:
        text = read_bounded(path, MAX_FILE_BYTES).decode()
    except (OSError, ValueError) as error:
        raise UsageError(f"--{CONFIG_FILE} {shown}: {getattr(error, 'strerror', None) or error}") from None
    whole = yaml.load(text) if path.endswith((".yaml", ".yml")) else _json(text, shown)
    models = whole.get("models") if isinstance(whole, dict) else None
    if not isinstance(models, list) or not models or not all(isinstance(one, dict) for one in models):
        raise UsageError(f"{shown}: it lists no models", hint='{"models": [{"model": "model.gguf", "n_ctx": 4096}]}')
    _check_known(whole, {**_OF_SERVER, "models": None}, shown, version)
    for one in models:
        _check_known(one, _OF_MODEL, shown, version)
        if "model" not in one:
            raise UsageError(f"{PYTHON_SERVER} refuses {shown}: a model of it has no `model`, which names its file")
    lines = _lines(text, len(models))
    return [Listed(line, _settings(one, path)) for line, one in zip(lines, models, strict=True)]


def _check_known(given: Mapping[str, object], known: Mapping[str, object], shown: str, version: Version) -> None:
    stranger = next((str(name) for name in given if name not in known), None)
    if stranger is not None and not version.has_unknown_flags:
        from autofit.text.suggest import suggest

        message = f"{PYTHON_SERVER} refuses {printable(stranger, 60)} in {shown}: it has no such setting"
        raise UsageError(message, hint=suggest(stranger, known))


def _lines(text: str, n_models: int) -> list[int]:
    """The line of each model; the first of the file for JSON that is no YAML."""
    from autofit.text import yaml

    with suppress(UsageError):
        (whole,) = yaml.documents(text)
        found = [node.line for node in whole.get("models").items]
        if len(found) == n_models:
            return found
    return [1] * n_models


def _settings(model: Mapping[str, object], path: str) -> list[Flag]:
    flags = []
    for name, value in model.items():
        if name in _OF_MODEL and value is not None:
            values = [_text(one) for one in value] if isinstance(value, list) else [_text(value)]
            flags.append(_flag(name, values, name, "file", path=path))
    return flags


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise UsageError(f"{PYTHON_SERVER} refuses {where}: it is no JSON") from None


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)


def _flag(
    name: str, values: Sequence[str], spelling: str, origin: Origin, *, n_words: int = 0, path: str | None = None
) -> Flag:
    """A field as it is given.

    Raises:
        UsageError: a value that is not of its kind.
    """
    field = FIELDS[name]
    value: str | int | bool = ",".join(values) if field.read in ("reals", "texts") else values[0]
    try:
        for one in values:
            known = _READ[field.read](one)
        if field.read in ("int", "bool"):
            value = known
        if field.least is not None and isinstance(value, int) and value < field.least:
            raise ValueError(f"it is less than {field.least}")
    except (ValueError, RecursionError) as error:
        shown = printable(" ".join(values), 60)
        raise UsageError(f"{PYTHON_SERVER} refuses {spelling} {shown!r}: {error}") from None
    option = Option(
        key=field.key, kind=_KINDS.get(field.read, "text"), programs=frozenset(), env=None, spellings=(f"--{name}",)
    )
    return Flag(option=option, value=value, spelling=spelling, origin=origin, path=path, n_words=n_words)


def _truth(text: str) -> bool:
    word = text.lower().strip()
    if word in _TRUE | _FALSE:
        return word in _TRUE
    raise ValueError("write true or false")


def _integer(text: str) -> int:
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", text):
        raise ValueError("not a whole number")
    return int(text)


def _real(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError("not a number") from None
    if not math.isfinite(number):
        raise ValueError("not a number")
    return number


_READ: Mapping[_Read, Callable[[str], Any]] = {
    "text": str, "int": _integer, "real": _real, "bool": _truth, "reals": _real, "texts": str, "json": json.loads,
}  # fmt: skip


def settings_of(reading: Reading) -> LlamaSettings:
    """What a command of the server pins.

    Raises:
        UsageError: a value that it refuses, or with which it loads no weights.
    """
    given = {flag.option.key: flag for flag in reading.flags}
    state: dict[str, Any] = {}
    for key, flag in given.items():
        if key in _SETTINGS:
            name, parse = _SETTINGS[key]
            try:
                state[name] = parse(flag.value)
            except ValueError as error:
                raise UsageError(
                    f"{PYTHON_SERVER} refuses {flag.spelling} {printable(str(flag.value), 60)}: {error}"
                ) from None
    if "vocab-only" in given and given["vocab-only"].value:
        raise UsageError(f"{given['vocab-only'].spelling}: no weights are loaded, and there is nothing to plan")
    state |= _model(given)
    if (load_mode := _load_mode(given)) is not None:
        state["load_mode"] = load_mode
    if "cache" in given and given["cache"].value and _says(given, "cache-type", "ram") == "ram":
        size = given["cache-size"].value if "cache-size" in given else _CACHE_BYTES
        state["cache_ram_mib"] = -(-int(size) // MIB)
    if "prompt-lookup" in given:
        state["logits_all"] = True  # llama.py: a draft needs them all
    return LlamaSettings(**state)


def _model(given: Mapping[str, Flag]) -> dict[str, Any]:
    """The file, or the file of a repository, which the server takes as a pattern."""
    if "model" not in given:
        return {}
    name = str(given["model"].value)
    if "hf-repo" not in given:
        return {"model": name}
    repository = str(given["hf-repo"].value)
    if not re.search(r"[*?\[]", name):
        return {"hf_repo": repository, "hf_file": name}
    choice = re.fullmatch(r"\*[-._]?([A-Za-z0-9_]+)\*?(?:\.gguf)?", name)
    if choice is None:
        raise UsageError(
            f"--model {printable(name, 80)}: a pattern for files of {printable(repository, 80)}",
            hint="name the file",
        )
    return {"hf_repo": f"{repository}:{choice[1]}"}


def _load_mode(given: Mapping[str, Flag]) -> str | None:
    """Mapped and locked unless told otherwise; with a LoRA adapter never mapped."""
    if not {"mmap", "mlock", "lora"} & given.keys():
        return None
    is_mapped = bool(_says(given, "mmap", True)) and "lora" not in given
    is_locked = bool(_says(given, "mlock", True))
    return ("mmap+mlock" if is_locked else "mmap") if is_mapped else ("mlock" if is_locked else "none")


def _says(given: Mapping[str, Flag], key: str, default: Any) -> Any:
    return given[key].value if key in given else default


def _type(number: int) -> str:
    names = {known: name for name, known in TYPES.items()}
    if number not in names:
        raise ValueError(f"not a type of a KV cache; known: {', '.join(f'{n} ({name})' for n, name in names.items())}")
    return names[number]


def _shares(text: str) -> tuple[float, ...] | None:
    found = tuple(map(float, filter(None, text.split(","))))
    if len(found) > MAX_DEVICES:
        raise ValueError(f"at most {MAX_DEVICES} numbers")
    return found or None


def _overrides(text: str) -> tuple[str, ...]:
    """As `KEY=TYPE:VALUE`; one without a type is passed over."""
    typed = [one for one in text.split(",") if ":" in one.partition("=")[2]]
    if any(one.count("=") != 1 for one in text.split(",") if one):
        raise ValueError("write KEY=TYPE:VALUE")
    return tuple(word for one in typed for word in parse_kv_overrides(one))


def _split_mode(number: int) -> SplitMode:
    if not 0 <= number < len(_SPLIT_MODES):
        raise ValueError("known: 0 (none), 1 (layer), 2 (row), 3 (tensor)")
    return _SPLIT_MODES[number]


_SETTINGS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "gpu-layers": ("n_gpu_layers", lambda n: ALL_LAYERS if n < 0 else n),
    "split-mode": ("split_mode", _split_mode),
    "main-gpu": ("main_gpu", int),
    "tensor-split": ("tensor_split", _shares),
    "override-kv": ("kv_overrides", _overrides),
    "ctx-size": ("n_ctx", int),
    "batch-size": ("n_batch", int),
    "ubatch-size": ("n_ubatch", int),
    "threads": ("n_threads", int),
    "threads-batch": ("n_threads_batch", int),
    "logits-all": ("logits_all", bool),
    "embedding": ("embedding", bool),
    "kv-offload": ("kv_offload", bool),
    "flash-attn": ("flash_attn", lambda on: "on" if on else "off"),
    "lora": ("loras", lambda path: (path,)),
    "mmproj": ("mmproj", str),
    "cache-type-k": ("type_k", _type),
    "cache-type-v": ("type_v", _type),
}


def render_server(settings: LlamaSettings) -> tuple[str, ...]:
    """The flags of the server that say `settings`.

    Raises:
        UsageError: it has no flag for one of them.
    """
    argv: list[str] = []
    for name, value in python_arguments(settings).items():
        field = "model" if name == "model_path" else name
        if field not in FIELDS:
            raise UsageError(f"{PYTHON_SERVER} has no flag for {name}", hint="use llama-server, or leave it out")
        values = value if isinstance(value, list) else [value]
        argv += (f"--{field}", *(_number(one) for one in values))
    return tuple(argv)


def _number(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value == int(value) else _text(value)
