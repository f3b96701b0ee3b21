"""Codes of the findings that only plans of vLLM have."""

from __future__ import annotations

from functools import partial

from autofit.domain.plan import Code
from autofit.planning.findings import codes, tell

OWN = {
    "kv-capacity": Code(
        "info", "how many sequences the KV cache holds", "a shorter `--max-model-len` lets more run at a time"
    ),
    "nodes": Code("info", "the plan needs several nodes", "run what is printed for each machine"),
    "idle-nodes": Code("info", "machines that the plan does not use", "leave them out, or give them to another model"),
    "instances": Code("info", "what instances behind a router serve together"),
    "connector-memory": Code(
        "warning", "what a KV connector allocates itself is not counted", "keep memory for it free with `--margin`"
    ),
    "offload-price": Code(
        "warning",
        "the decode rate that offloaded weights cost",
        "take the context, the form or the GPUs that the message names",
    ),
    "idle-gpus": Code(
        "info",
        "GPUs that the plan does not use",
        "where they are alike, `--prefer throughput` runs copies of the model on them",
    ),
    "blackwell-graphs": Code(
        "warning",
        "CUDA graphs of large MoE models may take tens of GiB on this GPU",
        "`--enforce-eager` runs without graphs",
    ),
    "draft-unknown": Code(
        "warning",
        "the draft model is not on this machine: its weights and KV cache are not counted",
        "download it, or give its path",
    ),
    "float32": Code(
        "warning",
        "the model runs in float32 on this GPU",
        "a GPU that computes in 16 bits holds the model in half the memory",
    ),
    "images-kept": Code(
        "info", "image and audio encoders take memory: how much", "`--language-model-only` leaves them out"
    ),
    "kv-cache-too-small": Code(
        "error",
        "vLLM refuses to start: the KV cache does not hold one request",
        "a shorter `--max-model-len`, or more for the cache: `--gpu-memory-utilization`",
    ),
    "kv-memory-given": Code(
        "info", "--kv-cache-memory-bytes replaces the measurement", "leave the flag out to have it measured"
    ),
    "main-memory-needed": Code(
        "info", "offloading would fit if more RAM were free", "free the RAM that the message names"
    ),
    "margin-too-large": Code("info", "it would fit without the margin", "a smaller `--margin`"),
    "mixed-gpus": Code(
        "warning", "shards are equal in size: the smallest GPU sets the limit", "name equal ones: `--device`"
    ),
    "model-note": Code("info", "what vLLM does differently for this model"),
    "no-graphs": Code("info", "CUDA graphs are left out for their memory", "`--no-enforce-eager` keeps them"),
    "not-enough-free": Code(
        "error",
        "vLLM refuses to start: less is free than --gpu-memory-utilization asks for",
        "a lower `--gpu-memory-utilization`, or end what holds the memory",
    ),
    "old-gpu": Code(
        "warning", "vLLM is published for newer GPUs than this one", "build vLLM from source; kernels may be missing"
    ),
    "omni": Code(
        "warning",
        "`--omni` hands the command to vllm-omni, whose own stages are not counted",
        "add the memory of its other stages yourself: `--margin`",
    ),
    "one-memory": Code(
        "warning",
        "unified memory: offloading weights frees nothing",
        "a smaller quantization instead (`autofit quants MODEL`)",
    ),
    "small-shm": Code(
        "warning", "shared memory is too small for the workers", "give the container more: `--shm-size`, `--ipc=host`"
    ),
    "too-many-sequences": Code(
        "error", "full CUDA graphs need a cache block for each sequence", "fewer: `--max-num-seqs`"
    ),
    "two-offloads": Code("warning", "two kinds of weight offload are set, and one wins", "keep one of them"),
}
finding = partial(tell, codes(OWN))
