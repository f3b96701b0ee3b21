"""CUDA: the tensors that its fusions keep alive (ggml/src/ggml-cuda/ggml-cuda.cu, graph_optimize)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from autofit_llama.engine.versions import Change, Version
from autofit_llama.graph.ggml import (
    Tensor,
    is_contiguous,
    is_quantized,
)

Keep = Callable[[Tensor, Tensor], None]  #: keep(tensor, until)


SHARED_EXPERTS = Change(
    without=11368,
    has=11393,
    source="ggml/src/ggml-cuda/ggml-cuda.cu:ggml_backend_cuda_graph_optimize, with match_shared_expert",
    name="shared experts fused with routed ones",
)


WEIGHTED_SUMS = Change(
    without=10739,
    has=10752,
    source="ggml/src/ggml-cuda/ggml-cuda.cu:ggml_backend_cuda_graph_optimize, without and with moe_weighted_reduction",
    name="weighted sums of experts that are fused",
)
ROUTING_KEPT = Change(
    without=11117,
    has=11138,
    source="ggml/src/ggml-cuda/ggml-cuda.cu:ggml_backend_cuda_graph_optimize, without and with topk_moe",
    name="tensors of expert routing kept for fusion",
)


def fusion_dependencies(nodes: list[Tensor], start: int, end: int, keep: Keep, version: Version) -> None:
    """Allocation dependencies of one split, nodes[start:end], some of which are moved together
    (ggml_backend_cuda_graph_optimize).
    """
    if version.follows(SHARED_EXPERTS):
        _join_shared_experts(nodes, start, end, keep)
    sums, routing = version.follows(WEIGHTED_SUMS), version.follows(ROUTING_KEPT)
    i = start
    while i < end:
        op = nodes[i].op
        if op == "MUL" and sums:
            match = _weighted_reduction(nodes, i, end)
            if match is not None:
                kept, result, count = match
                for t in kept:
                    keep(t, result)
                i += count - 1
                op = nodes[i].op
        if op in ("UNARY", "SOFT_MAX") and routing:
            count = _topk_moe(nodes, i, end)
            if count:
                until = nodes[i + count]
                for t in nodes[i : i + count]:
                    keep(t, until)
                    for src in t.src:
                        keep(src, until)
                i += count - 1
        i += 1


def _join_shared_experts(nodes: list[Tensor], start: int, end: int, keep: Keep) -> None:
    """Gate, up and activation of the shared experts right behind those of the routed ones."""
    i = start
    while i + 5 < end:
        if nodes[i].op == "MUL_MAT_ID":
            for j in range(i + 3, end - 2):
                if nodes[j].op == nodes[j + 1].op == "MUL_MAT_ID":
                    break
                if nodes[j].op == "MUL_MAT" and _match_shared_expert(nodes, i, j):
                    nodes[i + 3 : j + 3] = [*nodes[j : j + 3], *nodes[i + 3 : j]]
                    up = nodes[i + 2].src[1]
                    keep(up.src[1], nodes[i + 5])
                    keep(up.src[2], nodes[i + 5])
                    i += 5
                    break
        i += 1


def _match_shared_expert(nodes: Sequence[Tensor], i: int, j: int) -> bool:
    """ggml_cuda_match_shared_expert: the same activation of products with matrices of one type and size."""
    both = [*nodes[i : i + 3], *nodes[j : j + 3]]
    if [t.op for t in both] != ["MUL_MAT_ID", "MUL_MAT_ID", "GLU", "MUL_MAT", "MUL_MAT", "GLU"]:
        return False
    routed, shared = both[2], both[5]
    if not _fusable_subgraph(both, {id(routed), id(shared)}):
        return False
    for glu, first, second in ((routed, *both[:2]), (shared, *both[3:5])):
        if len(glu.src) != 2 or {id(t) for t in glu.src} != {id(first), id(second)} or not _fuses_products(glu):
            return False
    up, shared_up = routed.src[1], shared.src[1]
    weight, x, narrow, shared_x = up.src[0], up.src[1], shared_up.src[0], shared_up.src[1]
    return (
        weight.home is not None
        and is_quantized(weight.type)
        and x.op == "RESHAPE"
        and x.src[0] is shared_x
        and x.ne[1] == x.ne[3] == 1
        and is_contiguous(shared_x)
        and shared_x.ne[2:] == (1, 1)
        and weight.type == narrow.type
        and weight.ne[:2] == narrow.ne[:2]
        and weight.nb[1] == narrow.nb[1]
        and narrow.ne[2:] == (1, 1)
        and narrow.op == shared.src[0].src[0].op == "NONE"
        and routed.param == shared.param
    )


def _fuses_products(glu: Tensor) -> bool:
    """ggml_cuda_should_fuse_mul_mat, without biases and scales."""
    gate, up = glu.src
    a, b = up.src[0], gate.src[0]
    return (
        (a.type, a.ne, a.nb) == (b.type, b.ne, b.nb)
        and all(x is y for x, y in zip(up.src[1:], gate.src[1:], strict=True))
        and glu.param in ("swiglu", "geglu", "swiglu_oai", "swiglu_clamp")
    )


def _fusable(nodes: Sequence[Tensor], start: int, count: int, outputs: tuple[int, ...], end: int) -> bool:
    """ggml_can_fuse_subgraph of nodes that follow each other."""
    if start + count > end:
        return False
    return _fusable_subgraph(nodes[start : start + count], {id(nodes[k]) for k in outputs})


def _fusable_subgraph(inside: Sequence[Tensor], outputs: Collection[int]) -> bool:
    """ggml_can_fuse_subgraph_ext: apart from the nodes with the ids `outputs`, nothing inside is read, viewed or wanted
    outside.
    """
    ids = {id(t) for t in inside}
    for offset, t in enumerate(inside):
        if id(t) in outputs:
            continue
        if t.is_output:
            return False
        if sum(src is t for other in inside[offset + 1 :] for src in other.src) != t.uses:
            return False
        if t.root is not None and id(t.root) not in ids and not (t.root.home is not None and t.root.is_weight):
            return False
    return True


def _weighted_reduction(nodes: Sequence[Tensor], i: int, end: int) -> tuple[tuple[Tensor, ...], Tensor, int] | None:
    """experts * weights, one view per expert, and their sum (ggml_cuda_match_moe_weighted_reduction)."""
    first = nodes[i]
    if first.type != "f32" or not is_contiguous(first):
        return None
    weighted, kept, n_mul = first, _factors(first), 1
    result: tuple[Tensor, ...] | None = kept
    second = nodes[i + 1] if i + 1 < end else None
    if second is not None and second.op == "MUL" and second.type == "f32" and is_contiguous(second):
        outer = _factors(second)
        if outer is not None and outer[0] is first and kept is not None:
            weighted, n_mul, result = second, 2, (kept[0], outer[1], kept[1])
    if result is None:
        return None
    n_used, n_tokens = weighted.ne[1], weighted.ne[2] * weighted.ne[3]
    if not 2 <= n_used <= 15 or n_tokens <= 0:
        return None
    count = 2 * n_used + n_mul - 1
    if i + count > end:
        return None
    total = _sum_of_views(weighted, nodes[i + n_mul : i + count])
    if total is None or not is_contiguous(total):
        return None
    if total.ne != (weighted.ne[0], n_tokens, 1, 1) or not _fusable(nodes, i, count, (i + count - 1,), end):
        return None
    return result, total, count


def _factors(product: Tensor) -> tuple[Tensor, Tensor] | None:
    """What is multiplied, and the weights: one number for each of its rows."""
    narrow = (1, *product.ne[1:])
    a, b = product.src
    for full, weights in ((a, b), (b, a)):
        if (
            full.type == weights.type == "f32"
            and full.ne == product.ne
            and weights.ne == narrow
            and is_contiguous(full)
            and is_contiguous(weights)
        ):
            return full, weights
    return None


def _sum_of_views(weighted: Tensor, nodes: Sequence[Tensor]) -> Tensor | None:
    """The sum, where `nodes` are one view for each expert of `weighted`, in order, and what adds them up."""
    n_used, n_tokens = weighted.ne[1], weighted.ne[2] * weighted.ne[3]
    views: list[Tensor] = []
    total: Tensor | None = None
    n_adds = 0
    for t in nodes:
        if t.op == "VIEW":
            if (
                len(views) >= n_used
                or t.src[0] is not weighted
                or t.root is not weighted
                or t.ne != (weighted.ne[0], n_tokens, 1, 1)
                or t.nb[:2] != (weighted.nb[0], weighted.nb[2])
                or t.offset != len(views) * weighted.nb[1]
            ):
                return None
            views.append(t)
            continue
        if t.op != "ADD" or len(views) < 2 or n_adds + 1 >= len(views):
            return None
        left = views[0] if total is None else total
        if t.src[0] is not left or t.src[1] is not views[n_adds + 1] or t.type != "f32":
            return None
        total = t
        n_adds += 1
    return total if len(views) == n_used and n_adds == n_used - 1 else None


def _topk_moe(nodes: Sequence[Tensor], i: int, end: int) -> int:
    """Nodes of the expert routing that starts at `i` and that CUDA runs as one kernel, or 0."""
    gate = nodes[i]
    at = i
    if gate.op == "UNARY":
        if gate.param == "softplus" and i + 1 < end and nodes[i + 1].op == "SQRT" and nodes[i + 1].src[0] is gate:
            at += 1
        elif gate.param != "sigmoid":
            return 0
    last_gate = at

    def follows(index: int, op: str) -> bool:
        return index < end and nodes[index].op == op and nodes[index].src[0] is nodes[index - 1]

    at += 1
    if not follows(at, "RESHAPE"):
        return 0
    probs = nodes[at]
    at += 1
    if at < end and nodes[at].op == "ADD" and nodes[at].src[0] is nodes[last_gate]:
        at += 1
    if at >= end or nodes[at].op != "ARGSORT":
        return 0
    biased = at - last_gate == 3
    if nodes[at].src[0] is not (nodes[at - 1] if biased else nodes[last_gate]):
        return 0
    at += 1
    if not follows(at, "VIEW"):
        return 0
    ids_at = at
    at += 1
    if (
        at >= end
        or nodes[at].op != "GET_ROWS"
        or nodes[at].src[0] is not probs
        or nodes[at].src[1] is not nodes[at - 1]
    ):
        return 0
    at += 1
    if at < end:
        normed = (
            follows(at, "RESHAPE")
            and follows(at + 1, "SUM_ROWS")
            and follows(at + 2, "CLAMP")
            and at + 3 < end
            and nodes[at + 3].op == "DIV"
            and nodes[at + 3].src[1] is nodes[at + 2]
            and nodes[at + 3].src[0] is nodes[at]
            and follows(at + 4, "RESHAPE")
        )
        if normed:
            at += 5
        # a reshape that starts no normalization ends the match before the scale is looked for
        if (normed or nodes[at].op != "RESHAPE") and follows(at, "SCALE"):
            at += 1
    count = at - i
    if not _fusable(nodes, i, count, (ids_at, at - 1), end):
        return 0
    return count if _topk_moe_kernel(gate, nodes[ids_at], nodes[at - 1]) else 0


def _topk_moe_kernel(gate: Tensor, ids: Tensor, weights: Tensor) -> bool:
    """ggml_cuda_should_use_topk_moe."""
    n_expert = ids.nb[1] // ids.nb[0]
    if (n_expert & (n_expert - 1) or n_expert > 512) and n_expert not in (288, 576):
        return False
    logits = gate.src[0]
    if not is_contiguous(weights) or not is_contiguous(logits):
        return False
    if gate.op == "SOFT_MAX":
        return bool(gate.param) and len(gate.src) == 1
    return gate.param in ("sigmoid", "softplus")
