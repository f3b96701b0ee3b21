"""A settings file for `vllm serve --config FILE`.

Source: vllm/utils/argparse_utils.py:FlexibleArgumentParser (load_config_file, 0.33.0): `key: value` becomes
`--key value`, `true` a flag alone, a list several values, a mapping JSON.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from autofit.render.container import checked, commented, deployment_of
from autofit.render.yaml import dump

if TYPE_CHECKING:
    from autofit.domain.plan import Plan

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})(\.[0-9]{1,6})?")


def settings(plan: Plan) -> dict[str, Any]:
    """The flags of a plan's command as a file has them.

    Raises:
        UsageError: a word that is no text.
    """
    words = plan.argv[len(deployment_of(plan).program) :]
    found: dict[str, Any] = {}
    if words and not words[0].startswith("-"):
        found["model"], words = checked(words[0]), words[1:]
    at = 0
    while at < len(words):
        name, equals, value = words[at].removeprefix("--").partition("=")
        at += 1
        values = [value] if equals else []
        while not equals and at < len(words) and not _is_flag(words[at]):
            values.append(words[at])
            at += 1
        parsed = [_value(checked(text)) for text in values]
        found[name] = True if not parsed else parsed[0] if len(parsed) == 1 else parsed
    return found


def render(plan: Plan) -> str:
    """The file's text.

    Raises:
        UsageError: a word that is no text.
    """
    return commented(plan, dump(settings(plan)))


def _is_flag(word: str) -> bool:
    return word.startswith("--") or (word.startswith("-") and not _NUMBER.fullmatch(word))


def _value(text: str) -> Any:
    match = _NUMBER.fullmatch(text)
    if match is not None:
        return float(text) if match[1] else int(text)
    if text[:1] == "{":
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text
