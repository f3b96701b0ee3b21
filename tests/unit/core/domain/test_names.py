"""Names of repositories, taken apart and written again."""

from __future__ import annotations

import pytest
from autofit.domain.names import HubName, hub_of_url, is_file_name, parse_bare, parse_hub
from hypothesis import given
from hypothesis import strategies as st

NAMES = {
    "o/r": HubName("o/r"),
    "//o/r": HubName("o/r"),
    "gpt2": HubName("gpt2"),
    "o/r:Q4_K_M": HubName("o/r", "Q4_K_M"),
    "o/r:UD-Q4_K_XL@main": HubName("o/r", "UD-Q4_K_XL", "main"),
    "o/r@v1.2:Q8_0": HubName("o/r", "Q8_0", "v1.2"),
    "o/r:a/b-Q8_0.gguf": HubName("o/r", "a/b-Q8_0.gguf"),
    "o/r/a/b.gguf": HubName("o/r", "a/b.gguf"),
    "o/r/b.gguf@refs/pr/1": HubName("o/r", "b.gguf", "refs/pr/1"),
    "o/r@0123abc/b.gguf": HubName("o/r", "b.gguf", "0123abc"),
    "o/r@refs/pr/1": HubName("o/r", None, "refs/pr/1"),
}


@pytest.mark.parametrize(("text", "name"), NAMES.items())
def test_names_are_taken_apart(text: str, name: HubName) -> None:
    assert parse_hub(text) == name
    assert parse_hub(name.written().removeprefix("hf:")) == name


@pytest.mark.parametrize(
    "text",
    ["", "/", "o/", "/r", "o//r", "../r", "o/..", "o/r:", "o/r@", "o/r:a b", "o/r:../x.gguf", "o/r:/x.gguf",
     "o/r:x\x1b", "o/r:a\\b.gguf", "o/r@..", "o/r@a//b", "-o/r", "o/r.", "o--x/r", "o/r:a:b", "o/" + "r" * 97,
     "o/r:" + "x" * 2000, "ö/r"],
)  # fmt: skip
def test_what_is_no_name(text: str) -> None:
    assert parse_hub(text) is None


@pytest.mark.parametrize(
    ("text", "is_name"),
    [("o/r", True), ("o/r:Q4_K_M@x", True), ("o/r/s", False), ("r", False), ("o/m.gguf", False), ("./o/r", False),
     ("~/r", False), ("o/config.json", False), ("o/m.gguf:Q4_0", False)],
)  # fmt: skip
def test_what_may_stand_without_a_scheme(text: str, is_name: bool) -> None:
    assert (parse_bare(text) is not None) == is_name


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://huggingface.co/o/r", HubName("o/r")),
        ("https://hf.co/o/r:Q4_0", HubName("o/r", "Q4_0")),
        ("https://huggingface.co/o/r/tree/main", HubName("o/r", None, "main")),
        ("https://huggingface.co/o/r/blob/v1/a/b.gguf", HubName("o/r", "a/b.gguf", "v1")),
        ("https://huggingface.co/o/r/resolve/main/b.gguf?download=true", HubName("o/r", "b.gguf", "main")),
        ("https://huggingface.co/o/r/resolve/main/%2e%2e/b.gguf", None),
        ("https://huggingface.co.evil.org/o/r", None),
        ("https://user@huggingface.co/o/r", None),
        ("https://[/o/r", None),
    ],
)
def test_pages_of_the_hub_are_names(url: str, name: HubName | None) -> None:
    assert hub_of_url(url) == name


@given(st.text(max_size=40) | st.from_regex(r"[a-z./:@-]{1,30}", fullmatch=True))
def test_whatever_is_read_is_safe_and_read_back(text: str) -> None:
    name = parse_hub(text)
    if name is not None:
        assert name.written().isprintable() and ".." not in name.repository
        assert name.file is None or is_file_name(name.file)
        assert parse_hub(name.written().removeprefix("hf:")) == name
