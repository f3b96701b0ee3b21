"""LoRA adapters and control vectors: where their bytes are, and files that the engine would not use."""

from __future__ import annotations

from pathlib import Path

import autofit
import pytest
from autofit.domain.plan import Plan
from autofit.errors import EngineRefusalError, ModelError

from support import adapters
from support.ggufs import Gguf, Tensor

LLAMA = "example:llama-3.1-8b-q4_k_m"
N_EMBD, ROW = 4096, 4 * 4096
CARD = autofit.load_machine("rtx-3090", ram="64GiB")
CARDS = autofit.load_machine("rtx-3090", "rtx-3090", ram="64GiB")


def check(*argv: str, on: autofit.Machine = CARD) -> Plan:
    return autofit.check(["llama-server", "-m", LLAMA, "-c", "4096", *argv], on)


def counted(plan: Plan, label: str) -> dict[str, int]:
    return {pool.id: item.n_bytes for pool in plan.memory.pools for item in pool.items if item.label == label}


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("-ngl", "99"), {"GPU0": 31}),
        (("-ngl", "10"), {"GPU0": 9, "host": 22}),
        (("-ngl", "0"), {"host": 31}),
        (("-ngl", "99", "--control-vector-layer-range", "3", "4"), {"GPU0": 31}),
    ],
)
def test_one_row_for_each_block_but_the_first(tmp_path: Path, argv: tuple[str, ...], expected: dict[str, int]) -> None:
    path = adapters.write_control_vector(tmp_path / "vector.gguf", n_embd=N_EMBD, layers=(4, 2, 99))
    found = check(*argv, "--control-vector", str(path))
    assert counted(found, "control vector") == {pool: rows * ROW for pool, rows in expected.items()}
    bare = check(*argv)
    for pool, before in zip(found.memory.pools, bare.memory.pools, strict=True):
        assert pool.used_bytes - before.used_bytes == expected.get(pool.id, 0) * ROW


def test_rows_lie_with_their_blocks(tmp_path: Path) -> None:
    path = adapters.write_control_vector(tmp_path / "vector.gguf", n_embd=N_EMBD, layers=(1,))
    found = check("-ts", "1,2", "--control-vector-scaled", f"{path}:0.5,{path}:-1", on=CARDS)
    assert counted(found, "control vector") == {"GPU0": 10 * ROW, "GPU1": 21 * ROW}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_embd": 2048}, "has 2048 values, the model 4096"),
        ({"name": "direction.x{}"}, "is not a direction of a layer"),
        ({"name": "blk.{}"}, "is not a direction of a layer"),
        ({"layers": (0,)}, "is not a direction of a layer"),
        ({"layers": ()}, "no direction tensors"),
        ({"kind": "f16"}, "is f16, not f32"),
        ({"n_rows": 2}, "more than one dimension"),
    ],
)
def test_vectors_that_the_engine_would_start_without(tmp_path: Path, change: dict, message: str) -> None:
    good = adapters.write_control_vector(tmp_path / "good.gguf", n_embd=N_EMBD, layers=(1,))
    bad = adapters.write_control_vector(tmp_path / "bad.gguf", **({"n_embd": N_EMBD, "layers": (1, 2)} | change))
    with pytest.raises(EngineRefusalError, match=message):
        check("--control-vector", f"{good},{bad}")


def test_a_plan_keeps_room_for_them(tmp_path: Path) -> None:
    """An adapter of 4 GiB, on a card where the model alone leaves less."""
    vector = adapters.write_control_vector(tmp_path / "vector.gguf", n_embd=N_EMBD, layers=(1,))
    lora = adapters.write_lora(tmp_path / "lora.gguf", autofit.read_model(LLAMA), rank=800)
    card = autofit.load_machine("rtx-3060-12gb", ram="64GiB")
    pins = ("--lora", str(lora), "--control-vector", str(vector))
    found = autofit.plan("llama", LLAMA, card, engine_args=pins, context="32k")
    assert found.fits
    assert sum(counted(found, "LoRA adapter").values()) > 4 << 30
    assert autofit.check(found.argv, card).memory.fits


