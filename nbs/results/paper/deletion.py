"""Which maps know what an answer rests on? Pixels of Imagenette's photos are removed in the order of each map

    python nbs/results/paper/deletion.py                # in the mean color, and blurred: minutes
    python nbs/results/paper/deletion.py --fills road   # by ROAD: longer

A row of deletion.csv, beside this file, is a model, a map, what replaces a pixel, the order, and a photo that the model
gets right: the area under the probability of its class while a twentieth of the pixels after the other is removed.
"""
import argparse, sys, time
from pathlib import Path

import torch

from advlook.calibration import sobel_edges
from advlook.cam import grad_cam
from advlook.core import frozen, predict, to_float
from advlook.data import load_images
from advlook.deletion import FILLS, area, deletion_curve
from advlook.files import versions
from advlook.functions import in_batches
from advlook.gradients import integrated_grad, margin_grad, smooth_grad, vanilla_grad
from advlook.guided import deconvnet, guided_backprop
from advlook.noise import PerImage
from advlook.zoo import load_bundled

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
from common import write_down

HERE = Path(__file__).parent
COLUMNS = "model map fill first photo area".split()
ATTRIBUTIONS = {
    "Vanilla": vanilla_grad, "Margin": margin_grad, "SmoothGrad": smooth_grad, "Integrated": integrated_grad,
    "Guided": guided_backprop, "Deconvnet": deconvnet, "Grad-CAM": grad_cam}


def maps_of(model, x, y, seed: int) -> dict:
    "Of the model, and two orders that know nothing of it"
    with frozen(model): maps = {name: in_batches(f, model, x, y, 64, seed) for name, f in ATTRIBUTIONS.items()}
    chance = torch.rand(len(x), 1, *x.shape[2:], generator=torch.Generator().manual_seed(seed))
    return maps | {"edges": sobel_edges(None, x), "chance": chance}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=20, help="test photos of Imagenette, class by class")
    parser.add_argument("--seed", type=int, default=0, help="of the sample and the noise")
    parser.add_argument("--fills", nargs="+", choices=FILLS, default=["mean", "blur"], help="what replaces a pixel")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    images, rows = load_images("imagenette", "test", n=args.n, seed=args.seed, size=128), []
    for who, run in dict(STD="std-0", ADV="adv-0").items():
        model = load_bundled("imagenette", run)
        right = predict(model, images.x) == images.y
        x, y, places = to_float(images.x[right]), images.y[right], right.nonzero()[:, 0].tolist()
        for name, maps in maps_of(model, x, y, args.seed).items():
            for fill in args.fills:
                for least in False, True:
                    noise = PerImage([args.seed + i for i in places])
                    areas = area(deletion_curve(model, x, y, maps, least, 20, fill, noise))
                    about = dict(model=who, map=name, fill=fill, first="least" if least else "most")
                    rows += [about | dict(photo=i, area=f"{a:.5f}") for i, a in zip(places, areas.tolist())]
            print(who, name, flush=True)
    about = dict(command="python nbs/results/paper/deletion.py", date=time.strftime("%Y-%m-%d"), device="cpu")
    about |= dict(n=args.n, seed=args.seed, models="imagenette, seed 0", fills=args.fills)
    about |= dict(threads=args.threads, versions=versions())
    write_down(HERE / "deletion", COLUMNS, rows, about)


if __name__ == "__main__": main()
