"""ggml in shapes: the tensor of a compute graph and the functions that make one.

Every function stands for the function of the same name in ggml/src/ggml.c and gives its result exactly the
type, dimensions, strides, sources and view root that ggml gives; there is no data. These are the facts that
the scheduler and the allocator decide on, so what they need is here and nothing else.
"""

from __future__ import annotations

from autofit.domain.dtypes import GGML_TYPES_BY_NAME
from autofit.domain.values import NamedTuple

#: elements and bytes of a block, by type name
BLOCKS = {t.name: (t.block_elements, t.block_bytes) for t in GGML_TYPES_BY_NAME.values()}

Shape = tuple[int, int, int, int]

NONE = "NONE"
VIEW_OPS = frozenset({"VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE"})
HOST = -1  #: `home` of a tensor in host memory
HOST_REPACKED = -2  #: host memory in a CPU-only layout: no operation moves away from it
HOST_PINNED = -3  #: host memory pinned for the first device; the same as HOST for a graph

_strides: dict[tuple[str, Shape], Shape] = {}


def contiguous_strides(type_name: str, ne: Shape) -> Shape:
    """Byte strides of a tensor without gaps (ggml.c:ggml_new_tensor_impl)."""
    key = (type_name, ne)
    nb = _strides.get(key)
    if nb is None:
        per_block, block_bytes = BLOCKS[type_name]
        nb1 = block_bytes * (ne[0] // per_block)
        nb = (block_bytes, nb1, nb1 * ne[1], nb1 * ne[1] * ne[2])
        if len(_strides) > 50_000:
            _strides.clear()
        _strides[key] = nb
    return nb


class Tensor:
    """One tensor: a weight, a cache, an input, or the result of an operation.

    `ne` and `nb` are elements and byte strides of the four dimensions, innermost first. `root` is the tensor
    whose memory a view shares. `home` is where it lives before the graph runs: a device index, `HOST`,
    `HOST_REPACKED`, or `None` for what the graph allocator has to place. `param` holds the one operation
    parameter that rules ask for. The last slots belong to the graph, the scheduler and the allocator.
    """

    __slots__ = (
        "addr",
        "dev",
        "held",
        "home",
        "is_input",
        "is_output",
        "is_weight",
        "kids",
        "n_bytes",
        "name",
        "nb",
        "ne",
        "offset",
        "op",
        "param",
        "root",
        "seen",
        "src",
        "type",
        "uses",
        "views",
    )  # fmt: skip

    def __init__(
        self,
        op: str,
        type_name: str,
        ne: Shape,
        src: list[Tensor] | None = None,
        *,
        nb: Shape | None = None,
        root: Tensor | None = None,
        offset: int = 0,
        param: object = None,
    ) -> None:
        self.op = op
        self.type = type_name
        self.ne = ne
        self.nb = nb or _strides.get((type_name, ne)) or contiguous_strides(type_name, ne)
        self.src: list[Tensor] = src or []
        self.root = root
        self.offset = offset
        self.home: int | None = None
        self.is_weight = self.is_input = self.is_output = False
        self.param = param
        self.name = ""
        self.seen = False
        self.uses = 0
        self.dev = -1
        self.kids = self.views = 0
        self.held = False
        self.addr = 0
        self.n_bytes = -1

    def __repr__(self) -> str:
        return f"<{self.op} {self.name} {self.type} {list(self.ne)}>"


def tensor_bytes(t: Tensor) -> int:
    """Bytes from the first to the last element, gaps included (ggml.c:ggml_nbytes)."""
    n0, n1, n2, n3 = t.ne
    if n0 <= 0 or n1 <= 0 or n2 <= 0 or n3 <= 0:
        return 0
    b0, b1, b2, b3 = t.nb
    per_block, block_bytes = BLOCKS[t.type]
    first = block_bytes + (n0 - 1) * b0 if per_block == 1 else n0 * b0 // per_block
    return first + (n1 - 1) * b1 + (n2 - 1) * b2 + (n3 - 1) * b3


def n_elements(t: Tensor) -> int:
    return t.ne[0] * t.ne[1] * t.ne[2] * t.ne[3]


def n_rows(t: Tensor) -> int:
    return t.ne[1] * t.ne[2] * t.ne[3]


def element_bytes(t: Tensor) -> int:
    return BLOCKS[t.type][1]


def is_contiguous(t: Tensor, first: int = 0, last: int = 4) -> bool:
    """No gaps between dimensions `first` and `last` (ggml.c:ggml_is_contiguous_m_n; 0, 4 is
    ggml_is_contiguous).
    """
    per_block, block_bytes = BLOCKS[t.type]
    ne, nb = t.ne, t.nb
    if ne[0] != per_block and nb[0] != block_bytes:
        return False
    expected = block_bytes * (ne[0] // per_block)
    for i in range(1, last):
        if i > first:
            if ne[i] != 1 and nb[i] != expected:
                return False
            expected *= ne[i]
        else:
            expected = ne[i] * nb[i]
    return True


def is_contiguous_rows(t: Tensor) -> bool:
    per_block, block_bytes = BLOCKS[t.type]
    return t.ne[0] == per_block or t.nb[0] == block_bytes


def row_size(type_name: str, n: int) -> int:
    """Bytes of `n` elements in a row (ggml_row_size)."""
    per_block, block_bytes = BLOCKS[type_name]
    return block_bytes * n // per_block


def is_quantized(type_name: str) -> bool:
    return BLOCKS[type_name][0] > 1


# new tensors


def new(type_name: str, *dims: int) -> Tensor:
    return Tensor(NONE, type_name, shape(*dims))


def shape(n0: int, n1: int = 1, n2: int = 1, n3: int = 1) -> Shape:
    return (n0, n1, n2, n3)


def _like(op: str, a: Tensor, src: list[Tensor], param: object = None) -> Tensor:
    """A new contiguous tensor of `a`'s type and dimensions (ggml_dup_tensor)."""
    return Tensor(op, a.type, a.ne, src, param=param)


def _view_tensor(op: str, a: Tensor, src: list[Tensor], param: object = None) -> Tensor:
    """The whole of `a` again, in place (ggml_view_tensor)."""
    return Tensor(op, a.type, a.ne, src, nb=a.nb, root=a.root or a, offset=a.offset, param=param)


# views


def view(a: Tensor, dims: tuple[int, ...], strides: tuple[int, ...] = (), offset: int = 0) -> Tensor:
    """ggml_view_1d ... ggml_view_4d: `dims` elements, `strides` bytes of dimensions 1..., `offset` bytes."""
    ne = shape(*dims)
    b0 = BLOCKS[a.type][1]
    if len(dims) == 1:
        nb = contiguous_strides(a.type, ne)
    else:
        b1 = strides[0]
        b2 = strides[1] if len(dims) > 2 else b1 * ne[1]
        b3 = strides[2] if len(dims) > 3 else b2 * ne[2]
        nb = (b0, b1, b2, b3)
    return Tensor("VIEW", a.type, ne, [a], nb=nb, root=a.root or a, offset=a.offset + offset)


def reshape(a: Tensor, *dims: int) -> Tensor:
    return Tensor("RESHAPE", a.type, shape(*dims), [a], root=a.root or a, offset=a.offset)


def permute(a: Tensor, *axes: int) -> Tensor:
    """Dimension i of `a` becomes dimension `axes[i]`."""
    ne, nb = [0, 0, 0, 0], [0, 0, 0, 0]
    for i, axis in enumerate(axes):
        ne[axis], nb[axis] = a.ne[i], a.nb[i]
    t = _view_tensor("PERMUTE", a, [a])
    t.ne, t.nb = (ne[0], ne[1], ne[2], ne[3]), (nb[0], nb[1], nb[2], nb[3])
    return t


def transpose(a: Tensor) -> Tensor:
    t = _view_tensor("TRANSPOSE", a, [a])
    t.ne, t.nb = (a.ne[1], a.ne[0], a.ne[2], a.ne[3]), (a.nb[1], a.nb[0], a.nb[2], a.nb[3])
    return t


# copies


def cont(a: Tensor, *dims: int) -> Tensor:
    """ggml_cont, or ggml_cont_1d ... ggml_cont_4d with `dims`."""
    return Tensor("CONT", a.type, shape(*dims) if dims else a.ne, [a])


def dup(a: Tensor) -> Tensor:
    return _like("DUP", a, [a])


def cast(a: Tensor, type_name: str) -> Tensor:
    t = Tensor("CPY", type_name, a.ne, [a])
    t.src.append(t)  # its own second source, as in ggml_cast
    return t


def cpy(a: Tensor, destination: Tensor) -> Tensor:
    return _view_tensor("CPY", destination, [a, destination])


def set_rows(destination: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
    return _view_tensor("SET_ROWS", destination, [rows, ids, destination])


def set_(a: Tensor, b: Tensor, *, inplace: bool = False) -> Tensor:
    return (_view_tensor if inplace else _like)("SET", a, [a, b])


def get_rows(a: Tensor, ids: Tensor) -> Tensor:
    type_name = "i32" if a.type == "i32" else "f32"
    return Tensor("GET_ROWS", type_name, (a.ne[0], ids.ne[0], ids.ne[1], ids.ne[2]), [a, ids])


def concat(a: Tensor, b: Tensor, dim: int) -> Tensor:
    ne = list(a.ne)
    ne[dim] += b.ne[dim]
    return Tensor("CONCAT", a.type, (ne[0], ne[1], ne[2], ne[3]), [a, b], param=dim)


def repeat(a: Tensor, like: Tensor) -> Tensor:
    return Tensor("REPEAT", a.type, like.ne, [a])


def repeat_4d(a: Tensor, n0: int, n1: int, n2: int, n3: int) -> Tensor:
    return Tensor("REPEAT", a.type, (n0, n1, n2, n3), [a])


def pad(a: Tensor, p0: int, p1: int = 0, p2: int = 0, p3: int = 0) -> Tensor:
    """ggml_pad and ggml_pad_ext: how many elements each dimension grows by, on both sides together."""
    return Tensor("PAD", a.type, (a.ne[0] + p0, a.ne[1] + p1, a.ne[2] + p2, a.ne[3] + p3), [a])


# arithmetic


def add(a: Tensor, b: Tensor, *, inplace: bool = False) -> Tensor:
    return _view_tensor("ADD", a, [a, b]) if inplace else Tensor("ADD", a.type, a.ne, [a, b])


def sub(a: Tensor, b: Tensor) -> Tensor:
    return Tensor("SUB", a.type, a.ne, [a, b])


def mul(a: Tensor, b: Tensor) -> Tensor:
    return Tensor("MUL", a.type, a.ne, [a, b])


def div(a: Tensor, b: Tensor) -> Tensor:
    return Tensor("DIV", a.type, a.ne, [a, b])


def add_id(a: Tensor, b: Tensor, ids: Tensor) -> Tensor:
    return Tensor("ADD_ID", a.type, a.ne, [a, b, ids])


def scale(a: Tensor, *, inplace: bool = False) -> Tensor:
    """ggml_scale, ggml_scale_bias."""
    return (_view_tensor if inplace else _like)("SCALE", a, [a])


def clamp(a: Tensor, *, inplace: bool = False) -> Tensor:
    return (_view_tensor if inplace else _like)("CLAMP", a, [a])


def sqr(a: Tensor) -> Tensor:
    return _like("SQR", a, [a])


def sqrt(a: Tensor) -> Tensor:
    return _like("SQRT", a, [a])


def log(a: Tensor) -> Tensor:
    return _like("LOG", a, [a])


def fill(a: Tensor) -> Tensor:
    return _like("FILL", a, [a])


def unary(a: Tensor, kind: str) -> Tensor:
    """silu, gelu, gelu_erf, gelu_quick, relu, sigmoid, tanh, exp, softplus, neg, sgn, round, xielu, ..."""
    return Tensor("UNARY", a.type, a.ne, [a], param=kind)


def silu(a: Tensor) -> Tensor:
    return Tensor("UNARY", a.type, a.ne, [a], param="silu")


def gelu(a: Tensor) -> Tensor:
    return Tensor("UNARY", a.type, a.ne, [a], param="gelu")


def relu(a: Tensor) -> Tensor:
    return Tensor("UNARY", a.type, a.ne, [a], param="relu")


def sigmoid(a: Tensor) -> Tensor:
    return Tensor("UNARY", a.type, a.ne, [a], param="sigmoid")


def tanh(a: Tensor) -> Tensor:
    return Tensor("UNARY", a.type, a.ne, [a], param="tanh")


def exp(a: Tensor) -> Tensor:
    return Tensor("UNARY", a.type, a.ne, [a], param="exp")


def softplus(a: Tensor) -> Tensor:
    return Tensor("UNARY", a.type, a.ne, [a], param="softplus")


def cumsum(a: Tensor) -> Tensor:
    return _like("CUMSUM", a, [a])


def tri(a: Tensor) -> Tensor:
    """The triangle above or below the diagonal, with it or without."""
    return _like("TRI", a, [a])


def diag(a: Tensor) -> Tensor:
    return Tensor("DIAG", a.type, (a.ne[0], a.ne[0], a.ne[2], a.ne[3]), [a])


def solve_tri(a: Tensor, b: Tensor) -> Tensor:
    return Tensor("SOLVE_TRI", "f32", b.ne, [a, b])


def neg(a: Tensor) -> Tensor:
    return Tensor("UNARY", a.type, a.ne, [a], param="neg")


def glu(a: Tensor, gate: Tensor | None = None, kind: str = "swiglu") -> Tensor:
    """Gated unit: `kind` (swiglu, geglu, reglu, swiglu_oai, swiglu_clamp, ...) of two tensors, or of one's
    halves.
    """
    if gate is None:
        return Tensor("GLU", a.type, (a.ne[0] // 2, a.ne[1], a.ne[2], a.ne[3]), [a], param=kind)
    return Tensor("GLU", a.type, a.ne, [a, gate], param=kind)


def norm(a: Tensor) -> Tensor:
    return Tensor("NORM", a.type, a.ne, [a])


def rms_norm(a: Tensor) -> Tensor:
    return Tensor("RMS_NORM", a.type, a.ne, [a])


def l2_norm(a: Tensor) -> Tensor:
    return Tensor("L2_NORM", a.type, a.ne, [a])


def group_norm(a: Tensor) -> Tensor:
    return Tensor("GROUP_NORM", a.type, a.ne, [a])


def sum_rows(a: Tensor) -> Tensor:
    return Tensor("SUM_ROWS", a.type, (1, a.ne[1], a.ne[2], a.ne[3]), [a])


def mean(a: Tensor) -> Tensor:
    return Tensor("MEAN", "f32", (1, a.ne[1], a.ne[2], a.ne[3]), [a])


def pool_2d(a: Tensor, k0: int, k1: int) -> Tensor:
    """ggml_pool_2d in steps as wide as its kernel."""
    return Tensor("POOL_2D", "f32", (a.ne[0] // k0, a.ne[1] // k1, a.ne[2], a.ne[3]), [a])


def arange(n: int) -> Tensor:
    return Tensor("ARANGE", "f32", (n, 1, 1, 1))


# matrices, attention


def mul_mat(a: Tensor, b: Tensor, *, hadamard: bool = False) -> Tensor:
    return Tensor(
        "MUL_MAT", "f32", (a.ne[1], b.ne[1], b.ne[2], b.ne[3]), [a, b], param="hadamard" if hadamard else None
    )


def mul_mat_id(experts: Tensor, b: Tensor, ids: Tensor) -> Tensor:
    return Tensor("MUL_MAT_ID", "f32", (experts.ne[1], ids.ne[0], b.ne[2], 1), [experts, b, ids])


def soft_max(a: Tensor, mask: Tensor | None = None, sinks: Tensor | None = None, *, plain: bool = True) -> Tensor:
    """`plain`: without scale and ALiBi, which a fusion asks for."""
    return Tensor("SOFT_MAX", a.type, a.ne, [t for t in (a, mask, sinks) if t is not None], param=plain)


class AttentionParams(NamedTuple):
    """What kernels choose by; `n_kv_max` cells at most are attended to by a query (0: no bound)."""

    has_alibi: bool
    has_soft_cap: bool
    n_kv_max: int
    has_mask: bool


def flash_attn_ext(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    *,
    has_alibi: bool = False,
    has_soft_cap: bool = False,
    n_kv_max: int = 0,
) -> Tensor:
    sources = [t for t in (q, k, v, mask, sinks) if t is not None]
    param = AttentionParams(has_alibi, has_soft_cap, n_kv_max, mask is not None)
    return Tensor("FLASH_ATTN_EXT", "f32", (v.ne[0], q.ne[2], q.ne[1], q.ne[3]), sources, param=param)


class Rotation(NamedTuple):
    """Which elements of each row ROPE rotates: `n_dims` from `n_offs` on; `None`: as many as the first layer's heads,
    which is what most graphs pass (llama-graph.cpp:llm_graph_context, `n_rot`)."""

    n_dims: int | None = None
    n_offs: int = 0


USUAL = Rotation()


def rope(
    a: Tensor,
    positions: Tensor,
    factors: Tensor | None = None,
    *,
    inplace: bool = False,
    rotation: Rotation = USUAL,
) -> Tensor:
    """ggml_rope_ext, ggml_rope_multi, ggml_rope_ext_back, ggml_rope_set_offset."""
    src = [a, positions] if factors is None else [a, positions, factors]
    if inplace:
        return _view_tensor("ROPE", a, src, rotation)
    return Tensor("ROPE", a.type, a.ne, src, param=rotation)


def argsort(a: Tensor) -> Tensor:
    return Tensor("ARGSORT", "i32", a.ne, [a])


def argsort_top_k(a: Tensor, k: int) -> Tensor:
    t = argsort(a)
    return view(t, (k, t.ne[1], t.ne[2], t.ne[3]), t.nb[1:])


def top_k(a: Tensor, k: int) -> Tensor:
    return Tensor("TOP_K", "i32", (k, a.ne[1], a.ne[2], a.ne[3]), [a])


def lightning_indexer(q: Tensor, k: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    return Tensor("LIGHTNING_INDEXER", "f32", (k.ne[2], q.ne[2], 1, q.ne[3]), [q, k, weights, mask])


# recurrence


def ssm_conv(x: Tensor, kernel: Tensor) -> Tensor:
    ne = (kernel.ne[1], x.ne[0] - kernel.ne[0] + 1, x.ne[2], 1)
    return Tensor("SSM_CONV", "f32", ne, [x, kernel])


def ssm_scan(
    s: Tensor, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, ids: Tensor, snapshots: int = 1
) -> Tensor:
    n = n_elements(x) + snapshots * s.ne[0] * s.ne[1] * s.ne[2] * ids.ne[0]
    return Tensor("SSM_SCAN", "f32", (n, 1, 1, 1), [s, x, dt, a, b, c, ids], param=snapshots)


def gated_delta_net(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, beta: Tensor, state: Tensor, snapshots: int = 1
) -> Tensor:
    head, n_head, n_tokens, n_seqs = v.ne
    ne = (head * n_head, n_tokens * n_seqs + snapshots * head * n_seqs, 1, 1)
    return Tensor("GATED_DELTA_NET", "f32", ne, [q, k, v, gate, beta, state], param=snapshots)


def _wkv(op: str, k: Tensor, state: Tensor, src: list[Tensor]) -> Tensor:
    head, n_head, n_tokens, _ = k.ne
    return Tensor(op, "f32", (head * n_head, n_tokens + head * state.ne[1], 1, 1), src)


def rwkv_wkv6(k: Tensor, v: Tensor, r: Tensor, tf: Tensor, td: Tensor, state: Tensor) -> Tensor:
    return _wkv("RWKV_WKV6", k, state, [k, v, r, tf, td, state])


def rwkv_wkv7(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor) -> Tensor:
    return _wkv("RWKV_WKV7", k, state, [r, w, k, v, a, b, state])


def gated_linear_attn(k: Tensor, v: Tensor, q: Tensor, gate: Tensor, state: Tensor) -> Tensor:
    return _wkv("GATED_LINEAR_ATTN", k, state, [k, v, q, gate, state])


# hyper-connections of deepseek4


def dsv4_hc_comb(mixes: Tensor, scales: Tensor, base: Tensor) -> Tensor:
    hc = next((i for i in range(1, mixes.ne[0] + 1) if (2 + i) * i == mixes.ne[0]), 0)
    return Tensor("DSV4_HC_COMB", "f32", (hc, hc, mixes.ne[1], 1), [mixes, scales, base])


def dsv4_hc_pre(x: Tensor, weights: Tensor) -> Tensor:
    return Tensor("DSV4_HC_PRE", "f32", (x.ne[0], x.ne[2], 1, 1), [x, weights])


def dsv4_hc_post(x: Tensor, residual: Tensor, post: Tensor, comb: Tensor | None) -> Tensor:
    src = [x, residual, post] if comb is None else [x, residual, post, comb]
    return Tensor("DSV4_HC_POST", "f32", (x.ne[0], residual.ne[1], x.ne[1], 1), src)


# convolution


def _conv_size(n: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def im2col_1d(kernel: Tensor, x: Tensor, stride: int, padding: int, dilation: int, type_name: str) -> Tensor:
    n = _conv_size(x.ne[0], kernel.ne[0], stride, padding, dilation)
    return Tensor("IM2COL", type_name, (kernel.ne[1] * kernel.ne[0], n, x.ne[2], 1), [kernel, x])


def conv_1d(kernel: Tensor, x: Tensor, stride: int, padding: int, dilation: int) -> Tensor:
    cols = im2col_1d(kernel, x, stride, padding, dilation, "f32" if kernel.type == "bf16" else "f16")
    y = mul_mat(
        reshape(cols, cols.ne[0], cols.ne[2] * cols.ne[1]),
        reshape(kernel, kernel.ne[0] * kernel.ne[1], kernel.ne[2]),
    )
    return reshape(y, cols.ne[1], kernel.ne[2], cols.ne[2])


def conv_1d_half(kernel: Tensor, x: Tensor, stride: int, dilation: int) -> Tensor:
    """ggml_conv_1d_ph: padded by half the kernel."""
    return conv_1d(kernel, x, stride, kernel.ne[0] // 2, dilation)


def conv_1d_depthwise_half(kernel: Tensor, x: Tensor, stride: int, dilation: int) -> Tensor:
    """ggml_conv_1d_dw_ph: one kernel per channel, padded by half of it."""
    x = reshape(x, x.ne[0], 1, x.ne[1], x.ne[2])
    n = _conv_size(x.ne[0], kernel.ne[0], stride, kernel.ne[0] // 2, dilation)
    cols = Tensor(
        "IM2COL",
        "f32" if kernel.type == "bf16" else "f16",
        (kernel.ne[1] * kernel.ne[0], n, x.ne[2], x.ne[3]),
        [kernel, x],
    )
    y = mul_mat(cols, kernel)
    return reshape(y, y.ne[0], y.ne[2])
