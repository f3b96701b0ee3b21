"""What is kept: whole or not at all, bounded, and never believed when it is damaged."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from autofit.remote import store as module
from autofit.remote.store import Store, default_store


def test_an_entry_comes_back(tmp_path: Path) -> None:
    store = Store(tmp_path / "a" / "b")
    assert store.get("k") is None
    store.put("k", b"x" * 1000)
    store.put("other\ud800", b"")
    assert (store.get("k"), store.get("other\ud800"), store.get("third")) == (b"x" * 1000, b"", None)
    assert (tmp_path / "a" / "b").stat().st_mode & 0o077 == 0
    assert Store(None).get("k") is None
    Store(None).put("k", b"")


def test_damage_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put("k", os.urandom(3000))
    (path,) = tmp_path.iterdir()
    sound = path.read_bytes()
    kept = store.get("k")
    for at in range(0, len(sound), 97):
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 0x55]) + sound[at + 1 :])
        assert store.get("k") in (None, kept)
        path.write_bytes(sound[:at])
        assert store.get("k") is None
    path.unlink()
    path.mkdir()
    assert store.get("k") is None
    store.put("k", b"y")  # nothing can be done about it
    path.rmdir()
    os.mkfifo(path)
    assert store.get("k") is None


def test_an_entry_of_another_key_is_not_taken(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put("a", b"x")
    store._path("a").rename(store._path("b"))
    assert store.get("b") is None


def test_the_longest_unused_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 10_000)
    store = Store(tmp_path)
    for number in range(4):
        store.put(str(number), os.urandom(3000))
        if number < 3:
            os.utime(store._path(str(number)), (number, number))
    assert [store.get(str(number)) is not None for number in range(4)] == [False, False, True, True]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 10_000


def test_what_is_too_large_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    monkeypatch.setattr(module, "MAX_ENTRY_BYTES", 1000)
    store.put("k", os.urandom(2000))
    assert store.get("k") is None
    store.put("k", bytes(1 << 20))  # packs well
    monkeypatch.setattr(module, "MAX_UNPACKED_BYTES", 1 << 10)
    assert store.get("k") is None


def test_a_place_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = Store(tmp_path / "file" / "below")
    store.put("k", b"x")
    assert store.get("k") is None


def test_many_writers_at_once(tmp_path: Path) -> None:
    store, values = Store(tmp_path), [bytes([n]) * 50_000 for n in range(8)]
    seen: list[bytes | None] = []

    def work(value: bytes) -> None:
        for _ in range(20):
            store.put("k", value)
            seen.append(store.get("k"))

    threads = [threading.Thread(target=work, args=(value,)) for value in values]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 160 and set(seen) <= set(values)
    assert len([*tmp_path.iterdir()]) == 1


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"XDG_CACHE_HOME": "/c", "HOME": "/h"}, Path("/c/autofit/headers")),
        ({"HOME": "/h"}, Path("/h/.cache/autofit/headers")),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, Path("/h/.cache/autofit/headers")),
        ({"HOME": "relative"}, None),
        ({}, None),
    ],
)
def test_the_place(environ: dict[str, str], folder: Path | None) -> None:
    assert default_store(environ).folder == folder
