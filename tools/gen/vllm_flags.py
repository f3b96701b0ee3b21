"""Writes plugins/autofit_vllm/command/flags-VERSION.json: every option of `vllm serve`.

    pip download --no-deps vllm==0.33.0
    python tools/gen/vllm_flags.py vllm-0.33.0-*.whl > plugins/autofit_vllm/command/flags-0.33.0.json

Follows `make_arg_parser` (entrypoints/common/cli_args.py) and `EngineArgs.add_cli_args` (engine/arg_utils.py) without
importing them: calls of `add_argument` in their order, and the types of the dataclass fields that most of them stand
for (`_compute_kwargs`). An option's `kind` names a parser of command/flags.py. An option also gets `limits` (`ge`,
`gt`, `le`, `lt`, `one_of`) of the field that it fills, and `keys` where its value becomes a configuration class, which
knows no other: the allowed words of each key, its own keys, or `null`.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_package import Class, Package, constant

#: newer releases first
CLI = tuple(f"vllm.entrypoints.{where}.cli_args" for where in ("common", "launchers", "openai"))
ENGINE = "vllm.engine.arg_utils"
CONFIGS = ("vllm.config", "vllm.config.offload", "vllm.config.quantization")
DECORATORS = ("config", "dataclass")  #: what makes a class one of fields
PARSERS = {  #: functions that options are read by, and our names for them
    "human_readable_int": "count",
    "human_readable_int_or_auto": "length",
    "union_dict_and_str": "json or str",
    "parse_reasoning_parser": "str",
    "json.loads": "json",
    "lambda s: s.lower().replace('-', '_')": "word",
    **{name: name for name in ("str", "int", "float")},
}
IDS = "int(device_id) if device_id.isdigit() else device_id"
BOUNDS = ("ge", "gt", "le", "lt")
RENAMED = {("CacheConfig", "cache_dtype"): "kv_cache_dtype"}
SPECULATIVE = "SpeculativeConfig"  #: its option is parsed as a plain mapping
WITHIN = ("target_model_config", "target_parallel_config", "draft_model_config", "draft_parallel_config")
WHEN = {"LoRAConfig": "enable_lora"}  #: classes that exist only if an option is set
SOME = ("MultiModalConfig",)  #: classes that exist only for some models


@dataclass
class Hint:
    """A type, its union taken apart: names of plain types, words of literals, classes, element types."""

    names: set[str] = field(default_factory=set)
    words: list[Any] = field(default_factory=list)
    classes: list[Class] = field(default_factory=list)
    element: Hint | None = None  #: of a list, tuple or set
    bounds: dict[str, Any] = field(default_factory=dict)

    def join(self, other: Hint) -> Hint:
        self.names |= other.names
        self.words += [word for word in other.words if word not in self.words]
        self.classes += other.classes
        self.element = self.element or other.element
        self.bounds |= other.bounds
        return self


@dataclass(frozen=True)
class Field:
    name: str
    hint: Hint
    default: ast.expr | None


class Types:
    """Annotations of a package, and the classes whose fields they describe."""

    def __init__(self, package: Package) -> None:
        self.package = package

    def fields(self, found: Class) -> list[Field]:
        """In the order of `dataclasses.fields`: those of the bases first."""
        result: dict[str, Field] = {}
        for each in reversed(self.package.lineage(found)):
            for statement in each.node.body:
                if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
                    continue
                if "InitVar" in ast.dump(statement.annotation) or "ClassVar" in ast.dump(statement.annotation):
                    continue
                name = statement.target.id
                result[name] = Field(name, self.hint(each.module, statement.annotation), statement.value)
        return list(result.values())

    def hint(self, module: str, node: ast.expr) -> Hint:
        match node:
            case ast.Constant(value=None):
                return Hint(names={"None"})
            case ast.Constant(value=str(text)):
                return self.hint(module, ast.parse(text, mode="eval").body)
            case ast.BinOp(op=ast.BitOr(), left=left, right=right):
                return self.hint(module, left).join(self.hint(module, right))
            case ast.Subscript(value=value, slice=inner):
                return self._generic(module, value, inner)
            case ast.Name(id=name):
                return self._named(module, name)
            case ast.Attribute():
                found = self.package.class_of(module, node)
                return Hint(names={"other"}) if found is None else self._class(found)
        return Hint(names={"other"})

    def _generic(self, module: str, value: ast.expr, inner: ast.expr) -> Hint:
        name = ast.unparse(value).rpartition(".")[2]
        parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
        if name == "Literal":
            return Hint(words=list(dict.fromkeys(word for part in parts for word in self._words(module, part))))
        if name == "Annotated":
            hint = self.hint(module, parts[0])
            for part in parts[1:]:
                hint.bounds |= bounds(part)
            return hint
        if name == "SkipValidation":
            return self.hint(module, inner)
        if name in ("Optional", "Union"):
            hint = Hint(names={"None"}) if name == "Optional" else Hint()
            for part in parts:
                hint.join(self.hint(module, part))
            return hint
        if name in ("list", "tuple", "set"):
            return Hint(names={name}, element=self.hint(module, parts[0]))
        return Hint(names={name if name == "dict" else "other"})

    def _words(self, module: str, node: ast.expr) -> list[Any]:
        if isinstance(node, ast.Constant):
            return [node.value]
        return self.hint(module, node).words  # a literal of literals, spread or nested

    def _named(self, module: str, name: str) -> Hint:
        if name in ("bool", "int", "float", "str", "dict", "list", "tuple", "set"):
            return Hint(names={name})
        found = self.package.resolve(module, name)
        if found is None:
            return Hint(names={"other"})
        where, statement = found
        if isinstance(statement, ast.ClassDef):
            return self._class(Class(where, statement))
        value = getattr(statement, "value", None)
        return Hint(names={"other"}) if value is None else self.hint(where, value)

    def _class(self, found: Class) -> Hint:
        bases = {ast.unparse(base) for each in self.package.lineage(found) for base in each.node.bases}
        if any(base == "dict" or base.startswith("dict[") for base in bases):
            return Hint(names={"dict"})
        return Hint(names={"other"}, classes=[found])

    def is_config(self, found: Class) -> bool:
        decorators = (node.func if isinstance(node, ast.Call) else node for node in found.node.decorator_list)
        return any(ast.unparse(node).rpartition(".")[2] in DECORATORS for node in decorators)

    def config_of(self, hint: Hint) -> Class | None:
        return next((found for found in hint.classes if self.is_config(found)), None)

    def enumerated(self, found: Class) -> list[tuple[str, int]]:
        """Names and values of an `IntEnum`, empty for any other class."""
        if not any(ast.unparse(base).endswith("IntEnum") for base in found.node.bases):
            return []
        values = [(name, constant(value)) for name, value in found.assigned()]
        return [(name, value) for name, value in values if isinstance(value, int)]

    def words(self, hint: Hint, *, by_name: bool = False) -> list[str] | None:
        """What a field of literals or of named whole numbers takes; `None` if anything else."""
        if hint.names - {"None", "other"} or (not hint.words and not hint.classes):
            return None
        numbered = [self.enumerated(found) for found in hint.classes]
        if not all(numbered) or ("other" in hint.names and not hint.classes):
            return None
        words = [str(word) for word in hint.words if not isinstance(word, bool)]
        for members in numbered:
            words += [str(value) for _, value in members]
            words += [name for name, _ in members if by_name]
        return words or None

    def keys(self, found: Class) -> dict[str, Any]:
        """The keys of a configuration class, each with its words, its own keys, or nothing."""
        result: dict[str, Any] = {}
        for each in self.fields(found):
            if each.name.startswith("_") or each.name in WITHIN or not _is_argument(each.default):
                continue
            inner = self.config_of(each.hint)
            words = self.words(each.hint, by_name=True)
            result[each.name] = self.keys(inner) if inner else words and sorted(words)
        return result


def _is_argument(default: ast.expr | None) -> bool:
    """Not `field(init=False)`."""
    if not isinstance(default, ast.Call):
        return True
    return not any(word.arg == "init" and constant(word.value) is False for word in default.keywords)


def bounds(node: ast.expr | None) -> dict[str, Any]:
    """The numbers of `Field(..., ge=0)`."""
    if not isinstance(node, ast.Call):
        return {}
    found = {word.arg: constant(word.value) for word in node.keywords if word.arg in BOUNDS}
    return {name: found[name] for name in BOUNDS if found.get(name) is not None}


# -- What `_compute_kwargs` makes of a field


def kwargs_of(types: Types, each: Field) -> dict[str, Any]:
    """The arguments of `add_argument`, in our words."""
    hint = each.hint
    names, optional = hint.names, "None" in hint.names
    found: dict[str, Any]
    if (config := types.config_of(hint)) is not None:
        found = {"kind": "config", "config": config}
    elif names == {"bool", "str", "None"}:
        return {"kind": "str", "nargs": "?"}
    elif "bool" in names:
        return {"kind": "switch"}
    elif hint.words:
        found = _literal(hint)
    elif hint.element is not None and names & {"list", "tuple", "set"}:
        found = _collection(hint)
    elif "int" in names:
        found = {"kind": "length" if each.name == "max_model_len" else "int"}
    elif "float" in names:
        found = {"kind": "float"}
    elif "dict" in names:
        found = {"kind": "json or str" if names & {"str", "other"} else "json"}
    else:
        found = {"kind": "str"}
    return {**found, "optional": True} if optional else found


def _literal(hint: Hint) -> dict[str, Any]:
    kind = type(hint.words[0]).__name__
    return {"kind": kind} if "str" in hint.names else {"kind": kind, "choices": sorted(hint.words)}


def _collection(hint: Hint) -> dict[str, Any]:
    inner = hint.element
    assert inner is not None
    if inner.words:
        return {**_literal(inner), "nargs": "+"}
    kind = next((name for name in ("str", "int", "float") if name in inner.names), "str")
    return {"kind": kind, "nargs": "+"}


# -- The calls of `add_argument`


class Reader:
    """One pass over a function that adds arguments."""

    def __init__(self, types: Types, module: str) -> None:
        self.types, self.module = types, module
        self.tables: dict[str, Any] = {}
        counts = types.package.names(module).get("_compute_kwargs")
        self.counts = set(_counted(counts)) if counts else set()

    def table(self, name: str) -> dict[str, dict[str, Any]]:
        """`get_kwargs(NAME)`."""
        found = self.types.package.class_of(self.module, name)
        assert found is not None, name
        table = {each.name: kwargs_of(self.types, each) for each in self.types.fields(found)}
        for key in self.counts & set(table):
            table[key]["kind"] = "count"
        return table

    def rows(self, function: ast.FunctionDef) -> Iterator[dict[str, Any]]:
        for statement in function.body:
            yield from self._statement(statement)

    def _statement(self, node: ast.stmt) -> Iterator[dict[str, Any]]:
        match node:
            case ast.If(body=body):
                for inner in body:
                    yield from self._statement(inner)
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                self.tables[name] = self._value(value)
            case ast.Assign(targets=[ast.Subscript(value=target, slice=ast.Constant(value="type"))], value=value):
                self._value(target).update(self._type(value))
            case ast.Expr(value=ast.Call(func=ast.Attribute(attr="remove", value=target), args=[word])):
                choices = self._choices(target)
                gone = self._constant(word)
                if choices is not None and gone in choices:
                    choices.remove(gone)
            case ast.Expr(value=ast.Call(func=ast.Attribute(attr="add_argument")) as call):
                row = self._row(call)
                if row is not None:
                    yield row

    def _choices(self, node: ast.expr) -> list[Any] | None:
        if isinstance(node, ast.Subscript) and constant(node.slice) == "choices":
            found: list[Any] | None = self._value(node.value).get("choices")
            return found
        return None

    def _value(self, node: ast.expr) -> Any:
        match node:
            case ast.Call(func=ast.Name(id="get_kwargs"), args=[ast.Name(id=name)]):
                return self.table(name)
            case ast.Subscript(value=value, slice=ast.Constant(value=key)):
                return self._value(value)[key]
            case ast.Name(id=name):
                return self.tables.get(name)
            case ast.Dict(keys=keys, values=values):
                spread = (self._value(value) for key, value in zip(keys, values, strict=True) if key is None)
                return {key: value for each in spread for key, value in each.items()}
        return None

    def _constant(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            found = self.types.package.resolve(self.module, node.id)
            return constant(getattr(found[1], "value", None)) if found else None
        return constant(node)

    def _type(self, node: ast.expr) -> dict[str, Any]:
        text = ast.unparse(node)
        if text.startswith("optional_type("):
            return {"kind": PARSERS[text[len("optional_type(") : -1]], "optional": True}
        return {"kind": "ids" if IDS in text else PARSERS[text]}

    def _row(self, call: ast.Call) -> dict[str, Any] | None:
        options = [option for node in call.args if (option := constant(node))]
        if not options[0].startswith("-"):
            return None
        found: dict[str, Any] = {"kind": "str"}
        dest = next(option for option in options if option.startswith("--"))[2:].replace("-", "_")
        for word in call.keywords:
            if word.arg is None:
                found |= self._value(word.value)
            elif word.arg == "action":
                action = ast.unparse(word.value)
                found["kind"] = {"'store_true'": "true", "argparse.BooleanOptionalAction": "switch"}.get(action, "str")
            elif word.arg == "type":
                found |= self._type(word.value)
            elif word.arg == "dest":
                dest = constant(word.value)
            elif word.arg == "choices":
                found["choices"] = self._words(word.value)
        return {"options": options, "dest": dest, **found}

    def _words(self, node: ast.expr) -> list[Any]:
        match node:
            case ast.Call(func=ast.Name(id="get_args"), args=[inner]):
                return self.types.hint(self.module, inner).words
            case ast.BinOp(left=left, op=ast.Add(), right=ast.IfExp()):  # the platform's own device
                return [*self._words(left), "cuda"]
        words: list[Any] = constant(node)
        return words


def _counted(function: ast.AST) -> Iterator[str]:
    """Fields that `_compute_kwargs` reads by `human_readable_int`: names in a set, or a tuple that `name` is looked up
    in."""
    for node in ast.walk(function):
        match node:
            case (
                ast.Set(elts=parts)
                | ast.Compare(left=ast.Name(id="name"), ops=[ast.In()], comparators=[ast.Tuple(elts=parts)])
            ):
                words = [constant(part) for part in parts]
                if all(isinstance(word, str) for word in words):
                    yield from words


def function(package: Package, module: str, name: str) -> ast.FunctionDef:
    owner, _, method = name.rpartition(".")
    body = package.tree(module).body  # type: ignore[union-attr]
    if owner:
        body = next(node for node in body if isinstance(node, ast.ClassDef) and node.name == owner).body
    return next(node for node in body if isinstance(node, ast.FunctionDef) and node.name == method)


def frontend(types: Types) -> Iterator[dict[str, Any]]:
    """The server's own options: a field each, and what `_customize_cli_kwargs` makes of some (before 0.14
    `add_cli_args` itself)."""
    module = next(name for name in CLI if types.package.tree(name) is not None)
    reader = Reader(types, module)
    yield from reader.rows(function(types.package, module, "make_arg_parser"))
    found = types.package.class_of(module, "FrontendArgs")
    assert found is not None
    table = {each.name: kwargs_of(types, each) for each in types.fields(found)}
    for owner in reversed(types.package.lineage(found)):
        for node in (part for method in _customizing(owner) for part in ast.walk(method)):
            match node:
                case ast.Assign(
                    targets=[ast.Subscript(value=ast.Subscript(slice=ast.Constant(value=name)), slice=key)]
                ):
                    if constant(key) == "type":
                        table[name].pop("optional", None)
                        table[name] |= reader._type(node.value)
                    elif constant(key) == "action" and constant(node.value) == "append":
                        table[name]["action"] = "append"
                case ast.Delete(targets=[ast.Subscript(ast.Subscript(slice=ast.Constant(value=name)))]):
                    table[name].pop("nargs", None)
    for name, entry in table.items():
        if entry.pop("action", None):
            entry = {"kind": "append"}
        yield {"options": ["--" + name.replace("_", "-")], "dest": name, **entry}


def _customizing(owner: Class) -> Iterator[ast.FunctionDef]:
    for node in owner.node.body:
        if isinstance(node, ast.FunctionDef) and node.name in ("_customize_cli_kwargs", "add_cli_args"):
            yield node


def engine(types: Types) -> Iterator[dict[str, Any]]:
    reader = Reader(types, ENGINE)
    yield from reader.rows(function(types.package, ENGINE, "EngineArgs.add_cli_args"))
    yield from reader.rows(function(types.package, ENGINE, "AsyncEngineArgs.add_cli_args"))


# -- What configuration classes allow


def add_limits(types: Types, rows: dict[str, dict[str, Any]]) -> None:
    configs: dict[str, Class] = {}
    for module in CONFIGS:
        for name in types.package.names(module):
            found = types.package.class_of(module, name) if name.endswith(("Config", "ConfigArgs")) else None
            if found is not None and types.is_config(found):
                configs.setdefault(name, found)
    rows["speculative_config"]["keys"] = types.keys(configs[SPECULATIVE])
    for name, found in configs.items():
        if name in (SPECULATIVE, *SOME):
            continue
        for each in types.fields(found):
            row = rows.get(RENAMED.get((name, each.name), each.name))
            if row is None or "keys" in row or not _is_argument(each.default):
                continue
            limits = {**each.hint.bounds, **bounds(each.default)}
            limits = {bound: limits[bound] for bound in BOUNDS if bound in limits}
            words = types.words(each.hint)
            if words and "choices" not in row:
                limits["one_of"] = sorted(words)
            if limits:
                row["limits"] = limits
                if name in WHEN:
                    row["when"] = WHEN[name]


ORDER = ("options", "dest", "kind", "optional", "nargs", "choices", "frontend", "keys", "limits", "when")


def rows_of(package: Package) -> list[dict[str, Any]]:
    """Every option, in the order of `--help`."""
    types = Types(package)
    rows = [{**row, "frontend": True} for row in frontend(types)] + list(engine(types))
    for row in rows:
        if (config := row.pop("config", None)) is not None and row["kind"] == "config":
            row["keys"] = types.keys(config)
    add_limits(types, {row["dest"]: row for row in rows})
    return [{key: row[key] for key in ORDER if key in row} for row in rows]


def defaults_of(package: Package) -> dict[str, Any]:
    """What engine options are without being given, where that is a literal."""
    types = Types(package)
    found = package.class_of(ENGINE, "EngineArgs")
    assert found is not None
    values = ((each.name, _default(types, ENGINE, each.default)) for each in types.fields(found))
    return {name: value for name, value in values if value is not UNKNOWN}


UNKNOWN = object()


def _default(types: Types, module: str, node: ast.expr | None) -> Any:
    """The value of a field's default: a literal, one in `Field(...)`, or the default of another class's field."""
    match node:
        case None:
            return UNKNOWN
        case (
            ast.Attribute(value=ast.Name(), attr=name)
            | ast.Call(func=ast.Name(id="get_field"), args=[ast.Name(), ast.Constant(value=name)])
        ):
            owner = node.value if isinstance(node, ast.Attribute) else node.args[0]
            found = types.package.class_of(module, owner)
            fields = {each.name: each.default for each in types.fields(found)} if found else {}
            return _default(types, found.module, fields.get(name)) if found else UNKNOWN
        case ast.Call(keywords=words):
            named = {word.arg: word.value for word in words}
            return _default(types, module, named.get("default"))
    try:
        return ast.literal_eval(node)
    except ValueError:
        return UNKNOWN


def flags(package: Package) -> str:
    """The text of `flags-VERSION.json`."""
    lines = ",\n  ".join(map(json.dumps, rows_of(package)))
    made = f"tools/gen/vllm_flags.py from vLLM {package.version}: do not edit"
    head = {"generated": made, "version": package.version, "program": "vllm serve"}
    return json.dumps(head)[:-1] + f',\n "options": [\n  {lines}\n]}}'


def main() -> None:
    print(flags(Package(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
