"""Plans for one model on 1 to 1000 machines of 8 GPUs: time and memory of a whole process, by number of machines.

    python bench/nodes.py [CONFIG] [--most 1000] [--seconds 10] [--mib 500]

CONFIG is a folder with a model's config.json (default: DeepSeek-V3). A plan that computes longer than `--seconds`, or
takes more memory than `--mib`, ends the run with exit code 1.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "tests/data/vllm/configs/deepseek-v3"
COUNTS = (1, 2, 10, 100, 1000)
GOALS = ("speed", "throughput")


def measured(config: Path, count: int, goal: str) -> tuple[float, float, float]:
    """Seconds, those of them on a processor, and MiB at most, of a process that plans."""
    command = [sys.executable, "-m", "autofit", "vllm", str(config), "--on", f"{count}xgcp-a3-highgpu-8g"]
    start = time.perf_counter()
    with subprocess.Popen([*command, "--prefer", goal, "-q"], stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode in (0, 3), process.returncode
    return time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path, default=CONFIG)
    parser.add_argument("--most", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--mib", type=float, default=500.0)
    options = parser.parse_args()
    passed = True
    print("machines  goal          seconds  computing      MiB")
    for count in (count for count in COUNTS if count <= options.most):
        for goal in GOALS:
            seconds, computing, mib = measured(options.config, count, goal)
            passed = passed and computing <= options.seconds and mib <= options.mib
            print(f"{count:8}  {goal:<12}  {seconds:7.2f}  {computing:9.2f}  {mib:7.0f}", flush=True)
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
