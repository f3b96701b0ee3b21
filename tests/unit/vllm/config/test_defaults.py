"""Settings that vLLM decides itself, and what it refuses before it looks at memory."""

from __future__ import annotations

import pytest
from autofit.domain.machine import Device
from autofit.errors import EngineRefusalError, HardwareError

from autofit_vllm.command.settings import from_given, parse_command
from autofit_vllm.config.engine import Gpu
from autofit_vllm.config.resolve import resolve
from autofit_vllm.config.resolve.batch import batch_defaults
from autofit_vllm.config.resolve.dtype import check_quantization, resolve_dtype
from autofit_vllm.config.resolve.parallel import possible_tp
from autofit_vllm.memory.attention_backends import LayerQuery, common_block_size, flash_attention_version, select
from autofit_vllm.quantization import Quantization
from support import vllm_models
from support.vllm_models import config, gpu


@pytest.mark.parametrize(
    ("name", "usage", "batch"),
    [
        ("t4", "server", (2048, 256)),
        ("3090", "server", (2048, 256)),
        ("3090", "llm", (8192, 256)),
        ("a100-80", "server", (2048, 256)),
        ("h100", "server", (8192, 1024)),
        ("h100", "llm", (16384, 1024)),
        ("h200", "server", (8192, 1024)),
        ("b200", "server", (16384, 1024)),
        ("b200", "llm", (16384, 1024)),
    ],
)
def test_batch_by_device(name: str, usage: str, batch: tuple[int, int]) -> None:
    assert batch_defaults(gpu(name), usage=usage) == batch


def test_gb10_is_small_for_its_memory() -> None:
    spark = Gpu(name="NVIDIA GB10", total_bytes=119 << 30, cc=(12, 1))
    assert batch_defaults(spark) == (2048, 256)


@pytest.mark.parametrize(
    ("args", "batch"),
    [
        ([], (2048, 256)),
        (["--max-num-seqs", "64"], (2048, 64)),
        (["--max-num-batched-tokens", "128"], (128, 128)),
        (["--max-num-seqs", "1", "--max-model-len", "1024"], (1024, 1)),
        (["--performance-mode", "throughput"], (4096, 512)),
        (["--no-enable-chunked-prefill", "--max-model-len", "8192"], (8192, 256)),
    ],
)
def test_batch_with_flags(args: list[str], batch: tuple[int, int]) -> None:
    resolved = config(vllm_models.llama_8b(), "3090", *args)
    assert (resolved.max_num_batched_tokens, resolved.max_num_seqs) == batch


@pytest.mark.parametrize(
    ("checkpoint", "on", "model_type", "dtype"),
    [
        ("bfloat16", "3090", "llama", "bfloat16"),
        ("bfloat16", "t4", "llama", "float16"),
        ("float16", "h100", "llama", "float16"),
        ("float32", "h100", "llama", "bfloat16"),
        ("float32", "t4", "llama", "float16"),
        ("bfloat16", "t4", "gemma3_text", "float32"),
        ("float16", "3090", "gemma2", "bfloat16"),
    ],
)
def test_automatic_dtype(checkpoint: str, on: str, model_type: str, dtype: str) -> None:
    model = vllm_models.llama_8b(dtype=checkpoint, model_type=model_type)
    assert resolve_dtype(from_given({}), model, gpu(on)) == dtype


