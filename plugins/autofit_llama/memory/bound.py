"""An upper bound of the compute buffer for an architecture without a graph, from its tensors alone.

Every operation of the fattest block is taken to be alive at once, at its full width, next to every input of the graph.
The engine's allocator reuses memory, so its peak is lower; how much lower is not known, and the plan says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autofit.domain.model import TensorInfo

from autofit_llama.graph.buffers import ComputeBuffers
from autofit_llama.graph.devices import DeviceRules
from autofit_llama.model.context import Context
from autofit_llama.model.hparams import HParams

_F32 = 4
_COPIES = 4  #: GGML_SCHED_MAX_COPIES
_UNWEIGHTED = 3  #: results per weighted operation that have no weight of their own: activation, product, residual


def bound_buffers(
    hp: HParams,
    ctx: Context,
    tensors: Mapping[str, TensorInfo],
    homes: Mapping[str, int],
    devices: Sequence[DeviceRules],
    *,
    layer_bytes: Mapping[int, int],
    pipeline: bool,
) -> ComputeBuffers:
    """An upper bound of what llama-context.cpp:sched_reserve takes, the same for every device.

    `layer_bytes` is the cache of each block: with a quantized cache, or on the host, it is copied into the buffer.
    """
    n_tokens = ctx.n_tokens
    n_heads = max(hp.n_head, default=0)
    widths = _widths(hp, tensors)
    block = max(widths.values(), default=0) * n_tokens * _F32 * (1 + _UNWEIGHTED)
    mask = 2 * _F32 * n_tokens * ctx.n_ctx_seq * ctx.n_streams
    scores = 0 if ctx.flash_attn == "on" else 2 * _F32 * n_tokens * ctx.n_ctx_seq * max(n_heads, 1)
    logits = _F32 * max(ctx.n_outputs, 1) * (hp.n_vocab + 2 * hp.n_embd)
    inputs = _F32 * n_tokens * (hp.n_embd * 4 + 64)
    caches = 2 * max(layer_bytes.values(), default=0)
    host_weights = [tensor.n_bytes for name, tensor in tensors.items() if homes.get(name, 0) < 0]
    moved = 2 * max(host_weights, default=0) if ctx.op_offload else 0
    copies = _COPIES if pipeline and len(devices) > 1 else 1
    device = block + scores + logits + caches + copies * (mask + inputs)
    first = device + moved
    return ComputeBuffers(
        device_bytes=tuple(first if i == 0 else device for i in range(len(devices))),
        host_bytes=copies * (mask + inputs)
        + (0 if devices else device)
        + (block + scores + logits if host_weights else 0),
        flash_attn=ctx.flash_attn != "off",
        n_copies=copies,
        n_splits=0,
    )


def _widths(hp: HParams, tensors: Mapping[str, TensorInfo]) -> dict[str, int]:
    """Output elements of all matrices of a block, per token: an expert matrix counts once for each expert used."""
    widths: dict[str, int] = {}
    n_used = max((n for n in hp.n_expert_used), default=1)
    for name, tensor in tensors.items():
        if not name.startswith("blk."):
            continue
        block = name.split(".", 2)[1]
        rows = max(tensor.shape[-2] if len(tensor.shape) > 1 else 0, tensor.ne[0])
        widths[block] = widths.get(block, 0) + rows * (max(n_used, 1) if len(tensor.shape) > 2 else 1)
    return widths
