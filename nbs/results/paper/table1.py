"""The numbers behind the paper's table 1, for every bundled model of photos. Rows go to table1.csv beside this file.

    python nbs/results/paper/table1.py

For each model: top-1, top-5, and at the paper's two radii robust accuracy (right, attacked, of all images) and defense
rate (right, attacked, of those that are right without attack), for STD and ADV of the same seed the latter also on the
images that both get right. All under two attacks: PGD-20, as in the paper, and on every so many-th of these images the
one that reports use by default. A second call goes on where the first was killed, and measures anew what has other
weights.
"""
import argparse, csv, json, sys, time
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
from advlook.strong import strong
from advlook.zoo import bundled, bundled_runs, manifest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
from common import fingerprint, processor, write_down

HERE = Path(__file__).parent
RADII = 0.005, 0.01
ATTACKS = {"PGD-20": partial(pgd, steps=20), strong.in_short(): partial(strong, steps=20)}
CODE = "apgd", "attacks", "strong", "losses", "pace"
COLUMNS = "set data arch model seed metric attack eps n value weights".split()   # the last: of its file's SHA-256
NAMES = dict(std="STD", adv="ADV", std_early="STD, early", noise="noise")   # others were trained at other radii


def clean(model, images, partner):
    "(metric, of how many images, share) of untouched images"
    hits = scores(model, images.x).topk(5, 1).indices == images.y[:, None]
    yield "top-1", *share(hits[:, 0])
    yield "top-5", *share(hits.any(1))


def attacked(model, images, partner, attack, eps, seed):
    "(metric, of how many images, share) under attack; `partner`: the model whose images are shared, or None"
    right, ball = predict(model, images.x) == images.y, Linf(eps)
    survived = survives(model, images, attack, ball, batch_size=128, seed=seed, fast=True)
    yield "robust accuracy", *share(survived)
    yield "defense rate", *share(survived[right])
    if not partner: return
    both = right & (predict(partner, images.x) == images.y)
    yield "defense rate, both right", *share(survived[both])


def share(mask):
    return len(mask), mask.float().mean().item()


def known_rows(settings):
    "What was measured before, if it was with these settings; otherwise all is measured anew"
    file, about = HERE / "table1.csv", HERE / "table1.json"
    known = json.loads(about.read_text()) if about.exists() else {}
    if file.exists() and all(known.get(key) == value for key, value in settings.items()):
        return list(csv.DictReader(file.open()))
    file.unlink(missing_ok=True)   # before it could seem to be of these settings
    return []


def note(settings, command):
    "How the table came to be"
    about = dict(command=command, date=time.strftime("%Y-%m-%d")) | settings
    return about | dict(code={module: fingerprint(module) for module in CODE}, device=processor(), versions=versions())


def weights_of(name, run, other):
    "Of which files a run's numbers are: its own, and those of the model whose images are shared"
    return "+".join(manifest(name, r)["sha256"][:8] for r in filter(None, (run, other)))


def cells(images, few, seed):
    "(attack, eps) -> what measures it, the cheap ones first"
    yield ("", ""), partial(clean, images=images)
    for name, attack in ATTACKS.items():
        some = few if name == strong.in_short() else images
        for eps in RADII: yield (name, eps), partial(attacked, images=some, attack=attack, eps=eps, seed=seed)


def rows_of(name, run, runs, cell, done):
    "New rows of a run for one attack and radius; none if they are there"
    (attack, eps), measure = cell
    kind, _, seed = run.rpartition("-")
    other = {"std": f"adv-{seed}", "adv": f"std-{seed}"}.get(kind)
    other = other if other in runs else None
    told, weights = manifest(name, run), weights_of(name, run, other)
    model = NAMES.get(kind, f"ADV, eps {told['eps']}")
    same = dict(set=name, data=told["data"]["name"], arch=told["arch"], model=model, seed=seed, attack=attack, eps=eps,
                weights=weights)
    if any(all(str(row[k]) == str(v) for k, v in same.items()) for row in done): return
    net, partner = (r and open_model(f"bundled:{name}/{r}") for r in (run, other))
    for metric, n, value in measure(net, partner=partner):
        print(f"{name}/{run}  {metric} {attack} {eps} {value:.4f}", flush=True)
        yield same | dict(metric=metric, n=n, value=round(value, 5))


def without_older(done, new):
    "Not those of weights that are no longer bundled"
    def key(row): return tuple(str(row[k]) for k in ("set", "model", "seed", "attack", "eps", "metric"))
    fresh = {key(row) for row in new}
    return [row for row in done if key(row) not in fresh]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=2_000, help="test images, class by class")
    parser.add_argument("--few", type=int, default=500, help="of these, for the stronger attack")
    parser.add_argument("--seed", type=int, default=0, help="of the sample and the random starts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    words = "l_inf, one random start, crafted fast, judged in float32"
    settings = dict(attacks=list(ATTACKS), about=words, n=args.n, few=args.few, seed=args.seed, radii=list(RADII))
    done = known_rows(settings)
    about = note(settings, f"python nbs/results/paper/table1.py --n {args.n} --few {args.few}")
    for name, runs in bundled_runs().items():
        if name not in bundled(): continue   # no pair
        data = manifest(name, runs[0])["data"]["name"]
        if data not in ("cifar10", "imagenette"): continue   # made images, and starts for other data
        images = load_images(data, "test", n=args.n, seed=args.seed)
        few = images[:: max(1, len(images) // args.few)]
        for cell in cells(images, few, args.seed):
            for run in runs:
                new = list(rows_of(name, run, runs, cell, done))
                done = without_older(done, new) + new
                write_down(HERE / "table1", COLUMNS, sorted(done, key=order), about)


def order(row): return tuple(str(row[k]) for k in ("set", "model", "seed", "attack", "eps"))


if __name__ == "__main__": main()
