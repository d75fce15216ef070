"""Does a map go with the weights? Cascading randomization of the bundled STD of CIFAR-10, by every attribution

    python nbs/results/paper/randomization.py

A row of randomization.csv, beside this file, is a stage of the cascade (counted from 1) and a likeness to the
map from before, or, as "complexity", the relative rise of the map's complexity once all is random; the mean over the
photos. What is called smooth is averaged over 50 noisy copies first (Hedström et al. 2024, arXiv 2401.06465).
"""
import argparse, sys, time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from advlook.cam import grad_cam
from advlook.core import predict
from advlook.data import load_images
from advlook.files import versions
from advlook.gradients import integrated_grad, smooth_grad, vanilla_grad
from advlook.guided import guided_backprop
from advlook.likeness import spearman
from advlook.sanity import complexity_rise, randomization_test
from advlook.smoothing import smoothed
from advlook.zoo import load_bundled

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
from common import write_down

HERE = Path(__file__).parent
COLUMNS = "attribution measure step stage value".split()
ATTRIBUTIONS = {
    "Vanilla Grad": vanilla_grad, "Vanilla Grad, smooth": smooth_grad,
    "Guided Backprop": guided_backprop, "Guided Backprop, smooth": smoothed(guided_backprop, 50, 0.15),
    "Integrated Gradients": integrated_grad, "Grad-CAM": grad_cam}
LIKENESSES = {"Spearman": spearman, "Spearman, absolute": partial(spearman, absolute=True)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=10, help="test photos, class by class")
    parser.add_argument("--seed", type=int, default=0, help="of the sample, the noise, and the new weights")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    images, rows = load_images("cifar10", "test", n=args.n, seed=args.seed), []
    model = load_bundled("cifar10", "std-0")
    y = predict(model, images.x)
    for name, attribution in ATTRIBUTIONS.items():
        def row(measure, step, stage, value):
            rows.append(dict(zip(COLUMNS, (name, measure, step, stage, f"{np.nanmean(value):.5f}"))))
        both = Both()
        table = randomization_test(model, images.x, y, attribution, "cascading", both, args.seed)
        for measure, found in both.found.items():
            for step, value in enumerate(found, 1): row(measure, step, table.stage[table.step == step].iloc[0], value)
        row("complexity", table.step.max(), "all", complexity_rise(model, images.x, y, attribution, args.seed))
        print(name, flush=True)
    about = dict(command="python nbs/results/paper/randomization.py", date=time.strftime("%Y-%m-%d"), device="cpu")
    about |= dict(n=args.n, seed=args.seed, model="cifar10, std-0", threads=args.threads, versions=versions())
    write_down(HERE / "randomization", COLUMNS, rows, about)


class Both:
    "Every likeness of the maps that one test makes"
    def __init__(self): self.found = {name: [] for name in LIKENESSES}

    def __call__(self, first, second):
        values = {name: likeness(first, second) for name, likeness in LIKENESSES.items()}
        for name, value in values.items(): self.found[name].append(value)
        return values["Spearman"]


if __name__ == "__main__": main()
