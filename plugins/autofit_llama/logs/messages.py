"""llama.cpp's messages about memory, from b1500 to b11311, each with the function that prints it.

Sources are of b11311 where no other release is named; `former:` names a function of older releases with the same words.
"""

from __future__ import annotations

import re

from autofit.domain.memory import Kind
from autofit.domain.units import MIB
from autofit.logs.commands import words_of
from autofit.logs.messages import Message
from autofit.logs.notes import Notes
from autofit.logs.numbers import bytes_of, rounding_of, whole

from autofit_llama.logs.failures import FAILURES
from autofit_llama.logs.places import is_host, place_of

_SIZE = r"(?P<n>[\d.]{1,20}) (?P<unit>MiB|MB|GiB|KiB)"
_NAME = r"(?P<place>[A-Za-z]\w{0,40}(?:\[[^\]\s]{1,80}\])?)"


def _buffer(notes: Notes, match: re.Match[str], kind: Kind, label: str, group: str, *, adds: bool) -> None:
    place = place_of(match["place"], notes.devices)
    notes.part(
        place,
        kind,
        bytes_of(match["n"], match["unit"]),
        label,
        group=group,
        adds=adds,
        rounding_bytes=rounding_of(match["n"], match["unit"]),
        is_host=is_host(place),
        mapped=match["place"].endswith("_Mapped"),
    )


def _model(notes: Notes) -> str:
    return f"model {max(0, notes.counts.get('model', 1) - 1)}"


def _context(notes: Notes) -> str:
    return f"context {max(0, notes.counts.get('context', 1) - 1)}"


def _weights(notes: Notes, match: re.Match[str]) -> None:
    notes.at("weights")
    _buffer(notes, match, "weights", "model buffer", _model(notes), adds=True)


def _cache(notes: Notes, match: re.Match[str]) -> None:
    notes.at("cache")
    _buffer(notes, match, "cache", f"{match['what']} buffer", _context(notes), adds=True)


def _output(notes: Notes, match: re.Match[str]) -> None:
    _buffer(notes, match, "runtime", "output buffer", _context(notes), adds=False)


def _compute(notes: Notes, match: re.Match[str]) -> None:
    projector = match["by"] is not None
    notes.at("weights" if projector else "compute")
    group = "projector" if projector else _context(notes)
    _buffer(notes, match, "compute", "compute buffer", group, adds=False)


def _lora(notes: Notes, match: re.Match[str]) -> None:
    _buffer(notes, match, "weights", "LoRA buffer", _model(notes), adds=True)


def _projector(notes: Notes, match: re.Match[str]) -> None:
    notes.fact("projector.bytes", bytes_of(match["n"], match["unit"]))


def _breakdown(notes: Notes, match: re.Match[str]) -> None:
    """A line of the table at the end: MiB in total = free + (self = model + context + compute) + unaccounted."""
    place, cells = match["place"], [int(cell) for cell in re.findall(r"-?\d{1,9}", match["cells"])]
    device = len(cells) == 7
    if not device and len(cells) != 4:
        return
    model, context, compute = cells[3:6] if device else cells[1:4]
    notes.fact(f"breakdown.{place}", (model * MIB, context * MIB, compute * MIB))
    if device:
        notes.device(place, match["name"] or "", total_bytes=cells[0] * MIB)
        notes.part(place, "runtime", cells[6] * MIB, "unaccounted", group="breakdown", rounding_bytes=2 * MIB)


def _found(notes: Notes, match: re.Match[str]) -> None:
    notes.fact("api", match["api"])


def _numbered(notes: Notes, match: re.Match[str]) -> None:
    """`Device 0: NVIDIA ..., compute capability 8.6, VMM: yes, VRAM: 24124 MiB`, under CUDA, ROCm or MUSA."""
    place = f"{notes.facts.get('api', 'CUDA')}{match['index']}"
    total = None if match["vram"] is None else int(match["vram"]) * MIB
    notes.device(place, match["name"], total_bytes=total, detail=match["detail"])


def _vulkan(notes: Notes, match: re.Match[str]) -> None:
    notes.device(f"Vulkan{match['index']}", match["name"].strip(), detail=f"uma: {match['uma']}")


def _using(notes: Notes, match: re.Match[str]) -> None:
    notes.device(match["place"], match["name"].strip(), free_bytes=int(match["free"]) * MIB)
    notes.fact("devices.used", (*_used(notes), match["place"])[:64])


def _used(notes: Notes) -> tuple[str, ...]:
    used = notes.facts.get("devices.used", ())
    return used if isinstance(used, tuple) else ()


def _listed(notes: Notes, match: re.Match[str]) -> None:
    notes.device(
        match["place"],
        match["name"].strip(),
        total_bytes=int(match["total"]) * MIB,
        free_bytes=int(match["free"]) * MIB,
    )


