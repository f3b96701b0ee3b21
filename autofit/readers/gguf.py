"""GGUF headers: every key and every tensor, without the data.

A header is walked once, through a window of bytes. Strings of a vocabulary are stepped over, not built: their arrays
become `StringArray`. The checks are those of the engine (ggml/src/gguf.cpp:gguf_init_from_reader and
src/llama-model-loader.cpp), so what it would refuse is refused here, with the byte where it goes wrong.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import Any

from autofit.domain.dtypes import GGML_TYPES, REMOVED_GGML_TYPES
from autofit.domain.model import ByteFile, ModelFile, ModelSpec, Storage, StringArray, TensorInfo
from autofit.domain.patterns import lazy_pattern
from autofit.domain.text import printable
from autofit.domain.values import NamedTuple
from autofit.errors import CorruptModelError, IncompleteModelError
from autofit.readers import vocabularies
from autofit.readers.files import DISK, foreign
from autofit.readers.layers import gguf_layers

MAGIC = b"GGUF"
ALIGNMENT_KEY = "general.alignment"
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4  # ggml.h:GGML_MAX_DIMS
MAX_NAME_BYTES = 63  # ggml.h:GGML_MAX_NAME counts the final zero
MAX_ELEMENTS = (1 << 63) - 1
MIN_KEY_BYTES = 14  #: length, one letter, type, one byte
MIN_TENSOR_BYTES = 24  #: length, number of dimensions, type, offset

# Far above any real model, and far below what would take long or much memory.
MAX_HEADER_BYTES = 1 << 26
MAX_STRING_BYTES = 1 << 22
MAX_KEY_BYTES = (1 << 16) - 1
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 18
MAX_KEPT = 1 << 14  #: numbers of one array that are kept; a longer one belongs to a vocabulary
MAX_KEPT_IN_ALL = 1 << 20
MIN_HEADER_BYTES = 24  #: magic, version and counts
WINDOW_BYTES = 1 << 18  #: read at a time: vocabularies make headers of 6 to 12 MB
HEAD_BYTES = 1 << 20  #: of a file that is not on disk, asked for first: headers without a large vocabulary are whole
SHARD_HEAD_BYTES = 1 << 16  #: the same of a shard but the first: a tensor table of about 1,000 lines

ELEMENT_NAMES = {
    0: "u8", 1: "i8", 2: "u16", 3: "i16", 4: "u32", 5: "i32", 6: "f32",
    7: "bool", 8: "str", 10: "u64", 11: "i64", 12: "f64",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_OLD_MAGICS = {b"lmgg", b"tjgg", b"fmgg", b"algg"}  # GGML, GGJT, GGMF and GGLA, stored as little-endian words
_SHARD = lazy_pattern(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL | re.ASCII)


class Header(NamedTuple):
    """One file's header. Tensor offsets are absolute; `end_bytes` is where the tensor table ends."""

    metadata: dict[str, object]
    tensors: list[TensorInfo]
    end_bytes: int
    missing_bytes: int = 0  #: of the data, beyond the end of the file
    types: Mapping[str, str] = {}  #: of the values of `metadata`, as in `ModelSpec.metadata_types`


class _Layout:
    """The fixed-size pieces of a header in one byte order, compiled once."""

    def __init__(self, order: str) -> None:
        self.order = order
        self.u32 = struct.Struct(order + "I")
        self.u64 = struct.Struct(order + "Q")
        self.counts = struct.Struct(order + "QQ")
        self.array = struct.Struct(order + "IQ")
        self.scalars = {kind: struct.Struct(order + code) for kind, code in _CODES.items()}
        #: dimensions, type and offset of a tensor, by its number of dimensions
        self.tensors = [struct.Struct(f"{order}{n}QIQ") for n in range(MAX_DIMS + 1)]


class _Entry(NamedTuple):
    """A line of the tensor table: `at` is its byte in the file, `offset` its data's, after the header."""

    at: int
    name: str
    type: str
    shape: tuple[int, ...]
    n_bytes: int
    offset: int


_LITTLE, _BIG = _Layout("<"), _Layout(">")


