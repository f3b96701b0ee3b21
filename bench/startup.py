"""Cold starts: what autofit takes as a process, beside a bare interpreter, the engine's own dry run, another autofit.

    python bench/startup.py [MODEL.gguf] [--runs 15] [--checkpoints DIRECTORY] [--beside PYTHON]

Prints medians and ratios of one interleaved run. `--beside` names the interpreter of another installation of autofit:
the same commands with both in turn, and the ratio of the medians of their processor's seconds, which other processes
move less than the clock. `AUTOFIT_LLAMA_BIN` names the folder of the engine's programs. Without MODEL, the header of
Llama 3.1 8B with as many tokens as its vocabulary has; it and the checkpoints of the vLLM rows (8B, and DeepSeek-V3
with its 91,991 tensors) are headers alone, made in DIRECTORY or in a temporary one.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
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


BARE = "python -c pass"
Times = dict[str, list[tuple[float, float]]]  #: of each run, in seconds: by the clock, and the processor's


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--checkpoints", type=Path)
    parser.add_argument("--beside", metavar="PYTHON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = (options.checkpoints or Path(folder)).absolute()
        small, large = (str(write_checkpoint(name, place / name)) for name in ("llama3-8b", "deepseek-v3"))
        model = str((options.model or write_llama(place)).absolute())
        ours = commands(sys.executable, model, small, large)
        if options.beside:
            other = commands(options.beside, model, small, large)
            show_beside(measured({**ours, **{f"beside {name}": argv for name, argv in other.items()}}, options.runs))
            return
        show(measured({**ours, **dry_run(model)}, options.runs))


def write_llama(directory: Path) -> Path:
    """A sparse GGUF file of Llama 3.1 8B: the recorded header, synthetic tokens, no weights."""
    description = json.loads(gzip.decompress(HEADER.read_bytes()))
    return ggufs.from_description(description).write(directory / "llama-3.1-8b.gguf")


def commands(python: str, model: str, small: str, large: str) -> dict[str, list[str]]:
    autofit = [python, "-m", "autofit"]
    hardware = ["--on", "rtx-3090", "--ram", "64GiB", "-q"]
    return {
        BARE: [python, "-c", "pass"],
        "autofit --help": [*autofit, "--help"],
        "autofit llama MODEL --on rtx-3090": [*autofit, "llama", model, *hardware],
        "autofit check -- llama-fit-params -m MODEL": [
            *autofit, "check", *hardware, "--", "llama-fit-params", "-m", model, "-c", "8192", "-ngl", "99",
        ],
        "autofit vllm 8B --on rtx-4090": [*autofit, "vllm", small, "--on", "rtx-4090", "--ram", "64GiB", "-q"],
        "autofit vllm DeepSeek-V3 --on 8 x h200": [
            *autofit, "vllm", large, *["--on", "h200"] * 8, "--ram", "2TiB", "-q",
        ],
    }  # fmt: skip


def dry_run(model: str) -> dict[str, list[str]]:
    """The engine's own, where it is built."""
    folder = os.environ.get("AUTOFIT_LLAMA_BIN")
    if not folder:
        return {}
    fit = str(Path(folder) / "llama-fit-params")
    return {"llama-fit-params -fitp on -m MODEL": [fit, "-m", model, "-c", "8192", "-fitp", "on"]}


def measured(argvs: dict[str, list[str]], n_runs: int) -> Times:
    """Each command in turn, `n_runs` times, away from the sources; the first round fills caches and is not counted."""
    environ = dict(os.environ)
    for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"):
        environ.pop(name, None)
    times: Times = {name: [] for name in argvs}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(n_runs + 1):
            for name, argv in argvs.items():
                taken = timed(name, argv, environ, folder)
                if i:
                    times[name].append(taken)
    return times


def timed(name: str, argv: list[str], environ: dict[str, str], cwd: str) -> tuple[float, float]:
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(argv, env=environ, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 3):  # 3: the plan does not fit
        sys.exit(f"{name}: exit code {done.returncode}\n{done.stderr.decode(errors='replace')[-2000:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def show(times: Times) -> None:
    walls = {name: [wall for wall, _ in found] for name, found in times.items()}
    bare = median(walls[BARE])
    print(f"{'command':46} {'median':>9} {'best':>9} {'x bare':>7}   ({len(walls[BARE])} runs)")
    for name, found in walls.items():
        print(f"{name:46} {median(found) * 1000:6.0f} ms {min(found) * 1000:6.0f} ms {median(found) / bare:7.1f}")


def show_beside(times: Times) -> None:
    cpus = {name: median(cpu for _, cpu in found) for name, found in times.items()}
    print(f"{'processor, median':46} {'this':>9} {'beside':>9} {'ratio':>7}   ({len(times[BARE])} runs)")
    for name, ours in cpus.items():
        if f"beside {name}" in cpus:
            other = cpus[f"beside {name}"]
            print(f"{name:46} {ours * 1000:6.1f} ms {other * 1000:6.1f} ms {ours / other:7.2f}")


if __name__ == "__main__":
    main()