def test_halves_lie_beside_their_weights(tmp_path: Path) -> None:
    path = adapters.write_lora(tmp_path / "lora.gguf", autofit.read_model(LLAMA), rank=8, names=["blk.0.attn_q.weight"])
    assert counted(check("--lora", str(path)), "LoRA adapter") == {"GPU0": 2 * 8 * N_EMBD * 4}
    assert counted(check("--lora", str(path), "-ngl", "9"), "LoRA adapter") == {"host": 2 * 8 * N_EMBD * 4}
    assert counted(check("--lora", str(path), "-ot", "attn_q=CPU"), "LoRA adapter") == {"host": 2 * 8 * N_EMBD * 4}
    twice = check("--lora-scaled", f"{path}:2,{path}:0")
    assert counted(twice, "LoRA adapter") == {"GPU0": 2 * 8 * N_EMBD * 4}
    assert sum(item.label == "LoRA adapter" for item in twice.memory.pool("GPU0").items) == 2


ADAPTER = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
A, B = Tensor("blk.0.attn_q.weight.lora_a", (4096, 8)), Tensor("blk.0.attn_q.weight.lora_b", (8, 4096))


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        ({"general.type": "model"}, [A, B], "is not a LoRA adapter"),
        ({"adapter.type": "ia3"}, [A, B], "is not a LoRA adapter"),
        ({"general.architecture": "gemma"}, [A, B], "for gemma on a model of llama"),
        ({}, [A], "lacks one half"),
        ({}, [A, B._replace(ne=(8, 1024))], "another shape"),
        ({}, [A._replace(ne=(8, 4096)), B._replace(ne=(4096, 8))], "another shape"),
        ({}, [Tensor("blk.99.attn_q.weight.lora_a", (8, 8)), Tensor("blk.99.attn_q.weight.lora_b", (8, 8))], "exist"),
        ({}, [A, B, Tensor("blk.0.attn_q.weight", (4096,))], "unexpected suffix"),
    ],
)
def test_adapters_that_the_engine_refuses(tmp_path: Path, metadata: dict, tensors: list, message: str) -> None:
    path = Gguf(metadata=ADAPTER | metadata, tensors=tensors).write(tmp_path / "lora.gguf")
    with pytest.raises(EngineRefusalError, match=message):
        check("--lora", str(path))


def test_products_with_an_adapter_take_compute_memory(tmp_path: Path) -> None:
    """Rows of the rank and of the weight's width, for the tokens of a micro-batch; no more for a second adapter."""
    names = ["blk.0.ffn_up.weight", "blk.31.attn_q.weight"]
    path = adapters.write_lora(tmp_path / "lora.gguf", autofit.read_model(LLAMA), rank=8, names=names)
    for flag, n_ubatch in ((f"{path}", 512), (f"{path},{path}", 64)):
        found = check("--lora", flag, "-ub", str(n_ubatch), "-ts", "1,1", on=CARDS)
        expected = {"GPU0": 4 * n_ubatch * (14336 + 8), "GPU1": 4 * n_ubatch * (4096 + 8)}
        assert counted(found, "LoRA products, at most") == expected


def test_norms_of_an_adapter_are_passed_over(tmp_path: Path) -> None:
    norm = Tensor("blk.0.attn_norm.weight", (4096,))
    path = Gguf(metadata=ADAPTER, tensors=[A, B, norm]).write(tmp_path / "lora.gguf")
    assert counted(check("--lora", str(path)), "LoRA adapter") == {"GPU0": 2 * 8 * N_EMBD * 4}


def test_a_vector_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.gguf"):
        check("--control-vector", str(tmp_path / "none.gguf"))
