"""Which device holds which block, and which buffer each tensor goes to.

The layer rule of llama_model_base::load_tensors (src/llama-model.cpp), the choice of a buffer type of
llama_model_loader::create_tensor and select_weight_buft (src/llama-model-loader.cpp).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from struct import pack, unpack

from autofit.domain.values import dataclass
from autofit.errors import EngineRefusalError

from autofit_llama.engine.vocabulary import Operation, Override
from autofit_llama.graph.devices import DeviceRules
from autofit_llama.graph.ggml import HOST, HOST_PINNED, HOST_REPACKED, Tensor
from autofit_llama.model.hparams import HParams


def f32(x: float) -> float:
    """`x` rounded to single precision."""
    return float(unpack("<f", pack("<f", x))[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The device of every block (`HOST` for the CPU), and of the output layer."""

    blocks: tuple[int, ...]
    output: int

    def of(self, slot: int) -> int:
        """The device of a slot: -1 is the input layer, `len(blocks)` the output layer."""
        if slot < 0:
            return HOST
        return self.blocks[slot] if slot < len(self.blocks) else self.output


def place_layers(
    n_layer_all: int, n_gpu_layers: int, splits: Sequence[float], n_devices: int | None = None
) -> Placement:
    """The last `n_gpu_layers` of the blocks and the output layer, dealt out in the proportions of `splits`.

    `splits` are `-ts`, or the free bytes of each device when that is unset or all zero; negative
    `n_gpu_layers` means all. Every step is in single precision: with nearly equal splits doubles would move
    a block.
    """
    n_devices = len(splits) if n_devices is None else n_devices
    n_layers = n_layer_all + 1
    n_gpu = n_gpu_layers if n_gpu_layers >= 0 else n_layers
    start = max(n_layers - n_gpu, 0)
    n_active = min(n_gpu, n_layers) if n_devices else 0
    sums = list(accumulate((f32(x) for x in (*splits, *[0.0] * n_devices)[:n_devices]), lambda a, b: f32(a + b)))
    points = [f32(x / sums[-1]) if sums[-1] else float("nan") for x in sums]

    def device(il: int) -> int:
        if il < start or il - start >= n_active:
            return HOST
        x = f32(f32(il - start) / n_active)
        return next((d for d, point in enumerate(points) if x < point), n_devices - 1)

    return Placement(blocks=tuple(map(device, range(n_layer_all))), output=device(n_layer_all))


#: common/common.h: LLM_FFN_EXPS_REGEX, LLM_FFN_DENSE_REGEX; the block number is compared as text, as a
#: pattern would
_EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
_BLOCK_EXPERTS = r"blk\.(0|[1-9][0-9]*)\.ffn_(?:up|down|gate_up|gate)_(?:ch|)exps"
_BLOCK_FFN = r"blk\.(0|[1-9][0-9]*)\.ffn_(?:up|down|gate)\."


def matcher(override: Override) -> Callable[[str], bool]:
    """Whether a tensor's name is meant by `override`.

    Raises:
        EngineRefusalError, UsageError: the pattern is invalid, or too costly to match.
    """
    if override.kind == "pattern":
        from autofit_llama.engine.regex import searcher  # few commands need it

        return searcher(override.pattern)
    if override.kind == "cpu_moe":
        experts = re.compile(_EXPERTS)
        return lambda name: experts.search(name) is not None
    pattern = re.compile(_BLOCK_EXPERTS if override.kind == "n_cpu_moe" else _BLOCK_FFN)
    n_blocks = override.n_blocks

    def matches(name: str) -> bool:
        found = pattern.search(name)
        return found is not None and int(found[1]) < n_blocks

    return matches


@lru_cache(maxsize=64)
def first_of(overrides: tuple[Override, ...]) -> Callable[[str], int | None]:
    """Which of them is the first that means a tensor's name, `None` if none does.

    A search asks for the same names again and again, so answers are kept.

    Raises:
        EngineRefusalError, UsageError: a pattern is invalid, or too costly to match.
    """
    matchers = [matcher(override) for override in overrides]
    kept: dict[str, int | None] = {}

    def first(name: str) -> int | None:
        if name not in kept:
            if len(kept) >= MAX_NAMES_KEPT:
                kept.clear()
            kept[name] = next((i for i, matches in enumerate(matchers) if matches(name)), None)
        return kept[name]

    return first


MAX_NAMES_KEPT = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferRules:
    """What decides the buffer of a tensor, beside its layer.

    `pinned` is the index of the device whose host buffer type the CPU list starts with, if any. With `mmap`
    such tensors stay in the mapped file instead. `first` says which override means a name, `targets` has their buffers.
    """

    devices: tuple[DeviceRules, ...]
    pinned: int | None
    repack: bool
    mmap: bool = False
    first: Callable[[str], int | None] | None = None
    targets: tuple[int, ...] = ()

    def choose(
        self, name: str, op: Operation, type_name: str, ne: tuple[int, ...], layer_home: int, hp: HParams
    ) -> int:
        """The buffer of one tensor: a device's index, `HOST`, `HOST_PINNED` or `HOST_REPACKED`."""
        home: int | None = None
        override = None if self.first is None else self.first(name)
        if override is not None:
            target = self.targets[override]
            home = target if target >= 0 else self._host(op, type_name, ne, hp)
        if home is None:
            if layer_home >= 0 and weight_supported(self.devices[layer_home], op, type_name, ne, hp):
                home = layer_home
            else:
                home = self._host(op, type_name, ne, hp)
        return HOST if self.mmap and home == HOST_PINNED else home

    def _host(self, op: Operation, type_name: str, ne: tuple[int, ...], hp: HParams) -> int:
        """make_cpu_buft_list: pinned, repacked, plain; the first whose device runs the operation."""
        if self.pinned is not None and weight_supported(self.devices[self.pinned], op, type_name, ne, hp):
            return HOST_PINNED
        if self.repack and repacks(op, type_name, ne):
            return HOST_REPACKED
        return HOST


