"""What people are told to type exists, and the lists that must agree do."""

from __future__ import annotations

import re
import tomllib

import pytest

from support import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
JUSTFILE = (ROOT / "justfile").read_text(encoding="utf-8")
RECIPES = set(re.findall(r"^([a-z][a-z-]*)(?: [*+\w ]+)?:(?!=)", JUSTFILE, re.MULTILINE))


@pytest.mark.parametrize(
    "page",
    ["README.md", "CONTRIBUTING.md", "AGENTS.md", ".github/PULL_REQUEST_TEMPLATE.md", ".github/workflows/ci.yml"],
)
def test_every_recipe_that_a_page_names_is_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"(?:`|run: |bin/)just((?: [a-z][a-z-]*)+)", text)
    assert named
    assert {recipe for several in named for recipe in several.split()} <= RECIPES


def test_the_scripts_of_recipes_are_there() -> None:
    scripts = re.findall(r"(?:python|bash) ((?:tools|bench|\.ci)/\S+)", JUSTFILE)
    assert len(scripts) > 5
    assert [script for script in scripts if not (ROOT / script).exists()] == []


def test_changelog_fragments_have_a_type() -> None:
    types = "|".join(each["directory"] for each in PROJECT["tool"]["towncrier"]["type"])
    names = {path.name for path in (ROOT / "changelog.d").iterdir()} - {"README.md"}
    assert {name for name in names if not re.fullmatch(rf"(\d+|\+[\w-]+)\.({types})\.md", name)} == set()


def test_each_type_of_fragment_is_explained() -> None:
    told = re.findall(r"^\| `(\w+)` \|", (ROOT / "changelog.d/README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert told == [each["directory"] for each in PROJECT["tool"]["towncrier"]["type"]]


def test_hosted_tests_run_on_every_version_that_is_claimed() -> None:
    claimed = [line.rpartition(" ")[2] for line in PROJECT["project"]["classifiers"] if re.search(r":: 3\.\d+$", line)]
    workflow = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    matrix = re.search(r"^ +python: \[(.*)\]$", workflow, re.MULTILINE)
    assert matrix
    assert re.findall(r"[\d.]+", matrix[1]) == claimed
    assert PROJECT["project"]["requires-python"] == f">={claimed[0]}"
