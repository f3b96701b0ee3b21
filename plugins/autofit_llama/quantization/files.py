"""The file that `llama-quantize` would write, as a model that can be planned, to the byte."""

from __future__ import annotations

from collections.abc import Iterable

from autofit.domain.model import ModelFile, ModelSpec, TensorInfo
from autofit.domain.units import round_up
from autofit.domain.values import replace

from autofit_llama.quantization.quantize import Outcome, Source

ALIGNMENT = 32  #: GGUF_DEFAULT_ALIGNMENT, whatever the source has
_ALIGNMENT_KEY = "general.alignment"
_FILE_TYPE, _VERSION = "general.file_type", "general.quantization_version"
_QUANTIZATION_VERSION = 2  #: ggml.h:GGML_QNT_VERSION
#: keys that are not copied, with the bytes of their values (src/llama-quant.cpp:llama_model_quantize_impl)
_DROPPED = {"split.no": 2, "split.count": 2, "split.tensors.count": 4}


def written(model: ModelSpec, source: Source, outcome: Outcome) -> ModelSpec:
    """The model in the new file. Tensors lie in the order in which they are written, each padded."""
    header = header_bytes(model)
    start = round_up(header or 0, ALIGNMENT)
    tensors, end = [], start
    for tensor, info in zip(outcome.tensors, source.infos, strict=True):
        tensors.append(TensorInfo(tensor.name, tensor.type, info.shape, tensor.n_bytes, 0, end))
        end += round_up(tensor.n_bytes, ALIGNMENT)
    metadata = {key: value for key, value in model.metadata.items() if key not in _DROPPED}
    metadata |= {_FILE_TYPE: outcome.ftype.number, _VERSION: _QUANTIZATION_VERSION}
    name = f"{model.name}-{outcome.ftype.name}.gguf"
    return replace(
        model,
        files=(ModelFile(path=name, size_bytes=end, header_bytes=header),),
        tensors=tuple(tensors),
        layers=(),
        metadata=metadata,
    )


def header_bytes(model: ModelSpec) -> int | None:
    """Bytes of the new header before its padding; `None` if those of the source are not known.

    The keys are copied as they are, but for three; two are added where they are missing.
    """
    given = model.files[0].header_bytes if model.files else None
    if given is None or model.metadata.get(_ALIGNMENT_KEY, ALIGNMENT) != ALIGNMENT:
        return None
    keys = given - _FIXED - sum(_line_bytes(t.name, len(t.shape)) for t in model.tensors if t.file_index == 0)
    keys -= sum(_key_bytes(key, n_bytes) for key, n_bytes in _DROPPED.items() if key in model.metadata)
    keys += sum(_key_bytes(key, 4) for key in (_FILE_TYPE, _VERSION) if key not in model.metadata)
    return _FIXED + keys + sum(_line_bytes(t.name, _n_dims(t.ne)) for t in model.tensors)


_FIXED = 24  #: magic, version, two counts


def _key_bytes(key: str, value_bytes: int) -> int:
    return 8 + len(key.encode()) + 4 + value_bytes


def _line_bytes(name: str, n_dims: int) -> int:
    return 8 + len(name.encode()) + 4 + 8 * n_dims + 4 + 8


def _n_dims(ne: Iterable[int]) -> int:
    """Dimensions as they are written: trailing ones of 1 are left out (ggml/src/ggml.c:ggml_n_dims)."""
    dims = list(ne)
    while len(dims) > 1 and dims[-1] == 1:
        dims.pop()
    return len(dims)
