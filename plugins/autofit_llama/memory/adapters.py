"""What is loaded over a model's weights: LoRA adapters and control vectors.

Source: src/llama-adapter.cpp (llama_adapter_lora_init_impl, llama_adapter_cvec::init),
common/common.cpp:common_control_vector_load.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from autofit.domain.model import ModelSpec, TensorInfo
from autofit.domain.text import printable
from autofit.domain.units import round_up
from autofit.errors import EngineRefusalError

from autofit_llama.engine.numbers import integer
from autofit_llama.graph.devices import DeviceRules, device_bytes
from autofit_llama.memory.placement import Placement
from autofit_llama.memory.weights import HOST_ALIGNMENT
from autofit_llama.model.hparams import HParams

_A, _B = ".lora_a", ".lora_b"


def check_lora(adapter: ModelSpec, hp: HParams, tensors: Mapping[str, TensorInfo]) -> None:
    """Refuse what is no adapter for this model, whose `tensors` these are.

    Raises:
        EngineRefusalError: with the library's reason.
    """
    if adapter.metadata.get("general.type") != "adapter" or adapter.metadata.get("adapter.type", "lora") != "lora":
        raise EngineRefusalError(
            f"llama.cpp refuses: {printable(adapter.name)} is not a LoRA adapter (general.type is not 'adapter')",
            hint="--lora takes files of convert_lora_to_gguf.py",
        )
    if adapter.architecture != hp.arch:
        raise EngineRefusalError(
            f"llama.cpp refuses: a LoRA adapter for {printable(adapter.architecture)} on a model of {hp.arch}"
        )
    for base, a, b in _pairs(adapter):
        weight = tensors.get(base)
        if weight is None:
            raise _lora_refusal(adapter, f"{printable(base, 80)} does not exist in the model")
        if a is None or b is None:
            raise _lora_refusal(adapter, f"the pair for {printable(base, 80)} lacks one half")
        (n_in, n_out), (a0, a1), (b0, b1) = (_matrix(t) for t in (weight, a, b))
        fits = (n_in, n_out) == (b1, a1) if base.endswith("token_embd.weight") else (n_in, n_out, a1) == (a0, b1, b0)
        if not fits:
            raise _lora_refusal(adapter, f"{printable(base, 80)} has another shape in the model")


def lora_bytes(
    adapter: ModelSpec, homes: Mapping[str, int], devices: Sequence[DeviceRules]
) -> tuple[tuple[int, ...], int]:
    """Bytes per device and on the host: each half lies beside the weight it adapts, on the host never re-laid."""
    on_device, on_host = [0] * len(devices), 0
    for base, *halves in _pairs(adapter):
        home = homes.get(base, -1)
        for half in halves:
            if half is None:
                continue
            if home >= 0:
                on_device[home] += device_bytes(devices[home], half.type, half.ne[0], half.n_bytes)
            else:
                on_host += round_up(half.n_bytes, HOST_ALIGNMENT)
    return tuple(on_device), on_host


def lora_compute_bytes(
    adapters: Iterable[ModelSpec], homes: Mapping[str, int], n_devices: int, *, n_tokens: int, n_expert_used: int
) -> tuple[tuple[int, ...], int]:
    """By how much compute buffers grow at most, per device and on the host.

    Beside the product with a weight there are, for one adapter at a time, those with its halves
    (src/llama-graph.cpp:build_lora_mm): rows of its rank, and rows as wide as the weight's, which the sum then takes.
    """
    on_device, on_host = [0] * n_devices, 0
    for adapter in adapters:
        for base, a, b in _pairs(adapter):
            rows = n_tokens * (n_expert_used if base.removesuffix(".weight").endswith("exps") else 1)
            n_bytes = 4 * rows * sum(_matrix(half)[1] for half in (a, b) if half is not None)
            home = homes.get(base, -1)
            if home >= 0:
                on_device[home] = max(on_device[home], n_bytes)
            else:
                on_host = max(on_host, n_bytes)
    return tuple(on_device), on_host


def check_control_vectors(vectors: Iterable[ModelSpec], hp: HParams) -> None:
    """Refuse files that llama.cpp would only complain of, to start without any control vector.

    Raises:
        EngineRefusalError: with its complaint.
    """
    for vector in vectors:
        if not vector.tensors:
            raise _vector_refusal(vector, "no direction tensors in it")
        for tensor in vector.tensors:
            if _direction(tensor.name) < 1:
                raise _vector_refusal(vector, f"{printable(tensor.name, 60)} is not a direction of a layer from 1 on")
            if tensor.type != "f32":
                raise _vector_refusal(vector, f"{printable(tensor.name, 60)} is {tensor.type}, not f32")
            if any(n != 1 for n in tensor.ne[1:]):
                raise _vector_refusal(vector, f"{printable(tensor.name, 60)} has more than one dimension")
            if tensor.ne[0] != hp.n_embd:
                raise _vector_refusal(
                    vector, f"{printable(tensor.name, 60)} has {tensor.ne[0]} values, the model {hp.n_embd}"
                )


def control_vector_bytes(
    hp: HParams, placement: Placement, devices: Sequence[DeviceRules]
) -> tuple[tuple[int, ...], int]:
    """Bytes per device and on the host: one f32 row for each block but the first, however many the files have.

    The compute buffers stay as they are: the sum with a row takes the place of what it is added to.
    """
    on_device, on_host = [0] * len(devices), 0
    for il in range(1, hp.n_layer):
        home = placement.of(il)
        if home >= 0:
            on_device[home] += device_bytes(devices[home], "f32", hp.n_embd, 4 * hp.n_embd)
        else:
            on_host += round_up(4 * hp.n_embd, HOST_ALIGNMENT)
    return tuple(on_device), on_host


def _pairs(adapter: ModelSpec) -> list[tuple[str, TensorInfo | None, TensorInfo | None]]:
    """The weights that are adapted, with both halves; norms are passed over.

    Raises:
        EngineRefusalError: a tensor that is neither.
    """
    found: dict[str, list[TensorInfo | None]] = {}
    for tensor in adapter.tensors:
        if tensor.name.endswith((_A, _B)):
            half = 0 if tensor.name.endswith(_A) else 1
            found.setdefault(tensor.name[: -len(_A)], [None, None])[half] = tensor
        elif not tensor.name.endswith("_norm.weight"):
            raise _lora_refusal(adapter, f"{printable(tensor.name, 80)} has an unexpected suffix")
    return [(base, a, b) for base, (a, b) in found.items()]


def _matrix(tensor: TensorInfo) -> tuple[int, int]:
    n0, n1, *_ = (*tensor.ne, 1)
    return n0, n1


def _direction(name: str) -> int:
    word, dot, layer = name.partition(".")
    try:
        return integer(layer) if dot and word == "direction" else -1
    except ValueError:
        return -1


def _lora_refusal(adapter: ModelSpec, because: str) -> EngineRefusalError:
    return EngineRefusalError(
        f"llama.cpp refuses the LoRA adapter {printable(adapter.name)}: {because}",
        hint="the file is damaged, or was made for another model",
    )


def _vector_refusal(vector: ModelSpec, because: str) -> EngineRefusalError:
    return EngineRefusalError(
        f"llama.cpp skips the control vector {printable(vector.name)}: {because}",
        hint="it would start without it; --control-vector takes files of llama-cvector-generator",
    )
