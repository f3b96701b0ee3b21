"""`autofit.tune`: what an engine's class is started with, and the service that does so."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import autofit
import pytest
from autofit import NoFitError, UsageError

from support import ROOT

CARD = autofit.load_machine("rtx-3090", ram="64GiB")


class Llama:
    """The signature of llama-cpp-python 0.3.36, as far as a plan fills it in."""

    def __init__(
        self,
        model_path: str,
        *,
        n_gpu_layers: int = 0,
        split_mode: int = 1,
        main_gpu: int = 0,
        tensor_split: list[float] | None = None,
        n_ctx: int = 512,
        n_batch: int = 512,
        n_ubatch: int = 512,
        flash_attn: bool = False,
        swa_full: bool | None = None,
        type_k: int | None = None,
        type_v: int | None = None,
        offload_kqv: bool = True,
        use_mmap: bool = True,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
    ) -> None:
        self.given = {name: value for name, value in locals().items() if name != "self"}

    def __call__(self, prompt: str, *, max_tokens: int) -> dict[str, Any]:
        return {"choices": [{"text": f"{prompt} ({max_tokens})"}]}

    def close(self) -> None:
        self.given = {}


Llama.__module__, Llama.__qualname__ = "llama_cpp.llama", "Llama"


def test_a_class_its_name_and_one_derived_from_it() -> None:
    class Mine(Llama):
        pass

    found = autofit.tune(Llama, "example:tiny", CARD, settings=None, context="2k")
    assert found["n_ctx"] == 2048
    assert Llama(**found).given["n_gpu_layers"] == found["n_gpu_layers"] > 0
    assert autofit.tune(Mine, "example:tiny", CARD, settings=None, context="2k") == found
    assert autofit.tune("llama_cpp.Llama", "example:tiny", CARD, settings=None, context="2k") == found


def test_arguments_are_those_of_the_plan() -> None:
    plan = autofit.plan("llama", "example:tiny", CARD, settings=None, engine_args=["-b", "64"])
    found = autofit.tune(Llama, "example:tiny", CARD, settings=None, engine_args=["-b", "64"])
    assert found == plan.kwargs
    assert found["n_batch"] == 64


def test_vllm() -> None:
    model = str(ROOT / "tests/data/vllm/configs/qwen3-0.6b")
    found = autofit.tune("vllm.LLM", model, CARD, settings=None, context="4k")
    assert (found["model"], found["max_model_len"]) == (model, 4096)


def test_nothing_fits() -> None:
    small = autofit.load_machine("cpu", ram="2GiB")
    with pytest.raises(NoFitError, match="does not fit") as raised:
        autofit.tune(Llama, "example:mixtral-8x7b-q4_k_m", small, settings=None)
    assert raised.value.exit_code == 3
    assert not raised.value.plan.fits
    assert raised.value.hint


@pytest.mark.parametrize(
    ("engine", "cause"),
    [
        (dict, "no backend plans for the class builtins.dict"),
        ("llama_cpp.Lama", "no backend plans for the class llama_cpp.Lama"),
        (3, "takes a class or its name first, not int"),
    ],
)
def test_what_is_no_class_of_an_engine(engine: Any, cause: str) -> None:
    with pytest.raises(UsageError, match=cause) as raised:
        autofit.tune(engine, "example:tiny", CARD)
    assert raised.value.hint == "known: llama_cpp.Llama, vllm.LLM"


def test_a_class_that_lacks_an_argument() -> None:
    class Old:
        def __init__(self, model_path: str, n_ctx: int, n_gpu_layers: int) -> None: ...

    Old.__module__, Old.__qualname__ = "llama_cpp", "Llama"
    with pytest.raises(UsageError, match="takes no n_batch"):
        autofit.tune(Old, "example:tiny", CARD, settings=None)


def test_what_the_class_cannot_say() -> None:
    cards = autofit.load_machine("rtx-3090", "rtx-3060-12gb", ram="64GiB")
    with pytest.raises(UsageError, match=r"llama_cpp\.Llama: no keyword arguments"):
        autofit.tune(Llama, "example:tiny", cards, settings=None, engine_args=["-dev", "CUDA1,CUDA0"])


def test_the_example_service_plans_at_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    testclient = pytest.importorskip("fastapi.testclient")
    engine = types.ModuleType("llama_cpp")
    engine.Llama = Llama  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "llama_cpp", engine)
    monkeypatch.syspath_prepend(ROOT / "examples" / "service")
    monkeypatch.setenv("MODEL", "example:tiny")
    monkeypatch.setenv("CONTEXT", "1k")
    import service

    with testclient.TestClient(service.app) as client:
        settings = client.get("/settings").json()
        assert settings["n_ctx"] == 1024
        assert Path(settings["model_path"]).is_file()
        assert client.post("/complete", json={"prompt": "hi", "max_tokens": 8}).json() == {"text": "hi (8)"}
        refused = client.post("/complete", json={"prompt": "hi", "max_tokens": 4096})
        assert (refused.status_code, "context of 1024" in refused.text) == (422, True)
