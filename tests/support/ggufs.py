"""GGUF files for tests: any header, byte by byte; models with their real sizes as sparse files; broken ones.

The writer is our own and knows nothing of the reader: little or big endian, any type, and with `Raw` any lie.
Files take the room of their header; the data is a hole of the right length.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

KINDS = {
    "u8": (0, "B"), "i8": (1, "b"), "u16": (2, "H"), "i16": (3, "h"), "u32": (4, "I"), "i32": (5, "i"),
    "f32": (6, "f"), "bool": (7, "?"), "u64": (10, "Q"), "i64": (11, "q"), "f64": (12, "d"),
}  # fmt: skip
BY_ID = {number: name for name, (number, _) in KINDS.items()}
#: name -> ggml type id, elements and bytes of a block; not taken from the table that it tests
TYPES = {
    "f32": (0, 1, 4), "f16": (1, 1, 2), "q4_0": (2, 32, 18), "q4_1": (3, 32, 20), "q5_0": (6, 32, 22),
    "q5_1": (7, 32, 24), "q8_0": (8, 32, 34), "q2_K": (10, 256, 84),
    "q3_K": (11, 256, 110), "q4_K": (12, 256, 144), "q5_K": (13, 256, 176), "q6_K": (14, 256, 210),
    "iq4_nl": (20, 32, 18), "iq4_xs": (23, 256, 136), "bf16": (30, 1, 2), "mxfp4": (39, 32, 17),
}  # fmt: skip


class Typed(NamedTuple):
    """A scalar, or a list, of one GGUF type: `Typed("u16", 3)`."""

    kind: str
    value: Any


class Raw(NamedTuple):
    """A metadata value as bytes, its type included: for what no honest writer writes."""

    data: bytes


class Strings(NamedTuple):
    """An array of strings that starts with `given` and goes on with synthetic ones up to `count`."""

    count: int
    given: tuple[str, ...] = ()


class Tensor(NamedTuple):
    name: str
    ne: tuple[int, ...]  #: innermost first, as ggml
    type: str = "f32"


@dataclass(kw_only=True)
class Gguf:
    """A GGUF file to be written."""

    metadata: Mapping[str, Any] = field(default_factory=dict)
    tensors: Sequence[Tensor] = ()
    version: int = 3
    big_endian: bool = False
    alignment: int = 32  #: written as general.alignment if it is not 32

    def header(self) -> bytes:
        """Magic, metadata and tensor table, without the padding that follows."""
        u32, u64, metadata = self._pack("I"), self._pack("Q"), dict(self.metadata)
        if self.alignment != 32:
            metadata["general.alignment"] = Typed("u32", self.alignment)
        out = [b"GGUF", u32(self.version), u64(len(self.tensors)), u64(len(metadata))]
        for key, value in metadata.items():
            out += [self.string(key), self.value(value)]
        for tensor, offset in zip(self.tensors, self.offsets(), strict=False):
            out += [self.string(tensor.name), u32(len(tensor.ne)), *map(u64, tensor.ne)]
            out += [u32(TYPES[tensor.type][0]), u64(offset)]
        return b"".join(out)

    def offsets(self) -> list[int]:
        """Where each tensor's data starts, and where the data ends; from the start of the data."""
        offsets = [0]
        for tensor in self.tensors:
            offsets.append(offsets[-1] + -(-n_bytes(tensor) // self.alignment) * self.alignment)
        return offsets

    def size_bytes(self) -> int:
        start = -(-len(self.header()) // self.alignment) * self.alignment
        return start + self.offsets()[-1] if self.tensors else len(self.header())

    def write(self, path: Path) -> Path:
        path.write_bytes(self.header())
        os.truncate(path, self.size_bytes())
        return path

    def string(self, text: str | bytes) -> bytes:
        data = text.encode() if isinstance(text, str) else text
        return self._pack("Q")(len(data)) + data

    def value(self, value: Any) -> bytes:
        u32, u64 = self._pack("I"), self._pack("Q")
        match value:
            case Raw(data):
                return data
            case Typed(kind, list() | tuple() as values):
                number, code = KINDS[kind]
                return u32(9) + u32(number) + u64(len(values)) + self._order(f"{len(values)}{code}", *values)
            case Typed(kind, scalar):
                return u32(KINDS[kind][0]) + self._pack(KINDS[kind][1])(scalar)
            case Strings(count, given):
                return u32(9) + u32(8) + u64(count) + b"".join(map(self.string, words(count, given)))
            case bool():
                return self.value(Typed("bool", value))
            case int():
                return self.value(Typed("u32", value))
            case float():
                return self.value(Typed("f32", value))
            case str():
                return u32(8) + self.string(value)
            case [str(), *_]:
                return u32(9) + u32(8) + u64(len(value)) + b"".join(map(self.string, value))
            case [bool(), *_]:
                return self.value(Typed("bool", value))
            case [float(), *_]:
                return self.value(Typed("f32", value))
            case _:
                return self.value(Typed("i32", value))

    def _order(self, code: str, *values: Any) -> bytes:
        return struct.pack((">" if self.big_endian else "<") + code, *values)

    def _pack(self, code: str) -> Any:
        return struct.Struct((">" if self.big_endian else "<") + code).pack


def n_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's data."""
    _, block_elements, block_bytes = TYPES[tensor.type]
    total = (tensor.ne[0] if tensor.ne else 1) // block_elements * block_bytes
    for dim in tensor.ne[1:]:
        total *= dim
    return total


def words(count: int, given: Iterable[str] = ()) -> list[str]:
    """`count` different words, of the lengths that those of a vocabulary have."""
    out = list(given)
    return out + [f"{'abcdefgh'[: i % 8]}{i:x}" for i in range(len(out), count)]


def llama(
    *,
    n_layer: int = 2,
    n_embd: int = 512,
    n_head: int = 8,
    n_head_kv: int | None = None,
    n_ff: int = 1024,
    n_vocab: int = 1000,
    n_ctx_train: int = 4096,
    n_expert: int = 0,
    n_expert_used: int = 2,
    weight_type: str = "q4_K",
    output_type: str = "q6_K",
    tied: bool = False,
    architecture: str = "llama",
    name: str = "tiny",
    metadata: Mapping[str, Any] | None = None,
) -> Gguf:
    """A model of the llama family (dense or mixture of experts) as convert_hf_to_gguf would describe it."""
    n_head_kv = n_head if n_head_kv is None else n_head_kv
    head_dim = n_embd // n_head
    keys: dict[str, Any] = {
        "general.architecture": architecture,
        "general.type": "model",
        "general.name": name,
        f"{architecture}.block_count": n_layer,
        f"{architecture}.context_length": n_ctx_train,
        f"{architecture}.embedding_length": n_embd,
        f"{architecture}.feed_forward_length": n_ff,
        f"{architecture}.attention.head_count": n_head,
        f"{architecture}.attention.head_count_kv": n_head_kv,
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{architecture}.rope.freq_base": 10000.0,
        f"{architecture}.rope.dimension_count": head_dim,
        f"{architecture}.vocab_size": n_vocab,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": Strings(n_vocab, ("<unk>", "<s>", "</s>")),
        "tokenizer.ggml.scores": Typed("f32", [0.0] * n_vocab),
        "tokenizer.ggml.token_type": Typed("i32", [1] * n_vocab),
    }
    if n_expert:
        keys |= {f"{architecture}.expert_count": n_expert, f"{architecture}.expert_used_count": n_expert_used}
    tensors = [
        Tensor("token_embd.weight", (n_embd, n_vocab), weight_type),
        Tensor("output_norm.weight", (n_embd,)),
    ]
    if not tied:
        tensors.append(Tensor("output.weight", (n_embd, n_vocab), output_type))
    n_kv = head_dim * n_head_kv
    for i in range(n_layer):
        tensors += [
            Tensor(f"blk.{i}.attn_norm.weight", (n_embd,)),
            Tensor(f"blk.{i}.attn_q.weight", (n_embd, n_embd), weight_type),
            Tensor(f"blk.{i}.attn_k.weight", (n_embd, n_kv), weight_type),
            Tensor(f"blk.{i}.attn_v.weight", (n_embd, n_kv), weight_type),
            Tensor(f"blk.{i}.attn_output.weight", (n_embd, n_embd), weight_type),
            Tensor(f"blk.{i}.ffn_norm.weight", (n_embd,)),
        ]
        if n_expert:
            tensors += [
                Tensor(f"blk.{i}.ffn_gate_inp.weight", (n_embd, n_expert)),
                Tensor(f"blk.{i}.ffn_gate_exps.weight", (n_embd, n_ff, n_expert), weight_type),
                Tensor(f"blk.{i}.ffn_down_exps.weight", (n_ff, n_embd, n_expert), weight_type),
                Tensor(f"blk.{i}.ffn_up_exps.weight", (n_embd, n_ff, n_expert), weight_type),
            ]
        else:
            tensors += [
                Tensor(f"blk.{i}.ffn_gate.weight", (n_embd, n_ff), weight_type),
                Tensor(f"blk.{i}.ffn_down.weight", (n_ff, n_embd), weight_type),
                Tensor(f"blk.{i}.ffn_up.weight", (n_embd, n_ff), weight_type),
            ]
    return Gguf(metadata=keys | dict(metadata or {}), tensors=tensors)


def write_llama(path: Path, **dims: Any) -> Path:
    """Write `llama(**dims)` as a sparse file."""
    return llama(**dims).write(path)


LETTERS = "▁etaoinshrdlcumwfgypbvk.,"
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # include/llama.h:llama_token_type


def byte_vocabulary(n_vocab: int) -> dict[str, Any]:
    """Metadata of a SentencePiece-like tokenizer that takes any text: every byte, a few letters, fillers."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS]
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(LETTERS)]
    for index in range(len(tokens), n_vocab):
        tokens.append(f"<unused{index}>")
        kinds.append(CONTROL)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": Typed("f32", [float(-index) for index in range(n_vocab)]),
        "tokenizer.ggml.token_type": Typed("i32", kinds),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
    }


def write_with_weights(path: Path, model: Gguf, seed: int = 0) -> Path:
    """A file that engines can really run: norms of one, the rest random (f32 norms and q8_0 only).

    Weights are even between plus and minus the value that keeps a row's output near one.
    """
    source = random.Random(seed)
    with model.write(path).open("r+b") as file:
        start = -(-len(model.header()) // model.alignment) * model.alignment
        for tensor, offset in zip(model.tensors, model.offsets(), strict=False):
            file.seek(start + offset)
            if tensor.type == "f32":
                count = n_bytes(tensor) // 4
                file.write(struct.pack(f"<{count}f", *[1.0] * count))
                continue
            assert tensor.type == "q8_0", tensor
            scale = struct.pack("<e", 3**0.5 / tensor.ne[0] ** 0.5 / 127)
            quants = source.randbytes(n_bytes(tensor) // 34 * 32).replace(b"\x80", b"\x81")
            file.write(b"".join(scale + quants[i : i + 32] for i in range(0, len(quants), 32)))
    return path


def split(model: Gguf, n_shards: int, *, first_has_tensors: bool = True) -> list[Gguf]:
    """The shards that llama-gguf-split would make: all metadata in the first, tensors dealt out in order."""
    tensors = list(model.tensors)
    n_with = n_shards if first_has_tensors else n_shards - 1
    size = -(-len(tensors) // n_with)
    parts = [tensors[i * size : (i + 1) * size] for i in range(n_with)]
    if not first_has_tensors:
        parts.insert(0, [])
    shards = []
    for number, part in enumerate(parts):
        keys = {
            "split.no": Typed("u16", number),
            "split.count": Typed("u16", n_shards),
            "split.tensors.count": Typed("i32", len(tensors)),
        }
        shards.append(
            Gguf(
                metadata={**(model.metadata if number == 0 else {}), **keys},
                tensors=part,
                version=model.version,
                big_endian=model.big_endian,
                alignment=model.alignment,
            )
        )
    return shards


def write_split(directory: Path, stem: str, model: Gguf, n_shards: int, **options: Any) -> list[Path]:
    shards = split(model, n_shards, **options)
    return [
        shard.write(directory / f"{stem}-{number:05d}-of-{n_shards:05d}.gguf") for number, shard in enumerate(shards, 1)
    ]


def from_description(description: Mapping[str, Any]) -> Gguf:
    """The file that a description (autofit/_models, tests/data/llama) stands for; its words are synthetic."""
    names = {number: name for name, (number, _, _) in TYPES.items()}
    metadata: dict[str, Any] = {}
    for key, kind, value in description["kv"]:
        if kind == "str":
            metadata[key] = value
        elif kind == "array:str":
            metadata[key] = Strings(value["count"])
        elif isinstance(kind, str):
            values = [1] * value["count"] if isinstance(value, dict) else value
            metadata[key] = Typed(BY_ID[int(kind.split(":")[1])], values)
        else:
            metadata[key] = Typed(BY_ID[kind], value)
    tensors = [Tensor(name, tuple(ne), names[type_id]) for name, ne, type_id, _ in description["tensors"]]
    return Gguf(metadata=metadata, tensors=tensors)
