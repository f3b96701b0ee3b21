"""Every byte of one launch, per pool: what the engine allocates, and what it takes beside that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from autofit.domain.machine import HOST_POOL, Device, Machine
from autofit.domain.memory import Basis, Kind, Memory, MemoryItem
from autofit.domain.model import ModelSpec
from autofit.domain.request import Margin
from autofit.domain.values import dataclass, field
from autofit.errors import EngineRefusalError
from autofit.planning.accounting import DeviceUse, account, margin_of

from autofit_llama.graph.cuda import FLASH_SCRATCH
from autofit_llama.graph.devices import DeviceRules, device_bytes, rules_for
from autofit_llama.graph.ggml import HOST, HOST_PINNED
from autofit_llama.memory import runtime, scratch
from autofit_llama.memory.layout import LoadParams, MemoryLayout, ParsedModel, lay_out
from autofit_llama.model.load import read_hparams

if TYPE_CHECKING:
    from autofit_llama.memory.report import LlamaReportDocument
    from autofit_llama.memory.weights import WeightPlan

REPACKED = "weights repacked for the CPU"  #: an item's label
_EXPERT_CACHE = "llama-moe-cache.cpp:llama_moe_cache"
_META_COMPUTE = "ggml-backend-meta.cpp:ggml_backend_meta_graph_compute"
_RECURRENT_SIDES = frozenset(("r", "s", "ple"))
_recent: tuple[ParsedModel, ...] = ()
"""The last models taken apart, newest first: who plans for one twice (presets, machines, forms) replays less."""
_MOST_RECENT = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What llama-server adds to a context. `prompt_cache_bytes` `None` is no limit."""

    prompt_cache_bytes: int | None = 8192 << 20
    n_checkpoints: int = 32
    checkpoint_min_step: int = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Python:
    """What llama-cpp-python's server adds to a context. `keeps_logits`: of every token of the context."""

    keeps_logits: bool = False
    prompt_cache_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Companion:
    """Another model in the same process: a draft model with a context of its own."""

    sized: ParsedModel
    devices: tuple[Device, ...]
    arguments: LoadParams
    label: str = "draft model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One process of llama.cpp: a model's arguments on `devices`, and what comes with it.

    `load_anonymous`: host weights are read into memory (no mmap), `locked` pins them. `mtp` is the second context of
    a draft head. `projector_device` is a device's id, or `host`.
    """

    sized: ParsedModel
    devices: tuple[Device, ...]
    arguments: LoadParams
    server: Server | None = None
    mtp: LoadParams | None = None
    drafts: tuple[Companion, ...] = ()
    projector: ModelSpec | None = None
    projector_device: str = HOST_POOL
    adapters: tuple[ModelSpec, ...] = ()
    has_control_vector: bool = False
    locked: bool = False
    python: Python | None = None

    @property
    def offloads(self) -> bool:
        """Whether prompts have weights of the host copied to a device; what `-sm tensor` makes of devices does not."""
        return bool(self.devices) and self.arguments.context.op_offload and not self.arguments.sliced


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Memory per pool; `layout` is the main context's, `report` the figures as the engine logs them.

    `device_bytes` is what each device takes, whatever pool it draws on, its margin apart.
    """

    memory: Memory
    layout: MemoryLayout
    device_bytes: Mapping[str, int] = field(default_factory=dict)
    report: Mapping[str, object] = field(default_factory=dict)


def size(model: ModelSpec) -> ParsedModel:
    """Take a model's header apart; of a model that was taken apart lately, what is known of it.

    Raises:
        CorruptModelError, UnsupportedModelError: metadata that the engine would refuse.
    """
    global _recent
    sized = next((one for one in _recent if one.model is model and not one.is_full), None)
    if sized is None:
        sized = ParsedModel(model, read_hparams(model))
    _recent = (sized, *(one for one in _recent if one.model is not model))[:_MOST_RECENT]
    return sized


def device_rules(devices: Sequence[Device], arguments: LoadParams) -> tuple[DeviceRules, ...]:
    version = arguments.context.version
    return tuple(rules_for(device.api, device.compute_capability, version, behind=device.behind) for device in devices)


