"""What could be loaded with the model is offered with its price, and is no part of the plan."""

from __future__ import annotations

import shlex
from pathlib import Path

import autofit
import pytest
from autofit.domain.plan import Plan

from support import ggufs, quant_files
from support.descriptors import description
from support.ggufs import Gguf, Tensor
from unit.llama.planning.test_decide import card, machine, plan

MTP = "q36-35b-a3b-UD-Q4_K_M-MTP"
VISION = {"general.architecture": "clip", "general.type": "mmproj"}


def note(found: Plan, code: str) -> str | None:
    return next((finding.message for finding in found.findings if finding.code == code), None)


def flags_of(message: str) -> list[str]:
    return shlex.split(message.rpartition("(-- ")[2].rstrip(")"))


def write_model(folder: Path) -> str:
    return str(ggufs.from_description(description("models", "qwen2.5-7b-Q8_0")).write(folder / "model.gguf"))


def write_projector(folder: Path, name: str) -> str:
    tensors = [Tensor("v.blk.0.attn_q.weight", (1024, 1024)), Tensor("mm.0.weight", (1024, 3584))]
    return str(Gguf(metadata=VISION, tensors=tensors).write(folder / name))


def test_a_projector_beside_the_model_is_offered_with_what_it_takes(tmp_path: Path) -> None:
    model = write_model(tmp_path)
    alone = autofit.plan("llama", model, on="rtx-4090", ram="64GiB", settings=None)
    assert note(alone, "file-beside") is None
    projector = write_projector(tmp_path, "mmproj-model-f16.gguf")
    found = autofit.plan("llama", model, on="rtx-4090", ram="64GiB", settings=None)
    message = note(found, "file-beside")
    assert found.argv == alone.argv
    assert message is not None
    assert "MiB more" in message or "GiB more" in message
    assert flags_of(message) == ["-mm", projector]
    taken = autofit.plan("llama", model, on="rtx-4090", ram="64GiB", settings=None, engine_args=flags_of(message))
    assert taken.memory.pool("GPU0").used_bytes > 0
    assert note(taken, "file-beside") is None


@pytest.mark.slow_but("False")
@pytest.mark.parametrize("is_nested", [False, True])
def test_a_projector_that_quantizations_share_is_offered_with_each(tmp_path: Path, is_nested: bool) -> None:
    for name in ("Q4_K_M", "Q8_0"):
        quant_files.write(tmp_path / name if is_nested else tmp_path, (name,))
    projector = write_projector(tmp_path, "mmproj-model-f16.gguf")
    for on, taken in (("rtx-4090", "Q8_0"), ("generic-cuda:4GiB", "Q4_K_M")):
        found = autofit.plan("llama", str(tmp_path), on=on, ram="64GiB", context="8k", settings=None)
        message = note(found, "file-beside")
        assert found.argv[2].endswith(f"-{taken}.gguf")
        assert message is not None and flags_of(message) == ["-mm", projector]
    write_projector(tmp_path.parent, "mmproj-of-another.gguf")
    (tmp_path / "mmproj-model-f16.gguf").unlink()
    alone = autofit.plan("llama", str(tmp_path), on="rtx-4090", ram="64GiB", context="8k", settings=None)
    assert note(alone, "file-beside") is None, "what lies further up is not theirs"


def test_of_several_projectors_the_one_in_f16_is_offered(tmp_path: Path) -> None:
    model = write_model(tmp_path)
    for name in ("mmproj-BF16.gguf", "mmproj-F16.gguf", "mmproj-F32.gguf"):
        write_projector(tmp_path, name)
    message = note(autofit.plan("llama", model, on="rtx-4090", ram="64GiB", settings=None), "file-beside")
    assert message is not None
    assert flags_of(message)[1].endswith("mmproj-F16.gguf")


@pytest.mark.slow_but("GGUF")
@pytest.mark.parametrize("content", [b"", b"GGUF", b"no model at all"])
def test_a_file_that_is_none_is_passed_over(tmp_path: Path, content: bytes) -> None:
    model = write_model(tmp_path)
    (tmp_path / "mmproj.gguf").write_bytes(content)
    assert note(autofit.plan("llama", model, on="rtx-4090", ram="64GiB", settings=None), "file-beside") is None


def test_an_example_has_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_projector(tmp_path, "mmproj.gguf")
    monkeypatch.chdir(tmp_path)
    found = autofit.plan("llama", "example:llama-3.1-8b-q4_k_m", on="rtx-4090", ram="64GiB", settings=None)
    assert note(found, "file-beside") is None


def test_a_draft_head_that_pays_is_offered_at_its_best_depth_with_its_price() -> None:
    slow = machine(card(0, 40, speed=250_000_000_000, fp16_flops_per_s=10**14))
    found = plan(slow, model=MTP, part="report_models", context=16_384)
    message = note(found, "draft-head")
    assert message is not None
    assert "MiB more" in message or "GiB more" in message
    flags = flags_of(message)
    with_head = plan(slow, *flags, model=MTP, part="report_models", context=16_384)
    assert with_head.fits
    assert found.speed is not None
    assert with_head.speed is not None
    assert (with_head.speed.start_tokens_per_s or 0) > (found.speed.start_tokens_per_s or 0)
    assert note(with_head, "draft-head") is None
