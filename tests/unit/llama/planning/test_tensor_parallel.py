"""`-sm tensor`: cuts, plans around it, and what it cannot be combined with."""

from __future__ import annotations

from pathlib import Path

import pytest
from autofit.domain.machine import HOST_POOL, Device, Host, Machine
from autofit.domain.plan import Plan
from autofit.domain.request import Request
from autofit.domain.units import GIB, MIB
from autofit.errors import AutofitError, EngineRefusalError
from autofit.readers.gguf import read_gguf

from autofit_llama.backend import LlamaBackend
from autofit_llama.graph.devices import CUDA, RPC
from autofit_llama.memory.estimate import size
from autofit_llama.memory.tensor_split import Slices
from support import ggufs
from support.descriptors import build, description, spec

BACKEND = LlamaBackend()
DENSE, EXPERTS, FUSED, HYBRID = (
    "llama-3.1-8b-Q4_K_M", "mixtral-8x7b-Q4_K_M", "phi-3-mini-4k-F16", "qwen3-next-80b-a3b-Q4_K_M",
)  # fmt: skip


def card(i: int, gib: float, **facts: object) -> Device:
    stated: dict = {"runtime_bytes": 0, "api": "cuda", "bandwidth_bytes_per_s": 900_000_000_000, **facts}
    free = int(gib * GIB)
    return Device(id=f"GPU{i}", index=i, name="a card", total_bytes=free, free_bytes=free, **stated)


def machine(*gib: float, ram_gib: float = 256, **facts: object) -> Machine:
    ram = int(ram_gib * GIB)
    host = Host(total_bytes=ram, available_bytes=ram, n_cores_physical=8, bandwidth_bytes_per_s=60_000_000_000)
    return Machine(host=host, devices=tuple(card(i, size, **facts) for i, size in enumerate(gib)))


def plan(on: Machine, *argv: str, model: str = DENSE, **wishes: object) -> Plan:
    request = Request(engine_args=("-sm", "tensor", *argv), alternatives=False, **wishes)  # type: ignore[arg-type]
    return BACKEND.plan(BACKEND.command(request), spec("models", model), on, request)


def check(on: Machine, *argv: str, model: str = DENSE) -> Plan:
    parsed = BACKEND.parse(("llama-server", "-m", f"{model}.gguf", "-sm", "tensor", *argv))
    return BACKEND.check(parsed, spec("models", model), on)


def value(found: Plan, flag: str) -> str | None:
    return found.argv[found.argv.index(flag) + 1] if flag in found.argv else None


def slices(model: str, n: int, *splits: float, part: str = "models") -> Slices:
    sized = size(spec(part, model))
    return sized.slices((CUDA,) * n, splits, load_mtp=False)


def elements(cut: Slices, name: str) -> list[float]:
    """Of a weight, the part of its length along the cut that each device has."""
    tensor = next(t for t in spec("models", DENSE).tensors if t.name == name)
    parts = cut.weight_bytes(name, tensor.type, tensor.ne)
    return [part / tensor.n_bytes for part in parts]


def test_heads_and_feed_forwards_are_cut_norms_and_embeddings_are_not() -> None:
    even = slices(DENSE, 2)
    for name in ("attn_q", "attn_k", "attn_output", "ffn_up", "ffn_down"):
        assert elements(even, f"blk.0.{name}.weight") == [0.5, 0.5]
    assert elements(even, "blk.0.attn_norm.weight") == [1, 1]
    assert elements(even, "token_embd.weight") == [1, 1]
    assert elements(even, "output.weight") == [0.5, 0.5]


def test_a_group_of_heads_stays_together_and_the_larger_part_goes_round() -> None:
    """Eight heads of K and V on three devices: two, three and three, then three, two and three."""
    three = slices(DENSE, 3)
    assert elements(three, "blk.0.attn_k.weight") == [2 / 8, 3 / 8, 3 / 8]
    assert elements(three, "blk.1.attn_k.weight") == [3 / 8, 2 / 8, 3 / 8]
    assert elements(three, "blk.1.attn_q.weight") == [3 / 8, 2 / 8, 3 / 8]


def test_the_numbers_of_the_split_are_shares_of_every_tensor() -> None:
    assert elements(slices(DENSE, 2, 3, 1), "blk.0.attn_v.weight") == [6 / 8, 2 / 8]
    assert elements(slices(DENSE, 2, 0, 1), "blk.7.ffn_up.weight") == [0, 1]
    assert elements(slices(DENSE, 2, 1, 0), "blk.7.attn_norm.weight") == [1, 1]


