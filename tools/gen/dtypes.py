"""Write ggml's type table into autofit/domain/dtypes.py, from the `gguf` package.

python tools/gen/dtypes.py           rewrite the file
python tools/gen/dtypes.py --check   exit 1 if it is not current
"""

from __future__ import annotations

import sys
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES

TARGET = Path(__file__).resolve().parents[2] / "autofit" / "domain" / "dtypes.py"
BEGIN, END = "# --- generated\n", "# --- end of generated\n"


def engine_name(name: str) -> str:
    """The package's name as llama.cpp spells it: lower case but for the K of the k-quants."""
    lower = name.lower()
    return lower[:-1] + "K" if lower.endswith("_k") else lower


def render() -> str:
    """The generated lines."""
    rows = [
        f'    {kind.value}: GgmlType("{engine_name(kind.name)}", {elements}, {n_bytes}),\n'
        for kind, (elements, n_bytes) in sorted(GGML_QUANT_SIZES.items())
    ]
    return "PACKAGE_TYPES: dict[int, GgmlType] = {\n" + "".join(rows) + "}\n"


def updated(text: str) -> str:
    """`text` with the generated lines replaced."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return head + BEGIN + render() + END + tail


def main() -> int:
    text = TARGET.read_text(encoding="utf-8")
    new = updated(text)
    if "--check" in sys.argv[1:]:
        return int(new != text)
    TARGET.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