def test_pooling_prefers_half_precision() -> None:
    assert (
        resolve_dtype(from_given({}), vllm_models.llama_8b(dtype="float32", is_pooling=True), gpu("h100")) == "float16"
    )


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--dtype", "bfloat16"], "compute capability of at least 8.0"),
        (["--max-model-len", "200000"], "greater than the derived max_model_len"),
        (["--max-model-len", "0"], "positive integer"),
        (["-tp", "3"], "must be divisible by tensor parallel size"),
        (["-tp", "0"], "at least 1"),
        (["-ep"], "greater than 0 when expert parallelism"),
        (["-dcp", "3", "-tp", "4"], "must be divisible by dcp_size=3"),
        (["-dcp", "2", "-tp", "4"], "greater than the model's total number of KV heads"),
        (["-dcp", "4", "-tp", "16"], "exceeds the maximum supported value"),
        (["--enable-eplb"], "enable_expert_parallel must be True"),
        (["--eplb-config.num_redundant_experts", "2"], "EPLB is not enabled"),
        (["-dp", "2", "-dpl", "4"], "must be <= data_parallel_size"),
        (["-dp", "2", "--data-parallel-external-lb"], "Non-MoE models"),
        (["-tp", "2", "-n", "3"], "must evenly divide"),
        (["-tp", "2", "-n", "2", "-r", "2"], "must be between 0 and 1"),
        (["-tp", "2", "-n", "2", "--distributed-executor-backend", "ray"], "nnodes > 1"),
        (["-dp", "4", "-dpl", "1", "-tp", "3", "-n", "6"], "number of data parallel node groups"),
        (["--headless", "--api-server-count", "2"], "cannot be used with --headless"),
        (["--headless", "-dp", "2", "-dpl", "1", "--data-parallel-hybrid-lb"], "not applicable in headless mode"),
        (["--max-num-batched-tokens", "8", "--max-num-seqs", "16"], "greater than or equal to max_num_seqs"),
        (["--no-enable-chunked-prefill", "--max-num-batched-tokens", "64"], "chunked prefill is off"),
        (["--max-num-active-seqs", "512"], "cannot be greater than max_num_seqs"),
        (["--long-prefill-token-threshold", "200000"], "cannot be greater than the"),
        (["--kv-cache-dtype", "bfloat16"], 'incompatible with dtype="float16"'),
        (["--kv-cache-dtype", "fp9"], "Invalid kv_cache_dtype: 'fp9'"),
        (["--mamba-block-size", "64", "--no-enable-prefix-caching"], "--enable-prefix-caching"),
        (["--spec-method", "mtp", "--spec-tokens", "1"], "no MTP layers"),
        (["--spec-tokens", "3"], "without speculative model"),
        (
            ["--cudagraph-capture-sizes", "1", "2", "--max-cudagraph-capture-size", "4"],
            "should be consistent",
        ),
        (["--gpu-memory-utilization", "1.5"], "above 0 and at most 1"),
    ],
)
def test_refusals(args: list[str], words: str) -> None:
    with pytest.raises(EngineRefusalError, match=words):
        config(vllm_models.llama_8b(), "t4", *args)


def test_heads_that_divide_are_named() -> None:
    with pytest.raises(EngineRefusalError) as caught:
        config(vllm_models.llama_8b(n_heads=28, n_kv_heads=4), "3090", "-tp", "8")
    assert caught.value.hint == "possible: 1, 2, 4, 28; -tp 4 -pp 2 shares whole layers over as many GPUs"
    assert possible_tp(vllm_models.llama_8b()) == [1, 2, 4, 8, 16, 32]


def test_long_lengths_can_be_forced() -> None:
    env = {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}
    assert config(vllm_models.llama_8b(), "3090", "--max-model-len", "200000", env=env).max_model_len == 200_000


def test_layer_partition() -> None:
    model = vllm_models.llama_8b()
    given = config(model, "3090", "-pp", "2", env={"VLLM_PP_LAYER_PARTITION": "20,12"})
    assert given.parallel.layer_partition == (20, 12)
    for text in ("20,13", "32", "a,b"):
        with pytest.raises(EngineRefusalError):
            config(model, "3090", "-pp", "2", env={"VLLM_PP_LAYER_PARTITION": text})


@pytest.mark.parametrize(
    ("args", "env", "in_flight"),
    [
        ([], {}, 2 * 2048),
        (["--no-async-scheduling"], {}, 2048),
        (["-pp", "2"], {}, 3 * 2048),
        (["-pp", "2"], {"VLLM_USE_V2_MODEL_RUNNER": "0"}, 2 * 2048),
        ([], {"VLLM_USE_V2_MODEL_RUNNER": "0"}, 2 * 2048),
        (["--runner", "pooling"], {}, 2048),
    ],
)
def test_tokens_in_flight(args: list[str], env: dict[str, str], in_flight: int) -> None:
    assert config(vllm_models.llama_8b(), "3090", *args, env=env).max_in_flight_tokens == in_flight


