"""A published vLLM package read without importing it: modules as syntax trees, names followed to their classes.

    package = Package(Path("vllm-0.33.0-cp38-abi3-manylinux_2_28_x86_64.whl"))   # or an sdist, or a directory

`pip download --no-deps vllm==0.33.0` fetches one; nothing of it is executed.
"""

from __future__ import annotations

import ast
import functools
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCKERFILE = "docker/Dockerfile"  #: of the published image; sdists have it, wheels do not


@dataclass(frozen=True)
class Class:
    """A class statement, and the module whose names it uses."""

    module: str
    node: ast.ClassDef

    @property
    def name(self) -> str:
        return self.node.name

    def assigned(self) -> Iterator[tuple[str, ast.expr | None]]:
        """Class-level names with their values; annotations alone have none."""
        for statement in self.node.body:
            if isinstance(statement, ast.Assign):
                yield from (
                    (target.id, statement.value) for target in statement.targets if isinstance(target, ast.Name)
                )
            elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                yield statement.target.id, statement.value


class Package:
    """Every source file of one distribution."""

    def __init__(self, path: Path) -> None:
        self.files = dict(_sources(path))  #: sources by path, and the Dockerfile where there is one
        self.version = next(iter(_versions(path)), None)

    @functools.cache  # noqa: B019 (one package per run)
    def tree(self, module: str) -> ast.Module | None:
        """The module's statements; `None`: it is not part of this package."""
        path = module.replace(".", "/")
        text = self.files.get(f"{path}.py") or self.files.get(f"{path}/__init__.py")
        return None if text is None else ast.parse(text)

    def is_package(self, module: str) -> bool:
        return f"{module.replace('.', '/')}/__init__.py" in self.files

    @functools.cache  # noqa: B019
    def names(self, module: str) -> dict[str, ast.stmt]:
        """What a module binds at its top level: the last statement for each name."""
        tree = self.tree(module)
        return {} if tree is None else dict(_bindings(tree.body))

    def resolve(self, module: str, name: str, depth: int = 0) -> tuple[str, ast.stmt] | None:
        """The statement that makes `name` what it is, imports followed within the package."""
        if depth > 30:
            return None
        statement = self.names(module).get(name)
        if statement is None:
            starred = (self.resolve(source, name, depth + 1) for source in self._starred(module))
            found = next((each for each in starred if each is not None), None)
            lazily = found is None and "__getattr__" in self.names(module)
            return self._lazy(module, name, depth) if lazily else found
        if not isinstance(statement, ast.ImportFrom):
            return module, statement
        alias = next(alias for alias in statement.names if (alias.asname or alias.name) == name)
        source = self._absolute(module, statement)
        return self.resolve(source, alias.name, depth + 1)

    def _starred(self, module: str) -> Iterator[str]:
        """Modules of which all names are taken over."""
        tree = self.tree(module)
        for statement in tree.body if tree else ():
            if isinstance(statement, ast.ImportFrom) and statement.names[0].name == "*":
                yield self._absolute(module, statement)

    def _lazy(self, module: str, name: str, depth: int) -> tuple[str, ast.stmt] | None:
        """A name that a module looks up when it is asked for: the submodule that has it."""
        prefix = module.replace(".", "/") + "/"
        for path in sorted(self.files):
            if path.startswith(prefix) and path.count("/") <= prefix.count("/") + 2:
                inner = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
                if inner != module and isinstance(self.names(inner).get(name), ast.ClassDef):
                    return self.resolve(inner, name, depth + 1)
        return None

    def _absolute(self, module: str, statement: ast.ImportFrom) -> str:
        if not statement.level:
            return statement.module or ""
        parts = module.split(".")
        keep = len(parts) - statement.level + self.is_package(module)
        return ".".join([*parts[:keep], *([statement.module] if statement.module else [])])

    def class_of(self, module: str, expression: str | ast.expr) -> Class | None:
        """The class that an expression of a module names; one that a function wraps is looked through."""
        if isinstance(expression, ast.Subscript):
            expression = expression.value
        if isinstance(expression, ast.Attribute) and isinstance(expression.value, ast.Name):
            imported = self.names(module).get(expression.value.id)
            if isinstance(imported, ast.ImportFrom):
                return self.class_of(f"{self._absolute(module, imported)}.{expression.value.id}", expression.attr)
            return None
        name = expression.id if isinstance(expression, ast.Name) else expression
        if not isinstance(name, str):
            return None
        found = self.resolve(module, name)
        if found is None:
            return None
        where, statement = found
        if isinstance(statement, ast.ClassDef):
            return Class(where, statement)
        if isinstance(statement, ast.Assign):
            value = statement.value
            if isinstance(value, ast.Call) and value.args:  # NewClass = as_seq_cls_model(Base)
                value = value.args[0]
            return self.class_of(where, value) if isinstance(value, ast.Name) else None
        return None

    @functools.cache  # noqa: B019
    def lineage(self, found: Class) -> tuple[Class, ...]:
        """The class and those it derives from, in the order in which Python looks (C3, as far as the package
        goes)."""
        bases = [base for node in found.node.bases if (base := self.class_of(found.module, node)) is not None]
        return (found, *_merged([list(self.lineage(base)) for base in bases] + [bases]))


def _merged(sequences: list[list[Class]]) -> list[Class]:
    result: list[Class] = []
    while sequences := [s for s in sequences if s]:
        heads = [s[0] for s in sequences]
        best = next((h for h in heads if not any(h in s[1:] for s in sequences)), heads[0])
        result.append(best)
        sequences = [[c for c in s if c != best] for s in sequences]
    return result


def _bindings(body: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    for statement in body:
        match statement:
            case ast.ClassDef() | ast.FunctionDef():
                yield statement.name, statement
            case ast.ImportFrom():
                yield from ((alias.asname or alias.name, statement) for alias in statement.names)
            case ast.Assign():
                yield from ((target.id, statement) for target in statement.targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name, statement
            # What is left when no other platform is asked for is CUDA's; what is left of `TYPE_CHECKING` is what runs.
            case ast.If():
                yield from _bindings(statement.body)
                yield from _bindings(statement.orelse)
            case ast.Try():
                yield from _bindings(statement.body)


def constant(node: ast.expr | None) -> Any:
    """The value of a literal; `None` for anything that would have to be run."""
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None


def _sources(path: Path) -> Iterator[tuple[str, str]]:
    """`vllm/...py` with its text, from a wheel, an sdist or a directory."""
    if path.is_dir():
        root = path if (path / "vllm").is_dir() else path.parent
        for file in (*sorted((root / "vllm").rglob("*.py")), *root.glob(DOCKERFILE)):
            yield file.relative_to(root).as_posix(), file.read_text("utf-8")
    elif path.name.endswith(".whl"):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.startswith("vllm/") and name.endswith(".py"):
                    yield name, archive.read(name).decode("utf-8")
    else:
        with tarfile.open(path) as archive:
            for member in archive:
                _, _, name = member.name.partition("/")
                if member.isfile() and (name == DOCKERFILE or (name.startswith("vllm/") and name.endswith(".py"))):
                    stream = archive.extractfile(member)
                    assert stream is not None
                    yield name, stream.read().decode("utf-8")


def _versions(path: Path) -> Iterator[str]:
    """The version in the name of the file, or of the directory's metadata."""
    names = [path.name, *(sorted(p.name for p in path.glob("vllm-*.dist-info")) if path.is_dir() else [])]
    for name in names:
        if name.startswith("vllm-"):
            yield name.removeprefix("vllm-").partition("-")[0].removesuffix(".tar.gz").removesuffix(".dist")
