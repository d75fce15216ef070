"""How well does look_scale measure a wavelength that is known? Trains 8 small models on band noise

    python nbs/results/scales/calibrate.py

Takes about 10 minutes on two cores, and writes calibration.csv and calibration.json beside itself.
"""
import argparse, json, time
from pathlib import Path

import pandas as pd
import torch

from advlook.comparison import interval
from advlook.files import versions
from advlook.functions import in_batches
from advlook.gradients import loss_grad, margin_grad, vanilla_grad
from advlook.guided import guided_backprop
from advlook.lookscale import look_scale
from advlook.models import create_model
from advlook.objectives import make_objective
from advlook.robustness import accuracy
from advlook.scales import band_noise
from advlook.train import fit

HERE = Path(__file__).parent
ATTRIBUTIONS = {
    "Vanilla Grad": vanilla_grad,
    "Loss Grad": loss_grad,
    "Margin Grad": margin_grad,
    "Guided Backprop": guided_backprop,
}
KINDS = {"Random": None, "STD": "std", "ADV": "fast"}


def trained(kind: str, wavelength: int, args):
    "A model of that kind, in evaluation mode"
    model = create_model("resnet8", 4, args.seed, 64)
    if KINDS[kind]:
        images = band_noise(args.train, wavelength, seed=args.seed)
        objective = make_objective(KINDS[kind], args.eps / 255)
        how = dict(epochs=args.epochs, batch_size=32, learning_rate=0.1, augment=False, seed=args.seed)
        fit(model, images, objective=objective, **how)
    return model.eval()


def measure(wavelength: int, args):
    "Rows: the cue itself, and each attribution of each model"
    test = band_noise(200, wavelength, seed=args.seed + 1)
    cue = band_noise(200, wavelength, seed=args.seed + 1, noise=0).x.float()
    yield dict(model="the cue itself", attribution="", accuracy=None) | interval(look_scale(cue))._asdict()
    for kind in KINDS:
        model = trained(kind, wavelength, args)
        right = accuracy(model, test)
        for name, attribution in ATTRIBUTIONS.items():
            maps = in_batches(attribution, model, test.x, test.y)
            row = dict(model=kind, attribution=name, accuracy=right)
            yield row | interval(look_scale(maps))._asdict()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=2000, help="images to train on")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--eps", type=float, default=4, help="radius of FGSM training, in 255ths")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start, rows = time.time(), []
    for wavelength in 2, 4, 8, 16:
        for row in measure(wavelength, args):
            rows.append(dict(wavelength=wavelength) | row)
            said = row["model"], row["attribution"], f"{row['mean']:.2f}"
            print(f"{time.time() - start:.0f} s: {wavelength} pixels", *said, flush=True)
    table = pd.DataFrame(rows).rename(columns={"mean": "measured"}).round(4)
    table.to_csv(HERE / "calibration.csv", index=False)
    about = dict(command="python nbs/results/scales/calibrate.py", settings=vars(args), architecture="resnet8")
    about |= dict(threads=torch.get_num_threads(), versions=versions())
    (HERE / "calibration.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__": main()