def buffer_rules(
    devices: Sequence[DeviceRules],
    *,
    names: Sequence[str] = (),
    overrides: Sequence[Override] = (),
    no_host: bool = False,
    repack: bool = True,
    mmap: bool = False,
) -> BufferRules:
    """`BufferRules` for these devices; `names` are the default buffer types that `-ot` may name.

    Raises:
        EngineRefusalError: an override names an unknown buffer type, or its pattern is invalid.
    """
    pinned = next((i for i, rules in enumerate(devices) if rules.pinned_host), None)
    targets: Mapping[str, int] = {"CPU": HOST, **{name: i for i, name in enumerate(names)}}
    resolved: list[int] = []
    remote = [i for i, name in enumerate(names) if name.startswith("RPC")]
    for override in overrides:
        if len(remote) == 1 and override.buffer.startswith("RPC0["):  # whatever its server is called
            targets = {**targets, override.buffer: remote[0]}
        if override.buffer not in targets:
            raise EngineRefusalError(
                f"llama.cpp refuses: unknown buffer type {override.buffer[:40]!r}",
                hint="buffer types here: " + ", ".join(targets),
            )
        resolved.append(targets[override.buffer])
    return BufferRules(
        devices=tuple(devices),
        pinned=None if no_host else pinned,
        repack=repack,
        mmap=mmap,
        first=first_of(tuple(overrides)) if overrides else None,
        targets=tuple(resolved),
    )


#: with AVX2; q2_K with AVX-512 only, and counted all the same: no less memory than it takes
_REPACKED = frozenset(("q4_0", "q4_K", "iq4_nl", "mxfp4", "q2_K"))


def repacks(op: str, type_name: str, ne: Sequence[int]) -> bool:
    """Whether an AVX2 build of the CPU backend re-lays the tensor (ggml/src/ggml-cpu/repack.cpp)."""
    n_dims = max((i + 1 for i, n in enumerate(ne) if n > 1), default=1)
    wanted = {"MUL_MAT": 2, "MUL_MAT_ID": 3}.get(op)
    return n_dims == wanted and type_name in _REPACKED and ne[1] % 8 == 0


def weight_supported(rules: DeviceRules, op: Operation, type_name: str, ne: tuple[int, ...], hp: HParams) -> bool:
    """Whether a device runs what a weight is made for (llama-model-loader.cpp:weight_buft_supported)."""
    if op == "SSM_SCAN":
        return _supported(rules, op, type_name, ne, (hp.ssm_d_state, hp.ssm_d_inner, hp.ssm_n_group))
    if op in ("ROPE", "RWKV_WKV6", "ADD_ID", "NONE"):
        return True
    return _supported(rules, op, type_name, ne, ())


@lru_cache(maxsize=8192)
def _supported(rules: DeviceRules, op: Operation, type_name: str, ne: tuple[int, ...], ssm: tuple[int, ...]) -> bool:
    n0, n1, n2, n3 = (*ne, 1, 1, 1)[:4]
    w = Tensor("NONE", type_name, (n0, n1, n2, n3))

    def new(kind: str, *dims: int) -> Tensor:
        a, b, c, d = (*dims, 1, 1, 1)[:4]
        return Tensor("NONE", kind, (a, b, c, d))

    match op:
        case "GET_ROWS":
            t = Tensor("GET_ROWS", "f32", (n0, 512, 1, 1), [w, new("i32", 512)])
        case "MUL_MAT":
            t = Tensor("MUL_MAT", "f32", (n1, 512, n2, n3), [w, new("f32", n0, 512, n2, n3)])
        case "MUL_MAT_ID":
            t = Tensor("MUL_MAT_ID", "f32", (n1, 1, 512, 1), [w, new("f32", n0, 1, 512), new("i32", 1, 512)])
        case "ADD" | "MUL":
            t = Tensor(op, "f32", w.ne, [new("f32", *w.ne), w])
        case "DIV":
            t = Tensor(op, "f32", (n0, 1, 1, 1), [new("f32", n0), w])
        case "SCALE":
            t = Tensor("SCALE", type_name, w.ne, [w])
        case "SSM_CONV":
            t = Tensor("SSM_CONV", "f32", (n1, 512, 3, 1), [new("f32", n0 + 511, n1, 3), w])
        case "SSM_SCAN":
            t = _scan(w, *ssm)
        case _:
            return True
    return rules.supports(t)


def _scan(w: Tensor, d_state: int, d_inner: int, n_group: int) -> Tensor:
    """The scan that an `ssm_a` is tested with: 3 sequences of 512 tokens."""
    n_state = d_state if w.ne[0] == 1 else w.ne[0]
    n_head = w.ne[1]
    head_dim = d_inner // n_head if n_head else 0
    n_group = n_group or 1

    def new(*dims: int) -> Tensor:
        a, b, c, d = (*dims, 1)[:4]
        return Tensor("NONE", "f32", (a, b, c, d))

    src = [
        new(n_state, head_dim, n_head, 3),
        new(head_dim, n_head, 512, 3),
        new(n_head, 512, 3),
        w,
        new(n_state, n_group, 512, 3),
        new(n_state, n_group, 512, 3),
    ]
    return Tensor("SSM_SCAN", "f32", (head_dim * n_head * 512 * 3, 1, 1, 1), src, param=1)
