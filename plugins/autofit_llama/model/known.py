"""Which models a build of llama.cpp loads at all.

Source: src/llama-model-loader.cpp:llama_model_loader (an unknown architecture), src/llama-arch.cpp:LLM_ARCH_NAMES.
"""

from __future__ import annotations

from collections.abc import Iterator

from autofit.domain.model import ModelSpec
from autofit.domain.plan import Finding
from autofit.domain.text import printable
from autofit.errors import EngineRefusalError, UnsupportedModelError

from autofit_llama.engine.builds import around, first_with_architecture, has_architecture
from autofit_llama.engine.codes import finding
from autofit_llama.engine.versions import Change, Version
from autofit_llama.model.architecture import architecture_of, is_known


def check_architectures(model: ModelSpec, version: Version, *, named: bool) -> tuple[Finding, ...]:
    """Refuse a model that this version does not know; what may be said of one that it may not know.

    `named`: somebody said which version it is. Where nobody did, an architecture that no recorded build has is taken
    for one of a newer build, and bounded.

    Raises:
        EngineRefusalError: the version lacks the architecture.
        UnsupportedModelError: it has it, and there is no record of what it takes.
    """
    draft = model.companions.get("draft")
    found = [
        each for one in (model, draft) if one is not None for each in _check(one.architecture, version, named=named)
    ]
    for one in (model, draft):
        if one is not None:
            _check_layout(one, version)
    return tuple(found)


def _check_layout(model: ModelSpec, version: Version) -> None:
    """Refuse a file in a layout that came after the version.

    Raises:
        EngineRefusalError
    """
    for change, what in _later_layouts(model, version):
        if change.surely_not_in(version.build):
            raise EngineRefusalError(
                f"llama.cpp {version.name} refuses {printable(model.name, 80)}: {what}",
                hint=f"b{change.has} reads the file: --engine-version b{change.has}, or a newer build",
            )


def _later_layouts(model: ModelSpec, version: Version) -> Iterator[tuple[Change, str]]:
    """What a file has or lacks, and the change with which builds came to read it; in the engine's words."""
    arch = architecture_of(model.architecture)
    for name, change in arch.once_required.items():
        if not any(f".{name}." in tensor.name for tensor in model.tensors):
            yield change, f"missing tensor 'blk.*.{name}.weight'"
    if arch.once_n_dims:
        for tensor in model.tensors:
            since, n_dims = arch.once_n_dims.get(tensor.name.removesuffix(".weight").rpartition(".")[2], (None, 0))
            if since is not None and any(n > 1 for n in tensor.ne[n_dims:]):
                shape = " x ".join(map(str, tensor.ne))
                yield since, f"tensor '{printable(tensor.name, 80)}' has the shape {shape}, not {n_dims} dimensions"
    n_heads, n_all = (_number(model, key) for key in ("nextn_predict_layers", "block_count"))
    if not 0 < n_heads < n_all:
        return
    for name, change in arch.once_in_heads.items():
        missing = f"blk.{n_all - n_heads}.{name}.weight"
        if not any(tensor.name == missing for tensor in model.tensors):
            yield change, f"missing tensor {missing!r}"
    pattern = model.metadata.get(f"{model.architecture}.attention.sliding_window_pattern")
    if arch.pattern_of_trunk is not None and isinstance(pattern, tuple) and len(pattern) != n_all - n_heads:
        first, until = arch.pattern_of_trunk
        if first is None or first.surely_in(version.build):
            yield until, f"attention.sliding_window_pattern has {len(pattern)} entries, not {n_all - n_heads}"


def _number(model: ModelSpec, key: str) -> int:
    value = model.metadata.get(f"{model.architecture}.{key}")
    return value if isinstance(value, int) else 0


def _check(name: str, version: Version, *, named: bool) -> Iterator[Finding]:
    having, first, shown = has_architecture(version.build, name), first_with_architecture(name), printable(name, 60)
    if first is not None and any(having) and not is_known(name) and name != "clip":
        raise UnsupportedModelError(
            f"{shown}: llama.cpp has this architecture since b{first}, and autofit does not know what it takes",
            hint="llama-fit-params of that build counts it",
        )
    if all(having) or (first is None and (version.newer or not named)):
        return
    if not any(having):
        hint = "no build that is known has it" if first is None else f"b{first} has it: --engine-version b{first}"
        raise EngineRefusalError(
            f"llama.cpp {version.name} refuses: unknown model architecture: {shown!r}",
            hint=f"{hint}, or a newer build" if first is None else hint,
        )
    last, next_one = around(version.build)
    message = f"{shown} came after b{last} and before b{next_one}: llama.cpp {version.name} may not know it"
    yield finding("engine-version-uncertain", message)
