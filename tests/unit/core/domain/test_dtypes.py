"""The type tables: ggml's against the `gguf` package and the engine, safetensors' against its format."""

from __future__ import annotations

import importlib.util

import pytest
from autofit.domain import dtypes
from gguf.constants import GGML_QUANT_SIZES

from support import ROOT

SCRIPT = ROOT / "tools" / "gen" / "dtypes.py"


def test_the_generated_lines_are_current() -> None:
    spec = importlib.util.spec_from_file_location("gen_dtypes", SCRIPT)
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = script.TARGET.read_text(encoding="utf-8")
    assert script.updated(text) == text


def test_every_type_of_the_package_is_there_with_its_size() -> None:
    ours = {number: (ggml.block_elements, ggml.block_bytes) for number, ggml in dtypes.PACKAGE_TYPES.items()}
    assert ours == {kind.value: size for kind, size in GGML_QUANT_SIZES.items()}


def test_the_engine_decides_where_it_differs() -> None:
    # block_q8_1 holds two halves and 32 bytes (ggml-common.h); the package counts 40
    assert dtypes.GGML_TYPES[9] == ("q8_1", 32, 36)
    newer = set(dtypes.ENGINE_TYPES) - set(dtypes.PACKAGE_TYPES)
    assert not newer & {kind.value for kind in GGML_QUANT_SIZES}


def test_no_removed_type_is_read() -> None:
    assert not set(dtypes.REMOVED_GGML_TYPES) & set(dtypes.GGML_TYPES)


@pytest.mark.parametrize(
    ("name", "n_elements", "n_bytes"),
    [
        ("f16", 4096, 8192),
        ("q4_K", 4096, 2304),
        ("q8_0", 128, 136),
        ("mxfp4", 2880, 1530),
        ("iq1_m", 256, 56),
    ],
)
def test_row_bytes(name: str, n_elements: int, n_bytes: int) -> None:
    assert dtypes.row_bytes(name, n_elements) == n_bytes


def test_row_of_broken_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="256"):
        dtypes.row_bytes("q4_K", 100)
