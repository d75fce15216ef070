"""A real catastrophic overfitting: FGSM at a large radius, without a random start

    python nbs/results/collapse.py     its log goes to collapse.csv beside this file

An `advlook train` on CIFAR-10 for each objective: fgsm starts from the image itself, fast from a random place in the
ball. It only notes what it sees, unless `--on-collapse stop` says otherwise. A second call goes on where the first
was killed.
"""
import argparse, json, shlex, subprocess, sys, time
from pathlib import Path

import pandas as pd

from advlook.files import atomic, versions
from advlook.listeners import write_csv

HERE = Path(__file__).parent
OPTIONS = """--arch resnet20 --eps {eps}/255 --epochs 8 --batch-size 256 --learning-rate 0.2
    --schedule one-cycle --probe 500 --seed 0"""
TRAIN = [sys.executable, "-m", "advlook.cli", "train", "cifar10"]


def keep(name: str, rows: pd.DataFrame, **about) -> None:
    "A run's log, and how it came to be, beside this file; only the seconds are another machine's"
    write_csv(rows.drop(columns="seconds").round(4), HERE / f"{name}.csv")
    about |= dict(date=time.strftime("%Y-%m-%d"), versions=versions())
    with atomic(HERE / f"{name}.json") as part: part.write_text(json.dumps(about, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--eps", type=int, default=16, help="in 255ths")
    parser.add_argument("--objectives", nargs="+", default=["fgsm"])
    parser.add_argument("--on-collapse", default="go on")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "collapse", help="where they are while they train")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    options, rows = OPTIONS.format(eps=args.eps).split(), []
    watched = ["--on-collapse", args.on_collapse]
    for objective in args.objectives:
        out = args.runs / objective
        here = ["--threads", str(args.threads), "--out", str(out)]
        subprocess.run([*TRAIN, "--objective", objective, *options, *watched, *here], check=True)
        rows.append(pd.read_csv(out / "log.csv").assign(objective=objective))
    said = shlex.join([*options, *watched])
    command = f"advlook train cifar10 --objective {' | '.join(args.objectives)} {said}"
    keep("collapse", pd.concat(rows), command=command)


if __name__ == "__main__": main()