def estimate(
    run: Run, machine: Machine, margins: Sequence[Margin] = (), *, layout: MemoryLayout | None = None
) -> Estimate:
    """What `run` takes on `machine`; `margins` are subtracted from the free memory of the devices.

    `layout` is that of the main context, if it is known already: of the same arguments on the same devices.

    Raises:
        EngineRefusalError: llama.cpp would refuse these arguments.
    """
    rules = device_rules(run.devices, run.arguments)
    layout = layout or lay_out(run.sized, rules, run.arguments)
    items: dict[str, list[MemoryItem]] = {device.id: [] for device in run.devices}
    host: list[MemoryItem] = []
    _context_items(layout, run.devices, run.arguments, items, host, locked=run.locked)
    if run.mtp is not None:
        _extra_context(lay_out(run.sized, rules, run.mtp), run.devices, items, host, "draft head")
    for draft in run.drafts:
        _draft_items(draft, items, host)
    _projector_items(run, rules, items, host)
    _adapter_items(run, layout, rules, items, host)
    for i, device in enumerate(run.devices):
        items[device.id] += runtime.device_runtime(device)
        if run.arguments.sliced:
            hidden = layout.hparams.n_embd
            items[device.id] += runtime.collectives(run.devices, n_tokens=layout.context.n_tokens, n_embd=hidden)
        items[device.id] += scratch.prompt_scratch(device, _products(layout, 0 if run.arguments.sliced else i, run))
    host += runtime.host_runtime(
        n_vocab=layout.hparams.n_vocab,
        n_output_rows=layout.context.n_outputs_max,
        server=run.server is not None,
    )
    if run.server is not None and keeps_prompts(layout):
        host += runtime.prompt_cache(run.server.prompt_cache_bytes)
    if run.server is not None:
        host += _checkpoint_items(layout, run.server)
    if run.python is not None:
        host += _python_items(layout, run.python)
    return Estimate(
        memory=account(tuple(_uses(run.devices, items, margins)), host, machine),
        layout=layout,
        device_bytes={name: sum(item.n_bytes for item in its) for name, its in items.items()},
        report={**_report(layout, run.devices)},
    )


def keeps_prompts(layout: MemoryLayout) -> bool:
    """Whether llama-server's cache of past prompts ever gets any state.

    Only completions look there for a prompt; what other tasks leave is put there when one of several slots is idle.

    Source: tools/server/server-context.cpp:get_available_slot and process_single_task.
    """
    context = layout.context
    return bool(layout.caches) and not (context.embeddings and context.n_seq_max == 1)


def _context_items(
    layout: MemoryLayout, devices: Sequence[Device], arguments: LoadParams, items: Mapping[str, list[MemoryItem]],
    host: list[MemoryItem], *, locked: bool,
) -> None:  # fmt: skip
    plan, compute = layout.weight_plan, layout.compute
    basis: Basis = "exact" if layout.is_exact else "derived"
    source = "llama-context.cpp:sched_reserve, replayed"
    if not layout.has_graph:
        source = "an upper bound: no graph for this architecture"
    known: Basis = "exact" if layout.hparams.known and not arguments.context.version.behind_bytes else "derived"
    for i, device in enumerate(devices):
        to = items[device.id]
        _add(to, "weights", plan.device_bytes[i], known, "weights", "llama-model.cpp:load_tensors")
        _add(to, "cache", layout.cache_device_bytes[i], known, _cache_label(layout), "llama-kv-cache.cpp")
        if layout.experts is not None:
            _add(to, "cache", layout.experts.device_bytes[i], known, "cache of experts", _EXPERT_CACHE)
        _add(to, "compute", compute.device_bytes[i], basis, "compute buffer", source)
        sums = "sums with the other devices, at most"
        _add(to, "compute", layout.partial_bytes, "derived", sums, _META_COMPUTE)
    _host_weights(plan, known, host, mapped=arguments.mmap and not locked)
    _add(host, "cache", layout.cache_host_bytes, known, _cache_label(layout), "llama-kv-cache.cpp")
    if layout.experts is not None:
        _add(host, "cache", layout.experts.host_bytes, known, "cache of experts", _EXPERT_CACHE)
    _add(host, "compute", compute.host_bytes, basis, "compute buffer and graph inputs", source)


