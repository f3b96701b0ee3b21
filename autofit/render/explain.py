"""`--explain`: the plan by subject, each setting with its origin and reason, each figure with its basis.

Sizes are in GiB, so that they can be compared. Every item to the byte, with its source in the engine, is in the JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from autofit.domain.memory import KINDS, MemoryItem, PoolUse
from autofit.domain.plan import Alternative, Decision, Plan, Topic
from autofit.domain.text import printable
from autofit.domain.units import format_gib
from autofit.render import text
from autofit.render.picture import wrapped
from autofit.render.pools import folded, fullest
from autofit.text import shell

_TITLES: Mapping[Topic, str] = {
    "context": "context and cache",
    "placement": "placement",
    "batch": "batch",
    "other": "the rest",
}
MOST_CHARS = 60  #: of a word
SEEN_BYTES = 5 << 20  #: an item of a kind that has others is named from this size on


def explain(plan: Plan, columns: int) -> Iterator[str]:
    """The groups, no line wider than `columns` but where a word is."""
    of_model = [one for one in plan.decisions if one.topic == "model"]
    yield "model"
    yield from _settings(of_model, columns)
    yield from wrapped(_weights(plan.memory.pools), columns, "  ", "    ")
    yield "memory, in GiB"
    for name, pools in folded(plan.memory.pools):
        yield from _pool(name, pools, columns)
    for topic, title in _TITLES.items():
        decided = [one for one in plan.decisions if one.topic == topic]
        if decided:
            yield title
            yield from _settings(decided, columns)
    if plan.speed and plan.speed.basis:
        yield "speed"
        yield from wrapped(text.speed(plan.speed), columns, "  ", "    ")
        yield from wrapped(printable(plan.speed.basis, 300), columns, "  ", "    ")
    others = _considered(plan)
    if others:
        yield "what was considered"
        for one in others:
            yield from _alternative(one, plan, columns)


def _weights(pools: Sequence[PoolUse]) -> str:
    """Where the weights are."""
    found = [(name.split("  ")[0], some) for name, some in folded(pools) if fullest(some).sum_bytes("weights")]
    total = sum(pool.sum_bytes("weights") for pool in pools)
    where = [f"{format_gib(sum(pool.sum_bytes('weights') for pool in some))} on {name}" for name, some in found]
    if len(where) > 1:
        return f"{format_gib(total)} GiB of weights: {', '.join(where)}"
    return f"{format_gib(total)} GiB of weights{f' on {found[0][0]}' if found else ''}"


def _settings(decisions: Iterable[Decision], columns: int) -> Iterator[str]:
    """Each with its reason and the next better value; neighbors of one reason together."""
    for (because, origin), some in groupby(decisions, key=lambda one: (one.because, one.origin)):
        together = list(some)
        yield from wrapped(f"{_named(together)} [{origin}] {printable(because, 300)}", columns, "  ", "    ")
        for one in together:
            if one.next_rejected is not None:
                yield from wrapped(
                    f"next: {text.rejected(one.next_rejected, _gib)}",
                    columns,
                    "    ",
                    "      ",
                )


def _named(together: Sequence[Decision]) -> str:
    """`-ncmoe 7, -ot blk.7…`; from the first to the last of many that have one value."""
    first, last = together[0], together[-1]
    if len(together) > 2 and all(one.value == first.value for one in together):
        return printable(f"{first.setting} to {last.setting.split()[-1]} {first.value}", 80)
    return ", ".join(f"{one.setting} {' '.join(map(_cut, one.value.split()))}".strip() for one in together)


def _gib(n_bytes: int) -> str:
    return f"{format_gib(n_bytes)} GiB"


def _cut(word: str) -> str:
    """The end of a long path, the beginning of another long word: the command has it whole."""
    word = printable(word, 4000)
    if len(word) <= MOST_CHARS:
        return word
    return f"...{word[3 - MOST_CHARS :]}" if "/" in word or "\\" in word else f"{word[: MOST_CHARS - 3]}..."


def _pool(name: str, pools: Sequence[PoolUse], columns: int) -> Iterator[str]:
    pool = fullest(pools)
    each = " each" if len(pools) > 1 else ""
    used = f"{format_gib(pool.used_bytes)} used"
    room = "an unknown amount is free" if pool.free_bytes is None else f"{format_gib(pool.free_bytes)} free{each}"
    yield from wrapped(f"{' '.join(name.split())}: {used}, {room}", columns, "  ", "    ")
    for kind in KINDS:
        items = [item for item in pool.items if item.kind == kind]
        total = sum(item.n_bytes for item in items)
        if total:
            head = f"    {text.called(kind):<9} {format_gib(total):>7}  "
            yield from wrapped(_items(items), columns, head, " " * len(head))
    for limit in pool.limits:
        most, used = format_gib(limit.limit_bytes), format_gib(limit.used_bytes)
        yield from wrapped(f"{limit.id} may take {most} of it and takes {used}", columns, "    ", "      ")


def _items(items: Sequence[MemoryItem]) -> str:
    """What a kind consists of, the largest first, and how each is known."""
    named = sorted((item for item in items if item.n_bytes >= SEEN_BYTES), key=lambda item: -item.n_bytes)
    if len(named) < 2:
        return _item(max(items, key=lambda item: item.n_bytes))
    return "; ".join(f"{format_gib(item.n_bytes)} {_item(item)}" for item in named)


def _item(item: MemoryItem) -> str:
    """What it is, unless its kind says that, and how it is known."""
    label = item.label.removeprefix(f"{text.called(item.kind)}, ")
    said = [label] if label != text.called(item.kind) else []
    when = [f"when {item.when}"] if item.when else []
    return printable(", ".join([*said, *when, item.basis]), 200)


def _considered(plan: Plan) -> list[Alternative]:
    """Other plans, each once: first those that flags of autofit give."""
    found: dict[tuple[str, ...], Alternative] = {}
    for one in plan.alternatives:
        if one.argv != plan.argv:
            found.setdefault(one.argv, one)
    return list(found.values())


def _alternative(one: Alternative, plan: Plan, columns: int) -> Iterator[str]:
    if one.pick is not None:
        yield from wrapped(text.pick(one), columns, "  ", "    ")
        return
    memory = f"{format_gib(one.device_bytes)} GiB on devices and {format_gib(one.host_bytes)} of RAM"
    changed = " ".join(map(_cut, shell.shown(_changed(plan.argv, one.argv)).split()))
    flags = f" ({changed})" if changed else ""
    yield from wrapped(printable(f"{one.title}{flags}: {one.because}; {memory}", 400), columns, "  ", "    ")


def _changed(argv: Sequence[str], other: Sequence[str]) -> list[str]:
    """The flags of another command that this one has not, or has with other values."""
    known = set(_pairs(argv))
    return [word for pair in _pairs(other) if pair not in known for word in pair]


def _pairs(argv: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Each flag with its values."""
    at = 0
    while at < len(argv):
        end = at + 1
        while end < len(argv) and not _is_flag(argv[end]):
            end += 1
        yield tuple(argv[at:end])
        at = end


def _is_flag(word: str) -> bool:
    return word.startswith("-") and word.lstrip("-")[:1].isalpha()
