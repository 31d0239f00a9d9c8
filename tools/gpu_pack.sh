#!/usr/bin/env bash
# Makes .gpu/: what tools/gpu_report.sh needs on a machine with a GPU and without a network. A few megabytes.
#
#   tools/gpu_pack.sh [folder of the recorded traces]
#   PYTHON=.venv/bin/python  an environment with PIA;  TARGET=3.12  the other machine's Python;  REQUESTS=320  of each trace
set -euo pipefail
cd "$(dirname "$0")/.."
traces=${1:-../shared/traces}
python=${PYTHON:-.venv/bin/python}
target=${TARGET:-3.12}
requests=${REQUESTS:-320}

rm -rf .gpu
mkdir -p .gpu/wheels .gpu/pia .gpu/traces

version=$("$python" -c 'from importlib.metadata import version; print(version("transformers"))')
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
  --python-version "$target" --dest .gpu/wheels "transformers==$version"

if "python$target" -c '' 2>/dev/null; then
  "python$target" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir .gpu/pia \
    --config-settings=build-dir=build/gpu-pack .
else
  echo "pia: there is no python$target here; the GPU machine will build PIA itself (a minute)" >&2
fi

"$python" - "$traces" "$requests" <<'PYTHON'
import sys
from pathlib import Path

from pia.bench.trace import Trace

folder, requests = Path(sys.argv[1]), int(sys.argv[2])
for pattern in ("gsm-*.npz", "alpaca-*.npz"):
    found = sorted(folder.glob(pattern))
    if not found:
        sys.exit(f"pia: {folder} holds no {pattern}; give the folder of the recorded traces")
    Trace.load(found[0]).part(0, requests).save(Path(".gpu/traces", found[0].name))
PYTHON

du -sh .gpu
echo "On the machine with the GPU, with this folder carried along as .gpu:  tools/gpu_report.sh"
