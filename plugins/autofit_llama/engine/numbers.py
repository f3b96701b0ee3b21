"""How the engine reads numbers: the C++ standard library's conversions, which take what begins like a number."""

from __future__ import annotations

import re


def integer(text: str) -> int:
    """`std::stoi`: what begins like a number counts as far as it goes.

    Raises:
        ValueError: no number, or outside 32 bits.
    """
    found = re.match(r"[ \t\n\v\f\r]*([+-]?[0-9]{1,40})", text)
    if not found:
        raise ValueError("not a number")
    number = int(found[1])
    if not -(1 << 31) <= number < 1 << 31:
        raise ValueError("outside the range of a 32-bit number")
    return number


def real(text: str) -> float:
    """`std::stof`, but for hexadecimal numbers.

    Raises:
        ValueError: no number, or outside single precision.
    """
    found = re.match(
        r"[ \t\n\v\f\r]*([+-]?(?:[0-9]{1,400}\.?[0-9]{0,400}|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,6})?)", text
    )
    if not found:
        word = re.match(r"\s*([+-]?(?:nan|inf))", text, re.IGNORECASE)
        if not word:
            raise ValueError("not a number")
        return float(word[1])
    number = float(found[1])
    if abs(number) > MAX_SINGLE or (number != 0 and abs(number) < 1.1754943508222875e-38):
        raise ValueError("outside the range of a single-precision number")
    return number


def unsigned(text: str) -> int:
    """`std::stoul`, which also takes negative numbers."""
    found = re.match(r"[ \t\n\v\f\r]*([+-]?[0-9]{1,40})", text)
    if not found:
        raise ValueError("not a number")
    number = int(found[1])
    if abs(number) >= 1 << 64:
        raise ValueError("outside the range of a 64-bit number")
    return number


MAX_SINGLE = 3.4028235e38  #: the greatest number of single precision
