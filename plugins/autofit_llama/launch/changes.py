"""What the user should know of what the engine changes by itself, and the same as settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from autofit.domain.plan import Decision, Finding
from autofit.domain.units import format_bytes
from autofit.planning.decisions import remark

from autofit_llama.engine.codes import finding
from autofit_llama.launch.effective import Effective
from autofit_llama.launch.fit import arguments_of

if TYPE_CHECKING:
    from autofit_llama.memory.report import FitDocument


def changes_of(one: Effective) -> list[Finding]:
    """What the engine makes of a command by itself, before anything is loaded and when it runs out at start."""
    return [*_fitted(one), *_no_overlap(one)]


def _fitted(one: Effective) -> Iterator[Finding]:
    if one.fitted is None:
        return
    program = one.asked.program
    changed = _changed(one)
    with_what = f"{'with' if one.asked.loads else 'would be'} {' '.join(changed)}"
    if one.fitted.gave_up is not None:
        if one.found.memory.fits and not changed:
            return
        left = f"the command runs {with_what}" if changed else "the command runs unchanged"
        message = f"{program}'s own --fit gives up because {one.fitted.gave_up}: {left}"
        yield finding("engine-fit-gave-up", message)
    elif changed:
        how = (
            f"starts it {with_what}"
            if one.asked.loads
            else f"prints {' '.join(changed)}; those arguments are not checked here"
        )
        message = f"{program}'s own --fit {how}"
        if one.asked.loads:
            message += "; with -fit off the command runs unchanged"
        yield finding("engine-fit", message)


def _changed(one: Effective) -> list[str]:
    """The arguments that `--fit` has changed, in a few words."""
    assert one.fitted is not None
    asked, choice, parts = one.asked, one.fitted.choice, []
    before = asked.context.n_ctx or one.run.sized.hparams.n_ctx_train
    if choice.n_ctx != before:
        parts.append(f"-c {choice.n_ctx}")
    if choice.n_gpu_layers != asked.n_gpu_layers:
        parts.append(f"-ngl {choice.n_gpu_layers}")
    if choice.tensor_split != asked.tensor_split:
        parts.append(f"-ts {','.join(str(int(part)) for part in choice.tensor_split)}")
    if choice.overrides != asked.overrides:
        parts.append(f"-ot for {len(choice.overrides)} layers")
    return parts


def _no_overlap(one: Effective) -> Iterator[Finding]:
    if one.overlap_lacks_bytes:
        message = f"compute buffers for pipeline parallelism need {format_bytes(one.overlap_lacks_bytes)} more"
        message += ": llama.cpp falls back to running without it, as counted here"
        yield finding("no-pipeline-parallelism", message)


def chosen_by_engine(one: Effective) -> tuple[Decision, ...]:
    """What `--fit` has chosen, as settings of the command."""
    if one.fitted is None or not one.asked.loads or one.launch == one.asked:
        return ()
    argv = arguments_of(one.fitted.choice)
    because = f"{one.asked.program}'s own --fit"
    pairs = zip(argv[::2], argv[1::2], strict=True)
    return tuple(
        remark(flag, value, "engine default", because, "context" if flag == "-c" else "placement")
        for flag, value in pairs
    )


def fit_report(one: Effective) -> dict[str, FitDocument]:
    """`fit`: the arguments that `--fit` has chosen, as llama-fit-params prints them; nothing where it is off."""
    if one.fitted is None:
        return {}
    return {"fit": {"arguments": list(arguments_of(one.fitted.choice)), "gave_up": one.fitted.gave_up}}
