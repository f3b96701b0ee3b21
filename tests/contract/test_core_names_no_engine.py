"""The core knows no engine: none is named in its code, but where plugins that ship with it are listed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import ROOT

CORE = ROOT / "autofit"
ENGINE = re.compile(r"llama[._-]?(?:cpp|server|bench|cli)|autofit_llama|vllm|ollama|sglang|^llama$", re.IGNORECASE)
#: where an engine is named for what it is to other programs, not for how autofit plans
ALLOWED = {
    "host.py": "the list of built-in plugins",
    "testing.py": "the architecture of its tiny model",
    "domain/names.py": "schemes of other programs' references",
    "builtin.py": "sources of other programs' models",
    "sources/hub_cache.py": "caches of other programs",
    "sources/ollama.py": "another program's names, manifests and media types",
}
FILES = sorted(path for path in CORE.rglob("*.py") if "_models" not in path.parts)


def named(path: Path) -> Iterator[str]:
    """Identifiers and texts of a module; docstrings may cite whoever a rule comes from, examples are of a command."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    hints = {
        id(k.value) for node in ast.walk(tree) if isinstance(node, ast.Call) for k in node.keywords if k.arg == "hint"
    }
    for node in ast.walk(tree):
        if id(node) in prose or id(node) in hints:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.arg)):
            yield node.name if not isinstance(node, ast.arg) else node.arg


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CORE).as_posix())
def test_no_engine_is_named(path: Path) -> None:
    found = sorted({text for text in named(path) if ENGINE.search(text)})
    if path.relative_to(CORE).as_posix() in ALLOWED:
        assert found, "take it off the list"
    else:
        assert not found
