"""How large does each training run look? The look scale of every bundled run, by four attributions and one average

    python nbs/results/scales/pairs.py

All runs of a data set see the same test images, and each explains its own answer; `random` is the run before training.
A row of pairs.csv, beside this file, is a run: the geometric mean over the images. pairs.json tells how it came to be.
By the average, it is also written into the manifests, where reports find it.
"""
import argparse, json, time
from pathlib import Path

import pandas as pd
import torch

from advlook.core import frozen, predict
from advlook.data import load_images
from advlook.files import atomic, versions
from advlook.functions import in_batches
from advlook.gradients import loss_grad, margin_grad, vanilla_grad
from advlook.guided import guided_backprop
from advlook.lookscale import look_scale, shift_averaged
from advlook.manifest import remember
from advlook.zoo import bundled_folder, bundled_runs, load_bundled, manifest

HERE = Path(__file__).parent
PRIMARY = "Margin Grad, averaged"   # the attribution that passed the calibration
ATTRIBUTIONS = {
    PRIMARY: shift_averaged(margin_grad), "Margin Grad": margin_grad, "Loss Grad": loss_grad,
    "Vanilla Grad": vanilla_grad, "Guided Backprop": guided_backprop}
SETS = "cifar10", "cifar10-alexnet", "imagenette", "imagenette-alexnet"


def runs_of(name: str) -> list[str]:
    "The bundled runs, and those of STD before training"
    runs = bundled_runs()[name]
    return runs + [run.replace("std-", "random-") for run in runs if run.startswith("std-")]


def measure(name: str, run: str, images):
    "A row for each attribution of a run, such as std-0"
    kind, _, seed = run.rpartition("-")
    model = load_bundled(name, run)
    answers = predict(model, images.x)
    for attribution, function in ATTRIBUTIONS.items():
        with frozen(model): maps = in_batches(function, model, images.x, answers)
        scale = look_scale(maps).log().mean().exp().item()
        yield dict(set=name, run=kind, seed=int(seed), attribution=attribution, look_scale=round(scale, 5))


def write_down(rows: list[dict], images: dict[str, int]) -> None:
    "Into each manifest: the look scale of its run and, of STD, before training"
    chosen = {(r["set"], f"{r['run']}-{r['seed']}"): r["look_scale"] for r in rows if r["attribution"] == PRIMARY}
    for (name, run), pixels in chosen.items():
        if run.startswith("random-"): continue
        told = dict(attribution=PRIMARY, images=images[name], pixels=pixels)
        if run.startswith("std-"): told["before training"] = chosen[name, run.replace("std-", "random-")]
        remember(bundled_folder(name, run), manifest(name, run), "look scale", told)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=300, help="test images, class by class; of Imagenette a third")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows, counts = [], {}
    for name in SETS:
        data = manifest(name, "std-0")["data"]["name"]
        n, size = (args.n, None) if data == "cifar10" else (args.n // 3, 128)
        images = load_images(data, "test", n=n, seed=args.seed, size=size)
        counts[name] = len(images)
        for run in runs_of(name):
            rows += measure(name, run, images)
            print(name, run, *(row["look_scale"] for row in rows[-len(ATTRIBUTIONS):]), flush=True)
    with atomic(HERE / "pairs.csv") as part: pd.DataFrame(rows).to_csv(part, index=False, lineterminator="\n")
    write_down(rows, counts)
    about = dict(command="python nbs/results/scales/pairs.py", date=time.strftime("%Y-%m-%d"), device="cpu")
    about |= dict(n=args.n, seed=args.seed, threads=args.threads, versions=versions())
    with atomic(HERE / "pairs.json") as part: part.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__": main()
