"""The maps of all bundled runs: how alike those of two runs are, how they follow the photo, how far runs can be told

    python nbs/results/paper/maps.py                # what is not there yet, or of other weights
    python nbs/results/paper/maps.py cifar10        # of this data set only
    python nbs/results/paper/maps.py --anew         # everything

All models of a data set explain the true class of the same test photos. A row of maps.csv, beside this file, is a run
or two runs: the mean over the photos, of a gain the geometric one. A likeness is of the maps of two runs, an AUC the
probability that of two photos the one by the second run has the larger look scale.
"""
import argparse, sys, time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from advlook.calibration import sobel_edges, the_image
from advlook.cam import grad_cam
from advlook.core import frozen, to_float
from advlook.faithfulness import energy_gain
from advlook.files import versions
from advlook.functions import in_batches
from advlook.gradients import integrated_grad, loss_grad, smooth_grad, vanilla_grad
from advlook.guided import guided_backprop
from advlook.likeness import spearman, ssim
from advlook.lookscale import look_scale
from advlook.zoo import load_bundled

sys.path[:0] = [str(Path(__file__).parents[2] / "bench"), str(Path(__file__).parents[1] / "scales")]
from common import write_down
from pairs import SETS, photos_of, runs_of, weights_of

HERE = Path(__file__).parent
average_grad = partial(integrated_grad, times_difference=False)
COLUMNS = "set attribution measure first second value weights".split()
ATTRIBUTIONS = {
    "Vanilla Grad": vanilla_grad, "Loss Grad": loss_grad, "Guided Backprop": guided_backprop,
    "SmoothGrad": smooth_grad, "Integrated Gradients, without the factor": average_grad,
    "Integrated Gradients": None,   # from black: the photo times the maps before
    "Grad-CAM": grad_cam}
FLOORS = {"the image": the_image, "Sobel edges": sobel_edges}
LIKENESSES = {"Spearman": spearman, "Spearman, absolute": partial(spearman, absolute=True), "SSIM": ssim}
UNSCALED = "Integrated Gradients", "Grad-CAM"   # what carries the image in itself, or the grid of its layer
STEEPEST = 0.1   # share of the pixels


def pairs_of(runs: list[str]) -> list[tuple[str, str]]:
    "Which two are compared: of one seed, and of the next seeds"
    kinds = {kind: sorted(int(r.rpartition("-")[2]) for r in runs if r.rpartition("-")[0] == kind)
             for kind in ("std", "adv", "random")}
    pairs = []
    for kind, seeds in kinds.items():
        for i, seed in enumerate(seeds):
            others = ["adv", "random"] if kind == "std" else []
            pairs += [(f"{kind}-{seed}", f"{other}-{seed}") for other in others if seed in kinds[other]]
            after = [seeds[(i + ahead) % len(seeds)] for ahead in ((1, 2) if kind == "std" else (1,))]
            pairs += [(f"{kind}-{seed}", f"{kind}-{n}") for n in after if n != seed]
    return list(dict.fromkeys(pairs))


def maps_of(function, model, images) -> Tensor:
    with frozen(model): return in_batches(function, model, images.x, images.y)


def energy(maps: Tensor) -> Tensor: return maps.double().square().sum(1, keepdim=True)


def steepest(edges: Tensor) -> Tensor:  # bool [N,H,W]
    "The tenth of the pixels where a photo is steepest"
    steep = energy(edges).flatten(1)
    places = steep.topk(round(STEEPEST * steep.shape[1]), 1).indices
    return torch.zeros_like(steep, dtype=torch.bool).scatter(1, places, True).view(len(edges), *edges.shape[2:])


def of_a_run(maps: Tensor, edges: Tensor, attribution: str) -> dict[str, float]:
    found = {"follows edges": np.nanmean(spearman(energy(maps), energy(edges))),
             "gain on edges": np.exp(np.nanmean(energy_gain(maps, steepest(edges)).log()))}
    if attribution not in UNSCALED: found["look scale"] = look_scale(maps).log().mean().exp().item()
    return found


def auc(first: Tensor, second: Tensor) -> float:
    "Of telling them apart by their look scale; 0.5: not at all"
    a, b = (look_scale(maps)[:, None] for maps in (first, second))
    return ((b > a.T).double() + 0.5 * (b == a.T).double()).mean().item()


def of_two(first: Tensor, second: Tensor, attribution: str) -> dict[str, float]:
    found = {name: np.nanmean(likeness(first, second)) for name, likeness in LIKENESSES.items()}
    if attribution not in UNSCALED: found["AUC"] = auc(first, second)
    return found


def measure(name: str, images, runs: list[str]):
    "A row for each attribution, measure, and run or pair of runs"
    models, weights = {run: load_bundled(name, run) for run in runs}, {run: weights_of(name, run) for run in runs}
    x = to_float(images.x)
    floors = {floor: f(None, x) for floor, f in FLOORS.items()}
    edges = floors["Sobel edges"]
    for attribution, function in ATTRIBUTIONS.items():
        if function is None: maps = {run: x * own for run, own in maps.items()}
        else: maps = {run: maps_of(function, model, images) for run, model in models.items()}
        def row(measure, value, *of):
            known = "/".join(weights.get(run, "") for run in of)
            return dict(zip(COLUMNS, (name, attribution, measure, *(*of, "")[:2], f"{value:.5f}", known)))
        for run, own in maps.items():
            for m, value in of_a_run(own, edges, attribution).items(): yield row(m, value, run)
        for pair in pairs_of(runs):
            for m, value in of_two(*(maps[run] for run in pair), attribution).items(): yield row(m, value, *pair)
        for floor, own in floors.items():
            if attribution == "Grad-CAM": own = own.mean(1, keepdim=True)
            for run in runs:
                for m, likeness in LIKENESSES.items(): yield row(m, np.nanmean(likeness(maps[run], own)), run, floor)
        print(f"{name}: {attribution}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", help=f"of {', '.join(SETS)}; default: all")
    parser.add_argument("--n", type=int, default=100, help="test photos, class by class; of Imagenette a half")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--anew", action="store_true", help="also what is there")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    file = HERE / "maps.csv"
    rows = pd.read_csv(file, keep_default_na=False, dtype=str).to_dict("records") if file.exists() else []
    for name in args.sets or SETS:
        runs, here = runs_of(name), [row for row in rows if row["set"] == name]
        known = {(row["first"], row["weights"]) for row in here if not row["second"]}
        if not args.anew and known == {(run, weights_of(name, run)) for run in runs}: continue
        images = photos_of(name, args.n, 2, args.seed)
        new = list(measure(name, images, runs))
        rows = [row for row in rows if row["set"] != name] + new
        rows.sort(key=lambda row: SETS.index(row["set"]))
        about = dict(command="python nbs/results/paper/maps.py", date=time.strftime("%Y-%m-%d"), device="cpu")
        about |= dict(n=args.n, seed=args.seed, threads=args.threads, versions=versions())
        write_down(file.with_suffix(""), COLUMNS, rows, about)


if __name__ == "__main__": main()
