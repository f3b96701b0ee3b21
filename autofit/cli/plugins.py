"""`autofit plugins`: every plugin, what it offers, and why a broken one is not in use."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from autofit.domain.text import printable
from autofit.host import host


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=("text", "json"), default="text")


def run(args: argparse.Namespace) -> int:
    offers: dict[str, Mapping[str, Any]] = {
        "backends": host().backends(),
        "model readers": host().model_readers(),
        "model sources": host().model_sources(),
        "hardware sources": host().hardware_sources(),
        "formats": host().renderers(),
        "commands": host().commands(),
    }
    host().profile_dirs()
    records = host().records
    if args.format == "json":
        names = ("name", "distribution", "version", "hooks", "error")
        document: dict[str, Any] = {"schema": 1, "plugins": [{n: getattr(r, n) for n in names} for r in records]}
        for kind, refs in offers.items():
            document[kind.replace(" ", "_")] = {name: ref.summary for name, ref in refs.items()}
        print(json.dumps(document, indent=2, allow_nan=False))
        return 0
    for record in records:
        origin = f" ({record.distribution} {record.version})" if record.distribution else ""
        state = (
            f"BROKEN: {record.error}" if record.error else ", ".join(h.removeprefix("autofit_") for h in record.hooks)
        )
        print(f"{printable(record.name)}{printable(origin)}  {printable(state, 400)}")
    for kind, refs in offers.items():
        print(f"\n{kind}")
        for name, ref in refs.items():
            print(f"  {printable(name):<14} {printable(ref.summary)}")
    return 0
