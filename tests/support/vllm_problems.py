"""Planning problems for tests of the vLLM plugin: models without files, weights shared evenly."""

from __future__ import annotations

from typing import Any

from autofit.domain.request import Request
from autofit.hardware import load_machine

from autofit_vllm.command.settings import parse_command
from autofit_vllm.config.engine import EngineConfig
from autofit_vllm.modules.model import StageWeights, VllmModel
from autofit_vllm.planning.problem import Candidate, Problem
from autofit_vllm.planning.search import solve
from support import vllm_models


def problem(
    model: VllmModel,
    weights_bytes: int,
    *gpus: str,
    args: tuple[str, ...] = (),
    ram: str = "64GiB",
    **wishes: Any,
) -> Problem:
    machine = load_machine(*gpus, ram=ram)
    _, settings = parse_command(["vllm", "serve", *args])

    def weigh(config: EngineConfig) -> tuple[StageWeights, ...]:
        parallel = config.parallel
        return vllm_models.weights(
            model,
            weights_bytes,
            tp=parallel.tp * parallel.dp if model.is_moe else parallel.tp,
            pp=parallel.pp,
        )

    return Problem(
        model=model,
        settings=settings,
        request=Request(engine_args=args, **wishes),
        machine=machine,
        devices=tuple(device for device in machine.devices if device.api == "cuda"),
        weigh=weigh,
    )


def best(model: VllmModel, weights_bytes: int, *gpus: str, **more: Any) -> Candidate:
    return solve(problem(model, weights_bytes, *gpus, **more))[0]
