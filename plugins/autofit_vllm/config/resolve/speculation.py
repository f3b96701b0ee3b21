"""Draft tokens and the layers that make them (config/speculative.py:SpeculativeConfig)."""

from __future__ import annotations

import re

from autofit.errors import EngineRefusalError

from autofit_vllm.command.settings import VllmSettings
from autofit_vllm.modules.model import Draft, VllmModel


def resolve_speculation(settings: VllmSettings, model: VllmModel) -> tuple[str | None, int, Draft | None]:
    """(method, draft tokens, the draft's layers) (config/speculative.py:SpeculativeConfig)."""
    config = settings.speculative_config
    if not config:
        return None, 0, None
    method = config.get("method")
    if method is None:
        method = "draft_model" if config.get("model") else None
    if isinstance(method, str) and method.endswith("_mtp"):
        method = "mtp"
    if method is None:
        raise EngineRefusalError("num_speculative_tokens was provided but without speculative model.")
    if method == "mtp":
        if model.draft is None:
            raise EngineRefusalError(f"the model has no MTP layers: speculative method {method} cannot be used")
        tokens = whole(config.get("num_speculative_tokens") or model.draft.n_layers, "num_speculative_tokens")
        if tokens > model.draft.n_layers and tokens % model.draft.n_layers:
            raise EngineRefusalError(
                f"num_speculative_tokens:{tokens} must be divisible by n_predict={model.draft.n_layers}"
            )
        return method, tokens, model.draft
    tokens = whole(config.get("num_speculative_tokens") or 0, "num_speculative_tokens")
    if tokens <= 0:
        raise EngineRefusalError("num_speculative_tokens must be provided with speculative model")
    second = bool(config.get("model")) and method not in ("ngram", "ngram_gpu", "suffix", "custom_class")
    return str(method), tokens, model.draft if second else None


def whole(value: object, name: str) -> int:
    """A whole number within JSON given to a flag.

    Raises:
        EngineRefusalError: something else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)) or not re.fullmatch(r"-?[0-9]{1,18}", str(value)):
        raise EngineRefusalError(f"{name} must be a whole number, not {str(value)[:40]!r}")
    return int(value)
