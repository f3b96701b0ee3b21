"""What every block costs wherever it may go: bytes of its parts, and what a step does with them.

A block has parts of its own (attention, norms, router, shared experts) with its cache, and a feed-forward
that may lie elsewhere: routed experts, or a dense one. It moves by projection (`up`, `gate`,
`down`), as the engine's own fit does it: each is one tensor, and the rest of the block stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

from autofit.domain.dtypes import GGML_TYPES_BY_NAME
from autofit.domain.machine import HOST_POOL
from autofit.domain.model import FeedForwardKind, Mixer
from autofit.domain.patterns import lazy_pattern
from autofit.domain.units import round_up
from autofit.domain.values import NamedTuple
from autofit.speed import LayerWork, Place, Read, n_kernels

from autofit_llama.graph.devices import DeviceRules, device_bytes
from autofit_llama.memory.weights import HOST_ALIGNMENT, INPUT, Weight
from autofit_llama.model.caches import Cache, CacheTensor
from autofit_llama.model.context import Context, cache_row_bytes
from autofit_llama.model.hparams import HParams

Kind = Literal["own", "experts", "dense"]

PROJECTIONS = (
    "up",
    "gate",
    "gate_up",
    "down",
)  #: in the order in which they leave a device: small copies first
_FFN = lazy_pattern(r"\.ffn_(up|down|gate|gate_up)(?:_(?:ch|)exps|(?=\.))")
_OUTPUT_KERNELS = 4
_VECTOR_HEAD = 256  #: fattn.cu: longer heads have no vector kernel, so that a quantized cache is unpacked first
_COMPRESSED = frozenset(("csa", "hca", "lid"))


class Part(NamedTuple):
    """Weights that move together, and what a step does with them."""

    kind: Kind
    projection: str  #: empty for a block's own part
    weights: tuple[Weight, ...]
    work: LayerWork


class Block(NamedTuple):
    """One block, or (the last) the output layer. `cache` tensors go with its own part.

    Blocks with the same `alike` cost the same wherever they go.
    """

    slot: int
    own: Part
    ffn: tuple[Part, ...]
    cache: tuple[CacheTensor, ...]
    alike: int

    @property
    def parts(self) -> tuple[Part, ...]:
        return (self.own, *self.ffn)


def blocks(hp: HParams, ctx: Context, weights: Iterable[Weight], caches: Iterable[Cache]) -> tuple[Block, ...]:
    """The blocks of the model in the engine's numbering, then the output layer.

    Input embeddings and rope factors are left out: they are where they are whatever the blocks do.
    """
    n = hp.n_layer_all + 1
    own: list[list[Weight]] = [[] for _ in range(n)]
    ffn: list[dict[tuple[Kind, str], list[Weight]]] = [{} for _ in range(n)]
    for weight in weights:
        if weight.slot == INPUT or weight.op == "ROPE" or weight.lazy or weight.slot >= n:
            continue
        found = _FFN.search(weight.name) if weight.group in ("experts", "dense") else None
        if found is None:
            own[weight.slot].append(weight)
        else:
            kind: Kind = "experts" if weight.group == "experts" else "dense"
            ffn[weight.slot].setdefault((kind, found[1]), []).append(weight)
    cached: list[list[tuple[Cache, CacheTensor]]] = [[] for _ in range(n)]
    for cache in caches:
        for tensor in cache.tensors:
            cached[tensor.il].append((cache, tensor))
    models: dict[object, Block] = {}
    found_blocks = []
    for slot in range(n):
        weights_of = [(kind, name, tuple(ffn[slot][kind, name])) for kind, name in sorted(ffn[slot], key=_leaving)]
        tensors = tuple(tensor for _, tensor in cached[slot])
        key = (
            slot == hp.n_layer_all or (hp.is_swa[slot], hp.n_head[slot], hp.n_expert_used[slot]),
            _signature(own[slot]),
            tuple((kind, name, _signature(weights)) for kind, name, weights in weights_of),
            tuple((cache.name, tensor.type, tensor.n_elements, tensor.n_rows) for cache, tensor in cached[slot]),
        )
        model = models.get(key)
        if model is None:
            models[key] = model = _block(hp, ctx, slot, len(models), own[slot], weights_of, cached[slot])
            found_blocks.append(model)
        else:
            found_blocks.append(_like(model, slot, own[slot], weights_of, tensors))
    return tuple(found_blocks)


_Groups = Sequence[tuple[Kind, str, tuple[Weight, ...]]]


def _leaving(key: tuple[Kind, str]) -> int:
    return PROJECTIONS.index(key[1])


def _signature(weights: Iterable[Weight]) -> tuple[object, ...]:
    """Equal for weights of two blocks that differ in the block's number only."""
    return tuple((weight.name.split(".", 2)[-1], weight.type, weight.ne) for weight in weights)


