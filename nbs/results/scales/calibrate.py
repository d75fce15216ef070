"""How well does look_scale measure a wavelength that is known? Trains 8 small models on band noise and measures their maps.

    python nbs/results/scales/calibrate.py        about 10 minutes on two cores; writes calibration.csv and calibration.json beside itself
"""
import argparse, json, time
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from advlook.core import to_float
from advlook.functions import in_batches
from advlook.gradients import loss_grad, margin_grad, vanilla_grad
from advlook.guided import guided_backprop
from advlook.lookscale import interval, look_scale
from advlook.models import create_model
from advlook.objectives import make_objective
from advlook.files import versions
from advlook.robustness import accuracy
from advlook.scales import band_noise
from advlook.train import fit

ATTRIBUTIONS = {"Vanilla Grad": vanilla_grad, "Loss Grad": loss_grad, "Margin Grad": margin_grad, "Guided Backprop": guided_backprop}
parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--train", type=int, default=2000, help="images to train on")
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--eps", type=float, default=4, help="radius of FGSM training, in 255ths")
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()
here, start, rows = Path(__file__).parent, time.time(), []
for wavelength in (2, 4, 8, 16):
    test = band_noise(200, wavelength, seed=args.seed + 1)
    cue = look_scale(band_noise(200, wavelength, seed=args.seed + 1, noise=0).x.float())
    rows.append(dict(wavelength=wavelength, model="the cue itself", attribution="", accuracy=None) | interval(cue)._asdict())
    for name, objective in ("Random", None), ("STD", "std"), ("ADV", "fast"):
        model = create_model("resnet8", 4, args.seed, 64)
        if objective: fit(model, band_noise(args.train, wavelength, seed=args.seed), objective=make_objective(objective, args.eps / 255), epochs=args.epochs, batch_size=32, learning_rate=0.1, augment=False, seed=args.seed)
        right = accuracy(model.eval(), test)
        for attribution, function in ATTRIBUTIONS.items():
            maps = in_batches(function, model, test.x, test.y)
            rows.append(dict(wavelength=wavelength, model=name, attribution=attribution, accuracy=right) | interval(look_scale(maps))._asdict())
        print(f"{time.time() - start:.0f} s: {wavelength} pixels, {name}: accuracy {right:.3f}, " + ", ".join(f"{r['attribution']} {r['mean']:.2f}" for r in rows[-len(ATTRIBUTIONS):]), flush=True)
pd.DataFrame(rows).rename(columns={"mean": "measured"}).round(4).to_csv(here / "calibration.csv", index=False)
(here / "calibration.json").write_text(json.dumps(dict(command="python nbs/results/scales/calibrate.py", settings=vars(args), architecture="resnet8", threads=torch.get_num_threads(), versions=versions()), indent=1) + "\n")
