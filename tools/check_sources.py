"""Which of the engine's functions that our rules cite has a newer source changed?

    python tools/check_sources.py                          every citation is in the index
    python tools/check_sources.py llama TREE               what TREE, a newer source, changed of what is cited
    python tools/check_sources.py llama TREE --index       write the index from TREE, the release that rules follow

A citation is FILE or FILE:NAME in a docstring, comment or string of a plugin: `src/llama-context.cpp:sched_reserve`.
FILE is as much of the path as makes it one file of the release; NAME is a function, class, table or field in it. The
release is said once for each engine, in tools/sources/ENGINE.json with a hash of each cited definition; comments and
white space do not count. TREE is the engine's source directory (for vLLM also an installed package's parent).
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import io
import json
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
INDEXES = Path(__file__).resolve().parent / "sources"
SUFFIXES = (".cpp", ".cu", ".cuh", ".hpp", ".h", ".c", ".m", ".metal", ".py")
#: per engine: our files that cite it, and suffixes of its own files
ENGINES = {
    "llama": (("plugins/autofit_llama/**/*.py", "docs/llama*.md"), SUFFIXES[:-1]),
    "vllm": (("plugins/autofit_vllm/**/*.py",), (".py",)),
}
#: where files are one architecture each: in the index whether cited or not, and meant by a name without a folder
MODELS = {"llama": "src/models", "vllm": "vllm/model_executor/models"}
_CITED = re.compile(
    r"(?<![\w/.{}*,-])((?:[\w.*-]+/)*[\w.*-]*\w\.(?:cpp|cuh?|hpp|h|c|m|metal|py))\b(?![/-]\w)(?::([A-Za-z_][\w:~.]*))?"
)
_NO_FILE = frozenset(
    {
        "llama.cpp",
        "ik_llama.cpp",
        "ggml-org/llama.cpp",
        "app/llama.cpp",
        "src/models/X.cpp",
        "transformer.h",
        "g.h",
        "self.h",
    }
)
#: files that came after the release that rules follow
_LATER = frozenset({"clef.cpp", "k2-horizon.cpp", "gemma-embedding2.cpp", "llama-moe-cache.cpp"})
_OWN = tuple(f"{name}/" for name in ("tools", "bench", "tests"))


class Citation(NamedTuple):
    file: str
    name: str  #: "" cites the whole file
    where: str  #: our file and line


def citations(engine: str) -> Iterator[Citation]:
    """Every citation of an engine's source in our files."""
    patterns, suffixes = ENGINES[engine]
    ours = {path.name for path in ROOT.glob("plugins/**/*.py")}
    for path in sorted({path for pattern in patterns for path in ROOT.glob(pattern)}):
        for line, text in _texts(path):
            for match in _CITED.finditer(text):
                file, name = match[1], (match[2] or "").rstrip(".:")
                own = (file.startswith(_OWN) and file.endswith(".py")) or (engine == "llama" and file.endswith(".py"))
                if (
                    file in _NO_FILE
                    or file.rpartition("/")[2] in _LATER
                    or own
                    or "*" in file
                    or not file.endswith(suffixes)
                ):
                    continue
                if not name and file in ours:
                    continue  # a module of this package
                at = line + text.count("\n", 0, match.start())
                yield Citation(file, name, f"{path.relative_to(ROOT).as_posix()}:{at}")


def _texts(path: Path) -> Iterator[tuple[int, str]]:
    """Comments and strings of a module, the whole of a page."""
    source = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield 1, source
        return
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in kinds:
            yield token.start[0], token.string


def digest(path: Path, name: str) -> str | None:
    """A hash of what `name` is in the file at `path` (of the whole file for ""); `None` if it is not there."""
    text = path.read_text(encoding="utf-8", errors="replace")
    body = _python(text, name) if path.suffix == ".py" else _c(text, name)
    return None if body is None else hashlib.sha256(body.encode()).hexdigest()[:12]


def _python(text: str, name: str) -> str | None:
    """The definitions of `name` (or `Class.name`), without comments and white space; else the lines that spell it."""
    if not name:
        return _bare(text)
    found = [ast.get_source_segment(text, node) or "" for node in _defined(ast.parse(text).body, name.split("."))]
    return _bare("\n".join(found)) or _lines(re.sub(r"#.*", "", text), name.rpartition(".")[2])


def _bare(text: str) -> str:
    return re.sub(r"\s+", "", re.sub(r"#.*", "", text))


def _defined(body: Iterable[ast.stmt], parts: list[str]) -> Iterator[ast.stmt]:
    for node in body:
        inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if node.name == parts[0]:
                if len(parts) == 1:
                    yield node
                else:
                    yield from _defined(inner, parts[1:])
            elif len(parts) == 1:
                yield from _defined(inner, parts)
            continue
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if len(parts) == 1 and any(ast.unparse(target).rpartition(".")[2] == parts[0] for target in targets):
            yield node
        else:
            yield from _defined(inner, parts)


def text_of(path: Path, name: str) -> str:
    """The definitions that a C++ file has of `name`, to be read: without comments and empty lines ("" is all of it)."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", path.read_text(encoding="utf-8", errors="replace"), flags=re.DOTALL)
    body = "\n".join(_c_definitions(text, name)) or _lines(text, name.rpartition("::")[2]) if name else text
    return "\n".join(line.rstrip() for line in (body or "").splitlines() if line.strip())


def _c(text: str, name: str) -> str | None:
    """The definitions of `name` (or `Class::name`), without comments and white space; else the lines that spell it."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.DOTALL)
    if not name:
        return re.sub(r"\s+", "", text)
    found = [re.sub(r"\s+", "", body) for body in _c_definitions(text, name)]
    return "\n".join(found) or _lines(text, name.rpartition("::")[2])


