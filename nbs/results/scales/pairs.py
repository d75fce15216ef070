"""How large does each training run look? The look scale of every bundled run, by four attributions and two averages

    python nbs/results/scales/pairs.py          # what is not there yet, or of other weights
    python nbs/results/scales/pairs.py --anew   # everything

All runs of a data set see the same test images, and each explains its own answer; `random` is the run before training.
A row of pairs.csv, beside this file, is a run: the geometric mean over the images. pairs.json tells how it came to be.
The averages are also written into the manifests, where reports find them.
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
AVERAGED = {
    "Guided Backprop, averaged": shift_averaged(guided_backprop), "Margin Grad, averaged": shift_averaged(margin_grad)}
ATTRIBUTIONS = AVERAGED | {
    "Margin Grad": margin_grad, "Loss Grad": loss_grad,
    "Vanilla Grad": vanilla_grad, "Guided Backprop": guided_backprop}
SETS = "cifar10", "cifar10-alexnet", "imagenette", "imagenette-alexnet"


def runs_of(name: str) -> list[str]:
    "The bundled runs, and those of STD before training"
    runs = bundled_runs()[name]
    return runs + [run.replace("std-", "random-") for run in runs if run.startswith("std-")]


def weights_of(name: str, run: str) -> str:
    "The begin of their digest"
    random = run.startswith("random-")
    made = manifest(name, run.replace("random-", "std-"))
    return made["initial_sha256" if random else "sha256"][:12]


def photos_of(name: str, n: int, share: int, seed: int):
    "The test photos by which the runs of a set are compared: n, class by class; of Imagenette one in `share` of that"
    data = manifest(name, "std-0")["data"]["name"]
    n, size = (n, None) if data == "cifar10" else (n // share, 128)
    return load_images(data, "test", n=n, seed=seed, size=size)


def measure(name: str, run: str, images, done: set):
    "A row for each attribution of a run, such as std-0, that is not done"
    kind, _, seed = run.rpartition("-")
    about = dict(set=name, run=kind, seed=int(seed), weights=weights_of(name, run))
    todo = {a: function for a, function in ATTRIBUTIONS.items() if (*about.values(), a) not in done}
    if not todo: return
    model = load_bundled(name, run)
    answers = predict(model, images.x)
    for attribution, function in todo.items():
        with frozen(model): maps = in_batches(function, model, images.x, answers)
        scale = look_scale(maps).log().mean().exp().item()
        yield about | dict(attribution=attribution, look_scale=round(scale, 5))


def write_down(table: pd.DataFrame, images: dict[str, int]) -> None:
    "Into each manifest: the look scale of its run by averaged maps and, of STD, before training"
    chosen = {}
    for r in table[table.attribution.isin(AVERAGED)].itertuples():
        chosen.setdefault((r.set, f"{r.run}-{r.seed}"), {})[r.attribution] = r.look_scale
    for (name, run), pixels in chosen.items():
        if run.startswith("random-"): continue
        told = dict(images=images[name], pixels=pixels)
        if run.startswith("std-"): told["before training"] = chosen[name, run.replace("std-", "random-")]
        remember(bundled_folder(name, run), manifest(name, run), "look scale", told)


def place(row: dict) -> tuple:
    "What a row is of"
    return tuple(row[key] for key in ("set", "run", "seed", "attribution"))


def write(rows: list[dict], args) -> pd.DataFrame:
    "The table, in order, and how it came to be"
    table = pd.DataFrame(rows)
    order = table["set"].map(SETS.index), table.run, table.seed, table.attribution.map([*ATTRIBUTIONS].index)
    table = table.iloc[pd.concat(order, axis=1, keys=range(4)).sort_values([*range(4)]).index]
    with atomic(HERE / "pairs.csv") as part: table.to_csv(part, index=False, lineterminator="\n")
    about = dict(command="python nbs/results/scales/pairs.py", date=time.strftime("%Y-%m-%d"), device="cpu")
    about |= dict(n=args.n, seed=args.seed, threads=args.threads, versions=versions())
    with atomic(HERE / "pairs.json") as part: part.write_text(json.dumps(about, indent=1) + "\n")
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=300, help="test images, class by class; of Imagenette a third")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--anew", action="store_true", help="also what is there")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    file, counts = HERE / "pairs.csv", {}
    rows = [] if args.anew or not file.exists() else pd.read_csv(file, dtype=dict(weights=str)).to_dict("records")
    done = {tuple(row[key] for key in ("set", "run", "seed", "weights", "attribution")) for row in rows}
    for name in SETS:
        images = photos_of(name, args.n, 3, args.seed)
        counts[name] = len(images)
        for run in runs_of(name):
            new = list(measure(name, run, images, done))
            if not new: continue
            replaced = set(map(place, new))
            rows = [row for row in rows if place(row) not in replaced] + new
            write(rows, args)
            print(name, run, *(f"{row['look_scale']:.2f}" for row in new), flush=True)
    write_down(write(rows, args), counts)


if __name__ == "__main__": main()
