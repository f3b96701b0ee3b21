"""`autofit advise FOLDER` and `ORG/REPO`: the quantizations that are there, ranked together."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import autofit
import pytest
from autofit.advice.forms import Ranking, forms_of, names_of, rank_hardware
from autofit.advice.hardware import Limits
from autofit.advice.prices import load_prices
from autofit.advice.variants import variants
from autofit.cli.main import main
from autofit.domain.quantization import Quality, Quantization
from autofit.domain.units import GIB
from autofit.errors import ModelError
from autofit.quant_choice import quality_ranks
from autofit.references import locate

from support import ggufs, quant_files
from support.hub_server import Content, Hub, serve

NAMES = ("Q4_K_M", "Q4_1", "Q5_K_M", "Q8_0")
CARD = ("rtx-3060-12gb",)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quant_files.write(tmp_path_factory.mktemp("forms"), NAMES)


@cache
def ranking(folder: Path, n_rows: int = 12, have: tuple[str, ...] = (), limits: Limits = Limits()) -> Ranking:  # noqa: B008
    return rank_hardware(forms_of(str(folder), None, {}, None), load_prices(), limits, have=have, n_rows=n_rows)


def _figures(form: Any, row: Any) -> tuple[float, ...]:
    price = float("-inf") if row.candidate.price is None else -row.candidate.price
    return price, -row.candidate.sold_bytes, row.speed.decode_tokens_per_s, form.quality


def test_every_quantization_that_is_there_is_ranked_in_one_table(folder: Path) -> None:
    found = ranking(folder)
    assert [form.name for form in found.forms] == ["Q4_K_M", "Q4_1", "Q5_K_M", "Q8_0"], "the smallest first"
    assert {form.name for form, _ in found.rows} == set(NAMES) and len(found.rows) == 12
    prices = [row.candidate.price or 1e9 for _, row in found.rows]
    assert prices == sorted(prices)
    for form, row in found.rows:
        assert row.plan.fits and row.command[2].endswith(f"-{form.name}.gguf")
        assert row.plan.memory.pools[0].sum_bytes("weights") <= (form.quantization.weights_bytes or 0)


@pytest.mark.slow_but("4")
@pytest.mark.parametrize("n_rows", [4, 12])
def test_the_front_is_of_price_memory_rate_and_quality(folder: Path, n_rows: int) -> None:
    found = ranking(folder, n_rows)
    assert any(row.on_front for _, row in found.rows)
    scored = [(_figures(form, row), row.on_front) for form, row in found.rows]
    for mine, on_front in scored:
        better = [its for its, _ in scored if its != mine and all(a >= b for a, b in zip(its, mine, strict=True))]
        assert not (on_front and better)


@pytest.mark.slow
def test_one_that_is_larger_and_loses_more_is_on_the_front_only_where_it_is_faster(folder: Path) -> None:
    pairs = [(form, row) for form, row in ranking(folder, 24).rows if form.name in ("Q4_1", "Q4_K_M")]
    rates = {(form.name, row.candidate.added): row.speed.decode_tokens_per_s for form, row in pairs if row.speed}
    for form, row in pairs:
        other = rates.get(("Q4_K_M", row.candidate.added))
        if form.name == "Q4_1" and other is not None and other >= rates["Q4_1", row.candidate.added]:
            assert not row.on_front


def _form(name: str, n_bytes: int, loss: float | None = None) -> Quantization:
    figures = () if loss is None else (Quality(measure="perplexity", value=loss, model="m", source="s"),)
    return Quantization(name=name, weights_bytes=n_bytes, n_parameters=1000, quality=figures)


def test_quality_is_by_bits_but_for_published_losses() -> None:
    assert quality_ranks([_form("a", 400), _form("b", 600), _form("c", 500)]) == [0, 2, 1]
    assert quality_ranks([_form("legacy", 520, 0.45), _form("mixture", 490, 0.18), _form("small", 300, 3.0)]) == [
        1,
        2,
        0,
    ]
    assert quality_ranks([_form("a", 400), _form("twin", 400)]) == [0, 0]
    assert quality_ranks([]) == []


@pytest.mark.slow_but("have0")
@pytest.mark.parametrize("have", [(), CARD])
def test_a_row_is_the_plan_of_its_command(
    folder: Path, have: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    for form, row in ranking(folder, 4, have).rows[:2]:
        assert main([*row.command[1:], "--format", "json"]) == 0
        plan = json.loads(capsys.readouterr().out)
        assert sum(pool["used_bytes"] for pool in plan["pools"] if pool["id"] != "host") == row.used_bytes, form.name


def test_what_one_has_is_told_of_each(folder: Path) -> None:
    found = ranking(folder, 4, CARD)
    have = [one.have for one in found.found]
    assert all(row is not None and row.plan.fits for row in have)
    rates = [row.speed.decode_tokens_per_s for row in have if row is not None and row.speed is not None]
    assert len(rates) == len(NAMES) and rates[0] > rates[2] > rates[3]


@pytest.mark.slow
def test_a_small_budget_leaves_the_small_ones_and_one_too_small_names_the_nearest(folder: Path) -> None:
    some = ranking(folder, limits=Limits(budget_bytes=8 * GIB))
    assert {form.name for form, _ in some.rows} == {"Q4_K_M", "Q4_1", "Q5_K_M"}
    none = ranking(folder, limits=Limits(budget_bytes=4 * GIB))
    assert none.rows == () and none.nearest is not None and none.nearest[0].name == "Q4_K_M"
    assert none.nearest[1].candidate.sold_bytes == 6 * GIB


def test_on_one_machine_each_is_compared_and_one_is_taken(folder: Path) -> None:
    machine = autofit.load_machine(*CARD, ram="64GiB")
    found = variants(forms_of(str(folder), None, {}, None).forms, machine, CARD)
    rows = [one for one in found.rows if one.varies == "quantization"]
    assert [one.value for one in rows] == ["Q8_0", "Q5_K_M", "Q4_1", "Q4_K_M"] and all(one.command for one in rows)
    assert found.name == "Q8_0" and found.because.startswith("the largest that fits as asked at full speed")
    assert found.subject.model.files[0].path.endswith("-Q8_0.gguf")
    assert {one.varies for one in found.rows} == {"quantization", "context", "kv"}
    assert [one.on_front for one in rows if one.value != "Q4_1"] == [True] * 3
    small = variants(
        forms_of(str(folder), None, {"context": "100k"}, None).forms, autofit.load_machine("rtx-5060", ram="64GiB")
    )
    assert small.name != "Q8_0"


def _layouts() -> Iterator[tuple[str, Callable[[Path], Path]]]:
    yield "files", lambda path: quant_files.write(path, ("Q4_K_M", "Q8_0"))
    yield "shards", lambda path: quant_files.write(path, ("Q4_K_M", "Q8_0"), n_shards=3)

    def in_folders(path: Path) -> Path:
        for name in ("Q4_K_M", "Q8_0"):
            quant_files.write(path / name, (name,), n_shards=2)
        return path

    yield "folders", in_folders

    def with_companions(path: Path) -> Path:
        (path := quant_files.write(path, ("Q4_K_M", "Q8_0"))).joinpath("mmproj-model-f16.gguf").write_bytes(b"GGUF")
        (path / "README.md").touch()
        return path

    yield "companions", with_companions


@pytest.mark.slow_but("files-*")
@pytest.mark.parametrize(
    ("layout", "make"), list(_layouts()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_layouts(layout: str, make: Callable[[Path], Path], tmp_path: Path) -> None:
    forms = forms_of(str(make(tmp_path / layout)), None, {}, None)
    assert [form.name for form in forms.forms] == ["Q4_K_M", "Q8_0"] and forms.left_out == ()
    whole = quant_files.forms()
    assert [form.quantization.weights_bytes for form in forms.forms] == [
        sum(ggufs.n_bytes(tensor) for tensor in whole[name].tensors) for name in ("Q4_K_M", "Q8_0")
    ]


def test_a_folder_of_several_models_is_asked_for_one(tmp_path: Path) -> None:
    quant_files.write(tmp_path, ("Q4_K_M",), stem="one")
    quant_files.write(tmp_path, ("Q8_0",), stem="another")
    with pytest.raises(ModelError, match="2 GGUF models are in this directory"):
        forms_of(str(tmp_path), None, {}, None)
    quant_files.forms()["Q8_0"].write(tmp_path / "one-70b.gguf")  # which is no quantization
    with pytest.raises(ModelError, match="3 GGUF models"):
        forms_of(str(tmp_path), None, {}, None)


def test_what_is_cut_or_another_model_is_left_out_with_the_reason(tmp_path: Path) -> None:
    quant_files.write(tmp_path, ("Q4_K_M", "Q8_0"))
    (tmp_path / f"{quant_files.STEM}-Q5_K_M.gguf").write_bytes(b"GGUF\x03")
    ggufs.write_llama(tmp_path / f"{quant_files.STEM}-Q6_K.gguf", n_layer=2, n_embd=256, n_ff=256, n_vocab=64)
    found = forms_of(str(tmp_path), None, {}, None)
    assert [form.name for form in found.forms] == ["Q4_K_M", "Q8_0"]
    assert len(found.left_out) == 2 and any(why.startswith("Q5_K_M: ") for why in found.left_out)
    assert any(why.startswith("Q6_K: another model") for why in found.left_out)


def test_a_folder_is_planned_for_as_a_repository_is(tmp_path: Path, folder: Path) -> None:
    """The largest that fits at full speed; where none does, the one that engines take unasked."""
    place = {"machine": autofit.load_machine(*CARD, ram="64GiB"), "settings": None}
    plan = autofit.plan("llama", str(folder), context="16k", **place)  # type: ignore[arg-type]
    assert plan.argv[2] == os.path.join(folder, f"{quant_files.STEM}-Q8_0.gguf")  # noqa: PTH118
    tiny = autofit.plan("llama", str(folder), context="16k", settings=None, machine=autofit.load_machine("generic-cuda:4GiB", ram="64GiB"))  # fmt: skip # noqa: E501
    assert tiny.argv[2].endswith("-Q4_K_M.gguf")
    assert any("4 quantizations of one model" in found.message for found in tiny.findings)
    assert autofit.read_model(str(folder)).files[0].path.endswith("-Q4_K_M.gguf")
    assert locate(str(folder / f"{quant_files.STEM}-Q5_K_M.gguf")).offers == (), "a file that is named is the one"


def test_names_are_what_tells_files_apart() -> None:
    assert names_of(["/m/a-Q4_K_M.gguf", "/m/a-Q4_K_S.gguf"]) == ["Q4_K_M", "Q4_K_S"]
    assert names_of(["a/b:a-UD-Q4_K_XL-00001-of-00002.gguf", "a/b:a-Q4_K_M.gguf"]) == ["UD-Q4_K_XL", "Q4_K_M"]
    assert names_of(["/m/A.Q8_0.gguf", "/m/a.f16.gguf"]) == ["Q8_0", "f16"]


@pytest.mark.slow
def test_the_command_shows_all_and_says_the_same_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", str(folder), "--rows", "5"]) == 0
    text = capsys.readouterr().out
    assert main(["advise", str(folder), "--rows", "5", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found["quantizations"]] == ["Q4_K_M", "Q4_1", "Q5_K_M", "Q8_0"]
    assert len(found["rows"]) == 5 and {row["quantization"] for row in found["rows"]} == set(NAMES)
    assert all(f"{one['bits_per_weight']:.2f}" in text for one in found["quantizations"])
    assert "price, memory, rate and quality" in text
    assert main(["advise", str(folder), "--here", "--have", *CARD]) == 0
    assert "take Q8_0: " in capsys.readouterr().out


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a repository of two, and a user who has nothing yet."""
    for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_HOME", "HF_TOKEN", "MODEL_ENDPOINT", "LLAMA_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    files = {
        f"{quant_files.STEM}-{name}.gguf": Content(
            quant_files.forms()[name].header(), quant_files.forms()[name].size_bytes()
        )
        for name in ("Q4_K_M", "Q8_0")
    }
    with serve(Hub(repositories={"org/repo": files})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def test_a_repository_is_ranked_by_its_headers(repository: Hub) -> None:
    found = forms_of("org/repo", None, {}, None)
    assert [form.name for form in found.forms] == ["Q4_K_M", "Q8_0"]
    ranked = rank_hardware(found, load_prices(), Limits(), n_rows=4)
    assert {form.name for form, _ in ranked.rows} == {"Q4_K_M", "Q8_0"}
    assert {row.command[2] for _, row in ranked.rows} == {f"hf:org/repo:{quant_files.STEM}-{n}.gguf" for n in ("Q4_K_M", "Q8_0")}  # fmt: skip # noqa: E501
    sizes = [content.size for content in repository.repositories["org/repo"].values()]
    assert 0 < repository.sent_bytes < sum(sizes) / 50
    one = forms_of("org/repo:Q8_0", None, {}, None)
    assert [form.name for form in one.forms] == [""] and len(one.forms) == 1
