"""How ranks share the model (config/parallel.py, config/model.py:verify_with_parallel_config)."""

from __future__ import annotations

from autofit.errors import EngineRefusalError

from autofit_vllm.command.settings import VllmSettings
from autofit_vllm.config.devices import n_machines
from autofit_vllm.config.engine import Gpu
from autofit_vllm.modules.model import Parallel, VllmModel


def resolve_parallel(settings: VllmSettings, model: VllmModel, gpu: Gpu, *, n_gpus: int | None = None) -> Parallel:
    """How the ranks share the model; every divisibility rule of config/parallel.py and config/model.py."""
    sizes = {
        "tensor_parallel_size": settings.tensor_parallel_size,
        "pipeline_parallel_size": settings.pipeline_parallel_size,
        "data_parallel_size": settings.data_parallel_size,
        "prefill_context_parallel_size": settings.prefill_context_parallel_size,
        "decode_context_parallel_size": settings.decode_context_parallel_size,
        "nnodes": settings.nnodes,
    }
    for name, size in sizes.items():
        if size < 1:
            raise EngineRefusalError(f"{name} must be at least 1, not {size}")
    tp, pp, dp = settings.tensor_parallel_size, settings.pipeline_parallel_size, settings.data_parallel_size
    pcp, dcp = settings.prefill_context_parallel_size, settings.decode_context_parallel_size
    redundant = int(settings.eplb_config.get("num_redundant_experts") or 0)
    parallel = Parallel(
        tp=tp,
        pp=pp,
        dp=dp,
        pcp=pcp,
        dcp=dcp,
        expert_parallel=settings.enable_expert_parallel,
        redundant_experts=redundant if settings.enable_eplb else 0,
        layer_partition=_layer_partition(settings, model),
        vision_data_parallel=settings.mm_encoder_tp_mode == "data",
        nnodes=settings.nnodes if n_gpus is None else n_machines(settings, n_gpus),
    )
    _check_data_parallel(settings, model)
    _check_nodes(settings, parallel)
    if settings.enable_eplb:
        if not settings.enable_expert_parallel:
            raise EngineRefusalError("enable_expert_parallel must be True to use EPLB.")
        if tp * pcp * dp <= 1:
            raise EngineRefusalError(
                f"EPLB requires tensor, prefill-context, or data parallelism, but got TP={tp}, PCP={pcp}, DP={dp}."
            )
    elif settings.eplb_config.get("num_redundant_experts"):
        raise EngineRefusalError("num_redundant_experts is set but EPLB is not enabled.")
    if pcp == 1 and tp % dcp:
        raise EngineRefusalError(f"tp_size={tp} must be divisible by dcp_size={dcp}.")
    if pcp > 1 and dcp not in (1, pcp, tp * pcp):
        raise EngineRefusalError(
            f"When PCP is enabled, DCP must be 1, {pcp} or {tp * pcp}; got TP={tp}, PCP={pcp}, DCP={dcp}"
        )
    if n_gpus is not None and not gpu.cpu:
        _check_local_gpus(settings, parallel, n_gpus)
    check_shards(model, parallel)
    return parallel


