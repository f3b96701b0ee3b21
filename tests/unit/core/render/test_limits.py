"""The two sentences that matter: what limits a plan, and what the next step up would need."""

from __future__ import annotations

import re
from typing import Any

import autofit
import pytest
from autofit.domain.plan import Plan
from autofit.render import text

from support import DATA

MODELS, CONFIGS = DATA / "llama" / "models", DATA / "vllm" / "configs"

#: backend, model, cards, RAM, options; the sentences
CASES: dict[str, tuple[tuple[str, str, list[str], str | None, dict[str, Any]], tuple[str, ...]]] = {
    "weights in RAM": (
        ("llama", "qwen3-30b-a3b-Q4_K_M", ["rtx-3060-12gb"], "32GiB", {}),
        (
            r"GPU0 \(.* left beside the margin\) limits the decode rate: 8\.23 GiB of weights stay in RAM",
            r"the next step up, all layers on GPU0, takes 7\.84 GiB more there",
        ),
    ),
    "a shorter context": (
        ("llama", "qwen3-32b-Q4_K_M", ["rtx-3090"], "32GiB", {}),
        (
            r"GPU0 \(.*\) limits the context: 19,456 of 40,960 tokens",
            r"the next step up, -c 38912, takes 4\.75 GiB more on GPU0",
        ),
    ),
    "two cards": (
        ("llama", "mixtral-8x7b-Q4_K_M", ["2xrtx-3060-12gb"], "64GiB", {"context": "8k"}),
        (
            r"GPU0 and GPU1 \(.*\) limit the decode rate: .* of weights stay in RAM",
            r"the next step up, all layers on GPU0 and GPU1, takes .* more",
        ),
    ),
    "nothing": (
        ("llama", "gemma-3-4b-Q4_K_M", ["rtx-3090"], "64GiB", {}),
        (r"nothing is short: all layers and a context of 131,072 tokens, the longest there is, are on GPU0; .*",),
    ),
    "as asked": (
        ("llama", "llama-3.1-8b-Q4_K_M", ["rtx-3060-12gb"], "32GiB", {"context": "16k"}),
        (r"nothing is short: all layers and a context of 16,384 tokens, as asked, are on GPU0; GPU0 has .* left.*",),
    ),
    "layers of the user's": (
        ("llama", "llama-3.1-8b-Q4_K_M", ["rtx-3060-12gb"], "32GiB", {"engine_args": ["-ngl", "20"]}),
        (r"memory does not limit the decode rate: .* of weights stay in RAM, as the given flags say",),
    ),
    "no card": (
        ("llama", "llama-3.1-8b-Q4_K_M", ["generic-cpu"], "32GiB", {}),
        (r"nothing is short: all layers and a context of 131,072 tokens, .* are in RAM; host has .*",),
    ),
    "an encoder": (
        ("llama", "bge-large-en-v1.5-F16", ["rtx-3060-12gb"], "32GiB", {}),
        (r"nothing is short: all layers are on GPU0; GPU0 has .* left beside the margin",),
    ),
    "unified": (
        ("llama", "gpt-oss-120b-MXFP4_MOE", ["gb10"], None, {}),
        (r"nothing is short: all layers and a context of 131,072 tokens, .* are on GPU0; host has .*",),
    ),
    "less of the unified memory than there is": (
        ("llama", "gpt-oss-120b-MXFP4_MOE", ["strix-halo-128gb"], None, {}),
        (
            r"GPU0 \(.* left of what it may take of unified memory\) limits the context: 80,384 of 131,072 tokens",
            r"the next step up, -c 131072, takes 1\.\d+ GiB more on GPU0",
        ),
    ),
    "all of the unified memory": (
        ("llama", "qwen3-30b-a3b-Q4_K_M", ["m3-24gb"], "24GiB:19.5GiB", {}),
        (
            r"host \(.* left beside the margin\) limits the decode rate: .* of weights stay in RAM",
            r"the next step up, all layers on GPU0, takes .* GiB more on host",
        ),
    ),
    "sequences": (
        ("vllm", "llama3-70b", ["8xh100-80gb"], "512GiB", {}),
        (
            r"GPU0 to GPU7 \(.*\) limit the sequences at a time: 42 of 1,024 at 32,768 tokens on average",
            r"the next step up, 84 of them, takes 52\.50 GiB more on each GPU",
        ),
    ),
    "a paged context": (
        ("vllm", "llama3-8b", ["rtx-3090"], "32GiB", {}),
        (
            r"GPU0 \(.*\) limits the context: 44,544 of 131,072 tokens",
            r"the next step up, --max-model-len 89088, takes 5\.\d+ GiB more on GPU0",
        ),
    ),
    "offloaded": (
        ("vllm", "mixtral-8x7b", ["a100-40gb"], "128GiB", {}),
        (
            r"GPU0 \(.*\) limits the decode rate: 51\.62 GiB of weights stay in RAM",
            r"the next step up, all weights on the GPU, takes 5\d\.\d+ GiB more on GPU0",
        ),
    ),
    "as little as can be": (
        ("vllm", "qwen3-8b", ["rtx-4090"], "64GiB", {"prefer": "memory", "context": "16k"}),
        (r"memory does not limit the sequences at a time: 4 of 256 at .*, in as little memory .*",),
    ),
    "all sequences": (
        ("vllm", "qwen3-0.6b", ["h100-80gb"], "64GiB", {"parallel": 4}),
        (r"nothing is short: all weights and a context of 40,960 tokens.*; all 4 sequences run at a time; GPU0 .*",),
    ),
}


