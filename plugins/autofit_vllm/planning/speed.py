"""Expected rates of a vLLM plan, from what a step reads and computes (autofit.speed)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from autofit.domain.machine import HOST_POOL
from autofit.domain.model import Mixer
from autofit.domain.plan import Speed
from autofit.domain.values import replace
from autofit.speed import Draft, LayerWork, Place, Read, Roofline, n_kernels

from autofit_vllm.memory.kv import stage_bounds
from autofit_vllm.memory.offload import Offload
from autofit_vllm.modules.dtypes import dtype_bytes
from autofit_vllm.modules.model import (
    AttentionCache,
    LatentCache,
    PackedCache,
    StageWeights,
    StateCache,
    VllmModel,
)
from autofit_vllm.planning.evaluation import Evaluation, Rank

DEFAULT_LINK = 25_000_000_000  #: bytes/s, PCIe 4.0 x16 in practice
LINK_EFFICIENCY = 0.8
TYPICAL_FILL_TOKENS = 4096  #: at which plans are compared, if the context is not shorter
#: Storage type that stands for a quantization method's kernels: how bits unpack is what matters.
_TYPES = (
    ("gptq", "q4_0"),
    ("awq", "q4_0"),
    ("mxfp4", "mxfp4"),
    ("fp4", "nvfp4"),
    ("fp8", "F8_E4M3"),
    ("int8", "I8"),
    ("wna16", "q4_0"),
    ("bitsandbytes", "q4_0"),
    ("gguf", "q4_K"),
    ("fp_quant", "mxfp4"),
)


def storage_type(quantization: str | None, dtype: str, raw: Mapping[str, object] | None = None) -> str:
    """The type of the weights for the speed model; `raw` is the checkpoint's `quantization_config`."""
    for word, name in _TYPES:
        if quantization and word in quantization:
            return "q8_0" if name == "q4_0" and raw and raw.get("bits") == 8 else name
    if quantization in ("compressed-tensors", "quark", "torchao", "inc", "humming"):
        return _of_groups(raw) or "F8_E4M3"
    return {"bfloat16": "BF16", "float16": "F16"}.get(dtype, "F32")


def _of_groups(raw: Mapping[str, object] | None) -> str | None:
    """The type that the first group of layers gets of compressed-tensors."""
    groups = raw.get("config_groups") if raw else None
    group = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(group, Mapping) or not isinstance(weights, Mapping):
        return None
    if weights.get("type") == "float":
        return "F8_E4M3" if weights.get("num_bits") == 8 else "mxfp4" if weights.get("group_size") == 32 else "nvfp4"
    if weights.get("num_bits") == 8:
        return "I8" if group.get("input_activations") else "q8_0"
    return "q4_0"


