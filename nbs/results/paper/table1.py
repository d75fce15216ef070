"""The numbers behind the paper's table 1, for every bundled model of photos. Rows go to table1.csv beside this file.

    python nbs/results/paper/table1.py

For each model: top-1, top-5, and under PGD-20 at the paper's two radii robust accuracy (right, attacked, of all images) and defense rate
(right, attacked, of those that are right without attack); for STD and ADV of the same seed the latter also on the images that both get
right. A second call goes on where the first was killed, and measures anew what has other weights.
"""
import argparse, csv, json, time
from functools import partial
from pathlib import Path

import torch

from advlook.attacks import pgd
from advlook.balls import Linf
from advlook.core import scores
from advlook.data import load_images
from advlook.files import versions
from advlook.robustness import survives
from advlook.sources import open_model
from advlook.zoo import bundled, bundled_runs, manifest

HERE, RADII = Path(__file__).parent, (0.005, 0.01)
COLUMNS = ["set", "data", "arch", "model", "seed", "metric", "eps", "n", "value", "weights"]   # the last: of which file, the begin of its SHA-256
NAMES = dict(std="STD", adv="ADV", std_early="STD, early", noise="noise")   # others were trained at other radii


def measure(model, images, steps, seed, partner):
    "(metric, eps, of how many images, share); `partner`: the model whose images are shared, or None"
    order = scores(model, images.x).topk(5, 1).indices
    right = order[:, 0] == images.y
    both = right & (scores(partner, images.x).argmax(1) == images.y) if partner else None
    yield "top-1", "", len(images), right.float().mean().item()
    yield "top-5", "", len(images), (order == images.y[:, None]).any(1).float().mean().item()
    for eps in RADII:
        stands = survives(model, images, partial(pgd, steps=steps, ball=Linf(eps)), Linf(eps), seed=seed, fast=True)
        yield "robust accuracy", eps, len(images), stands.float().mean().item()
        yield "defense rate", eps, int(right.sum()), stands[right].float().mean().item()
        if both is not None: yield "defense rate, both right", eps, int(both.sum()), stands[both].float().mean().item()


def write(file, rows):
    part = file.with_suffix(".part")
    with part.open("w", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS, lineterminator="\n"); writer.writeheader(); writer.writerows(rows)
    part.replace(file)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=2_000, help="test images, class by class")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the sample and the random starts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    file, about = HERE / "table1.csv", HERE / "table1.json"
    settings = dict(attack=f"PGD-{args.steps}, l_inf, one random start, crafted fast, judged in float32", n=args.n, seed=args.seed, radii=list(RADII))
    known = json.loads(about.read_text()) if about.exists() else {}
    done = list(csv.DictReader(file.open())) if file.exists() and all(known.get(k) == v for k, v in settings.items()) else []   # other settings: all anew
    if not done: file.unlink(missing_ok=True)   # before they could seem to be of these settings
    about.write_text(json.dumps(dict(command=f"python nbs/results/paper/table1.py --n {args.n}", date=time.strftime("%Y-%m-%d")) | settings | dict(versions=versions()), indent=1) + "\n")
    for name, runs in bundled_runs().items():
        if name not in bundled(): continue   # no pair
        data = manifest(name, runs[0])["data"]["name"]
        if data not in ("cifar10", "imagenette"): continue   # made images, and starts for other data
        images = load_images(data, "test", n=args.n, seed=args.seed)
        for run in runs:
            kind, _, seed = run.rpartition("-")
            model = NAMES.get(kind, f"ADV, eps {manifest(name, run)['eps']}")
            other = {"std": f"adv-{seed}", "adv": f"std-{seed}"}.get(kind)
            weights = "+".join(manifest(name, r)["sha256"][:8] for r in (run, other) if r in runs)
            mine = [r for r in done if (r["set"], r["seed"], r["model"]) == (name, seed, model)]
            if mine and mine[0]["weights"] == weights: continue
            done = [r for r in done if r not in mine]   # of weights that are no longer bundled
            rows = [dict(zip(COLUMNS, (name, data, manifest(name, run)["arch"], model, seed, metric, eps, n, round(value, 5), weights)))
                    for metric, eps, n, value in measure(open_model(f"bundled:{name}/{run}"), images, args.steps, args.seed, open_model(f"bundled:{name}/{other}") if other in runs else None)]
            done += rows
            write(file, done)
            print(f"{name}/{run}", *(f"{r['metric']} {r['eps']} {r['value']:.4f}" for r in rows), sep="  ", flush=True)


if __name__ == "__main__": main()
