"""What a plan decides, and how it says so."""

from __future__ import annotations

from dataclasses import replace

import autofit
import pytest
from autofit.domain.machine import Device, Host, Machine
from autofit.domain.plan import Plan
from autofit.domain.request import Margin, Request
from autofit.domain.units import GIB, MIB
from autofit.errors import AutofitError, EngineRefusalError, UsageError

from autofit_llama.backend import LlamaBackend
from autofit_llama.launch.margins import default_margin
from autofit_llama.memory.estimate import Estimate
from autofit_llama.memory.layout import MemoryLayout
from autofit_llama.planning import problem as search_problem
from autofit_llama.planning.goals import DECODE_FLOORS
from support.descriptors import spec

BACKEND = LlamaBackend()
DENSE, EXPERTS = "llama-3.1-8b-Q4_K_M", "mixtral-8x7b-Q4_K_M"


def card(i: int, gib: float, *, speed: int = 900_000_000_000, **facts: object) -> Device:
    free = int(gib * GIB)
    stated: dict = {"runtime_bytes": 0, "api": "cuda", "compute_capability": (8, 9), **facts}
    return Device(
        id=f"GPU{i}", index=i, name="a card", total_bytes=free, free_bytes=free, bandwidth_bytes_per_s=speed, **stated
    )


def machine(*cards: Device, ram_gib: float | None = 256) -> Machine:
    ram = None if ram_gib is None else int(ram_gib * GIB)
    host = Host(total_bytes=ram, available_bytes=ram, n_cores_physical=8, bandwidth_bytes_per_s=60_000_000_000)
    return Machine(host=host, devices=cards)


def plan(on: Machine, *argv: str, model: str = DENSE, part: str = "models", **wishes: object) -> Plan:
    request = Request(engine_args=argv, alternatives=False, **wishes)  # type: ignore[arg-type]
    return BACKEND.plan(BACKEND.command(request), spec(part, model), on, request)


def value(found: Plan, flag: str) -> str | None:
    return found.argv[found.argv.index(flag) + 1] if flag in found.argv else None


def test_everything_fits_so_little_is_said() -> None:
    found = plan(machine(card(0, 40)))
    assert found.fits
    assert found.argv == (
        "llama-server", "-m", "llama-3.1-8b-Q4_K_M.gguf", "-c", "131072", "-ngl", "33", "-fa", "on", "-np", "1",
        "-fit", "off",
    )  # fmt: skip
    assert found.context_tokens == found.safe_fill_tokens == 131_072


def test_auto_keeps_layers_on_the_card_and_takes_the_context_that_is_free() -> None:
    found = plan(machine(card(0, 6.5)))
    assert value(found, "-ngl") == "33"
    assert 8192 < int(value(found, "-c") or 0) < 32_768


def started(found: Plan) -> float:
    assert found.speed is not None
    assert found.speed.start_tokens_per_s is not None
    return found.speed.start_tokens_per_s


@pytest.mark.slow_but("20")
@pytest.mark.parametrize("gib", [10, 14, 20])
def test_auto_takes_the_longest_context_that_keeps_nine_tenths_of_the_rate_at_8192(gib: int) -> None:
    on, model = machine(card(0, gib)), "qwen3-30b-a3b-Q4_K_M"
    found, compared = plan(on, model=model), plan(on, model=model, context=8192)
    n_ctx = found.context_tokens or 0
    assert started(found) >= 0.9 * 0.95 * started(compared)  # a larger micro-batch may cost 5 % of both
    if n_ctx > 16_384:
        longer = plan(on, model=model, context=min(40_960, int(1.1 * n_ctx)), kv="f16")
        assert n_ctx == 40_960 or started(longer) < 0.9 * started(compared)


@pytest.mark.slow
def test_auto_goes_no_lower_than_16384_tokens_while_half_the_rate_is_kept() -> None:
    found = plan(machine(card(0, 23.2)), model=EXPERTS)
    half = started(plan(machine(card(0, 23.2)), model=EXPERTS, context=8192)) / 2
    assert (found.context_tokens or 0) >= 16_384
    assert started(found) >= half
    assert any(finding.code == "context-price" for finding in found.findings)


def test_a_context_that_is_asked_for_is_held_exactly_for_every_sequence() -> None:
    found = plan(machine(card(0, 24)), context=10_000, parallel=3)
    assert (value(found, "-c"), value(found, "-np")) == ("30000", "3")
    assert found.context_tokens == 10_240  # the engine rounds cells up
    origins = {decision.setting: decision.origin for decision in found.decisions}
    assert origins["-c"] == origins["-np"] == "user"


