"""vLLM's Python sources made to run without a GPU and without what is compiled: a platform that says it is a given GPU,
parallel groups of any size, stand-ins for native modules. For `vllm_planner.py`; nothing here knows a release.

Nothing is computed: tensors that would be on the GPU are on torch's `meta` device, and native functions do nothing.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from typing import Any

import torch

GIB = 1 << 30
#: name, compute capability, total bytes as CUDA reports them
GPUS: dict[str, tuple[str, tuple[int, int], int]] = {
    "t4": ("Tesla T4", (7, 5), int(14.56 * GIB)),
    "3060": ("NVIDIA GeForce RTX 3060", (8, 6), int(11.63 * GIB)),
    "3090": ("NVIDIA GeForce RTX 3090", (8, 6), int(23.56 * GIB)),
    "4090": ("NVIDIA GeForce RTX 4090", (8, 9), int(23.52 * GIB)),
    "5090": ("NVIDIA GeForce RTX 5090", (12, 0), int(31.36 * GIB)),
    "l40s": ("NVIDIA L40S", (8, 9), int(44.39 * GIB)),
    "a100-40": ("NVIDIA A100-SXM4-40GB", (8, 0), int(39.39 * GIB)),
    "a100-80": ("NVIDIA A100-SXM4-80GB", (8, 0), int(79.25 * GIB)),
    "h100": ("NVIDIA H100 80GB HBM3", (9, 0), int(79.18 * GIB)),
    "h200": ("NVIDIA H200", (9, 0), int(139.8 * GIB)),
    "b200": ("NVIDIA B200", (10, 0), int(178.35 * GIB)),
}
N_GPUS = 64
#: on every CUDA host of vLLM, and asked for by what chooses an attention backend
INSTALLED = ("flashinfer", "deep_gemm", "humming", "vllm.third_party.deep_gemm", "torchvision")
#: modules that wheels have and sources have not
COMPILED = (
    *("vllm.vllm_flash_attn", "vllm._C", "vllm._moe_C", "vllm._rocm_C", "vllm.cumem_allocator"),
    *("vllm._flashmla_C", "vllm._flashmla_extension_C", "vllm.third_party.flashmla"),
)
OPERATORS = ("_C", "_moe_C", "_C_cache_ops", "_C_custom_ar", "_C_utils", "_qutlass_C", "_vllm_fa2_C", "_vllm_fa3_C")
ON_GPU = ("empty", "zeros", "ones", "full", "arange", "tensor", "rand", "randn", "empty_like", "eye", "linspace")
current = "h100"  #: the GPU that the platform says it is


def capability() -> tuple[int, int]:
    return GPUS[current][1]


class StandIn(types.ModuleType):
    """A module of which every attribute is a class or a function that does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found: Any
        if name[:1].isupper():
            found = _ClassOfAnything(name, (), {"__init__": lambda self, *a, **k: None})
        else:
            result = 1 if any(word in name for word in ("size", "bytes", "num")) else None
            found = lambda *a, **k: result  # noqa: E731
        setattr(self, name, found)
        return found


class _ClassOfAnything(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *a, ckv_scale_arr=None, **k: None


class Finder:
    """Finds stand-ins of packages and of what is within them."""

    def __init__(self, packages: tuple[str, ...]) -> None:
        self.packages = packages

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if any(name == package or name.startswith(package + ".") for package in self.packages):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]
        return None

    def create_module(self, spec: Any) -> StandIn:
        module = StandIn(spec.name)
        module.__path__, module.__version__, module.__file__ = [], "0.7.2", "/stand-in.py"
        if spec.name.startswith("vllm.vllm_flash_attn"):
            module.is_fa_version_supported = _flash_version  # type: ignore[attr-defined]
            module.fa_version_unsupported_reason = lambda *a, **k: None  # type: ignore[attr-defined]
        return module

    def exec_module(self, module: Any) -> None: ...


def _flash_version(version: int, *_: Any, **__: Any) -> bool:
    """vllm_flash_attn/flash_attn_interface.py:is_fa_version_supported"""
    major = capability()[0]
    return (version == 2 and major >= 8) or (version == 3 and major == 9) or (version == 4 and major in (9, 10, 11))


