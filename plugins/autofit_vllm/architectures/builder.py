"""Builds a `VllmModel` the way vLLM's model classes build theirs: a tree of named layers, each on a stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from autofit.domain.values import dataclass, replace

from autofit_vllm.architectures.config import Config
from autofit_vllm.architectures.rope import rope_cache_rows, rope_parameters, rotary_size
from autofit_vllm.engine.versions import DEFAULT, Engine
from autofit_vllm.modules.model import (
    EVERY,
    FIRST,
    LAST,
    Attention,
    AttentionCache,
    AttentionKind,
    Buffer,
    Cache,
    Draft,
    Experts,
    IndexerCache,
    LatentCache,
    Linear,
    LinearKind,
    Module,
    PackedCache,
    Part,
    Plain,
    Stage,
    StateCache,
    Vocabulary,
)

_MAX_DRAFT_LAYERS = 64

#: the output of a layer, or what is fused in it
Parts = int | Sequence[tuple[str, int] | tuple[str, int, int] | tuple[str, int, int, int] | Part]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What of the command line changes which modules are built."""

    language_model_only: bool = False
    disabled_modalities: frozenset[str] = frozenset()  #: those with a limit of 0 per prompt
    disable_sliding_window: bool = False
    pooling: bool = False  #: `--runner pooling`, or `--convert`
    engine: Engine = DEFAULT


