"""YAML with the line of every value, read by PyYAML's composer: no tag makes an object, no alias is copied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from autofit.domain.text import printable
from autofit.errors import UsageError

if TYPE_CHECKING:
    from yaml.nodes import Node as YamlNode

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
    """The documents of a YAML text, `<<` merged.

    Raises:
        UsageError: it is no YAML, or nested, or long, beyond reason.
    """
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _check_depth(yaml, text, loader)
        return [_Reader().read(node) for node in yaml.compose_all(text, Loader=loader) if node is not None]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        said = getattr(error, "problem", None) or str(error)
        raise UsageError(f"{where}not YAML: {printable(str(said), 200)}") from None
    except RecursionError:
        raise UsageError("YAML nested beyond reason") from None


def _check_depth(yaml: Any, text: str, loader: Any) -> None:
    """Refuse what would be deep, or more values than a deployment has, before anything is built of it."""
    depth = n_nodes = 0
    for event in yaml.parse(text, Loader=loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        n_nodes += 1
        if depth > MAX_DEPTH or n_nodes > MAX_NODES:
            raise UsageError(f"line {event.start_mark.line + 1}: YAML beyond {MAX_DEPTH} levels or {MAX_NODES} values")


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
