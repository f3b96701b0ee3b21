"""safetensors checkpoints: one file, the shards of an index, a model directory, or `config.json` alone.

`ModelSpec.metadata` is the parsed `config.json`. What stands in the files beside it is added under the stem
of their names, where `config.json` has no such key: `generation_config`, `quantize_config` (GPTQ),
`quant_config` (AWQ), `hf_quant_config` (ModelOpt), `adapter_config` (LoRA); the header's own notes under
`__metadata__`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate, chain, islice
from math import prod
from operator import itemgetter
from pathlib import Path
from typing import Any

from autofit.domain.dtypes import SAFETENSORS_BITS
from autofit.domain.model import ByteFile, ModelFile, ModelSpec, Storage, TensorInfo
from autofit.domain.patterns import lazy_pattern
from autofit.domain.text import printable
from autofit.domain.values import NamedTuple, replace
from autofit.errors import AutofitError, CorruptModelError, IncompleteModelError, ModelError, ModelNotFoundError
from autofit.readers.documents import parse_json
from autofit.readers.files import DISK, foreign, read_small
from autofit.readers.hf_layers import figure, hf_layers, text_config

MAX_HEADER_BYTES = 100_000_000  # safetensors/src/tensor.rs:MAX_HEADER_SIZE
MAX_TENSORS = 1 << 18  #: of one file
MAX_JSON_BYTES = 1 << 26
MAX_SHARDS = 4096
DOCUMENT_BYTES = 1 << 16  #: asked for first, of a file that is not on disk and is read whole
HEAD_BYTES = 1 << 17  #: of a file whose number of tensors is not known
ENTRY_BYTES = 96  #: of a header's entry without the name: dtype, shape and data_offsets, with their numbers
BESIDE = ("generation_config", "quantize_config", "quant_config", "hf_quant_config", "adapter_config")
INDEX_SUFFIX = ".safetensors.index.json"
MODEL_SUFFIXES = (".gguf", ".safetensors")
MAX_LOOKED_INTO = 64  #: folders of a directory that holds no model itself
MAX_NAMED = 3  #: of them
_ENTRY = itemgetter("dtype", "shape", "data_offsets")
#: of a `TensorInfo`: positions are read at half the time of names
_NAME, _N_BYTES, _FILE, _OFFSET = itemgetter(0), itemgetter(3), itemgetter(4), itemgetter(5)
_SHARD = lazy_pattern(r"(.+)-(\d{5})-of-(\d{5,6})\.safetensors", re.DOTALL | re.ASCII)


class Header(NamedTuple):
    """One file's header: its tensors in the order of their data, and its notes."""

    tensors: list[TensorInfo]
    notes: Mapping[str, object]
    missing_bytes: int = 0  #: of the data, beyond the end of the file


def read_safetensors(path: str | Path, storage: Storage = DISK) -> ModelSpec:
    """The model at `path`: a `.safetensors` file (any shard), an index, a directory, or a `config.json`.

    Raises:
        ModelNotFoundError: no such file, no weights, or a shard is missing (it is named).
        CorruptModelError: a file contradicts itself or the index.
    """
    path = Path(path)
    if storage.is_directory(str(path)):
        return _read_directory(path, storage)
    if path.name.endswith(INDEX_SUFFIX):
        return _read_index(path, storage)
    if path.name.endswith(".json"):
        return _to_spec(path, storage, [], [])
    return _read_files(_shards(path), None, storage)


def no_weights(directory: Path, names: Sequence[str], storage: Storage = DISK) -> ModelError:
    """The error for a directory that holds no model, with what it holds instead."""
    where = printable(str(directory))
    if any(name.endswith((".bin", ".pt")) for name in names):
        return ModelNotFoundError(f"{where}: only pickled weights (.bin, .pt)", hint="convert them to safetensors")
    inside = list(islice(_folders_with_models(directory, names, storage), MAX_NAMED))
    hint = "it should hold .gguf or .safetensors files"
    if inside:
        hint = f"a folder in it does, name that: {', '.join(printable(str(directory / name), 100) for name in inside)}"
    return ModelNotFoundError(f"{where}: no model in this directory", hint=hint)


