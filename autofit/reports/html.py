"""A plan or a checked command as one page of HTML: picture, curves and tables, for tickets.

The page needs nothing beside itself: no script, no network. It holds no paths, host names or secrets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from autofit.domain.curve import Curve, timeline
from autofit.domain.memory import KINDS, PoolUse
from autofit.domain.plan import Plan
from autofit.domain.text import printable
from autofit.domain.units import format_bytes
from autofit.render import text
from autofit.render.plot import pools_of, rate
from autofit.render.pools import folded, fullest, groups, ids
from autofit.render.svg import COLORS, STYLE, svg
from autofit.reports.report import refuse_leaks
from autofit.reports.scrub import scrub_command
from autofit.text.shell import shown

MAX_BYTES = 300_000
MAX_CHARS = 2000  #: of one cell
_PATH = re.compile(
    r"(?<![\w/.:])(?:~|[A-Za-z]:)?[/\\][^\s'\"<>:;,/\\][^\s'\"<>:;,]*"
    r"|[^\s'\"(]+\.(?:gguf|safetensors|jinja|toml|ya?ml|ini|txt|log|pem|key)\b"
)
PAGE_STYLE = """
:root{color-scheme:light dark;--ink:#1b1b1b;--soft:#5a5a5a;--paper:#fff;--line:#ccc;--shade:#f3f4f6}
@media(prefers-color-scheme:dark){:root{--ink:#e8e8e8;--soft:#aaa;--paper:#16181c;--line:#444;--shade:#22252b}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:60rem;margin:0 auto;
padding:1rem}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}.soft{color:var(--soft)}
pre,code{font-family:ui-monospace,monospace;background:var(--shade)}
pre{padding:.7rem;white-space:pre-wrap;overflow-wrap:anywhere;border-radius:4px}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem;min-width:30rem}
caption{text-align:left;font-weight:600;padding:.8rem 0 .3rem}
th,td{text-align:left;vertical-align:top;padding:.25rem .7rem .25rem 0;border-bottom:1px solid var(--line)}
td.n,th.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
.bar{display:flex;height:1.6rem;border:1px solid var(--soft);margin:.2rem 0}
.bar i{display:block;border-right:1px solid var(--paper);box-sizing:border-box}
.key{margin:.2rem 0 1rem}.key span{display:inline-block;margin-right:1em}
.key i{display:inline-block;width:.8em;height:.8em;margin-right:.3em;border:1px solid var(--soft)}
.free{background:repeating-linear-gradient(45deg,transparent 0 4px,var(--line) 4px 5px)}
svg.c{max-width:100%;height:auto}
"""


def page(curve: Curve, names: Mapping[str, str], environ: Mapping[str, str]) -> str:
    """The page of a curve's chosen plan. `names` says what known references are called, `environ` what is secret.

    Raises:
        UsageError: what is private would be in it.
    """
    say = _Words(names)
    plan = curve.chosen
    verdict = {"fits": "fits", "starts": "starts, and runs short of memory later"}.get(plan.verdict, "does not fit")
    if plan.verdict == "fits" and not plan.fits:
        verdict = "does not do what is asked"
    body = [
        f"<h1>{say(curve.title)}: {verdict}</h1>",
        *(f"<p>{say(words)}</p>" for words in (" · ".join(text.facts(plan)), *text.limits(plan)) if words),
        *(f"<p>{say(found.message)}</p>" for found in text.told(plan)[:2] if not plan.fits),
        f"<h2>Command</h2><pre>{say(shown(_command(plan, names)))}</pre>",
        "<h2>Memory</h2>",
        *_pools(plan, say),
        *_stages(plan, say),
        *_curve(curve, say),
        *_choices(plan, say),
        *_settings(plan, say),
        *_items(plan, say),
        *_findings(plan, say),
        _foot(plan, say),
    ]
    html = _framed(f"{say(curve.title)}: {verdict}", "\n".join(body))
    refuse_leaks({"page": html}, environ)
    return html


def _command(plan: Plan, names: Mapping[str, str]) -> list[str]:
    """The command without what is private: of the program its name alone."""
    program, *rest = plan.argv or ("",)
    return [re.split(r"[/\\]", program)[-1], *scrub_command(rest, names)]


class _Words:
    """Text for the page: without what is private, and without what a browser would take for a tag."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = sorted(names.items(), key=lambda pair: -len(pair[0]))

    def __call__(self, words: str) -> str:
        for known, called in self.names:
            words = words.replace(known, called)
        return escape(printable(_PATH.sub("FILE", words), MAX_CHARS))


def _framed(title: str, body: str) -> str:
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{PAGE_STYLE}{STYLE}</style></head>\n<body><main>\n{body}\n</main></body></html>"
    )


