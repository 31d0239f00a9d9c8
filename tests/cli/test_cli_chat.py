"""`pia chat`: a conversation from a pipe, its commands, and a context that fills up."""

from __future__ import annotations

import io

import pytest
from cli_support import QUESTION, assert_one_line_error

from pia.drafting.cache import DraftCache


@pytest.fixture
def say(run_here, monkeypatch, small_cache):
    """Runs `pia chat demo` in this process over what the user types."""

    def run(typed, *options):
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        return run_here("chat", "demo", "--cache", small_cache, "--budget", "8", *options)

    return run


def test_a_piped_conversation(pia, tmp_path, small_cache):
    typed = f"{QUESTION}\n/stats\n/nonsense\n\n{QUESTION}\n/reset\n{QUESTION}\n/exit\nnever read\n"
    line = ["chat", "demo", "--cache", small_cache, "--save-cache", "later.pia", "--max-new-tokens", "40"]
    result = pia(*line, stdin=typed)
    assert result.returncode == 0, result.stderr
    assert "Stats(" in result.stderr
    assert "no command /nonsense" in result.stderr
    assert "forgotten" in result.stderr
    assert "\x1b" not in result.stdout + result.stderr
    assert "never read" not in result.stdout
    assert DraftCache.load(tmp_path / "later.pia").num_tokens > DraftCache.load(small_cache).num_tokens


def test_after_reset_the_same_question_has_the_same_answer(say):
    once = say(f"{QUESTION}\n", "--max-new-tokens", "32").stdout
    twice = say(f"{QUESTION}\n/reset\n{QUESTION}\n", "--max-new-tokens", "32").stdout
    assert once.strip()
    assert twice == once * 2


def test_the_end_of_input_ends_it(say):
    assert say("").returncode == 0


def test_a_conversation_that_outgrows_the_context_drops_its_oldest_turns(say):
    long_message = "How many apples are there? " * 60
    result = say(f"{long_message}\n" * 5, "--max-new-tokens", "4")
    assert result.returncode == 0
    assert "outgrew the context" in result.stderr
    assert len(result.stdout.splitlines()) >= 5


def test_a_message_too_long_is_refused_and_taken_back(say):
    result = say(f"{'many words ' * 2000}\n{QUESTION}\n", "--max-new-tokens", "8")
    assert result.returncode == 0
    assert "shorten it" in result.stderr
    assert len(result.stdout.splitlines()) == 1


def test_a_folder_where_the_cache_cannot_be_saved(say):
    assert_one_line_error(say("/exit\n", "--save-cache", "nowhere/later.pia"), "can't save")


def test_ctrl_c_stops_the_answer_and_keeps_the_conversation(say, monkeypatch):
    import pia.text

    real = pia.text.stream

    def stream(*args, **kwargs):
        for number, step in enumerate(real(*args, **kwargs)):
            if number == 3 and not interrupted:
                interrupted.append(True)
                raise KeyboardInterrupt
            yield step

    interrupted: list[bool] = []
    monkeypatch.setattr(pia.text, "stream", stream)
    result = say(f"{QUESTION}\n{QUESTION}\n", "--max-new-tokens", "16")
    assert result.returncode == 0
    assert len(result.stdout.strip().splitlines()) >= 2
