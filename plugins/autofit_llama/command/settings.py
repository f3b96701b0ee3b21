"""What a command of llama.cpp pins, and the way back from settings to a command.

Source: common/arg.cpp (the handler of each option), tools/llama-bench/llama-bench.cpp:parse_cmd_params.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

from autofit.domain.text import printable
from autofit.domain.values import dataclass, fields, replace
from autofit.errors import UsageError

from autofit_llama.command.flags import Flag, Reading, option
from autofit_llama.command.values import (
    ALL_LAYERS,
    AUTO_LAYERS,
    POOLING,
    LoadMode,
    SplitMode,
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
from autofit_llama.engine.versions import LATEST, Version
from autofit_llama.memory.placement import Override
from autofit_llama.memory.weights import LazyMode
from autofit_llama.model.context import FlashAttention


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaSettings:
    """What a command says; `None` is not said. The last of a flag said twice counts, but for lists that grow.

    `n_ctx` 0 is the trained context and never to be reduced, `n_gpu_layers` -1 is `auto`, -2 `all`; empty
    `devices` are `-dev none`; `n_parallel` -1 is `auto`; `fit_target_mib` is repeated for every device when
    it has one entry.
    """

    model: str | None = None
    model_url: str | None = None
    hf_repo: str | None = None
    hf_file: str | None = None
    docker_repo: str | None = None
    n_ctx: int | None = None
    n_batch: int | None = None
    n_ubatch: int | None = None
    n_parallel: int | None = None
    kv_unified: bool | None = None
    kv_unified_per_slot: int | None = None
    swa_full: bool | None = None
    flash_attn: FlashAttention | None = None
    type_k: str | None = None
    type_v: str | None = None
    kv_offload: bool | None = None
    op_offload: bool | None = None
    n_gpu_layers: int | None = None
    split_mode: SplitMode | None = None
    tensor_split: tuple[float, ...] | None = None
    main_gpu: int | None = None
    rpc: tuple[str, ...] = ()
    devices: tuple[str, ...] | None = None
    overrides: tuple[Override, ...] = ()
    load_mode: LoadMode | None = None
    lazy_mode: LazyMode | None = None
    repack: bool | None = None
    no_host: bool | None = None
    numa: str | None = None
    n_threads: int | None = None
    n_threads_batch: int | None = None
    embedding: bool | None = None
    pooling: str | None = None
    backend_sampling: bool | None = None
    fit: bool | None = None
    fit_target_mib: tuple[int, ...] | None = None
    fit_ctx: int | None = None
    cache_ram_mib: int | None = None
    n_checkpoints: int | None = None
    checkpoint_min_step: int | None = None
    mmproj: str | None = None
    mmproj_url: str | None = None
    mmproj_auto: bool | None = None
    mmproj_device: str | None = None
    mmproj_offload: bool | None = None
    image_max_tokens: int | None = None
    mtmd_batch_max_tokens: int | None = None
    loras: tuple[str, ...] = ()
    control_vectors: tuple[str, ...] = ()
    kv_overrides: tuple[str, ...] = ()
    spec_types: tuple[str, ...] = ()
    draft_n_max: int | None = None
    draft_model: str | None = None
    draft_hf_repo: str | None = None
    draft_n_gpu_layers: int | None = None
    draft_devices: tuple[str, ...] | None = None
    draft_overrides: tuple[Override, ...] = ()
    draft_type_k: str | None = None
    draft_type_v: str | None = None
    ngram_mod_n_max: int | None = None
    ngram_simple_size_m: int | None = None
    ngram_map_k_size_m: int | None = None
    ngram_map_k4v_size_m: int | None = None

    def pinned(self) -> Mapping[str, Any]:
        """The fields that the command says, by name."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}

    def or_else(self, other: LlamaSettings) -> LlamaSettings:
        """These settings; what they leave open is taken from `other`."""
        return replace(other, **self.pinned())