def test_one_device_in_place_of_all_does_what_each_can() -> None:
    mixed = Slices(hparams=size(spec("models", DENSE)).hparams, devices=(CUDA, RPC), splits=(), types={}).whole
    assert mixed.alignment == CUDA.alignment
    assert (mixed.pinned_host, mixed.fusion, mixed.pipeline, mixed.offload_min_batch) == (False, False, False, None)


def test_a_plan_keeps_the_mode_and_fills_the_devices_evenly() -> None:
    found = plan(machine(24, 24))
    assert found.fits
    assert found.argv[3:5] == ("-sm", "tensor")
    assert (value(found, "-c"), value(found, "-ngl"), value(found, "-fa")) == ("131072", "33", "on")
    assert "-ts" not in found.argv
    first, second = (found.memory.pool(f"GPU{i}").used_bytes for i in range(2))
    assert abs(first - second) < 64 * MIB
    assert any(finding.code == "experimental-split" for finding in found.findings)


def test_what_is_planned_is_what_is_checked() -> None:
    on = machine(24, 12)
    for model in (DENSE, EXPERTS):
        found = plan(on, model=model)
        again = check(on, *found.argv[5:], model=model)
        assert again.engine_report is not None
        assert found.engine_report == {k: v for k, v in again.engine_report.items() if not k.startswith("allocated")}
        assert again.fits


def test_unequal_devices_get_unequal_parts() -> None:
    found = plan(machine(24, 6), context=131_072)
    assert found.fits
    assert not found.memory.pool(HOST_POOL).sum_bytes("cache")
    shares = [float(share) for share in (value(found, "-ts") or "").split(",")]
    assert shares[0] > 2 * shares[1]
    assert not check(machine(24, 6), "-c", "131072", "-np", "1").fits  # cut evenly


def test_experts_stay_in_main_memory_before_whole_blocks_do() -> None:
    found = plan(machine(8, 8), model=EXPERTS, context=8192)
    assert found.fits
    n = int(value(found, "-ncmoe") or 0)
    assert 0 < n < 32
    assert value(found, "-ngl") == "33"
    closer = check(machine(8, 8), "-c", "8192", "-np", "1", "-ngl", "33", "-ncmoe", str(n - 1), model=EXPERTS)
    assert not closer.fits  # and no more of them than has to


def test_blocks_stay_in_main_memory_where_devices_are_small() -> None:
    found = plan(machine(2, 2), context=8192)
    assert found.fits
    n = int(value(found, "-ngl") or 0)
    assert 0 < n < 33
    assert not check(machine(2, 2), "-c", "8192", "-np", "1", "-ngl", str(n + 1)).fits


@pytest.mark.slow_but("*-24", "llama-*")
@pytest.mark.parametrize("gib", [2, 4, 6, 10, 24])
@pytest.mark.parametrize("model", [DENSE, EXPERTS, FUSED, HYBRID])
def test_no_device_is_planned_beyond_what_it_has(gib: int, model: str) -> None:
    found = plan(machine(gib, gib, 2 * gib), model=model)
    assert found.fits
    assert all(pool.shortfall_bytes <= 0 for pool in found.memory.pools)


def test_what_cannot_fit_says_by_how_much() -> None:
    found = plan(machine(1, 1, ram_gib=2))
    assert not found.fits
    assert [f.code for f in found.findings if f.severity == "error"] == ["does-not-fit"]
    assert not any("one device" in f.message for f in found.findings)


def test_a_lossy_cache_is_taken_when_asked_for_alone() -> None:
    assert "-ctk" not in plan(machine(8, 8), kv="auto", context=131_072).argv
    assert value(plan(machine(8, 8), kv="q8_0"), "-ctk") == "q8_0"


def test_all_devices_take_part_remote_ones_last() -> None:
    on = machine(24, 24)
    remote = Device(id="far", index=2, name="remote", api="rpc", total_bytes=24 * GIB, free_bytes=24 * GIB)
    near = card(3, 24, integrated=True)
    found = check(Machine(host=on.host, devices=(remote, *on.devices, near)), "-c", "4096")
    assert [device["id"] for device in found.engine_report["devices"]] == ["GPU0", "GPU1", "GPU3", "far"]


@pytest.mark.parametrize(
    ("model", "argv", "message"),
    [
        ("deepseek-v2-lite-Q4_K_M", (), "not implemented for architecture 'deepseek2'"),
        (DENSE, ("-fa", "off"), "requires flash_attn"),
        (DENSE, ("-ot", "ffn_down=CUDA1"), "CUDA1 alone"),
        (DENSE, ("-ot", "attn_q=CPU"), "blk.0.attn_q.weight is on the host"),
        (DENSE, ("-ot", "blk.7.attn=CPU"), "blk.7.attn_q.weight is on the host"),
        (DENSE, ("-ot", "ffn_(up|gate)=CPU"), "blk.0.ffn_up.weight is on the host"),
        (EXPERTS, ("-ot", "blk.3.ffn_up_exps=CPU"), "blk.3.ffn_up_exps.weight is on the host"),
        (HYBRID, ("-ot", "ssm_conv=CPU"), "ssm_conv1d.weight is on the host"),
        (DENSE, ("-nkvo", "-np", "2"), "several sequences"),
        (FUSED, ("-nkvo",), "fused attention"),
        (HYBRID, ("-nkvo",), "on the host"),
    ],
)
def test_what_the_engine_does_not_do(model: str, argv: tuple[str, ...], message: str) -> None:
    for ask in (plan, check):
        with pytest.raises(EngineRefusalError) as error:
            ask(machine(24, 24), *argv, model=model)  # type: ignore[operator]
        assert message in error.value.message


