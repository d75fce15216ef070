"""The numbers behind the paper's table 1, for every bundled model of photos. Rows go to table1.csv beside this file.

    python nbs/results/paper/table1.py

For each model: top-1, top-5, and under PGD-20 at the paper's two radii robust accuracy (right, attacked, of all images)
and defense rate (right, attacked, of those that are right without attack); for STD and ADV of the same seed the latter
also on the images that both get right. A second call goes on where the first was killed, and measures anew what has
other weights.
"""
import argparse, csv, json, time
from functools import partial
from pathlib import Path

import torch

from advlook.attacks import pgd
from advlook.balls import Linf
from advlook.core import predict, scores
from advlook.data import load_images
from advlook.files import versions
from advlook.robustness import survives
from advlook.sources import open_model
from advlook.zoo import bundled, bundled_runs, manifest

HERE = Path(__file__).parent
RADII = 0.005, 0.01
COLUMNS = "set data arch model seed metric eps n value weights".split()   # the last: how its file's SHA-256 begins
NAMES = dict(std="STD", adv="ADV", std_early="STD, early", noise="noise")   # others were trained at other radii


def measure(model, images, steps, seed, partner):
    "(metric, eps, of how many images, share); `partner`: the model whose images are shared, or None"
    order = scores(model, images.x).topk(5, 1).indices
    hits = order == images.y[:, None]
    right = hits[:, 0]
    both = right & (predict(partner, images.x) == images.y) if partner else None
    yield "top-1", "", *share(right)
    yield "top-5", "", *share(hits.any(1))
    for eps in RADII:
        ball = Linf(eps)
        survived = survives(model, images, partial(pgd, steps=steps, ball=ball), ball, seed=seed, fast=True)
        yield "robust accuracy", eps, *share(survived)
        yield "defense rate", eps, *share(survived[right])
        if both is not None: yield "defense rate, both right", eps, *share(survived[both])


def share(mask):
    return len(mask), mask.float().mean().item()


def write(file, rows):
    part = file.with_suffix(".part")
    with part.open("w", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    part.replace(file)


def known_rows(settings):
    "What was measured before, if it was with these settings; otherwise all is measured anew"
    file, about = HERE / "table1.csv", HERE / "table1.json"
    known = json.loads(about.read_text()) if about.exists() else {}
    if file.exists() and all(known.get(key) == value for key, value in settings.items()):
        return list(csv.DictReader(file.open()))
    file.unlink(missing_ok=True)   # before it could seem to be of these settings
    return []


def note(settings):
    "How the table came to be"
    how = dict(command=f"python nbs/results/paper/table1.py --n {settings['n']}", date=time.strftime("%Y-%m-%d"))
    about = how | settings | dict(versions=versions())
    (HERE / "table1.json").write_text(json.dumps(about, indent=1) + "\n")


def weights_of(name, run, other):
    "Of which files a run's numbers are: its own, and those of the model whose images are shared"
    return "+".join(manifest(name, r)["sha256"][:8] for r in filter(None, (run, other)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=2_000, help="test images, class by class")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the sample and the random starts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    attack = f"PGD-{args.steps}, l_inf, one random start, crafted fast, judged in float32"
    settings = dict(attack=attack, n=args.n, seed=args.seed, radii=list(RADII))
    done = known_rows(settings)
    note(settings)
    for name, runs in bundled_runs().items():
        if name not in bundled(): continue   # no pair
        data = manifest(name, runs[0])["data"]["name"]
        if data not in ("cifar10", "imagenette"): continue   # made images, and starts for other data
        images = load_images(data, "test", n=args.n, seed=args.seed)
        for run in runs:
            kind, _, seed = run.rpartition("-")
            other = {"std": f"adv-{seed}", "adv": f"std-{seed}"}.get(kind)
            other = other if other in runs else None
            told = manifest(name, run)
            model = NAMES.get(kind, f"ADV, eps {told['eps']}")
            weights = weights_of(name, run, other)
            mine = [r for r in done if (r["set"], r["seed"], r["model"]) == (name, seed, model)]
            if mine and mine[0]["weights"] == weights: continue
            done = [r for r in done if r not in mine]   # of weights that are no longer bundled
            same = dict(set=name, data=data, arch=told["arch"], model=model, seed=seed, weights=weights)
            net = open_model(f"bundled:{name}/{run}")
            partner = open_model(f"bundled:{name}/{other}") if other else None
            for metric, eps, n, value in measure(net, images, args.steps, args.seed, partner):
                done.append(same | dict(metric=metric, eps=eps, n=n, value=round(value, 5)))
                print(f"{name}/{run}  {metric} {eps} {value:.4f}", flush=True)
            write(HERE / "table1.csv", done)


if __name__ == "__main__": main()
