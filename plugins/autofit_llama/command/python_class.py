"""The arguments of `llama_cpp.Llama` that say what settings do; the flags of its server have the same names.

Source: llama_cpp/llama.py:Llama.__init__ (llama-cpp-python 0.3.36).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from autofit.errors import UsageError

from autofit_llama.command.settings import LlamaSettings
from autofit_llama.command.values import POOLING
from autofit_llama.engine.vocabulary import LoadMode

#: of the KV cache, by the number that ggml gives them
TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20, "bf16": 30,
}  # fmt: skip


def python_arguments(settings: LlamaSettings) -> Mapping[str, Any]:
    """The keyword arguments of `llama_cpp.Llama` that say `settings`.

    Raises:
        UsageError: `Llama` has no argument for one of them.
    """
    arguments: dict[str, Any] = {}
    for name, value in settings.pinned().items():
        if name not in _ARGUMENTS:
            raise UsageError(f"llama_cpp.Llama has no argument for {name}", hint="use llama-server, or leave it out")
        arguments |= _ARGUMENTS[name](value)
    return arguments


def _named(name: str) -> Callable[[Any], Mapping[str, Any]]:
    return lambda value: {name: value}


def _load_mode(mode: LoadMode) -> Mapping[str, Any]:
    if mode == "dio":
        raise UsageError("llama_cpp.Llama has no argument for direct I/O", hint="use -lm none or mmap")
    return {"use_mmap": mode in ("auto", "mmap", "mmap+mlock"), "use_mlock": "mlock" in mode}


def _lora(paths: tuple[str, ...]) -> Mapping[str, Any]:
    if len(paths) != 1:
        raise UsageError(f"llama_cpp.Llama takes one LoRA adapter, not {len(paths)}")
    return {"lora_path": paths[0]}


def _flash_attn(value: str) -> Mapping[str, Any]:
    if value == "auto":
        raise UsageError("llama_cpp.Llama has flash attention on or off, not auto", hint="write -fa on or -fa off")
    return {"flash_attn": value == "on"}


_ARGUMENTS: Mapping[str, Callable[[Any], Mapping[str, Any]]] = {
    "model": _named("model_path"),
    "n_ctx": _named("n_ctx"),
    "n_batch": _named("n_batch"),
    "n_ubatch": _named("n_ubatch"),
    "n_gpu_layers": lambda value: {"n_gpu_layers": max(value, -1)},
    "split_mode": lambda value: {"split_mode": {"none": 0, "layer": 1, "row": 2, "tensor": 3}[value]},
    "tensor_split": lambda value: {"tensor_split": list(value)},
    "main_gpu": _named("main_gpu"),
    "flash_attn": _flash_attn,
    "type_k": lambda value: {"type_k": TYPES[value]},
    "type_v": lambda value: {"type_v": TYPES[value]},
    "logits_all": _named("logits_all"),
    "kv_offload": _named("offload_kqv"),
    "op_offload": _named("op_offload"),
    "swa_full": _named("swa_full"),
    "load_mode": _load_mode,
    "n_threads": _named("n_threads"),
    "n_threads_batch": _named("n_threads_batch"),
    "embedding": _named("embedding"),
    "pooling": lambda value: {"pooling_type": POOLING[value]},
    "loras": _lora,
    "numa": lambda value: {"numa": True},
    "fit": lambda value: {},
}
