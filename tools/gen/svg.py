"""Pictures as SVG: bars of memory, and the text of a terminal. Light and dark as the reader's system has it; no fonts,
scripts or pictures of another server. The same input makes the same bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

#: Okabe and Ito's colors, which people tell apart who see colors differently; the terminal has the same
COLORS: Mapping[str, str] = {
    "weights": "#0072b2",
    "cache": "#e69f00",
    "compute": "#009e73",
    "runtime": "#cc79a7",
    "transient": "#d8ca00",
    "margin": "#8a8a8a",
}
_ON_DARK = {"weights", "compute"}  #: kinds with white figures; the others have black ones
_STYLE = """\
text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:#1f2328}
.t{font-weight:600}.s{fill:#59636e}.w{fill:#fff}.b{fill:#000}
.f{fill:none;stroke:#59636e}.o{stroke:#cf222e;stroke-width:2;stroke-dasharray:5 3}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.s{fill:#9198a1}.w{fill:#fff}.b{fill:#000}.f{stroke:#9198a1}
.o{stroke:#ff7b72}}
"""
_WIDTH, _LEFT, _RIGHT, _ROW, _BAR = 860, 190, 170, 34, 22


class Bar(NamedTuple):
    """One bar: what it is, its parts as (kind, bytes), the bytes that are there, and what is said behind it."""

    name: str
    parts: Sequence[tuple[str, int]]
    free_bytes: int | None
    said: str


def bars(title: str, rows: Sequence[Bar]) -> str:
    """Bars below each other, all to one scale; a part is labeled where its figure has room."""
    whole = max(max(sum(n for _, n in row.parts), row.free_bytes or 0) for row in rows)
    per_byte = (_WIDTH - _LEFT - _RIGHT) / whole
    kinds = [kind for kind in COLORS if any(kind == one and n for row in rows for one, n in row.parts)]
    height = 40 + _ROW * len(rows) + 34
    lines = [f'<text class="t" x="8" y="22">{escape(title)}</text>']
    for i, row in enumerate(rows):
        lines += _bar(row, 40 + _ROW * i, per_byte)
    x = _LEFT
    for kind in kinds:
        y = height - 18
        lines.append(f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{COLORS[kind]}"/>')
        lines.append(f'<text class="s" x="{x + 17}" y="{y}">{kind}</text>')
        x += 34 + 8 * len(kind)
    told = "; ".join(_sentence(row) for row in rows)
    return _document(_WIDTH, height, title, told, _STYLE, lines)


def _bar(row: Bar, y: int, per_byte: float) -> Iterator[str]:
    yield f'<text x="{_LEFT - 10}" y="{y + 16}" text-anchor="end">{escape(row.name)}</text>'
    at = 0
    for kind, n in row.parts:
        x, width = _LEFT + at * per_byte, n * per_byte
        if n:
            yield f'<rect x="{x:.1f}" y="{y}" width="{max(width, 0.8):.1f}" height="{_BAR}" fill="{COLORS[kind]}"/>'
        figure = f"{n / 2**30:.1f}"
        if width > 8 * len(figure) + 4:
            tone = "w" if kind in _ON_DARK else "b"
            middle = x + width / 2
            yield f'<text class="{tone}" x="{middle:.1f}" y="{y + 16}" text-anchor="middle">{figure}</text>'
        at += n
    end = max(at, row.free_bytes or 0) * per_byte
    if row.free_bytes:
        yield f'<rect class="f" x="{_LEFT}" y="{y}" width="{row.free_bytes * per_byte:.1f}" height="{_BAR}"/>'
        if at > row.free_bytes:
            x = _LEFT + row.free_bytes * per_byte
            yield f'<line class="o" x1="{x:.1f}" y1="{y - 4}" x2="{x:.1f}" y2="{y + _BAR + 4}"/>'
    yield f'<text class="s" x="{_LEFT + end + 8:.1f}" y="{y + 16}">{escape(row.said)}</text>'


def _sentence(row: Bar) -> str:
    parts = ", ".join(f"{kind} {n / 2**30:.2f} GiB" for kind, n in row.parts if n)
    return f"{row.name}: {parts}; {row.said}"


_PAINT = {32: "#0087d7", 214: "#ffaf00", 36: "#00af87", 175: "#d787af", 220: "#ffd700", 245: "#8a8a8a"}
_CELL, _LINE = 8.4, 18
_TERMINAL = """\
text{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:#e6edf3;white-space:pre}
.p{fill:#7ee787}
"""
_SGR = re.compile(r"\x1b\[([\d;]*)m")


def terminal(title: str, lines: Sequence[str], columns: int) -> str:
    """The lines as a terminal of that many columns shows them; the first, after `$ `, was typed. A line that goes on
    below has the class `c`."""
    drawn: list[str] = []
    y = 52
    for number, line in enumerate(lines):
        cells = list(_cells(line))
        for start in range(0, max(len(cells), 1), columns):
            part = cells[start : start + columns]
            name = ' class="c"' if start + columns < len(cells) else ""
            runs = "".join(_run(x, y, text, "p" if number == 0 and x < 2 else color) for x, text, color in _runs(part))
            drawn.append(f"<g{name}>{runs}</g>")
            y += _LINE
    width, height = round(columns * _CELL + 32), y
    frame = [
        f'<rect width="{width}" height="{height}" rx="8" fill="#161b22"/>',
        *(f'<circle cx="{20 + 18 * i}" cy="18" r="5" fill="#484f58"/>' for i in range(3)),
    ]
    return _document(width, height, title, "", _TERMINAL, [*frame, *drawn])


def _cells(line: str) -> Iterator[tuple[str, str]]:
    """(character, color) of each cell."""
    color, at = "", 0
    for found in [*_SGR.finditer(line), None]:
        yield from ((character, color) for character in line[at : found.start() if found else None])
        if found:
            at = found.end()
            words = found[1].split(";")
            color = _PAINT[int(words[2])] if words[:2] == ["38", "5"] else ""


def _runs(cells: Sequence[tuple[str, str]]) -> Iterator[tuple[int, str, str]]:
    start = 0
    for i in range(1, len(cells) + 1):
        if i == len(cells) or cells[i][1] != cells[start][1]:
            yield start, "".join(character for character, _ in cells[start:i]), cells[start][1]
            start = i


def _run(x: int, y: int, text: str, color: str) -> str:
    paint = f' class="{color}"' if color == "p" else f' fill="{color}" style="fill:{color}"' if color else ""
    length = f'textLength="{len(text) * _CELL:.1f}" lengthAdjust="spacingAndGlyphs"'
    return f'<text x="{16 + x * _CELL:.1f}" y="{y}" {length}{paint} xml:space="preserve">{escape(text)}</text>'


def text_of_terminal(svg: str) -> list[str]:
    """The lines of such a picture."""
    from xml.etree import ElementTree

    lines, begun = [], ""
    for group in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}g"):
        begun += "".join(text.text or "" for text in group)
        if group.get("class") != "c":
            lines.append(begun)
            begun = ""
    return lines


def _document(width: int, height: int, title: str, told: str, style: str, lines: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label={quoteattr(title)}>'
    )
    about = [f"<title>{escape(title)}</title>", *([f"<desc>{escape(told)}</desc>"] if told else [])]
    return "\n".join([head, *about, f"<style>{style}</style>", *lines, "</svg>", ""])
