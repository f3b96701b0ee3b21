"""How long a sequence may be (config/model.py:_get_and_verify_max_len)."""

from __future__ import annotations

from autofit.errors import EngineRefusalError

from autofit_vllm.command.flags import AUTO_LENGTH
from autofit_vllm.command.settings import VllmSettings
from autofit_vllm.modules.model import VllmModel

_NO_KEY_LENGTH = 2048  #: config/model.py: when the configuration names no length


def resolve_max_len(settings: VllmSettings, model: VllmModel) -> int:
    """`--max-model-len` checked against the model's own (config/model.py:_get_and_verify_max_len)."""
    wanted = settings.max_model_len
    if wanted is not None and wanted != AUTO_LENGTH and wanted < 1:
        raise EngineRefusalError(f"max_model_len must be a positive integer, got {wanted}")
    derived, key = model.max_len_tokens, model.max_len_key
    default = model.default_len_tokens
    window = model.sliding_window
    if settings.disable_sliding_window and window is not None and (derived is None or window < derived):
        derived = default = window
        key = "sliding_window"
    if derived is None:
        return wanted if wanted is not None and wanted != AUTO_LENGTH else _NO_KEY_LENGTH
    if wanted is None or wanted == AUTO_LENGTH:
        return default or derived
    if wanted > derived:
        longer = model.config.get("model_max_length")
        allowed = settings.env.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "0") not in ("", "0")
        if not allowed and not (isinstance(longer, int) and wanted <= longer):
            raise EngineRefusalError(
                f"User-specified max_model_len ({wanted}) is greater than the derived max_model_len "
                f"({key}={derived} or model_max_length={longer} in model's config.json).",
                hint="VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 allows it, at the risk of wrong results",
            )
    return wanted
