"""What `autofit run` and a shim add to the start of an engine, beside a plain start.

    python bench/launch.py [MODEL.gguf] [--runs 15]

The engine is a program that ends at once, so that what is left is ours. Prints medians of one interleaved run, and what
each adds to a plain start, and the processor time of each. Without MODEL, the header of Llama 3.1 8B (as for
`bench/startup.py`). The plan that both make
of the same command is shown as well: `run` and shims are that plan, and what is around it. Where drivers or tools take
long to answer, detection decides: `AUTOFIT_DETECT_SECONDS`.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from startup import write_llama

ENGINE = '#!/bin/sh\n[ "$1" = --version ] && echo "version: 11311 (abc)"\nexit 0\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model = str(options.model or write_llama(place))
        environ = set_up(place)
        commands = commands_of(place, model)
        show(measure(commands, environ, options.runs), options.runs)


def set_up(place: Path) -> dict[str, str]:
    """An engine that ends at once, shims before it, and a runtime directory of its own."""
    engine = place / "bin" / "llama-server"
    engine.parent.mkdir()
    engine.write_text(ENGINE, encoding="utf-8")
    engine.chmod(0o755)
    (place / "runtime").mkdir(mode=0o700)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environ |= {
        "PATH": f"{engine.parent}:{environ['PATH']}",
        "XDG_RUNTIME_DIR": str(place / "runtime"),
        "XDG_CACHE_HOME": str(place / "cache"),
    }
    subprocess.run(
        [sys.executable, "-P", "-m", "autofit", "shims", str(place / "shims")], env=environ, check=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return environ


def commands_of(place: Path, model: str) -> dict[str, list[str]]:
    autofit = [sys.executable, "-P", "-m", "autofit"]
    engine = str(place / "bin" / "llama-server")
    shim, python = str(place / "shims" / "llama-server"), str(place / "shims" / "python3")
    flags = ["-m", model, "-c", "8192"]
    return {
        "llama-server": [engine, *flags],
        "autofit llama -- FLAGS": [*autofit, "llama", "-q", "--", *flags],
        "autofit run -- llama-server": [*autofit, "run", "-q", "--", "llama-server", *flags],
        "autofit run --watch -- llama-server": [*autofit, "run", "-q", "--watch", "--", "llama-server", *flags],
        "shim llama-server": [shim, *flags],
        "shim llama-server --version": [shim, "--version"],
        "shim, AUTOFIT_SHIMS=0": ["env", "AUTOFIT_SHIMS=0", shim, *flags],
        "python3 -c pass": ["python3", "-c", "pass"],
        "shim python3 -c pass": [python, "-c", "pass"],
    }


Times = dict[str, list[tuple[float, float]]]  #: seconds on the clock, and of the processor, of each run


def measure(commands: dict[str, list[str]], environ: dict[str, str], n_runs: int) -> Times:
    times: Times = {name: [] for name in commands}
    for i in range(n_runs + 1):
        for name, argv in commands.items():
            before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            done = subprocess.run(argv, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
            took, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
            if done.returncode not in (0, 3):
                sys.exit(f"{name}: exit code {done.returncode}\n{done.stderr.decode(errors='replace')[-2000:]}")
            spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            if i:  # the first round fills caches
                times[name].append((took, spent))
    return times


def show(times: Times, n_runs: int) -> None:
    print(f"{'command':38} {'median':>9} {'best':>9} {'adds':>9} {'processor':>11}   ({n_runs} runs)")
    middle = {name: median(took for took, _ in found) for name, found in times.items()}
    for name, found in times.items():
        plain = "python3 -c pass" if "python3" in name else "llama-server"
        best, spent = min(took for took, _ in found), median(spent for _, spent in found)
        figures = (middle[name], best, middle[name] - middle[plain])
        print(f"{name:38} " + " ".join(f"{each * 1000:6.0f} ms" for each in figures) + f" {spent * 1000:8.0f} ms")


if __name__ == "__main__":
    main()
