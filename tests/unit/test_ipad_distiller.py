"""A stage of distillation: it learns, in pieces as at once, and goes on after a kill as if nothing had been."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ipad_support import flat_weights, random_rows, small_llama
from pia.errors import ShrinkError
from pia.ipad.data import make_batch
from pia.ipad.distil_config import DistillConfig
from pia.ipad.distiller import Distiller, Stage
from pia.ipad.quality import measure
from pia.ipad.teacher import OnlineTeacher

ROWS = random_rows(60)
SMALL = dict(batch_tokens=200, warmup_steps=2, learning_rate=5e-3, precision="float32", checkpoint_every=3)


def online(model=None):
    return OnlineTeacher(small_llama(seed=1) if model is None else model)


def distilled(folder, *, num_steps=8, student=None, teacher=None, on_step=None, **changes):
    places = {name: changes.pop(name) for name in ("seed", "first_step", "hidden_channels") if name in changes}
    config = DistillConfig(**{**SMALL, **changes})
    return Distiller(
        small_llama(num_hidden_layers=1) if student is None else student,
        online() if teacher is None else teacher,
        ROWS, config, folder=folder, num_steps=num_steps, on_step=on_step,
        **{"seed": 5, **places},
    ).run()  # fmt: skip


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_student_comes_nearer_to_its_teacher(tmp_path, optimizer):
    infos = []
    teacher = small_llama(seed=1)
    kept = dict(teacher=teacher)
    before = measure(small_llama(num_hidden_layers=1), ROWS, **kept)
    student = distilled(tmp_path, num_steps=30, teacher=online(teacher), on_step=infos.append, optimizer=optimizer)
    after = measure(student, ROWS, **kept)
    assert after.kl < 0.7 * before.kl and after.agreement > before.agreement
    assert [info.step for info in infos] == list(range(30))
    assert infos[-1].kl < infos[0].kl and all(
        math.isclose(i.loss, 0.9 * i.kl + 0.1 * i.lm, rel_tol=1e-6) for i in infos
    )
    assert 100 < infos[0].tokens <= 200
    assert infos[1].learning_rate == pytest.approx(5e-3 * 29 / 30)
    assert (tmp_path / "checkpoint.pt").is_file() and all(p.grad is None for p in student.parameters())


def test_one_step_is_the_plain_calculation(tmp_path):
    """The update of AdamW by gradients of a loss written over whole logits."""
    student, teacher = small_llama(num_hidden_layers=1, tied=True), small_llama(seed=1)
    config = dict(batch_tokens=10**6, warmup_steps=0, grad_clip=1e9, hidden_weight=0.5, temperature=2.0)
    reference = small_llama(num_hidden_layers=1, tied=True)
    result = distilled(
        tmp_path, num_steps=1, student=student, teacher=online(teacher), micro_batch_tokens=200, **config
    )
    batch = make_batch(ROWS, range(len(ROWS)))
    weights = batch.weights[:, 1:].flatten()
    states = reference.model(batch.ids).last_hidden_state[:, :-1].flatten(0, 1)
    target_states = teacher.model(batch.ids).last_hidden_state[:, :-1].flatten(0, 1).detach()
    logits = reference.lm_head(states)
    p = (teacher.lm_head(target_states).detach() / 2).softmax(-1)
    kl = 4 * (p * (p.log() - (logits / 2).log_softmax(-1))).sum(-1)
    lm = torch.nn.functional.cross_entropy(logits, batch.ids[:, 1:].flatten(), reduction="none")
    cosine = torch.cosine_similarity(states, target_states, dim=-1)
    ((0.9 * kl + 0.1 * lm + 0.5 * (1 - cosine)) * weights).sum().div(weights.sum()).backward()
    for (name, ours), plain in zip(result.named_parameters(), reference.parameters(), strict=True):
        step = 5e-3 * plain.grad / (plain.grad.abs() + 1e-8)  # AdamW's first update
        strong = plain.grad.abs() > 1e-4  # of weaker ones rounding decides the sign
        torch.testing.assert_close(
            (plain.detach() - ours.detach())[strong], step[strong], rtol=2e-3, atol=1e-6, msg=name
        )


def test_micro_batches_change_rounding_alone(tmp_path):
    whole = distilled(tmp_path / "a", num_steps=4)
    parts = distilled(tmp_path / "b", num_steps=4, micro_batch_tokens=40, max_logits=300)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path):
    one, same, other = (
        flat_weights(distilled(tmp_path / name, seed=seed)) for name, seed in (("a", 5), ("b", 5), ("c", 6))
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_finished_stage_is_not_trained_again(tmp_path):
    first = flat_weights(distilled(tmp_path))
    infos = []
    again = distilled(tmp_path, on_step=infos.append)
    assert torch.equal(flat_weights(again), first) and not infos


def test_a_stage_that_was_stopped_goes_on(tmp_path):
    """The callback of a step that raises is as good as any death, at every step."""
    expected = flat_weights(distilled(tmp_path / "whole", optimizer="muon"))

    class StoppedError(Exception):
        pass

    for last in range(8):

        def stop(info, last=last):
            if info.step == last:
                raise StoppedError

        folder = tmp_path / str(last)
        with pytest.raises(StoppedError):
            distilled(folder, on_step=stop, optimizer="muon")
        assert torch.equal(flat_weights(distilled(folder, optimizer="muon")), expected)


def test_a_checkpoint_of_another_stage_is_refused(tmp_path):
    distilled(tmp_path, num_steps=2)
    for change in (dict(seed=6), dict(first_step=1), dict(temperature=2.0), dict(num_steps=3)):
        with pytest.raises(ShrinkError, match=r"checkpoint\.pt is of a stage with other settings"):
            distilled(tmp_path, **{"num_steps": 2, **change})
    (tmp_path / "checkpoint.pt").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(ShrinkError, match="is damaged"):
        distilled(tmp_path, num_steps=2)


def test_without_a_teacher_the_text_alone_is_learnt(tmp_path):
    infos = []
    config = DistillConfig(**SMALL, lm_weight=1.0)
    Distiller(
        small_llama(), None, ROWS, config, seed=0, folder=tmp_path, num_steps=2, on_step=infos.append,

    ).run()  # fmt: skip
    assert infos[0].kl == 0 and infos[0].loss == infos[0].lm > 0


def test_hidden_states_are_drawn_to_the_channels_that_stayed(tmp_path):
    teacher = small_llama(seed=1, hidden_size=64, head_dim=8)
    channels = list(range(0, 64, 2))
    student = small_llama(head_dim=8)
    kept = dict(teacher=online(teacher), lm_weight=1.0, hidden_weight=10.0, hidden_channels=channels)
    infos = []
    distilled(tmp_path, student=student, num_steps=40, on_step=infos.append, **kept)
    distances = [(info.loss - info.lm) / 10 for info in infos]
    assert sum(distances[-5:]) < 0.8 * sum(distances[:5]) <= 10


def test_a_loss_that_is_no_number_stops_with_a_way_out(tmp_path):
    student = small_llama()
    with torch.no_grad():
        student.lm_head.weight[3, 3] = math.nan
    with pytest.raises(
        ShrinkError,
        match=r"the loss is nan and its gradient's norm nan at step 40: .* a lower learning_rate \(it is 0.005\)",
    ):
        distilled(tmp_path, student=student, first_step=40)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_gradient_that_is_no_number_never_reaches_the_weights(tmp_path):
    student = small_llama()
    student.lm_head.weight.register_hook(lambda gradient: gradient * math.inf)
    before = flat_weights(student).clone()
    with pytest.raises(ShrinkError, match=r"gradient's norm (inf|nan) at step 0"):
        distilled(tmp_path, student=student)
    assert torch.equal(flat_weights(student), before)


def test_what_does_not_go_together_is_refused(tmp_path):
    with pytest.raises(ShrinkError, match="the student has 97 tokens and the teacher 50"):
        distilled(tmp_path, teacher=online(small_llama(vocab_size=50)))
    with pytest.raises(ShrinkError, match="39 tokens and the model 20 places"):
        distilled(tmp_path, student=small_llama(max_position_embeddings=20))
    with pytest.raises(ShrinkError, match="at least one step"):
        distilled(tmp_path, num_steps=0)
    with pytest.raises(ShrinkError, match="no teacher to distil from"):
        Distiller(small_llama(), None, ROWS, DistillConfig(), seed=0, folder=tmp_path, num_steps=1,)  # fmt: skip


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    distilled(tmp_path, num_steps=4, on_step=None)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    saved = torch.save

    def fails(content, file):
        saved(content, file)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError, match="No space left") as caught:
        distilled(tmp_path / "b", num_steps=4)
    assert "checkpoint.pt" in str(caught.value) and not list((tmp_path / "b").iterdir())
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_error_of_the_disk_passes_through_the_writer_of_archives(tmp_path, monkeypatch):
    import contextlib

    @contextlib.contextmanager
    def full(path):
        with open("/dev/full", "wb", buffering=0) as file:
            yield file

    monkeypatch.setattr("pia.ipad.stage_checkpoint.replacing", full)
    with pytest.raises(OSError, match=r"No space left on device.*checkpoint"):
        distilled(tmp_path, num_steps=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(divergence="kl"), "divergence is 'kl'; choose one of forward_kl, reverse_kl, jsd"),
        (dict(temperature=0), "temperature is 0; it must be a number above 0"),
        (dict(lm_weight=1.5), "lm_weight is 1.5; it must be a number from 0 to 1"),
        (dict(batch_tokens=2.5), "batch_tokens is 2.5; it must be a whole number from 1"),
        (dict(jsd_beta=1), "jsd_beta is 1; it must be a number between 0 and 1"),
        (dict(learning_rate=math.nan), "learning_rate is nan"),
        (dict(learning_rate="fast"), "learning_rate is 'fast'"),
        (dict(teacher="cache", hidden_weight=0.1), "a cached teacher has no hidden states"),
    ],
)  # fmt: skip
def test_settings_are_checked(change, message):
    with pytest.raises(ShrinkError) as caught:
        DistillConfig(**change)
    assert message in str(caught.value)


def test_learning_rates_of_stages_join():
    stages = [Stage(0, 10, 1.0, 0.5), Stage(10, 10, 0.5, 0.0)]
    factors = [stage.lr_factor(n, 0) for stage in stages for n in range(10)]
    assert factors == pytest.approx([1 - n / 20 for n in range(20)])
    assert [Stage(0, 10, 1, 1).lr_factor(n, 4) for n in range(5)] == [0.25, 0.5, 0.75, 1, 1]


def test_bfloat16_is_refused_where_it_is_slow(tmp_path, monkeypatch):
    monkeypatch.setattr("pia.ipad.arithmetic.has_fast_bfloat16", lambda device: False)
    with pytest.raises(ShrinkError, match="no fast bfloat16 here: leave precision at auto"):
        distilled(tmp_path, precision="bfloat16")


def test_bfloat16_trains_where_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("pia.ipad.arithmetic.has_fast_bfloat16", lambda device: True)
    infos = []
    student = distilled(tmp_path, num_steps=20, precision="bfloat16", on_step=infos.append)
    assert infos[-1].kl < infos[0].kl and student.dtype == torch.float32


def test_attention_is_changed_for_the_time_of_training_alone(tmp_path):
    teacher, student = small_llama(seed=1), small_llama()
    seen = []
    distilled(
        tmp_path, student=student, teacher=online(teacher), attn_implementation="eager", num_steps=1,
        on_step=lambda info: seen.append((student.config._attn_implementation, teacher.config._attn_implementation)),
    )  # fmt: skip
    assert seen == [("eager", "eager")]
    assert student.config._attn_implementation == teacher.config._attn_implementation == "sdpa"


def test_attention_that_a_model_does_not_have_is_refused(tmp_path):
    student = small_llama()
    with pytest.raises(ShrinkError, match="LlamaForCausalLM has no attention called fast here"):
        distilled(tmp_path, student=student, attn_implementation="fast")
    assert student.config._attn_implementation == "sdpa"


KILLED = dict(num_steps=40, optimizer="muon", checkpoint_every=1)
RUN = """
import json, sys, torch
sys.path[:0] = {paths!r}
torch.set_num_threads(1)
from pathlib import Path
from test_ipad_distiller import distilled
from ipad_support import flat_weights
folder = Path(sys.argv[1])
student = distilled(folder, **{settings!r}, on_step=lambda info: print(info.step, flush=True))
(folder / "bytes").write_bytes(flat_weights(student).numpy().tobytes())
"""


def killed_or_done(folder, steps_to_live):
    """Runs the stage in a process of its own, which is killed at some moment behind some steps."""
    tests = Path(__file__).parents[1]
    script = RUN.format(paths=[str(tests), str(tests / "unit")], settings=KILLED)
    process = subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True)
    for number, _ in enumerate(process.stdout):
        if number == steps_to_live:
            time.sleep(random.Random(steps_to_live).uniform(0, 0.02))
            os.kill(process.pid, signal.SIGKILL)
            break
    process.stdout.close()
    process.wait()
    return process.returncode


def test_kill_9_changes_no_byte(tmp_path):
    assert killed_or_done(tmp_path / "killed", 4) == -signal.SIGKILL
    infos = []
    resumed = distilled(tmp_path / "killed", on_step=infos.append, **KILLED)
    assert 0 < len(infos) < 40
    assert torch.equal(flat_weights(resumed), flat_weights(distilled(tmp_path / "whole", **KILLED)))


@pytest.mark.slow
def test_kill_9_changes_no_byte_at_many_moments(tmp_path):
    assert killed_or_done(tmp_path / "whole", 10**6) == 0
    for steps in (1, 3, 7, 12, 20, 31):
        folder = tmp_path / json.dumps(steps)
        assert killed_or_done(folder, steps) == -signal.SIGKILL
        assert killed_or_done(folder, 10**6) == 0
        assert (folder / "bytes").read_bytes() == (tmp_path / "whole/bytes").read_bytes()
