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

_READS_ALL = "it keeps the logits of whole texts, or computes over several sequences of its own making"
_EMBEDS = "its batches are its own; llama-server --embedding is planned"
_SEES = "its context is its own; llama-cli --mmproj is planned"
_DRAFTS = "it shows a way to guess tokens ahead; llama-server, which is planned, has it as --spec-type"
_SHOWS = "it shows how the library is used, with settings of its own; llama-completion is planned"
UNPLANNED = {
    **dict.fromkeys(("llama-perplexity", "llama-imatrix", "llama-batched-bench", "llama-parallel"), _READS_ALL),
    **dict.fromkeys(("llama-embedding", "llama-retrieval", "llama-cvector-generator"), _EMBEDS),
    **dict.fromkeys(("llama-mtmd-cli", "llama-llava-cli", "llama-gemma3-cli", "llama-minicpmv-cli",
                     "llama-qwen2vl-cli"), _SEES),
    **dict.fromkeys(("llama-speculative", "llama-speculative-simple", "llama-lookahead", "llama-lookup"), _DRAFTS),
    **dict.fromkeys(("llama-simple", "llama-simple-chat", "llama-batched", "llama-passkey", "llama-eval-callback",
                     "llama-save-load-state", "llama-run"), _SHOWS),
    "llama-finetune": "it trains: gradients and the state of its optimizer are not counted",
    "llama-tts": "it loads two models at once",
    "llama-diffusion-cli": "it computes whole texts at a time",
}  # fmt: skip
"""Other programs that run a model, and why they are started as they are."""
TOOLS = frozenset(
    (
        "llama-quantize", "llama-gguf-split", "llama-gguf", "llama-gguf-hash", "llama-tokenize", "llama-export-lora",
        "llama-convert-llama2c-to-ggml", "llama-lookup-create", "llama-lookup-merge", "llama-lookup-stats",
        "llama-gen-docs", "llama-ls-sycl-device", "llama-fit-params", "rpc-server", "ggml-rpc-server",
    )
)  # fmt: skip
"""Programs that run no model."""

PRESETS = "LLAMA_ARG_MODELS_PRESET"
"""The variable that names a router's file of models (common/arg.cpp, `--models-preset`)."""
PYTHON_VARIABLES = (
    "MODEL", "N_GPU_LAYERS", "SPLIT_MODE", "MAIN_GPU", "TENSOR_SPLIT", "USE_MMAP", "USE_MLOCK", "N_CTX", "N_BATCH",
    "N_UBATCH", "N_THREADS", "N_THREADS_BATCH", "LOGITS_ALL", "EMBEDDING", "OFFLOAD_KQV", "FLASH_ATTN", "LORA_PATH",
    "CLIP_MODEL_PATH", "CACHE", "CACHE_TYPE", "CACHE_SIZE", "HF_MODEL_REPO_ID", "DRAFT_MODEL", "TYPE_K", "TYPE_V",
    "CONFIG_FILE",
)  # fmt: skip
"""Variables that llama-cpp-python's server takes settings from, as far as they move bytes (`command/python_server`)."""
