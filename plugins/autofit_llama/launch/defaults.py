"""What each program of llama.cpp makes of a command: its defaults, slots, logits, and the draft's context.

Source: common/common.h (struct common_params), common/common.cpp:common_context_params_to_llama,
tools/server/server.cpp and server-context.cpp:load_model (llama-cli runs the same in its own process),
common/speculative.cpp:common_base_params_to_speculative,
tools/llama-bench/llama-bench.cpp:cmd_params_defaults.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, TypeVar

from autofit.domain.model import ModelSpec
from autofit.domain.values import NamedTuple, dataclass, replace
from autofit.errors import EngineRefusalError, UsageError

from autofit_llama.command.options import PYTHON_SERVER, Program
from autofit_llama.command.settings import LlamaSettings
from autofit_llama.command.values import AUTO_LAYERS, POOLING
from autofit_llama.engine.versions import LATEST, Version
from autofit_llama.engine.vocabulary import POOLING_NONE, POOLING_UNSPECIFIED, LazyMode, LoadMode, Override, SplitMode
from autofit_llama.model.architecture import architecture_of
from autofit_llama.model.context import MAX_SEQUENCES, Context, ContextParams
from autofit_llama.model.hparams import HParams

_T = TypeVar("_T")
SERVERS = ("llama-server", "llama-cli")
FITTING = (*SERVERS, "llama-completion", "llama-fit-params")  #: programs that have `--fit`
SERVER_SLOTS = 4  #: what `-np -1` means to llama-server
_ROLLS_BACK = frozenset(("draft-mtp", "draft-eagle3", "draft-dflash", "draft-dspark"))
_DRAFTS_BLOCKS = frozenset(("draft-dflash", "draft-dspark"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """The second model, or (without `has_model`) the draft head of the first, that guesses tokens ahead.

    `devices` `None` and empty `overrides` follow the model's own rules; a draft head has the model's weights.
    """

    has_model: bool
    mtp: bool
    type_k: str = "f16"
    type_v: str = "f16"
    n_outputs_max: int = 1
    n_gpu_layers: int = AUTO_LAYERS
    devices: tuple[str, ...] | None = None
    overrides: tuple[Override, ...] = ()
    split_mode: SplitMode = "layer"

    def context(self, main: ContextParams, resolved: Context) -> ContextParams:
        """What the draft's context is asked for, once the main one is known."""
        return replace(
            main,
            n_ctx=resolved.n_ctx,
            n_rs_seq=0,
            n_outputs_max=self.n_outputs_max,
            type_k=self.type_k,
            type_v=self.type_v,
            embeddings=False,
            pooling_type=POOLING_UNSPECIFIED,
            mtp=self.mtp,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Everything one program asks of the library, with its own defaults filled in.

    `keep_context`: `-c 0` was written, and no `--fit-ctx` after it: `--fit` never makes the context smaller.
    """

    program: str
    context: ContextParams
    n_gpu_layers: int = AUTO_LAYERS
    split_mode: SplitMode = "layer"
    tensor_split: tuple[float, ...] = ()
    main_gpu: int = 0
    rpc: tuple[str, ...] = ()
    devices: tuple[str, ...] | None = None
    overrides: tuple[Override, ...] = ()
    moe_cache_mib: int = 0
    load_mode: LoadMode = "auto"
    lazy_mode: LazyMode = "auto"
    repack: bool = True
    no_host: bool = False
    load_mtp: bool = False
    fit: bool = True
    fit_target_mib: tuple[int, ...] = (1024,)
    fit_ctx: int = 4096
    fit_counts_draft: bool = True
    keep_context: bool = False
    is_server: bool = False
    cache_ram_mib: int = 8192
    n_checkpoints: int = 32
    checkpoint_min_step: int = 8192
    mmproj_offload: bool = True
    mmproj_device: str | None = None
    draft: Draft | None = None
    keeps_logits: bool = False  #: those of every token of the context (llama-cpp-python)

    def maps_file(self, devices_map: bool = True) -> bool:
        """Whether weights of the host stay in the mapped file (llama-model.cpp:load_tensors)."""
        return self.load_mode in ("mmap", "mmap+mlock") or (self.load_mode == "auto" and devices_map)

    @property
    def fits_itself(self) -> bool:
        """Whether the program runs `--fit` before it loads (common/common.cpp:common_init_result)."""
        return self.fit and self.program in FITTING

    @property
    def loads(self) -> bool:
        """Whether the program goes on with what `--fit` has chosen: llama-fit-params only prints it."""
        return self.program != "llama-fit-params"

    @property
    def locks_memory(self) -> bool:
        return self.load_mode in ("mlock", "mmap+mlock")


def launch_of(
    settings: LlamaSettings,
    program: Program | Literal["llama-cpp-python"],
    *,
    draft: ModelSpec | None = None,
    version: Version = LATEST,
) -> Launch:
    """`settings` with everything left open filled in as `program` of this version would.

    `draft` is the draft model where there is one: without `--spec-type` it decides how it is used.

    Raises:
        UsageError: numbers that no program accepts.
    """
    _check_numbers(settings)
    if program in PYTHONS:
        settings = settings.or_else(PYTHONS[program])
    types = settings.spec_types or (() if draft is None else spec_types_of(draft))
    if types and settings.draft_n_max is None:
        settings = replace(settings, draft_n_max=max(version.numbers("draft_n_max")))
    serves = program in SERVERS
    has_draft = settings.draft_model is not None or settings.draft_hf_repo is not None
    batch = _batch(settings, program, version)
    mtp = "draft-mtp" in types
    bench = program == "llama-bench"
    return Launch(
        program=program,
        context=_context_params(settings, batch, types, version, serves=serves),
        n_gpu_layers=_or(settings.n_gpu_layers, 0 if version.surely("all_layers", "off") else AUTO_LAYERS),
        split_mode=settings.split_mode or "layer",
        tensor_split=settings.tensor_split or (),
        main_gpu=settings.main_gpu or 0,
        rpc=settings.rpc,
        devices=settings.devices,
        overrides=settings.overrides,
        moe_cache_mib=settings.moe_cache_mib or 0,
        load_mode=settings.load_mode or "auto",
        lazy_mode=settings.lazy_mode or "auto",
        repack=_or(settings.repack, True),
        no_host=settings.no_host or False,
        load_mtp=mtp,
        fit=_or(settings.fit, not bench and version.perhaps("fit", "on")) and program not in PYTHONS,
        fit_target_mib=settings.fit_target_mib or ((0,) if bench else (1024,)),
        fit_ctx=_or(settings.fit_ctx, 0 if bench else 4096),
        fit_counts_draft=version.surely("fit_draft", "on"),
        keep_context=settings.n_ctx == 0 and settings.fit_ctx is None,
        is_server=serves,
        cache_ram_mib=_or(settings.cache_ram_mib, max(version.numbers("cache_ram_mib"), default=0)),
        n_checkpoints=_or(settings.n_checkpoints, max(version.numbers("n_checkpoints"), default=0)),
        checkpoint_min_step=_or(settings.checkpoint_min_step, min(version.numbers("checkpoint_min_step"), default=1)),
        mmproj_offload=_or(settings.mmproj_offload, True),
        mmproj_device=settings.mmproj_device,
        draft=_draft(settings, types, batch.n_parallel, has_draft) if serves and (has_draft or mtp) else None,
        keeps_logits=settings.logits_all or False,
    )


class _Batch(NamedTuple):
    """Sizes that the programs settle in their own ways."""

    n_ctx: int
    n_batch: int
    n_ubatch: int
    n_parallel: int
    kv_unified: bool


def _batch(settings: LlamaSettings, program: Program | Literal["llama-cpp-python"], version: Version) -> _Batch:
    embedding = settings.embedding or False
    n_ubatch = _or(settings.n_ubatch, 512)
    n_batch = _or(settings.n_batch, 2048)
    n_parallel, kv_unified = _or(settings.n_parallel, 1), settings.kv_unified or False
    if program == "llama-server":
        if embedding and n_batch > n_ubatch:
            n_batch = n_ubatch
        if _or(settings.n_parallel, -1) < 0:
            n_parallel, kv_unified = (1, kv_unified) if version.surely("server_slots", "1") else (SERVER_SLOTS, True)
    if program in PYTHONS and embedding:
        n_parallel, kv_unified = min(n_batch, MAX_SEQUENCES), True
    n_ctx = _or(settings.n_ctx, 4096 if version.surely("n_ctx", "4096") else 0)
    if settings.n_ctx is None and (settings.kv_unified_per_slot or 0) > 0:
        n_ctx = n_parallel * (settings.kv_unified_per_slot or 0)
    if program == "llama-completion" and 0 < n_ctx < 8:
        n_ctx = 8
    return _Batch(n_ctx, n_batch, n_ubatch, n_parallel, kv_unified)


def _context_params(
    settings: LlamaSettings, batch: _Batch, types: tuple[str, ...], version: Version, *, serves: bool
) -> ContextParams:
    n_parallel, embedding = batch.n_parallel, settings.embedding or False
    pooling = POOLING_UNSPECIFIED if settings.pooling is None else POOLING[settings.pooling]
    n_draft = n_drafted(settings, types) if serves else 0
    few_outputs = serves and version.surely("few_outputs", "on")
    return ContextParams(
        n_ctx=batch.n_ctx,
        n_batch=batch.n_batch,
        n_ubatch=batch.n_ubatch,
        n_seq_max=n_parallel if n_parallel >= 0 else n_parallel + (1 << 32),
        n_rs_seq=_or(settings.draft_n_max, 3) if _ROLLS_BACK.intersection(types) else 0,
        n_outputs_max=_server_outputs(embedding, pooling, batch.n_batch, n_parallel, n_draft) if few_outputs else 0,
        kv_unified=batch.kv_unified,
        type_k=settings.type_k or "f16",
        type_v=settings.type_v or "f16",
        flash_attn=settings.flash_attn or ("off" if version.perhaps("flash_attn", "off") else "auto"),
        swa_full=settings.swa_full or False,
        offload_kqv=_or(settings.kv_offload, True),
        op_offload=_or(settings.op_offload, True),
        embeddings=embedding,
        pooling_type=pooling,
        version=version,
    )


def spec_types_of(draft: ModelSpec) -> tuple[str, ...]:
    """How a draft model is used when `--spec-type` is not said (common_speculative_types_from_gguf)."""
    names = {tensor.name for tensor in draft.tensors}
    if draft.architecture == "dflash":
        return ("draft-dspark",) if "markov_w1.weight" in names else ("draft-dflash",)
    n_blocks = draft.metadata.get(f"{draft.architecture}.block_count")
    if isinstance(n_blocks, int) and f"blk.{n_blocks - 1}.nextn.eh_proj.weight" in names:
        return ("draft-mtp",)
    return ()


def n_drafted(settings: LlamaSettings, types: tuple[str, ...]) -> int:
    """The most tokens that are guessed ahead (common_speculative_n_max)."""
    longest = {
        "ngram-simple": _or(settings.ngram_simple_size_m, 48),
        "ngram-map-k": _or(settings.ngram_map_k_size_m, 48),
        "ngram-map-k4v": _or(settings.ngram_map_k4v_size_m, 48),
        "ngram-mod": _or(settings.ngram_mod_n_max, 64),
        "ngram-cache": 8,
        "none": 0,
    }
    draft = _or(settings.draft_n_max, 3)
    return max((longest.get(name, draft) for name in types), default=0)


def check_launch(launch: Launch, hp: HParams, apis: tuple[str, ...]) -> None:
    """Refuse what loading a model refuses; `apis` are the devices' (`cuda`, `rpc`).

    Raises:
        EngineRefusalError: with the library's reason.
    """
    mode = launch.split_mode
    if mode == "none" and apis and launch.main_gpu >= len(apis):
        raise EngineRefusalError(
            f"llama.cpp refuses: invalid value for main_gpu: {launch.main_gpu}, with {len(apis)} devices",
            hint="devices are numbered from 0, in the engine's order",
        )
    if mode == "row":
        without = next((api for api in apis if api not in _SPLITS_ROWS), None)
        if without is not None:
            raise EngineRefusalError(
                f"llama.cpp refuses: device of {without} does not support split buffers",
                hint="use -sm layer: pull request 24216 removed row splits from CUDA, and older builds are not modeled",
            )
    if mode == "tensor":
        if not apis:
            raise EngineRefusalError("llama.cpp refuses: LLAMA_SPLIT_MODE_TENSOR needs >= 1 devices")
        if architecture_of(hp.arch).tensor_split is None:
            raise EngineRefusalError(
                f"llama.cpp refuses: LLAMA_SPLIT_MODE_TENSOR not implemented for architecture {hp.arch!r}",
                hint="use -sm layer",
            )
        if launch.context.flash_attn == "off":
            raise EngineRefusalError(
                "llama.cpp refuses: SPLIT_MODE_TENSOR requires flash_attn to be enabled",
                hint="leave out -fa off",
            )


def check_stands_alone(hp: HParams, names: Collection[str]) -> None:
    """Refuse a draft model, with tensors of these `names`, where there is no model that it drafts for.

    Raises:
        EngineRefusalError: it would read the cache, the embedding or the output of another model.
    """
    alone = architecture_of(hp.arch).stands_alone
    if alone == "never" or (alone == "with its own ends" and not _OWN_ENDS.issubset(names)):
        raise EngineRefusalError(
            f"llama.cpp refuses: {hp.arch} requires ctx_other to be set",
            hint="this is a draft model: give the model it drafts for with -m, and this one with -md",
        )


def chosen(launch: Launch, n_devices: int) -> tuple[int, ...]:
    """Which of the devices in the engine's order remain: one with `-sm none`, none with a negative `-mg`."""
    if launch.split_mode != "none" or n_devices == 0:
        return tuple(range(n_devices))
    return (launch.main_gpu,) if 0 <= launch.main_gpu < n_devices else ()


def buffer_names(devices: Sequence[str], rpc: Sequence[str]) -> tuple[str, ...]:
    """How `-ot` names the memory of these devices: by name, a remote one with its server (ggml-rpc.cpp).

    `rpc` are the servers of `--rpc`; they are taken to have one device each.
    """
    return tuple(
        f"RPC0[{rpc[int(name[3:])]}]" if name.startswith("RPC") and int(name[3:]) < len(rpc) else name
        for name in devices
    )


_OWN_ENDS = frozenset(("token_embd.weight", "output.weight"))

#: backends that implement ggml_backend_split_buffer_type
_SPLITS_ROWS = frozenset(("sycl", "hexagon"))

#: llama_cpp/llama.py:Llama.__init__; its library default keeps whole sliding-window caches
_PYTHON_DEFAULTS = LlamaSettings(
    n_ctx=512, n_batch=512, n_ubatch=512, n_gpu_layers=0, flash_attn="off", swa_full=True, load_mode="mmap",
    logits_all=False, cache_ram_mib=0,
)  # fmt: skip
#: llama_cpp/server/settings.py:ModelSettings, which says all of them to the class
_PYTHON_SERVER_DEFAULTS = replace(_PYTHON_DEFAULTS, n_ctx=2048, load_mode="mmap+mlock", logits_all=True)
PYTHONS: Mapping[str, LlamaSettings] = {
    "llama-cpp-python": _PYTHON_DEFAULTS,
    PYTHON_SERVER: _PYTHON_SERVER_DEFAULTS,
}
"""Defaults of the programs of llama-cpp-python: one sequence, and no `--fit`."""


def _or(value: _T | None, default: _T) -> _T:
    return default if value is None else value


def _check_numbers(settings: LlamaSettings) -> None:
    for name, flag in (("n_ctx", "-c"), ("n_batch", "-b"), ("n_ubatch", "-ub")):
        value = getattr(settings, name)
        if value is not None and (value < 0 or (value == 0 and name == "n_batch")):
            raise UsageError(f"{flag} {value}: a positive number is needed")


def _server_outputs(embedding: bool, pooling: int, n_batch: int, n_parallel: int, n_draft: int) -> int:
    """server-context.cpp:server_output_limits."""
    if embedding or pooling not in (POOLING_UNSPECIFIED, POOLING_NONE):
        return n_batch
    return max(1, min(n_batch, n_parallel * (1 + n_draft)))


def _draft(settings: LlamaSettings, types: tuple[str, ...], n_parallel: int, has_model: bool) -> Draft:
    n_max = _or(settings.draft_n_max, 3)
    per_sequence = max(1, n_max + 1) if _DRAFTS_BLOCKS.intersection(types) else 1
    one_device = settings.draft_devices is not None and len(settings.draft_devices) == 1
    draft = Draft(
        has_model=has_model,
        mtp="draft-mtp" in types,
        type_k=settings.draft_type_k or "f16",
        type_v=settings.draft_type_v or "f16",
        n_outputs_max=n_parallel * per_sequence,
    )
    if not has_model:
        return draft
    return replace(
        draft,
        n_gpu_layers=_or(settings.draft_n_gpu_layers, AUTO_LAYERS),
        devices=settings.draft_devices,
        overrides=settings.draft_overrides,
        split_mode="layer" if one_device else settings.split_mode or "layer",
    )
