"""GGUF files, as descriptions of their headers: keys and tensors that no longer agree with each other."""

from __future__ import annotations

import json
import random
from functools import cache
from typing import Any

import autofit
from autofit.domain.dtypes import GGML_TYPES
from autofit.domain.machine import Machine
from autofit.domain.model import ModelFile, ModelSpec, TensorInfo
from autofit.errors import CorruptModelError
from autofit.readers.gguf import to_spec

from support.descriptors import _value as _read
from support.descriptors import description, names
from support.fuzzing.values import FLOATS, INTS, TEXTS, near

_RANGE = {0: (0, 255), 1: (-128, 127), 2: (0, 65535), 3: (-32768, 32767), 4: (0, (1 << 32) - 1),
          5: (-(1 << 31), (1 << 31) - 1), 10: (0, (1 << 64) - 1), 11: (-(1 << 63), (1 << 63) - 1)}  # fmt: skip
NAMES = ("blk..x", "blk.0", "blk.-1.attn_q.weight", "blk.99999.ffn_up.weight", "", "output", ".weight", "blk.0..weight",
         "token_embd.weight.x", "blk.0.attn_q.weight\x1b", "v.blk.0.x", "blk.1000000000000.x.weight")  # fmt: skip
MACHINES = (("rtx-3090", "64GiB"), ("generic-cuda:1GiB", "2GiB"), ("cpu", "64GiB"), ("rx-7900-xtx", "32GiB"))
FLAGS: tuple[tuple[str, ...], ...] = (
    (), (), (), ("-ngl", "1"), ("-c", "100000"), ("-ub", "2048"), ("-ctk", "q8_0", "-ctv", "q8_0", "-fa", "on"),
    ("-np", "4"), ("-sm", "row"), ("-fa", "off"), ("--embedding",), ("-kvu",),
)  # fmt: skip


@cache
def bases() -> tuple[tuple[str, str], ...]:
    return tuple((part, name) for part in ("archs", "tiny") for name in names(part))


def make(rng: random.Random) -> Any:
    part, name = rng.choice(bases())
    made = mutated(json.loads(json.dumps(description(part, name))), rng)
    return {"base": [part, name], "changes": made, "on": rng.randrange(len(MACHINES)), "flags": rng.choice(FLAGS)}


def mutated(base: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Changes to a description: by key its type and value, by tensor its name, dims and type, or `None`: it goes."""
    kv: dict[str, Any] = {}
    tensors: dict[str, Any] = {}
    own = [row for row in base["kv"] if row[0].partition(".")[0] not in ("tokenizer", "split")]
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        if rng.random() < 0.75:
            key, kind, value = rng.choice(own)
            if rng.random() < 0.12:
                kind, value = rng.choice(("str", 4, 6, 7, "array:5", "array:6", "array:7")), 1
            kv[key] = None if rng.random() < 0.1 else _value(kind, value, rng)
        else:
            name, dims, kind, _ = rng.choice(base["tensors"])
            tensors[name] = None if rng.random() < 0.2 else _tensor(name, dims, kind, rng)
    return {"kv": kv, "tensors": tensors}


def _value(kind: int | str, value: Any, rng: random.Random) -> list[Any]:
    """A value of the same GGUF type."""
    if kind == "str":
        return [kind, rng.choice(TEXTS)]
    if isinstance(kind, str):
        element = kind.removeprefix("array:")
        if element == "str":
            return [kind, {"count": rng.choice((0, 1, 100, 200_000)), "bytes": 0}]
        of = int(element)
        if isinstance(value, list) and rng.random() < 0.5:
            return [kind, [_value(of, item, rng)[1] if rng.random() < 0.3 else item for item in value]]
        return [kind, [_value(of, 1, rng)[1] for _ in range(rng.choice((0, 1, 2, 5, 100)))]]
    if kind in (6, 12):
        return [kind, rng.choice(FLOATS)]
    if kind == 7:
        return [kind, rng.random() < 0.5]
    low, high = _RANGE[kind]
    changed = near(rng, value) if rng.random() < 0.4 and isinstance(value, int) else rng.choice(INTS)
    return [kind, min(max(int(changed), low), high)]


def _tensor(name: str, dims: list[int], kind: int, rng: random.Random) -> list[Any]:
    change = rng.randrange(5)
    if change == 0:
        return [rng.choice(NAMES), dims, kind]
    if change == 1:
        return [name, [], kind]
    if change == 2:
        return [name, dims, rng.choice(list(GGML_TYPES))]
    shaped = [max(1, near(rng, dim)) if rng.random() < 0.6 else dim for dim in dims]
    return [name, rng.choice((shaped, dims[::-1], dims[:1], [*dims, 2][:4])), kind]


def model_of(given: Any) -> ModelSpec:
    """The model that a reader makes of such a file; its tensors follow each other, as the engine wants them."""
    part, name = given["base"]
    base = description(part, name)
    changes = given["changes"]
    kv = [[key, *changes["kv"].get(key, (kind, value))] for key, kind, value in base["kv"] if changes["kv"].get(key, 1)]
    rows = [changes["tensors"].get(row[0], row[:3]) for row in base["tensors"] if changes["tensors"].get(row[0], 1)]
    tensors, at = [], 0
    for tensor, dims, kind in rows:
        _, block, block_bytes = GGML_TYPES[kind]
        if not tensor or (dims[:1] or [1])[0] % block or len(tensor) > 63:
            continue  # which the reader refuses
        n_bytes = block_bytes * ((dims[:1] or [1])[0] // block)
        for dim in dims[1:]:
            n_bytes *= dim
        if n_bytes >> 50:
            continue
        tensors.append([tensor, dims, kind, n_bytes, at])
        at += -(-n_bytes // 32) * 32
    if len({row[0] for row in tensors}) != len(tensors):
        raise CorruptModelError(name, "a tensor is there twice")
    metadata = {key: _read(kind, value) for key, kind, value in kv}
    infos = [
        TensorInfo(tensor, GGML_TYPES[kind].name, tuple(dims[::-1]), n_bytes, 0, offset)
        for tensor, dims, kind, n_bytes, offset in tensors
    ]
    return to_spec(metadata, infos, [ModelFile(path=f"{name}.gguf", size_bytes=at)])


@cache
def machine(number: int) -> Machine:
    on, ram = MACHINES[number]
    return autofit.load_machine(on, ram=ram)


def run(given: Any) -> None:
    model = model_of(given)
    where = machine(given["on"])
    plan = autofit.plan("llama", model, where, engine_args=given["flags"], settings=None)
    sound(plan)
    sound(autofit.check(["llama-server", "-m", "m.gguf", *given["flags"]], where, model=model))


def sound(plan: Any) -> None:
    """What holds for every plan."""
    from autofit.render import shell, text
    from autofit.render.explain import explain
    from autofit.render.json import render

    json.loads(render(plan), parse_constant=_refuse)
    lines = [shell.render(plan), *text.summary(plan), *explain(plan, 80)]
    assert all(part.isprintable() for line in lines for part in line.split("\n")), "a control character"
    for pool in plan.memory.pools:
        assert pool.used_bytes >= 0, f"negative bytes: {pool.id}"


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")
