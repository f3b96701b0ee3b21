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

FIRST_PORT = "5800"  #: `startPort`, where the file names none
MAX_TURNS = 16  #: macros may name macros

_MACRO = re.compile(r"\$\{(env\.)?([A-Za-z0-9_-]+)\}")


def commands(
    document: Node, is_engine: IsEngine, environ: Mapping[str, str], directory: str | None
) -> tuple[Written, ...]:
    """The commands of engines that the models are served with.

    Raises:
        UsageError: words that no shell splits, macros that grow without end.
    """
    general = _macros(document.get("macros"))
    port = document.get("startPort").text or FIRST_PORT
    found: list[Written] = []
    for name, model in document.get("models").pairs.items():
        macros = {**general, **_macros(model.get("macros")), "MODEL_ID": name, "PORT": port}
        node = model.get("cmd")
        text, unknown = _filled(node.text or "", macros, environ, node.line)
        kept = [row for row in rows(text) if not row.lstrip().startswith("#")]
        argv = quoted_words(re.sub(r"\\?\n", " ", "\n".join(kept)), node.line)
        given = tuple((pair[0], pair[2]) for text in model.get("env").texts if (pair := text.partition("="))[1])
        script = script_of(argv)
        if script is not None:
            inner = of_script(script, is_engine, {**environ, **dict(given)}, line=node.line)
            found += [replace(one, environ=given + one.environ, unknown=one.unknown or unknown) for one in inner]
        elif argv and is_engine(argv):
            found.append(Written(line=node.line, argv=argv, environ=given, directory=directory, unknown=unknown))
        check_measure(node.line, len(found), len(given))
    return tuple(found)


def _macros(node: Node) -> dict[str, str]:
    pairs = {name: value.text for name, value in node.pairs.items()}
    for item in node.items:  # a list keeps their order
        pairs |= {name: value.text for name, value in item.pairs.items()}
    return {name: text for name, text in pairs.items() if text is not None}


def _filled(text: str, macros: Mapping[str, str], environ: Mapping[str, str], line: int) -> tuple[str, str | None]:
    """A text with its macros, and the first that has no value here."""
    for _ in range(MAX_TURNS):
        filled = _MACRO.sub(lambda match: (environ if match[1] else macros).get(match[2], match[0]), text)
        if filled == text:
            break
        if len(filled) > MAX_WORDS_BYTES:
            raise UsageError(f"line {line}: macros grow beyond {MAX_WORDS_BYTES} bytes")
        text = filled
    left = _MACRO.search(text)
    return _MACRO.sub(UNKNOWN, text), None if left is None else f"{printable(left[0], 60)} is not set here"
