"""A model out of a log, without its file: metadata, shapes of tensors, and their types, as far as the log agrees."""

from __future__ import annotations

import re
from collections.abc import Sequence

from autofit.domain.dtypes import GGML_TYPES_BY_NAME, row_bytes
from autofit.domain.model import ModelFile, ModelSpec, TensorInfo
from autofit.domain.observed import Observed
from autofit.domain.units import GIB, MIB
from autofit.domain.values import NamedTuple, replace
from autofit.errors import AutofitError
from autofit.readers.layers import gguf_layers

from autofit_llama.logs.metadata import metadata_of
from autofit_llama.logs.shapes import Named, find_shapes
from autofit_llama.model.load import read_hparams
from autofit_llama.quantization.ftypes import FLOATS, FTYPES
from autofit_llama.quantization.quantize import Options, quantize, source_of

#: what a log must show of the model for it to be rebuilt; each is printed with `-v`, whatever the build
WANTED = {
    "architecture": "llama_model_loader: - kv ...: general.architecture",
    "tensors": "llama_model_loader: loaded meta data with ... tensors",
    "types": "llama_model_loader: - type ...: ... tensors",
    "parameters": "print_info: model params = ...",
}
#: of the file's size: beyond it, types were dealt out to the wrong tensors, or these are others
MOST_ERROR = 0.25
_SCALES = {"T": 10**12, "B": 10**9, "M": 10**6, "K": 10**3}


class Rebuilt(NamedTuple):
    """A model out of a log. `error_bytes`: how far its weights are from the size that the log tells; `exact`: every
    type count agrees."""

    model: ModelSpec
    exact: bool
    error_bytes: int
    how: str


def rebuild(observed: Observed) -> tuple[Rebuilt | None, tuple[str, ...]]:
    """The model that a log is about, or what of the log is missing for it."""
    facts = observed.facts
    metadata = metadata_of(observed)
    types = {
        name.removeprefix("types."): n for name, n in facts.items() if name.startswith("types.") and isinstance(n, int)
    }
    parameters = _parameters(str(facts.get("info.model params", "")))
    n_tensors = facts.get("n_tensors") or sum(types.values())
    unknown = next((name for name in types if name not in GGML_TYPES_BY_NAME), None)
    if unknown is not None:
        return None, (f"what a block of the type {unknown} takes: no release has one",)
    missing = [
        WANTED[name]
        for name, there in (
            ("architecture", metadata),
            ("tensors", n_tensors),
            ("types", types),
            ("parameters", parameters),
        )
        if not there
    ]
    if missing or parameters is None or not isinstance(n_tensors, int):
        return None, tuple(missing)
    stub = _spec(observed, metadata, ())
    try:
        hp = read_hparams(stub)
        shapes = find_shapes(stub, n_tensors, *parameters)
        if shapes is None:
            what = (
                f"tensors of the architecture {hp.arch}: its {n_tensors} are not among those known from figures alone"
            )
            return None, (what,)
        found = _typed(observed, stub, shapes, types)
        told = file_bytes(observed)
        if told is not None and abs(found.error_bytes) > told[0] * MOST_ERROR:
            return None, ("sizes of tensors: counts of types alone do not tell which tensors they are",)
        return found, ()
    except AutofitError as error:
        return None, (error.message,)


def _parameters(text: str) -> tuple[int, int] | None:
    """Parameters and how far the log rounds them: `8.03 B`."""
    found = re.fullmatch(r"([\d.]{1,12}) ([TBMK])", text.strip())
    if not found:
        return None
    scale = _SCALES[found[2]]
    return round(float(found[1]) * scale), scale // 200 + 1


def file_bytes(observed: Observed) -> tuple[int, int] | None:
    """Bytes of all tensors as the loader tells them, and the rounding: `file size = 4.58 GiB (4.89 BPW)`."""
    found = re.match(
        r"([\d.]{1,12}) (GiB|MiB)", str(observed.facts.get("info.file size", observed.facts.get("info.model size", "")))
    )
    if not found:
        return None
    unit = GIB if found[2] == "GiB" else MIB
    return round(float(found[1]) * unit), unit // 200 + 1


def _spec(observed: Observed, metadata: dict[str, object], tensors: Sequence[TensorInfo]) -> ModelSpec:
    arch = str(metadata["general.architecture"])
    path = str(observed.facts.get("file", "model.gguf"))
    vocabulary = getattr(metadata.get("tokenizer.ggml.tokens"), "count", None) or metadata.get(f"{arch}.vocab_size")

    def figure(key: str) -> int | None:
        value = metadata.get(f"{arch}.{key}")
        return value if isinstance(value, int) else None

    return ModelSpec(
        name=path.replace("\\", "/").rpartition("/")[2] or path,
        format="gguf",
        architecture=arch,
        files=(ModelFile(path=path, size_bytes=0),),
        tensors=tuple(tensors),
        layers=gguf_layers(arch, metadata, tensors) if tensors else (),
        metadata=metadata,
        hidden_elements=figure("embedding_length"),
        n_vocab=vocabulary if isinstance(vocabulary, int) else None,
        context_train_tokens=figure("context_length"),
    )


