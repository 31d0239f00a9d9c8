"""A teacher's answers on disk: those of the teacher, whole shards or none, and never another one's."""

from __future__ import annotations

import pytest
import torch

from ipad_support import flat_weights, random_rows, small_llama
from pia.errors import ShrinkError
from pia.ipad import teacher_cache
from pia.ipad.data import Rows, make_batch
from pia.ipad.distil_config import DistillConfig
from pia.ipad.distiller import Distiller
from pia.ipad.teacher import OnlineTeacher
from pia.ipad.teacher_cache import TeacherCache
from pia.ipad.teacher_choice import teacher_for

ROWS = random_rows(40)
SETTINGS = dict(top_k=12, temperature=1.5, batch_tokens=150)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(teacher_cache, "_SHARD_PLACES", 200)


def online(**changes):
    return OnlineTeacher(small_llama(seed=1, **changes))


def build(folder, teacher=None, rows=ROWS, **changes):
    return TeacherCache.build(online() if teacher is None else teacher, rows, folder, **{**SETTINGS, **changes})


def test_answers_are_those_of_the_teacher(tmp_path):
    teacher, cache = online(), build(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    batch = make_batch(ROWS, [31, 4, 39, 0])
    expected, _ = teacher.targets(batch).compared(None, 0, len(batch.places), 1.5)
    found = cache.targets(batch)
    top = expected.topk(12)
    assert torch.equal(found.ids, top.indices)
    torch.testing.assert_close(found.log_probs, top.values, rtol=1e-3, atol=1e-3)
    rest = 1 - top.values.exp().sum(-1)
    torch.testing.assert_close(found.log_rest.exp(), rest, rtol=2e-3, atol=1e-5)


def test_ids_beyond_32767_are_read_back(tmp_path):
    torch.manual_seed(0)
    teacher = online(vocab_size=50_000, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                     num_key_value_heads=1)  # fmt: skip
    rows = Rows(ROWS[:4])
    found = build(tmp_path, teacher, rows).targets(make_batch(rows, [0, 1, 2, 3])).ids
    expected, _ = teacher.targets(make_batch(rows, [0, 1, 2, 3])).compared(None, 0, len(found), 1.5)
    assert torch.equal(found, expected.topk(12).indices) and found.max() > 32767


def test_what_is_there_is_not_asked_again(tmp_path):
    """As after a kill: some shards are there, and a file that was not finished."""
    shards = []
    build(tmp_path / "whole", on_shard=lambda done, num: shards.append((done, num)))

    class KilledError(Exception):
        pass

    def kill(done, _):
        if done == 2:
            raise KilledError

    with pytest.raises(KilledError):
        build(tmp_path / "killed", on_shard=kill)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*.safetensors")}
    assert len(kept) == 2 < len(shards) == shards[-1][1]
    build(tmp_path / "killed")
    for path in (tmp_path / "whole").iterdir():
        twin = tmp_path / "killed" / path.name
        assert twin.read_bytes() == path.read_bytes()
        assert twin.stat().st_mtime_ns == kept.get(path.name, twin.stat().st_mtime_ns)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("teacher", dict(teacher=OnlineTeacher(small_llama(seed=2)))),
        ("rows", dict(rows=random_rows(41))),
        ("temperature", dict(temperature=1.0)),
        ("top_k", dict(top_k=13)),
    ],
)
def test_another_ones_cache_is_refused(tmp_path, what, change):
    build(tmp_path)
    with pytest.raises(ShrinkError, match=rf"is another one's \({what} differ\): delete it, or use another folder"):
        build(tmp_path, **change)


def test_damaged_caches_are_named(tmp_path):
    cache = build(tmp_path)
    shard = tmp_path / teacher_cache.name(1)
    shard.write_bytes(shard.read_bytes()[:99])
    with pytest.raises(ShrinkError, match=r"teacher-00001\.safetensors is missing or damaged"):
        cache.targets(make_batch(ROWS, range(40)))
    (tmp_path / "teacher.json").write_text("{")
    with pytest.raises(ShrinkError, match=r"teacher\.json is damaged"):
        build(tmp_path)


def test_a_full_disk_keeps_the_shards_before_it(tmp_path, monkeypatch):
    written = []

    def write(content, real=teacher_cache.save):
        written.append(content)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        return real(content)

    monkeypatch.setattr(teacher_cache, "save", write)
    with pytest.raises(OSError, match="No space left"):
        build(tmp_path)
    assert sorted(path.name[:13] for path in tmp_path.iterdir()) == ["teacher-00000", "teacher-00001", "teacher.json"]


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    import os

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*teacher\.json'"):
        build(tmp_path)
    assert not list(tmp_path.iterdir())


def trained(folder, source, num_steps=6, **changes):
    infos = []
    config = DistillConfig(
        **{
            **dict(batch_tokens=200, warmup_steps=2, learning_rate=5e-3, temperature=1.5, precision="float32"),
            **changes,
        }
    )
    student = Distiller(
        small_llama(num_hidden_layers=1),
        source,
        ROWS,
        config,
        seed=5,
        folder=folder,
        num_steps=num_steps,
        on_step=infos.append,
    ).run()
    return flat_weights(student), infos


def test_a_student_of_a_large_cache_learns_what_one_of_the_teacher_does(tmp_path):
    live, expected = trained(tmp_path / "a", online())
    cached, found = trained(tmp_path / "b", build(tmp_path / "cache", top_k=999), teacher="cache")
    assert not torch.equal(live, cached)
    assert [info.loss for info in found] == pytest.approx([info.loss for info in expected], rel=2e-3)


@pytest.mark.parametrize("divergence", ["reverse_kl", "jsd"])
def test_other_divergences_of_few_tokens_fall_too(tmp_path, divergence):
    _, infos = trained(tmp_path / "a", build(tmp_path / "cache"), teacher="cache", divergence=divergence, num_steps=30)
    assert sum(i.kl for i in infos[-5:]) < 0.9 * sum(i.kl for i in infos[:5])


def test_a_cache_of_another_temperature_is_refused_in_training(tmp_path):
    with pytest.raises(ShrinkError, match=r"cache is of temperature 1\.5, not 2\.0"):
        trained(tmp_path / "a", build(tmp_path / "cache"), teacher="cache", temperature=2.0)


def test_the_teacher_is_the_one_that_is_asked_for(tmp_path):
    model = small_llama(seed=1)
    assert isinstance(teacher_for(DistillConfig(), model, ROWS, tmp_path), OnlineTeacher)
    assert not list(tmp_path.iterdir())
    cached = teacher_for(DistillConfig(teacher="cache", top_k=5, temperature=2.0), model, ROWS, tmp_path)
    assert cached.models == () and cached.fingerprint != OnlineTeacher(model).fingerprint
    targets = cached.targets(make_batch(ROWS, [0]))
    assert targets.ids.shape[1] == 5 and targets.temperature == 2.0