def test_max_is_the_longest_that_fits_whatever_it_costs() -> None:
    on = machine(card(0, 6), ram_gib=16)
    long = plan(on, context=0)
    assert long.fits
    assert (long.context_tokens or 0) > (plan(on).context_tokens or 0)
    assert any(finding.code == "context-price" for finding in long.findings)


def floors_reached(found: Plan) -> int:
    rate = found.speed.decode_tokens_per_s if found.speed else 0.0
    return sum(rate >= floor for floor in DECODE_FLOORS)


@pytest.mark.slow
@pytest.mark.parametrize("gib", [16, 24, 32])
def test_the_longest_context_is_found_in_any_range(gib: int) -> None:
    """A model trained for ten million tokens on a card that holds some ten thousand of them."""
    on = machine(card(0, gib, speed=400_000_000_000))
    found = plan(on, model="llama-4-scout-Q4_K_M", prefer="context", kv="f16", parallel=2)
    assert found.fits
    n_ctx = found.context_tokens or 0
    longer = plan(on, model="llama-4-scout-Q4_K_M", context=int(1.2 * n_ctx), kv="f16", parallel=2)
    assert floors_reached(found) > floors_reached(longer)
    longest = plan(on, model="llama-4-scout-Q4_K_M", context=0, parallel=2)
    assert longest.fits
    assert (longest.context_tokens or 0) > n_ctx


def test_experts_stay_in_ram_by_the_shortest_flags() -> None:
    found = plan(machine(card(0, 12)), model=EXPERTS, context=8192)
    assert value(found, "-ngl") == "33"
    assert int(value(found, "-ncmoe") or 0) > 0
    assert value(found, "-t") == "8"
    said = next(decision for decision in found.decisions if decision.setting == "-ncmoe")
    assert said.next_rejected is not None
    assert said.next_rejected.pool == "GPU0"


@pytest.mark.slow
def test_the_next_value_of_experts_in_ram_is_never_the_chosen_one() -> None:
    """With parts of one block more in RAM, what lacks is the same count without them."""
    seen = set()
    for gib, n_ctx in ((8, 8192), (8, 16384), (10, 8192), (10, 16384)):
        found = plan(machine(card(0, gib)), model="qwen3-30b-a3b-Q4_K_M", context=n_ctx)
        said = next(decision for decision in found.decisions if decision.setting == "-ncmoe")
        parts = any(decision.setting == "-ot" for decision in found.decisions)
        if said.next_rejected is not None:
            assert said.next_rejected.value != f"-ncmoe {said.value}"
            assert said.next_rejected.value.endswith(" without -ot") == parts
            seen.add(parts)
    assert seen == {True, False}


def test_at_a_pinned_split_the_faster_command_is_taken_not_the_smaller() -> None:
    """Experts in RAM, all else on the cards, and not whole blocks there."""
    found = plan(machine(card(0, 4), card(1, 5)), "-ts", "1,2", model="qwen3-30b-a3b-Q4_K_M", context=4096)
    assert value(found, "-ngl") == "49"
    assert int(value(found, "-ncmoe") or 0) > 30


@pytest.mark.parametrize(
    ("argv", "model", "n_ubatch", "n_batch"),
    [
        (("--embedding",), "nomic-embed-text-v1.5-Q8_0", "2048", None),
        (("--embedding",), "bge-large-en-v1.5-F16", None, None),
        (("--embedding", "--pooling", "mean"), DENSE, "4096", "4096"),
        (("--embedding", "--pooling", "last"), DENSE, None, None),
    ],
)
def test_an_embedding_is_read_in_one_micro_batch(
    argv: tuple[str, ...], model: str, n_ubatch: str | None, n_batch: str | None
) -> None:
    found = plan(machine(card(0, 24)), *argv, model=model)
    assert (value(found, "-ub"), value(found, "-b")) == (n_ubatch, n_batch)
    assert not {"inputs-one-micro-batch", "no-embeddings"} & {finding.code for finding in found.findings}
    if "last" not in argv:
        assert int(value(found, "-c") or 0) == int(n_ubatch or 512)


