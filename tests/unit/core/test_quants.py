"""`autofit.quantizations` and `autofit quants`: every form planned, and which one is taken."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import autofit
import pytest
from autofit.cli.main import main
from autofit.cli.models import described
from autofit.domain.memory import Memory, MemoryItem, PoolUse
from autofit.domain.model import ModelFile, ModelSpec, StoredModel, TensorInfo
from autofit.domain.plan import Finding, Plan, Speed
from autofit.domain.quantization import Quality, Quantization
from autofit.errors import ModelError, PluginError, UsageError
from autofit.quant_choice import Row, recommend

from support import ROOT, ggufs
from support.vllm_truth import DATA

LLAMA = "example:llama-3.1-8b-q4_k_m"
CARD = autofit.load_machine("rtx-3090", ram="64GiB")
SMALL = autofit.load_machine("rtx-3060-12gb", ram="8GiB")


def _row(
    name: str, n_bytes: int, *, rate: float = 50.0, in_ram: bool = False, fits: bool = True, context: int = 8192,
    **form: Any,
) -> Row:  # fmt: skip
    tensor = TensorInfo("t", "x", (n_bytes // 2,), n_bytes, 0, 0)
    model = ModelSpec(
        name="m", format="gguf", architecture="llama", files=(ModelFile(path="m", size_bytes=0),), tensors=(tensor,),
        layers=(), metadata={},
    )  # fmt: skip
    item = MemoryItem(kind="weights", label="w", n_bytes=n_bytes, basis="exact")
    pool = PoolUse(id="GPU0", name="g", total_bytes=None, free_bytes=None, budget_bytes=None, items=(item,))
    findings = (Finding(severity="info", code="weights-in-ram", message=""),) if in_ram else ()
    plan = Plan(
        backend="b", fits=fits, argv=(), memory=Memory(pools=(pool,)), context_tokens=context, findings=findings,
        speed=Speed(decode_tokens_per_s=rate, low=rate, high=rate),
    )  # fmt: skip
    return Row(
        backend="b",
        quantization=Quantization(name=name, model=model, weights_bytes=n_bytes, n_parameters=n_bytes // 2, **form),
        plan=plan,
    )


def _taken(*rows: Row, **options: Any) -> str | None:
    found = recommend(rows, **options)[0]
    return None if found is None else found.quantization.name


def test_the_largest_at_full_speed_is_taken() -> None:
    rows = _row("big", 800, in_ram=True), _row("mid", 600), _row("small", 400), _row("float", 700, is_float=True)
    assert _taken(*rows) == "mid"
    assert _taken(*rows, prefer="quality") == "float"
    assert recommend(rows)[1] == "the largest that fits as asked at full speed; of big a part would stay in RAM"


def test_floats_are_taken_where_nothing_else_is() -> None:
    assert _taken(_row("float", 700, is_float=True)) == "float"


def test_the_longest_context_may_be_preferred() -> None:
    rows = _row("mid", 600, context=4096), _row("small", 400, context=9000), _row("tiny", 300, context=9000)
    assert _taken(*rows, prefer="context") == "small"


def test_copies_and_forms_for_special_models_are_passed_over() -> None:
    assert _taken(_row("copy", 600, same_as="x"), _row("one-bit", 500, only_for="others"), _row("x", 400)) == "x"


def test_in_ram_the_largest_that_can_be_read_along() -> None:
    rows = [
        _row(name, size, rate=rate, in_ram=True) for name, size, rate in (("a", 900, 4), ("b", 800, 12), ("c", 700, 30))
    ]
    assert _taken(*rows) == "b"
    assert _taken(*rows, min_tokens_per_s=20.0) == "c"
    assert _taken(*rows, min_tokens_per_s=99.0) == "c"


def _bits(name: str, bits: float, *, n_parameters: int = 1000, **more: Any) -> Row:
    row = _row(name, int(bits * n_parameters / 8), **more)
    return replace(row, quantization=replace(row.quantization, n_parameters=n_parameters))


def test_few_bits_at_full_speed_are_left_for_more_that_can_be_read() -> None:
    """Of experts in RAM, say: 60 tokens/s of 1.9 bits are worth less than 5 of 4.9."""
    few, good, better = _bits("few", 1.9, rate=60), _bits("good", 4.9, rate=5.1, in_ram=True), _bits("better", 6.6, rate=3.4, in_ram=True)  # fmt: skip # noqa: E501
    best, why = recommend([better, good, few])
    assert best is good and why.endswith("; at full speed few fits, of 1.9 bits per weight")
    assert _taken(better, good, few, prefer="speed") == "few"
    assert _taken(better, good, few, min_tokens_per_s=20.0) == "few"
    assert _taken(better, _bits("good", 4.9, rate=4.0, in_ram=True), few) == "few", "nobody waits for every word"
    assert _taken(better, good, few, _bits("enough", 3.9)) == "enough"


def test_a_form_that_is_larger_and_loses_more_is_passed_over() -> None:
    def loss(value: float) -> tuple[Quality, ...]:
        return (Quality(measure="perplexity", value=value, model="m", source="s"),)

    legacy, mixture = _row("legacy", 800, quality=loss(0.45)), _row("mixture", 780, quality=loss(0.18))
    assert _taken(legacy, mixture) == "mixture"
    assert _taken(_row("unknown", 800), mixture) == "unknown"
    assert _taken(_row("larger", 800, quality=loss(0.1)), mixture) == "larger"


def test_none_where_nothing_fits() -> None:
    assert recommend([_row("a", 900, fits=False)]) == (None, "no form fits as asked")


@pytest.fixture(scope="module")
def llama() -> dict[str, Any]:
    return autofit.quantizations(LLAMA, SMALL, settings=None).to_dict(tensors=True)


def test_every_name_is_there_with_its_bytes(llama: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in llama["quantizations"]}
    assert len(rows) == 35
    assert [row["weights_bytes"] for row in rows.values()] == sorted(
        (row["weights_bytes"] for row in rows.values()), reverse=True
    )
    q4 = rows["Q4_K_M"]
    assert (q4["file_bytes"], q4["bits_per_weight"], q4["at_hand"]) == (4_919_654_080, 4.8944, True)
    assert sum(q4["types"].values()) == q4["weights_bytes"]
    assert q4["tensors"]["output.weight"] == "q6_K"
    assert rows["IQ2_XS"]["needs"] == "an importance matrix"
    assert rows["Q4_K_M"]["quality"][0]["model"] == "Llama-3-8B"


def test_a_row_is_the_plan_of_the_file(llama: dict[str, Any]) -> None:
    """What a form is said to do is what `plan` says of it, once it is there."""
    row = next(row for row in llama["quantizations"] if row["name"] == "Q4_K_M")
    plan = autofit.plan("llama", LLAMA, SMALL, context=row["context_tokens"], settings=None)
    assert {pool["id"]: pool["used_bytes"] for pool in row["pools"]} == {
        pool.id: pool.used_bytes for pool in plan.memory.pools
    }
    assert plan.speed is not None and row["speed"]["decode_tokens_per_s"] == round(plan.speed.decode_tokens_per_s, 2)


def test_what_is_larger_than_all_memory_is_not_planned(llama: dict[str, Any]) -> None:
    row = next(row for row in llama["quantizations"] if row["name"] == "F32")
    assert not row["fits"] and row["pools"] == [] and "more than all memory" in row["because"]


def test_the_table_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quants", LLAMA, "--on", "rtx-3090", "--ram", "64GiB", "-c", "8k"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "8,030,261,312 parameters" in out[0]
    assert next(line for line in out if " Q4_K_M " in line).split()[1:4] == ["4,919,654,080", "4.58", "GiB"]
    assert [line.split()[1] for line in out if line.startswith("* ")] == ["Q8_0"]
    assert out[-1] == "take Q8_0: the largest that fits as asked at full speed"
    assert "not of this model" in out[-3]


@pytest.mark.slow
def test_flags_of_the_program_that_quantizes(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["quants", LLAMA, "--on", "rtx-3090", "--ram", "64GiB", "-c", "8k", "--format", "json", "--tensors"]
    assert main([*command, "--", "--pure", "--imatrix", "none.gguf"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["quantizations"]}
    assert set(rows["Q4_K_M"]["types"]) == {"q4_K", "f32"}
    assert rows["IQ1_S"]["needs"] is None
    assert rows["Q4_K_M"]["file_bytes"] is None  # the matrix is named in the file
    with pytest.raises(UsageError, match="unknown flag '--dry'"):
        autofit.quantizations(LLAMA, CARD, quantize_args=["--dry"])


def test_nothing_fits_is_an_exit_code_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quants", "example:mixtral-8x22b-q4_k_m", "--on", "rtx-3060-12gb", "--ram", "8GiB"]) == 3
    assert capsys.readouterr().out.splitlines()[-1] == "none: no form fits as asked"


def test_made_to_measure_for_a_machine(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["quants", LLAMA, "--on", "rtx-3060-12gb", "--ram", "64GiB", "-c", "32k", "--size"]
    assert main([*command, "6GB"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("llama-quantize --tensor-type ")
    assert "full speed, context 32,768 tokens" in printed.err
    assert main([*command, "fit", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    pool = found["quantization"]["pools"][0]
    assert 0 <= pool["budget_bytes"] - pool["used_bytes"] < 256 << 20
    assert found["quantization"]["full_speed"]


def test_made_to_measure_by_size() -> None:
    done = autofit.made_to_measure(LLAMA, CARD, size="5GB", context="8k", settings=None)
    assert done.recipe.quantization.file_bytes is not None
    assert 0 <= 5 * 10**9 - done.recipe.quantization.file_bytes < 1 << 20
    with pytest.raises(UsageError, match="smallest file"):
        autofit.made_to_measure(LLAMA, CARD, size=10**9, settings=None)
    with pytest.raises(UsageError):
        autofit.made_to_measure(LLAMA, CARD, size="much", settings=None)


def test_files_of_the_folder_are_marked(tmp_path: Path) -> None:
    for name in ("Tiny-Q8_0.gguf", "tiny.f16.gguf", "other-Q4_0.gguf", "tiny-Q8_0.txt", "Tiny-UD-Q4_0.gguf"):
        ggufs.llama(name="Tiny").write(tmp_path / name)
    found = autofit.quantizations(tmp_path / "Tiny-Q8_0.gguf", CARD, settings=None)
    assert {row.quantization.name: Path(row.file.path).name for row in found.rows if row.file} == {
        "Q8_0": "Tiny-Q8_0.gguf",
        "F16": "tiny.f16.gguf",
    }


def test_a_model_that_nobody_quantizes(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["NoSuch"], "model_type": "none"}')
    with pytest.raises(ModelError, match="no engine says"):
        autofit.quantizations(tmp_path, CARD, settings=None)


QWEN = str(DATA / "configs" / "qwen3-8b")


@pytest.mark.slow
def test_published_forms_of_a_checkpoint() -> None:
    found = autofit.quantizations(QWEN, autofit.load_machine("rtx-4090", ram="64GiB"), context="16k", settings=None)
    rows = {row.quantization.name: row for row in found.rows if row.backend == "vllm"}
    assert rows["original"].quantization.at_hand and rows["original"].weights_bytes == 2 * found.n_parameters
    assert found.recommended is rows["FP8"] and "fastest of 8 bits" in found.because
    assert rows["FP8"].decode_tokens_per_s is not None and rows["original"].decode_tokens_per_s is not None
    assert rows["FP8"].decode_tokens_per_s > 1.5 * rows["original"].decode_tokens_per_s
    assert rows["FP8 while loading"].quantization.engine_args == ("--quantization", "fp8")


@pytest.mark.slow
def test_a_form_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    config = json.loads((Path(QWEN) / "config.json").read_text()) | {"intermediate_size": 12_300}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = autofit.quantizations(tmp_path, CARD, context="8k", settings=None)
    rows = {row.quantization.name: row for row in found.rows if row.backend == "vllm"}
    assert "not divisible by group_size = 128" in rows["W4A16"].because
    assert not rows["W4A16"].fits and rows["W8A8"].fits
    assert found.rows[-1].quantization.model is None  # those that are not made come last


def test_a_packed_checkpoint_is_a_form_of_its_own() -> None:
    path = DATA / "configs" / "qwen2.5-7b-awq"
    found = autofit.quantizations(path, CARD, context="8k", settings=None)
    rows = {row.quantization.name: row for row in found.rows if row.backend == "vllm"}
    assert rows["this checkpoint (awq)"].weights_bytes == rows["AWQ"].weights_bytes
    assert rows["this checkpoint (awq)"].quantization.at_hand and not rows["original"].quantization.at_hand


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a script stands for the engine")
def test_plans_for_this_machine_are_for_its_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tmp_path / "llama-server"
    engine.write_text("#!/bin/sh\necho 'version: 8864 (a)'\n")
    engine.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tiny = "example:tiny"
    elsewhere = {"engine_version": "installed", "on": ["rtx-3090"]}
    wishes: list[dict[str, Any]] = [{}, elsewhere, {"engine_version": str(engine)}]
    for wish in wishes:
        rows = autofit.quantizations(tiny, **wish).rows
        assert {row.plan.engine_version for row in rows if row.plan is not None} == {"b8864"}
    (row,) = autofit.quantizations(tiny, CARD).rows[:1]
    assert row.plan is not None and row.plan.engine_version == "b11311"
    stored = [StoredModel(name="tiny", path=str(ROOT / "autofit/_models/tiny.gguf"), size_bytes=1, place="x")]
    for on, version in ((None, "b8864"), (["rtx-3090"], "b11311")):
        (one,) = described(stored, {"on": on, "ram": None, "context": None, "margin": None})
        assert one.plan is not None and one.plan.engine_version == version


@pytest.mark.slow
def test_the_engines_asked_are_those_that_have_the_stated_version() -> None:
    found = autofit.quantizations(QWEN, CARD, engine_version="b8121", settings=None)
    assert {(row.backend, row.plan.engine_version) for row in found.rows if row.plan is not None} == {
        ("llama", "b8121")
    }
    with pytest.raises(UsageError, match="not a version"):
        autofit.quantizations(QWEN, CARD, engine_version="nonsense", settings=None)


def test_an_engine_without_forms_of_the_model_says_who_has_them() -> None:
    with pytest.raises(ModelError, match="no other forms of a gguf model are known for vllm") as caught:
        autofit.quantizations(LLAMA, CARD, backend="vllm", settings=None)
    assert "--backend llama" in (caught.value.hint or "")


@pytest.mark.slow
def test_nobody_looks_for_the_nearest_plan_of_a_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take longer than all the rest, and the table does not show it."""
    import autofit_llama.planning.nearest as nearest

    class AskedError(Exception):
        pass

    def never(*_: object) -> None:
        raise AskedError

    monkeypatch.setattr(nearest, "nearest_values", never)
    found = autofit.quantizations(LLAMA, SMALL, context="131072", parallel=64, settings=None)
    assert found.recommended is None
    with pytest.raises(PluginError, match="AskedError"):
        autofit.plan("llama", LLAMA, SMALL, context="131072", parallel=64, settings=None)


@pytest.mark.slow
def test_a_processor_reads_prompts_no_slower_than_it_decodes() -> None:
    """Few cores compute a token's products in no less time alone than with others. Both with an empty context."""
    here = autofit.load_machine(ram="64GiB")
    found = autofit.quantizations(LLAMA, here, backend="llama", settings=None)
    planned = [row for row in found.rows if row.fits]
    assert len(planned) > 20
    for row in planned:
        assert (row.prefill_tokens_per_s or 0) >= 0.99 * (row.decode_tokens_per_s or 0), row.quantization.name
