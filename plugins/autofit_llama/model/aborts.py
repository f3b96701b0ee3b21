"""How the engine ends over hyperparameters that do not go together: an assertion fails while its graph is built."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations

from autofit.domain.text import printable
from autofit.errors import EngineRefusalError

from autofit_llama.model.hparams import HParams
from autofit_llama.model.metadata_reader import KEYS, OTHER_KEYS, key_of
from autofit_llama.model.validate import FREE, LOOPS

MOST_KEYS = 4  #: named in a message
_HEADS = (
    "n_embd_head_k_full",
    "n_embd_head_v_full",
    "n_embd_head_k_swa",
    "n_embd_head_v_swa",
    "n_rot_full",
    "n_rot_swa",
)
#: what is no width, or has a value where nobody says one
_NO_WIDTHS = (
    FREE | LOOPS | frozenset("token_shift_count laurel_rank n_embd_altup n_no_rope_layer_step n_cls_out".split())
)
HINT = "the file's hyperparameters and tensors do not go together; convert the model again"


def aborts(
    hp: HParams, what: str, numbers: Iterable[int] = (), *, keys: Iterable[str] = (), how: str = "aborts"
) -> EngineRefusalError:
    """The engine ends at `what`, or `how` else it fails there.

    Named are the fields `keys`, or those whose value is among the numbers, by their keys.
    """
    named = ", ".join(dict.fromkeys([*_told(hp, keys), *_keys(hp, numbers)]))
    return EngineRefusalError(
        f"llama.cpp {how} with this {printable(hp.arch, 40)} model at {what}{': ' if named else ''}{named}", hint=HINT
    )


def _told(hp: HParams, fields: Iterable[str]) -> Iterator[str]:
    for field in fields:
        key = key_of(field)
        value = getattr(hp, field)
        each = dict.fromkeys(value) if isinstance(value, tuple) else (value,)
        yield f"{key} is {', '.join(map(str, list(each)[:MOST_KEYS]))}"


def _keys(hp: HParams, numbers: Iterable[int]) -> list[str]:
    """Keys whose value is one of the numbers, in the order of these, or two whose product is."""
    wanted = dict.fromkeys(n for n in numbers if n > 1)
    figures = dict(_figures(hp))
    equal = [key for n in wanted for key, value in figures.items() if value == n]
    pairs = [pair for pair in combinations(figures, 2) if figures[pair[0]] * figures[pair[1]] in wanted]
    found = dict.fromkeys([*equal, *(key for pair in pairs for key in pair)])
    return [f"{key} is {figures[key]}" for key in list(found)[:MOST_KEYS]]


def _figures(hp: HParams) -> Iterator[tuple[str, int]]:
    """Widths and counts by key; of a list that of the first block."""
    for field in dict.fromkeys((*OTHER_KEYS, *_HEADS, *(field for field in KEYS if field not in _NO_WIDTHS))):
        key = key_of(field)
        value = getattr(hp, field, None)
        value = value[0] if isinstance(value, tuple) and value else value
        if type(value) is int and value > 1:
            yield key, value
