"""The speed model on any machine and model: faster parts never slow it, and more work never helps."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from autofit.domain.machine import HOST_POOL, Device, Host, Machine
from autofit.speed import LayerWork, Place, Read, Step
from autofit.speed import Roofline as AnyRoofline
from hypothesis import given, settings
from hypothesis import strategies as st

from autofit_llama.speed.efficiencies import EFFICIENCIES

Roofline = partial(AnyRoofline, engine=EFFICIENCIES)
TYPES = ("f16", "q8_0", "q4_0", "q4_K", "q6_K", "q3_K", "iq2_xs", "F8_E4M3")
DEVICES = ("GPU0", "GPU1")


@st.composite
def devices(draw: st.DrawFn, name: str) -> Device:
    rate = st.integers(10**10, 10**13)
    return Device(
        id=name,
        index=int(name[-1]),
        name="card",
        api=draw(st.sampled_from(("cuda", "rocm", "vulkan", "metal", "sycl"))),
        total_bytes=None,
        free_bytes=None,
        compute_capability=draw(st.sampled_from((None, (7, 5), (8, 9), (12, 0)))),
        bandwidth_bytes_per_s=draw(rate),
        fp16_flops_per_s=draw(st.none() | st.integers(10**12, 10**15)),
        link_bytes_per_s=draw(st.none() | st.integers(10**9, 10**11)),
    )


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    host = Host(
        total_bytes=None,
        available_bytes=None,
        bandwidth_bytes_per_s=draw(st.none() | st.integers(10**10, 10**12)),
        n_cores_physical=draw(st.none() | st.integers(1, 128)),
    )
    return Machine(host=host, devices=tuple(draw(devices(name)) for name in DEVICES))


@st.composite
def layers(draw: st.DrawFn) -> LayerWork:
    n_experts = draw(st.sampled_from((0, 8, 128)))

    def weights() -> tuple[Read, ...]:
        n_elements = draw(st.integers(1, 10**9))
        return (Read(draw(st.sampled_from(TYPES)), draw(st.integers(1, 10**9)), n_elements),)

    return LayerWork(
        dense=weights(),
        experts=weights() if n_experts else (),
        n_experts=n_experts,
        n_experts_used=draw(st.integers(1, n_experts)) if n_experts else 0,
        cache_token_bytes=draw(st.integers(0, 10**5)),
        cache_is_quantized=draw(st.booleans()),
        window_tokens=draw(st.none() | st.integers(1, 10**5)),
        state_bytes=draw(st.integers(0, 10**7)),
        attention_flops=draw(st.integers(0, 10**6)),
        n_kernels=draw(st.integers(0, 50)),
        hidden_bytes=draw(st.integers(0, 10**5)),
        last_token_only=draw(st.booleans()),
    )


PLACES = (
    Place(HOST_POOL),
    *(Place(name) for name in DEVICES),
    *(Place(name, experts=HOST_POOL) for name in DEVICES),
    *(Place(name, cache=HOST_POOL) for name in DEVICES),
    Place("GPU0", ranks=DEVICES),
)


@st.composite
def placed(draw: st.DrawFn) -> list[tuple[LayerWork, Place]]:
    made = draw(st.lists(layers(), min_size=1, max_size=4))
    return [(layer, draw(st.sampled_from(PLACES))) for layer in made]


steps = st.builds(
    lambda n_sequences, n_each, n_filled: Step(n_sequences * n_each, n_sequences, n_filled),
    st.integers(1, 64),
    st.sampled_from((1, 2, 512)),
    st.integers(0, 10**6),
)


@given(machines(), placed(), st.integers(0, 10**6), st.integers(1, 64))
@settings(max_examples=120, deadline=None)
def test_the_estimate_lies_in_its_band(
    machine: Machine, model: list[tuple[LayerWork, Place]], n_filled: int, n_sequences: int
) -> None:
    speed = Roofline(machine).estimate(model, n_filled=n_filled, n_sequences=n_sequences)
    assert speed is not None
    assert 0 < speed.low < speed.decode_tokens_per_s < speed.high
    if speed.prefill_tokens_per_s is not None:
        assert speed.prefill_low is not None and speed.prefill_high is not None
        assert 0 < speed.prefill_low < speed.prefill_tokens_per_s < speed.prefill_high


@given(machines(), placed(), steps, st.integers(0, 1), st.sampled_from(("bandwidth", "flops", "link")))
@settings(max_examples=150, deadline=None)
def test_a_faster_device_never_slows_a_step(
    machine: Machine, model: list[tuple[LayerWork, Place]], step: Step, index: int, what: str
) -> None:
    slow = machine.devices[index]
    faster = {
        "bandwidth": replace(slow, bandwidth_bytes_per_s=2 * (slow.bandwidth_bytes_per_s or 1)),
        "flops": replace(slow, fp16_flops_per_s=2 * (slow.fp16_flops_per_s or 10**15)),
        "link": replace(slow, link_bytes_per_s=2 * (slow.link_bytes_per_s or 10**10)),
    }[what]
    if slow.fp16_flops_per_s is None and what == "flops":
        slow = replace(slow, fp16_flops_per_s=10**15)
    others = machine.devices[1 - index]

    def seconds(device: Device) -> float:
        order = (device, others) if index == 0 else (others, device)
        return Roofline(replace(machine, devices=order)).step_seconds(model, step)

    assert seconds(faster) <= seconds(slow) * (1 + 1e-12)


@given(machines(), placed(), steps, st.integers(1, 10**9))
@settings(max_examples=120, deadline=None)
def test_more_to_read_is_never_faster(
    machine: Machine, model: list[tuple[LayerWork, Place]], step: Step, n_bytes: int
) -> None:
    roofline = Roofline(machine)
    layer, place = model[0]
    read = layer.dense[0]
    heavier = replace(layer, dense=(read._replace(n_bytes=read.n_bytes + n_bytes),))
    longer = replace(layer, cache_token_bytes=layer.cache_token_bytes + n_bytes)
    before = roofline.layer_seconds(layer, place, step)
    assert roofline.layer_seconds(heavier, place, step) >= before
    assert roofline.layer_seconds(longer, place, step) >= before
    assert roofline.layer_seconds(layer, place, step._replace(n_filled=step.n_filled + n_bytes)) >= before


@given(machines(), placed(), steps)
@settings(max_examples=80, deadline=None)
def test_equal_devices_may_be_exchanged(machine: Machine, model: list[tuple[LayerWork, Place]], step: Step) -> None:
    first = machine.devices[0]
    twins = replace(machine, devices=(first, replace(first, id="GPU1", index=1, pool="GPU1")))
    other = {"GPU0": "GPU1", "GPU1": "GPU0"}
    swapped = [
        (layer, place._replace(device=other.get(place.device, place.device)))
        for layer, place in model
        if not place.ranks
    ]
    plain = [(layer, place) for layer, place in model if not place.ranks]
    roofline = Roofline(twins)
    assert roofline.step_seconds(swapped, step) == roofline.step_seconds(plain, step)


@pytest.mark.slow
@given(machines(), placed(), st.integers(0, 10**5), st.integers(1, 4096), st.integers(1, 10**5))
@settings(max_examples=150, deadline=None)
def test_a_longer_prompt_takes_longer(
    machine: Machine, model: list[tuple[LayerWork, Place]], n_before: int, n_ubatch: int, n_prompt: int
) -> None:
    roofline = Roofline(machine)
    short = roofline.prefill_seconds(model, n_ubatch, n_ubatch=n_ubatch, n_before=n_before)
    long = roofline.prefill_seconds(model, n_ubatch + n_prompt, n_ubatch=n_ubatch, n_before=n_before)
    assert long >= short > 0
