"""`dataclass` and `NamedTuple` as the standard library has them, for a program that starts often and lives short.

The standard library compiles six methods for every class at import, and loads `inspect` to do it; both together were
the larger half of a cold start here. These classes are dataclasses for `fields`, `replace`, `asdict` and type checkers
alike, but share their methods; their `__init__` is compiled when several instances have been made, and the standard
library is not asked until somebody asks it about them. `InitVar` and the options that nobody uses here are left out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter, itemgetter
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any, TypeVar

__all__ = ["MISSING", "NamedTuple", "dataclass", "field", "fields", "is_dataclass", "replace"]

_T = TypeVar("_T")
_UNCOMPILED = 64  #: instances made without a compiled `__init__`: compiling takes as long as it saves for so many
_UNCOMPILED_TUPLES = 16  #: the same of named tuples
_set = object.__setattr__

if TYPE_CHECKING:
    from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
    from typing import NamedTuple
else:

    class _Missing:
        """What a field without a default has for one."""

        def __repr__(self) -> str:
            return "MISSING"

    MISSING = _Missing()

    class Field:
        """One field of a class of ours; its attributes are those of `dataclasses.Field`."""

        __slots__ = ("compare", "default", "default_factory", "init", "kw_only", "name", "repr", "type")

        def __init__(self, default: Any, default_factory: Any, init: bool, repr_: bool, compare: bool) -> None:
            self.name = ""
            self.type: Any = None
            self.default = default
            self.default_factory = default_factory
            self.init = init
            self.repr = repr_
            self.compare = compare
            self.kw_only = False

    def field(*, default=MISSING, default_factory=MISSING, init=True, repr=True, compare=True):
        """`dataclasses.field` with the options that are used here."""
        return Field(default, default_factory, init, repr, compare)

    def fields(class_or_instance):
        """The fields of a class of ours, or of any dataclass, in order.

        Raises:
            TypeError: it is no dataclass.
        """
        cls = class_or_instance if isinstance(class_or_instance, type) else type(class_or_instance)
        for own in map(vars, cls.__mro__):
            if "__fields__" in own:
                return own["__fields__"]
            if "__dataclass_fields__" in own:
                break
        import dataclasses

        return dataclasses.fields(class_or_instance)

    def is_dataclass(obj):
        """Whether this is a dataclass of ours, or a value of one."""
        return hasattr(obj, "__fields__")

    def replace(obj, /, **changes):
        """A copy of a value with some fields changed, as `dataclasses.replace` makes it."""
        for f in fields(obj):
            if not f.init:
                if f.name in changes:
                    raise ValueError(
                        f"field {f.name} is declared with init=False, it cannot be specified with replace()"
                    )
            elif f.name not in changes:
                changes[f.name] = getattr(obj, f.name)
        return obj.__class__(**changes)

    def dataclass(cls=None, /, *, frozen: bool = False, slots: bool = False, kw_only: bool = False):
        """`dataclasses.dataclass` with the options that are used here."""

        def make(cls: type[_T]) -> type[_T]:
            own = frozenset(vars(cls))
            cls.__doc__ = cls.__doc__ or cls.__name__
            if "__eq__" in own and vars(cls)["__hash__"] is None:  # Python's own doing, not the author's
                own -= {"__hash__"}
            known = _collect(cls, kw_only)
            owner: list[type[Any]] = []
            body = {
                "__fields__": known,
                "__dataclass_fields__": _Standard("__dataclass_fields__", frozen),
                "__dataclass_params__": _Standard("__dataclass_params__", frozen),
            }
            methods = {
                "__match_args__": tuple(f.name for f in known if f.init and not f.kw_only),
                "__init__": _first_init(owner, known, frozen, has_more=hasattr(cls, "__post_init__")),
                **(_FROZEN if frozen else _OPEN),
            }
            body |= {name: method for name, method in methods.items() if name not in own}
            if slots:
                cls = _with_slots(cls, known, body)
            else:
                for name, value in body.items():
                    setattr(cls, name, value)
            owner.append(cls)
            return cls

        return make if cls is None else make(cls)

    class _NamedTupleMeta(type):
        """Makes a class with annotations a named tuple, as `typing` does, which compiles every annotation first."""

        def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type[tuple[Any, ...]]:
            names = tuple(body["__annotations__"])
            defaults = {field_name: body[field_name] for field_name in names if field_name in body}
            made: dict[str, Any] = {
                "__slots__": (),
                "_fields": names,
                "_field_defaults": defaults,
                "__match_args__": names,
                "__doc__": f"{name}({', '.join(names)})",
                **_TUPLE,
            }
            made |= {key: value for key, value in body.items() if key not in names}
            for i, field_name in enumerate(names):
                made[field_name] = _item(i, f"Alias for field number {i}")
            new = type(name, (tuple,), made)
            new.__new__ = _first_new(new, names, defaults)
            return new

    NamedTuple = type.__new__(_NamedTupleMeta, "NamedTuple", (), {})


_field: Any = Field

# -- fields ---------------------------------------------------------------------------------------------------


def _collect(cls: type[Any], kw_only: bool) -> tuple[Any, ...]:
    """The fields of a class, those of its bases first; what is left of their defaults stays with the class.

    Annotations are not parsed: every one is a field but those that name a class variable.
    """
    found: dict[str, Any] = {}
    for base in cls.__mro__[-1:0:-1]:
        if "__dataclass_fields__" in vars(base):
            found |= {f.name: _ours(f) for f in fields(base)}
    for name, text in vars(cls).get("__annotations__", {}).items():
        if isinstance(text, str) and "ClassVar" in text:
            continue
        f = _field_of(cls, name)
        f.name, f.type, f.kw_only = name, text, kw_only
        found[name] = f
    return tuple(found.values())


def _field_of(cls: type[Any], name: str) -> Any:
    """What the body of a class says about one field: nothing, a default, or a `field` of ours or theirs."""
    default = vars(cls).get(name, MISSING)
    f = _ours(default)
    if f is None:
        f = _field(default, MISSING, True, True, True)
    elif f.default is MISSING:
        delattr(cls, name)
    else:
        setattr(cls, name, f.default)
    if f.default.__class__.__hash__ is None:
        raise ValueError(f"mutable default {type(f.default)} for field {name} is not allowed: use default_factory")
    return f


def _ours(value: Any) -> Any:
    """A `Field`, or what a field of the standard library says as one; None for anything else."""
    if isinstance(value, Field):
        return value
    standard = sys.modules.get("dataclasses")
    if standard is None or not isinstance(value, standard.Field):
        return None
    defaults = (MISSING if x is standard.MISSING else x for x in (value.default, value.default_factory))
    made = _field(*defaults, value.init, value.repr, value.compare)
    made.name, made.type, made.kw_only = value.name, value.type, value.kw_only
    return made


def _with_slots(cls: type[Any], known: Iterable[Any], more: Mapping[str, Any]) -> type[Any]:
    """The class once more, with slots for its fields and with `more`: slots cannot be added to one that is there."""
    names = [f.name for f in known]
    inherited: set[str] = set()
    for base in cls.__mro__[1:-1]:
        slots = vars(base).get("__slots__", ())
        inherited |= {slots} if isinstance(slots, str) else set(slots)
    body = dict(vars(cls))
    for name in ("__dict__", "__weakref__", *names):
        body.pop(name, None)
    body |= {**more, "__slots__": tuple(name for name in names if name not in inherited)}
    meta: Any = type(cls)
    made: type[Any] = meta(cls.__name__, cls.__bases__, body)
    made.__qualname__ = cls.__qualname__
    return made


class _Standard:
    """What the standard library reads of a dataclass, made when it does."""

    def __init__(self, name: str, frozen: bool) -> None:
        self.name = name
        self.frozen = frozen

    def __get__(self, instance: Any, owner: type[Any]) -> Any:
        owner = next(base for base in owner.__mro__ if vars(base).get(self.name) is self)
        return getattr(_as_standard(owner, self.frozen), self.name)


def _as_standard(cls: type[Any], frozen: bool) -> type[Any]:
    """A dataclass of the standard library with the fields of `cls`, which has what that says about them from now on."""
    import dataclasses

    shown: list[tuple[str, Any, Any]] = []
    for f in fields(cls):
        given: dict[str, Any] = {"default": f.default, "default_factory": f.default_factory}
        given = {key: value for key, value in given.items() if value is not MISSING}
        made: Any = dataclasses.field(init=f.init, repr=f.repr, compare=f.compare, kw_only=f.kw_only, **given)
        shown.append((f.name, object, made))
    standard = dataclasses.make_dataclass(cls.__name__, shown, init=False, repr=False, eq=False, frozen=frozen)
    for theirs, ours in zip(dataclasses.fields(standard), fields(cls), strict=True):
        theirs.type = ours.type
    for name in ("__dataclass_fields__", "__dataclass_params__"):
        setattr(cls, name, getattr(standard, name))
    return standard


# -- dataclasses ----------------------------------------------------------------------------------------------


def _first_init(
    owner: Sequence[type[Any]], known: Iterable[Any], frozen: bool, *, has_more: bool
) -> Callable[..., None]:
    """An `__init__` of the class that will be in `owner`, which looks the fields up, until compiling one pays."""
    left = _UNCOMPILED
    takes: _Parameters | None = None

    def __init__(self: Any, *args: Any, **given: Any) -> None:
        nonlocal left, takes
        left -= 1
        if takes is None:
            takes = _Parameters(known)
        values = takes.values(args, given) if left >= 0 else None
        if values is None:
            (cls,) = owner
            cls.__init__ = _init(cls, frozen)
            cls.__init__(self, *args, **given)
            return
        for name, value in values.items():
            _set(self, name, value)
        if has_more:
            self.__post_init__()

    return __init__


class _Parameters:
    """What an `__init__` takes."""

    __slots__ = ("defaults", "factories", "in_order", "n", "names")

    def __init__(self, known: Iterable[Any]) -> None:
        known = tuple(known)
        self.names = frozenset(f.name for f in known if f.init)
        self.in_order = [f.name for f in known if f.init and not f.kw_only]
        self.defaults = {f.name: f.default for f in known if f.default is not MISSING}
        self.factories = [(f.name, f.default_factory) for f in known if f.default_factory is not MISSING]
        self.n = len(self.names | self.defaults.keys() | dict(self.factories).keys())

    def values(self, args: tuple[Any, ...], given: dict[str, Any]) -> dict[str, Any] | None:
        """The value of each field that has one; None: it is not called as it should be."""
        if args:
            by_place = dict(zip(self.in_order, args, strict=False))
            if len(args) > len(by_place) or by_place.keys() & given.keys():
                return None
            given = {**by_place, **given}
        if not given.keys() <= self.names:
            return None
        values = {**self.defaults, **given}
        for name, make in self.factories:
            if name not in values:
                values[name] = make()
        return values if len(values) == self.n else None


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
        from dataclasses import FrozenInstanceError

        raise FrozenInstanceError(f"cannot assign to field {name!r}")
    object.__setattr__(self, name, value)


def _refuse_delete(self: Any, name: str) -> None:
    if _is_frozen(self, name):
        from dataclasses import FrozenInstanceError

        raise FrozenInstanceError(f"cannot delete field {name!r}")
    object.__delattr__(self, name)


def _is_frozen(self: Any, name: str) -> bool:
    """Whether `name` is fixed: all is, but what a plain subclass has beside the fields."""
    return "__fields__" in vars(type(self)) or any(f.name == name for f in fields(self))


def _state(self: Any) -> list[Any]:
    return [getattr(self, f.name) for f in fields(self)]


def _restore(self: Any, state: list[Any]) -> None:
    for f, value in zip(fields(self), state, strict=True):
        object.__setattr__(self, f.name, value)


def _copied(self: Any, /, **changes: Any) -> Any:
    return replace(self, **changes)


_OPEN: dict[str, Any] = {"__eq__": _eq, "__repr__": _repr, "__hash__": None, "__replace__": _copied}
_FROZEN: dict[str, Any] = {
    "__eq__": _eq,
    "__repr__": _repr,
    "__hash__": _hash,
    "__replace__": _copied,
    "__setattr__": _refuse_set,
    "__delattr__": _refuse_delete,
    "__getstate__": _state,
    "__setstate__": _restore,
}


# -- named tuples ---------------------------------------------------------------------------------------------

try:
    from _collections import _tuplegetter as _item  # type: ignore[import-not-found]
except ImportError:  # as `collections` has it for other Pythons

    def _item(index: int, doc: str) -> Any:
        return property(itemgetter(index), doc=doc)


def _first_new(cls: type[Any], names: tuple[str, ...], defaults: dict[str, Any]) -> Callable[..., Any]:
    """A `__new__` that fills the tuple itself, until compiling one pays."""
    left = _UNCOMPILED_TUPLES

    def __new__(made: Any, /, *args: Any, **given: Any) -> Any:
        nonlocal left
        left -= 1
        if left >= 0:
            left_out = names[len(args) :]
            if len(args) <= len(names) and given.keys() <= set(left_out):
                values = [given[name] if name in given else defaults.get(name, MISSING) for name in left_out]
                if not any(value is MISSING for value in values):
                    return tuple.__new__(made, (*args, *values))
        cls.__new__ = compiled = _compiled_new(names, defaults)
        return compiled(made, *args, **given)

    return __new__


def _compiled_new(names: tuple[str, ...], defaults: dict[str, Any]) -> Callable[..., Any]:
    """The `__new__` that `collections.namedtuple` makes. Names of fields are identifiers, and so safe in source."""
    shown = "".join(f", {name}" for name in names)
    scope: dict[str, Any] = {"_new": tuple.__new__, "__builtins__": {}}
    new: Any = eval(f"lambda _cls{shown}: _new(_cls, ({shown[2:]}{',' * bool(names)}))", scope)  # noqa: S307 - identifiers only
    new.__defaults__ = tuple(defaults[name] for name in names if name in defaults)
    new.__name__ = new.__qualname__ = "__new__"
    return new  # type: ignore[no-any-return]


def _make(cls: Any, iterable: Iterable[Any]) -> Any:
    made = tuple.__new__(cls, iterable)
    if len(made) != len(cls._fields):
        raise TypeError(f"Expected {len(cls._fields)} arguments, got {len(made)}")
    return made


def _tuple_replace(self: Any, /, **changes: Any) -> Any:
    made = self._make(map(changes.pop, self._fields, self))
    if changes:
        raise (ValueError if sys.version_info < (3, 13) else TypeError)(f"Got unexpected field names: {[*changes]!r}")
    return made


def _tuple_repr(self: Any) -> str:
    shown = ", ".join(f"{name}={value!r}" for name, value in zip(self._fields, self, strict=True))
    return f"{self.__class__.__name__}({shown})"


_TUPLE: dict[str, Any] = {
    "_make": classmethod(_make),
    "_replace": _tuple_replace,
    "__replace__": _tuple_replace,
    "_asdict": lambda self: dict(zip(self._fields, self, strict=True)),
    "__repr__": _tuple_repr,
    "__getnewargs__": lambda self: tuple(self),
}