def test_what_an_embedding_server_would_refuse_is_told() -> None:
    on, model = machine(card(0, 24)), "nomic-embed-text-v1.5-Q8_0"
    assert "inputs-one-micro-batch" in {f.code for f in plan(on, "--embedding", "-ub", "512", model=model).findings}
    checked = BACKEND.check(BACKEND.parse(("llama-server", "-m", model)), spec("models", model), on)
    assert "no-embeddings" in {finding.code for finding in checked.findings}


@pytest.mark.parametrize("model", ["nomic-embed-text-v1.5-Q8_0", "bge-large-en-v1.5-F16"])
def test_an_embedding_model_gets_the_flag_without_which_the_server_refuses_requests(model: str) -> None:
    found = plan(machine(card(0, 24)), model=model)
    assert "--embedding" in found.argv
    assert "no-embeddings" not in {finding.code for finding in found.findings}
    assert "--embedding" not in plan(machine(card(0, 24))).argv


def test_a_server_for_embeddings_keeps_past_prompts_only_of_idle_slots() -> None:
    def grows(model: str, *argv: str) -> bool:
        found = BACKEND.check(
            BACKEND.parse(("llama-server", "-m", model, "-c", "4096", *argv)),
            spec("models", model),
            machine(card(0, 24)),
        )
        return any("prompt cache" in item.label for item in found.memory.pool("host").items)

    assert not grows("bge-large-en-v1.5-F16", "--embedding", "-np", "4")  # no state that could be kept
    assert not grows(DENSE, "--embedding", "-np", "1")
    assert grows(DENSE, "--embedding", "-np", "4")
    assert grows(DENSE, "-np", "1")


@pytest.mark.slow
def test_attention_stays_on_the_card_where_a_cache_in_ram_would_slow_a_filled_context() -> None:
    found = plan(machine(card(0, 12, speed=360_000_000_000), ram_gib=64), model="qwen3-32b-Q4_K_M")
    assert found.fits and found.speed is not None
    assert value(found, "-ngl") == "65"
    assert "-ncffn" in found.argv
    assert found.speed.decode_tokens_per_s > 0.9 * (found.speed.start_tokens_per_s or 0)
    assert "lossless-cache" in {finding.code for finding in found.findings}
    layers = plan(machine(card(0, 12, speed=360_000_000_000), ram_gib=64), "-ncffn", "0", model="qwen3-32b-Q4_K_M")
    assert layers.speed is not None
    assert found.speed.decode_tokens_per_s > 1.3 * layers.speed.decode_tokens_per_s


def test_prompts_that_matter_get_ram_for_those_that_come_again() -> None:
    found = plan(machine(card(0, 48)), prefer="throughput", min_context=32_768)
    held = int(value(found, "-cram") or 0) << 20
    one = found.memory.pool("GPU0").sum_bytes("cache")
    assert 4 * one - (1 << 20) < held <= 4 * one
    assert "prompt-cache" in {finding.code for finding in found.findings}
    assert "-cram" not in plan(machine(card(0, 48))).argv


def test_the_faster_of_two_cards_is_used_alone_when_it_holds_everything() -> None:
    found = plan(machine(card(0, 12, speed=300_000_000_000), card(1, 24)), context=8192)
    assert value(found, "-dev") == "CUDA1"
    assert "-ts" not in found.argv


def test_two_cards_share_rows_as_the_engine_will() -> None:
    found = plan(machine(card(0, 4), card(1, 4)), context=8192)
    assert found.fits
    rows = [int(n) for n in (value(found, "-ts") or "").split(",")]
    assert sum(rows) == 33
    assert abs(rows[0] - rows[1]) <= 2


def test_no_card_is_a_normal_case() -> None:
    found = plan(machine(ram_gib=48))
    assert found.fits
    assert not {"-ngl", "-dev", "-ts"} & set(found.argv)
    assert value(found, "-t") == "8"
    assert value(found, "-c") == "131072"


def test_unified_memory_is_one_pool() -> None:
    shared = card(0, 32, pool="host", api="metal")
    found = plan(machine(shared, ram_gib=32), context=8192)
    assert [pool.id for pool in found.memory.pools] == ["host"]
    assert found.fits
    assert found.memory.pools[0].sum_bytes("cache") > 0


