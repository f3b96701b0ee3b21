"""ggml's graph allocator: addresses without memory (ggml/src/ggml-alloc.c).

`Arena` is ggml_dyn_tallocr, `allocate` is ggml_gallocr_alloc_graph_impl: inputs first, then one node after
the other, each in place of a source that it alone reads, or in the best-fitting hole; a tensor is freed with
its last reader. The highest address a device sees is the size of its compute buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from autofit_llama.graph.ggml import NONE, Tensor

#: ggml_op_can_inplace
IN_PLACE = frozenset(
    """
    FILL SCALE DIAG_MASK_ZERO DIAG_MASK_INF ADD ADD_ID ADD1 SUB MUL DIV SQR SQRT LOG UNARY ROPE ROPE_BACK
    SILU_BACK RMS_NORM RMS_NORM_BACK CLAMP SOFT_MAX SOFT_MAX_BACK
    """.split()
)
MAX_CHUNKS = 16
ENDLESS = 1 << 62

#: address of a tensor: chunk * CHUNK_STRIDE + offset
CHUNK_STRIDE = 1 << 63


class Arena:
    """Best-fit addresses of one buffer type (ggml_dyn_tallocr); sizes are padded by the caller.

    A chunk is one buffer; there is more than one where the buffer type has a largest size.
    """

    __slots__ = ("alignment", "chunks", "max_chunk_bytes")

    def __init__(self, alignment: int, max_chunk_bytes: int = ENDLESS) -> None:
        self.alignment = alignment
        self.max_chunk_bytes = min(max_chunk_bytes, ENDLESS)
        self.chunks: list[tuple[list[list[int]], list[int]]] = []  # (free [offset, size] by offset, [highest end])

    @property
    def size_bytes(self) -> int:
        return sum(high[0] for _, high in self.chunks)

    def pad(self, n_bytes: int) -> int:
        return -(-n_bytes // self.alignment) * self.alignment

    def allocate(self, n_bytes: int) -> int:
        best_chunk = best_block = -1
        for c, (free, _) in enumerate(self.chunks):
            best_bytes = ENDLESS + 1
            for i in range(len(free) - 1):
                size = free[i][1]
                if n_bytes <= size <= best_bytes:
                    best_chunk, best_block, best_bytes = c, i, size
        if best_block < 0:
            best_chunk, best_block = self._last_block(n_bytes)
        free, high = self.chunks[best_chunk]
        block = free[best_block]
        offset = block[0]
        block[0] += n_bytes
        block[1] -= n_bytes
        if block[1] == 0:
            del free[best_block]
        if offset + n_bytes > high[0]:
            high[0] = offset + n_bytes
        return best_chunk * CHUNK_STRIDE + offset

    def _last_block(self, n_bytes: int) -> tuple[int, int]:
        """The open end of the chunk that grows least, or a new chunk."""
        best, best_reuse = -1, -ENDLESS * 2
        for c, (free, high) in enumerate(self.chunks):
            if free and free[-1][1] >= n_bytes:
                reuse = high[0] - free[-1][0] - n_bytes
                if (best_reuse < 0 and reuse > best_reuse) or 0 <= reuse < best_reuse:
                    best, best_reuse = c, reuse
        if best < 0:
            size = ENDLESS if len(self.chunks) == MAX_CHUNKS - 1 else max(n_bytes, self.max_chunk_bytes)
            self.chunks.append(([[0, size]], [0]))
            best = len(self.chunks) - 1
        return best, len(self.chunks[best][0]) - 1

    def free(self, addr: int, n_bytes: int) -> None:
        chunk, offset = divmod(addr, CHUNK_STRIDE)
        free = self.chunks[chunk][0]
        end = offset + n_bytes
        for i, block in enumerate(free):
            if block[0] + block[1] == offset:
                block[1] += n_bytes
                if i + 1 < len(free) and block[0] + block[1] == free[i + 1][0]:
                    block[1] += free.pop(i + 1)[1]
                return
            if end == block[0]:
                block[0] = offset
                block[1] += n_bytes
                if i > 0 and free[i - 1][0] + free[i - 1][1] == offset:
                    free[i - 1][1] += block[1]
                    del free[i]
                return
        i = 0
        while i < len(free) and free[i][0] < offset:
            i += 1
        free.insert(i, [offset, n_bytes])

    def state(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """The holes, to compare two moments."""
        return tuple(tuple((o, s) for o, s in free) for free, _ in self.chunks)


Held = dict[int, tuple[int, int, int, int, int]]  #: id of a tensor -> node index, address, bytes, readers, views


def allocate(
    leafs: Sequence[tuple[Tensor, int]],
    nodes: Sequence[tuple[Tensor, int]],
    arenas: Sequence[Arena],
    alloc_bytes: Callable[[Tensor, int], int],
    moments: Sequence[int] = (),
) -> list[tuple[tuple[object, ...], Held]]:
    """Runs the graph through the arenas; operations of `IN_PLACE` may take the place of a source.

    `leafs` and `nodes` come with the index of their arena; `alloc_bytes(tensor, arena)` is what the tensor
    takes there. A node of operation NONE only keeps its sources alive (a copy of an input, a dependency).
    Returns the state before each node of `moments` (ascending): the holes of all arenas, and what is held
    where.
    """
    for tensor, dev in leafs:
        if tensor.home is None and not tensor.held and tensor.root is None:
            _place(tensor, dev, arenas, alloc_bytes)
    for node, dev in nodes:
        root = node.root
        if root is not None and node.op != NONE:
            root.views += 1
        if node.is_input and not node.held and root is None:
            _place(node, dev, arenas, alloc_bytes)
        for src in node.src:
            src.kids += 1
            if src.is_input and not src.held and src.root is None:
                _place(src, dev, arenas, alloc_bytes)

    states: list[tuple[tuple[object, ...], Held]] = []
    next_moment = moments[0] if moments else -1
    for index, (node, dev) in enumerate(nodes):
        while index == next_moment:
            states.append((tuple(a.state() for a in arenas), _held(nodes, index)))
            next_moment = moments[len(states)] if len(states) < len(moments) else -1
        for src in node.src:
            if not src.held and src.home is None and src.root is None:
                _place(src, dev, arenas, alloc_bytes)
        if (
            not node.held
            and node.root is None
            and node.home is None
            and not (node.op in IN_PLACE and _reuse(node, arenas, alloc_bytes))
        ):
            _place(node, dev, arenas, alloc_bytes)
        for src in node.src:
            src.kids -= 1
            if src.kids == 0 and src.views == 0:
                root = src.root
                if root is not None:
                    root.views -= 1
                    if root.views == 0 and root.kids == 0 and root.held:
                        _free(root, arenas)
                elif src.held:
                    _free(src, arenas)
    return states


def _held(nodes: Sequence[tuple[Tensor, int]], end: int) -> Held:
    return {id(t): (i, t.addr, t.n_bytes, t.kids, t.views) for i, (t, _) in enumerate(nodes[:end]) if t.held}


def _place(t: Tensor, dev: int, arenas: Sequence[Arena], alloc_bytes: Callable[[Tensor, int], int]) -> None:
    arena = arenas[dev]
    size = arena.pad(alloc_bytes(t, dev))
    t.held = True
    t.n_bytes = size
    t.dev = dev
    t.addr = arena.allocate(size)


def _reuse(node: Tensor, arenas: Sequence[Arena], alloc_bytes: Callable[[Tensor, int], int]) -> bool:
    """Takes over the memory of the first source that only `node` reads (ggml_gallocr_allocate_node).

    A view is never "own", so what is reached through one is never taken over.
    """
    ne, nb, type_name = node.ne, node.nb, node.type
    for parent in node.src:
        if (
            parent.held
            and not parent.is_output
            and parent.kids == 1
            and parent.views == 0
            and parent.ne == ne
            and parent.nb == nb
            and parent.type == type_name
        ):
            node.dev, node.addr = parent.dev, parent.addr
            arena = arenas[parent.dev]
            node.n_bytes = arena.pad(alloc_bytes(node, parent.dev))
            node.held, parent.held = True, False
            if parent.n_bytes > node.n_bytes:
                arena.free(parent.addr + node.n_bytes, parent.n_bytes - node.n_bytes)
            return True
    return False


def _free(t: Tensor, arenas: Sequence[Arena]) -> None:
    if not t.is_output:
        arenas[t.dev].free(t.addr, t.n_bytes)
        t.held = False
