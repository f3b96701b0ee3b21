"""The printed command: each shell reads back each argument exactly, and a terminal finds nothing to act on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from autofit.domain.memory import Memory
from autofit.domain.plan import Plan
from autofit.errors import UsageError
from autofit.render import shell as formats
from autofit.text import shell

ROOT = Path(__file__).resolve().parents[4]
POSIX = {
    "sh": ["sh"], "dash": ["dash"], "bash": ["bash"], "bash --posix": ["bash", "--posix"], "zsh": ["zsh", "-f"],
    "ksh": ["ksh"], "mksh": ["mksh"], "busybox": ["busybox", "sh"], "yash": ["yash"],
}  # fmt: skip
LOCALES = ("C", "C.UTF-8")
NAMES = (
    "plain", "", "two words", "it's", "$(touch pwned)", "`x`", "a\\b", "!history", "~", "~/x", "*", "-m", "=ls", "a=b",
    "{a,b}", "[a-z]", "#x", "a;b", "a&b", "a|b", "<x", ">x", "%s%%", '"', "\\", "\\'", "é", "日本", "🙂",
    "\x1b[31mred", "a\nb", "\na", "tab\there", "\x7f", "\x9b2J", "\u202egnp.exe", "\u2028", "\u200d", "\xad", "\u2066",
    "back\\slash\x1b'quote'\\", "\x1b9f", "é\x07ü", "\U000e0041", "\udcff\udc9b", "\udce2\udc80\udcae", "$'\x1b'", "\r",
    "\x011", "\\n\x07", "%d\x07", "!x\x07", "-\x07", "\ue000", "a\x1b\\'; touch PWNED; #.gguf", "a\n'; touch PWNED; '",
    "$'\\''; touch PWNED; #\x1b", "‘ ’ ‚ ‛",
)  # fmt: skip
EVERY_BYTE = tuple(
    form.replace(b"?", bytes([byte])).decode("utf-8", "surrogateescape")
    for byte in range(1, 256)
    for form in (b"?x", b"x?y", b"'?", b"\\?7", b"-?1 2")
)
UNSEEN = tuple(
    f"a{c}b'" for c in map(chr, range(0x80, 0x110000)) if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Zs")
)
#: holds characters, not bytes: a word that is no text in its locale cannot be an argument there, whoever writes it
TEXT_ONLY = {"yash"}
ENCODINGS = {"C": "ascii", "C.UTF-8": "utf-8"}
WORDS = tuple(word for word in (*NAMES, *EVERY_BYTE, *UNSEEN) if not word.endswith("\n"))
RLO_BYTES = "\udce2\udc80\udcae"  #: U+202E as a locale without it reads its bytes


def as_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def read_back(program: Sequence[str], script: str, locale: str) -> list[bytes]:
    """The words that a shell makes of `printf '%s\\0' ...`, from its standard input as with `| sh`."""
    path = shutil.which(program[0])
    if path is None:
        pytest.skip(f"{program[0]} is not installed")
    env = {"PATH": os.environ["PATH"], "LC_ALL": locale, "HOME": "/nonexistent"}
    done = subprocess.run([path, *program[1:]], input=as_bytes(script), capture_output=True, env=env, timeout=60)
    assert done.stderr == b""
    return done.stdout.split(b"\0")[:-1]


def is_text(word: str, locale: str) -> bool:
    try:
        as_bytes(word).decode(ENCODINGS[locale])
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.slow_but("*-C.UTF-8")
@pytest.mark.parametrize("locale", LOCALES)
@pytest.mark.parametrize("always", [False, True], ids=["where needed", "always quoted"])
@pytest.mark.parametrize("name", POSIX)
def test_every_posix_shell_reads_back_every_word(name: str, always: bool, locale: str) -> None:
    words = [word for word in WORDS if name not in TEXT_ONLY or is_text(word, locale)]
    for start in range(0, len(words), 800):
        some = words[start : start + 800]
        script = "printf '%s\\0' " + " ".join(shell.word(word, always=always) for word in some)
        assert read_back(POSIX[name], script, locale) == list(map(as_bytes, some))


@pytest.mark.parametrize("locale", LOCALES)
def test_fish_reads_back_every_word(locale: str) -> None:
    words = (*WORDS, "ends\n", "\n")
    for start in range(0, len(words), 500):
        some = words[start : start + 500]
        script = "/usr/bin/printf '%s\\0' " + " ".join(map(shell.fish_word, some))
        assert read_back(["fish", "--no-config"], script, locale) == list(map(as_bytes, some))


def test_powershell_reads_back_every_word_that_is_unicode() -> None:
    words = [word for word in (*WORDS, "ends\n") if word and '"' not in word and word.isascii() | word.isprintable()]
    text = "\n".join(f"[Convert]::ToBase64String([Text.Encoding]::UTF8.GetBytes({quoted(word)}))" for word in words)
    if shutil.which("pwsh") is None:
        pytest.skip("pwsh is not installed")
    import base64

    done = subprocess.run(["pwsh", "-NoProfile", "-Command", "-"], input=text.encode(), capture_output=True, check=True)
    assert [base64.b64decode(line).decode() for line in done.stdout.split()] == words


def quoted(word: str) -> str:
    found = shell.powershell_word(word)
    return found if found[0] in "('" else f"'{found}'"


def test_powershell_words_are_what_their_grammar_says() -> None:
    """A reader of the two forms: text in single quotes, where a quote is doubled, and sums of characters."""
    token = r"'(?:[^'‘’‚‛]|''|‘‘|’’|‚‚|‛‛)*'|\[char\]\d+"
    for word in WORDS:
        if any("\udc80" <= c <= "\udcff" for c in shell._checked(word)):
            with pytest.raises(UsageError, match="Unicode"):
                shell.powershell_word(word)
            continue
        written = shell.powershell_word(word)
        assert written.isprintable()
        if re.fullmatch(r"-{0,2}[A-Za-z0-9-]+", written):
            assert written == word
            continue
        assert re.fullmatch(rf"(?:{token})|\((?:{token})(?:\+(?:{token}))*\)", written), word
        units = b"".join(
            int(part[6:]).to_bytes(2, "little")
            if part[0] == "["
            else re.sub("(['‘’‚‛])\\1", "\\1", part[1:-1]).encode("utf-16-le")
            for part in re.findall(token, written)
        )
        assert as_bytes(units.decode("utf-16-le")) == as_bytes(word)


def test_powershell_parses_a_whole_command_as_its_words() -> None:
    """By a grammar of PowerShell that is not ours; in place of the program, where that is not to be had."""
    words = [word for word in (*WORDS, *POWERSHELL_WORDS) if not any("\udc80" <= c <= "\udcff" for c in word)]
    for columns in (None, 40):
        for start in range(0, len(words), 200):
            some = ["-m", *words[start : start + 200], "007", "12"]
            written = shell.powershell_command(["/a b/x", *some], [("A", "it's $b")], columns=columns)
            assert parsed_by_powershell(written) == ["it's $b", "/a b/x", *some]


#: what PowerShell would take for a number, a parameter with a value, an operator, a comment, or its own word
POWERSHELL_WORDS = (
    "007", "0x10", "1e5", "2kb", "1.5", "-1.5", "-1e5", "12345678901", "-ngl:3", "--x=y", "--", "-", "--%", "@x", "$x",
    "$env:x", "x,y", "if", "#", "<#", "@'", '@"', "`", "%{x}", "2>&1", "&&", "||", "...", "1..3", "[char]65", "{x}",
)  # fmt: skip


def tree_of_powershell(text: str) -> Any:
    """The root of a program's syntax tree."""
    grammar = pytest.importorskip("tree_sitter_powershell")
    from tree_sitter import Language, Parser

    return Parser(Language(grammar.language())).parse(text.encode()).root_node


