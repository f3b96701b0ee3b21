"""Who is asked, and who is told a secret."""

from __future__ import annotations

import pytest
from autofit.errors import RemoteError, UsageError
from autofit.remote.policy import Origin, is_local_name, is_public, may_have_secret, origin_of, redirected, shown

HUB = Origin("https", "huggingface.co", 443)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://huggingface.co/a", HUB),
        ("HTTPS://HuggingFace.co:443/a", HUB),
        ("http://[::1]:8080/a", Origin("http", "::1", 8080)),
    ],
)
def test_origins(url: str, origin: Origin) -> None:
    assert origin_of(url) == origin


@pytest.mark.parametrize(
    "url",
    ["ftp://h/a", "file:///etc/passwd", "//h/a", "https:///a", "https://u:p@h/a", "https://u@h/", "https://h:99999/",
     "https://h:x/", "https://[/", "https://h/a b", "https://h/a\r\nX: y", "https://h/" + "a" * 9000],
)  # fmt: skip
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        origin_of(url)
    assert caught.value.message.isprintable() and "u:p" not in caught.value.message


def test_messages_show_no_secret() -> None:
    assert shown("https://u:secret@h:1/a?X-Signature=secret#secret") == "https://h:1/a"


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/b?c", "https://huggingface.co/b?c"),
        ("https://cas-bridge.xethub.hf.co/x?y", "https://cas-bridge.xethub.hf.co/x?y"),
        ("//cdn.org/x", "https://cdn.org/x"),
    ],
)
def test_redirects_that_are_followed(location: str, target: str) -> None:
    assert redirected("https://huggingface.co/a", location, HUB) == target


@pytest.mark.parametrize(
    "location",
    ["http://cdn.org/x", "https://127.0.0.1/", "https://localhost/", "https://10.0.0.1/", "https://169.254.169.254/meta",
     "https://[::1]/", "https://[::ffff:10.0.0.1]/", "https://metadata.google.internal/", "https://127.1/",
     "https://0x7f000001/", "https://2130706433/", "https://user@cdn.org/", "ftp://cdn.org/", "javascript:x",
     "https://[fe80::1%25eth0]/", "https://[2002:7f00:1::]/", "https://0.0.0.0/", "https://router.local/"],
)  # fmt: skip
def test_redirects_that_are_refused(location: str) -> None:
    with pytest.raises(RemoteError):
        redirected("https://huggingface.co/a", location, HUB)


def test_a_local_server_that_was_named_may_send_on_to_itself_and_to_the_public_network() -> None:
    named = Origin("http", "127.0.0.1", 8000)
    assert redirected("http://127.0.0.1:8000/a", "http://127.0.0.1:9000/b", named)
    assert redirected("http://127.0.0.1:8000/a", "https://cdn.org/b", named)
    with pytest.raises(RemoteError):
        redirected("http://127.0.0.1:8000/a", "http://10.0.0.1/b", named)


def test_addresses() -> None:
    assert is_public("8.8.8.8") and is_public("2606:4700::1111")
    assert not any(map(is_public, ("100.64.0.1", "192.168.1.1", "::", "fd00::1", "224.0.0.1", "198.18.0.1")))
    assert not is_local_name("huggingface.co") and not is_local_name("8.8.8.8")


@pytest.mark.parametrize(
    ("origin", "first", "may"),
    [
        (HUB, HUB, True),
        (HUB._replace(port=8443), HUB, False),
        (Origin("https", "cdn.org", 443), HUB, False),
        (Origin("http", "mirror.org", 80), Origin("http", "mirror.org", 80), False),
        (Origin("http", "127.0.0.1", 80), Origin("http", "127.0.0.1", 80), True),
        (Origin("http", "localhost", 80), Origin("http", "localhost", 80), True),
    ],
)
def test_who_is_told_a_secret(origin: Origin, first: Origin, may: bool) -> None:
    assert may_have_secret(origin, first) == may
