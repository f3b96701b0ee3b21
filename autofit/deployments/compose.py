"""Services of a Compose file, each as the `docker run` that it comes to.

Source: the Compose specification of 2025-09 (services, interpolation, merge, GPU reservations) and its `.env` file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

from autofit.deployments.container import Container, of_any_image, written
from autofit.deployments.written import (
    MAX_BYTES,
    UNKNOWN,
    IsEngine,
    Written,
    check_measure,
    env_rows,
    quoted_words,
)
from autofit.files import read_bounded
from autofit.text.yaml import Node

_BYTES = re.compile(r"([0-9]{1,15})([bkmgBKMG]?)[bB]?")
MAX_FILES = 16  #: of variables, for a service

_VARIABLE = re.compile(r"\$(?:\$|([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)(?:(:?[-?+])([^{}$]*))?\})")


def commands(
    document: Node,
    is_engine: IsEngine,
    environ: Mapping[str, str],
    directory: str | None,
    volumes: tuple[str, ...] = (),
) -> tuple[Written, ...]:
    """The commands of engines that the services start.

    `environ` are the variables that the file may name, `directory` its own, `volumes` what every container sees
    besides.

    Raises:
        UsageError: words that no shell splits.
    """
    found: list[Written] = []
    for service in document.get("services").pairs.values():
        container = _container(service, environ, volumes, directory)
        if container.image:
            found += written(container, is_engine, directory)
        elif service.get("build").value is not None:
            found += of_any_image(container, is_engine, directory)
        check_measure(container.line, len(found))
    return tuple(found)


def _container(service: Node, environ: Mapping[str, str], volumes: tuple[str, ...], directory: str | None) -> Container:
    values = _Values(environ)
    image = values.text(service.get("image"))
    entrypoint = service.get("entrypoint")
    command = service.get("command")
    return Container(
        line=(command if command.line else entrypoint if entrypoint.line else service).line,
        image=image,
        command=values.words(command),
        entrypoint=values.words(entrypoint) if entrypoint.value is not None else None,
        environ={
            **_of_files(service.get("env_file"), values, directory),
            **dict(values.variables(service.get("environment"), environ)),
        },
        volumes=(*filter(None, map(values.volume, service.get("volumes").items)), *volumes),
        gpus=_gpus(service, values),
        devices=tuple(values.text(item) for item in service.get("devices").items if item.text),
        directory=values.text(service.get("working_dir")) or None,
        memory=_memory(service, values),
        unknown=values.unknown,
    )


class _Values:
    """Texts of a service with their variables filled in; the first that has no value is remembered."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.unknown: str | None = None

    def text(self, node: Node) -> str:
        return _VARIABLE.sub(self._value, node.text or "")

    def _value(self, match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name is None:
            return "$"
        value, operator, word = self.environ.get(name), match[3] or "", match[4] or ""
        holds = bool(value) if operator.startswith(":") else value is not None
        if operator.endswith("+"):
            return word if holds else ""
        if holds and value is not None:
            return value
        if operator.endswith("-"):
            return word
        self.unknown = self.unknown or f"${name} is not set here"
        return UNKNOWN

    def words(self, node: Node) -> tuple[str, ...]:
        """A list, or a text as a shell splits it."""
        if node.text is None:
            return tuple(map(self.text, node.items))
        return quoted_words(self.text(node), node.line)

    def variables(self, node: Node, environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        for item in node.items:
            name, equals, value = self.text(item).partition("=")
            if equals or name in environ:
                yield name, value if equals else environ[name]
        for name, item in node.pairs.items():
            if item.text is not None or name in environ:
                yield name, self.text(item) if item.text is not None else environ[name]

    def volume(self, node: Node) -> str:
        """`SOURCE:TARGET` of either form; empty for what holds no files of the host."""
        if node.text is not None:
            return self.text(node)
        source, target = self.text(node.get("source")), self.text(node.get("target"))
        return f"{source}:{target}" if source and target else ""


def _of_files(node: Node, values: _Values, directory: str | None) -> dict[str, str]:
    """The variables of `env_file`: a path, or a list of paths and of `{path: ...}`; none of one that is not here."""
    found: dict[str, str] = {}
    for one in (*([node] if node.text is not None else node.items),)[:MAX_FILES]:
        path = values.text(one) or values.text(one.get("path"))
        try:
            text = read_bounded(os.path.join(directory or "", path), MAX_BYTES).decode("utf-8")  # noqa: PTH118
        except (OSError, UnicodeDecodeError, ValueError):
            continue
        found |= dict(env_rows(text))
    return found


def _memory(service: Node, values: _Values) -> str | None:
    """`--memory` of a limit of either form, whose units are those of Docker."""
    limit = service.get("deploy", "resources", "limits", "memory")
    text = values.text(limit) or values.text(service.get("mem_limit"))
    match = _BYTES.fullmatch(text)
    return None if match is None or not int(match[1]) else f"{match[1]}{(match[2] or 'b').lower()}"


def _gpus(service: Node, values: _Values) -> str | None:
    """`--gpus` of a reservation of devices, or of `gpus`."""
    if values.text(service.get("gpus")) == "all":
        return "all"
    reserved = service.get("deploy", "resources", "reservations", "devices").items
    for device in (*reserved, *service.get("gpus").items):
        ids = device.get("device_ids").texts
        if ids:
            return f'"device={",".join(ids)}"'
        kinds = {text for item in device.get("capabilities").items for text in (item.text, *item.texts)}
        if "gpu" in kinds or device.get("driver").text == "nvidia":
            return values.text(device.get("count")) or "all"
    return "all" if values.text(service.get("runtime")) == "nvidia" else None
