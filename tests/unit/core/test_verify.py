"""A plan beside a boot log, and beside an engine's dry run."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from autofit.cli.main import main
from autofit.domain.memory import Memory, MemoryItem, PoolUse
from autofit.domain.observed import Observed, ReportedPart
from autofit.errors import UsageError
from autofit.machines import load_machine
from autofit.pipeline import read_model
from autofit.planning.compare import compare
from autofit.verify import in_words, verify_dry_run, verify_log

from support.descriptors import DATA
from support.engine_runs import VllmRun, read_rows, write_directory
from support.llama_logs import loader_lines

HEAD = (
    "ggml_cuda_init: found 1 CUDA devices:\n  Device 0: NVIDIA GeForce RTX 3090, compute capability 8.6, VMM: yes\n"
    "build: 11311 (abcdef12) with cc for x86_64-linux-gnu\n"
    "llama_model_load_from_file_impl: using device CUDA0 (NVIDIA GeForce RTX 3090) - 23860 MiB free\n"
)
TAIL = (
    "load_tensors: offloaded 65/65 layers to GPU\n"
    "load_tensors:   CPU_Mapped model buffer size =   417.30 MiB\n"
    "load_tensors:        CUDA0 model buffer size = {weights} MiB\n"
    "llama_context: n_seq_max     = 1\nllama_context: n_ctx         = 4096\n"
    "llama_kv_cache:      CUDA0 KV buffer size =  1024.00 MiB\n"
)


def boot(weights: str = "18423.65") -> bytes:
    text, _ = loader_lines(DATA / "models" / "qwen3-32b-Q4_K_M.json.gz")
    return (HEAD + text + TAIL.format(weights=weights)).encode()


def test_a_log_alone_is_enough() -> None:
    found = verify_log([boot()])
    assert [(one.pool, one.kind, one.over_bytes) for one in found.differences] == [
        ("CUDA0", "weights", 0),
        ("CUDA0", "cache", 0),
    ]
    assert not found.too_low
    assert all("same" in line for line in in_words(found)[1:])


def test_more_than_predicted_is_exit_code_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log"
    path.write_bytes(boot("19000.00"))
    assert main(["verify", "--log", str(path)]) == 3
    out, err = capsys.readouterr()
    assert "+576.3 MiB" in out
    assert "CUDA0 weights took 576.3 MiB more than predicted" in err
    path.write_bytes(boot("18400.00"))
    assert main(["verify", "--log", str(path)]) == 0


def test_a_log_without_a_model_wants_one() -> None:
    with pytest.raises(UsageError, match="the log tells no model; it lacks: llama_model_loader"):
        verify_log([HEAD.encode() + TAIL.format(weights="1").encode()])
    with pytest.raises(UsageError, match="no log of"):
        verify_log([b"hello\n"])


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """A program that prints what llama-fit-params would, and its arguments to stderr."""
    path = tmp_path / "llama-fit-params"
    path.write_text('#!/bin/sh\necho "$@" >&2\nprintf "CUDA0 18423 1024 %s\\nHost 417 0 20\\n" "${COMPUTE:-300}"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_a_dry_run_is_asked_for_the_same_command(engine: Path) -> None:
    model = read_model(str(DATA / "models" / "qwen3-32b-Q4_K_M.json.gz"))
    environ = {**os.environ, "PATH": f"{engine.parent}:{os.environ['PATH']}"}
    argv = ("llama-server", "-m", "m.gguf", "-c", "4096", "-ngl", "99", "--port", "8080")
    found = verify_dry_run(model, argv, load_machine("rtx-3090"), environ=environ)
    assert {one.kind for one in found.differences if one.pool == "GPU0"} == {"weights", "cache", "compute"}
    assert [one.over_bytes for one in found.differences if one.kind in {"weights", "cache"} and one.pool == "GPU0"] == [
        0,
        0,
    ]
    more = verify_dry_run(model, argv, load_machine("rtx-3090"), environ={**environ, "COMPUTE": "2000"})
    assert [one.kind for one in more.too_low if one.pool == "GPU0"] == ["compute"]


def test_an_engine_that_fails_or_is_not_there(engine: Path, tmp_path: Path) -> None:
    model = read_model(str(DATA / "models" / "qwen3-32b-Q4_K_M.json.gz"))
    machine = load_machine("rtx-3090")
    argv = ("llama-server", "-m", "m.gguf", "-c", "4096")
    with pytest.raises(UsageError, match="no dry run"):
        verify_dry_run(model, argv, machine, environ={"PATH": str(tmp_path / "none")})
    with pytest.raises(UsageError, match="no dry run"):
        verify_dry_run(model, ("vllm", "serve", "m"), machine, environ={"PATH": str(tmp_path)})
    engine.write_text("#!/bin/sh\necho 'no such device' >&2\nexit 1\n")
    with pytest.raises(UsageError, match="no such device"):
        verify_dry_run(model, argv, machine, environ={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    engine.write_text("#!/bin/sh\necho hello\n")
    with pytest.raises(UsageError, match="prints no figures"):
        verify_dry_run(model, argv, machine, environ={"PATH": f"{tmp_path}:{os.environ['PATH']}"})


def test_what_a_figure_does_not_count_is_not_held_against_it() -> None:
    items = tuple(
        MemoryItem(kind="weights", n_bytes=n, basis="exact", label=label, source="")
        for n, label in ((5, "a"), (7, "b"))
    )
    memory = Memory(pools=(PoolUse(id="host", name="RAM", total_bytes=9, free_bytes=9, budget_bytes=9, items=items),))
    part = ReportedPart(place="Host", kind="weights", n_bytes=5, label="model", is_host=True, excludes=("b",))
    (found,) = compare(memory, Observed(engine="e", stage="compute", parts=(part,)), {})
    assert (found.predicted_bytes, found.over_bytes) == (5, 0)


def test_fewer_tokens_than_predicted_are_too_many_in_the_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """vLLM's CPU build reports no bytes, and how many tokens its KV cache holds."""
    row = next(row for row in read_rows() if row["name"] == "vLLM qwen3")
    model = write_directory(VllmRun(row["name"], row["config"], (), row["env"]), tmp_path)
    assigned = [f"{name}={value}" for name, value in row["env"].items()]
    for text, code, word in ((row["log"], 0, "same"), (row["log"].replace("1,048,576", "948,576"), 3, "-100,000")):
        (tmp_path / "log").write_text(text, encoding="utf-8")
        assert main(["verify", str(model), "--log", str(tmp_path / "log"), "--", *assigned, *row["argv"]]) == code
        shown = capsys.readouterr()
        line = next(line for line in shown.out.splitlines() if line.startswith("KV cache tokens"))
        assert word in line
        assert ("KV cache tokens: 948,576 instead of 1,048,576" in shown.err) is bool(code)
