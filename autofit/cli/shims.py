"""`autofit shims DIR`: a folder of shims, for good; put first in PATH, engines started from scripts pass through."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from autofit.host import host
from autofit.launch.own import own_import
from autofit.launch.shims import OFF, shim_texts, write_shims
from autofit.text import shell
from autofit.text.programs import RUNNERS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="folder to write them into; it is made if it is not there")


def run(args: argparse.Namespace) -> int:
    folder = Path(os.path.abspath(args.directory))  # noqa: PTH100 - as it is written, links and all
    texts = texts_here()
    write_shims(folder, texts)
    print(f'PATH={shell.word(str(folder))}:"$PATH"')
    print(f"  shims of {', '.join(texts)}; {OFF}=0 turns them off", file=sys.stderr)
    return 0


def texts_here() -> dict[str, str]:
    """The shims of every backend that is installed, and of the runners of containers that this machine has.

    None of a runner that it lacks: scripts ask `command -v podman` which of them to use.
    """
    from autofit.hardware.programs import find_program

    programs: dict[str, frozenset[str]] = {}
    unplanned: dict[str, tuple[frozenset[str], str]] = {}
    modules: list[str] = []
    images: list[str] = []
    for ref in host().backends().values():
        backend = host().backend(ref.name)
        programs |= dict.fromkeys(backend.wrapped or backend.programs, backend.informing)
        unplanned |= {name: (backend.informing, why) for name, why in backend.unplanned.items()}
        modules += backend.modules
        images += ref.images
    runners = [name for name in RUNNERS if find_program(name, os.environ) is not None]
    return shim_texts(sys.executable, own_import(), programs, modules, unplanned, runners, images)
