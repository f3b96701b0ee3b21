"""The registry's generator: what a class says of itself, read without importing it."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from support import ROOT

FILES = {
    "vllm/__init__.py": "raise SystemExit('imported')",
    "vllm/model_executor/models/registry.py": """
import torch
_TEXT_GENERATION_MODELS = {
    # a comment
    "AForCausalLM": ("a", "AForCausalLM"),
    "BForCausalLM": (
        "vllm.models.b",
        "BForCausalLM",
    ),
}
_EMBEDDING_MODELS = {
    "AModel": ("a", "AModel"),
    "BertModel": ("bert", "BertModel"),
    **{k: (mod, arch) for k, (mod, arch) in _TEXT_GENERATION_MODELS.items() if arch == "AForCausalLM"},
}
_LATE_INTERACTION_MODELS = {}
_REWARD_MODELS = {}
_TOKEN_CLASSIFICATION_MODELS = {"BertForTokens": ("bert", "BertForTokens")}
_SEQUENCE_CLASSIFICATION_MODELS = {"ASeq": ("a", "ASeq")}
_MULTIMODAL_MODELS = {"SeesForGeneration": ("sees", "SeesForGeneration")}
_TRANSFORMERS_SUPPORTED_MODELS = {}
_TRANSFORMERS_BACKEND_MODELS = {}
_VLLM_MODELS = {**_TEXT_GENERATION_MODELS, **_EMBEDDING_MODELS}
_PREVIOUSLY_SUPPORTED_MODELS = {"OldForCausalLM": "0.9.2"}
""",
    "vllm/model_executor/models/interfaces.py": """
class SupportsPP(Protocol):
    supports_pp: ClassVar[Literal[True]] = True
    def forward(self, input_ids, *, intermediate_tensors): ...
class SupportsLoRA(Protocol):
    supports_lora: ClassVar[Literal[True]] = True
class SupportsMultiModal(Protocol):
    supports_multimodal: ClassVar[Literal[True]] = True
class IsHybrid(Protocol):
    is_hybrid: ClassVar[Literal[True]] = True
""",
    "vllm/model_executor/models/a.py": """
from .interfaces import SupportsLoRA, SupportsPP
class AForCausalLM(nn.Module, SupportsLoRA, SupportsPP):
    def forward(self, input_ids, positions, intermediate_tensors=None): ...
class AModel(AForCausalLM):
    supports_lora = False
ASeq = as_seq_cls_model(AForCausalLM)
""",
    "vllm/models/b/__init__.py": """
from vllm.platforms import current_platform
if current_platform.is_rocm():
    from .amd import BForCausalLM
else:
    from .nvidia import BForCausalLM
""",
    "vllm/models/b/amd.py": "class BForCausalLM: ...",
    "vllm/models/b/nvidia.py": """
import vllm.model_executor.models.interfaces as other
from vllm.model_executor.models.interfaces import IsHybrid, SupportsPP
class BForCausalLM(nn.Module, SupportsPP, IsHybrid):
    def forward(self, input_ids): ...
""",
    "vllm/model_executor/models/bert.py": """
@default_pooling_type(seq_pooling_type="CLS")
class BertModel(nn.Module):
    is_pooling_model = True
@attn_type("encoder_only")
@default_pooling_type(tok_pooling_type="ALL")
class BertForTokens(nn.Module): ...
""",
    "vllm/model_executor/models/sees.py": """
from .a import AForCausalLM
from .interfaces import SupportsMultiModal
class SeesForGeneration(AForCausalLM, SupportsMultiModal): ...
""",
}


@pytest.fixture(scope="module")
def generator() -> Iterator[ModuleType]:
    folder = str(ROOT / "tools" / "gen")
    sys.path.insert(0, folder)
    try:
        import vllm_registry

        yield vllm_registry
    finally:
        sys.path.remove(folder)


def written(generator: ModuleType, path: Path) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    exec(generator.registry(generator.Package(path)), found)
    return found


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "vllm-9.9.9-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in FILES.items():
            archive.writestr(name, text)
    return path


def test_classes_and_abilities(generator: ModuleType, wheel: Path) -> None:
    found = written(generator, wheel)
    assert found["CLASSES"] == {
        "AForCausalLM": "a:AForCausalLM pipeline lora",
        "AModel": "a:AModel pipeline pooling",
        "ASeq": "a:ASeq pipeline lora pooling",
        "BForCausalLM": "vllm.models.b:BForCausalLM hybrid",  # its forward takes no intermediate tensors
        "BertForTokens": "bert:BertForTokens pooling encoder_only",
        "BertModel": "bert:BertModel pooling encoder_only",
        "SeesForGeneration": "sees:SeesForGeneration pipeline lora multimodal",
    }
    assert found["DROPPED"] == {"OldForCausalLM": "0.9.2"}
    assert "vLLM 9.9.9: do not edit" in found["__doc__"]  # type: ignore[operator]


def test_a_directory_is_as_good_as_a_wheel(generator: ModuleType, wheel: Path, tmp_path: Path) -> None:
    folder = tmp_path / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    assert written(generator, folder)["CLASSES"] == written(generator, wheel)["CLASSES"]


def test_a_class_that_is_not_there_is_an_error(generator: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "vllm-9.9.9.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in FILES.items():
            archive.writestr(name, text.replace("class BertModel", "class BertModell"))
    with pytest.raises(SystemExit, match=r"BertModel: vllm\.model_executor\.models\.bert has no class BertModel"):
        generator.registry(generator.Package(path))
