"""Measures IPAD: half of the demo model's weights removed, against one cut with the same steps and training from scratch.

    python tools/bench_ipad.py [--data gsm8k_train.jsonl] [--test gsm8k_test.jsonl] [--steps 240] [--out build/ipad]

The teacher is the embedded demo model, the data GSM8K's training questions; quality is measured on test questions that
neither the teacher nor a student was trained on. All contenders see the same batches in the same steps. The very last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo_data import load_examples
from pia.assets import demo_model_path
from pia.bench.machine import describe_machine
from pia.bench.memory import PeakMemory
from pia.cli.shrink_progress import ShrinkProgress
from pia.ipad import shrink
from pia.ipad.data import Batches, Rows, Split, make_batch, read_rows, split
from pia.ipad.distil_config import DistillConfig
from pia.ipad.distiller import Distiller
from pia.ipad.quality import measure
from pia.ipad.shrinking import Shrunk
from pia.ipad.speed import measure_speeds
from pia.ipad.structure import structure_of
from pia.ipad.teacher import OnlineTeacher

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
FIRST_TEST, NUM_TEST = 100, 300
"""Test questions to measure on: those that the package does not ship."""
