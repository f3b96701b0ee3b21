"""A real llama-quantize: files as foretold to the byte, and recipes that come out at their size."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from autofit.readers.gguf import read_gguf

from autofit_llama.quantization.forms import forms
from autofit_llama.quantization.recipe import recipe
from support import descriptors, ggufs, quant_models
from support.dryrun import engine_folder

pytestmark = [pytest.mark.engine, pytest.mark.skipif(engine_folder() is None, reason="no engine is built")]


def _run(*words: str) -> str:
    program = (engine_folder() or Path()) / "llama-quantize"
    done = subprocess.run([program, *words], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-800:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with weights, in F32."""
    packed = Path(__file__).resolve().parents[2] / "autofit" / "_models" / "tiny.gguf"
    path = tmp_path_factory.mktemp("quantize") / "tiny.gguf"
    _run("--allow-requantize", str(packed), str(path), "F32")
    return path


@pytest.mark.parametrize("name", ["Q4_0", "Q2_K", "Q4_K_M", "Q6_K", "IQ4_XS", "IQ3_S", "MXFP4_MOE", "TQ2_0", "BF16"])
def test_a_file_is_written_as_foretold(source: Path, name: str) -> None:
    form = next(form for form in forms(read_gguf(source)) if form.name == name)
    path = source.with_name(f"{name}.gguf")
    _run(str(source), str(path), name)
    written = read_gguf(path)
    assert form.model is not None
    assert path.stat().st_size == form.file_bytes
    assert written.tensors == form.model.tensors
    assert written.metadata == form.model.metadata


def test_a_recipe_comes_out_at_its_size(source: Path) -> None:
    made = recipe(read_gguf(source), source.stat().st_size // 4)
    path = source.with_name("measured.gguf")
    *flags, _, _, ftype = made.argv[1:]
    _run(*flags, str(source), str(path), ftype)
    assert path.stat().st_size == made.quantization.file_bytes


@pytest.mark.parametrize(("name", "size"), [("qwen3-30b-a3b-Q4_K_M", 20 << 30), ("deepseek-v2-lite-Q4_K_M", 10**10)])
def test_a_recipe_of_a_large_model(tmp_path: Path, name: str, size: int) -> None:
    case = {"part": "models", "model": name, "source": "f16", "widths": None}
    path = ggufs.from_description(quant_models.unpacked(case)).write(tmp_path / "model.gguf")
    made = recipe(read_gguf(path), size)
    *flags, _, _, ftype = made.argv[1:]
    total = re.search(r"quant size  = +([0-9.]+) MiB", _run("--dry-run", *flags, str(path), ftype))
    assert total is not None and made.quantization.weights_bytes is not None
    assert total[1] == f"{made.quantization.weights_bytes / (1 << 20):.2f}"
    assert made.quantization.file_bytes is not None and 0 <= size - made.quantization.file_bytes < 1 << 20
    assert descriptors.spec("models", name).architecture == read_gguf(path).architecture
