"""Pins, companions and machines that cannot be taken at their word: what the engine would make of them counts."""

from __future__ import annotations

from dataclasses import replace

import autofit
import pytest
from autofit.domain.machine import Machine
from autofit.domain.plan import Plan
from autofit.errors import AutofitError, EngineRefusalError, HardwareError, ModelError, UsageError
from autofit.settings.options import parse_margins

MIXTRAL = "example:mixtral-8x7b-q4_k_m"
TINY = "example:tiny"


def machine(*names: str) -> Machine:
    return autofit.load_machine(*names, ram="64GiB")


def plan(*argv: str, on: Machine | None = None, model: str = MIXTRAL, **wishes: object) -> Plan:
    return autofit.plan("llama", autofit.read_model(model), on or machine("rtx-3090"), engine_args=argv, **wishes)


def figures(found: Plan) -> list[tuple[str, int, int, int]]:
    pools = found.memory.pools
    return [(p.id, p.sum_bytes("weights"), p.sum_bytes("cache"), p.sum_bytes("compute")) for p in pools]


@pytest.mark.slow_cases("0,1,0")
@pytest.mark.parametrize("split", ["0,1,1", "1,0,3", "0,1,0", "2,1,1"])
def test_numbers_of_a_pinned_split_keep_their_devices(split: str) -> None:
    """A device without layers stays visible: the engine counts the numbers from the first device it sees."""
    three = machine("rtx-3090", "rtx-3090", "rtx-3090")
    found = plan("-ts", split, on=three)
    assert "-dev" not in found.argv
    assert figures(autofit.check(found.argv, three, model=autofit.read_model(MIXTRAL))) == figures(found)
    empty = [f"GPU{i}" for i, number in enumerate(split.split(",")) if number == "0"]
    assert [pool.id for pool in found.memory.pools if pool.sum_bytes("weights") == 0] == empty


def test_a_split_that_leaves_devices_without_layers() -> None:
    found = plan("-ts", "5,5,2", on=machine("rtx-4070-ti", "t4", "a100-40gb"), model=TINY)
    assert found.fits
    assert [pool.id for pool in found.memory.pools] == ["GPU0", "GPU1", "GPU2", "host"]


@pytest.mark.parametrize("pins", [("-sm", "none"), ("-dev", "CUDA0"), ()])
def test_a_plan_for_the_processor_alone_says_so(pins: tuple[str, ...]) -> None:
    """A card too small for anything: what stays visible must be told to take no layers."""
    small = machine("generic-cuda:64MiB")
    found = plan(*pins, "-nkvo", "--no-op-offload", "-c", "4096", on=small)
    assert found.fits
    assert found.memory.pool("host").sum_bytes("weights") > 24 << 30
    assert figures(autofit.check(found.argv, small, model=autofit.read_model(MIXTRAL))) == figures(found)


def test_a_number_for_the_only_device_says_nothing() -> None:
    assert figures(plan("-ts", "3", "-c", "4096")) == figures(plan("-c", "4096"))


@pytest.mark.slow
def test_a_margin_belongs_to_its_device_in_any_order() -> None:
    two = machine("rtx-3060-12gb", "rtx-4090")
    found = plan("-dev", "CUDA1,CUDA0", on=two, margin="3GiB,512MiB")
    assert [pool.id for pool in found.memory.pools] == ["GPU1", "GPU0", "host"]
    model = autofit.read_model(MIXTRAL)
    checked = autofit.check(found.argv, two, model=model, margin=parse_margins("3GiB,512MiB"))
    budgets = {pool.id: pool.budget_bytes for pool in found.memory.pools}
    assert {pool.id: pool.budget_bytes for pool in checked.memory.pools} == budgets


def test_a_device_named_twice_is_one_device() -> None:
    model, one = autofit.read_model(TINY), machine("rtx-3090")
    command = ["llama-server", "-m", TINY]
    assert autofit.check(command, one, model=model, device=("GPU0", "0")) == autofit.check(command, one, model=model)
    with pytest.raises(UsageError, match="no device ''"):
        autofit.check(command, one, model=model, device=("",))


