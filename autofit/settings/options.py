"""autofit's options: one definition each, from which flags, variables, TOML keys, keywords and docs are made."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from autofit.domain.ram import parse_ram
from autofit.domain.request import Margin
from autofit.domain.servers import parse_links, parse_servers
from autofit.domain.units import parse_size, parse_tokens
from autofit.domain.values import dataclass
from autofit.errors import UsageError

PREFERENCES = ("speed", "context", "quality", "throughput", "memory")
FILLS = ("mean", "full")
_MOST_SECONDS = 1e6


def parse_context(text: str) -> int | None:
    """Tokens; `auto` is None (as much as is useful and fits), `max` is 0 (the longest that fits)."""
    word = text.strip().lower()
    return None if word == "auto" else 0 if word == "max" else parse_tokens(text)


def parse_count(text: str) -> int:
    if not (text.strip().isascii() and text.strip().isdigit() and 0 < int(text) <= 4096):
        raise UsageError(f"not a count: {text[:40]!r}", hint="write a number from 1 to 4096")
    return int(text)


def parse_replicas(text: str) -> int:
    """A count; `auto` is 0 (as many as there are machines)."""
    return 0 if text.strip().lower() == "auto" else parse_count(text)


def parse_requests(text: str) -> tuple[int, int]:
    """`3000:500`: tokens of the prompt, and of the answer."""
    prompt, colon, answer = text.partition(":")
    if not colon:
        raise UsageError(f"not a request: {text[:40]!r}", hint="write tokens of prompt and answer, such as 3000:500")
    return parse_tokens(prompt), parse_tokens(answer)


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


def parse_kv_type(text: str) -> str:
    """`auto` or a name; which names there are is the engine's business."""
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", text.strip()):
        raise UsageError(f"not a KV cache type: {text[:40]!r}", hint="write auto, or a name such as f16")
    return text.strip()


def parse_rate(text: str) -> float:
    """Tokens per second: a number above 0."""
    return _positive(text, "a rate", "write tokens per second, such as 20")


def parse_seconds(text: str) -> float:
    """`2`, `2s` or `500ms`."""
    word = text.strip().lower()
    number = word.removesuffix("ms") if word.endswith("ms") else word.removesuffix("s")
    seconds = _positive(number, "a time", "write seconds, such as 2 or 500ms", said=text)
    return seconds / 1000 if word.endswith("ms") else seconds


def _positive(text: str, what: str, hint: str, *, said: str | None = None) -> float:
    """The number; `said` is what was written, unit and all."""
    word = text.strip()
    if not re.fullmatch(r"[0-9]{1,7}(\.[0-9]{1,6})?", word, re.ASCII) or not 0 < float(word) <= _MOST_SECONDS:
        raise UsageError(f"not {what}: {(said or text)[:40]!r}", hint=hint)
    return float(word)


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
class Option:
    """One option of autofit's own, the same for every engine."""

    name: str
    help: str
    parse: Callable[[str], Any]
    metavar: str | None = None  #: None: a switch
    flags: tuple[str, ...] = ()
    many: bool = False
    choices: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "AUTOFIT_" + self.name.upper()

    def value_of(self, given: Any, where: str) -> Any:
        """The value of a text, or of a list of texts.

        Raises:
            UsageError: it makes no sense; `where` is named.
        """
        try:
            if given is True:
                return True
            if self.many:
                items = [given] if isinstance(given, str) else given
                return tuple(self.parse(item.strip()) for item in items)
            return self.parse(given)
        except UsageError as error:
            raise UsageError(f"{where}: {error.message}", hint=error.hint) from error


