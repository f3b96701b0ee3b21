"""Types of a plan for the page's scripts, made of its JSON Schema."""

from __future__ import annotations

import importlib.util
import json

from support import ROOT

spec = importlib.util.spec_from_file_location("page_types", ROOT / "tools" / "gen" / "page_types.py")
assert spec is not None and spec.loader is not None
page_types = importlib.util.module_from_spec(spec)
spec.loader.exec_module(page_types)


def test_the_types_are_those_of_the_schema() -> None:
    assert page_types.declarations(
        json.loads(page_types.SCHEMA.read_text(encoding="utf-8"))
    ) == page_types.TARGET.read_text(encoding="utf-8")


def test_each_form_of_a_schema_has_its_type() -> None:
    properties = {
        "a": {"type": ["integer", "null"]},
        "b": {"type": "array", "items": {"$ref": "#/$defs/Other"}},
        "c": {"enum": ["x", "y"], "description": "one of two"},
        "d": {"type": "object", "additionalProperties": {"type": "string"}},
        "e": {"anyOf": [{"$ref": "#/$defs/Other"}, {"type": "null"}]},
        "f": {},
        "g": {"type": "array"},
    }
    text = page_types.declarations({"$defs": {"One": {"type": "object", "required": ["a"], "properties": properties}}})
    assert text.splitlines()[2:] == [
        "export interface One {",
        "  a: number | null;",
        "  b?: Array<Other>;",
        "  /** one of two */",
        '  c?: "x" | "y";',
        "  d?: Record<string, string>;",
        "  e?: Other | null;",
        "  f?: unknown;",
        "  g?: Array<unknown>;",
        "}",
    ]
