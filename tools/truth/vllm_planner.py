"""Rows of a release of vLLM by its own planner, without a GPU: what it makes of flags, and what it lays out.

    tar xzf vllm-0.24.0.tar.gz
    python tools/truth/vllm_planner.py vllm-0.24.0 tests/data/vllm/configs jobs.jsonl > rows.jsonl

Run where torch and what that release imports are installed (an environment of a newer CPU build does; older releases
want the transformers of their time first on PYTHONPATH). The sources are used as they are. A job is `{"model": NAME of
a directory with config.json, "gpu": one of vllm_fake.GPUS, "available_kv_gib": N, "args": [...]}`; a row has `version`
and `vllm` beside: the resolved configuration, bytes of parameters by stage, groups, blocks, and the error if there was
one. With `"every_rank": true` it has `nodes` too: the ranks of each node of `--nnodes`, and bytes of parameters of
every one. `failed` rows say that the stand-ins did not do: they are no truth. Nor are rows of gpt-oss on Hopper from
sources without `vllm/third_party/triton_kernels`, which the built packages have: vLLM then fills experts up for another
kernel.
"""

from __future__ import annotations

import functools
import gc
import json
import logging
import os
import re
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SOURCE = Path(sys.argv[1])
sys.path[:0] = [str(SOURCE), str(Path(__file__).parent)]
os.environ.update(
    VLLM_LOGGING_LEVEL="WARNING",
    VLLM_LOGGING_STREAM="ext://sys.stderr",
    VLLM_NO_USAGE_STATS="1",
    HF_HUB_OFFLINE="1",
    CUDA_VISIBLE_DEVICES="",  # Triton counts as there, as on a machine with a GPU
)

import torch
import vllm_fake

MAX_RESIDENT_BYTES = 16 << 30  #: modules that take real memory end the run, not the machine
logged: dict[str, int] = {}  #: what the release says itself of the cache


def resolve(args: list[str], model: Path) -> Any:
    """The engine's configuration (EngineArgs.create_engine_config)."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    try:
        from vllm.utils.argparse_utils import FlexibleArgumentParser
    except ImportError:
        from vllm.utils import FlexibleArgumentParser
    parser = FlexibleArgumentParser()
    AsyncEngineArgs.add_cli_args(parser)
    own = ["--model", str(model), "--skip-tokenizer-init", "--load-format", "dummy"]
    engine = AsyncEngineArgs.from_cli_args(parser.parse_args([*own, *args]))
    return engine.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)


def build(config: Any) -> Any:
    """The model, with parameters that have shapes and no memory."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.utils import initialize_model

    try:
        from vllm.utils.torch_utils import set_default_torch_dtype
    except ImportError:
        from vllm.model_executor.model_loader.utils import set_default_torch_dtype
    try:
        from vllm.v1.worker.workspace import init_workspace_manager

        init_workspace_manager(torch.device("meta"))
    except ImportError:
        pass
    dtype = config.model_config.dtype
    with set_current_vllm_config(config), set_default_torch_dtype(dtype), torch.device("meta"):
        return initialize_model(vllm_config=config)


def parameter_bytes(model: Any) -> int:
    found = {id(each): each for _, each in model.named_parameters(remove_duplicate=False)}
    return sum(each.numel() * each.element_size() for each in found.values())


def cache_specs(config: Any) -> dict[str, Any]:
    """What each layer keeps, as the model runner that serves asks for it."""
    if getattr(config, "use_v2_model_runner", False):
        from vllm.v1.worker.gpu.attn_utils import get_kv_cache_spec

        return dict(get_kv_cache_spec(config))
    from vllm.v1.worker import gpu_model_runner

    kept = config.cache_config.cache_dtype
    table = getattr(gpu_model_runner, "STR_DTYPE_TO_TORCH_DTYPE", {})
    runner = types.SimpleNamespace(
        vllm_config=config,
        cache_config=config.cache_config,
        model_config=config.model_config,
        speculative_config=config.speculative_config,
        shared_kv_cache_layers={},
        attention_chunk_size=getattr(config.model_config, "attention_chunk_size", None),
        kv_cache_dtype=config.model_config.dtype if kept == "auto" else table.get(kept, torch.uint8),
    )
    return dict(gpu_model_runner.GPUModelRunner.get_kv_cache_spec(runner))


