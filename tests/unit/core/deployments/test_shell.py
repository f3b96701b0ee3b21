from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from autofit.deployments.shell import commands, script_of
from autofit.deployments.written import Written
from autofit.errors import UsageError
from autofit.text.launchers import unwrap


def is_engine(argv: tuple[str, ...]) -> bool:
    at = next((n for n, word in enumerate(argv) if "=" not in word), 0)
    words = unwrap(argv[at:]).argv
    return bool(words) and words[0].rpartition("/")[2] == "engine"


def read(text: str, environ: dict[str, str] | None = None, path: str = "dir/start.sh") -> tuple[Written, ...]:
    return commands(text, is_engine, environ or {}, path=path)


#: scripts whose commands reading tells whole; each is run by bash as well
TOLD = {
    "plain": "engine -m model.gguf -c 4096",
    "continued": "engine \\\n  -m model.gguf \\\n  -c 4096\n",
    "quotes": """engine -m 'a b' "c d" e\\ f '' "" 'it'"'"'s' "a\\"b\\$c\\d" $'x\\ty'""",
    "variables": 'M=model.gguf\nC="4 096"\nengine -m $M "$M" -c $C "$C" "${M}x" ${M}',
    "defaults": 'A=\nengine ${A:-one} "${A-two}" ${B:-"three four"} "${B-five six}" ${A:+no} ${M:=set} $M',
    "alternative": "A=x\nengine ${A:+yes} ${A+-c 5}",
    "list": 'ARGS=(-ngl 99 "a b")\nARGS+=(--port 1)\nengine "${ARGS[@]}" ${ARGS[@]}',
    "one of a list": 'A=(x "y z" w)\nB=q\nengine ${A[0]} "${A[1]}" ${B[0]} "${A[9]:-none}" ${A[2]:+yes} $A',
    "appended": 'A="-c 1"\nA+=" -b 2"\nA="$A -n 3"\nengine $A',
    "no arguments": 'engine "$@" $* -x "${1:-first}"',
    "redirected": "engine -c 1 > log 2>&1 < /dev/null; engine -c 2 >> log 2> err; engine -c 3 &> log",
    "background": "engine -c 1 & engine -c 2 && engine -c 3 || engine -c 4; wait",
    "piped": "engine -c 1 | cat; echo engine -c 2; # engine -c 3\n",
    "branch": "if true; then\n  engine -c 1\nfi\n",
    "set in a branch": 'if [ -z "$C" ]; then C=5; fi\nengine -c $C',
    "loop of one": 'for m in a.gguf; do engine -m "$m"; done',
    "function": 'start() {\n  engine "$M" -c "$1" ${2:-x}\n}\nno() { engine no; }\nM=x\nstart 1\nM=y; start 2 3',
    "function word": "function start { engine -c 1; }\nfunction go() {\n  engine -c $1\n}\nstart\ngo 2",
    "case": 'case "$M" in\n  engine) echo no;;\n  *) engine -c 7;;\nesac',
    "subshell": "M=x; (engine -m $M); { engine -c 2; }",
    "inner": "export M=x\nbash -c 'engine -m \"$M\" -c 1'",
    "assigned": 'A=1 B="x y" engine -c 1',
    "launchers": "nice -n 5 env X=1 engine -c 1",
    "here document": "cat <<EOF\nengine -m no\nEOF\nengine -c 1",
    "here string": "cat <<< 'engine -m no' > /dev/null\nengine -c 1",
    "declared": "declare -r C=4\nlocal_only=1\nreadonly D=5\nengine -c $C $D",
    "unset": "C=4; unset C; engine -c ${C:-8}",
    "tilde": "engine -m ~/x.gguf ~",
    "dollar": 'engine "$" a$ "5$%"',
    "comment in a word": "engine -m a#b # -c 1",
    "nested defaults": 'engine "${A:-${B:-c d}}" ${A:-${B:-c d}}',
    "tilde assigned": 'M=~/x.gguf\nN="~/y"\nengine -m $M "$M" $N --model=~/z',
    "other white space": "A='a\u00a0b\u2003c\vd'\nengine $A e\u00a0f",
    "surely so": "A=\nif [ -n x ]; then A=1; else A=2; fi\n[ -n x ] && B=2\n[ -z x ] || C=3\nengine $A $B $C",
    "surely not": 'A=0\nif [[ -n $NO && x == x ]]; then A=1; fi\n[ "$A" != 0 ] && A=2\ntest 1 -gt 2 && A=3\nengine $A',
    "later part": 'if [ -z x ]; then A=1; elif ! [ "$A" = b ]; then A=2; elif true; then A=3; else A=4; fi\nengine $A',
    "all ways agree": "if cd . ; then A=1; else A=1; fi\nengine $A",
    "inside a branch": "A=0\nif true; then A=1; engine $A; fi\nengine $A",
    "without arguments": "M=x\n"
    'while [ $# -gt 0 ]; do case "$1" in -m) M="$2"; shift 2;; (engine|b) M=b;; *) shift;; esac; done\n'
    'for a in "$@"; do M=$a; done\nwhile getopts m: o; do M=$OPTARG; done\n'
    'while [[ -n "$1" ]]; do M=$1; shift; done\n'
    "engine -m $M",
    "case with a rest": 'M=a\ncase "$M" in\n  x) M=b;;\n  *)\n    M=a\n    ;;\nesac\nengine $M',
    "case of a default": 'case "${1:-start}" in stop|no) M=b;; "start") M=a;; [s]*) M=c;; esac\nengine $M',
    "ended by exit": 'M=a\nif [ -n "$M" ]; then :; else M=b; exit 1; fi\n[ -n "$M" ] || { M=c; exit 1; }\nengine $M',
    "returned": "f() { if [ -z x ]; then return; fi; M=2; }\nM=1\nif true; then f; fi\nengine $M",
    "nested": "if true; then for i in 1; do if true; then A=$i; fi; done;\n"
    "case x in x) B=2; A=1;; *) A=3; B=2;; esac; fi\nengine $A $B",
    "evaluated": 'C="engine -c 1 \'a b\'"\neval "$C"\neval $C \'"d e"\'\neval "A=5"; engine $A',
    "windows ends": "engine -c 1 \\\r\n -b 2\r\n".replace("\r", ""),
}