def layer_works(evaluation: Evaluation, n_replicas: int = 1, *, as_lossless: bool = False) -> list[LayerWork]:
    """One entry per decoder layer, and the output stage: what the ranks of one replica read and compute. Experts are
    shared by all replicas, so that the tokens of `n_replicas` choose among those of one. `as_lossless`: with a cache of
    the model's type, where it has 8 bits."""
    model, config = evaluation.model, evaluation.config
    ranks = config.parallel.tp
    stages = evaluation.weights
    total = sum(
        stage.parameter_bytes - stage.expert_bytes - stage.embedding_bytes - stage.tower_bytes for stage in stages
    )
    kept = _kept_fraction(stages)
    dense = int(ranks * max(0, total) * kept)
    experts = int(ranks * sum(stage.expert_bytes for stage in stages) * kept)
    n = max(1, model.n_layers)
    kind = storage_type(config.quantization, config.dtype, model.quantization)
    token = _cache_bytes(evaluation)
    is_quantized = config.kv_cache_dtype not in ("auto", "float16", "bfloat16")
    unpacked = _unpacked_flops(model)
    widened = dtype_bytes(config.dtype) if as_lossless and is_quantized else 1
    works: list[LayerWork] = []
    same: dict[tuple[object, ...], LayerWork] = {}  # the speed model knows equal layers by identity
    for index in range(n):
        parts = token.get(index, _NO_CACHE)
        if parts not in same:
            cache, window, state, flops, mixer = parts
            same[parts] = LayerWork(
                dense=(Read(kind, dense // n, _elements(kind, dense // n)),),
                experts=(Read(kind, experts // n, _elements(kind, experts // n)),) if experts else (),
                n_experts=model.n_experts,
                n_experts_used=min(model.n_experts, model.n_experts_per_token * n_replicas),
                cache_token_bytes=cache * widened,
                cache_is_quantized=is_quantized and not as_lossless,
                window_tokens=window,
                state_bytes=state,
                attention_flops=flops,
                prompt_attention_flops=unpacked if mixer == "latent" else None,
                n_kernels=n_kernels(mixer, "experts" if experts else "dense"),
                hidden_bytes=2 * model.hidden_size,
            )
        works.append(same[parts])
    head = model.vocab_size * model.hidden_size * dtype_bytes(config.dtype)
    works.append(
        LayerWork(
            dense=(
                Read(
                    kind if kind in ("BF16", "F16", "F32") else "BF16",
                    head,
                    model.vocab_size * model.hidden_size,
                ),
            ),
            n_kernels=2,
            hidden_bytes=2 * model.hidden_size,
            last_token_only=True,
        )
    )
    return works


def _kept_fraction(stages: Iterable[StageWeights]) -> float:
    """How much of the weights is left once they are loaded: less than all where loading quantizes them."""
    created = sum(stage.parameter_bytes - stage.embedding_bytes for stage in stages)
    less = sum(min(0, stage.extra_bytes) for stage in stages)
    return max(0.0, 1 + less / created) if created > 0 else 1.0


def _elements(kind: str, n_bytes: int) -> int:
    bits = {"q4_0": 4.5, "mxfp4": 4.25, "nvfp4": 4.5, "F8_E4M3": 8, "I8": 8, "q8_0": 8.5, "F32": 32}.get(kind, 16)
    return int(n_bytes * 8 / bits)


def _unpacked_flops(model: VllmModel) -> int | None:
    """Operations of a prompt's query against a cached token of latent attention: keys and values of each head are
    unpacked for many queries at once (v1/attention/backends/mla/prefill)."""
    sizes = [model.config.get(name) for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")]
    known = [size for size in sizes if isinstance(size, int)]
    return 2 * model.n_heads * sum(known) if len(known) == len(sizes) else None


CacheCost = tuple[int, int | None, int, int, Mixer]
_NO_CACHE: CacheCost = (0, None, 0, 0, "full")


def _cache_bytes(evaluation: Evaluation) -> dict[int, CacheCost]:
    """(cache bytes per token, window, state bytes, operations, mixer) by layer, over all ranks."""
    tp = evaluation.config.parallel.tp
    pages = {layer.name: layer for layer in evaluation.kv.layout.layers}
    result: dict[int, CacheCost] = {}
    for cache in evaluation.model.caches:
        layer = pages.get(cache.name)
        if layer is None or cache.stage < 0 or cache.stage in result:
            continue
        if isinstance(cache, StateCache):
            result[cache.stage] = (0, None, layer.token_bytes * tp, 0, "recurrent")
        elif isinstance(cache, AttentionCache):
            flops = 2 * cache.heads * (cache.head_size + cache.head_size_v)
            copies = max(1, cache.kv_heads // cache.kv_heads_per_rank(tp))
            mixer: Mixer = "sliding" if layer.window_tokens else "full"
            result[cache.stage] = (layer.token_bytes * copies, layer.window_tokens, 0, flops, mixer)
        elif isinstance(cache, LatentCache):
            flops = 2 * cache.heads * (2 * cache.kv_lora_rank + cache.rope_size)
            result[cache.stage] = (layer.token_bytes * tp, None, 0, flops, "latent")
        elif isinstance(cache, PackedCache) and layer.window_tokens:
            flops = 4 * evaluation.model.n_heads * cache.plain_elements
            result[cache.stage] = (layer.token_bytes * tp, layer.window_tokens, 0, flops, "sliding")
    return result


def places(evaluation: Evaluation) -> list[Place]:
    """Where each entry of `layer_works` runs, in the first replica."""
    model, parallel = evaluation.model, evaluation.config.parallel
    bounds = stage_bounds(model.n_layers, parallel.pp, parallel.layer_partition)
    stages = [_place(evaluation, stage) for stage in range(parallel.pp)]
    placed = [stages[at] for at in range(parallel.pp) for _ in range(bounds[at], bounds[at + 1])]
    return [*(placed or stages[:1]), stages[-1]]


def _place(evaluation: Evaluation, stage: int) -> Place:
    ids = [rank.device.id for rank in evaluation.ranks if rank.stage == stage]
    ids = ids[: evaluation.config.parallel.tp] or [HOST_POOL]
    return Place(device=ids[0], ranks=tuple(ids) if len(ids) > 1 else ())


def offload_seconds(offload: Offload, ranks: Sequence[Rank], model: VllmModel, n_tokens: int) -> float:
    """Seconds that a step reads offloaded weights over PCIe; of experts, those that its tokens choose (a
    prefetched layer comes whole)."""
    if all(rank.n_sharing for rank in ranks):
        return 0.0  # no bus between a processor and a GPU of one memory
    share = 1.0
    if offload.experts_only and model.n_experts and not offload.prefetches:
        share = 1.0 - (1.0 - model.n_experts_per_token / model.n_experts) ** n_tokens
    links = [rank.device.link_bytes_per_s for rank in ranks]
    known = [link for link in links if link]
    slowest = (min(known) if known else DEFAULT_LINK) * LINK_EFFICIENCY
    return share * sum(offload.moved) / slowest


def _exchange_seconds(evaluation: Evaluation, roofline: Roofline, n_tokens: int) -> float:
    """Seconds that replicas which share experts take in a step of `n_tokens` each to gather the tokens of all, and to
    hand back what the experts made of them, in each layer: `--all2all-backend allgather_reducescatter`, the default."""
    model, parallel = evaluation.model, evaluation.config.parallel
    if not model.is_moe or parallel.dp < 2:
        return 0.0
    ranks = [rank.device.id for rank in evaluation.ranks if rank.stage == 0]
    n_bytes = (len(ranks) - 1) * n_tokens / parallel.tp * 2 * model.hidden_size
    return 2 * model.n_layers * roofline.ring_seconds(ranks, n_bytes)


def _slower(rate: float, seconds: float, *, overlaps: bool) -> float:
    """`rate` with transfers that wait for the computation, or go on beside it."""
    if rate <= 0:
        return rate
    return 1.0 / max(1.0 / rate, seconds) if overlaps else 1.0 / (1.0 / rate + seconds)


def decodes(evaluation: Evaluation) -> bool:
    """Whether it writes tokens: models that embed or judge their inputs only read."""
    return not (evaluation.settings.pooling or evaluation.model.is_pooling)


def full_speed_of(evaluation: Evaluation, roofline: Roofline) -> Speed | None:
    """Rates of one sequence with its context full, and near the start of it: what a plan tells.

    `None` where the machine's bandwidth is unknown.
    """
    length = evaluation.capacity.max_model_len if evaluation.capacity else evaluation.config.max_model_len
    full = speed_of(evaluation, roofline, n_filled=length)
    if full is None:
        return None
    start = speed_of(evaluation, roofline, n_filled=0)
    return replace(
        full,
        start_tokens_per_s=None if start is None else start.decode_tokens_per_s,
        start_prefill_tokens_per_s=None if start is None else start.prefill_tokens_per_s,
        basis=f"{full.basis}; with {length} tokens in the context",
        decodes=decodes(evaluation),
    )


def speed_of(
    evaluation: Evaluation,
    roofline: Roofline,
    *,
    n_sequences: int = 1,
    n_filled: int | None = None,
    n_replicas: int = 1,
    as_lossless: bool = False,
) -> Speed | None:
    """Rates per sequence, with `n_sequences` in each of `n_replicas` that are busy, filled to `n_filled` or to what
    plans are compared at; `None` where the machine's bandwidth is unknown."""
    if evaluation.config.gpu.cpu or not evaluation.ranks:
        return None
    works = layer_works(evaluation, n_replicas, as_lossless=as_lossless)
    placed = list(zip(works, places(evaluation), strict=True))
    length = evaluation.capacity.max_model_len if evaluation.capacity else evaluation.config.max_model_len
    speed = roofline.estimate(
        placed,
        n_filled=min(length, TYPICAL_FILL_TOKENS) if n_filled is None else n_filled,
        n_sequences=n_sequences,
        n_ubatch=evaluation.config.max_num_batched_tokens,
        draft=_draft(evaluation, placed),
    )
    offload = evaluation.offload
    exchange = 0.0 if speed is None else _exchange_seconds(evaluation, roofline, n_sequences)
    if speed is not None and exchange:
        speed = replace(
            speed,
            decode_tokens_per_s=_slower(speed.decode_tokens_per_s, exchange, overlaps=False),
            low=_slower(speed.low, exchange, overlaps=False),
            high=_slower(speed.high, exchange, overlaps=False),
            basis=f"{speed.basis}; exchange between replicas",
        )
    waiting = offload_seconds(offload, evaluation.ranks, evaluation.model, n_sequences) if offload else 0.0
    if speed is None or offload is None or not waiting:
        return speed
    overlaps = offload.prefetches
    return replace(
        speed,
        decode_tokens_per_s=_slower(speed.decode_tokens_per_s, waiting, overlaps=overlaps),
        low=_slower(speed.low, 1.3 * waiting, overlaps=overlaps),
        high=_slower(speed.high, waiting / 1.3, overlaps=overlaps),
        prefill_tokens_per_s=None,
        prefill_low=None,
        prefill_high=None,
        basis=f"{speed.basis}; offloaded weights over PCIe",
    )


def _draft(evaluation: Evaluation, placed: Sequence[tuple[LayerWork, Place]]) -> Draft | None:
    n_tokens = evaluation.config.speculative_tokens
    if not n_tokens or evaluation.config.draft is None:
        return None
    last = placed[-2][0]
    n_bytes = evaluation.config.parallel.tp * evaluation.weights[-1].draft_bytes
    kind = storage_type(None, evaluation.config.dtype)
    work = replace(last, dense=(Read(kind, n_bytes, _elements(kind, n_bytes)),), experts=())
    return Draft(layers=((work, placed[-2][1]),), n_tokens=n_tokens)