def lay_out(config: Any, specs: list[dict[str, Any]], layouts: list[list[str]], available: int) -> dict[str, Any]:
    """Groups, blocks and what they hold, for `available` bytes of each stage.

    Raises:
        ValueError: the release refuses.
    """
    from vllm.config import set_current_vllm_config
    from vllm.v1.core import kv_cache_utils as utils

    try:
        from vllm.v1.core import kv_cache_planning as planning
    except ImportError:
        planning = utils
    with set_current_vllm_config(config):
        if layouts:
            from vllm.v1.attention.backends.utils import resolve_kv_cache_layout

            resolve_kv_cache_layout(config, layouts, [spec for each in specs for spec in each.values()])
        if not hasattr(planning, "get_kv_cache_configs"):  # before 0.11
            plans = [utils.get_kv_cache_config(config, each, available) for each in specs]
            utils.unify_kv_cache_configs(plans)
            whole = plans[0]
        else:
            given = (planning.get_global_kv_cache_groups(config, specs),) if _grouped_before(planning) else ()
            plans = planning.get_kv_cache_configs(config, specs, [available] * len(specs), *given)
            config.cache_config.num_gpu_blocks = min(plan.num_blocks for plan in plans)
            whole = utils.generate_scheduler_kv_cache_config(plans)
        groups = [describe(group) for group in whole.kv_cache_groups]
        result = {
            "num_gpu_blocks": min(plan.num_blocks for plan in plans),
            "max_model_len": config.model_config.max_model_len,
        }
        if hasattr(utils, "get_kv_cache_capacity"):
            tokens, concurrency = utils.get_kv_cache_capacity(config, whole)
        else:
            tokens = logged.get("tokens")
            concurrency = utils.get_max_concurrency_for_kv_cache_config(config, whole)
    result |= {"max_concurrency": round(concurrency, 2)} | ({} if tokens is None else {"kv_cache_tokens": tokens})
    if len(plans) > 1:
        per_block = [max(describe(group)["bytes"] for group in plan.kv_cache_groups) for plan in plans]
    else:
        per_block = [max(group.pop("bytes") for group in groups)]
    for group in groups:
        group.pop("bytes", None)
    return {"groups": groups, "bytes_per_block": per_block, "result": result}


def _grouped_before(planning: Any) -> bool:
    return hasattr(planning, "get_global_kv_cache_groups")


def describe(group: Any) -> dict[str, Any]:
    spec = group.kv_cache_spec
    members = getattr(spec, "kv_cache_specs", None)
    pages = (each.page_size_bytes for each in members.values()) if members else None
    return {
        "n_layers": len(group.layer_names),
        "cls": type(spec).__name__,
        "block_size": spec.block_size,
        "page_size_bytes": spec.page_size_bytes,
        "bytes": sum(pages) if pages else len(group.layer_names) * spec.page_size_bytes,
    }


CONFIGURED = {
    "model_config": ("max_model_len", "dtype"),
    "scheduler_config": ("max_num_seqs", "max_num_batched_tokens", "async_scheduling"),
    "cache_config": ("gpu_memory_utilization", "enable_prefix_caching"),
}


def configuration(config: Any) -> dict[str, Any]:
    graphs = config.compilation_config
    found = {name: getattr(getattr(config, part), name, None) for part, names in CONFIGURED.items() for name in names}
    found["prefix_caching"] = found.pop("enable_prefix_caching")
    found["dtype"] = str(found["dtype"])
    found["kv_cache_dtype"] = config.cache_config.cache_dtype
    found["max_in_flight_tokens"] = getattr(config, "max_in_flight_tokens", None)
    mode = getattr(graphs, "cudagraph_mode", None)
    found["cudagraph_mode"] = None if mode is None else str(mode).replace("CUDAGraphMode.", "")
    found["n_capture"] = len(graphs.cudagraph_capture_sizes or [])
    return {name: value for name, value in found.items() if value is not None}