class _Operator:
    """A native function: what it says of the GPU, or nothing."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *_: Any, **__: Any) -> Any:
        level = capability()[0] * 10 + capability()[1]
        return {
            "cutlass_scaled_mm_supports_fp8": level >= 89,
            "cutlass_scaled_mm_supports_block_fp8": level >= 90,
            "cutlass_scaled_mm_supports_fp4": level >= 100,
            "mxfp4_experts_quant_supported": level >= 100,
            "cutlass_group_gemm_supported": 90 <= level < 110,
        }.get(self.name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    __hash__ = object.__hash__


class _Operators:
    def __init__(self) -> None:
        self.known: dict[str, _Operator] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "known":
            raise AttributeError(name)
        return self.known.setdefault(name, _Operator(name))


class Anything:
    """A stream, an event or a group: every method does nothing, and returns what it was given."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda x=None, *a, **k: x


def install() -> None:
    """Once, before anything else of vLLM is imported."""
    for name in OPERATORS:
        setattr(torch.ops, name, _Operators())
    own = torch.library.register_fake

    def register_fake(operator: Any, *a: Any, **k: Any) -> Any:
        if isinstance(operator, str) and operator.split("::")[0] in OPERATORS:
            return None if a else (lambda function: function)
        return own(operator, *a, **k)

    torch.library.register_fake = register_fake  # type: ignore[assignment]
    sys.meta_path.insert(0, Finder(INSTALLED))  # type: ignore[arg-type]
    sys.meta_path.append(Finder(COMPILED))  # type: ignore[arg-type]
    for name in ("vllm._C", "vllm._moe_C", "vllm._C_stable_libtorch", "vllm._moe_C_stable_libtorch"):
        sys.modules.setdefault(name, StandIn(name))
    for name in ("_vllm_fa2_C", "_vllm_fa3_C"):
        sys.modules.setdefault(f"vllm.vllm_flash_attn.{name}", StandIn(name))
    _replace_torch()
    _replace_platform()


def _replace_torch() -> None:
    """What asks torch for a GPU."""
    torch.cuda.get_device_capability = lambda *a, **k: capability()
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_properties = lambda *a, **k: types.SimpleNamespace(
        **dict(zip(("name", "total_memory"), (GPUS[current][0], GPUS[current][2]), strict=True)),
        **dict(zip(("major", "minor"), capability(), strict=True)),
        is_integrated=False,
        multi_processor_count=132,
        shared_memory_per_block_optin=232448,
        warp_size=32,
        L2_cache_size=50 << 20,
        gcnArchName="",
    )
    stream, event = type("Stream", (Anything,), {}), type("Event", (Anything,), {})
    torch.cuda.Stream, torch.cuda.Event, torch.Stream, torch.Event = stream, event, stream, event
    torch.cuda.current_stream = lambda *a, **k: stream()
    torch.accelerator.current_device_index = lambda: 0
    torch.accelerator.device_count = lambda: N_GPUS
    torch.accelerator.is_available = lambda: True
    torch.accelerator.current_accelerator = lambda *a, **k: torch.device("cuda")
    torch.accelerator.current_stream = lambda *a, **k: stream()
    for name in ON_GPU:
        setattr(torch, name, _without_memory(getattr(torch, name)))
    own = torch.Tensor.to

    def to(self: Any, *a: Any, **k: Any) -> Any:
        kinds = (int, str, torch.device)
        a = tuple("meta" if isinstance(x, kinds) and not isinstance(x, bool) and _is_gpu(x) else x for x in a)
        return own(self, *a, **({**k, "device": "meta"} if _is_gpu(k.get("device")) else k))

    torch.Tensor.to = to  # type: ignore[method-assign]
    torch.Tensor.cuda = lambda self, *a, **k: own(self, "meta")  # type: ignore[method-assign]


def _is_gpu(device: Any) -> bool:
    return device is not None and (isinstance(device, int) or str(device).startswith("cuda"))


def _without_memory(function: Any) -> Any:
    def wrapped(*a: Any, **k: Any) -> Any:
        k.pop("pin_memory", None)
        return function(*a, **({**k, "device": "meta"} if _is_gpu(k.get("device")) else k))

    return wrapped


