"""Does `fast=True` cost truth? Robust accuracy of bundled models, crafted in float32 and in bfloat16

    python nbs/bench/fast.py

On a processor without bfloat16 units torch still computes in it, with the same roundings, some ten times slower than in
float32: there this script asks for it all the same. What is compared is image by image: same images, same random
starts. Rows go to nbs/results/bench/fast.csv; a second call goes on where the first was killed.
"""
import argparse, warnings
from functools import partial
from unittest.mock import patch

import torch

import advlook.standin
from advlook.attacks import pgd
from advlook.balls import Linf
from advlook.core import predict
from advlook.data import load_images
from advlook.robustness import survives
from advlook.zoo import bundled, load_trio, manifest
from common import RESULTS, Rows

KEY = ["part", "model", "seed", "eps", "block"]
COLUMNS = [*KEY, "n", "right", "float32", "bfloat16", "only float32", "only bfloat16"]
USED = ["core", "noise", "functions", "radii", "balls", "losses", "passes", "attacks", "standin", "robustness"]


def measure(rows, name, seed, model_name, model, args):
    images = load_images(manifest(name, f"std-{seed}")["data"]["name"], "test", n=args.n, seed=args.seed)
    for eps in args.eps:
        for block, first in enumerate(range(0, args.n, args.block)):
            key = dict(part=name, model=model_name, seed=seed, eps=eps, block=block)
            if rows.has(**key): continue
            here = images[first:first + args.block]
            right = int((predict(model, here.x) == here.y).sum())
            found = compare(model, here, Linf(eps / 255), args.steps, args.seed + block)
            rows.add(**key, n=len(here), right=right, **found)


def compare(model, images, ball, steps, seed):
    "How many survive in each, and how many in one only"
    attack = partial(pgd, ball=ball, steps=steps)
    whole, half = (survives(model, images, attack, ball, seed=seed, fast=fast) for fast in (False, True))
    masks = {"float32": whole, "bfloat16": half, "only float32": whole & ~half, "only bfloat16": half & ~whole}
    return {name: int(mask.sum()) for name, mask in masks.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=500, help="images of each data set")
    parser.add_argument("--block", type=int, default=100, help="that many at a time")
    parser.add_argument("--eps", type=float, nargs="+", default=[1, 4], help="in 255ths")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="forget what there was")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(args.threads)
    units = advlook.standin.computes_bfloat16(torch.device("cpu"))
    settings = {key: getattr(args, key) for key in ("n", "block", "eps", "steps", "seed")} | dict(units=units)
    rows = Rows(RESULTS / "fast", COLUMNS, KEY)
    for name, seeds in bundled().items():
        rows.begin(name, settings, USED, ["timm"], args.again)
        for seed in seeds:
            with patch.object(advlook.standin, "computes_bfloat16", lambda device: True):
                for model_name, model in load_trio(name, seed).items():
                    if model_name != "Random": measure(rows, name, seed, model_name, model, args)


if __name__ == "__main__": main()