OPTIONS: tuple[Option, ...] = (
    Option(name="context", flags=("-c",), metavar="TOKENS", parse=parse_context,
           help="context length in tokens per sequence: a number, 64k, max (the longest that fits) or auto"),
    Option(name="min_context", metavar="TOKENS", parse=parse_tokens, help="never go below this context"),
    Option(name="max_context", metavar="TOKENS", parse=parse_tokens, help="never go above this context"),
    Option(name="parallel", metavar="N", parse=parse_count, help="sequences served at the same time"),
    Option(name="mean_tokens", metavar="TOKENS", parse=parse_tokens,
           help="tokens that a sequence holds on average, where a paged cache is shared (default: a quarter of the "
                "context)"),
    Option(name="fill", metavar="HOW", parse=one_of(*FILLS), choices=FILLS,
           help="KV cache for --parallel sequences: one full context and the others at --mean-tokens (mean), or a full "
                "context for each (full)"),
    Option(name="min_tps", metavar="RATE", parse=parse_rate,
           help="minimum decode rate of each sequence, in tokens per second"),
    Option(name="max_ttft", metavar="SECONDS", parse=parse_seconds,
           help="maximum seconds until the first token, for a prompt of the planned context"),
    Option(name="margin", metavar="SIZE|%[,...]", parse=parse_margins,
           help="memory to leave free on each device: 1GiB, 8%%, or one for each: 1GiB,2GiB"),
    Option(name="on", metavar="NAME[:SIZE]", parse=str, many=True,
           help="plan for this hardware, not this machine: rtx-3090, 2x3060, m3-max-36gb; repeat for several devices"),
    Option(name="ram", metavar="SIZE[:FREE]", parse=parse_ram,
           help="RAM of the hardware given by --on, as it is sold: 64GiB; the operating system's share is "
                "taken off, unless free memory follows (64GiB:60GiB), or the kind of system (server, desktop, "
                "windows, macos, none)"),
    Option(name="rpc", metavar="HOST:PORT[=CARD][:SIZE],...", parse=parse_servers,
           help="devices of other machines, behind servers that are asked what they have free; =CARD says what they "
                "are (=rtx-3090), for rates"),
    Option(name="link", metavar="SPEED[,...]", parse=parse_links,
           help="speed of the network to other machines: 10Gbit, 1.2GB/s; one for each, the last repeated"),
    Option(name="nodes", metavar="N", parse=parse_count,
           help="plan for N machines like this one, or like the one that --on describes"),
    Option(name="replicas", metavar="N", parse=parse_replicas,
           help="copies behind a router, each on a machine of its own: a number, or auto (as many as there are "
                "machines)"),
    Option(name="disaggregate", metavar="PROMPT:ANSWER", parse=parse_requests,
           help="machines that read prompts for others that decode, behind a router; how many follows from the tokens "
                "of a request: 3000:500"),
    Option(name="device", metavar="ID", parse=str, many=True,
           help="use only these devices (GPU0, an index or a UUID)"),
    Option(name="prefer", metavar="GOAL", parse=one_of(*PREFERENCES), choices=PREFERENCES,
           help="what to optimize for"),
    Option(name="kv", metavar="TYPE", parse=parse_kv_type,
           help="KV cache type: auto (a quantized one where it helps) or a type of the engine"),
    Option(name="preset", metavar="NAME", parse=str, help="a named set of options, below what is given beside it"),
    Option(name="engine_version", metavar="VERSION", parse=str,
           help="plan for this version of the engine: b8121, 0.5.0, an image with its tag, the path of a program that "
                "says its version, or installed (docs/which-engine.md)"),
    Option(name="strict", parse=parse_flag,
           help="exit code 3 also for a command that starts and runs short of memory later"),
    Option(name="force", parse=parse_flag, help="print the command even when it does not fit"),
)  # fmt: skip
BY_NAME = {option.name: option for option in OPTIONS}

#: the options that `check` takes: a command says everything else itself
CHECKED = ("on", "ram", "rpc", "link", "nodes", "device", "margin", "mean_tokens", "engine_version", "strict")
#: the options that the core itself answers; all others are for the backend, which says which it supports
OWN = frozenset({"on", "ram", "preset", "strict", "force"})