@pytest.mark.parametrize(
    ("heads", "argv", "refused"),
    [
        ((4, 1), (), False),
        ((1, 1), (), True),
        ((4, 1), ("-ctk", "q8_0"), True),
        ((4, 1), ("-ctv", "q8_0"), False),  # rotated by halves of a head of 128
        ((8, 1), ("-ctv", "q8_0"), True),
        ((4, 2), ("-ctk", "q8_0", "-ctv", "q8_0"), False),
    ],
)
def test_a_single_head_is_not_rotated(
    tmp_path: Path, heads: tuple[int, int], argv: tuple[str, ...], refused: bool
) -> None:
    path = ggufs.write_llama(tmp_path / "m.gguf", n_layer=3, n_embd=512, n_head=heads[0], n_head_kv=heads[1])
    command = BACKEND.parse(("llama-server", "-m", str(path), "-sm", "tensor", "-c", "4096", *argv))
    if refused:
        with pytest.raises(EngineRefusalError, match="a single head"):
            BACKEND.check(command, read_gguf(path), machine(24, 24))
    else:
        assert BACKEND.check(command, read_gguf(path), machine(24, 24)).fits


def test_a_single_head_with_a_norm_is_for_one_device() -> None:
    described = description("tiny", "qwen3-dense")
    tensors = [[name, ne, 0, offset] for name, ne, _, offset in described["tensors"]]  # all f32
    model = build([{"header_bytes": 0, "file_bytes": 0, **described, "tensors": tensors}], ["m.gguf"])
    command = BACKEND.parse(("llama-server", "-m", "m.gguf", "-sm", "tensor", "-c", "512"))
    assert BACKEND.check(command, model, machine(24)).fits
    with pytest.raises(EngineRefusalError, match="a single head of K, and normalizes it"):
        BACKEND.check(command, model, machine(24, 24))


@pytest.mark.parametrize("pattern", ["attn_output", "ffn_down", "ffn_", "token_embd", r"^output\.weight"])
def test_what_takes_cut_values_may_be_the_hosts(pattern: str) -> None:
    found = check(machine(24, 24), "-c", "4096", "-ot", f"{pattern}=CPU")
    assert found.fits
    assert any(finding.code == "unverified-overrides" for finding in found.findings)


def test_caches_of_one_sequence_may_stay_on_the_host() -> None:
    found = check(machine(24, 24), "-c", "4096", "-np", "1", "-nkvo", "-ot", "attn_=CPU")
    assert found.memory.pool(HOST_POOL).sum_bytes("cache") == 4096 * 32 * 2 * 1024 * 2


def test_a_split_for_other_devices_is_refused() -> None:
    with pytest.raises(AutofitError, match="-ts has 3 numbers for 2 devices"):
        plan(machine(24, 24), "-ts", "1,2,3")


def test_sums_over_devices_take_memory_on_each() -> None:
    on = machine(24, 24, runtime_bytes=None)
    items = check(on, "-c", "4096", "-ub", "1024").memory.pool("GPU1").items
    sums = next(item for item in items if item.label.startswith("sums with the other devices"))
    assert sums.n_bytes == 4 * 4096 * 1024  # one step for two devices, f32
    assert any(item.label == "NCCL" and item.basis == "assumed" for item in items)


def test_blocks_that_are_shared_are_read_faster() -> None:
    on = machine(24, 24, link_bytes_per_s=32_000_000_000, fp16_flops_per_s=10**14)
    tensor = check(on, "-c", "4096", "-np", "1", model="qwen3-32b-Q4_K_M").speed
    parsed = BACKEND.parse(("llama-server", "-m", "x.gguf", "-c", "4096", "-np", "1"))
    layer = BACKEND.check(parsed, spec("models", "qwen3-32b-Q4_K_M"), on).speed
    assert tensor is not None
    assert layer is not None
    assert layer.decode_tokens_per_s < tensor.decode_tokens_per_s < 2 * layer.decode_tokens_per_s
    assert "tensor parallel" in (tensor.basis or "")
