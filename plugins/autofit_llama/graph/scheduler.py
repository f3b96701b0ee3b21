"""ggml's scheduler: which backend runs each node, where the graph is cut, what is copied at the cuts.

A replay of ggml/src/ggml-backend.cpp:ggml_backend_sched_split_graph and of the reserve that follows it.
Backends are numbered by priority: the devices in order, then the CPU. `Tensor.dev` is the backend of a
tensor, -1 while unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autofit.domain.values import dataclass, field
from autofit.errors import EngineRefusalError

from autofit_llama.engine.versions import LATEST, Change, Version
from autofit_llama.graph.allocator import ENDLESS, Arena, Held, allocate
from autofit_llama.graph.cuda_fusion import fusion_dependencies
from autofit_llama.graph.devices import DeviceRules, cpu_supports
from autofit_llama.graph.ggml import HOST, NONE, VIEW_OPS, Tensor, tensor_bytes

HOST_ALIGNMENT = 32  #: ggml/src/ggml-backend.cpp:TENSOR_ALIGNMENT of CPU buffers, which pinned ones share
PIPELINE_COPIES = 4  #: GGML_SCHED_MAX_COPIES
_MAX_SRC = 10
_MAX_INPUTS = 30  #: GGML_SCHED_MAX_SPLIT_INPUTS
FREE_ATTENTION = Change(
    without=10142,
    has=10151,
    source="ggml/src/ggml-backend.cpp:ggml_backend_sched_backend_id_from_cur, without and with FLASH_ATTN_EXT skipped",
    name="flash attention that does not go where attention sinks are",
    larger=False,
)
GROWING_INPUTS = Change(
    without=10240,
    has=10248,
    source="ggml/src/ggml-backend.cpp:ggml_backend_sched_split_graph, with an assertion and with split_inputs_grow",
    name="splits of any number of inputs",
)
UNCOUNTED_INPUTS = Change(
    without=10830,
    has=10840,
    source="ggml/src/ggml-backend.cpp:ggml_backend_sched_split_graph, with and without a look at n_inputs",
    name="splits that go on with many inputs",
)
EVERY_INPUT = Change(
    without=11243,
    has=11258,
    source="ggml/src/ggml-backend.cpp:ggml_backend_sched_split_graph, copies of inputs that are read and of all",
    name="copies of all inputs for overlapping micro-batches",
)


_Copies = dict[tuple[int, int], list[Tensor]]  #: (identity of a tensor, device) -> its copies there


@dataclass(slots=True)
class Split:
    """Consecutive nodes of one backend, and the tensors that are copied to it before they run."""

    dev: int
    start: int
    end: int = 0
    inputs: list[Tensor] = field(default_factory=list)
    first_use: list[int] = field(default_factory=list)  #: index of the node that asked for each input


@dataclass(slots=True)
class Schedule:
    """A scheduled graph: what is allocated, in order, and at which backend."""

    splits: list[Split]
    leafs: list[tuple[Tensor, int]]
    nodes: list[tuple[Tensor, int]]
    position: list[int]  #: graph node index -> index in `nodes`; one more entry for the end


class Scheduler:
    """Backends of a context. `n_copies` is 4 with pipeline parallelism, else 1."""

    def __init__(
        self,
        devices: Sequence[DeviceRules],
        *,
        op_offload: bool = True,
        n_copies: int = 1,
        version: Version = LATEST,
    ) -> None:
        self.devices = tuple(devices)
        self.cpu = len(devices)
        self.op_offload = op_offload
        self.n_copies = n_copies
        self.version = version
        self.n_inputs_max = ENDLESS if version.follows(GROWING_INPUTS) else _MAX_INPUTS
        self.counts_inputs = not version.follows(UNCOUNTED_INPUTS)
        self.free_ops = ("ROPE", "FLASH_ATTN_EXT") if version.follows(FREE_ATTENTION) else ("ROPE",)

    def supports(self, dev: int, t: Tensor) -> bool:
        if dev == self.cpu:
            return cpu_supports(t)
        rules = self.devices[dev]
        if rules.kind != "rpc":
            for src in t.src:
                if src.home is not None and src.home >= 0 and src.home != dev:
                    return False  # memory of another device
        return rules.supports(t)

    def _of_buffer(self, buffer: Tensor, t: Tensor) -> int:
        """The backend that can use `buffer`'s memory and run `t` (ggml_backend_sched_backend_from_buffer)."""
        home = buffer.home
        if home is None:
            return -1
        dev = self.cpu if home < 0 else home
        return dev if self.supports(dev, t) else -1

    def _preferred(self, t: Tensor) -> int:
        """The backend that buffers and weights ask for (ggml_backend_sched_backend_id_from_cur)."""
        buffer = t.root or t
        if buffer.home is not None:
            dev = self._of_buffer(buffer, t)
            if dev >= 0:
                return dev
        if t.is_input:
            return self.cpu
        if t.op in self.free_ops:
            return -1
        for src in t.src:
            if src.is_weight:
                dev = self._of_buffer(src, t)
                if self.op_offload and dev == self.cpu and src.home == HOST:
                    for other, rules in enumerate(self.devices):
                        if rules.offloads(t) and self.supports(other, t):
                            return other
                return dev
        return -1

    def assign(self, leafs: Sequence[Tensor], nodes: Sequence[Tensor]) -> None:
        """Passes 1 to 4: a backend for every tensor. Pinned tensors come with theirs."""
        cpu = self.cpu
        for t in leafs:
            if t.dev < 0:
                t.dev = self._preferred(t)
        for t in nodes:
            if t.dev < 0:
                t.dev = self._preferred(t)
        ops = [t for t in nodes if t.op not in VIEW_OPS]
        backwards = ops[::-1]
        for order, devices_only in ((ops, True), (backwards, True), (ops, False), (backwards, False)):
            current = -1
            for t in order:
                dev = t.dev
                if dev >= 0:
                    current = -1 if devices_only and dev == cpu else dev
                elif current >= 0 and self.supports(current, t):
                    t.dev = current
        for t in ops:
            if t.dev < 0:
                t.dev = self._most_inputs(t)
        for t in nodes:
            if t.dev < 0 and t.root is not None:
                t.dev = t.root.dev
            for src in t.src:
                if src.dev < 0:
                    src.dev = src.root.dev if src.root is not None else t.dev
            if t.dev < 0:
                t.dev = next((dev for dev in range(cpu + 1) if self.supports(dev, t)), -1)
            if t.dev < 0:  # GGML_ASSERT(*cur_backend_id != -1)
                types = ", ".join(f"{src.name or src.op} of {src.type}" for src in t.src)
                raise EngineRefusalError(f"no device and no CPU runs {t.op} on {types}")

    def _most_inputs(self, t: Tensor) -> int:
        best, best_inputs = -1, -1
        for dev in range(self.cpu + 1):
            if self.supports(dev, t):
                n = sum(
                    (src.dev >= 0 or (src.root is not None and src.root.dev >= 0)) and self._reaches(src, dev)
                    for src in t.src
                )
                if n > best_inputs:
                    best, best_inputs = dev, n
        return best

    def _reaches(self, t: Tensor, dev: int) -> bool:
        """Whether `dev` can use the memory of `t` where it is (ggml_backend_sched_buffer_supported)."""
        buffer = t.root or t
        if buffer.home is not None:
            return dev == self.cpu if buffer.home < 0 else dev == buffer.home
        owner = t.dev if t.dev >= 0 else buffer.dev
        return owner == dev

    def split(self, leafs: Sequence[Tensor], nodes: list[Tensor]) -> Schedule:
        """Passes 5 and 6, fusion dependencies, and the graph that is allocated."""
        splits, copies, used = self._cut(nodes)
        out, position = self._order(nodes, splits, copies)
        first_leafs: list[tuple[Tensor, int]] = []
        if self.n_copies > 1:
            for leaf in leafs if self.version.follows(EVERY_INPUT) else used:
                if leaf.is_input and (id(leaf), leaf.dev) not in copies:
                    leaf.is_output = True
                    twins = [_copy_of(leaf, leaf.dev, True) for _ in range(self.n_copies - 1)]
                    first_leafs += [(t, leaf.dev) for t in (leaf, *twins)]
            for s in splits:
                for src in s.inputs:
                    first_leafs += [(t, s.dev) for t in copies[id(src), s.dev]]
        return Schedule(splits, first_leafs + [(t, t.dev) for t in leafs], out, position)

    def _cut(self, nodes: list[Tensor]) -> tuple[list[Split], _Copies, dict[Tensor, None]]:
        """Where a split ends and the next one begins; copies of what comes from other devices, which stand in for it;
        and the inputs that operations read."""
        n_copies = self.n_copies
        copies: _Copies = {}
        splits: list[Split] = []
        used: dict[Tensor, None] = {}
        split: Split | None = None
        for i, t in enumerate(nodes):
            if t.op in VIEW_OPS:
                continue
            dev = t.dev
            if split is None:
                split = Split(dev, 0)
                splits.append(split)
            elif dev != split.dev or self._is_full(split, t, copies):
                split.end = i
                split = Split(dev, i)
                splits.append(split)
            src_list = t.src
            for j, src in enumerate(src_list):
                if src.is_input:
                    used[src] = None
                if src.dev != dev and not self._reaches(src, dev):
                    copy = copies.get((id(src), dev))
                    if copy is None:
                        copy = [_copy_of(src, dev, n_copies > 1) for _ in range(n_copies)]
                        copies[id(src), dev] = copy
                        if len(split.inputs) >= self.n_inputs_max:
                            raise EngineRefusalError(
                                f"llama.cpp {self.version.name} aborts: an operation needs more than"
                                f" {_MAX_INPUTS} inputs from other devices",
                                hint="offload all layers or none, or use a newer llama.cpp",
                            )
                        split.inputs.append(src)
                        split.first_use.append(i)
                    src_list[j] = copy[0]
        if split is not None:
            split.end = len(nodes)
        return splits, copies, used

    def _order(
        self, nodes: list[Tensor], splits: Sequence[Split], copies: _Copies
    ) -> tuple[list[tuple[Tensor, int]], list[int]]:
        """The graph that is allocated: copies, nodes and what fusion keeps of each split; a node's place in it."""
        dependencies: dict[int, list[Tensor]] = {}

        def keep(t: Tensor, until: Tensor) -> None:
            kept = dependencies.setdefault(id(until), [])
            if not any(k is t for k in kept):
                kept.append(t)

        for s in splits:
            if s.dev < self.cpu and self.devices[s.dev].fusion:
                fusion_dependencies(nodes, s.start, s.end, keep, self.devices[s.dev].version)

        out: list[tuple[Tensor, int]] = []
        position = [0] * (len(nodes) + 1)
        for s in splits:
            for src in s.inputs:
                out.append((_keeps([src]), src.dev))
                out.append((copies[id(src), s.dev][0], s.dev))
            for i in range(s.start, s.end):
                t = nodes[i]
                position[i] = len(out)
                out.append((t, t.dev))
                kept = dependencies.get(id(t))
                if kept:
                    out += [(_keeps(kept[n : n + _MAX_SRC]), s.dev) for n in range(0, len(kept), _MAX_SRC)]
        position[len(nodes)] = len(out)
        return out, position

    def _is_full(self, split: Split, t: Tensor, copies: Mapping[tuple[int, int], object]) -> bool:
        """Whether `t`, of the split's own backend, starts another split because of what it has to have copied."""
        if not split.inputs:
            return False
        dev = split.dev
        if any(s.is_weight and s.dev != dev and not self._reaches(s, dev) for s in t.src):
            return True
        if not self.counts_inputs or len(split.inputs) < _MAX_INPUTS:
            return False
        return any(s.dev != dev and (id(s), dev) not in copies and not self._reaches(s, dev) for s in t.src)

    def reserve(
        self, schedule: Schedule, moments: Sequence[int] = ()
    ) -> tuple[list[int], list[tuple[tuple[object, ...], Held]]]:
        """Bytes of the compute buffer of every backend, and the allocator's state at the given moments."""
        arenas = [Arena(rules.alignment, rules.max_buffer_bytes) for rules in self.devices]
        arenas.append(Arena(HOST_ALIGNMENT))
        sizes = [rules.alloc_bytes for rules in self.devices]
        cpu = self.cpu

        def alloc_bytes(t: Tensor, dev: int) -> int:
            return tensor_bytes(t) if dev == cpu else sizes[dev](t)

        states = allocate(schedule.leafs, schedule.nodes, arenas, alloc_bytes, moments)
        return [arena.size_bytes for arena in arenas], states


def _copy_of(src: Tensor, dev: int, permanent: bool) -> Tensor:
    """A tensor of its own with the layout of `src` (ggml_dup_tensor_layout)."""
    t = Tensor(NONE, src.type, src.ne, nb=src.nb)
    t.dev = dev
    t.is_input = t.is_output = permanent
    return t


def _keeps(tensors: list[Tensor]) -> Tensor:
    """A node that only reads `tensors`, so that they live until here."""
    first = tensors[0]
    return Tensor(NONE, first.type, first.ne, tensors, nb=first.nb, root=first.root or first)
