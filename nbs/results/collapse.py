"""A real catastrophic overfitting: FGSM at a large radius, without a random start. Its log goes to collapse.csv beside this file.

    python nbs/results/collapse.py

An `advlook train` on CIFAR-10 for each objective: fgsm starts from the image itself, fast from a random place in the ball. It only notes
what it sees, unless `--on-collapse stop` says otherwise. A second call goes on where the first was killed.
"""
import argparse, json, shlex, subprocess, sys, time
from pathlib import Path

import pandas as pd

from advlook.files import atomic
from advlook.files import versions
from advlook.watch import write_csv

HERE = Path(__file__).parent
OPTIONS = "--arch resnet20 --eps {eps}/255 --epochs 8 --batch-size 256 --learning-rate 0.2 --schedule one-cycle --probe 500 --seed 0"


def keep(name: str, rows: pd.DataFrame, **about) -> None:
    "A run's log, and how it came to be, beside this file; only the seconds are another machine's"
    write_csv(rows.drop(columns="seconds").round(4), HERE / f"{name}.csv")
    with atomic(HERE / f"{name}.json") as part: part.write_text(json.dumps(about | dict(date=time.strftime("%Y-%m-%d"), versions=versions()), indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--eps", type=int, default=16, help="in 255ths")
    parser.add_argument("--objectives", nargs="+", default=["fgsm"])
    parser.add_argument("--on-collapse", default="go on")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "collapse", help="where they are while they train")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    rows, options = [], OPTIONS.format(eps=args.eps)
    for objective in args.objectives:
        subprocess.run([sys.executable, "-m", "advlook.cli", "train", "cifar10", "--objective", objective, *options.split(), "--on-collapse", args.on_collapse, "--threads", str(args.threads), "--out", str(args.runs / objective)], check=True)
        rows.append(pd.read_csv(args.runs / objective / "log.csv").assign(objective=objective))
    keep("collapse", pd.concat(rows), command=f"advlook train cifar10 --objective {' | '.join(args.objectives)} {options} --on-collapse {shlex.quote(args.on_collapse)}")


if __name__ == "__main__": main()