@pytest.mark.slow
def test_unified_memory_has_no_more_on_the_host_than_the_device_cannot_take() -> None:
    """A device's own limit is filled first; beyond it, the pool's room counts for both."""
    shared = replace(card(0, 16, pool="host", api="metal"), free_bytes=12 * GIB)
    found = plan(machine(shared, ram_gib=64), model=EXPERTS, context=8192)
    assert found.fits
    n_in_ram = int(value(found, "-ncmoe") or 0)
    assert 0 < n_in_ram < 32
    argv = list(found.argv)
    argv[argv.index("-ncmoe") + 1] = str(n_in_ram - 1)
    assert not BACKEND.check(BACKEND.parse(argv), spec("models", EXPERTS), machine(shared, ram_gib=64)).fits


def test_unified_memory_gets_the_longest_context_that_the_device_can_take() -> None:
    shared = replace(card(0, 16, pool="host", api="metal"), free_bytes=8 * GIB)
    on = machine(shared, ram_gib=64)
    found = plan(on)
    longer = list(found.argv)
    longer[longer.index("-c") + 1] = str((found.context_tokens or 0) + 256)
    assert found.fits
    assert 4096 < (found.context_tokens or 0) < 32_768
    assert not BACKEND.check(BACKEND.parse(longer), spec("models", DENSE), on).fits


def estimates_of(monkeypatch: pytest.MonkeyPatch, on: Machine, *argv: str, **more: object) -> tuple[Plan, int]:
    """A plan, and how many full estimates it took."""
    made = []
    real = search_problem.estimate

    def counted(*args: object, layout: MemoryLayout | None) -> Estimate:
        found = real(*args, layout=layout)  # type: ignore[arg-type]
        made.extend([found] if layout is None else [])  # with a known layout it is a sum, no replay
        return found

    monkeypatch.setattr(search_problem, "estimate", counted)
    return plan(on, *argv, **more), len(made)  # type: ignore[arg-type]


def test_where_everything_fits_one_estimate_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    found, n = estimates_of(monkeypatch, machine(card(0, 40)), context=None)
    assert found.context_tokens == 131_072
    assert n == 1


def test_what_nobody_asked_to_see_is_not_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    on = machine(card(0, 12))
    told, n_told = estimates_of(monkeypatch, on, model=EXPERTS, context=4096)
    monkeypatch.undo()
    brief, n_brief = estimates_of(monkeypatch, on, model=EXPERTS, context=4096, explain=False)
    assert brief.argv == told.argv
    assert any(decision.next_rejected for decision in told.decisions)
    assert not any(decision.next_rejected for decision in brief.decisions)
    assert n_brief == n_told - 1


@pytest.mark.parametrize("seconds", [True, False])
def test_a_split_that_is_pinned_may_do_without_overlapping_micro_batches(seconds: bool) -> None:
    """Copies for overlap count only where micro-batches do overlap."""
    on = machine(card(0, 3639 / 1024), card(1, 2867 / 1024, speed=360_000_000_000))
    found = plan(
        on,
        "-ts",
        "2,2",
        *(("-ub", "256") if seconds else ()),
        margin=(Margin(n_bytes=256 * MIB),),
        context=4096,
    )
    assert found.fits
    assert value(found, "-ngl") == "33"
    assert "no_such_tensor=CPU" in (value(found, "-ot") or "")


@pytest.mark.parametrize(
    ("model", "argv"), [(DENSE, ("-ts", "1,1")), (EXPERTS, ("-ts", "1,3")), (EXPERTS, ("-ncmoe", "20", "-ts", "1,5"))]
)
def test_a_pinned_split_that_cannot_fit_is_refused_after_few_estimates(
    monkeypatch: pytest.MonkeyPatch, model: str, argv: tuple[str, ...]
) -> None:
    on = machine(card(0, 4), card(1, 2), ram_gib=1)
    found, n = estimates_of(monkeypatch, on, *argv, model=model, context=8192)
    assert not found.fits
    said = [finding.message for finding in found.findings if finding.code == "would-fit"]
    assert said
    assert not any("one device" in message for message in said)  # a split for two says nothing about one
    assert n <= 20


