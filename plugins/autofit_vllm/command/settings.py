"""What the user pins: the flags of one `vllm serve` command as a frozen value, with vLLM's defaults."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, Literal

from autofit.domain.values import dataclass, field, fields
from autofit.errors import EngineRefusalError, UsageError
from autofit.text.programs import n_module_words

from autofit_vllm.command.flags import check_limits, parse_flags
from autofit_vllm.engine.versions import DEFAULT, Engine, find_engine

Usage = Literal["server", "llm"]
#: config/vllm.py: what `--enable-dbo` and `--ubatch-size` need
MICROBATCHING = ("deepep_low_latency", "deepep_high_throughput", "nixl_ep")
EXECUTORS = ("ray", "mp", "uni", "external_launcher")  #: config/parallel.py; or the path of a class
SERVER_MODULE, MAIN_MODULE = PYTHON_MODULES = ("vllm.entrypoints.openai.api_server", "vllm.entrypoints.cli.main")


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSettings:
    """What a plan depends on, by the engine's own names (engine/arg_utils.py:EngineArgs); `None` lets vLLM decide.

    `args` are the flags exactly as given, `given` what they set, `env` the variables that vLLM reads.
    """

    args: tuple[str, ...] = ()
    given: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    version: Engine = DEFAULT
    usage: Usage = "server"

    model: str | None = None
    runner: str = "auto"
    convert: str = "auto"
    dtype: str = "auto"
    quantization: str | None = None
    allow_deprecated_quantization: bool = False
    hf_overrides: Any = None
    max_model_len: int | None = None
    disable_sliding_window: bool = False

    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_num_active_seqs: int | None = None
    long_prefill_token_threshold: int = 0
    enable_chunked_prefill: bool | None = None
    async_scheduling: bool | None = None
    disable_hybrid_kv_cache_manager: bool | None = None
    performance_mode: str = "balanced"

    gpu_memory_utilization: float | None = None
    kv_cache_memory_bytes: int | None = None
    num_gpu_blocks_override: int | None = None
    kv_cache_dtype: str = "auto"
    kv_cache_dtype_skip_layers: tuple[str, ...] = ()
    block_size: int | None = None
    enable_prefix_caching: bool | None = None
    kv_offloading_size: float | None = None
    kv_transfer_config: Mapping[str, Any] | None = None
    mamba_cache_dtype: str = "auto"
    mamba_ssm_cache_dtype: str = "auto"
    mamba_block_size: int | None = None
    use_replayssm: bool = False

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    data_parallel_size_local: int | None = None
    data_parallel_rank: int | None = None
    data_parallel_backend: str = "mp"
    data_parallel_external_lb: bool = False
    data_parallel_hybrid_lb: bool = False
    prefill_context_parallel_size: int = 1
    decode_context_parallel_size: int = 1
    enable_expert_parallel: bool = False
    enable_eplb: bool = False
    eplb_config: Mapping[str, Any] = field(default_factory=dict)
    all2all_backend: str = "allgather_reducescatter"
    nnodes: int = 1
    node_rank: int = 0
    distributed_executor_backend: str | None = None
    device_ids: tuple[int | str, ...] | None = None

    enforce_eager: bool = False
    optimization_level: str = "2"
    compilation_config: Mapping[str, Any] = field(default_factory=dict)
    cudagraph_capture_sizes: tuple[int, ...] | None = None
    max_cudagraph_capture_size: int | None = None
    attention_backend: str | None = None
    attention_config: Mapping[str, Any] = field(default_factory=dict)
    additional_config: Any = None
    gdn_prefill_backend: str | None = None

    speculative_config: Mapping[str, Any] | None = None

    offload_backend: str = "auto"
    cpu_offload_gb: float = 0.0
    cpu_offload_params: tuple[str, ...] = ()
    offload_group_size: int = 0
    offload_num_in_group: int = 1
    offload_prefetch_step: int = 1
    offload_params: tuple[str, ...] = ()

    language_model_only: bool = False
    limit_mm_per_prompt: Mapping[str, Any] = field(default_factory=dict)
    mm_encoder_tp_mode: str = "weights"
    mm_ipc_gpu_memory_gb: float = 0.0
    mm_processor_cache_gb: float = 4.0

    enable_lora: bool = False
    max_loras: int = 1
    max_lora_rank: int = 16
    fully_sharded_loras: bool = False
    lora_dtype: str = "auto"

    @property
    def speculative_tokens(self) -> int:
        """Draft tokens per step, 0 without speculation (config/vllm.py:num_speculative_tokens)."""
        return int((self.speculative_config or {}).get("num_speculative_tokens") or 0)

    @property
    def disabled_modalities(self) -> frozenset[str]:
        """Modalities that are limited to no item per prompt."""
        counts = {
            name: limit.get("count", 1) if isinstance(limit, Mapping) else limit
            for name, limit in self.limit_mm_per_prompt.items()
        }
        return frozenset(name for name, count in counts.items() if count == 0)

    @property
    def pooling(self) -> bool:
        """Whether the model is asked to embed or classify."""
        return self.runner == "pooling" or (self.runner == "auto" and self.convert in ("embed", "classify"))

    def encodes(self, modalities: Sequence[str]) -> bool:
        """Whether any of a model's encoders is used."""
        return not self.language_model_only and bool(set(modalities) - self.disabled_modalities)

    def pins(self, name: str) -> bool:
        """Whether the user set this."""
        return name in self.given