def parsed_by_powershell(text: str) -> list[str]:
    """The strings, numbers and parameters of a program, in their order, once its parser has found no error."""

    def value(node: Any) -> list[str]:
        said = (node.text or b"").decode()
        if node.type == "command_parameter":
            return [said]
        if node.type == "parenthesized_expression":
            return [joined("".join(one) for one in map(value, node.named_children))]
        if node.type == "cast_expression":
            return [f"\0{said.removeprefix('[char]')}\0"]
        if node.type == "integer_literal":
            return [str(int(said))]
        if node.type == "string_literal":
            assert node.named_children[0].type == "verbatim_string_characters"
            return [re.sub("(['‘’‚‛])\\1", "\\1", said[1:-1])]
        return [one for child in node.named_children for one in value(child)]

    root = tree_of_powershell(text)
    assert not root.has_error
    return value(root)


def joined(parts: Iterable[str]) -> str:
    """A sum of strings and characters, which are units of UTF-16."""
    pieces = re.split("\0(\\d+)\0", "".join(parts))
    data = b"".join(
        int(piece).to_bytes(2, "little") if at % 2 else piece.encode("utf-16-le") for at, piece in enumerate(pieces)
    )
    return data.decode("utf-16-le")


def test_completion_of_powershell_is_a_program_of_it() -> None:
    source = (ROOT / "autofit/cli/completions/autofit.ps1").read_text(encoding="utf-8")
    assert not tree_of_powershell(source).has_error
    for part in ("{", ")", "}"):
        assert tree_of_powershell(source.replace(part, "", 1)).has_error, part


