"""What a command of llama.cpp pins.

Source: common/arg.cpp (the handler of each option).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args

from autofit.domain.values import dataclass

from autofit_llama.command.options import PYTHON_SERVER, Flag, refusal
from autofit_llama.command.reading import Reading
from autofit_llama.command.settings import LlamaSettings
from autofit_llama.command.values import (
    POOLING,
    bounded,
    csv,
    not_negative,
    one_of,
    parse_devices,
    parse_flash_attn,
    parse_kv_overrides,
    parse_kv_type,
    parse_layers,
    parse_overrides,
    parse_scaled,
    parse_spec_types,
    parse_split,
    parse_switch,
    parse_targets,
    same,
)
from autofit_llama.engine.vocabulary import LazyMode, LoadMode, Override, SplitMode


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command taken apart: its flags as they were given, what they pin, and the variables that count."""

    reading: Reading
    settings: LlamaSettings
    argv: tuple[str, ...]
    env: Mapping[str, str]


def runs_of(reading: Reading) -> tuple[LlamaSettings, ...]:
    """What the command runs one after another: llama-bench each combination of its lists, all others one.

    Raises:
        UsageError: a value that the engine refuses.
    """
    if reading.program == "llama-bench":
        from autofit_llama.command.llama_bench import bench_runs  # few commands need it

        return bench_runs(reading)
    if reading.program == PYTHON_SERVER:
        from autofit_llama.command.python_server import settings_of as of_python_server

        return (of_python_server(reading),)
    return (_settings(reading),)


def settings_of(reading: Reading) -> LlamaSettings:
    """What a command pins; of several runs, the first.

    Raises:
        UsageError: a value that the engine refuses.
    """
    return runs_of(reading)[0]


def _settings(reading: Reading) -> LlamaSettings:
    state: dict[str, Any] = {}
    legacy: dict[str, bool] = {}
    for flag in reading.flags:
        key = flag.option.key
        try:
            if key in _PARSERS:
                name, parse = _PARSERS[key]
                state[name] = parse(flag.value)
                if key == "ctx-size" and flag.value == 0:
                    state.pop("fit_ctx", None)  # common/arg.cpp: -c 0 writes over it
            elif key in _SPECIAL:
                _SPECIAL[key](state, flag)
            elif key in ("mmap", "mlock", "direct-io"):
                legacy[key] = bool(flag.value)
            elif key in _CHECKS:
                _CHECKS[key](flag.value)
        except ValueError as error:
            raise refusal(reading.program, flag, error) from error
        if reading.program == "llama-server" and key == "parallel" and flag.value == 0:
            raise refusal(reading.program, flag, ValueError("invalid value for n_parallel"))
    if legacy and "load_mode" not in state:
        state["load_mode"] = _legacy_load_mode(legacy)
    return LlamaSettings(**state)


def _legacy_load_mode(given: Mapping[str, bool]) -> LoadMode:
    """--mmap, --mlock and -dio of older builds: mapped unless told otherwise."""
    if given.get("direct-io"):
        return "dio"
    locked = given.get("mlock", False)
    if given.get("mmap", True):
        return "mmap+mlock" if locked else "mmap"
    return "mlock" if locked else "none"


_NGRAM = bounded(1, 1024)


