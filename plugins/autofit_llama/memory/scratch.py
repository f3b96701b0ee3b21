"""What a device takes at the first full prompt: operands that its matrix kernels convert, in a pool of their own.

Not in the engine's dry run. Which kernel multiplies decides: tiles take their input in 8 bits; a BLAS library takes
both operands in half or single precision, so that a whole quantized matrix is unpacked first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from autofit.domain.machine import Device
from autofit.domain.memory import Basis, MemoryItem
from autofit.domain.units import MIB, round_up
from autofit.domain.values import NamedTuple, dataclass, replace

MMQ_FIXUP_BYTES = 10 * MIB
OFFLOADED_EXPERT_FACTOR = 9
"""Half bytes per element of the rows that experts on the host are multiplied with, on the device: 294 MiB grew at
4096 tokens, 8 of 256 experts and rows of 2048 (ggml-org/llama.cpp#23527)."""
OFFLOADED_EXPERTS = "scaled from one run: 294 MiB at -ub 4096, ggml-org/llama.cpp#23527"
VULKAN_EXPERTS = "scaled from one run: 1.9 GiB with experts of 2816 x 1408 x 128, twice these in half precision"
FULL_PROMPT = "a prompt fills a micro-batch"  #: what makes memory grow

VECTOR_ROWS = 8  #: mmvq.cuh:MMVQ_MAX_BATCH_SIZE; up to so many rows nothing is converted that would count
DP4A_ROWS = 64  #: mmq.cuh:MMQ_DP4A_MAX_BATCH_SIZE
_FLOATS = frozenset(("f32", "f16", "bf16"))


class Product(NamedTuple):
    """A weight, and the rows that a full micro-batch multiplies it with.

    `n_used` of `n_experts` matrices are chosen for each row; 0 for a dense weight. `is_copied`: from the host, for
    this product.
    """

    type: str
    n_in: int
    n_out: int
    n_rows: int
    n_experts: int = 0
    n_used: int = 0
    is_copied: bool = False

    @property
    def n_inputs(self) -> int:
        """Elements of a row of inputs of all experts that it goes to."""
        return self.n_in * max(1, self.n_used)


@dataclass(frozen=True, slots=True, kw_only=True)
class Products:
    """What one context multiplies on one device in a full micro-batch.

    `each` are its products in the order of the model, those alike once. `offloaded_expert_row` is the hidden state
    times the experts used, where experts are copied to the device from the host; `scores` those of attention without
    flash attention (tokens x cells x heads). `copied_cells`: elements of the largest layer's cache that flash
    attention copies in half precision, in builds whose compute buffers have no room for that (cuda.py:FLASH_SCRATCH).
    """

    n_tokens: int
    each: tuple[Product, ...] = ()
    offloaded_expert_row: int = 0
    scores: int = 0
    copied_cells: int = 0


def driven(device: Device) -> Device:
    """The device as what drives it knows it: one behind a server is its card, where that is known."""
    if device.api != "rpc" or device.behind is None or device.behind == "cpu":
        return device
    return replace(device, api=device.behind)


def prompt_scratch(device: Device, products: Products, label: str = "") -> tuple[MemoryItem, ...]:
    """A device's growth at the first full prompt. Metal's is in its compute buffers, that of a server's device unknown
    unless the device is known.

    Sources: ggml-cuda.cu:ggml_cuda_mul_mat, ggml_cuda_mul_mat_id, ggml_cuda_mul_mat_cublas_impl;
    ggml-cuda/mmq.cu:ggml_cuda_mul_mat_q (36 bytes per 32 values, rows padded to 512; fix-up of tiles);
    ggml-vulkan.cpp:ggml_vk_mul_mat_q_f16 (prealloc_y: the input in half precision).
    """
    if device.runtime_bytes == 0:
        return ()
    device = driven(device)
    of = f" of the {label}" if label else ""
    kinds = {"cuda": _cuda_items, "rocm": _cuda_items, "vulkan": _vulkan_items}
    if device.api not in kinds:
        return ()
    return tuple(
        MemoryItem(kind="transient", n_bytes=n, basis=basis, label=f"{what}{of}", source=source, when=FULL_PROMPT)
        for n, basis, what, source in kinds[device.api](device, products)
    )


_Items = Iterator[tuple[int, Basis, str, str]]


def _cuda_items(device: Device, products: Products) -> _Items:
    n_tiles = max(map(_tile_bytes, tiled(device, products.each)), default=0)
    basis: Basis = "derived"
    source = "ggml-cuda/mmq.cu:ggml_cuda_mul_mat_q"
    offloaded = products.n_tokens * round_up(products.offloaded_expert_row, 512) * OFFLOADED_EXPERT_FACTOR // 2
    if offloaded > n_tiles:
        n_tiles, basis, source = offloaded, "assumed", OFFLOADED_EXPERTS
    if n_tiles:
        yield round_up(n_tiles + MMQ_FIXUP_BYTES, 2 * MIB), basis, "matrix multiplication scratch", source
    unpacked = blas_bytes(device, products.each)
    if unpacked:
        source = "ggml-cuda.cu:ggml_cuda_mul_mat_cublas_impl"
        yield unpacked, "derived", f"weights unpacked for {_BLAS[device.api]}", source
    if products.scores:
        source = "ggml-cuda.cu:ggml_cuda_mul_mat_cublas_impl"
        yield round_up(2 * products.scores, 2 * MIB), "derived", "attention scores, half precision", source
    if products.copied_cells:
        source = "ggml-cuda/fattn-common.cuh:launch_fattn"
        yield round_up(2 * products.copied_cells, 2 * MIB), "derived", "K and V in half precision", source


def _vulkan_items(device: Device, products: Products) -> _Items:
    quantized = [product for product in products.each if product.type not in _FLOATS]
    rows = [product.n_inputs for product in quantized if not (product.is_copied and not product.n_experts)]
    inputs = 2 * products.n_tokens * max([*rows, products.offloaded_expert_row])
    if inputs:
        yield inputs, "derived", "inputs in half precision", "ggml-vulkan.cpp:ggml_vk_mul_mat_q_f16"
    largest = max((p.n_in * p.n_out * p.n_experts for p in products.each if p.n_experts), default=0)
    if largest:
        yield 4 * largest, "assumed", "expert multiplication scratch", VULKAN_EXPERTS


def tiled(device: Device, products: Iterable[Product]) -> list[Product]:
    """Products of quantized weights that kernels with 8-bit inputs take."""
    return [
        product
        for product in products
        if product.type not in _FLOATS
        and not (product.is_copied and not product.n_experts)
        and uses_tiles(device, product)
    ]


def _tile_bytes(product: Product) -> int:
    return product.n_rows * round_up(product.n_inputs, 512) * 9 // 8


def uses_tiles(device: Device, product: Product) -> bool:
    """Whether kernels that take 8-bit inputs multiply these rows, or a BLAS library does.

    Source: ggml-cuda/mmq.cu:ggml_cuda_should_use_mmq.
    """
    if product.n_rows <= VECTOR_ROWS:
        return True
    if device.api == "rocm":
        return _tiles_on_amd(device.gfx, product)
    capability = device.compute_capability
    if capability is None or capability >= (7, 5):
        return True
    if capability < (6, 1):
        return capability >= (6, 0) and product.n_experts > 0
    return capability < (7, 0) or product.n_rows < DP4A_ROWS


def _tiles_on_amd(gfx: str | None, product: Product) -> bool:
    arch, rows = _gfx(gfx), product.n_rows
    if arch is None:
        return True
    if _is_cdna(arch):
        if 0x942 <= arch < 0x950 or product.n_experts > 64 or rows <= 128:
            return True
        return product.type in ("q4_0", "q4_1", "q5_0", "q5_1") or (rows <= 256 and product.type in ("q4_K", "q5_K"))
    if 0x1100 <= arch < 0x1200:
        if product.n_experts >= 64:
            return True
        most = {"q2_K": 128, "q6_K": 128 if arch < 0x1150 else 256}
        if arch < 0x1150:
            most |= {"iq2_xs": 128, "iq2_s": 128}
        return rows <= most.get(product.type, rows)
    return arch not in (0x900, 0x909, 0x90C) or product.n_experts > 0


def _gfx(name: str | None) -> int | None:
    """The number of an AMD instruction set as the engine compares it: 0x1100 for gfx1100; `None` if unknown."""
    digits = (name or "").removeprefix("gfx")
    try:
        return int(digits, 16)
    except ValueError:
        return None


def _is_cdna(arch: int) -> bool:
    return 0x908 <= arch < 0x1010 and arch not in (0x909, 0x90C)


_BLAS = {"cuda": "cuBLAS", "rocm": "hipBLAS"}


def blas_bytes(device: Device, products: Iterable[Product]) -> int:
    """What the pool of a device grows to for products of quantized weights that tiles do not take.

    CUDA's pool is virtual memory, which is used again whatever the sizes. ROCm's keeps every buffer, made 5 % larger
    than was asked for, and takes the smallest that is large enough.

    Source: ggml-cuda.cu:ggml_cuda_pool_vmm, ggml_cuda_pool_leg.
    """
    held = [
        _blas_buffers(device, product)
        for product in products
        if product.type not in _FLOATS and not uses_tiles(device, product)
    ]
    if device.api == "cuda":
        return round_up(max(map(sum, held), default=0), 2 * MIB)
    free: list[int] = []
    total = 0
    for sizes in held:
        taken = []
        for size in sizes:
            found = min((kept for kept in free if kept >= size), default=None)
            if found is None:
                found = round_up(size * 21 // 20, 256)
                total += found
            else:
                free.remove(found)
            taken.append(found)
        free += taken
    return total


def _blas_buffers(device: Device, product: Product) -> Sequence[int]:
    """Buffers that one product holds at a time: the unpacked weight, its input, and a result that is converted.

    Experts are multiplied one after the other, with their rows gathered in single precision; at worst one of them gets
    every token.
    """
    width = 2 if _has_fast_halves(device) else 4
    rows, n_in, n_out = product.n_rows, product.n_in, product.n_out
    gathered = [4 * rows * product.n_used * n for n in (n_in, n_out)] if product.n_experts else []
    inputs = [2 * rows * n_in] if width == 2 else []
    results = [] if width == 4 or _gives_singles(device) else [2 * rows * n_out]
    return [*gathered, width * n_in * n_out, *inputs, *results]


def _has_fast_halves(device: Device) -> bool:
    """ggml-cuda/common.cuh:fast_fp16_hardware_available."""
    capability = device.compute_capability or (8, 0)
    return device.api == "rocm" or (capability >= (6, 0) and capability != (6, 1))


def _gives_singles(device: Device) -> bool:
    """Whether the library's result is in single precision already (`prefer_f32_output`)."""
    if device.api == "cuda":
        return device.compute_capability == (7, 0)
    arch = _gfx(device.gfx)
    return arch is not None and (arch >= 0x1200 or _is_cdna(arch))
