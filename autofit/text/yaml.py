"""YAML by PyYAML, in bounded time and memory: as plain values, or with the line of every value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from autofit.domain.text import printable
from autofit.errors import UsageError

YamlNode = Any  #: of PyYAML, which is imported where it is used

MAX_NODES = 100_000
MAX_DEPTH = 64


class Node(NamedTuple):
    """A value as YAML writes it: text (`None`: null), a list of nodes, or a mapping of nodes by their keys."""

    value: str | list[Node] | dict[str, Node] | None
    line: int

    def get(self, *keys: str) -> Node:
        """The node under these keys; an empty one where a key is not there."""
        found = self
        for key in keys:
            found = found.value.get(key, _NOTHING) if isinstance(found.value, dict) else _NOTHING
        return found

    @property
    def text(self) -> str | None:
        return self.value if isinstance(self.value, str) else None

    @property
    def items(self) -> list[Node]:
        return self.value if isinstance(self.value, list) else []

    @property
    def pairs(self) -> Mapping[str, Node]:
        return self.value if isinstance(self.value, dict) else {}

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(item.text or "" for item in self.items)


_NOTHING = Node(None, 0)


def documents(text: str) -> list[Node]:
    """The documents of a YAML text, `<<` merged, each scalar as it is written.

    Raises:
        UsageError: it is no YAML, or nested, or long, beyond reason.
    """
    with _reading() as yaml:
        loader = _loader(yaml)
        _check_size(yaml, text, loader)
        return [_Reader().read(node) for node in yaml.compose_all(text, Loader=loader) if node is not None]


def load(text: str) -> Any:
    """The plain value of a YAML text of one document, as `yaml.safe_load` makes it.

    Raises:
        UsageError: as `documents`; what aliases repeat counts as often as it stands there.
    """
    with _reading() as yaml:
        loader = _loader(yaml)
        _check_size(yaml, text, loader)
        node = yaml.compose(text, Loader=loader)
        if node is not None and _n_nodes(node, {}) > MAX_NODES:
            raise UsageError(f"aliases make more than {MAX_NODES} values of this YAML")
        return yaml.load(text, Loader=loader)  # a safe loader


def _loader(yaml: Any) -> Any:
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@contextmanager
def _reading() -> Iterator[Any]:
    """PyYAML, whose errors are ours."""
    import yaml

    try:
        yield yaml
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        said = getattr(error, "problem", None) or str(error)
        raise UsageError(f"{where}not YAML: {printable(str(said), 200)}") from None
    except (RecursionError, ValueError, OverflowError) as error:  # a date or a number that is none
        raise UsageError(f"not YAML: {printable(str(error), 200)}") from None


def _check_size(yaml: Any, text: str, loader: Any) -> None:
    """Refuse what would be deep, or more values than a deployment has, before anything is built of it."""
    depth = 0
    for n_nodes, event in enumerate(yaml.parse(text, Loader=loader)):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH or n_nodes > MAX_NODES:
            raise UsageError(f"line {event.start_mark.line + 1}: YAML beyond {MAX_DEPTH} levels or {MAX_NODES} values")


def _n_nodes(node: YamlNode, known: dict[int, int]) -> int:
    """How many values a node comes to where every alias is written out."""
    if id(node) not in known:
        known[id(node)] = MAX_NODES + 1  # of a value that holds itself
        children = node.value if isinstance(node.value, list) else []
        flat = [child for one in children for child in (one if isinstance(one, tuple) else (one,))]
        known[id(node)] = 1 + sum(_n_nodes(child, known) for child in flat)
    return known[id(node)]


class _Reader:
    """One document; a node that several aliases name is read once."""

    def __init__(self) -> None:
        self.known: dict[int, Node] = {}
        self.open: set[int] = set()

    def read(self, node: YamlNode) -> Node:
        if id(node) in self.known:
            return self.known[id(node)]
        line = node.start_mark.line + 1
        if id(node) in self.open:
            raise UsageError(f"line {line}: a value that holds itself")
        self.open.add(id(node))
        found = Node(self._value(node), line)
        self.open.discard(id(node))
        self.known[id(node)] = found
        return found

    def _value(self, node: YamlNode) -> str | list[Node] | dict[str, Node] | None:
        if node.id == "scalar":
            return None if node.tag.endswith(":null") else str(node.value)
        if node.id == "sequence":
            return [self.read(item) for item in node.value]
        merged: dict[str, Node] = {}
        own: dict[str, Node] = {}
        for key, value in node.value:
            if key.id != "scalar":
                continue
            if key.tag.endswith(":merge"):
                for other in self._merged(self.read(value)):
                    merged = {**other, **merged}
            else:
                own[str(key.value)] = self.read(value)
        return {**merged, **own}

    def _merged(self, node: Node) -> Iterator[Mapping[str, Node]]:
        yield from (item.pairs for item in (node.items or [node]))
