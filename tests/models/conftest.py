"""`pytest tests/models --model PATH_OR_NAME` checks a user's own model; without `--model` the zoo is checked."""

from __future__ import annotations

from pathlib import Path

import pytest

_ROW = pytest.StashKey[dict]()


def pytest_collection_modifyitems(config, items):
    """Own model or zoo, not both."""
    is_own = bool(config.getoption("--model"))
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    left_out = [item for item in here if (item.path.name == "test_own_model.py") != is_own]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


@pytest.fixture(scope="session")
def own_model(request):
    """The model of `--model`, in float32, where equal means equal."""
    from pia.cli.loading import load_weights
    from pia.models.verdict import examine

    model = load_weights(request.config.getoption("--model"), "float32")
    request.config.stash[_ROW] = examine(model)
    return model


@pytest.fixture
def own_row(own_model, request):
    """What PIA says of the model."""
    return request.config.stash[_ROW]


def pytest_terminal_summary(terminalreporter, config):
    """The model's row and the verdict."""
    row = config.stash.get(_ROW, None)
    if row is None:
        return
    failed = [report.nodeid.rpartition("::")[2] for report in terminalreporter.stats.get("failed", [])]
    failed += [report.nodeid.rpartition("::")[2] for report in terminalreporter.stats.get("error", [])]
    terminalreporter.section(f"capability of {config.getoption('--model')}")
    for name in ("architecture", "mode", "masks", "can_batch", "reason", "positions", "like"):
        terminalreporter.line(f"{name:13}{row[name]}")
    verdict = f"NOT lossless, please report it: {', '.join(failed)} failed" if failed else row["verdict"]
    terminalreporter.line(f"verdict      {verdict}", red=bool(failed), green=not failed)
