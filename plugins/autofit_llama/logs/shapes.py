"""Names and shapes of a model's tensors out of its hyperparameters, checked against what the log counts.

The engine's own loader says which tensors it asks for (`loading`). Which of the optional ones a file has is found by
trying: the log tells how many tensors and parameters there are in all, and only what agrees with both is taken.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import combinations
from math import prod

from autofit.domain.model import ModelSpec, TensorInfo
from autofit.errors import ModelError

from autofit_llama.loading.loader import DUPLICATED, OPTIONAL, Loader, Shape
from autofit_llama.loading.tensors.index import TENSORS
from autofit_llama.model.load import draft_of
from autofit_llama.model.metadata_reader import HParamsDraft

Named = tuple[str, tuple[int, ...]]
#: optional tensors that files have together or not at all
_TOGETHER = (
    (re.compile(r"(attn|ffn)_(?:[qkv]|up|down|gate)\.bias"), r"\1_*.bias"),
    (re.compile(r"ffn_\w+_exps\.bias"), "ffn_*_exps.bias"),
    (re.compile(r"rope_factors_(?:long|short)"), "rope_factors_*"),
)
#: optional tensors that files rarely have: biases, scales of a few formats, parts that are fused or belong to a head
_RARE = re.compile(
    r"bias|scale|_s\.weight|_qkv\.weight (?!recurrent)|gate_up|rope_f|ssm_in|cls|tid2eid"
    r"|nextn\.(?:embed|shared_head_head)"
)
MAX_CHANGED = 3  #: groups in which a file may differ from what is tried first
MAX_TRIES = 1200


class Asked(Loader):
    """A loader without a file: it takes every tensor that it has to, and of the optional ones those that are chosen."""

    def __init__(self, model: ModelSpec, draft: HParamsDraft, chosen: Callable[[str], bool]) -> None:
        super().__init__(model, draft)
        self.load_mtp = True
        self.taken: dict[str, tuple[int, ...]] = {}
        self.optional: dict[str, None] = {}
        self._chosen = chosen
        self._kinds = [
            "recurrent" if draft.is_recr[il] else "sliding" if draft.is_swa[il] else "full"
            for il in range(draft.n_layer_all)
        ]

    def tensor(self, name: str, ne: Shape, flags: int) -> TensorInfo | None:
        if flags & OPTIONAL:
            group = self.group_of(name)
            self.optional[group] = None
            if not self._chosen(group):
                return None
        elif flags & DUPLICATED:
            return _stub(name, ne)  # of a tensor that is asked for at another place
        self.taken.setdefault(name, tuple(ne))
        return _stub(name, ne)

    def group_of(self, name: str) -> str:
        """What an optional tensor comes with: the same one of every block of its kind."""
        plain = re.sub(r"\.\d{1,4}\.", ".*.", name)
        for pattern, joined in _TOGETHER:
            plain = pattern.sub(joined, plain)
        block = re.search(r"\bblk\.(\d{1,4})\.attn_(?:q|k|v|qkv)\.weight", name)
        return f"{plain} {self._kinds[int(block[1])]}" if block and int(block[1]) < len(self._kinds) else plain

    def get_weight(self, name: str) -> TensorInfo | None:
        return _stub(name, ())  # files of a head alone are no models to load

    get_tensor_meta = get_weight


def _stub(name: str, ne: Shape) -> TensorInfo:
    return TensorInfo(name, "f32", tuple(ne)[::-1], 0, 0, 0)


def find_shapes(model: ModelSpec, n_tensors: int, n_parameters: int, tolerance: int) -> tuple[Named, ...] | None:
    """The tensors that agree with the log: their number exactly, parameters within `tolerance`. `None`: none do."""
    home = TENSORS.get(model.architecture)
    if home is None:
        return None
    loads = [
        getattr(import_module(f"autofit_llama.loading.tensors.{module}"), function)
        for module, function in (home, ("scales", "load"))
    ]

    def load(loader: Loader) -> None:
        for each in loads:
            each(loader)

    for tensors in _candidates(model, load):
        if len(tensors) == n_tensors and abs(sum(prod(ne) for _, ne in tensors) - n_parameters) <= tolerance:
            return tensors
    return None


def _candidates(model: ModelSpec, load: Callable[[Loader], None]) -> Iterator[tuple[Named, ...]]:
    """What the loader takes without optional tensors, and with all but the rare ones; then with some changed."""
    draft, tries = draft_of(model), 0
    starts: list[tuple[Callable[[str], bool], dict[str, None]]] = []
    for start in (lambda group: False, lambda group: not _RARE.search(group)):
        asked = _taken(model, draft, load, start)
        starts.append((start, asked.optional))
        yield tuple(asked.taken.items())
    for size in range(1, MAX_CHANGED + 1):
        for start, known in starts:
            for changed in combinations([group for group in known if not _is_scale(group)], size):
                tries += 1
                if tries > MAX_TRIES:
                    return
                asked = _taken(model, draft, load, lambda group, s=start, c=changed: s(group) != (group in c))  # type: ignore[misc]
                yield tuple(asked.taken.items())


def _is_scale(group: str) -> bool:
    """Of the formats with a scale for each tensor, whose files are rare."""
    return "scale" in group and "layer_output_scale" not in group and "exps.scale" not in group


def _taken(
    model: ModelSpec, draft: HParamsDraft, load: Callable[[Loader], None], chosen: Callable[[str], bool]
) -> Asked:
    asked = Asked(model, draft, chosen)
    try:
        load(asked)
    except (ModelError, ArithmeticError, IndexError, TypeError):
        asked.taken.clear()
    return asked
