"""Which device gets which layer, and which buffer each tensor."""

from __future__ import annotations

import pytest
from autofit.errors import AutofitError, EngineRefusalError

from autofit_llama.engine.vocabulary import Override
from autofit_llama.graph.devices import CUDA, RPC
from autofit_llama.graph.ggml import HOST, HOST_REPACKED
from autofit_llama.launch.defaults import buffer_names
from autofit_llama.memory.placement import (
    HOST_PINNED,
    buffer_rules,
    f32,
    matcher,
    place_layers,
    repacks,
    weight_supported,
)
from support.commands import model_of

HP = model_of("models", "llama-3.1-8b-Q4_K_M")[1]


def test_all_layers_on_one_device() -> None:
    placement = place_layers(4, -1, (1.0,))
    assert placement.blocks == (0, 0, 0, 0)
    assert placement.output == 0


def test_the_output_counts_as_a_layer() -> None:
    assert place_layers(4, 4, (1.0,)).blocks == (HOST, 0, 0, 0)
    one = place_layers(4, 1, (1.0,))
    assert (one.blocks, one.output) == ((HOST,) * 4, 0)
    none = place_layers(4, 0, (1.0,))
    assert (none.blocks, none.output) == ((HOST,) * 4, HOST)


def test_proportions() -> None:
    assert place_layers(3, -1, (1.0, 1.0)).blocks == (0, 0, 1)
    assert place_layers(3, 99, (3.0, 1.0)).output == 1
    assert place_layers(3, -1, (0.0, 1.0)).blocks == (1, 1, 1)


def test_missing_proportions_are_zero() -> None:
    assert place_layers(3, -1, (1.0,), 2).blocks == (0, 0, 0)


def test_no_devices() -> None:
    assert place_layers(3, -1, ()).blocks == (HOST,) * 3


def test_single_precision_decides() -> None:
    """With 24 and 12 GiB of 48 layers a double would give the first device one block more."""
    in_doubles = [d for il in range(49) for d in [0 if il / 49 < 2 / 3 else 1]]
    placed = place_layers(48, -1, (24576.0 * 2**20, 12288.0 * 2**20))
    assert [*placed.blocks, placed.output] == in_doubles
    assert f32(1 / 3) != 1 / 3
    # a boundary that falls on a layer: 3 of 10 equal parts, in single precision just above 0.3
    assert place_layers(9, -1, (3.0, 7.0)).blocks == tuple(0 if f32(il / 10) < f32(3 / 10) else 1 for il in range(9))


def test_the_input_layer_stays_on_the_host() -> None:
    assert place_layers(2, -1, (1.0,)).of(-1) == HOST
    assert place_layers(2, -1, (1.0,)).of(2) == 0


@pytest.mark.parametrize(
    ("override", "yes", "no"),
    [
        (Override(kind="cpu_moe"), "blk.7.ffn_gate_exps.weight", "blk.7.ffn_gate.weight"),
        (Override(kind="cpu_moe"), "blk.7.ffn_up_chexps.weight", "blk.7.ffn_gate_shexp.weight"),
        (Override(kind="n_cpu_moe", n_blocks=3), "blk.2.ffn_down_exps.weight", "blk.3.ffn_down_exps.weight"),
        (Override(kind="n_cpu_moe", n_blocks=2), "blk.1.ffn_gate_up_exps.weight", "blk.11.ffn_up_exps.weight"),
        (Override(kind="n_cpu_ffn", n_blocks=1), "blk.0.ffn_up.weight", "blk.0.ffn_up_exps.weight"),
        (Override(kind="pattern", pattern=r"blk\.[02]\."), "blk.2.attn_q.weight", "blk.12.attn_q.weight"),
        (Override(kind="pattern", pattern="attn"), "blk.2.attn_q.weight", "output.weight"),
    ],
)
def test_what_an_override_means(override: Override, yes: str, no: str) -> None:
    matches = matcher(override)
    assert matches(yes)
    assert not matches(no)


def choose(rules: object, name: str = "blk.0.attn_q.weight", *, home: int = 0, kind: str = "q4_K") -> int:
    return rules.choose(name, "MUL_MAT", kind, (4096, 4096), home, HP)  # type: ignore[attr-defined, no-any-return]


def test_the_first_override_that_matches() -> None:
    rules = buffer_rules(
        (CUDA, CUDA),
        names=("CUDA0", "CUDA1"),
        overrides=(
            Override(kind="pattern", pattern="attn_q", buffer="CUDA1"),
            Override(kind="pattern", pattern="attn"),
        ),
    )
    assert choose(rules) == 1
    assert choose(rules, "blk.0.attn_k.weight") == HOST_PINNED
    assert choose(rules, "output.weight") == 0


def test_host_weights_are_pinned_mapped_or_relaid() -> None:
    assert choose(buffer_rules((CUDA,)), home=HOST) == HOST_PINNED
    assert choose(buffer_rules((CUDA,), mmap=True), home=HOST) == HOST
    assert choose(buffer_rules((CUDA,), no_host=True), home=HOST) == HOST_REPACKED
    assert choose(buffer_rules((CUDA,), no_host=True, repack=False), home=HOST) == HOST
    assert choose(buffer_rules(()), home=HOST) == HOST_REPACKED
    assert choose(buffer_rules(()), home=HOST, kind="q6_K") == HOST


def test_unknown_buffers_are_refused() -> None:
    with pytest.raises(EngineRefusalError, match="unknown buffer type 'CUDA3'"):
        buffer_rules((CUDA,), names=("CUDA0",), overrides=(Override(kind="pattern", pattern="a", buffer="CUDA3"),))


def test_memory_of_remote_devices_is_named_with_its_server() -> None:
    names = buffer_names(("RPC0", "RPC1", "CUDA0"), ("a:1", "b:2"))
    assert names == ("RPC0[a:1]", "RPC0[b:2]", "CUDA0")
    there = Override(kind="pattern", pattern="attn_q", buffer="RPC0[b:2]")
    assert choose(buffer_rules((RPC, RPC), names=names[:2], overrides=(there,))) == 1
    only = buffer_rules((RPC,), names=("RPC0",), overrides=(there,))
    assert choose(only, home=HOST) == 0


@pytest.mark.parametrize("pattern", ["(", "[a", "a{2", "*", "(?<n>a)", r"\1", "a{9999}"])
def test_bad_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(AutofitError) as raised:
        buffer_rules((CUDA,), overrides=(Override(kind="pattern", pattern=pattern),))
    assert "\n" not in raised.value.message


def test_what_is_relaid() -> None:
    assert repacks("MUL_MAT", "q4_0", (4096, 4096))
    assert repacks("MUL_MAT_ID", "q4_K", (4096, 1024, 8))
    assert not repacks("MUL_MAT_ID", "q4_K", (4096, 1024, 1))
    assert not repacks("MUL_MAT", "q4_0", (4096, 4095))
    assert not repacks("GET_ROWS", "q4_0", (4096, 4096))


def test_what_a_device_cannot_run_goes_to_the_host() -> None:
    jamba = model_of("tiny", "jamba-dense")[1]
    assert not weight_supported(CUDA, "SSM_SCAN", "f32", (jamba.ssm_d_state, jamba.ssm_d_inner), jamba)
    assert weight_supported(RPC, "SSM_SCAN", "f32", (jamba.ssm_d_state, jamba.ssm_d_inner), jamba)
    assert weight_supported(CUDA, "MUL_MAT", "q4_K", (4096, 4096), HP)
