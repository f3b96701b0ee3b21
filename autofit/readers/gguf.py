"""GGUF headers: every key and every tensor, without the data.

A header is walked once over a memory map. Strings of a vocabulary are stepped over, not built: their arrays
become `StringArray`. The checks are those of the engine (ggml/src/gguf.cpp:gguf_init_from_reader,
src/llama-model-loader.cpp), so what it would refuse is refused here, with the byte where it goes wrong.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

from autofit.domain.dtypes import GGML_TYPES, REMOVED_GGML_TYPES
from autofit.domain.model import ModelFile, ModelSpec, StringArray, TensorInfo
from autofit.domain.text import printable
from autofit.errors import CorruptModelError, ModelNotFoundError
from autofit.readers.files import Buffer, open_file
from autofit.readers.layers import gguf_layers

MAGIC = b"GGUF"
MAX_DIMS = 4  # ggml.h:GGML_MAX_DIMS
MAX_NAME_BYTES = 63  # ggml.h:GGML_MAX_NAME, which counts the final zero
MAX_ELEMENTS = (1 << 63) - 1
DEFAULT_ALIGNMENT = 32

# Far above any real model, far below what would take long or much memory.
MAX_HEADER_BYTES = 1 << 28
MAX_STRING_BYTES = 1 << 24
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 18
MAX_KEPT = 1 << 14  #: numbers of one array that are kept; a longer one belongs to a vocabulary
MAX_KEPT_IN_ALL = 1 << 20

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_NAMES = {
    0: "u8",
    1: "i8",
    2: "u16",
    3: "i16",
    4: "u32",
    5: "i32",
    6: "f32",
    7: "bool",
    8: "str",
    10: "u64",
    11: "i64",
    12: "f64",
}
_OLD_MAGICS = {b"lmgg", b"tjgg", b"fmgg", b"algg"}  # GGML, GGJT, GGMF, GGLA as their little-endian words
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


class Header(NamedTuple):
    """One file's header. Tensor offsets are absolute; `end_bytes` is where the header ends."""

    metadata: dict[str, object]
    tensors: list[TensorInfo]
    end_bytes: int


class _Layout:
    """The fixed-size pieces of a header in one byte order, compiled once."""

    def __init__(self, order: str) -> None:
        self.u32 = struct.Struct(order + "I")
        self.u64 = struct.Struct(order + "Q")
        self.counts = struct.Struct(order + "QQ")
        self.array = struct.Struct(order + "IQ")
        self.scalars = {kind: struct.Struct(order + code) for kind, code in _SCALARS.items()}
        #: dimensions, type, offset of a tensor with 0 to 4 dimensions
        self.tensor = [struct.Struct(f"{order}{n}QIQ") for n in range(MAX_DIMS + 1)]


_LITTLE, _BIG = _Layout("<"), _Layout(">")


def read_gguf(path: str | Path) -> ModelSpec:
    """The model in the GGUF file at `path`. Of a split model, any shard will do: all are found and read.

    Raises:
        ModelNotFoundError: no such file, or a shard is missing (it is named).
        CorruptModelError: the file contradicts itself or ends too early.
    """
    first = str(path)
    shards = _find_shards(first)
    files, headers = [], []
    for index, shard in enumerate(shards):
        file, header = _read_file(shard, index)
        files.append(file)
        headers.append(header)
    if len(shards) == 1:
        _check_whole(first, headers[0].metadata)
        tensors = headers[0].tensors
    else:
        tensors = _join(shards, headers)
    metadata = headers[0].metadata
    return to_spec(metadata, tensors, files, _stem(first))


def to_spec(
    metadata: Mapping[str, object],
    tensors: Sequence[TensorInfo],
    files: Sequence[ModelFile],
    fallback_name: str,
) -> ModelSpec:
    """The model that these keys and tensors describe.

    Raises:
        CorruptModelError: no architecture, or a key has another type than the engine needs.
    """
    path = files[0].path
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        kind = metadata.get("general.type")
        what = f" (its general.type is {printable(kind, 40)})" if isinstance(kind, str) else ""
        raise CorruptModelError(path, f"no general.architecture: this is no model{what}")
    name = metadata.get("general.name")
    vocabulary = metadata.get("tokenizer.ggml.tokens")
    n_vocab = metadata.get(f"{architecture}.vocab_size")
    return ModelSpec(
        name=name if isinstance(name, str) and name.strip() else fallback_name,
        format="gguf",
        architecture=architecture,
        files=tuple(files),
        tensors=tuple(tensors),
        layers=gguf_layers(architecture, metadata, tensors),
        metadata=metadata,
        hidden_elements=_positive(metadata.get(f"{architecture}.embedding_length")),
        n_vocab=vocabulary.count if isinstance(vocabulary, StringArray) else _positive(n_vocab),
        context_train_tokens=_positive(metadata.get(f"{architecture}.context_length")),
    )


