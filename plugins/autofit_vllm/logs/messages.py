"""vLLM's messages about memory, from 0.8 to 0.33.0, each with the function that prints it.

Sources are of 0.33.0 where no other release is named.
"""

from __future__ import annotations

import re

from autofit.domain.memory import Kind
from autofit.logs.commands import words_of
from autofit.logs.messages import Message
from autofit.logs.notes import Notes
from autofit.logs.numbers import bytes_of, rounding_of, whole

from autofit_vllm.logs.arguments import note_arguments
from autofit_vllm.logs.failures import FAILURES
from autofit_vllm.logs.ranks import place_of

_GIB = r"(?P<n>-?[\d.]{1,16}) ?(?P<unit>GiB|GB|MiB)"


def _part(notes: Notes, match: re.Match[str], kind: Kind, label: str) -> None:
    notes.part(
        place_of(notes, match.string),
        kind,
        bytes_of(match["n"], match["unit"]),
        label,
        rounding_bytes=rounding_of(match["n"], match["unit"]),
    )


def _version(notes: Notes, match: re.Match[str]) -> None:
    if "server version" in match[0]:
        notes.begin()
    notes.version = match["version"]


def _config(notes: Notes, match: re.Match[str]) -> None:
    notes.begin()
    notes.version = match["version"]
    for name, value in re.findall(r"\b(\w{1,40})=('[^']{0,400}'|[\w.:/+-]{1,200})", match.string[match.end() :]):
        word = value.strip("'").removeprefix("torch.")
        number = whole(word)
        if value != "None" and name not in notes.facts:
            notes.fact(name, word if number is None or value.startswith("'") else number)


def _arguments(notes: Notes, match: re.Match[str]) -> None:
    notes.begin()
    note_arguments(notes, match["args"])


def _command(notes: Notes, match: re.Match[str]) -> None:
    """The command, where it was pasted with its output; what vLLM itself logs of it counts more."""
    words = words_of(match["command"])
    if not notes.command and len(words) > 2 and (match["program"] != "vllm serve" or not words[2].startswith("-")):
        notes.command = words


def _architecture(notes: Notes, match: re.Match[str]) -> None:
    notes.fact("architecture", match["name"])


def _length(notes: Notes, match: re.Match[str]) -> None:
    notes.fact("max_seq_len", whole(match["n"]))


def _batched(notes: Notes, match: re.Match[str]) -> None:
    notes.fact("max_num_batched_tokens", whole(match["n"]))


def _loading(notes: Notes, match: re.Match[str]) -> None:
    notes.at("weights")


def _loaded(notes: Notes, match: re.Match[str]) -> None:
    _part(notes, match, "weights", "model")
    notes.at("compute")


def _available(notes: Notes, match: re.Match[str]) -> None:
    _part(notes, match, "cache", "available for the KV cache")
    notes.fact("available_kv_bytes", bytes_of(match["n"], match["unit"]))
    notes.at("cache")


def _tokens(notes: Notes, match: re.Match[str]) -> None:
    notes.fact("kv_tokens", whole(match["n"]))
    notes.at("compute")


def _concurrency(notes: Notes, match: re.Match[str]) -> None:
    notes.fact("max_seq_len", whole(match["tokens"]))
    notes.fact("concurrency", float(match["x"]))


def _graphs(notes: Notes, match: re.Match[str]) -> None:
    _part(notes, match, "runtime", "CUDA graphs")


def _capturing(notes: Notes, match: re.Match[str]) -> None:
    notes.at("compute")


def _profiled(notes: Notes, match: re.Match[str]) -> None:
    """The line of the old profiler: weights, beside torch, activation, what is left."""
    place = place_of(notes, match.string)
    for kind, label, name in (("runtime", "non-torch memory", "other"), ("compute", "peak activation", "peak")):
        size = bytes_of(match[name], "GiB")
        notes.part(place, kind, size, label, rounding_bytes=rounding_of(match[name], "GiB"))  # type: ignore[arg-type]
    notes.part(place, "cache", bytes_of(match["rest"], "GiB"), "available for the KV cache")
    notes.fact("available_kv_bytes", bytes_of(match["rest"], "GiB"))
    notes.at("cache")


def _budget(notes: Notes, match: re.Match[str]) -> None:
    """The last line about memory: what was free, what was wanted, and what the start took."""
    place = place_of(notes, match.string)
    notes.device(
        match["place"] or place,
        free_bytes=bytes_of(match["free"], "GiB"),
        total_bytes=bytes_of(match["total"], "GiB"),
    )
    notes.fact("gpu_memory_utilization", float(match["share"]))
    for pattern, kind, label in _USED:
        found = pattern.search(match.string, match.end())
        if found is not None:
            size = bytes_of(found[1], "GiB")
            notes.part(place, kind, size, label, rounding_bytes=rounding_of(found[1], "GiB"))

    found = re.compile(r"([\d.]{1,12}) GiB for consumed memory").search(match.string, match.end())
    if found is not None:
        notes.fact("consumed_bytes", bytes_of(found[1], "GiB"))


_USED: tuple[tuple[re.Pattern[str], Kind, str], ...] = (
    (re.compile(r"([\d.]{1,12}) GiB for peak activation"), "compute", "peak activation"),
    (re.compile(r"([\d.]{1,12}) GiB for non-torch memory"), "runtime", "non-torch memory"),
)


def _total(notes: Notes, match: re.Match[str]) -> None:
    notes.device(place_of(notes, match.string), total_bytes=bytes_of(match["total"], "GiB"))
    notes.fact("gpu_memory_utilization", float(match["share"]))


