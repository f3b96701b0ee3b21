"""What is asked, and what is found: the values that all of planning speaks of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from autofit.domain.machine import Device, Machine
from autofit.domain.plan import Speed
from autofit.domain.request import Request
from autofit.domain.values import dataclass, field, replace
from autofit.errors import EngineRefusalError
from autofit.speed import Roofline

from autofit_vllm.command.settings import VllmSettings
from autofit_vllm.config.engine import EngineConfig, Gpu
from autofit_vllm.config.resolve import resolve
from autofit_vllm.config.resolve.batch import batch_defaults
from autofit_vllm.modules.model import LatentCache, PackedCache, Parallel, StageWeights, VllmModel
from autofit_vllm.planning.efficiencies import EFFICIENCIES
from autofit_vllm.planning.evaluation import Evaluation
from autofit_vllm.planning.load import Load
from autofit_vllm.quantization import NONE, Quantization


def _as_it_is(change: Mapping[str, Any]) -> Problem:
    raise EngineRefusalError("the model is not at hand", hint=f"of {', '.join(change)}")


Weigh = Callable[[EngineConfig], tuple[StageWeights, ...]]
USEFUL_TOKENS = 32768  #: a context that is worth other things; more is taken where it is free
ENOUGH_TOKENS = 4096  #: below this a plan is taken only when nothing else fits
DEFAULT_TOKENS = 16384  #: trained contexts are worth an 8-bit cache up to this
KERNEL_HEADS = 64  #: that kernels of sparse latent attention fill a rank's heads up to (mla/flashmla_sparse.py)
LOSSY_KV = "fp8"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Everything a search needs; `weigh` gives the weights of each stage under a configuration."""

    model: VllmModel
    settings: VllmSettings
    request: Request
    machine: Machine
    devices: tuple[Device, ...]
    weigh: Weigh
    visible: tuple[Device, ...] = ()  #: those that `--device-ids` counts, where a wish leaves some out
    quantization: Quantization = NONE
    vision: Mapping[str, object] | None = None
    nodes: int = 1  #: machines that `devices` are of, an equal part each
    changed: Callable[[Mapping[str, Any]], Problem] = field(default=_as_it_is)  #: the same with other settings

    def resolve(self, settings: VllmSettings, gpu: Gpu) -> EngineConfig:
        """The engine's configuration; a step that nobody chose holds a token of every sequence, or vLLM refuses
        (config/scheduler.py:verify_max_model_len)."""
        seqs = settings.max_num_seqs
        if seqs is not None and settings.max_num_batched_tokens is None:
            whole = settings.max_model_len or 0 if settings.enable_chunked_prefill is False else 0
            default, _ = batch_defaults(gpu)
            if seqs > max(default, whole):
                settings = replace(settings, max_num_batched_tokens=seqs)
        return resolve(
            settings, self.model, gpu, quantization=self.quantization, n_gpus=len(self.devices) // self.nodes
        )

    def slices_experts(self, tp: int) -> bool:
        """Whether tensor parallelism may cut through each expert, and its quantization's blocks stay whole."""
        block = getattr(getattr(self.quantization, "scheme", None), "block", None)
        size = block[0] if isinstance(block, tuple) and block else 1
        return self.model.moe_intermediate_size % (tp * size) == 0

    def pads_heads(self, tp: int) -> bool:
        """Whether kernels compute more heads than a rank has."""
        sparse = any(
            (isinstance(cache, LatentCache) and cache.sparse)
            or (isinstance(cache, PackedCache) and cache.backend.startswith("FLASHMLA_SPARSE"))
            for cache in self.model.caches
        )
        return sparse and (self.model.n_heads // tp) % KERNEL_HEADS != 0

    @cached_property
    def roofline(self) -> Roofline:
        return Roofline(self.machine, EFFICIENCIES)

    @property
    def target(self) -> int:
        """The length at which batch and layout are no longer sacrificed for more."""
        goal, _ = self.lengths
        wanted = self.request.context is not None or self.request.prefer == "context"
        return goal if wanted else min(goal, USEFUL_TOKENS)

    @property
    def n_parallel(self) -> int:
        return self.request.parallel or 1

    @property
    def longest(self) -> bool:
        """Whether the longest context that fits is asked for (`-c max`), whatever it costs."""
        return self.request.context == 0

    @property
    def worth(self) -> int:
        """The length below which graphs go, and weights leave the GPUs."""
        goal, least = self.lengths
        return goal if self.longest else max(least, min(self.target, ENOUGH_TOKENS))

    @property
    def wished(self) -> int:
        """The length with which a lossless cache is kept: what was asked for, or a moderate one."""
        goal, least = self.lengths
        if self.longest:
            return goal
        asked = self.request.context or self.request.min_context
        return max(least, min(goal, asked or DEFAULT_TOKENS))

    @property
    def n_slots(self) -> int | None:
        """`--max-num-seqs` as it was wished; what a preset asks for throughput is the least."""
        least = self.request.prefer == "throughput" and self.request.origin("parallel") == "preset"
        return None if least else self.request.parallel

    @property
    def lengths(self) -> tuple[int, int]:
        """(the length to aim for, the least that will do), before memory is asked."""
        model, request, settings = self.model, self.request, self.settings
        longest = model.max_len_tokens or USEFUL_TOKENS
        usual = model.default_len_tokens or longest
        if settings.disable_sliding_window and model.sliding_window:
            longest = usual = min(longest, model.sliding_window)
        cap = request.max_context or longest
        least = request.min_context or 1
        if request.context:
            return request.context, request.context
        goal = longest if request.context == 0 else usual
        return max(1, min(goal, cap)), min(least, max(1, min(goal, cap)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to run the model, with the settings that were chosen for it."""

    evaluation: Evaluation
    values: Mapping[str, Any]  #: settings by name, in the order in which they are printed
    length: int  #: tokens of one sequence; 0 when nothing fits
    served: float = 0.0  #: part of the sequences wished that the cache holds at their average length, at most 1
    speed: Speed | None = None  #: of one sequence alone
    pace: float = 0.0  #: `rate` with 8 bits of cache that nobody asked for counted as those they stand for
    load: Load | None = None  #: as many sequences as are served at a time
    late: str | None = None  #: the wish for speed that is not met
    short_bytes: int = 0  #: what RAM lacks

    @property
    def fits(self) -> bool:
        return self.holds and self.late is None

    @property
    def holds(self) -> bool:
        """Whether it starts, however fast."""
        return self.length > 0 and self.evaluation.fits and self.short_bytes <= 0

    @property
    def rate(self) -> float:
        """Tokens per second of one sequence alone; 0 where it is unknown."""
        return self.speed.decode_tokens_per_s if self.speed else 0.0

    @property
    def total_speed(self) -> float:
        """Tokens per second of all sequences together."""
        if self.load is None:
            return 0.0
        return self.load.total_tokens_per_s or float(self.load.n_sequences)

    @property
    def parallel(self) -> Parallel:
        return self.evaluation.config.parallel


@dataclass(frozen=True, slots=True, kw_only=True)
class RankLayout:
    """Ranks, and the devices that take them."""

    values: Mapping[str, Any]
    devices: tuple[Device, ...]
    world_size: int
    env: Mapping[str, str] = field(default_factory=dict)  #: variables that say what no flag can

    @property
    def n_stages(self) -> int:
        return int(self.values.get("pipeline_parallel_size", 1))
