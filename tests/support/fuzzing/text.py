"""Text of all kinds: command lines, options, settings, profiles, recordings, YAML, names for shells."""

from __future__ import annotations

import json
import random
from functools import cache
from typing import Any

import autofit
from autofit.errors import UsageError
from autofit.hardware import machine_from_dict, machine_to_dict
from autofit.hardware.record import machine_from_json
from autofit.hardware.report import describe
from autofit.profiles import data_dir
from autofit.readers.documents import parse_json
from autofit.settings import layers
from autofit.settings.options import OPTIONS
from autofit.settings.request import to_request
from autofit.text import shell, yaml

from support import TINY
from support.fuzzing.gguf import sound
from support.fuzzing.headers import folder
from support.fuzzing.values import DIGITS, TEXTS, mutate_tree, wild

LLAMA_FLAGS = (
    "-c",
    "-ngl",
    "-ts",
    "-ot",
    "-b",
    "-ub",
    "-np",
    "-ctk",
    "-ctv",
    "-fa",
    "-sm",
    "-mg",
    "-dev",
    "-ncmoe",
    "--override-kv",
    "--rope-scale",
    "--lora-scaled",
    "-t",
    "--port",
    "-fit",
    "-ctxcp",
    "-cram",
    "--foo",
    "-md",
    "--spec-type",
    "-kvu",
    "--embedding",
    "-lm",
    "--pooling",
    "-m",
)
VLLM_FLAGS = (
    "--tensor-parallel-size",
    "-tp",
    "-pp",
    "--max-model-len",
    "--max-num-seqs",
    "--gpu-memory-utilization",
    "--max-num-batched-tokens",
    "--kv-cache-dtype",
    "--hf-overrides",
    "--speculative-config",
    "--quantization",
    "--compilation-config",
    "--cpu-offload-gb",
    "--block-size",
    "--swap-space",
    "--dtype",
    "--nnodes",
    "-dp",
    "--enable-lora",
    "--max-loras",
    "--limit-mm-per-prompt",
    "--num-gpu-blocks-override",
    "--foo",
)
WORDS = (
    *TEXTS,
    *DIGITS,
    "16",
    "99",
    "f16",
    "q8_0",
    "on",
    "off",
    "1,1",
    "1,,1",
    "64k",
    "max",
    "auto",
    "10%",
    "1GiB",
    "0.9",
    "fp8",
    "{",
    '{"x":NaN}',
    '{"x":1e999}',
    '{"num_hidden_layers": -1}',
    '{"a":' * 50,
    "re:(a+)+$",
    "blk\\.(\\d+)+x=CPU",
    "((((",
    ".*=CPU",
    "(a|a)*b=CPU",
    "[=CPU",
    "\\1=CPU",
    "x" * 5000,
    "a=int:9" + "9" * 300,
)
TOML_VALUES = ("[true]", '["x"]', "[1, 2]", "[[1]]", "[]", "{}", "-1", "0", "inf", "nan", "true", "1979-05-27", '""')
YAML_LINES = ("a: {b: [c", "&a *b", "!!python/object:x", "? x")
JSON_PARTS = ('"', "{", "[" * 3000, "]", ",", "\\u0000", "9" * 5000, "NaN", "\\ud800", "\x00")
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 512, "intermediate_size": 1024,
    "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 1000,
    "max_position_embeddings": 4096, "torch_dtype": "bfloat16",
}  # fmt: skip


@cache
def machine() -> Any:
    return autofit.load_machine("rtx-3090", "rtx-3090", ram="64GiB")


@cache
def tiny() -> Any:
    return autofit.read_model(TINY)


@cache
def small() -> Any:
    from support.fuzzing.vllm import model_of

    return model_of(CONFIG)


def make_command(rng: random.Random) -> Any:
    engine = rng.choice(("llama", "vllm"))
    flags = LLAMA_FLAGS if engine == "llama" else VLLM_FLAGS
    words: list[str] = []
    for _ in range(rng.randrange(1, 5)):
        words.append(rng.choice(flags) if rng.random() < 0.9 else rng.choice(WORDS))
        if rng.random() < 0.85:
            words.append(rng.choice(WORDS))
    return {"engine": engine, "words": words, "check": rng.random() < 0.5}


def run_command(given: Any) -> None:
    engine, words = given["engine"], given["words"]
    model = tiny() if engine == "llama" else small()
    if given["check"]:
        start = ["llama-server", "-m", "m.gguf"] if engine == "llama" else ["vllm", "serve", "m"]
        sound(autofit.check([*start, *words], machine(), model=model))
    else:
        sound(autofit.plan(engine, model, machine(), engine_args=words, settings=None))