class Builder:
    """Collects what a model builder describes; `Scope` is the handle that they use."""

    __slots__ = (
        "buffers",
        "caches",
        "config",
        "draft",
        "headless",
        "modules",
        "notes",
        "options",
        "prefix",
        "quantization",
        "quantized_caches",
        "root",
        "scale_dtype",
    )

    def __init__(self, config: Config, root: Config, options: Options) -> None:
        self.config = config  #: of the language model
        self.root = root  #: the whole file
        self.options = options
        self.draft: Draft | None = None
        self.headless = False  #: a vector is wanted, not a next token
        self.prefix = ""  #: where the language model hangs in a larger one
        self.modules: list[Module] = []
        self.buffers: list[Buffer] = []
        self.caches: list[Cache] = []
        self.notes: list[str] = []
        self.quantization: Mapping[str, object] = {}  #: what the model's class adds to the file's
        self.quantized_caches = True  #: whether attention is told of the quantization
        self.scale_dtype: str | None = None  #: of attention's scales; `model` in the models of Transformers

    def named(self, name: str) -> str:
        return f"{self.prefix}.{name}" if self.prefix and name else self.prefix or name

    def scope(self, prefix: str, stage: Stage = EVERY) -> Scope:
        return Scope(self, self.named(prefix), stage, None)

    def tower(self, prefix: str, *modalities: str) -> Scope | None:
        """An encoder on the first stage, or `None` when each of its modalities is switched off
        (model_executor/models/interfaces.py:SupportsMultiModal._mark_tower_model)."""
        off = self.options.disabled_modalities
        if self.options.language_model_only or all(modality in off for modality in modalities):
            return None
        return Scope(self, prefix, FIRST, modalities[0])

    def layers(self, prefix: str = "model.layers", count: int | None = None) -> Iterator[Scope]:
        """One scope per decoder layer, on the stage that has it (models/utils.py:make_layers)."""
        for index in range(self.config.layers() if count is None else count):
            yield Scope(self, self.named(f"{prefix}.{index}"), index, None)

    def predict(
        self,
        count: int | None,
        layer: Callable[[Scope], None],
        *extras: str,
        prefix: str = "model.layers",
        projection: str | None = "eh_proj",
        divided: bool = False,
        first: int | None = None,
    ) -> None:
        """Layers that predict further tokens: a decoder layer each behind a projection of two vectors to one
        (`None`: `layer` builds its own), with the norms `extras`. Embedding and head are the model's own
        (v1/spec_decode/llm_base_proposer.py:_maybe_share_lm_head).
        """
        if not count:
            return
        aside = Builder(self.config, self.root, self.options)
        aside.prefix, aside.scale_dtype = self.prefix, self.scale_dtype
        start = self.config.layers() if first is None else first
        for index in range(start, start + min(count, _MAX_DRAFT_LAYERS)):
            here = Scope(aside, self.named(f"{prefix}.{index}"), index, None)
            if projection and divided:
                here.column(projection, 2 * self.hidden_size, self.hidden_size)
            elif projection:
                here.plain(f"{projection}.weight", self.hidden_size, 2 * self.hidden_size)
            here.norms(*extras)
            layer(here)
        self.draft = Draft(
            n_layers=count,
            modules=tuple(replace(module, stage=LAST) for module in aside.modules),
            caches=tuple(replace(cache, stage=LAST) for cache in aside.caches),
        )

    def embedding(
        self,
        name: str = "model.embed_tokens",
        *,
        rows: int | None = None,
        columns: int | None = None,
        everywhere: bool = False,
        tied: bool | None = None,
    ) -> None:
        """The input embedding: on the first stage, and on the last too where the LM head shares it.

        Gemma and a few others build it on every stage (`everywhere`).
        """
        config = self.config
        rows = config.int("vocab_size") if rows is None else rows
        columns = config.int("hidden_size") if columns is None else columns
        tied = config.flag("tie_word_embeddings") if tied is None else tied
        stages = [EVERY] if everywhere else [FIRST, LAST] if tied else [FIRST]
        for stage in stages:
            self.modules.append(Vocabulary(name=self.named(name), stage=stage, rows=rows, columns=columns))

    def head(
        self,
        name: str = "lm_head",
        *,
        rows: int | None = None,
        columns: int | None = None,
        bias: bool = False,
        tied_to: str | None = "model.embed_tokens",
        tied: bool | None = None,
        padding: int = 64,
        quantizable: bool = True,
        everywhere: bool = False,
    ) -> None:
        """The LM head on the last stage, or on all; a tied one has no weight of its own."""
        if self.headless:
            return
        config = self.config
        tied = config.flag("tie_word_embeddings") if tied is None else tied
        self.modules.append(
            Vocabulary(
                name=self.named(name),
                stage=EVERY if everywhere else LAST,
                rows=config.int("vocab_size") if rows is None else rows,
                columns=config.int("hidden_size") if columns is None else columns,
                head=quantizable,
                bias=bias,
                tied_to=self.named(tied_to) if tied and tied_to else None,
                padding=padding,
            )
        )

    def final_norm(
        self,
        name: str = "model.norm",
        *,
        bias: bool = False,
        size: int | None = None,
        everywhere: bool = False,
    ) -> None:
        self.scope("", EVERY if everywhere else LAST).norm(name, size, bias=bias)

    def finish(self, *, bias: bool = False, everywhere: bool = False) -> None:
        """The last norm and the head, by the names that most models give them."""
        self.final_norm(bias=bias, everywhere=everywhere)
        self.head(everywhere=everywhere)

    # -- Facts of the language model that most builders ask for

    @property
    def hidden_size(self) -> int:
        return self.config.int("hidden_size")

    @property
    def head_size(self) -> int:
        size = self.config.maybe_int("head_dim")
        return size or self.hidden_size // self.config.int("num_attention_heads")

    @property
    def kv_heads(self) -> int:
        heads = self.config.maybe_int("num_key_value_heads")
        return self.config.int("num_attention_heads") if heads is None else heads

    def sliding_window(self) -> int | None:
        """The window, unless the configuration or the command line turns sliding off."""
        if self.options.disable_sliding_window or not self.config.flag("use_sliding_window", True):
            return None
        return self.config.maybe_int("sliding_window") or None

    def layer_types(self) -> list[str]:
        """What each layer attends to, as the file says, or as Qwen's classes derive it; empty: one kind."""
        given = self.config.items_of("layer_types")
        first = self.config.maybe_int("max_window_layers")
        if given or first is None or self.sliding_window() is None:
            return [str(kind) for kind in given]
        count = self.config.layers()
        return ["sliding_attention" if index >= first else "full_attention" for index in range(count)]

    def model_window(self) -> int | None:
        """The window of layers that do not name their own: set where no layer types are mixed
        (engine/arg_utils.py:create_engine_config)."""
        types = self.layer_types()
        if types and any(kind != "sliding_attention" for kind in types):
            return None
        return self.sliding_window()

    def layer_window(self, index: int) -> int | None:
        """The window of a layer by `layer_types`, or the model's own."""
        types = self.layer_types()
        if not types:
            return self.model_window()
        if index < len(types) and types[index] == "sliding_attention":
            return self.sliding_window()
        return None


