"""Writes plugins/autofit_llama/loading/tensors/: which tensors llama.cpp asks a file for, and of what shape.

    python tools/gen/llama_tensors.py TREE          write them from TREE, the engine's source directory
    python tools/gen/llama_tensors.py TREE --check  exit 1 if they are not current

The engine says it in one function for each architecture (src/models/*.cpp:load_arch_tensors), in a small part of C++:
declarations, loops, conditions and calls of create_tensor. That part is read here and written as Python that asks
`autofit_llama.loading.loader.Loader`, one module for each source; a statement that is not of that part is an error.
The names of tokenizers (src/llama-vocab.cpp:load) go to loading/tokenizers.py, the scalars that every file of an
architecture is asked for (load_arch_hparams, what is asked for without a condition) to loading/keys.py, what its graph
asserts of hyperparameters before it is built (GGML_ASSERT of src/models outside of all blocks) to loading/graphs.py.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

PLUGIN = Path(__file__).resolve().parents[2] / "plugins" / "autofit_llama"
ROOM = PLUGIN / "loading" / "tensors"
BY_HAND = frozenset({"__init__.py"})
TOKENIZERS = "../tokenizers.py"
KEYS = "../keys.py"
GRAPHS = "../graphs.py"
SCALES = "scales"  #: the module of what load_tensors itself asks for

_TOKEN = re.compile(
    r"""\s+ | //[^\n]* | /\*.*?\*/
    | (?P<token>"(?:[^"\\]|\\.)*" | \d+\w* | [A-Za-z_]\w*
    | \|\| | && | == | != | <= | >= | \|= | \+\+ | -> | :: | .)""",
    re.VERBOSE | re.DOTALL,
)
_FLAGS = {
    "TENSOR_NOT_REQUIRED": "OPTIONAL",
    "TENSOR_DUPLICATED": "DUPLICATED",
    "TENSOR_SKIP": "SKIP",
    "TENSOR_SKIP_IF_VIRTUAL": "0",  # of models without a file
    "TENSOR_ALLOW_RESHAPE": "RESHAPE",
    "TENSOR_READ_LAZY": "0",  # where it is read to
}
_TYPES = frozenset("ggml_tensor int int64_t uint32_t int32_t size_t bool auto long double float".split())
_PARTS = frozenset(
    "posnet convnext nextn shortconv switch_lora".split()
)  #: structs in structs, whose fields are written with both names
_LEVELS = ({"||"}, {"&&"}, {"|"}, {"&"}, {"==", "!="}, {"<", ">", "<=", ">="}, {"+", "-"}, {"*", "/", "%"})
_WORDS = {"||": "or", "&&": "and", "/": "//", "nullptr": "None", "NULL": "None", "true": "True", "false": "False"}


class Engine:
    """What is said of tensors' names and architectures beside the functions."""

    def __init__(self, tree: Path) -> None:
        arch = (tree / "src/llama-arch.cpp").read_text("utf-8")
        self.names = dict(re.findall(r'\{\s*(LLM_TENSOR_\w+),\s*"([^"]*)"\s*\}', arch))
        self.unused = frozenset(re.findall(r"\{(LLM_TENSOR_\w+),\s*\{LLM_TENSOR_LAYER_\w+,\s*GGML_OP_NONE\}\}", arch))
        self.architectures = dict(re.findall(r'\{\s*(LLM_ARCH_\w+),\s*"([^"]*)"\s*\}', arch))
        model = (tree / "src/llama-model.cpp").read_text("utf-8")
        self.classes = dict(re.findall(r"case (LLM_ARCH_\w+):\s*return new (llama_model_\w+)\(params\);", model))
        headers = (tree / "src/models/models.h").read_text("utf-8")
        self.bases = dict(re.findall(r"struct (llama_model_\w+) : public (llama_model_\w+) \{", headers))
        alias = r"struct (llama_model_\w+) : [^{]*\{(?:(?!\nstruct ).)*?using graph\s*=\s*(llama_model_\w+)::graph"
        self.graphs = dict(re.findall(alias, headers, re.DOTALL))


