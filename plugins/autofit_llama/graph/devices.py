"""The rules of the devices that a graph may run on: what each runs, and how much a tensor takes there.

CUDA and RPC are modeled to the byte. Metal and Vulkan also reorder nodes before they run them, which is not:
their figures are close, not exact. CPU: ggml/src/ggml-cpu/ggml-cpu.cpp. RPC: ggml/src/ggml-rpc/ggml-rpc.cpp,
whose servers size tensors by the rules of their own device: the CPU's, unless another is known to be there.
"""

from __future__ import annotations

from typing import Literal

from autofit.domain.dtypes import GGML_TYPES_BY_NAME, row_bytes
from autofit.domain.units import GIB, round_up
from autofit.domain.values import dataclass, replace

from autofit_llama.engine.versions import LATEST, Version
from autofit_llama.graph import cuda
from autofit_llama.graph.allocator import ENDLESS
from autofit_llama.graph.cuda import ROW_PADDING
from autofit_llama.graph.ggml import Tensor, n_rows, tensor_bytes

__all__ = [
    "CUDA",
    "METAL",
    "ROCM",
    "ROW_PADDING",
    "RPC",
    "VULKAN",
    "DeviceRules",
    "cpu_supports",
    "rules_for",
]

Kind = Literal["cuda", "rpc", "metal", "vulkan"]

OFFLOAD_MIN_BATCH = 32  #: GGML_OP_OFFLOAD_MIN_BATCH


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRules:
    """The rules of one device.

    `compute_capability` is CUDA's, 890 for 8.9; 0 for a GPU without tensor cores. `offload_min_batch`: rows
    from which the device takes over operations on host weights; `None`: never. `pipeline`: asynchronous and
    with events, so that several micro-batches can be in flight. `pinned_host`: the host's side of the graph
    is in pinned memory. `members`: the device stands for all of these (`-sm tensor`). `served`: the kind of a device
    behind an RPC server, which sizes tensors there (ggml-rpc.cpp:ggml_backend_rpc_buffer_type_get_alloc_size).
    """

    kind: Kind = "cuda"
    alignment: int = cuda.ALIGNMENT
    max_buffer_bytes: int = ENDLESS
    compute_capability: int = 890
    offload_min_batch: int | None = OFFLOAD_MIN_BATCH
    pipeline: bool = True
    fusion: bool = True
    pinned_host: bool = True
    members: tuple[DeviceRules, ...] = ()
    version: Version = LATEST
    served: Kind | None = None

    @property
    def is_exact(self) -> bool:
        """Whether the replay is known to give the engine's own bytes."""
        if self.members:
            return all(rules.is_exact for rules in self.members)
        return self._sizes in ("cuda", "rpc")

    @property
    def _sizes(self) -> Kind:
        """The kind of device by whose rules tensors are sized."""
        return self.served or self.kind

    @property
    def pads_rows(self) -> bool:
        """Whether rows of quantized types are filled up."""
        return self._sizes != "rpc"

    def supports(self, t: Tensor) -> bool:
        if self.members:
            return all(rules.supports(t) for rules in self.members)
        if self.kind == "rpc":
            return True
        if self.kind == "metal" and t.op == "FLASH_ATTN_EXT":
            from autofit_llama.graph import metal

            return metal.flash_attn_supported(t)
        if self.kind == "vulkan" and t.op == "FLASH_ATTN_EXT":
            return _vulkan_flash_attn(t)
        return cuda.supports(t, self.compute_capability, self.version)

    def alloc_bytes(self, t: Tensor) -> int:
        """Bytes of `t` in the device's buffer, before alignment."""
        if self.members:
            return max(rules.alloc_bytes(t) for rules in self.members)
        if self._sizes == "cuda":
            return cuda.alloc_bytes(t, self.compute_capability, self.version)
        if self._sizes == "metal":
            from autofit_llama.graph import metal

            return metal.alloc_bytes(t)
        return tensor_bytes(t)

    def offloads(self, t: Tensor) -> bool:
        """Whether a prompt-sized operation on a host weight moves here, weight and all."""
        if self.offload_min_batch is None or (self.kind == "metal" and not t.op.startswith("MUL_MAT")):
            return False
        return _batch(t) >= self.offload_min_batch


