"""hearth-serve: the flags that it takes, what it refuses, and the memory that it allocates.

At start it allocates on one GPU:

- weights: one buffer, in which each tensor begins at a multiple of 256 bytes;
- KV cache: keys and values in 16 bits, contiguous: every slot has its whole context, rounded up to 64 tokens;
- compute: for a prompt chunk of 512 tokens two hidden states in 16 bits, and logits in 32 bits for each slot.

RAM holds a staging buffer of 64 MiB. Served are 16-bit Llama-like checkpoints (dense layers with attention
over the whole context), up to the context that they were trained for.
"""

from autofit.domain.memory import MemoryItem
from autofit.domain.request import Margin
from autofit.domain.units import round_up
from autofit.errors import EngineRefusalError, UnsupportedModelError, UsageError
from autofit.planning.accounting import DeviceUse, margin_of
from autofit.planning.devices import choose
from autofit.speed import LayerWork, Place, Roofline, n_kernels, reads

DEFAULTS = {"--context": 4096, "--slots": 1, "--gpu": 0, "--port": 8400}
TYPES = {"F16", "BF16"}
TENSOR_ALIGNMENT_BYTES = 256
CONTEXT_STEP_TOKENS = 64
CHUNK_TOKENS = 512
STAGING_BYTES = 64 << 20
CUDA_CONTEXT_BYTES = 300 << 20  # where the machine's facts do not say it


def read_flags(words):
    """The flags of a command line, `--flag VALUE` each: numbers, and the text of `--model`."""
    flags = {}
    for flag, value in zip(words[::2], [*words[1::2], ""], strict=False):
        if flag != "--model" and flag not in DEFAULTS:
            raise UsageError(f"hearth-serve has no {flag[:40]!r}", hint=f"it has --model, {', '.join(DEFAULTS)}")
        is_number = value.isascii() and value.isdigit() and len(value) < 10
        if not value or flag in flags or (flag in DEFAULTS and not is_number):
            raise UsageError(f"hearth-serve takes {flag} once, with a {'number' if flag in DEFAULTS else 'value'}")
        if flag in ("--context", "--slots") and not int(value):
            raise UsageError(f"hearth-serve takes a {flag} of 1 at least")
        flags[flag] = int(value) if flag in DEFAULTS else value
    return flags


def settle(pinned, model, machine, request):
    """Every flag: as it is pinned, else as it is asked for, else the longest context on the first GPU."""
    n_context = pinned.get("--context", request.context)
    if request.context and n_context != request.context:
        raise UsageError(f"hearth-serve --context {n_context} contradicts the context {request.context}")
    gpus = choose(cuda_devices(machine), request.device)
    first = cuda_devices(machine).index(gpus[0]) if gpus else 0
    flags = {**DEFAULTS, "--gpu": first, **pinned, "--context": n_context or CONTEXT_STEP_TOKENS}
    if not n_context:
        longest = longest_context(model, flags, use_of(model, machine, flags, request))
        flags["--context"] = longest or min(CONTEXT_STEP_TOKENS, model.context_train_tokens)
    return flags


def cuda_devices(machine):
    """What `--gpu` counts."""
    return [device for device in machine.devices if device.api == "cuda"]


def check_start(model, flags):
    """Refuse what hearth-serve refuses to start with."""
    types = sorted({tensor.type for tensor in model.tensors} - TYPES)
    if types:
        raise UnsupportedModelError(f"hearth-serve loads F16 and BF16, not {', '.join(types)}")
    for layer in model.layers:
        if (layer.mixer, layer.feed_forward) != ("full", "dense"):
            kind = f"{layer.mixer} attention, {layer.feed_forward} feed-forward"
            raise UnsupportedModelError(f"hearth-serve has no layer like layer {layer.index}: {kind}")
        if not (layer.n_kv_heads and layer.key_dim and layer.value_dim):
            raise UnsupportedModelError(f"the heads of layer {layer.index} are unknown")
    if not (model.layers and model.hidden_elements and model.n_vocab and model.context_train_tokens):
        raise UnsupportedModelError("layers, hidden size, vocabulary or trained context are unknown")
    if flags["--context"] > model.context_train_tokens:
        raise EngineRefusalError(
            f"hearth-serve --context {flags['--context']} is more than the model was trained for",
            hint=f"--context {model.context_train_tokens} is the longest",
        )


