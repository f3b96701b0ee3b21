from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from textwrap import indent

import autofit
import pytest
import yaml

from autofit_llama.graph.builder import Graph
from autofit_llama.model.architecture import Architecture
from support import ROOT


@pytest.mark.parametrize("tool", ["docs.py", pytest.param("pictures.py", marks=pytest.mark.slow)])
def test_generated_pages_and_pictures_are_current(tool: str) -> None:
    done = subprocess.run(
        [sys.executable, f"tools/gen/{tool}", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_every_exception_is_a_public_name() -> None:
    named = re.findall(r"^\| `(\w+)` \| `\w+` \| \d", (ROOT / "docs/errors.md").read_text(), re.MULTILINE)
    assert len(named) > 10
    assert set(named) <= set(autofit.__all__)
    assert all(issubclass(getattr(autofit, name), autofit.AutofitError) for name in named)


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_page_about_architectures_shows_code_that_is_there() -> None:
    page = (ROOT / "docs" / "add-an-architecture.md").read_text().partition("## vLLM")[0]
    family = (ROOT / "plugins" / "autofit_llama" / "families" / "decoder.py").read_text()
    shown = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(shown) == 2
    for code in shown:
        assert code in family or indent(code.rstrip(), "    ") in family


def test_the_page_about_architectures_explains_every_field() -> None:
    page = (ROOT / "docs" / "add-an-architecture.md").read_text().partition("## vLLM")[0]
    explained = set(re.findall(r"`([a-z0-9_]+)`", "".join(re.findall(r"^\| (`[^|]+) \|", page, re.MULTILINE))))
    assert {field.name for field in fields(Architecture)} <= explained


def test_the_page_about_architectures_names_methods_that_are_there() -> None:
    page = (ROOT / "docs" / "add-an-architecture.md").read_text().partition("## vLLM")[0]
    for name in re.findall(r"\bg\.([a-z_]+)", page):
        assert hasattr(Graph, name), name


def test_programs_that_pages_name_are_there() -> None:
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        for program in re.findall(r"\btools/[a-z_/]+\.py\b", page.read_text()):
            assert (ROOT / program).exists(), f"{page.name}: {program}"


def pages_of(nav: object) -> list[str]:
    """The pages that a part of the navigation names."""
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [page for part in parts for page in pages_of(part)]


def test_every_page_has_one_place_in_the_navigation() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    docs = ROOT / "docs"
    assert sorted(pages_of(nav)) == sorted(path.relative_to(docs).as_posix() for path in docs.rglob("*.md"))
