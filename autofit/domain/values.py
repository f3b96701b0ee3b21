"""`dataclass` as the standard library has it, for a program that starts often and lives short.

The standard library compiles six methods for every class at import, which was the larger half of a cold start here.
These classes are dataclasses for `fields`, `replace`, `asdict` and type checkers alike, but share their methods, and
their `__init__` is compiled when several instances have been made. `InitVar` and the options that nobody uses here
are left out.
"""

from __future__ import annotations

import dataclasses
from collections import namedtuple
from collections.abc import Callable
from dataclasses import MISSING, Field, FrozenInstanceError, field, fields, replace
from inspect import get_annotations
from operator import attrgetter
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any, TypeVar

__all__ = ["NamedTuple", "dataclass", "field", "fields", "replace"]

_T = TypeVar("_T")

if TYPE_CHECKING:
    from dataclasses import dataclass
    from typing import NamedTuple
else:

    class _NamedTupleMeta(type):
        """Makes a class with annotations a named tuple, as `typing` does, which compiles every annotation first."""

        def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type[tuple[Any, ...]]:
            names = tuple(body["__annotations__"])
            defaults = [body[field_name] for field_name in names if field_name in body]
            made = namedtuple(name, names, defaults=defaults, module=body["__module__"])
            for key, value in body.items():
                if key not in names:
                    setattr(made, key, value)
            return made

    NamedTuple = type.__new__(_NamedTupleMeta, "NamedTuple", (), {})

    def dataclass(cls=None, /, *, frozen: bool = False, slots: bool = False, kw_only: bool = False):
        """`dataclasses.dataclass` with the options that are used here."""

        def make(cls: type[_T]) -> type[_T]:
            own = frozenset(vars(cls))
            cls.__doc__ = cls.__doc__ or cls.__name__  # else the signature is rendered for it
            if "__eq__" in own and vars(cls)["__hash__"] is None:  # Python's own doing, not the author's
                own -= {"__hash__"}
            plain = dataclasses.dataclass(init=False, repr=False, eq=False, slots=slots, kw_only=kw_only)
            made = _unparsed(plain, cls)
            for name, method in (_FROZEN if frozen else _OPEN).items():
                if name not in own:
                    setattr(made, name, method)
            if "__init__" not in own:
                made.__init__ = _first_init(made, frozen)
            return made

        return make if cls is None else make(cls)


def _unparsed(make: Callable[[type[Any]], type[Any]], cls: type[Any]) -> type[Any]:
    """`make(cls)`, which parses every annotation three times to see whether it is a field; here all are but class
    variables."""
    annotations = get_annotations(cls)
    cls.__annotations__ = {
        name: object if isinstance(text, str) and "ClassVar" not in text else text for name, text in annotations.items()
    }
    made = make(cls)
    made.__annotations__ = annotations
    for f in fields(made):
        f.type = annotations.get(f.name, f.type)
    return made


_UNCOMPILED = 4  #: instances made without a compiled `__init__`: most classes never need more


