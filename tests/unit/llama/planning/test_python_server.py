"""Plans for `python -m llama_cpp.server`: whole layers, one sequence, logits that RAM has room for or not."""

from __future__ import annotations

from typing import Any

import autofit
import pytest
from autofit.domain.plan import Plan
from autofit.domain.request import Request
from autofit.domain.values import replace
from autofit.errors import UsageError

from autofit_llama.backend import LlamaBackend
from support.descriptors import spec

SERVER = ("python", "-m", "llama_cpp.server")
LLAMA, EXPERTS = "llama-3.1-8b-Q4_K_M", "qwen3-30b-a3b-Q4_K_M"
CARD = ("rtx-3060-12gb",)


def plan(model: str, on: tuple[str, ...], *flags: str, ram: str = "64GiB", **wishes: Any) -> Plan:
    backend = LlamaBackend()
    request = Request(program=SERVER, engine_args=("--model", "m.gguf", *flags), alternatives=False, **wishes)
    machine = autofit.load_machine(*on, ram=ram)
    found = backend.plan(backend.command(request), spec("models", model), machine, request)
    again = backend.check(backend.parse(found.argv), spec("models", model), machine, replace(request, device=()))
    assert [pool.used_bytes for pool in again.memory.pools] == [pool.used_bytes for pool in found.memory.pools]
    return found


def value(found: Plan, flag: str) -> str | None:
    return next((found.argv[i + 1] for i, word in enumerate(found.argv) if word == flag), None)


@pytest.mark.slow_cases("qwen3-30b-a3b-Q4_K_M-rtx-3060-12gb")
@pytest.mark.parametrize("on", [CARD, ("rtx-3060-12gb", "rtx-3090"), ("cpu",)], ids="+".join)
@pytest.mark.parametrize("model", [LLAMA, EXPERTS])
def test_a_plan_that_fits_in_its_own_flags(model: str, on: tuple[str, ...]) -> None:
    found = plan(model, on)
    assert found.fits and found.argv[:5] == (*SERVER, "--model", "m.gguf")
    assert not any(word.startswith("-") and "_" not in word and word != "--model" for word in found.argv[3:])
    assert found.kwargs["n_ctx"] == found.context_tokens == int(value(found, "--n_ctx") or 0)
    assert found.kwargs["logits_all"] is (value(found, "--logits_all") != "false")


def test_logits_are_kept_where_ram_has_room() -> None:
    """131,072 tokens of a vocabulary of 128,256 are 62.6 GiB."""
    kept = plan(LLAMA, ("rtx-3090",), "--n_ctx", "131072", ram="80GiB")
    assert kept.fits and value(kept, "--logits_all") is None
    logits = next(item for item in kept.memory.pool("host").items if item.label == "logits of every token")
    assert logits.n_bytes == 4 * 128_256 * 131_072 and logits.when == "the context is full"
    left = plan(LLAMA, ("rtx-3090",), "--n_ctx", "131072", ram="40GiB")
    assert left.fits and value(left, "--logits_all") == "false"
    asked = plan(LLAMA, ("rtx-3090",), "--n_ctx", "131072", "--logits_all", "true", ram="40GiB")
    assert not asked.fits


def test_locked_weights_count_and_are_let_go_where_they_do_not_fit() -> None:
    fits = plan(LLAMA, ("cpu",), "--n_ctx", "2048", ram="16GiB")
    assert value(fits, "--use_mlock") is None
    weights = next(item for item in fits.memory.pool("host").items if item.kind == "weights")
    assert not weights.mapped


def test_a_smaller_cache_is_taken_where_it_is_worth_it() -> None:
    found = plan(LLAMA, CARD, "--n_ctx", "131072", ram="16GiB")
    assert found.fits and (value(found, "--type_k"), value(found, "--flash_attn")) == ("8", "true")


def test_experts_are_not_taken_apart() -> None:
    found = plan(EXPERTS, CARD)
    assert found.fits and 0 < int(value(found, "--n_gpu_layers") or 0) < 49


def test_a_device_alone() -> None:
    found = plan(LLAMA, ("rtx-3060-12gb", "rtx-3090"), device=("1",))
    assert (value(found, "--split_mode"), value(found, "--main_gpu")) == ("0", "1")
    assert found.memory.pools[0].name == "NVIDIA GeForce RTX 3090"


@pytest.mark.parametrize(
    ("flags", "wishes", "message"),
    [
        (("--n_ctx", "4096"), {"context": 8192}, "--n_ctx 4096 contradicts --context 8192"),
        (("--type_k", "1"), {"kv": "q8_0"}, "--type_k f16 contradicts --kv q8_0"),
        ((), {"parallel": 2}, "serves one sequence"),
        (("--tensor_split", "1", "2", "3"), {}, "--tensor_split has 3 numbers for 1 device"),
    ],
)
def test_what_cannot_both_hold(flags: tuple[str, ...], wishes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(LLAMA, CARD, *flags, **wishes)


def test_cached_prompts_take_their_logits_along() -> None:
    def cached(*flags: str) -> int:
        found = plan(LLAMA, CARD, "--n_ctx", "8192", "--cache", "true", *flags)
        return next(item.n_bytes for item in found.memory.pool("host").items if item.label == "cached prompts")

    assert cached("--logits_all", "false") == 2 << 30
    assert cached() == (2 << 30) + (2 << 30) * 4 * 128_256 * 8192 // (8192 * 131_072)


def test_nothing_is_added_to_a_file_of_settings(tmp_path: Any) -> None:
    path = tmp_path / "settings.json"
    path.write_text('{"models": [{"model": "m.gguf", "n_ctx": 131072, "n_gpu_layers": -1}]}', encoding="utf-8")
    backend, machine = LlamaBackend(), autofit.load_machine(*CARD, ram="64GiB")
    request = Request(program=SERVER, engine_args=("--config_file", str(path)))
    found = backend.plan(backend.command(request), spec("models", LLAMA), machine, request)
    assert not found.fits and found.argv == (*SERVER, "--config_file", str(path))
    request = Request(program=SERVER, engine_args=("--config_file", str(path)), context=4096)
    with pytest.raises(UsageError, match="takes its settings from"):
        backend.plan(backend.command(request), spec("models", LLAMA), machine, request)
