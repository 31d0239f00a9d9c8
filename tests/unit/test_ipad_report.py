"""Records, manifest, card and report: what they say of a shrink, and that they come back as they went."""

from __future__ import annotations

import base64
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest

from pia.ipad import report
from pia.ipad.card import card, licence_of, write_card
from pia.ipad.manifest import manifest, removed, write_manifest
from pia.ipad.record import RoundRecord, ShrinkRecord
from pia.ipad.scores import Scores
from pia.ipad.selection import Selection
from pia.ipad.shape import Shape

SHAPES = [Shape(4, 2, 40, 24), Shape(4, 2, 32, 24), Shape(3, 2, 32, 20), Shape(3, 1, 24, 20)]


def make_record(num_rounds=3) -> ShrinkRecord:
    rng = np.random.default_rng(0)
    scores = Scores(rng.random(4), rng.random((4, 2)), rng.random((4, 40)), rng.random(24))
    whole = Selection.everything(SHAPES[0])
    items = [RoundRecord(0, SHAPES[0], whole, 1_200_000, 1_000_000, perplexity=3.0, tokens_per_second=100.0)]
    for number, shape in enumerate(SHAPES[1 : num_rounds + 1], start=1):
        curve = [(step, 2.0 / (step + number)) for step in range(0, 50, 10)]
        items.append(RoundRecord(
            number, shape, scores.select(shape), 1_200_000 - 200_000 * number, 1_000_000 - 180_000 * number,
            3.0 + 0.1 * number, 0.05 * number, 0.95 - 0.02 * number, 100.0 + 20 * number, curve, 12.5, 30_000_000,
        ))  # fmt: skip
    return ShrinkRecord(
        "org/<Model>", "llama", items[0], items[1:], scores, 'pia shrink "org/<Model>" --target 0.5', 3, "abc123",
        {"target": 0.5}, {"pia": "0.1.0"}, ["Round 4 was rolled back."],
    )  # fmt: skip


def test_a_record_comes_back_as_it_went():
    record = make_record()
    again = ShrinkRecord.from_json(json.loads(json.dumps(record.to_json())))
    assert replace(again, scores=None) == replace(record, scores=None)
    for name, values in vars(record.scores).items():
        np.testing.assert_array_equal(values, getattr(again.scores, name))
    assert ShrinkRecord.from_json(replace(record, scores=None).to_json()).scores is None
    assert record.last.number == 3 and replace(record, rounds=[]).last.number == 0


def test_the_manifest_lists_every_unit_once(tmp_path):
    record = make_record()
    path = write_manifest(record, tmp_path)
    content = json.loads(path.read_text())
    assert content == json.loads(json.dumps(manifest(record))) and list(tmp_path.iterdir()) == [path]
    cuts = [round_["cut"] for round_ in content["rounds"]]
    assert [len(cut["layers"]) for cut in cuts] == [0, 1, 0] and [len(cut["hidden"]) for cut in cuts] == [0, 4, 0]
    hidden = sorted([*content["kept"]["hidden"], *(channel for cut in cuts for channel in cut["hidden"])])
    assert hidden == list(range(24))
    for row, layer in enumerate(content["kept"]["layers"]):
        neurons = [*content["kept"]["ffn"][row], *(n for cut in cuts for n in cut["ffn"].get(str(layer), []))]
        assert sorted(neurons) == list(range(40))
    assert content["result"]["perplexity"] == record.last.perplexity
    assert content["scores"]["layers"]["values"] == record.scores.layers.tolist()


def test_units_of_a_layer_that_goes_are_not_listed_with_it():
    before = Selection((0, 2), ((0, 1), (0, 1)), ((1, 3), (0, 5)), (0, 1))
    after = Selection((2,), ((1,),), ((0, 5),), (1,))
    assert removed(before, after) == {
        "layers": [0], "kv_groups": {"2": [0]}, "ffn": {}, "hidden": [0], "experts": {},
    }  # fmt: skip


def test_the_card_is_one_the_hub_reads(tmp_path):
    from huggingface_hub import ModelCard

    path = write_card(make_record(), tmp_path, licence="apache-2.0", front_matter={"language": ["en"]})
    loaded = ModelCard.load(path)
    assert loaded.data.base_model == "org/<Model>" and loaded.data.license == "apache-2.0"
    assert loaded.data.language == ["en"] and loaded.data.pipeline_tag == "text-generation"
    assert "46.0%" in loaded.text and "(1.10 x)" in loaded.text and "Round 4 was rolled back." in loaded.text
    assert licence_of(tmp_path) == "apache-2.0"


def test_a_local_path_is_no_base_model_and_an_unknown_licence_is_said():
    text = card(replace(make_record(), model="/home/me/model"))
    assert "base_model" not in text and "licence is not known" in text and "# model, shrunk" in text


@pytest.mark.parametrize("content", ["", "no front matter\nlicense: mit", "---\ntags: x\n---\nlicense: mit"])
def test_no_licence_is_made_up(tmp_path, content):
    assert licence_of(tmp_path) is None
    (tmp_path / "README.md").write_text(content)
    assert licence_of(tmp_path) is None


def test_the_page_stands_alone_and_says_the_figures(tmp_path):
    pytest.importorskip("matplotlib")
    record = make_record()
    written = {path.name: path for path in report.write_report(record, tmp_path)}
    page = written["report.html"].read_text()
    images = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert len(images) == page.count("<img") == 4 and "http" not in re.sub(r"base64,[^\"]+", "", page)
    for image in images:
        assert ET.fromstring(base64.b64decode(image)).tag.endswith("svg")
    assert "org/<Model>" not in page and "org/&lt;Model&gt;" in page
    assert page.count("<tr>") == 5 + len(report._facts(record))
    text = written["report.md"].read_text()
    assert all(path.name in text for path in written.values() if path.suffix == ".png")
    assert "46.0%" in text and "46.0%" in page


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_the_same_record_gives_the_same_bytes(kind):
    pytest.importorskip("matplotlib")
    from pia.ipad.report_plots import draw_plots

    assert len({report._saved(draw_plots(make_record())["layers"], kind) for _ in range(2)}) == 1


def test_units_leave_in_the_round_that_cuts_them():
    from pia.ipad.report_plots import leaving_rounds

    record = make_record()
    rows = leaving_rounds(record, "ffn")
    assert rows.shape == (4, 40)
    for item in record.rounds:
        for layer in range(4):
            stays = item.selection.layers.index(layer) if layer in item.selection.layers else None
            kept = item.selection.ffn[stays] if stays is not None else ()
            gone = [unit for unit in range(40) if 0 < rows[layer, unit] <= item.number]
            assert sorted([*gone, *kept]) == list(range(40))
    assert (leaving_rounds(record, "hidden") == 2).sum() == 4


def test_without_matplotlib_there_are_tables_and_a_word(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "has_matplotlib", lambda: False)
    written = report.write_report(make_record(), tmp_path)
    assert {path.name for path in written} == {"report.html", "report.md"}
    for path in written:
        assert "pip install matplotlib" in path.read_text() and "round 3" in path.read_text()


def test_a_shrink_without_rounds_or_figures_is_reported_too(tmp_path):
    record = make_record()
    bare = replace(record, rounds=[], scores=None, notes=[], command="", original=replace(
        record.original, perplexity=None, tokens_per_second=None))  # fmt: skip
    report.write_report(bare, tmp_path)
    write_manifest(bare, tmp_path)
    write_card(bare, tmp_path)
    assert "No round was kept" in (tmp_path / "report.md").read_text()
