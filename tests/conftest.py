"""Shared fixtures: tiny models with random weights, made once a session."""

from __future__ import annotations

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["PIA_PROGRAMS"] = os.path.join(tempfile.gettempdir(), "pia-tests-without-programs")

import pytest
import torch
import transformers

from toys import FAMILIES, tiny_model

transformers.logging.set_verbosity_error()
torch.set_num_threads(1)  # tiny models: a second thread costs more than it brings


def pytest_addoption(parser):
    parser.addoption("--model", metavar="PATH_OR_NAME", help="with tests/models: check this model, and no other")


@pytest.fixture(scope="session", params=sorted(FAMILIES))
def family(request):
    """A tiny float32 model of each family that verifies trees."""
    return tiny_model(request.param)


@pytest.fixture(scope="session")
def llama():
    """A tiny float32 Llama."""
    return tiny_model("llama")


@pytest.fixture(scope="session")
def demo():
    """The embedded model and its tokenizer."""
    from pia.assets import load_demo

    return load_demo()
