"""The flag table's generator: what vLLM's parser would make of its fields, read without importing it."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import ROOT

FILES = {
    "vllm/__init__.py": "raise SystemExit('imported')",
    "vllm/entrypoints/common/cli_args.py": """
from vllm.words import *
@config
class BaseFrontendArgs:
    chat_kwargs: dict[str, Any] | None = None
    @classmethod
    def _customize_cli_kwargs(cls, frontend_kwargs):
        frontend_kwargs["chat_kwargs"]["type"] = json.loads
@config
class FrontendArgs(BaseFrontendArgs):
    form: Form = "auto"
    origins: list[str] = field(default_factory=list)
    middleware: list[str] = field(default_factory=lambda: [])
    @classmethod
    def _customize_cli_kwargs(cls, frontend_kwargs):
        frontend_kwargs["origins"]["type"] = json.loads
        del frontend_kwargs["origins"]["nargs"]
        frontend_kwargs["middleware"]["action"] = "append"
def make_arg_parser(parser):
    parser.add_argument("model_tag", type=str, nargs="?")
    parser.add_argument("--headless", action="store_true", default=False)
    return parser
""",
    "vllm/words.py": "Form = Literal['auto', 'string', 'openai']",
    "vllm/engine/arg_utils.py": """
from vllm.config import ModelConfig, SpeculativeConfig
REMOVED = "moe"
def _compute_kwargs(cls):
    counts = {"max_tokens"}
class EngineArgs:
    @staticmethod
    def add_cli_args(parser):
        model_kwargs = get_kwargs(ModelConfig)
        if not ("serve" in sys.argv):
            parser.add_argument("--model", **model_kwargs["model"])
        model_kwargs["backend"]["choices"].remove(REMOVED)
        parser.add_argument("--backend", "-b", **model_kwargs["backend"])
        parser.add_argument("--max-tokens", **{**model_kwargs["max_tokens"], "default": None})
        parser.add_argument("--max-model-len", **model_kwargs["max_model_len"])
        parser.add_argument("--eager", **model_kwargs["eager"])
        parser.add_argument("--level", **model_kwargs["level"])
        parser.add_argument("--hub", **model_kwargs["hub"])
        parser.add_argument("--loader", **model_kwargs["loader"])
        parser.add_argument("--sizes", **model_kwargs["sizes"])
        parser.add_argument("--inner", **model_kwargs["inner"])
        parser.add_argument("--speculative-config", type=optional_type(json.loads))
        kernel_kwargs = model_kwargs["backend"]
        kernel_kwargs["type"] = lambda s: s.lower().replace("-", "_")
        parser.add_argument("--kernel", dest="kernel_backend", **kernel_kwargs)
class AsyncEngineArgs(EngineArgs):
    @staticmethod
    def add_cli_args(parser):
        parser.add_argument("--log", action=argparse.BooleanOptionalAction)
""",
    "vllm/config/__init__.py": """
from vllm.config.model import InnerConfig, ModelConfig, SpeculativeConfig
""",
    "vllm/config/model.py": """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from vllm.loader import LoaderConfig
else:
    LoaderConfig = Any
class Level(enum.IntEnum):
    LOW = 0
    HIGH = 3
@config
class InnerConfig:
    mode: Literal["a", "b"] = "a"
    level: Level = Level.LOW
    deep: "DeepConfig | None" = None
    computed: int = field(init=False)
@config
class DeepConfig:
    size: int = 1
@config
class ModelConfig:
    model: str = "x"
    backend: Literal["moe", "triton", "auto"] = "auto"
    max_tokens: int | None = Field(default=None, ge=1)
    max_model_len: int = Field(default=None, ge=-1)
    eager: bool | None = None
    level: Level = Level.LOW
    hub: bool | str | None = None
    loader: dict | LoaderConfig = Field(default_factory=dict)
    sizes: list[int] | None = None
    inner: InnerConfig | None = None
    hidden: InitVar[int | None] = None
@config
class SpeculativeConfig:
    method: Literal["mtp", "ngram"] | None = None
    target_model_config: ModelConfig = None
""",
    "vllm/config/offload.py": "",
    "vllm/config/quantization.py": "",
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    path = tmp_path_factory.mktemp("wheel") / "vllm-9.9.9-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in FILES.items():
            archive.writestr(name, text)
    folder = str(ROOT / "tools" / "gen")
    sys.path.insert(0, folder)
    try:
        import vllm_flags

        yield json.loads(vllm_flags.flags(vllm_flags.Package(Path(path))))
    finally:
        sys.path.remove(folder)


def test_the_table_says_what_it_was_made_from(table: dict[str, Any]) -> None:
    assert table["version"] == "9.9.9"
    assert "do not edit" in table["generated"]


def test_options_in_the_order_of_the_parser(table: dict[str, Any]) -> None:
    names = "headless chat-kwargs form origins middleware model backend max-tokens max-model-len eager level hub loader"
    expected = [f"--{name}" for name in f"{names} sizes inner speculative-config kernel log".split()]
    assert [row["options"][0] for row in table["options"]] == expected


INNER = {"mode": ["a", "b"], "level": ["0", "3", "HIGH", "LOW"], "deep": {"size": None}}


@pytest.mark.parametrize(
    ("dest", "row"),
    [
        ("headless", {"kind": "true", "frontend": True}),
        ("chat_kwargs", {"kind": "json", "frontend": True}),
        ("form", {"kind": "str", "choices": ["auto", "openai", "string"], "frontend": True}),
        ("origins", {"kind": "json", "frontend": True}),
        ("middleware", {"kind": "append", "frontend": True}),
        ("backend", {"kind": "str", "choices": ["auto", "triton"]}),
        ("max_tokens", {"kind": "count", "optional": True, "limits": {"ge": 1}}),
        ("max_model_len", {"kind": "length", "limits": {"ge": -1}}),
        ("eager", {"kind": "switch"}),
        ("level", {"kind": "str", "limits": {"one_of": ["0", "3"]}}),
        ("hub", {"kind": "str", "nargs": "?"}),
        ("loader", {"kind": "json or str"}),
        ("sizes", {"kind": "int", "optional": True, "nargs": "+"}),
        ("inner", {"kind": "config", "optional": True, "keys": INNER}),
        ("speculative_config", {"kind": "json", "optional": True, "keys": {"method": ["mtp", "ngram"]}}),
        ("kernel_backend", {"kind": "word", "choices": ["auto", "triton"]}),
        ("log", {"kind": "switch"}),
    ],
)
def test_a_field_becomes_an_option(table: dict[str, Any], dest: str, row: dict[str, Any]) -> None:
    found = next(each for each in table["options"] if each["dest"] == dest)
    assert {key: value for key, value in found.items() if key not in ("options", "dest")} == row


def test_the_committed_table_says_where_it_is_from() -> None:
    data = json.loads((ROOT / "plugins" / "autofit_vllm" / "command" / "flags-0.33.0.json").read_text("utf-8"))
    assert data["generated"] == f"tools/gen/vllm_flags.py from vLLM {data['version']}: do not edit"
