"""Writes plugins/autofit_vllm/quantization/name_maps.json from vLLM's model classes.

    python tools/gen/vllm_name_maps.py VLLM_SOURCE > plugins/autofit_vllm/quantization/name_maps.json

VLLM_SOURCE is the `vllm` directory of the source. For every registered architecture whose class has a
`hf_to_vllm_mapper`: the steps by which it renames modules (models/utils.py:WeightsMapper.get_rename_mapper), in order.
Only the mappers' own expressions are evaluated; nothing of vLLM is imported."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

_NAME = "hf_to_vllm_mapper"
_KINDS = ("regex", "substr", "prefix", "suffix")  #: in the order in which vLLM applies them
_OTHER_PLATFORMS = {"amd", "xpu", "cpu"}


@dataclass(frozen=True)
class WeightsMapper:
    """The fields of vLLM's class."""

    orig_to_new_renaming: list[Any] = field(default_factory=list)
    orig_to_new_regex: Mapping[Any, str | None] = field(default_factory=dict)
    orig_to_new_substr: Mapping[str, str | None] = field(default_factory=dict)
    orig_to_new_stacked: Mapping[str, Any] = field(default_factory=dict)
    orig_to_new_prefix: Mapping[str, str | None] = field(default_factory=dict)
    orig_to_new_suffix: Mapping[str, str | None] = field(default_factory=dict)

    def __or__(self, other: WeightsMapper) -> WeightsMapper:
        kinds = {f"orig_to_new_{kind}" for kind in _KINDS}
        return replace(self, **{kind: {**getattr(self, kind), **getattr(other, kind)} for kind in kinds})

    def steps(self) -> list[list[str]]:
        found = []
        for kind in _KINDS:
            for old, new in getattr(self, f"orig_to_new_{kind}").items():
                if new is not None:
                    found.append([kind, old if isinstance(old, str) else old.pattern, new])
        return found


class Classes:
    """Every class of the source by name, and what its mapper is."""

    def __init__(self, source: Path) -> None:
        self.found: dict[str, list[tuple[Path, ast.ClassDef]]] = {}
        self.trees: dict[Path, ast.Module] = {}
        roots = (source / "model_executor" / "models", source / "models")
        for path in (path for root in roots for path in sorted(root.rglob("*.py"))):
            if _OTHER_PLATFORMS & set(path.relative_to(source).parts):
                continue
            self.trees[path] = ast.parse(path.read_text("utf-8"))
            for node in self.trees[path].body:
                if isinstance(node, ast.ClassDef):
                    self.found.setdefault(node.name, []).append((path, node))

    def mapper(self, name: str, module: str, seen: frozenset[str] = frozenset()) -> WeightsMapper | None:
        """The mapper of a class, its own or that of a base."""
        candidates = self.found.get(name, [])
        wanted = module.rpartition(".")[2]
        near = [found for found in candidates if wanted in (found[0].stem, *found[0].parts)]
        if not candidates or name in seen:
            return None
        path, node = (near or candidates)[0]
        for line in node.body:
            target = line.targets[0] if isinstance(line, ast.Assign) else getattr(line, "target", None)
            value = getattr(line, "value", None)
            if isinstance(target, ast.Name) and target.id == _NAME and value is not None:
                return self._evaluate(value, path)
        for base in node.bases:
            named = base.id if isinstance(base, ast.Name) else getattr(base, "attr", "")
            found = self.mapper(named, path.stem, seen | {name})
            if found is not None:
                return found
        return None

    def _evaluate(self, expression: ast.expr, path: Path) -> WeightsMapper | None:
        try:
            found = self._value(expression, path)
        except Exception as error:
            print(f"{path.name}:{expression.lineno}: {error!r}", file=sys.stderr)
            return None
        return found if isinstance(found, WeightsMapper) else None

    def _value(self, expression: ast.expr, path: Path) -> Any:
        scope = self._scope(expression, path)
        return eval(compile(ast.Expression(expression), str(path), "eval"), scope)

    def _scope(self, node: ast.AST, path: Path) -> dict[str, Any]:
        """What the names in an expression or a function stand for."""
        scope: dict[str, Any] = {"WeightsMapper": WeightsMapper, "re": re, "regex": re, "replace": replace}
        for name in {part.id for part in ast.walk(node) if isinstance(part, ast.Name)} - set(scope):
            for at in (path, *self.trees):
                value = self._of_module(name, at)
                if value is not None:
                    scope[name] = value
                    break
            else:
                if name in self.found:
                    scope[name] = type(name, (), {_NAME: self.mapper(name, path.stem)})
        return scope

    def _of_module(self, name: str, path: Path) -> Any:
        """A function or constant of a module."""
        for node in self.trees[path].body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                arguments = replace_arguments(node.args)
                plain = ast.FunctionDef(name, arguments, node.body, [], lineno=1, col_offset=0)
                scope = self._scope(ast.Module(node.body, []), path)
                exec(compile(ast.fix_missing_locations(ast.Module([plain], [])), str(path), "exec"), scope)
                return scope[name]
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return self._value(node.value, path)  # type: ignore[attr-defined]
        return None


def replace_arguments(given: ast.arguments) -> ast.arguments:
    """The same arguments without their types."""
    plain = [ast.arg(argument.arg) for argument in given.args]
    return ast.arguments([], plain, None, [], [], None, given.defaults)


def registered(source: Path) -> dict[str, tuple[str, str]]:
    """Module and class by architecture (model_executor/models/registry.py)."""
    tree = ast.parse((source / "model_executor" / "models" / "registry.py").read_text("utf-8"))
    found: dict[str, tuple[str, str]] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Tuple) and len(value.elts) == 2:
                    module, name = ast.literal_eval(value)
                    found.setdefault(str(key.value), (module, name))
    return found


def main(source: Path) -> None:
    classes = Classes(source)
    maps = {}
    for architecture, (module, name) in sorted(registered(source).items()):
        mapper = classes.mapper(name, module)
        if mapper is not None and (steps := mapper.steps()):
            maps[architecture] = steps
    lines = (f"{json.dumps(name)}:{json.dumps(steps, separators=(',', ':'))}" for name, steps in maps.items())
    print("{" + ",\n".join(lines) + "}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
