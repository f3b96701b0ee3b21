"""JSON from outside, in bounded time and memory."""

from __future__ import annotations

import json
from typing import Any

from autofit.domain.text import printable
from autofit.errors import CorruptModelError

MAX_ITEMS = 1 << 21  #: commas: the memory that a parsed document takes grows with them, not with its bytes


def parse_json(raw: bytes, path: str, offset_bytes: int = 0) -> Any:
    """The JSON document `raw`, which starts at `offset_bytes` of the file at `path`.

    Raises:
        CorruptModelError: not JSON, or deeper or longer than any model's.
    """

    def fail(cause: str, at: int = 0) -> CorruptModelError:
        return CorruptModelError(printable(path), cause, offset_bytes=offset_bytes + at)

    if raw.count(b",") > MAX_ITEMS:
        raise fail(f"the JSON document has more than {MAX_ITEMS} items; no model file has that many")
    try:
        return json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise fail("not UTF-8", error.start) from error
    except json.JSONDecodeError as error:
        at = len(error.doc[: error.pos].encode())
        raise fail(f"broken JSON: {error.msg[:1].lower()}{printable(error.msg[1:], 80)}", at) from error
    except RecursionError as error:
        raise fail("JSON nested too deeply") from error
    except ValueError as error:  # an integer of thousands of digits
        raise fail("a JSON number has too many digits") from error