def check_shards(model: VllmModel, parallel: Parallel) -> None:
    """Whether the model divides over these ranks (config/model.py:verify_with_parallel_config)."""
    tp, dcp = parallel.tp, parallel.dcp
    if model.n_heads % tp:
        raise EngineRefusalError(
            f"Total number of attention heads ({model.n_heads}) must be divisible by tensor parallel size ({tp}).",
            hint=_possible(model, parallel),
        )
    if parallel.expert_parallel and not model.is_moe:
        raise EngineRefusalError(
            "Number of experts in the model must be greater than 0 when expert parallelism is enabled."
        )
    if parallel.pp > 1 and not model.supports_pipeline:
        raise EngineRefusalError("Pipeline parallelism is not supported for this model.")
    if parallel.pp > max(model.n_layers, 1):
        raise EngineRefusalError(f"{model.n_layers} layers cannot be shared by {parallel.pp} pipeline stages")
    if dcp > 1 and not model.uses_mla:
        kv = model.n_kv_heads
        if tp <= kv:
            raise EngineRefusalError(
                f"Decode context parallelism for GQA/MQA requires `--tensor-parallel-size` ({tp}) to "
                "be greater than the "
                f"model's total number of KV heads ({kv})."
            )
        if dcp > tp // kv:
            raise EngineRefusalError(
                f"`--decode-context-parallel-size` ({dcp}) exceeds the maximum supported value "
                f"({tp // kv}) for "
                f"`--tensor-parallel-size` ({tp}) and {kv} model KV heads."
            )
        if (model.n_heads // kv) % dcp:
            raise EngineRefusalError(
                f"The model's number of query heads per KV head ({model.n_heads // kv}) must be divisible by "
                f"`--decode-context-parallel-size` ({dcp}) for GQA/MQA."
            )
    if not model.uses_mla and model.n_kv_heads:
        kv = model.n_kv_heads
        if kv % tp if kv >= tp else tp % kv:
            raise EngineRefusalError(
                f"{kv} KV heads neither divide over tensor parallel size {tp} nor repeat evenly on it",
                hint=_possible(model, parallel),
            )


def _possible(model: VllmModel, parallel: Parallel) -> str:
    """Sizes that the heads allow, and how stages of whole layers take as many GPUs."""
    sizes = possible_tp(model)
    ranks = max(tp for tp in sizes if parallel.tp % tp == 0)
    stages = parallel.pp * parallel.tp // ranks
    possible = f"possible: {', '.join(map(str, sizes))}"
    if not model.supports_pipeline or stages > model.n_layers:
        return possible
    return f"{possible}; -tp {ranks} -pp {stages} shares whole layers over as many GPUs"


def possible_tp(model: VllmModel, limit: int = 64) -> list[int]:
    """Tensor parallel sizes that the heads allow."""
    kv = model.n_kv_heads or 1
    return [
        tp
        for tp in range(1, min(limit, max(model.n_heads, 1)) + 1)
        if model.n_heads % tp == 0 and (model.uses_mla or (kv % tp == 0 if kv >= tp else tp % kv == 0))
    ]


def _layer_partition(settings: VllmSettings, model: VllmModel) -> tuple[int, ...] | None:
    text = settings.env.get("VLLM_PP_LAYER_PARTITION")
    if not text:
        return None
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise EngineRefusalError(f"Invalid partition string: {text[:40]!r}") from None
    if len(sizes) != settings.pipeline_parallel_size:
        raise EngineRefusalError(
            f"len(partitions)={len(sizes)} does not match pp_size={settings.pipeline_parallel_size}."
        )
    if sum(sizes) != model.n_layers:
        raise EngineRefusalError(f"sum(partitions)={sum(sizes)} does not match num_hidden_layers={model.n_layers}.")
    return sizes


def _check_data_parallel(settings: VllmSettings, model: VllmModel) -> None:
    dp, local = settings.data_parallel_size, settings.data_parallel_size_local
    if local is not None and local > dp:
        raise EngineRefusalError(f"data_parallel_size_local ({local}) must be <= data_parallel_size ({dp})")
    if settings.data_parallel_hybrid_lb and settings.data_parallel_external_lb:
        raise EngineRefusalError(
            "`--data-parallel-hybrid-lb` and `--data-parallel-external-lb` cannot be enabled together."
        )
    external = settings.data_parallel_external_lb or settings.data_parallel_rank is not None
    if external and dp > 1 and not model.is_moe:
        raise EngineRefusalError("Non-MoE models do not support external data parallel mode.")
    if settings.data_parallel_external_lb and dp <= 1:
        raise EngineRefusalError("data_parallel_external_lb can only be set when data_parallel_size > 1")
    if external and local not in (1, None):
        raise EngineRefusalError(
            f"an external data-parallel rank requires `--data-parallel-size-local 1`; got {local}."
        )
    if settings.data_parallel_rank is not None and not 0 <= settings.data_parallel_rank < max(dp, 1):
        raise EngineRefusalError(f"data_parallel_rank ({settings.data_parallel_rank}) must be in the range [0, {dp})")
    if settings.data_parallel_hybrid_lb and local is None:
        raise EngineRefusalError("`--data-parallel-hybrid-lb` requires `--data-parallel-size-local`.")
    if settings.data_parallel_external_lb and settings.data_parallel_rank is None:
        if settings.nnodes == 1:
            raise EngineRefusalError(
                "`--data-parallel-external-lb` requires a data-parallel rank",
                hint="set --data-parallel-rank, or --nnodes and --node-rank, from which it follows",
            )
        if settings.nnodes % dp:
            raise EngineRefusalError(
                "`--node-rank` cannot unambiguously identify external data-parallel ranks when `--nnodes` is not "
                "divisible by `--data-parallel-size`.",
                hint="set a --data-parallel-rank of its own for each process",
            )
    _check_headless(settings)


def _check_headless(settings: VllmSettings) -> None:
    """A node without a server (entrypoints/cli/serve.py:run_headless)."""
    given = settings.given
    if not given.get("headless"):
        return
    servers = given.get("api_server_count")
    if isinstance(servers, int) and servers > 0:
        raise EngineRefusalError(
            f"--api-server-count={servers} cannot be used with --headless",
            hint="no API servers are started in headless mode",
        )
    if settings.data_parallel_hybrid_lb:
        raise EngineRefusalError("data_parallel_hybrid_lb is not applicable in headless mode")
    if settings.data_parallel_size_local == 0:
        raise EngineRefusalError("data_parallel_size_local must be > 0 in headless mode")


def _check_nodes(settings: VllmSettings, parallel: Parallel) -> None:
    nnodes = settings.nnodes
    if nnodes == 1:
        return
    world = parallel.dp * parallel.world_size
    if settings.data_parallel_backend != "mp":
        raise EngineRefusalError(f"`--nnodes {nnodes}` requires `--data-parallel-backend mp`")
    if settings.distributed_executor_backend not in (None, "mp", "uni", "external_launcher"):
        raise EngineRefusalError(
            "nnodes > 1 can only be set when distributed executor backend is mp, uni or external_launcher."
        )
    if world % nnodes:
        raise EngineRefusalError(f"`--nnodes {nnodes}` must evenly divide the total world size ({world}).")
    if not 0 <= settings.node_rank < nnodes:
        raise EngineRefusalError(
            f"`--node-rank` must be between 0 and {nnodes - 1}; got `--node-rank {settings.node_rank}`."
        )
    # as many replicas on a node as its ranks hold, if nobody says (engine/arg_utils.py:create_engine_config)
    local = settings.data_parallel_size_local or max(world // nnodes // parallel.world_size, 1)
    groups = parallel.dp // local
    if not settings.data_parallel_external_lb and groups and nnodes % groups:
        raise EngineRefusalError(
            f"nnodes ({nnodes}) must be divisible by the number of data parallel node groups ({groups} = "
            f"data_parallel_size {parallel.dp} / data_parallel_size_local {local})"
        )


def _check_local_gpus(settings: VllmSettings, parallel: Parallel, n_gpus: int) -> None:
    """As many GPUs here as ranks (config/parallel.py:__post_init__)."""
    if settings.distributed_executor_backend == "ray" or settings.data_parallel_backend == "ray":
        return
    local_dp = 1 if settings.data_parallel_external_lb else settings.data_parallel_size_local or parallel.dp
    needed = (
        parallel.world_size * local_dp if settings.nnodes == 1 else parallel.world_size * parallel.dp // settings.nnodes
    )
    if needed > n_gpus:
        raise EngineRefusalError(
            f"World size ({needed}) is larger than the number of available GPUs ({n_gpus}) in this node.",
            hint="set --nnodes, or --distributed-executor-backend ray",
        )
