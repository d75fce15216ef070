"""Accuracy of every bundled model of photos under blur, median and reversal, as in the paper's figures 6 and 22 and its
table 2. Rows go to transforms.csv beside this file.

    python nbs/results/paper/transforms.py

The paper filters images of 224 pixels. On photos of 128 pixels the filters are scaled with the side: sigma to 1.1
pixels, median of 3 x 3. On photos of 32 pixels no filter is as fine, so these get the paper's own strengths, which
take away far more there. A second call goes on where the first was killed, and measures anew what has other weights.
"""
import argparse, csv, json, sys, time
from pathlib import Path

import pandas as pd
import torch

from advlook.benchmark import benchmark, untouched
from advlook.data import CATALOG, load_images
from advlook.files import atomic, versions
from advlook.transforms import GaussianBlur, MedianFilter, ReverseColors
from advlook.zoo import bundled, bundled_runs, load_bundled, manifest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "bench"))
from common import fingerprint, processor

CODE = "benchmark", "transforms", "core"
COLUMNS = "set data run seed transform strength real_sigma accuracy n weights".split()
SIGMAS = dict(imagenette=(0, .275, .55, .825, 1.1), cifar10=(0, 1, 2, 5))   # as asked of a kernel of 7 taps
KERNELS = dict(imagenette=3, cifar10=5)
PASSES = range(6)


def filters(data: str) -> dict:
    "What is done to the photos of a data set: name -> strength -> transform"
    blurs = {sigma: GaussianBlur(sigma) for sigma in SIGMAS[data]}
    medians = {times: MedianFilter(KERNELS[data], times) for times in PASSES}
    reversal = {0: untouched, 1: ReverseColors(CATALOG[data]["mean"])}   # about the mean of these photos
    return {"blur": blurs, "median": medians, "reversal": reversal}


def measure(name: str, run: str, images, told: dict) -> list[dict]:
    "The rows of one model"
    kind, _, seed = run.rpartition("-")
    same = dict(set=name, data=told["data"]["name"], run=kind, seed=seed, weights=told["sha256"][:8])
    asked = filters(same["data"])
    rows = []
    for r in benchmark({run: load_bundled(name, run)}, images, asked).itertuples():
        sigma = f"{asked['blur'][r.strength].real_sigma:.3f}" if r.transform == "blur" else ""
        rows.append(same | dict(transform=r.transform, strength=f"{r.strength:g}", real_sigma=sigma,
                                accuracy=f"{r.value:.4f}", n=r.n))
    return rows


def known_rows(now: dict) -> list[dict]:
    "What was measured before, if it was with these settings and this code"
    file, about = HERE / "transforms.csv", HERE / "transforms.json"
    known = json.loads(about.read_text()) if about.exists() else {}
    same = all(known.get(key) == now[key] for key in ("n", "seed", "strengths", "code"))
    return list(csv.DictReader(file.open())) if file.exists() and same else []


def write(rows: list[dict], about: dict) -> None:
    with atomic(HERE / "transforms.csv") as part:
        pd.DataFrame(rows, columns=COLUMNS).to_csv(part, index=False, lineterminator="\n")
    with atomic(HERE / "transforms.json") as part: part.write_text(json.dumps(about, indent=1) + "\n")


def how(args) -> dict:
    "How the table comes to be"
    command = f"python nbs/results/paper/transforms.py --n {args.n}"
    strengths = {data: dict(sigma=list(SIGMAS[data]), median=KERNELS[data], passes=list(PASSES)) for data in SIGMAS}
    code = {module: fingerprint(module) for module in CODE}
    about = dict(command=command, date=time.strftime("%Y-%m-%d"), n=args.n, seed=args.seed, strengths=strengths)
    return about | dict(code=code, device=processor(), versions=versions())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=2_000, help="test images, class by class")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    about = how(args)
    done = known_rows(about)
    for name, runs in bundled_runs().items():
        if name not in bundled(): continue   # no pair
        data = manifest(name, runs[0])["data"]["name"]
        if data not in SIGMAS: continue   # made images, and starts for other data
        images = load_images(data, "test", n=args.n, seed=args.seed)
        for run in runs:
            told = manifest(name, run)
            mine = [r for r in done if f"{r['run']}-{r['seed']}" == run and r["set"] == name]
            if mine and mine[0]["weights"] == told["sha256"][:8]: continue
            done = [r for r in done if r not in mine] + measure(name, run, images, told)
            write(done, about)
            print(time.strftime("%H:%M:%S"), f"{name}/{run}", flush=True)


if __name__ == "__main__": main()