class Reader:
    """One function of the engine, statement by statement; `lines` are those of ours."""

    def __init__(self, text: str, engine: Engine, parameters: tuple[str, ...] = ()) -> None:
        self.tokens = [found for match in _TOKEN.finditer(text) if (found := match["token"])]
        self.at = 0
        self.engine = engine
        self.lines: list[str] = []
        self.depth = 1
        self.scopes: list[dict[str, str]] = [{name: name for name in parameters}]
        self.taken = set(parameters)

    # -- tokens ---------------------------------------------------------------------------------------

    def see(self, *words: str) -> bool:
        return tuple(self.tokens[self.at : self.at + len(words)]) == words

    def next(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1]

    def take(self, *words: str) -> bool:
        if self.see(*words):
            self.at += len(words)
            return True
        return False

    def expect(self, *words: str) -> None:
        if not self.take(*words):
            raise ValueError(
                f"{' '.join(words)} expected at: {' '.join(self.tokens[max(self.at - 8, 0) : self.at + 8])}"
            )

    def write(self, line: str) -> None:
        self.lines.append("    " * self.depth + line)

    def declare(self, name: str) -> str:
        """Our name of a new variable: as it is, or numbered where an outer one has it."""
        ours, n = name, 2
        while ours in self.taken:
            ours, n = f"{name}_{n}", n + 1
        self.taken.add(ours)
        return ours

    def resolve(self, name: str) -> str:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return f"m.{name}"

    # -- statements -----------------------------------------------------------------------------------

    def block(self) -> None:
        """The statements up to a closing brace, indented."""
        self.depth += 1
        self.scopes.append({})
        start = len(self.lines)
        while not self.take("}"):
            self.statement()
        if len(self.lines) == start:
            self.write("pass")
        self.scopes.pop()
        self.depth -= 1

    def body(self) -> None:
        self.expect("{")
        self.block()

    def whole(self) -> None:
        while self.at < len(self.tokens):
            self.statement()

    def statement(self) -> None:
        if self.take(";") or self.take("LLAMA_LOAD_LOCALS", ";"):
            return
        word = self.tokens[self.at]
        if word == "{":
            self.at += 1
            self.depth -= 1
            self.block()
            self.depth += 1
        elif self.take("continue", ";"):
            self.write("continue")
        elif word in ("if", "for", "switch", "try", "throw", "return"):
            getattr(self, f"_{word}")()
        elif word in ("GGML_ASSERT", "GGML_ABORT", "GGML_UNUSED", "LLAMA_LOG_INFO"):
            self._macro()
        elif word in ("const", "auto", "struct") or ((word in _TYPES or word == "std") and self._declares()):
            self._declaration()
        else:
            self._expression_statement()

    def _declares(self) -> bool:
        if self.see("std", "::", "string"):
            return True
        if self.see("ggml_tensor", "*"):
            return True
        return self.tokens[self.at] in _TYPES and re.fullmatch(r"[A-Za-z_]\w*", self.tokens[self.at + 1]) is not None

    def _type(self) -> None:
        while self.tokens[self.at] in ("const", "struct", "*", "&", "std", "::", "string") or (
            self.tokens[self.at] in _TYPES
        ):
            self.at += 1

    def _declaration(self) -> None:
        self._type()
        name = self.next()
        if self.take("=", "[", "&", "]"):
            self._lambda(name)
            return
        value = "None"
        if self.take("="):
            value = self.expression()
        self.expect(";")
        ours = self.declare(name)
        self.scopes[-1][name] = ours
        self.write(f"{ours} = {value}")

    def _lambda(self, name: str) -> None:
        self.expect("(")
        parameters = []
        while not self.take(")"):
            while self.tokens[self.at + 1] not in (",", ")"):
                self.at += 1
            parameters.append(self.next())
            self.take(",")
        self.scopes[-1][name] = name
        self.taken.add(name)
        self.write(f"def {name}({', '.join(f'{each}: Any' for each in parameters)}) -> Any:")
        self.scopes.append({each: each for each in parameters})
        taken, self.taken = self.taken, {*self.taken, *parameters}
        self.body()
        self.taken = taken
        self.scopes.pop()
        self.expect(";")

    def _if(self, word: str = "if") -> None:
        self.expect("if", "(")
        if self.see("const", "auto", "*"):
            self._type()
            name = self.next()
            self.expect("=")
            self.scopes[-1][name] = self.declare(name)
            self.write(f"{self.scopes[-1][name]} = {self.expression()}")
            condition = self.scopes[-1][name]
        else:
            condition = self.expression()
        self.expect(")")
        self.write(f"{word} {condition}:")
        self._branch()
        if self.take("else"):
            if self.see("if"):
                self._if("elif")
            else:
                self.write("else:")
                self._branch()

    def _branch(self) -> None:
        if self.see("{"):
            self.body()
        else:
            self.depth += 1
            self.statement()
            self.depth -= 1

    def _for(self) -> None:
        self.expect("for", "(")
        self._type()
        name = self.next()
        if self.take(":"):  # over values of a key, which are held to the vocabulary where they are read
            self.expression()
            self.expect(")", "{")
            self._step_over()
            return
        ours = self.declare(name)
        self.expect("=")
        start = self.expression()
        self.expect(";", name, "<")
        end = self.expression()
        self.expect(";")
        assert self.take("++", name, ")") or self.take(name, "++", ")")
        self.write(f"for {ours} in range({end if start == '0' else f'{start}, {end}'}):")
        self.scopes.append({name: ours})
        self._branch()
        self.scopes.pop()
        self.taken.discard(ours)

    def _step_over(self) -> None:
        """The statements of a block that asks for no tensor."""
        depth = 1
        while depth:
            word = self.next()
            depth += (word == "{") - (word == "}")
            if word == "create_tensor":
                raise ValueError("a loop over values asks for tensors")

    def _switch(self) -> None:
        self.expect("switch", "(")
        subject = self.expression()
        self.expect(")", "{")
        word = "if"
        while not self.take("}"):
            cases = []
            while self.take("case"):
                cases.append(self.next())
                self.expect(":")
            if cases:
                test = f"== {cases[0]}" if len(cases) == 1 else f"in ({', '.join(cases)})"
                self.write(f"{word} {subject} {test}:")
            else:
                self.expect("default", ":")
                self.write("else:")
            self._branch()
            self.take("break", ";")
            word = "elif"

    def _try(self) -> None:
        self.expect("try")
        self.write("try:")
        self.body()
        self.expect("catch", "(", "std", "::", "runtime_error", "&", "e", ")")
        self.write("except CorruptModelError:")
        self.body()

    def _throw(self) -> None:
        self.expect("throw", "std", "::", "runtime_error", "(")
        self._refusal()

    def _refusal(self) -> None:
        """The words of an error: its first text, up to what is formatted into it."""
        depth, words = 1, []
        while depth:
            word = self.next()
            depth += (word == "(") - (word == ")")
            if word.startswith('"'):
                words.append(word[1:-1])
        self.expect(";")
        text = re.sub(r"%\w*|\s+", " ", "".join(words)).strip(" :")
        self.write(f"m.refuse({text!r})")

    def _return(self) -> None:
        self.expect("return")
        self.write("return" if self.see(";") else f"return {self.expression()}")
        self.expect(";")

    def _macro(self) -> None:
        word = self.next()
        self.expect("(")
        if word == "GGML_ASSERT":
            condition = self.expression()
            self.expect(")", ";")
            self.write(f"m.must({condition}, {condition!r})")
        elif word == "GGML_ABORT":
            self._refusal()
        else:
            depth = 1
            while depth:
                found = self.next()
                depth += (found == "(") - (found == ")")
            self.expect(";")

    def _expression_statement(self) -> None:
        left = self.expression()
        if self.take("="):
            self.write(f"{left} = {self.expression()}")
        elif self.take("|="):
            self.write(f"{left} |= {self.expression()}")
        elif not left.startswith("m.layers.resize("):
            self.write(left)
        self.expect(";")

    # -- expressions ----------------------------------------------------------------------------------

    def expression(self) -> str:
        condition = self.operators(0)
        if not self.take("?"):
            return condition
        yes = self.expression()
        self.expect(":")
        return f"({yes} if {condition} else {self.expression()})"

    def operators(self, level: int) -> str:
        if level == len(_LEVELS):
            return self.unary()
        left = self.operators(level + 1)
        while self.tokens[self.at] in _LEVELS[level]:
            operator = self.next()
            right = self.operators(level + 1)
            if operator == "&&" and right.startswith('"'):
                continue  # an assertion's text
            if right == "None":
                operator = {"==": "is", "!=": "is not"}[operator]
            if operator == "|" and right == "0":
                continue
            left = f"{left} {_WORDS.get(operator, operator)} {right}"
        return left

    def unary(self) -> str:
        if self.take("!"):
            return f"(not {self.unary()})"
        if self.take("-"):
            return f"-{self.unary()}"
        if self.see("(") and self.tokens[self.at + 1] in _TYPES:
            while self.next() != ")":
                pass
            return self.unary()
        return self.postfix(self.primary())

    def primary(self) -> str:
        word = self.next()
        if word == "(":
            inner = self.expression()
            self.expect(")")
            return f"({inner})"
        if word == "{":
            items = self.list("}")
            return f"({', '.join(items)}{',' * (len(items) == 1)})"
        if word[0].isdigit():
            return word.rstrip("uUlL")
        if word[0] == '"':
            return word
        if word in ("static_cast", "std"):
            return self._qualified(word)
        if word in _TYPES and self.take("("):
            inner = self.expression()
            self.expect(")")
            return f"({inner})"
        if word == "tn":
            self.expect("(")
            return self._name()
        if word in ("create_tensor", "create_tensor_qkv", "create_tensor_gate_up_exps"):
            self.expect("(")
            items = self.list(")")
            if items[0].startswith("unused "):
                items[0], items[2] = items[0].removeprefix("unused "), f"{items[2]} | SKIP"
            return f"m.{word.removeprefix('create_')}({', '.join(items)})"
        if word in _FLAGS:
            return _FLAGS[word]
        if word in self.engine.names:
            return repr(self.engine.names[word])
        if word in self.engine.architectures:
            return repr(self.engine.architectures[word])
        if word.isupper() and word not in _WORDS:
            return repr(word)
        return _WORDS.get(word) or self.resolve(word)

    def _qualified(self, word: str) -> str:
        if word == "static_cast":
            while self.next() != ">":
                pass
            self.expect("(")
            inner = self.expression()
            self.expect(")")
            return f"({inner})"
        self.expect("::")
        name = {"max": "max", "min": "min", "to_string": "str"}[self.next()]
        self.expect("(")
        return f"{name}({', '.join(self.list(')'))})"

    def _name(self) -> str:
        """LLM_TN: the name of a tensor, `(tensor, suffix, block)` with the last two left out or not."""
        tensor = self.tokens[self.at]
        parts = self.list(")")
        suffix = f".{parts.pop(1)[1:-1]}" if len(parts) > 1 and parts[1].startswith('"') else ""
        if tensor not in self.engine.names:
            return f"m.name({parts[0]} + {suffix!r}, {parts[1]})"
        name = self.engine.names[tensor] + suffix
        if len(parts) > 1:
            block = parts[1]
            name = name.replace("%d", block if block.isdigit() else f"{{{block}}}")
        text = f'f"{name}"' if "{" in name else f'"{name}"'
        return f"unused {text}" if tensor in self.engine.unused else text

    def list(self, end: str) -> list[str]:
        items = []
        while not self.take(end):
            items.append(self.expression())
            self.take(",")
        return items

    def postfix(self, left: str) -> str:
        while True:
            if self.take(".") or self.take("->"):
                left = self._member(left, self.next())
            elif self.take("["):
                inner = self.expression()
                self.expect("]")
                left = f"{left}[{inner}]"
            elif self.take("("):
                left = f"{left}({', '.join(self.list(')'))})"
            else:
                return left

    def _member(self, left: str, name: str) -> str:
        if name in ("str", "c_str"):
            self.expect("(", ")")
            return left
        if name in _PARTS:
            if self.take("."):
                return f"{left}.{name}_{self.next()}"
            return left
        if name == "tensor":
            return left
        if name == "ne":
            self.expect("[")
            index = self.expression()
            self.expect("]")
            return f"m.ne({left}, {index})"
        if left == "m.ml":
            return f"m.{name}"
        return f"{left}.{name}"