def record(job: dict[str, Any], models: Path) -> dict[str, Any]:
    """One row."""
    from vllm.config import set_current_vllm_config
    from vllm.platforms import current_platform

    try:
        config = resolve(job["args"], models / job["model"])
    except SystemExit:
        return {"error": "the parser refuses"}
    except ValueError as error:
        return {"error": str(error)}
    found: dict[str, Any] = {"config": configuration(config), "ranks": []}
    specs, layouts = [], []
    parallel = config.parallel_config
    try:
        for stage in range(parallel.pipeline_parallel_size):
            config.compilation_config.static_forward_context.clear()
            vllm_fake.set_rank(parallel, stage * parallel.tensor_parallel_size)
            with set_current_vllm_config(config):
                model = build(config)
                if callable(update := getattr(current_platform, "update_block_size_for_backend", None)):
                    update(config)
                specs.append(cache_specs(config))
                layouts += supported_layouts(config)
                layers = config.compilation_config.static_forward_context.values()
                names = {name for name in map(backend_of, layers) if name}
            found["ranks"].append({"param_bytes": parameter_bytes(model), "backends": sorted(names)})
            del model
        found["block_size"] = config.cache_config.block_size
        found |= lay_out(config, specs, layouts, int(job["available_kv_gib"] * vllm_fake.GIB))
    except ValueError as error:
        found["result"] = {"error": str(error)}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"[:300]}
    return found


def on_nodes(job: dict[str, Any], models: Path) -> list[dict[str, Any]]:
    """Of every node of `--nnodes`, as its own command makes it: its ranks, and the parameters of each."""
    from vllm.config import set_current_vllm_config

    found: list[dict[str, Any]] = []
    count = 1
    while len(found) < count:
        config = resolve([*job["args"], "--node-rank", str(len(found))], models / job["model"])
        parallel = config.parallel_config
        count, each = parallel.nnodes, parallel.local_world_size
        first, replica = parallel.node_rank_within_dp * each, parallel.data_parallel_rank
        ranks = []
        for at in range(replica, replica + parallel.data_parallel_size_local):
            for rank in range(first, first + each):
                config.compilation_config.static_forward_context.clear()
                vllm_fake.set_rank(parallel, rank, at)
                with set_current_vllm_config(config):
                    n_bytes = parameter_bytes(build(config))
                ranks.append({"replica": at, "rank": rank, "param_bytes": n_bytes})
                gc.collect()
        found.append({"node_rank": parallel.node_rank, "ranks": ranks})
    return found


def supported_layouts(config: Any) -> list[list[str]]:
    """Of releases that choose one layout for the whole model; none of others."""
    try:
        from vllm.v1.attention.backends.utils import get_supported_kv_cache_layouts
        from vllm.v1.worker.worker_base import get_current_attn_backends
    except ImportError:
        return []
    return [[each.name for each in get_supported_kv_cache_layouts(get_current_attn_backends(config))]]


def backend_of(layer: Any) -> str | None:
    """The name of a layer's attention backend."""
    try:
        backend = layer.get_attn_backend() if hasattr(layer, "get_attn_backend") else layer.attn_backend
        return str(backend.get_name())
    except (AttributeError, NotImplementedError):
        return None


def forget() -> None:
    """What a release remembers of the row before: answers about the GPU, and a backend that a configuration chose."""
    import vllm.envs

    logged.clear()
    for name in ("VLLM_ATTENTION_BACKEND",):
        vllm.envs.__dict__.pop(name, None)
        os.environ.pop(name, None)
    for each in gc.get_objects():
        if type(each) is functools._lru_cache_wrapper and str(getattr(each, "__module__", "")).startswith("vllm"):
            each.cache_clear()


def listen() -> None:
    from vllm.v1.core import kv_cache_utils

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found = re.search(r"KV cache size: ([0-9,]+) tokens", record.getMessage())
            if found:
                logged["tokens"] = int(found[1].replace(",", ""))

    logger = logging.getLogger(kv_cache_utils.__name__)
    logger.setLevel(logging.INFO)
    logger.addHandler(Handler())
    logger.propagate = False


def watch() -> None:
    while True:
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        if resident > MAX_RESIDENT_BYTES:
            print(f"{resident >> 30} GiB in use: ended", file=sys.stderr, flush=True)
            os._exit(9)
        time.sleep(0.3)


def jobs(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def main(models: Path, path: Path) -> None:
    version = SOURCE.name.removeprefix("vllm-")
    described = SOURCE / f"vllm-{version}.dist-info"  # releases ask for their own version, and for how they were built
    described.mkdir(exist_ok=True)
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n", encoding="utf-8")
    torch.set_num_threads(1)
    threading.Thread(target=watch, daemon=True).start()
    vllm_fake.install()
    listen()
    for job in jobs(path):
        vllm_fake.current = job["gpu"]
        forget()
        row = record(job, models)
        if job.get("every_rank"):
            forget()
            row["nodes"] = on_nodes(job, models)
        print(json.dumps({"version": version, **job, "vllm": row}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[2]), Path(sys.argv[3]))
