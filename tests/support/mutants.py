"""Tiny models with changed keys, and what a real llama.cpp makes of each beside us."""

from __future__ import annotations

import copy
import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import autofit
from autofit.domain.dtypes import GGML_TYPES
from autofit.domain.machine import Machine
from autofit.domain.model import ModelSpec, TensorInfo
from autofit.domain.request import Request
from autofit.errors import AutofitError

from autofit_llama.backend import LlamaBackend
from autofit_llama.engine.versions import REFERENCE
from autofit_llama.loading.loader import OPTIONAL, SKIP, Loader, Shape
from autofit_llama.loading.tensors.index import TENSORS
from autofit_llama.model.architecture import architecture_of
from autofit_llama.model.hparams import HParams
from autofit_llama.model.load import draft_of, read_hparams
from autofit_llama.model.metadata_reader import KEYS as KEY_OF
from support import ROOT
from support.descriptors import build, description, names

sys.path.insert(0, str(ROOT / "tools"))
from follow.model_files import header, laid_out, padded_bytes, without_vocabulary

sys.path.pop(0)

BACKEND = LlamaBackend()
FREE_MIB = 4096
SECONDS = 60
MAX_TENSOR_BYTES = 1 << 33
LAUNCHES = (("-fa", "auto"), ("-fa", "off"), ("-np", "2"), ("-ctk", "q8_0", "-ctv", "q8_0"))
KINDS = ("model", "context", "compute")
BASE = """block_count embedding_length feed_forward_length attention.head_count attention.head_count_kv
    attention.key_length attention.value_length rope.dimension_count attention.key_length_swa attention.value_length_swa
    rope.dimension_count_swa expert_count expert_used_count expert_group_count expert_group_used_count
    nextn_predict_layers expert_feed_forward_length context_length pooling_type attention.causal"""
SMALL = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 24, 32, 33, 48, 64, 96, 100, 128, 192, 256, 512)
COMPUTED = ("on the CPU", "eps >= 0", "r <= 64", "crashes")  #: what is asserted when something is computed
TYPES = (0, 1, 1, 30, 8, 2)  #: F32, F16, BF16, Q8_0, Q4_0
RANGES = {0: 1 << 8, 2: 1 << 16, 4: 1 << 32, 10: 1 << 64}


class Found(NamedTuple):
    """`kind`: what each of the two did; `is_odd`: not the same."""

    kind: str
    is_odd: bool
    engine: str
    ours: str


def mutants(count: int, seed: int, name: str | None = None) -> Iterator[dict[str, Any]]:
    """Inputs: the model, the new values of its keys (`None`: it goes), whether tensors are refitted, the launch, and
    types that tensors get."""
    every = [each for each in names("tiny") if name is None or each == name]
    for number in range(count):
        rng = random.Random(f"mutants {seed} {number}")
        base = rng.choice(every)
        described = description("tiny", base)
        arch = next(value for key, _, value in described["kv"] if key == "general.architecture")
        own = [row for row in described["kv"] if row[0].startswith(f"{arch}.") and row[1] != "str"]
        asked = keys_of(arch)
        own = [row for row in own if (row[0].removeprefix(f"{arch}.") in asked) or rng.random() < 0.05]
        picked = rng.sample(own, min(len(own), rng.choice((1, 1, 1, 2, 2, 3))))
        keys = {key: None if rng.random() < 0.06 else _changed(kind, value, rng) for key, kind, value in picked}
        given = {
            "base": base,
            "keys": keys,
            "refit": rng.random() < 0.7,
            "words": ["-c", "512", *rng.choice(LAUNCHES)],
        }
        if rng.random() < 0.25:
            retyped = rng.sample(described["tensors"], rng.choice((1, 1, 3)))
            given["types"] = {row[0]: rng.choice(TYPES) for row in retyped}
        yield given


@cache
def keys_of(arch: str) -> frozenset[str]:
    """Keys that the engine reads of an architecture and shapes come of."""
    fields = (field.rstrip("?[]") for field in architecture_of(arch).hparams.fields.split())
    return frozenset(
        (*BASE.split(), *(KEY_OF[field][0] for field in fields if KEY_OF[field][1] not in ("float", "bool")))
    )


