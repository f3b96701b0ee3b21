"""One planning job: what is planned for which machine, what is wished, and what the user has fixed."""

from __future__ import annotations

from autofit.domain.machine import Device, Machine
from autofit.domain.model import ModelSpec
from autofit.domain.request import Margin, Request
from autofit.domain.units import GIB, MIB
from autofit.domain.values import dataclass, replace

from autofit_llama.command.parse import Command
from autofit_llama.command.settings import LlamaSettings
from autofit_llama.launch.defaults import SERVERS, launch_of
from autofit_llama.launch.margins import margins_of
from autofit_llama.memory.estimate import size
from autofit_llama.memory.layout import Sized
from autofit_llama.model.caches import caches
from autofit_llama.model.context import ContextParams, resolve_context
from autofit_llama.model.metadata import overridden
from autofit_llama.planning.goals import COMFORTABLE_TOKENS, USEFUL_TOKENS, Goals
from autofit_llama.planning.pins import (
    Pins,
    bounds_of,
    check_margins,
    check_pins,
    devices_of,
    listed_devices,
    read_pins,
)
from autofit_llama.planning.problem import LaunchProblem
from autofit_llama.planning.search import Search

DEFAULT_CACHE_RAM_MIB = 8192
AMPLE_HOST_BYTES = DEFAULT_CACHE_RAM_MIB * MIB + 8 * GIB
"""What the host has beyond the whole model where the server's caches never decide anything."""


def is_ample(model: ModelSpec, machine: Machine) -> bool:
    """Whether the host is so large that the server's own caches cannot be what does not fit."""
    free = machine.host.available_bytes
    return free is None or free > model.weights_bytes + AMPLE_HOST_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One planning job: the facts, the wishes, and the pins that are kept."""

    model: ModelSpec
    sized: Sized
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
            deep=self.request.prefer == "context" or self.exact_context is not None,
        )
        if self.shares_blocks:
            from autofit_llama.planning.tensor_parallel import TensorSearch  # few commands need it

            return TensorSearch(problem)
        return Search(problem)

    @property
    def shares_blocks(self) -> bool:
        """Whether every device gets a part of every block (`-sm tensor`)."""
        return self.pins.settings.split_mode == "tensor"

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

    def goals(self, search: Search) -> Goals:
        request, given = self.request, self.pins.settings
        launch = launch_of(self.base, self.pins.reading.program)
        ids = [device.id for device in self.devices]
        constant = search.problem.constant_seconds(ids) if isinstance(search.problem, LaunchProblem) else 0.0
        least, most = self.contexts()
        longest = request.context == 0 and self.exact_context is None
        n_ubatch, n_batch = launch.context.n_ubatch, launch.context.n_batch
        if self.reads_whole_inputs(launch.context, least):
            n_ubatch = n_batch = least
            most = most if longest else least
        return Goals(
            prefer="context" if longest else request.prefer,
            least=least,
            most=most,
            kv_types=self.kv_types(),
            most_on_host=COMFORTABLE_TOKENS if request.context is None and request.prefer != "context" else None,
            n_ubatch=n_ubatch,
            n_batch=n_batch,
            free_ubatch=given.n_ubatch is None and given.n_batch is None and not given.embedding,
            rate=lambda seconds: 1.0 / (seconds + constant),
        )

    def reads_whole_inputs(self, params: ContextParams, n_ctx: int) -> bool:
        """Whether the server takes no input longer than a micro-batch, and nobody has said how long that is."""
        given, hp = self.pins.settings, self.sized.hparams
        if not given.embedding or given.n_ubatch is not None or given.n_batch is not None:
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
        # Cut caches of quantised types came later to the engine than -sm tensor: they are only taken if asked for.
        auto = ("f16",) if self.shares_blocks else ("f16", "q8_0", "q4_0")
        words = auto if wish == "auto" else ((wish or "f16"),)
        pairs = [(given.type_k or word, given.type_v or word) for word in words]
        hp = self.sized.hparams
        heads = {head(il) for head in (hp.n_embd_head_k, hp.n_embd_head_v) for il in range(hp.n_layer)}
        whole = all(head % 32 == 0 for head in heads) and hp.arch != "grok" and given.flash_attn != "off"
        return tuple(dict.fromkeys(pair for i, pair in enumerate(pairs) if i == 0 or whole))


def task_of(command: Command, model: ModelSpec, machine: Machine, request: Request) -> Task:
    pins = read_pins(command, request)
    given = pins.settings
    model = overridden(model, given.kv_overrides)
    sized = size(model)
    check_pins(pins, request, machine, sized.hparams)
    devices = devices_of(pins, request, machine)
    margins = dict(margins_of(request.margin, machine.devices))
    check_margins({d.id: margins[d.id][0].of(d.total_bytes or d.free_bytes or 0) for d in devices}, machine)
    program = pins.reading.program
    n_parallel = given.n_parallel
    if n_parallel is None:
        n_parallel = request.parallel or (1 if program in SERVERS else None)
    base = replace(given, n_parallel=n_parallel)
    ample = is_ample(model, machine)
    if program in SERVERS and not ample:
        # Made to measure once the placement is known; weights come first.
        base = replace(
            base,
            cache_ram_mib=0 if given.cache_ram_mib is None else given.cache_ram_mib,
            n_checkpoints=0 if given.n_checkpoints is None else given.n_checkpoints,
        )
    slots = launch_of(base, program, draft=model.companions.get("draft")).context.n_seq_max
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
