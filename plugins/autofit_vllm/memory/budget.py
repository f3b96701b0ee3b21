"""Where a GPU's memory goes when vLLM starts, in the order in which vLLM accounts for it.

v1/worker/gpu_worker.py:determine_available_memory measures; here the same terms are computed beforehand:

    before the snapshot    CUDA context, cuBLAS, NCCL: outside vLLM's budget
    requested              ceil(total * utilization): refused when less than that is free
    - consumed             weights, buffers, input and sampler state, workspaces, memory of libraries
    - transient peak       of one step of `max_num_batched_tokens` dummy tokens
    - graph estimate       CUDA graphs to be captured
    = KV cache
    after                  block tables, workspaces: outside the budget again

Weights and the cache are exact; the rest are bounds and cited measurements, each with its source.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from autofit.domain.memory import Basis, MemoryItem
from autofit.domain.units import MIB
from autofit.domain.values import dataclass, replace

from autofit_vllm.config.engine import EngineConfig
from autofit_vllm.memory.host import HostUse
from autofit_vllm.memory.kv import KvPlan
from autofit_vllm.modules.dtypes import dtype_bytes
from autofit_vllm.modules.model import IndexerCache, LatentCache, PackedCache, StageWeights, VllmModel

#: Context, cuBLAS and kernels of one process by compute capability: free memory of idle cards in public boot
#: logs (B200 alone: 177.66 of 178.36 GiB).
CONTEXT_BYTES: tuple[tuple[tuple[int, int], int], ...] = (
    ((12, 0), 500 * MIB),
    ((10, 0), 700 * MIB),
    ((9, 0), 550 * MIB),
    ((8, 0), 450 * MIB),
    ((0, 0), 350 * MIB),
)
#: NCCL's buffers and peer mappings: 1.13 GiB below total on two RTX 5090, 2.54 on eight B200, context
#: included.
NCCL_FIRST_BYTES = 640 * MIB
NCCL_MORE_BYTES = 205 * MIB
#: Memory that CUDA libraries take after the snapshot: 0.07 to 0.39 GiB in eleven logs ("non_torch").
LIBRARY_BYTES = 300 * MIB
#: What one graph keeps for each layer, by what logs estimated: 51 piecewise and 35 full graphs took 0.52 GiB with
#: Qwen3-8B (36 layers) and 0.64 with Qwen3.5-4B (32), 3 and 2 took 0.09. Experts start more kernels in a layer: a full
#: graph of Qwen3.5-122B-A10B (48 layers) took 24 MiB (vllm/issues/50780), 54 graphs of MiniMax-M3 (60) 1.97 GiB.
GRAPHS_BASE_BYTES = 70 * MIB
GRAPH_LAYER_BYTES = 140 << 10
EXPERTS_GRAPH_LAYER_BYTES = 512 << 10
#: Bytes per sampled row and vocabulary entry: logits, fp32 copy, what top-k leaves and probabilities are 14 by source;
#: logs with up to 256 rows leave room for no more than 18. With 1024 rows it was about 34 on average (RTX PRO 6000 with
#: 248,320 entries, whatever the type of the weights; two H100 with 131,072, one with 201,088), more than the sampler
#: has tensors for. What grows beside it may be the estimate of CUDA graphs, into which releases before 0.33 count what
#: the steps before a capture leave in the allocator (vllm/issues/50780). Boots with VLLM_LOGGING_LEVEL=DEBUG, and 256
#: and 1024 sequences, would tell them apart: "Estimated FULL CUDA graph memory", "torch peak memory increase".
SAMPLER_BYTES_PER_LOGIT = 18
SAMPLER_MORE_BYTES_PER_LOGIT = 39
SAMPLER_FEW_ROWS = 256
#: vllm/envs.py:VLLM_FLASHINFER_WORKSPACE_BUFFER_SIZE, and trtllm's own zero-filled one of the same size
FLASHINFER_BYTES = 394 * MIB
_ENCODER = "image encoder"
CONTEXT, NCCL = "CUDA context", "NCCL"  #: taken before the snapshot
TABLES, FLASHINFER, CAPTURE = "block tables", "FlashInfer workspace", "slack of graph capture"  #: after the profile
GRAPHS = "CUDA graphs"
_GATHERED_BYTES = (
    576 * 2
)  #: of a token, where sparse attention gathers (mla/flashmla_sparse.py:get_prefill_workspace_size)
_INDEXER_LOGITS_BYTES = 512 * MIB  #: vllm/envs.py:VLLM_SPARSE_INDEXER_MAX_LOGITS_MB
#: The highest utilization that reports of unified memory started with: the system works in the same bytes.
UNIFIED_LIMIT = 0.85
#: Peaks beside weights and cache are bounds, never measured here: no published command is above this.
LIMIT = 0.95
#: The largest image of a tower that takes any resolution and whose configuration does not bound it: an assumption, the
#: bound that Qwen-VL's preprocessor ships with.
DYNAMIC_IMAGE_TOKENS = 16384
CAPTURE_SLACK_BYTES = 150 * MIB  #: graph estimates miss by about this (worker/gpu_worker.py adds it to its suggestion)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankBudget:
    """What one rank of a pipeline stage takes beside its KV cache."""

    stage: int
    outside: tuple[MemoryItem, ...]  #: before the snapshot: context, NCCL
    consumed: tuple[MemoryItem, ...]
    peak: MemoryItem
    graphs: MemoryItem
    after: tuple[MemoryItem, ...]
    ipc_bytes: int = 0  #: `--mm-ipc-gpu-memory-gb`, taken from the cache
    graphs_deducted: bool = True  #: else they come on top of the utilization

    @property
    def outside_bytes(self) -> int:
        return sum(item.n_bytes for item in self.outside)

    @property
    def consumed_bytes(self) -> int:
        return sum(item.n_bytes for item in self.consumed)

    @property
    def after_bytes(self) -> int:
        graphs = 0 if self.graphs_deducted else self.graphs.n_bytes
        return graphs + sum(item.n_bytes for item in self.after)

    @property
    def planned_bytes(self) -> int:
        """What the utilization must cover without a KV cache."""
        graphs = self.graphs.n_bytes if self.graphs_deducted else 0
        return self.consumed_bytes + self.peak.n_bytes + graphs + self.ipc_bytes

    @property
    def items(self) -> tuple[MemoryItem, ...]:
        return (*self.consumed, self.peak, self.graphs, *self.outside, *self.after)

    def with_host(self, host: HostUse) -> RankBudget:
        """The budget of a rank whose device draws on RAM: vLLM then measures that, processes and
        pinned weights included (utils/mem_utils.py:MemorySnapshot.measure)."""
        return replace(
            self,
            outside=(*self.outside, *host.processes),
            consumed=(*self.consumed, *host.loaded),
            after=(*self.after, *host.later),
        )

    def available_kv_bytes(self, requested_bytes: int) -> int:
        """`Available KV cache memory` of the log."""
        return requested_bytes - self.planned_bytes


def requested_bytes(total_bytes: int, utilization: float) -> int:
    """What vLLM may plan with (v1/worker/utils.py:request_memory)."""
    return math.ceil(total_bytes * utilization)


def rank_budget(
    model: VllmModel,
    config: EngineConfig,
    weights: StageWeights,
    kv: KvPlan,
    *,
    runtime_bytes: int | None = None,
    vision: Mapping[str, object] | None = None,
    offloaded_bytes: int = 0,
    flashinfer_bytes: int = FLASHINFER_BYTES,
    ipc_bytes: int = 0,
    graphs_deducted: bool = True,
) -> RankBudget:
    """The budget of the ranks of one stage. `runtime_bytes` is the device's own context size if it is
    known."""
    is_last = weights.stage == config.parallel.pp - 1
    workspace = workspace_item(model, config)
    peak = peak_items(model, config, is_last=is_last, vision=vision if weights.stage == 0 else None)
    largest = max(peak, key=lambda item: item.n_bytes)
    if largest.label == _ENCODER:
        # The encoder is profiled first, when there are no workspaces yet.
        largest = max([_beside(largest, workspace), *peak[:-1]], key=lambda item: item.n_bytes)
    return RankBudget(
        stage=weights.stage,
        outside=_outside(config, runtime_bytes),
        consumed=_consumed(model, config, weights, workspace, is_last=is_last, offloaded_bytes=offloaded_bytes),
        peak=MemoryItem(
            kind="compute",
            n_bytes=largest.n_bytes,
            basis=largest.basis,
            label=f"activation peak ({largest.label})",
            source=largest.source,
        ),
        graphs=graphs_item(model, config),
        after=_after(config, kv, flashinfer_bytes),
        ipc_bytes=ipc_bytes,
        graphs_deducted=graphs_deducted,
    )


def _outside(config: EngineConfig, runtime_bytes: int | None) -> tuple[MemoryItem, ...]:
    if config.gpu.cpu:
        return ()
    if runtime_bytes is None:
        size = next(size for cc, size in CONTEXT_BYTES if config.gpu.cc >= cc)
        context = MemoryItem(
            kind="runtime",
            n_bytes=size,
            basis="assumed",
            label=CONTEXT,
            source="idle cards in public boot logs",
        )
    else:
        context = MemoryItem(kind="runtime", n_bytes=runtime_bytes, basis="measured", label=CONTEXT)
    ranks = config.parallel.world_size * config.parallel.dp
    if ranks <= 1:
        return (context,)
    n_bytes = NCCL_FIRST_BYTES + NCCL_MORE_BYTES * (min(ranks, 16) - 2)
    return context, MemoryItem(
        kind="runtime",
        n_bytes=n_bytes,
        basis="assumed",
        label=NCCL,
        source="two RTX 5090 and eight B200 at start",
    )


def _consumed(
    model: VllmModel,
    config: EngineConfig,
    weights: StageWeights,
    workspace: MemoryItem,
    *,
    is_last: bool,
    offloaded_bytes: int,
) -> tuple[MemoryItem, ...]:
    basis: Basis = "exact" if model.basis == "derived" else "derived"
    items = [
        MemoryItem(kind="weights", n_bytes=weights.parameter_bytes - offloaded_bytes, basis=basis, label="parameters"),
        MemoryItem(kind="weights", n_bytes=weights.buffer_bytes, basis="derived", label="rope caches and buffers"),
        MemoryItem(kind="weights", n_bytes=weights.extra_bytes, basis="derived", label="post-processing of weights"),
        MemoryItem(kind="weights", n_bytes=weights.lora_bytes, basis="derived", label="LoRA slots"),
        MemoryItem(kind="weights", n_bytes=weights.draft_bytes, basis="derived", label="draft layers"),
    ]
    if not config.gpu.cpu:
        items += [_input_state(model, config, is_last=is_last), workspace]
        items.append(
            MemoryItem(
                kind="compute",
                n_bytes=config.fused_allreduce_bytes,
                basis="derived",
                label="buffer of joined all-reduces",
                source="compilation/passes/fusion/allreduce_rms_fusion.py:AllReduceFusionPass",
            )
        )
        items.append(
            MemoryItem(
                kind="runtime",
                n_bytes=LIBRARY_BYTES,
                basis="assumed",
                label="CUDA libraries",
                source="eleven boot logs",
            )
        )
    return tuple(item for item in items if item.n_bytes)


def _input_state(model: VllmModel, config: EngineConfig, *, is_last: bool) -> MemoryItem:
    """Buffers that stay: token counters of the penalties (v1/worker/gpu/sample/penalties.py), step inputs, and what
    models with an indexer or with several residual streams keep per token of a step."""
    seqs, vocab = config.max_num_seqs, model.vocab_size
    counters = seqs * vocab * 4 + seqs * -(-vocab // 32) * 4 if is_last else 0
    inputs = config.max_num_batched_tokens * 64
    embeds = config.max_num_batched_tokens * model.hidden_size * dtype_bytes(config.dtype) if config.images else 0
    kept = config.max_num_batched_tokens * _kept_per_token(model, config, is_last=is_last)
    return MemoryItem(
        kind="compute",
        n_bytes=counters + inputs + embeds + kept,
        basis="derived",
        label="sampler and input state",
        source="v1/worker/gpu/sample/penalties.py",
    )


def _kept_per_token(model: VllmModel, config: EngineConfig, *, is_last: bool) -> int:
    """Bytes that a model's own buffers keep for each token of a step: what its indexers pick, which they share, and on
    the last stage the residual streams that draft layers read, whether or not there are any
    (models/deepseek_v4/nvidia/model.py: topk_indices_buffer, _mtp_hidden_buffer)."""
    topk, streams = model.config.get("index_topk"), _streams(model)
    picked = 4 * topk if isinstance(topk, int) and _is_indexed(model) else 0
    return picked + (streams * model.hidden_size * dtype_bytes(config.dtype) if is_last and streams > 1 else 0)


def _streams(model: VllmModel) -> int:
    """Residual streams of a layer (models/deepseek_v4: hc_mult)."""
    streams = model.config.get("hc_mult")
    return streams if isinstance(streams, int) and 1 < streams < 64 else 1


def _is_indexed(model: VllmModel) -> bool:
    """Whether an indexer picks the tokens that a query attends to."""
    return any(
        isinstance(cache, IndexerCache) or (isinstance(cache, PackedCache) and cache.backend.endswith("INDEXER"))
        for cache in model.distinct_caches
    )


def workspace_item(model: VllmModel, config: EngineConfig) -> MemoryItem:
    """The buffer that kernels of all layers share: as large as the largest of them asks for when the step is profiled,
    and kept (v1/worker/workspace.py:WorkspaceManager)."""
    wanted = [
        _peak("workspace of experts", _experts_bytes(model, config), "fused_moe/modular_kernel.py: workspaces"),
        _peak("workspace of sparse attention", _sparse_bytes(model, config), "mla/indexer.py, mla/flashmla_sparse.py"),
    ]
    return max(wanted, key=lambda item: item.n_bytes)


def _sparse_bytes(model: VllmModel, config: EngineConfig) -> int:
    """Keys that a prompt step gathers for an indexer and for the attention to what it picks."""
    length, tokens = config.max_model_len, config.max_num_batched_tokens
    factor = 5 if length <= 262_144 else 2  # config/vllm.py: sparse_mla_prefill_workspace_factor
    if any(isinstance(cache, LatentCache) and cache.sparse for cache in model.distinct_caches):
        return factor * length * _GATHERED_BYTES
    packed = [cache for cache in model.distinct_caches if isinstance(cache, PackedCache)]
    rates = [cache.tokens_per_row for cache in packed if cache.plain_elements and cache.tokens_per_row > 1]
    if not rates:
        return 0
    # models/deepseek_v4/nvidia/flashmla.py: rows of four sequences in half precision, and what is picked of them
    head = max(cache.plain_elements for cache in packed)
    window = max((cache.window_tokens or 0) for cache in packed)
    rows = -(-length // min(rates)) + window + tokens
    topk = model.config.get("index_topk")
    picked = -(-((topk if isinstance(topk, int) else 0) + window) // 128) * 128
    gathered = 4 * rows * head * 2 + tokens * (picked + 1) * 4
    return max(gathered, factor * length * _GATHERED_BYTES // min(rates))


def peak_items(
    model: VllmModel, config: EngineConfig, *, is_last: bool, vision: Mapping[str, object] | None = None
) -> list[MemoryItem]:
    """The candidates for the activation peak of a step beside weights and workspace; they do not add up, the largest
    counts. The image encoder, if there is one, comes last."""
    items = [_peak("layers", _layers_peak(model, config), "a step's hidden states, attention or feed-forward")]
    if model.is_moe and config.quantization == "bitsandbytes":
        items.append(_peak("experts", _unpacked_bytes(model, config), "vllm_bnb_plugin: experts of a layer, unpacked"))
    if is_last:
        rows = min(config.max_num_batched_tokens, config.max_num_seqs)
        few = min(rows, SAMPLER_FEW_ROWS)
        per_entry = few * SAMPLER_BYTES_PER_LOGIT + (rows - few) * SAMPLER_MORE_BYTES_PER_LOGIT
        hidden = config.max_num_batched_tokens * model.hidden_size * dtype_bytes(config.dtype)  # of the step before
        items.append(
            _peak(
                "sampler",
                per_entry * model.vocab_size + hidden,
                "v1/worker/gpu/sample: logits in fp32, sorted; by boot logs of 256 and of 1024 rows",
            )
        )
    if vision and config.images:
        told = bool(_number(vision, "image_size", 0))
        source = "vision tower on a full batch of image tokens"
        if not told:
            source += f", the largest image taken to be {DYNAMIC_IMAGE_TOKENS} of them"
        items.append(_peak(_ENCODER, _vision_peak(vision, config), source, basis="derived" if told else "assumed"))
    return items


def _layers_peak(model: VllmModel, config: EngineConfig) -> int:
    indexed = _INDEXER_LOGITS_BYTES if _is_indexed(model) else 0
    return config.max_num_batched_tokens * _token_bytes(model, config) + indexed


def _token_bytes(model: VllmModel, config: EngineConfig) -> int:
    """Bytes of activations that the layers of a rank hold at once for each token."""
    tp, size = config.parallel.tp, dtype_bytes(config.dtype)
    kv_width = 2 * max(model.n_kv_heads, tp) * model.head_size if not model.uses_mla else 2 * model.head_size
    attention = 2 * (model.n_heads * model.head_size + kv_width) // tp
    # 110,592 bytes per token on Llama-3.1-8B, by two logs of steps of 20,000 and 29,000 tokens.
    width = 3 * model.hidden_size + max(attention, 3 * model.intermediate_size // tp)
    streams = _streams(model)
    if streams > 1:
        # models/deepseek_v4: old and new residual streams beside queries and outputs that are padded to 64 heads
        heads = -(-(model.n_heads // tp) // 64) * 64
        width = max(width, 2 * streams * model.hidden_size + (model.n_heads // tp + 2 * heads) * model.head_size)
    return width * size


def _beside(encoder: MemoryItem, workspace: MemoryItem) -> MemoryItem:
    return replace(encoder, n_bytes=max(0, encoder.n_bytes - workspace.n_bytes))


def _peak(label: str, n_bytes: int, source: str, basis: Basis = "derived") -> MemoryItem:
    return MemoryItem(kind="compute", n_bytes=int(n_bytes), basis=basis, label=label, source=source)


def _experts_bytes(model: VllmModel, config: EngineConfig) -> int:
    """The two intermediate caches of the fused experts."""
    if not model.is_moe:
        return 0
    parallel = config.parallel
    shards = 1 if parallel.expert_parallel else parallel.tp * parallel.dp * parallel.pcp
    intermediate = max(1, model.moe_intermediate_size // shards)
    hidden = model.hidden_size
    tokens = config.max_num_batched_tokens * parallel.dp  # all-gather dispatch brings every replica's tokens
    per_choice = max(intermediate, hidden) + max(2 * intermediate, hidden)
    # Chunks of VLLM_FUSED_MOE_CHUNK_SIZE bound the caches on large steps.
    caches = min(tokens, 32 * 1024) * max(1, model.n_experts_per_token) * per_choice
    return caches * dtype_bytes(config.dtype)


def _unpacked_bytes(model: VllmModel, config: EngineConfig) -> int:
    """All experts of a layer, which the bitsandbytes plugin unpacks at once (vllm_bnb_plugin's
    quantization/fused_moe.py)."""
    ranks = config.parallel.tp * config.parallel.dp * config.parallel.pcp
    elements = 3 * model.n_experts * model.hidden_size * model.moe_intermediate_size
    return elements // ranks * dtype_bytes(config.dtype)


def _vision_peak(vision: Mapping[str, object], config: EngineConfig) -> int:
    """Bytes of the tower on the profiled items: as many as fill a batch, at least the largest one."""
    hidden = _number(vision, "hidden_size", _number(vision, "embed_dim", 1152))
    intermediate = _number(vision, "intermediate_size", 4 * hidden)
    patch = max(1, _number(vision, "patch_size", 14))
    image = _number(vision, "image_size", 0)
    merge = max(1, _number(vision, "spatial_merge_size", 1))
    if image:
        patches = (image // patch) ** 2
        tokens = max(1, _number(vision, "mm_tokens_per_image", patches // merge**2))
    else:
        tokens = DYNAMIC_IMAGE_TOKENS
        patches = tokens * merge**2
    n_items = max(1, config.max_num_batched_tokens // tokens)
    shards = 1 if config.parallel.vision_data_parallel else config.parallel.tp
    return n_items * patches * (8 * hidden + 2 * intermediate // shards) * 2


def _number(mapping: Mapping[str, object], key: str, default: int) -> int:
    value = mapping.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else default


def graphs_item(model: VllmModel, config: EngineConfig) -> MemoryItem:
    """What capturing the CUDA graphs takes, and vLLM deducts beforehand."""
    mode = config.graph_mode
    decode = sum(1 for size in config.capture_sizes if size <= config.max_num_seqs * (1 + config.speculative_tokens))
    n_graphs = 0
    if mode in ("PIECEWISE", "FULL_AND_PIECEWISE", "FULL"):
        n_graphs += len(config.capture_sizes)
    if mode in ("FULL_AND_PIECEWISE", "FULL_DECODE_ONLY"):
        n_graphs += decode
    of_layer = EXPERTS_GRAPH_LAYER_BYTES if model.is_moe else GRAPH_LAYER_BYTES
    layers = -(-model.n_layers // config.parallel.pp)
    # The step before the first capture, of the largest size, counts with it: its activations stay in the allocator
    # (v1/worker/gpu_model_runner.py:profile_cudagraph_memory).
    first = GRAPHS_BASE_BYTES + max(config.capture_sizes, default=0) * _token_bytes(model, config)
    n_bytes = first + n_graphs * layers * of_layer if n_graphs else 0
    return MemoryItem(
        kind="runtime",
        n_bytes=n_bytes,
        basis="assumed",
        label=f"{n_graphs} {GRAPHS}",
        source="estimates in boot logs",
    )


def _after(config: EngineConfig, kv: KvPlan, flashinfer_bytes: int) -> tuple[MemoryItem, ...]:
    """Allocated once the cache is, and so outside the utilization."""
    if config.gpu.cpu:
        return ()
    tables = sum(2 * config.max_num_seqs * -(-kv.max_len // group.first.block_tokens) * 4 for group in kv.groups)
    items = [
        MemoryItem(
            kind="compute",
            n_bytes=tables,
            basis="derived",
            label=TABLES,
            source="v1/worker/gpu/block_table.py",
        )
    ]
    if any("FLASHINFER" in name for name in kv.layout.backends):
        items.append(
            MemoryItem(
                kind="compute",
                n_bytes=flashinfer_bytes,
                basis="exact",
                label=FLASHINFER,
                source="VLLM_FLASHINFER_WORKSPACE_BUFFER_SIZE",
            )
        )
    if config.graph_mode != "NONE":
        items.append(
            MemoryItem(
                kind="runtime",
                n_bytes=CAPTURE_SLACK_BYTES,
                basis="assumed",
                label=CAPTURE,
                source="v1/worker/gpu_worker.py",
            )
        )
    return tuple(item for item in items if item.n_bytes)


def highest_utilization(
    *, total_bytes: int, free_bytes: int, budget: RankBudget, margin_bytes: int, limit: float = LIMIT
) -> float:
    """The largest legal `--gpu-memory-utilization`: four decimals, rounded down.

    `free_bytes` is what other processes leave. What vLLM takes outside its budget must fit beside it.
    """
    usable = free_bytes - budget.outside_bytes - budget.after_bytes - margin_bytes
    return max(0.0, min(limit, math.floor(1e4 * usable / total_bytes) / 1e4))


def pinned_bytes(sizes: Sequence[int]) -> int:
    """Host memory of offloaded parameters: PyTorch rounds each pinned allocation up to a power of two."""
    return sum(1 << (size - 1).bit_length() for size in sizes if size > 0)
