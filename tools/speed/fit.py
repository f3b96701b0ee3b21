"""Fit the efficiencies of the speed model to public runs and write `autofit/speed/efficiencies.py`.

    python tools/speed/fit.py RUNS.json [--dry-run]

The model is the product's own: a parameter is moved, every run predicted again. Logarithms of measured over
predicted rates are made small (Huber's loss, so that outliers do not rule), each parameter held towards a
prior by its width, runs of one machine and model weighted down since they say the same thing again and
again. Bands are taken from predictions of runs that the fit did not see: groups of a machine and a model
are left out in turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from autofit.domain.machine import HOST_POOL
from autofit.speed import Roofline
from autofit.speed.efficiency import Efficiency, Spread, Table
from autofit.speed.rates import generation
from autofit.speed.roofline import placement
from runs import Run, anchors, load

N_FOLDS = 10
HUBER = 0.25
NOISE = 0.15  # of the logarithm of one measured rate
PLACEMENTS = (
    "device", "devices", "tensor parallel", "experts in RAM", "cache in RAM", "layers in RAM", "processor",
)  # fmt: skip


Vector = npt.NDArray[np.float64]


class Prior(NamedTuple):
    value: float
    width: float  #: standard deviation of its logarithm


# What is fitted: by name, `row.field` or one of the table's own. A row starts as a copy of another.
PRIORS: Mapping[str, Prior] = {
    "llama/cuda.weights": Prior(0.8, 0.2),
    "llama/cuda.experts": Prior(0.7, 0.3),
    "llama/cuda.cache": Prior(0.6, 0.3),
    "llama/cuda.vector": Prior(0.03, 0.5),
    "llama/cuda.flops": Prior(0.9, 0.5),
    "llama/cuda.expert_tokens": Prior(60, 0.6),
    "llama/cuda.attention": Prior(0.5, 0.4),
    "llama/cuda.kernel_s": Prior(2e-6, 0.4),
    "llama/cuda.launch_s": Prior(5e-6, 0.4),
    "llama/cuda.step_s": Prior(3e-4, 0.5),
    "llama/cuda.hop_s": Prior(5e-5, 0.7),
    "clock.ampere": Prior(1.3, 0.3),
    "clock.blackwell": Prior(0.8, 0.3),
    "quant.float": Prior(1.05, 0.08),
    "quant.byte": Prior(1.05, 0.08),
    "quant.block": Prior(1.0, 0.08),
    "quant.super3": Prior(0.85, 0.1),
    "quant.codebook": Prior(0.85, 0.1),
    "quant_flops.float": Prior(1.0, 0.25),
    "quant_flops.byte": Prior(1.2, 0.25),
    "quant_flops.block": Prior(1.0, 0.25),
    "quant_flops.super3": Prior(0.9, 0.25),
    "quant_flops.codebook": Prior(0.9, 0.25),
    "llama/rocm.weights": Prior(0.8, 0.2),
    "llama/rocm.experts": Prior(0.65, 0.25),
    "llama/rocm.flops": Prior(0.4, 0.5),
    "llama/rocm.kernel_s": Prior(3e-6, 0.4),
    "llama/rocm.sm_bytes_per_s": Prior(5.8e9, 0.2),
    "llama/rocm/rdna4.weights": Prior(0.75, 0.2),
    "llama/rocm/rdna4.experts": Prior(0.6, 0.25),
    "llama/rocm/rdna4.flops": Prior(0.4, 0.5),
    "llama/vulkan.weights": Prior(0.75, 0.2),
    "llama/vulkan.experts": Prior(0.65, 0.25),
    "llama/vulkan.flops": Prior(0.4, 0.5),
    "llama/vulkan.kernel_s": Prior(3e-6, 0.4),
    "llama/vulkan.sm_bytes_per_s": Prior(7.5e9, 0.2),
    "llama/vulkan/rdna4.weights": Prior(0.85, 0.2),
    "llama/vulkan/rdna4.experts": Prior(0.7, 0.25),
    "llama/vulkan/rdna4.flops": Prior(0.4, 0.5),
    "llama/metal.weights": Prior(0.75, 0.2),
    "llama/metal.experts": Prior(0.6, 0.25),
    "llama/metal.flops": Prior(0.75, 0.4),
    "llama/metal.kernel_s": Prior(4e-6, 0.5),
    "vllm/cuda.weights": Prior(0.75, 0.2),
    "vllm/cuda.experts": Prior(0.65, 0.2),
    "vllm/cuda.kernel_s": Prior(1.5e-6, 0.3),
    "vllm/cuda.step_s": Prior(1e-3, 0.5),
    "vllm/cuda.hop_s": Prior(2.5e-5, 0.4),
    "cpu.weights": Prior(0.65, 0.2),
    "cpu.experts": Prior(0.55, 0.25),
    "cpu.vector": Prior(0.05, 0.5),
    "cpu.flops": Prior(0.5, 0.4),
    "cpu.hop_s": Prior(5e-5, 0.4),
    "link": Prior(0.75, 0.2),
    "acceptance": Prior(0.7, 0.2),
}
_CUDA = {name.split(".")[1]: prior.value for name, prior in PRIORS.items() if name.startswith("llama/cuda.")}
# A row's own starting point where its figures differ from llama/cuda's and nothing is fitted.
ROWS: Mapping[str, Mapping[str, float]] = {
    "llama/cuda": {},
    "llama/rocm": {"launch_s": 6e-6},
    "llama/rocm/rdna4": {"sm_bytes_per_s": math.inf},
    "llama/vulkan": {"launch_s": 6e-6},
    "llama/vulkan/rdna4": {"sm_bytes_per_s": math.inf},
    "llama/metal": {"launch_s": 6e-6},
    "vllm/cuda": {"launch_s": 1.5e-6, "flops": 0.6, "vector": 0.3},
    "cpu": {"kernel_s": 4e-6, "launch_s": 4e-6, "expert_tokens": 4, "attention": 0.03},
    "default": {"weights": 0.55, "experts": 0.5, "flops": 0.3, "kernel_s": 3e-6, "launch_s": 6e-6},
}


def table(values: Vector, counts: Mapping[str, int] | None = None) -> Table:
    """The table that a vector of logarithms stands for."""
    named = dict(zip(PRIORS, (math.exp(value) for value in values), strict=True))
    counts = counts or {}
    cuda = {field: named[f"llama/cuda.{field}"] for field in _CUDA}
    rows: dict[str, Efficiency] = {}
    figures: dict[str, dict[str, float]] = {}
    for key, own in ROWS.items():
        fitted = {name.split(".")[1]: value for name, value in named.items() if name.startswith(f"{key}.")}
        figures[key] = {**cuda, **figures.get(key.rpartition("/")[0], {}), **own, **fitted}
        each = figures[key].get("sm_bytes_per_s", math.inf)
        known = {**figures[key], "sm_bytes_per_s": None if math.isinf(each) else each}
        rows[key] = Efficiency(**known, n=counts.get(key, 0))  # type: ignore[arg-type]
    wide = {name: Spread(factor=2.0) for name in PLACEMENTS}
    return Table(
        rows=rows,
        quant={"super": 1.0, **{k[6:]: v for k, v in named.items() if k.startswith("quant.")}},
        quant_flops={"super": 1.0, **{k[12:]: v for k, v in named.items() if k.startswith("quant_flops.")}},
        clock={"ada": 1.0, "other": 1.0, **{k[6:]: v for k, v in named.items() if k.startswith("clock.")}},
        link=named["link"],
        acceptance=min(named["acceptance"], 0.95),
        decode=wide,
        prefill=wide,
        draft=Spread(factor=2.0),
        assumed=Spread(factor=1.4),
    )


def predict(run: Run, fitted: Table) -> tuple[float, float | None]:
    """Decode and prefill rates of a run; the latter only where the run has one to compare with."""
    roofline = Roofline(run.machine, engine=run.engine, table=fitted)  # type: ignore[arg-type]
    speed = roofline.estimate(run.layers, n_filled=run.n_filled, n_sequences=run.n_sequences, draft=run.draft)
    assert speed is not None
    if run.prefill is None:
        return speed.decode_tokens_per_s, None
    seconds = roofline.prefill_seconds(run.layers, run.n_prompt, n_ubatch=run.n_ubatch, n_before=run.n_before)
    return speed.decode_tokens_per_s, run.n_prompt / seconds


class Residual(NamedTuple):
    """Logarithm of measured over predicted."""

    run: Run
    what: str
    value: float


def residuals(runs: Iterable[Run], fitted: Table) -> list[Residual]:
    found = []
    for run in runs:
        decode, prefill = predict(run, fitted)
        found.append(Residual(run, "draft" if run.draft else "decode", math.log(run.decode / decode)))
        if run.prefill is not None and prefill is not None:
            found.append(Residual(run, "prefill", math.log(run.prefill / prefill)))
    return found


_WEIGHTS = {"decode": 1.0, "prefill": 0.4, "draft": 0.2}


def fit(runs: Sequence[Run], start: Vector | None = None, n_rounds: int = 12) -> Vector:
    """Logarithms of the parameters, by damped Gauss-Newton steps on reweighted least squares."""
    centre = np.log([prior.value for prior in PRIORS.values()])
    widths = np.array([prior.width for prior in PRIORS.values()])
    sizes = Counter((run.group, run.draft is None) for run in runs)

    def errors(x: Vector) -> Vector:
        values = []
        for item in residuals(runs, table(x)):
            alike = math.sqrt(sizes[item.run.group, item.run.draft is None])
            weight = math.sqrt(_WEIGHTS[item.what] / alike) / NOISE
            size = abs(item.value)
            # The square root of Huber's loss, with the sign of the residual.
            loss = size if size <= HUBER else math.sqrt(HUBER * (2 * size - HUBER))
            values.append(weight * math.copysign(loss, item.value))
        return np.concatenate([values, (x - centre) / widths])

    x = centre.copy() if start is None else start.copy()
    now = errors(x)
    damping = 1e-2
    for _ in range(n_rounds):
        jacobian = np.empty((now.size, x.size))
        for i in range(x.size):
            moved = x.copy()
            moved[i] += 1e-3
            jacobian[:, i] = (errors(moved) - now) / 1e-3
        normal, gradient = jacobian.T @ jacobian, jacobian.T @ now
        for _ in range(6):
            step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -gradient)
            tried = errors(x + step)
            if tried @ tried < now @ now:
                damping = max(damping / 5, 1e-6)
                break
            damping *= 5
        else:
            break
        gain = 1 - (tried @ tried) / (now @ now)
        x, now = x + step, tried
        if gain < 1e-4:
            break
    return x


def cross_validate(runs: Sequence[Run], start: Vector) -> list[Residual]:
    """Residuals of every run under a fit that saw no run of its machine and model."""
    groups = sorted({run.group for run in runs})
    found: list[Residual] = []
    for fold in range(N_FOLDS):
        held = set(groups[fold::N_FOLDS])
        seen = [run for run in runs if run.group not in held]
        values = fit(seen, start, n_rounds=3)
        found += residuals([run for run in runs if run.group in held], table(values))
    return found


def spread(items: Sequence[Residual], among: Sequence[Residual]) -> Spread:
    """The factor that holds 90 % of `items`, held towards that of `among` as if by four more groups."""

    def width(some: Sequence[Residual]) -> float:
        return float(np.quantile([abs(item.value) for item in some], 0.9)) if some else 0.0

    n_groups = len({item.run.group for item in items})
    value = (n_groups * width(items) + 4 * width(among)) / (n_groups + 4)
    return Spread(factor=round(math.exp(value), 2), n=len(items))


def with_spreads(fitted: Table, held: Sequence[Residual]) -> Table:
    """The table with its bands, from residuals of runs that were left out."""
    by_kind: dict[tuple[str, str], list[Residual]] = defaultdict(list)
    by_what: dict[str, list[Residual]] = defaultdict(list)
    for item in held:
        by_kind[item.what, placement([place for _, place in item.run.layers])].append(item)
        by_what[item.what].append(item)
    return dataclasses.replace(
        fitted,
        decode={kind: spread(by_kind["decode", kind], by_what["decode"]) for kind in PLACEMENTS},
        prefill={kind: spread(by_kind["prefill", kind], by_what["prefill"]) for kind in PLACEMENTS},
        draft=spread(by_what["draft"], by_what["draft"]),
    )


def source(fitted: Table, n_runs: int) -> str:
    """The module that holds a table."""

    def number(value: float) -> str:
        return f"{value:.3g}".replace("e+", "e")  # as the formatter writes it

    lines = [
        '"""The fitted table. Generated by `tools/speed/fit.py`; do not edit by hand."""',
        "",
        "from __future__ import annotations",
        "",
        "from autofit.speed.efficiency import Efficiency, Spread, Table",
        "",
        f"# Fitted to {n_runs} public runs and cited measurements; `n` counts those behind a row or a band.",
        "TABLE = Table(",
        "    rows={",
    ]
    for key, row in fitted.rows.items():
        lines.append(f'        "{key}": Efficiency(')
        for field in dataclasses.fields(row):
            value = getattr(row, field.name)
            shown = number(value) if isinstance(value, float) else value
            lines.append(f"            {field.name}={shown},")
        lines.append("        ),")
    lines.append("    },")
    for name in ("quant", "quant_flops", "clock"):
        lines.append(f"    {name}={{")
        lines += [f'        "{key}": {number(value)},' for key, value in getattr(fitted, name).items()]
        lines.append("    },")
    lines.append(f"    link={number(fitted.link)},")
    lines.append(f"    acceptance={number(fitted.acceptance)},")
    for name in ("decode", "prefill"):
        lines.append(f"    {name}={{")
        for key, band in getattr(fitted, name).items():
            lines.append(f'        "{key}": Spread(factor={band.factor}, n={band.n}),')
        lines.append("    },")
    for name in ("draft", "assumed"):
        band = getattr(fitted, name)
        lines.append(f"    {name}=Spread(factor={band.factor}, n={band.n}),")
    return "\n".join([*lines, ")", ""])


def row_of(run: Run) -> str:
    if not run.machine.devices:
        return "cpu"
    key = f"{run.engine}/{run.api}"
    own = f"{key}/{generation(run.machine.devices[0])}"
    return own if own in ROWS else key


def rows_of(run: Run) -> set[str]:
    """Every row of the table that a run says something about."""
    places = {name for _, place in run.layers for name in place.parts}
    return {row_of(run), *(["cpu"] if HOST_POOL in places else [])}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path, help="the public runs, a JSON list")
    parser.add_argument("--dry-run", action="store_true", help="print the module instead of writing it")
    arguments = parser.parse_args()
    runs, left_out = load(arguments.runs)
    runs += anchors()
    print(f"{len(runs)} runs, {len(left_out)} left out", file=sys.stderr)
    values = fit(runs)
    held = cross_validate(runs, values)
    counts = Counter(name for run in runs for name in rows_of(run))
    text = source(with_spreads(table(values, counts), held), len(runs))
    for what in ("decode", "prefill", "draft"):
        sizes = sorted(abs(item.value) for item in held if item.what == what)
        within = sum(size <= math.log(1.5) for size in sizes) / len(sizes)
        median = math.exp(sizes[len(sizes) // 2]) - 1
        print(f"{what}: n {len(sizes)}, median {median:.1%}, within 1.5x {within:.1%}", file=sys.stderr)
    if arguments.dry_run:
        print(text, end="")
    else:
        path = Path(__file__).resolve().parents[2] / "autofit" / "speed" / "efficiencies.py"
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