def _c_definitions(text: str, name: str) -> Iterator[str]:
    for match in re.finditer(rf"\b{re.escape(name.rpartition('::')[2])}\b", text):
        end = _definition_end(text, match.end())
        if end is not None:
            start = max(text.rfind(mark, 0, match.start()) for mark in ";}{") + 1
            yield text[start:end]


def _definition_end(text: str, at: int) -> int | None:
    """Where the block ends that follows a name and its arguments at `at`; `None` if a statement ends before it."""
    depth = 0
    for i in range(at, min(at + 4000, len(text))):
        char = text[i]
        if char in "([":
            depth += 1
        elif char in ")]":
            depth -= 1
            if depth < 0:
                return None
        elif depth == 0 and char in ";,.?+":
            return None
        elif depth == 0 and char == "{":
            return _block_end(text, i)
    return None


def _block_end(text: str, at: int) -> int:
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return i + 1
    return len(text)


def _lines(text: str, name: str) -> str | None:
    lines = [re.sub(r"\s+", "", line) for line in text.splitlines() if re.search(rf"\b{re.escape(name)}\b", line)]
    return "\n".join(lines) or None


def files_of(tree: Path, engine: str) -> list[str]:
    """The engine's source files below `tree`, tests left out."""
    suffixes = ENGINES[engine][1]
    paths = (path.relative_to(tree) for path in tree.rglob("*") if path.suffix in suffixes)
    return sorted(path.as_posix() for path in paths if not {"tests", "test", ".git"} & set(path.parts))


def homes(file: str, files: Iterable[str]) -> list[str]:
    """The paths that a cited file may be."""
    return [path for path in files if path == file or path.endswith(f"/{file}")]


def read_index(engine: str) -> dict[str, Any]:
    index: dict[str, Any] = json.loads((INDEXES / f"{engine}.json").read_text(encoding="utf-8"))
    return index


def wrong(cited: Iterable[Citation], index: Mapping[str, Any]) -> list[str]:
    """Citations that the index does not know."""
    lines = []
    for each in cited:
        home = index["cited"].get(each.file, each.file if each.file in index["files"] else None)
        if home is None and each.file not in index["elsewhere"]:
            lines.append(f"{each.where}: {each.file}: not a file of {index['release']}, or not one alone")
        elif home is not None and each.name not in index["files"][home]:
            lines.append(f"{each.where}: {each.file}:{each.name}: {home} of {index['release']} has no such name")
    return lines


def make_index(engine: str, tree: Path) -> tuple[dict[str, Any], list[str]]:
    """The index of what is cited, and citations that `tree` does not answer."""
    old = read_index(engine)
    files, lines = files_of(tree, engine), []
    index: dict[str, Any] = {"release": old["release"], "elsewhere": old["elsewhere"], "cited": {}, "files": {}}
    for each in citations(engine):
        if each.file in old["elsewhere"]:
            continue
        found = homes(each.file, files)
        if f"{MODELS[engine]}/{each.file}" in found:
            found = [f"{MODELS[engine]}/{each.file}"]
        if len(found) != 1:
            lines.append(f"{each.where}: {each.file}: {', '.join(found) or 'no such file'}")
            continue
        value = digest(tree / found[0], each.name)
        if value is None:
            lines.append(f"{each.where}: {each.file}: no {each.name} in {found[0]}")
            continue
        index["cited"][each.file] = found[0]
        index["files"].setdefault(found[0], {})[each.name] = value
    for path in files:
        if path.rpartition("/")[0] == MODELS[engine]:
            index["files"].setdefault(path, {}).setdefault("", digest(tree / path, ""))
    for part in ("cited", "files"):
        index[part] = dict(sorted(index[part].items()))
    return index, lines


def compare(engine: str, tree: Path) -> Iterator[str]:
    """What `tree` changed of what is cited, with the places that cite it."""
    index, files = read_index(engine), files_of(tree, engine)
    known = set(files)
    cited = list(citations(engine))
    for path, names in index["files"].items():
        for name, value in names.items():
            places = ", ".join(
                each.where for each in cited if (index["cited"].get(each.file), each.name) == (path, name)
            )
            what = f"{path}:{name}" if name else path
            if path not in known:
                moved = homes(path.rpartition("/")[2], files)
                yield f"gone     {what}{f' (now {moved[0]}?)' if moved else ''}  {places}"
            elif (found := digest(tree / path, name)) is None:
                yield f"gone     {what}  {places}"
            elif found != value:
                yield f"changed  {what}  {places}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=sorted(ENGINES), nargs="?")
    parser.add_argument("tree", type=Path, nargs="?")
    parser.add_argument("--index", action="store_true")
    options = parser.parse_args()
    if options.engine is None or options.tree is None:
        lines = [line for engine in ENGINES for line in wrong(citations(engine), read_index(engine))]
        print("\n".join(lines) or "every citation is in the index")
        return int(bool(lines))
    if not options.tree.is_dir():
        parser.error(f"{options.tree} is no directory")
    if options.index:
        index, lines = make_index(options.engine, options.tree)
        (INDEXES / f"{options.engine}.json").write_text(json.dumps(index, indent=0) + "\n", encoding="utf-8")
        print("\n".join(lines) or f"{sum(map(len, index['files'].values()))} citations of {len(index['files'])} files")
        return int(bool(lines))
    lines = list(compare(options.engine, options.tree))
    print("\n".join(lines))
    n_cited = sum(map(len, read_index(options.engine)["files"].values()))
    changed = sum(line.startswith("changed") for line in lines)
    kept = f"{n_cited - len(lines)} as they were"
    print(f"{n_cited} definitions and files cited: {changed} changed, {len(lines) - changed} gone, {kept}")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
