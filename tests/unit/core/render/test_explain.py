"""`--explain` for people: by subject, short, in one unit, and without a figure that contradicts another."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

import autofit
import pytest
from autofit.domain.memory import KINDS
from autofit.domain.plan import Plan
from autofit.domain.units import GIB, format_gib
from autofit.render.explain import explain

from support import DATA

MODELS, CONFIGS = DATA / "llama" / "models", DATA / "vllm" / "configs"
MOST_LINES = 75


def llama(name: str, *on: str, ram: str | None = "64GiB", **options: object) -> Plan:
    model = str(MODELS / f"{name}.json.gz")
    return autofit.plan("llama", model, autofit.load_machine(*on, ram=ram), settings=None, **options)  # type: ignore[arg-type]


def vllm(name: str, *on: str, ram: str = "512GiB") -> Plan:
    return autofit.plan("vllm", str(CONFIGS / name), autofit.load_machine(*on, ram=ram), settings=None)


def checked(*argv: str) -> Plan:
    return autofit.check(argv, autofit.load_machine("rtx-3060-12gb", ram="32GiB"), settings=None)


PLANS: dict[str, Callable[[], Plan]] = {
    "llama, experts in RAM": lambda: llama("qwen3-30b-a3b-Q4_K_M", "rtx-3060-12gb"),
    "llama, four cards": lambda: llama("qwen2.5-72b-IQ4_XS", "4xrtx-3060-12gb"),
    "llama, a lossy cache": lambda: llama("qwen3-32b-Q4_K_M", "rtx-3090", context="32k"),
    "llama, no fit": lambda: llama("llama-3.1-405b-Q3_K_M", "rtx-3090"),
    "llama, unified": lambda: llama("gpt-oss-120b-MXFP4_MOE", "gb10", ram=None),
    "vllm, eight cards": lambda: vllm("llama3-70b", "8xh100-80gb"),
    "vllm, weights in RAM": lambda: vllm("mixtral-8x7b", "a100-40gb"),
    "vllm, no fit": lambda: vllm("deepseek-v3", "rtx-3090", ram="64GiB"),
    "check": lambda: checked("llama-server", "-m", str(MODELS / "llama-3.1-8b-Q4_K_M.json.gz")),
}


@cache
def planned(name: str) -> Plan:
    return PLANS[name]()


@pytest.mark.slow_cases("*llama, four cards", "*llama, no fit", "*llama, unified", "*vllm, no fit")
@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("columns", [40, 80, 120])
def test_it_is_short_and_keeps_to_the_width(name: str, columns: int) -> None:
    found = list(explain(planned(name), columns))
    assert columns < 80 or len(found) <= MOST_LINES, len(found)
    for line in found:
        assert len(line) <= columns or max(map(len, line.split())) > columns - 30, line


@pytest.mark.slow_cases("*llama, four cards", "*llama, no fit", "*llama, unified", "*vllm, no fit")
@pytest.mark.parametrize("name", PLANS)
def test_words_stay_whole(name: str) -> None:
    plan = planned(name)
    words = set(" ".join(explain(plan, 4000)).split())
    assert set(" ".join(explain(plan, 60)).split()) <= words


@pytest.mark.slow_cases("*llama, four cards", "*llama, no fit", "*llama, unified", "*vllm, no fit")
@pytest.mark.parametrize("name", PLANS)
def test_one_unit(name: str) -> None:
    found = "\n".join(explain(planned(name), 4000))
    shown = re.sub(r"(?m)^  -cram.*|left free: 64 MiB.*", "", found)  # the flag's unit; the rule of a margin
    assert not re.search(r"\d (B|[KMGT]B(?!/s)|[KMT]iB)\b", shown), shown


@pytest.mark.slow_cases("*llama, four cards", "*llama, no fit", "*llama, unified", "*vllm, no fit")
@pytest.mark.parametrize("name", PLANS)
def test_the_parts_of_a_pool_are_those_of_the_plan(name: str) -> None:
    """Figures to two places, and their sum is what is said to be used, within rounding."""
    found = list(explain(planned(name), 4000))
    kinds = [line.split()[:2] for line in found if re.match(r"    [a-z]+ +[\d.<]+  ", line)]
    used = [float(line.split(": ")[1].split()[0]) for line in found if re.match(r"  \S.*: [\d.]+ used, ", line)]
    sums, at = [], -1
    order = {kind: place for place, kind in enumerate([*KINDS[:-1], "margin"])}
    last = len(order)
    for kind, size in kinds:
        if order[kind] <= last:
            sums.append(0.0)
            at += 1
        last = order[kind]
        sums[at] += 0.0 if kind == "margin" or size.startswith("<") else float(size)
    assert len(sums) == len(used)
    assert all(abs(total - said) < 0.05 for total, said in zip(sums, used, strict=True))


def test_groups_come_in_the_order_of_the_questions() -> None:
    titles = [line for line in explain(planned("llama, experts in RAM"), 80) if not line.startswith(" ")]
    assert titles == [
        "model",
        "memory, in GiB",
        "context and cache",
        "placement",
        "batch",
        "speed",
        "what was considered",
    ]


def test_every_setting_of_the_command_is_there_once_with_its_origin() -> None:
    plan = planned("llama, experts in RAM")
    found = "\n".join(explain(plan, 4000))
    for one in plan.decisions:
        assert f"{one.setting} " in found
        assert one.because in found
    assert found.count("-ncmoe 23, -ot blk.23.ffn_down_exps=CPU,blk.23.ffn_up_exps=CPU [solved]") == 1


def test_the_next_better_value_and_what_it_lacks() -> None:
    found = "\n".join(explain(planned("llama, experts in RAM"), 4000))
    assert re.search(r"-c 17664 \[solved\].*\n    next: 17920 needs 0\.01 GiB more on GPU0", found)
    lossy = "\n".join(explain(planned("llama, a lossy cache"), 4000))
    assert re.search(r"-ctk q8_0, -ctv q8_0 \[solved\].*\n    next: f16 needs \d\.\d+ GiB more on GPU0", lossy)


def test_plans_that_were_considered_come_once_and_with_the_memory_they_take() -> None:
    """The prompt cache counts for all of them or for none: RAM of a plan and of another is comparable."""
    plan = planned("llama, experts in RAM")
    others = {one.argv: one.host_bytes for one in plan.alternatives}
    titles = [one.argv for one in plan.alternatives]
    found = list(explain(plan, 4000))
    start = found.index("what was considered")
    assert len(found) - start - 1 == len(set(titles))
    assert all(n_bytes > 8 * GIB for n_bytes in others.values())


def test_equal_cards_are_one_entry() -> None:
    found = list(explain(planned("vllm, eight cards"), 80))
    assert sum(line.startswith("  GPU") for line in found) == 1
    assert any(line.startswith("  GPU0 to GPU7 8 × NVIDIA H100") for line in found)


@pytest.mark.parametrize(
    ("n_bytes", "shown"),
    [(0, "0.00"), (1, "<0.001"), (GIB // 1000, "0.001"), (GIB // 100, "0.01"), (3 * GIB // 2, "1.50"), (-GIB, "-1.00")],
)
def test_gib(n_bytes: int, shown: str) -> None:
    assert format_gib(n_bytes) == shown
