"""Findings about the settings themselves: what is not counted, what contradicts, what a command may hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autofit.domain.model import ModelSpec
from autofit.domain.plan import Finding
from autofit.domain.text import printable

from autofit_vllm.checkpoint.draft import (
    draft_reference,
    is_here,
)
from autofit_vllm.command.renamed import OMNI
from autofit_vllm.command.settings import VllmSettings
from autofit_vllm.modules.model import VllmModel
from autofit_vllm.planning.codes import finding
from autofit_vllm.planning.evaluation import Evaluation

if TYPE_CHECKING:
    from autofit_vllm.planning.load import Load


def capacity_findings(evaluation: Evaluation, load: Load | None) -> list[Finding]:
    if load is None:
        return []
    from autofit_vllm.planning.load import capacity_finding

    return capacity_finding(evaluation, load)


def draft_findings(settings: VllmSettings, model: ModelSpec) -> list[Finding]:
    reference = draft_reference(settings)
    if reference is None or "draft" in model.companions or is_here(reference):
        return []
    message = (
        f"the draft model {printable(reference, 80)} is not on this machine: its weights and KV cache are not counted; "
        "download it, or give its path"
    )
    return [finding("draft-unknown", message)]


def code_findings(settings: VllmSettings, model: ModelSpec) -> list[Finding]:
    """That a checkpoint brings code of its own, which only the user lets run."""
    named = model.metadata.get("auto_map")
    if not named or settings.given.get("trust_remote_code"):
        return []
    message = (
        "config.json names code of the checkpoint's own (auto_map): where vLLM does not know the model, it asks "
        "for --trust-remote-code, which runs that code and is never added here"
    )
    return [Finding(severity="info", code="remote-code", message=message)]


def usage_findings(settings: VllmSettings, model: VllmModel) -> list[Finding]:
    found = []
    if OMNI in settings.args:
        message = "--omni hands the command to vllm-omni, whose own stages and flags are not counted here"
        found.append(finding("omni", message))
    if settings.kv_cache_memory_bytes is not None:
        found.append(
            finding(
                "kv-memory-given",
                "--kv-cache-memory-bytes replaces the measurement; the check of free memory against "
                "--gpu-memory-utilization still applies",
            )
        )
    if settings.offload_group_size and settings.cpu_offload_gb:
        found.append(
            finding(
                "two-offloads",
                "--offload-group-size and --cpu-offload-gb are both set: prefetch offload wins",
            )
        )
    asked, trained = settings.max_model_len, model.max_len_tokens
    if asked is not None and trained and asked > trained:
        message = f"--max-model-len {asked} is beyond the {trained} tokens that the model was trained for"
        found.append(finding("context-beyond-training", message))
    return found
