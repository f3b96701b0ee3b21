from __future__ import annotations

from pathlib import Path

import pytest
from autofit.domain.request import Margin
from autofit.errors import UsageError
from autofit.settings import layers, options
from autofit.settings.request import to_request


def test_the_first_place_that_has_a_value_wins_and_is_remembered() -> None:
    stated = layers.merge(
        [
            ("user", layers.from_given({"context": "8k"})),
            ("environment", layers.from_environment({"AUTOFIT_CONTEXT": "16k", "AUTOFIT_PARALLEL": "2"})),
            (
                "preset",
                layers.from_table({"context": "32k", "parallel": 8, "prefer": "context"}, "preset x", "llama"),
            ),
        ]
    )
    request = to_request(stated)
    assert (request.context, request.parallel, request.prefer) == (8192, 2, "context")
    assert [request.origin(name) for name in ("context", "parallel", "prefer", "kv")] == [
        "user", "environment", "preset", "engine default",
    ]  # fmt: skip


def test_a_backends_table_overrides_the_file_and_engine_args_come_before_the_users(tmp_path: Path) -> None:
    path = tmp_path / "autofit.toml"
    path.write_text('margin = "1GiB"\n[llama]\nmargin = "8%"\nengine_args = ["-fa", "on"]\n[vllm]\nparallel = 9\n')
    stated = layers.merge([("settings file", layers.read_settings_file(path, "llama"))])
    request = to_request(stated, engine_args=["-ngl", "5"])
    assert request.margin == (Margin(fraction=0.08),)
    assert request.engine_args == ("-fa", "on", "-ngl", "5")
    assert request.parallel is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("contxt = 3", "unknown key 'contxt'"),
        ("context = [", "autofit.toml"),
        ("context = -3", "not a token count"),
        ("engine_args = 'x'", "list of strings"),
        ("prefer = 'cheap'", "not one of"),
    ],
)
def test_a_bad_settings_file_is_one_line_that_names_the_file(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "autofit.toml"
    path.write_text(content)
    with pytest.raises(UsageError) as caught:
        layers.read_settings_file(path, "llama")
    assert message in caught.value.message
    assert "autofit.toml" in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "margins"),
    [
        ("1GiB", (Margin(n_bytes=1 << 30),)),
        ("8%", (Margin(fraction=0.08),)),
        ("1GiB,0", (Margin(n_bytes=1 << 30), Margin())),
    ],
)
def test_margins(text: str, margins: tuple[Margin, ...]) -> None:
    assert options.parse_margins(text) == margins


@pytest.mark.parametrize("text", ["", "100%", "-1%", "x%", "5%5", "1GiB,,2GiB"])
def test_not_margins(text: str) -> None:
    with pytest.raises(UsageError):
        options.parse_margins(text)


@pytest.mark.parametrize(
    "values",
    [
        {"min_context": "32k", "max_context": "16k"},
        {"context": "8k", "min_context": "16k"},
        {"context": "64k", "max_context": "16k"},
        {"mean_tokens": "32k", "context": "16k"},
        {"mean_tokens": "32k", "max_context": "16k"},
        {"mean_tokens": "4k", "fill": "full"},
    ],
)
def test_options_that_contradict_each_other_are_refused(values: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        to_request(layers.merge([("user", layers.from_given(values))]))


@pytest.mark.parametrize(("text", "seconds"), [("2", 2.0), ("2.5s", 2.5), ("500ms", 0.5)])
def test_seconds(text: str, seconds: float) -> None:
    assert options.parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["0", "-1", "1e9", "nan", "inf", "2 m", "9" * 400, ""])
def test_rates_and_times_are_positive_numbers(text: str) -> None:
    for parse in (options.parse_rate, options.parse_seconds):
        with pytest.raises(UsageError):
            parse(text)


def test_a_time_that_is_none_is_quoted_with_its_unit() -> None:
    with pytest.raises(UsageError, match="not a time: '1ns'"):
        options.parse_seconds("1ns")


def test_every_option_parses_an_example_or_refuses_nonsense() -> None:
    for option in options.OPTIONS:
        if option.parse is str:
            continue
        with pytest.raises(UsageError):
            option.parse("\x00nonsense")


def test_lists_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "autofit.toml"
    path.write_text('margin = ["1GiB", "8%"]\non = ["rtx-3090", "t4"]\n', encoding="utf-8")
    assert layers.read_settings_file(path, "llama") == {
        "margin": (Margin(n_bytes=1 << 30), Margin(fraction=0.08)),
        "on": ("rtx-3090", "t4"),
    }


@pytest.mark.parametrize(
    "text",
    [
        "context = [1, 2]",
        "context = {a = 1}",
        "context = " + "9" * 900,
        "context = " + "9" * 5000,
        "a = " + "[" * 900,
        "a = " + "[\n" * 100_000,
        "a." * 60_000 + "b = 1",
        "force = 3",
        "x = 1\n" * 300_000,
    ],
)
def test_hostile_files_are_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "autofit.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        layers.read_settings_file(path, "llama")
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < len(str(path)) + 200


def test_empty_items_of_a_variable_are_no_items() -> None:
    found = layers.from_environment({"AUTOFIT_ON": " rtx-3090, ,t4,", "AUTOFIT_DEVICE": ","})
    assert found == {"on": ("rtx-3090", "t4")}
