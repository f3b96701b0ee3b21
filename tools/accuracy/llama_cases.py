"""Commands for llama.cpp that were once answered wrongly, and variants of each: what came back then, what is right.

    python tools/accuracy/llama_cases.py [NAME...]

Models are the full-size ones in tests/data/llama/models, as files of their header and a hole. A case is right when its
exit code is as said and all patterns are found in what is printed, and none of those that must not be. `+` in a name
marks a variant: another model, machine or number of the same kind. Exit code 1: a case is not right.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from autofit.cli.main import main as autofit

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from support import ggufs
from support.descriptors import description


class Case(NamedTuple):
    """`words` behind `autofit`; `says` and `never` are regular expressions over stdout and stderr."""

    name: str
    words: str
    before: str
    right: str
    says: tuple[str, ...]
    never: tuple[str, ...] = ()
    exit_code: int = 0
    is_quick: bool = False  #: run by the tests


DENSE, MOE, OSS = "qwen3-32b-Q4_K_M.gguf", "qwen3-30b-a3b-Q4_K_M.gguf", "gpt-oss-120b-MXFP4_MOE.gguf"
SMALL, LARGE, EMBED = "llama-3.1-8b-Q4_K_M.gguf", "qwen2.5-72b-IQ4_XS.gguf", "bge-large-en-v1.5-F16.gguf"
MIXTRAL, HUGE = "mixtral-8x7b-Q4_K_M.gguf", "llama-3.1-405b-Q3_K_M.gguf"
CARD = "--on rtx-3060 --ram 32GiB"
MAC = "--on m3-max --ram 36GB"

CASES = (
    Case("L1", f"llama {DENSE} --on rtx-3090 --ram 32GiB -c 32k", "-ngl 57, f16: 9.8 tokens/s",
         "all layers on the card with q8_0, said with its price", ("-ngl 65 -ctk q8_0", "--kv f16 gives")),
    Case("L1+", f"llama {LARGE} --on rtx-3090 --on rtx-3090 --ram 64GiB -c 32k", "f16 with layers in RAM",
         "q8_0, all layers on the cards", ("-ngl 81 .*-ctk q8_0",)),
    Case("L1+ rule", f"llama {DENSE} --on rtx-3060 --ram 32GB", "-ngl 31: 1.5 tokens/s with the context full",
         "attention stays on the card, f16 as q8_0 is less than 1.3 times as fast, which is said",
         ("-ngl 65 -ncffn", "f16 KV cache keeps all precision"), ("-ctk",), is_quick=True),
    Case("L2", f"llama {DENSE} --on rtx-3090 --ram 32GiB -c 32k --preset coding-agent", "-ngl 56, f16",
         "as L1, with a micro-batch", ("-ngl 65 -ctk q8_0 .*-ub 1024",)),
    Case("L3", f"llama {OSS} --on gb10", "-c 32768", "131072", ("-c 131072 -ngl 37",)),
    Case("L3+", f"llama {DENSE} {MAC}", "-ngl 62 -c 40960: prompts at a third of the rate",
         "all layers on the device", ("-c 3[0-9]{4} -ngl 65",), ("-ngl 6[0-4]", "run on the CPU"), is_quick=True),
    Case("L3+ limit", f"llama {OSS} --on strix-halo --ram 128GB", "-ngl 36", "all layers on the device",
         ("-ngl 37 ",), ("CPU",)),
    Case("L4", f"llama {OSS} --on rtx-3090 --ram 128GiB", "-c 7680", "a long context for a tenth of the rate",
         ("-c 1[0-9]{5} .*-ncmoe .*-ub 4096",)),
    Case("L5", f"llama {MOE} {CARD}", "-c 4096", "16384 or more", ("-c 1[6-9][0-9]{3} -ngl 49 -ncmoe",)),
    Case("L5+", f"llama {MIXTRAL} --on rtx-3060 --ram 64GB", "-ngl 32: a layer on the host",
         "all attention on the card, experts in RAM", ("-ngl 33 -ncmoe",)),
    Case("L5+ slots", f"llama {MIXTRAL} --on rtx-4090 --ram 64GiB --parallel 4", "-ngl 22: 6.2 tokens/s when full",
         "all attention on the card with q8_0", ("-ngl 33 -ncmoe .*-ctk q8_0",)),
    Case("L6", f"llama {MOE} --on strix-halo --ram 128GB", "-c 8448 -ngl 36", "one machine, one answer",
         ("-c 40960 -ngl 49",)),
    Case("L6+", f"llama {MOE} --on strix-halo-128gb", "-c 32768 -ngl 37", "the same", ("-c 40960 -ngl 49",)),
    Case("L7", f"llama {SMALL} --on rtx-3060 --on rtx-3060 --ram 64GB --max-context 16k", "reason only in --explain",
         "said", (r"GPU1 .* left out: GPU0 alone is faster",), is_quick=True),
    Case("L7+", f"llama {LARGE} --on rtx-4090 --on rtx-4090 --ram 64GiB", "-ot no_such_tensor=CPU, nothing said",
         "micro-batches overlap on both cards: prompts are nearly twice as fast", ("-ngl 81 -ts",),
         ("no_such_tensor",)),
    Case("L8", f"llama {MOE} {CARD} --preset coding-agent", "the command of long-context",
         "a larger micro-batch", ("-ub (?:2048|4096)",)),
    Case("L8+", f"llama {OSS} --on a100-80gb --ram 256GB --preset coding-agent", "the command of long-context",
         "keeps past prompts", ("-cram 1[0-9]{4}", "tokens of past prompts")),
    Case("L9", f"llama {EMBED} {CARD}", "no --embedding", "the flag", ("--embedding",), is_quick=True),
    Case("L9+", f"llama {EMBED} --on rtx-3060 --ram 4GB", "8 GiB of RAM for a prompt cache",
         "no prompt cache: nothing is completed", (r"MiB used of 3\.50 GiB",), ("transient", "-cram"), is_quick=True),
    Case("L11", f"llama {HUGE} {CARD}", "a rate of a plan that does not fit", "none", ("^false$", "does not fit"),
         ("tokens/s",), 3, is_quick=True),
    Case("L12", "llama mixtral-8x22b-Q4_K_M.gguf --on a100-80gb --ram 256GB -c max", "-c 35840",
         "65536, with its price", ("-c 65536", "with -c 8192")),
    Case("L12+", f"llama {DENSE} --on rtx-3090 --ram 64GB -c max", "f16: 2.5 tokens/s with the context full",
         "q8_0, attention on the card: 12", ("-c 40960 -ngl 65 -ncffn .*-ctk q8_0", "--kv f16 gives")),
    Case("C1", f"check {CARD} -- llama-server -m {SMALL}", "exit 3", "starts; --fit says which context",
         ("own --fit starts it with -c",), is_quick=True),
    Case("C2", f"check {CARD} -- llama-server -m {SMALL} --ctx-sise 4096", "exit 0", "refused",
         ("did you mean --ctx-size",), (), 2, is_quick=True),
    Case("C2+", f"check {CARD} -- llama-server -m {SMALL} --jinga -c 8192", "exit 0", "refused",
         ("did you mean --jinja",), (), 2, is_quick=True),
    Case("C3", "check --on 2x3060 --ram 64GiB -- llama-server "
         f"-m {MOE} -ngl 99 -fit off -c 65536 -np 1 -fa on -ub 2048 -b 2048 -ctk q8_0 -ctv q8_0", "exit 3",
         "falls back and starts", ("falls back to running without it",)),
    Case("C7", f"check --on m4-pro --ram 24GB -- llama-server -m {SMALL} -c 8192 -cram 0", "16,384 MiB",
         "18,186 MiB, named", (r"17\.76 GiB that it may take",), is_quick=True),
    Case("C8", f"check --on m4-pro --ram 16GB -- llama-server -m {SMALL} -c 32768", "exit 3",
         "starts; runs short when the prompt cache is full", ("starts; .* when the prompt cache is full",)),
    Case("C8+", f"check --on apple-m4-24gb -- llama-server -m {MOE} -c 4096", "exit 3",
         "starts, and names the size of the prompt cache that fits", ("starts; .* when the prompt cache is full",
         r"--cache-ram 1\d{3} fits"), is_quick=True),
    Case("C9", f"check --on rx-7900-xtx@vulkan --ram 64GiB -- llama-server -m {MOE} -c 16384 -ub 2048", "transient 0",
         "what experts grow by at the first prompt", (r"GPU0 .* transient 832\.0 MiB",), is_quick=True),
    Case("C9+", f"check --on rtx-5090@vulkan --ram 64GiB -- llama-server -m {SMALL} -c 8192 -ub 2048", "transient 0",
         "34 to 202 MiB with dense models", (r"GPU0 .* transient (?:[3-9]\d|1\d\d)(?:\.\d+)? MiB",), is_quick=True),
    Case("C10", f"check --on rtx-pro-6000 --ram 64GiB -- llama-server -m {SMALL} -c 8192", "a context of 622 MiB",
         "703 to 712 measured", (r"runtime 7(?:0[3-9]|1[0-2])\.\d MiB",), is_quick=True),
    Case("C10+", f"check --on a40 --ram 64GiB -- llama-server -m {SMALL} -c 8192", "264 MiB", "297 measured",
         (r"runtime 297\.0 MiB",)),
    Case("C10+ 4090", f"check --on 2x4090 --ram 64GiB -- llama-server -m {LARGE} -c 4096 -ngl 99", "416 MiB",
         "451 to 456 measured on each", (r"4090 .* runtime 45[1-6]\.\d MiB",)),
    Case("C12", f"llama {SMALL} {CARD} --port 8080", "unrecognized arguments", "where engine flags go",
         ("flags of the engine go after --",), (), 2, is_quick=True),
    Case("W2", f"llama {SMALL} --on rtx-3060 --ram 32", "32 bytes", "refused", ("32 what", "write 32GiB"), (), 2,
         is_quick=True),
    Case("W2+", f"llama {SMALL} --on a100-80gb:40", "40 bytes", "refused", ("write 40GiB",), (), 2, is_quick=True),
    Case("W3", f"llama {SMALL} --on rtx-2070-max-q", "no suggestion", "the laptop's card", ("rtx-2070-laptop",), (), 2,
         is_quick=True),
    Case("W4", f"llama {SMALL} --on gtx-1660", "did you mean gtx-1060-6gb", "names that begin so",
         ("did you mean gtx-1660-super or gtx-1660-ti",), (), 2, is_quick=True),
    Case("W5", f"llama {SMALL} {MAC} --max-context 16k", "all of RAM is free", "the system's share taken off, and said",
         (r"used of 32\.00 GiB free", "4.00 GiB of RAM are left to macOS"), is_quick=True),
    Case("W5+", f"llama {SMALL} --on strix-halo --ram 128GB --max-context 16k", "all of RAM is free", "the same",
         (r"GiB of RAM are left to the operating system",), is_quick=True),
    Case("W8", f"llama {HUGE} {CARD} -q", "silence", "one line, and a command that fails", ("^false$", "does not fit"),
         (), 3),
    Case("S2", f"llama {HUGE} --on rtx-3090 --ram 256GiB", "0.2 tokens/s, and no word",
         "too slow to read along: what is faster", ("half as fast as people read", "`autofit advise MODEL`"),
         ("~0.1 tokens/s with 8192 tokens in it, ~0.1 with",)),
    Case("S2+", f"llama {MIXTRAL} --on rtx-3060-12gb --ram 64GB --max-context 16k", "-",
         "fast enough to be read: no word", ("decode ~",), ("as people read",), is_quick=True),
    Case("S1", f"llama {DENSE} --on rtx-3090 --ram 64GB --min-tps 100", "~35, below 100, and no more",
         "the figure, and what may help", (r"~34\.\d tokens/s", "no shorter context is fast enough"), (), 3),
    Case("S1+", f"llama {DENSE} --on rtx-3090 --ram 64GB --min-tps 20", "-", "the context is cut for it",
         ("-c 1[0-9]{4}",)),
)  # fmt: skip


def answer(case: Case) -> tuple[int, str]:
    """Exit code, and what is printed to both streams; model files lie in the working directory."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            code = autofit(shlex.split(case.words))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    return code or 0, printed.getvalue()