@pytest.mark.parametrize(
    ("args", "mode", "n", "largest"),
    [
        ([], "FULL_AND_PIECEWISE", 51, 512),
        (["--enforce-eager"], "NONE", 0, 0),
        (["-O0"], "NONE", 0, 0),
        (["-O1"], "PIECEWISE", 51, 512),
        (["-cc.cudagraph_mode=FULL"], "FULL", 51, 512),
        (["-cc.cudagraph_mode=1"], "PIECEWISE", 51, 512),
        (["-cc.mode=0"], "FULL_DECODE_ONLY", 51, 512),
        (["-cc.mode=none", "-cc.cudagraph_mode=FULL"], "FULL", 51, 512),
        (["-cc.mode=1"], "NONE", 0, 0),
        (["-cc.mode=2", "-cc.cudagraph_mode=PIECEWISE"], "NONE", 0, 0),
        (["-O0", "-cc.cudagraph_mode=FULL_AND_PIECEWISE"], "FULL_DECODE_ONLY", 51, 512),
        (["-O0", "-cc.mode=3"], "NONE", 0, 0),
        (["--max-num-seqs", "8"], "FULL_AND_PIECEWISE", 5, 16),
        (["--max-num-seqs", "3"], "FULL_AND_PIECEWISE", 4, 4),
        (["--cudagraph-capture-sizes", "4", "1", "9000"], "FULL_AND_PIECEWISE", 2, 4),
        (["--runner", "pooling"], "PIECEWISE", 51, 512),
    ],
)
def test_graphs(args: list[str], mode: str, n: int, largest: int) -> None:
    resolved = config(vllm_models.llama_8b(), "3090", *args)
    assert (resolved.graph_mode, len(resolved.capture_sizes)) == (mode, n)
    assert max(resolved.capture_sizes, default=0) == largest


def test_quantization_decides_types() -> None:
    method = Quantization(name="mxfp4", dtypes=("bfloat16",), kv_cache_dtype="fp8_e4m3")
    with pytest.raises(EngineRefusalError, match="float16 is not supported for quantization method mxfp4"):
        check_quantization(method, "float16")
    resolved = resolve(from_given({}), vllm_models.llama_8b(), gpu("h100"), quantization=method)
    assert resolved.kv_cache_dtype == "fp8_e4m3"
    fp8 = Quantization(name="fp8")
    _, settings = parse_command(["vllm", "--kv-cache-dtype", "fp8_e5m2"])
    with pytest.raises(EngineRefusalError, match="fp8 checkpoints"):
        resolve(settings, vllm_models.llama_8b(), gpu("h100"), quantization=fp8)


def test_devices_that_vllm_does_not_drive() -> None:
    card = Device(id="GPU0", index=0, name="RX 7900", api="rocm", total_bytes=24 << 30, free_bytes=24 << 30)
    with pytest.raises(HardwareError, match="only NVIDIA"):
        Gpu.of(card)
    unknown = Device(id="GPU0", index=0, name="X", api="cuda", total_bytes=24 << 30, free_bytes=24 << 30)
    with pytest.raises(HardwareError, match="compute capability is unknown"):
        Gpu.of(unknown)


