"""How the house stands: lines, long functions and modules, circles, folders that import each other.

    python tools/house.py [--functions 60] [--modules 600]

Prints what is beyond the limits that CONTRIBUTING names, and the lines of each package. Lines of a function are counted
without its docstring.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "autofit": ROOT / "autofit",
    "autofit_llama": ROOT / "plugins" / "autofit_llama",
    "autofit_vllm": ROOT / "plugins" / "autofit_vllm",
}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--functions", type=int, default=60, metavar="LINES")
    parser.add_argument("--modules", type=int, default=600, metavar="LINES")
    options = parser.parse_args()
    for name, package in PACKAGES.items():
        files = sorted(package.rglob("*.py"))
        n_lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
        print(f"{name}: {len(files)} modules, {sum(n_lines.values())} lines")
        for path, n in n_lines.items():
            if n > options.modules:
                print(f"  {n:5} lines  {path.relative_to(ROOT)}")
        for path in files:
            for function, n in long_functions(path.read_text(encoding="utf-8"), options.functions):
                print(f"  {n:5} lines  {path.relative_to(ROOT)}:{function.lineno} {function.name}")


def long_functions(source: str, limit: int) -> Iterator[tuple[Function, int]]:
    """Functions with more than `limit` lines beside their docstring, with that number."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Function):
            n = body_lines(node)
            if n > limit:
                yield node, n


def body_lines(function: Function) -> int:
    """Lines from `def` to the end, without the docstring."""
    n = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        n -= (first.end_lineno or first.lineno) - first.lineno + 1
    return n


if __name__ == "__main__":
    main()
