"""Cold starts: what autofit takes as a process, beside a bare interpreter and the engine's own dry run.

    python bench/startup.py [MODEL.gguf] [--runs 15] [--checkpoints DIRECTORY]

Prints medians and ratios of one interleaved run. `AUTOFIT_LLAMA_BIN` names the folder of the engine's programs. Without
MODEL, the header of Llama 3.1 8B with as many tokens as its vocabulary has; it and the checkpoints of the vLLM rows
(8B, and DeepSeek-V3 with its 91,991 tensors) are headers alone, made in DIRECTORY or in a temporary one.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from checkpoints import write_checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support import DATA, ggufs

HEADER = DATA / "llama" / "models" / "llama-3.1-8b-Q4_K_M.json.gz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--checkpoints", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = options.checkpoints or Path(folder)
        small, large = (write_checkpoint(name, place / name) for name in ("llama3-8b", "deepseek-v3"))
        run(str(options.model or write_llama(place)), options.runs, small, large)


def write_llama(directory: Path) -> Path:
    """A sparse GGUF file of Llama 3.1 8B: the recorded header, synthetic tokens, no weights."""
    description = json.loads(gzip.decompress(HEADER.read_bytes()))
    return ggufs.from_description(description).write(directory / "llama-3.1-8b.gguf")


def run(model: str, n_runs: int, small: Path, large: Path) -> None:
    autofit = [sys.executable, "-m", "autofit"]
    hardware = ["--on", "rtx-3090", "--ram", "64GiB", "-q"]
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "autofit --help": [*autofit, "--help"],
        "autofit llama MODEL --on rtx-3090": [*autofit, "llama", model, *hardware],
        "autofit check -- llama-fit-params -m MODEL": [
            *autofit, "check", *hardware, "--", "llama-fit-params", "-m", model, "-c", "8192", "-ngl", "99",
        ],
        "autofit vllm 8B --on rtx-4090": [
            *autofit, "vllm", str(small), "--on", "rtx-4090", "--ram", "64GiB", "-q",
        ],
        "autofit vllm DeepSeek-V3 --on 8 x h200": [
            *autofit, "vllm", str(large), *["--on", "h200"] * 8, "--ram", "2TiB", "-q",
        ],
    }  # fmt: skip
    environ = dict(os.environ)
    for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"):
        environ.pop(name, None)
    folder = os.environ.get("AUTOFIT_LLAMA_BIN")
    if folder:
        fit = str(Path(folder) / "llama-fit-params")
        commands["llama-fit-params -fitp on -m MODEL"] = [fit, "-m", model, "-c", "8192", "-fitp", "on"]
    times: dict[str, list[float]] = {name: [] for name in commands}
    for i in range(n_runs + 1):
        for name, argv in commands.items():
            begin = time.perf_counter()
            done = subprocess.run(argv, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
            if done.returncode not in (0, 3):  # 3: the plan does not fit
                sys.exit(f"{name}: exit code {done.returncode}\n{done.stderr.decode(errors='replace')[-2000:]}")
            if i:  # the first round fills caches
                times[name].append(time.perf_counter() - begin)
    bare = median(times["python -c pass"])
    print(f"{'command':46} {'median':>9} {'best':>9} {'x bare':>7}   ({n_runs} runs)")
    for name, found in times.items():
        print(f"{name:46} {median(found) * 1000:6.0f} ms {min(found) * 1000:6.0f} ms {median(found) / bare:7.1f}")


if __name__ == "__main__":
    main()
