"""The numbers behind the paper's table 1, for every bundled pair of models. Rows go to table1.csv beside this file.

    python nbs/results/paper/table1.py

For each model: top-1, top-5, and under PGD-20 at the paper's two radii robust accuracy (right, attacked, of all images) and defense rate
(right, attacked, of those that are right without attack); the latter two also on the images that STD and ADV of the same seed both get
right. A second call goes on where the first was killed.
"""
import argparse, csv, json, os, time
from functools import partial
from pathlib import Path

import torch

from advlook.attacks import pgd
from advlook.balls import Linf
from advlook.core import scores
from advlook.data import content_hash, load_images
from advlook.report import versions
from advlook.robustness import survives
from advlook.zoo import bundled, load_trio

HERE, RADII, COLUMNS = Path(__file__).parent, (0.005, 0.01), ["dataset", "seed", "model", "metric", "eps", "n", "value"]


def measure(pair, images, steps, seed):
    "Both models of a pair: (model, metric, eps, of how many images, share)"
    right, attack = {}, partial(pgd, steps=steps)
    for name, model in pair.items():
        order = scores(model, images.x).topk(5, 1).indices
        right[name] = order[:, 0] == images.y
        yield name, "top-1", "", len(images), right[name].float().mean().item()
        yield name, "top-5", "", len(images), (order == images.y[:, None]).any(1).float().mean().item()
    both = right["STD"] & right["ADV"]
    for eps in RADII:
        for name, model in pair.items():
            stands = survives(model, images, partial(attack, ball=Linf(eps)), Linf(eps), seed=seed, fast=True)
            yield name, "robust accuracy", eps, len(images), stands.float().mean().item()
            yield name, "defense rate", eps, int(right[name].sum()), stands[right[name]].float().mean().item()
            yield name, "defense rate, both right", eps, int(both.sum()), stands[both].float().mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=5_000, help="test images, class by class")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the sample and the random starts")
    args = parser.parse_args()
    file, about = HERE / "table1.csv", HERE / "table1.json"
    done = list(csv.DictReader(file.open())) if file.exists() else []
    for dataset, seeds in bundled().items():
        if dataset == "scales": continue   # made images, no photos
        images = load_images(dataset, "test", n=args.n, seed=args.seed)
        for seed in seeds:
            if any(r["dataset"] == dataset and r["seed"] == str(seed) for r in done): continue
            pair = {name: model for name, model in load_trio(dataset, seed).items() if name != "Random"}
            rows = [dict(zip(COLUMNS, (dataset, seed, model, metric, eps, n, round(value, 5)))) for model, metric, eps, n, value in measure(pair, images, args.steps, args.seed)]
            done += rows
            part = file.with_suffix(".part")
            with part.open("w", newline="") as out:
                writer = csv.DictWriter(out, COLUMNS, lineterminator="\n"); writer.writeheader(); writer.writerows(done)
            part.replace(file)
            print(dataset, seed, *(f"{r['model']} {r['metric']} {r['eps']} {r['value']:.4f}" for r in rows), sep="\n  ", flush=True)
    about.write_text(json.dumps(dict(command=f"python nbs/results/paper/table1.py --n {args.n}", date=time.strftime("%Y-%m-%d"), attack=f"PGD-{args.steps}, l_inf, one random start, crafted fast, judged in float32", n=args.n, seed=args.seed,
                                     radii=RADII, versions=versions()), indent=1) + "\n")


if __name__ == "__main__": main()
