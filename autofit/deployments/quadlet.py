"""Containers of Quadlet (`*.container`), each as the `podman run` that its unit comes to.

Source: podman-systemd.unit(5) of Podman 5.6; lines, quotes and specifiers are those of systemd units.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from autofit.deployments.container import Container, written
from autofit.deployments.systemd import assignments, entries, file_of, quoted, specified
from autofit.deployments.written import IsEngine, Written, check_measure
from autofit.domain.values import replace

_ARGUMENTS = ("--gpus", "--device", "--memory", "-m", "--entrypoint", "--workdir", "-w")  #: that are looked for
_NVIDIA = "nvidia.com/gpu="  #: a device of the Container Device Interface


def commands(
    text: str, is_engine: IsEngine, home: str | None, directory: str | None, volumes: tuple[str, ...] = ()
) -> tuple[Written, ...]:
    """The commands of engines that the container starts; `directory` is the file's own, `volumes` what it sees
    besides.

    Raises:
        UsageError: more than any container is given.
    """
    found = Container(line=1, image="", environ={}, volumes=volumes)
    for line, section, key, value in entries(text):
        if section == "[Container]":
            found = _with(found, line, key, value, home, directory)
            check_measure(line, n_variables=len(found.environ))
    return written(found, is_engine, directory) if found.image else ()


def _with(found: Container, line: int, key: str, text: str, home: str | None, directory: str | None) -> Container:
    """The container with one more entry."""
    value, unknown = specified(text, home)
    if unknown is not None and key in ("Image", "Exec", "Entrypoint"):
        found = replace(found, unknown=found.unknown or unknown)
    if key == "Image":
        return replace(found, image=value, line=found.line if found.command else line)
    if key == "Exec":
        return replace(found, command=tuple(quoted(value)), line=line)
    if key == "Entrypoint":
        return replace(found, entrypoint=tuple(quoted(value)) or None)
    if key == "Environment":
        return replace(found, environ={**found.environ, **dict(assignments(value))})
    if key == "EnvironmentFile":
        return replace(found, environ={**found.environ, **file_of(_beside(value, directory))})
    if key == "Volume":
        source, colon, rest = value.partition(":")
        return replace(found, volumes=(*found.volumes, f"{_beside(source, directory)}{colon}{rest}"))
    if key == "AddDevice":
        return _with_device(found, value.removeprefix("-"))
    if key == "Memory":
        return replace(found, memory=value)
    if key == "WorkingDir":
        return replace(found, directory=value)
    return _with_arguments(found, tuple(quoted(value))) if key == "PodmanArgs" else found


def _beside(path: str, directory: str | None) -> str:
    """A path that begins with a dot is relative to the unit's file."""
    return os.path.join(directory or "", path) if path.startswith(".") else path  # noqa: PTH118 - words of another file


def _with_device(found: Container, device: str) -> Container:
    """One more device: a GPU of NVIDIA by its number, or a file."""
    if not device.startswith(_NVIDIA):
        return replace(found, devices=(*found.devices, device.partition(":")[0]))
    name = device.removeprefix(_NVIDIA)
    if name == "all" or found.gpus == "all":
        return replace(found, gpus="all")
    known = (found.gpus or "").removeprefix("device=")
    return replace(found, gpus=f"device={known},{name}" if known else f"device={name}")


def _with_arguments(found: Container, words: Sequence[str]) -> Container:
    """What `PodmanArgs=` gives the container of what counts here."""
    for flag, value in _pairs(words):
        if flag == "--gpus":
            found = replace(found, gpus=value)
        elif flag == "--device":
            found = _with_device(found, value)
        elif flag == "--entrypoint":
            found = replace(found, entrypoint=(value,) if value else None)
        elif flag in ("--memory", "-m"):
            found = replace(found, memory=value)
        else:
            found = replace(found, directory=value)
    return found


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    for at, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag in _ARGUMENTS:
            yield flag, value if equals else "".join(words[at + 1 : at + 2])