def shard_names(name: str) -> list[str]:
    """All names of the files of the model that `name` (or path) is one of, in order (llama_split_path)."""
    match = _SHARD.fullmatch(name)
    if not match or not 0 < int(match[2]) <= int(match[3]):
        return [name]
    return [f"{match[1]}-{number:05d}-of-{match[3]}.gguf" for number in range(1, int(match[3]) + 1)]


def _find_shards(path: str) -> list[str]:
    """The shards of the model that `path` is one of; all of them are there.

    Raises:
        ModelNotFoundError: one is missing.
    """
    shards = shard_names(path)
    missing = [shard for shard in shards if not Path(shard).exists()] if len(shards) > 1 else []
    if missing and len(missing) < len(shards):
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise ModelNotFoundError(
            f"{printable(missing[0])}: shard {shards.index(missing[0]) + 1} of {len(shards)} is missing{more}",
            hint="put all shards into one directory",
        )
    return shards if not missing else [path]


def parse_header(data: Buffer, path: str, file_bytes: int, file_index: int = 0) -> Header:
    """Keys and tensors of the header that `data` starts with; `file_bytes` is the size of the whole file.

    Raises:
        CorruptModelError: with the byte offset and the cause.
    """
    return _Parser(data, path, file_bytes).header(file_index)


