"""Whatever `gguf.GGUFWriter` writes, our reader reads as `gguf.GGUFReader` does."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autofit.domain.dtypes import ENGINE_TYPES, GGML_TYPES
from autofit.domain.model import StringArray
from autofit.readers.gguf import read_gguf
from gguf import GGMLQuantizationType, GGUFEndian, GGUFReader, GGUFValueType, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

T = GGUFValueType
LIMITS = {
    T.UINT8: (0, 2**8 - 1),
    T.INT8: (-(2**7), 2**7 - 1),
    T.UINT16: (0, 2**16 - 1),
    T.INT16: (-(2**15), 2**15 - 1),
    T.UINT32: (0, 2**32 - 1),
    T.INT32: (-(2**31), 2**31 - 1),
    T.UINT64: (0, 2**64 - 1),
    T.INT64: (-(2**63), 2**63 - 1),
}
TYPES = sorted(kind for kind in GGML_QUANT_SIZES if kind.value not in ENGINE_TYPES)

names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=15)  # at most 60 bytes
numbers = st.sampled_from(sorted(LIMITS)).flatmap(lambda t: st.tuples(st.just(t), st.integers(*LIMITS[t])))
scalars = st.one_of(
    numbers,
    st.tuples(st.just(T.FLOAT32), st.floats(width=32, allow_nan=False)),
    st.tuples(st.just(T.FLOAT64), st.floats(allow_nan=False)),
    st.tuples(st.just(T.BOOL), st.booleans()),
    st.tuples(st.just(T.STRING), st.text(st.characters(codec="utf-8"), max_size=40)),
)
arrays = st.one_of(
    st.tuples(st.just(T.INT32), st.lists(st.integers(*LIMITS[T.INT32]), min_size=1, max_size=20)),
    st.tuples(st.just(T.FLOAT32), st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20)),
    st.tuples(st.just(T.BOOL), st.lists(st.booleans(), min_size=1, max_size=20)),
    st.tuples(
        st.just(T.STRING),
        st.lists(st.text(st.characters(codec="utf-8"), max_size=300), min_size=1, max_size=20),
    ),
)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, GGMLQuantizationType, tuple[int, ...]]:
    """Name, type and shape as numpy has it: the last dimension is a whole number of blocks."""
    kind = draw(st.sampled_from(TYPES))
    shape = draw(st.lists(st.integers(1, 3), min_size=0, max_size=3))
    return draw(names), kind, (*shape, draw(st.integers(1, 3)) * GGML_QUANT_SIZES[kind][0])


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    keys=st.dictionaries(
        names.filter(lambda key: not key.startswith(("GGUF.", "general."))), scalars | arrays, max_size=8
    ),
    infos=st.lists(tensors(), max_size=6, unique_by=lambda info: info[0]),
    endian=st.sampled_from(GGUFEndian),
    alignment=st.sampled_from([None, 8, 32, 64, 4096]),
)
def test_our_reader_agrees_with_theirs(
    keys: dict[str, tuple[GGUFValueType, Any]],
    infos: list[tuple[str, GGMLQuantizationType, tuple[int, ...]]],
    endian: GGUFEndian,
    alignment: int | None,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        written = write(path, keys, infos, endian, alignment)
        ours, theirs = read_gguf(path), GGUFReader(path)

        assert set(ours.metadata) == {key for key in theirs.fields if not key.startswith("GGUF.")}
        for key, (kind, value) in keys.items():
            expected = theirs.fields[key].contents()
            if isinstance(value, list) and kind == T.STRING:
                assert ours.metadata[key] == StringArray(count=len(expected), element_type="str")
            elif isinstance(value, list):
                assert ours.metadata[key] == tuple(expected)
            else:
                assert ours.metadata[key] == expected

        assert len(ours.tensors) == len(theirs.tensors) == written
        for mine, other in zip(ours.tensors, theirs.tensors, strict=True):
            assert mine.name == other.name
            assert GGML_TYPES[other.tensor_type.value].name == mine.type
            assert mine.ne == tuple(other.shape.tolist())
            assert mine.n_bytes == other.n_bytes
            assert mine.offset_bytes == other.data_offset
            assert mine.n_elements == other.n_elements
        del theirs  # its memory map, before the folder goes


def write(
    path: Path,
    keys: dict[str, tuple[GGUFValueType, Any]],
    infos: list[tuple[str, GGMLQuantizationType, tuple[int, ...]]],
    endian: GGUFEndian,
    alignment: int | None,
) -> int:
    """The file as gguf writes it; returns the number of tensors."""
    writer = GGUFWriter(path, "llama", endianess=endian)
    if alignment:
        writer.add_custom_alignment(alignment)
    for key, (kind, value) in keys.items():
        if isinstance(value, list):
            writer.add_key_value(key, value, T.ARRAY, sub_type=kind)
        else:
            writer.add_key_value(key, value, kind)
    for name, kind, shape in infos:
        block_elements, block_bytes = GGML_QUANT_SIZES[kind]
        rows = np.zeros((*shape[:-1], shape[-1] // block_elements * block_bytes), dtype=np.uint8)
        writer.add_tensor(name, rows, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return len(infos)
