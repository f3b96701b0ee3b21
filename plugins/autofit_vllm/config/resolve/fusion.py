"""What a compiled model joins with its all-reduces: the sum over ranks and the norm behind it are one kernel, which
exchanges through a buffer of its own."""

from __future__ import annotations

from autofit.domain.units import MIB

from autofit_vllm.command.settings import VllmSettings
from autofit_vllm.config.engine import Gpu, GraphMode
from autofit_vllm.engine.versions import Change, Engine
from autofit_vllm.modules.dtypes import dtype_bytes
from autofit_vllm.modules.model import VllmModel

FUSED_ALLREDUCE = Change(
    since="0.17.0",
    source="config/vllm.py:enable_allreduce_rms_fusion",
    before="0.16.0: fuse_allreduce_rms is off at every optimization level",
)
#: Bytes of activations up to which they are joined, by compute capability and ranks
#: (compilation/passes/fusion/allreduce_rms_fusion.py:FI_ALLREDUCE_FUSION_MAX_SIZE_MB)
_MOST_BYTES: dict[int, dict[int, int]] = {
    90: {2: 64 * MIB, 4: 2 * MIB, 8: MIB // 2},
    100: {2: 64 * MIB, 4: 32 * MIB, 8: MIB},
    103: {2: 64 * MIB, 4: 64 * MIB, 8: 4 * MIB},
}
#: A buffer of every rank's part, and three more in turn (flashinfer 0.7.4:
#: trtllm_create_ipc_workspace_for_all_reduce_fusion).
_BUFFERS = 4

#: Models that vLLM does not compile, whose kernels start one by one between breaks of the graph, by the first release
#: that does so (config/vllm.py:DEFAULT_BREAKABLE_CUDAGRAPH_ARCHITECTURES)
_UNCOMPILED: dict[str, tuple[str, ...]] = {
    "0.23.0": ("DeepseekV4ForCausalLM",),
    "0.24.0": ("MiniMaxM3SparseForCausalLM", "MiniMaxM3SparseForConditionalGeneration"),
    "0.26.0": ("InklingForCausalLM", "InklingForConditionalGeneration"),
    "0.27.0": ("KimiK3ForConditionalGeneration", "KimiLinearForCausalLM"),
    "0.29.0": ("DeepseekV32ForCausalLM", "Dots3NoteForCausalLM", "GlmMoeDsaForCausalLM", "HYV4ForCausalLM"),
    "0.30.0": (
        "DeepseekV41ForCausalLM", "DeepseekV4ForConditionalGeneration", "Glm5NextForCausalLM",
        "Glm5NextForConditionalGeneration", "Qwen4ExpForCausalLM", "Qwen4ExpForConditionalGeneration",
    ),
    "0.33.0": (
        "AliceAIForCausalLM", "BeamForCausalLM", "MuseSpark1xForCausalLM", "MuseSparkForConditionalGeneration",
        "Step5ForCausalLM", "Step5ForConditionalGeneration",
    ),
}  # fmt: skip


def is_compiled(architecture: str, engine: Engine) -> bool:
    """Whether a release compiles the model of this architecture, where nothing else is asked for."""
    return not any(
        engine.has(Change(since=since, source="config/vllm.py:DEFAULT_BREAKABLE_CUDAGRAPH_ARCHITECTURES", before=""))
        for since, names in _UNCOMPILED.items()
        if architecture in names
    )


def fused_allreduce_bytes(
    settings: VllmSettings, model: VllmModel, gpu: Gpu, mode: GraphMode, dtype: str, tp: int, tokens: int
) -> int:
    """Bytes of the buffer on each rank, for `tp` ranks and steps of `tokens` at most; 0 where nothing is joined
    (compilation/passes/fusion/allreduce_rms_fusion.py:AllReduceFusionPass)."""
    engine = settings.version
    most = _MOST_BYTES.get(gpu.capability, {}).get(tp, 0)
    wish = settings.compilation_config.get("pass_config")
    asked = wish.get("fuse_allreduce_rms") if isinstance(wish, dict) else None
    by_default = settings.optimization_level not in ("0", "1") and engine.has(FUSED_ALLREDUCE)
    joins = bool(asked) if asked is not None else by_default
    if gpu.cpu or not joins or mode in ("NONE", "FULL_DECODE_ONLY") or not is_compiled(model.architecture, engine):
        return 0
    row = model.hidden_size * dtype_bytes(dtype)
    return _BUFFERS * tp * row * min(most // row, tokens)
