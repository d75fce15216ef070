"""Does `fast=True` cost truth? Robust accuracy of bundled models, crafted in float32 and in bfloat16. Rows go to nbs/results/bench/fast.csv.

    python nbs/bench/fast.py

On a processor without bfloat16 units torch still computes in it, with the same roundings, some ten times slower than in float32: there
this script asks for it all the same. What is compared is image by image: same images, same random starts. A second call goes on where
the first was killed.
"""
import argparse, math, warnings
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

COLUMNS = ["part", "model", "seed", "eps", "block", "n", "right", "float32", "bfloat16", "only float32", "only bfloat16"]


def measure(rows, name, seed, model_name, model, args):
    images = load_images(manifest(name, f"std-{seed}")["data"]["name"], "test", n=args.n, seed=args.seed)
    for eps in args.eps:
        for block in range(math.ceil(args.n / args.block)):
            key = dict(part=name, model=model_name, seed=seed, eps=eps, block=block)
            if rows.has(**key): continue
            here = images[slice(block * args.block, (block + 1) * args.block)]
            ball = Linf(eps / 255)
            stands = {half: survives(model, here, partial(pgd, ball=ball, steps=args.steps), ball, seed=args.seed + block, fast=half) for half in (False, True)}
            right = int((predict(model, here.x) == here.y).sum())
            rows.add(**key, n=len(here), right=right, float32=int(stands[False].sum()), bfloat16=int(stands[True].sum()),
                     **{"only float32": int((stands[False] & ~stands[True]).sum()), "only bfloat16": int((stands[True] & ~stands[False]).sum())})


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
    rows = Rows(RESULTS / "fast", COLUMNS, COLUMNS[:5])
    for name, seeds in bundled().items():
        rows.begin(name, dict(n=args.n, block=args.block, eps=args.eps, steps=args.steps, seed=args.seed, units=units), ["core", "noise", "functions", "balls", "attacks", "standin", "robustness"], ["timm"], args.again)
        for seed in seeds:
            with patch.object(advlook.standin, "computes_bfloat16", lambda device: True):
                for model_name, model in load_trio(name, seed).items():
                    if model_name != "Random": measure(rows, name, seed, model_name, model, args)


if __name__ == "__main__": main()
