"""Models and GPUs for tests of the vLLM plugin: caches without weights, sizes from published
configurations."""

from __future__ import annotations

import dataclasses
from typing import Any

from autofit_vllm.command.settings import parse_command
from autofit_vllm.config.engine import EngineConfig, Gpu
from autofit_vllm.config.resolve import resolve
from autofit_vllm.modules.model import AttentionCache, Cache, LatentCache, StageWeights, StateCache, VllmModel

GIB = 1 << 30

#: name as CUDA reports it, compute capability, total GiB
GPUS = {
    "t4": ("Tesla T4", (7, 5), 14.56),
    "3060": ("NVIDIA GeForce RTX 3060", (8, 6), 11.63),
    "3090": ("NVIDIA GeForce RTX 3090", (8, 6), 23.56),
    "4090": ("NVIDIA GeForce RTX 4090", (8, 9), 23.52),
    "5090": ("NVIDIA GeForce RTX 5090", (12, 0), 31.36),
    "l40s": ("NVIDIA L40S", (8, 9), 44.39),
    "a100-40": ("NVIDIA A100-SXM4-40GB", (8, 0), 39.39),
    "a100-80": ("NVIDIA A100-SXM4-80GB", (8, 0), 79.25),
    "h100": ("NVIDIA H100 80GB HBM3", (9, 0), 79.18),
    "h200": ("NVIDIA H200", (9, 0), 139.8),
    "b200": ("NVIDIA B200", (10, 0), 178.35),
}
#: the same by autofit's hardware profiles
PROFILES = {
    "t4": "t4",
    "3060": "rtx-3060-12gb",
    "3090": "rtx-3090",
    "4090": "rtx-4090",
    "5090": "rtx-5090",
    "l40s": "l40s",
    "a100-40": "a100-40gb",
    "a100-80": "a100-80gb",
    "h100": "h100-80gb",
    "h200": "h200",
    "b200": "b200",
}


def gpu(name: str) -> Gpu:
    label, cc, gib = GPUS[name]
    return Gpu(name=label, total_bytes=int(gib * GIB), cc=cc)


def model(caches: tuple[Cache, ...], **fields: Any) -> VllmModel:
    """A model with these caches; Llama-3-8B's sizes where nothing else is said."""
    values: dict[str, Any] = {
        "architecture": "LlamaForCausalLM",
        "model_type": "llama",
        "modules": (),
        "buffers": (),
        "dtype": "bfloat16",
        "n_layers": len(caches),
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "n_heads": 32,
        "n_kv_heads": 8,
        "head_size": 128,
        "max_len_tokens": 131072,
        "max_len_key": "max_position_embeddings",
        "default_len_tokens": 131072,
    }
    return VllmModel(caches=caches, **{**values, **fields})


def full(index: int, *, heads: int = 32, kv_heads: int = 8, head_size: int = 128, **more: Any) -> AttentionCache:
    return AttentionCache(
        name=f"model.layers.{index}.self_attn.attn",
        stage=index,
        kind=more.pop("kind", "full"),
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        head_size_v=head_size,
        **more,
    )


def llama_8b(**fields: Any) -> VllmModel:
    return model(tuple(full(i) for i in range(32)), **fields)


def qwen3_8b() -> VllmModel:
    return model(
        tuple(full(i) for i in range(36)),
        architecture="Qwen3ForCausalLM",
        model_type="qwen3",
        max_len_tokens=40960,
        default_len_tokens=40960,
    )


def gemma3_27b() -> VllmModel:
    """Five layers in six keep a window of 1024 tokens."""
    caches = tuple(
        full(i, kv_heads=16, **({} if (i + 1) % 6 == 0 else {"kind": "sliding", "window_tokens": 1024}))
        for i in range(62)
    )
    return model(
        caches,
        architecture="Gemma3ForCausalLM",
        model_type="gemma3_text",
        n_kv_heads=16,
        sliding_window=1024,
        vocab_size=262208,
    )


def qwen3_6_27b() -> VllmModel:
    """Three layers in four are gated delta nets with a recurrent state in fp32; one layer predicts
    further."""
    caches: list[Cache] = []
    for index in range(64):
        if (index + 1) % 4 == 0:
            caches.append(full(index, heads=24, kv_heads=4, head_size=256))
        else:
            caches.append(
                StateCache(
                    name=f"model.layers.{index}.linear_attn",
                    stage=index,
                    kind="gdn",
                    conv_kernel=4,
                    heads=48,
                    head_size=128,
                    key_heads=16,
                    key_head_size=128,
                )
            )
    base = model(
        tuple(caches),
        architecture="Qwen3_5ForConditionalGeneration",
        model_type="qwen3_5",
        n_heads=24,
        n_kv_heads=4,
        head_size=256,
        hidden_size=5120,
        vocab_size=248320,
        max_len_tokens=262144,
        default_len_tokens=262144,
        is_hybrid=True,
        ssm_dtype="float32",
    )
    from autofit_vllm.modules.model import LAST, Draft

    draft = dataclasses.replace(full(0, heads=24, kv_heads=4, head_size=256), name="mtp.layers.0", stage=LAST)
    return dataclasses.replace(base, draft=Draft(n_layers=1, modules=(), caches=(draft,)))


def deepseek_v3() -> VllmModel:
    caches = tuple(
        LatentCache(name=f"model.layers.{i}.self_attn", stage=i, heads=128, kv_lora_rank=512, rope_size=64)
        for i in range(61)
    )
    return model(
        caches,
        architecture="DeepseekV3ForCausalLM",
        model_type="deepseek_v3",
        n_heads=128,
        n_kv_heads=128,
        head_size=576,
        uses_mla=True,
        n_experts=256,
        n_experts_per_token=8,
        moe_intermediate_size=2048,
        max_len_tokens=163840,
        default_len_tokens=163840,
        config={"qk_nope_head_dim": 128},
    )


def config(
    of: VllmModel, on: str, *args: str, env: dict[str, str] | None = None, version: str | None = None
) -> EngineConfig:
    """The engine's configuration of a command, on as many GPUs as it wants."""
    _, settings = parse_command(["vllm", "serve", "M", *args], env, version)
    return resolve(settings, of, gpu(on))


def weights(of: VllmModel, total_bytes: int, *, tp: int = 1, pp: int = 1) -> tuple[StageWeights, ...]:
    """Weights shared evenly, a tenth of them embeddings, and nine tenths of the rest experts if it has
    any."""
    from autofit_vllm.memory.kv import stage_bounds

    bounds = stage_bounds(of.n_layers, pp)
    share = total_bytes // (tp * pp)
    return tuple(
        StageWeights(
            stage=stage,
            n_layers=bounds[stage + 1] - bounds[stage],
            parameter_bytes=share,
            expert_bytes=share * 8 // 10 if of.is_moe else 0,
            embedding_bytes=share // 10,
            tower_bytes=0,
            buffer_bytes=32 << 20,
            extra_bytes=0,
            lora_bytes=0,
            draft_bytes=0,
        )
        for stage in range(pp)
    )