@pytest.mark.parametrize(
    ("argv", "wishes", "message"),
    [
        (("-c", "4096"), {"min_context": "8k"}, "less than --min-context 8192"),
        (("-c", "32768"), {"max_context": "8k"}, "more than --max-context 8192"),
        (("-c", "32768", "-np", "8"), {"min_context": "8k"}, "leaves a sequence 4096 tokens"),
    ],
)
def test_a_pinned_context_outside_the_wished_bounds(argv: tuple[str, ...], wishes: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(*argv, **wishes)


def test_a_shared_cache_may_be_one_sequences() -> None:
    assert plan("-c", "8192", "-np", "4", "-kvu", min_context="8k").context_tokens == 8192


def test_another_model_behind_the_dashes_is_refused() -> None:
    with pytest.raises(UsageError, match="-m other"):
        autofit.plan("llama", TINY, machine("rtx-3090"), engine_args=["-m", "other.gguf"])


@pytest.mark.parametrize("api", ["cuda", "rocm"])
@pytest.mark.parametrize("argv", [(), ("-ts", "1,1"), ("-ngl", "99")])
def test_a_device_whose_free_memory_is_unknown(api: str, argv: tuple[str, ...]) -> None:
    names = ("rtx-3090", "rtx-3090") if "-ts" in argv else ("rtx-3090",)
    known = machine(*names)
    unknown = replace(known, devices=tuple(replace(d, api=api, free_bytes=None) for d in known.devices))
    with pytest.raises(HardwareError, match=r"the free memory of (CUDA|ROCm)0 is unknown"):
        plan(*argv, on=unknown)
    with pytest.raises(HardwareError, match="is unknown"):
        autofit.check(["llama-server", "-m", TINY, *argv], unknown)


def test_a_remote_device_that_nobody_described() -> None:
    with pytest.raises(HardwareError, match="behind --rpc box:50052 is unknown"):
        plan("--rpc", "box:50052", model=TINY)
    assert plan("--rpc", "box:50052", on=machine("rtx-3090", "generic-rpc:8GiB"), model=TINY).fits
    assert plan("--rpc", "box:50052", "-dev", "CUDA0", model=TINY).fits


@pytest.mark.parametrize(("flag", "message"), [("--mmproj", "is not a projector"), ("--lora", "is not a LoRA adapter")])
def test_a_companion_that_is_something_else(flag: str, message: str) -> None:
    with pytest.raises(EngineRefusalError, match=message):
        autofit.check(["llama-server", "-m", TINY, flag, TINY], machine("rtx-3090"))


def test_a_model_of_another_format(tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    with pytest.raises(AutofitError) as raised:
        autofit.check(["llama-server", "-m", str(tmp_path)], machine("rtx-3090"))
    assert isinstance(raised.value, ModelError)
    assert "llama.cpp reads GGUF files" in str(raised.value)


@pytest.mark.slow_but("m2-max")
@pytest.mark.parametrize("name", ["m2-max", "strix-halo"])
def test_a_shared_device_has_a_limit_of_its_own(name: str) -> None:
    """Metal's working set, a GTT limit: RAM that the device may not take is not the device's."""
    shared = autofit.load_machine(name, ram="32GiB:none")
    limit = shared.devices[0].free_bytes
    assert limit is not None
    assert shared.host.available_bytes is not None
    assert limit < shared.host.available_bytes
    all_on_device = ["llama-server", "-m", MIXTRAL, "-ngl", "99", "-c", "16384", "-cram", "0"]
    model = autofit.read_model(MIXTRAL)
    assert not autofit.check(all_on_device, shared, model=model).fits
    found = plan(on=shared)
    assert found.fits
    report = found.engine_report["devices"]
    assert isinstance(report, list)
    assert sum(report[0][f"{kind}_bytes"] for kind in ("model", "context", "compute")) <= limit
