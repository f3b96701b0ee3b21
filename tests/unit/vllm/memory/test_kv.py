"""The KV cache: pages, groups, blocks and lengths, in figures that vLLM itself gave or that follow by
hand."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise

import pytest
from autofit.errors import EngineRefusalError

from autofit_vllm.architectures import build_from_config
from autofit_vllm.memory.kv import Group, capacity, fit, group_layers, plan_kv, stage_bounds
from autofit_vllm.memory.kv_pages import LayerCache, packed_bytes
from autofit_vllm.modules.model import IndexerCache, StateCache, VllmModel
from support import DATA, vllm_models
from support.vllm_models import GIB, config


def bytes_per_block(model: VllmModel, on: str, *args: str) -> tuple[int, ...]:
    return plan_kv(model, config(model, on, *args)).bytes_per_block


def test_blocks_of_deepseek_v4_before_they_were_packed() -> None:
    """vllm/issues/44376, release 0.22: 6.66 GiB for 30,000 tokens in steps of 16,384; 13,528 were estimated to fit in
    5.44 GiB. A group of 22 layers reserved 22 of each of the three sizes that the 21 others have."""
    raw = json.loads((DATA / "vllm/configs/deepseek-v4-flash/config.json").read_text(encoding="utf-8"))
    model = build_from_config(raw)
    args = ("-tp", "2", "--kv-cache-dtype", "fp8", "--block-size", "256", "--max-num-batched-tokens", "16384")
    old, new = (
        plan_kv(model, config(model, "h200", *args, "--max-model-len", "30000", version=version))
        for version in ("0.22.0", "0.24.0")
    )
    assert old.bytes_per_block == (22 * (37_440 + 8_640 + 1_728),)
    assert old.request_bytes(30_000) == pytest.approx(6.66 * GIB, abs=0.005 * GIB)
    assert old.request_bytes(13_528) <= 5.445 * GIB < old.request_bytes(13_528 + 256)
    assert new.bytes_per_block == (21 * (37_440 + 8_640) + 20 * 1_728,)


def test_llama_8b() -> None:
    model = vllm_models.llama_8b()
    assert bytes_per_block(model, "h100") == (2_097_152,)
    assert bytes_per_block(model, "h100", "-tp", "4") == (524_288,)
    assert bytes_per_block(model, "h100", "-tp", "16") == (262_144,), "KV heads repeat past their number"
    assert bytes_per_block(model, "h100", "-pp", "3") == (11 * 65_536, 11 * 65_536, 10 * 65_536)


@pytest.mark.parametrize(
    ("kv_dtype", "n_bytes"),
    [
        ("auto", 512),
        ("fp8", 256),
        ("fp8_e5m2", 256),
        ("int8_per_token_head", 264),
        ("fp8_per_token_head", 264),
        ("int4_per_token_head", 136),
        ("nvfp4", 144),
        ("turboquant_k8v4", 196),
        ("turboquant_4bit_nc", 134),
        ("turboquant_k3v4_nc", 118),
        ("turboquant_3bit_nc", 102),
    ],
)
def test_bytes_of_a_token_and_head(kv_dtype: str, n_bytes: int) -> None:
    assert packed_bytes(kv_dtype, "bfloat16", 128, 128) == n_bytes


@pytest.mark.parametrize(
    ("kv_dtype", "block", "n_bytes"),
    [
        ("int8_per_token_head", 16, 473_088),
        ("turboquant_k8v4", 32, 864_256),
        ("turboquant_4bit_nc", 32, 673_792),
    ],
)
def test_quantized_caches_of_qwen2_5_7b(kv_dtype: str, block: int, n_bytes: int) -> None:
    """28 layers of 4 KV heads; TurboQuant keeps two at each end in 16 bits, with blocks that fit both."""
    model = vllm_models.model(
        tuple(vllm_models.full(i, heads=28, kv_heads=4) for i in range(28)), n_heads=28, n_kv_heads=4
    )
    plan = plan_kv(model, config(model, "h100", "--kv-cache-dtype", kv_dtype))
    assert (plan.layout.block_tokens, plan.bytes_per_block) == (block, (n_bytes,))


def test_sliding_window_groups() -> None:
    """52 layers with a window and 10 without make seven groups of ten, two places of which stay empty."""
    model = vllm_models.gemma3_27b()
    resolved = config(model, "h100")
    plan = plan_kv(model, resolved)
    assert [len(group.layers) for group in plan.groups] == [9, 9, 9, 9, 8, 8, 10]
    assert plan.bytes_per_block == (1_310_720,)
    window = plan.groups[0].pages(131_072, in_flight_tokens=2 * 8192, dcp=1)
    assert window == -(-(1024 - 1 + 2 * 8192) // 16) + 1
    assert plan.blocks_per_request(131_072) == 6 * window + 131_072 // 16


def test_smaller_steps_make_windows_cheaper() -> None:
    model = vllm_models.gemma3_27b()
    small = plan_kv(model, config(model, "h100", "--max-num-batched-tokens", "1024"))
    large = plan_kv(model, config(model, "h100"))
    assert small.request_bytes(131_072) < large.request_bytes(131_072)


def test_without_the_hybrid_manager_windows_cost_all() -> None:
    model = vllm_models.gemma3_27b()
    plan = plan_kv(model, config(model, "h100", "--disable-hybrid-kv-cache-manager"))
    assert (len(plan.groups), plan.bytes_per_block) == (1, (8_126_464,))


@pytest.mark.parametrize(
    ("on", "args", "block"),
    [
        ("3090", [], 784),
        ("h100", [], 832),
        ("5090", [], 832),
        ("3090", ["--kv-cache-dtype", "fp8"], 1568),
        ("h100", ["--no-enable-prefix-caching"], 784),
        ("h100", ["--gdn-prefill-backend", "triton"], 784),
        ("3090", ["-tp", "2", "--kv-cache-dtype", "fp8", "--spec-method", "mtp", "--spec-tokens", "3"], 1600),
    ],
)
def test_recurrent_models_grow_their_blocks(on: str, args: list[str], block: int) -> None:
    model = vllm_models.qwen3_6_27b()
    plan = plan_kv(model, config(model, on, *args))
    assert plan.layout.block_tokens == block
    assert len({group.first.page_bytes for group in plan.groups}) == 1


def test_speculation_joins_the_cache() -> None:
    model = vllm_models.qwen3_6_27b()
    plan = plan_kv(model, config(model, "3090", "--spec-method", "mtp", "--spec-tokens", "2"))
    assert [(len(group.layers), group.first.kind) for group in plan.groups][-1] == (17, "full")
    states = [group for group in plan.groups if group.first.kind == "state"]
    assert {group.first.state_pages for group in states} == {2 + 2}


def test_states_without_prefix_cache() -> None:
    model = vllm_models.qwen3_6_27b()
    plan = plan_kv(model, config(model, "h100", "--no-enable-prefix-caching"))
    state = next(group.first for group in plan.groups if group.first.kind == "state")
    assert (state.state_pages, state.block_tokens) == (1, 262_144)


def test_recurrent_models_need_the_hybrid_manager() -> None:
    model = vllm_models.qwen3_6_27b()
    with pytest.raises(EngineRefusalError, match="promote"):
        plan_kv(model, config(model, "h100", "--disable-hybrid-kv-cache-manager"))


def test_attention_free() -> None:
    caches = tuple(
        StateCache(
            name=f"layers.{i}.mixer",
            stage=i,
            kind="mamba1",
            conv_kernel=4,
            intermediate_size=5120,
            state_size=16,
        )
        for i in range(64)
    )
    model = vllm_models.model(caches, is_attention_free=True, n_heads=1, n_kv_heads=1)
    plan = plan_kv(model, config(model, "3090"))
    assert plan.bytes_per_block == (64 * (3 * 5120 + 5120 * 16) * 2,)
    assert plan.blocks_per_request(100_000) == 1


def test_latent_attention_is_the_same_on_every_rank() -> None:
    model = vllm_models.deepseek_v3()
    assert bytes_per_block(model, "h200", "-tp", "8") == (1_124_352,)
    assert bytes_per_block(model, "h200") == (1_124_352,)
    assert bytes_per_block(model, "b200", "-tp", "8") == (2 * 1_124_352,), "blocks of 32"
    assert bytes_per_block(model, "h200", "-tp", "8", "--kv-cache-dtype", "fp8") == (2 * 1_124_352,), "of 64, in 8 bits"


def test_context_parallel_divides_tokens() -> None:
    model = vllm_models.deepseek_v3()
    one = plan_kv(model, config(model, "h200", "-tp", "8"))
    eight = plan_kv(model, config(model, "h200", "-tp", "8", "-dcp", "8"))
    assert eight.request_bytes(163_840) * 8 == one.request_bytes(163_840)
    with pytest.raises(EngineRefusalError, match="sliding window"):
        gemma = dataclasses.replace(vllm_models.gemma3_27b(), n_heads=32, n_kv_heads=1)
        plan_kv(gemma, config(gemma, "h100", "-tp", "2", "-dcp", "2"))


def test_sparse_attention_keeps_an_index() -> None:
    """61 layers of 576 values and 132 bytes of index, in blocks of 64."""
    base = vllm_models.deepseek_v3()
    latent = tuple(dataclasses.replace(cache, sparse=True) for cache in base.caches)  # type: ignore[call-arg]
    index = tuple(IndexerCache(name=f"indexer.{i}", stage=i, bytes_per_token=132) for i in range(61))
    model = dataclasses.replace(base, caches=(*latent, *index), config={"index_topk": 2048, "qk_nope_head_dim": 128})
    plan = plan_kv(model, config(model, "h200", "-tp", "8"))
    assert (plan.layout.block_tokens, plan.bytes_per_block) == (64, (5_012_736,))
    fp8 = plan_kv(model, config(model, "h200", "-tp", "8", "--kv-cache-dtype", "fp8"))
    assert fp8.layout.kv_dtype == "fp8_ds_mla"
    assert fp8.bytes_per_block == (61 * 64 * (656 + 132),)


# -- Fitting ---------------------------------------------------------------------------------------


def test_one_block_is_held_back() -> None:
    model = vllm_models.llama_8b()
    resolved = config(model, "h100", "--max-model-len", "1024")
    plan = plan_kv(model, resolved)
    exact = 64 * plan.bytes_per_block[0]
    with pytest.raises(EngineRefusalError, match="estimated maximum model length is 1008"):
        fit(plan, resolved, [exact])
    assert fit(plan, resolved, [exact + plan.bytes_per_block[0]]).n_blocks == 65


def test_too_long_is_refused_in_vllms_words() -> None:
    model = vllm_models.llama_8b()
    resolved = config(model, "h100")
    with pytest.raises(EngineRefusalError) as caught:
        fit(plan_kv(model, resolved), resolved, [8 * GIB])
    assert "max seq len (131072), (16.0 GiB KV cache is needed" in str(caught.value)
    assert "estimated maximum model length is 65520" in str(caught.value)


def test_automatic_length() -> None:
    model = vllm_models.llama_8b()
    resolved = config(model, "3090", "--max-model-len", "auto")
    plan = plan_kv(model, resolved)
    reached = fit(plan, resolved, [4 * GIB])
    assert reached.max_model_len == 2047 * 16
    assert reached.max_concurrency >= 1
    with pytest.raises(EngineRefusalError, match="even a single token"):
        fit(plan, resolved, [plan.bytes_per_block[0]])
    with pytest.raises(EngineRefusalError, match="No available memory"):
        fit(plan, config(model, "3090"), [0])


def test_the_smallest_stage_decides() -> None:
    model = vllm_models.llama_8b()
    resolved = config(model, "3090", "-pp", "2", "--max-model-len", "1024")
    plan = plan_kv(model, resolved)
    assert fit(plan, resolved, [4 * GIB, 2 * GIB]).n_blocks == 2 * GIB // plan.bytes_per_block[1]


def test_given_blocks_replace_memory() -> None:
    model = vllm_models.llama_8b()
    resolved = config(model, "3090", "--num-gpu-blocks-override", "1000", "--max-model-len", "8192")
    assert fit(plan_kv(model, resolved), resolved, [GIB // 64]).n_blocks == 1000


def test_nothing_is_cached_by_encoders() -> None:
    model = vllm_models.model((vllm_models.full(0, kind="encoder_only"),), is_encoder_only=True)
    resolved = config(model, "3090")
    assert fit(plan_kv(model, resolved), resolved, [GIB]).n_tokens == 0


def test_logged_capacity() -> None:
    model = vllm_models.llama_8b()
    reached = capacity(plan_kv(model, config(model, "h100")), 20_480, 131_072)
    assert (reached.n_tokens, reached.max_concurrency) == (327_680, 2.5)


# -- Grouping --------------------------------------------------------------------------------------


def layer(name: str, kind: str, token_bytes: int, *, block: int = 16, **more: object) -> LayerCache:
    return LayerCache(
        name=name,
        stage=0,
        kind=kind,
        block_tokens=block,
        token_bytes=token_bytes,
        identity=(token_bytes,),
        **more,  # type: ignore[arg-type]
    )


def sizes(groups: tuple[Group, ...]) -> list[tuple[int, int, int]]:
    return [(len(group.layers), group.first.block_tokens, group.first.page_bytes) for group in groups]


def test_nearly_equal_kinds_share_a_size() -> None:
    """12 and 13 layers: two groups of 13, rather than three of 12."""
    layers = [layer(f"f{i}", "full", 64) for i in range(13)]
    layers += [layer(f"s{i}", "sliding", 64, window_tokens=128) for i in range(12)]
    assert sizes(group_layers(layers)) == [(13, 16, 1024), (12, 16, 1024)]


def test_smaller_pages_get_larger_blocks() -> None:
    layers = [layer("f", "full", 128), layer("s", "sliding", 64, window_tokens=128)]
    assert sizes(group_layers(layers)) == [(1, 16, 2048), (1, 32, 2048)]


def test_pages_that_do_not_divide_are_padded() -> None:
    layers = [layer("f", "full", 96), layer("s", "sliding", 64, window_tokens=128)]
    assert sizes(group_layers(layers)) == [(1, 16, 1536), (1, 16, 1536)]


def test_latent_pages_cannot_be_padded() -> None:
    layers = [layer("l", "latent", 72), layer("s", "sliding", 128, window_tokens=128)]
    groups = group_layers(layers)
    assert [(len(group.layers), {member.kind for member in group.layers}) for group in groups] == [
        (2, {"latent", "full"})
    ]


def test_layers_of_one_kind_and_many_sizes_stay_together() -> None:
    layers = [layer("a", "full", 64), layer("b", "full", 96)]
    assert [len(group.layers) for group in group_layers(layers)] == [2]


@pytest.mark.parametrize(
    ("n_layers", "pp", "sizes_of_stages"),
    [(80, 3, [27, 27, 26]), (61, 2, [31, 30]), (32, 1, [32]), (10, 4, [2, 3, 3, 2]), (4, 4, [1, 1, 1, 1])],
)
def test_stages(n_layers: int, pp: int, sizes_of_stages: list[int]) -> None:
    bounds = stage_bounds(n_layers, pp)
    assert [end - start for start, end in pairwise(bounds)] == sizes_of_stages
    assert stage_bounds(32, 2, (20, 12)) == (0, 20, 32)
