"""The cache of experts on a GPU, for blocks whose experts are all in main memory (`--moe-cache-mib`).

Source: src/llama-moe-cache.cpp of b11549, the first recorded build that has it. Its budget goes to the devices as
layers do, and on a device to groups of blocks with the same tensors; a group has whole slots for experts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

from autofit.domain.model import TensorInfo
from autofit.domain.units import round_up
from autofit.domain.values import NamedTuple
from autofit.errors import EngineRefusalError

from autofit_llama.graph import ggml
from autofit_llama.graph.devices import DeviceRules
from autofit_llama.graph.ggml import HOST, HOST_PINNED
from autofit_llama.graph.scheduler import HOST_ALIGNMENT
from autofit_llama.memory.placement import Placement
from autofit_llama.model.hparams import HParams

_NAMES = ("ffn_gate_up_exps", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")  #: llama_moe_cache_layer_experts
_ID_BYTES = 4


class ExpertCache(NamedTuple):
    """Bytes of the slots on each device, and of the maps of experts to slots in main memory."""

    device_bytes: tuple[int, ...]
    host_bytes: int


class _Group:
    """Blocks of one device with the same expert tensors."""

    def __init__(self, device: int, tensors: Sequence[TensorInfo]) -> None:
        self.device = device
        self.expert_bytes = [ggml.row_size(t.type, t.ne[0]) * t.ne[1] for t in tensors]
        self.n_expert = tensors[0].ne[2] if len(tensors[0].ne) > 2 else 1
        self.n_layers = 0
        self.host_bytes = 0

    def size(self, n_slots: int, alignment: int) -> int:
        """With one slot more, which kernels may read past the last expert."""
        return sum(round_up(n * (n_slots + 1), alignment) for n in self.expert_bytes)


def expert_cache(
    n_bytes: int,
    hp: HParams,
    tensors: Mapping[str, TensorInfo],
    homes: Mapping[str, int],
    placement: Placement,
    devices: Sequence[DeviceRules],
    splits: Sequence[float],
) -> ExpertCache:
    """What a cache of `n_bytes` in all takes; nothing where no block has all of its experts in main memory.

    `splits` are `-ts`, or free bytes per device.

    Raises:
        EngineRefusalError: no GPU, no experts, or not room for the experts of one token.
    """
    if not devices:
        raise _refused("MoE cache requires a GPU backend", "leave --moe-cache-mib out")
    n_used = max(hp.n_expert_used, default=0)
    if hp.n_expert == 0 or n_used == 0:
        raise _refused("MoE cache requires a MoE model", "leave --moe-cache-mib out")
    groups = _groups(hp, tensors, homes, placement)
    if not groups:
        return ExpertCache((0,) * len(devices), 0)
    on_host = [sum(group.host_bytes for group in groups if group.device == i) for i in range(len(devices))]
    wanted = [float(n) if on_host[i] else 0.0 for i, n in enumerate((*splits, *(0.0,) * len(devices))[: len(devices)])]
    shares = wanted if sum(wanted) else [float(n > 0) for n in on_host]
    device_bytes, host_bytes = [0] * len(devices), 0
    for group in groups:
        i, alignment = group.device, devices[group.device].alignment
        budget = int(float(n_bytes) * shares[i] / sum(shares) * group.host_bytes / on_host[i])
        most = range(1, group.n_layers * group.n_expert + 1)
        n_slots = bisect_right(most, budget, key=lambda n, g=group, a=alignment: g.size(n, a))  # type: ignore[misc]
        if n_slots >= n_used:
            device_bytes[i] += group.size(n_slots, alignment)
            host_bytes += group.n_layers * round_up(_ID_BYTES * group.n_expert, HOST_ALIGNMENT)
    if not host_bytes:
        raise _refused("MoE cache is too small to hold the experts of one token", "raise --moe-cache-mib")
    return ExpertCache(tuple(device_bytes), host_bytes)


def _groups(
    hp: HParams, tensors: Mapping[str, TensorInfo], homes: Mapping[str, int], placement: Placement
) -> list[_Group]:
    found: dict[object, _Group] = {}
    for il in range(hp.n_layer_all):
        names = [name for part in _NAMES if (name := f"blk.{il}.{part}.weight") in homes]
        device = placement.of(il)
        if not names or device < 0 or any(homes[name] not in (HOST, HOST_PINNED) for name in names):
            continue
        experts = [tensors[name] for name in names]
        key = (device, *((t.type, t.ne) for t in experts))
        group = found.setdefault(key, _Group(device, experts))
        group.n_layers += 1
        group.host_bytes += sum(t.n_bytes for t in experts)
    return list(found.values())


def _refused(cause: str, hint: str) -> EngineRefusalError:
    return EngineRefusalError(f"llama.cpp refuses: {cause}", hint=hint)
