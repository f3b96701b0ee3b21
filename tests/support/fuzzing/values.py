"""Values that stand where others should: zero, negative, huge, of another type, missing."""

from __future__ import annotations

import random
from typing import Any

INTS = (0, 1, 2, 3, 5, 7, 64, 127, 255, 1 << 15, 1 << 20, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32,
        1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -1, -2, -8, -(1 << 31), -(1 << 40), -(1 << 63))  # fmt: skip
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-30, 1e30, 1e308, float("inf"), float("-inf"), float("nan"))
TEXTS = ("", "x", "none", "\x1b[2J", "\u202e", "0", "-1", "true", "a" * 300, "\x00", "é", "1e9", "{}", "[]", "NaN")
DIGITS = ("9" * 20, "9" * 400, "-" + "9" * 400, "0" * 400 + "1", "1." + "3" * 400, "1e400", "0x10", "1_000", "٣", "+5")


def wild(rng: random.Random, depth: int = 1) -> Any:
    """Any JSON value, most often a number."""
    kind = rng.randrange(12)
    if kind < 6:
        return rng.choice(INTS)
    if kind < 8:
        return rng.choice(FLOATS)
    if kind == 8:
        return rng.choice(TEXTS)
    if kind == 9:
        return rng.choice((None, True, False))
    if not depth:
        return rng.choice(([], {}))
    count = rng.randrange(4)
    items = [wild(rng, depth - 1) for _ in range(count)]
    return items if kind == 10 else {rng.choice(TEXTS) or "k": item for item in items}


def near(rng: random.Random, value: Any) -> Any:
    """A value of the same type, not far from `value`: off by one, doubled, halved, of the other sign."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((value + 1, value - 1, value * 2, value // 2, -value, value * 3, value + 7, value << 20))
    if isinstance(value, float):
        return rng.choice((value * 2, -value, value / 3))
    if isinstance(value, str):
        return rng.choice((value + "x", value[1:], value.upper(), value[::-1]))
    if isinstance(value, list):
        return rng.choice(
            (value[1:], value * 2, value[:1], [near(rng, item) if rng.random() < 0.3 else item for item in value])
        )
    return wild(rng)


def mutate_tree(tree: Any, rng: random.Random, count: int) -> Any:
    """A copy of a JSON document with `count` changes at any depth: replaced, removed, renamed, nested, repeated."""
    import copy

    tree = copy.deepcopy(tree)
    for _ in range(count):
        here = tree
        while True:
            keys = list(here) if isinstance(here, dict) else list(range(len(here)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(here[key], (dict, list)) and here[key] and rng.random() < 0.7:
                here = here[key]
                continue
            change = rng.randrange(10)
            if change == 0:
                del here[key]
            elif change < 5:
                here[key] = near(rng, here[key])
            elif change == 5:
                here[key] = [here[key]] * rng.choice((1, 3, 50))
            else:
                here[key] = wild(rng)
            break
    return tree
