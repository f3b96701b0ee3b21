"""What `follow` says: a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from follow.moved import KINDS, Definition, Move, Sheet, ranked
from follow.score import Score

MIB = 1 << 20
SHOWN = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    build: int
    base: int
    score: Score
    before: Sheet
    after: Sheet
    moves: Mapping[tuple[str, str], Move]
    definitions: list[Definition]


def text(found: Followed, seconds: Mapping[str, float]) -> str:
    lines = [f"# llama.cpp b{found.base} to b{found.build}", ""]
    lines += [", ".join(f"{step} {taken:.0f} s" for step, taken in seconds.items()), ""]
    for part in (_score, _architectures, _flags, _moves, _definitions):
        lines += [*part(found), ""]
    return "\n".join(lines)


def _score(found: Followed) -> Iterator[str]:
    score = found.score
    yield f"## Our figures for b{found.build}"
    yield ""
    columns = {
        "rows": score.n_rows,
        **{f"{name} exact": score.exact[kind] for kind, name in KINDS.items()},
        "compute within 0.1 %": score.n_near,
        "over 1 % low": score.n_low,
        "lacks at most": f"{score.lacks_bytes / MIB:.1f} MiB",
        "refused by the engine": score.n_refused,
        "of these here": score.n_refused_here,
        "refused here alone": score.n_wrongly_refused,
    }
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    yield f"| {' | '.join(map(str, columns.values()))} |"
    if score.off:
        yield ""
        yield "Not exact, by architecture and kind of memory:"
        yield ""
    for (arch, kind), rows in sorted(score.off.items()):
        yield f"- {arch}, {KINDS.get(kind, kind)}: {len(rows)}, such as {rows[0][:240]}"


def _architectures(found: Followed) -> Iterator[str]:
    yield "## Architectures"
    yield ""
    yield _came_and_went(found.before.architectures, found.after.architectures)


def _flags(found: Followed) -> Iterator[str]:
    old, new = found.before, found.after
    yield "## Flags and defaults"
    yield ""
    yield _came_and_went(*({name for name, programs in each.flags.items() if programs} for each in (old, new)))
    yield ""
    for name in sorted(old.flags.keys() & new.flags.keys()):
        if old.flags[name] != new.flags[name]:
            yield f"- {name}: programs {old.flags[name] or 'none'}, now {new.flags[name] or 'none'}"
    for name in sorted(old.facts.keys() | new.facts.keys()):
        was, now = old.facts.get(name, "absent"), new.facts.get(name, "absent")
        if was != now:
            yield f"- {name}: {was}, now {now}"


def _came_and_went(old: AbstractSet[str], new: AbstractSet[str]) -> str:
    return f"Came: {', '.join(sorted(new - old)) or 'none'}. Gone: {', '.join(sorted(old - new)) or 'none'}."


def _moves(found: Followed) -> Iterator[str]:
    yield f"## Rows that the engine itself allocates otherwise than b{found.base}"
    yield ""
    if not found.moves:
        yield "None."
        return
    yield "| architecture | kind | rows | by at least | by at most | ours exact |"
    yield "|---|---|---|---|---|---|"
    code = {name: kind for kind, name in KINDS.items()}
    for (arch, kind), move in found.moves.items():
        n_off = len(found.score.off.get((arch, code.get(kind, kind)), ()))
        least, most = (f"{n_bytes:+,} B" for n_bytes in (move.least_bytes, move.most_bytes))
        yield f"| {arch} | {kind} | {move.n_rows} | {least} | {most} | {'all' if not n_off else f'{n_off} are not'} |"


def _definitions(found: Followed) -> Iterator[str]:
    changed = ranked(found.definitions, found.moves)
    yield "## Definitions that our rules cite and that changed"
    yield ""
    yield f"{len(changed)}, those first that every moved row may come from; {min(SHOWN, len(changed))} are shown."
    for each in changed[:SHOWN]:
        yield ""
        yield f"### {each.file}{f':{each.name}' if each.name else ''}"
        yield ""
        yield f"Cited by {', '.join(each.where) or 'no line of ours (a file of one architecture)'}."
        yield ""
        yield "```diff"
        yield from each.diff
        yield "```"