def planned(backend: str, name: str, on: list[str], ram: str | None, options: dict[str, Any]) -> Plan:
    model = MODELS / f"{name}.json.gz" if backend == "llama" else CONFIGS / name
    machine = autofit.load_machine(*([] if on == ["generic-cpu"] else on), ram=ram)
    return autofit.plan(backend, str(model), machine, settings=None, **options)


@pytest.mark.slow_cases("weights in RAM", "a shorter context")
@pytest.mark.parametrize("case", CASES)
def test_the_sentences(case: str) -> None:
    plan = planned(*CASES[case][0])
    found, said = list(text.limits(plan)), CASES[case][1]
    assert len(found) == len(said), found
    for one, pattern in zip(found, said, strict=True):
        assert re.fullmatch(pattern, one), one
    assert {*found} <= {line.strip() for line in text.summary(plan)}


def without(argv: tuple[str, ...], *flags: str) -> list[str]:
    kept, skip = [], False
    for word in argv:
        if not skip and word not in flags:
            kept.append(word)
        skip = word in flags
    return kept


@pytest.mark.slow_but("a shorter context")
@pytest.mark.parametrize("case", ["weights in RAM", "a shorter context"])
def test_the_next_step_takes_exactly_that_much(case: str) -> None:
    """The command of the next step, checked by itself, needs so many bytes more than the plan may take."""
    backend, name, on, ram, options = CASES[case][0]
    plan = planned(backend, name, on, ram, options)
    assert plan.limit is not None and plan.limit.next_step is not None
    step = plan.limit.next_step
    if step.value.startswith("-c "):
        argv = [*without(plan.argv, "-c"), *step.value.split()]
    else:
        argv = without(plan.argv, "-ncmoe", "-ot")
    checked = autofit.check(argv, autofit.load_machine(*on, ram=ram), settings=None)
    budget = plan.memory.pool("GPU0").budget_bytes
    assert budget is not None and step.pool == "GPU0"
    assert checked.memory.pool("GPU0").used_bytes - budget == step.shortfall_bytes


def test_a_plan_that_does_not_fit_says_what_is_missing_and_the_nearest_first() -> None:
    plan = planned("llama", "llama-3.1-405b-Q3_K_M", ["rtx-3090"], "64GiB", {})
    assert list(text.limits(plan)) == []
    severities = [(found.severity, found.code) for found in text.told(plan)][:2]
    assert severities == [("error", "does-not-fit"), ("info", "would-fit")]


def test_a_command_that_is_checked_says_how_full_it_is() -> None:
    argv = [
        "llama-server",
        "-m",
        str(MODELS / "llama-3.1-8b-Q4_K_M.json.gz"),
        "-ngl",
        "99",
        "-c",
        "8192",
        "-fit",
        "off",
    ]
    plan = autofit.check(argv, autofit.load_machine("rtx-3060-12gb", ram="32GiB"), settings=None)
    assert list(text.limits(plan)) == ["nothing is short: GPU0, the fullest, has 6.08 GiB left"]
