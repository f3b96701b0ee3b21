"""Make the tiny real model that autofit ships as `example:tiny`: llama, random weights, a byte tokenizer.

    python bench/make_tiny.py [PATH]     write it (autofit/_models/tiny.gguf)

It is complete: llama-server loads it and answers, in nonsense. The same bytes come out on every machine.
"""

from __future__ import annotations

import random
import struct
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import ggufs  # noqa: E402

N_EMBD, N_HEAD, N_HEAD_KV, N_FF, N_LAYER, N_CTX_TRAIN = 128, 2, 1, 256, 2, 4096
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # include/llama.h:llama_token_type
LETTERS = "▁etaoinshrdlcumwfgypbvk.,"


def tokens() -> tuple[list[str], list[int]]:
    """A SentencePiece-like vocabulary: three special tokens, every byte, a few letters."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS]
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(LETTERS)]
    while len(words) % 32:
        words.append(f"<unused{len(words)}>")
        kinds.append(CONTROL)
    return words, kinds


def model() -> ggufs.Gguf:
    words, kinds = tokens()
    return ggufs.llama(
        name="autofit tiny",
        n_layer=N_LAYER,
        n_embd=N_EMBD,
        n_head=N_HEAD,
        n_head_kv=N_HEAD_KV,
        n_ff=N_FF,
        n_vocab=len(words),
        n_ctx_train=N_CTX_TRAIN,
        weight_type="q8_0",
        output_type="q8_0",
        metadata={
            "general.file_type": 7,  # include/llama.h:LLAMA_FTYPE_MOSTLY_Q8_0
            "general.quantization_version": 2,
            "general.license": "apache-2.0",
            "general.description": "random weights, made by bench/make_tiny.py of autofit",
            "tokenizer.ggml.tokens": words,
            "tokenizer.ggml.scores": ggufs.Typed("f32", [float(-index) for index in range(len(words))]),
            "tokenizer.ggml.token_type": ggufs.Typed("i32", kinds),
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.add_bos_token": True,
        },
    )


def data(tensor: ggufs.Tensor, source: random.Random) -> bytes:
    """Norms of one; weights even between plus and minus the value that keeps a row's output near one."""
    if tensor.type == "f32":
        return struct.pack(f"<{tensor.ne[0]}f", *[1.0] * tensor.ne[0])
    scale = struct.pack("<e", 3**0.5 / tensor.ne[0] ** 0.5 / 127)
    n_blocks = ggufs.n_bytes(tensor) // 34  # q8_0: a half and 32 signed bytes
    return b"".join(scale + source.randbytes(32).replace(b"\x80", b"\x81") for _ in range(n_blocks))


def write(path: Path) -> Path:
    gguf, source = model(), random.Random(0)
    with gguf.write(path).open("r+b") as file:
        start = -(-len(gguf.header()) // gguf.alignment) * gguf.alignment
        for tensor, offset in zip(gguf.tensors, gguf.offsets(), strict=False):
            file.seek(start + offset)
            file.write(data(tensor, source))
    return path


if __name__ == "__main__":
    print(write(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "autofit" / "_models" / "tiny.gguf"))
