"""Codes of the findings that only plans of vLLM have."""

from __future__ import annotations

from functools import partial

from autofit.domain.plan import Code
from autofit.planning.findings import codes, tell

OWN = {
    "kv-capacity": Code("info", "how many sequences the KV cache holds"),
    "nodes": Code("info", "the plan needs several nodes"),
    "idle-nodes": Code("info", "machines that the plan does not use, and what they could do"),
    "instances": Code("info", "what instances behind a router serve together"),
    "connector-memory": Code("warning", "memory of a KV connector's own is not counted"),
    "offload-price": Code("warning", "the decode rate that offloaded weights cost"),
    "idle-gpus": Code("info", "GPUs that the plan does not use"),
    "blackwell-graphs": Code("warning", "CUDA graphs of large MoE models may take tens of GiB on this GPU"),
    "draft-unknown": Code("warning", "the draft model's architecture is unknown"),
    "float32": Code("warning", "the model runs in float32 on this GPU"),
    "images-kept": Code("info", "image and audio encoders take memory"),
    "kv-cache-too-small": Code("error", "vLLM refuses to start: the KV cache does not hold one request"),
    "kv-memory-given": Code("info", "--kv-cache-memory-bytes replaces the measurement"),
    "main-memory-needed": Code("info", "offloading would fit if more RAM were free"),
    "margin-too-large": Code("info", "it would fit without the margin"),
    "mixed-gpus": Code("warning", "GPUs differ, and the smallest sets the limit"),
    "model-note": Code("info", "a particularity of this model in vLLM"),
    "no-graphs": Code("info", "CUDA graphs are left out for their memory"),
    "not-enough-free": Code("error", "vLLM refuses to start: less is free than --gpu-memory-utilization asks for"),
    "old-gpu": Code("warning", "the published wheel has no kernels for this GPU"),
    "omni": Code("warning", "only a part of the model runs in vLLM"),
    "one-memory": Code("warning", "unified memory: offloading weights frees nothing"),
    "small-shm": Code("warning", "shared memory is too small for the workers"),
    "too-many-sequences": Code("error", "full CUDA graphs need a cache block for each sequence"),
    "two-offloads": Code("warning", "two kinds of weight offload are set, and one wins"),
}
finding = partial(tell, codes(OWN))