def make_options(rng: random.Random) -> Any:
    chosen = rng.sample([option.name for option in OPTIONS], rng.randrange(1, 5))
    table = {name: wild(rng) if rng.random() < 0.3 else rng.choice(WORDS) for name in chosen}
    if rng.random() < 0.2:
        table[rng.choice(("llama", "vllm", "x", "engine_args", "engine-args"))] = wild(rng, 2)
    return {"table": table, "way": rng.choice(("given", "table", "environ"))}


def run_options(given: Any) -> None:
    table = given["table"]
    if given["way"] == "given":
        stated = layers.from_given(table)
    elif given["way"] == "table":
        stated = layers.from_table(table, "autofit.toml", "llama")
    else:
        stated = layers.from_environment({f"AUTOFIT_{key.upper()}": str(value) for key, value in table.items()})
    to_request(layers.merge([("user", stated)]))


def make_toml(rng: random.Random) -> Any:
    profiles = sorted((data_dir() / "hardware").glob("*.toml"))
    lines = rng.choice(profiles).read_text("utf-8").split("\n")
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(lines))
        key, equals, _ = lines[at].partition("=")
        change = rng.randrange(5)
        if change in (0, 4) and equals:
            lines[at] = f"{key}= {rng.choice((*DIGITS, *TOML_VALUES))}"
        elif change == 1:
            lines.insert(at, rng.choice(lines))
        elif change == 2:
            lines[at] = ""
        else:
            lines[at] = lines[at][: rng.randrange(len(lines[at]) + 1)] + rng.choice(TEXTS)
    return "\n".join(lines)


def run_toml(given: Any) -> None:
    path = folder() / "x.toml"
    path.write_text(given, "utf-8", errors="surrogatepass")
    found = autofit.load_machine(str(path), ram="64GiB")
    assert describe(found).replace("\n", "").isprintable(), "a control character"
    sound(autofit.plan("llama", tiny(), found, settings=None))


def make_recording(rng: random.Random) -> Any:
    return mutate_tree(machine_to_dict(machine()), rng, rng.choice((1, 1, 2, 4)))


def run_recording(given: Any) -> None:
    text = json.dumps(given)
    found = machine_from_json(text, "x.json")
    assert describe(found).replace("\n", "").isprintable(), "a control character"
    assert machine_from_dict(machine_to_dict(found)) == found
    sound(autofit.plan("llama", tiny(), found, settings=None))


def make_yaml(rng: random.Random) -> Any:
    lines = ["model: x", "tensor-parallel-size: 2", "compilation-config:", "  level: 3", "list:", "  - a", "  - 'b'"]
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(lines))
        deeper = " " * rng.randrange(40) + lines[at]
        longer = lines[at] + rng.choice(TEXTS)
        lists = "- " * rng.randrange(1, 60) + "x"
        lines[at] = rng.choice((deeper, longer, lists, f"k: {rng.choice(DIGITS)}", *YAML_LINES))
    return "\n".join(lines)


def run_yaml(given: Any) -> None:
    yaml.documents(given)
    json.dumps(yaml.load(given), default=str)


def make_json(rng: random.Random) -> Any:
    text = json.dumps(wild(rng, 3))
    for _ in range(rng.randrange(3)):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(JSON_PARTS) + text[at:]
    return text


def run_json(given: Any) -> None:
    parse_json(given.encode("utf-8", "surrogatepass"), "x.json")


def make_word(rng: random.Random) -> Any:
    some = "ab '\"\\$`!%-=~#&|;<>(){}[]*?\n\t\x1b\x7f\x9b\u202e\u200d\udcff\udc80é🙂‘"
    chars = (rng.choice(some) if rng.random() < 0.9 else chr(rng.randrange(1, 0xD800)) for _ in range(30))
    return "".join(chars)[: rng.randrange(30)]


def run_word(given: Any) -> None:
    """The three grammars give one printable line, or refuse; that of POSIX is read back."""
    for form in (shell.word, shell.fish_word, shell.powershell_word):
        try:
            written = form(given)
        except UsageError:
            continue
        assert all(c.isprintable() or "\udca0" <= c <= "\udcff" for c in written), "a control character"
        if form is shell.word:
            assert _posix(written) == given.encode("utf-8", "surrogateescape"), "not read back"


def _posix(written: str) -> bytes:
    """What a POSIX shell makes of one word in the two forms that are written."""
    import re
    import shlex

    if match := re.fullmatch(r"\"\$\(printf '([^'%!`$\"]*)'\)\"", written):
        body = match[1].encode("utf-8", "surrogateescape")
        return re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), body)
    (word,) = shlex.split(written)
    return word.encode("utf-8", "surrogateescape")
