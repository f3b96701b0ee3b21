"""The solved plan put into words: decisions, findings."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from math import floor

from autofit.domain.plan import Decision, Finding, Origin, Plan
from autofit.domain.text import printable
from autofit.domain.units import format_bytes
from autofit.domain.values import replace
from autofit.planning.decisions import arguments, origin_of, remark, why_kept

from autofit_vllm.command.flags import parse_flags
from autofit_vllm.planning.alternatives import alternatives
from autofit_vllm.planning.codes import finding
from autofit_vllm.planning.command import whole, written
from autofit_vllm.planning.evaluation import Evaluation, Rank
from autofit_vllm.planning.layouts import PARTITION
from autofit_vllm.planning.lighter import lighter
from autofit_vllm.planning.limit import limit_of
from autofit_vllm.planning.load import capacity_finding, prompts_of
from autofit_vllm.planning.offload import offloadable_bytes
from autofit_vllm.planning.plan import build_plan
from autofit_vllm.planning.prices import PRICES, nearest_wish, prices
from autofit_vllm.planning.problem import Candidate, Problem
from autofit_vllm.planning.python import program_arguments
from autofit_vllm.planning.reasons import REASONS, lacks, needed_bytes, next_length
from autofit_vllm.planning.relief import gpus_finding
from autofit_vllm.planning.speed import full_speed_of
from autofit_vllm.planning.topics import topic_of


def explain(
    problem: Problem,
    best: Candidate,
    others: Sequence[Candidate],
    *,
    program: Sequence[str],
    reference: str | None,
    findings: Sequence[Finding] = (),
) -> Plan:
    """The plan of the best candidate, with its reasons."""
    decided = decisions(problem, best)
    plan = build_plan(
        best.evaluation,
        problem.machine,
        argv=whole(problem.settings, arguments(decided), program=program, model=reference),
        env=_env(best),
        kwargs=program_arguments(problem, best, reference or problem.settings.model or ""),
        decisions=decided,
        alternatives=alternatives(problem, best, others, program=program, reference=reference),
        findings=[
            *(capacity_finding(best.evaluation, best.load) if best.load and best.fits else ()),
            *(prices(problem, best, others) if best.fits else ()),
            *findings,
            *_findings(problem, best, others),
        ],
        speed=full_speed_of(best.evaluation, problem.roofline) if best.fits else None,
    )
    if best.fits and not plan.fits:  # RAM is short: rates and prices are of nothing
        kept = tuple(found for found in plan.findings if found.code not in PRICES)
        return replace(plan, speed=None, findings=kept)
    if best.fits and best.load is not None:
        plan = replace(plan, engine_report={**plan.engine_report, **best.load.report})
    if best.fits and problem.request.disaggregate is not None:
        of_prompt = prompts_of(best.evaluation, problem.roofline, problem.request.disaggregate[0])
        plan = replace(plan, engine_report={**plan.engine_report, **of_prompt})
    if best.fits:
        return replace(plan, limit=limit_of(problem, best)) if problem.request.nearest else plan
    # One sequence may start where the wish does not fit. What the engine would say of a utilization that the user
    # did not choose helps nobody.
    own = problem.settings.pins("gpu_memory_utilization")
    told = tuple(found for found in plan.findings if own or found.code != "kv-cache-too-small")
    return replace(plan, fits=False, findings=told)


def _env(candidate: Candidate) -> dict[str, str]:
    """Variables of the plan: the user's own of the engine, and those that were chosen."""
    env = candidate.evaluation.settings.env
    return {name: env[name] for name in sorted(env) if name.startswith("VLLM_")}


def decisions(problem: Problem, best: Candidate) -> list[Decision]:
    """One per setting of the command, in its order; then what the user pinned."""
    found = []
    for name, value in best.values.items():
        if name in problem.settings.given:
            continue
        because = REASONS[name](problem, best)
        rejected = next_length(problem, best) if name == "max_model_len" else None
        found.append(
            Decision(
                setting=_spelled(name),
                value=_text(value),
                origin=_origin(problem, name),
                because=because,
                next_rejected=rejected,
                argv=written(name, value),
                topic=topic_of(name),
            )
        )
    partition = best.evaluation.settings.env.get(PARTITION)
    if partition is not None:
        given = PARTITION in problem.settings.env
        because = "kept as given" if given else "stages on smaller GPUs take fewer layers"
        origin: Origin = "environment" if given else "solved"
        found.append(remark(PARTITION, partition, origin, because, "placement"))
    origins = _given_origins(problem)
    for name, value in problem.settings.given.items():
        if name not in ("model", "spec_method", "spec_model", "spec_tokens"):
            origin = origins[name]
            found.append(remark(_spelled(name), _text(value), origin, why_kept(origin), topic_of(name)))
    return found


