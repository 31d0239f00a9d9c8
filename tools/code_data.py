"""Data for the code model: functions and pieces of the standard library's source, their tokenizer, and their rows."""

from __future__ import annotations

import ast
import hashlib
import random
import sysconfig
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from training_rows import Row, encode
from unlikelihood import repeat_part

PAD, END = "<|pad|>", "<|endoftext|>"
LEFT_OUT = {"__pycache__", "encodings", "ensurepip", "lib2to3", "pydoc_data", "site-packages", "test", "tests"}
"""Folders that are no library code, or tables for the most part."""
TOKEN_PATTERN = r"\n\s*| ?[_.]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|[^\S\n]+"
"""A line's end together with the next line's indentation; words, also behind a point or an underscore; digits."""


@dataclass(frozen=True)
class Function:
    """A function as HumanEval asks for one."""

    prompt: str
    """The imports that it needs, its signature, and its docstring if it has one; ends with a line's end."""
    body: str
    is_documented: bool


@dataclass(frozen=True)
class Corpus:
    """What is trained on, and what is held out."""

    functions: list[Function]
    sources: list[str]
    held_out: list[Function]


def standard_library() -> Path:
    """Folder of the running Python's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def source_files(folder: Path) -> list[Path]:
    """Python files below a folder, in order of their names, without tests and without tables.

    Raises:
        FileNotFoundError: there are none.
    """
    paths = sorted(path for path in folder.rglob("*.py") if not LEFT_OUT & set(path.relative_to(folder).parts))
    if not paths:
        raise FileNotFoundError(f"no Python sources below {folder}: give another folder with --data")
    return paths


def load_corpus(folder: Path, *, hold_out: int) -> Corpus:
    """Reads the sources; about one file in ``hold_out`` is held out, and always the same ones.

    A function that occurs several times is kept once, so that no held-out one was trained on word for word.
    """
    trained: dict[str, Function] = {}
    held_out: dict[str, Function] = {}
    sources: list[str] = []
    for path in source_files(folder):
        source, tree = parsed(path)
        if tree is None or is_table(source):
            continue
        name = path.relative_to(folder).as_posix()
        is_held_out = int(hashlib.sha256(name.encode()).hexdigest(), 16) % hold_out == 0
        if not is_held_out:
            sources.append(source)
        (held_out if is_held_out else trained).update((f.body, f) for f in functions(source, tree))
    unseen = [function for body, function in held_out.items() if body not in trained]
    return Corpus(list(trained.values()), sources, unseen)


def parsed(path: Path) -> tuple[str, ast.Module | None]:
    """A file's text and tree; none for a file that this Python cannot read."""
    try:
        with tokenize.open(path) as file:
            source = file.read()
        return source, ast.parse(source)
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return "", None


def is_table(source: str) -> bool:
    """Whether most lines are but strings, numbers and brackets."""
    lines = [line.strip() for line in source.splitlines() if line.strip()]
    return 2 * sum(line[0] in "\"'([{)]},-0123456789" for line in lines) > len(lines)


def functions(source: str, tree: ast.Module) -> Iterator[Function]:
    """Functions and methods of a module, moved to the left margin, without decorators."""
    lines = source.splitlines(keepends=True)
    for scope in [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))]:
        for node in scope.body:
            if isinstance(node, ast.FunctionDef) and (function := _function(lines, tree, node)) is not None:
                yield function


def _function(lines: Sequence[str], tree: ast.Module, node: ast.FunctionDef) -> Function | None:
    is_documented = ast.get_docstring(node, clean=False) is not None
    first = node.body[int(is_documented) :]
    if not first:
        return None  # nothing but its docstring
    head_end = node.body[0].end_lineno if is_documented else _last_header_line(lines, node)
    head = _dedented(lines[node.lineno - 1 : head_end], node.col_offset)
    body = _dedented(lines[head_end : node.end_lineno], node.col_offset)
    if not head or not body.strip():
        return None
    return Function(_imports(tree, node) + head, body.lstrip("\n"), is_documented)


def _last_header_line(lines: Sequence[str], node: ast.FunctionDef) -> int:
    """Number of the line where a signature ends."""
    line = node.body[0].lineno - 1
    while line > node.lineno and not lines[line - 1].split("#")[0].rstrip().endswith(":"):
        line -= 1
    return line