def _host_weights(plan: WeightPlan, known: Basis, host: list[MemoryItem], *, mapped: bool) -> None:
    label = "weights read from the mapped file" if mapped else "weights"
    _add(host, "weights", plan.host_bytes, known, label, "llama-mmap.cpp", mapped=mapped)
    pinned = "weights in pinned memory"
    _add(host, "weights", plan.pinned_bytes, known, pinned, "llama-model.cpp:make_cpu_buft_list")
    _add(host, "weights", plan.repacked_bytes, known, REPACKED, "ggml-cpu/repack.cpp")
    table = "table read row by row"
    _add(host, "weights", plan.lazy_bytes, known, table, "llama-model-loader.cpp:lazy_read", mapped=True)


def _extra_context(
    layout: MemoryLayout,
    devices: Sequence[Device],
    items: Mapping[str, list[MemoryItem]],
    host: list[MemoryItem],
    label: str,
) -> None:
    """A second context over the same weights: its caches and compute buffers, and what it computes with."""
    basis: Basis = "exact" if layout.is_exact else "derived"
    for i, device in enumerate(devices):
        if layout.compute.device_bytes[i]:
            items[device.id] += runtime.second_context(device, label)
        _add(
            items[device.id],
            "cache",
            layout.cache_device_bytes[i],
            "exact",
            f"cache of the {label}",
            "llama-kv-cache.cpp",
        )
        _add(
            items[device.id],
            "compute",
            layout.compute.device_bytes[i],
            basis,
            f"compute buffer of the {label}",
            "llama-context.cpp:sched_reserve",
        )
    _add(host, "cache", layout.cache_host_bytes, "exact", f"cache of the {label}", "llama-kv-cache.cpp")
    _add(
        host,
        "compute",
        layout.compute.host_bytes,
        basis,
        f"compute buffer of the {label}",
        "llama-context.cpp:sched_reserve",
    )


def _draft_items(draft: Companion, items: Mapping[str, list[MemoryItem]], host: list[MemoryItem]) -> None:
    layout = lay_out(draft.sized, device_rules(draft.devices, draft.arguments), draft.arguments)
    plan = layout.weight_plan
    for i, device in enumerate(draft.devices):
        _add(
            items[device.id],
            "weights",
            plan.device_bytes[i],
            "exact",
            draft.label,
            "llama-model.cpp:load_tensors",
        )
    _add(
        host,
        "weights",
        plan.host_all_bytes,
        "exact",
        draft.label,
        "llama-model.cpp:load_tensors",
        mapped=draft.arguments.mmap,
    )
    _extra_context(layout, draft.devices, items, host, draft.label)


def _projector_items(
    run: Run, rules: Sequence[DeviceRules], items: Mapping[str, list[MemoryItem]], host: list[MemoryItem]
) -> None:
    items.get(run.projector_device, host).extend(projector_items(run, rules))


def projector_items(run: Run, rules: Sequence[DeviceRules]) -> tuple[MemoryItem, ...]:
    """What the projector takes where it is."""
    if run.projector is None:
        return ()
    at = next((i for i, device in enumerate(run.devices) if device.id == run.projector_device), None)
    sizes = [
        tensor.n_bytes if at is None else device_bytes(rules[at], tensor.type, tensor.ne[0], tensor.n_bytes)
        for tensor in run.projector.tensors
    ]
    return runtime.projector(sizes)