@pytest.mark.parametrize(
    ("argv", "wishes", "message"),
    [
        (("-c", "4096"), {"context": 8192}, "-c 4096 contradicts --context 8192"),
        (("-np", "2"), {"parallel": 4}, "-np 2 contradicts --parallel 4"),
        (("-ctk", "q8_0"), {"kv": "f16"}, "-ctk q8_0 contradicts --kv f16"),
        (("-dev", "CUDA0"), {"device": ("GPU0",)}, "-dev contradicts --device"),
        (("-dev", "CUDA7"), {}, "CUDA7"),
        ((), {"device": ("GPU7",)}, "no device 'GPU7' here"),
        (("-ts", "1,2,3"), {}, "-ts has 3 numbers for 2 devices"),
        (("-c", "-5"), {}, "-c -5"),
        (("-c", "99999999999"), {}, "-c"),
        (("-np", "1000"), {}, "-np 1000"),
        (("-ncmoe", "4"), {}, "has no experts"),
        (("-sm", "tensor", "-fa", "off"), {}, "requires flash_attn"),
        (("-sm", "none", "-mg", "5"), {}, "-mg 5"),
        (("-ot", "blk.(=CPU"), {}, "blk.("),
        (("-ot", "blk.1=CUDA9"), {}, "CUDA9"),
        ((), {"margin": (Margin(n_bytes=80 * GIB),)}, "--margin 80.00 GiB leaves nothing"),
    ],
)
def test_what_cannot_be_meant_is_one_line(argv: tuple[str, ...], wishes: dict, message: str) -> None:
    with pytest.raises(AutofitError) as error:
        plan(machine(card(0, 24), card(1, 24)), *argv, **wishes)
    assert message in error.value.message
    assert "\n" not in error.value.message
    assert len(error.value.message) < 300


@pytest.mark.parametrize(
    ("argv", "wishes", "remedy"),
    [
        (("-dev", "Vulkan0"), {}, "devices here: CUDA0, CUDA1; --on CARD@vulkan"),
        (("-dev", "ROCm0"), {}, "devices here: CUDA0, CUDA1"),
        ((), {"margin": (Margin(n_bytes=80 * GIB),)}, "--margin 1GiB"),
    ],
)
def test_what_cannot_be_meant_has_a_remedy(argv: tuple[str, ...], wishes: dict, remedy: str) -> None:
    two = machine(card(0, 24), card(1, 24))
    with pytest.raises(AutofitError) as error:
        plan(two, *argv, **wishes)
    assert remedy in (error.value.hint or "")
    assert ("@vulkan" in (error.value.hint or "")) == ("@vulkan" in remedy)


def test_an_unknown_flag_passes_through_and_is_told() -> None:
    found = plan(machine(card(0, 24)), "--shiny-new", "7", "--temp", "-0.5", engine_version="b99999")
    assert found.argv[3:7] == ("--shiny-new", "7", "--temp", "-0.5")
    assert any(finding.code == "unknown-flags" for finding in found.findings)


def test_variables_are_pins_and_said_by_the_command() -> None:
    found = plan(machine(card(0, 24)), engine_env={"LLAMA_ARG_CTX_SIZE": "2048"})
    assert found.argv.count("-c") == 1
    assert found.context_tokens == 2048
    pin = next(decision for decision in found.decisions if decision.setting == "-c")
    assert (pin.value, pin.origin) == ("2048", "environment")


def test_a_wrapped_command_keeps_its_program_and_its_model() -> None:
    command = BACKEND.parse(("/opt/llama-server", "-m", "other.gguf", "--port", "8081"))
    found = BACKEND.plan(command, spec("models", DENSE), machine(card(0, 24)), Request(alternatives=False))
    assert found.argv[:5] == ("/opt/llama-server", "-m", "other.gguf", "--port", "8081")
    assert found.argv.count("-m") == 1


def test_a_pin_that_cannot_hold_is_told_with_the_nearest_value() -> None:
    small, long = machine(card(0, 4)), ("-c", "131072", "-ctk", "f16")
    found = plan(small, "-ngl", "99", *long)
    assert not found.fits
    assert value(found, "-ngl") == "99"
    messages = [finding.message for finding in found.findings]
    assert any(message.startswith("does not fit: GPU0 ") and " needs " in message for message in messages)
    nearest = next(message for message in messages if message.startswith("-ngl 99 does not fit"))
    layers = nearest.split("-ngl ")[2].split()[0]
    assert plan(small, "-ngl", layers, *long).fits


def test_a_context_that_is_too_long_is_told_with_one_that_fits() -> None:
    found = plan(machine(card(0, 6), ram_gib=4), "-ngl", "33", context=131_072)
    assert not found.fits
    fits = next(f.message for f in found.findings if "would fit" in f.message and "context" in f.message)
    tokens = int(fits.split(" tokens")[0].split()[-1])
    assert plan(machine(card(0, 6), ram_gib=4), "-ngl", "33", context=tokens).fits


