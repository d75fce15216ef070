"""A real robust overfitting: an ADV model goes on learning from 2,000 photos alone

    python nbs/results/overfit.py     its log goes to overfit.csv beside this file

PGD with two steps at the radius at which the model was trained, without crops and flips. The probe takes test images,
as the model has seen all others. A second call goes on where the first was killed.
"""
import argparse
from functools import partial
from pathlib import Path

import torch

from advlook.balls import Linf
from advlook.data import load_images
from advlook.objectives import make_objective
from advlook.train import fit
from advlook.heldout import hold_out
from advlook.listeners import print_row
from advlook.watch import watch
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
    few = hold_out(load_images("cifar10", "train"), args.n)[1]
    probe = hold_out(load_images("cifar10", "test"), args.probe)[1]
    eps = args.eps / 255
    objective = make_objective("pgd", eps, steps=2)
    probed = partial(watch, images=probe, ball=Linf(eps), on_collapse="go on")
    rows = fit(open_model(args.start), few, None, objective, out=args.runs, log=print_row, watch=probed, **HOW)
    about = dict(start=args.start, eps=args.eps, n=args.n, probe=args.probe)
    options = " ".join(f"--{key} {value}" for key, value in about.items())
    keep("overfit", rows, command=f"python nbs/results/overfit.py {options}", **about, **HOW)


if __name__ == "__main__": main()