def _metal(notes: Notes, match: re.Match[str]) -> None:
    # MB of 10**6: ggml-metal-device.m:ggml_metal_device_init
    notes.device("MTL0", total_bytes=round(float(match["n"]) * 1e6))


def _metal_name(notes: Notes, match: re.Match[str]) -> None:
    notes.device("MTL0", (match["desc"] or match["name"]).strip())


def _build(notes: Notes, match: re.Match[str]) -> None:
    notes.begin()
    notes.version = f"b{int(match['build'])}"


def _told_build(notes: Notes, match: re.Match[str]) -> None:
    """`--version`, which people paste above a log; a build that is 1 is of a clone without history."""
    if int(match["build"]) > 100 and notes.version is None:
        notes.version = f"b{int(match['build'])}"


def _load(notes: Notes, match: re.Match[str]) -> None:
    notes.begin()
    n = notes.count("model")
    notes.at("weights")
    if n == 0:
        notes.fact("file", match["path"])
        notes.fact("n_tensors", whole(match["tensors"]))
        notes.fact("n_keys", whole(match["keys"]))


def _is_first(notes: Notes) -> bool:
    """Whether lines are of the main model still, and not of a draft or a second load of the same."""
    return notes.counts.get("model", 0) <= 1


def _key(notes: Notes, match: re.Match[str]) -> None:
    if _is_first(notes):
        notes.fact(f"kv.{match['key']}", (match["type"], match["value"].strip()))
        if match["key"] == "general.architecture":
            notes.fact("architecture", match["value"].strip())


def _types(notes: Notes, match: re.Match[str]) -> None:
    if _is_first(notes):
        notes.fact(f"types.{match['type']}", int(match["count"]))


def _tensor(notes: Notes, match: re.Match[str]) -> None:
    if _is_first(notes):
        shape = tuple(int(n) for n in match["shape"].replace(",", " ").split())
        notes.fact(f"tensor.{match['name']}", (match["type"], shape))


def _meta(notes: Notes, match: re.Match[str]) -> None:
    """A hyperparameter, as print_info has it; the first model's only."""
    if _is_first(notes):
        notes.fact(f"info.{match['name'].strip()}", match["value"].strip())
        if match["name"].strip() == "arch":
            notes.fact("architecture", match["value"].strip())


def _offload(notes: Notes, match: re.Match[str]) -> None:
    if _is_first(notes):
        notes.fact("layers.offloaded", int(match["n"]))
        notes.fact("layers.all", int(match["all"]))


def _new_context(notes: Notes, match: re.Match[str]) -> None:
    """The first line about a context that is being made; the next one is another context."""
    name, value = match["name"], match["value"]
    first = "n_seq_max" if "context.n_seq_max" in notes.facts or name == "n_seq_max" else "n_ctx"
    if name == first:
        notes.count("context")
        notes.at("cache")
    if notes.counts.get("context", 0) <= 1:
        notes.fact(f"context.{name}", value)


def _cache_types(notes: Notes, match: re.Match[str]) -> None:
    if notes.counts.get("context", 0) <= 1:
        notes.fact("context.type_k", match["k"])
        notes.fact("context.type_v", match["v"])
        if match["cells"]:
            notes.fact("context.cells", int(match["cells"]))


def _ollama(notes: Notes, match: re.Match[str]) -> None:
    notes.fact("ollama", True)


def _ollama_device(notes: Notes, match: re.Match[str]) -> None:
    """Ollama lists the devices itself, before its runner does."""
    _ollama(notes, match)
    notes.device(
        match["place"],
        match["name"],
        total_bytes=bytes_of(match["total"], match["unit"]),
        free_bytes=bytes_of(match["free"], match["free_unit"]),
    )


def _ready(notes: Notes, match: re.Match[str]) -> None:
    notes.recover()
    notes.at("ready")


def _retries(notes: Notes, match: re.Match[str]) -> None:
    notes.recover()


def _command(notes: Notes, match: re.Match[str]) -> None:
    """The command, where it was pasted with its output."""
    words = words_of(match["command"])
    if any(word.partition("=")[0] in _NAMES_MODEL for word in words) and not notes.command:
        notes.command = words


_NAMES_MODEL = frozenset({"-m", "--model", "-hf", "--hf-repo", "-hfr", "-mu", "--model-url"})
_COMMANDS = tuple(
    Message(
        program,
        rf"(?:^|[\s$#>`'\"])(?P<command>(?:[\w.~-]*/[\w./~-]{{0,200}})?{program}(?:\.exe)? -[^`]{{2,8000}})",
        _command,
        "a shell's line before the output",
    )
    for program in ("llama-server", "llama-cli")
)

