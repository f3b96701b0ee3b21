"""The bytes of headers: GGUF and safetensors files damaged anywhere."""

from __future__ import annotations

import base64
import json
import os
import random
import struct
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from autofit.cli.inspect import lines, to_dict
from autofit.readers import read_model

from support import ggufs
from support import safetensor_files as sf

EXTREMES = (0, 1, 0xFF, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 60, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
NAMES = ("m.gguf", "big.gguf", "m.safetensors")


@cache
def whole(name: str) -> tuple[bytes, int]:
    """A sound header, and the size of its file."""
    if name == "m.safetensors":
        raw = json.dumps(sf.header(sf.llama(n_layer=1), notes={"format": "pt"})).encode()
        return len(raw).to_bytes(8, "little") + raw, 1 << 24
    keys = {"k.list": [1, 2, 3], "k.words": ["a", "bc"] * 300, "k.text": "x"}
    model = ggufs.llama(n_layer=1, n_embd=256, n_ff=256, n_vocab=8, n_expert=2, metadata=keys)
    model.big_endian = name == "big.gguf"
    return model.header(), model.size_bytes()


def make(rng: random.Random) -> Any:
    name = rng.choice(NAMES)
    data = bytearray(whole(name)[0])
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at, length = rng.randrange(len(data) or 1), rng.choice((1, 4, 8, 30))
        change = rng.randrange(5)
        if change == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif change == 1:
            del data[at : at + length]
        elif change == 2:
            data[at:at] = data[at : at + length]
        elif change == 3:
            data[at : at + length] = rng.randbytes(length)
        else:
            data[at : at + 8] = struct.pack("<Q", rng.choice(EXTREMES))
    return {"name": name, "data": base64.b64encode(bytes(data)).decode()}


@cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="autofit-fuzz-"))


def run(given: Any) -> None:
    data = base64.b64decode(given["data"])
    path = folder() / given["name"]
    path.write_bytes(data)
    os.truncate(path, max(len(data), whole(given["name"])[1]))
    try:
        model = read_model(path)
        assert all("\x1b" not in line for line in lines(model, with_tensors=True)), "a control character"
        json.dumps(to_dict(model, with_tensors=True), allow_nan=False)
    finally:
        path.unlink()
