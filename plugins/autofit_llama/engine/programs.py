"""The programs whose commands the backend takes; imported before anything else, so nothing is imported here."""

from __future__ import annotations

PROGRAMS = (
    "llama-server",
    "llama-cli",
    "llama-fit-params",
    "llama-bench",
    "llama-completion",
    "llama",
    "llama_cpp",  # the package of `python -m llama_cpp.server`
    # engines made from llama.cpp, whose commands are refused by name
    "llamafile",
    "koboldcpp",
    "ollama",
    "lms",
)
"""What commands begin with that are this backend's."""

PYTHON_VARIABLES = (
    "MODEL", "N_GPU_LAYERS", "SPLIT_MODE", "MAIN_GPU", "TENSOR_SPLIT", "USE_MMAP", "USE_MLOCK", "N_CTX", "N_BATCH",
    "N_UBATCH", "N_THREADS", "N_THREADS_BATCH", "LOGITS_ALL", "EMBEDDING", "OFFLOAD_KQV", "FLASH_ATTN", "LORA_PATH",
    "CLIP_MODEL_PATH", "CACHE", "CACHE_TYPE", "CACHE_SIZE", "HF_MODEL_REPO_ID", "DRAFT_MODEL", "TYPE_K", "TYPE_V",
    "CONFIG_FILE",
)  # fmt: skip
"""Variables that llama-cpp-python's server takes settings from, as far as they move bytes (`command/python_server`)."""