def read_gguf(path: str | Path, storage: Storage = DISK) -> ModelSpec:
    """The model in the GGUF file at `path`. Of a split model any shard will do: all are found and read.

    Raises:
        ModelNotFoundError: no such file, or a shard is missing (it is named).
        CorruptModelError: a file contradicts itself or ends too early.
    """
    shards = _find_shards(str(path), storage)
    storage.expect({shard: SHARD_HEAD_BYTES if index else HEAD_BYTES for index, shard in enumerate(shards)})
    files, headers = [], []
    for index, shard in enumerate(shards):
        with storage.open(shard) as file:
            headers.append(parse_header(file, index))
        files.append(ModelFile(path=shard, size_bytes=file.size_bytes, header_bytes=headers[-1].end_bytes))
    metadata = headers[0].metadata
    if len(shards) == 1:
        _check_whole(shards[0], metadata)
    tensors = headers[0].tensors if len(shards) == 1 else _join(shards, headers)
    missing_bytes = sum(header.missing_bytes for header in headers)
    return to_spec(metadata, tensors, files, missing_bytes, types=headers[0].types)


def to_spec(
    metadata: Mapping[str, object],
    tensors: Sequence[TensorInfo],
    files: Sequence[ModelFile],
    missing_bytes: int = 0,
    *,
    types: Mapping[str, str] | None = None,
) -> ModelSpec:
    """The model that these keys and tensors describe.

    Raises:
        CorruptModelError: they name no architecture.
    """
    path = files[0].path
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        kind = metadata.get("general.type")
        what = f" (general.type is {printable(kind, 40)})" if isinstance(kind, str) else ""
        raise CorruptModelError(printable(path), f"no general.architecture: this is not a model{what}")
    name = metadata.get("general.name")
    vocabulary = metadata.get("tokenizer.ggml.tokens")
    return ModelSpec(
        name=name if isinstance(name, str) and name.strip() else _stem(path),
        format="gguf",
        architecture=architecture,
        files=tuple(files),
        tensors=tuple(tensors),
        layers=gguf_layers(architecture, metadata, tensors),
        metadata=metadata,
        metadata_types=types or {},
        hidden_elements=_positive(metadata.get(f"{architecture}.embedding_length")),
        n_vocab=vocabulary.count
        if isinstance(vocabulary, StringArray)
        else _positive(metadata.get(f"{architecture}.vocab_size")),
        context_train_tokens=_positive(metadata.get(f"{architecture}.context_length")),
        missing_bytes=missing_bytes,
    )


def shard_names(name: str) -> list[str]:
    """The names of all files of the model that `name` is one of, in order (llama.cpp:llama_split_path)."""
    match = _SHARD.fullmatch(name) if "-of-" in name else None
    if not match or not 0 < int(match[2]) <= int(match[3]):
        return [name]
    return [f"{match[1]}-{number:05d}-of-{match[3]}.gguf" for number in range(1, int(match[3]) + 1)]


def parse_header(file: ByteFile, file_index: int = 0) -> Header:
    """Keys and tensors of the header that a file starts with.

    Raises:
        CorruptModelError: with the byte and the cause.
    """
    before = vocabularies.known(file.path)
    if not before.ends:
        return _walk(file, file_index, before)
    try:
        return _walk(file, file_index, before)
    except CorruptModelError:  # what is remembered may be of a file that was here before
        return _walk(file, file_index, before._replace(ends=vocabularies.NOTHING))


def _walk(file: ByteFile, file_index: int, before: vocabularies.Known) -> Header:
    parser = _Parser(file.read(0, WINDOW_BYTES, MIN_HEADER_BYTES), file.path, file.size_bytes, file.read)
    parser.known_ends = before.ends
    n_tensors, n_keys = parser.start()
    metadata = parser.metadata(n_keys)
    alignment = parser.alignment(metadata)
    entries = parser.tensor_table(n_tensors)
    tensors = parser.place(entries, alignment, file_index)
    end = tensors[-1].offset_bytes + tensors[-1].n_bytes if tensors else 0
    if parser.new_ends:
        vocabularies.remember(before, {**before.ends, **parser.new_ends})
    return Header(metadata, tensors, parser.pos, max(end - file.size_bytes, 0), parser.types)


_LEAP = 512  #: strings


@cache
def _short_strings() -> re.Pattern[bytes]:
    """Matches `_LEAP` strings shorter than 48 bytes, each with its length before it, usual lengths first.

    The first byte tells them apart and nothing is ever tried again, so this is the plain walk at twice its speed.
    """
    lengths = sorted(range(48), key=lambda n: abs(n - 7))
    strings = [re.escape(bytes([n])) + rb"\0" * 7 + rb".{%d}+" % n for n in lengths]
    return re.compile(rb"(?s:%b){%d}+" % (b"|".join(strings), _LEAP))


def _leap(header: bytes, pos: int) -> int | None:
    """The position `_LEAP` strings on, if all of them are short."""
    match = _short_strings().match(header, pos)
    return match.end() if match else None