# -- the modules --------------------------------------------------------------------------------------------


def functions(text: str, pattern: str) -> Iterator[tuple[str, str]]:
    """Name and body of each function whose head matches; the pattern's first group is the name."""
    for match in re.finditer(pattern, text):
        depth, at = 1, match.end()
        while depth:
            depth += (text[at] == "{") - (text[at] == "}")
            at += 1
        yield match[1], text[match.end() : at - 1]


def module(source: str, found: dict[str, list[str]]) -> str:
    body = "\n\n\n".join(
        "\n".join([f"def {name}(m: Loader) -> None:", *(lines or ["    pass"])]) for name, lines in found.items()
    )
    used = [name for name in ("DUPLICATED", "OPTIONAL", "RESHAPE", "SKIP") if re.search(rf"\b{name}\b", body)]
    title = f"The tensors that {source} asks a file for. Generated by `tools/gen/llama_tensors.py`."
    lines = [f'"""{title}"""', "", "from __future__ import annotations", ""]
    if "Any" in body:
        lines += ["from typing import Any", ""]
    if "CorruptModelError" in body:
        lines += ["from autofit.errors import CorruptModelError", ""]
    lines += [f"from autofit_llama.loading.loader import {', '.join([*used, 'Loader'])}", "", ""]
    return "\n".join([*lines, body, ""])