@pytest.mark.parametrize("word", ["ends\n", "\n", "zero\0", "\ud800", "x\ud800y"], ids=ascii)
def test_what_no_posix_shell_reads_back_is_refused_with_its_name(word: str) -> None:
    with pytest.raises(UsageError) as caught:
        shell.word(word)
    assert caught.value.message.isprintable()
    assert caught.value.message.split(":")[0] in repr(word)
    assert "json" in (caught.value.hint or "")


def test_words_without_such_characters_are_quoted_as_ever() -> None:
    assert [shell.word(word) for word in ("plain", "it's", "two words")] == ["plain", """'it'"'"'s'""", "'two words'"]


@pytest.mark.parametrize("form", [shell.word, shell.fish_word, shell.powershell_word])
@pytest.mark.parametrize("plane", [0, 1, 14])
def test_no_character_that_a_terminal_acts_on_is_printed(plane: int, form) -> None:
    acts = [c for c in map(chr, range(plane << 16, (plane + 1) << 16)) if unicodedata.category(c) in ACTS]
    acts += [c for c in map(chr, range(plane << 16, (plane + 1) << 16)) if unicodedata.bidirectional(c) in BIDI]
    for char in acts:
        if char != "\0":
            assert form(f"a{char}b").isascii(), hex(ord(char))
    assert acts


ACTS = ("Cc", "Cf", "Zl", "Zp")
BIDI = frozenset(("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"))


def test_bytes_that_are_such_a_character_elsewhere_are_escaped_too() -> None:
    assert shell.word(RLO_BYTES).isascii()
    assert shell.fish_word(RLO_BYTES).isascii()


def a_plan(*argv: str, **env: str) -> Plan:
    return Plan(backend="llama", fits=True, argv=argv, env=env, memory=Memory(pools=()))


PROGRAM = ("sh", "-c", 'printf "%s|" "$X" "$@"', "-", "\x1b[0m", "it's", "$HOME", "")


@pytest.mark.parametrize("name", POSIX)
@pytest.mark.parametrize("form", [formats.render, formats.render_eval])
def test_a_shell_runs_a_plan_with_its_variables(name: str, form) -> None:
    path = shutil.which(POSIX[name][0])
    if path is None:
        pytest.skip(f"{name} is not installed")
    script = 'eval "$PLAN"' if form is formats.render_eval else form(a_plan(*PROGRAM, X="a\x1bb"))
    env = {**os.environ, "PLAN": form(a_plan(*PROGRAM, X="a\x1bb"))}
    done = subprocess.run([path, *POSIX[name][1:]], input=script.encode(), capture_output=True, env=env, check=True)
    assert done.stdout == b"a\x1bb|\x1b[0m|it's|$HOME||"


def test_fish_runs_a_plan_with_its_variables() -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    script = formats.render_fish(a_plan(*PROGRAM, X="a\x1bb"))
    done = subprocess.run(["fish", "--no-config"], input=script.encode(), capture_output=True, check=True)
    assert done.stdout == b"a\x1bb|\x1b[0m|it's|$HOME||"


