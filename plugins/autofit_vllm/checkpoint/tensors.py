"""A checkpoint's tensors against the modules that its configuration describes.

vLLM creates its parameters from the configuration and copies the checkpoint into them, so the configuration
decides what is in memory. The tensors say what it leaves open (element type, which layers are quantized) and
confirm the rest: layer by layer they must hold what the modules do.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache

from autofit.domain.model import ModelSpec, TensorInfo
from autofit.domain.patterns import lazy_pattern
from autofit.domain.text import printable
from autofit.domain.values import dataclass, field, replace
from autofit.errors import EngineRefusalError, UnsupportedModelError

from autofit_vllm.architectures.builder import Builder, Options
from autofit_vllm.architectures.config import Config
from autofit_vllm.architectures.facts import attention_heads, config_dtype, head_size, key_value_heads
from autofit_vllm.architectures.record import architecture_of
from autofit_vllm.architectures.registry import CLASSES
from autofit_vllm.memory.weights import rank_tensors
from autofit_vllm.modules.dtypes import SAFETENSORS, dtype_bytes
from autofit_vllm.modules.model import EVERY, FIRST, AttentionCache, Parallel, Plain, VllmModel
from autofit_vllm.quantization import checkpoint_method, quantization_for
from autofit_vllm.quantization.names import bare

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_FLOAT_NAMES = frozenset({"float64", "float32", "float16", "bfloat16"})
#: types that hold every value of the others, narrowest first (utils/torch_utils.py:common_broadcastable_dtype)
_WIDENING = ("F8_E4M3", "F8_E5M2", "F16", "BF16", "F32", "F64")
_NEVER_LOADED = (
    *("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached"),
    *(".masked_bias", ".g_idx", ".position_ids", ".attn.bias", ".attention.bias"),
)
_LAYER = lazy_pattern(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d{1,5})\.")
_PREDICTION = lazy_pattern(r"(?:^|\.)(?:mtp|mtp_layers|nextn_predict_layers)\.")
_REFERENCE = (9, 0)  #: compute capability that the comparison assumes; only padding of kernels depends on it
_SLACK_BYTES = 1 << 16
_SLACK = 0.002  #: of a layer: scales and biases that only one of the two sides has
_TEXT_KEYS = ("text_config", "llm_config", "language_config")  #: where a language model's own configuration is
_RECURRENT_KEYS = ("mamba", "ssm", "linear_attn", "linear_num", "conv_kernel", "conv_L", "rwkv", "recurrent")


@dataclass(slots=True)
class Contents:
    """What a checkpoint holds, in bytes as they would be after its floats are cast to the model's type."""

    layers: Counter[int] = field(default_factory=Counter)
    outside_bytes: int = 0
    prediction_bytes: int = 0  #: layers that predict further tokens: built only for speculation
    ignored_bytes: int = 0


def check_against_tensors(model: VllmModel, spec: ModelSpec) -> VllmModel:
    """The model with what only its tensors tell, and a note where they contradict the configuration."""
    model = replace(
        model,
        dtype=_dtype(model, spec),
        quantization=_with_packed_layers(model.quantization, spec.tensors),
    )
    found = contents(model, spec.tensors)
    return replace(model, notes=(*model.notes, *_notes(model, found)))


def contents(model: VllmModel, tensors: Iterable[TensorInfo]) -> Contents:
    """The tensors of a checkpoint sorted into decoder layers, the rest, and what vLLM leaves in the file."""
    stack, own, layer_of = _stack(model), range(model.n_layers), _LAYER.search
    layers: defaultdict[int, Counter[str]] = defaultdict(Counter)  # bytes by type, as all of these
    outside, predicting, ignored = Counter[str](), Counter[str](), Counter[str]()
    head, layer = "\0", None  # most tensors are of the same layer as the one before
    for name, kind, _, n_bytes, _, _ in tensors:
        if not name.startswith(head):
            match = layer_of(name)
            head, layer = "\0" if match is None else name[: match.end()], None
            if match is not None and _is_stack(bare(name[: match.start(1) - 1]), stack):
                index = int(match[1])
                layer = layers[index] if index in own else predicting
        if name.endswith(_NEVER_LOADED):
            ignored[kind] += n_bytes
        elif layer is not None:
            layer[kind] += n_bytes
        else:
            (predicting if _PREDICTION.search(name) else outside)[kind] += n_bytes
    float_bytes = dtype_bytes(model.dtype)
    return Contents(
        layers=Counter({index: _cast(by_type, float_bytes) for index, by_type in layers.items() if by_type}),
        outside_bytes=_cast(outside, float_bytes),
        prediction_bytes=_cast(predicting, float_bytes),
        ignored_bytes=_cast(ignored, float_bytes),
    )


def _cast(by_type: Mapping[str, int], float_bytes: int) -> int:
    """Bytes of tensors whose floats take `float_bytes` each; `by_type` are those of the file."""
    return sum(
        n_bytes // dtype_bytes(SAFETENSORS[kind]) * float_bytes if kind in _FLOATS else n_bytes
        for kind, n_bytes in by_type.items()
    )