_FIELDS = frozenset(f.name for f in fields(VllmSettings)) - {
    "args",
    "given",
    "env",
    "version",
    "usage",
}


def parse_command(
    argv: Sequence[str],
    env: Mapping[str, str] | None = None,
    version: str | None = None,
    model: str | None = None,
) -> tuple[tuple[str, ...], VllmSettings]:
    """The program words and the settings of `vllm serve MODEL ...`, or of flags alone. `model` will be written
    before them.

    Raises:
        UsageError: not a command that serves, or flags that this version refuses.
    """
    n_program = _program_words(argv)
    engine = find_engine(version)
    args = tuple(argv[n_program:])
    given = flags_of(args, engine, model)
    return tuple(argv[:n_program]), from_given(given, args=args, env=env or {}, version=engine)


def named_by_flags(settings: VllmSettings) -> bool:
    """Whether the flags themselves name the model, as against whoever plans for it."""
    return settings.model is not None and flags_of(settings.args, settings.version, None).get("model") is not None


def flags_of(args: Sequence[str], engine: Engine, model: str | None) -> dict[str, Any]:
    """What flags set, by destination, as either of the releases knows them between which an engine lies; the newer
    one's refusal counts.

    Raises:
        UsageError
    """
    first, *others = engine.sides()
    try:
        return parse_flags(args, first, model)
    except UsageError:
        for side in others:
            with contextlib.suppress(UsageError):
                return parse_flags(args, side, model)
        raise


def settings_of(settings: VllmSettings, engine: Engine) -> VllmSettings:
    """The same flags by the defaults of another release."""
    if settings.version == engine:
        return settings
    return from_given(settings.given, args=settings.args, env=settings.env, version=engine, usage=settings.usage)


def from_given(
    given: Mapping[str, Any],
    *,
    args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    version: Engine | None = None,
    usage: Usage = "server",
) -> VllmSettings:
    """Settings from values by destination, as `parse_flags` returns them."""
    values = dict(given)
    version = version or DEFAULT
    check_limits(values, version)
    speculative = _speculative(values)
    if speculative is not None:
        values["speculative_config"] = speculative
    stated = {**_defaults(version), **{name: value for name, value in values.items() if value is not None}}
    kwargs = {name: _frozen(value) for name, value in stated.items() if name in _FIELDS}
    for name in (
        "eplb_config",
        "compilation_config",
        "attention_config",
        "limit_mm_per_prompt",
        "speculative_config",
        "kv_transfer_config",
    ):
        if not isinstance(kwargs.get(name, {}), Mapping):
            raise UsageError(f"vllm serve: --{name.replace('_', '-')} takes a JSON object")
    for name in ("hf_overrides", "additional_config"):
        if not isinstance(kwargs.get(name, {}), Mapping):
            raise EngineRefusalError(f"{name} must be a JSON object, not {str(kwargs[name])[:40]!r}")
    _check(values)
    if "optimization_level" in kwargs:
        kwargs["optimization_level"] = str(kwargs["optimization_level"])
    return VllmSettings(
        args=tuple(args),
        given=values,
        env=dict(env or {}),
        version=version,
        usage=usage,
        **kwargs,
    )


