"""What ggml asserts of the shapes of an operation's sources, at which the engine ends.

A rule stands for the assertions of the function of ggml/src/ggml.c that makes the operation, and answers with the one
that fails and the numbers that do not go together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from autofit.domain.text import printable

from autofit_llama.graph import ggml
from autofit_llama.graph.ggml import Tensor, is_contiguous, is_contiguous_rows, n_elements
from autofit_llama.model.aborts import aborts
from autofit_llama.model.hparams import HParams

#: asserted by the CPU (ggml-cpu/ops.cpp) and by CUDA (ggml-cuda/norm.cu) with the first tokens
_EPSILONS = {"NORM": "f_norm_eps", "RMS_NORM": "f_norm_rms_eps"}
Failed = tuple[str, tuple[int, ...]] | None
Rule = Callable[[Tensor], Failed]


def check(nodes: Iterable[Tensor], hp: HParams) -> None:
    """Refuse a graph that holds an operation which ggml does not make.

    Raises:
        EngineRefusalError: with the assertion, the shapes, and the keys of the file that they may come from.
    """
    for node in nodes:
        epsilon = _EPSILONS.get(node.op)
        if epsilon is not None and not getattr(hp, epsilon) >= 0.0:  # which is not a number either
            raise aborts(hp, f"{operation(node)}: GGML_ASSERT(eps >= 0.0f)", keys=[epsilon])
        rule = RULES.get(node.op)
        failed = None if rule is None else rule(node)
        if failed is not None:
            raise aborts(hp, f"{operation(node)}: GGML_ASSERT({failed[0]})", failed[1])


def operation(node: Tensor) -> str:
    """An operation and the shapes of its sources, for a message."""
    sources = [f"{printable(t.name, 60) or t.op.lower()} {list(t.ne)}" for t in node.src if t is not node]
    return f"{node.op.lower()} of {', '.join(sources)}"


# -- rules ------------------------------------------------------------------------------------------------------------


def _fails(condition: str, *tensors: Tensor) -> Failed:
    """The numbers in which tensors differ."""
    ne = [t.ne for t in tensors]
    unlike = [n for at in zip(*ne, strict=True) if len(set(at)) > 1 for n in at]
    return condition, tuple(unlike)


def _repeats(t: Tensor, over: Tensor) -> bool:
    """ggml_can_repeat."""
    if 0 in t.ne:
        return 0 in over.ne
    return all(n % m == 0 for n, m in zip(over.ne, t.ne, strict=True))


def _multiplies(a: Tensor, b: Tensor) -> bool:
    """ggml_can_mul_mat."""
    return a.ne[0] == b.ne[0] and b.ne[2] % (a.ne[2] or 1) == 0 and b.ne[3] % (a.ne[3] or 1) == 0


def _combined(t: Tensor) -> Failed:
    a, b = t.src[0], t.src[1]
    if b.is_weight and b.ne == (a.ne[0] * a.ne[1], 1, 1, 1):
        return None  # by heads or streams, as the loader puts it in shape (TENSOR_ALLOW_RESHAPE)
    return None if a.ne == b.ne or _repeats(b, a) else _fails("ggml_can_repeat(b, a)", a, b)


def _repeat(t: Tensor) -> Failed:
    return None if _repeats(t.src[0], t) else _fails("ggml_can_repeat(a, b)", t.src[0], t)


def _add_id(t: Tensor) -> Failed:
    a, b, ids = t.src
    if a.ne[0] != b.ne[0]:
        return _fails("a->ne[0] == b->ne[0]", a, b)
    return None if a.ne[1:3] == ids.ne[:2] else _fails("a->ne[1] == ids->ne[0]", a, ids)


def _concat(t: Tensor) -> Failed:
    a, b = t.src
    if all(n == m for i, (n, m) in enumerate(zip(a.ne, b.ne, strict=True)) if i != t.param):
        return None
    return _fails("a->ne[d] == b->ne[d]", a, b)


def _mul_mat(t: Tensor) -> Failed:
    a, b = t.src
    if not _multiplies(a, b):
        return _fails("ggml_can_mul_mat(a, b)", a, b)
    return _fails("!ggml_is_transposed(a)", a) if a.nb[0] > a.nb[1] else None


def _mul_mat_id(t: Tensor) -> Failed:
    a, b, ids = t.src
    if a.ne[3] != 1 or b.ne[3] != 1 or ids.ne[2:] != (1, 1) or ids.ne[1] != b.ne[2]:
        return _fails("ids->ne[1] == b->ne[2]", ids, b)
    if a.ne[0] != b.ne[0]:
        return "as->ne[0] == b->ne[0]", (a.ne[0], b.ne[0])
    return None if ids.ne[0] % (b.ne[1] or 1) == 0 else ("ids->ne[0] % b->ne[1] == 0", (ids.ne[0], b.ne[1]))


def _scale(t: Tensor) -> Failed:
    a = t.src[0]
    whole = a.nb[0] == ggml.element_bytes(a) and a.nb[2] == a.nb[1] * a.ne[1] and a.nb[3] == a.nb[2] * a.ne[2]
    return None if whole else ("ggml_is_padded_1d(a)", a.ne)


def _copied(t: Tensor) -> Failed:
    a, b = t.src[0], t
    same = t.op == "CPY" and t.src[-1] is t
    return None if same or n_elements(a) == n_elements(b) else _fails("ggml_nelements(a) == ggml_nelements(b)", a, b)


def _set(t: Tensor) -> Failed:
    a, b = t.src
    return None if n_elements(a) >= n_elements(b) else _fails("ggml_nelements(a) >= ggml_nelements(b)", a, b)


def _reshape(t: Tensor) -> Failed:
    a = t.src[0]
    if n_elements(a) != n_elements(t):
        return "ggml_nelements(a) == ne0*ne1*ne2*ne3", (*a.ne, *t.ne)
    return None if is_contiguous(a) else ("ggml_is_contiguous(a)", a.ne)


def _view(t: Tensor) -> Failed:
    """ggml_new_tensor_impl: as much as the view would hold without gaps, from where it begins."""
    root = t.root
    if root is None or 0 in t.ne:
        return None
    n_bytes = ggml.row_size(t.type, t.ne[0]) * t.ne[1] * t.ne[2] * t.ne[3]
    if t.offset >= 0 and n_bytes + t.offset <= ggml.tensor_bytes(root):
        return None
    return "data_size + view_offs <= ggml_nbytes(view_src)", (*t.ne, *t.src[0].ne)


def _get_rows(t: Tensor) -> Failed:
    a, ids = t.src
    same = a.ne[2] == ids.ne[1] and a.ne[3] == ids.ne[2] and ids.ne[3] == 1
    return None if same else _fails("a->ne[2] == b->ne[1]", a, ids)


def _set_rows(t: Tensor) -> Failed:
    b, ids, a = t.src
    if a.ne[0] != b.ne[0] or a.ne[2:] != b.ne[2:]:
        return _fails("a->ne[0] == b->ne[0]", a, b)
    if b.ne[1] != ids.ne[0] or b.ne[2] % (ids.ne[1] or 1) or b.ne[3] % (ids.ne[2] or 1) or ids.ne[3] != 1:
        return _fails("b->ne[1] == c->ne[0]", b, ids)
    return None if is_contiguous_rows(a) and is_contiguous_rows(b) else ("ggml_is_contiguous_rows(b)", b.ne)


def _diag(t: Tensor) -> Failed:
    return None if t.src[0].ne[1] == 1 else ("a->ne[1] == 1", t.src[0].ne)


def _soft_max(t: Tensor) -> Failed:
    a = t.src[0]
    if not is_contiguous(a):
        return "ggml_is_contiguous(a)", a.ne
    for mask in t.src[1:2]:
        fits = mask.ne[0] == a.ne[0] and mask.ne[1] >= a.ne[1]
        if not fits or a.ne[2] % (mask.ne[2] or 1) or a.ne[3] % (mask.ne[3] or 1):
            return _fails("mask->ne[0] == a->ne[0]", mask, a)
    for sinks in t.src[2:]:
        if a.ne[2] != sinks.ne[0]:
            return "a->src[0]->ne[2] == sinks->ne[0]", (a.ne[2], sinks.ne[0])
    return None


def _rope(t: Tensor) -> Failed:
    a, positions, *factors = t.src
    if any(c.type != "f32" for c in factors):
        return "c->type == GGML_TYPE_F32", ()
    wanted = (a.ne[2], 4 * a.ne[2])
    return None if positions.ne[0] in wanted else ("a->ne[2] == b->ne[0]", (a.ne[2], positions.ne[0]))


def _glu(t: Tensor) -> Failed:
    for a in t.src:
        if not is_contiguous(a, 1):
            return "ggml_is_contiguous_1(a)", a.ne
    same = len(t.src) == 1 or t.src[0].ne == t.src[1].ne
    return None if same else _fails("ggml_are_same_shape(a, b)", *t.src)


def _flash_attn(t: Tensor) -> Failed:
    q, k, v = t.src[:3]
    if not _multiplies(k, q):
        return _fails("ggml_can_mul_mat(k, q)", k, q)
    if not q.ne[3] == k.ne[3] == v.ne[3]:
        return "q->ne[3] == k->ne[3]", (q.ne[3], k.ne[3], v.ne[3])
    rest = t.src[3:]
    if rest and getattr(t.param, "has_mask", False):
        mask = rest[0]
        if q.ne[2] % (mask.ne[2] or 1) or q.ne[3] % (mask.ne[3] or 1):
            return "q->ne[2] % mask->ne[2] == 0", (q.ne[2], mask.ne[2])
        rest = rest[1:]
    for sinks in rest:
        if q.ne[2] != sinks.ne[0]:
            return "a->src[0]->ne[2] == sinks->ne[0]", (q.ne[2], sinks.ne[0])
    return None


def _top_k(t: Tensor) -> Failed:
    return None if t.src[0].ne[0] >= t.ne[0] else ("a->ne[0] >= k", (t.src[0].ne[0], t.ne[0]))


def _indexer(t: Tensor) -> Failed:
    q, k, weights, mask = t.src
    fits = q.ne[0] == k.ne[0] and mask.ne[0] == k.ne[2] and q.ne[1] == weights.ne[0] and k.ne[1] == 1
    fits = fits and mask.ne[1] == q.ne[2] == weights.ne[1] and weights.ne[2] == mask.ne[2] == 1
    return None if fits and q.ne[3] == k.ne[3] == weights.ne[3] else _fails("q->ne[0] == k->ne[0]", q, k)


def _ssm_conv(t: Tensor) -> Failed:
    x, kernel = t.src
    if x.ne[3] != 1 or kernel.ne[2:] != (1, 1):
        return "ggml_is_3d(sx)", (*x.ne, *kernel.ne)
    if x.ne[1] != kernel.ne[1]:
        return "sx->ne[1] == d_inner", (x.ne[1], kernel.ne[1])
    return None if x.ne[0] >= kernel.ne[0] - 1 else ("n_t >= 0", (x.ne[0], kernel.ne[0]))


def _ssm_scan(t: Tensor) -> Failed:
    s, x, dt, a, b, c, ids = t.src
    head, n_head, n_tokens, n_seqs = x.ne
    if not (is_contiguous(s) and is_contiguous(dt) and is_contiguous(a)):
        return "ggml_is_contiguous(s)", s.ne
    if b.ne != c.ne:
        return _fails("ggml_are_same_shape(B, C)", b, c)
    if dt.ne != (n_head, n_tokens, n_seqs, 1):
        return "dt->ne[0] == n_head", (*dt.ne, n_head)
    if s.ne[1:3] != (head, n_head):
        return "s->ne[1] == head_dim", (*s.ne, head, n_head)
    if (b.ne[0], *b.ne[2:]) != (s.ne[0], n_tokens, n_seqs):
        return "B->ne[0] == d_state", (b.ne[0], s.ne[0])
    if ids.ne[0] != n_seqs or a.ne[1:] != (n_head, 1, 1):
        return "A->ne[1] == n_head", (a.ne[1], n_head)
    return None if a.ne[0] in (1, s.ne[0]) else ("A->ne[0] == d_state", (a.ne[0], s.ne[0]))


def _delta_net(t: Tensor) -> Failed:
    q, _, v, gate, beta, state = t.src
    if q.ne[1] == 0 or v.ne[1] % q.ne[1]:
        return "H_v % H_k == 0", (v.ne[1], q.ne[1])
    head, n_head, _, n_seqs = v.ne
    if gate.ne[0] not in (1, head) or beta.ne[0] != 1:
        return "g->ne[0] == 1 || g->ne[0] == S_v", (gate.ne[0], head)
    return None if state.ne == (head, head, n_head, n_seqs) else ("state->ne[0] == S_v", (*state.ne, head, n_head))


def _wkv(t: Tensor) -> Failed:
    *parts, state = t.src
    like = parts[0] if t.op != "RWKV_WKV7" else parts[2]
    for part in parts:
        if part.ne[:3] != like.ne[:3] and part.ne[2] != 1 and t.op != "RWKV_WKV6":
            return _fails("v->ne[0] == S && v->ne[1] == H && v->ne[2] == n_tokens", part, like)
    head, n_head = like.ne[:2]
    same = n_elements(state) == head * head * n_head * state.ne[1]
    return None if same else ("ggml_nelements(state) == S * S * H * n_seqs", (*state.ne, head, n_head))


def _hc_comb(t: Tensor) -> Failed:
    mixes, scale, base = t.src
    if t.ne[0] != 4:
        return "hc == 4", (t.ne[0], mixes.ne[0])
    return None if scale.ne[0] >= 3 and base.ne[0] == mixes.ne[0] else _fails("base->ne[0] == hc_mix_dim", base, mixes)


def _im2col(t: Tensor) -> Failed:
    return None if t.ne[1] > 0 else ("b too small compared to a", (*t.src[0].ne, *t.src[1].ne))


def _solve(t: Tensor) -> Failed:
    a, b = t.src
    return None if a.ne[0] == a.ne[1] and a.ne[1:] == b.ne[1:] else _fails("a->ne[1] == b->ne[1]", a, b)


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("ADD", "SUB", "MUL", "DIV"), _combined),
    **dict.fromkeys(("CPY", "CONT"), _copied),
    **dict.fromkeys(("RWKV_WKV6", "RWKV_WKV7", "GATED_LINEAR_ATTN"), _wkv),
    "REPEAT": _repeat,
    "ADD_ID": _add_id,
    "CONCAT": _concat,
    "MUL_MAT": _mul_mat,
    "MUL_MAT_ID": _mul_mat_id,
    "SCALE": _scale,
    "SET": _set,
    "RESHAPE": _reshape,
    "VIEW": _view,
    "GET_ROWS": _get_rows,
    "SET_ROWS": _set_rows,
    "DIAG": _diag,
    "SOFT_MAX": _soft_max,
    "ROPE": _rope,
    "GLU": _glu,
    "FLASH_ATTN_EXT": _flash_attn,
    "TOP_K": _top_k,
    "LIGHTNING_INDEXER": _indexer,
    "SSM_CONV": _ssm_conv,
    "SSM_SCAN": _ssm_scan,
    "GATED_DELTA_NET": _delta_net,
    "DSV4_HC_COMB": _hc_comb,
    "IM2COL": _im2col,
    "SOLVE_TRI": _solve,
}