def _changed(kind: Any, value: Any, rng: random.Random) -> Any:
    if kind in (6, 12):
        return rng.choice((0.0, 1.0, -1.0, 0.5, 1e-6, 10000.0))
    if kind == 7:
        return not value
    if isinstance(kind, str):
        of = int(kind.partition(":")[2])
        if isinstance(value, dict):
            return [0] * rng.choice((0, 1, value["count"]))
        if rng.random() < 0.2:
            return value[:-1]
        return [_changed(of, each, rng) if rng.random() < 0.4 else each for each in value]
    near = (value - 1, value + 1, value * 2, value // 2, value * 3, value + 2, value // 4)
    number = rng.choice(near if rng.random() < 0.6 else SMALL)
    return min(max(number, -(1 << 31) if kind == 5 else 0), RANGES.get(kind, 1 << 31) - 1)


def described_by(given: dict[str, Any]) -> dict[str, Any]:
    """The description of the damaged file, without a vocabulary."""
    base = copy.deepcopy(description("tiny", given["base"]))
    kv = [[key, kind, given["keys"].get(key, value)] for key, kind, value in base["kv"]]
    base["kv"] = without_vocabulary([row for row in kv if row[2] is not None])
    base["tensors"] = [list(row) for row in base["tensors"]]
    if given["refit"]:
        _refit(base)
    for row in base["tensors"]:
        kind = given.get("types", {}).get(row[0], row[2])
        if row[1] and row[1][0] % GGML_TYPES[kind].block_elements == 0:
            row[2] = kind
    return base


def model_of(described: dict[str, Any]) -> ModelSpec:
    kv = [[key, kind, value] for key, kind, value in described["kv"]]
    tensors = laid_out(described["tensors"])
    size = sum(padded_bytes(dims, kind) for _, dims, kind, _ in tensors)
    return build([{"header_bytes": 0, "file_bytes": size, **described, "kv": kv, "tensors": tensors}], ["m.gguf"])


class _Fitting(Loader):
    """Notes the shape that each tensor is asked for in, instead of refusing another one."""

    shapes: dict[str, Shape]

    def tensor(self, name: str, ne: Shape, flags: int) -> TensorInfo | None:
        found = self.get_weight(name)
        if found is None:
            if flags & OPTIONAL:
                return None
            self.refuse(name)
        self.shapes[name] = ne
        return None if flags & SKIP else found._replace(shape=tuple(reversed(ne)))


def _refit(described: dict[str, Any]) -> None:
    """Give tensors the shapes that the loader asks for with these keys, as far as it comes."""
    try:
        model = model_of(described)
        fitting = _Fitting(model, draft_of(model))
        fitting.shapes = {}
        module, function = TENSORS[model.architecture]
        getattr(import_module(f"autofit_llama.loading.tensors.{module}"), function)(fitting)
    except (AutofitError, ArithmeticError, LookupError, TypeError, ValueError):
        return
    for row in described["tensors"]:
        ne = fitting.shapes.get(row[0])
        if ne is not None and all(isinstance(n, int) and n > 0 for n in ne) and math.prod(ne) < MAX_TENSOR_BYTES:
            row[1] = list(ne)
            if ne[0] % GGML_TYPES[row[2]].block_elements:
                row[2] = 0


def compare(given: dict[str, Any], path: Path, folder: Path, *, decode: bool = False) -> Found:
    """The file put to the engine's dry run and to `check`."""
    described = described_by(given)
    tensors = laid_out(described["tensors"])
    size = sum(padded_bytes(dims, kind) for _, dims, kind, _ in tensors)
    if size > MAX_TENSOR_BYTES * 4:
        return Found("too large to write", False, "", "")
    with path.open("wb") as file:
        file.write(_header(described, tensors))
        file.truncate(file.tell() + size)
    engine = ask(folder, path, given["words"])
    if decode and "devices" in engine:
        failed = ask(folder, path, given["words"], run=True)
        if "n_outputs_max" not in failed.get("error", "n_outputs_max"):  # of a model that reads whole texts
            engine = failed
    ours = check(described, given["words"], on_cpu=decode)
    if isinstance(ours, str) and any(word in ours for word in COMPUTED) and "error" not in engine:
        engine = ask(folder, path, given["words"], run=True)  # which a dry run does not come to
        if "n_outputs_max" in engine.get("error", ""):
            return Found("computed by nobody", False, engine["error"], ours)
        engine = engine if "error" in engine else {"devices": ()}
    if decode and "error" not in engine and not isinstance(ours, str):
        return Found("taken by both", False, "", "")
    texts = engine.get("error", "takes it"), ours if isinstance(ours, str) else "takes it"
    if "error" in engine or isinstance(ours, str):
        words = [("taken", "refused")[refused] for refused in ("error" in engine, isinstance(ours, str))]
        kind = f"{words[0]} by the engine, {words[1]} by us"
        return Found(kind, ("error" in engine) != isinstance(ours, str), *texts)
    real = [[pool[kind] for kind in KINDS] for pool in (*engine["devices"], engine["host_all"])]
    told = [[pool[f"{kind}_bytes"] for kind in KINDS] for pool in (*ours["devices"], ours["host"])]
    if real == told:
        return Found("taken by both, to the byte", False, *texts)
    return Found("taken by both, other bytes", True, str(real), str(told))


def _header(described: dict[str, Any], tensors: Sequence[Any]) -> bytes:
    kv = [row for row in described["kv"] if not row[0].startswith("tokenizer.ggml.model")]
    return header({**described, "kv": kv}, tensors)


def ask(folder: Path, path: Path, words: Sequence[str], *, run: bool = False) -> dict[str, Any]:
    """The engine's own figures, or `error`: its reason, or how it ended."""
    from follow.recording import parse

    environ = {**os.environ, "ORACLE_AS": "server", "GGML_NO_BACKTRACE": "1"}
    if run:
        environ["ORACLE_RUN"] = "1"
    else:
        environ |= {"LD_PRELOAD": str(folder / "libfakecuda.so"), "FAKECUDA_MEM": str(FREE_MIB)}
    try:
        done = subprocess.run(
            [str(folder / "oracle"), "-m", str(path), *words], env=environ, capture_output=True, text=True,
            errors="replace", timeout=SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {SECONDS} s"}
    said = parse(done.stdout, done.stderr, done.returncode)
    if run and "error" not in said and said.get("decoded") != 0:
        return {"error": f"decode: {said.get('decoded')} {said.get('log', '')[-300:]}"}
    return said


@cache
def machine(*, on_cpu: bool = False) -> Machine:
    return autofit.load_machine("cpu" if on_cpu else f"generic-cuda:{FREE_MIB}MiB", ram="64GiB")


def check(described: dict[str, Any], words: Sequence[str], *, on_cpu: bool = False) -> Any:
    """Our report, or why it is refused."""
    version = f"b{REFERENCE}"
    try:
        command = BACKEND.parse(["llama-server", *words], version=version)
        model, where = model_of(described), machine(on_cpu=on_cpu)
        return BACKEND.check(command, model, where, Request(engine_version=version)).engine_report
    except AutofitError as error:
        return str(error)


@cache
def hyperparameters(name: str) -> HParams:
    return read_hparams(model_of(described_by({"base": name, "keys": {}, "refit": False})))
