"""LoRA adapters and control vectors as files, all of whose values are zero."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from autofit.domain.model import ModelSpec

from support.ggufs import Gguf, Tensor, Typed


def write_control_vector(
    path: Path, *, n_embd: int, layers: Iterable[int], name: str = "direction.{}", kind: str = "f32", n_rows: int = 1
) -> Path:
    dims = (n_embd,) if n_rows == 1 else (n_embd, n_rows)
    tensors = [Tensor(name.format(il), dims, kind) for il in layers]
    return Gguf(metadata={"general.architecture": "controlvector"}, tensors=tensors).write(path)


def write_lora(path: Path, model: ModelSpec, *, rank: int, names: Iterable[str] | None = None) -> Path:
    """Halves for the matrices of these names, or for all in the blocks."""
    chosen = {t.name for t in model.tensors if t.name.startswith("blk.") and len(t.ne) == 2} if names is None else names
    tensors = []
    for tensor in model.tensors:
        if tensor.name in set(chosen):
            n_in, n_out = tensor.ne
            tensors += [
                Tensor(f"{tensor.name}.lora_a", (n_in, rank), "f32"),
                Tensor(f"{tensor.name}.lora_b", (rank, n_out), "f32"),
            ]
    metadata = {
        "general.architecture": model.architecture, "general.type": "adapter", "adapter.type": "lora",
        "adapter.lora.alpha": Typed("f32", 16.0),
    }  # fmt: skip
    return Gguf(metadata=metadata, tensors=tensors).write(path)