def _table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table of cells that are HTML already; columns of `numbers` are set to the right."""

    def kind(i: int) -> str:
        return ' class="n"' if i in numbers else ""

    head = "".join(f'<th scope="col"{kind(i)}>{cell}</th>' for i, cell in enumerate(heads))
    body = "".join(f"<tr>{''.join(f'<td{kind(i)}>{c}</td>' for i, c in enumerate(row))}</tr>" for row in rows)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{caption}"><table><caption>{caption}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _pools(plan: Plan, say: _Words) -> Iterator[str]:
    for name, pools in folded(plan.memory.pools):
        pool = fullest(pools)
        sizes = {kind: pool.sum_bytes(kind) for kind in KINDS}
        whole = max(pool.free_bytes or 0, sum(sizes.values()), 1)
        told = ", ".join(f"{text.called(kind)} {format_bytes(n)}" for kind, n in sizes.items() if n)
        parts = "".join(
            f'<i style="width:{100 * n / whole:.2f}%;background:{COLORS.get(kind, "#999")}" '
            f'title="{text.called(kind)} {format_bytes(n)}"></i>'
            for kind, n in sizes.items()
            if n
        )
        yield f"<p><strong>{say(name)}</strong> {text.room(pools)}</p>"
        yield f'<div class="bar free" role="img" aria-label="{say(name)}: {told}">{parts}</div>'
        keys = "".join(
            f'<span><i style="background:{COLORS.get(kind, "#999")}"></i>{text.called(kind)} {format_bytes(n)}</span>'
            for kind, n in sizes.items()
            if n
        )
        yield f'<p class="key">{keys}</p>'
        yield from (f"<p>{say(text.limit_row(one, pool))}</p>" for one in pool.limits)


def _stages(plan: Plan, say: _Words) -> Iterator[str]:
    found, together = list(timeline(plan)), list(groups(plan.memory.pools))
    heads = ["from", *(_each(some, say) for some in together), "left at the tightest"]
    rows = []
    for stage in found:
        room = stage.room_bytes
        left = "not known" if room is None else format_bytes(room) if room >= 0 else f"{format_bytes(-room)} missing"
        sizes = [format_bytes(max(stage.used_bytes[pool.id] for pool in some)) for some in together]
        rows.append([say(stage.what), *sizes, left])
    yield _table("Over time", heads, rows, range(1, len(heads)))
    if plan.safe_fill_tokens is not None and plan.fits:
        yield f"<p>Safe until token {plan.safe_fill_tokens:,}: the cache is allocated at the start.</p>"


def _curve(curve: Curve, say: _Words) -> Iterator[str]:
    if len(curve.points) < 2:
        return
    yield "<h2>Against the context</h2>"
    yield svg(curve, has_style=False)
    columns = list(pools_of(curve))
    heads = ["tokens", *(say(name.split("  ")[0]) for name, _ in columns), "decode, tokens/s", "KV cache", "verdict"]
    rows = []
    for point in curve.points:
        verdict = "fits" if point.fits else f"does not fit: {say(point.because)}"
        sizes = [next((format_bytes(pool.used_bytes) for one, pool in some if one is point), "") for _, some in columns]
        rows.append([f"{point.context_tokens:,}", *sizes, rate(point), say(point.kv) or "default", verdict])
    caption = "One plan for each context; decode from a nearly empty context to a full one"
    yield _table(caption, heads, rows, range(len(columns) + 2))


def _choices(plan: Plan, say: _Words) -> Iterator[str]:
    rows = [
        [say(one.pick), f"<code>{say(shown(one.flags))}</code>", say(", ".join(one.gains)), say(", ".join(one.costs))]
        for one in plan.alternatives
        if one.pick is not None
    ]
    if rows:
        yield _table("What else there is to choose", ["best at", "options", "gains", "costs"], rows)


def _settings(plan: Plan, say: _Words) -> Iterator[str]:
    rows = []
    for one in plan.decisions:
        step = "" if one.next_rejected is None else say(text.rejected(one.next_rejected))
        rows.append([f"<code>{say(f'{one.setting} {one.value}')}</code>", one.origin, say(one.because), step])
    if rows:
        yield "<h2>Settings</h2>"
        yield _table("Each setting and why", ["setting", "from", "because", "the next better, and what it lacks"], rows)


def _items(plan: Plan, say: _Words) -> Iterator[str]:
    cells = [row for some in groups(plan.memory.pools) for row in _item(some, say)]
    if cells:
        yield "<h2>Where each byte goes</h2>"
        heads = ["pool", "kind", "what", "size", "bytes", "known how", "source"]
        yield _table("Figures of each pool", heads, cells, (3, 4))


def _each(pools: Sequence[PoolUse], say: _Words) -> str:
    """What pools that are shown together are called."""
    return say(f"{ids(pools)}, each" if len(pools) > 1 else pools[0].id)


def _item(pools: Sequence[PoolUse], say: _Words) -> list[list[str]]:
    rows = []
    pool = fullest(pools)
    for item in sorted(pool.items, key=lambda item: KINDS.index(item.kind)):
        what = f"{item.label}, when {item.when}" if item.when else item.label
        size, exact = format_bytes(item.n_bytes), f"{item.n_bytes:,}"
        rows.append([_each(pools, say), text.called(item.kind), say(what), size, exact, item.basis, say(item.source)])
    return rows


def _findings(plan: Plan, say: _Words) -> Iterator[str]:
    if plan.findings:
        yield "<h2>To know</h2>"
        rows = [[one.severity, say(one.message), f"<code>{say(one.code)}</code>"] for one in plan.findings]
        yield _table("Findings", ["severity", "what", "code"], rows)


def _foot(plan: Plan, say: _Words) -> str:
    from autofit import __version__

    source = f", for {say(plan.engine_source)}" if plan.engine_source else ""
    return f'<p class="soft">Made by autofit {__version__}{source}. Sizes are GiB of 2<sup>30</sup> bytes.</p>'
