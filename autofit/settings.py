"""The wishes: one definition each, from which flags, environment names, TOML keys and docs are made.

A value is taken from the first place that has it (flag, `AUTOFIT_*` variable, `autofit.toml`, preset) and
remembers which that was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autofit.domain.plan import Origin
from autofit.domain.ram import parse_ram
from autofit.domain.request import Margin, Request
from autofit.domain.units import parse_size, parse_tokens
from autofit.domain.values import dataclass, field
from autofit.errors import UsageError

SETTINGS_FILE = "autofit.toml"


def parse_context(text: str) -> int | None:
    """Tokens; `auto` is None (as much as is useful and fits), `max` is 0 (the longest that fits at a decode floor)."""
    word = text.strip().lower()
    return None if word == "auto" else 0 if word == "max" else parse_tokens(text)


def parse_count(text: str) -> int:
    if not (text.strip().isascii() and text.strip().isdigit() and 0 < int(text) <= 4096):
        raise UsageError(f"not a count: {text[:40]!r}", hint="write a number from 1 to 4096")
    return int(text)


def parse_margins(text: str) -> tuple[Margin, ...]:
    """`1GiB`, `8%` or a list of them, one per device; the last is repeated."""
    margins = []
    for part in text.split(","):
        number, percent, rest = part.strip().partition("%")
        if not percent:
            margins.append(Margin(n_bytes=parse_size(part)))
            continue
        try:
            fraction = float(number) / 100
        except ValueError:
            fraction = -1.0
        if rest or not 0 <= fraction < 1:
            raise UsageError(
                f"not a margin: {part[:40]!r}",
                hint="write bytes such as 1GiB, or a percentage below 100 such as 8%",
            )
        margins.append(Margin(fraction=fraction))
    return tuple(margins)


def one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise UsageError(f"{text[:40]!r} is not one of {', '.join(words)}")
        return text

    return parse


def parse_flag(text: str) -> bool:
    word = text.strip().lower()
    if word not in {"1", "true", "yes", "on", "0", "false", "no", "off"}:
        raise UsageError(f"{text[:40]!r} is neither true nor false")
    return word in {"1", "true", "yes", "on"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """One setting of autofit's own, the same for every engine."""

    name: str
    help: str
    parse: Callable[[str], Any]
    metavar: str | None = None  #: None: a switch
    flags: tuple[str, ...] = ()
    many: bool = False
    choices: tuple[str, ...] = ()

    @property
    def option(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "AUTOFIT_" + self.name.upper()


KV_TYPES = (
    "auto",
    "f32",
    "f16",
    "bf16",
    "q8_0",
    "q4_0",
    "q4_1",
    "iq4_nl",
    "q5_0",
    "q5_1",
    "fp8",
    "fp8_e4m3",
    "fp8_e5m2",
)

WISHES: tuple[Wish, ...] = (
    Wish(name="context", flags=("-c",), metavar="TOKENS", parse=parse_context,
         help="tokens one sequence may hold: a number, 64k, max (the longest that fits and is not slow) or auto"),
    Wish(name="min_context", metavar="TOKENS", parse=parse_tokens, help="never go below this context"),
    Wish(name="max_context", metavar="TOKENS", parse=parse_tokens, help="never go above this context"),
    Wish(name="parallel", metavar="N", parse=parse_count, help="sequences served at the same time"),
    Wish(name="margin", metavar="SIZE|%[,...]", parse=parse_margins,
         help="memory to leave free on each device: 1GiB, 8%%, or one for each: 1GiB,2GiB"),
    Wish(name="on", metavar="NAME[:SIZE]", parse=str, many=True,
         help="plan for this hardware, not this machine: rtx-3090, 2x3060, m3-max-36gb; repeat for several devices"),
    Wish(name="ram", metavar="SIZE[:FREE]", parse=parse_ram,
         help="main memory of the hardware given by --on, as it is sold: 64GiB; the operating system's share is taken "
              "off, unless what is free follows (64GiB:60GiB), or the kind of system (server, desktop, windows, macos, "
              "none)"),
    Wish(name="device", metavar="ID", parse=str, many=True, help="use only these devices (GPU0, an index or a UUID)"),
    Wish(name="prefer", metavar="GOAL", parse=one_of("speed", "context", "quality", "throughput"),
         choices=("speed", "context", "quality", "throughput"),
         help="what to favour when not everything can be had"),
    Wish(name="kv", metavar="TYPE", parse=one_of(*KV_TYPES),
         help="type of the KV cache: auto (a lossy one where it helps) or a name such as q8_0"),
    Wish(name="preset", metavar="NAME", parse=str, help="start from a named set of wishes (see profiles/presets)"),
    Wish(name="engine_version", metavar="VERSION", parse=str, help="plan for this version of the engine"),
    Wish(name="force", parse=parse_flag, help="print the command even when it does not fit"),
)  # fmt: skip
BY_NAME = {wish.name: wish for wish in WISHES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """Values of the wishes that someone stated, and who did."""

    values: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[str, Origin] = field(default_factory=dict)
    engine_args: tuple[str, ...] = ()  #: from a settings file or a preset; come before the user's own

    def get(self, name: str, default: Any = None) -> Any:
        return self.values.get(name, default)


def merge(layers: Sequence[tuple[Origin, Mapping[str, Any]]]) -> Wishes:
    """Fold parsed layers, strongest first."""
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    engine_args: tuple[str, ...] = ()
    for origin, layer in layers:
        for name, value in layer.items():
            if name == "engine_args":
                engine_args = (*value, *engine_args)
            elif name not in values:
                values[name] = value
                origins[name] = origin
    return Wishes(values=values, origins=origins, engine_args=engine_args)


def from_flags(given: Mapping[str, Any]) -> dict[str, Any]:
    """Parse what argparse collected; absent ones are None."""
    parsed = {}
    for wish in WISHES:
        text = given.get(wish.name)
        if text is None or text is False:
            continue
        parsed[wish.name] = _parse(wish, text, wish.option)
    return parsed


def from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Parse the `AUTOFIT_*` variables; those of a list wish are separated by commas."""
    parsed = {}
    for wish in WISHES:
        text = environ.get(wish.variable)
        if text is None or not text.strip(" ,"):
            continue
        items = [item for item in text.split(",") if item.strip()]
        parsed[wish.name] = _parse(wish, items if wish.many else text, wish.variable)
    return parsed


def from_table(table: Mapping[str, Any], where: str, backend: str) -> dict[str, Any]:
    """Parse a TOML table of wishes; a table named like the backend overrides it.

    Raises:
        UsageError: an unknown key (with a suggestion) or a value that does not parse; `where` is named.
    """
    wrong = next((key for key, value in table.items() if isinstance(value, Mapping) and _is_wish(key)), None)
    if wrong is not None:
        raise UsageError(f"{where}: {wrong} is a table, not a value")
    merged = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    section = table.get(backend, {})
    if isinstance(section, Mapping):
        merged |= section
    parsed: dict[str, Any] = {}
    for key, value in merged.items():
        name = key.replace("-", "_")
        if name in {"schema", "summary", "name"}:
            continue
        if name == "engine_args":
            if not isinstance(value, list) or not all(isinstance(arg, str) for arg in value):
                raise UsageError(f"{where}: engine_args must be a list of strings")
            parsed[name] = tuple(value)
            continue
        wish = BY_NAME.get(name)
        if wish is None:
            raise UsageError(f"{where}: unknown key {key!r}", hint=suggest(key, [*BY_NAME, "engine_args"]))
        if isinstance(value, bool):
            value = "true" if value else "false"
        texts = [str(item) for item in value] if isinstance(value, list) else [str(value)]
        parsed[name] = _parse(wish, texts if wish.many else ",".join(texts), f"{where}: {key}")
    return parsed


def _is_wish(key: str) -> bool:
    return key.replace("-", "_") in {*BY_NAME, "engine_args"}


def read_settings_file(path: Path, backend: str) -> dict[str, Any]:
    """The wishes of an `autofit.toml`.

    Raises:
        UsageError: not TOML, too large, or a key or value that makes no sense.
    """
    from autofit.profiles import parse_toml, read_text

    return from_table(parse_toml(read_text(path), str(path)), str(path), backend)


def suggest(word: str, known: Sequence[str]) -> str | None:
    from difflib import get_close_matches

    close = get_close_matches(word.replace("-", "_"), known, n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known))}"


def to_request(wishes: Wishes, *, engine_args: Sequence[str] = (), engine_env: Mapping[str, str] | None = None,
               model_reference: str | None = None) -> Request:  # fmt: skip
    """The engine-neutral request of these wishes.

    Raises:
        UsageError: wishes that contradict each other.
    """
    context, low, high = wishes.get("context"), wishes.get("min_context"), wishes.get("max_context")
    if low and high and low > high:
        raise UsageError(f"--min-context {low} is above --max-context {high}")
    if context and low and context < low:
        raise UsageError(f"--context {context} is below --min-context {low}")
    if context and high and context > high:
        raise UsageError(f"--context {context} is above --max-context {high}")
    names = {"context": "context_tokens", "min_context": "min_context_tokens", "max_context": "max_context_tokens",
             "parallel": "n_parallel", "margin": "margins", "device": "devices"}  # fmt: skip
    return Request(
        context_tokens=context,
        min_context_tokens=low,
        max_context_tokens=high,
        n_parallel=wishes.get("parallel"),
        margins=wishes.get("margin", ()),
        prefer=wishes.get("prefer", "speed"),
        kv=wishes.get("kv"),
        force=wishes.get("force", False),
        devices=tuple(wishes.get("device", ())),
        engine_version=wishes.get("engine_version"),
        engine_args=(*wishes.engine_args, *engine_args),
        engine_env=dict(engine_env or {}),
        model_reference=model_reference,
        origins={names.get(name, name): origin for name, origin in wishes.origins.items()},
    )


def _parse(wish: Wish, given: Any, where: str) -> Any:
    try:
        if given is True:
            return True
        if wish.many:
            items = [given] if isinstance(given, str) else given
            return tuple(wish.parse(item.strip()) for item in items)
        return wish.parse(given)
    except UsageError as error:
        raise UsageError(f"{where}: {error.message}", hint=error.hint) from error
