"""Which reader a file has: by its name, else by what it says."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence

from autofit.deployments import compose, dockerfile, kubernetes, quadlet, shell, swap, systemd
from autofit.deployments.swap_sets import sets
from autofit.deployments.written import MAX_BYTES, SECRET, IsEngine, Written, check_measure, env_rows, rows
from autofit.domain.text import printable
from autofit.domain.values import replace
from autofit.errors import UsageError
from autofit.files import read_bounded
from autofit.text.programs import RUNNERS
from autofit.text.yaml import documents

Reader = Callable[[str], Sequence[tuple[int, tuple[str, ...]]]]  #: text -> commands with their lines
KINDS = (
    "shell scripts, Procfiles, Dockerfiles, Compose files, systemd units, containers of Quadlet, Kubernetes manifests, "
    "llama-swap configurations"
)
_UNITS = (".service", ".conf")
_QUADLET = ".container"
MAX_PROCFILE_WORDS = 20_000
_PROCFILE_WORD = re.compile(r"[^\s;&|()]+|[;&|()]")
_PROCESS = re.compile(r"^([A-Za-z0-9_-]+):[ \t]*(.+)$")


def read_commands(
    path: str,
    is_engine: IsEngine,
    environ: Mapping[str, str],
    mapped: Sequence[tuple[str, str]] = (),
    readers: Mapping[str, Reader] | None = None,
) -> tuple[Written, ...]:
    """The commands of engines that a file starts, in its order.

    `environ` are the variables that it may name; `mapped` are pairs of a path as the file has it, and the one here
    that stands for it. `readers` are those of engines for files of their own, by the end of the name.

    Raises:
        UsageError: the file is not readable, too large, not text, or not well formed.
    """
    try:
        known = {name: value for name, value in environ.items() if not SECRET.search(name)}
        text = _text(path)
        own = next((reader for end, reader in (readers or {}).items() if path.lower().endswith(end)), None)
        if own is not None:
            commands = own(text)
            check_measure(commands[-1][0] if commands else 0, len(commands))
            return tuple(Written(line=line, argv=_moved(argv, mapped)) for line, argv in commands)
        found = _read(path, text, is_engine, known, [(first, os.path.abspath(then)) for first, then in mapped])  # noqa: PTH100
    except UsageError as error:
        raise UsageError(f"{printable(path, 200)}: {error.message}", hint=error.hint) from None
    return tuple(replace(one, argv=_moved(one.argv, mapped)) for one in found)


def read_swap(
    path: str, is_engine: IsEngine, environ: Mapping[str, str]
) -> tuple[tuple[tuple[str, tuple[Written, ...]], ...], tuple[frozenset[str], ...]]:
    """The models of a llama-swap configuration with their commands, and the largest sets that may be loaded at once.

    Raises:
        UsageError: the file is not readable, too large, not text, or not well formed.
    """
    try:
        known = {name: value for name, value in environ.items() if not SECRET.search(name)}
        folder = os.path.split(path)[0] or None
        for document in documents(_text(path)):
            if document.get("models").pairs:
                return swap.models(document, is_engine, known, folder), sets(document)
    except UsageError as error:
        raise UsageError(f"{printable(path, 200)}: {error.message}", hint=error.hint) from None
    return (), ()


def _text(path: str) -> str:
    """The text of a file.

    Raises:
        UsageError: it is not readable, too large, or not text.
    """
    try:
        text = read_bounded(path, MAX_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise UsageError(error.strerror or str(error)) from None
    except UnicodeDecodeError:
        raise UsageError("not UTF-8 text", hint=f"it may be one of {KINDS}") from None
    if "\0" in text:
        raise UsageError("not text: it holds zero bytes")
    return text


def _read(
    path: str, text: str, is_engine: IsEngine, environ: Mapping[str, str], mapped: Sequence[tuple[str, str]]
) -> tuple[Written, ...]:
    folder, name = os.path.split(path)
    directory, lowered = folder or None, name.lower()
    volumes = tuple(f"{then}:{first}" for first, then in mapped)
    if lowered.endswith((".yaml", ".yml", ".json")):
        return _yaml(text, is_engine, {**_dot_env(folder), **environ}, directory, volumes)
    if lowered.startswith(("dockerfile", "containerfile")) or lowered.endswith((".dockerfile", ".containerfile")):
        return dockerfile.commands(text, is_engine, directory, volumes)
    if lowered.endswith(_QUADLET):
        return quadlet.commands(text, is_engine, environ.get("HOME"), directory, volumes)
    if lowered.endswith(_UNITS) or re.search(r"^\[Service\]\s*$", text, re.MULTILINE):
        return systemd.commands(text, is_engine, environ.get("HOME"))
    if lowered.startswith("procfile"):
        return _procfile(text, is_engine, environ, directory)
    return shell.commands(text, is_engine, environ, path=path)


def _yaml(
    text: str, is_engine: IsEngine, environ: Mapping[str, str], directory: str | None, volumes: tuple[str, ...]
) -> tuple[Written, ...]:
    found: list[Written] = []
    for document in documents(text):
        if document.get("services").pairs:
            found += compose.commands(document, is_engine, environ, directory, volumes)
        elif any(model.get("cmd").text for model in document.get("models").pairs.values()):
            found += swap.commands(document, is_engine, environ, directory)
        else:
            found += kubernetes.commands(document, is_engine, directory, volumes)
    return tuple(found)


def _procfile(text: str, is_engine: IsEngine, environ: Mapping[str, str], directory: str | None) -> tuple[Written, ...]:
    found: list[Written] = []
    n_processes = n_words = 0
    for line, row in enumerate(rows(text), 1):
        match = _PROCESS.match(row)
        if match is not None:
            n_processes += 1
            check_measure(line, n_processes)
            n_words += sum(1 for _ in _PROCFILE_WORD.finditer(match[2]))
            if n_words > MAX_PROCFILE_WORDS:
                raise UsageError(f"line {line}: more than {MAX_PROCFILE_WORDS} words in a Procfile")
            inner = shell.commands(match[2], is_engine, environ, line=line)
            found += [replace(one, directory=_below(directory, one.directory)) for one in inner]
    return tuple(found)


def _below(directory: str | None, inner: str | None) -> str | None:
    return os.path.join(directory or "", inner or "") or None  # noqa: PTH118 - words of another file


def _dot_env(folder: str) -> dict[str, str]:
    """The variables of the `.env` beside a Compose file."""
    try:
        text = read_bounded(os.path.join(folder, ".env"), MAX_BYTES).decode("utf-8")  # noqa: PTH118
    except (OSError, UnicodeDecodeError):
        return {}
    return dict(env_rows(text))


def _moved(argv: tuple[str, ...], mapped: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """A command with the paths that stand for others; of a container, in what it sees of its host."""
    if not any(word.rpartition("/")[2] in RUNNERS for word in argv):
        return tuple(_moved_word(word, mapped, ("/", "")) for word in argv)
    return tuple(
        _moved_word(word, mapped, ("/", ":")) if before in ("-v", "--volume") else word
        for before, word in zip(("", *argv), argv, strict=False)
    )


def _moved_word(word: str, mapped: Sequence[tuple[str, str]], ends: tuple[str, ...]) -> str:
    """A word whose path, or whose value behind `=`, begins with a mapped one that ends there, or at one of `ends`."""
    head, equals, path = word.partition("=") if word.startswith("-") and "=" in word else ("", "", word)
    for first, then in mapped:
        rest = path.removeprefix(first.rstrip("/"))
        if rest != path and rest[:1] in ends:
            return head + equals + os.path.abspath(then) + rest  # noqa: PTH100
    return word
