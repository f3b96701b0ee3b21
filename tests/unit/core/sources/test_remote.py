"""Models that are not on this machine, from a server like the Hub: what is read, kept, printed and refused."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import autofit
import pytest
from autofit.cli.main import main
from autofit.errors import AutofitError, ModelError, ModelNotFoundError, RemoteError, UsageError
from autofit.references import find, locate
from autofit.remote import files
from autofit.remote.http import Client
from autofit.sources import docker, hub

from support import caches, ggufs
from support import safetensor_files as sf
from support.hub_server import COMMIT, Content, Hub, content_of, serve

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz0123456789"
CARD = autofit.load_machine("rtx-3090", ram="64GiB")
VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "LLAMA_CACHE", "HF_TOKEN", "HF_TOKEN_PATH",
             "HUGGING_FACE_HUB_TOKEN", "MODEL_ENDPOINT", "OLLAMA_MODELS", "HF_HUB_OFFLINE")  # fmt: skip


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub, its storage beside it, and a user who has nothing yet."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with serve() as storage, serve(Hub(storage=storage.url, plain=storage.plain)) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        served.elsewhere = storage  # type: ignore[attr-defined]
        yield served


def storage_of(served: Hub) -> Hub:
    found: Hub = served.elsewhere  # type: ignore[attr-defined]
    return found


def n_requests(served: Hub) -> int:
    return len(served.requests) + len(storage_of(served).requests)


def gguf(tmp_path: Path, name: str = "m.gguf", **options: Any) -> Content:
    return content_of(ggufs.llama(name="tiny", **options).write(tmp_path / name))


def repository(tmp_path: Path, **options: Any) -> dict[str, Content]:
    model = gguf(tmp_path, n_vocab=40_000, **options)
    return {"README.md": Content(b"x", 1), "m-Q4_K_M.gguf": model, "m-Q8_0.gguf": model}


def same(found: Any, local: Any) -> bool:
    return bool(found.tensors == local.tensors and found.metadata == local.metadata and found.layers == local.layers)


def test_a_header_is_read_in_few_requests_and_no_byte_twice(served: Hub, tmp_path: Path) -> None:
    served.repositories["o/r"] = repository(tmp_path)
    found = find("hf:o/r:Q8_0")
    header = (tmp_path / "m.gguf").read_bytes()[: found.model.tensors[0].offset_bytes]
    assert same(found.model, autofit.read_model(tmp_path / "m.gguf"))
    storage = storage_of(served)
    assert len(served.requests) == 2 and len(storage.requests) <= 3
    assert storage.sent_bytes < len(header) + (1 << 20)
    ranges = [request.range.removeprefix("bytes=").split("-") for request in storage.requests if request.range]
    assert all(int(a[1]) + 1 == int(b[0]) for a, b in pairwise(ranges))
    assert {request.authorization for request in storage.requests} == {None}


def test_a_second_plan_asks_nobody(served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served.repositories["o/r"] = repository(tmp_path)
    first = autofit.plan("llama", "o/r:Q8_0", CARD)
    asked = n_requests(served)
    second = autofit.plan("llama", "o/r:Q8_0", CARD)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    third = autofit.plan("llama", "hf:o/r:q8_0", CARD)
    assert n_requests(served) == asked
    assert first.argv == second.argv
    assert first.argv[1:3] == ("-hf", "o/r:Q8_0") and third.argv[1:3] == ("-hf", "o/r:q8_0")
    assert first.argv[3:] == third.argv[3:]
    assert "--model" not in first.argv and "-m" not in first.argv and not first.kwargs
    with pytest.raises(RemoteError, match="nobody may be asked"):
        autofit.plan("llama", "hf:o/other", CARD)
    for folder in (tmp_path / "cache").rglob("*.entry"):
        folder.write_bytes(b"damaged")
    with pytest.raises(RemoteError, match="nobody may be asked"):
        autofit.plan("llama", "o/r:Q8_0", CARD)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert autofit.plan("llama", "o/r:Q8_0", CARD).argv == first.argv


def test_the_printed_command_is_the_same_model_to_check(served: Hub, tmp_path: Path) -> None:
    served.repositories["o/r"] = repository(tmp_path)
    plan = autofit.plan("llama", "o/r:Q8_0", CARD)
    checked = autofit.check(plan.argv, CARD)
    assert [pool.used_bytes for pool in checked.memory.pools] == [pool.used_bytes for pool in plan.memory.pools]
    by_flag = autofit.plan("llama", None, CARD, engine_args=["-hf", "o/r:Q8_0"])
    assert sorted(by_flag.argv) == sorted(plan.argv)
    by_file = autofit.check(["llama-server", "-hf", "o/r", "-hff", "m-Q8_0.gguf"], CARD)
    assert by_file.fits
    with pytest.raises(UsageError, match="contradicts the model"):
        autofit.plan("llama", "o/r:Q8_0", CARD, engine_args=["-hf", "o/other"])
    with pytest.raises(UsageError, match="no model is named"):
        autofit.plan("llama", None, CARD)


def test_a_list_that_is_not_fresh_is_asked_for_again_and_serves_when_nobody_answers(
    served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autofit.remote import session

    monkeypatch.setattr("autofit.remote.http.time.sleep", lambda seconds: None)
    served.repositories["o/r"] = repository(tmp_path)
    first = find("o/r:Q8_0")
    monkeypatch.setattr(session, "FRESH_S", -1.0)
    monkeypatch.setattr(session.Session.remembered, "__kwdefaults__", {"fresh_s": -1.0})
    asked = n_requests(served)
    assert find("o/r:Q8_0").files.notes == () and n_requests(served) == asked + 1
    served.when("/api/", lambda handler: bool(handler.reply(503, b"")) or True)
    stale = find("o/r:Q8_0")
    assert same(stale.model, first.model)
    assert "nobody answers" in stale.files.notes[0]
    served.behaviors.clear()
    served.when("/api/", lambda handler: bool(handler.reply(401, b"")) or True)
    with pytest.raises(RemoteError, match="not public"):
        find("o/r:Q8_0")


def test_a_file_that_was_replaced_is_read_anew(served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from autofit.remote import session

    served.repositories["o/r"] = repository(tmp_path)
    find("o/r:Q8_0")
    monkeypatch.setattr(session.Session.remembered, "__kwdefaults__", {"fresh_s": -1.0})
    served.repositories["o/r"] = repository(tmp_path, n_layer=3)
    assert len(find("o/r:Q8_0").model.layers) == 3


def test_a_branch_that_moves_while_it_is_read_is_refused(served: Hub, tmp_path: Path) -> None:
    files = repository(tmp_path)
    served.repositories["o/r"] = files

    def move(handler: Any) -> bool:
        other = gguf(tmp_path, "other.gguf", n_vocab=40_000, n_layer=3)
        changed = Content(other.head, files["m-Q8_0.gguf"].size)
        served.repositories["o/r"] = {**files, "m-Q8_0.gguf": changed}
        return False

    served.when("resolve", move)
    with pytest.raises(RemoteError, match="replaced while it was read"):
        find("o/r:Q8_0")


def test_of_many_models_the_largest_at_full_speed_is_planned_for(served: Hub, tmp_path: Path) -> None:
    sizes = {"BF16": 4000, "Q8_0": 3200, "Q4_K_M": 2200, "Q2_K": 1100}
    files = {}
    for number, (tag, n_ff) in enumerate(sizes.items()):
        kind = "f16" if tag == "BF16" else "q8_0"
        files[f"m-{tag}.gguf"] = gguf(
            tmp_path, f"{number}.gguf", n_layer=8, n_embd=1024, n_ff=n_ff // 32 * 32, weight_type=kind, output_type=kind
        )
    served.repositories["o/many"] = files
    whole = autofit.plan("llama", "o/many", CARD)
    assert whole.argv[1:3] == ("-hf", "o/many:Q8_0")
    assert any("of 4 models of that name Q8_0" in finding.message for finding in whole.findings)
    quality = autofit.plan("llama", "o/many", CARD, prefer="quality")
    assert quality.argv[1:3] == ("-hf", "o/many:BF16")
    limit = files["m-Q8_0.gguf"].size + (2 << 20)
    small = autofit.load_machine(f"generic-cuda:{limit >> 20}MiB", ram="64GiB")
    assert autofit.plan("llama", "o/many", small, margin="1MiB", context=256).argv[1:3] == ("-hf", "o/many:Q4_K_M")
    # the engine's own choice, where its own command is looked at
    assert locate("o/many").written == "hf:o/many:Q4_K_M"
    assert "has 4 GGUF models" in locate("o/many").notes[0]


def test_quantizations_that_the_repository_has_are_marked(
    served: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served.repositories["o/r"] = {f"m-{tag}.gguf": gguf(tmp_path, n_vocab=2000) for tag in ("F16", "Q8_0", "IQ4_XS")}
    assert main(["quants", "hf:o/r:F16", "--backend", "llama", "--on", "rtx-3090", "--ram", "64GiB"]) == 0
    rows = capsys.readouterr().out.splitlines()
    marked = {row.split()[row.startswith("*")] for row in rows if "in the repository" in row}
    assert marked == {"F16", "Q8_0", "IQ4_XS"}
    assert {offer.quantization for offer in locate("hf:o/r:F16").offers} == {"F16", "Q8_0", "IQ4_XS"}


def test_a_projector_of_the_repository_is_counted_as_the_engine_loads_it(served: Hub, tmp_path: Path) -> None:
    vision = {"general.architecture": "clip", "general.type": "mmproj"}
    tensors = [ggufs.Tensor("v.blk.0.attn_q.weight", (1024, 1024)), ggufs.Tensor("mm.0.weight", (1024, 512))]
    projector = ggufs.Gguf(metadata=vision, tensors=tensors).write(tmp_path / "mmproj.gguf")
    served.repositories["o/r"] = {**repository(tmp_path), "mmproj-F16.gguf": content_of(projector)}
    local = ["llama-server", "-m", str(tmp_path / "m.gguf")]
    with_it, alone = autofit.check([*local, "-mm", str(projector)], CARD), autofit.check(local, CARD)
    remote = ["llama-server", "-hf", "o/r:Q8_0"]
    assert used(with_it) != used(alone)
    assert used(autofit.check(remote, CARD)) == used(with_it)
    assert used(autofit.check([*remote, "--no-mmproj"], CARD)) == used(alone)
    assert used(autofit.check([*remote, "-mm", str(projector)], CARD)) == used(with_it)
    planned = autofit.plan("llama", "o/r:Q8_0", CARD, context=2048)
    assert used(autofit.check(planned.argv, CARD)) == used(planned)
    # another program does not load it, and neither does the server that is given a path
    assert autofit.check(["llama-bench", "-hf", "o/r"], CARD).fits
    snapshot = caches.hub(tmp_path / "cache/huggingface/hub", "o/here", {
        "m-Q8_0.gguf": tmp_path / "m.gguf", "mmproj-F16.gguf": projector,
    })  # fmt: skip
    here = autofit.plan("llama", "o/here", CARD, context=2048)
    assert here.argv[1:3] == ("-m", str(snapshot / "m-Q8_0.gguf"))
    assert used(autofit.check(["llama-server", "-hf", "o/here"], CARD)) == used(with_it)


def used(plan: Any) -> list[int]:
    return [pool.used_bytes for pool in plan.memory.pools]


def test_several_models_on_this_machine_are_chosen_among_alike(
    served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    small = ggufs.llama(n_layer=2).write(tmp_path / "small.gguf")
    large = ggufs.llama(n_layer=4).write(tmp_path / "large.gguf")
    snapshot = caches.hub(tmp_path / "cache/huggingface/hub", "o/here", {"m-Q4_K_M.gguf": small, "m-Q8_0.gguf": large})
    assert autofit.plan("llama", "o/here", CARD).argv[1:3] == ("-m", str(snapshot / "m-Q8_0.gguf"))
    assert Path(locate("o/here").paths[0]).name == "m-Q4_K_M.gguf"
    assert not served.requests


def test_split_files_are_read_side_by_side(served: Hub, tmp_path: Path) -> None:
    whole = ggufs.llama(n_layer=6, n_vocab=40_000)
    parts = [whole.tensors[:10], whole.tensors[10:30], whole.tensors[30:]]
    files = {}
    for number, tensors in enumerate(parts):
        keys = {"split.no": ggufs.Typed("u16", number), "split.count": ggufs.Typed("u16", 3)}
        keys |= {"split.tensors.count": ggufs.Typed("i32", len(whole.tensors))}
        metadata = {**whole.metadata, **keys} if not number else {"general.architecture": "llama", **keys}
        name = f"m-Q8_0-{number + 1:05d}-of-00003.gguf"
        files[f"Q8_0/{name}"] = content_of(ggufs.Gguf(metadata=metadata, tensors=tensors).write(tmp_path / name))
    served.repositories["o/split"] = files
    found = find("o/split:Q8_0")
    assert same(found.model, autofit.read_model(tmp_path / "m-Q8_0-00001-of-00003.gguf"))
    assert found.files.written == "hf:o/split:Q8_0" and len(found.model.files) == 3
    del files["Q8_0/m-Q8_0-00002-of-00003.gguf"]
    served.repositories["o/less"] = files
    with pytest.raises(ModelNotFoundError):
        find("hf:o/less:Q8_0")


def checkpoint(tmp_path: Path, n_shards: int) -> dict[str, Content]:
    folder = tmp_path / f"checkpoint-{n_shards}"
    folder.mkdir()
    sf.write_sharded(folder, sf.llama(n_layer=20), n_shards)
    (folder / "config.json").write_text(json.dumps({**sf.CONFIG, "num_hidden_layers": 20}))
    (folder / "generation_config.json").write_text('{"temperature": 0.5}')
    return {path.name: content_of(path) for path in folder.iterdir()}


def test_a_checkpoint(served: Hub, tmp_path: Path) -> None:
    served.repositories["o/st"] = {**checkpoint(tmp_path, 12), "pytorch_model.bin": Content(b"", 5)}
    found = find("o/st")
    local = autofit.read_model(tmp_path / "checkpoint-12")
    assert same(found.model, local) and found.model.format == "safetensors"
    firsts = {tensor.file_index: tensor.offset_bytes for tensor in reversed(local.tensors)}
    storage = storage_of(served)
    # the list, two documents and no index; each shard once, and again where the first one's length was not enough
    assert len(served.requests) == 1 + 2 + 12 and 12 <= len(storage.requests) < 24
    assert storage.sent_bytes < 1.2 * sum(firsts.values()) + (1 << 17)
    plan = autofit.plan("vllm", "o/st", CARD, context=512)
    assert plan.argv[:3] == ("vllm", "serve", "o/st")
    pinned = autofit.plan("vllm", f"hf:o/st@{COMMIT}", CARD, context=512)
    assert pinned.argv[2] == "o/st" and pinned.argv[pinned.argv.index("--revision") + 1] == COMMIT
    checked = autofit.check(pinned.argv, CARD)
    assert [p.used_bytes for p in checked.memory.pools] == [p.used_bytes for p in plan.memory.pools]


def test_documents_may_come_whole_from_a_server_that_does_not_serve_parts_of_them(served: Hub, tmp_path: Path) -> None:
    files = checkpoint(tmp_path, 2)
    long = json.dumps({**json.loads(files["config.json"].head), "note": "x" * 100_000}).encode()
    served.repositories["o/st"] = {**files, "config.json": Content(long, len(long))}
    served.when(r"config\.json", lambda handler: bool(handler.headers.__delitem__("Range")))
    assert len(find("o/st").model.layers) == 20


def test_a_checkpoint_whose_shards_are_not_numbered_is_read_by_its_index(served: Hub, tmp_path: Path) -> None:
    files = checkpoint(tmp_path, 3)
    index = json.loads(files.pop("model.safetensors.index.json").head)
    renamed = {name: f"part{name[10]}.safetensors" for name in sorted(set(index["weight_map"].values()))}
    index["weight_map"] = {tensor: renamed[name] for tensor, name in index["weight_map"].items()}
    raw = json.dumps(index).encode()
    served.repositories["o/st"] = {
        **{renamed.get(name, name): content for name, content in files.items()},
        "model.safetensors.index.json": Content(raw, len(raw)),
    }
    found = find("o/st").model
    assert {t.name for t in found.tensors} == {*index["weight_map"]}
    assert len(storage_of(served).requests) == 3  # the index tells how long each header is


def test_a_checkpoint_whose_shards_are_missing_is_planned_from_its_configuration(served: Hub, tmp_path: Path) -> None:
    files = checkpoint(tmp_path, 3)
    del files["model-00002-of-00003.safetensors"]
    served.repositories["o/st"] = files
    plan = autofit.plan("vllm", "o/st", CARD, context=512)
    assert any(finding.code == "incomplete-files" for finding in plan.findings)


@pytest.mark.parametrize("n_rows", [1, 3])
def test_a_list_of_many_pages(served: Hub, tmp_path: Path, n_rows: int) -> None:
    served.repositories["o/r"], served.page = repository(tmp_path), n_rows
    assert find("o/r:Q8_0").model.architecture == "llama"
    served.page = 1000
    link = {"Link": '<https://elsewhere.example.org/api>; rel="next"'}
    served.when("/tree/", lambda handler: bool(handler.reply(200, b"[]", link)) or True)
    with pytest.raises(AutofitError, match="another server"):
        find("hf:o/other")


def test_revisions(served: Hub, tmp_path: Path) -> None:
    served.repositories["o/r"] = repository(tmp_path)
    served.repositories["o/r@refs/pr/1"] = repository(tmp_path, n_layer=3)
    assert len(find("o/r:Q8_0@refs/pr/1").model.layers) == 3
    assert len(find(f"o/r@{COMMIT}:Q8_0").model.layers) == 2
    plan = autofit.plan("llama", "o/r:Q8_0@refs/pr/1", CARD)
    assert plan.argv[1] == "-mu" and plan.argv[2].endswith("/o/r/resolve/refs%2Fpr%2F1/m-Q8_0.gguf")
    with pytest.raises(ModelNotFoundError, match="no such revision"):
        find("o/r@nope")


def test_a_hub_that_calls_its_branch_otherwise(served: Hub, tmp_path: Path) -> None:
    served.repositories["o/r@master"] = repository(tmp_path)
    assert find("hf:o/r:Q8_0").model.architecture == "llama"
    assert served.requests[-1].path == "/o/r/resolve/master/m-Q8_0.gguf"
    assert autofit.plan("llama", "o/r:Q8_0", CARD).argv[1:3] == ("-hf", "o/r:Q8_0")
    for refs in (b"[]", b"{}", b'{"branches": 3}', b'{"branches": [3, {"name": "../x"}, {}]}', b"{"):
        served.documents["/api/models/o/none/refs"] = refs
        with pytest.raises(AutofitError):
            find("hf:o/none")


@pytest.mark.slow_but("HF_TOKEN", "home")
@pytest.mark.parametrize("where", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HOME", "home"])
def test_tokens_are_found_and_never_shown(
    served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    served.repositories["o/r"], served.token = repository(tmp_path), TOKEN
    if where in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.setenv(where, TOKEN)
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")
        path = {"HF_TOKEN_PATH": "t", "HF_HOME": "h/token", "home": ".cache/huggingface/token"}[where]
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(TOKEN + "\n")
        if where != "home":
            monkeypatch.setenv(where, str(tmp_path / ("h" if where == "HF_HOME" else path)))
    assert main(["llama", "o/r:Q8_0", "--on", "rtx-3090", "--ram", "64GiB", "--explain"]) == 0
    said = "".join(capsys.readouterr())
    assert main(["llama", "o/r:Q8_0", "--on", "rtx-3090", "--ram", "64GiB", "--format", "json"]) == 0
    said += "".join(capsys.readouterr())
    assert main(["llama", "hf:o/none", "--on", "rtx-3090", "--ram", "64GiB"]) == 2
    said += "".join(capsys.readouterr())
    assert "abcdefghij" not in said and "secret" not in said
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*.entry"))
    assert kept and TOKEN.encode() not in kept
    assert {request.authorization for request in served.requests} == {f"Bearer {TOKEN}"}
    assert {request.authorization for request in storage_of(served).requests} == {None}


@pytest.mark.parametrize("token", ["a b", "x\r\nEvil: 1", "é", "y" * 600])
def test_a_token_that_is_none_is_not_sent_and_not_shown(
    served: Hub, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UsageError, match="HF_TOKEN: what it holds is not a token") as caught:
        find("hf:o/r")
    assert token not in f"{caught.value.message}{caught.value.hint}" and not served.requests


def test_without_a_token(served: Hub, tmp_path: Path) -> None:
    served.repositories["o/r"], served.token = repository(tmp_path), TOKEN
    with pytest.raises(RemoteError, match="not found, or not public") as caught:
        find("hf:o/r")
    assert "HF_TOKEN" in (caught.value.hint or "")
    with pytest.raises(RemoteError, match="o/r: no such file or directory; as a repository: "):
        find("o/r")


@pytest.mark.parametrize(
    "rows",
    [
        b"", b"{}", b"[", b"[" * 100_000, b"null", b'"x"', b"[1, null, []]",
        b'[{"type": "file"}]',
        b'[{"type": "file", "path": 3, "size": 3, "oid": "x"}]',
        json.dumps([{"type": "file", "path": path, "size": 5, "oid": "0" * 40} for path in
                    ("../m.gguf", "/m.gguf", "a/../../m.gguf", "a\\m.gguf", "m\x1b[2J.gguf", "m\u202e.gguf")]).encode(),
        json.dumps([{"type": "file", "path": "m.gguf", "size": size, "oid": "0" * 40} for size in
                    (-1, 1 << 70, 1.5, "5", None, True)]).encode(),
        json.dumps([{"type": "file", "path": "m.gguf", "size": 5, "oid": oid} for oid in
                    (None, 3, "", "x" * 40, "0" * 41)]).encode(),
    ],
    ids=range(12),
)  # fmt: skip
def test_lists_that_are_none(served: Hub, rows: bytes) -> None:
    served.documents["/api/models/o/r/tree/main"] = rows
    with pytest.raises(AutofitError) as caught:
        find("hf:o/r")
    assert f"{caught.value.message}{caught.value.hint}".isprintable()


def test_what_a_repository_has_is_said(served: Hub, tmp_path: Path) -> None:
    served.repositories |= {
        "o/r": repository(tmp_path), "o/bin": {"pytorch_model.bin": Content(b"", 3)}, "o/empty": {},
        "o/part": {"m-Q8_0-00001-of-00002.gguf": Content(b"", 3)},
    }  # fmt: skip
    for name, cause, hint in (
        ("o/r:Q3_K_S", "no model Q3_K_S", "Q4_K_M ("),
        ("o/r:none.gguf", "no model none.gguf", "Q8_0 ("),
        ("o/bin", "only pickled weights", "converted"),
        ("o/empty", "no GGUF and no safetensors", "no files"),
        ("o/part", "m-Q8_0-00001-of-00002.gguf is one of 2 shards", "another repository"),
    ):
        with pytest.raises(ModelNotFoundError, match=cause) as caught:
            find(f"hf:{name}")
        assert hint in (caught.value.hint or "")


def test_addresses_of_files(served: Hub, tmp_path: Path) -> None:
    served.plain["d/m.gguf"] = gguf(tmp_path, n_vocab=40_000)
    url = f"{served.url}/d/m.gguf"
    found = find(url)
    assert same(found.model, autofit.read_model(tmp_path / "m.gguf"))
    ranges = [request.range for request in served.requests]
    assert ranges[0] == "bytes=0-1048575" and len(ranges) <= 2
    assert find(url).model == found.model and len(served.requests) == len(ranges)
    plan = autofit.plan("llama", url, CARD)
    assert plan.argv[1:3] == ("-mu", url)
    assert autofit.check(plan.argv, CARD).fits
    with pytest.raises(UsageError, match="vLLM does not load"):
        autofit.plan("vllm", url, CARD)
    for wrong in (
        f"{served.url}/d/",
        f"{served.url}/d/e/m.bin",
        "https://u:p@h/m.gguf",
        f"{served.url}/d/%2e%2e/m.gguf",
    ):
        with pytest.raises(UsageError):
            find(wrong)
    served.repositories["o/r"] = repository(tmp_path)
    assert find(f"{served.url}/o/r/blob/main/m-Q8_0.gguf").files.written is not None


def test_the_registry_of_ollama(served: Hub, tmp_path: Path) -> None:
    model = gguf(tmp_path, n_vocab=40_000)
    digest = "sha256:" + "ab" * 32
    host = served.url.removeprefix("http://")
    manifest = caches.manifest({"application/vnd.ollama.image.model": (digest, model.size)})
    served.documents["/v2/library/tiny/manifests/latest"] = manifest
    served.plain[f"v2/library/tiny/blobs/{digest}"] = model
    found = find(f"ollama:{host}/library/tiny")
    assert same(found.model, autofit.read_model(tmp_path / "m.gguf"))
    plan = autofit.plan("llama", f"ollama:{host}/library/tiny", CARD)
    assert plan.argv[1:3] == ("-mu", f"{served.url}/v2/library/tiny/blobs/{digest}")
    assert autofit.check(plan.argv, CARD).fits


def test_the_registry_of_docker(served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker, "REGISTRY", served.url)
    monkeypatch.setattr(docker, "TOKENS", f"{served.url}/token")
    model = gguf(tmp_path, n_vocab=40_000)
    digest = "sha256:" + "cd" * 32
    served.documents["/token"] = b'{"token": "anybody"}'
    served.documents["/v2/ai/tiny/manifests/latest"] = caches.manifest(
        {
            "application/vnd.docker.ai.license": ("sha256:" + "0" * 64, 1),
            "application/vnd.docker.ai.gguf.v3": (digest, model.size),
        }
    )
    served.plain[f"v2/ai/tiny/blobs/{digest}"] = model
    plan = autofit.plan("llama", "docker:tiny", CARD)
    assert plan.argv[1:3] == ("-dr", "ai/tiny:latest")
    assert served.requests[-1].authorization == "Bearer anybody"
    assert autofit.check(["llama-server", "-dr", "tiny"], CARD).fits
    for token in (b"[]", b'{"token": 3}', b'{"token": "a\\nb"}', b"{}"):
        served.documents["/token"] = token
        with pytest.raises(AutofitError, match="gives no token"):
            find("docker:other")
    for name in ("docker:", "docker:A/b", "docker:a/../b", "docker:a:b:c"):
        with pytest.raises(UsageError):
            find(name)


def test_a_terminal_sees_no_control_characters_of_a_repository(
    served: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = content_of(ggufs.llama(name="evil\x1b]0;pwned\x07", n_vocab=40_000).write(tmp_path / "e.gguf"))
    served.repositories["o/r"] = {"m-Q4_K_M.gguf": evil}
    assert main(["llama", "o/r", "--on", "rtx-3090", "--ram", "64GiB", "--explain"]) == 0
    assert main(["inspect", "o/r"]) == 0
    assert all(c.isprintable() or c == "\n" for c in "".join(capsys.readouterr()))


def test_endpoints() -> None:
    assert hub.endpoint_of({}) == "https://huggingface.co"
    assert hub.endpoint_of({"HF_ENDPOINT": "https://a/", "MODEL_ENDPOINT": ""}) == "https://a"
    assert hub.endpoint_of({"HF_ENDPOINT": "https://a", "MODEL_ENDPOINT": "https://b/"}) == "https://b"
    assert os.environ["HF_HUB_OFFLINE"] == "1"  # of all other tests


@pytest.mark.parametrize("name", ["hf:o/r:Q8_0", "hf:o/r:Q2_K", "hf:o/r:broken", "hf:o/none"])
def test_no_connection_outlives_a_model(name: str, served: Hub, tmp_path: Path) -> None:
    """Read, without such a quantization, not a model, and not there."""
    served.repositories["o/r"] = {**repository(tmp_path), "m-broken.gguf": Content(b"GGUF" + b"\xff" * 60, 64)}
    made: list[Client] = []
    with pytest.MonkeyPatch.context() as patch:
        start = Client.__init__
        patch.setattr(Client, "__init__", lambda self, **options: (made.append(self), start(self, **options))[1])
        with suppress(AutofitError):
            find(name)
    assert made
    assert not any(client._open for client in made)


def test_a_repository_of_presets_names_its_models(served: Hub) -> None:
    text = b"[*]\nctx-size = 8192\n[fast]\nhf-repo = o/small:Q4_K_M ; so\n[o/large:Q8_0]\n[x]\nhf = ../../etc\n"
    served.repositories["o/presets"] = {"preset.ini": Content(text, len(text))}
    with pytest.raises(ModelNotFoundError, match=r"no model, but preset\.ini") as caught:
        locate("hf:o/presets")
    assert (caught.value.hint or "").endswith(": o/small:Q4_K_M, o/large:Q8_0")
    served.repositories["o/none"] = {"preset.ini": Content(b"\xff\x00[\n", 4)}
    with pytest.raises(ModelNotFoundError, match="no model, but"):
        locate("hf:o/none")


def test_pages_of_the_hub_are_repositories(served: Hub, tmp_path: Path) -> None:
    """With their scheme or without; of a folder, the models in it."""
    model = gguf(tmp_path)
    served.repositories["o/m"] = {"a-Q4_K_M.gguf": model, "UD-Q6_K_XL/a-UD-Q6_K_XL.gguf": model}
    assert locate("huggingface.co/o/m").written == locate("hf:o/m").written == "hf:o/m:Q4_K_M"
    assert locate("hf.co/o/m:Q6_K_XL").paths[0].endswith("UD-Q6_K_XL/a-UD-Q6_K_XL.gguf")
    for page in ("https://huggingface.co/o/m/tree/main/UD-Q6_K_XL", f"{served.url}/o/m/tree/main/UD-Q6_K_XL"):
        assert locate(page).paths[0].endswith("UD-Q6_K_XL/a-UD-Q6_K_XL.gguf")
    for page in ("https://modelscope.cn/models/o/m", "https://www.modelscope.cn/models/o/m/files?version=master"):
        with pytest.raises(ModelNotFoundError, match="modelscope:o/m: not on this machine"):
            locate(page)


def test_errors_name_what_was_written(served: Hub) -> None:
    """Not the address of a list that nobody has written."""
    for name in ("hf:o/none", "hf:o/none@v1"):
        with pytest.raises(ModelNotFoundError) as caught:
            locate(name)
        assert caught.value.message.startswith(f"{name.removeprefix('hf:')} at 127.0.0.1: not found (404)")


def test_errors_of_registries_name_the_model(served: Hub) -> None:
    host = served.url.removeprefix("http://")
    with pytest.raises(ModelNotFoundError, match=r"o/none:7b at 127\.0\.0\.1:\d+: not found \(404\)"):
        locate(f"ollama:{host}/o/none:7b")


def test_a_draft_model_of_vllm_may_be_elsewhere(served: Hub, tmp_path: Path) -> None:
    served.repositories["o/target"] = checkpoint(tmp_path, 3)
    served.repositories["o/draft"] = checkpoint(tmp_path, 2)

    def command(draft: str) -> list[str]:
        config = json.dumps({"model": draft, "num_speculative_tokens": 3})
        return ["vllm", "serve", "o/target", "--max-model-len", "512", "--speculative-config", config]

    def codes(draft: str) -> set[str]:
        return {finding.code for finding in autofit.check(command(draft), CARD).findings}

    def weights(draft: str) -> int:
        return autofit.check(command(draft), CARD).memory.pools[0].sum_bytes("weights")

    assert weights("o/draft") > weights("o/no-draft")
    assert "draft-unknown" in codes("o/no-draft") and "draft-unknown" not in codes("o/draft")
    with pytest.raises(ModelNotFoundError, match="the draft model o/no-draft is not on this machine"):
        autofit.plan("vllm", "o/target", CARD, engine_args=command("o/no-draft")[5:])


def test_shards_with_large_headers_do_not_fill_the_memory(
    served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each header is of a size that is accepted; all at once they are not asked for."""
    monkeypatch.setattr(files, "MAX_HEADS_BYTES", 4 << 20)
    stated = (1 << 20) - 8
    lie = Content(stated.to_bytes(8, "little") + b"{}".ljust(stated), 1 << 20)
    names = [f"model-{number:05d}-of-00040.safetensors" for number in range(1, 41)]
    served.repositories["o/lies"] = {**dict.fromkeys(names, lie), "config.json": Content(b"{}", 2)}
    with pytest.raises(ModelError, match="headers of more than"):
        find("o/lies")
    assert served.sent_bytes + storage_of(served).sent_bytes < 6 << 20
