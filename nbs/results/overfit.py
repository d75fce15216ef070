"""A real robust overfitting: an ADV model goes on learning from 2,000 photos alone. Its log goes to overfit.csv beside this file.

    python nbs/results/overfit.py

PGD with two steps at the radius at which the model was trained, without crops and flips. The probe takes test images, as the model has seen
all others. A second call goes on where the first was killed.
"""
import argparse
from functools import partial
from pathlib import Path

import torch

from advlook.balls import Linf
from advlook.data import load_images
from advlook.objectives import make_objective
from advlook.train import fit
from advlook.watch import hold_out, print_row, watch
from advlook.sources import open_model
from collapse import keep

HOW = dict(epochs=16, batch_size=128, learning_rate=0.05, augment=False, seed=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start", default="bundled:cifar10/adv-0", help="a model of 10 classes of CIFAR-10")
    parser.add_argument("--eps", type=int, default=4, help="in 255ths")
    parser.add_argument("--n", type=int, default=2000, help="photos to learn from")
    parser.add_argument("--probe", type=int, default=1000, help="test images")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "overfit", help="where it is while it trains")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    few, probe = (hold_out(load_images("cifar10", split), n)[1] for split, n in (("train", args.n), ("test", args.probe)))
    rows = fit(open_model(args.start), few, None, make_objective("pgd", args.eps / 255, steps=2), out=args.runs, log=print_row, watch=partial(watch, images=probe, ball=Linf(args.eps / 255), on_collapse="go on"), **HOW)
    keep("overfit", rows, command=f"python nbs/results/overfit.py --start {args.start} --eps {args.eps} --n {args.n} --probe {args.probe}", start=args.start, eps=args.eps, n=args.n, probe=args.probe, **HOW)


if __name__ == "__main__": main()