def _fitted(notes: Notes, match: re.Match[str]) -> None:
    notes.fact("max_seq_len", whole(match["to"]))


def _block(notes: Notes, match: re.Match[str]) -> None:
    notes.fact("block_size", whole(match["n"]))


def _ready(notes: Notes, match: re.Match[str]) -> None:
    notes.recover()
    notes.at("ready")


_COMMANDS = tuple(
    Message(
        needle,
        rf"(?:^|[\s$#>`'\"])(?P<command>(?:[\w.~-]*/[\w./~-]{{0,200}})?(?P<program>{program}) [^`]{{2,8000}})",
        _command,
        "a shell's line before the output",
    )
    for needle, program in (
        ("vllm serve", "vllm serve"),
        ("vllm.entrypoints.openai.api_server", r"python3? -m vllm\.entrypoints\.openai\.api_server"),
    )
)

MESSAGES = (
    Message(
        "server version",
        r"vLLM (?:API )?server version (?P<version>\d[\w.+-]{0,60}\w)",
        _version,
        "entrypoints/common/startup.py:log_version_and_model",
    ),
    Message(
        "vLLM version", r"\bvLLM [Vv]ersion:? {1,20}v?(?P<version>\d[\w.+-]{1,60})", _version, "vllm/collect_env.py"
    ),
    Message(
        "LLM engine (v",
        r"Initializing an? (?:V\d )?LLM engine \(v(?P<version>[\w.+-]{1,60})\) with config: ",
        _config,
        "v1/engine/core.py:EngineCore",
    ),
    Message(
        "non-default args:",
        r"non-default args: (?P<args>\{.{1,30000})",
        _arguments,
        "entrypoints/common/startup.py:log_non_default_args",
    ),
    Message("Resolved architecture", r"Resolved architecture: (?P<name>\w{1,80})", _architecture, "config/model.py"),
    Message("Using max model len", r"Using max model len (?P<n>\d{1,12})", _length, "config/model.py"),
    Message(
        "max_num_batched_tokens=",
        r"enabled with max_num_batched_tokens=(?P<n>\d{1,9})",
        _batched,
        "config/scheduler.py",
    ),
    Message("Starting to load model", r"Starting to load model", _loading, "v1/worker/gpu_model_runner.py:load_model"),
    Message("Model loading took", rf"Model loading took {_GIB}", _loaded, "v1/worker/gpu_model_runner.py:load_model"),
    Message("weights took", rf"Loading model weights took {_GIB}", _loaded, "the model runner of V0, to 0.8"),
    Message(
        "total_gpu_memory (",
        r"total_gpu_memory \((?P<total>[\d.]{1,12})GiB\) x gpu_memory_utilization \((?P<share>[\d.]{1,8})\)",
        _total,
        "the worker of V0, to 0.10",
    ),
    Message(
        "model weights take",
        r"model weights take (?P<weights>[\d.]{1,12})GiB; non_torch_memory takes (?P<other>-?[\d.]{1,12})GiB; "
        r"PyTorch activation peak memory takes (?P<peak>[\d.]{1,12})GiB; "
        r"the rest of the memory reserved for KV Cache is (?P<rest>-?[\d.]{1,12})GiB",
        _profiled,
        "the worker of V0, to 0.10",
    ),
    Message(
        "Available KV cache memory",
        rf"Available KV cache memory: {_GIB}",
        _available,
        "v1/worker/gpu_worker.py:determine_available_memory",
    ),
    Message(
        "KV cache size",
        r"KV cache size: (?P<n>[\d,]{1,20}) tokens",
        _tokens,
        "v1/core/kv_cache_utils.py:update_kv_cache_capacity",
    ),
    Message(
        "Maximum concurrency",
        r"Maximum concurrency for (?P<tokens>[\d,]{1,16}) tokens per request: (?P<x>\d{1,9}\.?\d{0,6})x",
        _concurrency,
        "v1/core/kv_cache_utils.py:update_kv_cache_capacity",
    ),
    Message("Capturing ", r"Capturing (?:CUDA graph|cudagraphs)", _capturing, "v1/worker/gpu_model_runner.py"),
    Message(
        "Graph capturing finished",
        r"Graph capturing finished in [\d.]{1,12} secs?, took (?P<n>-?[\d.]{1,12}) (?P<unit>GiB)",
        _graphs,
        "v1/worker/gpu_model_runner.py:capture_model",
    ),
    Message(
        "Desired GPU memory utilization is",
        r"Free memory on device (?P<place>\w{1,8}:\d{1,3} )?\((?P<free>[\d.]{1,10})/(?P<total>[\d.]{1,10}) GiB\) on startup. "
        r"Desired GPU memory utilization is \((?P<share>[\d.]{1,20}), (?P<wanted>[\d.]{1,12}) GiB\)",
        _budget,
        "v1/worker/gpu_worker.py:compile_or_warm_up_model",
    ),
    Message(
        "Auto-fit max_model_len",
        r"Auto-fit max_model_len: reduced from \d{1,12} to (?P<to>\d{1,12})",
        _fitted,
        "v1/core/kv_cache_planning.py",
    ),
    Message(
        "Setting attention block size",
        r"Setting attention block size to (?P<n>\d{1,8}) tokens",
        _block,
        "platforms/interface.py:_align_hybrid_block_size",
    ),
    Message("startup complete", r"Application startup complete", _ready, "uvicorn"),
    *_COMMANDS,
    *FAILURES,
)