def _stack(model: VllmModel) -> str:
    """What the decoder layers are called, without wrappers: `layers`, `transformer.h`."""
    for module in model.modules:
        if module.stage >= 0:
            head, _, _ = module.name.partition(f".{module.stage}.")
            return bare(head)
    return "layers"


@lru_cache(maxsize=4096)
def _is_stack(prefix: str, stack: str) -> bool:
    """Some files leave out a wrapper: GPT-2's layers are `h`, not `transformer.h`."""
    return prefix == stack or stack.endswith(f".{prefix}")


def expected_layers(model: VllmModel) -> Counter[int]:
    """Bytes of each decoder layer by the configuration, in the measure of `contents`.

    Raises:
        AutofitError: the layers cannot be built at all.
    """
    quantization = quantization_for(
        model.quantization,
        capability=_REFERENCE,
        model_type=model.model_type,
        architecture=model.architecture,
        allow_deprecated=True,
    )
    float_bytes = dtype_bytes(model.dtype)
    expected: Counter[int] = Counter()
    for index in range(model.n_layers):
        expected[index] = 0
    prefix = _stack(model)
    for tensor in rank_tensors(model, Parallel(), dtype=model.dtype, quantization=quantization):
        name = bare(tensor.name)
        if tensor.kind == "scale" or not name.startswith(prefix):
            continue
        number, _, _ = name[len(prefix) + 1 :].partition(".")
        if number.isdecimal():
            n_elements = tensor.n_bytes // dtype_bytes(tensor.dtype)
            expected[int(number)] += n_elements * float_bytes if tensor.dtype in _FLOAT_NAMES else tensor.n_bytes
    return expected


def _notes(model: VllmModel, found: Contents) -> list[str]:
    notes = []
    if found.prediction_bytes:
        notes.append(
            f"{found.prediction_bytes / 1e9:.2f} GB of the files are layers for multi-token prediction, "
            "which vLLM loads for speculation only"
        )
    try:
        expected = expected_layers(model)
    except (EngineRefusalError, UnsupportedModelError):
        return notes  # The refusal comes with the plan.
    different = [
        index
        for index, n_bytes in expected.items()
        if abs(n_bytes - found.layers[index]) > _SLACK_BYTES + _SLACK * n_bytes
    ]
    if different and found.layers:
        first = different[0]
        notes.append(
            f"layer {first} holds {found.layers[first] / 1e6:.1f} MB in the files and "
            f"{expected[first] / 1e6:.1f} MB by config.json ({len(different)} of {len(expected)} layers differ): "
            "is config.json that of these files?"
        )
    return notes


def _dtype(model: VllmModel, spec: ModelSpec) -> str:
    """The configuration's type, or the narrowest that holds all of the checkpoint's
    (model_arch_config_convertor.py:get_torch_dtype)."""
    root = Config(spec.metadata)
    if config_dtype(root, root.section("text_config")) is not None:
        return model.dtype
    kinds = {tensor.type for tensor in spec.tensors} & set(_WIDENING)
    if not kinds:
        return model.dtype
    # Neither half type holds the other; what holds both is fp32 only if it is there.
    return SAFETENSORS[max(kinds, key=_WIDENING.index)]


def _with_packed_layers(raw: Mapping[str, object] | None, tensors: Iterable[TensorInfo]) -> Mapping[str, object] | None:
    """GPTQ and AWQ files do not list their layers: those with packed tensors are meant
    (auto_gptq.py and auto_awq.py:maybe_update_config)."""
    method = checkpoint_method(raw)
    key = {"gptq": "modules_in_block_to_quantize", "awq": "modules_to_not_convert"}.get(method or "")
    if raw is None or key is None or raw.get(key):
        return raw
    packed: set[str] = set()
    others: set[str] = set()
    for tensor in tensors:
        if ".experts." in tensor.name:
            continue  # Judged together, by their block.
        layer = tensor.name.rpartition(".")[0]
        (others if tensor.type in _FLOATS else packed).add(layer)
    return {**raw, key: sorted(packed if method == "gptq" else others - packed)}


# -- Architectures without a model builder


def model_behind_towers(spec: ModelSpec, options: Options) -> VllmModel | None:
    """A known language model behind encoders that are not: its layers and caches as ever, and what else the files
    hold on every rank of the first stage. `None`: not such a model.

    Raises:
        UnsupportedModelError: without files nothing tells the size of the encoders.
    """
    from autofit_vllm.architectures import assemble
    from autofit_vllm.architectures.builders import causal_lm_builder
    from autofit_vllm.architectures.families.vision import language_model

    root = Config(spec.metadata)
    named = [name for name in root.items_of("architectures") if isinstance(name, str) and name in CLASSES]
    word = next((name for name in named if architecture_of(name).multimodal), None)
    text = next((found for key in _TEXT_KEYS if (found := root.section(key)).given), None)
    if word is None or text is None:
        return None
    try:
        causal_lm_builder(text)
    except UnsupportedModelError:
        return None
    if not spec.tensors and not options.language_model_only:
        raise UnsupportedModelError(
            f"unknown encoders of {word}, and no tensors to take their size from",
            hint="give the directory of the checkpoint, or --language-model-only",
        )
    builder = Builder(root, root, options)
    language_model(builder, *_TEXT_KEYS)
    model = assemble(word, architecture_of(word), builder)
    if options.language_model_only:
        return model
    model = check_against_tensors(model, spec)
    shape = (_beside(model, spec.tensors),)
    towers = Plain(name="towers", stage=FIRST, shape=shape, dtype="uint8", tower="image")
    note = f"unknown encoders of {word}: counted as replicated on every GPU"
    return replace(model, modules=(*model.modules, towers), basis="bound", notes=(*model.notes, note))


