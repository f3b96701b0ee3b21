"""`autofit mcp`: plan, check, inspect and advise for assistants, by the Model Context Protocol on stdin and stdout."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from autofit.domain.text import printable
from autofit.errors import AutofitError, UsageError

INSTRUCTIONS = (
    "Exact memory plans for {engines}. Ask `plan` for a command that fits, `check` whether a command fits, "
    "`inspect` what a model file holds, `advise` which hardware takes a model. Sizes are bytes; nothing is started."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "It speaks on stdin and stdout until they are closed: docs/mcp.md says how assistants start it."


def run(args: argparse.Namespace) -> int:
    import gc
    import importlib.util

    if importlib.util.find_spec("mcp") is None:
        raise UsageError("autofit mcp needs the package mcp", hint="pip install 'llm-autofit[mcp]'")
    gc.enable()  # it runs for as long as somebody asks
    import anyio

    anyio.run(_serve)
    return 0


def answered(name: str, given: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """What a tool answers, and the same as text; `None`: an error, as the command line says it."""
    from autofit.cli.tools import tools

    tool = next((tool for tool in tools() if tool.name == name), None)
    if tool is None:
        return None, f"no tool '{printable(name, 60)}'"
    wrong = _wrong(tool.schema, given)
    if wrong is not None:
        return None, f"{name}: {wrong}"
    try:
        found = tool.answer(given)
        return found, json.dumps(found, allow_nan=False)
    except (AutofitError, OSError) as error:
        hint = getattr(error, "hint", None)
        return None, printable(str(error), 1000) + (f"\n{printable(hint, 1000)}" if hint else "")
    except MemoryError:
        return None, "out of memory"


def _wrong(schema: Mapping[str, Any], given: Mapping[str, Any]) -> str | None:
    """The first thing about the arguments that the schema does not allow."""
    import jsonschema

    error = next(iter(jsonschema.Draft202012Validator(dict(schema)).iter_errors(dict(given))), None)
    if error is None:
        return None
    where = ".".join(str(part) for part in error.absolute_path)
    return printable(f"{where}: {error.message}" if where else error.message, 300)


async def _serve() -> None:
    import anyio
    import anyio.to_thread
    import mcp_types as types
    from mcp.server.lowlevel import Server
    from mcp.server.stdio import stdio_server

    from autofit import __version__
    from autofit.cli.tools import tools
    from autofit.host import host

    instructions = INSTRUCTIONS.format(engines=" and ".join(host().backend(name).engine for name in host().backends()))
    one_at_a_time = anyio.Lock()
    hints = types.ToolAnnotations(read_only_hint=True, destructive_hint=False, idempotent_hint=True)
    offered = [
        types.Tool(name=tool.name, description=tool.about, input_schema=tool.schema, annotations=hints)
        for tool in tools()
    ]

    async def list_tools(context: object, params: object) -> types.ListToolsResult:
        return types.ListToolsResult(tools=offered)

    async def call_tool(context: object, params: types.CallToolRequestParams) -> types.CallToolResult:
        async with one_at_a_time:
            found, text = await anyio.to_thread.run_sync(answered, params.name, params.arguments or {})
        content: Any = [types.TextContent(type="text", text=text)]
        return types.CallToolResult(content=content, structured_content=found, is_error=found is None)

    server: Any = Server(
        "autofit", version=__version__, instructions=instructions, on_list_tools=list_tools, on_call_tool=call_tool
    )
    async with stdio_server() as (incoming, outgoing):
        await server.run(incoming, outgoing, server.create_initialization_options())
