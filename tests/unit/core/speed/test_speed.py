"""The speed model: what a step costs, what moves it, what it says when it does not know."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
from autofit.domain.machine import HOST_POOL, Device, Host, Link, Machine
from autofit.domain.model import TensorInfo
from autofit.speed import Draft, LayerWork, Place, Read, Step, n_kernels, quant_class, reads
from autofit.speed import Roofline as AnyRoofline
from autofit.speed.efficiencies import TABLE
from autofit.speed.rates import generation
from autofit.speed.roofline import placement

from autofit_llama.speed.efficiencies import EFFICIENCIES as LLAMA
from autofit_vllm.planning.efficiencies import EFFICIENCIES as VLLM

GB = 10**9
Roofline = partial(AnyRoofline, engine=LLAMA)


def device(index: int = 0, **changes: object) -> Device:
    facts: dict[str, object] = {
        "id": f"GPU{index}",
        "index": index,
        "name": "card",
        "api": "cuda",
        "total_bytes": 24 * GB,
        "free_bytes": 24 * GB,
        "compute_capability": (8, 6),
        "bandwidth_bytes_per_s": 936 * GB,
        "fp16_flops_per_s": 71 * 10**12,
        "link_bytes_per_s": 31 * GB,
    }
    return Device(**{**facts, **changes})  # type: ignore[arg-type]


def machine(*devices: Device, bandwidth: int | None = 50 * GB, n_cores: int | None = 8) -> Machine:
    host = Host(
        total_bytes=64 * GB,
        available_bytes=64 * GB,
        bandwidth_bytes_per_s=bandwidth,
        n_cores_physical=n_cores,
    )
    return Machine(host=host, devices=devices)


# The blocks of Llama 3.1 8B and of Mixtral 8x7B at Q4_K_M, within a few percent.
DENSE = LayerWork(
    dense=(Read("q4_K", 131_000_000, 218_000_000),),
    cache_token_bytes=4096,
    attention_flops=16384,
    n_kernels=20,
    hidden_bytes=16384,
)
EXPERTS = replace(
    DENSE,
    dense=(Read("q4_K", 23_000_000, 42_000_000),),
    experts=(Read("q4_K", 800_000_000, 1_410_000_000),),
    n_experts=8,
    n_experts_used=2,
)
OUTPUT = LayerWork(dense=(Read("q6_K", 431_000_000, 525_000_000),), n_kernels=4, last_token_only=True)
GPU = Place("GPU0")
CPU = Place(HOST_POOL)


def test_a_card_reads_8b_as_fast_as_it_is_known_to() -> None:
    """Llama 8B at 4.9 bits on an RTX 3090: public runs say 105 to 125 tokens/s."""
    speed = Roofline(machine(device())).estimate([(DENSE, GPU)] * 32 + [(OUTPUT, GPU)])
    assert speed is not None
    assert 100 < speed.decode_tokens_per_s < 140
    assert speed.low < speed.decode_tokens_per_s < speed.high
    assert speed.prefill_tokens_per_s is not None
    assert 2000 < speed.prefill_tokens_per_s < 5000


def test_mixtral_with_its_experts_in_ram_is_bound_by_the_ram() -> None:
    """Of 32 · 200 MB active experts, read over 50 GB/s, a token cannot take less than 128 ms."""
    model = [(EXPERTS, Place("GPU0", experts=HOST_POOL))] * 32 + [(OUTPUT, GPU)]
    speed = Roofline(machine(device())).estimate(model)
    assert speed is not None
    assert 3 < speed.decode_tokens_per_s < 1 / 0.128
    whole = Roofline(machine(device())).estimate([(EXPERTS, GPU)] * 32 + [(OUTPUT, GPU)])
    assert whole is not None
    assert whole.decode_tokens_per_s > 8 * speed.decode_tokens_per_s


def test_a_larger_micro_batch_pays_for_copying_experts() -> None:
    """Copies cost the same whatever the micro-batch, so a prompt goes several times faster (op offload)."""
    roofline = Roofline(machine(device()))
    model = [(EXPERTS, Place("GPU0", experts=HOST_POOL))] * 32 + [(OUTPUT, GPU)]
    small = 4096 / roofline.prefill_seconds(model, 4096, n_ubatch=512)
    large = 4096 / roofline.prefill_seconds(model, 4096, n_ubatch=4096)
    assert large > 3 * small
    without = 4096 / Roofline(machine(device()), op_offload=None).prefill_seconds(model, 4096, n_ubatch=512)
    assert without < small


def test_sums_of_layers_and_hops_are_a_step() -> None:
    roofline = Roofline(machine(device(0), device(1, bandwidth_bytes_per_s=360 * GB)))
    places = [CPU, Place("GPU0"), Place("GPU0", experts=HOST_POOL), Place("GPU1")]
    model = [(EXPERTS, place) for place in places]
    step = Step(n_filled=4096)
    layers = sum(roofline.layer_seconds(layer, place, step) for layer, place in model)
    transfers = roofline.transfer_seconds(HOST_POOL, "GPU0", 16384) + roofline.transfer_seconds("GPU0", "GPU1", 16384)
    constant = max(LLAMA.rows[key].step_s for key in ("cpu", "cuda"))
    assert roofline.step_seconds(model, step) == pytest.approx(layers + transfers + constant)
    assert roofline.transfer_seconds("GPU1", "GPU1", 16384) == 0


def test_experts_are_read_as_far_as_tokens_choose_them() -> None:
    roofline = Roofline(machine(device()))
    only = LayerWork(experts=EXPERTS.experts, n_experts=8, n_experts_used=2)
    one = roofline.layer_seconds(only, GPU, Step(1, 1))
    whole = roofline.layer_seconds(only, GPU, Step(1000, 1000))
    assert roofline.layer_seconds(only, GPU, Step(2, 2)) == pytest.approx(one * (1 - 0.75**2) / 0.25)
    assert one < whole
    dense = LayerWork(dense=EXPERTS.experts)
    assert one < roofline.layer_seconds(dense, GPU, Step(1, 1)) / 2


def test_a_window_bounds_what_the_cache_costs() -> None:
    roofline = Roofline(machine(device()))
    window = replace(DENSE, window_tokens=1024)
    near, far = Step(n_filled=1024), Step(n_filled=100_000)
    assert roofline.layer_seconds(window, GPU, far) == roofline.layer_seconds(window, GPU, near)
    assert roofline.layer_seconds(DENSE, GPU, far) > roofline.layer_seconds(DENSE, GPU, near)


def test_a_quantized_cache_is_unpacked_for_every_head() -> None:
    """Half the bytes, and yet more time at depth (ggml-cuda/fattn.cu, vector kernel)."""
    roofline = Roofline(machine(device()))
    half = replace(DENSE, cache_token_bytes=2176, cache_is_quantized=True)
    far = Step(n_filled=32768)
    assert roofline.layer_seconds(half, GPU, far) > roofline.layer_seconds(DENSE, GPU, far)


def test_micro_batches_follow_each_other_through_devices() -> None:
    roofline = Roofline(machine(device(0), device(1)))
    model = [(DENSE, Place("GPU0"))] * 16 + [(DENSE, Place("GPU1"))] * 16
    one = roofline.prefill_seconds([(DENSE, GPU)] * 32, 8192)
    two = roofline.prefill_seconds(model, 8192)
    assert one / 2 < two < 0.7 * one
    assert roofline.prefill_seconds(model, 512) > roofline.prefill_seconds([(DENSE, GPU)] * 32, 512)
    assert roofline.prefill_seconds(model, 8192, overlaps=False) > one  # an engine that runs one device after the other


def test_unequal_shares_wait_for_the_rank_with_most_to_read() -> None:
    roofline = Roofline(machine(device(0), device(1)))
    layer = replace(DENSE, hidden_bytes=0)

    def seconds(*shares: float) -> float:
        return roofline.layer_seconds(layer, Place("GPU0", ranks=("GPU0", "GPU1"), shares=shares), Step())

    assert seconds(0.5, 0.5) == seconds()
    assert seconds(0.25, 0.75) == seconds(0.75, 0.25) > seconds()
    assert seconds(1.0, 1.0) > roofline.layer_seconds(layer, GPU, Step())  # whole on both: there is nothing to gain


def test_ranks_share_a_block_and_pay_for_reducing() -> None:
    roofline = Roofline(machine(device(0), device(1)), engine=VLLM)
    shared = Place("GPU0", ranks=("GPU0", "GPU1"))
    one, two = (roofline.layer_seconds(DENSE, place, Step()) for place in (GPU, shared))
    assert one / 2 < two < one
    small = LayerWork(dense=(Read("BF16", 2000, 1000),), hidden_bytes=8192)
    assert roofline.layer_seconds(small, shared, Step()) > roofline.layer_seconds(small, GPU, Step())


def test_the_slowest_rank_counts() -> None:
    slow = device(1, bandwidth_bytes_per_s=360 * GB)
    shared = Place("GPU0", ranks=("GPU0", "GPU1"))
    even = Roofline(machine(device(0), device(1))).layer_seconds(DENSE, shared, Step())
    uneven = Roofline(machine(device(0), slow)).layer_seconds(DENSE, shared, Step())
    swapped = Roofline(machine(replace(slow, id="GPU0"), device(1))).layer_seconds(DENSE, shared, Step())
    assert even < uneven
    assert uneven == pytest.approx(swapped)


def test_a_link_between_devices_carries_what_the_host_need_not() -> None:
    pair = machine(device(0), device(1))
    linked = replace(pair, links=(Link(a="GPU0", b="GPU1", kind="NVLink", bytes_per_s=300 * GB),))
    shared, prompt = Place("GPU0", ranks=("GPU0", "GPU1")), Step(8192, 1)
    by_host, by_link = (Roofline(some).layer_seconds(DENSE, shared, prompt) for some in (pair, linked))
    assert by_link < by_host
    transfers = [Roofline(some).transfer_seconds("GPU0", "GPU1", 10**8) for some in (pair, linked)]
    assert transfers[1] < transfers[0] / 5


def test_drafts_pay_where_they_are_kept() -> None:
    roofline = Roofline(machine(device()))
    model = [(DENSE, GPU)] * 32 + [(OUTPUT, GPU)]
    plain = roofline.estimate(model)
    kept = roofline.estimate(model, draft=Draft(layers=((DENSE, GPU),), n_tokens=3, acceptance=0.9))
    lost = roofline.estimate(model, draft=Draft(layers=((DENSE, GPU),), n_tokens=3, acceptance=0.05))
    assert plain is not None and kept is not None and lost is not None
    assert lost.decode_tokens_per_s < plain.decode_tokens_per_s < kept.decode_tokens_per_s
    assert kept.high / kept.low > plain.high / plain.low


def test_without_a_bandwidth_there_is_no_speed_but_a_name() -> None:
    roofline = Roofline(machine(device(), device(1, bandwidth_bytes_per_s=None)))
    places = [Place("GPU0"), Place("GPU1")]
    assert roofline.estimate([(DENSE, place) for place in places]) is None
    assert roofline.unknown(places) == ("GPU1",)
    assert roofline.unknown(places[:1]) == ()
    assert roofline.unknown([Place("GPU7")]) == ("GPU7",)
    with pytest.raises(ValueError, match="GPU1: memory bandwidth is unknown"):
        roofline.layer_seconds(DENSE, Place("GPU1"), Step())


def test_what_is_assumed_is_said_and_widens_the_band() -> None:
    model = [(EXPERTS, Place("GPU0", experts=HOST_POOL))] * 32
    known = Roofline(machine(device())).estimate(model)
    assumed = Roofline(machine(device(), bandwidth=None, n_cores=None)).estimate(model)
    assert known is not None and assumed is not None
    assert known.basis == "roofline, experts in RAM"
    assert assumed.basis == ("roofline, experts in RAM; assumed: 8 cores, memory at 51 GB/s (2 channels of DDR4-3200)")
    assert assumed.high / assumed.low > known.high / known.low
    linked = Roofline(machine(device(link_bytes_per_s=None))).estimate([(DENSE, GPU)])
    assert linked is not None
    assert "GPU0 linked at 16 GB/s" in linked.basis


def test_more_cores_are_assumed_to_have_more_channels() -> None:
    def rate(n_cores: int) -> float:
        found = Roofline(machine(bandwidth=None, n_cores=n_cores)).estimate([(DENSE, CPU)] * 32)
        assert found is not None
        return found.decode_tokens_per_s

    assert rate(8) == pytest.approx(rate(16), rel=1e-3)
    assert rate(16) < rate(32) < rate(64) < rate(96)


def test_without_an_fp16_rate_decoding_is_told_and_prefill_is_not() -> None:
    speed = Roofline(machine(device(fp16_flops_per_s=None))).estimate([(DENSE, GPU)] * 32)
    assert speed is not None
    assert speed.prefill_tokens_per_s is speed.prefill_low is speed.prefill_high is None


def test_unified_memory_needs_no_link_and_takes_the_hosts_bandwidth() -> None:
    shared = device(pool=HOST_POOL, api="metal", bandwidth_bytes_per_s=None, link_bytes_per_s=None)
    speed = Roofline(machine(shared, bandwidth=800 * GB)).estimate([(DENSE, GPU)] * 32)
    assert speed is not None
    assert speed.basis == "roofline, device"


@pytest.mark.parametrize(
    ("places", "kind"),
    [
        ([GPU], "device"),
        ([CPU], "processor"),
        ([CPU, GPU], "layers in RAM"),
        ([GPU, Place("GPU1")], "devices"),
        ([GPU, Place("GPU0", experts=HOST_POOL)], "experts in RAM"),
        ([GPU, Place("GPU0", cache=HOST_POOL)], "cache in RAM"),
        ([Place("GPU0", ranks=("GPU0", "GPU1"))], "tensor parallel"),
    ],
)
def test_placements_have_names(places: list[Place], kind: str) -> None:
    assert placement(places) == kind
    assert kind in TABLE.decode and kind in TABLE.prefill


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("f16", "float"),
        ("BF16", "float"),
        ("f32", "float"),
        ("q8_0", "byte"),
        ("F8_E4M3", "byte"),
        ("I8", "byte"),
        ("q4_0", "block"),
        ("mxfp4", "block"),
        ("iq4_xs", "block"),
        ("q4_K", "super"),
        ("q6_K", "super"),
        ("q3_K", "super3"),
        ("tq1_0", "super3"),
        ("iq2_xxs", "codebook"),
        ("something-new", "block"),
    ],
)
def test_storage_types_have_classes(name: str, kind: str) -> None:
    assert quant_class(name) == kind
    assert kind in TABLE.quant and kind in TABLE.quant_flops


@pytest.mark.parametrize(
    ("capability", "name"),
    [((6, 1), "ampere"), ((8, 6), "ampere"), ((8, 9), "ada"), ((12, 0), "blackwell"), (None, "other")],
)
def test_generations_follow_the_compute_capability(capability: tuple[int, int] | None, name: str) -> None:
    assert generation(device(compute_capability=capability)) == name
    assert name in TABLE.clock


def test_reads_add_up_by_type() -> None:
    tensors = [
        TensorInfo("a", "q4_K", (2, 256), 288, 0, 0),
        TensorInfo("b", "f32", (256,), 1024, 0, 288),
        TensorInfo("c", "q4_K", (256,), 144, 0, 1312),
    ]
    assert reads(tensors) == (Read("q4_K", 432, 768), Read("f32", 1024, 256))


def test_kernels_grow_with_what_a_block_has() -> None:
    assert n_kernels("full", "dense") < n_kernels("full", "experts")
    assert n_kernels("full", "experts") < n_kernels("full", "experts", has_shared_experts=True)
    assert n_kernels("full", "dense") + 4 == n_kernels("full", "dense", n_norms=6)
    assert n_kernels("none", "none", n_norms=0) == 0


def test_the_table_is_within_nature() -> None:
    for name, row in (*TABLE.rows.items(), *LLAMA.rows.items(), *VLLM.rows.items()):
        for field in ("weights", "experts", "cache", "flops", "attention", "vector"):
            assert 0 < getattr(row, field) < 1, (name, field)
        assert 0 < row.kernel_s < 1e-4
        assert math.isfinite(row.step_s)
    assert all(band.factor > 1 for band in (*TABLE.decode.values(), *TABLE.prefill.values()))
    assert TABLE.rows["default"].n == TABLE.rows["cpu"].n == 0
    assert all(row.n > 0 for row in (*LLAMA.rows.values(), *VLLM.rows.values()))


def test_an_unknown_api_has_the_default_row() -> None:
    speed = Roofline(machine(device(api="cann"))).estimate([(DENSE, GPU)] * 32)
    cuda = Roofline(machine(device())).estimate([(DENSE, GPU)] * 32)
    assert speed is not None and cuda is not None
    assert speed.decode_tokens_per_s < cuda.decode_tokens_per_s
    assert speed.high / speed.decode_tokens_per_s > 2 > cuda.high / cuda.decode_tokens_per_s
    assert speed.basis.endswith("no runs of this engine on GPU0 to compare with")


def test_an_engine_of_which_nothing_is_measured_says_so() -> None:
    speed = AnyRoofline(machine(device())).estimate([(DENSE, GPU)] * 32)
    assert speed is not None
    assert speed.high / speed.low > 4
    assert "no runs of this engine" in speed.basis
