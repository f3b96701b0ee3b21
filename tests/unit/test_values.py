"""Our dataclasses behave as those of the standard library do."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest
from autofit.domain import values
from autofit.domain.machine import Device, Host

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


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_as_the_standard_library_has_it(options: dict[str, bool]) -> None:
    ours, theirs = make(values.dataclass, **options), make(dataclasses.dataclass, **options)
    actions: list[Any] = [
        lambda cls: cls(a=1),
        lambda cls: cls(1, (2,)),
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
    for action in actions * 2:  # as looked up at first, then as compiled
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