def _typed(observed: Observed, stub: ModelSpec, shapes: Sequence[Named], types: dict[str, int]) -> Rebuilt:
    """The tensors with types: as llama-quantize gives them for the file's name, else dealt out by the counts."""
    plain = [
        _tensor(name, ne, "f32" if len(ne) == 1 or ".ffn_gate_inp." in name or "ssm_conv1d" in name else "f16")
        for name, ne in shapes
    ]
    told = file_bytes(observed)
    for names, how in _namings(observed, replace(stub, tensors=tuple(plain))):
        tensors = [_tensor(name, ne, names.get(name, "f32")) for name, ne in shapes]
        if _counts(tensors) == types:
            return _rebuilt(observed, stub, tensors, told, how, exact=True)
    likely = next(iter(names for names, _ in _namings(observed, replace(stub, tensors=tuple(plain)))), {})
    ways = [_dealt(plain, likely, types, small_first=small_first) for small_first in (True, False)]
    dealt = ways[0] if told is None else min(ways, key=lambda way: abs(sum(t.n_bytes for t in way) - told[0]))
    return _rebuilt(observed, stub, dealt, told, "types dealt out by their counts", exact=False)


def _namings(observed: Observed, model: ModelSpec) -> list[tuple[dict[str, str], str]]:
    """Types by tensor that llama-quantize would give, for the quantization that the log names and its neighbors."""
    source = source_of(model)
    number = observed.facts.get("kv.general.file_type")
    wanted = int(str(number[1])) if isinstance(number, tuple) and str(number[1]).isdigit() else None
    ftypes = sorted(FTYPES.values(), key=lambda ftype: ftype.number != wanted)
    if wanted is not None:
        ftypes = ftypes[:1] if ftypes[0].number == wanted else []
    found = []
    for ftype in ftypes:
        for imatrix in (False, True):
            try:
                outcome = quantize(source, ftype, Options(imatrix=imatrix, allow_requantize=True))
            except AutofitError:
                continue
            how = f"types of {ftype.name}" + (" with an importance matrix" if imatrix else "")
            found.append(({tensor.name: tensor.type for tensor in outcome.tensors}, how))
    return found


def _counts(tensors: Sequence[TensorInfo]) -> dict[str, int]:
    found: dict[str, int] = {}
    for tensor in tensors:
        found[tensor.type] = found.get(tensor.type, 0) + 1
    return found


def _dealt(
    plain: Sequence[TensorInfo], likely: dict[str, str], types: dict[str, int], *, small_first: bool
) -> list[TensorInfo]:
    """Types given out by their counts: those of most bits to the tensors that llama-quantize gives most bits.

    Among equals small tensors come first, or large ones: makers of quantizations spend bits where they cost little, or
    on what is read most.
    """
    sign = 1 if small_first else -1

    def bits(name: str) -> float:
        known = GGML_TYPES_BY_NAME.get(name)
        return 8 * known.block_bytes / known.block_elements if known else 0.0

    flat = [tensor for tensor in plain if tensor.type == "f32"]
    rest = [tensor for tensor in plain if tensor.type != "f32"]
    pool = [name for name in sorted(types, key=bits, reverse=True) for _ in range(types[name])]
    pool = pool[min(len(flat), types.get("f32", 0)) :] if pool[:1] == ["f32"] else pool
    rest.sort(key=lambda tensor: (-bits(likely.get(tensor.name, "")), sign * tensor.n_elements, tensor.name))
    given = {tensor.name: kind for tensor, kind in zip(rest, pool, strict=False)}
    return [
        tensor if tensor.type == "f32" else _tensor(tensor.name, tensor.ne, given.get(tensor.name, "f16"))
        for tensor in plain
    ]


def _rebuilt(
    observed: Observed,
    stub: ModelSpec,
    tensors: Sequence[TensorInfo],
    told: tuple[int, int] | None,
    how: str,
    *,
    exact: bool,
) -> Rebuilt:
    total = sum(tensor.n_bytes for tensor in tensors)
    error = 0
    if told is not None and abs(total - told[0]) > told[1]:
        error = total - told[0]
        share = told[0] / total
        # what is quantized takes up the difference; what is not is known
        tensors = [t if t.type in FLOATS else t._replace(n_bytes=round(t.n_bytes * share)) for t in tensors]
        exact = False
    return Rebuilt(_spec(observed, dict(stub.metadata), tensors), exact and not error, error, how)


def _tensor(name: str, ne: tuple[int, ...], kind: str) -> TensorInfo:
    try:
        n_bytes = row_bytes(kind, ne[0])
    except ValueError:  # rows that are not whole blocks: as many as there are elements
        known = GGML_TYPES_BY_NAME[kind]
        n_bytes = -(-ne[0] * known.block_bytes // known.block_elements)
    for dim in ne[1:]:
        n_bytes *= dim
    return TensorInfo(name, kind, ne[::-1], n_bytes, 0, 0)
