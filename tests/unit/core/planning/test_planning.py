"""What every backend plans with: pools and margins, devices by a word, decisions and their arguments."""

from __future__ import annotations

import pytest
from autofit.domain.machine import HOST_POOL, Device, Host, Machine
from autofit.domain.memory import MemoryItem
from autofit.domain.request import Margin, Request
from autofit.errors import UsageError
from autofit.planning.accounting import DeviceUse, account, margin_of
from autofit.planning.decisions import argument, arguments, origin_of, remark
from autofit.planning.devices import choose

GIB = 1 << 30


def card(index: int, *, shared: bool = False, uuid: str | None = None) -> Device:
    return Device(
        id=f"GPU{index}",
        index=index,
        name="Card",
        api="cuda",
        total_bytes=24 * GIB,
        free_bytes=20 * GIB,
        pool=HOST_POOL if shared else "",
        uuid=uuid,
    )


def item(n_gib: int) -> MemoryItem:
    return MemoryItem(kind="weights", n_bytes=n_gib * GIB, basis="exact", label="weights")


def use(device: Device, n_gib: int, margin_gib: int = 0, free_gib: int | None = 20) -> DeviceUse:
    return DeviceUse(
        device=device,
        items=(item(n_gib),),
        total_bytes=device.total_bytes,
        free_bytes=None if free_gib is None else free_gib * GIB,
        margin_bytes=margin_gib * GIB,
    )


def machine(available_gib: int | None = 64) -> Machine:
    available = None if available_gib is None else available_gib * GIB
    return Machine(host=Host(total_bytes=64 * GIB, available_bytes=available))


def test_a_margin_is_left_free_and_counted_apart() -> None:
    memory = account([use(card(0), 18, margin_gib=3)], [item(4)], machine())
    pool, host = memory.pools
    assert (pool.used_bytes, pool.budget_bytes, pool.shortfall_bytes) == (18 * GIB, 17 * GIB, GIB)
    assert pool.sum_bytes("reserve") == 3 * GIB
    assert (host.id, host.used_bytes, host.budget_bytes) == (HOST_POOL, 4 * GIB, 64 * GIB)
    assert not memory.fits


def test_what_is_unknown_is_not_checked() -> None:
    memory = account([use(card(0), 99, free_gib=None)], [item(99)], machine(None))
    assert [pool.budget_bytes for pool in memory.pools] == [None, None]
    assert memory.fits


def test_devices_that_share_main_memory_are_one_pool_with_it() -> None:
    memory = account([use(card(0, shared=True), 10, margin_gib=2)], [item(4)], machine())
    (host,) = memory.pools
    assert (host.name, host.used_bytes, host.budget_bytes) == ("unified memory", 14 * GIB, 62 * GIB)


@pytest.mark.parametrize("available_gib", [64, None])
def test_what_a_sharing_device_lacks_the_pool_lacks(available_gib: int | None) -> None:
    memory = account([use(card(0, shared=True), 19, margin_gib=3)], [item(4)], machine(available_gib))
    assert memory.pool(HOST_POOL).shortfall_bytes == 2 * GIB


def test_the_last_margin_is_repeated() -> None:
    margins = (Margin(n_bytes=1), Margin(fraction=0.5))
    assert [margin_of(i, margins, 100, Margin()) for i in range(3)] == [1, 50, 50]
    assert margin_of(0, (), 100, Margin(n_bytes=7)) == 7


CARDS = (card(0, uuid="GPU-8932f937-aa"), card(1, uuid="GPU-1111aaaa-bb"))


@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        ((), ["GPU0", "GPU1"]),
        (("GPU1",), ["GPU1"]),
        (("gpu1", "0"), ["GPU0", "GPU1"]),
        (("GPU-8932f937-aa",), ["GPU0"]),
        (("gpu-8932",), ["GPU0"]),
        (("Engine1",), ["GPU1"]),
        (("card",), ["GPU0", "GPU1"]),
    ],
)
def test_devices_by_a_word(words: tuple[str, ...], chosen: list[str]) -> None:
    assert [device.id for device in choose(CARDS, words, {"GPU1": "Engine1"})] == chosen


@pytest.mark.parametrize("word", ["", "GPU2", "GPU-", "2", "Engine"])
def test_words_that_mean_no_device(word: str) -> None:
    with pytest.raises(UsageError, match="no device") as caught:
        choose(CARDS, ["GPU0", word], {"GPU1": "Engine1"})
    assert caught.value.hint == "devices: GPU0, GPU1"


def test_arguments_are_what_decisions_put_on_the_command_line() -> None:
    decisions = [argument("-m", ["a b.gguf"], "user", "x"), remark("-b", "2048", "engine default", "x")]
    assert [decision.value for decision in decisions] == ["'a b.gguf'", "2048"]
    assert arguments([*decisions, argument("--on", [], "solved", "x")]) == ("-m", "a b.gguf", "--on")


def test_where_a_setting_comes_from() -> None:
    request = Request(context=8, origins={"context": "preset"})
    assert origin_of(request, "context", True) == "preset"
    assert origin_of(request, "parallel", True) == "user"
    assert origin_of(request, "context", False) == "solved"
