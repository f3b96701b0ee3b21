"""Models of a llama-swap configuration: `models: {NAME: {cmd: ...}}`, with its macros.

Source: llama-swap v165 (proxy/config/config.go: macros, `${PORT}`, `${MODEL_ID}`, SanitizeCommand).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from autofit.deployments.shell import commands as of_script
from autofit.deployments.shell import script_of
from autofit.deployments.written import (
    MAX_WORDS_BYTES,
    UNKNOWN,
    IsEngine,
    Written,
    check_measure,
    quoted_words,
    rows,
)
from autofit.domain.text import printable
from autofit.domain.values import replace
from autofit.errors import UsageError
from autofit.text.yaml import Node

FIRST_PORT = "5800"  #: `startPort`, where the file names none; models that want a port count up from it, by name
PORT = "${PORT}"
MAX_TURNS = 16  #: macros may name macros

_MACRO = re.compile(r"\$\{(env\.)?([A-Za-z0-9_-]+)\}")


def commands(
    document: Node, is_engine: IsEngine, environ: Mapping[str, str], directory: str | None
) -> tuple[Written, ...]:
    """The commands of engines that the models are served with.

    Raises:
        UsageError: words that no shell splits, macros that grow without end.
    """
    return tuple(one for _, own in models(document, is_engine, environ, directory) for one in own)


def models(
    document: Node, is_engine: IsEngine, environ: Mapping[str, str], directory: str | None
) -> tuple[tuple[str, tuple[Written, ...]], ...]:
    """Each model's name, and the commands of engines that it is served with; as `commands`."""
    general = _macros(document.get("macros"))
    first = document.get("startPort").text or FIRST_PORT
    rows_of = document.get("models").pairs
    texts = {
        name: _filled(row.get("cmd").text or "", {**general, **_macros(row.get("macros")), "MODEL_ID": name},
                      environ, row.get("cmd").line)
        for name, row in rows_of.items()
    }  # fmt: skip
    wanting = sorted(name for name, text in texts.items() if PORT in text)
    found: list[tuple[str, tuple[Written, ...]]] = []
    n_found = 0
    for name, row in rows_of.items():
        line = row.get("cmd").line
        port = str(int(first) + wanting.index(name)) if name in wanting and first.isdecimal() else first
        text, unknown = _known(texts[name].replace(PORT, port))
        kept = [row for row in rows(text) if not row.lstrip().startswith("#")]
        argv = quoted_words(re.sub(r"\\?\n", " ", "\n".join(kept)), line)
        given = tuple((pair[0], pair[2]) for text in row.get("env").texts if (pair := text.partition("="))[1])
        script = script_of(argv)
        if script is not None:
            inner = of_script(script, is_engine, {**environ, **dict(given)}, line=line)
            own = tuple(replace(one, environ=given + one.environ, unknown=one.unknown or unknown) for one in inner)
        elif argv and is_engine(argv):
            own = (Written(line=line, argv=argv, environ=given, directory=directory, unknown=unknown),)
        else:
            own = ()
        n_found += len(own)
        check_measure(line, n_found, len(given))
        found.append((name, own))
    return tuple(found)


def _macros(node: Node) -> dict[str, str]:
    pairs = {name: value.text for name, value in node.pairs.items()}
    for item in node.items:  # a list keeps their order
        pairs |= {name: value.text for name, value in item.pairs.items()}
    return {name: text for name, text in pairs.items() if text is not None}


def _filled(text: str, macros: Mapping[str, str], environ: Mapping[str, str], line: int) -> str:
    """A text with its macros, as far as they have a value here."""
    for _ in range(MAX_TURNS):
        filled = _MACRO.sub(lambda match: (environ if match[1] else macros).get(match[2], match[0]), text)
        if filled == text:
            break
        if len(filled) > MAX_WORDS_BYTES:
            raise UsageError(f"line {line}: macros grow beyond {MAX_WORDS_BYTES} bytes")
        text = filled
    return text


def _known(text: str) -> tuple[str, str | None]:
    """A text without the macros that have no value here, and the first of them."""
    left = _MACRO.search(text)
    return _MACRO.sub(UNKNOWN, text), None if left is None else f"{printable(left[0], 60)} is not set here"
