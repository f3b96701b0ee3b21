"""The environment variables that choose devices, as the drivers read them."""

from __future__ import annotations

import pytest
from autofit.hardware.visible import select

A, B, C, D = (f"GPU-{letter * 8}-0000-1111-2222-333344445555" for letter in "abcd")
CARDS = [A, B, C, D]
CUDA = "CUDA_VISIBLE_DEVICES"


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        (None, (0, 1, 2, 3)),
        ("0", (0,)),
        ("2,1", (2, 1)),
        (" 3 , 0 ", (3, 0)),
        ("0,2,-1,1", (0, 2)),  # the example of NVIDIA's programming guide
        ("-1", ()),
        ("", ()),
        ("  ", ()),
        ("9,0", ()),
        ("0,9,1", (0,)),
        ("1gpu,2", (1, 2)),  # strtol reads the digits
        ("+1", (1,)),
        ("99999999999999999999,0", ()),
        ("0,0", ()),  # twice: none at all
        (B, (1,)),
        (f"{C},{A}", (2, 0)),
        ("GPU-bbbb", (1,)),
        ("gpu-BBBB", (1,)),
        ("GPU-", ()),  # names all four
        ("GPU-ffff,GPU-aaaa", ()),
        (f"{A},1", (0,)),  # not mixed
        (f"0,{B}", (0,)),
        (f"{A},{A}", ()),
        ("NoDevFiles", ()),
    ],
)
def test_cuda_visible_devices(text: str | None, chosen: tuple[int, ...]) -> None:
    assert select(CUDA, text, CARDS).chosen == chosen


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("3,GPU-bbbbbbbb,4", (3, 1)),
        (f"1,{C},GPU-XX", (1, 2)),
        ("-1", ()),
        ("GPU-XX", ()),
        ("0,0", (0,)),  # the second naming ends the list
        ("2,0,2,1", (2, 0)),
    ],
)
def test_rocm_mixes_indices_and_uuids(text: str, chosen: tuple[int, ...]) -> None:
    assert select("ROCR_VISIBLE_DEVICES", text, CARDS, rocm=True).chosen == chosen


def test_a_mistake_is_named_with_its_entry_and_what_it_hides() -> None:
    problem = select(CUDA, "0,7,1,2", CARDS).problem
    assert problem is not None
    assert "'7'" in problem
    assert "2 after it" in problem


def test_minus_one_is_no_mistake() -> None:
    assert select(CUDA, "0,-1", CARDS).problem is None


def test_an_empty_variable_says_that_all_is_hidden() -> None:
    assert "every device is hidden" in (select(CUDA, "", CARDS).problem or "")


def test_minus_one_alone_says_that_all_is_hidden() -> None:
    assert select(CUDA, "-1", CARDS).problem == f"{CUDA} is -1: every device is hidden"
