"""Pages whose commands are run as a reader would who follows them from top to bottom, in a folder of their own."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support import DATA, ROOT, TINY
from support.large_models import write_large_files
from support.transcripts import Transcript, forget, kept, of_block, printed, same
from support.vllm_checkpoints import write_large_configs, write_mixtral_checkpoints

DOCS = ROOT / "docs"
FILE = re.compile(r"`([\w./-]+)`:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)  #: a file that a page shows
#: a figure of a sentence: a rate, or a size or number of tokens with its unit
FIGURE = re.compile(r"~\d[\d,]*(?:\.\d+)?|(?<!\d)\d[\d,]*(?:\.\d+)? ?(?:GiB|MiB|KiB|tokens)\b")
BLOCK = re.compile(r"^```(console|pycon)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def pages() -> list[str]:
    """All with transcripts, but for those that have tests of their own."""
    own = {"five-questions.md", "hooks.md", "write-a-backend.md"}
    names = (path.relative_to(DOCS).as_posix() for path in sorted(DOCS.rglob("*.md")))
    return [name for name in names if name not in own and BLOCK.search((DOCS / name).read_text(encoding="utf-8"))]


@contextlib.contextmanager
def reader(folder: Path) -> Iterator[None]:
    """In an empty folder with the models that pages name, without settings, caches and devices of this machine."""
    shutil.copyfile(TINY, folder / "model.gguf")
    for name, config in (("Qwen3-32B", "qwen3-32b"), ("Llama-3.3-70B", "llama3-70b")):
        (folder / name).mkdir()
        shutil.copyfile(DATA / "vllm/configs" / config / "config.json", folder / name / "config.json")
    (folder / "headers").mkdir()
    shutil.copyfile(TINY, folder / "headers/model.gguf")
    write_mixtral_checkpoints(folder)
    write_large_configs(folder)
    write_large_files(folder)
    home = folder / "home"
    home.mkdir()
    names = ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "LLAMA_CACHE", "HOME")
    before, cwd = dict(os.environ), Path.cwd()
    for name in list(os.environ):
        if name.startswith(("AUTOFIT_", "LLAMA_ARG_", "VLLM_")):
            del os.environ[name]
    os.environ |= dict.fromkeys((*names, "OLLAMA_MODELS"), str(home)) | {"HF_HUB_OFFLINE": "1"}
    os.chdir(folder)
    forget()
    try:
        yield
    finally:
        forget()
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(before)


def followed(page: str) -> str:
    """The page (text) with what its commands and its Python print today, run in its order; files that it shows are
    written before. To be called as a `reader`."""
    for name, text in FILE.findall(page):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")
    names: dict[str, Any] = {"__name__": "__main__"}
    code = 0

    def block(found: re.Match[str]) -> str:
        nonlocal code
        if found[1] == "pycon":
            return f"```pycon\n{''.join(_python(found[2], names))}```"
        lines: list[str] = []
        for each in of_block(found[2]):
            if each.command == "echo $?":
                now: tuple[str, ...] = (str(code),)
            else:
                now, code = printed(each.command)
            lines += [f"$ {each.command}", *_shown(each, now)]
        return "\n".join(["```console", *lines, "```"])

    return BLOCK.sub(block, page)


def unfounded(page: str, folder: Path) -> list[str]:
    """Figures of a page's sentences that neither its commands and what they print show, nor the tables and pictures of
    the page; code is no sentence. `folder` is where it lies."""
    shown = [found[2] for found in BLOCK.finditer(page)]
    shown += [line for line in page.splitlines() if line.startswith("|")]
    shown += [(folder / path).read_text(encoding="utf-8") for path in re.findall(r"\]\(([^)]+\.svg)\)", page)]
    prose = re.sub(r"^```.*?^```$|`[^`\n]+`", "", page, flags=re.MULTILINE | re.DOTALL)
    prose = " ".join(" ".join(line for line in prose.splitlines() if not line.startswith("|")).split())
    return [figure for figure in FIGURE.findall(prose) if not _is_in(figure, "\n".join(shown))]


def _is_in(figure: str, text: str) -> bool:
    return re.search(rf"(?<![\d.,]){' ?'.join(map(re.escape, figure.split()))}(?!\d)", text) is not None


def _shown(each: Transcript, now: tuple[str, ...]) -> tuple[str, ...]:
    """The lines of today where they differ from those shown, with as many left out."""
    if same(each.shown, now):
        return each.shown
    return tuple(kept(each.shown, now)) if any(line.strip() == "..." for line in each.shown) else now


def _python(block: str, names: dict[str, Any]) -> Iterator[str]:
    """A session of Python, each statement with what it prints; one that raises shows the last line alone."""
    for source in re.findall(r"^>>> .*\n(?:^\.\.\.(?: .*)?\n)*", block, re.MULTILINE):
        yield source
        code = "".join(line[4:] or "\n" for line in source.splitlines(keepends=True))
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            try:
                exec(compile(code, "<page>", "single"), names)
            except Exception as error:
                print(f"Traceback (most recent call last):\n  ...\n{type(error).__qualname__}: {error}")
        yield out.getvalue()