def test_nothing_fits_and_what_would_is_said() -> None:
    found = plan(machine(card(0, 8), ram_gib=8), model=EXPERTS, context=8192)
    assert not found.fits
    codes = [finding.code for finding in found.findings]
    assert "does-not-fit" in codes
    assert any("would hold the whole model" in finding.message for finding in found.findings)


def test_what_lacks_is_main_memory_where_the_card_can_be_filled_to_its_limit() -> None:
    found = plan(machine(card(0, 23.5), ram_gib=128), model="llama-3.1-405b-Q3_K_M")
    assert [pool.id for pool in found.memory.pools if pool.shortfall_bytes > 0] == ["host"]


def test_a_lossy_cache_is_only_chosen_where_it_is_allowed_and_helps() -> None:
    tight = machine(card(0, 6))
    assert "-ctk" not in plan(tight, context=16_384, kv="f16").argv
    allowed = plan(tight, context=16_384)
    assert value(allowed, "-ctk") == "q8_0"
    assert any(finding.code == "lossy-cache" for finding in allowed.findings)
    assert "-ctk" not in plan(machine(card(0, 40)), context=16_384, kv="auto").argv


def test_a_lossy_cache_is_taken_where_nothing_else_reaches_16384_tokens_on_the_card() -> None:
    on = machine(card(0, 21))
    lossless, found = (plan(on, model="qwen3-32b-Q4_K_M", **wishes) for wishes in ({"kv": "f16"}, {}))
    assert (lossless.context_tokens or 0) < 16_384
    assert value(found, "-ctk") == "q8_0"
    assert (found.context_tokens or 0) >= 16_384
    assert found.speed is not None and lossless.speed is not None
    assert found.speed.decode_tokens_per_s >= 0.5 * lossless.speed.decode_tokens_per_s
    message = next(finding.message for finding in found.findings if finding.code == "lossy-cache")
    assert "f16" in message


def test_a_lossy_cache_is_tried_where_a_slower_card_holds_the_rest() -> None:
    on = machine(card(0, 8), card(1, 8, speed=100_000_000_000))
    assert value(plan(on, context=32_768, kv="f16"), "-ts") is not None
    found = plan(on, context=32_768)
    assert value(found, "-ctk") == "q8_0"
    assert "-ts" not in found.argv


def test_without_a_device_a_lossy_cache_keeps_nothing_out_of_ram() -> None:
    roomy = plan(machine(ram_gib=64), context=65_536)
    assert "-ctk" not in roomy.argv
    assert all(finding.code != "lossy-cache" for finding in roomy.findings)
    lossless = plan(machine(ram_gib=11), context=65_536, kv="f16")
    only_way = plan(machine(ram_gib=11), context=65_536)
    assert not lossless.fits
    assert only_way.fits
    assert value(only_way, "-ctk") == "q8_0"
    assert (plan(machine(ram_gib=11), context=0).context_tokens or 0) > (
        plan(machine(ram_gib=11), context=0, kv="f16").context_tokens or 0
    )


def test_the_prompt_cache_is_cut_to_what_main_memory_has_left() -> None:
    found = plan(machine(card(0, 12), ram_gib=21), model=EXPERTS, context=8192)
    assert found.fits
    assert 0 <= int(value(found, "-cram") or -1) < 8192
    assert "-cram" not in plan(machine(card(0, 12), ram_gib=128), model=EXPERTS, context=8192).argv


def test_pinned_numbers_stay_those_of_the_devices_they_count() -> None:
    found = plan(machine(card(0, 24), card(1, 24)), "-sm", "none", "-mg", "1")
    assert "-dev" not in found.argv
    assert [pool.id for pool in found.memory.pools] == ["GPU1", "host"]


def test_a_longer_context_than_trained_is_allowed_and_warned_of() -> None:
    found = plan(machine(card(0, 80)), context=200_000)
    assert found.fits
    assert any("RoPE scaling" in finding.message for finding in found.findings)


def test_keyword_arguments_say_what_the_class_would_otherwise_not_do() -> None:
    found = plan(machine(card(0, 24)), context=8192)
    expected = {
        "n_gpu_layers": 33,
        "n_ctx": 8192,
        "flash_attn": True,
        "swa_full": False,
        "n_batch": 512,
        "n_ubatch": 512,
    }
    assert {name: found.kwargs[name] for name in expected} == expected
    experts = plan(machine(card(0, 12)), model=EXPERTS, context=8192)
    assert "-ot" in experts.argv or "-ncmoe" in experts.argv  # which the class does not have: fewer layers instead
    assert 0 < experts.kwargs["n_gpu_layers"] < 33