def _adapter_items(
    run: Run,
    layout: MemoryLayout,
    rules: Sequence[DeviceRules],
    items: Mapping[str, list[MemoryItem]],
    host: list[MemoryItem],
) -> None:
    if not (run.adapters or run.has_control_vector):
        return
    from autofit_llama.memory.adapters import control_vector_bytes, lora_bytes, lora_compute_bytes

    homes, hp = layout.weight_plan.homes, layout.hparams
    if run.arguments.sliced and run.adapters:
        raise EngineRefusalError(
            "llama.cpp aborts with -sm tensor: it splits weights, but not their LoRA adapters",
            hint="use -sm layer, or merge the adapters with llama-export-lora",
        )
    counted: list[tuple[Kind, Basis, str, tuple[tuple[int, ...], int]]] = [
        ("weights", "exact", "LoRA adapter", lora_bytes(one, homes, rules)) for one in run.adapters
    ]
    if run.adapters:
        n_tokens, n_used = layout.context.n_tokens, max(hp.n_expert_used, default=1)
        more = lora_compute_bytes(run.adapters, homes, len(rules), n_tokens=n_tokens, n_expert_used=max(n_used, 1))
        counted.append(("compute", "derived", "LoRA products, at most", more))
    if run.has_control_vector:
        found = control_vector_bytes(hp, layout.placement, rules)
        if run.arguments.sliced:  # whole on each
            each = tuple(control_vector_bytes(hp, layout.placement, (one,))[0][0] for one in rules)
            found = each, found[1]
        counted.append(("weights", "exact", "control vector", found))
    for kind, basis, label, (on_devices, on_host) in counted:
        for device, n_bytes in zip(run.devices, on_devices, strict=True):
            _add(items[device.id], kind, n_bytes, basis, label, "llama-adapter.cpp")
        _add(host, kind, on_host, basis, label, "llama-adapter.cpp")


def allocated_compute(run: Run) -> tuple[tuple[int, ...], int]:
    """Compute buffers of the main context as they are really allocated: per device, and on the host.

    The engine's own dry run, which `estimate` follows, forgets where norms are pinned and never builds the graph of
    generation; it is seldom lower, and on several devices often higher.
    """
    compute = lay_out(run.sized, device_rules(run.devices, run.arguments), run.arguments, dry_run=False).compute
    return compute.device_bytes, compute.host_bytes


def _checkpoint_items(layout: MemoryLayout, server: Server) -> tuple[MemoryItem, ...]:
    """What cannot be rolled back is copied: window cells (unless they are whole) and recurrent state."""
    context = layout.context
    state = 0
    for cache in layout.caches:
        if cache.name == "swa" and not context.swa_full:
            cells = sum(tensor.n_bytes for tensor in cache.tensors)
            state += cells // max(cache.n_streams, 1) // (context.n_seq_max if context.kv_unified else 1)
        else:
            state += sum(t.n_bytes for t in cache.tensors if t.side in _RECURRENT_SIDES) // context.n_seq_max
    return runtime.checkpoints(
        state_bytes_per_slot=state,
        n_slots=context.n_seq_max,
        n_checkpoints=server.n_checkpoints,
        n_ctx_seq=context.n_ctx_seq,
        min_step=server.checkpoint_min_step,
    )


