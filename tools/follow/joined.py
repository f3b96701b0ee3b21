"""Which of the engine's files may be compiled together: their headers take most of the time of a build.

Two files that define one name at file scope stay apart. CMake's unity builds then join the files of a group.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

SIZE = {"src": 8, "src/models": 20}
_DEFINED = re.compile(
    r"^(?:#define\s+(\w+)|(?:struct|class|enum class|enum|union|namespace)\s+(\w+)[^;]*$"
    r"|using\s+(\w+)\s*=|(?:static|inline|const|constexpr|template|typedef)\b[^;{}=()]*?(?<![\w:])(\w+)\s*(?:\(|=|\[|;))",
    re.MULTILINE,
)


def names(text: str) -> set[str]:
    """What a C++ file defines at file scope, macros too; members of a class that is defined elsewhere are not.

    >>> sorted(names("static int two(int x) {\\n#define N 2\\nstruct cell {\\n    static int inner(int);\\n"))
    ['N', 'cell', 'two']
    >>> names("const cell & row::of(int i) const {")
    set()
    """
    return {name for found in _DEFINED.findall(text) for name in found if name}


def groups(defined: Mapping[str, set[str]], size: int) -> list[list[str]]:
    """Files in groups of at most `size`, none with two that define one name.

    >>> groups({"a": {"x"}, "b": {"x"}, "c": set()}, 2)
    [['a', 'c'], ['b']]
    """
    made: list[tuple[list[str], set[str]]] = []
    for file, its in defined.items():
        for files, taken in made:
            if len(files) < size and not its & taken:
                files.append(file)
                taken |= its
                break
        else:
            made.append(([file], set(its)))
    return [files for files, _ in made]


def listing(tree: Path, without: Sequence[str]) -> str:
    """CMake code, included after the engine's project(), that joins the files of libllama but those `without`."""
    # a property that is set by a whole path is that of a source which is listed with it
    lines = [
        "function(autofit_join)",
        "  get_target_property(files llama SOURCES)",
        f'  list(TRANSFORM files PREPEND "{tree}/src/" REGEX "^[^/]")',
        "  set_property(TARGET llama PROPERTY SOURCES ${files})",
    ]
    n = 0
    for folder, size in SIZE.items():
        paths = [path for path in sorted((tree / folder).glob("*.cpp")) if path.stem not in without]
        for files in groups({str(path): names(path.read_text(errors="replace")) for path in paths}, size):
            lines += _group(tree, files, n)
            n += 1
    lines += ["  set_target_properties(llama PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)", "endfunction()"]
    lines.append("cmake_language(DEFER DIRECTORY ${CMAKE_SOURCE_DIR} CALL autofit_join)")
    return "\n".join(lines) + "\n"


def _group(tree: Path, files: Sequence[str], n: int) -> list[str]:
    listed = " ".join(f'"{file}"' for file in files)
    said = f"UNITY_GROUP g{n} SKIP_UNITY_BUILD_INCLUSION OFF"  # newer builds join their models, and skip the rest
    return [f'  set_source_files_properties({listed} DIRECTORY "{tree}/src" PROPERTIES {said})']