@pytest.mark.slow
def test_alternatives_are_better_in_something() -> None:
    request = Request(engine_args=(), alternatives=True)
    found = BACKEND.plan(BACKEND.command(request), spec("models", EXPERTS), machine(card(0, 12)), request)
    assert 2 <= len(found.alternatives) <= 5
    for other in found.alternatives:
        assert other.title
        assert other.because
        assert other.argv[:3] == found.argv[:3]


def test_older_builds_get_flags_they_have() -> None:
    found = plan(machine(card(0, 24)), engine_version="b5000")
    assert "-fit" not in found.argv
    assert "-fa" in found.argv
    assert value(found, "-fa") != "on"


@pytest.mark.parametrize(
    ("device", "n_bytes"),
    [
        (card(0, 10), 0),
        (card(0, 10, runtime_bytes=300 * MIB), 64 * MIB + GIB // 10),
        (card(0, 10, runtime_bytes=None, n_sm=82), 64 * MIB + GIB // 10),
        (card(0, 10, runtime_bytes=None, api="vulkan"), 256 * MIB + GIB // 5),
    ],
)
def test_the_default_margin_follows_from_the_basis(device: Device, n_bytes: int) -> None:
    margin, because = default_margin(device)
    assert margin.of(device.total_bytes or 0) == pytest.approx(n_bytes, abs=2)
    assert because


def test_the_engines_own_refusal_is_passed_on() -> None:
    with pytest.raises((EngineRefusalError, UsageError)) as error:
        plan(machine(card(0, 24)), "-fa", "off", "-ctk", "q8_0", "-ctv", "q8_0")
    assert "flash attention" in error.value.message


def test_wishes_keep_their_origin() -> None:
    request = Request(context=8192, origins={"context": "preset"}, alternatives=False)
    found = BACKEND.plan(BACKEND.command(request), spec("models", DENSE), machine(card(0, 24)), request)
    assert next(d.origin for d in found.decisions if d.setting == "-c") == "preset"
    assert replace(request).origin("context") == "preset"


@pytest.mark.slow
def test_the_nearest_context_is_the_longest_and_not_the_fastest() -> None:
    on = machine(card(0, 8), ram_gib=32)
    found = plan(on, model=EXPERTS, context=1 << 20)
    (said,) = (f.message for f in found.findings if "would fit" in f.message)
    longest = int(said.split()[3])
    assert plan(on, model=EXPERTS, context=65_536).fits
    assert longest > 65_536
    assert plan(on, model=EXPERTS, context=longest).fits


@pytest.mark.parametrize("model", ["nomic-embed-text-v1.5-Q8_0", "bge-large-en-v1.5-F16"])
@pytest.mark.parametrize("on", ["m3-max-36gb", "m2-16gb", "rtx-3060"])
def test_an_embedding_model_runs_where_inputs_are_read_fastest(on: str, model: str) -> None:
    """A token alone may be faster on the CPU beside a GPU that has to be started for it; whole inputs are not."""
    found = plan(autofit.load_machine(on), model=model)
    assert "--embedding" in found.argv
    assert "-dev" not in found.argv
    on_cpu = plan(autofit.load_machine(on), "-dev", "none", model=model)
    assert found.speed is not None
    assert on_cpu.speed is not None
    assert (found.speed.prefill_tokens_per_s or 0) > 2 * (on_cpu.speed.prefill_tokens_per_s or 0)


def test_an_embedding_model_decodes_nothing() -> None:
    found = autofit.plan(
        "llama", spec("models", "nomic-embed-text-v1.5-Q8_0"), autofit.load_machine("rtx-3060", ram="32GiB")
    )
    assert found.speed is not None
    assert not found.speed.decodes
    told = found.to_dict()["speed"]
    assert told["decode_tokens_per_s"] is None
    assert told["prefill_tokens_per_s"] > 0


def test_a_default_margin_is_not_called_the_users() -> None:
    small = autofit.load_machine("nvidia:1MiB")
    with pytest.raises(UsageError, match="no more than what is kept free for other programs") as error:
        autofit.plan("llama", "example:tiny", small, settings=None)
    assert "--margin" not in error.value.message and "--margin 0" in (error.value.hint or "")