def scales(tree: Path, engine: Engine) -> str:
    """The tensors that load_tensors asks for beside those of the architecture: scales of NVFP4 weights."""
    text = (tree / "src/llama-model.cpp").read_text("utf-8")
    start = text.index("for (int i = 0; i < n_layer_all; ++i) {", text.index("load_arch_tensors(ml);"))
    end = text.rindex("}", 0, text.index("ml.done_getting_tensors();"))
    reader = Reader(text[start:end], engine)
    reader.whole()
    return module("src/llama-model.cpp:load_tensors", {"load": reader.lines})


def modules(tree: Path) -> dict[str, str]:
    """File name and text of each generated module."""
    engine = Engine(tree)
    homes: dict[str, str] = {}
    made = {}
    for path in sorted((tree / "src/models").glob("*.cpp")):
        found = {}
        head = r"void llama_model_(\w+)::load_arch_tensors\([^)]*\)\s*\{"
        for name, body in functions(path.read_text("utf-8"), head):
            reader = Reader(body, engine)
            reader.whole()
            found[name] = reader.lines
            homes[f"llama_model_{name}"] = stem(path)
        if found:
            made[f"{stem(path)}.py"] = module(f"src/models/{path.name}", found)
    made[f"{SCALES}.py"] = scales(tree, engine)
    rows = []
    for constant, name in sorted(engine.architectures.items(), key=lambda pair: pair[1]):
        kind = engine.classes.get(constant)
        while kind and kind not in homes:
            kind = engine.bases.get(kind)
        if kind:
            rows.append(f'    "{name}": ("{homes[kind]}", "{kind.removeprefix("llama_model_")}"),\n')
    title = "Module and function that name an architecture's tensors. Generated by `tools/gen/llama_tensors.py`."
    made["index.py"] = f'"""{title}"""\n\nTENSORS: dict[str, tuple[str, str]] = {{\n{"".join(rows)}}}\n'
    made[TOKENIZERS] = tokenizers(tree)
    made[KEYS] = keys(tree, engine)
    made[GRAPHS] = graphs(tree, engine)
    return made


