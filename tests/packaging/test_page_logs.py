"""docs/fix.md and docs/calibration.md: their commands run as they are written there, and print what is shown."""

from __future__ import annotations

import re
import shlex
import shutil
import stat
import sys
from pathlib import Path

import pytest
from autofit.calibration import rule
from autofit.calibration.exchange import MAX_ROWS
from autofit.calibration.rule import Key
from autofit.calibration.store import add
from autofit.cli.main import main
from autofit.domain.machine import Device, Host, Machine
from autofit.verify import LEAST_TOLERANCE_BYTES, TOLERANCE_FRACTION

import support
from support.descriptors import DATA
from support.llama_logs import loader_lines

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a shell's program stands in for the engine")
PAGES = {name: (support.ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("fix.md", "calibration.md")}
MIB = 1 << 20


def commands(page: str) -> list[str]:
    return [line for block in re.findall(r"```sh\n(.*?)```", PAGES[page], re.DOTALL) for line in block.splitlines()]


def log() -> str:
    text, _ = loader_lines(DATA / "models" / "qwen3-32b-Q4_K_M.json.gz")
    return f"""\
$ ./llama-server -m Qwen3-32B-Q4_K_M.gguf -ngl 99 -c 40960
ggml_cuda_init: found 1 CUDA devices:
  Device 0: NVIDIA GeForce RTX 3090, compute capability 8.6, VMM: yes
build: 8864 (abcdef12) with cc (Ubuntu 13.3.0-6ubuntu2~24.04) 13.3.0 for x86_64-linux-gnu
llama_model_load_from_file_impl: using device CUDA0 (NVIDIA GeForce RTX 3090) (0000:01:00.0) - 23860 MiB free
{text}load_tensors: offloaded 65/65 layers to GPU
load_tensors:   CPU_Mapped model buffer size =   417.30 MiB
load_tensors:        CUDA0 model buffer size = 18423.65 MiB
llama_context: n_seq_max     = 1
llama_context: n_ctx         = 40960
llama_context: n_batch       = 2048
llama_context: n_ubatch      = 512
llama_context: flash_attn    = auto
ggml_backend_cuda_buffer_type_alloc_buffer: allocating 10240.00 MiB on device 0: cudaMalloc failed: out of memory
alloc_tensor_range: failed to allocate CUDA0 buffer of size 10737418240
llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copyfile(support.TINY, tmp_path / "model.gguf")
    (tmp_path / "server.log").write_text(log())
    program = tmp_path / "llama-fit-params"
    program.write_text('#!/bin/sh\necho "Host 0 2 6"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("AUTOFIT_CALIBRATION", str(tmp_path / "starts.sqlite3"))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("command", commands("fix.md"))
def test_commands_of_the_page_about_logs(
    command: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shlex.split(command.partition(" <")[0])
    with (here / "server.log").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert main(words[1:]) == 0
    out, err = capsys.readouterr()
    if words[1] == "fix":
        assert out.strip().endswith("-c 19456")
        (shown,) = re.findall(r"```\n(engine: .*?)```", PAGES["fix.md"], re.DOTALL)
        if "--" not in words:
            assert shown in err


def test_commands_of_the_page_about_calibration(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, size = "NVIDIA GeForce RTX 3090", 24 << 30
    card = Device(id="GPU0", index=0, name=name, api="cuda", total_bytes=size, free_bytes=size, pool="GPU0")
    machine = Machine(host=Host(total_bytes=None, available_bytes=None), devices=(card,))
    monkeypatch.setattr("autofit.machines.detect_machine", lambda environ=None: machine)
    key = Key(engine="llama", build="11311", api="cuda", device="rtx-3090", architecture="qwen3")
    add({"AUTOFIT_CALIBRATION": str(here / "starts.sqlite3")}, key, 100 * MIB)
    for command in commands("calibration.md"):
        assert main(shlex.split(command)[1:]) == 0
    out, err = capsys.readouterr()
    assert "rtx-3090" in out and "100.0 MiB" in out
    assert "1 entries imported" in err and "2 entries forgotten" in err
    assert "no more than predicted: nothing is counted" in err


def test_figures_of_the_pages() -> None:
    page = " ".join(PAGES["calibration.md"].split())
    assert f"mean + {rule.DEVIATIONS} spreads" in page
    assert f"only from {rule.LEAST_STARTS} starts" in page
    assert f"at most {rule.MOST_BACK_BYTES // MIB} MiB" in page
    assert f"up to {rule.MOST_MORE_BYTES >> 30} GiB" in page
    assert f"at least {rule.LEAST_SPREAD_BYTES // MIB} MiB" in page
    assert f"and {MAX_ROWS} entries" in page
    assert f"{TOLERANCE_FRACTION:.0%}".replace("%", " %") + f" or {LEAST_TOLERANCE_BYTES // MIB} MiB" in PAGES["fix.md"]