class _Parser:
    """One walk over one header; `pos` is the first byte not yet understood, `limit` where a header must have ended.

    `data` is the window: the bytes of the file from `base` on, moved with `read` when the walk comes to its end.
    """

    def __init__(
        self, data: bytes, path: str, file_bytes: int, read: Callable[[int, int, int], bytes] | None = None
    ) -> None:
        self.data = data
        self.base = 0
        self.path = path
        self.file_bytes = file_bytes
        self.limit = min(file_bytes, MAX_HEADER_BYTES)
        self.read = read or (lambda offset, n_bytes, least: data[offset : offset + n_bytes])
        self.pos = 0
        self.n_kept = 0
        self.layout = _LITTLE
        self.types: dict[str, str] = {}
        self.known_ends: vocabularies.Ends = vocabularies.NOTHING
        self.new_ends: dict[tuple[int, int], int] = {}

    # -- pieces -------------------------------------------------------------------------------------------

    def fail(self, cause: str, at: int, hint: str | None = None) -> CorruptModelError:
        return CorruptModelError(printable(self.path), cause, offset_bytes=at, hint=hint)

    def short(self, what: str, need: int, at: int) -> CorruptModelError:
        """The error for something that would reach beyond the header."""
        if self.limit < self.file_bytes:
            return self.fail(f"{what} would end beyond {self.limit} bytes, the limit of a header", at)
        left = self.file_bytes - self.pos
        return self.fail(
            f"{what} needs {need} bytes, {left} are left in the file",
            at,
            "the file is damaged: download it again",
        )

    def window(self, need: int) -> int:
        """Where `pos` is in the window, which then holds the next `need` bytes; the caller has held them to `limit`."""
        if self.pos - self.base + need > len(self.data):
            self.move_window(need)
        return self.pos - self.base

    def move_window(self, need: int = 0) -> None:
        self.data = self.read(self.pos, min(max(need, WINDOW_BYTES), self.limit - self.pos), need)
        self.base = self.pos

    def take(self, layout: struct.Struct, what: str) -> tuple[Any, ...]:
        pos = self.pos
        if pos + layout.size > self.limit:
            raise self.short(what, layout.size, pos)
        at = pos - self.base
        if at + layout.size > len(self.data):
            at = self.window(layout.size)
        self.pos = pos + layout.size
        return layout.unpack_from(self.data, at)

    def string(self, what: str, limit: int) -> str:
        start = self.pos
        (length,) = self.take(self.layout.u64, f"the length of {what}")
        if length > self.limit - self.pos:
            raise self.short(what, length, start)
        if length > limit:
            raise self.fail(f"{what} has {length} bytes; at most {limit} are accepted", start)
        at = self.window(length)
        self.pos += length
        return self.data[at : at + length].decode("utf-8", "backslashreplace")

    # -- sections, in the order of the file ---------------------------------------------------------------

    def start(self) -> tuple[int, int]:
        """Magic, byte order and version; returns the numbers of tensors and of keys."""
        if not self.file_bytes:
            raise self.fail("the file is empty", 0)
        magic = self.data[:4]
        if magic in _OLD_MAGICS:
            raise self.fail("a GGML file, older than GGUF", 0, "download the model as GGUF, or convert it again")
        if magic != MAGIC:
            cause = f"not GGUF: the file starts with {printable(repr(magic)[1:], 40)}"
            raise self.fail(cause, 0, foreign(self.data[:64]))
        self.pos = 4
        (version,) = self.take(self.layout.u32, "the version")
        if version & 0xFFFF == 0:  # the other byte order shows in the version
            self.layout, self.pos = _BIG, 4
            (version,) = self.take(self.layout.u32, "the version")
        if version == 1:
            raise self.fail("GGUF version 1, which engines no longer read", 4, "convert the original model again")
        if version not in {2, 3}:
            raise self.fail(f"GGUF version {version}; versions 2 and 3 are known", 4)
        at = self.pos
        n_tensors, n_keys = self.take(self.layout.counts, "the counts")
        left = self.limit - self.pos
        if n_tensors > min(MAX_TENSORS, left // MIN_TENSOR_BYTES):
            raise self.fail(f"the header declares {n_tensors} tensors, but has at most {left} more bytes", at)
        if n_keys > min(MAX_KEYS, left // MIN_KEY_BYTES):
            raise self.fail(f"the header declares {n_keys} metadata keys, but has at most {left} more bytes", at + 8)
        return n_tensors, n_keys

    def metadata(self, n_keys: int) -> dict[str, object]:
        metadata: dict[str, object] = {}
        for _ in range(n_keys):
            at = self.pos
            key = self.string("a metadata key", MAX_KEY_BYTES)
            if not key:
                raise self.fail("an empty metadata key", at)
            if key in metadata:
                raise self.fail(f"metadata key {printable(key, 80)} is there twice", at)
            metadata[key], self.types[key] = self.value(printable(key, 80))
        return metadata

    def value(self, key: str) -> tuple[object, str]:
        """A value, and the name of its type."""
        at = self.pos
        (kind,) = self.take(self.layout.u32, f"the type of {key}")
        if kind == _STRING:
            return self.string(key, MAX_STRING_BYTES), ELEMENT_NAMES[kind]
        if kind == _ARRAY:
            return self.array(key)
        scalar = self.layout.scalars.get(kind)
        if scalar is None:
            raise self.fail(f"{key} has the unknown type {kind}", at)
        return self.take(scalar, key)[0], ELEMENT_NAMES[kind]

    def array(self, key: str) -> tuple[object, str]:
        at = self.pos
        kind, count = self.take(self.layout.array, f"the array {key}")
        if kind == _ARRAY:
            raise self.fail(f"{key} is an array of arrays, which no engine reads", at)
        if kind not in ELEMENT_NAMES:
            raise self.fail(f"{key} is an array of the unknown type {kind}", at)
        size = self.layout.scalars[kind].size if kind != _STRING else self.layout.u64.size
        if count * size > self.limit - self.pos:
            raise self.short(f"{key}, an array of {count},", count * size, at + 4)
        if kind == _STRING:
            self.skip_strings(count, key)
            return StringArray(count=count, element_type="str"), "str[]"
        name = ELEMENT_NAMES[kind]
        if count > MAX_KEPT or self.n_kept + count > MAX_KEPT_IN_ALL:
            self.pos += count * size
            return StringArray(count=count, element_type=name), f"{name}[]"
        start = self.window(count * size)
        self.pos += count * size
        self.n_kept += count
        return struct.unpack_from(f"{self.layout.order}{count}{_CODES[kind]}", self.data, start), f"{name}[]"

    def skip_strings(self, count: int, key: str) -> None:
        """Step over `count` strings, at once where it is known where they end.

        Vocabularies have half a million, so no more is done for each than must be.
        """
        begin = self.pos
        end = self.known_ends.get((begin, count))
        if end is not None and begin + count * self.layout.u64.size <= end <= self.limit:
            self.pos = end
            return
        self.walk_strings(count, key)
        if count >= vocabularies.LONG:
            self.new_ends[begin, count] = self.pos

    def walk_strings(self, count: int, key: str) -> None:
        unpack = self.layout.u64.unpack_from
        left = count
        while left:
            some = min(_LEAP, left)
            window, pos = self.data, self.pos - self.base
            try:
                if some == _LEAP and self.layout is _LITTLE and (ahead := _leap(window, pos)):
                    pos = ahead
                else:
                    for _ in repeat(None, some):
                        pos += unpack(window, pos)[0] + 8
            except (struct.error, OverflowError, IndexError):  # beyond the end, by any distance
                pos = len(window) + 1
            if pos <= len(window) and self.base + pos <= self.limit:
                self.pos = self.base + pos
            elif self.base < self.pos < self.limit:
                self.move_window()
                continue
            else:
                self.step_over(range(count - left, count - left + some), count, key)
            left -= some

    def step_over(self, numbers: range, count: int, key: str) -> None:
        """Step over the strings of these numbers, out of `count`: those where the window or the header ends."""
        for number in numbers:
            at = self.pos
            what = f"string {number} of {count} of {key}"
            (length,) = self.take(self.layout.u64, what)
            if length > self.limit - self.pos:
                raise self.short(what, length, at)
            self.pos += length

    def alignment(self, metadata: Mapping[str, object]) -> int:
        value, kind = metadata.get(ALIGNMENT_KEY, DEFAULT_ALIGNMENT), self.types.get(ALIGNMENT_KEY, "u32")
        if type(value) is not int or kind != "u32" or value <= 0 or value & (value - 1):
            shown = printable(str(value), 40)
            raise self.fail(f"{ALIGNMENT_KEY} is {kind} {shown}, which is not a power of two of type u32", self.pos)
        return value

    def tensor_table(self, n_tensors: int) -> list[_Entry]:
        entries = []
        seen: set[str] = set()
        for _ in range(n_tensors):
            at = self.pos
            name = self.string("a tensor name", MAX_NAME_BYTES)
            if name in seen:
                raise self.fail(f"tensor {printable(name)} is there twice", at)
            seen.add(name)
            entries.append(self.tensor(at, name))
        return entries

    def tensor(self, at: int, name: str) -> _Entry:
        (n_dims,) = self.take(self.layout.u32, "the number of dimensions of a tensor")
        if n_dims > MAX_DIMS:
            raise self.fail(f"tensor {printable(name)} has {n_dims} dimensions (at most {MAX_DIMS})", self.pos - 4)
        *ne, type_id, offset = self.take(self.layout.tensors[n_dims], "a line of the tensor table")
        if type_id not in GGML_TYPES:
            raise self.unknown_type(name, type_id, self.pos - 12)
        type_name, block_elements, block_bytes = GGML_TYPES[type_id]
        n_elements = 1
        for dim in ne:
            n_elements *= dim
        if not 0 < n_elements <= MAX_ELEMENTS:
            cause = "a dimension of 0" if not n_elements else f"{n_elements} elements: its dimensions overflow"
            raise self.fail(f"tensor {printable(name)} has {cause}", at)
        row = ne[0] if ne else 1
        if row % block_elements:
            raise self.fail(
                f"tensor {printable(name)}: rows of {row}, not whole {type_name} blocks of {block_elements}",
                at,
            )
        return _Entry(at, name, type_name, tuple(ne[::-1]), n_elements // block_elements * block_bytes, offset)

    def unknown_type(self, name: str, type_id: int, at: int) -> CorruptModelError:
        removed = REMOVED_GGML_TYPES.get(type_id)
        if removed is None:
            hint = "it may be newer than this autofit, or made for another program"
            return self.fail(f"tensor {printable(name)} has the unknown type {type_id}", at, hint)
        return self.fail(
            f"tensor {printable(name)} has the type {removed}, which engines no longer read",
            at,
            "quantize the model again",
        )

    def place(self, entries: Sequence[_Entry], alignment: int, file_index: int) -> list[TensorInfo]:
        """Absolute offsets. The engine wants one tensor after the other, each padded to the alignment."""
        start = -(-self.pos // alignment) * alignment
        tensors = []
        expected = 0
        for at, name, type_name, shape, n_bytes, offset in entries:
            if offset != expected:
                raise self.fail(f"the data of tensor {printable(name)} is at offset {offset}, not {expected}", at)
            tensors.append(TensorInfo(name, type_name, shape, n_bytes, file_index, start + offset))
            expected = offset + -(-n_bytes // alignment) * alignment
        return tensors


def _find_shards(path: str, storage: Storage) -> list[str]:
    """The shards of the model that `path` is one of; all of them are there, or none is."""
    shards = shard_names(path)
    missing = [shard for shard in shards if not storage.is_file(shard)] if len(shards) > 1 else []
    if missing and len(missing) < len(shards):
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise IncompleteModelError(
            f"{printable(missing[0])}: missing, shard {shards.index(missing[0]) + 1} of {len(shards)}{more}",
            hint="put all shards into one directory",
        )
    return [path] if missing else shards


def _check_whole(path: str, metadata: Mapping[str, object]) -> None:
    count, number = metadata.get("split.count"), metadata.get("split.no")
    if type(count) is int and count > 1:
        which = f"shard {number + 1}" if type(number) is int else "a shard"
        raise CorruptModelError(
            printable(path),
            f"{which} of a model in {count} files, which its name does not say",
            hint=f"engines find shards by their names: NAME-00001-of-{count:05d}.gguf and so on",
        )


def _join(shards: Sequence[str], headers: Sequence[Header]) -> list[TensorInfo]:
    """The tensors of all shards, checked as src/llama-model-loader.cpp does."""
    tensors: list[TensorInfo] = []
    seen: set[str] = set()
    for index, (shard, header) in enumerate(zip(shards, headers, strict=True)):
        number, count = header.metadata.get("split.no"), header.metadata.get("split.count", len(shards))
        if number != index or count != len(shards):
            said = "no split.no" if number is None else f"split.no {number} (from 0) of {count}"
            raise CorruptModelError(
                printable(shard),
                f"its name says shard {index + 1} of {len(shards)}, its metadata has {printable(said, 80)}",
                hint="split files keep the names that they were made with",
            )
        for tensor in header.tensors:
            if tensor.name in seen:
                raise CorruptModelError(printable(shard), f"tensor {printable(tensor.name)} is in another shard too")
            seen.add(tensor.name)
        tensors += header.tensors
    expected = headers[0].metadata.get("split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise CorruptModelError(
            printable(shards[0]),
            f"split.tensors.count is {printable(str(expected), 40)}, the shards have {len(tensors)} tensors",
        )
    return tensors


def _positive(value: object) -> int | None:
    return value if type(value) is int and value > 0 else None


def _stem(path: str) -> str:
    match = _SHARD.fullmatch(path)
    return Path(match[1]).name if match else Path(path).stem