def _dedented(lines: Sequence[str], indent: int) -> str:
    """Lines moved left; nothing where a text inside a string stands further left than the code."""
    if any(line[:indent].strip() for line in lines):
        return ""
    return "".join(line[indent:] if line.strip() else "\n" for line in lines)


def _imports(tree: ast.Module, node: ast.FunctionDef) -> str:
    """The module's imports that a function makes use of, and two blank lines."""
    used = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
    needed: list[str] = []
    for statement in tree.body:
        if not isinstance(statement, ast.Import | ast.ImportFrom):
            continue
        names = [alias for alias in statement.names if (alias.asname or alias.name.split(".")[0]) in used]
        if names:
            statement = ast.copy_location(type(statement)(**{**vars(statement), "names": names}), statement)
            needed.append(ast.unparse(statement) + "\n")
    return "".join(needed) + "\n\n" if needed else ""


def train_tokenizer(corpus: Corpus, vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer in which a line's end and indentation are one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(TOKEN_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for f in corpus.functions for text in (f.prompt, f.body)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


@dataclass(frozen=True)
class FunctionRow(Row):
    """The row of a function: prompt, body, end."""

    num_prompt: int
    is_documented: bool

    @property
    def prompt(self) -> list[int]:
        """Ids that the model is given."""
        return self.ids[: self.num_prompt]


class CodeRows:
    """Turns functions and sources into rows of at most ``max_length`` tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, prompt_weight: float, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.prompt_weight = prompt_weight
        self.max_length = max_length
        self.line_ends = {i for i in range(len(tokenizer)) if tokenizer.decode([i]).startswith("\n")}

    def functions(self, functions: Sequence[Function]) -> list[FunctionRow]:
        """Rows of the functions that are not too long: the prompt with its own weight, body and end with 1.

        Prompt and body are encoded apart, as they are when a model is asked: the prompt's last token is a bare end
        of line, and the body's first one the indentation.
        """
        prompts = encode(self.tokenizer, (f.prompt for f in functions))
        bodies = encode(self.tokenizer, (f.body for f in functions))
        rows = [self._row(f, *ids) for f, *ids in zip(functions, prompts, bodies, strict=True)]
        return [row for row in rows if len(row.ids) <= self.max_length]

    def _row(self, function: Function, prompt: list[int], body: list[int]) -> FunctionRow:
        answer = [*body, self.tokenizer.eos_token_id]
        weights = [self.prompt_weight] * len(prompt) + [1.0] * len(answer)
        return FunctionRow(prompt + answer, weights, len(prompt), function.is_documented)

    def pieces(self, sources: Sequence[str]) -> list[Row]:
        """Sources cut into rows of full length."""
        size = self.max_length
        ids = encode(self.tokenizer, sources)
        pieces = [source[at : at + size] for source in ids for at in range(0, len(source) - size + 1, size)]
        return [Row(piece, [1.0] * size) for piece in pieces]

    def repeating(self, row: FunctionRow, *, penalty: float, rng: random.Random) -> Row:
        """A function's row in which a line of the body comes again: the copies are penalised, the rest is taught."""
        lines = self._lines(row.ids[row.num_prompt :])
        answer, weights = repeat_part(lines, penalty=penalty, rng=rng)
        return Row(row.prompt + answer, row.weights[: row.num_prompt] + weights)

    def _lines(self, ids: Sequence[int]) -> list[list[int]]:
        """Ids cut before the tokens that begin with a line's end."""
        lines: list[list[int]] = [[]]
        for i in ids:
            if i in self.line_ends:
                lines.append([])
            lines[-1].append(i)
        return lines


def epoch_rows(functions: Sequence[Row], pieces: Sequence[Row], *, piece_share: float, rng: random.Random) -> list[Row]:
    """Rows of one epoch: every function, and some of the pieces."""
    return [*functions, *rng.sample(pieces, round(piece_share * len(pieces)))]


def part_of(rows: Sequence[FunctionRow], index: int, num_parts: int, rng: random.Random) -> list[FunctionRow]:
    """One of the parts into which the rows are dealt at random; the same ``rng`` deals the same parts."""
    return rng.sample(rows, len(rows))[index::num_parts]
