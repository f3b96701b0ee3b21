"""A checkpoint's tensors against the modules that its configuration describes.

vLLM creates its parameters from the configuration and copies the checkpoint into them, so the configuration decides
what is in memory. The tensors confirm it: each belongs to a module, or is one that vLLM leaves out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from autofit.domain.model import ModelSpec, TensorInfo
from autofit.errors import UnsupportedModelError
from autofit_vllm.dtypes import SAFETENSORS
from autofit_vllm.model import VllmModel


def check_against_tensors(model: VllmModel, spec: ModelSpec) -> VllmModel:
    return model


def bound_model(spec: ModelSpec) -> VllmModel:
    raise UnsupportedModelError(f"{spec.name}: architecture not known")