#: option -> field and how its value is read
_PARSERS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "model": ("model", same),
    "model-url": ("model_url", same),
    "hf-repo": ("hf_repo", same),
    "hf-file": ("hf_file", same),
    "docker-repo": ("docker_repo", same),
    "ctx-size": ("n_ctx", same),
    "batch-size": ("n_batch", same),
    "ubatch-size": ("n_ubatch", same),
    "parallel": ("n_parallel", same),
    "kv-unified": ("kv_unified", same),
    "kv-unified-per-slot": ("kv_unified_per_slot", same),
    "swa-full": ("swa_full", same),
    "flash-attn": ("flash_attn", parse_flash_attn),
    "cache-type-k": ("type_k", parse_kv_type),
    "cache-type-v": ("type_v", parse_kv_type),
    "kv-offload": ("kv_offload", same),
    "op-offload": ("op_offload", same),
    "gpu-layers": ("n_gpu_layers", parse_layers),
    "split-mode": ("split_mode", one_of(*get_args(SplitMode))),
    "tensor-split": ("tensor_split", parse_split),
    "main-gpu": ("main_gpu", same),
    "device": ("devices", parse_devices),
    "moe-cache-mib": ("moe_cache_mib", not_negative),
    "load-mode": ("load_mode", one_of(*get_args(LoadMode))),
    "lazy-mode": ("lazy_mode", one_of(*get_args(LazyMode))),
    "repack": ("repack", same),
    "no-host": ("no_host", same),
    "numa": ("numa", lambda text: one_of("distribute", "isolate", "numactl")(text or "distribute")),
    "threads": ("n_threads", same),
    "threads-batch": ("n_threads_batch", same),
    "embedding": ("embedding", same),
    "pooling": ("pooling", one_of(*POOLING)),
    "backend-sampling": ("backend_sampling", same),
    "fit": ("fit", parse_switch),
    "fit-target": ("fit_target_mib", parse_targets),
    "fit-ctx": ("fit_ctx", same),
    "cache-ram": ("cache_ram_mib", same),
    "ctx-checkpoints": ("n_checkpoints", same),
    "checkpoint-min-step": ("checkpoint_min_step", not_negative),
    "mmproj": ("mmproj", same),
    "mmproj-url": ("mmproj_url", same),
    "mmproj-auto": ("mmproj_auto", same),
    "mmproj-offload": ("mmproj_offload", same),
    "image-max-tokens": ("image_max_tokens", same),
    "mtmd-batch-max-tokens": ("mtmd_batch_max_tokens", same),
    "spec-draft-n-max": ("draft_n_max", not_negative),
    "draft": ("draft_n_max", not_negative),
    "spec-draft-model": ("draft_model", same),
    "spec-draft-hf": ("draft_hf_repo", same),
    "spec-draft-ngl": ("draft_n_gpu_layers", parse_layers),
    "spec-draft-device": ("draft_devices", parse_devices),
    "spec-draft-type-k": ("draft_type_k", parse_kv_type),
    "spec-draft-type-v": ("draft_type_v", parse_kv_type),
    "spec-ngram-mod-n-max": ("ngram_mod_n_max", bounded(0, 1024)),
    "spec-ngram-simple-size-m": ("ngram_simple_size_m", _NGRAM),
    "spec-ngram-map-k-size-m": ("ngram_map_k_size_m", _NGRAM),
    "spec-ngram-map-k4v-size-m": ("ngram_map_k4v_size_m", _NGRAM),
}


#: options without a field whose bad values the engine refuses
_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "rope-scaling": one_of("none", "linear", "yarn"),
    "spec-ngram-mod-n-min": bounded(0, 1024),
    "spec-ngram-mod-n-match": _NGRAM,
    "spec-ngram-simple-size-n": _NGRAM,
    "spec-ngram-map-k-size-n": _NGRAM,
    "spec-ngram-map-k4v-size-n": _NGRAM,
    "fit-print": parse_switch,
}


def _append(state: dict[str, Any], name: str, values: Iterable[Any]) -> None:
    state[name] = (*state.get(name, ()), *values)


def _append_spec_types(state: dict[str, Any], flag: Flag) -> None:
    """Types add up; `none` beside another one says nothing."""
    names = (*state.get("spec_types", ()), *parse_spec_types(str(flag.value)))
    state["spec_types"] = tuple(name for name in names if name != "none") or ("none",)


def _append_counted(name: str, kind: Literal["n_cpu_moe", "n_cpu_ffn"]) -> Callable[[dict[str, Any], Flag], None]:
    def apply(state: dict[str, Any], flag: Flag) -> None:
        if not isinstance(flag.value, int) or flag.value < 0:
            raise ValueError("invalid value")
        _append(state, name, (Override(kind=kind, n_blocks=flag.value),))

    return apply


def _append_parsed(name: str, parse: Callable[[str], Iterable[Any]]) -> Callable[[dict[str, Any], Flag], None]:
    return lambda state, flag: _append(state, name, parse(str(flag.value)))