class _Parser:
    """One walk over one header. `pos` is always the first byte not yet understood."""

    def __init__(self, data: Buffer, path: str, file_bytes: int) -> None:
        self.data = data
        self.path = path
        self.file_bytes = file_bytes
        self.end = min(len(data), MAX_HEADER_BYTES)
        self.pos = 0
        self.kept = 0
        self.layout = _LITTLE

    def header(self, file_index: int) -> Header:
        n_tensors, n_keys = self.start()
        metadata: dict[str, object] = {}
        for _ in range(n_keys):
            self.key_value(metadata)
        alignment = self.alignment(metadata)
        infos = self.tensor_infos(n_tensors)
        end = self.pos
        return Header(
            metadata, self.place(infos, -(-end // alignment) * alignment, alignment, file_index), end
        )

    # -- pieces -------------------------------------------------------------------------------------------

    def fail(self, cause: str, at: int | None = None, hint: str | None = None) -> CorruptModelError:
        return CorruptModelError(
            printable(self.path), cause, offset_bytes=self.pos if at is None else at, hint=hint
        )

    def take(self, layout: struct.Struct, what: str) -> tuple[Any, ...]:
        pos = self.pos
        if pos + layout.size > self.end:
            raise self.short(layout.size, what)
        self.pos = pos + layout.size
        return layout.unpack_from(self.data, pos)

    def short(self, need: int, what: str) -> CorruptModelError:
        if self.end < self.file_bytes:
            return self.fail(f"the header does not end within {self.end} bytes ({what})")
        return self.fail(
            f"the file ends inside its header: {what} needs {need} bytes, {self.end - self.pos} are left"
        )

    def string(self, what: str, limit: int) -> str:
        at = self.pos
        (length,) = self.take(self.layout.u64, what)
        if length > self.end - self.pos and self.end == self.file_bytes:
            raise self.fail(
                f"length {length} of {what} exceeds the {self.end - self.pos} bytes left in the file", at
            )
        if length > limit:
            raise self.fail(f"length {length} of {what} is absurd (limit {limit})", at)
        if length > self.end - self.pos:
            raise self.short(length, what)
        self.pos += length
        return bytes(self.data[self.pos - length : self.pos]).decode("utf-8", "backslashreplace")

    # -- sections -----------------------------------------------------------------------------------------

    def start(self) -> tuple[int, int]:
        if self.file_bytes == 0:
            raise self.fail("the file is empty")
        magic = bytes(self.data[:4])
        if magic in _OLD_MAGICS:
            raise self.fail(
                "a GGML file from before GGUF", 0, "convert it with an old llama.cpp, or download the GGUF"
            )
        if magic != MAGIC:
            raise self.fail(f"no GGUF: the file starts with {printable(repr(magic)[1:], 40)}", 0)
        self.pos = 4
        (version,) = self.take(self.layout.u32, "the version")
        if version & 0xFFFF == 0:  # gguf.cpp: the other byte order shows in the version
            self.layout, self.pos = _BIG, 4
            (version,) = self.take(self.layout.u32, "the version")
        if version == 1:
            raise self.fail(
                "GGUF version 1, which engines no longer read", 4, "convert the original model again"
            )
        if version not in (2, 3):
            raise self.fail(f"GGUF version {version}; versions 2 and 3 are known", 4)
        at = self.pos
        n_tensors, n_keys = self.take(self.layout.counts, "the counts")
        left = self.end - self.pos
        # 14: the shortest key (length, one byte, type, one byte); 24: the shortest tensor (length, dimensions, type, offset)
        if n_tensors > min(MAX_TENSORS, left // 24):
            raise self.fail(f"{n_tensors} tensors are absurd: {left} bytes of header are left", at)
        if n_keys > min(MAX_KEYS, left // 14):
            raise self.fail(f"{n_keys} metadata keys are absurd: {left} bytes of header are left", at + 8)
        return n_tensors, n_keys

    def key_value(self, metadata: dict[str, object]) -> None:
        at = self.pos
        key = self.string("a metadata key", 65535)
        if not key:
            raise self.fail("an empty metadata key", at)
        if key in metadata:
            raise self.fail(f"metadata key {printable(key, 80)} is there twice", at)
        metadata[key] = self.value(key)

    def value(self, key: str) -> object:
        at = self.pos
        (kind,) = self.take(self.layout.u32, f"the type of {printable(key, 80)}")
        if kind == _STRING:
            return self.string(printable(key, 80), MAX_STRING_BYTES)
        if kind == _ARRAY:
            return self.array(key)
        scalar = self.layout.scalars.get(kind)
        if scalar is None:
            raise self.fail(f"metadata key {printable(key, 80)} has the unknown type {kind}", at)
        return self.take(scalar, printable(key, 80))[0]

    def array(self, key: str) -> object:
        at = self.pos
        kind, count = self.take(self.layout.array, f"the array {printable(key, 80)}")
        if kind == _ARRAY:
            raise self.fail(
                f"metadata key {printable(key, 80)} is an array of arrays, which no engine reads", at
            )
        if kind not in _NAMES:
            raise self.fail(f"metadata key {printable(key, 80)} is an array of the unknown type {kind}", at)
        size = 8 if kind == _STRING else self.layout.scalars[kind].size
        if count * size > self.end - self.pos:
            raise self.fail(
                f"{count} elements of {printable(key, 80)} do not fit into the {self.end - self.pos} bytes left",
                at + 4,
            )
        if kind == _STRING:
            self.skip_strings(count, key)
            return StringArray(count=count, element_type="str")
        start = self.pos
        self.pos += count * size
        if count > MAX_KEPT or self.kept + count > MAX_KEPT_IN_ALL:
            return StringArray(count=count, element_type=_NAMES[kind])
        self.kept += count
        order = self.layout.u32.format[0]
        return struct.unpack_from(f"{order}{count}{_SCALARS[kind]}", self.data, start)

    def skip_strings(self, count: int, key: str) -> None:
        """Step over `count` strings: a vocabulary has half a million, so this loop is as short as it can be."""
        data, unpack, end, pos = self.data, self.layout.u64.unpack_from, self.end, self.pos
        try:
            for _ in repeat(None, count):
                pos += unpack(data, pos)[0] + 8
        except (struct.error, OverflowError, IndexError):
            pos = end + 1
        if pos > end:
            raise self.overrun(count, key)
        self.pos = pos

    def overrun(self, count: int, key: str) -> CorruptModelError:
        """Walk again, slowly, to the string that leaves the header."""
        for index in range(count):
            at = self.pos
            (length,) = self.take(self.layout.u64, f"string {index} of {printable(key, 80)}")
            if length > self.end - self.pos:
                return self.fail(
                    f"length {length} of string {index} of {printable(key, 80)} exceeds the {self.end - self.pos} bytes left",
                    at,
                )
            self.pos += length
        raise AssertionError("the fast walk and the slow one disagree")

    def alignment(self, metadata: Mapping[str, object]) -> int:
        value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0 or value & (value - 1):
            raise self.fail(f"general.alignment is {printable(str(value), 40)}, which is no power of two")
        return value

    def tensor_infos(self, count: int) -> list[tuple[int, str, str, tuple[int, ...], int, int]]:
        infos = []
        seen = set()
        tensor_layouts, types = self.layout.tensor, GGML_TYPES
        for _ in range(count):
            at = self.pos
            name = self.string("a tensor name", MAX_NAME_BYTES)
            if name in seen:
                raise self.fail(f"tensor {printable(name)} is there twice", at)
            seen.add(name)
            (n_dims,) = self.take(self.layout.u32, "a tensor")
            if n_dims > MAX_DIMS:
                raise self.fail(
                    f"tensor {printable(name)} has {n_dims} dimensions (at most {MAX_DIMS})", self.pos - 4
                )
            *ne, type_id, offset = self.take(tensor_layouts[n_dims], f"tensor {printable(name)}")
            ggml = types.get(type_id)
            if ggml is None:
                raise self.unknown_type(name, type_id)
            n_elements = 1
            for dim in ne:
                n_elements *= dim
            if not 0 < n_elements <= MAX_ELEMENTS:
                raise self.fail(
                    f"tensor {printable(name)} has the dimensions {ne}, {'none may be 0' if not n_elements else 'which overflow'}",
                    at,
                )
            type_name, block_elements, block_bytes = ggml
            if block_elements > 1 and (not ne or ne[0] % block_elements):
                raise self.fail(
                    f"tensor {printable(name)} has rows of {ne[0] if ne else 1} elements, no whole blocks of {block_elements} ({type_name})",
                    at,
                )
            ne.reverse()
            infos.append((at, name, type_name, tuple(ne), n_elements // block_elements * block_bytes, offset))
        return infos

    def unknown_type(self, name: str, type_id: int) -> CorruptModelError:
        if type_id in REMOVED_GGML_TYPES:
            return self.fail(
                f"tensor {printable(name)} has the type {REMOVED_GGML_TYPES[type_id]}, which engines no longer read",
                self.pos - 12,
                "quantise the model again: Q4_0 and IQ4_NL are now re-laid while loading",
            )
        return self.fail(f"tensor {printable(name)} has the unknown type {type_id}", self.pos - 12)

    def place(
        self,
        infos: list[tuple[int, str, str, tuple[int, ...], int, int]],
        start: int,
        alignment: int,
        file_index: int,
    ) -> list[TensorInfo]:
        """Absolute offsets. The engine wants the tensors one after the other, each padded to the alignment."""
        tensors = []
        expected = 0
        for at, name, type_name, shape, n_bytes, offset in infos:
            if offset != expected:
                raise self.fail(
                    f"tensor {printable(name)} is at offset {offset} of the data, but the one before it ends at {expected}",
                    at,
                )
            if start + offset + n_bytes > self.file_bytes:
                raise self.fail(
                    f"tensor {printable(name)} ends at byte {start + offset + n_bytes}, but the file at {self.file_bytes}",
                    start + offset,
                    "the file is incomplete: download it again",
                )
            tensors.append(TensorInfo(name, type_name, shape, n_bytes, file_index, start + offset))
            expected = offset + -(-n_bytes // alignment) * alignment
        return tensors


def _read_file(path: str, file_index: int) -> tuple[ModelFile, Header]:
    with open_file(path) as (data, size_bytes):
        return ModelFile(path=path, size_bytes=size_bytes), parse_header(data, path, size_bytes, file_index)


def _check_whole(path: str, metadata: Mapping[str, object]) -> None:
    count = metadata.get("split.count")
    if isinstance(count, int) and count > 1:
        raise CorruptModelError(
            printable(path),
            f"shard {metadata.get('split.no')} (from 0) of {count}, but the name does not end in -00001-of-{count:05d}.gguf",
            hint="give the shards their original names: engines find them by these",
        )


def _join(shards: Sequence[str], headers: Sequence[Header]) -> list[TensorInfo]:
    """The tensors of all shards, checked as the engine does (src/llama-model-loader.cpp)."""
    tensors: list[TensorInfo] = []
    seen: set[str] = set()
    for index, (shard, header) in enumerate(zip(shards, headers, strict=True)):
        number, count = header.metadata.get("split.no"), header.metadata.get("split.count")
        if number != index or (count is not None and count != len(shards)):
            raise CorruptModelError(
                printable(shard),
                f"by its name shard {index} (from 0) of {len(shards)}, by its metadata {number} of {count}",
            )
        for tensor in header.tensors:
            if tensor.name in seen:
                raise CorruptModelError(printable(shard), f"tensor {printable(tensor.name)} is in two shards")
            seen.add(tensor.name)
        tensors += header.tensors
    expected = headers[0].metadata.get("split.tensors.count")
    if expected is not None and expected != len(tensors):
        raise CorruptModelError(
            printable(shards[0]), f"split.tensors.count is {expected}, but all shards have {len(tensors)}"
        )
    return tensors


def _positive(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _stem(path: str) -> str:
    match = _SHARD.fullmatch(path)
    return Path(match[1]).name if match else Path(path).stem
