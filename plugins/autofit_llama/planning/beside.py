"""What could be loaded with the model: files that lie beside it, and its own draft head; what each takes and gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from shlex import join

from autofit.domain.model import ModelSpec
from autofit.domain.plan import Finding
from autofit.domain.request import Margin
from autofit.domain.text import printable
from autofit.domain.units import format_bytes, format_rate
from autofit.domain.values import replace
from autofit.errors import AutofitError

from autofit_llama.command.settings import LlamaSettings
from autofit_llama.command.write import render
from autofit_llama.engine.codes import finding
from autofit_llama.launch.defaults import launch_of, n_drafted
from autofit_llama.launch.process import run_of
from autofit_llama.memory.estimate import Estimate, Run, estimate
from autofit_llama.planning.task import Task
from autofit_llama.speed.rates import speed_of

DRAFT_DEPTHS = (1, 2, 3, 4)  #: tokens drafted ahead; common/common.h: the default is 3
WORTH_A_WORD = 1.05  #: how much faster a draft has to make decoding, to be offered
_SHORTER = (0.95, 0.9, 0.8, 0.7, 0.5)  #: of the planned context, tried where a draft does not fit beside it
_GIVES = {"mmproj": "images", "draft": "speculative decoding"}


def offers(task: Task, settings: LlamaSettings, final: Estimate) -> Iterator[Finding]:
    """One note for each thing that the plan leaves out and the server could load."""
    if task.pins.reading.program != "llama-server" or not final.memory.fits:
        return
    for role, other in task.request.beside.items():
        if role in _GIVES and role not in task.model.companions:
            yield from _file(task, settings, final, role, other)
    given = task.pins.settings
    if task.sized.hparams.n_layer_nextn and not given.spec_types and "draft" not in task.model.companions:
        yield from _draft_head(task, settings, final)


def _file(task: Task, settings: LlamaSettings, final: Estimate, role: str, other: ModelSpec) -> Iterator[Finding]:
    path = other.files[0].path
    mmproj, draft_model = (path, None) if role == "mmproj" else (None, path)
    flags = join(render(LlamaSettings(mmproj=mmproj, draft_model=draft_model)))
    found = _with(task, replace(settings, mmproj=mmproj, draft_model=draft_model), {role: other})
    if found is None:
        return
    _, more = found
    takes = format_bytes(_bytes(more) - _bytes(final))
    fits = "fits beside this plan" if more.memory.fits else "asks for a smaller plan"
    message = f"{printable(other.name, 60)} lies beside the model: {_GIVES[role]} for {takes} more, which {fits}"
    yield finding("file-beside", f"{message} (-- {printable(flags, 200)})")


def _draft_head(task: Task, settings: LlamaSettings, final: Estimate) -> Iterator[Finding]:
    """The depth that decodes fastest, with its price in memory, or in context where memory is short."""
    best: tuple[float, LlamaSettings, Estimate] | None = None
    for depth in DRAFT_DEPTHS:
        tried = replace(settings, spec_types=("draft-mtp",), draft_n_max=depth)
        found = _with(task, tried, {})
        if found is not None and (rate := _rate(task, tried, *found)) and (best is None or rate > best[0]):
            best = rate, tried, found[1]
    plain = _with(task, settings, {})
    now = None if plain is None else _rate(task, settings, *plain)
    if best is None or not now or best[0] < WORTH_A_WORD * now:
        return
    rate, chosen, more = best
    price = f"{format_bytes(_bytes(more) - _bytes(final))} more"
    if not more.memory.fits:
        n_ctx = _context_beside(task, chosen)
        if n_ctx is None:
            return
        price = f"a context of {n_ctx // task.n_parallel} instead of {final.layout.context.n_ctx_seq} tokens"
    flags = join(render(LlamaSettings(spec_types=chosen.spec_types, draft_n_max=chosen.draft_n_max)))
    message = f"the draft head (MTP) decodes ~{format_rate(rate)} instead of ~{format_rate(now)} tokens/s for {price}"
    yield finding("draft-head", f"{message} (-- {flags})")


def _context_beside(task: Task, settings: LlamaSettings) -> int | None:
    """The tokens of all sequences with which the draft fits too."""
    planned = settings.n_ctx or 0
    for share in _SHORTER:
        n_ctx = int(planned * share) // 256 * 256
        found = _with(task, replace(settings, n_ctx=n_ctx), {}) if n_ctx else None
        if found is not None and found[1].memory.fits:
            return n_ctx
    return None


def _with(task: Task, settings: LlamaSettings, more: Mapping[str, ModelSpec]) -> tuple[Run, Estimate] | None:
    """The process of these settings; `None` where the engine would refuse it."""
    model = replace(task.model, companions={**task.model.companions, **more})
    with suppress(AutofitError):
        launch = launch_of(settings, task.pins.reading.program, draft=model.companions.get("draft"))
        run = run_of(launch, model, task.machine, sized=task.sized)
        margins = [task.margins[device.id][0] if device.id in task.margins else Margin() for device in run.devices]
        return run, estimate(run, task.machine, margins)
    return None


def _bytes(found: Estimate) -> int:
    return sum(pool.used_bytes for pool in found.memory.pools)


def _rate(task: Task, settings: LlamaSettings, run: Run, found: Estimate) -> float | None:
    types = settings.spec_types
    speed = speed_of(run, found, task.machine, n_draft=n_drafted(settings, types) if types else 0)
    return None if speed is None else speed.start_tokens_per_s or speed.decode_tokens_per_s