@pytest.mark.parametrize("name", TOLD)
def test_told_as_bash_starts_it(name: str, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    write = r'''{ printf '%s\0' "$@"; printf '\n\0'; } > "$LOG.$$"'''
    (tmp_path / "engine").write_text(f'#!/bin/sh\n{write}\ncat "$LOG.$$" >> "$LOG"\n')
    (tmp_path / "engine").chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log), "HOME": "/home/x"}
    script = tmp_path / "start.sh"
    script.write_text(TOLD[name])
    subprocess.run(["bash", str(script)], env=environ, cwd=tmp_path, check=False, timeout=20, stdout=subprocess.DEVNULL)
    started = [tuple(run.split("\0")[:-1]) for run in log.read_text().split("\n\0")[:-1]]
    found = commands(TOLD[name], is_engine, {"HOME": "/home/x"}, path=str(script))
    assert [one.unknown for one in found] == [None] * len(found)
    told = [one.argv[next(n for n, word in enumerate(one.argv) if word == "engine") + 1 :] for one in found]
    if name == "background":  # the last is started only if another fails
        told, started = sorted(told)[:3], sorted(started)
    assert told == started


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("engine -m $(find / -name x)", "only running tells $(find / -name x)"),
        ("engine -m `ls`", "only running tells `ls`"),
        ("engine -m $M", "$M is not set here"),
        ('engine -m "$1"', "the script's argument $1 is not given here"),
        ("engine -m ${M%.gguf}", "only running tells ${M%.gguf}"),
        ("C=1\nif x; then C=2; fi\nengine -c $C", "$C depends on a condition (line 2)"),
        ("C=1\n[ -e x ] && C=2\nengine -c $C", "$C depends on a condition (line 2)"),
        ("A=\nif nvidia-smi; then A='-ngl 99'; fi\nengine $A", "$A depends on a condition (line 2)"),
        ("nvidia-smi && A='-ngl 99'\nengine $A", "$A depends on a condition (line 1)"),
        ("case `uname` in\nx) A=1;;\ny) A=2;;\nesac\nengine $A", "$A depends on a condition (line 3)"),
        ("A=1\nwhile read -r A; do x; done\nx || { A=2; }\nengine $A", "$A depends on a condition (line 3)"),
        ('if [ -n "$API_KEY" ]; then A=1; else A=2; fi\nengine $A', "$A depends on a condition (line 1)"),
        ("if x && [ -n y ]; then A=1; else A=2; fi\nengine $A", "$A depends on a condition (line 1)"),
        ("if x | true; then A=1; else A=2; fi\nengine $A", "$A depends on a condition (line 1)"),
        ('eval "engine -c $(nproc --all)"', "only running tells $(nproc --all)"),
        ("C=1\nif x; then f() { C=2; }; f; fi\nengine -c $C", "$C depends on a condition (line 2)"),
        ("for c in 1 2; do engine -c $c; done", "$c has another value in each turn of a loop"),
        ("engine -c $((1 + 1))", "only running tells $((1 + 1))"),
        ("engine -m <(cat x)", "only running tells <(cat x)"),
    ],
)
def test_what_only_running_tells_is_said(text: str, unknown: str) -> None:
    (found,) = read(text)
    assert found.unknown == unknown