def _python_items(layout: MemoryLayout, python: Python) -> tuple[MemoryItem, ...]:
    """A cached prompt has its state and, where they are kept, the logits of its tokens."""
    context = layout.context
    logits = 4 * layout.hparams.n_vocab * context.n_ctx if python.keeps_logits else 0
    state = sum(tensor.n_bytes for cache in layout.caches for tensor in cache.tensors)
    cached = python.prompt_cache_bytes
    return runtime.python_server(logits_bytes=logits, prompts_bytes=cached + (cached * logits // state if state else 0))


def _products(layout: MemoryLayout, device: int, run: Run) -> scratch.Products:
    """What a context multiplies on a device. Prompts have experts of the host copied to the first one."""
    hp, context = layout.hparams, layout.context
    homes = layout.weight_plan.homes
    n_used = max(hp.n_expert_used, default=1)
    copies = run.offloads and device == 0
    found: dict[scratch.Product, None] = {}
    offloaded = 0
    for weight in layout.weights:
        home = homes.get(weight.name)
        is_copied = copies and home in (HOST, HOST_PINNED)
        if (home != device and not is_copied) or weight.op not in ("MUL_MAT", "MUL_MAT_ID"):
            continue
        n_in, n_out, n_experts = (*weight.ne, 1, 1)[:3]
        n_rows = context.n_outputs if weight.slot == hp.n_layer_all else context.n_tokens
        product = scratch.Product(weight.type, n_in, n_out, n_rows)
        if weight.op == "MUL_MAT_ID":
            product = product._replace(n_experts=n_experts, n_used=n_used)
            if is_copied and weight.type not in ("f32", "f16", "bf16"):
                offloaded = hp.n_embd * n_used
        found[product._replace(is_copied=is_copied)] = None
    attends = layout.cache_device_bytes[device] > 0 and not layout.compute.flash_attn
    return scratch.Products(
        n_tokens=context.n_tokens,
        each=tuple(found),
        offloaded_expert_row=offloaded,
        scores=context.n_tokens * context.n_ctx * max(hp.n_head, default=0) if attends else 0,
        copied_cells=_copied_cells(layout, device),
    )


def _copied_cells(layout: MemoryLayout, device: int) -> int:
    """Elements of K and V of the largest layer on a device that flash attention copies where no buffer has room."""
    if layout.context.version.follows(FLASH_SCRATCH) or not layout.compute.flash_attn:
        return 0
    sizes: dict[tuple[str, int], int] = {}
    for tensor in (tensor for cache in layout.caches for tensor in cache.tensors):
        is_here = tensor.il < len(layout.placement.blocks) and layout.placement.blocks[tensor.il] == device
        if is_here and tensor.side in ("k", "v") and tensor.cache in ("base", "swa") and tensor.type != "f16":
            key = (tensor.cache, tensor.il)
            sizes[key] = sizes.get(key, 0) + tensor.n_elements * tensor.n_rows
    return max(sizes.values(), default=0)


def _uses(
    devices: Sequence[Device], items: Mapping[str, list[MemoryItem]], margins: Sequence[Margin]
) -> Iterator[DeviceUse]:
    for i, device in enumerate(devices):
        yield DeviceUse(
            device=device,
            items=tuple(items[device.id]),
            total_bytes=device.total_bytes,
            free_bytes=device.free_bytes,
            margin_bytes=margin_of(i, margins, device.total_bytes or device.free_bytes or 0, Margin()),
        )


def _report(layout: MemoryLayout, devices: Sequence[Device]) -> LlamaReportDocument:
    """The engine's memory breakdown (common/fit.cpp prints it as model, context, compute)."""
    plan, context, experts = layout.weight_plan, layout.context, layout.experts
    return {
        "devices": [
            {
                "id": device.id,
                "model_bytes": plan.device_bytes[i],
                "context_bytes": layout.cache_device_bytes[i] + (0 if experts is None else experts.device_bytes[i]),
                "compute_bytes": layout.compute.device_bytes[i],
            }
            for i, device in enumerate(devices)
        ],
        "host": {
            "model_bytes": plan.host_all_bytes,
            "context_bytes": layout.cache_host_bytes + (0 if experts is None else experts.host_bytes),
            "compute_bytes": layout.compute.host_bytes,
        },
        "n_ctx": context.n_ctx,
        "n_ctx_seq": context.n_ctx_seq,
        "n_batch": context.n_batch,
        "n_ubatch": context.n_ubatch,
        "n_seq_max": context.n_seq_max,
        "flash_attn": layout.compute.flash_attn,
        "sched_copies": layout.compute.n_copies,
    }


def _cache_label(layout: MemoryLayout) -> str:
    context = layout.context
    types = context.type_k if context.type_k == context.type_v else f"{context.type_k}/{context.type_v}"
    return f"cache, {context.n_ctx_seq} cells, {types}"


def _add(
    to: list[MemoryItem],
    kind: Kind,
    n_bytes: int,
    basis: Basis,
    label: str,
    source: str,
    *,
    mapped: bool = False,
) -> None:
    if n_bytes:
        to.append(MemoryItem(kind=kind, n_bytes=n_bytes, basis=basis, label=label, source=source, mapped=mapped))
