"""Damaged files: the readers answer with a model or with one of our errors, never with anything else.

Time is bounded by the limits of the readers (tested one by one elsewhere); here memory is measured.
"""

from __future__ import annotations

import json
import os
import random
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
from autofit.cli.inspect import lines, to_dict
from autofit.errors import AutofitError
from autofit.readers import gguf, read_model

from support import ggufs
from support import safetensor_files as sf
from support.ggufs import Typed

N_MUTANTS = 800
MAX_PEAK_BYTES = 32 << 20
EXTREMES = [0, 1, 0xFF, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 60, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]


def gguf_file() -> tuple[bytes, int]:
    """A header with a value of every type, and the size of its file."""
    keys = {f"k.{kind}": Typed(kind, 1) for kind in ggufs.KINDS} | {
        "k.list": [1, 2, 3],
        "k.words": ["a", "bc"],
    }
    model = ggufs.llama(n_layer=1, n_embd=256, n_ff=256, n_vocab=8, n_expert=2, metadata=keys)
    return model.header(), model.size_bytes()


def safetensors_file() -> tuple[bytes, int]:
    entries = sf.header(sf.llama(n_layer=1), notes={"format": "pt"})
    raw = json.dumps(entries).encode()
    end = max(entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__")
    return len(raw).to_bytes(8, "little") + raw, 8 + len(raw) + end


def big_endian_file() -> tuple[bytes, int]:
    model = ggufs.llama(n_layer=1, n_embd=256, n_ff=256, n_vocab=8, metadata={"k.words": ["a", "bc"] * 600})
    model.big_endian = True
    return model.header(), model.size_bytes()


FILES = pytest.mark.parametrize(
    ("name", "make"), [("m.gguf", gguf_file), ("big.gguf", big_endian_file), ("m.safetensors", safetensors_file)]
)


def survives(path: Path, data: bytes, size: int) -> bool:
    """Whether the file is a model, else refused in one printable line; `size` makes room for its data."""
    path.write_bytes(data)
    os.truncate(path, max(size, len(data)))
    try:
        model = read_model(path)
    except AutofitError as error:
        assert error.exit_code == 1
        assert (error.message + (error.hint or "")).isprintable()
        assert len(error.message) < 2000
        return False
    assert all("\x1b" not in line for line in lines(model, with_tensors=True))
    json.dumps(to_dict(model, with_tensors=True))
    end = path.stat().st_size + model.missing_bytes
    assert all(0 <= t.offset_bytes <= t.offset_bytes + t.n_bytes <= end for t in model.tensors)
    return True


def mutants(header: bytes, source: random.Random) -> Iterator[bytes]:
    """Bits flipped, bytes cut out, doubled, swapped or overwritten by extreme numbers."""
    while True:
        data = bytearray(header)
        for _ in range(source.choice((1, 1, 1, 2, 5))):
            at, length = source.randrange(len(data)), source.choice((1, 4, 8, 30))
            match source.randrange(5):
                case 0:
                    data[at] ^= 1 << source.randrange(8)
                case 1:
                    del data[at : at + length]
                case 2:
                    data[at:at] = data[at : at + length]
                case 3:
                    data[at : at + length] = source.randbytes(length)
                case _:
                    number = source.choice(EXTREMES)
                    data[at : at + 8] = struct.pack("<Q", number)
            if not data:
                break
        yield bytes(data)


@pytest.mark.slow
@FILES
def test_mutants(tmp_path: Path, name: str, make: Callable[[], tuple[bytes, int]]) -> None:
    header, size = make()
    some = islice(mutants(header, random.Random(name)), N_MUTANTS)
    outcomes = [survives(tmp_path / name, data, size) for data in some]
    assert 0 < sum(outcomes) < N_MUTANTS


@pytest.mark.slow
def test_every_number_of_a_gguf_header_made_extreme(tmp_path: Path) -> None:
    """Everywhere in the header an absurd length, count or dimension: memory stays small."""
    header, _ = gguf_file()
    path = tmp_path / "m.gguf"
    tracemalloc.start()
    try:
        for at in range(4, len(header) - 8, 3):
            number = EXTREMES[at % len(EXTREMES)]
            survives(path, header[:at] + struct.pack("<Q", number) + header[at + 8 :], 1 << 32)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MAX_PEAK_BYTES


@pytest.mark.slow
@FILES
def test_every_truncation(tmp_path: Path, name: str, make: Callable[[], tuple[bytes, int]]) -> None:
    header, _ = make()
    assert not any(survives(tmp_path / name, header[:n], 0) for n in range(0, len(header), 11))


def strings(source: random.Random, count: int) -> bytes:
    """Strings as an array of a header has them, nearly all of them short, and then something else."""
    lengths = [source.choice((47, 48, 300)) if source.random() < 0.002 else source.randrange(12) for _ in range(count)]
    data = bytearray(b"".join(struct.pack("<Q", n) + source.randbytes(n) for n in lengths))
    for _ in range(source.choice((0, 1, 3))):
        at = source.randrange(len(data))
        match source.randrange(4):
            case 0:
                data[at] ^= 1 << source.randrange(8)
            case 1:
                del data[at : at + source.choice((1, 7, 8, 9))]
            case 2:
                at = sum(8 + n for n in lengths[: source.randrange(count)])
                number = source.choice((*EXTREMES, len(data) - at - 8, (1 << 64) - 8, (1 << 64) - at))
                data[at : at + 8] = struct.pack("<Q", number % (1 << 64))
            case _:
                del data[at:]
    return bytes(data + source.randbytes(source.choice((0, 1, 8, 600))))


def test_vocabularies_are_stepped_over_as_one_string_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    source = random.Random(5)

    def outcome(data: bytes, count: int) -> object:
        parser = gguf._Parser(data, "m.gguf", len(data))
        try:
            parser.skip_strings(count, "k")
        except AutofitError as error:
            return str(error), error.hint
        return parser.pos

    for _ in range(150):
        count = source.choice((511, 512, 513, 1024, 1300))
        data = strings(source, count)
        count += source.choice((0, 0, 0, -1, 1))
        fast = outcome(data, count)
        with monkeypatch.context() as patch:
            patch.setattr(gguf, "_leap", lambda header, pos: None)
            assert fast == outcome(data, count)


def test_configurations_of_random_json(tmp_path: Path) -> None:
    source = random.Random(1)

    def value(depth: int) -> object:
        kinds = [None, True, -1, 0, 3, 1 << 70, 1.5, "x", "\x1b[2J", float("inf")]
        if depth and source.random() < 0.4:
            return [value(depth - 1) for _ in range(source.randrange(3))]
        return source.choice(kinds)

    extra = """text_config layer_types num_experts n_routed_experts kv_lora_rank sliding_window head_dim
        qk_rope_head_dim first_k_dense_replace mlp_only_layers decoder_sparse_step moe_layer_freq
        full_attention_interval layers_block_type num_experts_per_tok _name_or_path"""
    keys = [*sf.CONFIG, *extra.split()]
    path = tmp_path / "config.json"
    for _ in range(300):
        config = {**sf.CONFIG, **{key: value(2) for key in source.sample(keys, 6)}}
        survives(path, json.dumps(config).encode(), 0)
