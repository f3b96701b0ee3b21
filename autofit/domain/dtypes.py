"""How many bytes a tensor type takes: ggml's block types, and safetensors' element types."""

from __future__ import annotations

from autofit.domain.values import NamedTuple


class GgmlType(NamedTuple):
    """A ggml storage type: rows are cut into blocks of `block_elements`, each `block_bytes` long."""

    name: str  #: as llama.cpp spells it (ggml_type_name), which is what `-ctk` and logs say
    block_elements: int
    block_bytes: int


# Generated from gguf.constants by tools/gen/dtypes.py: do not edit between the two lines.
# --- generated
PACKAGE_TYPES: dict[int, GgmlType] = {
    0: GgmlType("f32", 1, 4),
    1: GgmlType("f16", 1, 2),
    2: GgmlType("q4_0", 32, 18),
    3: GgmlType("q4_1", 32, 20),
    6: GgmlType("q5_0", 32, 22),
    7: GgmlType("q5_1", 32, 24),
    8: GgmlType("q8_0", 32, 34),
    9: GgmlType("q8_1", 32, 40),
    10: GgmlType("q2_K", 256, 84),
    11: GgmlType("q3_K", 256, 110),
    12: GgmlType("q4_K", 256, 144),
    13: GgmlType("q5_K", 256, 176),
    14: GgmlType("q6_K", 256, 210),
    15: GgmlType("q8_K", 256, 292),
    16: GgmlType("iq2_xxs", 256, 66),
    17: GgmlType("iq2_xs", 256, 74),
    18: GgmlType("iq3_xxs", 256, 98),
    19: GgmlType("iq1_s", 256, 50),
    20: GgmlType("iq4_nl", 32, 18),
    21: GgmlType("iq3_s", 256, 110),
    22: GgmlType("iq2_s", 256, 82),
    23: GgmlType("iq4_xs", 256, 136),
    24: GgmlType("i8", 1, 1),
    25: GgmlType("i16", 1, 2),
    26: GgmlType("i32", 1, 4),
    27: GgmlType("i64", 1, 8),
    28: GgmlType("f64", 1, 8),
    29: GgmlType("iq1_m", 256, 56),
    30: GgmlType("bf16", 1, 2),
    34: GgmlType("tq1_0", 256, 54),
    35: GgmlType("tq2_0", 256, 66),
    39: GgmlType("mxfp4", 32, 17),
    40: GgmlType("nvfp4", 64, 36),
    41: GgmlType("q1_0", 128, 18),
}
# --- end of generated

# What the package lacks or has differently. The engine decides: ggml-common.h asserts the size of each block.
ENGINE_TYPES: dict[int, GgmlType] = {
    9: GgmlType("q8_1", 32, 36),  # two halves and 32 bytes; the package counts two floats
    42: GgmlType("q2_0", 64, 18),  # GGML_TYPE_Q2_0, newer than the package
}

GGML_TYPES: dict[int, GgmlType] = {**PACKAGE_TYPES, **ENGINE_TYPES}
GGML_TYPES_BY_NAME: dict[str, GgmlType] = {ggml.name: ggml for ggml in GGML_TYPES.values()}

# Ids once in use; the engine refuses files that have them (ggml/src/ggml.c type_traits, block size 0).
REMOVED_GGML_TYPES: dict[int, str] = {
    4: "q4_2", 5: "q4_3", 31: "q4_0_4_4", 32: "q4_0_4_8", 33: "q4_0_8_8",
    36: "iq4_nl_4_4", 37: "iq4_nl_4_8", 38: "iq4_nl_8_8",
}  # fmt: skip

# Bits of one element (safetensors/src/tensor.rs, Dtype::bitsize).
SAFETENSORS_BITS: dict[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip


def row_bytes(type_name: str, n_elements: int) -> int:
    """Bytes of one row of `n_elements` of a ggml type (ggml/src/ggml.c:ggml_row_size).

    Raises:
        KeyError: not a ggml type. ValueError: the row is not a whole number of blocks.
    """
    _, block_elements, block_bytes = GGML_TYPES_BY_NAME[type_name]
    n_blocks, rest = divmod(n_elements, block_elements)
    if rest:
        raise ValueError(f"{n_elements} elements are not whole blocks of {block_elements} ({type_name})")
    return n_blocks * block_bytes
