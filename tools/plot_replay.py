"""Draws one figure of several replays, each saved with `pia replay ... --json > FILE`.

python tools/plot_replay.py OUT.png FILE.json... [--drafters pia,arctic-full]
"""

import argparse
import json
from pathlib import Path

from pia.bench.plot import draw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--drafters", default="pia,arctic-full,seed,pld")
    args = parser.parse_args()
    rows = [row for file in args.files for row in json.loads(file.read_text())["rows"]]
    draw([row for row in rows if row["drafter"] in args.drafters.split(",")], args.out)


if __name__ == "__main__":
    main()