MESSAGES = (
    Message(
        "build",
        r"\b(?:build: |build = |build=|build )(?P<build>\d{3,6}) \(",
        _build,
        "common/common.cpp:common_params_print_info; former: common_init, main",
    ),
    Message("build_info: b", r"build_info: b(?P<build>\d{1,6})-", _told_build, "llama-server of b9200 to b9300"),
    Message(
        "version: ",
        r"\bversion: (?P<build>\d{3,6}) \([0-9a-f]{6,12}\)",
        _told_build,
        "what --version printed, to b10800",
    ),
    Message("found ", r"found \d+ (?P<api>CUDA|ROCm|MUSA) devices", _found, "ggml-cuda.cu:ggml_cuda_init"),
    Message(
        "Device ",
        r"\bDevice (?P<index>\d{1,3}): (?P<name>.{1,100}?), (?P<detail>compute capability \d+\.\d+|gfx\w+[^,]{0,40})"
        r"(?:.{0,80}?VRAM: (?P<vram>\d{1,9}) MiB)?",
        _numbered,
        "ggml-cuda.cu:ggml_cuda_init",
    ),
    Message(
        "ggml_vulkan: ",
        r"ggml_vulkan: (?P<index>\d{1,3}) = (?P<name>.{1,120}?) \| uma: (?P<uma>\d)",
        _vulkan,
        "ggml-vulkan.cpp:ggml_vk_print_gpu_info",
    ),
    Message(
        "inference compute",
        r'msg="inference compute"(?=.{0,400}? (?:name|id)=(?P<place>(?:CUDA|ROCm|Vulkan|Metal)\d{1,2})\b)'
        r'(?=.{0,400}? (?:description|name)="(?P<name>[^"]{1,100})")'
        r'.{0,400}? total="(?P<total>[\d.]{1,12}) (?P<unit>[KMGT]iB)" available="(?P<free>[\d.]{1,12}) (?P<free_unit>[KMGT]iB)"',
        _ollama_device,
        "Ollama, discover/types.go",
    ),
    Message("source=server.go", r"level=\w{1,8} source=server\.go:\d{1,6} ", _ollama, "Ollama, llm/server.go"),
    Message(
        "using device ",
        r"using device (?P<place>\S{1,80}) \((?P<name>.{1,120}?)\)(?: \([^)]{0,60}\))? - (?P<free>\d{1,9}) MiB free",
        _using,
        "llama.cpp:llama_prepare_model_devices; former: llama_model_load_from_file_impl",
    ),
    Message(
        "MiB free)",
        r"- (?P<place>[A-Za-z]\w{0,30}\S{0,50}?)\s{0,12}: (?P<name>.{1,120}?) \((?P<total>\d{1,9}) MiB, (?P<free>\d{1,9}) MiB free\)",
        _listed,
        "common/common.cpp:common_params_print_info",
    ),
    Message(
        "recommendedMaxWorkingSetSize",
        r"recommendedMaxWorkingSetSize\s{1,4}= {1,6}(?P<n>[\d.]{1,20}) MB",
        _metal,
        "ggml-metal-device.m:ggml_metal_device_init",
    ),
    Message(
        "GPU name:",
        r"GPU name: {1,6}(?P<name>[^(]{1,60})(?:\((?P<desc>[^)]{1,60})\))?",
        _metal_name,
        "ggml-metal-device.m:ggml_metal_device_init",
    ),
    Message(
        "loaded meta data with",
        r"loaded meta data with (?P<keys>\d{1,6}) key-value pairs and (?P<tensors>\d{1,7}) tensors from (?P<path>.{1,1000}?) \(version",
        _load,
        "llama-model-loader.cpp:llama_model_loader",
    ),
    Message(
        "- kv ",
        r"- kv {1,4}\d{1,5}: {1,60}(?P<key>\S{1,200}) (?P<type>[a-z0-9]{1,8}(?:\[[a-z0-9]{1,8},\d{1,12}\])?) {0,30}= (?P<value>.{0,80})",
        _key,
        "llama-model-loader.cpp:llama_model_loader",
    ),
    Message(
        "- type ",
        r"- type {1,4}(?P<type>\w{1,12}): {1,6}(?P<count>\d{1,7}) tensors",
        _types,
        "llama-model-loader.cpp:llama_model_loader",
    ),
    Message(
        "- tensor ",
        r"- tensor (?:split )?\s{0,5}\d{1,6}: {1,60}(?P<name>\S{1,80}) (?P<type>\w{1,12}) {1,12}\[ {0,8}(?P<shape>[\d, ]{1,60}) ?\]",
        _tensor,
        "llama-model-loader.cpp:llama_model_loader",
    ),
    Message(
        "print_info: ",
        r"\bprint_info: (?P<name>[a-z][\w .]{0,30}?) {0,24}= (?P<value>.{0,8000})",
        _meta,
        "llama-model.cpp:print_info, llama-model-loader.cpp:print_info",
    ),
    Message(
        "llm_load_print_meta: ",
        r"llm_load_print_meta: (?P<name>[a-z][\w .]{0,30}?) {0,24}= (?P<value>.{0,8000})",
        _meta,
        "llama.cpp:llm_load_print_meta, to b4600",
    ),
    Message(
        "offloaded ",
        r"offloaded (?P<n>\d{1,5})/(?P<all>\d{1,5}) layers to GPU",
        _offload,
        "llama-model.cpp:load_tensors; former: llm_load_tensors",
    ),
    Message(
        " buffer size = ",
        rf"(?:load_tensors|llm_load_tensors): {{1,20}}{_NAME} (?:model )?buffer size = {{1,10}}{_SIZE}",
        _weights,
        "llama-model.cpp:load_tensors; former: llm_load_tensors",
    ),
    Message(
        " buffer size = ",
        rf"\w: {{1,20}}{_NAME} (?P<what>KV|RS|DSV4 \w{{1,20}} state|KV self) buffer size = {{1,10}}{_SIZE}",
        _cache,
        "llama-kv-cache.cpp:llama_kv_cache; llama-memory-recurrent.cpp:llama_memory_recurrent",
    ),
    Message(
        " output buffer size = ",
        rf"{_NAME}  output buffer size = {{1,10}}{_SIZE}",
        _output,
        "llama-context.cpp:llama_context; former: llama_new_context_with_model",
    ),
    Message(
        " compute buffer size = ",
        rf"(?:(?P<by>alloc_compute_meta|reserve_compute_meta|clip_\w{{1,30}}): |\w: ) {{0,20}}{_NAME} compute buffer size = {{1,10}}{_SIZE}",
        _compute,
        "llama-context.cpp:sched_reserve; tools/mtmd/clip.cpp; former: llama_new_context_with_model",
    ),
    Message(
        " LoRA buffer size = ",
        rf"{_NAME} LoRA buffer size = {{1,10}}{_SIZE}",
        _lora,
        "llama-adapter.cpp:llama_adapter_lora_init_impl",
    ),
    Message("model size: ", rf"load_hparams: model size: {{1,12}}{_SIZE}", _projector, "tools/mtmd/clip.cpp"),
    Message(
        "memory_breakdown_print: |",
        r"memory_breakdown_print: \| {1,4}- (?P<place>[^\s(|]{1,80})(?: \((?P<name>[^|]{0,80})\))? *\|(?P<cells>[^|]{1,120})\|",
        _breakdown,
        "common/fit.cpp:common_memory_breakdown_print; former: llama_memory_breakdown_print",
    ),
    Message(
        "llama_context: ",
        r"llama_context: (?P<name>n_\w{1,24}|flash_attn|kv_unified|causal_attn) {0,24}= (?P<value>\S{1,24})$",
        _new_context,
        "llama-context.cpp:llama_context",
    ),
    Message(
        "llama_new_context_with_model: ",
        r"llama_new_context_with_model: (?P<name>n_\w{1,24}|flash_attn) {0,24}= (?P<value>\S{1,24})$",
        _new_context,
        "llama.cpp:llama_new_context_with_model, to b4500",
    ),
    Message(
        "llama_init_from_model: ",
        r"llama_init_from_model: (?P<name>n_\w{1,24}|flash_attn) {0,24}= (?P<value>\S{1,24})$",
        _new_context,
        "llama.cpp:llama_init_from_model, b4500 to b4900",
    ),
    Message(
        "K (",
        r"(?:(?P<cells>\d{1,10}) cells.{0,60}?|KV self size.{0,40}?)K \((?P<k>\w{1,10})\): {1,8}[\d.]{1,16} MiB, V \((?P<v>\w{1,10})\)",
        _cache_types,
        "llama-kv-cache.cpp:llama_kv_cache; former: llama_new_context_with_model",
    ),
    Message(
        "retrying without pipeline parallelism",
        r"retrying without pipeline parallelism",
        _retries,
        "llama-context.cpp:sched_reserve",
    ),
    Message(
        "listening",
        r"(?:server is listening|HTTP server listening|HTTP server is listening|server listening)",
        _ready,
        "tools/server/server.cpp",
    ),
    Message("startup complete", r"Application startup complete", _ready, "uvicorn"),
    Message("model loaded", r"(?:main|srv|server).{0,40}model loaded", _ready, "tools/server/server.cpp"),
    *_COMMANDS,
    *FAILURES,
)
