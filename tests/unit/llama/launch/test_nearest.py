"""A command that does not fit is answered with the cheapest change that does, proven by a check of its own."""

from __future__ import annotations

import re
import shlex

import autofit
import pytest
from autofit.domain.plan import Plan

from support import DATA

MODELS = DATA / "llama" / "models"


def checked(name: str, flags: str, *on: str, ram: str) -> Plan:
    argv = ["llama-server", "-m", str(MODELS / f"{name}.json.gz"), *shlex.split(flags)]
    return autofit.check(argv, autofit.load_machine(*on, ram=ram), settings=None)


def told(plan: Plan) -> list[str]:
    return [found.message for found in plan.findings if found.code == "would-fit"]


@pytest.mark.slow_cases("qwen3-30b*")
@pytest.mark.parametrize(
    ("name", "flags", "card", "nearest"),
    [
        ("qwen3-32b-Q4_K_M", "-ngl 99 -c 24576 -fit off", "rtx-3090", "-fa on -ctk q8_0 -ctv q8_0"),
        ("qwen3-32b-Q4_K_M", "-ngl 99 -c 24576 -ctk q8_0 -ctv q8_0 -fa on -ub 4096 -b 4096 -fit off", "rtx-3090", None),
        ("qwen3-30b-a3b-Q4_K_M", "-ngl 99 -c 8192 -fit off", "rtx-3060-12gb", "-ncmoe 20"),
        ("qwen3-30b-a3b-Q4_K_M", "-ngl 99 -c 8192", "rtx-3060-12gb", "-ncmoe 20"),  # its own --fit gives up
        ("llama-3.1-8b-Q4_K_M", "-ngl 99 -c 65536 -np 1 -fit off", "rtx-3060-12gb", None),
    ],
)
def test_the_nearest_change_fits(name: str, flags: str, card: str, nearest: str | None) -> None:
    plan = checked(name, flags, card, ram="64GiB")
    said = told(plan)
    assert plan.fits is (not said)
    if not said:
        return
    found = re.match(r"nearest: (.+?) fits: ", said[0])
    assert found, said
    assert nearest in (None, found[1])
    kept = flags
    for flag in re.findall(r"(?<!\S)-[a-z]+", found[1]):
        kept = re.sub(rf"(?<!\S){flag} \S+", "", kept)
    assert checked(name, f"{kept} {found[1]}", card, ram="64GiB").fits


@pytest.mark.slow
def test_where_no_flag_helps_memory_is_named() -> None:
    plan = checked("qwen2.5-72b-IQ4_XS", "-ngl 20 -c 4096 -fit off", "rtx-3090", ram="16GiB")
    assert not plan.fits
    assert any(re.match(r"nearest: .* more on host", words) for words in told(plan)), told(plan)


def test_where_the_engine_fits_itself_nothing_is_tried_again() -> None:
    plan = checked("mixtral-8x7b-Q4_K_M", "", "t4", ram="16GiB")
    assert told(plan) == ["nearest: 8.25 GiB more on host; --fit finds no context and no layers that fit"]
