"""Models described without their weights: everything a GGUF header says, as gzipped JSON.

`file` is the name of the described file, `header_bytes` and `file_bytes` its sizes; `kv` holds (key, type,
value) and `tensors` (name, dimensions innermost first, ggml type id, offset in the data), in the order of the
file. A type is GGUF's number, `str`, or `array:TYPE`; of a vocabulary's arrays only the `count` is there.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from autofit.domain.dtypes import GGML_TYPES
from autofit.domain.model import ModelFile, ModelSpec, StringArray, TensorInfo
from autofit.domain.text import printable
from autofit.errors import CorruptModelError, ModelError
from autofit.readers.documents import parse_json
from autofit.readers.files import read_small
from autofit.readers.gguf import ALIGNMENT_KEY, DEFAULT_ALIGNMENT, ELEMENT_NAMES, MAX_KEPT, to_spec

MAX_PACKED_BYTES = 1 << 20
MAX_BYTES = 1 << 24
MAX_TEXT = 400  #: characters of a value that `describe` keeps


def read_description(path: str | Path) -> ModelSpec:
    """The model described by the file at `path`: what `read_gguf` makes of the real file, but for its path.

    Raises:
        ModelNotFoundError: no such file. CorruptModelError: it is no description.
    """
    path = str(path)
    description = parse_json(_unpack(read_small(path, MAX_PACKED_BYTES), path), path)
    try:
        return _to_spec(description, Path(path).name.removesuffix(".json.gz") + ".gguf")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise CorruptModelError(printable(path), "not a model description") from error


def describe(model: ModelSpec) -> bytes:
    """The description of a GGUF model in one file: what `read_description` reads again.

    Prose (a chat template, what is longer than any setting) is left out.

    Raises:
        ModelError: it is no GGUF model, or its tensors are in several files.
    """
    if model.format != "gguf" or len(model.files) != 1 or model.files[0].header_bytes is None:
        raise ModelError(f"{printable(model.name, 80)}: only a GGUF model in one file is described by its header")
    file, header_bytes = model.files[0], model.files[0].header_bytes
    alignment = model.metadata.get(ALIGNMENT_KEY, DEFAULT_ALIGNMENT)
    assert isinstance(alignment, int)
    start = -(-header_bytes // alignment) * alignment
    type_ids = {ggml.name: number for number, ggml in GGML_TYPES.items()}
    described = {
        "file": Path(file.path).name,
        "header_bytes": header_bytes,
        "file_bytes": file.size_bytes,
        "kv": [
            _entry(key, model.metadata_types[key], value)
            for key, value in model.metadata.items()
            if key in model.metadata_types and not (isinstance(value, str) and len(value) > MAX_TEXT)
        ],
        "tensors": [[t.name, t.shape[::-1], type_ids[t.type], t.offset_bytes - start] for t in model.tensors],
    }
    packer = zlib.compressobj(9, wbits=31)
    return packer.compress(json.dumps(described, separators=(",", ":")).encode()) + packer.flush()


def _entry(key: str, kind: str, value: object) -> list[Any]:
    """One key with its type and value; of a vocabulary its count."""
    numbers = {name: number for number, name in ELEMENT_NAMES.items()}
    element = kind.removesuffix("[]")
    written = "str" if element == "str" else numbers[element]
    if element == kind:
        return [key, written, value]
    return [key, f"array:{written}", {"count": value.count} if isinstance(value, StringArray) else value]


def _to_spec(description: dict[str, Any], name: str) -> ModelSpec:
    """The model; errors of every kind are those of a file that nobody of ours wrote."""
    metadata = {_text(key): _value(kind, value) for key, kind, value in description["kv"]}
    alignment = metadata.get(ALIGNMENT_KEY, DEFAULT_ALIGNMENT)
    header_bytes, file_bytes = _count(description["header_bytes"]), _count(description["file_bytes"])
    start = -(-header_bytes // alignment) * alignment
    tensors = []
    for tensor, ne, type_id, offset in description["tensors"]:
        type_name, block_elements, block_bytes = GGML_TYPES[type_id]
        n_bytes = (ne or [1])[0] // block_elements * block_bytes
        for dim in ne[1:]:
            n_bytes *= dim
        shape = tuple([_count(dim) for dim in ne[::-1]])
        tensors.append(TensorInfo(_text(tensor), type_name, shape, n_bytes, 0, start + _count(offset)))
    file = ModelFile(path=_text(description.get("file", name)), size_bytes=file_bytes, header_bytes=header_bytes)
    return to_spec(metadata, tensors, [file], types={key: _type(kind) for key, kind, _ in description["kv"]})


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise TypeError("no count")
    return value


def _type(kind: int | str) -> str:
    if isinstance(kind, int):
        return ELEMENT_NAMES[kind]
    element = kind.removeprefix("array:")
    if element == kind:
        return kind
    return f"{element if element == 'str' else ELEMENT_NAMES[int(element)]}[]"


def _value(kind: int | str, value: Any) -> Any:
    if isinstance(kind, int) or kind == "str":
        return _scalar(_type(kind), value)
    element = kind.removeprefix("array:")
    if element == "str":
        return StringArray(count=_count(value["count"]), element_type="str")
    of = ELEMENT_NAMES[int(element)]
    if isinstance(value, dict):
        return StringArray(count=_count(value["count"]), element_type=of)
    if len(value) > MAX_KEPT:
        return StringArray(count=len(value), element_type=of)
    return tuple([_scalar(of, item) for item in value])


def _scalar(kind: str, value: Any) -> Any:
    """A value of a GGUF type, which is named `u32`, `f32`, `bool` or `str`."""
    if type(value) is not {"str": str, "bool": bool, "f32": float, "f64": float}.get(kind, int):
        raise TypeError(kind)
    if isinstance(value, int) and kind != "bool":
        bits, is_signed = int(kind[1:]), kind[0] == "i"
        if not -is_signed << bits - 1 <= value < 1 << bits - is_signed:
            raise ValueError(kind)
    return value


def _unpack(packed: bytes, path: str) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        data = unpacker.decompress(packed, MAX_BYTES)
    except zlib.error as error:
        raise CorruptModelError(printable(path), "not gzip", offset_bytes=0) from error
    if not unpacker.eof:
        cause = "the gzip data ends too early" if len(data) < MAX_BYTES else f"more than {MAX_BYTES} bytes unpacked"
        raise CorruptModelError(printable(path), cause)
    return data
