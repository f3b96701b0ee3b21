"""What the image of a Dockerfile starts: `ENTRYPOINT` and `CMD` of its last stage.

Source: the Dockerfile reference of BuildKit 0.25 (parser directives, ARG and ENV, exec and shell form, here-documents).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from autofit.deployments.container import Container, of_any_image, written
from autofit.deployments.written import MAX_WORDS_BYTES, IsEngine, Written, check_measure, rows
from autofit.errors import UsageError

_VARIABLE = re.compile(r"\\\$|\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)(?::?([-+])([^{}]*))?\})")
_PAIR = re.compile(r"""([A-Za-z_][A-Za-z0-9_.]*)=((?:"(?:\\.|[^"\\])*"|'[^']*'|\\.|[^\s"'\\])*)""")


class _Instruction(NamedTuple):
    line: int
    name: str
    rest: str


class _Stage(NamedTuple):
    """What an image has of its stage and of those that it is built from."""

    image: str
    line: int
    environ: Mapping[str, str]
    entrypoint: tuple[str, ...] | None = None
    command: tuple[str, ...] = ()
    where: str = ""


def commands(
    text: str, is_engine: IsEngine, directory: str | None, volumes: tuple[str, ...] = ()
) -> tuple[Written, ...]:
    """The commands of engines that a container of the image starts.

    Raises:
        UsageError: more variables, or longer values, than any image has.
    """
    arguments: dict[str, str] = {}  #: before the first stage, which `FROM` alone sees
    inside: dict[str, str] = {}  #: of the stage
    stage = _Stage("", 0, {})
    stages, own = dict[str, _Stage](), ""  #: by name, and that of the stage that is read
    environ: dict[str, str] = {}
    for line, name, rest in _instructions(text):
        if name == "FROM":
            words = [word for word in _filled(rest, arguments).split() if not word.startswith("--")]
            base = words[0] if words else ""
            stage = stages.get(base.lower(), _Stage(base, line, {}))
            environ, inside = dict(stage.environ), {}
            stage = stage._replace(environ=environ)
            own = words[2].lower() if len(words) == 3 and words[1].lower() == "as" else ""
        elif name == "ARG":
            pairs = _pairs(rest) or [(rest.strip(), arguments.get(rest.strip(), ""))]
            (inside if stage.image else arguments).update(_values(pairs, line, inside if stage.image else arguments))
        elif name == "ENV":
            environ.update(_values(_pairs(rest) or [_old_pair(rest)], line, inside, environ))
        elif name == "WORKDIR":
            where = _filled(rest.strip(), inside, environ)
            stage = stage._replace(where=f"{stage.where}/{where}" if stage.where and where[:1] != "/" else where)
        elif name == "ENTRYPOINT":
            stage = stage._replace(entrypoint=_words(rest), command=(), line=line)
        elif name == "CMD":
            stage = stage._replace(command=_words(rest), line=line)
        if own:
            stages[own] = stage
        check_measure(line, len(stages), max(len(environ), len(inside), len(arguments)))
    if not stage.image:
        return ()
    container = Container(
        line=stage.line,
        image=stage.image,
        command=stage.command,
        entrypoint=stage.entrypoint,
        environ=environ,
        volumes=volumes,
        directory=stage.where or None,
        sees_all=True,
    )
    found = written(container, is_engine, directory)
    return found or of_any_image(container, is_engine, directory)


def _values(pairs: list[tuple[str, str]], line: int, *known: Mapping[str, str]) -> dict[str, str]:
    """Variables with those before them filled in."""
    found = {name: _filled(value, *known) for name, value in pairs}
    if any(len(value) > MAX_WORDS_BYTES for value in found.values()):
        raise UsageError(f"line {line}: a value beyond {MAX_WORDS_BYTES} bytes")
    return found


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
        name, rest = (*" ".join(parts).strip().split(maxsplit=1), "", "")[:2]
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


def _filled(text: str, *known: Mapping[str, str]) -> str:
    """A text with its variables, of which those of the last mapping hold first."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name is None:
            return "$"
        held = next((values[name] for values in reversed(known) if name in values), "")
        if match[3] == "+":
            return match[4] if held else ""
        return held or (match[4] if match[3] == "-" else "") or ""

    return _VARIABLE.sub(value, text)
