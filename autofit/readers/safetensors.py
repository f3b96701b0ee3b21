"""safetensors checkpoints: one file, the shards of an index, a model directory, or `config.json` alone.

`ModelSpec.metadata` is the parsed `config.json`. What stands in the files beside it is added under the stem of
their names, if `config.json` has no such key: `generation_config`, `quantize_config` (GPTQ), `quant_config` (AWQ),
`hf_quant_config` (ModelOpt), `adapter_config` (LoRA); the header's own notes under `__metadata__`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from autofit.domain.dtypes import SAFETENSORS_BITS
from autofit.domain.model import ModelFile, ModelSpec, TensorInfo
from autofit.domain.text import printable
from autofit.errors import CorruptModelError, ModelError, ModelNotFoundError
from autofit.readers.files import open_file, read_small
from autofit.readers.hf_layers import hf_layers, text_config

MAX_HEADER_BYTES = 100_000_000  # safetensors/src/tensor.rs:MAX_HEADER_SIZE
MAX_TENSORS = 1 << 18  #: of one file; DeepSeek-V3 has 90 000 in 163 files
MAX_JSON_BYTES = 1 << 26
MAX_JSON_ITEMS = (
    1 << 21
)  #: commas: what a parsed document takes in memory grows with them, not with its bytes
BESIDE = ("generation_config", "quantize_config", "quant_config", "hf_quant_config", "adapter_config")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors", re.DOTALL)
_INDEX = ".safetensors.index.json"


class Header(NamedTuple):
    """One file's header: its tensors in the order of their data, and its notes."""

    tensors: list[TensorInfo]
    notes: Mapping[str, object]


def read_safetensors(path: str | Path) -> ModelSpec:
    """The model at `path`: a `.safetensors` file (any shard), an index, a directory, or a `config.json`.

    Raises:
        ModelNotFoundError: no such file, no weights, or a shard is missing (it is named).
        CorruptModelError: a file contradicts itself or the index.
    """
    path = Path(path)
    if path.is_dir():
        return _read_directory(path)
    if path.name.endswith(_INDEX):
        return _read_index(path)
    if path.name.endswith(".json"):
        return _to_spec(path.parent, [], [], {}, config_path=path)
    return _read_files(path.parent, _shards(path), None)


def parse_header(data: Any, path: str, file_bytes: int, file_index: int = 0) -> Header:
    """Tensors and notes of the header that `data` starts with; `file_bytes` is the size of the whole file.

    Raises:
        CorruptModelError: with the byte offset and the cause.
    """
    if file_bytes < 8:
        raise CorruptModelError(
            printable(path), f"{file_bytes} bytes are no safetensors file", offset_bytes=0
        )
    n_header = int.from_bytes(data[:8], "little")
    start = 8 + n_header
    if n_header > MAX_HEADER_BYTES:
        raise CorruptModelError(
            printable(path),
            f"a header of {n_header} bytes is absurd (limit {MAX_HEADER_BYTES})",
            offset_bytes=0,
        )
    if start > file_bytes:
        raise CorruptModelError(
            printable(path),
            f"the header should have {n_header} bytes, but the file ends after {file_bytes - 8} of them",
            offset_bytes=8,
            hint="the file is incomplete: download it again",
        )
    raw = bytes(data[8:start])
    entries = parse_json(raw, path, 8)
    if not isinstance(entries, dict):
        raise CorruptModelError(printable(path), "the header is no JSON object", offset_bytes=8)
    notes = entries.pop("__metadata__", None)
    if len(entries) > MAX_TENSORS:
        raise CorruptModelError(
            printable(path), f"{len(entries)} tensors are absurd (limit {MAX_TENSORS})", offset_bytes=8
        )
    if raw.count(b'"data_offsets"') > len(entries):
        _refuse_duplicates(raw, path)
    tensors = _tensors(entries, path, start, file_index)
    _check_tiling(tensors, path, start, file_bytes)
    return Header(tensors, notes if isinstance(notes, dict) else {})


def parse_json(raw: bytes, path: str, offset_bytes: int = 0) -> Any:
    """The JSON document `raw`, which starts at `offset_bytes` of its file.

    Raises:
        CorruptModelError: not JSON, or deeper or longer than any model's.
    """
    if raw.count(b",") > MAX_JSON_ITEMS:
        raise CorruptModelError(
            printable(path), f"more than {MAX_JSON_ITEMS} JSON items are absurd", offset_bytes=offset_bytes
        )
    try:
        return json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise CorruptModelError(
            printable(path), "not UTF-8", offset_bytes=offset_bytes + error.start
        ) from error
    except json.JSONDecodeError as error:
        at = offset_bytes + len(error.doc[: error.pos].encode())
        raise CorruptModelError(
            printable(path), f"broken JSON: {printable(error.msg, 60).lower()}", offset_bytes=at
        ) from error
    except RecursionError as error:
        raise CorruptModelError(
            printable(path), "JSON nested too deeply", offset_bytes=offset_bytes
        ) from error
    except ValueError as error:  # an integer with thousands of digits
        raise CorruptModelError(
            printable(path), "a JSON number is absurdly long", offset_bytes=offset_bytes
        ) from error


