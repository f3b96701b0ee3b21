"""`-sm tensor`: which part of every weight and cache lies on which device.

The engine hides its devices behind one of its own ("Meta", ggml/src/ggml-backend-meta.cpp), which every rule of
placement takes for a single device, and cuts tensors along one axis for the real ones. Where the cuts are is
src/llama-model.cpp:llama_meta_device_get_split_state; what it does not name is whole on each device. Compute buffers
are those of the single device, on each device again (ggml_backend_meta_buffer_type_alloc_buffer).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from math import lcm, prod
from typing import Literal, NoReturn

from autofit.domain.dtypes import GGML_TYPES_BY_NAME, row_bytes
from autofit.domain.values import NamedTuple, dataclass, field, replace
from autofit.errors import EngineRefusalError

from autofit_llama.graph.devices import DeviceRules, device_bytes
from autofit_llama.graph.model import rotation_side
from autofit_llama.memory.placement import Placement, f32
from autofit_llama.model.architecture import TensorSplit, architecture_of
from autofit_llama.model.caches import CacheTensor
from autofit_llama.model.context import Context
from autofit_llama.model.hparams import HParams

_FAST = 128  #: elements that kernels like to work on

Part = Literal[
    "q", "kv", "qkv", "qk_norm", "sinks", "attn_out", "attn_gate", "dsv4_q_b", "dsv4_out_a", "dsv4_out_b",
    "conv", "ssm_out", "ssm_heads", "ssm_ba", "r", "s", "up", "gate_up", "ffn", "any",
]  # fmt: skip


class Cut(NamedTuple):
    """A tensor of this `part` is cut along `axis`, in blocks of the type of the first of `like` that its block has."""

    part: Part
    axis: int
    like: tuple[str, ...] = ()


class Segment(NamedTuple):
    """`n` elements, `repeats` times in a row; each is cut alike, at multiples of `granularity`."""

    n: int
    repeats: int
    granularity: int


_OUT, _SSM = ("attn_output.weight",), ("ssm_out.weight",)
_MIXER = (*_OUT, *_SSM)
_DOWN = ("ffn_down.weight", "ffn_down_exps.weight")
#: by what follows `blk.N.`; everything else is whole on each device
_CUTS: Mapping[str, Cut] = {
    "attn_q.weight": Cut("q", 1, _MIXER),
    "attn_q.bias": Cut("q", 0, _MIXER),
    "attn_k.weight": Cut("kv", 1, _MIXER),
    "attn_v.weight": Cut("kv", 1, _MIXER),
    "attn_k.bias": Cut("kv", 0, _MIXER),
    "attn_v.bias": Cut("kv", 0, _MIXER),
    "attn_qkv.weight": Cut("qkv", 1, _MIXER),
    "attn_qkv.bias": Cut("qkv", 0, _MIXER),
    "attn_q_norm.weight": Cut("qk_norm", 1, _OUT),
    "attn_k_norm.weight": Cut("qk_norm", 1, _OUT),
    "attn_sinks.weight": Cut("sinks", 0, _OUT),
    "attn_output.weight": Cut("attn_out", 0),
    "attn_gate.weight": Cut("attn_gate", 1, _MIXER),
    "ssm_dt.bias": Cut("ssm_heads", 0, _SSM),
    "ssm_a": Cut("ssm_heads", 0, _SSM),
    "ssm_alpha.weight": Cut("ssm_heads", 1, _SSM),
    "ssm_beta.weight": Cut("ssm_heads", 1, _SSM),
    "ssm_ba.weight": Cut("ssm_ba", 1, _SSM),
    "ssm_conv1d.weight": Cut("conv", 1, _SSM),
    "ssm_out.weight": Cut("ssm_out", 0),
    "ffn_up.weight": Cut("up", 1, _DOWN),
    "ffn_up_exps.weight": Cut("up", 1, _DOWN),
    "ffn_up.bias": Cut("up", 0, _DOWN),
    "ffn_up_exps.bias": Cut("up", 0, _DOWN),
    "ffn_gate.weight": Cut("ffn", 1, _DOWN),
    "ffn_gate_exps.weight": Cut("ffn", 1, _DOWN),
    "ffn_gate.bias": Cut("ffn", 0, _DOWN),
    "ffn_gate_exps.bias": Cut("ffn", 0, _DOWN),
    "ffn_gate_up.weight": Cut("gate_up", 1, _DOWN),
    "ffn_gate_up_exps.weight": Cut("gate_up", 1, _DOWN),
    "ffn_down.weight": Cut("ffn", 0, _DOWN),
    "ffn_down_exps.weight": Cut("ffn", 0, _DOWN),
}
#: beside or in place of these where the model has the hyper-connections of DeepSeek V4
_CUTS_DSV4: Mapping[str, Cut] = {
    "attn_sinks.weight": Cut("sinks", 0, ("attn_output_a.weight",)),
    "attn_q_b.weight": Cut("dsv4_q_b", 1, ("attn_output_a.weight",)),
    "attn_output_a.weight": Cut("dsv4_out_a", 2),
    "attn_output_b.weight": Cut("dsv4_out_b", 0),
    "ffn_up_shexp.weight": Cut("ffn", 1, ("ffn_down_shexp.weight",)),
    "ffn_gate_shexp.weight": Cut("ffn", 1, ("ffn_down_shexp.weight",)),
    "ffn_down_shexp.weight": Cut("ffn", 0, ("ffn_down_shexp.weight",)),
}
_CACHE_CUTS: Mapping[str, Cut] = {
    "k": Cut("kv", 0, _OUT),
    "v": Cut("kv", 0, _OUT),
    "r": Cut("r", 0, _SSM),
    "s": Cut("s", 0, _SSM),
}
_MADE = frozenset(("q", "kv", "qkv", "attn_gate", "conv", "ssm_heads", "ssm_ba"))
#: what makes cut values in a block, and what takes them; the first part keeps some in caches
_PARTS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (tuple(rest for rest, cut in _CUTS.items() if cut.part in _MADE), _MIXER),
    (("ffn_up.weight", "ffn_gate.weight", "ffn_gate_up.weight"), _DOWN[:1]),
    (("ffn_up_exps.weight", "ffn_gate_exps.weight", "ffn_gate_up_exps.weight"), _DOWN[1:]),
)
_ATTENTION_CACHES = frozenset(("base", "swa"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Slices:
    """How one model is cut for `devices`, in the proportions of `splits`, evenly where they are empty or zero.

    `types` are those of all loaded tensors, by name.
    """

    hparams: HParams
    devices: tuple[DeviceRules, ...]
    splits: tuple[float, ...]
    types: Mapping[str, str]
    _known: dict[tuple[str, tuple[int, ...]], tuple[int, ...]] = field(default_factory=dict)

    @property
    def whole(self) -> DeviceRules:
        """The rules of the one device that stands for all of them: what all run, as large as on the worst.

        It takes over nothing from the host, keeps the order of the nodes and has no events
        (ggml_backend_meta_device_iface, ggml_backend_meta_i).
        """
        first, kinds = self.devices[0], {rules.kind for rules in self.devices}
        return replace(
            first,
            members=tuple(dict.fromkeys(self.devices)),
            alignment=max(rules.alignment for rules in self.devices),
            max_buffer_bytes=min(rules.max_buffer_bytes for rules in self.devices),
            offload_min_batch=None,
            pipeline=False,
            fusion=False,
            pinned_host=len(kinds) == 1 and first.pinned_host,
        )

    def check(self, placement: Placement, homes: Mapping[str, int], context: Context, *, has_cache: bool) -> None:
        """Refuse what loads, and fails an assertion of the engine at the first prompt or token.

        Raises:
            EngineRefusalError: cut values would meet whole ones, be put together on the host, or lie in shared caches.
        """
        hp = self.hparams
        here = [il for il, home in enumerate(placement.blocks) if home == 0]
        fused = any(homes.get(f"blk.{il}.attn_qkv.weight") == 0 for il in here)
        if here and has_cache and not context.offload_kqv:
            if fused or any(hp.is_recr[il] for il in here):
                what = "the fused attention" if fused else "the recurrent state"
                _abort(f"it cannot gather {what} of this model on the host", "leave out -nkvo, or use -sm layer")
            if context.n_streams > 1:
                _abort("KV KV caches of several sequences cannot stay on the host", "leave out -nkvo, or add -kvu")
        if self.how.whole:
            if 0 < len(here) < hp.n_layer_all:
                _abort(f"{hp.arch} shares its KV caches between layers", "use -ngl all, or -sm layer")
            return
        for il in here:
            self._check_block(il, homes, cached=has_cache and context.offload_kqv)
            if len(self.devices) > 1 and hp.n_head_kv[il] == 1 and homes.get(f"blk.{il}.attn_k.weight") == 0:
                self._check_single_head(il, homes, context)

    def _check_block(self, il: int, homes: Mapping[str, int], *, cached: bool) -> None:
        """Refuse a block of which the host makes what a device then needs cut.

        What comes from the host is whole on each device. The last product of a part may be the host's: it is given
        the cut values put together.
        """
        for i, (makers, takers) in enumerate(_PARTS):
            made = {rest: home for rest in makers if (home := homes.get(f"blk.{il}.{rest}")) is not None}
            taken = [homes.get(f"blk.{il}.{rest}") for rest in takers]
            off = next((rest for rest, home in made.items() if home != 0), None)
            if off is not None and (0 in made.values() or 0 in taken or (cached and i == 0)):
                _abort(f"blk.{il}.{off} is on the host, but its counterparts are split", "change -ot, or use -sm layer")

    def _check_single_head(self, il: int, homes: Mapping[str, int], context: Context) -> None:
        """Refuse what works on rows as long as a single head of K or V: of one token, those are taken to be cut."""
        if self.hparams.n_head[il] == 1:
            _abort(f"layer {il} has a single head")
        if f"blk.{il}.attn_k_norm.weight" in homes:
            _abort(f"layer {il} has a single head of K, and normalizes it")
        k, v = self.hparams.n_embd_head_k(il), self.hparams.n_embd_head_v(il)
        rotates_k = _is_quantized(context.type_k) and k % 64 == 0 and rotation_side(k) == k
        if rotates_k or (_is_quantized(context.type_v) and v == 64):
            _abort(f"layer {il} has a single head of K, and a quantized KV cache rotates it", "use an f16 cache")

    def weight_bytes(self, name: str, type_name: str, ne: tuple[int, ...]) -> tuple[int, ...]:
        """What one weight takes on each device.

        Raises:
            EngineRefusalError: the engine aborts, for it cannot cut this tensor.
        """
        il = int(name[4:].partition(".")[0]) if name.startswith("blk.") else -1
        return self._bytes(name, il, self._cut_of(name, ne), type_name, ne)

    def cache_bytes(self, tensor: CacheTensor) -> tuple[int, ...]:
        """The same for one tensor of a cache."""
        name = f"cache_{tensor.side}_l{tensor.il}"
        cut = self._cache_cut(tensor)
        return self._bytes(name, tensor.il, cut, tensor.type, (tensor.n_elements, tensor.n_rows))

    def partial_rows(self, name: str, ne: tuple[int, ...]) -> int:
        """Elements per token of what has to be summed up over the devices: products along the cut; or 0."""
        cut = self._cut_of(name, ne)
        return ne[1] if cut is not None and cut.axis == 0 and len(ne) > 1 and name.endswith(".weight") else 0

    def _bytes(self, name: str, il: int, cut: Cut | None, type_name: str, ne: tuple[int, ...]) -> tuple[int, ...]:
        if cut is None:
            whole = row_bytes(type_name, ne[0]) * prod(ne[1:])
            return tuple(device_bytes(rules, type_name, ne[0], whole) for rules in self.devices)
        key = name, ne
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._lengths(name, il, cut, type_name, ne)
        sizes = []
        for rules, n in zip(self.devices, found, strict=True):
            part = (*ne[: cut.axis], n, *ne[cut.axis + 1 :])
            sizes.append(device_bytes(rules, type_name, part[0], row_bytes(type_name, part[0]) * prod(part[1:])))
        return tuple(sizes)

    @property
    def how(self) -> TensorSplit:
        return architecture_of(self.hparams.arch).tensor_split or TensorSplit()

    @property
    def _is_dsv4(self) -> bool:
        return self.how.grouped_output and self.hparams.dsv4_o_group_count > 0

    def _cut_of(self, name: str, ne: tuple[int, ...]) -> Cut | None:
        if self.how.whole:
            return None
        if not name.startswith("blk."):
            if name == "output.weight":
                return None if self._is_dsv4 else Cut("any", 1)
            return Cut("any", 0) if name == "output.bias" else None
        rest = name[4:].partition(".")[2]
        cut = (_CUTS_DSV4.get(rest) if self._is_dsv4 else None) or _CUTS.get(rest)
        if cut is not None and cut.part == "qk_norm" and (len(ne) < 2 or ne[1] == 1):
            return None
        return cut

    def _cache_cut(self, tensor: CacheTensor) -> Cut | None:
        if self.how.whole or self._is_dsv4 or (tensor.side in ("r", "s") and self.how.whole_states):
            return None
        if tensor.side in ("k", "v") and tensor.cache not in _ATTENTION_CACHES:
            return None
        return _CACHE_CUTS.get(tensor.side)

    def _lengths(self, name: str, il: int, cut: Cut, type_name: str, ne: tuple[int, ...]) -> tuple[int, ...]:
        """Elements along the cut for each device.

        Which of them is rounded up goes round with the blocks before it of the same kind; in single precision
        where there are splits.
        """
        hp, n_devices = self.hparams, len(self.devices)
        rotation = (hp.n_layer if il < 0 else self._like_before(il)) % n_devices
        splits = (*self.splits, *[0.0] * n_devices)
        scan = list(accumulate((f32(splits[(j + rotation) % n_devices]) for j in range(n_devices)), _add))
        block = GGML_TYPES_BY_NAME[type_name].block_elements
        blocks = GGML_TYPES_BY_NAME[self._like(name, il, cut, type_name)].block_elements
        segments = self._segments(cut, max(il, 0), ne, blocks, is_bias=name.endswith(".bias"), is_v=_is_v(name))
        lengths = [0] * n_devices
        for n, repeats, granularity in segments:
            low = 0
            for j in range(n_devices):
                if j == n_devices - 1:
                    high = n
                else:
                    whole = n * (j + 1) // n_devices if not scan[-1] else int(f32(f32(f32(n) * scan[j]) / scan[-1]))
                    high = whole - whole % granularity
                lengths[(j + rotation) % n_devices] += (high - low) * repeats
                if cut.axis == 0 and (high - low) % block:
                    _abort(f"it cannot split {name} over {n_devices} devices")
                low = high
        if sum(lengths) != ne[cut.axis]:
            _abort(f"{name} has another shape than it expects")
        if cut.axis == 0 and ne[0] == block > 1 and len(ne) > 1 and 0 in lengths:
            _abort(f"rows of {name} are one quantization block long, so a device would get none")
        return tuple(lengths)

    def _like(self, name: str, il: int, cut: Cut, type_name: str) -> str:
        if not cut.like:
            return type_name
        found = next((t for other in cut.like if (t := self.types.get(f"blk.{il}.{other}")) is not None), None)
        if found is None:
            _abort(f"it splits {name} like {cut.like[0]}, which layer {il} does not have")
        return found

    def _like_before(self, il: int) -> int:
        hp = self.hparams
        kind = hp.is_recr[il], hp.is_swa[il]
        return sum((hp.is_recr[i], hp.is_swa[i]) == kind for i in range(il))

    def _segments(
        self, cut: Cut, il: int, ne: tuple[int, ...], block: int, *, is_bias: bool, is_v: bool
    ) -> tuple[Segment, ...]:
        """get_split_segments, each with its entry of get_split_granularity."""
        runs = self._runs(cut, il, ne, is_bias=is_bias)
        each = self._recurrent(cut, block, is_bias=is_bias) if self.hparams.is_recr[il] else None
        if each is None and not self.hparams.is_recr[il]:
            each = self._attention(cut, il, ne, block, len(runs), is_v=is_v)
        if each is None:
            each = (lcm(block, _FAST) if cut.part in ("up", "gate_up", "ffn") else 1,)
        if len(each) == 1:
            each *= len(runs)
        if len(each) != len(runs):
            _abort(f"a tensor of layer {il} has other parts than its architecture")
        return tuple(Segment(n, repeats, g) for (n, repeats), g in zip(runs, each, strict=True))

    def _runs(self, cut: Cut, il: int, ne: tuple[int, ...], *, is_bias: bool) -> tuple[tuple[int, int], ...]:
        hp, part = self.hparams, cut.part
        whole = ((ne[cut.axis], 1),)
        if part == "gate_up":
            return ((hp.n_ff_exp[il], 2),)
        if not self.how.gated_queries:
            if part == "qkv":
                k, v = hp.n_embd_k_gqa(il), hp.n_embd_v_gqa(il)
                q = hp.n_head[il] * hp.n_embd_head_k(il)
                return ((q, 1), (k, 2)) if k == v else ((q, 1), (k, 1), (v, 1))
            return ((hp.n_ff[il], 2),) if part == "up" and ne[cut.axis] == 2 * hp.n_ff[il] else whole
        if part == "qkv" and not hp.is_recr[il]:
            return ((2 * hp.n_head[il] * hp.n_embd_head_k(il), 1), (hp.n_embd_v_gqa(il), 2))
        n_k, n_v, history = hp.ssm_n_group, hp.ssm_dt_rank, hp.ssm_d_conv - 1
        key, value = n_k * hp.ssm_d_state, n_v * hp.ssm_d_state
        if self.how.heads_apart:
            if part == "conv" or (part == "qkv" and not is_bias):
                return ((key, 2), (value, 1))
            return ((key * history, 2), (value * history, 1)) if part == "r" else whole
        ratio = n_v // n_k
        if part == "conv" or (part == "qkv" and not is_bias):
            return ((key, 2 + ratio),)
        if part in ("attn_gate", "ssm_out"):
            return ((key, ratio),)
        if part == "ssm_heads":
            return ((n_k, ratio),)
        if part == "r":
            return ((key * history, 2 + ratio),)
        return ((key * hp.ssm_d_state, ratio),) if part == "s" else whole

    def _recurrent(self, cut: Cut, block: int, *, is_bias: bool) -> tuple[int, ...] | None:
        hp, part = self.hparams, cut.part
        head = hp.ssm_d_state
        group = lcm(block, _FAST, head)
        if part in ("attn_gate", "conv", "ssm_out") or (part == "qkv" and not is_bias):
            return (group,)
        if part in ("ssm_heads", "ssm_ba"):
            return (group // head * (2 if part == "ssm_ba" else 1),)
        if part == "r":
            return (group * (hp.ssm_d_conv - 1),)
        return (group * head,) if part == "s" else None

    def _attention(
        self, cut: Cut, il: int, ne: tuple[int, ...], block: int, n_runs: int, *, is_v: bool
    ) -> tuple[int, ...] | None:
        """Whole groups of query heads, with the K and V heads that they share."""
        hp, part = self.hparams, cut.part
        if part not in ("q", "kv", "qkv", "sinks", "attn_out", "attn_gate", "dsv4_q_b", "dsv4_out_a", "dsv4_out_b"):
            return None
        if self._is_dsv4 and part in ("sinks", "dsv4_q_b", "dsv4_out_a", "dsv4_out_b"):
            per_group = hp.n_head[il] // hp.dsv4_o_group_count
            if part == "dsv4_out_b" and hp.dsv4_o_lora_rank % block:
                _abort(f"the output projection of layer {il} cannot be split between its groups")
            by_part = {"sinks": per_group, "dsv4_q_b": per_group * hp.n_embd_head_k(il), "dsv4_out_a": 1}
            return (by_part.get(part, hp.dsv4_o_lora_rank),)
        n_gqa, head_k, head_v = hp.n_gqa(il), hp.n_embd_head_k(il), hp.n_embd_head_v(il)
        group = n_gqa * head_k
        if group == 0:
            _abort(f"layer {il} has no attention heads")
        while block < _FAST and block * len(self.devices) < group:
            block *= 2
        q = lcm(group, block)
        heads = q // head_k
        gated_q = lcm(2 * group, block) if self.how.gated_queries else q
        k = q // n_gqa
        v = k // head_k * head_v
        match part:
            case "sinks":
                return (heads,)
            case "q":
                return (gated_q,)
            case "attn_out":
                return (heads * head_v,)
            case "attn_gate":
                return (heads,) if len(ne) > 1 and ne[1] == hp.n_head[il] else (q,)
            case "kv":
                return (v if is_v else k,)
            case _:
                return (gated_q, k) if n_runs == 2 else (q, k, v)


def _is_quantized(type_name: str) -> bool:
    return GGML_TYPES_BY_NAME[type_name].block_elements > 1


def _is_v(name: str) -> bool:
    return "attn_v" in name or "cache_v" in name


def _add(a: float, b: float) -> float:
    return f32(a + b)


def _abort(cause: str, hint: str = "use -sm layer") -> NoReturn:
    raise EngineRefusalError(f"llama.cpp aborts with -sm tensor: {cause}", hint=hint)