_PARAMETERS = r"\(\s*const llama_model & model,\s*const llm_graph_params & params\)"
_GRAPH = rf"llama_model_(\w+)::graph(?:<\w+>)?::graph{_PARAMETERS}[^{{]*\{{"
_LOCAL = re.compile(r"(?:const )?(?:u?int(?:32|64)_t|int|bool)\s+(\w+)\s*=\s*([^;{}]+);|GGML_ASSERT\(([^;]*)\);")


def graphs(tree: Path, engine: Engine) -> str:
    """By architecture a function that asserts what its graph does of hyperparameters alone."""
    asserted: dict[str, list[str]] = {}
    for path in sorted((tree / "src/models").glob("*.cpp")):
        for name, body in functions(path.read_text("utf-8"), _GRAPH):
            found = list(_asserted(body, engine))
            kept = asserted.setdefault(f"llama_model_{name}", found)
            asserted[f"llama_model_{name}"] = [each for each in kept if each in found]  # of each form of a graph
    rows: list[str] = []
    conditions: dict[str, int] = {}
    for constant, arch in sorted(engine.architectures.items(), key=lambda pair: pair[1]):
        kind = engine.classes.get(constant)
        while kind and kind not in asserted:
            kind = engine.graphs.get(kind) or engine.bases.get(kind)
        if kind and asserted[kind]:
            numbers = [str(conditions.setdefault(each, len(conditions))) for each in asserted[kind]]
            rows.append(f'    "{arch}": "{" ".join(numbers)}",')
    title = "What graphs assert of hyperparameters. Generated by `tools/gen/llama_tensors.py`."
    lines = [f'"""{title}"""', "", "from __future__ import annotations", "", "from collections.abc import Callable"]
    lines += ["from typing import Any", "", "from autofit_llama.loading.loader import Loader", ""]
    lines += ["CONDITIONS: tuple[tuple[str, Callable[[Loader], Any]], ...] = ("]
    for each in conditions:
        said = each.replace("m.hparams.", "").replace("m.", "").replace("()", "")
        lines.append(f'    ("{said}", lambda m: {each}),')
    return "\n".join([*lines, ")", "", "ASSERTED: dict[str, str] = {", *rows, "}", ""])


