"""What every build of llama.cpp is asked: the rows recorded of the newest build, and a design for each model.

A case is a model's description, the program whose defaults apply, its arguments, and free MiB of each device.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import NamedTuple

from support.descriptors import description, names
from support.llama_versions import build_of, files, rows_of

SERVER, FIT = "llama-server", "llama-fit-params"
ONE, TWO, THREE = (24576,), (24576, 24576), (24576, 12288, 24576)


class Case(NamedTuple):
    file: str  #: below the folder of models: part/NAME.gguf
    arch: str
    program: str
    args: tuple[str, ...]
    device_memory_mib: tuple[int, ...]

    @property
    def id(self) -> str:
        told = [self.file, self.program, list(self.args), list(self.device_memory_mib)]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]

    @property
    def part(self) -> str:
        return self.file.partition("/")[0]

    @property
    def name(self) -> str:
        return self.file.partition("/")[2].removesuffix(".gguf")


def cases() -> list[Case]:
    """All cases, each once, in an order that stays."""
    found = dict.fromkeys((*recorded(), *designed()))
    return list(found)


def recorded() -> Iterator[Case]:
    """The cases of the newest build that has rows."""
    newest = max(files(), key=build_of)
    for row in rows_of(newest):
        yield Case(row["file"], row["arch"], row["program"], tuple(row["args"]), tuple(row["device_memory_mib"]))


def designed() -> Iterator[Case]:
    for part in ("models", "tiny", "later"):
        for i, name in enumerate(names(part)):
            described = description(part, name)
            values = {key: value for key, _, value in described["kv"]}
            arch = str(values["general.architecture"])
            n_blocks = int(values.get(f"{arch}.block_count", 1))
            has_experts = any("_exps." in tensor[0] for tensor in described["tensors"])
            design = full_size if part == "models" else tiny
            for program, words, memory in design(i, n_blocks, has_experts):
                yield Case(f"{part}/{name}.gguf", arch, program, tuple(words.split()), memory)


Situation = tuple[str, str, tuple[int, ...]]


def full_size(i: int, n_blocks: int, has_experts: bool) -> Iterator[Situation]:
    """Some situations for the `i`-th model of real size; what varies goes round with `i`."""
    half, few = n_blocks // 2, max(1, n_blocks // 5)
    cache_type = ("q8_0", "q4_0", "bf16", "q5_1")[i % 4]
    if has_experts:  # a cache of those in main memory, which older builds do not know
        yield SERVER, f"-c 8192 -ngl 99 -ncmoe {half} --moe-cache-mib {(2048, 4096, 1000)[i % 3]}", ONE
        yield FIT, f"-c 8192 -ngl 99 -cmoe --moe-cache-mib {(3000, 8000)[i % 2]} -ts 3,1", (24576, 12288)
    yield SERVER, f"-c {(16384, 32768, 8192)[i % 3]} -ngl 99 -ub {(512, 1024, 2048)[i % 3]}", ONE
    yield FIT, f"-c 8192 -ngl {half} -fa {('on', 'off', 'auto')[i % 3]}", ONE
    yield SERVER, f"-c 16384 -ngl 99 -np {(2, 3, 4)[i % 3]} -fa {('auto', 'on')[i % 2]}", (TWO, THREE)[i % 2]
    yield FIT, f"-c 32768 -ngl 99 -fa on -ctk {cache_type} -ctv {('f16', cache_type)[i % 2]}", (ONE, TWO)[i % 2]
    if has_experts:
        yield SERVER, f"-c 8192 -ngl 99 -ncmoe {(half, few, n_blocks)[i % 3]} -fa on", (ONE, TWO)[i % 2]
    else:
        yield SERVER, f"-c 8192 -ngl 99 -ot blk\\.[0-{few}]\\.ffn=CPU -ts 3,1 -nkvo", TWO


def tiny(i: int, n_blocks: int, has_experts: bool) -> Iterator[Situation]:
    """One situation for the `i`-th tiny model of an architecture."""
    words = f"-c {(4096, 2048, 512)[i % 3]} -ngl {(99, 99, 1)[i % 3]} -fa {('on', 'auto', 'off')[i % 3]}"
    yield (FIT, SERVER)[i % 2], words, (ONE, TWO)[i // 2 % 2]
