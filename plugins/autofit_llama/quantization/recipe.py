"""A file made to measure: types per tensor, between two names of `llama-quantize`, that use a budget of bytes fully."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence

from autofit.domain.dtypes import GGML_TYPES_BY_NAME, row_bytes
from autofit.domain.model import ModelSpec
from autofit.domain.patterns import lazy_pattern
from autofit.domain.quantization import Recipe
from autofit.domain.text import printable
from autofit.domain.units import format_bytes, round_up
from autofit.domain.values import NamedTuple, replace
from autofit.errors import ModelError, UsageError

from autofit_llama.engine.regex import searcher
from autofit_llama.quantization.files import ALIGNMENT, header_bytes
from autofit_llama.quantization.flags import read_flags
from autofit_llama.quantization.forms import described
from autofit_llama.quantization.ftypes import FLOATS, FTYPES, Ftype
from autofit_llama.quantization.quantize import Options, Outcome, Source, quantize, source_of
from autofit_llama.quantization.rules import Tensor

PROGRAM = "llama-quantize"
#: names between which a budget is met; those behind the bar need an importance matrix
_LADDER = "Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K Q8_0".split()
_WITH_IMATRIX = "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ2_M IQ3_XXS IQ3_XS IQ3_S".split()
#: which tensors get more bits first: the order in which llama.cpp's own mixtures widen them
_ORDER = (
    "attn_v", "attn_kv_b", "attn_qkv", "ffn_down", "attn_output", "attn_k", "attn_q", "other", "ffn_gate", "ffn_up",
    "output", "token_embd",
)  # fmt: skip
_FILLERS = ("q3_K", "q4_0", "q4_K", "q5_0", "q5_K", "q5_1", "q6_K", "q8_0")  #: types that need no matrix
_MOVES = 64  #: changes of type that fill the last bytes
_ROUNDS = 8  #: in which naming some tensors may change what others get
_BLOCK = lazy_pattern(r"blk\.(\d+)\.(.+)", re.ASCII)


class Step(NamedTuple):
    """A type that a tensor may be given."""

    at: int
    type: str
    n_bytes: int  #: padded


def recipe(model: ModelSpec, size_bytes: int, words: Sequence[str] = ()) -> Recipe:
    """The largest file of at most `size_bytes` that llama-quantize can be told to make, and how.

    It lies between two of llama-quantize's names: tensors are widened from the types of the smaller to those of the
    larger, in the order in which its own mixtures do so, until nothing more fits.

    Raises:
        UsageError: the budget is below the smallest file. ModelError: the size of its header is not known.
    """
    options = replace(read_flags(words), allow_requantize=True, keep_split=False)
    source = source_of(model)
    header = header_bytes(model)
    if header is None:
        raise ModelError(f"{printable(model.name, 80)}: the size of a file's header is not known, so none can be made")
    room = size_bytes - round_up(header, ALIGNMENT)
    ladder = sorted(_ladder(source, options), key=_data_bytes)
    below = [outcome for outcome in ladder if _data_bytes(outcome) <= room]
    if not below:
        least = _data_bytes(ladder[0]) + round_up(header, ALIGNMENT)
        matrix = "" if options.imatrix else "; an importance matrix allows less: -- --imatrix FILE"
        raise UsageError(
            f"{format_bytes(size_bytes)} ({size_bytes} bytes) is less than {ladder[0].ftype.name}, the smallest file",
            hint=f"it has {format_bytes(least)} ({least} bytes){matrix}",
        )
    base, above = below[-1], ladder[len(below) :]
    types = {tensor.name: tensor.type for tensor in base.tensors}
    because = f"all of {base.ftype.name}"
    if above:
        wider = _widened(source, base, above[0], options, room - _data_bytes(base))
        types |= wider
        because = f"{base.ftype.name}, with {len(wider)} tensors widened towards {above[0].ftype.name}"
    named = _named(source, base, types, options)
    outcome = quantize(source, base.ftype, replace(options, tensor_types=(*options.tensor_types, *named)))
    form = described(model, source, outcome, options)
    used = _data_bytes(outcome) + round_up(header, ALIGNMENT)
    return Recipe(
        argv=_argv(model, source, words, named, base.ftype),
        quantization=replace(form, name=f"{base.ftype.name} to measure" if named else base.ftype.name, at_hand=False),
        because=f"{because}: {used} of {size_bytes} bytes ({used / size_bytes:.3%})",
    )


def _ladder(source: Source, options: Options) -> Iterator[Outcome]:
    widest = max((t.type for t in source.tensors if t.quantizable), key=lambda name: row_bytes(name, 256))
    floats = ["F16"] if widest not in ("f32", "bf16") else ["BF16"] if widest == "bf16" else ["F16", "F32"]
    for name in (*(_WITH_IMATRIX if options.imatrix else ()), *_LADDER, *floats):
        yield quantize(source, FTYPES[name], options)


def _data_bytes(outcome: Outcome) -> int:
    return sum(round_up(tensor.n_bytes, ALIGNMENT) for tensor in outcome.tensors)


def _widened(source: Source, base: Outcome, above: Outcome, options: Options, room: int) -> dict[str, str]:
    """The tensors that get more bits, and their types: first in the order of need, then as they fill the rest."""
    free = [i for i, tensor in enumerate(source.tensors) if _is_free(tensor, options)]
    sizes = {i: round_up(base.tensors[i].n_bytes, ALIGNMENT) for i in free}
    types = {i: base.tensors[i].type for i in free}
    wider = [Step(i, above.tensors[i].type, round_up(above.tensors[i].n_bytes, ALIGNMENT)) for i in free]
    for step in sorted(wider, key=lambda step: _need(source.tensors[step.at], source)):
        more = step.n_bytes - sizes[step.at]
        if 0 < more <= room:
            room -= more
            sizes[step.at], types[step.at] = step.n_bytes, step.type
    choices = {
        step.at: [
            Step(step.at, base.tensors[step.at].type, round_up(base.tensors[step.at].n_bytes, ALIGNMENT)),
            *_more_bits(source.tensors[step.at], step.at, base.tensors[step.at].n_bytes, step),
            step,
        ]
        for step in wider
    }
    for _ in range(_MOVES):
        moves = _best_moves(choices, sizes, room)
        if not moves:
            break
        for step in moves:
            room -= step.n_bytes - sizes[step.at]
            sizes[step.at], types[step.at] = step.n_bytes, step.type
    return {source.tensors[i].name: types[i] for i in free if types[i] != base.tensors[i].type}


def _best_moves(choices: Mapping[int, Sequence[Step]], sizes: Mapping[int, int], room: int) -> tuple[Step, ...]:
    """One or two changes of type that together fill most of what is left; none if no change does."""
    moves: dict[int, list[Step]] = {}  # by what they add; two of a kind suffice
    for index, steps in choices.items():
        for step in steps:
            more = step.n_bytes - sizes[index]
            if more and len(same := moves.setdefault(more, [])) < 2:
                same.append(step)
    deltas = sorted(moves)
    best = 0
    found: tuple[Step, ...] = ()
    for first in deltas:
        if best < first <= room:
            best, found = first, (moves[first][0],)
        nearest = bisect_right(deltas, room - first) - 1
        if nearest < 0 or first + deltas[nearest] <= best:
            continue
        one = moves[first][0]
        if other := next((step for step in moves[deltas[nearest]] if step.at != one.at), None):
            best, found = first + deltas[nearest], (one, other)
    return found


def _is_free(tensor: Tensor, options: Options) -> bool:
    """Whether a flag of the user's decides the type already."""
    if not tensor.quantizable or (tensor.category == "output" and (options.output_type or options.leave_output)):
        return False
    return not any(searcher(pattern)(tensor.name) for pattern, _ in options.tensor_types) and not (
        tensor.category == "token_embd" and options.token_embedding_type
    )


