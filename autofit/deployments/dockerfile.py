"""What the image of a Dockerfile starts: `ENTRYPOINT` and `CMD` of its last stage.

Source: the Dockerfile reference of BuildKit 0.25 (parser directives, ARG and ENV, exec and shell form, here-documents).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from autofit.deployments.container import Container, written
from autofit.deployments.shell import commands as of_script
from autofit.deployments.written import IsEngine, Written, rows
from autofit.domain.values import replace

_VARIABLE = re.compile(r"\\\$|\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)(?::?([-+])([^{}]*))?\})")
_PAIR = re.compile(r"""([A-Za-z_][A-Za-z0-9_.]*)=((?:"(?:\\.|[^"\\])*"|'[^']*'|\\.|[^\s"'\\])*)""")


class _Instruction(NamedTuple):
    line: int
    name: str
    rest: str


def commands(
    text: str, is_engine: IsEngine, directory: str | None, volumes: tuple[str, ...] = ()
) -> tuple[Written, ...]:
    """The commands of engines that a container of the image starts."""
    arguments: dict[str, str] = {}
    environ: dict[str, str] = {}
    image, where, line = "", "", 0
    stages: dict[str, str] = {}
    entrypoint: tuple[str, ...] | None = None
    command: tuple[str, ...] = ()
    for instruction in _instructions(text):
        rest = instruction.rest
        known = {**arguments, **environ}
        if instruction.name == "FROM":
            words = [word for word in _filled(rest, arguments).split() if not word.startswith("--")]
            image = stages.get(words[0] if words else "", words[0] if words else "")
            if len(words) == 3 and words[1].lower() == "as":
                stages[words[2]] = image
            environ, entrypoint, command, where, line = {}, None, (), "", instruction.line
        elif instruction.name == "ARG":
            arguments.update({name: _filled(value, known) for name, value in _pairs(rest)})
        elif instruction.name == "ENV":
            environ.update({name: _filled(value, known) for name, value in _pairs(rest) or [_old_pair(rest)]})
        elif instruction.name == "WORKDIR":
            where = _filled(rest.strip(), known)
        elif instruction.name == "ENTRYPOINT":
            entrypoint, command, line = _words(rest), (), instruction.line
        elif instruction.name == "CMD":
            command, line = _words(rest), instruction.line
    if not image:
        return ()
    container = Container(
        line=line,
        image=image,
        command=command,
        entrypoint=entrypoint,
        environ=environ,
        volumes=volumes,
        directory=where or None,
        sees_all=True,
    )
    found = written(container, is_engine, directory)
    return found or _of_any_image(container, is_engine, directory)


def _of_any_image(container: Container, is_engine: IsEngine, directory: str | None) -> tuple[Written, ...]:
    """The command itself, where its image is not known as an engine's."""
    argv = (*(container.entrypoint or ()), *container.command)
    if is_engine(argv):
        environ = tuple(container.environ.items())
        return (Written(line=container.line, argv=argv, environ=environ, directory=directory),)
    if argv[:2] == ("/bin/sh", "-c") and len(argv) > 2:
        found = of_script(argv[2], is_engine, container.environ, line=container.line)
        return tuple(replace(one, environ=tuple(container.environ.items()) + one.environ) for one in found)
    return ()


def _instructions(text: str) -> Iterator[_Instruction]:
    """The instructions, lines that go on joined, comments and here-documents left out."""
    lines = rows(text)
    at = 0
    while at < len(lines):
        first = at + 1
        parts: list[str] = []
        while at < len(lines):
            line = lines[at].rstrip()
            at += 1
            if line.lstrip().startswith("#") or (parts and not line):
                continue
            parts.append(line.removesuffix("\\").rstrip() if line.endswith("\\") else line)
            if not line.endswith("\\"):
                break
        name, _, rest = " ".join(parts).strip().partition(" ")
        for delimiter in (
            re.findall(r"<<-?[\"']?([A-Za-z_][A-Za-z0-9_]*)", rest) if name.upper() in ("RUN", "COPY") else ()
        ):
            while at < len(lines) and lines[at].strip() != delimiter:
                at += 1
            at += 1
        if name:
            yield _Instruction(first, name.upper(), rest.strip())


def _words(rest: str) -> tuple[str, ...]:
    """The exec form, or the shell form behind `/bin/sh -c`."""
    if rest.startswith("["):
        try:
            words = json.loads(rest)
        except (ValueError, RecursionError):
            words = None
        if isinstance(words, list) and all(isinstance(word, str) for word in words):
            return tuple(words)
    return ("/bin/sh", "-c", rest) if rest else ()


def _pairs(rest: str) -> list[tuple[str, str]]:
    return [(match[1], _unquoted(match[2])) for match in _PAIR.finditer(rest)]


def _old_pair(rest: str) -> tuple[str, str]:
    """`ENV NAME value`, without an equals sign."""
    name, _, value = rest.partition(" ")
    return name, value.strip()


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text.replace("\\", "")


def _filled(text: str, values: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name is None:
            return "$"
        held = values.get(name, "")
        if match[3] == "+":
            return match[4] if held else ""
        return held or (match[4] if match[3] == "-" else "") or ""

    return _VARIABLE.sub(value, text)
