"""What does SmoothGrad's noise do to the look scale? One trio, several sigmas, several numbers of copies.
Rows go to smooth.csv beside this file.

    python nbs/results/scales/smooth.py

Each map is averaged over shifts of the image by 0 to 3 pixels, and every shift has noise of its own: a map of 50 copies
costs 800 passes forward and back.
"""
import argparse, sys, time
from pathlib import Path

import torch

from advlook.data import load_images
from advlook.files import versions
from advlook.functions import in_batches
from advlook.core import predict
from advlook.gradients import vanilla_grad
from advlook.lookscale import look_scale, shift_averaged
from advlook.smoothing import smoothed
from advlook.zoo import load_trio

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
from common import write_down

HERE = Path(__file__).parent
COLUMNS = "model sigma copies image scale".split()
SETTINGS = (0, 1), (0.05, 50), (0.15, 1), (0.15, 5), (0.15, 50), (0.3, 50)   # sigma, copies


def write(rows: list[dict], args) -> None:
    about = dict(command="python nbs/results/scales/smooth.py", date=time.strftime("%Y-%m-%d"))
    about |= dict(n=args.n, seed=args.seed, trio="cifar10, seed 0", shifts=4, device="cpu", versions=versions())
    write_down(HERE / "smooth", COLUMNS, rows, about)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=10, help="test photos of CIFAR-10, class by class")
    parser.add_argument("--seed", type=int, default=0, help="of the sample and the noise")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    images, rows = load_images("cifar10", "test", n=args.n, seed=args.seed), []
    for who, model in load_trio("cifar10").items():
        answers = predict(model, images.x)
        for sigma, copies in SETTINGS:
            attribution = shift_averaged(smoothed(vanilla_grad, copies, sigma))
            scales = look_scale(in_batches(attribution, model, images.x, answers, seed=args.seed))
            for image, scale in enumerate(scales.tolist()):
                rows.append(dict(model=who, sigma=sigma, copies=copies, image=image, scale=round(scale, 4)))
            print(who, sigma, copies, f"{scales.log().mean().exp():.2f} pixels", flush=True)
    write(rows, args)


if __name__ == "__main__": main()