def _block(
    hp: HParams,
    ctx: Context,
    slot: int,
    alike: int,
    own: Sequence[Weight],
    groups: _Groups,
    cached: Sequence[tuple[Cache, CacheTensor]],
) -> Block:
    kinds = {kind for kind, _, _ in groups}
    rest = _own_weights(own, groups)
    feed_forward: FeedForwardKind = "experts" if "experts" in kinds else "dense" if kinds else "none"
    work = _own_work(hp, ctx, slot, rest, cached, feed_forward)
    parts = tuple(
        Part(kind, name, weights, _ffn_work(hp, slot, kind, weights)) for kind, name, weights in _moving(groups)
    )
    return Block(slot, Part("own", "", rest, work), parts, tuple(tensor for _, tensor in cached), alike)


def _like(model: Block, slot: int, own: Sequence[Weight], groups: _Groups, cache: tuple[CacheTensor, ...]) -> Block:
    """A block that is `model` but for its number; works are shared, which the speed model recognises."""
    parts = tuple(
        Part(part.kind, part.projection, weights, part.work)
        for part, (_, _, weights) in zip(model.ffn, _moving(groups), strict=True)
    )
    return Block(slot, Part("own", "", _own_weights(own, groups), model.own.work), parts, cache, model.alike)


def _moving(groups: _Groups) -> list[tuple[Kind, str, tuple[Weight, ...]]]:
    """What may leave the device; a dense feed-forward beside experts stays with the block."""
    has_experts = any(kind == "experts" for kind, _, _ in groups)
    return [group for group in groups if not (has_experts and group[0] == "dense")]


def _own_weights(own: Sequence[Weight], groups: _Groups) -> tuple[Weight, ...]:
    moving = _moving(groups)
    return (*own, *(weight for group in groups if group not in moving for weight in group[2]))


def reads(weights: Iterable[Weight]) -> tuple[Read, ...]:
    """Bytes and elements by storage type."""
    sums: dict[str, tuple[int, int]] = {}
    for weight in weights:
        n_bytes, n_elements = sums.get(weight.type, (0, 0))
        count = 1
        for dim in weight.ne:
            count *= dim
        sums[weight.type] = n_bytes + weight.n_bytes, n_elements + count
    return tuple(Read(name, n_bytes, count) for name, (n_bytes, count) in sums.items())


def weights_bytes(weights: Iterable[Weight], rules: DeviceRules | None) -> int:
    """Bytes of these weights in a device's buffer, or with `None` in the host's."""
    if rules is None:
        return sum(round_up(weight.n_bytes, HOST_ALIGNMENT) for weight in weights)
    return sum(device_bytes(rules, weight.type, weight.ne[0], weight.n_bytes) for weight in weights)


def cache_bytes(tensors: Iterable[CacheTensor], rules: DeviceRules | None) -> int:
    """Bytes of these cache tensors in a device's buffer, or with `None` in the host's."""
    if rules is None:
        return sum(round_up(tensor.n_bytes, HOST_ALIGNMENT) for tensor in tensors)
    return sum(device_bytes(rules, tensor.type, tensor.n_elements, tensor.n_bytes) for tensor in tensors)


def placed_work(
    found: Sequence[Block],
    layer_of: Callable[[int], str],
    home_of: Callable[[Weight], str],
    *,
    cache_on_host: bool = False,
) -> list[tuple[LayerWork, Place]]:
    """The blocks with their places, as the speed model takes them.

    `layer_of` names the place of a slot, `home_of` that of a weight; both are a device's id or `host`.
    What of a block lies elsewhere becomes an entry of its own behind it.
    """
    placed: list[tuple[LayerWork, Place]] = []
    made: dict[LayerWork, LayerWork] = {}
    known: dict[tuple[object, ...], list[tuple[LayerWork, Place]]] = {}
    for block in found:
        device = layer_of(block.slot)
        homes = [home_of(weight) for part in block.parts for weight in part.weights]
        key = block.alike, device, *homes
        entries = known.get(key)
        if entries is None:
            cache = HOST_POOL if cache_on_host and block.cache else None
            entries = known[key] = [
                (made.setdefault(work, work), place) for work, place in _placed_block(block, device, homes, cache)
            ]
        placed += entries
    return placed


def _placed_block(
    block: Block, device: str, homes: Sequence[str], cache: str | None
) -> Iterator[tuple[LayerWork, Place]]:
    """A block on `device`, then what of it lies elsewhere; `homes` has the place of every weight."""
    elsewhere: dict[tuple[str, Kind], list[Weight]] = {}
    here: dict[Kind, list[Weight]] = {"own": [], "experts": [], "dense": []}
    weights_of = ((part.kind, weight) for part in block.parts for weight in part.weights)
    for (kind, weight), home in zip(weights_of, homes, strict=True):
        if home == device:
            here[kind].append(weight)
        else:
            elsewhere.setdefault((home, kind), []).append(weight)
    yield _merged(block, here), Place(device, cache=cache)
    for (home, kind), weights in elsewhere.items():
        if kind == "experts":
            model = next(part.work for part in block.ffn if part.kind == "experts")
            work = LayerWork(
                experts=reads(weights),
                n_experts=model.n_experts,
                n_experts_used=model.n_experts_used,
                hidden_bytes=model.hidden_bytes,
            )
            yield work, Place(device, experts=home)
        else:
            work = LayerWork(dense=reads(weights), hidden_bytes=block.own.work.hidden_bytes)
            yield work, Place(home)
            yield _back(work), Place(device)


