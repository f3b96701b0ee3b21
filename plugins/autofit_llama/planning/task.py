"""One planning job: what is planned for which machine, what is wished, and what the user has fixed."""

from __future__ import annotations

import math
from typing import Any

from autofit.domain.machine import Device, Machine
from autofit.domain.model import ModelSpec
from autofit.domain.plan import Speed
from autofit.domain.request import Margin, Prefer, Request
from autofit.domain.text import printable
from autofit.domain.values import dataclass, replace
from autofit.errors import EngineRefusalError

from autofit_llama.command.options import PYTHON_SERVER
from autofit_llama.command.parse import Command
from autofit_llama.command.settings import LlamaSettings
from autofit_llama.engine.vocabulary import POOLING_NONE, POOLING_RANK
from autofit_llama.launch.defaults import SERVERS, launch_of
from autofit_llama.launch.margins import margins_of
from autofit_llama.launch.process import engine_devices, servers_of
from autofit_llama.loading.check import check_loads
from autofit_llama.memory.estimate import size
from autofit_llama.memory.layout import ParsedModel
from autofit_llama.model.architecture import architecture_of
from autofit_llama.model.context import ContextParams
from autofit_llama.model.hparams import HParams
from autofit_llama.model.known import check_architectures
from autofit_llama.model.metadata import overridden
from autofit_llama.model.resolve import caches, resolve_context
from autofit_llama.planning.goals import (
    COMPARED_TOKENS,
    DECODE_FIRST,
    DECODE_FLOORS,
    FLOOR_TOKENS,
    MEMORY_FIRST,
    PROMPTS_TOO,
    USEFUL_TOKENS,
    Goals,
)
from autofit_llama.planning.pins import (
    Pins,
    bounds_of,
    check_margins,
    check_pins,
    devices_of,
    listed_devices,
    read_pins,
)
from autofit_llama.planning.problem import FILLED_TOKENS, LaunchProblem
from autofit_llama.planning.search import Found, Search

_TRADES = {"throughput": PROMPTS_TOO, "memory": MEMORY_FIRST}


