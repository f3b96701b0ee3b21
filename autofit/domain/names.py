"""Names of models that lie elsewhere, taken apart: text alone, nothing is looked up."""

from __future__ import annotations

import re
from collections.abc import Collection

from autofit.domain.patterns import lazy_pattern
from autofit.domain.values import NamedTuple

HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
FILE_SUFFIXES = (".gguf", ".safetensors", ".json")
MAX_NAME = 1024  #: characters of a whole name

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_REPOSITORY = lazy_pattern(rf"(?:{_PART}/)?{_PART}")
_BARE = lazy_pattern(rf"{_PART}/{_PART}(?<!\.gguf)(?<!\.json)(?<!\.safetensors)")
_CHOICE = lazy_pattern(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,62}[A-Za-z0-9_])?")
_REVISION = lazy_pattern(r"[A-Za-z0-9_](?:[A-Za-z0-9_./-]{0,198}[A-Za-z0-9_])?")


class HubName(NamedTuple):
    """`org/repo[:choice][@revision]`: a repository of a hub, and which of its models.

    `choice` is a quantization as file names spell it (`Q4_K_M`), or the path of a file in the repository.
    """

    repository: str
    choice: str | None = None
    revision: str | None = None

    @property
    def file(self) -> str | None:
        """The path of the file that was chosen, if a file was."""
        return self.choice if self.choice and self.choice.endswith(FILE_SUFFIXES) else None

    @property
    def quantization(self) -> str | None:
        """The quantization that was chosen, if one was."""
        return None if self.file else self.choice

    def written(self) -> str:
        """The name as `parse_hub` reads it back, with its scheme."""
        choice = f":{self.choice}" if self.choice else ""
        return f"hf:{self.repository}{choice}{f'@{self.revision}' if self.revision else ''}"


def is_elsewhere(reference: str) -> bool:
    """Whether a reference, or a path of a file that came from one, names something that is not on this disk."""
    return reference.startswith(("hf:", "http://", "https://", "url:", "ollama:", "docker:"))


def parse_hub(text: str) -> HubName | None:
    """`org/repo[:quant or file][@revision]`, `org/repo/file[@revision]` or `org/repo@revision/file`; `None`: neither.

    A scheme `hf:` before it has been taken off.
    """
    text = text.removeprefix("//")
    if len(text) > MAX_NAME:
        return None
    head, at, revision = text.partition("@")
    if at and ":" not in head and head.count("/") < 2:  # the revision stands beside the repository
        for mark in (":", "/"):
            before, found, after = revision.partition(mark)
            if found and (mark == ":" or after.endswith(FILE_SUFFIXES)):
                revision, head = before, f"{head}{mark}{after}"
                break
    repository, choice = _split(head)
    if not _REPOSITORY.fullmatch(repository) or ".." in repository or "--" in repository:
        return None
    if (at and not is_branch(revision)) or (choice is not None and not _is_choice(choice)):
        return None
    return HubName(repository, choice, revision if at else None)


def parse_bare(text: str) -> HubName | None:
    """`org/repo[:quant or file][@revision]` without a scheme; `None` where it is more likely a path.

    The hub's host may stand before it, as in an address that was copied without its scheme.
    """
    if text.startswith(tuple(f"{host}/" for host in HUB_HOSTS)):
        return hub_of_url(f"https://{text}")
    repository = re.split("[:@]", text, maxsplit=1)[0]
    return parse_hub(text) if _BARE.fullmatch(repository) else None


def hub_of_url(url: str, hosts: Collection[str] = HUB_HOSTS) -> HubName | None:
    """The name that a page or file of the hub stands for; `None` for any other URL."""
    from urllib.parse import unquote, urlsplit

    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return None
    if host not in hosts or parts.username is not None or parts.password is not None:
        return None
    path = unquote(parts.path).strip("/")
    match = re.fullmatch(r"([^/]+/[^/:@]+)/(?:blob|resolve|raw|tree)/([^/]+)(?:/(.+))?", path)
    if match is None:
        return parse_bare(path)  # a file at the top of the server is none
    file = f":{match[3]}" if match[3] else ""
    return parse_hub(f"{match[1]}{file}@{match[2]}")


def is_file_name(path: str) -> bool:
    """Whether a path names a file below some folder and nothing outside it, in characters that can be shown."""
    return (
        0 < len(path) <= MAX_NAME
        and path.isprintable()
        and "\\" not in path
        and all(part not in ("", ".", "..") for part in path.split("/"))
    )


def _split(text: str) -> tuple[str, str | None]:
    """Repository and choice; the choice may follow a colon, or be a path behind `org/repo/`."""
    repository, colon, choice = text.partition(":")
    if colon:
        return repository, choice
    parts = text.split("/", 2)
    return ("/".join(parts[:2]), parts[2]) if len(parts) == 3 else (text, None)


def _is_choice(text: str) -> bool:
    return is_file_name(text) if text.endswith(FILE_SUFFIXES) else bool(_CHOICE.fullmatch(text))


def is_branch(text: str) -> bool:
    """Whether a text can name a branch, a tag or a commit."""
    return bool(_REVISION.fullmatch(text)) and ".." not in text and "//" not in text
