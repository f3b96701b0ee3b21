"""Which tensors of a file llama.cpp loads, where each goes, and what it takes there.

Loading: load_arch_tensors of src/models/*.cpp, llama_model_loader::create_tensor
(src/llama-model-loader.cpp); the layer and operation of a tensor name: LLM_TENSOR_INFOS
(src/llama-arch.cpp). Sizes: ggml_row_size, rounded up to the buffer type's alignment
(ggml/src/ggml-alloc.c:ggml_backend_alloc_ctx_tensors_from_buft).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from operator import add
from typing import TYPE_CHECKING, Literal

from autofit.domain.model import ModelSpec, TensorInfo
from autofit.domain.patterns import lazy_pattern
from autofit.domain.units import GIB, round_up
from autofit.domain.values import NamedTuple, dataclass, field

from autofit_llama.engine.versions import LATEST, Change, Version
from autofit_llama.engine.vocabulary import LazyMode, Operation
from autofit_llama.graph.devices import device_bytes
from autofit_llama.graph.ggml import HOST, HOST_PINNED, HOST_REPACKED
from autofit_llama.memory.placement import BufferRules, Placement
from autofit_llama.model.architecture import (
    JOINED_EXPERTS_SKIPPED,
    JOINED_SKIPPED,
    Architecture,
    DraftTensors,
    architecture_of,
)
from autofit_llama.model.hparams import HParams

if TYPE_CHECKING:
    from autofit_llama.memory.tensor_split import Slices

INPUT = -1  #: the slot of what is always looked up on the host; blocks are 0..L-1, the output layer is L
HOST_ALIGNMENT = 32  #: ggml/src/ggml-impl.h: TENSOR_ALIGNMENT
LAZY_MIN_BYTES = 4 * GIB  #: llama-model-loader.cpp:lazy_read::add

Group = Literal["embedding", "output", "attention", "dense", "shared", "experts", "other"]


class Weight(NamedTuple):
    """One tensor as the engine creates it.

    `duplicate`: created again under the same name for another layer; nothing is added where the buffer has
    it already.
    """

    name: str
    slot: int
    op: Operation
    group: Group
    type: str
    ne: tuple[int, ...]
    n_bytes: int
    duplicate: bool = False
    lazy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightPlan:
    """Where every weight is, and what each buffer takes.

    `device_bytes` has one entry per device. `homes` maps a tensor's name to its buffer, `copies` the name
    and slot of a second copy to the copy's. Host bytes are apart: plain (mapped, if the file is), pinned,
    repacked, and read lazily.
    """

    device_bytes: tuple[int, ...]
    host_bytes: int
    pinned_bytes: int
    repacked_bytes: int
    lazy_bytes: int
    homes: Mapping[str, int]
    copies: Mapping[tuple[str, int], int] = field(default_factory=dict)

    @property
    def host_all_bytes(self) -> int:
        """Everything that is on no device."""
        return self.host_bytes + self.pinned_bytes + self.repacked_bytes + self.lazy_bytes


_INPUTS = frozenset(("token_embd", "position_embd", "token_types", "per_layer_token_embd"))
NORMS_ON_FIRST_BLOCK = Change(
    without=8390,
    has=9093,
    source="src/llama-arch.cpp:LLM_TENSOR_INFOS, TOKEN_EMBD_NORM and PER_LAYER_TOKEN_EMBD elsewhere and as now",
    name="norms of embeddings beside the first block",
)
#: before that
_ONCE_INPUTS = frozenset(("token_embd", "position_embd", "token_types", "token_embd_norm", "conv1d"))
_ONCE_OUTPUT = frozenset(("per_layer_token_embd", "per_layer_model_proj", "per_layer_proj_norm"))
HRM_INIT_ON_FIRST_BLOCK = Change(
    without=11205,
    has=11218,
    source="src/llama-arch.cpp:LLM_TENSOR_INFOS, HRM_Z_L_INIT of the input and of a block",
    name="hrm.z_l_init beside the first block",
)
DRAFT_HEADS_AS_ASKED = Change(
    without=10204,
    has=10216,
    source="src/models/qwen35.cpp, tensors of the draft head created by every load, and with TENSOR_SKIP",
    name="draft heads loaded only where they are asked for",
    larger=False,
)
JOINS_IN_BLOCKS = Change(
    without=9113,
    has=9246,
    source="src/llama-arch.cpp:LLM_TENSOR_INFOS, NEXTN_EH_PROJ of the output and of a block",
    name="joining matrices of draft heads beside their blocks",
)
LATENT_MATRICES = Change(
    without=9326,
    has=9341,
    source="src/llama-arch.cpp:LLM_TENSOR_INFOS, FFN_LATENT_DOWN of MUL and of MUL_MAT",
    name="latent projections of experts on devices",
)
#: outside the blocks, but on the first block's device
_FIRST_BLOCK = frozenset(
    (
        "token_embd_norm",
        "per_layer_model_proj",
        "per_layer_proj_norm",
        "hrm.z_l_init",
        "conv1d",
        "nextn.pre_projection",
    )
)
_SHARED_BY_BLOCKS = frozenset(("rope_freqs", "rope_factors_long", "rope_factors_short"))
_UNUSED = frozenset(("masked_embd_centroids", "masked_embd_ordering", "cross_attn_rel_b"))


def _by_name(table: Mapping[Operation, str]) -> Mapping[str, Operation]:
    return {name: op for op, names in table.items() for name in names.split()}


# LLM_TENSOR_INFOS: the operation of a tensor by the name of its module; every other one is a matrix.
_OPS = _by_name(
    {
        "GET_ROWS": """
            token_embd position_embd token_types per_layer_token_embd attn_compressor_ape attn_rel_b
            indexer_compressor_ape ffn_gate_tid2eid nextn.embed_tokens d2t markov_w1 selector_predecessor
            selector_successor
        """,
        "ADD": """
            hrm.z_l_init hc_attn_base hc_ffn_base time_mix_lerp_w time_mix_lerp_k time_mix_lerp_v
            time_mix_lerp_r time_mix_lerp_g time_mix_lerp_fused time_mix_decay time_mix_w0 time_mix_a0
            time_mix_v0 exp_probs_b exp_probs_b_vl output_hc_base
        """,
        "MUL": """
            token_embd_norm attn_kv_a_norm hc_attn_scale hc_ffn_scale hc_attn_norm hc_ffn_norm ple_norm_key
            ple_norm_query ple_norm_conv attn_compressor_norm ssm_dt_norm ssm_a ssm_b_norm ssm_c_norm ssm_d
            ssm_norm ssm_conv1d_q ssm_conv1d_k ssm_conv1d_v attn_res_score ffn_res_score ffn_routed_norm
            time_mix_lerp_x time_mix_ln channel_mix_lerp_k channel_mix_lerp_r time_mix_k_k time_mix_k_a
            time_mix_r_k attn_norm attn_norm_2 attn_output_norm post_attention_norm ffn_norm pre_ffw_norm_2
            post_ffw_norm_1 post_ffw_norm_2 post_ffw_norm ffn_norm_exps attn_q_norm attn_k_norm
            layer_output_norm layer_output_scale attn_q_a_norm attn_sub_norm ffn_sub_norm cross_attn_norm
            per_layer_proj_norm post_norm altup_correct_scale altup_router_norm laurel_post_norm norm norm1
            norm2 gamma indexer.k_norm indexer.q_norm indexer_compressor_norm nextn.enorm nextn.hnorm
            nextn.shared_head_norm attn_conv_base ffn_conv_base cls.norm output_norm output_hc_scale
            output_hc_norm output_res_score cross_attn_norm_kv decision.hidden_norm decision.option_summary_norm
            decision.field_norm decision.option_norm decision.scales
        """,
        "SCALE": "attn_sinks",
        "DIV": "ffn.act",
        "ROPE": "rope_freqs rope_factors_long rope_factors_short",
        "SSM_CONV": "ple_conv1d ssm_conv1d shortconv.conv",
        "RWKV_WKV6": "time_mix_first",
        "IM2COL": "conv1d conv1 conv2 dw",
        "MUL_MAT_ID": """
            ffn_down_exps ffn_gate_exps ffn_up_exps ffn_gate_up_exps ffn_down_chexps ffn_gate_chexps
            ffn_up_chexps attn_v_exps
        """,
    }
)


_BLOCK = lazy_pattern(r"(?:enc\.|dec\.)?(?:blk|posnet|convnext)\.([0-9]{1,4})\.(.+)")
_SUFFIX = lazy_pattern(r"\.(weight|bias|scales?|input_scale|lora_a|lora_b)$")


def loaded_weights(
    model: ModelSpec,
    hp: HParams,
    *,
    load_mtp: bool = False,
    lazy_mode: LazyMode = "auto",
    version: Version = LATEST,
) -> tuple[Weight, ...]:
    """Every tensor that the engine creates for `model`, second copies included."""
    weights = list(_weights(model.tensors, hp, load_mtp, lazy_mode, version))
    names = {tensor.name for tensor in model.tensors}
    output_from = architecture_of(hp.arch).output
    if output_from in ("tied", "tied first") and "output.weight" not in names:
        weights = list(_tie(weights, hp, first=output_from == "tied first"))
    elif output_from == "from output" and "token_embd.weight" not in names:
        output = next((w for w in weights if w.name == "output.weight"), None)
        weights += [output._replace(duplicate=True)] if output is not None else []
    return tuple(weights)


def _weights(
    tensors: Iterable[TensorInfo], hp: HParams, load_mtp: bool, lazy_mode: LazyMode, version: Version
) -> Iterator[Weight]:
    arch = architecture_of(hp.arch)
    load_mtp = load_mtp or (arch.draft_tensors.once_always and not version.follows(DRAFT_HEADS_AS_ASKED))
    inputs, first_block = _ends(version)
    for tensor in tensors:
        match = _BLOCK.match(tensor.name)
        path = tensor.name if match is None else match[2]
        suffix = _SUFFIX.search(path)
        module = path if suffix is None else path[: suffix.start()]
        if module in _UNUSED or (
            match is not None
            and not _joined(module, suffix, version)
            and _skipped(int(match[1]), module, hp, arch.draft_tensors, load_mtp)
        ):
            continue
        op = _operation(module, suffix[1] if suffix else "", hp, arch, version)
        if match is not None and module.startswith("nextn.") and not version.follows(JOINS_IN_BLOCKS):
            yield _weight(tensor, hp.n_layer_all, op, "output")
        elif match is not None:
            yield _weight(tensor, int(match[1]), op, _group(module))
        elif module in _SHARED_BY_BLOCKS:
            for i, il in enumerate(arch.rope_factors(hp)):
                yield _weight(tensor, il, op, "attention")._replace(duplicate=i > 0)
        elif module == arch.output_norm:
            yield _weight(tensor, hp.n_layer_all, op, "output")
        elif module in inputs:
            lazy = module == "per_layer_token_embd" and arch.lazy_embeddings and _is_lazy(tensor, lazy_mode)
            yield _weight(tensor, INPUT, op, "embedding")._replace(lazy=lazy)
        elif module in first_block:
            yield _weight(tensor, 0, op, "embedding")
        else:
            yield _weight(tensor, hp.n_layer_all, op, "output")


def _ends(version: Version) -> tuple[frozenset[str], frozenset[str]]:
    """Modules outside the blocks that are of the input layer, and those that are with the first block."""
    if not version.follows(NORMS_ON_FIRST_BLOCK):
        return _ONCE_INPUTS, _FIRST_BLOCK - _ONCE_INPUTS - _ONCE_OUTPUT
    if not version.follows(HRM_INIT_ON_FIRST_BLOCK):
        return _INPUTS | {"hrm.z_l_init"}, _FIRST_BLOCK - {"hrm.z_l_init"}
    return _INPUTS, _FIRST_BLOCK


def _weight(tensor: TensorInfo, slot: int, op: Operation, group: Group) -> Weight:
    return Weight(tensor.name, slot, op, group, tensor.type, tensor.ne, tensor.n_bytes)


def _tie(weights: Iterable[Weight], hp: HParams, *, first: bool) -> Iterator[Weight]:
    for weight in weights:
        if weight.name != "token_embd.weight":
            yield weight
            continue
        tied = weight._replace(slot=hp.n_layer_all, op="MUL_MAT", group="output", duplicate=True)
        yield from (tied, weight) if first else (weight, tied)


def _is_lazy(tensor: TensorInfo, mode: LazyMode) -> bool:
    return mode == "on" or (mode == "auto" and tensor.n_bytes > LAZY_MIN_BYTES)


def _joined(module: str, suffix: re.Match[str] | None, version: Version) -> bool:
    """Whether a tensor is loaded whatever block it is of."""
    if module == "ffn_gate_up_exps":
        return not version.follows(JOINED_EXPERTS_SKIPPED)
    if version.follows(JOINED_SKIPPED):
        return False
    if module in ("attn_qkv", "attn_q", "attn_k", "attn_v"):
        is_bias = suffix is not None and suffix[1] == "bias"
        return version.follows(NORMS_ON_FIRST_BLOCK) and (is_bias or module == "attn_qkv")
    return False


def _skipped(il: int, module: str, hp: HParams, draft: DraftTensors, load_mtp: bool) -> bool:
    """Whether a tensor of block `il` belongs to a draft head that is not loaded."""
    if il < hp.n_layer or hp.n_layer_nextn == 0 or hp.n_layer == 0 or hp.router_layer >= 0:
        return False
    if load_mtp and draft.loadable:
        return False
    return module not in draft.kept if draft.skipped is None else module in draft.skipped


def _operation(module: str, suffix: str, hp: HParams, arch: Architecture, version: Version) -> Operation:
    op: Operation = arch.ops.get(module) or _OPS.get(module, "MUL_MAT")
    change, before = arch.ops_before.get(module, (None, op))
    if change is not None and not version.follows(change):
        op = before
    if module in ("ffn_latent_down", "ffn_latent_up") and not version.follows(LATENT_MATRICES):
        op = "MUL"
    if suffix == "bias":
        return "ADD_ID" if op == "MUL_MAT_ID" else "ADD"
    if suffix in ("lora_a", "lora_b") and hp.router_layer >= 0:
        return "MUL_MAT_ID"
    return op


_SHARED = lazy_pattern(r"ffn_(?:gate|up|down|gate_inp)_shexp")
_DENSE = lazy_pattern(r"ffn_(?:gate|up|down)$|channel_mix_")
_ATTENTION = lazy_pattern(r"attn|ssm_|time_mix_|shortconv|indexer|post_attention|cross_")


def _group(module: str) -> Group:
    if module.endswith("exps"):
        return "experts"
    if _SHARED.match(module):
        return "shared"
    if _DENSE.match(module):
        return "dense"
    return "attention" if _ATTENTION.search(module) else "other"


def place_weights(
    weights: Iterable[Weight], hp: HParams, placement: Placement, buffers: BufferRules, slices: Slices | None = None
) -> WeightPlan:
    """Every weight in its buffer, and the sums.

    With `slices` the one device of `buffers` stands for several, and each holds a part.

    Raises:
        UsageError: an override's pattern is too costly to match.
    """
    on_device = [0] * len(buffers.devices if slices is None else slices.devices)
    on_host = {HOST: 0, HOST_PINNED: 0, HOST_REPACKED: 0}
    n_lazy = 0
    homes: dict[str, int] = {}
    copies: dict[tuple[str, int], int] = {}
    present: set[tuple[str, int]] = set()
    for weight in weights:
        name, slot, op, _, type_name, ne, n_bytes, duplicate, lazy = weight
        home = HOST if lazy else buffers.choose(name, op, type_name, ne, placement.of(slot), hp)
        if duplicate:
            copies[name, slot] = home
            if (name, home) in present:
                continue
        else:
            homes[name] = home
        present.add((name, home))
        if home >= 0 and slices is not None:
            on_device = list(map(add, on_device, slices.weight_bytes(name, type_name, ne)))
        elif home >= 0:
            on_device[home] += device_bytes(buffers.devices[home], type_name, ne[0], n_bytes)
        elif lazy:
            n_lazy += round_up(n_bytes, HOST_ALIGNMENT)
        else:
            on_host[home] += round_up(n_bytes, HOST_ALIGNMENT)
    return WeightPlan(
        device_bytes=tuple(on_device),
        host_bytes=on_host[HOST],
        pinned_bytes=on_host[HOST_PINNED],
        repacked_bytes=on_host[HOST_REPACKED],
        lazy_bytes=n_lazy,
        homes=homes,
        copies=copies,
    )