def _beside(model: VllmModel, tensors: Iterable[TensorInfo]) -> int:
    """Bytes that the files hold beside what the model's own layers take."""
    found = contents(model, tensors)
    quantization = quantization_for(
        model.quantization,
        capability=_REFERENCE,
        model_type=model.model_type,
        architecture=model.architecture,
        allow_deprecated=True,
    )
    own = rank_tensors(model, Parallel(), dtype=model.dtype, quantization=quantization)
    return max(0, found.layers.total() + found.outside_bytes - sum(t.n_bytes for t in own if t.kind != "scale"))


def bound_model(spec: ModelSpec, options: Options) -> VllmModel:
    """An upper bound from the tensors of an architecture whose layers are not known: nothing is divided among
    the ranks of a stage, every layer caches keys and values in full.

    Raises:
        UnsupportedModelError: there are no tensors, the layers may keep a state instead, or the sizes of the
            cache are not told.
    """
    behind = model_behind_towers(spec, options)
    if behind is not None:
        return behind
    root = Config(spec.metadata)
    text = root.section("text_config")
    text = text if text.given else root
    named = ", ".join(printable(str(word), 60) for word in root.items_of("architectures")[:4])
    words = named or printable(root.model_type, 60) or "unnamed"
    if not spec.tensors:
        raise UnsupportedModelError(
            f"unknown architecture {words}, and no tensors to bound its size by",
            hint="give the directory of the checkpoint rather than its config.json",
        )
    n_layers = text.layers("num_hidden_layers", "num_layers", "n_layers", "n_layer")
    heads, kv_heads, size = _stated_heads(text, words)
    known = any(word in CLASSES for word in root.items_of("architectures") if isinstance(word, str))
    caches = tuple(
        AttentionCache(
            name=f"layers.{index}.attn",
            stage=index,
            kind="full",
            heads=heads,
            kv_heads=kv_heads,
            head_size=size,
            head_size_v=size,
        )
        for index in range(n_layers)
    )
    return VllmModel(
        architecture=words,
        model_type=root.model_type,
        modules=_bound_modules(spec.tensors, n_layers),
        buffers=(),
        caches=caches,
        dtype=config_dtype(root, text) or "float32",
        n_layers=n_layers,
        hidden_size=text.int("hidden_size", "d_model", "n_embd", default=0),
        intermediate_size=text.maybe_int("intermediate_size", "ffn_hidden_size", "n_inner") or 0,
        vocab_size=text.int("vocab_size", default=0),
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_size=size,
        max_len_tokens=text.maybe_int("max_position_embeddings"),
        max_len_key="max_position_embeddings",
        default_len_tokens=text.maybe_int("max_position_embeddings"),
        basis="bound",
        notes=(
            (
                f"unknown architecture {words}: weights are an upper bound from the tensors, as if "
                "tensor parallelism divided none of them"
            ),
            *(() if known else ("vLLM runs it only if its Transformers backend takes it",)),
        ),
        config=dict(text),
    )


def _stated_heads(text: Config, words: str) -> tuple[int, int, int]:
    """Attention heads, those of keys and values, and their size: what a layer caches.

    Raises:
        UnsupportedModelError: they are not stated, or layers may keep a state instead.
    """
    if any(word in key for key in text.given for word in _RECURRENT_KEYS):
        raise UnsupportedModelError(
            f"unknown architecture {words}, and config.json does not state the size of its recurrent state"
        )
    heads, kv_heads, size = attention_heads(text), key_value_heads(text), head_size(text)
    if not (heads and size and kv_heads):
        raise UnsupportedModelError(
            f"unknown architecture {words}, and config.json does not state the size of its KV cache"
        )
    return heads, kv_heads, size


def _bound_modules(tensors: Iterable[TensorInfo], n_layers: int) -> tuple[Plain, ...]:
    """One parameter per layer and element type; what is outside the layers is on every stage."""
    sizes: Counter[tuple[int, str | None]] = Counter()
    for tensor in tensors:
        match = _LAYER.search(tensor.name)
        index = int(match[1]) if match is not None else EVERY
        stage = index if index < n_layers else EVERY
        dtype = None if tensor.type in _FLOATS else SAFETENSORS.get(tensor.type, "uint8")
        elements = tensor.n_bytes if dtype == "uint8" else tensor.n_elements
        sizes[stage, dtype] += elements
    return tuple(
        Plain(name=f"tensors.{stage}.{dtype}", stage=stage, shape=(elements,), dtype=dtype)
        for (stage, dtype), elements in sorted(sizes.items(), key=str)
    )
