"""Our dataclasses behave as those of the standard library do."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import sys
import threading
from typing import Any, ClassVar, Generic, TypeVar
from typing import NamedTuple as TypingNamedTuple

import pytest
from autofit.domain import values
from autofit.domain.machine import Device, Host

T = TypeVar("T")
OPTIONS = [
    {"frozen": frozen, "slots": slots, "kw_only": kw_only}
    for frozen in (False, True)
    for slots in (False, True)
    for kw_only in (False, True)
]


def make(decorate: Any, **options: bool) -> Any:
    @decorate(**options)
    class Thing:
        """A thing."""

        a: int
        b: tuple[int, ...] = ()
        c: dict[str, int] = dataclasses.field(default_factory=dict)
        d: int = dataclasses.field(init=False, default=7)
        e: str = dataclasses.field(default="", repr=False, compare=False)

        def __post_init__(self) -> None:
            object.__setattr__(self, "d", self.a * 2)

    return Thing


def outcome(action: Any) -> Any:
    """What an action gives, or the error that it ends in."""
    try:
        return repr(action())
    except Exception as error:
        return type(error), str(error)


@pytest.fixture(params=["looked up", "compiled", "some of each"])
def making(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How instances are made: field by field, by a compiled method, or first one and then the other."""
    n = {"looked up": 10**6, "compiled": 0, "some of each": 3}[request.param]
    monkeypatch.setattr(values, "_UNCOMPILED", n)
    monkeypatch.setattr(values, "_UNCOMPILED_TUPLES", n)


@pytest.mark.usefixtures("making")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_as_the_standard_library_has_it(options: dict[str, bool]) -> None:
    ours, theirs = make(values.dataclass, **options), make(dataclasses.dataclass, **options)
    actions: list[Any] = [
        lambda cls: cls(a=1),
        lambda cls: cls(1, (2,)),
        lambda cls: cls(1, (2,), e="x").e,
        lambda cls: cls(1, a=1),
        lambda cls: cls(1, (2,), {}, "x", 5),
        lambda cls: cls(),
        lambda cls: cls(a=1, z=2),
        lambda cls: cls(a=1, d=2),
        lambda cls: cls(a=1, b=(3,), c={"x": 1}).c,
        lambda cls: cls(a=1).c is cls(a=1).c,
        lambda cls: cls(a=3).d,
        lambda cls: cls(a=1, e="x") == cls(a=1, e="y"),
        lambda cls: cls(a=1) == cls(a=2),
        lambda cls: cls(a=1) == (1, (), {}, 2),
        lambda cls: hash(cls(a=1)),
        lambda cls: hash(cls(a=1, c=())) == hash(cls(a=1, c=(), e="other")),
        lambda cls: setattr(cls(a=1), "a", 2),
        lambda cls: delattr(cls(a=1), "a"),
        lambda cls: dataclasses.replace(cls(a=1, e="kept"), a=5).e,
        lambda cls: dataclasses.replace(cls(a=1), a=5),
        lambda cls: dataclasses.asdict(cls(a=1)),
        lambda cls: [f.name for f in dataclasses.fields(cls)],
        lambda cls: copy.copy(cls(a=1)),
        lambda cls: copy.deepcopy(cls(a=1, c={"x": 1})),
        lambda cls: hasattr(cls(a=1), "__dict__"),
    ]
    for action in actions * 2:
        assert outcome(lambda action=action: action(ours)) == outcome(lambda action=action: action(theirs))


def test_a_class_keeps_the_methods_that_it_defines() -> None:
    @values.dataclass(frozen=True)
    class Named:
        name: str

        def __repr__(self) -> str:
            return self.name

        def __hash__(self) -> int:
            return 5

    assert (repr(Named("x")), hash(Named("x"))) == ("x", 5)


def test_a_subclass_with_its_own_init_may_call_ours() -> None:
    @values.dataclass()
    class Base:
        a: int

    class Sub(Base):
        def __init__(self) -> None:
            super().__init__(4)

    assert (Sub().a, Sub().a, Base(1).a) == (4, 4, 1)