def _first_init(cls: type[Any], frozen: bool) -> Callable[..., None]:
    """An `__init__` that looks the fields up, until compiling one pays."""
    left = _UNCOMPILED

    def __init__(self: Any, *args: Any, **given: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0 or args or not _set_plainly(self, fields(cls), given):
            cls.__init__ = _init(cls, frozen)
            cls.__init__(self, *args, **given)

    return __init__


def _set_plainly(self: Any, known: tuple[Field[Any], ...], given: dict[str, Any]) -> bool:
    """Whether `given` were fields and no field is left without a value; if so, all are set."""
    n_given = 0
    for f in known:
        if not f.init:
            return False
        if f.name in given:
            value = given[f.name]
            n_given += 1
        elif f.default is not MISSING:
            value = f.default
        elif f.default_factory is not MISSING:
            value = f.default_factory()
        else:
            return False
        object.__setattr__(self, f.name, value)
    if n_given != len(given):
        return False
    if hasattr(self, "__post_init__"):
        self.__post_init__()
    return True


def _init(cls: type[Any], frozen: bool) -> Callable[..., None]:
    """The `__init__` of the fields of `cls`, compiled. Names of fields are identifiers, and so safe in source."""
    scope: dict[str, Any] = {"_set": object.__setattr__, "_missing": MISSING}
    ordered: list[str] = []
    by_keyword: list[str] = []
    body: list[str] = []
    for f in fields(cls):
        parameter, value = f.name, f.name
        if f.default_factory is not MISSING:
            scope[f"_new_{f.name}"] = f.default_factory
            parameter = f"{f.name}=_missing"
            value = f"_new_{f.name}() if {f.name} is _missing else {f.name}" if f.init else f"_new_{f.name}()"
        elif f.default is not MISSING:
            scope[f"_default_{f.name}"] = f.default
            parameter = f"{f.name}=_default_{f.name}"
            value = f.name if f.init else f"_default_{f.name}"
        elif not f.init:
            continue
        if f.init:
            (by_keyword if f.kw_only else ordered).append(parameter)
        body.append(f"_set(self, {f.name!r}, {value})" if frozen else f"self.{f.name} = {value}")
    if hasattr(cls, "__post_init__"):
        body.append("self.__post_init__()")
    parameters = ", ".join(["self", *ordered, *(["*", *by_keyword] if by_keyword else [])])
    exec(f"def __init__({parameters}):\n " + "\n ".join(body or ["pass"]), scope)  # noqa: S102 - identifiers only
    init: Callable[..., None] = scope["__init__"]
    init.__qualname__ = f"{cls.__qualname__}.__init__"
    return init


_getters: dict[type[Any], Callable[[Any], Any]] = {}


def _values(self: Any) -> Any:
    """What is compared and hashed, by a getter that is made once for a class: values are keys in hot loops."""
    get = _getters.get(self.__class__)
    if get is None:
        names = [f.name for f in fields(self) if f.compare]
        get = attrgetter(*names) if len(names) > 1 else _few(names)
        _getters[self.__class__] = get
    return get(self)


def _few(names: list[str]) -> Callable[[Any], tuple[Any, ...]]:
    """A getter that gives a tuple of one value or none as well."""
    return lambda self: tuple(getattr(self, name) for name in names)


def _eq(self: Any, other: object) -> bool:
    return _values(self) == _values(other) if other.__class__ is self.__class__ else NotImplemented


def _hash(self: Any) -> int:
    return hash(_values(self))


@recursive_repr()
def _repr(self: Any) -> str:
    shown = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.repr)
    return f"{type(self).__qualname__}({shown})"


def _refuse_set(self: Any, name: str, value: object) -> None:
    if _is_frozen(self, name):
        raise FrozenInstanceError(f"cannot assign to field {name!r}")
    object.__setattr__(self, name, value)


def _refuse_delete(self: Any, name: str) -> None:
    if _is_frozen(self, name):
        raise FrozenInstanceError(f"cannot delete field {name!r}")
    object.__delattr__(self, name)


def _is_frozen(self: Any, name: str) -> bool:
    """Whether `name` is fixed: all is, but what a plain subclass has beside the fields."""
    return name in self.__dataclass_fields__ or "__dataclass_fields__" in vars(type(self))


def _state(self: Any) -> list[Any]:
    return [getattr(self, f.name) for f in fields(self)]


def _restore(self: Any, state: list[Any]) -> None:
    for f, value in zip(fields(self), state, strict=True):
        object.__setattr__(self, f.name, value)


_OPEN: dict[str, Any] = {"__eq__": _eq, "__repr__": _repr, "__hash__": None}
_FROZEN: dict[str, Any] = {
    "__eq__": _eq,
    "__repr__": _repr,
    "__hash__": _hash,
    "__setattr__": _refuse_set,
    "__delattr__": _refuse_delete,
    "__getstate__": _state,
    "__setstate__": _restore,
}