def _need(tensor: Tensor, source: Source) -> tuple[int, int, int]:
    """Attention values and `ffn_down` first; of a kind the first and last eighth of the layers, then every third."""
    n, i = source.figures.n_layer_all, tensor.layer
    outer = i < n // 8 or i >= 7 * n // 8
    return _ORDER.index(tensor.category), 0 if outer else 1 if (i - n // 8) % 3 == 2 else 2, i


def _more_bits(tensor: Tensor, index: int, least: int, wider: Step) -> Iterator[Step]:
    """Types that suit the rows of a tensor and take more than `least` bytes, none of them wider than 8 bits."""
    for name in _FILLERS:
        if tensor.ne[0] % GGML_TYPES_BY_NAME[name].block_elements == 0 and wider.type not in FLOATS | {name}:
            n_bytes = row_bytes(name, tensor.ne[0])
            for dim in tensor.ne[1:]:
                n_bytes *= dim
            if least < n_bytes:
                yield Step(index, name, round_up(n_bytes, ALIGNMENT))


def _named(source: Source, base: Outcome, types: Mapping[str, str], options: Options) -> tuple[tuple[str, str], ...]:
    """Patterns for `--tensor-type` that give exactly these types.

    A tensor that is named is not counted by the rules, which moves what others of its kind get: those are named too.
    """
    if base.ftype.default in FLOATS:
        return ()
    named: dict[str, str] = {}
    wanted = base
    for _ in range(_ROUNDS):
        wrong = {t.name: types[t.name] for t in wanted.tensors if t.type != types[t.name]}
        if not wrong:
            break
        named |= wrong
        patterns = tuple(_patterns(named, source))
        wanted = quantize(source, base.ftype, replace(options, tensor_types=(*options.tensor_types, *patterns)))
    else:
        named = {t.name: types[t.name] for t in source.tensors if _is_free(t, options)}
    return tuple(_patterns(named, source))


def _patterns(named: Mapping[str, str], source: Source) -> Iterator[tuple[str, str]]:
    """One pattern for all layers of a tensor that get one type."""
    n_layers: dict[str, int] = {}
    for tensor in source.tensors:
        if block := _BLOCK.fullmatch(tensor.name):
            n_layers[block[2]] = n_layers.get(block[2], 0) + 1
    groups: dict[tuple[str, str], list[int]] = {}
    for name, type_name in named.items():
        block = _BLOCK.fullmatch(name)
        if block is None:
            yield f"^{re.escape(name)}$", type_name
        else:
            groups.setdefault((block[2], type_name), []).append(int(block[1]))
    for (rest, type_name), layers in groups.items():
        numbers = "|".join(map(str, sorted(layers))) if len(layers) < n_layers[rest] else "[0-9]+"
        yield rf"^blk\.({numbers})\.{re.escape(rest)}$", type_name


def _argv(
    model: ModelSpec, source: Source, words: Sequence[str], named: Iterable[tuple[str, str]], ftype: Ftype
) -> tuple[str, ...]:
    """The command. The original of a file that is quantized already is not known by name."""
    packed = any(tensor.quantizable and tensor.type not in FLOATS for tensor in source.tensors)
    given = "ORIGINAL-F16.gguf" if packed or not model.files else model.files[0].path
    flags = [word for pattern, type_name in named for word in ("--tensor-type", f"{pattern}={type_name}")]
    return (PROGRAM, *words, *flags, given, "to-measure.gguf", ftype.name)
