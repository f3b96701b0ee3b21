"""The hardware a plan is made for. Measured, or stated by a profile; unknown is `None`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from autofit.domain.values import dataclass, field

Api = Literal["cuda", "rocm", "metal", "vulkan", "sycl", "cann", "rpc"]
HOST_POOL = "host"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator, in the order in which engines will number it.

    `pool` names the memory it draws on: its own `id`, or `host` on a unified-memory machine.
    `free_bytes` is what a new process may take now. `runtime_bytes` is what the driver's context and libraries
    take in a process of the engine: `None` lets the backend assume it, 0 says there is none.
    """

    id: str
    index: int
    name: str
    api: Api
    total_bytes: int | None
    free_bytes: int | None
    pool: str = ""
    vendor: str | None = None
    uuid: str | None = None
    profile: str | None = None
    integrated: bool = False
    reserved_bytes: int | None = None  #: kept by the driver, out of `total_bytes`
    runtime_bytes: int | None = None
    compute_capability: tuple[int, int] | None = None
    gfx: str | None = None  #: AMD's name of the instruction set: gfx1100
    n_sm: int | None = None  #: streaming multiprocessors (NVIDIA) or compute units (AMD)
    bandwidth_bytes_per_s: int | None = None
    fp16_flops_per_s: int | None = None
    link_bytes_per_s: int | None = None  #: to the host, one direction
    node: str = ""  #: the name of the `Node` that it is in; empty: the machine itself
    behind: Api | Literal["cpu"] | None = None  #: what drives a device that is reached over RPC, where that is known
    held_by: tuple[Holder, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.pool:
            object.__setattr__(self, "pool", self.id)

    @property
    def usable_bytes(self) -> int | None:
        """What processes can share: the total less the driver's reserve. This is what `cudaMemGetInfo` calls total."""
        return None if self.total_bytes is None else self.total_bytes - (self.reserved_bytes or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process that holds memory of a device."""

    pid: int
    name: str | None
    used_bytes: int | None
    ours: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A path between two devices that is not the host's (NVLink, Infinity Fabric)."""

    a: str
    b: str
    kind: str
    bytes_per_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Processor and RAM. `available_bytes` is what can be taken without swap, within every limit."""

    total_bytes: int | None
    available_bytes: int | None
    limit_bytes: int | None = None  #: the tightest cgroup limit, if any
    n_cores_physical: int | None = None
    n_cores_logical: int | None = None
    n_cores_performance: int | None = None
    n_numa_nodes: int | None = None
    cpu_name: str | None = None
    bandwidth_bytes_per_s: int | None = None
    shm_bytes: int | None = None
    memlock_bytes: int | None = None  #: `None` is unlimited or unknown
    hugepages_bytes: int | None = None
    has_repack: bool | None = None  #: AVX2 or NEON: llama.cpp's CPU builds re-lay quantized weights
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Another machine, some of whose devices are used, and the network to it. `host` is `None` where it does not count.

    `link_bytes_per_s` is one direction, `latency_s` one message one way; unknown is `None`.
    """

    name: str
    address: str | None = None  #: of the machine, or `HOST:PORT` of the server that lends its devices
    host: Host | None = None
    link_bytes_per_s: int | None = None
    latency_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """What a server on another machine offers: its devices, or the `problem` because of which it offers none."""

    node: Node
    devices: tuple[Device, ...] = ()
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Devices, host and links. `origin` says where the facts come from: `detected`, `profile`, a file.

    `nodes` are the other machines that devices name, of several that work on one model.
    """

    host: Host
    devices: tuple[Device, ...] = ()
    links: tuple[Link, ...] = ()
    name: str | None = None
    origin: str = "detected"
    findings: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)  #: figure -> where it comes from
    nodes: tuple[Node, ...] = ()
    node: Node | None = None  #: this machine among them, where it has a name and an address there