@dataclass(frozen=True, slots=True)
class _Rates:
    """The rates by which answers are compared, in tokens/s."""

    problem: LaunchProblem
    request: Request
    prefer: Prefer
    embeds: bool  #: nothing is decoded

    def near(self, found: Found) -> float:
        """Decode near the start of the context, or full where that is preferred; prompts where nothing is decoded."""
        speed = self.problem.speed(found.candidate, found.split, n_filled=self._filled(found))
        if speed is None:
            return 1.0 / found.seconds
        return (speed.prefill_tokens_per_s or 0.0) if self.embeds else speed.decode_tokens_per_s

    def near_with(self, found: Found, kv: tuple[str, str]) -> float:
        """The same with other types of the cache in its place; infinity where that is unknown."""
        if self.embeds:
            return math.inf
        speed = self.problem.speed_with(found.candidate, found.split, kv, n_filled=self._filled(found))
        return math.inf if speed is None else speed.decode_tokens_per_s

    def _filled(self, found: Found) -> int | None:
        if self.prefer == "context" or self.embeds:
            return None
        return min(FILLED_TOKENS, found.candidate.n_ctx_seq)

    def full(self, found: Found) -> float:
        speed = self.problem.speed(found.candidate, found.split)
        return 1.0 / found.seconds if speed is None else speed.decode_tokens_per_s

    def prompts(self, found: Found, n_ubatch: int) -> float:
        n_prompt = max(COMPARED_TOKENS, n_ubatch)
        speed = self.problem.speed(found.candidate, found.split, n_ubatch=n_ubatch, n_filled=n_prompt)
        return 0.0 if speed is None else speed.prefill_tokens_per_s or 0.0

    def meets(self, found: Found, n_ubatch: int) -> bool:
        """Whether it is as fast as wished."""
        if self.request.min_tps is None and self.request.max_ttft is None:
            return True
        speed = self.problem.speed(found.candidate, found.split, n_ubatch=n_ubatch)
        return not slower_than_wished(self.request, speed, found.candidate.n_ctx_seq)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One planning job: the facts, the wishes, and the pins that are kept."""

    model: ModelSpec
    sized: ParsedModel
    machine: Machine
    request: Request
    pins: Pins
    devices: tuple[Device, ...]
    margins: dict[str, tuple[Margin, str]]
    base: LlamaSettings  #: the pins, and what is settled before the search
    n_parallel: int

    def search(self, pins: Pins | None = None, base: LlamaSettings | None = None) -> Search:
        pins = pins or self.pins
        problem = LaunchProblem(
            model=self.model,
            sized=self.sized,
            machine=self.machine,
            program=pins.reading.program,
            settings=self.base if base is None else base,
            devices=self.devices,
            listed=listed_devices(pins, self.request, self.machine),
            bounds=bounds_of(pins, self.devices, self.sized.hparams.n_layer_all),
            margins={name: margin for name, (margin, _) in self.margins.items()},
            n_parallel=self.n_parallel,
            n_busy=self.n_parallel if self.request.prefer == "throughput" else 1,
            deep=self.fills,
            version=pins.version,
        )
        if self.shares_blocks:
            from autofit_llama.planning.tensor_parallel import TensorSearch  # few commands need it

            return TensorSearch(problem, self.request.in_ram)
        return Search(problem, self.request.in_ram)

    @property
    def shares_blocks(self) -> bool:
        """Whether every device gets a part of every block (`-sm tensor`)."""
        return self.pins.settings.split_mode == "tensor"

    def is_remote(self, device_id: str) -> bool:
        """Whether a device is behind a server on another machine."""
        return any(device.id == device_id and device.api == "rpc" for device in self.machine.devices)

    @property
    def trained(self) -> int:
        return self.sized.hparams.n_ctx_train or USEFUL_TOKENS

    @property
    def exact_context(self) -> int | None:
        """Tokens of one sequence, where somebody has said them."""
        given = self.pins.settings
        if given.n_ctx is not None:
            return max(1, (given.n_ctx or self.trained) // self.n_parallel)
        if given.kv_unified_per_slot is not None:
            return given.kv_unified_per_slot
        return self.request.context or None

    @property
    def fills(self) -> bool:
        """Whether placements are compared with much of the context filled: it was asked for, not found."""
        alone = self.longest and self.n_parallel == 1  # several sequences do not all fill the longest there is
        return self.request.prefer == "context" or self.exact_context is not None or alone

    @property
    def longest(self) -> bool:
        """Whether the longest context that fits is asked for (`-c max`)."""
        return self.request.context == 0 and self.exact_context is None

    def goals(self, search: Search) -> Goals:
        request, given, problem = self.request, self.pins.settings, search.problem
        assert isinstance(problem, LaunchProblem)
        launch = launch_of(self.base, self.pins.reading.program, version=self.pins.version)
        least, most = self.contexts()
        longest = self.longest
        prefer = "context" if longest else request.prefer
        n_ubatch, n_batch = launch.context.n_ubatch, launch.context.n_batch
        if self.reads_whole_inputs(launch.context, least):
            n_ubatch = n_batch = least
            most = most if longest else least

        rates = _Rates(problem, request, prefer, embeds=bool(self.base.embedding))
        return Goals(
            prefer=prefer,
            least=least,
            most=most,
            rate=rates.near,
            rate_with=rates.near_with,
            filled="" if self.base.embedding else _filled(prefer, most),
            full=rates.full,
            prompts=rates.prompts,
            meets=rates.meets,
            kv_types=self.kv_types(),
            keeps_precision=request.prefer == "quality",
            fills=self.fills,
            floors=() if longest else DECODE_FLOORS,
            floor_tokens=0 if prefer == "throughput" else min(self.trained, FLOOR_TOKENS),
            n_ubatch=n_ubatch,
            n_batch=n_batch,
            free_ubatch=given.n_ubatch is None and given.n_batch is None and not self.base.embedding,
            trades=_TRADES.get(request.prefer, DECODE_FIRST),
        )

    def reads_whole_inputs(self, params: ContextParams, n_ctx: int) -> bool:
        """Whether inputs must fit in one micro-batch and neither -b nor -ub is set."""
        given, hp = self.pins.settings, self.sized.hparams
        if not self.base.embedding or given.n_ubatch is not None or given.n_batch is not None:
            return False
        context = resolve_context(hp, replace(params, n_ctx=n_ctx * self.n_parallel))
        return self.pins.reading.program in SERVERS and not context.splits_inputs(bool(caches(hp, context)))

    def contexts(self) -> tuple[int, int]:
        """The least and the most tokens of one sequence."""
        exact = self.exact_context
        if exact is not None:
            return exact, exact
        request = self.request
        most = min(self.trained, request.max_context or self.trained)
        least = request.min_context or min(most, USEFUL_TOKENS)
        return least, max(least, most)

    def kv_types(self) -> tuple[tuple[str, str], ...]:
        """Pairs for K and V that may be chosen, lossless first."""
        given, wish = self.pins.settings, self.request.kv
        # Cut caches of quantized types came later to the engine than -sm tensor: they are only taken if asked for.
        auto = ("f16",) if self.shares_blocks else ("f16", "q8_0")
        types = auto if wish in (None, "auto") else (wish,)
        pairs = [(given.type_k or name, given.type_v or name) for name in types]
        hp = self.sized.hparams
        heads = {head(il) for head in (hp.n_embd_head_k, hp.n_embd_head_v) for il in range(hp.n_layer)}
        whole = (
            all(head % 32 == 0 for head in heads)
            and architecture_of(hp.arch).flash_attention
            and given.flash_attn != "off"
        )
        return tuple(dict.fromkeys(pair for i, pair in enumerate(pairs) if i == 0 or whole))


def task_of(command: Command, model: ModelSpec, machine: Machine, request: Request) -> Task:
    pins = read_pins(command, request)
    given = pins.settings
    model = overridden(model, given.kv_overrides)
    unsure = check_architectures(model, pins.version, named=request.engine_version is not None)
    unsure += check_loads(model, pins.version)
    pins = replace(pins, findings=(*pins.findings, *unsure)) if unsure else pins
    sized = size(model)
    check_pins(pins, request, machine, sized.hparams)
    _check_trained(pins, sized.hparams)
    devices = devices_of(pins, request, machine)
    margins = dict(margins_of(request.margin, machine.devices, pins.version))
    reserves = {d.id: margins[d.id][0].of(d.total_bytes or d.free_bytes or 0) for d in devices}
    check_margins(reserves, machine, is_asked=bool(request.margin))
    program = pins.reading.program
    n_parallel = given.n_parallel
    if n_parallel is None:
        n_parallel = None if pins.is_python else request.parallel or (1 if program in SERVERS else None)
    base = replace(given, n_parallel=n_parallel)
    if not pins.is_python:
        base = replace(base, rpc=given.rpc or servers_of(machine, machine.devices))
    else:
        base = replace(base, **_python(pins, sized.hparams, request, machine))
    if program in SERVERS:
        # Caches of the server are made to measure once the placement is known: weights and context come first.
        base = replace(
            base,
            cache_ram_mib=0 if given.cache_ram_mib is None else given.cache_ram_mib,
            n_checkpoints=0 if given.n_checkpoints is None else given.n_checkpoints,
            **_pooling(given, sized.hparams, program),
        )
    launch = launch_of(base, program, draft=model.companions.get("draft"), version=pins.version)
    slots = 1 if pins.is_python else launch.context.n_seq_max
    return Task(
        model=model,
        sized=sized,
        machine=machine,
        request=request,
        pins=pins,
        devices=devices,
        margins=margins,
        base=base,
        n_parallel=slots,
    )


def _check_trained(pins: Pins, hp: HParams) -> None:
    """A server that starts and answers nothing is no plan (tools/server/server-context.cpp:n_ctx_slot).

    Raises:
        EngineRefusalError: the file states 0 as trained context, to which each slot is limited.
    """
    if hp.n_ctx_train == 0 and pins.reading.program in SERVERS:
        key = f"{printable(hp.arch, 40)}.context_length"
        raise EngineRefusalError(
            f"{pins.reading.program} limits each slot to the trained context, and {key} is 0",
            hint=f"--override-kv {key}=int:{USEFUL_TOKENS} after -- states another",
        )


def _pooling(given: LlamaSettings, hp: HParams, program: str) -> dict[str, Any]:
    """The flags without which a server answers no request that an embedding or reranking model is for."""
    if program not in ("llama-server", PYTHON_SERVER) or given.embedding is not None or hp.pooling_type <= POOLING_NONE:
        return {}
    ranks = hp.pooling_type == POOLING_RANK and given.pooling is None
    return {"embedding": True, "pooling": "rank"} if ranks else {"embedding": True}


def _python(pins: Pins, hp: HParams, request: Request, machine: Machine) -> dict[str, Any]:
    """llama-cpp-python's server: logits and locks are settled once the rest is known; it names no devices but one."""
    given, found = pins.settings, dict[str, Any]()
    found["logits_all"] = False if given.logits_all is None else given.logits_all
    found["load_mode"] = "mmap" if given.load_mode is None else given.load_mode
    if _pooling(given, hp, PYTHON_SERVER):
        found["embedding"] = True
    if request.device and given.split_mode is None:
        names = [device.id for _, device in engine_devices(machine)]
        wished = listed_devices(pins, request, machine)
        if len(wished) == 1 < len(names):
            found |= {"split_mode": "none", "main_gpu": names.index(wished[0].id)}
    return found


def slower_than_wished(request: Request, speed: Speed | None, n_ctx: int) -> tuple[str, ...]:
    """The wishes for speed that these rates do not meet, with the figures; a rate that is unknown meets none."""
    missed = []
    decode = None if speed is None else speed.decode_tokens_per_s
    if request.min_tps is not None and (decode is None or decode < request.min_tps):
        told = "unknown" if decode is None else f"~{decode:,.3g} tokens/s with {n_ctx} tokens in the context"
        missed.append(f"decode rate {told}, below --min-tps {request.min_tps:g}")
    prefill = None if speed is None else speed.prefill_tokens_per_s
    if request.max_ttft is not None and (not prefill or n_ctx / prefill > request.max_ttft):
        told = "unknown" if not prefill else f"~{n_ctx / prefill:.3g} s for a prompt of {n_ctx} tokens"
        missed.append(f"time to the first token {told}, above --max-ttft {request.max_ttft:g}")
    return tuple(missed)


def _filled(prefer: str, most: int) -> str:
    """How full the context is at the rates that are compared; nothing is said where all are full."""
    if prefer == "context":
        return " with the context full"
    return f" with {FILLED_TOKENS} tokens in it" if most > FILLED_TOKENS else ""
