"""Scratch of matrix products: which kernels take them, and what they hold at a time."""

from __future__ import annotations

import pytest
from autofit.domain.machine import Device
from autofit.domain.units import MIB

from autofit_llama.memory.scratch import Product, Products, blas_bytes, prompt_scratch, uses_tiles

DENSE = Product("q6_K", 5120, 25600, 512)
EXPERTS = Product("q4_K", 2048, 768, 512, n_experts=128, n_used=8)


def cuda(major: int, minor: int) -> Device:
    return Device(
        id="GPU0", index=0, name="", api="cuda", total_bytes=None, free_bytes=None, compute_capability=(major, minor)
    )


def rocm(gfx: str) -> Device:
    return Device(id="GPU0", index=0, name="", api="rocm", total_bytes=None, free_bytes=None, gfx=gfx)


@pytest.mark.parametrize(
    ("device", "product", "tiles"),
    [
        (cuda(8, 6), DENSE, True),
        (cuda(7, 0), DENSE, False),
        (cuda(7, 0), DENSE._replace(n_rows=63), True),
        (cuda(6, 1), DENSE, True),
        (cuda(6, 0), DENSE, False),
        (cuda(6, 0), EXPERTS, True),
        (rocm("gfx1100"), DENSE, False),
        (rocm("gfx1100"), DENSE._replace(type="q4_K"), True),
        (rocm("gfx1151"), DENSE._replace(n_rows=256), True),
        (rocm("gfx1100"), EXPERTS._replace(type="q6_K"), True),
        (rocm("gfx1201"), DENSE, True),
        (rocm("gfx90a"), DENSE, False),
        (rocm("gfx942"), DENSE, True),
        (rocm("gfx906"), DENSE, True),
        (rocm("gfx900"), DENSE, False),
        (rocm("gfx1100"), DENSE._replace(n_rows=1), True),
    ],
)
def test_kernels_are_those_of_the_card(device: Device, product: Product, tiles: bool) -> None:
    assert uses_tiles(device, product) is tiles


def test_a_volta_unpacks_the_output_matrix_for_every_row() -> None:
    """One row of logits takes nothing; with draft heads of builds that want all of them it is the largest there is."""
    output = Product("q6_K", 2048, 248_320, 512)
    assert blas_bytes(cuda(7, 0), [output]) == 2 * 2048 * (248_320 + 512)
    assert blas_bytes(cuda(7, 0), [output._replace(n_rows=1)]) == 0
    assert blas_bytes(cuda(8, 9), [output]) == 0


def test_the_pool_of_rocm_keeps_buffers_of_every_size() -> None:
    small, large = DENSE._replace(n_out=5120), DENSE
    one = blas_bytes(rocm("gfx1100"), [large])
    both = blas_bytes(rocm("gfx1100"), [small, large])
    assert both > one > 2 * 5120 * 25600
    assert blas_bytes(rocm("gfx1100"), [large, large]) == one
    assert blas_bytes(cuda(7, 0), [small, large]) == blas_bytes(cuda(7, 0), [large])


def test_items_say_what_they_are() -> None:
    products = Products(n_tokens=512, each=(DENSE, EXPERTS))
    labels = {item.label: item for item in prompt_scratch(cuda(7, 0), products)}
    assert "weights unpacked for cuBLAS" in labels
    assert labels["weights unpacked for cuBLAS"].n_bytes > 250 * MIB
    (only,) = prompt_scratch(cuda(8, 6), products)
    assert only.label == "matrix multiplication scratch"


def test_old_builds_copy_caches_at_the_first_prompt() -> None:
    kept = Products(n_tokens=512, each=(DENSE,))
    copied = Products(n_tokens=512, each=(DENSE,), copied_cells=32 * MIB)
    more = {item.label: item.n_bytes for item in prompt_scratch(cuda(8, 6), copied)}
    assert more.pop("K and V in half precision") == 64 * MIB
    assert more == {item.label: item.n_bytes for item in prompt_scratch(cuda(8, 6), kept)}