def _folders_with_models(directory: Path, names: Sequence[str], storage: Storage) -> Iterator[str]:
    """Folders of a directory on disk that hold files of models; one that cannot be read holds none."""
    for name in () if storage.is_dear else names[:MAX_LOOKED_INTO]:
        path = str(directory / name)
        with suppress(AutofitError):
            if storage.is_directory(path) and any(one.endswith(MODEL_SUFFIXES) for one in storage.names(path)):
                yield name


# -- one file --------------------------------------------------------------------------------------


def _read_header(file: ByteFile, file_index: int) -> Header:
    length = int.from_bytes(file.read(0, 8), "little")
    data = file.read(0, 8 + max(length, 64) if length <= MAX_HEADER_BYTES else 72)  # 64: to tell what else it is
    return parse_header(data, file.path, file.size_bytes, file_index)


def parse_header(data: bytes, path: str, file_bytes: int, file_index: int = 0) -> Header:
    """Tensors and notes of the header that `data` starts with; `file_bytes` is the size of the whole file.

    Raises:
        CorruptModelError: with the byte and the cause.
    """

    def fail(cause: str, at: int, hint: str | None = None) -> CorruptModelError:
        return CorruptModelError(printable(path), cause, offset_bytes=at, hint=hint)

    if file_bytes < 8:
        raise fail(f"a safetensors file starts with 8 bytes of length, this one has {file_bytes}", 0)
    if data[8:9] not in {b"{", b""}:
        raise fail("not safetensors: no JSON object starts here", 8, foreign(data[:64]))
    n_bytes = int.from_bytes(data[:8], "little")
    if n_bytes > MAX_HEADER_BYTES:
        raise fail(f"the header has {n_bytes} bytes; at most {MAX_HEADER_BYTES} are accepted", 0)
    start = 8 + n_bytes
    if start > file_bytes:
        cause = f"a header of {n_bytes} bytes, but {file_bytes - 8} are left in the file"
        raise fail(cause, 8, "the file is incomplete: download it again")
    raw = data[8:start]
    entries = parse_json(raw, path, 8)
    if not isinstance(entries, dict):
        raise fail("the header is not a JSON object", 8)
    if raw.count(b'"data_offsets"') > len(entries):  # JSON lets a name come twice; the parser keeps the last
        _refuse_duplicates(raw, path)
    notes = entries.pop("__metadata__", None)
    if len(entries) > MAX_TENSORS:
        raise fail(f"the header declares {len(entries)} tensors; at most {MAX_TENSORS} are accepted", 8)
    tensors = _tensors(entries, path, start, file_index)
    missing = 0
    if [*accumulate(map(_N_BYTES, tensors), initial=start)] != [*map(_OFFSET, tensors), file_bytes]:
        tensors.sort(key=itemgetter(5, 3))  # offset, size
        missing = _check_tiling(tensors, path, start, file_bytes)
    return Header(tensors, notes if isinstance(notes, dict) else {}, missing)


def _tensors(entries: Mapping[str, Any], path: str, start: int, file_index: int) -> list[TensorInfo]:
    """The entries of a header as tensors, in its order.

    A model may have 90 000 of them: what can be is held against all at once, and why is found out where something is
    wrong.
    """
    new, bits_of = tuple.__new__, SAFETENSORS_BITS
    tensors = []
    try:
        rows = [*map(_ENTRY, entries.values())]
        sides = [*chain.from_iterable(shape for _, shape, _ in rows)]
        offsets = chain.from_iterable(offsets for _, _, offsets in rows)
        sound = {*map(type, sides), *map(type, offsets)} <= {int} and min(sides, default=0) >= 0
        for name, (dtype, shape, (begin, end)) in zip(entries, rows, strict=True) if sound else ():
            n_bytes = end - begin
            if not 0 <= begin <= end or prod(shape) * bits_of[dtype] != n_bytes << 3:
                sound = False
                break
            tensors.append(new(TensorInfo, (name, dtype, tuple(shape), n_bytes, file_index, start + begin)))
    except (TypeError, ValueError, KeyError):
        sound = False
    if not sound:
        name, fault = next((name, fault) for name, entry in entries.items() if (fault := _fault(entry)))
        raise CorruptModelError(printable(path), f"tensor {printable(name, 80)} {fault}", offset_bytes=8)
    return tensors