# -- Attention backends ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("on", "fields", "name", "block"),
    [
        ("t4", {"dtype": "float16"}, "TRITON_ATTN", 16),
        ("3090", {}, "FLASH_ATTN", 16),
        ("3090", {"kv_dtype": "fp8"}, "FLASHINFER", 16),
        ("3090", {"sinks": True}, "TRITON_ATTN", 16),
        ("4090", {"dtype": "float32"}, "TRITON_ATTN", 16),
        ("h100", {"kv_dtype": "fp8"}, "FLASH_ATTN", 16),
        ("h100", {"kv_dtype": "fp8_e5m2"}, "FLASHINFER", 16),
        ("h100", {"sinks": True}, "FLASH_ATTN", 16),
        ("h100", {"mm_prefix": True, "head_size": 256}, "TRITON_FLASH_ATTN", 16),
        ("b200", {}, "FLASHINFER", 16),
        ("b200", {"head_size": 96}, "FLASH_ATTN", 16),
        ("b200", {"kv_dtype": "nvfp4"}, "FLASHINFER", 16),
        ("5090", {"head_size": 512}, "FLASHINFER", 16),
        ("h100", {"kv_dtype": "int8_per_token_head"}, "TRITON_ATTN", 16),
        ("h100", {"kv_dtype": "turboquant_k8v4"}, "TURBOQUANT", 16),
        ("h100", {"latent": True, "head_size": 576}, "FLASH_ATTN_MLA", 16),
        ("h100", {"latent": True, "head_size": 576, "kv_dtype": "fp8"}, "FLASHMLA", 64),
        ("b200", {"latent": True, "head_size": 576}, "FLASHINFER_MLA", 32),
        ("a100-80", {"latent": True, "head_size": 576}, "TRITON_MLA", 16),
        (
            "h200",
            {"latent": True, "sparse": True, "head_size": 576, "index_topk": 2048},
            "FLASH_ATTN_MLA_SPARSE",
            64,
        ),
    ],
)
def test_backend(on: str, fields: dict[str, object], name: str, block: int) -> None:
    query = LayerQuery(**{"cc": gpu(on).cc, "head_size": 128, "dtype": "bfloat16", **fields})  # type: ignore[arg-type]
    backend = select(query)
    assert backend.name == name
    assert common_block_size([(backend, query)], 16) == block


@pytest.mark.parametrize(
    ("on", "fields", "words"),
    [
        ("t4", {"kv_dtype": "fp8", "dtype": "float16"}, "native FP8 requires 8.9"),
        ("3090", {"kv_dtype": "fp8_per_token_head"}, "native FP8 requires 8.9"),
        ("h100", {"kv_dtype": "ultraquant_4bit"}, "No valid attention backend"),
        ("h100", {"block_size": 24}, "No valid attention backend"),
    ],
)
def test_no_backend(on: str, fields: dict[str, object], words: str) -> None:
    query = LayerQuery(**{"cc": gpu(on).cc, "head_size": 128, "dtype": "bfloat16", **fields})  # type: ignore[arg-type]
    with pytest.raises(EngineRefusalError, match=words):
        select(query)


def test_chosen_backend_is_checked() -> None:
    query = LayerQuery(cc=(8, 6), head_size=128, dtype="bfloat16")
    assert select(query, "TRITON_ATTN").name == "TRITON_ATTN"
    with pytest.raises(EngineRefusalError, match="MLA"):
        select(query, "FLASHMLA")
    with pytest.raises(EngineRefusalError, match="not one that runs"):
        select(query, "XFORMERS")


@pytest.mark.parametrize(
    ("cc", "head_size", "version"),
    [
        ((7, 5), 128, None),
        ((8, 6), 128, 2),
        ((9, 0), 128, 3),
        ((9, 0), 512, 4),
        ((10, 0), 128, 4),
        ((10, 0), 192, 2),
    ],
)
def test_flash_attention_versions(cc: tuple[int, int], head_size: int, version: int | None) -> None:
    assert flash_attention_version(LayerQuery(cc=cc, head_size=head_size, dtype="bfloat16")) == version


def test_blocks_of_two_backends() -> None:
    latent = LayerQuery(cc=(9, 0), head_size=576, dtype="bfloat16", latent=True, kv_dtype="fp8")
    dense = LayerQuery(cc=(9, 0), head_size=128, dtype="bfloat16")
    assert common_block_size([(select(latent), latent), (select(dense), dense)], 16) == 64


@pytest.mark.parametrize("args", [["-cc.cudagraph_mode=foo"], ["-cc.cudagraph_mode=5"]])
def test_graphs_that_do_not_exist(args: list[str]) -> None:
    with pytest.raises(EngineRefusalError, match="cudagraph_mode is one of NONE"):
        config(vllm_models.llama_8b(), "3090", *args)


def test_graphs_of_no_size() -> None:
    with pytest.raises(EngineRefusalError, match="greater than or equal to 1"):
        config(vllm_models.llama_8b(), "3090", "--max-cudagraph-capture-size", "0")
    config(vllm_models.llama_8b(), "3090", "--max-cudagraph-capture-size", "0", "--enforce-eager")
