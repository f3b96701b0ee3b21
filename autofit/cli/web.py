"""`autofit web`: the page that plans in a browser, served on this machine alone, with its hardware filled in."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from autofit.errors import UsageError

PLACES = (Path(__file__).parent.parent / "_web", Path(__file__).parents[2] / "web" / "dist")  #: installed, and built
_KNOWN_BY = "files.json"  #: the page's list of its own files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "The page runs until it is interrupted. It listens on 127.0.0.1, at an address that nobody guesses."
    parser.add_argument("--port", metavar="N", default="0", help="listen on this port (default: a free one)")
    parser.add_argument("--no-open", action="store_true", help="print the address, and open no browser")
    parser.add_argument("--page", metavar="DIR", help="serve this page, as tools/build_web.py has built it")


def run(args: argparse.Namespace) -> int:
    from autofit.hardware.record import machine_to_dict
    from autofit.machines import detect_machine
    from autofit.page import Page, listen

    folder, port = place_of(args.page), port_of(args.port)
    machine = json.dumps(machine_to_dict(detect_machine())).encode()
    server = listen(Page(folder, {"machine.json": machine}), port)
    address = f"{server.address}#machine=here"
    print(address, flush=True)
    try:
        if not args.no_open:
            import webbrowser

            webbrowser.open(address)
        server.serve_forever()
    except KeyboardInterrupt:
        return 0  # how it is meant to end
    finally:
        server.server_close()
    return 0


def place_of(stated: str | None) -> Path:
    """The folder of the page.

    Raises:
        UsageError: there is none, or what is named is none.
    """
    if stated is not None:
        if not (Path(stated) / _KNOWN_BY).is_file():
            raise UsageError(f"--page {stated[:200]}: no page that was built", hint="build it: just web, in a checkout")
        return Path(stated)
    found = next((place for place in PLACES if (place / _KNOWN_BY).is_file()), None)
    if found is None:
        raise UsageError(
            "the page is not part of this installation",
            hint="build it in a checkout (just web), and name it: autofit web --page web/dist",
        )
    return found


def port_of(text: str) -> int:
    """Raises: UsageError: no port."""
    if not (text.isascii() and text.isdigit() and int(text) < 1 << 16):
        raise UsageError(f"--port {text[:40]!r}: not a port", hint="write a number up to 65535; 0 takes a free one")
    return int(text)
