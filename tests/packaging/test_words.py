"""The words of the glossary: what readers see uses them, and never those that it rules out."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from support import ROOT

GLOSSARY = ROOT / "docs" / "glossary.md"
SOURCES = sorted([*ROOT.glob("autofit/**/*.py"), *ROOT.glob("plugins/**/*.py")])
PAGES = [ROOT / "README.md", *sorted(path for path in ROOT.glob("docs/**/*.md") if path != GLOSSARY)]


@cache
def banned() -> tuple[str, ...]:
    """The last column of each table, and the list of spellings."""
    text = GLOSSARY.read_text(encoding="utf-8")
    cells = [line.rsplit("|", 2)[1] for line in text.splitlines() if line.startswith("| ")]
    spellings = text.partition("\nNever: ")[2].rstrip().rstrip(".")
    words = [word.strip() for part in (*cells, spellings) for word in re.split(r",\s", part)]
    return tuple(word for word in words if word and word not in ("never", "---", "–"))


def sources() -> Iterator[tuple[Path, str]]:
    return ((path.relative_to(ROOT), path.read_text(encoding="utf-8")) for path in SOURCES)


@cache
def pattern() -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, banned()))})(?![\w-])", re.IGNORECASE)


def found_in(text: str) -> list[str]:
    """Banned words in `text`, but not in code spans: names keep the spelling that they have."""
    return [match[0] for match in pattern().finditer(re.sub(r"`[^`\n]*`", "", text))]


def literals(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of all strings of a module that may reach somebody: docstrings and single names do not."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = None  # a docstring, or a comment on an attribute
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values)
        elif id(node) in inside:
            continue
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            yield node.lineno, node.value


def test_the_glossary_rules_words_out() -> None:
    assert len(banned()) > 80
    assert {"plug-in", "hop", "quantised", "analyse", "room for"} <= set(banned())


def test_a_term_is_not_ruled_out_elsewhere() -> None:
    text = GLOSSARY.read_text(encoding="utf-8")
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ")]
    terms = [term.strip() for row in rows for term in row[1].split(",")]
    assert len(terms) > 25
    assert [term for term in terms if found_in(term)] == []
    assert [row[2] for row in rows if found_in(row[2])] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("the experts of 3 blocks stay in RAM", ["blocks stay"]),
        ("3 quantised caches, as Wished", ["quantised", "Wished"]),
        ("use `--wish` or hopscotch", []),
        ("KV blocks, whole quantization blocks", []),
    ],
)
def test_words_are_found(text: str, words: list[str]) -> None:
    assert found_in(text) == words


def test_strings_are_collected() -> None:
    source = '"""A hop."""\n\ndef f(n):\n    "A hop."\n    return "a hop", "hop", f"{n} hops and a hop"\n'
    assert sorted(literals(source)) == [(5, "a hop"), (5, "{} hops and a hop")]


def test_messages_use_the_words_of_the_glossary() -> None:
    found = []
    for path, source in sources():
        if pattern().search(source):
            told = ((line, text, found_in(text)) for line, text in literals(source))
            found += [(str(path), line, text, words) for line, text, words in told if words]
    assert found == []


#: identifiers that had several meanings or none in the field, and what those are called here (docs/glossary.md)
_RENAMED = {"hop": "transfer", "lean": "n_cpu_ffn", "bulk": "ffn", "chain": "assignment"}


def test_names_of_the_code_are_terms_too() -> None:
    likely = re.compile("|".join(_RENAMED), re.IGNORECASE)
    found = {(str(path), name) for path, source in sources() if likely.search(source) for name in renamed_in(source)}
    assert sorted(found) == []


def renamed_in(source: str) -> Iterator[str]:
    """Names that a module gives, and that have a part of `_RENAMED`; those that it imports are others'."""
    for node in ast.walk(ast.parse(source)):
        names = [node.name] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else []
        names += [node.arg] if isinstance(node, ast.arg) else []
        names += [node.id] if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else []
        for name in names:
            parts = re.findall(r"[A-Z]?[a-z]+", name)
            yield from (name for part in parts if part.lower().removesuffix("s") in _RENAMED)


def test_names_are_taken_apart() -> None:
    source = (
        "from itertools import chain\n\nclass Chain:\n    hop_s: float\n\n    def f(self, n_bulks):\n"
        "        chained = shop = chain(self.lean)\n"
    )
    assert sorted(renamed_in(source)) == ["Chain", "hop_s", "n_bulks"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_use_the_words_of_the_glossary(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [(number, words) for number, line in enumerate(lines, 1) if (words := found_in(line))] == []


def test_what_is_made_printable_is_not_escaped_again() -> None:
    """`repr()` of a text with an escaped character escapes its backslash too: `'a\\\\x1b'` for what was `a<ESC>`."""
    again = re.compile(r"\{printable\([^{}]*\)!r\}")
    assert [str(path) for path, source in sources() if again.search(source)] == []
