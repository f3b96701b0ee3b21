"""Runs inside an environment with vLLM: reads argument lists as JSON lines, writes what its own parser
made of each."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
from typing import Any


def make_parser() -> Any:
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    for home in ("common", "launchers", "openai"):  # it moves from version to version
        try:
            module = importlib.import_module(f"vllm.entrypoints.{home}.cli_args")
        except ImportError:
            continue
        return module.make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
    raise ImportError("vllm.entrypoints.*.cli_args")


def plain(value: object) -> object:
    """As JSON has it; configuration objects by what they were given as."""
    try:
        return json.loads(json.dumps(value))
    except TypeError:
        return repr(value)


def main() -> None:
    parser = make_parser()
    for line in sys.stdin:
        request = json.loads(line)
        noise = io.StringIO()
        try:
            with contextlib.redirect_stderr(noise), contextlib.redirect_stdout(noise):
                values = vars(parser.parse_args(request["args"]))
        except (SystemExit, ValueError, AssertionError) as error:
            answer: dict[str, object] = {"error": (noise.getvalue() or repr(error)).strip()[-400:]}
        else:
            answer = {name: plain(values.get(name)) for name in request["names"]}
        print("ANSWER " + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