def use_of(model, machine, flags, request):
    """What the GPU of `--gpu` is asked for."""
    check_start(model, flags)
    gpus, index, n_slots = cuda_devices(machine), flags["--gpu"], flags["--slots"]
    if index >= len(gpus) or gpus[index] not in choose(gpus, request.device):
        usable = ", ".join(device.id for device in choose(gpus, request.device)) or "no CUDA device"
        raise EngineRefusalError(f"hearth-serve --gpu {index}: it may use {usable}")
    gpu = gpus[index]
    weights = sum(round_up(tensor.n_bytes, TENSOR_ALIGNMENT_BYTES) for tensor in model.tensors)
    cache = n_slots * round_up(flags["--context"], CONTEXT_STEP_TOKENS) * token_bytes(model)
    compute = CHUNK_TOKENS * 2 * model.hidden_elements * 2 + n_slots * model.n_vocab * 4
    items = (
        MemoryItem(kind="weights", n_bytes=weights, basis="exact", label="weights"),
        MemoryItem(kind="cache", n_bytes=cache, basis="exact", label="KV cache"),
        MemoryItem(kind="compute", n_bytes=compute, basis="exact", label="hidden states, logits"),
        context_item(gpu),
    )
    return DeviceUse(
        device=gpu,
        items=items,
        total_bytes=gpu.total_bytes,
        free_bytes=gpu.free_bytes,
        margin_bytes=margin_of(index, request.margin, gpu.total_bytes or 0, Margin()),
    )


def context_item(gpu):
    """What the driver takes in the process: measured for this card, else assumed."""
    if gpu.runtime_bytes is None:
        return MemoryItem(kind="runtime", n_bytes=CUDA_CONTEXT_BYTES, basis="assumed", label="CUDA context")
    return MemoryItem(kind="runtime", n_bytes=gpu.runtime_bytes, basis="measured", label="CUDA context")


def host_items():
    """What RAM holds."""
    return (MemoryItem(kind="runtime", n_bytes=STAGING_BYTES, basis="exact", label="staging buffer"),)


def token_bytes(model):
    """Keys and values of one token in all layers."""
    return sum(2 * layer.n_kv_heads * (layer.key_dim + layer.value_dim) for layer in model.layers)


def longest_context(model, flags, use):
    """The longest context with which the GPU holds it all; 0: there is none."""
    if use.budget_bytes is None:
        return model.context_train_tokens
    others_bytes = sum(item.n_bytes for item in use.items if item.kind != "cache")
    step_bytes = flags["--slots"] * CONTEXT_STEP_TOKENS * token_bytes(model)
    n_steps = max(use.budget_bytes - others_bytes, 0) // step_bytes
    return min(model.context_train_tokens, n_steps * CONTEXT_STEP_TOKENS)


def speed_of(model, machine, flags, gpu):
    """Rates from what a step reads and computes."""
    work = LayerWork(
        dense=reads(model.tensors),
        cache_token_bytes=token_bytes(model),
        attention_flops=sum(
            2 * (layer.n_heads or layer.n_kv_heads) * (layer.key_dim + layer.value_dim) for layer in model.layers
        ),
        n_kernels=sum(n_kernels(layer.mixer, layer.feed_forward) for layer in model.layers),
        hidden_bytes=2 * model.hidden_elements,
    )
    return Roofline(machine).estimate(
        [(work, Place(gpu.id))],
        n_filled=flags["--context"],
        n_sequences=flags["--slots"],
        n_ubatch=CHUNK_TOKENS,
        unmeasured="no run of Hearth to compare with",
    )
