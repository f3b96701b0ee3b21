"""Citations of the engines' sources: all are in the index of their release, and a changed function is found."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from autofit_llama.engine.versions import SOURCE as LLAMA_SOURCE
from autofit_vllm.engine.versions import SOURCE as VLLM_SOURCE
from support import ROOT

C = """
static int other(int a) { return a; }
// reserve: explained
int sched::reserve(int a, struct x * b) {
    return other(a); /* why */
}
#define LIMIT 3
static const std::map<int, int> TABLE = { {1, 2} };
void caller() { other(1); }
"""
PYTHON = """
LIMIT = 3  # why
class A:
    size: int = 4
    def run(self, a):
        return other(a)  # explained
"""


@pytest.fixture(scope="module")
def sources() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_sources", ROOT / "tools" / "check_sources.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_sources"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("engine", ["llama", "vllm"])
def test_every_citation_is_a_definition_of_the_release(sources: ModuleType, engine: str) -> None:
    cited = list(sources.citations(engine))
    assert len(cited) > 200
    assert sources.wrong(cited, sources.read_index(engine)) == [], "new citations: tools/check_sources.py TREE --index"


def test_the_release_is_the_one_that_each_plugin_states(sources: ModuleType) -> None:
    assert sources.read_index("llama")["release"] == LLAMA_SOURCE
    assert sources.read_index("vllm")["release"] == VLLM_SOURCE


def test_a_citation_of_nothing_is_told(sources: ModuleType) -> None:
    index = {"release": "x 1", "elsewhere": {}, "cited": {"a.cpp": "src/a.cpp"}, "files": {"src/a.cpp": {"run": "1"}}}
    cited = [sources.Citation("a.cpp", "run", "p:1"), sources.Citation("a.cpp", "gone", "p:2")]
    assert sources.wrong([*cited, sources.Citation("b.cpp", "", "p:3")], index) == [
        "p:2: a.cpp:gone: src/a.cpp of x 1 has no such name",
        "p:3: b.cpp: not a file of x 1, or not one alone",
    ]


@pytest.mark.parametrize(
    ("name", "old", "new", "same"),
    [
        ("reserve", "return other(a); /* why */", "return other(a);", True),
        ("reserve", "return other(a)", "return  other( a )", True),
        ("reserve", "return other(a)", "return other(a + 1)", False),
        ("reserve", "int a, struct", "long a, struct", False),
        ("sched::reserve", "return other(a)", "return 0", False),
        ("reserve", "return a;", "return a + 1;", True),
        ("other", "return a;", "return a + 1;", False),
        ("other", "other(1)", "other(2)", True),
        ("LIMIT", "LIMIT 3", "LIMIT 4", False),
        ("TABLE", "{1, 2}", "{1, 3}", False),
        ("", "/* why */", "", True),
        ("", "LIMIT 3", "LIMIT 4", False),
    ],
)
def test_c_definitions(sources: ModuleType, tmp_path: Path, name: str, old: str, new: str, same: bool) -> None:
    _same(sources, tmp_path / "a.cpp", C, (name, old, new), same)


@pytest.mark.parametrize(
    ("name", "old", "new", "same"),
    [
        ("run", "# explained", "", True),
        ("A.run", "other(a)", "other(a, 1)", False),
        ("run", "size: int = 4", "size: int = 5", True),
        ("A", "size: int = 4", "size: int = 5", False),
        ("size", "size: int = 4", "size: int = 5", False),
        ("LIMIT", "LIMIT = 3", "LIMIT = 4", False),
        ("", "# why", "# because", True),
    ],
)
def test_python_definitions(sources: ModuleType, tmp_path: Path, name: str, old: str, new: str, same: bool) -> None:
    _same(sources, tmp_path / "a.py", PYTHON, (name, old, new), same)


def _same(sources: ModuleType, path: Path, text: str, edit: tuple[str, str, str], same: bool) -> None:
    name, old, new = edit
    assert old in text
    path.write_text(text)
    before = sources.digest(path, name)
    path.write_text(text.replace(old, new, 1))
    assert before is not None
    assert (sources.digest(path, name) == before) is same
    assert sources.digest(path, "nowhere") is None


def test_a_newer_tree_is_compared(
    sources: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.cpp", "b.cpp", "c.cpp"):
        (tmp_path / name).write_text(C)
    cited = [sources.Citation(f, "reserve", f"ours.py:{i}") for i, f in enumerate(("a.cpp", "b.cpp", "c.cpp"))]
    monkeypatch.setattr(sources, "citations", lambda engine: cited)
    monkeypatch.setattr(sources, "INDEXES", tmp_path)
    (tmp_path / "llama.json").write_text(json.dumps({"release": "x 1", "elsewhere": {}, "cited": {}, "files": {}}))
    monkeypatch.setattr(sys, "argv", ["check_sources.py", "llama", str(tmp_path), "--index"])
    assert sources.main() == 0
    (tmp_path / "a.cpp").write_text(C.replace("return other(a)", "return 0"))
    (tmp_path / "b.cpp").unlink()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "b.cpp").write_text(C)
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["check_sources.py", "llama", str(tmp_path)])
    assert sources.main() == 1
    assert capsys.readouterr().out.splitlines() == [
        "changed  a.cpp:reserve  ours.py:0",
        "gone     b.cpp:reserve (now new/b.cpp?)  ours.py:1",
        "3 definitions and files cited: 1 changed, 1 gone, 1 as they were",
    ]


def test_a_file_that_two_paths_answer_to_is_not_a_citation(
    sources: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.cpp").write_text(C)
    monkeypatch.setattr(sources, "citations", lambda engine: [sources.Citation("a.cpp", "", "ours.py:1")])
    _, lines = sources.make_index("llama", tmp_path)
    assert lines == ["ours.py:1: a.cpp: one/a.cpp, two/a.cpp"]