def _given_origins(problem: Problem) -> dict[str, Origin]:
    """Where each setting comes from that a flag has given: the last one counts."""
    settings, request = problem.settings, problem.request
    found: dict[str, Origin] = dict.fromkeys(settings.given, "user")
    own = settings.args[len(request.arg_origins) :]
    if not request.arg_origins:
        return found
    users = parse_flags(own, settings.version)
    at = 0
    for origin, group in groupby(request.arg_origins):
        n = len(list(group))
        stated = parse_flags(settings.args[at : at + n], settings.version)
        found.update({name: origin for name in stated if name in found and name not in users})
        at += n
    return found


def _origin(problem: Problem, name: str) -> Origin:
    wishes = {"max_model_len": "context", "max_num_seqs": "parallel", "kv_cache_dtype": "kv"}
    wish = wishes.get(name)
    slots = name == "max_num_seqs" and problem.n_slots is None
    return origin_of(problem.request, wish or "", bool(wish and getattr(problem.request, wish) and not slots))


def _spelled(name: str) -> str:
    return "--" + name.replace("_", "-")


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _findings(problem: Problem, best: Candidate, others: Sequence[Candidate]) -> list[Finding]:
    """What is missing when nothing fits, and what would be enough."""
    if best.fits:
        return []
    if best.late is not None:
        return [finding("too-slow", best.late), *_faster(problem, best)]
    evaluation = best.evaluation
    n, length = problem.n_parallel, evaluation.config.max_model_len
    n = n if problem.request.fill == "full" else 1
    lacking_bytes = lacks(evaluation, length, n, length)
    if max(lacking_bytes) <= 0 and (evaluation.shortfall_bytes > 0 or evaluation.overrun_bytes):
        return []  # a pinned budget does not fit what is free, which is told already
    if max(lacking_bytes) <= 0 < best.short_bytes:
        return []  # what RAM lacks is told already
    shortfall = max(evaluation.shortfall_bytes, *lacking_bytes)
    fullest = min(evaluation.ranks, key=lambda rank: evaluation.available_bytes[rank.stage], default=None)
    where = f"{fullest.device.id} {printable(fullest.device.name, 40)}" if fullest else "the GPU"
    load = f"{n} sequences of {length:,} tokens" if n > 1 else f"{length:,} tokens"
    message = f"does not fit: {where} needs {format_bytes(max(shortfall, 0))} more for {load}"
    if fullest is not None and fullest.margin_asked and fullest.margin_bytes:
        message += f" with the margin of {format_bytes(fullest.margin_bytes)}"
    found = [finding("does-not-fit", message)]
    if not problem.request.nearest:
        return found
    found += nearest_wish(problem, best)
    less = lighter(problem, problem.worth)
    if less is not None:
        found.append(finding("would-fit", f"nearest: {less.text}"))
    room = _room(evaluation, fullest, n) if fullest is not None and fullest.margin_asked else 0
    if room > 0:
        message = f"with a --margin of at most {format_bytes(room)}, {load} fit"
        return [*found, finding("margin-too-large", message)]
    needed = gpus_finding(problem, length)
    if needed:
        found += needed
    elif offloadable_bytes(best) < shortfall or all(rank.n_sharing for rank in evaluation.ranks):
        found.append(finding("gpus-needed", "it does not fit on 64 of these GPUs either"))
    else:
        free = format_bytes(problem.machine.host.available_bytes or 0)
        message = f"offloading the missing weights would fit, but only {free} of RAM is free"
        found.append(finding("main-memory-needed", message))
    return found


def _faster(problem: Problem, best: Candidate) -> list[Finding]:
    """What the fastest plan reaches, and what would be faster."""
    rate = best.rate if problem.request.min_tps is not None and problem.n_parallel == 1 else 0.0
    reached = f"--min-tps {floor(10 * rate) / 10:g} is reached; " if rate >= 0.1 else ""
    return [finding("would-fit", f"nearest: {reached}more bandwidth or fewer bytes of weights would be faster")]


def _room(evaluation: Evaluation, rank: Rank, n_parallel: int) -> int:
    """What a rank has beside so many sequences of the shown length."""
    beside = sum(item.n_bytes for item in evaluation.budget_of(rank).items)
    length = evaluation.config.max_model_len
    needed = needed_bytes(evaluation.kv, length, n_parallel, rank.stage, length)
    return rank.free_bytes - beside - needed
