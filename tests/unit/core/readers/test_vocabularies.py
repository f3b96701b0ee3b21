"""Where vocabularies end is remembered between starts, and a header that is read with it is the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from autofit.readers import vocabularies
from autofit.readers.gguf import read_gguf

from support import ggufs

N = vocabularies.LONG + 7


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "autofit" / "vocabularies.txt"


def test_a_second_reading_is_the_same_and_walks_over_no_string(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ggufs.write_llama(tmp_path / "m.gguf", n_vocab=N)
    first = read_gguf(path)
    assert first.n_vocab == N and str(path) in kept.read_text()
    monkeypatch.setattr("autofit.readers.gguf._Parser.walk_strings", lambda *_: pytest.fail("walked"))
    assert read_gguf(path) == first


def test_a_relative_path_is_remembered_too(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ggufs.write_llama(tmp_path / "m.gguf", n_vocab=N)
    monkeypatch.chdir(tmp_path)
    read_gguf("m.gguf")
    monkeypatch.setattr("autofit.readers.gguf._Parser.walk_strings", lambda *_: pytest.fail("walked"))
    assert read_gguf("./m.gguf").n_vocab == N


def test_a_file_that_was_written_again_is_walked_over(kept: Path, tmp_path: Path) -> None:
    path = ggufs.write_llama(tmp_path / "m.gguf", n_vocab=N)
    read_gguf(path)
    ggufs.write_llama(path, n_vocab=N + 1)
    assert read_gguf(path).n_vocab == N + 1


def test_what_is_remembered_of_another_file_costs_a_second_walk(kept: Path, tmp_path: Path) -> None:
    path = ggufs.write_llama(tmp_path / "m.gguf", n_vocab=N)
    first, stat = read_gguf(path), path.stat()
    line = kept.read_text().strip()
    for wrong in ("1:2:3", f"{line.split()[-1]}9", line.split()[-1][:-1] + "0", "x", "", "::", "9" * 70):
        head = line.rpartition("\t")[0]
        begin, count, _ = line.rpartition("\t")[2].split(":")
        for told in (wrong, f"{begin}:{count}:{int(begin) + N * 8 + 1}", f"{begin}:{count}:{stat.st_size}"):
            kept.write_text(f"{head}\t{told}\n")
            assert read_gguf(path) == first


@pytest.mark.parametrize("text", ["", "\0\xff", "a\tb\tc\td\n" * 9, "x" * (vocabularies.MAX_CACHE_BYTES + 1)])
def test_a_damaged_list_is_none(text: str, kept: Path, tmp_path: Path) -> None:
    kept.parent.mkdir(parents=True)
    kept.write_bytes(text.encode("latin-1"))
    path = ggufs.write_llama(tmp_path / "m.gguf", n_vocab=N)
    assert read_gguf(path).n_vocab == N


def test_it_does_not_grow_without_end(kept: Path, tmp_path: Path) -> None:
    for n in range(vocabularies.MAX_FILES + 3):
        one = tmp_path / f"{n}"
        one.touch()
        vocabularies.remember(vocabularies.known(str(one)), {(1, N): 9 * N})
    names = [line.split("\t")[0] for line in kept.read_text().splitlines()]
    assert len(names) == vocabularies.MAX_FILES and names[-1] == str(one)


def test_small_vocabularies_and_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    read_gguf(ggufs.write_llama(tmp_path / "small.gguf", n_vocab=100))
    assert not (tmp_path / "cache").exists()
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    assert read_gguf(ggufs.write_llama(tmp_path / "m.gguf", n_vocab=N)).n_vocab == N
