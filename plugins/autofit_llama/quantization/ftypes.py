"""The names that `llama-quantize` takes, their numbers and the type that most tensors get."""

from __future__ import annotations

from autofit.domain.values import NamedTuple
from autofit.errors import UsageError


class Ftype(NamedTuple):
    """A quantization of a whole file: `number` is `general.file_type`, `default` the type of most tensors."""

    name: str
    number: int
    default: str


# tools/quantize/quantize.cpp:QUANT_OPTIONS, in its order; default types of
# src/llama-quant.cpp:llama_ftype_get_default_type.
_FTYPES = (
    Ftype("Q1_0", 40, "q1_0"),
    Ftype("Q2_0", 41, "q2_0"),
    Ftype("Q4_0", 2, "q4_0"),
    Ftype("Q4_1", 3, "q4_1"),
    Ftype("MXFP4_MOE", 38, "mxfp4"),
    Ftype("Q5_0", 8, "q5_0"),
    Ftype("Q5_1", 9, "q5_1"),
    Ftype("IQ2_XXS", 19, "iq2_xxs"),
    Ftype("IQ2_XS", 20, "iq2_xs"),
    Ftype("IQ2_S", 28, "iq2_xs"),
    Ftype("IQ2_M", 29, "iq2_s"),
    Ftype("IQ1_S", 24, "iq1_s"),
    Ftype("IQ1_M", 31, "iq1_m"),
    Ftype("TQ1_0", 36, "tq1_0"),
    Ftype("TQ2_0", 37, "tq2_0"),
    Ftype("Q2_K", 10, "q2_K"),
    Ftype("Q2_K_S", 21, "q2_K"),
    Ftype("IQ3_XXS", 23, "iq3_xxs"),
    Ftype("IQ3_S", 26, "iq3_s"),
    Ftype("IQ3_M", 27, "iq3_s"),
    Ftype("IQ3_XS", 22, "iq3_s"),
    Ftype("Q3_K_S", 11, "q3_K"),
    Ftype("Q3_K_M", 12, "q3_K"),
    Ftype("Q3_K_L", 13, "q3_K"),
    Ftype("IQ4_NL", 25, "iq4_nl"),
    Ftype("IQ4_XS", 30, "iq4_xs"),
    Ftype("Q4_K_S", 14, "q4_K"),
    Ftype("Q4_K_M", 15, "q4_K"),
    Ftype("Q5_K_S", 16, "q5_K"),
    Ftype("Q5_K_M", 17, "q5_K"),
    Ftype("Q6_K", 18, "q6_K"),
    Ftype("Q8_0", 7, "q8_0"),
    Ftype("F16", 1, "f16"),
    Ftype("BF16", 32, "bf16"),
    Ftype("F32", 0, "f32"),
)
FTYPES = {ftype.name: ftype for ftype in _FTYPES}
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

FLOATS = frozenset({"f32", "f16", "bf16"})
#: types that tensors can be written in (ggml/src/ggml.c:ggml_quantize_chunk)
WRITABLE = FLOATS | frozenset(
    """q1_0 q2_0 q4_0 q4_1 q5_0 q5_1 q8_0 mxfp4 nvfp4 q2_K q3_K q4_K q5_K q6_K tq1_0 tq2_0
    iq2_xxs iq2_xs iq2_s iq3_xxs iq3_s iq1_s iq1_m iq4_nl iq4_xs""".split()
)
#: types without a way back to floats: a tensor in one of them cannot be quantized
#: (src/llama-quant.cpp:llama_tensor_dequantize_impl)
UNREADABLE = frozenset({"q8_1", "q8_K", "i8", "i16", "i32", "i64", "f64"})


def find_ftype(name: str) -> Ftype:
    """The quantization of that name, number or alias, in any case (tools/quantize/quantize.cpp:try_parse_ftype).

    Raises:
        UsageError: llama-quantize knows none.
    """
    upper = name.upper()
    found = FTYPES.get(_ALIASES.get(upper, upper))
    if found is None and upper.isascii() and upper.isdigit():
        found = next((ftype for ftype in _FTYPES if ftype.number == int(upper[:9])), None)
    if found is None:
        from difflib import get_close_matches

        near = get_close_matches(upper, FTYPES, n=3)
        raise UsageError(
            f"no quantization is called {name[:40]!r}",
            hint=f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(FTYPES)}",
        )
    return found
