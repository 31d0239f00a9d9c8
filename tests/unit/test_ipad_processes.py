"""Several processes that train together take the steps of one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pia.errors import ShrinkError
from pia.ipad.processes import Processes

RUN = """
import sys, torch
sys.path[:0] = {paths!r}
torch.set_num_threads(1)
from pathlib import Path
import numpy as np
from test_ipad_distiller import distilled
folder = Path(sys.argv[1])
student = distilled(folder, num_steps=6, micro_batch_tokens=80, checkpoint_every=2)
weights = torch.cat([p.detach().flatten() for p in student.parameters()]).numpy()
np.save(folder / sys.argv[2], weights)
"""


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    tests = Path(__file__).parents[1]
    script = RUN.format(paths=[str(tests), str(tests / "unit")])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {**os.environ, "ACCELERATE_USE_CPU": "true", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": "2"}  # fmt: skip
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path), f"{rank}.npy"],
            env={**kept, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [run.wait(timeout=300) for run in runs] == [0, 0]
    first, second = (np.load(tmp_path / f"{rank}.npy") for rank in range(2))
    assert (first == second).all()
    alone = tmp_path / "alone"
    alone.mkdir()
    subprocess.run([sys.executable, "-c", script, str(alone), "0.npy"], check=True, timeout=300)
    np.testing.assert_allclose(first, np.load(alone / "0.npy"), rtol=1e-3, atol=1e-4)


def test_every_row_of_a_batch_goes_to_one_process():
    processes = Processes()
    processes.num = 3
    shares = []
    for rank in range(3):
        processes.rank = rank
        shares.append(processes.share((7, 1, 5, 2)))
    assert shares == [(7, 2), (1,), (5,)]


def test_one_process_adds_nothing_up():
    tensors = [torch.ones(3), torch.ones(2, dtype=torch.float64)]
    Processes().add_up(tensors)
    assert all((tensor == 1).all() for tensor in tensors)


def test_without_accelerate_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ShrinkError, match="pip install accelerate"):
        Processes()