def test_a_program_in_a_folder_that_is_not_known() -> None:
    (found,) = read('"$BIN/engine" -c 1')
    assert (found.argv, found.unknown) == (("engine", "-c", "1"), None)
    assert read('"$BIN" -c 1') == ()


@pytest.mark.parametrize(
    "where",
    [
        "$(which engine)",
        '"$(command -v engine)"',
        "${BIN:-$(command -v engine 2>/dev/null || true)}",
        "$(type -P engine)",
    ],
)
def test_a_program_that_is_looked_for(where: str) -> None:
    (found,) = read(f"E={where}\n$E -c 1")
    assert (found.argv, found.unknown) == (("engine", "-c", "1"), None)


@pytest.mark.parametrize("launcher", ["screen -dmS name", "srun -p gpu --gres=gpu:1 -n1", "screen -d -m -S n -L"])
def test_programs_that_start_it_elsewhere(launcher: str) -> None:
    (found,) = read(f"{launcher} engine -c 1")
    assert found.argv[-2:] == ("-c", "1")


def test_folders() -> None:
    assert read('cd "$(dirname "$0")"\nengine x')[0].directory == "dir"
    assert read('cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd\nengine x')[0].directory == "dir/.."
    assert read('D="$(cd "$(dirname "$0")" && pwd)"\nengine -m "$D/x"')[0].argv == ("engine", "-m", "dir/x")
    assert read('engine -m "$(dirname "${BASH_SOURCE[0]}")/x" "${BASH_SOURCE[0]}"')[0].argv[2:] == (
        "dir/x",
        "dir/start.sh",
    )
    assert read('engine -m "${0%/*}/x"')[0].argv == ("engine", "-m", "dir/x")
    assert read("cd /a\n(cd b; engine x)\nengine y") == (
        Written(line=2, argv=("engine", "x"), directory="/a/b"),
        Written(line=3, argv=("engine", "y"), directory="/a"),
    )


def test_lines_and_what_is_exported() -> None:
    found = read("#!/bin/sh\nexport A=1 B\nB=2\nC=3\nset -a\nD=4\nset +a\n\nengine \\\n -c 1\n")
    assert found == (Written(line=9, argv=("engine", "-c", "1"), environ=(("A", "1"), ("B", "2"), ("D", "4"))),)


def test_another_file_is_read_for_its_variables(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("C=5\nengine -c 0\n. ./env\nexport HF_TOKEN=hush\n")
    (found,) = read(f"source {tmp_path}/env\n. /nowhere\nengine -c $C")
    assert (found.argv, found.line) == (("engine", "-c", "5"), 3)
    (found,) = read(f"set -a; source {tmp_path}/env; engine -c $C --key $HF_TOKEN")
    assert found.argv[-1] == "\0" and dict(found.environ) == {"C": "5"}


@pytest.mark.parametrize(
    "text",
    ["engine 'a", 'engine "a', "engine $(a", "engine ${a", "engine `a", "A=(1 2", "engine $'a"],
)
def test_what_does_not_end_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"line 1: .* without its"):
        read(text)


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(["A=x", *["A=$A$A"] * 40]),
        "\n".join(["A=(x)", *['A+=("${A[@]}")'] * 40]),
        "A=" + "x" * 1000 + "\nengine " + "$A " * 2000,
        "${A:-" * 100 + "}" * 100,
        "bash -c " + "'bash -c " * 3 + "engine",
        "engine\n" * 2000,
        "if true; then " * 100,
    ],
    ids=["doubled", "a list doubled", "long words", "deep", "quotes that do not end", "many", "branches"],
)
def test_scripts_without_measure_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        read(text)


def test_the_script_of_a_shell() -> None:
    assert script_of(("A=1", "nice", "/bin/bash", "-lc", "x y")) == "x y"
    assert script_of(("bash", "x.sh", "-c", "y")) is None
    assert script_of(("bash", "-c")) is None
    assert script_of(("engine", "-c", "1")) is None


def test_no_command_where_only_its_name_is_said() -> None:
    text = 'case "$1" in\n  engine|x) y;;\n  (engine) y;;\nesac\ncase "$1" in engine) y;; esac\n'
    text += "for engine in a; do x; done\ncommand -v engine && command -pv engine; which engine"
    assert read(text) == ()


def test_commands_of_all_parts_are_found_each_with_its_own_values() -> None:
    text = "if x; then M=a; engine $M; elif [ -z y ]; then M=b; engine $M; else M=c; engine $M; fi"
    assert [(one.argv[1], one.unknown) for one in read(text)] == [("a", None), ("b", None), ("c", None)]
