from __future__ import annotations

import json

import pytest
from autofit.domain.text import is_number
from autofit.domain.words import holds, in_json, renamed

NAMES = {"m.gguf": "/models/m.gguf", "m": "/m", 'a "b"\\c é': '/x "y"'}


@pytest.mark.parametrize(
    ("word", "then"),
    [
        ("m.gguf", "/models/m.gguf"),
        ("m.gguf,x/m.gguf,m.gguf:0.5", "/models/m.gguf,x/m.gguf,/models/m.gguf:0.5"),
        ("one=m", "one=/m"),
        ("--lora-modules=one=m", "--lora-modules=one=/m"),
        ("mm", "mm"),
        ("m/x", "m/x"),
        ("", ""),
        ('{"model": "m", "n": 1}', '{"model": "/m", "n": 1}'),
        ('--spec={"model":"m.gguf"}', '--spec={"model":"/models/m.gguf"}'),
    ],
)
def test_names_in_words_have_others(word: str, then: str) -> None:
    assert renamed(word, NAMES) == then
    assert any(holds(word, name) for name in NAMES) == (word != then)


@pytest.mark.parametrize("ascii_only", [True, False])
def test_names_in_json_stay_json(ascii_only: bool) -> None:
    name = 'a "b"\\c é'
    word = json.dumps({"model": name, "k": [name]}, ensure_ascii=ascii_only)
    assert holds(word, name)
    assert json.loads(renamed(word, NAMES)) == {"model": '/x "y"', "k": ['/x "y"']}
    assert json.loads(f'"{in_json(name)}"') == name
    assert renamed(f"k={name}", NAMES) == 'k=/x "y"'


def test_a_number_is_digits_alone_and_no_more_than_asked_for() -> None:
    assert [text for text in ("0", "12345", "", "-1", "+1", "1.0", " 1", "123456", "٣", "²") if is_number(text, 5)] == [
        "0",
        "12345",
    ]
