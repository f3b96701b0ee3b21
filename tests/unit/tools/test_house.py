"""What counts as long, and that what is known of an architecture is among the families."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from autofit_llama.model.family_index import FAMILIES
from support import ROOT

LLAMA = ROOT / "plugins" / "autofit_llama"
#: `llama-quantize` names architectures as well, and so does what stands for it
ELSEWHERE = ("quantization/",)
GENERATED = (
    "engine/build_table.py",
    "model/family_index.py",
    "loading/tensors/",
    "loading/keys.py",
    "loading/graphs.py",
)


@pytest.fixture(scope="module")
def house() -> ModuleType:
    spec = importlib.util.spec_from_file_location("house", ROOT / "tools" / "house.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_docstring_is_not_length(house: ModuleType) -> None:
    source = 'def f():\n    """One.\n\n    Two.\n    """\n    a = 1\n    return a\n'
    assert [(f.name, n) for f, n in house.long_functions(source, 2)] == [("f", 3)]
    assert not [*house.long_functions(source, 3)]


def test_functions_inside_classes_and_functions_count_for_themselves(house: ModuleType) -> None:
    source = (
        "class A:\n    async def f(self):\n        def g():\n            pass\n            pass\n        return g\n"
    )
    assert [(f.name, n) for f, n in house.long_functions(source, 1)] == [("f", 5), ("g", 3)]


def test_architectures_are_written_among_the_families() -> None:
    """The index of families, and what a file must hold, are generated from the engine's source."""
    homes: dict[str, set[str]] = {}
    for path in sorted(LLAMA.rglob("*.py")):
        place = path.relative_to(LLAMA).as_posix()
        if place.startswith(GENERATED + ELSEWHERE):
            continue
        for name in named(path):
            homes.setdefault(name, set()).add(place)
    for name in ("qwen4exp", "glm-dsa", "deepseek32", "arcee", "apertus", "kimi-linear"):
        assert name in FAMILIES
        assert {place.partition("/")[0] for place in homes[name]} == {"families"}, name


def named(path: Path) -> set[str]:
    """The names of architectures among the texts of a module; prose and names of changes may speak of one."""
    tree = ast.parse(path.read_text("utf-8"))
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    prose |= {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg in ("name", "source")
    }
    texts = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in prose)
    found = {word for node in texts if isinstance(node.value, str) for word in re.findall(r"[a-z0-9-]+", node.value)}
    return found | _records(tree)


def _records(tree: ast.AST) -> set[str]:
    """The names of the records that a module has."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name))
    given = (k for call in calls if call.func.id == "Architecture" for k in call.keywords if k.arg == "name")  # type: ignore[attr-defined]
    return {k.value.value for k in given if isinstance(k.value, ast.Constant)}  # type: ignore[misc]
