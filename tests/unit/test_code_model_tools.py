"""Training a code model: its data, its tokenizer, and a run of two steps on tiny files."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).parents[2] / "tools"

FIRST = '''\
"""A module."""
import os
import sys as system
from math import ceil, floor


def half(number):
    """Half of it, rounded up.

    >>> half(3)
    2
    """

    # not rounded down
    return ceil(number / 2)


class Folder:
    name = "x"

    @property
    def path(
        self,
        deep: bool = True,  # always:
    ) -> str:
        # a comment
        if deep:

            return os.path.join(self.name, "y")
        return self.name

    def text(self):
        return """
no indentation
"""

    def nothing(self):
        """Only this."""

    def short(self): return 1
'''
SECOND = '''\
def half(number):
    """Half of it, rounded up."""
    return ceil(number / 2)


def twice(number):
    total = 0
    for _ in range(2):
        total += number
    return total
'''


@pytest.fixture(autouse=True)
def tools(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))


@pytest.fixture
def sources(tmp_path):
    """Two files of which one is held out where every second one is, and others that are left out."""
    folder = tmp_path / "lib"
    for name, content in {
        "first.py": FIRST,
        "package/second.py": SECOND,
        "table.py": "rows = [\n" + "    (1, 2),\n" * 20 + "]\n\n\ndef unseen():\n    return rows\n",
        "broken.py": "def broken(:\n",
        "test/check.py": "def tested():\n    return 0\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


HALF = (
    'from math import ceil\n\n\ndef half(number):\n    """Half of it, rounded up.\n\n    >>> half(3)\n    2\n    """\n',
    "    # not rounded down\n    return ceil(number / 2)\n",
)
PATH = (
    "import os\n\n\ndef path(\n    self,\n    deep: bool = True,  # always:\n) -> str:\n",
    '    # a comment\n    if deep:\n\n        return os.path.join(self.name, "y")\n    return self.name\n',
)
OTHER_HALF = ('def half(number):\n    """Half of it, rounded up."""\n', "    return ceil(number / 2)\n")
TWICE = (
    "def twice(number):\n",
    "    total = 0\n    for _ in range(2):\n        total += number\n    return total\n",
)
NONE_HELD_OUT = 10**9


def pairs(functions):
    return [(f.prompt, f.body) for f in functions]


def test_functions_become_prompts_and_bodies(sources):
    from code_data import load_corpus

    corpus = load_corpus(sources, hold_out=NONE_HELD_OUT)
    assert pairs(corpus.functions) == [HALF, PATH, OTHER_HALF, TWICE]
    assert corpus.sources == [FIRST, SECOND]
    assert corpus.held_out == []
    corpus = load_corpus(sources, hold_out=3)
    assert pairs(corpus.functions) == [OTHER_HALF, TWICE]
    assert pairs(corpus.held_out) == [HALF, PATH]
    assert corpus.sources == [SECOND]


def test_what_was_trained_on_is_not_held_out(sources):
    from code_data import load_corpus

    (sources / "package/second.py").write_text(SECOND + FIRST.split("\n\n\n")[1] + "\n")
    assert pairs(load_corpus(sources, hold_out=3).held_out) == [PATH]


def test_the_standard_library_is_found():
    from code_data import source_files, standard_library

    names = {path.relative_to(standard_library()).as_posix() for path in source_files(standard_library())}
    assert {"heapq.py", "json/decoder.py"} <= names
    assert not any(name.startswith(("test/", "encodings/", "site-packages/")) for name in names)


def test_the_tokenizer_gives_back_what_it_reads_and_keeps_indentation_whole(sources):
    from code_data import load_corpus, train_tokenizer
    from training_rows import encode

    tokenizer = train_tokenizer(load_corpus(sources, hold_out=NONE_HELD_OUT), 400)
    texts = [FIRST, SECOND, "\tif x:\r\n\n  y = '\u00fc\u6f22' \f\n", "    return 1", "a.b_c(self._d)  # 12"]
    for text, ids in zip(texts, encode(tokenizer, texts), strict=True):
        assert tokenizer.decode(ids) == text
    (ids,) = encode(tokenizer, ["def twice(number):\n    total = 12\n"])
    pieces = [tokenizer.decode([i]) for i in ids]
    assert pieces == ["def", " twice", "(", "number", "):", "\n    ", "total", " =", " ", "1", "2", "\n"]


def test_rows_of_functions_and_pieces(sources):
    from code_data import CodeRows, epoch_rows, load_corpus, train_tokenizer

    corpus = load_corpus(sources, hold_out=NONE_HELD_OUT)
    tokenizer = train_tokenizer(corpus, 400)
    every = CodeRows(tokenizer, prompt_weight=0.25, max_length=1000).functions(corpus.functions)
    size = len(every[1].ids) - 1  # too short for PATH, the longest
    rows = CodeRows(tokenizer, prompt_weight=0.25, max_length=size)
    functions = rows.functions(corpus.functions)
    assert functions == [every[0], every[2], every[3]]
    for row, (prompt, body) in zip(functions, [HALF, OTHER_HALF, TWICE], strict=True):
        num_prompt = row.weights.count(0.25)
        assert row.weights == [0.25] * num_prompt + [1.0] * (len(row.ids) - num_prompt)
        assert tokenizer.decode(row.ids[:num_prompt]) == prompt
        assert tokenizer.decode(row.ids[num_prompt:]) == body + tokenizer.eos_token
    pieces = rows.pieces(corpus.sources)
    assert {len(row.ids) for row in pieces} == {size}
    assert FIRST.startswith(tokenizer.decode(pieces[0].ids))
    few = epoch_rows(functions, pieces, piece_share=1 / len(pieces), rng=random.Random(0))
    assert few[:3] == functions and len(few) == 4 and few[3] in pieces


def test_a_line_that_comes_again_is_penalised(sources):
    from code_data import CodeRows, Function, load_corpus, train_tokenizer

    tokenizer = train_tokenizer(load_corpus(sources, hold_out=NONE_HELD_OUT), 400)
    rows = CodeRows(tokenizer, prompt_weight=0.25, max_length=1000)
    (row,) = rows.functions([Function(*TWICE, is_documented=False)])
    repeated = rows.repeating(row, penalty=2.0, rng=random.Random(1))
    copies = [i for i, weight in zip(repeated.ids, repeated.weights, strict=True) if weight == -2.0]
    taught = [i for i, weight in zip(repeated.ids, repeated.weights, strict=True) if weight > 0]
    assert taught == row.ids
    text = tokenizer.decode(copies)
    line = text[: len(text) // (text.count(text[:6]) or 1)]
    assert line * (len(text) // len(line)) == text
    assert line in "\n" + TWICE[1] and len(line) > 6


def test_late_epochs_deal_the_functions_and_learn_from_own_answers(sources, tmp_path):
    from train_code_model import CodeTraining, parse_args

    line = arguments(sources, tmp_path / "run", "--hold-out", NONE_HELD_OUT, "--own-threshold", "-1")
    training = CodeTraining(parse_args([*line, "--late-parts", "2", "--own-answers", "2", "--own-copies", "1"]))
    parts = [training.late_part(epoch) for epoch in (1, 2)]
    assert sorted(row.ids for part in parts for row in part) == sorted(row.ids for row in training.functions)
    batches = training.epoch_batches(1)
    assert batches == training.epoch_batches(1)
    rows = [row for batch in batches for row in batch]
    own = json.loads((tmp_path / "run/own_answers_1.json").read_text())
    assert len(own) == 2
    for prompt, answer in own:
        (row,) = [row for row in rows if row.ids == prompt + answer]
        assert set(row.weights) <= {0.0, -1.0}
    assert all(row in rows for row in parts[0])


def arguments(sources, run_dir, *more):
    shape = "--hidden-size 32 --layers 1 --heads 2 --ffn-size 32 --vocab-size 400 --max-length 160 --batch-tokens 200"
    run = "--steps 2 --hold-out 3 --warmup-steps 1 --threads 1 --checkpoint-every 1"
    return [*shape.split(), *run.split(), "--data", str(sources), "--run-dir", str(run_dir), *map(str, more)]


@pytest.fixture
def trained(sources, tmp_path):
    import train_code_model

    assert train_code_model.main(arguments(sources, tmp_path / "run", "--export", tmp_path / "model")) == 0
    return tmp_path / "model"


def test_two_steps_make_a_stock_model(trained, sources, tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import eval_code_model

    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    assert model.config.vocab_size == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == tokenizer("<|endoftext|>")["input_ids"][0]
    assert tokenizer.chat_template is None
    card = (trained / "README.md").read_text()
    assert "your own" in card and "PSF" not in card
    assert "2 functions and methods" in card and "2 steps" in card and "nan" not in card
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt, _ in (HALF, TWICE)))
    assert eval_code_model.main([str(trained), "--prompts", str(prompts), "--max-new-tokens", "5"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["num_prompts"] == 2 and 2 <= figures["num_tokens"] <= 10


def test_a_run_that_was_stopped_ends_the_same(trained, sources, tmp_path):
    import train_code_model

    line = arguments(sources, tmp_path / "again", "--export", tmp_path / "other")
    assert train_code_model.main([*line, "--stop-at-step", "1"]) == 0
    assert not (tmp_path / "other").exists()
    assert train_code_model.main(line) == 0
    for name in ("model.safetensors", "tokenizer.json"):
        assert (trained / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--data", "nowhere"], "no Python sources below nowhere"),
        (["--max-length", "3"], "raise --max-length"),
        (["--export-only"], "no checkpoint"),
    ],
)
def test_what_cannot_be_trained_is_said(sources, tmp_path, more, part):
    import train_code_model

    with pytest.raises(SystemExit, match=part):
        train_code_model.main([*arguments(sources, tmp_path / "run"), *more])


def test_answers_are_counted():
    from eval_code_model import figures_of, is_python

    assert is_python("def f():\n    return 1\n") and not is_python("def f():\n    return (")
    prompts = ["def f():\n"] * 3
    texts = ["    return 1\n", "    return 1\n", "    return ("]
    figures = figures_of(prompts, [[5, 9], [5, 9], [7, 7]], texts, end=9, max_new_tokens=2)
    assert (figures.num_ended, figures.num_parsed, figures.num_distinct, figures.max_same) == (2, 2, 2, 2)
    assert figures.num_tokens == 6


def test_float_muon_follows_the_rule_of_torch():
    """Torch's rounds to bfloat16 on the way, so the two only agree about."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this PyTorch has no Muon")
    from pia.ipad.float_muon import FloatMuon

    torch.manual_seed(0)
    start = [torch.randn(24, 40), torch.randn(40, 24)]
    weights = [[torch.nn.Parameter(w.clone()) for w in start] for _ in range(2)]
    ours = FloatMuon(weights[0], lr=0.01, weight_decay=0.1)
    theirs = torch.optim.Muon(weights[1], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw", nesterov=True)
    for _ in range(4):
        for mine, other in zip(*weights, strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        ours.step()
        theirs.step()
    for mine, other, before in zip(*weights, start, strict=True):
        moved = (mine - before).norm()
        assert (mine - other).norm() < 0.05 * moved


def test_orthogonal_matrices_have_singular_values_near_one():
    from pia.ipad.float_muon import orthogonal

    torch.manual_seed(0)
    for shape in ((16, 48), (48, 16)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert values.min() > 0.5 and values.max() < 1.5
