"""Which attributions tell the scale of a cue, and of nothing else? Trains 36 small models on band noise with decoys

    python nbs/results/scales/calibrate.py

Takes about 20 minutes on two cores, and writes calibration.csv and calibration.json beside itself. A row is a reading:
what an attribution shows of a model that was trained on a cue, where the decoy has another wavelength.
"""
import argparse, json, time
from itertools import product
from pathlib import Path

import pandas as pd
import torch

from advlook.calibration import WAVELENGTHS, decoy_noise, readings, sobel_edges, the_image
from advlook.files import atomic, versions
from advlook.gradients import loss_grad, margin_grad, vanilla_grad
from advlook.guided import guided_backprop
from advlook.lookscale import shift_averaged
from advlook.models import create_model
from advlook.objectives import make_objective
from advlook.robustness import accuracy
from advlook.train import fit

HERE = Path(__file__).parent
OURS = {
    "Vanilla Grad": vanilla_grad, "Loss Grad": loss_grad,
    "Margin Grad": margin_grad, "Guided Backprop": guided_backprop}
SLOW = "Margin Grad", "Guided Backprop"   # averaged over shifts, too, in 16 times the passes
ATTRIBUTIONS = OURS | {f"{name}, averaged": shift_averaged(OURS[name]) for name in SLOW}
ATTRIBUTIONS |= {"the image": the_image, "Sobel edges": sobel_edges}
ARCHITECTURES = "resnet8", "alexnet_bn_small"
KINDS = {"STD": "std", "ADV": "fast", "Random": None}


def trained(kind: str, architecture: str, cue: int, seed: int, args):
    "A model of that kind, in evaluation mode"
    model = create_model(architecture, 4, seed, 64)
    if KINDS[kind]:
        objective = make_objective(KINDS[kind], args.eps / 255)
        how = dict(epochs=args.epochs, batch_size=32, learning_rate=args.learning_rate, augment=False, seed=seed)
        fit(model, decoy_noise(args.train, cue, seed), objective=objective, **how)
    return model.eval()


def measure(kind: str, architecture: str, cue: int, seed: int, args):
    "A row for each attribution and decoy"
    model = trained(kind, architecture, cue, seed, args)
    right = accuracy(model, decoy_noise(200, cue, args.test_seed))
    about = dict(kind=kind, architecture=architecture, seed=seed, accuracy=round(right, 4))
    for name, attribution in ATTRIBUTIONS.items():
        for row in readings(attribution, model, cue, args.n, args.test_seed):
            yield about | dict(attribution=name) | row | dict(reading=round(row["reading"], 4))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=1600, help="images to train on")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--eps", type=float, default=4, help="radius of FGSM training, in 255ths")
    parser.add_argument("--seeds", type=int, default=3, help="training runs")
    parser.add_argument("--n", type=int, default=32, help="images for a reading")
    parser.add_argument("--test-seed", type=int, default=1000, help="of the images that are read")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    start, rows = time.time(), []
    for run in product(KINDS, ARCHITECTURES, WAVELENGTHS, range(args.seeds)):
        rows += measure(*run, args)
        print(f"{time.time() - start:.0f} s:", *run, f"accuracy {rows[-1]['accuracy']:.2f}", flush=True)
    with atomic(HERE / "calibration.csv") as part: pd.DataFrame(rows).to_csv(part, index=False, lineterminator="\n")
    about = dict(command="python nbs/results/scales/calibrate.py", date=time.strftime("%Y-%m-%d"), device="cpu")
    about |= dict(settings=vars(args), versions=versions())
    with atomic(HERE / "calibration.json") as part: part.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__": main()
