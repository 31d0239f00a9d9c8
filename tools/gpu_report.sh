#!/usr/bin/env bash
# Every figure that PIA is asked for on a GPU, in one run of less than eight minutes, without a network.
# Needs .gpu/, which tools/gpu_pack.sh makes. What it writes goes into $OUT if that is set; the last line is JSON.
#
#   tools/gpu_report.sh [options of tools/gpu_figures.py]
#   tools/gpu_report.sh --device cpu --shape smollm-135m --limit 2 --max-new-tokens 24    # try it without a GPU
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
[ -d .gpu/traces ] || { echo "pia: .gpu/ is missing; make it with tools/gpu_pack.sh and bring it along" >&2; exit 1; }

site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
install() { "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --target "$site" "$@"; }
export PYTHONPATH="$site" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
install .gpu/wheels/*.whl
install .gpu/pia/*.whl 2>/dev/null || true # made for another Python
"$python" -c 'import pia._core' 2>/dev/null || { echo "pia: building"; install --no-build-isolation .; }

command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
if [ -f tools/gpu_attention.py ] && "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  timeout 75 "$python" tools/gpu_attention.py 2>&1 | tee "${OUT:-$site}/gpu_attention.txt" \
    || echo "pia: the attention kernels were not measured" >&2
fi
timeout 380 "$python" tools/gpu_figures.py --traces .gpu/traces --seconds 260 "$@"
