"""A real catastrophic overfitting: FGSM at a large radius, without a random start. Its log goes to collapse.csv beside this file.

    python nbs/results/collapse.py

Two `advlook train` on CIFAR-10 that differ in their start alone: fgsm from the image itself, and fast from a random place in the ball.
Both only note what they see and go on. A second call goes on where the first was killed.
"""
import argparse, json, subprocess, sys, time
from pathlib import Path

import pandas as pd

from advlook.report import versions

HERE = Path(__file__).parent
OPTIONS = "--arch resnet20 --eps {eps}/255 --epochs 12 --batch-size 256 --learning-rate 0.2 --schedule one-cycle --probe 500 --seed 0"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--eps", type=int, default=16, help="in 255ths")
    parser.add_argument("--objectives", nargs="+", default=["fgsm", "fast"])
    parser.add_argument("--runs", type=Path, default=Path("runs") / "collapse", help="where they are while they train")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    rows, options = [], OPTIONS.format(eps=args.eps)
    for objective in args.objectives:
        subprocess.run([sys.executable, "-m", "advlook.cli", "train", "cifar10", "--objective", objective, *options.split(), "--on-collapse", "go on", "--threads", str(args.threads), "--out", str(args.runs / objective)], check=True)
        rows.append(pd.read_csv(args.runs / objective / "log.csv").assign(objective=objective))
    pd.concat(rows).drop(columns="seconds").round(4).to_csv(HERE / "collapse.csv", index=False)
    (HERE / "collapse.json").write_text(json.dumps(dict(command=f"advlook train cifar10 --objective {{{','.join(args.objectives)}}} {options} --on-collapse 'go on'", date=time.strftime("%Y-%m-%d"), versions=versions()), indent=1) + "\n")


if __name__ == "__main__": main()
