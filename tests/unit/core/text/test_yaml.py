from __future__ import annotations

from typing import Any

import pytest
from autofit.errors import UsageError
from autofit.text.yaml import documents, load


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1", {"a": 1}),
        ("a: 1_000", {"a": 1000}),
        ("a: 1e5", {"a": "1e5"}),  # YAML 1.1 wants a dot
        ("a: yes", {"a": True}),
        ("a: ~", {"a": None}),
        ("a: |\n  b\n  c\n", {"a": "b\nc\n"}),
        ("a: {b: 1}", {"a": {"b": 1}}),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        ("base: &x {c: 1}\nd: {<<: *x, e: 2}", {"base": {"c": 1}, "d": {"c": 1, "e": 2}}),
        ("a: 1\na: 2", {"a": 2}),
        ("", None),
    ],
)
def test_values(text: str, value: Any) -> None:
    assert load(text) == value


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system [true]",
        "\ta: 1",
        "a: [1",
        "a: *b",
        "d: 2026-99-99",
        "[" * 5000,
        "- " * 5000 + "x",
        "\n".join(["- x"] * 200_000),
        bomb(9),
        "a: &a [*a]",
    ],
    ids=range(10),
)
def test_refused(text: str) -> None:
    with pytest.raises(UsageError):
        load(text)


def test_an_alias_bomb_is_read_without_being_written_out() -> None:
    (found,) = documents(bomb(9))
    assert len(found.get("a8").items) == 10


def test_a_value_that_holds_itself_is_refused() -> None:
    with pytest.raises(UsageError, match="holds itself"):
        documents("a: &a [*a]")


def test_values_have_lines() -> None:
    (found,) = documents("# text\na:\n  b: 1\n  c: [x,\n    y]\nbase: &x\n  k: v\nd:\n  <<: *x\n  e: 'no'\n")
    assert (found.get("a", "b").text, found.get("a", "b").line) == ("1", 3)
    assert [(item.text, item.line) for item in found.get("a", "c").items] == [("x", 4), ("y", 5)]
    assert found.get("d", "k").text == "v"
    assert found.get("d", "e").text == "no"
    assert found.get("nothing", "here").value is None


def test_own_keys_come_before_merged_ones() -> None:
    (found,) = documents("x: &x {a: 1, b: 1}\ny: &y {b: 2, c: 2}\nz:\n  <<: [*x, *y]\n  c: 3\n")
    assert {name: node.text for name, node in found.get("z").pairs.items()} == {"a": "1", "b": "1", "c": "3"}