def _back(work: LayerWork) -> LayerWork:
    """Nothing to do, but to be back on the block's device for what follows."""
    return LayerWork(hidden_bytes=work.hidden_bytes)


def _merged(block: Block, here: Mapping[Kind, Sequence[Weight]]) -> LayerWork:
    own = block.own.work
    experts = next((part.work for part in block.ffn if part.kind == "experts"), None)
    return LayerWork(
        dense=reads([*here["own"], *here["dense"]]),
        experts=reads(here["experts"]) if experts else (),
        n_experts=experts.n_experts if experts else 0,
        n_experts_used=experts.n_experts_used if experts else 0,
        cache_token_bytes=own.cache_token_bytes,
        cache_is_quantized=own.cache_is_quantized,
        window_tokens=own.window_tokens,
        state_bytes=own.state_bytes,
        attention_flops=own.attention_flops,
        n_kernels=own.n_kernels,
        hidden_bytes=own.hidden_bytes,
        mask_bytes=own.mask_bytes,
        result_bytes=own.result_bytes,
        last_token_only=own.last_token_only,
    )


def _ffn_work(hp: HParams, slot: int, kind: Kind, weights: Sequence[Weight]) -> LayerWork:
    hidden_bytes = 4 * hp.n_embd
    if kind == "dense":
        return LayerWork(dense=reads(weights), hidden_bytes=hidden_bytes)
    return LayerWork(
        experts=reads(weights),
        n_experts=hp.n_expert,
        n_experts_used=hp.n_expert_used[slot],
        hidden_bytes=hidden_bytes,
    )


def _own_work(
    hp: HParams,
    ctx: Context,
    slot: int,
    weights: Sequence[Weight],
    cached: Sequence[tuple[Cache, CacheTensor]],
    feed_forward: FeedForwardKind,
) -> LayerWork:
    if slot == hp.n_layer_all:
        return LayerWork(
            dense=reads(weights), n_kernels=_OUTPUT_KERNELS, result_bytes=4 * hp.n_vocab, last_token_only=True
        )
    if not weights:
        return LayerWork(hidden_bytes=4 * hp.n_embd)  # a draft head that is not loaded
    mixer = _mixer(hp, slot, cached)
    head_k, head_v = hp.n_embd_head_k(slot), hp.n_embd_head_v(slot)
    quantized = any(GGML_TYPES_BY_NAME[tensor.type].block_elements > 1 for _, tensor in cached)
    unpacked = quantized and max(head_k, head_v) > _VECTOR_HEAD
    token_bytes = state_bytes = 0
    for cache, tensor in cached:
        if cache.name == "recurrent" or cache.name.endswith("_state"):
            state_bytes += tensor.n_bytes // max(1, ctx.n_seq_max * (1 + ctx.n_rs_seq))
            continue
        row = cache_row_bytes(tensor.type, tensor.n_elements) + (4 * tensor.n_elements if unpacked else 0)
        token_bytes += row * cache.n_cells // ctx.n_ctx_seq if cache.name in _COMPRESSED else row
    return LayerWork(
        dense=reads(weights),
        cache_token_bytes=token_bytes,
        cache_is_quantized=quantized and not unpacked,
        window_tokens=hp.n_swa if hp.is_swa[slot] and hp.n_swa else None,
        state_bytes=state_bytes,
        attention_flops=2 * hp.n_head[slot] * (head_k + head_v) if token_bytes else 0,
        n_kernels=n_kernels(
            mixer,
            feed_forward,
            n_norms=sum(weight.op == "MUL" and "norm" in weight.name for weight in weights),
            has_shared_experts=any(weight.group == "shared" for weight in weights),
        ),
        hidden_bytes=4 * hp.n_embd,
        mask_bytes=(4 if ctx.flash_attn == "off" else 2) if token_bytes else 0,
    )


def _mixer(hp: HParams, slot: int, cached: Sequence[tuple[Cache, CacheTensor]]) -> Mixer:
    names = {cache.name for cache, _ in cached}
    if "recurrent" in names:
        return "shortconv" if hp.n_shortconv_l_cache else "recurrent"
    if hp.is_mla:
        return "latent"
    return "sliding" if hp.is_swa[slot] else "full" if names else "none"
