"""How many steps until Integrated Gradients are complete? Rows go to steps.csv beside this file.

    python nbs/results/scales/steps.py

The gap of each photo: how far the sum of its map is from the rise of the logit, over that rise, from black and from the
image's mean color.
"""
import argparse, sys, time
from pathlib import Path

import torch

from advlook.core import predict, to_float
from advlook.data import load_images
from advlook.files import versions
from advlook.paths import completeness_gap
from advlook.zoo import load_trio

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
from common import write_down

HERE = Path(__file__).parent
COLUMNS = "model baseline steps image gap".split()
STEPS = {"black": (10, 50, 200), "mean": (50,)}


def write(rows: list[dict], args) -> None:
    about = dict(command="python nbs/results/scales/steps.py", date=time.strftime("%Y-%m-%d"))
    about |= dict(n=args.n, seed=args.seed, trio="cifar10, seed 0", device="cpu", versions=versions())
    write_down(HERE / "steps", COLUMNS, rows, about)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=10, help="test photos of CIFAR-10, class by class")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    images, trio, rows = load_images("cifar10", "test", n=args.n, seed=args.seed), load_trio("cifar10"), []
    x = to_float(images.x)
    for who in "STD", "ADV":
        y = predict(trio[who], x)
        for baseline, steps in [(name, steps) for name, several in STEPS.items() for steps in several]:
            gaps = completeness_gap(trio[who], x, y, baseline, steps).tolist()
            about = dict(model=who, baseline=baseline, steps=steps)
            rows += [about | dict(image=i, gap=f"{gap:.3g}") for i, gap in enumerate(gaps)]
            middle = sorted(gaps)[len(gaps) // 2]
            print(*about.values(), f"{middle:.2%} for the middle photo, {max(gaps):.2%} at worst", flush=True)
    write(rows, args)


if __name__ == "__main__": main()
