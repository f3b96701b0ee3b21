"""Files that are no ordinary ones, or change while they are read: an error in one line, at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from autofit.errors import AutofitError, ModelError
from autofit.readers import gguf, read_model
from autofit.readers.files import open_file

from support import ggufs


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + bytes(1 << 20))
    with open_file(str(path)) as file:
        os.truncate(path, 1 << 12)
        assert file.read(0, 1 << 12)[:4] == b"GGUF"
        with pytest.raises(ModelError, match="shorter while it was read"):
            file.read(0, 1 << 13)


@pytest.mark.parametrize("window", [64, 1000, gguf.WINDOW_BYTES])
def test_a_header_is_the_same_through_any_window(tmp_path: Path, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = ["x" * (i % 60) for i in range(5000)]
    path = tmp_path / "m.gguf"
    model = ggufs.llama(n_layer=2, n_embd=256, n_ff=256, n_vocab=8, metadata={"k.words": tokens, "k.list": [1] * 3000})
    path.write_bytes(model.header())
    os.truncate(path, model.size_bytes())
    whole = read_model(path)
    monkeypatch.setattr(gguf, "WINDOW_BYTES", window)
    assert read_model(path) == whole


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a second process that truncates")
def test_a_race_with_a_download_that_is_cut_never_ends_the_process(tmp_path: Path) -> None:
    """Another process truncates and extends the file all the time: a model or one line, no signal."""
    path = tmp_path / "m.gguf"
    tokens = ["x" * (i % 40) for i in range(100_000)]
    model = ggufs.llama(n_layer=1, n_embd=256, n_ff=256, n_vocab=8, metadata={"k.words": tokens})
    header, size = model.header(), model.size_bytes()
    path.write_bytes(header)
    os.truncate(path, size)
    script = (
        "import os, sys\npath, header, size = sys.argv[1], open(sys.argv[1], 'rb').read(), int(sys.argv[2])\n"
        "while os.getppid() == int(sys.argv[3]):\n  os.truncate(path, 4096)\n"
        "  open(path, 'r+b').write(header)\n  os.truncate(path, size)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", script, str(path), str(size), str(os.getpid())])
    try:
        outcomes = set()
        for _ in range(40):
            try:
                outcomes.add(read_model(path).name != "")
            except AutofitError as error:
                outcomes.add(str(error)[-5:])
        assert outcomes
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("here/Qwen3-8B-Q4_K_S.gguf", "did you mean {}/here/qwen3-8b-q4_k_m.gguf?"),  # a slip, in other capitals
        ("hree/qwen3-8b-q4_k_m.gguf", "did you mean {}/here?"),  # in a folder's name
        ("here/chekpoint", "did you mean {}/here/checkpoint?"),
        ("here/model.gguf", "{}/here has a-large-one.gguf, qwen3-8b-q4_k_m.gguf; "),  # nothing is like it
        ("here/checkpoint/model.gguf", "`autofit models` lists"),  # nothing is there
        ("here/notes.tx", "{}/here has a-large-one.gguf, "),  # what is there is no model
    ],
)
def test_where_nothing_is_the_nearest_that_exists_is_named(tmp_path: Path, named: str, said: str) -> None:
    (tmp_path / "here" / "checkpoint").mkdir(parents=True)
    for name in ("qwen3-8b-q4_k_m.gguf", "a-large-one.gguf", "notes.txt"):
        (tmp_path / "here" / name).touch()
    with pytest.raises(ModelError, match="no such file or directory") as caught:
        read_model(tmp_path / named)
    hint = caught.value.hint or ""
    assert hint.startswith(said.format(tmp_path)) and "`autofit models`" in hint