def _fault(entry: Any) -> str | None:
    """What is wrong with an entry of a header, if anything is."""
    if not isinstance(entry, dict) or {"dtype", "shape", "data_offsets"} - entry.keys():
        return "lacks dtype, shape or data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SAFETENSORS_BITS:
        return f"has the unknown type {_shown(dtype)}"
    if not isinstance(shape, list) or any(type(dim) is not int or dim < 0 for dim in shape):
        return f"has no valid shape: {_shown(shape)}"
    if not isinstance(offsets, list) or [type(at) for at in offsets] != [int, int] or not 0 <= offsets[0] <= offsets[1]:
        return f"has no valid data_offsets: {_shown(offsets)}"
    need, rest = divmod(prod(shape) * SAFETENSORS_BITS[dtype], 8)
    if not rest and need == offsets[1] - offsets[0]:
        return None
    takes = "no whole number of bytes" if rest else f"{_shown(need)} bytes"
    return f"({dtype} {_shown(shape)}) takes {takes}, its data_offsets say {offsets[1] - offsets[0]}"


def _shown(value: object) -> str:
    try:
        return printable(str(value), 60)
    except (ValueError, RecursionError):  # an integer of thousands of digits
        return "too large to show"


def _check_tiling(tensors: Sequence[TensorInfo], path: str, start: int, file_bytes: int) -> int:
    """Tensors follow each other, without gap or overlap, to the end of the file (Metadata::validate).

    Returns the bytes of data that an unfinished file lacks.
    """
    end = start
    for name, _, _, n_bytes, _, offset in tensors:
        if offset != end:
            cause = "overlaps the one before it" if offset < end else f"leaves a gap of {offset - end} bytes before it"
            cause = f"the data of tensor {printable(name, 80)} {cause}"
            raise CorruptModelError(printable(path), cause, offset_bytes=offset)
        end = offset + n_bytes
    if end < file_bytes:
        raise CorruptModelError(printable(path), f"{file_bytes - end} bytes after the last tensor", offset_bytes=end)
    return end - file_bytes