@pytest.mark.skipif(shutil.which("xargs") is None, reason="needs xargs")
def test_xargs_runs_the_words_of_nul() -> None:
    words = formats.render_nul(a_plan(*PROGRAM, X="a\x1bb"))
    done = subprocess.run(["xargs", "-0", "env"], input=words.encode(), capture_output=True, check=True)
    assert done.stdout == b"a\x1bb|\x1b[0m|it's|$HOME||"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_reads_the_words_of_lines_into_an_array() -> None:
    words = ("sh", "-c", 'printf "%s|" "$@"', "-", "two words", "it's", "", "é")
    script = 'mapfile -t words; "${words[@]}"'
    lines = formats.render_lines(a_plan(*words)) + "\n"
    done = subprocess.run(["bash", "-c", script], input=lines.encode(), capture_output=True, check=True)
    assert done.stdout.decode() == "two words|it's||é|"


@pytest.mark.parametrize("word", ["a\nb", "\x1b[0m", "\u202e"], ids=ascii)
def test_a_line_holds_no_control_character(word: str) -> None:
    with pytest.raises(UsageError, match="control character"):
        formats.render_lines(a_plan("llama-server", "-m", word))


def test_a_program_that_looks_like_an_assignment_is_quoted() -> None:
    assert shell.command(["a=b/llama-server", "a=b"]) == "'a=b/llama-server' a=b"


@pytest.mark.parametrize("name", ["A B", "1A", "", "A;x", "A\n", "É"], ids=ascii)
def test_a_variable_that_no_shell_sets_is_refused(name: str) -> None:
    for form in (shell.command, shell.fish_command, shell.powershell_command):
        with pytest.raises(UsageError, match="variable"):
            form(["llama-server"], [(name, "1")])


# -- the command line ---------------------------------------------------------------------------------------

HOSTILE = (
    b"a\x1b\\'; touch PWNED; #.gguf", b"$(touch PWNED).gguf", b"`touch PWNED`.gguf", b"a'; touch PWNED; '.gguf",
    b"a\n'; touch PWNED; '.gguf", b"\xe2\x80\xaegnp.gguf", b"\xff\x9b2J.gguf", b"-m; touch PWNED.gguf", b"a b.gguf",
    b"a\\'; touch PWNED; #\x07.gguf", b"$'\\''; touch PWNED; #\x7f.gguf", b"!touch PWNED\x01.gguf", b"a\nb.gguf",
)  # fmt: skip


def autofit(*arguments: bytes | str, cwd: Path, **env: str) -> subprocess.CompletedProcess[bytes]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("AUTOFIT_", "LLAMA_ARG_", "VLLM_", "CUDA_"))}
    clean |= {"XDG_CONFIG_HOME": "/nonexistent", "AUTOFIT_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(
        [sys.executable, "-m", "autofit", *arguments], capture_output=True, env=clean, cwd=cwd, timeout=60
    )


PLACE = ("--on", "rtx-3090", "--ram", "64GiB")


