"""What the CPU back end asserts of an operation while it computes: types, rotated elements, groups.

The engine starts with such a file and ends with the first tokens. Other devices compute what the CPU does not, so only
nodes that lie there are looked at. A rule stands for the assertions of the operation in ggml/src/ggml-cpu.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from autofit.domain.text import printable
from autofit.errors import EngineRefusalError

from autofit_llama.graph.assertions import operation
from autofit_llama.graph.ggml import Rotation, Tensor, is_quantized
from autofit_llama.model.aborts import aborts
from autofit_llama.model.hparams import HParams

Rule = Callable[[Tensor, HParams], EngineRefusalError | None]


def check_placed(nodes: Iterable[Tensor], hp: HParams, cpu: int) -> None:
    """Refuse a graph that leaves to the CPU, whose number is `cpu`, what it does not compute.

    Raises:
        EngineRefusalError: with the assertion, and the types or the keys.
    """
    for node in nodes:
        if node.dev == cpu and (rule := RULES.get(node.op)) is not None and (refusal := rule(node, hp)) is not None:
            raise refusal


# -- types ------------------------------------------------------------------------------------------------------------

_FLOATS = frozenset(("f32", "f16", "bf16"))
_SINGLE = frozenset(("f32",))


def _types(node: Tensor, hp: HParams) -> EngineRefusalError:
    tensors = [t for t in node.src if t is not node]
    weights = [t.name for t in tensors if t.is_weight and t.type != "f32"]
    types = ", ".join(t.type for t in tensors)
    arch = printable(hp.arch, 40)
    return EngineRefusalError(
        f"llama.cpp aborts with this {arch} model at {operation(node)} on the CPU: unsupported types: {types}",
        hint=f"keep its layers on a GPU, or convert {printable(weights[0], 60) if weights else 'the model'} to f32",
    )


def _of_two(node: Tensor, hp: HParams) -> EngineRefusalError | None:
    """ggml-cpu/binary-ops.cpp:binary_op; ggml-cpu/ops.cpp:ggml_compute_forward_add has one more for quantized sums."""
    a, b = node.src[0].type, node.src[1].type
    if a in _FLOATS:
        return None if b in (a, "f32") else _types(node, hp)
    return None if node.op == "ADD" and is_quantized(a) and b == "f32" else _types(node, hp)


def _of_one(node: Tensor, hp: HParams, *, takes: frozenset[str]) -> EngineRefusalError | None:
    return None if node.src[0].type in takes else _types(node, hp)


def _of_all(node: Tensor, hp: HParams, *, takes: frozenset[str]) -> EngineRefusalError | None:
    return None if all(t.type in takes for t in node.src) else _types(node, hp)


# -- numbers ----------------------------------------------------------------------------------------------------------


def _rotation(node: Tensor, hp: HParams) -> EngineRefusalError | None:
    """ggml-cpu/ops.cpp:ggml_compute_forward_rope_flt, which skips what is rotated: never ends with nothing."""
    rotation = node.param
    assert isinstance(rotation, Rotation)
    n_dims = hp.n_rot(0) if rotation.n_dims is None else rotation.n_dims
    fields = ["n_rot_full", "n_rot_swa"]
    if n_dims == 0 and rotation.n_offs < node.ne[0]:
        return aborts(hp, f"{operation(node)} on the CPU, which rotates no element", keys=fields, how="hangs")
    failed = _fails_to_rotate(node, hp, n_dims, rotation.n_offs)
    if failed is None:
        return None
    return aborts(hp, f"{operation(node)} on the CPU: GGML_ASSERT({failed[0]})", failed[1], keys=fields)


def _fails_to_rotate(node: Tensor, hp: HParams, n_dims: int, n_offs: int) -> tuple[str, tuple[int, ...]] | None:
    if n_dims > node.ne[0]:
        return "n_dims <= ne0", (n_dims, node.ne[0])
    if n_dims % 2:
        return "n_dims % 2 == 0", (n_dims,)
    if n_offs % 2:
        return "n_offs % 2 == 0", (n_dims, node.ne[0])
    if n_offs + n_dims > node.ne[0]:
        return "n_offs + n_dims <= ne0", (n_dims, node.ne[0])
    return _in_sections(hp, node.ne[0]) if node.src[1].ne[0] > node.ne[2] else None


def _in_sections(hp: HParams, width: int) -> tuple[str, tuple[int, ...]] | None:
    """Of heads with several positions a token (ggml-cpu/ops.cpp:ggml_mrope_cache_init)."""
    if max(hp.rope_sections[:3]) <= 0:
        return "sections[0] > 0 || sections[1] > 0 || sections[2] > 0", ()
    return None if sum(hp.rope_sections) <= width else ("sect_dims <= ne0", (width,))


def _scan(node: Tensor, hp: HParams) -> EngineRefusalError | None:
    """ggml-cpu/ops.cpp:ggml_compute_forward_ssm_scan_f32."""
    if any(t.type != "f32" for t in node.src[:-1]):  # the last are numbers of sequences
        return _types(node, hp)
    if node.src[1].ne[1] % (node.src[4].ne[1] or 1) == 0:
        return None
    what = f"{operation(node)} on the CPU: GGML_ASSERT(nh % ng == 0)"
    return aborts(hp, what, keys=["ssm_dt_rank", "ssm_n_group"])


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("ADD", "SUB", "MUL", "DIV"), _of_two),
    **dict.fromkeys(("UNARY", "SQR", "SQRT", "LOG"), partial(_of_one, takes=_FLOATS)),  # ggml-cpu/unary-ops.cpp
    **dict.fromkeys(("CLAMP", "FILL"), partial(_of_one, takes=frozenset(("f32", "f16")))),
    **dict.fromkeys(
        ("NORM", "RMS_NORM", "GROUP_NORM", "L2_NORM", "SOFT_MAX", "SUM_ROWS", "MEAN", "CUMSUM", "TRI", "PAD", "DIAG"),
        partial(_of_one, takes=_SINGLE),
    ),
    **dict.fromkeys(("SSM_CONV", "SOLVE_TRI"), partial(_of_all, takes=_SINGLE)),
    "SCALE": partial(_of_one, takes=frozenset(("f32", "bf16"))),
    "REPEAT": partial(_of_one, takes=_FLOATS | {"i16", "i32"}),
    "ROPE": _rotation,
    "SSM_SCAN": _scan,
}
