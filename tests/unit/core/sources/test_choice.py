"""Which files are one model, and which is taken: as llama.cpp's -hf."""

from __future__ import annotations

import pytest
from autofit.sources.choice import choose, models_of, sibling, with_file

FILES = {
    "README.md": 1,
    "BF16/m-BF16-00001-of-00002.gguf": 10,
    "BF16/m-BF16-00002-of-00002.gguf": 11,
    "m-IQ2_M.gguf": 2,
    "m-Q4_K_M.gguf": 4,
    "m-UD-Q4_K_XL.gguf": 5,
    "m-Q8_0.gguf": 8,
    "m.imatrix.gguf": 1,
    "mmproj-F16.gguf": 1,
    "mtp-m-Q8_0.gguf": 1,
}


def test_shards_are_one_model_and_companions_none() -> None:
    found = models_of(FILES)
    assert [(m.quantization, m.size_bytes, m.is_whole) for m in found] == [
        ("BF16", 21, True), ("IQ2_M", 2, True), ("Q4_K_M", 4, True), ("Q8_0", 8, True), ("Q4_K_XL", 5, True),
    ]  # fmt: skip
    assert found[0].files == ("BF16/m-BF16-00001-of-00002.gguf", "BF16/m-BF16-00002-of-00002.gguf")
    assert with_file(found, found[0].files[1]) == found[0]
    assert not models_of({"m-00002-of-00003.gguf": 1, "m-00001-of-00003.gguf": 1})[0].is_whole


@pytest.mark.parametrize(
    ("without", "asked", "file"),
    [
        ((), None, "m-Q4_K_M.gguf"),
        (("m-Q4_K_M.gguf",), None, "m-Q8_0.gguf"),
        (("m-Q4_K_M.gguf", "m-Q8_0.gguf"), None, "BF16/m-BF16-00001-of-00002.gguf"),
        ((), "q8_0", "m-Q8_0.gguf"),
        ((), "UD-Q4_K_XL", "m-UD-Q4_K_XL.gguf"),
        ((), "Q4_K", None),
        ((), "Q3_K_S", None),
        ((), ".*", None),
    ],
)
def test_the_choice(without: tuple[str, ...], asked: str | None, file: str | None) -> None:
    found = choose(models_of({name: size for name, size in FILES.items() if name not in without}), asked)
    assert (found.files[0] if found else None) == file


def test_nothing_to_choose_from() -> None:
    assert choose(models_of({"mmproj-F16.gguf": 1})) is None


@pytest.mark.parametrize(
    ("paths", "model", "found"),
    [
        (("mmproj-F16.gguf", "mmproj-Q8_0.gguf", "mmproj-F32.gguf"), "m-Q8_0.gguf", "mmproj-Q8_0.gguf"),
        (("mmproj-F16.gguf", "a/mmproj-F32.gguf"), "a/m-Q8_0.gguf", "a/mmproj-F32.gguf"),
        (("b/mmproj-F16.gguf",), "a/m-Q8_0.gguf", None),
        (("mmproj.json",), "m.gguf", None),
        (("mmproj-BF16.gguf", "mmproj-F16.gguf"), "m-Q4_K_M.gguf", "mmproj-BF16.gguf"),
    ],
)
def test_the_projector_beside_a_model(paths: tuple[str, ...], model: str, found: str | None) -> None:
    assert sibling(paths, model, "mmproj") == found