#: the first is read where it is resolved; of the second, older releases change what they say is the default
_RESOLVED = frozenset({"gpu_memory_utilization", "disable_hybrid_kv_cache_manager"})


def _defaults(engine: Engine) -> Mapping[str, Any]:
    """Of an older release, defaults that are others now, but for `_RESOLVED`."""
    if engine.newest:
        return {}
    from autofit_vllm.engine.history import defaults_at

    return {
        name: value
        for name, value in defaults_at(engine.release).items()
        if value is not None and name not in _RESOLVED
    }


def _check(values: Mapping[str, Any]) -> None:
    """What configuration classes check of several values, or of parts of one.

    Raises:
        EngineRefusalError
    """
    for modality, limit in (values.get("limit_mm_per_prompt") or {}).items():
        count = limit.get("count", 1) if isinstance(limit, Mapping) else limit
        if isinstance(count, bool) or not re.fullmatch(r"-?[0-9]{1,9}", str(count)):
            raise EngineRefusalError(f"limit_mm_per_prompt.{modality[:40]} is a number, not {str(count)[:40]!r}")
    loras, on_host = values.get("max_loras", 1), values.get("max_cpu_loras")
    if values.get("enable_lora") and on_host and on_host < loras:
        raise EngineRefusalError(f"max_cpu_loras ({on_host}) must be >= max_loras ({loras}).")
    if values.get("enable_dbo") or (values.get("ubatch_size") or 0) > 1:
        backend = values.get("all2all_backend", "allgather_reducescatter")
        if backend not in MICROBATCHING:
            raise EngineRefusalError(
                f"Microbatching currently only supports the {', '.join(MICROBATCHING)} all2all backends, not {backend}"
            )
    executor = values.get("distributed_executor_backend")
    if executor is not None and executor not in EXECUTORS and "." not in executor:
        known = ", ".join(EXECUTORS)
        raise EngineRefusalError(f"distributed_executor_backend is one of {known}, not {executor[:40]!r}")


def _program_words(argv: Sequence[str]) -> int:
    if not argv or argv[0].startswith("-"):
        return 0
    first = PurePath(argv[0]).name
    if first.startswith("python"):
        n = n_module_words(argv)
        if n and argv[n - 1] in PYTHON_MODULES:
            return n + 1 if argv[n - 1] == MAIN_MODULE and tuple(argv[n : n + 1]) == ("serve",) else n
        raise UsageError(f"{' '.join(argv[:3])[:80]}: not a vLLM server", hint="write `vllm serve MODEL ...`")
    if first == "vllm":
        if len(argv) == 1 or argv[1].startswith("-"):
            return 1
        if argv[1] == "serve":
            return 2
        raise UsageError(f"`vllm {argv[1][:40]}` is not supported", hint="only `vllm serve` is; put its flags after --")
    return 0


def _speculative(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """`--spec-x` and `--speculative-config` joined (arg_utils.py:create_speculative_config)."""
    config = values.get("speculative_config")
    if config is not None and not isinstance(config, Mapping):
        raise UsageError("vllm serve: --speculative-config takes a JSON object")
    if config == {} and values.get("spec_tokens") is None:
        raise EngineRefusalError("num_speculative_tokens must be provided with speculative model")
    joined = {key.replace("-", "_"): value for key, value in (config or {}).items()}
    for flag, key, dest in (
        ("--spec-method", "method", "spec_method"),
        ("--spec-model", "model", "spec_model"),
        ("--spec-tokens", "num_speculative_tokens", "spec_tokens"),
    ):
        value = values.get(dest)
        if value is None:
            continue
        if key in joined:
            raise EngineRefusalError(f"{flag} and --speculative-config['{key}'] are mutually exclusive")
        joined[key] = value
    return joined or None


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