def _tensors(entries: Mapping[str, Any], path: str, start: int, file_index: int) -> list[TensorInfo]:
    # a model may have 90 000 tensors: one pass, with the reason of a refusal worked out only when there is one
    tensors = []
    new, bits_of = tuple.__new__, SAFETENSORS_BITS
    for name, entry in entries.items():
        try:
            dtype, shape = entry["dtype"], entry["shape"]
            begin, end = entry["data_offsets"]
            sound = (
                {*map(type, shape), type(begin), type(end)} == {int}
                and min(shape, default=0) >= 0
                and 0 <= begin <= end
                and prod(shape) * bits_of[dtype] == (end - begin) << 3
            )
        except (TypeError, ValueError, KeyError):
            sound = False
        if not sound:
            raise _refuse_entry(name, entry, path)
        tensors.append(new(TensorInfo, (name, dtype, tuple(shape), end - begin, file_index, start + begin)))
    tensors.sort(key=lambda tensor: (tensor[5], tensor[3]))
    return tensors


def _check_tiling(tensors: Sequence[TensorInfo], path: str, start: int, file_bytes: int) -> None:
    """Tensors must follow each other without gap or overlap up to the end of the file (tensor.rs:Metadata::validate)."""
    expected = start
    for tensor in tensors:
        if tensor[5] != expected:
            what = "overlaps the one before it" if tensor[5] < expected else "leaves a gap before it"
            raise CorruptModelError(
                printable(path), f"tensor {printable(tensor[0])} {what}", offset_bytes=tensor[5]
            )
        expected += tensor[3]
        if expected > file_bytes:
            raise CorruptModelError(
                printable(path),
                f"tensor {printable(tensor[0])} ends at byte {expected}, but the file at {file_bytes}",
                offset_bytes=tensor[5],
                hint="the file is incomplete: download it again",
            )
    if expected != file_bytes:
        raise CorruptModelError(
            printable(path), f"{file_bytes - expected} bytes after the last tensor", offset_bytes=expected
        )


def _refuse_entry(name: str, entry: Any, path: str) -> CorruptModelError:
    """Why one entry of a header cannot be right."""
    what = f"tensor {printable(name)}"
    if not isinstance(entry, dict) or {"dtype", "shape", "data_offsets"} - entry.keys():
        return CorruptModelError(
            printable(path), f"{what} lacks dtype, shape or data_offsets", offset_bytes=8
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SAFETENSORS_BITS:
        return CorruptModelError(
            printable(path), f"{what} has the unknown type {printable(str(dtype), 40)}", offset_bytes=8
        )
    if not isinstance(shape, list) or any(type(dim) is not int or dim < 0 for dim in shape):
        return CorruptModelError(
            printable(path), f"{what} has no valid shape: {printable(str(shape), 60)}", offset_bytes=8
        )
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or any(type(at) is not int for at in offsets)
        or not 0 <= offsets[0] <= offsets[1]
    ):
        return CorruptModelError(
            printable(path),
            f"{what} has no valid data_offsets: {printable(str(offsets), 60)}",
            offset_bytes=8,
        )
    need, rest = divmod(prod(shape) * SAFETENSORS_BITS[dtype], 8)
    size = f"{need} bytes" if not rest else "no whole number of bytes"
    return CorruptModelError(
        printable(path),
        f"{what} ({dtype} {printable(str(shape), 60)}) takes {size}, its data_offsets say {offsets[1] - offsets[0]}",
        offset_bytes=8,
    )


