"""Element types as torch spells them, and their sizes."""

from __future__ import annotations

from autofit.domain.text import printable
from autofit.errors import EngineRefusalError

_BYTES = {
    "float64": 8,
    "int64": 8,
    "float32": 4,
    "int32": 4,
    "uint32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int16": 2,
    "uint16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "float8_e8m0fnu": 1,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}

#: safetensors' spelling (Hugging Face's `dtype` of a header entry) to torch's
SAFETENSORS = {
    "F64": "float64",
    "I64": "int64",
    "U64": "int64",
    "F32": "float32",
    "I32": "int32",
    "U32": "uint32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I16": "int16",
    "U16": "uint16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def dtype_bytes(dtype: str) -> int:
    """Bytes of one element.

    Raises:
        EngineRefusalError: not an element type that vLLM keeps weights or caches in.
    """
    found = _BYTES.get(dtype)
    if found is None:
        raise EngineRefusalError(f"vLLM keeps no weights or caches as '{printable(dtype, 40)}'")
    return found
