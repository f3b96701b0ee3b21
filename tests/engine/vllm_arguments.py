"""Runs inside an environment with vLLM: reads keyword arguments as JSON lines, writes which of them `EngineArgs` has no
field for, or whose field refuses the value."""

from __future__ import annotations

import inspect
import json
import sys
import typing
from typing import Any


def fields() -> dict[str, Any]:
    """Types by name; a name that only type checkers see stands for anything."""
    import vllm.config
    import vllm.engine.arg_utils as module

    names = {**vars(typing), **vars(vllm.config), **vars(module)}
    found = {}
    for name, kind in inspect.get_annotations(module.EngineArgs).items():
        try:
            found[name] = eval(kind, names) if isinstance(kind, str) else kind
        except NameError:
            found[name] = Any
    return found


def main() -> None:
    from pydantic import TypeAdapter, ValidationError

    known = fields()
    for line in sys.stdin:
        wrong = []
        for name, value in json.loads(line).items():
            if name not in known:
                wrong.append(f"{name}: no such field")
                continue
            try:
                TypeAdapter(known[name]).validate_python(value)
            except ValidationError as error:
                wrong.append(f"{name}: {error}")
        print("ANSWER " + json.dumps(wrong), flush=True)


if __name__ == "__main__":
    main()