CUDA = DeviceRules()
ROCM = DeviceRules(compute_capability=0)
RPC = DeviceRules(kind="rpc", alignment=32, offload_min_batch=None, fusion=False, pinned_host=False)
METAL = DeviceRules(kind="metal", alignment=32, fusion=False, pinned_host=False)
VULKAN = DeviceRules(kind="vulkan", alignment=64, max_buffer_bytes=GIB, fusion=False)


def rules_for(
    api: str,
    compute_capability: tuple[int, int] | None = None,
    version: Version = LATEST,
    *,
    behind: str | None = None,
) -> DeviceRules:
    """The rules of a device of the given API; an API without rules of its own is planned for as Vulkan.

    `behind` is the API of a device that an RPC server lends, where it is known.
    """
    if api == "rpc" and behind not in (None, "cpu", "rpc"):
        own = rules_for(behind or "", compute_capability, version)
        return replace(
            RPC,
            alignment=own.alignment,
            max_buffer_bytes=own.max_buffer_bytes,
            compute_capability=own.compute_capability,
            version=version,
            served=own.kind,
        )
    rules = {"cuda": CUDA, "rocm": ROCM, "rpc": RPC, "metal": METAL}.get(api, VULKAN)
    if api == "cuda" and compute_capability is not None:
        rules = replace(rules, compute_capability=100 * compute_capability[0] + 10 * compute_capability[1])
    return rules if version == LATEST else replace(rules, version=version)


def _batch(t: Tensor) -> int:
    if t.op == "GET_ROWS":
        return 0
    if t.op == "MUL_MAT":
        return t.ne[1]
    if t.op in ("MUL_MAT_ID", "ROPE", "ROPE_BACK"):
        return t.ne[2]
    return n_rows(t)


_VULKAN_KV = frozenset("f32 f16 bf16 q8_0 q5_1 q5_0 q4_1 q4_0 iq4_nl".split())


def _vulkan_flash_attn(t: Tensor) -> bool:
    k, v = t.src[1], t.src[2]
    return k.ne[0] % 8 == 0 and v.ne[0] % 8 == 0 and k.type in _VULKAN_KV and v.type in _VULKAN_KV


def cpu_supports(t: Tensor) -> bool:
    """ggml_backend_cpu_device_supports_op, for the operations a language model's graph holds."""
    if t.op == "MUL_MAT":
        a, b = t.src[0], t.src[1]
        if b.type == "f32":
            return True
        if t.param == "hadamard" and a.type == "f32":
            return b.type == "f16"
        return b.type == _DOT_TYPES.get(a.type) or (b.type == "bf16" and _DOT_TYPES.get(a.type) == "f32")
    if t.op == "SSM_SCAN":
        return t.param == 1 or t.src[3].ne[0] == 1
    if t.op in ("CPY", "SET_ROWS"):
        return t.type not in ("iq3_xxs", "iq3_s", "iq2_xxs", "iq2_xs", "iq2_s", "iq1_s", "iq1_m")
    return True


#: ggml-cpu.c:type_traits_cpu, vec_dot_type; a quantized matrix never meets its own as second source
_DOT_TYPES = {"f32": "f32", "f16": "f16", "bf16": "bf16"}


def device_bytes(rules: DeviceRules, type_name: str, ne0: int, n_bytes: int) -> int:
    """Bytes of a weight or cache in a device's buffer: rows padded where the device does, then aligned."""
    if rules.pads_rows and ne0 % ROW_PADDING and GGML_TYPES_BY_NAME[type_name].block_elements > 1:
        n_bytes += row_bytes(type_name, ROW_PADDING - ne0 % ROW_PADDING)
    return round_up(n_bytes, rules.alignment)