def settings_of(reading: Reading) -> LlamaSettings:
    """What a command pins.

    Raises:
        UsageError: a value that the engine refuses.
    """
    if reading.program == "llama-bench":
        from autofit_llama.command.llama_bench import bench_runs

        return bench_runs(reading)[0]
    state: dict[str, Any] = {}
    legacy: dict[str, bool] = {}
    for flag in reading.flags:
        key = flag.option.key
        try:
            if key in _PARSERS:
                name, parse = _PARSERS[key]
                state[name] = parse(flag.value)
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


def refusal(program: str, flag: Flag, error: ValueError) -> UsageError:
    value = "" if flag.option.n_values == 0 else f" {printable(str(flag.value), 60)!r}"
    return UsageError(f"{program} refuses {flag.spelling}{value}: {error}")


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
    "draft-max": ("draft_n_max", not_negative),
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


# -- to a command


def render(settings: LlamaSettings, *, version: Version = LATEST) -> tuple[str, ...]:
    """The flags that say `settings`, in the shortest spelling that the version has.

    Raises:
        UsageError: the version has no way to say one of them.
    """
    argv: list[str] = []
    pinned = settings.pinned()
    for name, show in _WRITERS.items():
        if name in pinned:
            argv += show(pinned[name], version)
    return tuple(argv)


_Writer = Callable[[Any, Version], Sequence[str]]


def _spelling(key: str, version: Version) -> str:
    if not version.offers(key):
        raise UsageError(f"llama.cpp {version.name} has no --{key}", hint="update llama.cpp, or leave it out")
    return option(key).spellings[0]


def _write(key: str, show: Callable[[Any], str] = str) -> _Writer:
    return lambda value, version: (_spelling(key, version), show(value))


def _write_bool(key: str) -> _Writer:
    def write(value: bool, version: Version) -> Sequence[str]:
        spelling = _spelling(key, version)
        if value:
            return (spelling,)
        negations = option(key).negations
        return (negations[0],) if negations else ()

    return write


def _write_list(key: str, show: Callable[[Any], str] = str) -> _Writer:
    return lambda values, version: (_spelling(key, version), ",".join(map(show, values)))


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if "," in text or text.startswith('"') else text


def _write_layers(key: str) -> _Writer:
    def write(value: int, version: Version) -> Sequence[str]:
        if value == AUTO_LAYERS:
            return (_spelling(key, version), "auto") if version.has("layer-words") else ()
        word = "all" if version.has("layer-words") else "999"
        return _spelling(key, version), word if value == ALL_LAYERS else str(value)

    return write


def _write_flash_attn(value: FlashAttention, version: Version) -> Sequence[str]:
    if version.has("flash-attn-value"):
        return "-fa", value
    return ("-fa",) if value == "on" else ()


def _write_load_mode(value: LoadMode, version: Version) -> Sequence[str]:
    if version.offers("load-mode"):
        return "-lm", value
    return {
        "auto": (),
        "mmap": (),
        "none": ("--no-mmap",),
        "mlock": ("--no-mmap", "--mlock"),
        "mmap+mlock": ("--mlock",),
        "dio": ("-dio",),
    }[value]


def _write_draft_max(value: int, version: Version) -> Sequence[str]:
    return ("--spec-draft-n-max" if version.offers("spec-draft-n-max") else "--draft-max", str(value))


def _write_overrides(prefix: str) -> _Writer:
    """Overrides in their order; neighbouring patterns share a flag."""

    def write(overrides: Sequence[Override], version: Version) -> Sequence[str]:
        argv: list[str] = []
        patterns: list[str] = []

        def flush() -> None:
            if patterns:
                argv.extend((_spelling(prefix + "override-tensor", version), ",".join(patterns)))
                patterns.clear()

        for override in overrides:
            if override.kind == "pattern":
                if "," in override.pattern or "=" in override.pattern:
                    raise UsageError(
                        f"-ot cannot hold a comma or an equals sign in a pattern: {override.pattern[:60]!r}"
                    )
                patterns.append(f"{override.pattern}={override.buffer}")
                continue
            flush()
            spelling = _spelling(prefix + override.kind.replace("_", "-"), version)
            argv.extend((spelling,) if override.kind == "cpu_moe" else (spelling, str(override.n_blocks)))
        flush()
        return argv

    return write