def test_values_of_the_domain_can_be_pickled_and_copied() -> None:
    device = Device(id="GPU0", index=0, name="x", api="cuda", total_bytes=5, free_bytes=None)
    assert pickle.loads(pickle.dumps(device)) == copy.deepcopy(device) == device
    assert {device: 1}[dataclasses.replace(device)] == 1
    assert dataclasses.is_dataclass(Host)


@pytest.mark.parametrize("decorate", [values.dataclass, dataclasses.dataclass])
def test_a_class_keeps_its_own_init_and_compares_as_it_says(decorate: Any) -> None:
    @decorate(frozen=True)
    class Word:
        text: str

        def __init__(self, *parts: str) -> None:
            object.__setattr__(self, "text", "".join(parts))

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Word) and self.text.lower() == other.text.lower()

    assert Word("a", "b") == Word("AB")
    assert hash(Word("a", "b")) == hash(Word("ab"))


@pytest.mark.parametrize(  # with slots, the standard library's `super(cls, self)` fails before Python 3.14
    ("decorate", "slots"),
    [(values.dataclass, False), (values.dataclass, True), (dataclasses.dataclass, False)],
)
def test_a_plain_subclass_of_a_frozen_class_has_attributes_of_its_own(decorate: Any, slots: bool) -> None:
    @decorate(frozen=True, slots=slots)
    class Base:
        a: int

    class Sub(Base):
        pass

    sub = Sub(1)
    sub.note = "mine"  # type: ignore[attr-defined]
    assert sub.note == "mine"  # type: ignore[attr-defined]
    del sub.note  # type: ignore[attr-defined]
    for action in (lambda: setattr(sub, "a", 2), lambda: delattr(sub, "a"), lambda: setattr(Base(1), "b", 2)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            action()


# 3.13's dataclasses compare field by field, to which a NaN is not itself
TUPLE_LIKE = [values.dataclass, *([dataclasses.dataclass] if sys.version_info < (3, 13) else [])]


@pytest.mark.parametrize("decorate", TUPLE_LIKE)
def test_one_field_is_compared_as_a_tuple_is(decorate: Any) -> None:
    @decorate(frozen=True)
    class Rate:
        value: float

    nan = float("nan")
    assert Rate(nan) == Rate(nan)
    assert Rate(nan) != Rate(-nan)


@pytest.mark.parametrize("decorate", [values.dataclass, dataclasses.dataclass])
def test_what_holds_itself_is_shown(decorate: Any) -> None:
    @decorate()
    class Node:
        next: Any = None

    node = Node()
    node.next = node
    assert repr(node).endswith(".Node(next=...)")


@pytest.mark.usefixtures("making")
@pytest.mark.parametrize("decorate", [values.dataclass, dataclasses.dataclass])
def test_generic_inherited_and_matched(decorate: Any) -> None:
    @decorate(frozen=True)
    class Pair(Generic[T]):
        a: T
        b: list[T] = dataclasses.field(default_factory=list)

    @decorate(frozen=True)
    class Triple(Pair[int]):
        c: int = 3

    assert Pair[int](1) == Pair(1)
    assert Pair(1) != Triple(1)
    match Triple(1, [2]):
        case Triple(a, [b], c):
            assert (a, b, c) == (1, 2, 3)
        case _:
            pytest.fail("not matched")
    assert copy.copy(Triple(1, c=5)) == dataclasses.replace(Triple(1), c=5)


@pytest.mark.usefixtures("making")
@pytest.mark.parametrize("base", [values.dataclass, dataclasses.dataclass])
@pytest.mark.parametrize("derived", [values.dataclass, dataclasses.dataclass])
def test_ours_and_theirs_may_be_bases_of_each_other(base: Any, derived: Any) -> None:
    @base(frozen=True)
    class Base:
        a: int
        b: list[int] = dataclasses.field(default_factory=list)
        c: str = dataclasses.field(default="x", compare=False)

    @derived(frozen=True)
    class Derived(Base):
        d: int = 4

    assert (
        [f.name for f in dataclasses.fields(Derived)]
        == [f.name for f in values.fields(Derived)]
        == ["a", "b", "c", "d"]
    )
    assert [(f.type, f.compare) for f in dataclasses.fields(Derived)][1:3] == [("list[int]", True), ("str", False)]
    assert dataclasses.asdict(Derived(1)) == {"a": 1, "b": [], "c": "x", "d": 4}
    assert Derived(1, d=2) == values.replace(Derived(5, d=2, c="y"), a=1) != Derived(1)
    with pytest.raises(TypeError):
        Derived()
    with pytest.raises(dataclasses.FrozenInstanceError):
        Derived(1).d = 5


@pytest.mark.parametrize("decorate", [values.dataclass, dataclasses.dataclass])
def test_a_default_that_instances_would_share_is_refused(decorate: Any) -> None:
    with pytest.raises(ValueError, match=r"mutable default .*list.* for field b is not allowed: use default_factory"):

        @decorate()
        class Thing:
            a: int
            b: list[int] = []  # noqa: RUF012 - what is refused


@pytest.mark.usefixtures("making")
def test_first_instances_may_be_made_by_many_threads_at_once() -> None:
    for _ in range(20):
        cls = make(values.dataclass, frozen=True, slots=True, kw_only=True)
        start, made = threading.Barrier(8), []

        def work(cls: Any = cls, start: Any = start, made: list[Any] = made) -> None:
            start.wait()
            made.extend(cls(a=a, b=(a,)) for a in range(6))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted((one.a, one.b, one.d) for one in made) == [(a, (a,), 2 * a) for a in range(6) for _ in range(8)]


class Pair(values.NamedTuple):
    """Two."""

    left: int
    right: tuple[int, ...] = ()

    @property
    def both(self) -> tuple[int, ...]:
        return (self.left, *self.right)


@pytest.mark.usefixtures("making")
def test_named_tuples_are_those_of_the_standard_library() -> None:
    class Two(values.NamedTuple):
        """Two."""

        left: int
        right: tuple[int, ...] = ()

    class Theirs(TypingNamedTuple):
        """Two."""

        left: int
        right: tuple[int, ...] = ()

    assert (Two._fields, Two._field_defaults) == (Theirs._fields, Theirs._field_defaults)
    assert (Two.__doc__, Two.__module__) == ("Two.", __name__) and Two.__match_args__ == Theirs.__match_args__
    actions: list[Any] = [
        lambda cls: tuple(cls(1, (2,))),
        lambda cls: tuple(cls(1)),
        lambda cls: tuple(cls(right=(), left=3)),
        lambda cls: tuple(cls(1, right=(3,))),
        lambda cls: cls(),
        lambda cls: cls(1, 2, 3),
        lambda cls: cls(1, left=2),
        lambda cls: cls(1, middle=2),
        lambda cls: tuple(cls._make([1, 2])),
        lambda cls: cls._make([1]),
        lambda cls: tuple(cls(1)._replace(right=(4,))),
        lambda cls: cls(1)._replace(middle=4),
        lambda cls: cls(1)._asdict(),
        lambda cls: cls(1) == (1, ()),
        lambda cls: hash(cls(1)) == hash((1, ())),
        lambda cls: setattr(cls(1), "left", 2),
        lambda cls: repr(cls(1)).partition("(")[2],
    ]
    for action in actions * 2:
        ours, theirs = outcome(lambda action=action: action(Two)), outcome(lambda action=action: action(Theirs))
        assert str(ours).replace("Two.", "") == str(theirs).replace("Theirs.", "")


def test_named_tuples_have_methods_and_can_be_pickled_and_copied() -> None:
    assert Pair.__annotations__ == {"left": "int", "right": "tuple[int, ...]"}
    assert Pair(1, (2,)).both == (1, 2) and repr(Pair(1)) == "Pair(left=1, right=())"
    assert pickle.loads(pickle.dumps(Pair(3))) == Pair(3) and type(copy.deepcopy(Pair(3))) is Pair


def test_class_variables_are_no_fields_and_types_are_kept() -> None:
    @values.dataclass(frozen=True)
    class Thing:
        a: int
        kind: ClassVar[str] = "thing"
        b: tuple[int, ...] = ()

    assert [(f.name, f.type) for f in values.fields(Thing)] == [("a", "int"), ("b", "tuple[int, ...]")]
    assert Thing(1).kind == "thing" and Thing.__annotations__["kind"] == "ClassVar[str]"
