"""`autofit report MODEL -- COMMAND`: one small file that replays, and nothing private in it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from autofit.cli.main import main
from autofit.errors import CorruptModelError, UsageError
from autofit.reports import report as reports
from autofit.reports.report import MAX_PACKED_BYTES, figures, pack, read_report, replay

from support import DATA, TINY, ggufs

ON = ("--on", "rtx-3090", "--ram", "64GiB")
MIXTRAL = "example:mixtral-8x7b-q4_k_m"
COMMAND = ("llama-server", "-c", "8192", "-ngl", "20")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_writes_a_file_that_replays(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", MIXTRAL, *ON, "--", *COMMAND]) == 0
    out = capsys.readouterr()
    assert out.out == "autofit-report-llama.json.gz\n"
    assert "tensors without data (323)" in out.err
    path = here / "autofit-report-llama.json.gz"
    assert path.stat().st_size < 10_000
    report = read_report(path)
    assert report["replays"]
    assert report["command"] == list(COMMAND)
    assert figures(replay(report)) == figures(report["answer"])
    main(["check", *ON, "--format", "json", "--", *COMMAND, "-m", MIXTRAL])
    checked = json.loads(capsys.readouterr().out)
    used = {pool["id"]: pool["used_bytes"] for pool in checked["pools"]}
    reported = {
        pool["id"]: sum(item["bytes"] for item in pool["items"] if item["kind"] != "reserve")
        for pool in report["answer"]["pools"]
    }
    assert reported == used


def test_nothing_private_is_in_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = here / "jane-doe"
    folder.mkdir()
    (folder / "m.gguf").write_bytes(TINY.read_bytes())
    ggufs.llama(name="adapter of jane-doe").write(folder / "draft-of-jane-doe.gguf")
    monkeypatch.setenv("LLAMA_ARG_API_KEY", "sk-jane-doe")
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "2048")
    command = [f"{folder}/llama-server", "-m", f"{folder}/m.gguf", "--api-key", "jane-doe", "--host", "jane-doe.lan"]
    command += ["-md", f"{folder}/draft-of-jane-doe.gguf", "--alias", "jane-doe"]
    assert main(["report", str(folder / "m.gguf"), *ON, "--", *command]) == 0
    (path,) = here.glob("*.json.gz")
    text = gzip.decompress(path.read_bytes()).decode()
    assert "jane" not in text
    assert str(here) not in text
    report = read_report(path)
    assert report["environment"] == {"LLAMA_ARG_API_KEY": "hidden", "LLAMA_ARG_CTX_SIZE": "2048"}
    assert list(report["model"]["companions"]) == ["draft"]
    assert report["replays"]


def test_a_secret_in_an_unlikely_place_stops_it(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdef")
    assert main(["report", MIXTRAL, *ON, "--", *COMMAND, "-ot", "hf_abcdef=CPU"]) == 2
    assert "HF_TOKEN" in capsys.readouterr().err
    assert list(here.iterdir()) == []


def test_a_checkpoint_of_vllm(here: Path) -> None:
    directory = DATA / "vllm" / "configs" / "qwen3-8b"
    command = ["--on", "h100-80gb", "-o", "v.json.gz", "--", "vllm", "serve", str(directory)]
    assert main(["report", str(directory), *command]) == 0
    report = read_report(here / "v.json.gz")
    assert report["replays"]
    assert report["command"] == ["vllm", "serve", "MODEL"]


def test_a_refusal_is_a_case_too(here: Path) -> None:
    assert main(["report", MIXTRAL, *ON, "-o", "r.json.gz", "--", "llama-server", "-fa", "off", "-ctv", "q8_0"]) == 0
    report = read_report(here / "r.json.gz")
    assert report["answer"]["refused"] == "EngineRefusalError"
    assert report["replays"]


def test_show_prints_it_and_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", MIXTRAL, *ON, "--show", "--", *COMMAND]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "report"
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        ([MIXTRAL], 2, "report: no command"),
        (["--", *COMMAND], 2, "MODEL"),
        (["no-such.gguf", "--", *COMMAND], 2, "no-such.gguf"),
        ([MIXTRAL, "--", "ollama", "run"], 2, "ollama"),
        ([str(DATA / "vllm" / "configs" / "qwen3-8b"), *ON, "--", *COMMAND], 1, "reads GGUF files"),
        ([MIXTRAL, *ON, "--", "llama-server", "-c", "many"], 2, "many"),
        ([MIXTRAL, *ON, "-o", "no/such/folder.json.gz", "--", *COMMAND], 2, "no/such/folder"),
    ],
)
def test_what_cannot_be_reported(argv: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *argv]) == code
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err


def test_an_existing_file_is_left_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "r.json.gz").write_text("mine")
    assert main(["report", MIXTRAL, *ON, "-o", "r.json.gz", "--", *COMMAND]) == 2
    assert "exists" in capsys.readouterr().err
    assert (here / "r.json.gz").read_text() == "mine"


def test_it_is_bounded() -> None:
    noise = [hash((i, "x")) for i in range(200_000)]
    with pytest.raises(UsageError, match=f"{MAX_PACKED_BYTES:,}"):
        pack({"noise": noise})


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"no gzip", "not gzip"),
        (gzip.compress(b"{", mtime=0)[:-4], "the file is cut off"),
        (gzip.compress(b"{", mtime=0), "JSON"),
        (gzip.compress(b"[]", mtime=0), "not a report"),
        (gzip.compress(b'{"schema": 2, "kind": "report"}', mtime=0), "not a report"),
        (gzip.compress(b" " * (reports.MAX_BYTES + 1), mtime=0), "unpacks to more than"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_that_are_no_report(here: Path, content: bytes, cause: str) -> None:
    (here / "r.json.gz").write_bytes(content)
    with pytest.raises(CorruptModelError, match=cause):
        read_report(here / "r.json.gz")


@pytest.mark.parametrize("key", ["model", "machine", "command", "environment", "options"])
def test_a_report_without_a_part_does_not_replay(key: str) -> None:
    whole = {"model": {}, "machine": {}, "command": [], "environment": {}, "options": {}}
    with pytest.raises(CorruptModelError):
        replay({**whole, key: 3})
