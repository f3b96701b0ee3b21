"""What llama.cpp publishes about the loss of its quantizations (tools/quantize/quantize.cpp:QUANT_OPTIONS)."""

from __future__ import annotations

from autofit.domain.quantization import Quality

_SOURCE = "llama.cpp b11311, tools/quantize/quantize.cpp"
_LLAMA_3_8B = {
    "Q4_0": 0.4685, "Q4_1": 0.4511, "Q5_0": 0.1316, "Q5_1": 0.1062, "Q2_K": 3.5199, "Q2_K_S": 3.1836,
    "Q3_K_S": 1.6321, "Q3_K_M": 0.6569, "Q3_K_L": 0.5562, "Q4_K_S": 0.2689, "Q4_K_M": 0.1754, "Q5_K_S": 0.1049,
    "Q5_K_M": 0.0569, "Q6_K": 0.0217, "Q8_0": 0.0026,
}  # fmt: skip
_MISTRAL_7B = {"F16": 0.0020, "BF16": -0.0050}


def quality_of(ftype: str) -> tuple[Quality, ...]:
    """The published figures of a quantization; none for most."""
    tables = (("Llama-3-8B", _LLAMA_3_8B), ("Mistral-7B", _MISTRAL_7B))
    return tuple(
        Quality(measure="increase of perplexity", value=table[ftype], model=model, source=_SOURCE)
        for model, table in tables
        if ftype in table
    )