def _spec_default(state: dict[str, Any], flag: Flag) -> None:
    kept = tuple(name for name in state.get("spec_types", ()) if name != "none")
    state["spec_types"] = (*kept, "ngram-mod")
    state["ngram_mod_n_max"] = 64


def _mmproj_device(state: dict[str, Any], flag: Flag) -> None:
    names = parse_devices(str(flag.value))
    if len(names) > 1:
        raise ValueError("only one device may be specified for mmproj")
    state["mmproj_offload"] = bool(names)
    state["mmproj_device"] = names[0] if names else None


def _preset(**values: Any) -> Callable[[dict[str, Any], Flag], None]:
    return lambda state, flag: state.update(values)


def _coder(size: str, draft: bool = False, name: str = "Qwen2.5-Coder") -> Callable[[dict[str, Any], Flag], None]:
    more = {"draft_hf_repo": "ggml-org/Qwen2.5-Coder-0.5B-Q8_0-GGUF"} if draft else {}
    return _preset(
        hf_repo=f"ggml-org/{name}-{size}-Q8_0-GGUF",
        hf_file=f"{name.lower()}-{size.lower()}-q8_0.gguf",
        n_ubatch=1024,
        n_batch=1024,
        n_ctx=None,
        **more,
    )


def _gpt_oss(repo: str, **more: Any) -> Callable[[dict[str, Any], Flag], None]:
    return _preset(hf_repo=repo, n_ubatch=2048, n_batch=32768, n_parallel=2, n_ctx=262144, **more)


#: options that change several fields, or add to a list
_SPECIAL: Mapping[str, Callable[[dict[str, Any], Flag], None]] = {
    "override-tensor": _append_parsed("overrides", parse_overrides),
    "cpu-moe": lambda state, flag: _append(state, "overrides", (Override(kind="cpu_moe"),)),
    "n-cpu-moe": _append_counted("overrides", "n_cpu_moe"),
    "n-cpu-ffn": _append_counted("overrides", "n_cpu_ffn"),
    "spec-draft-override-tensor": _append_parsed("draft_overrides", parse_overrides),
    "spec-draft-cpu-moe": lambda state, flag: _append(state, "draft_overrides", (Override(kind="cpu_moe"),)),
    "spec-draft-n-cpu-moe": _append_counted("draft_overrides", "n_cpu_moe"),
    "rpc": _append_parsed("rpc", lambda text: text.split(",")),
    "spec-type": _append_spec_types,
    "lora": _append_parsed("loras", csv),
    "lora-scaled": _append_parsed("loras", parse_scaled),
    "control-vector": _append_parsed("control_vectors", csv),
    "control-vector-scaled": _append_parsed("control_vectors", parse_scaled),
    "override-kv": _append_parsed("kv_overrides", parse_kv_overrides),
    "mmproj-device": _mmproj_device,
    "rerank": _preset(embedding=True, pooling="rank"),
    "spec-default": _spec_default,
    "embd-gemma-default": _preset(
        hf_repo="ggml-org/embeddinggemma-300M-qat-q4_0-GGUF",
        hf_file="embeddinggemma-300M-qat-Q4_0.gguf",
        n_ubatch=2048,
        n_batch=2048,
        n_parallel=32,
        n_ctx=65536,
        embedding=True,
    ),
    "fim-qwen-1.5b-default": _coder("1.5B"),
    "fim-qwen-3b-default": _coder("3B"),
    "fim-qwen-7b-default": _coder("7B"),
    "fim-qwen-7b-spec": _coder("7B", draft=True),
    "fim-qwen-14b-spec": _coder("14B", draft=True),
    "fim-qwen-30b-default": _coder("30B-A3B-Instruct", name="Qwen3-Coder"),
    "gpt-oss-20b-default": _gpt_oss("ggml-org/gpt-oss-20b-GGUF", hf_file="gpt-oss-20b-mxfp4.gguf"),
    "gpt-oss-120b-default": _gpt_oss("ggml-org/gpt-oss-120b-GGUF"),
    "vision-gemma-4b-default": _preset(hf_repo="ggml-org/gemma-3-4b-it-qat-GGUF", n_ctx=None),
    "vision-gemma-12b-default": _preset(hf_repo="ggml-org/gemma-3-12b-it-qat-GGUF", n_ctx=None),
}
