"""References: paths, file URLs, examples, and those that are not read yet."""

from __future__ import annotations

from pathlib import Path

import pytest
from autofit.errors import AutofitError, ModelNotFoundError, UsageError
from autofit.sources import find_path, resolve
from autofit.sources.examples import example_names


def test_a_path_is_itself(tmp_path: Path) -> None:
    for reference in ("model.gguf", "./a b.gguf", "/x/y", "C", "a:b/c.gguf"[2:]):
        assert resolve(reference).paths == (reference,)
        assert resolve(reference).reference == reference


def test_an_unknown_home_is_left_to_the_reader() -> None:
    assert resolve("~no-such-user/m.gguf").paths == ("~no-such-user/m.gguf",)


def test_a_name_like_a_repository_is_one_where_no_file_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_path("Qwen/Qwen3-8B") is None
    with pytest.raises(ModelNotFoundError, match="Qwen/Qwen3-8B: no such file or directory"):
        resolve("Qwen/Qwen3-8B")
    Path("Qwen/Qwen3-8B").mkdir(parents=True)
    assert resolve("Qwen/Qwen3-8B").paths == ("Qwen/Qwen3-8B",)


def test_the_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/m.gguf").paths == (str(tmp_path / "m.gguf"),)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:///a/b%20c.gguf", "/a/b c.gguf"),
        ("file://localhost/a.gguf", "/a.gguf"),
        ("FILE:/a.gguf", "/a.gguf"),
    ],
)
def test_file_urls(url: str, path: str) -> None:
    assert resolve(url).paths == (path,)


@pytest.mark.parametrize("url", ["file://other/a.gguf", "file://", "file:"])
def test_file_urls_of_nowhere(url: str) -> None:
    with pytest.raises(UsageError):
        resolve(url)


def test_examples_are_files() -> None:
    assert {"mixtral-8x7b-q4_k_m", "mixtral-8x22b-q3_k_m", "mixtral-8x7b-f16", "tiny"} <= set(example_names())
    for name in example_names():
        assert Path(resolve(f"example:{name}").paths[0]).is_file()
    assert resolve("example:Mixtral-8x7B-Q4_K_M").paths == resolve("example:mixtral-8x7b-q4_k_m").paths


@pytest.mark.parametrize("name", ["", "nope", "../tiny", "tiny.gguf", "\x1b[2J"])
def test_an_unknown_example_lists_them(name: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        resolve(f"example:{name}")
    assert "mixtral-8x7b-q4_k_m" in (caught.value.hint or "")
    assert caught.value.message.isprintable()


def test_an_unknown_scheme() -> None:
    with pytest.raises(ModelNotFoundError, match="no source for 's3'"):
        resolve("s3:bucket/x")


def test_a_file_wins_over_a_scheme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hf:x").touch()
    assert resolve("hf:x").paths == ("hf:x",)


@pytest.mark.parametrize("reference", ["", "a\0b"])
def test_no_reference_at_all(reference: str) -> None:
    with pytest.raises(AutofitError):
        resolve(reference)
