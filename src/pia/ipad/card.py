"""The model card of a shrunk model: a README.md as the Hub reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pia.drafting.atomic_file import replacing
from pia.ipad.figures import change, count_text, number, percent, round_rows, table
from pia.ipad.manifest import FILE_NAME
from pia.ipad.record import ShrinkRecord

_LIMITS = """\
* Quality was measured on held-out rows of the data that it was distilled on. On other text it may have lost more than
  the figures say; measure it on yours.
* It inherits what the original model gets wrong, and the original's terms of use."""
_USAGE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")
```"""


def write_card(record: ShrinkRecord, folder: Path, **options: Any) -> Path:
    """Writes README.md into a folder, whole or not at all; options as for `card`.

    Raises:
        OSError: it can't be written; an old one is left as it was.
    """
    path = Path(folder) / "README.md"
    with replacing(path) as file:
        file.write(card(record, **options).encode())
    return path


def card(
    record: ShrinkRecord, *, name: str = "", licence: str | None = None, front_matter: Mapping[str, Any] | None = None
) -> str:
    """The text of a model card.

    Args:
        record: of the shrink.
        name: of the new model; made from the original's where empty.
        licence: of the original as the Hub names it, if known; see `licence_of`.
        front_matter: further fields.
    """
    original = Path(record.model).name or record.model
    name = name or f"{original}, shrunk"
    fields = {**_front_matter(record, licence), **(front_matter or {})}
    head = "\n".join(f"{key}: {json.dumps(value)}" for key, value in fields.items())  # JSON is YAML
    blocks = [
        f"---\n{head}\n---",
        f"# {name}",
        _about(record, original),
        "## Sizes and quality",
        _figures(record),
        "## How it was made",
        _how(record),
        "## Use",
        _USAGE,
        "## Limits",
        _LIMITS if licence else f"{_LIMITS}\n* The original's licence is not known here: look it up before sharing.",
    ]
    return "\n\n".join(blocks) + "\n"


def licence_of(folder: Path) -> str | None:
    """The licence that a model's own card names, if it has a card that does."""
    try:
        lines = (Path(folder) / "README.md").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    if not lines or lines[0].strip() != "---":
        return None
    for line in lines[1:]:
        key, _, value = line.partition(":")
        if line.strip() == "---":
            return None
        if key.strip() == "license":
            return value.split(" #")[0].strip().strip("\"'") or None
    return None


def _front_matter(record: ShrinkRecord, licence: str | None) -> dict[str, Any]:
    known = {"license": licence} if licence else {}
    is_name = not Path(record.model).is_absolute() and record.model.count("/") <= 1 and "\\" not in record.model
    base = {"base_model": record.model, "base_model_relation": "finetune"} if is_name else {}
    tags = ["pruned", "distilled", "pia"]
    return {**known, **base, "library_name": "transformers", "pipeline_tag": "text-generation", "tags": tags}


def _about(record: ShrinkRecord, original: str) -> str:
    before, after = record.original, record.last
    share = percent(after.non_embedding / before.non_embedding)
    return (
        f"A smaller `{record.family}` model: {share} of the non-embedding parameters of `{original}`, by structured "
        f"pruning in {len(record.rounds)} round{'' if len(record.rounds) == 1 else 's'}, each followed by distillation "
        "from the original. It is a stock checkpoint: it loads without any code beside Transformers."
    )


def _figures(record: ShrinkRecord) -> str:
    before, after = record.original, record.last
    rows = [
        ["parameters", count_text(before.parameters), count_text(after.parameters)],
        ["non-embedding parameters", count_text(before.non_embedding), count_text(after.non_embedding)],
        ["layers", str(before.shape.num_layers), str(after.shape.num_layers)],
        ["KV heads a layer", str(before.shape.num_kv_heads), str(after.shape.num_kv_heads)],
        ["FFN size", str(before.shape.ffn_size), str(after.shape.ffn_size)],
        ["hidden size", str(before.shape.hidden_size), str(after.shape.hidden_size)],
        ["held-out perplexity", number(before.perplexity),
         f"{number(after.perplexity)} {change(after.perplexity, before.perplexity)}".strip()],
        ["KL from the original, nats a token", "", number(after.kl)],
        ["same likeliest token as the original", "", percent(after.agreement)],
        ["tokens/s, plain decoding", number(before.tokens_per_second),
         f"{number(after.tokens_per_second)} {change(after.tokens_per_second, before.tokens_per_second)}".strip()],
    ]  # fmt: skip
    return table(["", "original", "this model"], [row for row in rows if any(row[1:])])


def _how(record: ShrinkRecord) -> str:
    blocks = [table(*round_rows(record))]
    if record.command:
        blocks.append(f"```sh\n{record.command}\n```")
    facts = [f"seed {record.seed}", *(f"{name} {version}" for name, version in record.versions.items())]
    facts += [f"data {record.data_fingerprint}"] if record.data_fingerprint else []
    blocks += [", ".join(facts) + ".", *(f"* {note}" for note in record.notes)]
    blocks.append(f"Which units of the original stayed, and all figures: `{FILE_NAME}`.")
    return "\n\n".join(blocks)