def _asserted(body: str, engine: Engine) -> Iterator[str]:
    """Assertions outside of all blocks that speak of hyperparameters and numbers made of them."""
    kept, depth = [], 0
    for char in re.sub(r"//[^\n]*|/\*.*?\*/", "", body, flags=re.DOTALL):
        depth -= char == "}"
        if not depth:
            kept.append(char)
        depth += char == "{"
    variables: dict[str, str] = {}
    for name, value, condition in _LOCAL.findall("".join(kept)):
        try:
            reader = Reader(f"{condition or value};", engine)
            reader.scopes[-1].update(variables)
            text = reader.expression()
            reader.expect(";")
        except (ValueError, KeyError, IndexError):
            continue
        if re.search(r"m\.(?!hparams\.\w)(?!n_\w+\b(?!\())|\[|n_seqs|LLAMA_", text):
            continue  # of a tensor, a batch or a context
        if name:
            variables[name] = text if re.fullmatch(r"[\w.()]+", text) else f"({text})"
        elif "m." in text:
            yield text


_SCALARS = {"uint32_t": "u32", "int32_t": "i32", "float": "f32", "bool": "bool", "string": "str"}


def keys(tree: Path, engine: Engine) -> str:
    """By architecture `key type` lines, with `?` behind the type of a key that may be missing."""
    names = dict(
        re.findall(r'\{\s*(LLM_KV_\w+),\s*"%s\.([^"]+)"\s*\}', (tree / "src/llama-arch.cpp").read_text("utf-8"))
    )
    fields = dict(_declared((tree / "src/llama-hparams.h").read_text("utf-8")))
    read = {}
    for path in sorted((tree / "src/models").glob("*.cpp")):
        for name, body in functions(
            path.read_text("utf-8"), r"void llama_model_(\w+)::load_arch_hparams\([^)]*\)\s*\{"
        ):
            read[f"llama_model_{name}"] = list(_scalars(_outermost(body), names, fields))
    rows = []
    for constant, name in sorted(engine.architectures.items(), key=lambda pair: pair[1]):
        kind = engine.classes.get(constant)
        while kind and kind not in read:
            kind = engine.bases.get(kind)
        if kind and read[kind]:
            rows.append(f'    "{name}": """{" ".join(read[kind])}""",')
    title = "Scalars that every file of an architecture is asked for. Generated by `tools/gen/llama_tensors.py`."
    return "\n".join([f'"""{title}"""', "", "ASKED: dict[str, str] = {", *rows, "}", ""])