@pytest.mark.skipif(sys.platform != "linux", reason="names of files cannot hold such bytes elsewhere")
@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_hostile_name_reaches_the_program_and_nothing_else_runs(tmp_path: Path, name: bytes) -> None:
    """The whole way: `autofit llama NAME | sh`, with a `llama-server` that prints the model it was given."""
    path = os.fsencode(tmp_path) + b"/" + name
    Path(os.fsdecode(path)).write_bytes((ROOT / "autofit/_models/tiny.gguf").read_bytes())
    server = tmp_path / "bin" / "llama-server"
    server.parent.mkdir()
    server.write_text('#!/bin/sh\nprintf "%s" "$2"\n')
    server.chmod(0o755)
    done = autofit("llama", path, *PLACE, "--explain", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for text in (done.stdout, done.stderr):
        shown = text.decode("utf-8", "surrogateescape").replace("\n", "")
        assert all(c.isprintable() or "\udca0" <= c <= "\udcff" for c in shown)
    env = {**os.environ, "LC_ALL": "C.UTF-8", "PATH": f"{server.parent}:{os.environ['PATH']}"}
    for shell_name, program in POSIX.items():
        if found := shutil.which(program[0]):
            ran = subprocess.run([found, *program[1:]], input=done.stdout, capture_output=True, env=env, cwd=tmp_path)
            can_be_passed = shell_name not in TEXT_ONLY or is_text(os.fsdecode(name), "C.UTF-8")
            assert ran.stdout == (path if can_be_passed else b""), program
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(["bin", os.fsdecode(name)])


@pytest.mark.skipif(sys.platform != "linux", reason="names of files cannot hold such bytes elsewhere")
def test_a_name_that_no_shell_reads_back_is_refused_and_json_has_it(tmp_path: Path) -> None:
    import json

    path = os.fsencode(tmp_path) + b"/m.gguf\n"
    Path(os.fsdecode(path)).write_bytes((ROOT / "autofit/_models/tiny.gguf").read_bytes())
    done = autofit("llama", path, *PLACE, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == b""
    assert b"m.gguf\\n" in done.stderr
    plan = json.loads(autofit("llama", path, *PLACE, "--format", "json", cwd=tmp_path).stdout)
    assert os.fsencode(plan["argv"][2]) == path
    assert path in autofit("llama", path, *PLACE, "--format", "nul", cwd=tmp_path).stdout.split(b"\0")
    assert b"m.gguf" in autofit("llama", path, *PLACE, "--format", "fish", cwd=tmp_path).stdout


NO_FIT = ("llama", "example:mixtral-8x7b-q4_k_m", "--on", "generic-cuda:4GiB", "--ram", "8GiB")


@pytest.mark.parametrize("way", ["sh", "eval", "bare", "xargs", "fish"])
def test_what_does_not_fit_fails_in_the_shell_too(tmp_path: Path, way: str) -> None:
    scripts = {
        "sh": ("sh", "{} | sh"), "eval": ("sh", 'eval "$({} --format eval)"'), "bare": ("sh", "$({})"),
        "xargs": ("sh", "{} --format nul | xargs -0 env"), "fish": ("fish", "{} --format fish | source"),
    }  # fmt: skip
    program, script = scripts[way]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    command = " ".join(map(shell.word, (sys.executable, "-m", "autofit", *NO_FIT, "-q")))
    env = {**os.environ, "XDG_CONFIG_HOME": "/nonexistent", "AUTOFIT_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run([program, "-c", script.format(command)], capture_output=True, env=env, timeout=60)
    assert done.returncode != 0
    assert len(done.stderr.decode().splitlines()) == 1
    assert b"GiB" in done.stderr


LONG = (
    "/opt/a b/llama-server", "-m", "models/a model.gguf", "-c", "16384", "-ngl", "33", "-ot", "blk.(26|27).*=CPU",
    "--no-mmap", "--seed", "-1", "--tensor-split", "3,1", "a" * 70,
)  # fmt: skip
SHELLS = {
    "sh": (shell.command, "\\"),
    "fish": (shell.fish_command, "\\"),
    "powershell": (shell.powershell_command, "`"),
}


@pytest.mark.parametrize("columns", [28, 40, 80, 200])
@pytest.mark.parametrize("name", SHELLS)
def test_on_a_narrow_terminal_a_command_is_cut_before_options(name: str, columns: int) -> None:
    """No word is cut, no option parted from its value where there is room, no line longer than its longest word."""
    form, continued = SHELLS[name]
    whole = form(LONG, [("X", "1")])
    lines = form(LONG, [("X", "1")], columns=columns).split("\n")
    assert all(line.endswith(f" {continued}") for line in lines[:-1]) and not lines[-1].endswith(continued)
    parts = [line.removesuffix(f" {continued}").strip() for line in lines]
    assert " ".join(parts) == whole
    too_long = [part for line, part in zip(lines, parts, strict=True) if len(line) > columns]
    assert all(" " not in re.sub("'.*?'", "", part.removeprefix("& ")) for part in too_long)
    assert (len(lines) > 1) == (len(whole) > columns)
    for option, value in (("-c", "16384"), ("-ngl", "33"), ("--tensor-split", form(["x", "3,1"]).split()[-1])):
        assert any(f"{option} {value}" in part for part in parts)
    assert all(part.startswith(("-", "'", "X=", "$env", "a", "&")) for part in parts)


@pytest.mark.parametrize("always", [False, True])
@pytest.mark.parametrize("columns", [1, 28, 40, 80])
@pytest.mark.parametrize("name", POSIX)
def test_every_posix_shell_reads_the_lines_of_a_narrow_terminal_as_one(name: str, columns: int, always: bool) -> None:
    words = [word for word in (*LONG, *NAMES) if not word.endswith("\n") and (name not in TEXT_ONLY or word.isascii())]
    script = shell.command(["printf", "%s\\0", *words], always=always, columns=columns)
    assert script.count("\n") > 10
    assert read_back(POSIX[name], script, "C.UTF-8") == list(map(as_bytes, words))
