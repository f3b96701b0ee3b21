"""From settings to the command that says them.

Source: common/arg.cpp (the spellings of each option).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autofit.errors import UsageError

from autofit_llama.command.options import PYTHON_SERVER, Option, Program, offers, option
from autofit_llama.command.settings import LlamaSettings
from autofit_llama.command.values import (
    ALL_LAYERS,
    AUTO_LAYERS,
)
from autofit_llama.engine.versions import LATEST, Version
from autofit_llama.engine.vocabulary import FlashAttention, LoadMode, Override


def render(settings: LlamaSettings, *, version: Version = LATEST, program: Program = "llama-server") -> tuple[str, ...]:
    """The flags that say `settings` to a program, in the shortest spelling that the version has.

    Raises:
        UsageError: the version has no way to say one of them.
    """
    if program == PYTHON_SERVER:
        from autofit_llama.command.python_server import render_server

        return render_server(settings)
    argv: list[str] = []
    pinned = settings.pinned()
    for name, show in _WRITERS.items():
        if name in pinned:
            argv += show(pinned[name], version)
    return tuple(argv)


_Writer = Callable[[Any, Version], Sequence[str]]


def _option(key: str, version: Version) -> Option:
    found = option(key, version)
    if found is None:
        raise UsageError(f"llama.cpp {version.name} has no --{key}", hint="update llama.cpp, or leave it out")
    return found


def _spelling(key: str, version: Version) -> str:
    found = _option(key, version)
    if not found.spellings:
        raise UsageError(f"llama.cpp {version.name} has no --{key}", hint="update llama.cpp, or leave it out")
    return found.spellings[0]


def _write(key: str, show: Callable[[Any], str] = str) -> _Writer:
    return lambda value, version: (_spelling(key, version), show(value))


def _write_bool(key: str) -> _Writer:
    def write(value: bool, version: Version) -> Sequence[str]:
        found = _option(key, version)
        return (found.spellings if value else found.negations)[:1]

    return write


def _write_list(key: str, show: Callable[[Any], str] = str) -> _Writer:
    return lambda values, version: (_spelling(key, version), ",".join(map(show, values)))


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if "," in text or text.startswith('"') else text


def _write_layers(key: str) -> _Writer:
    """Words for numbers came in when the value became text."""

    def write(value: int, version: Version) -> Sequence[str]:
        has_words = _option(key, version).kind == "text"
        if value == AUTO_LAYERS:
            return (_spelling(key, version), "auto") if has_words else ()
        return _spelling(key, version), ("all" if has_words else "999") if value == ALL_LAYERS else str(value)

    return write


def _write_flash_attn(value: FlashAttention, version: Version) -> Sequence[str]:
    """A switch before it took a value."""
    found = option("flash-attn", version)
    if found is None or found.kind == "switch":
        return ("-fa",) if value == "on" and found else ()
    return "-fa", value


def _write_load_mode(value: LoadMode, version: Version) -> Sequence[str]:
    """`-lm`, or what older builds have for it."""
    if offers(version, "load-mode"):
        return _spelling("load-mode", version), value
    direct = (_spelling("direct-io", version),) if value == "dio" else ()
    locked = (_spelling("mlock", version),) if value in ("mlock", "mmap+mlock") else ()
    unmapped = _option("mmap", version).negations[:1] if value in ("none", "mlock") else ()
    return (*unmapped, *locked, *direct)


def _write_draft_max(value: int, version: Version) -> Sequence[str]:
    if offers(version, "draft"):
        return "--draft-max", str(value)
    return _spelling("spec-draft-n-max", version), str(value)


def _write_overrides(prefix: str) -> _Writer:
    """Overrides in their order; neighboring patterns share a flag."""

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
    "fit": lambda value, version: ("-fit", "on" if value else "off") if offers(version, "fit") else (),
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