def _refuse_duplicates(raw: bytes, path: str) -> None:
    def check(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise CorruptModelError(printable(path), f"{printable(key, 80)} is there twice", offset_bytes=8)
            seen[key] = value
        return seen

    json.loads(raw, object_pairs_hook=check)


# -- which files -----------------------------------------------------------------------------------


def _read_directory(directory: Path, storage: Storage) -> ModelSpec:
    names = sorted(storage.names(str(directory)))
    indexes = [name for name in names if name.endswith(INDEX_SUFFIX)]
    shards = _all_numbered(names)
    if shards and indexes and storage.is_dear:
        # an index repeats the names of all tensors, which the headers have: its length alone is of use
        index_bytes = _size(directory / indexes[0], storage)
        return _read_files([directory / name for name in shards], None, storage, index_bytes)
    if indexes:
        usual = "model" + INDEX_SUFFIX
        return _read_index(directory / (usual if usual in indexes else indexes[0]), storage)
    files = [directory / name for name in names if name.endswith(".safetensors")]
    if not files:
        config = directory / "config.json"
        pickled = any(name.endswith((".bin", ".pt")) for name in names)
        if storage.is_file(str(config)) and not pickled:
            return _to_spec(config, storage, [], [])  # vLLM runs it with dummy weights; the format says "config"
        raise no_weights(directory, names, storage)
    usual_file = directory / "model.safetensors"
    if usual_file in files:
        return _read_files([usual_file], None, storage)
    return _read_files(_shards(files[0]) if _SHARD.fullmatch(files[0].name) else files, None, storage)


def _all_numbered(names: Sequence[str]) -> list[str]:
    """The files of the one set of numbered shards, where there is one and none of it is missing."""
    sets = {(match[1], match[3]) for name in names if (match := _SHARD.fullmatch(name))}
    if len(sets) != 1:
        return []
    ((stem, count),) = sets
    shards = [f"{stem}-{number:05d}-of-{count}.safetensors" for number in range(1, int(count) + 1)]
    return shards if len(shards) <= MAX_SHARDS and {*shards} <= {*names} else []


def _shards(path: Path) -> list[Path]:
    match = _SHARD.fullmatch(path.name)
    if not match or not 0 < int(match[2]) <= int(match[3]):
        return [path]
    numbers = range(1, int(match[3]) + 1)
    return [path.with_name(f"{match[1]}-{number:05d}-of-{match[3]}.safetensors") for number in numbers]


def _read_index(path: Path, storage: Storage) -> ModelSpec:
    config = path.with_name("config.json")
    _expect_documents(storage, config, str(path))
    index = parse_json(read_small(str(path), MAX_JSON_BYTES, storage), str(path))
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or {*map(type, weight_map.values())} != {str}:
        raise CorruptModelError(printable(str(path)), "no weight_map from tensor names to file names")
    names = sorted(set(weight_map.values()))
    if len(names) > MAX_SHARDS:
        raise CorruptModelError(printable(str(path)), f"{len(names)} shards; at most {MAX_SHARDS} are accepted")
    for name in names:
        # a name, not a path: an index must not lead elsewhere
        if not name.endswith(".safetensors") or Path(name).name != name or {"\0", "\\"} & {*name}:
            raise CorruptModelError(
                printable(str(path)), f"the weight_map names a file outside this directory: {printable(name, 80)}"
            )
    paths = [path.with_name(name) for name in names]
    n_missing = sum(not storage.is_file(str(shard)) for shard in paths)
    if n_missing and storage.is_file(str(config)):
        # before or amid the download: as with the configuration alone
        spec = _to_spec(config, storage, [], [])
        return replace(spec, missing_bytes=_total_bytes(index), n_missing_files=n_missing)
    return _read_files(paths, weight_map, storage)


def _total_bytes(index: Mapping[str, Any]) -> int:
    """Bytes of all weights as an index says them; 0 where it does not."""
    notes = index.get("metadata")
    total = notes.get("total_size") if isinstance(notes, dict) else None
    return total if type(total) is int and 0 < total < 1 << 60 else 0


def _read_files(
    paths: Sequence[Path], weight_map: Mapping[str, str] | None, storage: Storage, index_bytes: int = 0
) -> ModelSpec:
    missing = [path for path in paths if not storage.is_file(str(path))] if len(paths) > 1 or weight_map else []
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise IncompleteModelError(
            f"{printable(str(missing[0]))}: missing, one of {len(paths)} shards{more}",
            hint="download the model again",
        )
    if storage.is_dear:
        if weight_map is None:
            _expect_documents(storage, paths[0].with_name("config.json"))
        _expect_headers(paths, weight_map, storage, index_bytes)
    files: list[ModelFile] = []
    tensors: list[TensorInfo] = []
    notes: Mapping[str, object] = {}
    missing_bytes = 0
    for path in paths:
        with storage.open(str(path)) as file:
            header = _read_header(file, len(files))
        files.append(ModelFile(path=str(path), size_bytes=file.size_bytes))
        tensors += header.tensors
        notes = notes or header.notes
        missing_bytes += header.missing_bytes
    config = paths[0].with_name("config.json")
    spec = _to_spec(config, storage, files, _unique(tensors, paths, weight_map), notes)
    return replace(spec, missing_bytes=missing_bytes) if missing_bytes else spec


def _expect_documents(storage: Storage, config: Path, *others: str) -> None:
    """What is read beside the weights, asked for at once."""
    names = [str(config), *(str(config.with_name(f"{stem}.json")) for stem in BESIDE), *others]
    storage.expect({name: DOCUMENT_BYTES for name in names if storage.is_file(name)})


def _expect_headers(
    paths: Sequence[Path], weight_map: Mapping[str, str] | None, storage: Storage, index_bytes: int
) -> None:
    """Ask for all headers side by side: of each file about as much as its header has."""
    if weight_map is not None:
        guess = {path.name: 1024 for path in paths}
        for name, file in weight_map.items():
            guess[file] += len(name) + ENTRY_BYTES
    elif index_bytes:
        # a tensor's line in an index has its name and its shard's; in a header 96 bytes beside the name
        guess = dict.fromkeys((path.name for path in paths), 4096 + index_bytes * 3 // (2 * len(paths)))
    else:
        storage.expect({str(paths[0]): HEAD_BYTES})
        # shards are alike: a tenth more than the first one's
        guess = dict.fromkeys((path.name for path in paths), _header_bytes(paths[0], storage) * 11 // 10)
    storage.expect({str(path): min(guess[path.name], MAX_HEADER_BYTES) for path in paths})


def _header_bytes(path: Path, storage: Storage) -> int:
    """The length of a file's header with the 8 bytes that say it, as far as one is accepted."""
    with storage.open(str(path)) as file:
        length = int.from_bytes(file.read(0, 8), "little")
    return 8 + length if length <= MAX_HEADER_BYTES else 72


def _unique(tensors: list[TensorInfo], paths: Sequence[Path], weight_map: Mapping[str, str] | None) -> list[TensorInfo]:
    """Every tensor once: where two shards have it, the index decides."""
    names = [path.name for path in paths]
    homes = dict(zip(map(_NAME, tensors), map(names.__getitem__, map(_FILE, tensors)), strict=True))
    if len(homes) == len(tensors) and weight_map in (None, homes):
        return tensors
    if weight_map is not None:
        tensors = [t for t in tensors if weight_map.get(t.name, names[t.file_index]) == names[t.file_index]]
        absent = weight_map.keys() - {tensor.name for tensor in tensors}
        if absent:
            name = min(absent)
            path = printable(str(paths[names.index(weight_map[name])]))
            raise CorruptModelError(path, f"no tensor {printable(name, 80)}, which the index says is here")
    unseen = {tensor.name for tensor in tensors}
    if len(unseen) != len(tensors):
        for tensor in tensors:
            if tensor.name not in unseen:
                path = printable(str(paths[tensor.file_index]))
                raise CorruptModelError(path, f"tensor {printable(tensor.name, 80)} is in another file too")
            unseen.remove(tensor.name)
    return tensors


# -- configuration ---------------------------------------------------------------------------------


def _to_spec(
    config: Path,
    storage: Storage,
    files: Sequence[ModelFile],
    tensors: Sequence[TensorInfo],
    notes: Mapping[str, object] | None = None,
) -> ModelSpec:
    """The model of these tensors and of the file `config`, which only a model without tensors must have."""
    if not files:
        _expect_documents(storage, config)
    metadata = _read_object(config, storage) if not files or storage.is_file(str(config)) else {}
    for stem in BESIDE:
        beside = config.with_name(f"{stem}.json")
        if stem not in metadata and storage.is_file(str(beside)):
            metadata[stem] = _read_object(beside, storage)
    if notes:
        metadata.setdefault("__metadata__", dict(notes))
    text = text_config(metadata)
    classes = metadata.get("architectures")
    architecture = classes[0] if isinstance(classes, list) and classes else metadata.get("model_type")
    return ModelSpec(
        name=_name(config.parent, metadata),
        format="safetensors" if files else "config",
        architecture=architecture if isinstance(architecture, str) else "unknown",
        files=tuple(files) or (ModelFile(path=str(config), size_bytes=_size(config, storage)),),
        tensors=tuple(tensors),
        layers=hf_layers(text, tensors),
        metadata=metadata,
        hidden_elements=figure(text, "hidden_size", "d_model", "n_embd"),
        n_vocab=figure(text, "vocab_size"),
        context_train_tokens=figure(text, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
    )


def _size(path: Path, storage: Storage) -> int:
    with storage.open(str(path)) as file:
        return file.size_bytes


def _read_object(path: Path, storage: Storage) -> dict[str, Any]:
    value = parse_json(read_small(str(path), MAX_JSON_BYTES, storage), str(path))
    if not isinstance(value, dict):
        raise CorruptModelError(printable(str(path)), "not a JSON object", offset_bytes=0)
    return value


def _name(directory: Path, metadata: Mapping[str, Any]) -> str:
    given = metadata.get("_name_or_path")
    if isinstance(given, str) and given.strip() and not given.startswith((".", "/")):
        return given
    return directory.resolve().name or "model"