def faults(case: Case, code: int, text: str) -> list[str]:
    """What of the case is not as it should be."""
    found = [] if code == case.exit_code else [f"exit code {code}, not {case.exit_code}"]
    found += [f"not said: {said}" for said in case.says if not re.search(said, text, re.MULTILINE)]
    return found + [f"said: {said}" for said in case.never if re.search(said, text, re.MULTILINE)]


def write_models(directory: Path, cases: tuple[Case, ...] = CASES) -> None:
    for name in sorted({word for case in cases for word in case.words.split() if word.endswith(".gguf")}):
        ggufs.from_description(description("models", name.removesuffix(".gguf"))).write(directory / name)


@contextlib.contextmanager
def models() -> Iterator[None]:
    """The models of all cases in a working directory of their own."""
    with tempfile.TemporaryDirectory() as scratch:
        write_models(Path(scratch))
        before = Path.cwd()
        os.chdir(scratch)
        try:
            yield
        finally:
            os.chdir(before)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="the beginning of a case's name")
    options = parser.parse_args()
    n_wrong = 0
    with models():
        for case in CASES:
            if options.names and not any(case.name.startswith(name) for name in options.names):
                continue
            begun = time.perf_counter()
            code, text = answer(case)
            wrong = faults(case, code, text)
            n_wrong += bool(wrong)
            print(f"{case.name}  autofit {case.words}\n    then   {case.before}\n    right  {case.right}")
            print(f"    now    {text.splitlines()[0] if text else ''}  ({time.perf_counter() - begun:.2f} s)")
            for fault in wrong:
                print(f"    WRONG  {fault}")
    print(f"{n_wrong} wrong")
    return int(n_wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
