"""How large does each training run look? The look scale of every bundled run of CIFAR-10, by two attributions

    python nbs/results/scales/pairs.py

All runs see the same test images, and each explains its own answer. A row of pairs.csv, beside this file, is a run: the
geometric mean over the images. pairs.json tells how it came to be.
"""
import argparse, json, time
from pathlib import Path

import pandas as pd
import torch

from advlook.core import frozen, predict
from advlook.data import load_images
from advlook.files import atomic, versions
from advlook.functions import in_batches
from advlook.gradients import margin_grad, vanilla_grad
from advlook.lookscale import look_scale
from advlook.saved import load_checkpoint
from advlook.zoo import bundled_folder, bundled_runs

HERE = Path(__file__).parent
ATTRIBUTIONS = {"Margin Grad": margin_grad, "Vanilla Grad": vanilla_grad}


def measure(run: str, images):
    "A row for each attribution of a run, such as std-0"
    kind, _, seed = run.rpartition("-")
    model = load_checkpoint(bundled_folder("cifar10", run) / "model.safetensors")
    answers = predict(model, images.x)
    for name, attribution in ATTRIBUTIONS.items():
        with frozen(model): maps = in_batches(attribution, model, images.x, answers)
        scale = look_scale(maps).log().mean().exp().item()
        yield dict(run=kind, seed=int(seed), attribution=name, look_scale=round(scale, 5))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=500, help="test images, class by class")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    images, rows = load_images("cifar10", "test", n=args.n, seed=args.seed), []
    for run in bundled_runs()["cifar10"]:
        rows += measure(run, images)
        print(run, *(row["look_scale"] for row in rows[-len(ATTRIBUTIONS):]), flush=True)
    with atomic(HERE / "pairs.csv") as part: pd.DataFrame(rows).to_csv(part, index=False, lineterminator="\n")
    about = dict(command="python nbs/results/scales/pairs.py", date=time.strftime("%Y-%m-%d"), device="cpu")
    about |= dict(n=args.n, seed=args.seed, threads=args.threads, versions=versions())
    with atomic(HERE / "pairs.json") as part: part.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__": main()