def number(value: float) -> str:
    """A proportion as short as single precision allows."""
    return str(int(value)) if value == int(value) else repr(value)


def _names(names: Sequence[str]) -> str:
    return ",".join(names) if names else "none"


_WRITERS: Mapping[str, _Writer] = {
    "model": _write("model"),
    "model_url": _write("model-url"),
    "hf_repo": _write("hf-repo"),
    "hf_file": _write("hf-file"),
    "docker_repo": _write("docker-repo"),
    "rpc": _write_list("rpc"),
    "devices": _write("device", _names),
    "n_gpu_layers": _write_layers("gpu-layers"),
    "split_mode": _write("split-mode"),
    "tensor_split": _write_list("tensor-split", number),
    "main_gpu": _write("main-gpu"),
    "overrides": _write_overrides(""),
    "n_ctx": _write("ctx-size"),
    "n_parallel": _write("parallel"),
    "kv_unified": _write_bool("kv-unified"),
    "kv_unified_per_slot": _write("kv-unified-per-slot"),
    "n_batch": _write("batch-size"),
    "n_ubatch": _write("ubatch-size"),
    "flash_attn": _write_flash_attn,
    "type_k": _write("cache-type-k"),
    "type_v": _write("cache-type-v"),
    "kv_offload": _write_bool("kv-offload"),
    "op_offload": _write_bool("op-offload"),
    "swa_full": _write_bool("swa-full"),
    "load_mode": _write_load_mode,
    "lazy_mode": _write("lazy-mode"),
    "repack": _write_bool("repack"),
    "no_host": _write_bool("no-host"),
    "numa": _write("numa"),
    "n_threads": _write("threads"),
    "n_threads_batch": _write("threads-batch"),
    "embedding": _write_bool("embedding"),
    "pooling": _write("pooling"),
    "backend_sampling": _write_bool("backend-sampling"),
    "fit": lambda value, version: ("-fit", "on" if value else "off") if version.offers("fit") else (),
    "fit_target_mib": _write_list("fit-target"),
    "fit_ctx": _write("fit-ctx"),
    "cache_ram_mib": _write("cache-ram"),
    "n_checkpoints": _write("ctx-checkpoints"),
    "checkpoint_min_step": _write("checkpoint-min-step"),
    "mmproj": _write("mmproj"),
    "mmproj_url": _write("mmproj-url"),
    "mmproj_auto": _write_bool("mmproj-auto"),
    "mmproj_device": _write("mmproj-device"),
    "mmproj_offload": _write_bool("mmproj-offload"),
    "image_max_tokens": _write("image-max-tokens"),
    "mtmd_batch_max_tokens": _write("mtmd-batch-max-tokens"),
    "loras": _write_list("lora", _quoted),
    "control_vectors": _write_list("control-vector", _quoted),
    "kv_overrides": _write_list("override-kv", _quoted),
    "spec_types": _write_list("spec-type"),
    "draft_n_max": _write_draft_max,
    "draft_model": _write("spec-draft-model"),
    "draft_hf_repo": _write("spec-draft-hf"),
    "draft_devices": _write("spec-draft-device", _names),
    "draft_n_gpu_layers": _write_layers("spec-draft-ngl"),
    "draft_overrides": _write_overrides("spec-draft-"),
    "draft_type_k": _write("spec-draft-type-k"),
    "draft_type_v": _write("spec-draft-type-v"),
    "ngram_mod_n_max": _write("spec-ngram-mod-n-max"),
    "ngram_simple_size_m": _write("spec-ngram-simple-size-m"),
    "ngram_map_k_size_m": _write("spec-ngram-map-k-size-m"),
    "ngram_map_k4v_size_m": _write("spec-ngram-map-k4v-size-m"),
}