def _refuse_duplicates(raw: bytes, path: str) -> None:
    def check(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise CorruptModelError(printable(path), f"{printable(key)} is there twice", offset_bytes=8)
            seen[key] = value
        return seen

    json.loads(raw, object_pairs_hook=check)


# -- which files ----------------------------------------------------------------------------------------------


def _read_directory(directory: Path) -> ModelSpec:
    indexes = sorted(directory.glob("*" + _INDEX))
    if indexes:
        preferred = directory / ("model" + _INDEX)
        return _read_index(preferred if preferred in indexes else indexes[0])
    files = sorted(path for path in directory.glob("*.safetensors"))
    whole = [path for path in files if path.name == "model.safetensors"]
    if not files:
        raise no_weights(directory)
    shards = whole or _shards(files[0])
    return _read_files(
        directory,
        shards if set(shards) <= set(files) and _SHARD.fullmatch(shards[0].name) else whole or files,
        None,
    )


def no_weights(directory: Path) -> ModelError:
    """The error for a directory that holds no model we can read, with what it does hold."""
    where = printable(str(directory))
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt")):
        return ModelNotFoundError(
            f"{where}: only pickled weights (.bin, .pt)", hint="convert them to safetensors"
        )
    if (directory / "config.json").is_file():
        return ModelNotFoundError(
            f"{where}: no weights beside config.json",
            hint=f"to plan from the configuration alone, give {printable(str(directory / 'config.json'))}",
        )
    return ModelNotFoundError(
        f"{where}: no model in this directory", hint="it should hold .gguf or .safetensors files"
    )


def _shards(path: Path) -> list[Path]:
    match = _SHARD.fullmatch(path.name)
    if not match or not 0 < int(match[2]) <= int(match[3]):
        return [path]
    count = int(match[3])
    return [
        path.with_name(f"{match[1]}-{number:05d}-of-{match[3]}.safetensors") for number in range(1, count + 1)
    ]


def _read_index(path: Path) -> ModelSpec:
    index = parse_json(read_small(str(path), MAX_JSON_BYTES), str(path))
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if (
        not isinstance(weight_map, dict)
        or not all(type(name) is str for name in weight_map.values())
        or not weight_map
    ):
        raise CorruptModelError(printable(str(path)), "no weight_map of tensor names to file names")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or name in {"", ".", ".."} or "\0" in name or "\\" in name:
            raise CorruptModelError(
                printable(str(path)), f"the weight_map leads out of its directory: {printable(name)}"
            )
    return _read_files(path.parent, [path.with_name(name) for name in names], weight_map)


def _read_files(directory: Path, paths: Sequence[Path], weight_map: Mapping[str, str] | None) -> ModelSpec:
    missing = [path for path in paths if not path.exists()]
    if missing and (len(paths) > 1 or weight_map):
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise ModelNotFoundError(
            f"{printable(str(missing[0]))}: one of {len(paths)} shards is missing{more}",
            hint="download the model again",
        )
    files: list[ModelFile] = []
    tensors: list[TensorInfo] = []
    notes: Mapping[str, object] = {}
    for path in paths:
        with open_file(str(path)) as (data, size_bytes):
            header = parse_header(data, str(path), size_bytes, len(files))
        files.append(ModelFile(path=str(path), size_bytes=size_bytes))
        tensors += header.tensors
        notes = notes or header.notes
    tensors = _join(tensors, paths, weight_map)
    return _to_spec(directory, files, tensors, notes)


def _join(
    tensors: list[TensorInfo], paths: Sequence[Path], weight_map: Mapping[str, str] | None
) -> list[TensorInfo]:
    """Every tensor once. Where two shards have it, the index decides."""
    if weight_map is not None:
        names = [path.name for path in paths]
        listed = [
            tensor for tensor in tensors if weight_map.get(tensor[0], names[tensor[4]]) == names[tensor[4]]
        ]
        absent = weight_map.keys() - {tensor[0] for tensor in listed}
        if absent:
            name = min(absent)
            path = paths[names.index(weight_map[name])]
            raise CorruptModelError(
                printable(str(path)), f"tensor {printable(name)}, which the index puts here, is not in it"
            )
        tensors = listed
    seen = {tensor[0] for tensor in tensors}
    if len(seen) != len(tensors):
        for tensor in tensors:
            if tensor[0] not in seen:
                raise CorruptModelError(
                    printable(str(paths[tensor[4]])), f"tensor {printable(tensor[0])} is in two files"
                )
            seen.remove(tensor[0])
    return tensors


# -- configuration --------------------------------------------------------------------------------------------


def _to_spec(
    directory: Path,
    files: Sequence[ModelFile],
    tensors: Sequence[TensorInfo],
    notes: Mapping[str, object],
    config_path: Path | None = None,
) -> ModelSpec:
    path = config_path or directory / "config.json"
    metadata = _read_object(path) if config_path or path.is_file() else {}
    for stem in BESIDE:
        if stem not in metadata and (directory / f"{stem}.json").is_file():
            metadata[stem] = _read_object(directory / f"{stem}.json")
    if notes:
        metadata.setdefault("__metadata__", dict(notes))
    text = text_config(metadata)
    named = metadata.get("architectures")
    kind = metadata.get("model_type")
    first = named[0] if isinstance(named, list) and named else kind
    return ModelSpec(
        name=_name(directory, metadata, files),
        format="safetensors" if files else "config",
        architecture=first if isinstance(first, str) else "unknown",
        files=tuple(files) or (ModelFile(path=str(path), size_bytes=path.stat().st_size),),
        tensors=tuple(tensors),
        layers=hf_layers(text, tensors),
        metadata=metadata,
        hidden_elements=_positive(text, "hidden_size", "d_model", "n_embd"),
        n_vocab=_positive(text, "vocab_size"),
        context_train_tokens=_positive(
            text, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx"
        ),
    )


def _read_object(path: Path) -> dict[str, Any]:
    value = parse_json(read_small(str(path), MAX_JSON_BYTES), str(path))
    if not isinstance(value, dict):
        raise CorruptModelError(printable(str(path)), "no JSON object")
    return value


def _name(directory: Path, metadata: Mapping[str, Any], files: Sequence[ModelFile]) -> str:
    given = metadata.get("_name_or_path")
    if isinstance(given, str) and given.strip() and not given.startswith((".", "/")):
        return given
    return directory.resolve().name or (Path(files[0].path).stem if files else "model")


def _positive(config: Mapping[str, Any], *keys: str) -> int | None:
    for key in keys:
        value = config.get(key)
        if type(value) is int and value > 0:
            return value
    return None