def _replace_platform() -> None:
    import psutil
    import vllm.platforms
    from vllm.platforms import cuda
    from vllm.platforms.interface import DeviceCapability

    def has(cls: Any, wanted: Any, device_id: int = 0) -> bool:
        own = DeviceCapability(*capability())
        return own >= DeviceCapability(*wanted) if isinstance(wanted, tuple) else own.to_int() >= wanted

    answers: dict[str, Any] = {
        "get_device_capability": lambda cls, device_id=0: DeviceCapability(*capability()),
        "has_device_capability": has,
        "get_device_name": lambda cls, device_id=0: GPUS[current][0],
        "get_device_uuid": lambda cls, device_id=0: "GPU-stand-in",
        "get_device_total_memory": lambda cls, device_id=0: GPUS[current][2],
        "is_fully_connected": lambda cls, ids: True,
        "device_count": lambda cls: N_GPUS,
        "is_integrated_gpu": lambda cls, device_id=0: False,
        "num_compute_units": lambda cls, device_id=0: 132,
        "get_current_memory_usage": lambda cls, device=None: 0,
        "get_cuda_runtime_major": lambda cls: 13,
        "is_arch_support_pdl": lambda cls: capability()[0] >= 9,
        "log_warnings": lambda cls: None,
    }
    methods = {name: classmethod(answer) for name, answer in answers.items()}
    vllm.platforms._current_platform = type("Described", (cuda.CudaPlatformBase,), methods)()
    import vllm.utils  # only now: modules keep the platform that they find when they are imported
    from vllm.model_executor.models import registry

    # a process of its own would see the machine as it is
    inspect = registry._LazyRegisteredModel
    inspect.inspect_model_cls = lambda self: registry._ModelInfo.from_model_cls(self.load_model_cls())
    memory = psutil.virtual_memory
    psutil.virtual_memory = lambda: memory()._replace(total=2 << 40, available=2 << 40)
    for module in (vllm.utils, sys.modules.get("vllm.utils.torch_utils")):
        if hasattr(module, "cuda_device_count_stateless"):
            module.cuda_device_count_stateless = lambda: N_GPUS


class Group(Anything):
    """As much of GroupCoordinator as building modules takes."""

    def __init__(self, name: str, rank: int, world: int) -> None:
        self.unique_name, self.ranks, self.device = name, list(range(world)), torch.device("cpu")
        self.rank = self.rank_in_group = self.local_rank = rank
        self.world_size = self.size = world
        self.device_communicator = self.mq_broadcaster = None
        self.use_device_communicator = False
        self.is_first_rank, self.is_last_rank = rank == 0, rank == world - 1
        self.first_rank, self.last_rank = 0, world - 1
        self.next_rank, self.prev_rank = (rank + 1) % world, (rank - 1) % world
        sizes = {"rank": lambda _: rank, "size": lambda _: world, "name": lambda _: name, "world_size": world}
        self.device_group = self.cpu_group = type("ProcessGroup", (), {**sizes, "rank_in_group": rank})()
        self.device_group.group_name = name  # type: ignore[attr-defined]


def set_rank(parallel: Any, rank: int, replica: int = 0) -> None:
    """`rank` within one replica, laid out as pipeline stages of tensor-parallel ranks; replicas share experts."""
    from vllm.distributed import parallel_state

    tp, pp, dp = parallel.tensor_parallel_size, parallel.pipeline_parallel_size, parallel.data_parallel_size
    pcp = getattr(parallel, "prefill_context_parallel_size", 1)
    dcp = getattr(parallel, "decode_context_parallel_size", 1)
    own, part, stage = rank % tp, rank // tp % pcp, rank // (tp * pcp)
    groups = {
        "_WORLD": (rank, tp * pp * pcp),
        "_INNER_DP_WORLD": (rank, tp * pp * pcp),
        "_TP": (own, tp),
        "_ETP": (own, tp),
        "_PP": (stage, pp),
        "_PCP": (part, pcp),
        "_DP": (replica, dp),
        "_DCP": (own % dcp, dcp),
        "_EP": ((replica * pcp + part) * tp + own, tp * pcp * dp),
        "_EPLB": (own, tp * pcp * dp),
    }
    for name, (at, size) in groups.items():
        if hasattr(parallel_state, name):
            setattr(parallel_state, name, Group(name[1:].lower(), at, size))
    parallel.rank = rank
    parallel_state.in_the_same_node_as = lambda group, source_rank=0: [False] * group.size()
    shared = sys.modules.get("vllm.v1.attention.ops.cp_common")
    if shared is not None:
        shared.in_the_same_node_as = parallel_state.in_the_same_node_as  # type: ignore[attr-defined]
