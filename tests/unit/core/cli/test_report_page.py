"""`autofit report MODEL --format html`: one page for tickets, whole in itself, with nothing private in it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from autofit.cli.main import main
from autofit.reports.html import MAX_BYTES

from support import TINY, ggufs
from support.vllm_truth import DATA

ON = ("--on", "rtx-3060-12gb", "--ram", "64GiB")
LLAMA = "example:llama-3.1-8b-q4_k_m"
VOID = {"meta", "rect", "circle", "path", "text", "br"}


class Page(HTMLParser):
    """Tags that are closed in their order, links, and the text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main(["report", *words, "--show", "--format", "html"] if "--" not in words else
                ["report", "--show", "--format", "html", *words]) == code, capsys.readouterr().err  # fmt: skip
    return capsys.readouterr().out


CASES = {
    "a plan": (LLAMA, *ON),
    "a command": (LLAMA, *ON, "--", "llama-server", "-ngl", "99", "-fit", "off"),
    "several cards": (str(DATA / "configs" / "llama3-70b"), "--on", "4xa100-40gb", "--ram", "64GiB"),
    "no fit": ("example:mixtral-8x22b-q4_k_m", "--on", "t4", "--ram", "8GiB"),
    "no rate": (LLAMA, "--on", "generic-cuda:12GiB"),
    "unified": ("example:tiny", "--on", "m3-max-36gb"),
}


@pytest.mark.slow_cases("a command", "several cards", "a plan")
@pytest.mark.parametrize("name", CASES)
def test_a_page_is_whole_in_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = made(capsys, *CASES[name])
    page = Page(source)
    assert len(source.encode()) < MAX_BYTES
    assert not {"script", "link", "img", "iframe", "object", "form", "base"} & {tag for tag, _ in page.tags}
    assert all(not {"src", "href", "action"} & attrs.keys() for _, attrs in page.tags)
    assert not re.search(r"@import|url\(|javascript:|https?://(?!www\.w3\.org/2000/svg)", source)
    assert all(not key.startswith("on") for _, attrs in page.tags for key in attrs)
    assert "default-src 'none'" in source and 'lang="en"' in source and "prefers-color-scheme:dark" in source
    told = [attrs for tag, attrs in page.tags if attrs.get("role") == "img"]
    assert told and all(attrs.get("aria-label") or attrs.get("aria-labelledby") for attrs in told)
    assert [tag for tag, _ in page.tags].count("caption") == [tag for tag, _ in page.tags].count("table") > 2
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_equal_cards_are_folded_in_every_table(capsys: pytest.CaptureFixture[str]) -> None:
    words = (str(DATA / "configs" / "llama3-70b"), "--on", "8xh100-80gb", "--ram", "512GiB")
    page = Page(made(capsys, *words))
    assert "GPU0 to GPU7, each" in page.text
    assert not re.search(r"GPU[1-6]", page.text)


def test_what_a_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    text = Page(made(capsys, *CASES["a plan"])).text
    for words in (
        "llama, 4.58 GiB of weights: fits",
        "llama-server -m MODEL -c 56064 -ngl 33",
        "GPU0 NVIDIA GeForce RTX 3060 11.44 GiB used of 11.63 GiB free",
        "4,617,396,480 exact llama-model.cpp:load_tensors",
        "GPU0 (8.87 MiB left beside the margin) limits the context: 56,064 of 131,072 tokens",
        "the next step up, -c 112128, takes",
        "56320 needs 23.38 MiB more on GPU0",
        "Safe until token 56,064",
        "longest context -c max 131,072 instead of 56,064 tokens",
        "131,072 11.42 GiB 10.75 GiB ~11.4 to ~6.0 q8_0 fits",
    ):
        assert words in text, words
    assert "error does not fit" in Page(made(capsys, *CASES["no fit"])).text


def test_nothing_private_is_in_it(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = here / "jane-doe"
    folder.mkdir()
    ggufs.llama(name="of jane-doe").write(folder / "m-jane-doe.gguf")
    (folder / "draft-jane-doe.gguf").write_bytes(TINY.read_bytes())
    monkeypatch.setenv("HOME", str(folder))
    command = [f"{folder}/llama-server", "-m", f"{folder}/m-jane-doe.gguf", "--api-key", "jane-doe", "-c", "0"]
    command += ["-md", f"{folder}/draft-jane-doe.gguf", "--alias", "jane-doe", "--host", "jane-doe.lan"]
    for words in (
        (str(folder / "m-jane-doe.gguf"), *ON, "--", *command),
        (str(folder / "m-jane-doe.gguf"), *ON),
        ("jane-doe/m-jane-doe.gguf", *ON),
    ):
        assert "jane-doe" not in made(capsys, *words)


def test_names_are_no_markup(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = here / "<img src=x onerror=alert(1)>.gguf"
    ggufs.llama(name="</title><script>alert(1)</script>\x1b[31m").write(evil)
    for words in ((str(evil), *ON), (evil.name, *ON)):
        source = made(capsys, *words)
        assert "<img" not in source and "<script" not in source and "\x1b" not in source


def test_it_is_written_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("report", "example:tiny", *ON, "--format", "html")
    assert main([*words]) == 0
    assert capsys.readouterr().out == "autofit-report-llama.html\n"
    assert (here / "autofit-report-llama.html").read_text().startswith("<!doctype html>")
    assert main([*words]) == 2
    assert "the file exists" in capsys.readouterr().err
    assert main([*words, "-o", "other.html"]) == 0


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ((LLAMA, "--kv", "q8_0", "--", "llama-server"), "--kv changes a plan"),
        ((LLAMA, "--kv", "q8_0"), "--kv changes a plan"),
        ((LLAMA,), "no command"),
        (("nowhere.gguf", "--format", "html"), "nowhere.gguf"),
        ((LLAMA, "--format", "html", "--", "-ngl", "3"), "is not a program of any engine"),
    ],
)
def test_what_makes_no_sense(words: tuple[str, ...], cause: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *words]) == 2
    assert cause in capsys.readouterr().err
