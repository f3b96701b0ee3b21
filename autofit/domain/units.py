"""Sizes and token counts, as people write them and as we print them.

`GiB` is 2**30 and `GB` is 10**9, on input and on output. A bare number is bytes, and refused where nobody can have
meant so few.
"""

from __future__ import annotations

import re

from autofit.domain.patterns import lazy_pattern
from autofit.errors import UsageError

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

_UNITS = {
    "": 1, "b": 1,
    "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9, "t": 10**12, "tb": 10**12,
    "kib": KIB, "mib": MIB, "gib": GIB, "tib": 1 << 40,
}  # fmt: skip
_SIZE = lazy_pattern(r"\s*([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([A-Za-z]*)\s*", re.ASCII)
MAX_BYTES = 1 << 60
MAX_TOKENS = (1 << 31) - 1  #: engines count positions in 32 bits with a sign
LEAST_BARE_BYTES = MIB


def parse_size(text: str) -> int:
    """Bytes of a size such as `12GiB`, `8.5 GB` or `1073741824`.

    Raises:
        UsageError: not a number, an unknown unit, beyond 2**60 bytes, or a bare number below `LEAST_BARE_BYTES`.
    """
    match = _SIZE.fullmatch(text) if len(text) <= 40 else None
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise UsageError(f"not a size: {text[:40]!r}", hint="write a number and a unit, such as 24GiB or 24576MiB")
    whole, _, part = match[1].partition(".")
    n_bytes = int(whole or "0") * unit + (int(part) * unit // 10 ** len(part) if part else 0)
    if not match[2] and (0 < n_bytes < LEAST_BARE_BYTES or part.strip("0")):
        meant = "GiB" if n_bytes < 4096 else "MiB"
        raise UsageError(f"{match[1]} what? A size needs a unit", hint=f"write {match[1]}{meant}")
    if n_bytes > MAX_BYTES:
        raise UsageError(f"{text} is more than {MAX_BYTES >> 30:,} GiB, the largest size that is accepted")
    return n_bytes


def parse_tokens(text: str) -> int:
    """Tokens of a count such as `8192`, `64k` or `1M`; `k` is 1024, as in the names of models.

    Raises:
        UsageError: not a positive count, or beyond 2**31 - 1.
    """
    match = re.fullmatch(r"\s*([0-9]{1,40})\s*([kKmM]?)\s*", text, re.ASCII)
    n_tokens = int(match[1]) * {"": 1, "k": 1024, "m": 1 << 20}[match[2].lower()] if match else 0
    if n_tokens > MAX_TOKENS:
        raise UsageError(
            f"{text.strip()[:40]} is more than {MAX_TOKENS:,} tokens, the most that are accepted",
            hint="write a smaller number, such as 131072 or 128k",
        )
    if n_tokens <= 0:
        raise UsageError(f"not a token count: {text[:40]!r}", hint="write a positive number, such as 32768 or 32k")
    return n_tokens


def format_bytes(n_bytes: int) -> str:
    """`n_bytes` for people, in the largest binary unit that keeps it above 1, with three or four digits."""
    sign, n = ("-", -n_bytes) if n_bytes < 0 else ("", n_bytes)
    for name, unit in (("TiB", 1 << 40), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if n >= unit:
            value = n / unit
            return f"{sign}{value:.{0 if value >= 1000 else 1 if value >= 100 else 2}f} {name}"
    return f"{sign}{n} B"


def format_gib(n_bytes: int) -> str:
    """The number of GiB, with as many digits as it takes to see it: for figures that are compared with each other."""
    n = abs(n_bytes) / GIB
    digits = 2 if n >= 0.0095 or not n else 3
    return f"{n_bytes / GIB:.{digits}f}" if n >= 0.0005 or not n else "<0.001"


def round_up(n: int, multiple: int) -> int:
    """`n` rounded up to a multiple of `multiple`."""
    return -(-n // multiple) * multiple


READ_TOKENS_PER_S = 5.0  #: about as fast as people read
SAME_RATE = 1.02  #: rates nearer to each other than this are the same to a reader


def format_rate(per_s: float) -> str:
    """Tokens/s as figures that can be told apart: `1,463`, `37`, `9.8`, `0.04`."""
    return f"{per_s:,.0f}" if per_s >= 20 else f"{per_s:.1f}" if per_s >= 0.1 else f"{per_s:.1g}"