class Scope:
    """A place in the module tree: a name, the stage it lives on, and the encoder it belongs to, if any."""

    __slots__ = ("builder", "prefix", "stage", "tower")

    def __init__(self, builder: Builder, prefix: str, stage: Stage, tower: str | None) -> None:
        self.builder = builder
        self.prefix = prefix
        self.stage = stage
        self.tower = tower

    def __truediv__(self, name: str) -> Scope:
        """The place below: `layer / "self_attn"`."""
        return Scope(self.builder, self._name(name), self.stage, self.tower)

    def _name(self, name: str) -> str:
        return f"{self.prefix}.{name}" if self.prefix and name else self.prefix or name

    # -- Single modules

    def linear(
        self,
        kind: LinearKind,
        name: str,
        in_size: int,
        parts: Parts,
        *,
        bias: bool = False,
        quantizable: bool = True,
        dtype: str | None = None,
        spreads_tokens: bool = False,
        undivided_with: frozenset[str] = frozenset(),
        divides: int = 0,
        multiple: int = 1,
        **heads: Any,
    ) -> None:
        if isinstance(parts, int):
            parts = ((name.rpartition(".")[2], parts),)
        self.builder.modules.append(
            Linear(
                name=self._name(name),
                stage=self.stage,
                kind=kind,
                in_size=in_size,
                parts=tuple(Part(*part) for part in parts),
                bias=bias,
                quantizable=quantizable,
                dtype=dtype,
                tower=self.tower,
                spreads_tokens=spreads_tokens,
                undivided_with=undivided_with,
                divides=divides,
                multiple=multiple,
                **heads,
            )
        )

    def column(self, name: str, in_size: int, parts: Parts, **more: Any) -> None:
        """Divided over the output; several parts are a merged layer."""
        self.linear("column", name, in_size, parts, **more)

    def row(self, name: str, in_size: int, out_size: int, **more: Any) -> None:
        """Divided over the input."""
        self.linear("row", name, in_size, out_size, **more)

    def replicated(self, name: str, in_size: int, parts: Parts, **more: Any) -> None:
        self.linear("replicated", name, in_size, parts, **more)

    def qkv(
        self,
        name: str,
        in_size: int,
        *,
        heads: int,
        kv_heads: int,
        head_size: int,
        head_size_v: int | None = None,
        names: Sequence[str] = ("q_proj", "k_proj", "v_proj"),
        **more: Any,
    ) -> None:
        """Query, key and value projection; `names` are the checkpoint's, one name if it holds them fused."""
        value_size = head_size if head_size_v is None else head_size_v
        sizes = (heads * head_size, kv_heads * head_size, kv_heads * value_size)
        if len(names) == 1:
            names = (names[0],) * 3
        self.linear(
            "qkv",
            name,
            in_size,
            tuple(zip(names, sizes, strict=True)),
            heads=heads,
            kv_heads=kv_heads,
            head_size=head_size,
            head_size_v=value_size,
            **more,
        )

    def plain(
        self, name: str, *shape: int, axis: int | None = None, dtype: str | None = None, multiple: int = 1
    ) -> None:
        self.builder.modules.append(
            Plain(
                name=self._name(name),
                stage=self.stage,
                shape=shape,
                axis=axis,
                multiple=multiple,
                dtype=dtype,
                tower=self.tower,
            )
        )

    def norm(self, name: str, size: int | None = None, *, bias: bool = False, dtype: str | None = None) -> None:
        """A normalization: one weight per element, and a bias for LayerNorm."""
        size = self.builder.hidden_size if size is None else size
        self.plain(f"{name}.weight", size, dtype=dtype)
        if bias:
            self.plain(f"{name}.bias", size, dtype=dtype)

    def norms(self, *names: str, bias: bool = False) -> None:
        for name in names:
            self.norm(name, bias=bias)

    def embedding(self, name: str, rows: int, columns: int, *, padding: int = 64) -> None:
        """An embedding divided over its rows."""
        self.builder.modules.append(
            Vocabulary(
                name=self._name(name),
                stage=self.stage,
                rows=rows,
                columns=columns,
                padding=padding,
                tower=self.tower,
            )
        )

    def experts(
        self,
        name: str,
        count: int,
        intermediate_size: int,
        *,
        top_k: int,
        hidden_size: int | None = None,
        **more: Any,
    ) -> None:
        self.builder.modules.append(
            Experts(
                name=self._name(name),
                stage=self.stage,
                count=count,
                top_k=top_k,
                hidden_size=self.builder.hidden_size if hidden_size is None else hidden_size,
                intermediate_size=intermediate_size,
                **more,
            )
        )

    def buffer(self, name: str, *shape: int, dtype: str | None = None, parts: Sequence[Part] = ()) -> None:
        """Memory by its full name; neighbors that share one pass the same."""
        self.builder.buffers.append(
            Buffer(name=name, stage=self.stage, shape=shape, parts=tuple(parts), dtype=dtype, tower=self.tower)
        )

    # -- Caches

    def cache(
        self,
        name: str,
        *,
        heads: int,
        kv_heads: int,
        head_size: int,
        head_size_v: int | None = None,
        window: int | None = None,
        kind: AttentionKind | None = None,
        sinks: bool = False,
        backend: str | None = None,
        shared: bool = False,
        quantizable: bool = True,
    ) -> None:
        """The cache of an attention layer; `shared` ones read another layer's."""
        self.builder.modules.append(
            Attention(
                name=self._name(name),
                stage=self.stage,
                kv_heads=kv_heads,
                quantizable=quantizable and self.builder.quantized_caches,
                scale_dtype=self.builder.scale_dtype,
            )
        )
        if shared:
            return
        self.builder.caches.append(
            AttentionCache(
                name=self._name(name),
                stage=self.stage,
                kind=kind or ("full" if window is None else "sliding"),
                heads=heads,
                kv_heads=kv_heads,
                head_size=head_size,
                head_size_v=head_size if head_size_v is None else head_size_v,
                window_tokens=window,
                sinks=sinks,
                backend=backend,
            )
        )

    def latent_cache(self, name: str, *, heads: int, rank: int, rope_size: int, sparse: bool = False) -> None:
        self.builder.modules.append(Attention(name=self._name(name), stage=self.stage, kv_heads=1, latent=True))
        self.builder.caches.append(
            LatentCache(
                name=self._name(name),
                stage=self.stage,
                heads=heads,
                kv_lora_rank=rank,
                rope_size=rope_size,
                sparse=sparse,
            )
        )

    def indexer_cache(self, name: str, bytes_per_token: int, **more: Any) -> None:
        self.builder.caches.append(
            IndexerCache(name=self._name(name), stage=self.stage, bytes_per_token=bytes_per_token, **more)
        )

    def packed_cache(self, name: str, backend: str, row_bytes: int, **more: Any) -> None:
        self.builder.caches.append(
            PackedCache(name=self._name(name), stage=self.stage, backend=backend, row_bytes=row_bytes, **more)
        )

    def state(self, name: str = "", **sizes: Any) -> None:
        self.builder.caches.append(StateCache(name=self._name(name), stage=self.stage, **sizes))

    def rope(
        self,
        head_size: int,
        *,
        config: Config | None = None,
        parameters: Mapping[str, Any] | None = None,
        max_position: int | None = None,
        dtype: str | None = None,
        layer_type: str | None = None,
    ) -> None:
        """The cosines and sines of a rotary embedding (layers/rotary_embedding/__init__.py:get_rope)."""
        config = self.builder.config if config is None else config
        if parameters is None:
            parameters = rope_parameters(config, layer_type)
        positions = config.int("max_position_embeddings", default=8192)
        factor = 1 if config.model_type.startswith(("qwen3_vl", "qwen3_5")) else 4
        rows = rope_cache_rows(parameters, positions if max_position is None else max_position, factor)
        columns = rotary_size(parameters, head_size)
        key = f"rope.{head_size}.{rows}.{columns}.{sorted(parameters.items(), key=str)}.{dtype}"
        self.buffer(key, rows, columns, dtype=dtype)

    # -- What most decoder layers are made of

    def attention(
        self,
        name: str = "self_attn",
        *,
        heads: int | None = None,
        kv_heads: int | None = None,
        head_size: int | None = None,
        bias: bool = False,
        out_bias: bool = False,
        qkv: str = "qkv_proj",
        names: Sequence[str] = ("q_proj", "k_proj", "v_proj"),
        out: str = "o_proj",
        head_norms: Sequence[str] = (),
        window: int | None = None,
        kind: AttentionKind | None = None,
        sinks: bool = False,
        rope: bool = True,
        cache: str = "attn",
        quantizable: bool = True,
    ) -> None:
        """Grouped-query attention with a fused projection; `head_norms` normalize each head of Q and K."""
        builder, config = self.builder, self.builder.config
        heads = config.int("num_attention_heads") if heads is None else heads
        kv_heads = builder.kv_heads if kv_heads is None else kv_heads
        head_size = builder.head_size if head_size is None else head_size
        here = self / name
        here.qkv(
            qkv,
            builder.hidden_size,
            heads=heads,
            kv_heads=kv_heads,
            head_size=head_size,
            names=names,
            bias=bias,
            quantizable=quantizable,
        )
        here.row(out, heads * head_size, builder.hidden_size, bias=out_bias, quantizable=quantizable)
        for norm in head_norms:
            here.norm(norm, head_size)
        if rope:
            here.rope(head_size)
        here.cache(cache, heads=heads, kv_heads=kv_heads, head_size=head_size, window=window, kind=kind, sinks=sinks)

    def gated_mlp(
        self,
        name: str = "mlp",
        intermediate_size: int | None = None,
        *,
        hidden_size: int | None = None,
        bias: bool = False,
        fused: str = "gate_up_proj",
        names: Sequence[str] = ("gate_proj", "up_proj"),
        down: str = "down_proj",
        quantizable: bool = True,
        replicated: bool = False,
        spreads_tokens: bool = False,
    ) -> None:
        """Gate and up fused, then down (models/llama.py:LlamaMLP); `replicated` on every rank alike."""
        size = self.builder.config.int("intermediate_size") if intermediate_size is None else intermediate_size
        hidden = self.builder.hidden_size if hidden_size is None else hidden_size
        here = self / name
        parts = ((names[0], size), (names[-1], size))
        kinds: tuple[LinearKind, LinearKind] = ("replicated",) * 2 if replicated else ("column", "row")
        more: dict[str, Any] = {"bias": bias, "quantizable": quantizable, "spreads_tokens": spreads_tokens}
        here.linear(kinds[0], fused, hidden, parts, **more)
        here.linear(kinds[1], down, size, hidden, **more)

    def mlp(
        self,
        name: str,
        up: str,
        down: str,
        intermediate_size: int,
        *,
        hidden_size: int | None = None,
        out_size: int | None = None,
        bias: bool = True,
        quantizable: bool = True,
        spreads_tokens: bool = False,
        divides: int = 0,
    ) -> None:
        """Up and down with an activation between."""
        hidden = self.builder.hidden_size if hidden_size is None else hidden_size
        here = self / name
        more: dict[str, Any] = {
            "bias": bias,
            "quantizable": quantizable,
            "spreads_tokens": spreads_tokens,
            "divides": divides,
        }
        here.column(up, hidden, intermediate_size, **more)
        here.row(down, intermediate_size, hidden if out_size is None else out_size, **more)