def _declared(text: str) -> Iterator[tuple[str, str]]:
    for kind, name in re.findall(
        r"^\s*(?:std::)?(uint32_t|int32_t|float|bool|string)\s+(\w+)\s*(?:=[^;]*|\([^;]*)?;", text, re.MULTILINE
    ):
        yield name, _SCALARS[kind]


def _outermost(body: str) -> str:
    """What is done without a condition: outside of all braces, and up to the first return."""
    kept, depth = [], 0
    for char in re.sub(r"//[^\n]*|/\*.*?\*/", "", body, flags=re.DOTALL):
        depth -= char == "}"
        if not depth:
            kept.append(char)
        depth += char == "{"
    return "".join(kept).partition("return")[0]


def _scalars(body: str, names: dict[str, str], fields: dict[str, str]) -> Iterator[str]:
    local = dict(_declared(body))
    call = r"([^;{}]*?)ml\.get_key\((LLM_KV_\w+),\s*(hparams\.)?(\w+)(?:,\s*([\w.]+)\s*)?\)"
    for before, constant, of_hparams, name, required in re.findall(call, body):
        if re.search(r"\|\||&&|\?", before):
            continue  # asked for where something else is not there
        kind = (fields if of_hparams else local).get(name)
        if kind and constant in names:
            yield f"{names[constant]} {kind}{'' if required in ('', 'true') else '?'}"


def tokenizers(tree: Path) -> str:
    text = (tree / "src/llama-vocab.cpp").read_text("utf-8")
    _, body = next(functions(text, r"void (llama_vocab::impl::load)\([^)]*\)\s*\{"))
    lines = ['"""Tokenizers by name. Generated by `tools/gen/llama_tensors.py`."""', ""]
    for name, variable in (("TOKENIZERS", "tokenizer_model"), ("PRE_TOKENIZERS", "tokenizer_pre")):
        found = sorted(set(re.findall(rf'{variable} == "([^"]+)"', body)))
        lines += [f"{name} = frozenset(", *textwrap.wrap(" ".join(found), 110, initial_indent='    """')]
        lines += ['    """.split()', ")"]
    return "\n".join([*lines, ""])


def stem(path: Path) -> str:
    return path.stem.replace("-", "_")


def formatted(made: dict[str, str], folder: Path) -> dict[str, str]:
    """The modules as the linter wants them, without variables that nothing reads."""
    folder = folder / "tensors"
    folder.mkdir()
    for name, text in made.items():
        (folder / name).write_text(text, "utf-8")
    config = str(PLUGIN.parents[1] / "pyproject.toml")
    for words in (["check", "-s", "--select", "F841,F401,UP,SIM,RET", "--fix", "--unsafe-fixes"], ["format", "-s"]):
        subprocess.run([sys.executable, "-m", "ruff", *words, "--config", config, str(folder.parent)], check=False)
    return {name: (folder / name).read_text("utf-8") for name in made}


def main() -> int:
    tree = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        made = formatted(modules(tree), Path(folder))
    stale = {path.name for path in ROOM.glob("*.py")} - BY_HAND - set(made)
    if "--check" in sys.argv:
        odd = [
            name
            for name, text in made.items()
            if not (ROOM / name).exists() or (ROOM / name).read_text("utf-8") != text
        ]
        if odd or stale:
            print(
                f"not current: {', '.join(sorted([*odd, *stale]))}; run python tools/gen/llama_tensors.py TREE",
                file=sys.stderr,
            )
        return 1 if odd or stale else 0
    for name in stale:
        (ROOM / name).unlink()
    for name, text in made.items():
        (ROOM / name).write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
