"""The command line of `vllm serve`, by vLLM's own rules."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from autofit.errors import EngineRefusalError, UsageError

from autofit_vllm.command.flags import negatives_of, parse_count, parse_flags
from autofit_vllm.command.renamed import REMOVED_FLAGS
from autofit_vllm.command.settings import parse_command
from autofit_vllm.engine.history import releases
from autofit_vllm.engine.versions import DEFAULT, find_engine


def flags(*args: str) -> dict[str, Any]:
    return parse_flags(args, DEFAULT)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("32k", 32_000),
        ("32K", 32_768),
        ("1.5k", 1_500),
        ("2M", 2 << 20),
        ("2m", 2_000_000),
        ("3G", 3 << 30),
        ("7", 7),
    ],
)
def test_human_counts(text: str, count: int) -> None:
    assert parse_count(text) == count
    assert flags("--max-model-len", text)["max_model_len"] == count


def test_decimals_need_a_decimal_unit() -> None:
    with pytest.raises(UsageError, match=r"did you mean 1\.5k"):
        flags("--max-model-len", "1.5K")


@pytest.mark.parametrize("word", ["auto", "AUTO", "-1"])
def test_automatic_length(word: str) -> None:
    assert flags(f"--max-model-len={word}")["max_model_len"] == -1


@pytest.mark.parametrize(
    ("args", "values"),
    [
        (["-tp", "2"], {"tensor_parallel_size": 2}),
        (["-tp=2"], {"tensor_parallel_size": 2}),
        (["--tensor_parallel_size", "2"], {"tensor_parallel_size": 2}),
        (["--tensor-parallel=2"], {"tensor_parallel_size": 2}),
        (["--kv-cache-memory=5G"], {"kv_cache_memory_bytes": 5 << 30}),
        (["--device-memory-utilization", "0.8"], {"gpu_memory_utilization": 0.8}),
        (["--no-enable-prefix-caching"], {"enable_prefix_caching": False}),
        (["--disable-prefix-caching"], {"enable_prefix_caching": False}),
        (["--enable-prefix-caching", "--no-enable-prefix-caching"], {"enable_prefix_caching": False}),
        (["--no-enforce-eager"], {"enforce_eager": False}),
        (["--limit-mm-per-prompt", '{"image": 0}'], {"limit_mm_per_prompt": {"image": 0}}),
        (["--limit-mm-per-prompt.image", "0"], {"limit_mm_per_prompt": {"image": 0}}),
        (["-cc.cudagraph_mode=NONE"], {"compilation_config": {"cudagraph_mode": "NONE"}}),
        (["--hf-overrides.a.b", "1k", "--hf-overrides.a.c", "[1]"], {"hf_overrides": {"a": {"b": 1000, "c": [1]}}}),
        (["-cc.custom_ops+", "+a,-b", "-cc.custom_ops+=c"], {"compilation_config": {"custom_ops": ["+a", "-b", "c"]}}),
        (["--aux-output-config", '{"max_bytes": 80M}'], {"aux_output_config": {"max_bytes": 80 << 20}}),
        (["-O3"], {"optimization_level": "3"}),
        (["-O", "1"], {"optimization_level": "1"}),
        (["-O=0"], {"optimization_level": "0"}),
        (["--cudagraph-capture-sizes", "1", "2"], {"cudagraph_capture_sizes": [1, 2]}),
        (["--cpu-offload-params", "experts", "mlp"], {"cpu_offload_params": ["experts", "mlp"]}),
        (["--quantization", "None"], {"quantization": None}),
        (["--device-ids", "1,GPU-2"], {"device_ids": [1, "GPU-2"]}),
        (["--moe-backend", "Deep-GEMM"], {"moe_backend": "deep_gemm"}),
        (["M", "--port", "80"], {"model": "M", "port": 80}),
        (["--seed", "1", "--model", "A"], {"model": "A", "seed": 1}),
        (["--model", "A", "--model=B"], {"model": "A"}),
        (["--max-num-seqs", "4", "--max-num-seqs", "8"], {"max_num_seqs": 8}),
    ],
)
def test_spellings(args: list[str], values: dict[str, Any]) -> None:
    assert flags(*args) == values


def test_negatives() -> None:
    assert negatives_of("--enable-x") == ("--no-enable-x", "--disable-x")
    assert negatives_of("--disable-x") == ("--no-disable-x", "--enable-x")
    assert negatives_of("--x") == ("--no-x",)
    assert negatives_of("-x") == ()


@pytest.mark.parametrize("flag", sorted(REMOVED_FLAGS))
def test_removed_flags_name_their_successor(flag: str) -> None:
    with pytest.raises(UsageError, match="has no flag") as caught:
        flags(flag, "4")
    assert caught.value.hint == REMOVED_FLAGS[flag]


def test_unknown_flag_suggests() -> None:
    with pytest.raises(UsageError) as caught:
        flags("--max-modle-len", "4")
    assert caught.value.hint == "did you mean --max-model-len?"


@pytest.mark.parametrize(
    "args",
    [["--max-num", "1"], ["-tp", "two"], ["--dtype", "int9"], ["-cc", "{"], ["A", "B"], ["-cc.x"], ["-tp"]],
)
def test_refused(args: list[str]) -> None:
    with pytest.raises(UsageError):
        flags(*args)


def test_bounded() -> None:
    with pytest.raises(UsageError, match="at most"):
        flags(*["--port", "1"] * 6000)
    with pytest.raises(UsageError):
        flags("-cc", "[" * 100_000)


def test_every_release_has_its_table() -> None:
    for release in releases():
        assert parse_flags(["-tp", "2"], find_engine(release)) == {"tensor_parallel_size": 2}


# -- Settings files --------------------------------------------------------------------------------


def test_config_file(tmp_path: Path) -> None:
    file = tmp_path / "vllm.yaml"
    file.write_text(
        "# settings\ntensor-parallel-size: 4\nmax-model-len: 32k\nenforce-eager: "
        "true\nenable-prefix-caching: no\n"
        "cudagraph-capture-sizes: [1, 2]\ncpu-offload-params:\n  - experts\n"
        'compilation-config:\n  cudagraph_mode: "NONE"  # why not\n  pass_config:\n    fuse_norm_quant: true\n'
    )
    assert flags("M", "--config", str(file), "-tp", "2") == {
        "model": "M",
        "tensor_parallel_size": 2,
        "max_model_len": 32_000,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "cudagraph_capture_sizes": [1, 2],
        "cpu_offload_params": ["experts"],
        "compilation_config": {"cudagraph_mode": "NONE", "pass_config": {"fuse_norm_quant": True}},
    }


def test_config_file_problems(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must end in \.yaml"):
        flags("--config", "settings.toml")
    with pytest.raises(UsageError, match="No such file"):
        flags("--config", str(tmp_path / "none.yaml"))
    with pytest.raises(UsageError, match="needs a file"):
        flags("--config")
    for text in ("- 1", "just text", "a: !!python/object:os 1", "speculative-config: {from: 2026-01-01}"):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(UsageError, match=r"bad\.yaml"):
            flags("--config", str(tmp_path / "bad.yaml"))


# -- Commands --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "program", "model"),
    [
        (["vllm", "serve", "M", "-tp", "2"], ("vllm", "serve"), "M"),
        (["/usr/bin/vllm", "serve", "--model", "M"], ("/usr/bin/vllm", "serve"), "M"),
        (["vllm", "-tp", "2"], ("vllm",), None),
        (["-tp", "2"], (), None),
        (
            ["python3", "-m", "vllm.entrypoints.openai.api_server", "--model", "M"],
            ("python3", "-m", "vllm.entrypoints.openai.api_server"),
            "M",
        ),
    ],
)
def test_program_words(argv: list[str], program: tuple[str, ...], model: str | None) -> None:
    words, settings = parse_command(argv)
    assert (words, settings.model) == (program, model)
    assert settings.args == tuple(argv[len(program) :])


def test_other_commands_are_not_served() -> None:
    with pytest.raises(UsageError, match="vllm bench"):
        parse_command(["vllm", "bench", "latency"])
    with pytest.raises(UsageError, match="not a vLLM server"):
        parse_command(["python3", "-m", "http.server"])


def test_speculation_is_joined() -> None:
    _, settings = parse_command(["vllm", "serve", "M", "--spec-method", "mtp", "--spec-tokens", "2"])
    assert settings.speculative_config == {"method": "mtp", "num_speculative_tokens": 2}
    assert settings.speculative_tokens == 2
    with pytest.raises(EngineRefusalError, match="mutually exclusive"):
        parse_command(["vllm", "serve", "M", "--spec-method", "mtp", "-sc", '{"method": "ngram"}'])


def test_modalities() -> None:
    def encodes(*args: str) -> bool:
        return parse_command(["vllm", *args])[1].encodes(("image", "video"))

    assert encodes()
    assert not encodes("--language-model-only")
    assert not encodes("--limit-mm-per-prompt", '{"image": 0, "video": {"count": 0}}')
    assert encodes("--limit-mm-per-prompt.image", "0")
    assert parse_command(["vllm", "--limit-mm-per-prompt.image=0"])[1].disabled_modalities == {"image"}


# -- What configuration classes take ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        (["-cc.a.b.c", "5"], "--compilation-config has no key 'a'", "known: "),
        (["-cc.cudagraf_mode", "NONE"], "has no key 'cudagraf_mode'", "did you mean cudagraph_mode?"),
        (["-cc.cudagraph-mode", "NONE"], "has no key 'cudagraph-mode'", "did you mean cudagraph_mode?"),
        (["-cc", '{"pass_config": {"foo": true}}'], "--compilation-config.pass_config has no key 'foo'", "known: "),
        (["-cc.mode", "9"], "--compilation-config.mode is not '9'", "it is one of 0, 1, 2, 3"),
        (["--structured-outputs-config.backend", "x"], "backend is not 'x'", "it is one of auto, guidance"),
        (["--speculative-config", '{"metod": "ngram"}'], "--speculative-config has no key 'metod'", "method?"),
        (["--kv-transfer-config", '{"foo": 1}'], "--kv-transfer-config has no key 'foo'", "known: "),
    ],
)
def test_keys_that_a_configuration_has_not(args: list[str], message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        flags(*args)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    "args",
    [
        ["-cc.mode", "vllm_compile"],
        ["--kernel-config.moe_backend", "Deep-GEMM"],
        ["--speculative-config", '{"method": "ngram", "num-speculative-tokens": 2}'],
        ["-cc", '{"pass_config": {"fuse_norm_quant": true}, "cache_dir": null}'],
    ],
)
def test_keys_and_words_that_it_has(args: list[str]) -> None:
    assert flags(*args)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--block-size", "0"], "block_size must be above 0, not 0"),
        (["--block-size", "-16"], "block_size must be above 0, not -16"),
        (["-O9"], "optimization_level is one of 0, 1, 2, 3, not '9'"),
        (["--gpu-memory-utilization", "nan"], "gpu_memory_utilization must be above 0 and at most 1, not nan"),
        (["--watermark", "2"], "watermark must be at least 0 and below 1, not 2.0"),
        (["--max-num-active-seqs", "0"], "max_num_active_seqs must be at least 1, not 0"),
        (["--offload-group-size", "-1"], "offload_group_size must be at least 0"),
        (["--enable-lora", "--max-loras", "0"], "max_loras must be at least 1"),
        (["--enable-lora", "--max-loras", "2", "--max-cpu-loras", "1"], r"max_cpu_loras (1) must be >= max_loras (2)"),
        (["--hf-overrides", "{a"], "hf_overrides must be a JSON object, not '{a'"),
        (["--hf-overrides", "[1]"], "hf_overrides must be a JSON object"),
        (["--additional-config", "5"], "additional_config must be a JSON object"),
        (["--limit-mm-per-prompt", '{"image": "x"}'], "limit_mm_per_prompt.image is a number, not 'x'"),
        (["--distributed-executor-backend", "foo"], "distributed_executor_backend is one of ray, mp, uni"),
        (["--speculative-config", "{}"], "num_speculative_tokens must be provided"),
        (["--enable-dbo"], "Microbatching currently only supports the deepep_low_latency"),
    ],
)
def test_values_that_configuration_classes_refuse(args: list[str], message: str) -> None:
    with pytest.raises(EngineRefusalError, match=re.escape(message)):
        parse_command(["vllm", "serve", "M", *args])


def test_limits_that_do_not_apply() -> None:
    parse_command(["vllm", "serve", "M", "--max-loras", "0"])
    parse_command(["vllm", "serve", "M", "--max-num-active-seqs", "None"])
    parse_command(["vllm", "serve", "M", "--distributed-executor-backend", "my.executors.Own"])
