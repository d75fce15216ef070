"""What does compression take away? Imagenette encoded anew as coarser JPEG files, an STD model trained on each.
Rows go to jpeg.csv beside this file.

    python nbs/results/scales/jpeg.py               # what is not there yet
    python nbs/results/scales/jpeg.py --train 10    # only make the photos of quality 10 and train on them

The photos of a set `imagenette-q10` are those of imagenette, decoded and encoded at quality 10, in the same layout. The
model and its recipe are those of imagenette-alexnet/std-0 but for the data; weights go to nbs/results/weights. Each
model is measured on the test photos of its own quality, and the runs that were trained on the photos as they come on
all qualities: bytes a file, accuracy, robust accuracy and defense rate by the attack that reports use, and look scale.
A second call goes on where the first was killed.
"""
import argparse, csv, io, shlex, shutil, subprocess, sys, time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from advlook.balls import Linf
from advlook.catalog import local_folder
from advlook.core import frozen, predict
from advlook.data import load_images
from advlook.files import atomic, versions
from advlook.functions import in_batches
from advlook.gradients import margin_grad
from advlook.guided import guided_backprop
from advlook.lookscale import look_scale, shift_averaged
from advlook.robustness import share_of, survives
from advlook.strong import strong
from advlook.zoo import bundled_runs, load_bundled, manifest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
from common import write_down

HERE = Path(__file__).parent
WEIGHTS = HERE.parent / "weights"
SOURCE, MODELS = "imagenette", "imagenette-alexnet"
QUALITIES = 30, 10
RADII = "0.005", "2/255"
MAPS = {"Guided Backprop, averaged": shift_averaged(guided_backprop), "Margin Grad": margin_grad}
COLUMNS = "set run weights photos bytes metric attribution eps n value".split()


def encoded(photo: dict, quality: int) -> dict:
    "The same photo at another quality"
    picture, file = Image.open(io.BytesIO(photo["bytes"])), io.BytesIO()
    picture.convert("RGB").save(file, "JPEG", quality=quality)
    return photo | dict(bytes=file.getvalue())


def make_photos(quality: int, out: Path) -> Path:
    "The whole set at this quality, in the layout of the source"
    folder = out / f"{SOURCE}-q{quality}"
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(local_folder(SOURCE).glob("*.parquet")):
        if (folder / file.name).exists(): continue
        table = pq.read_table(file)
        photos = [encoded(photo, quality) for photo in table["image"].to_pylist()]
        field = table.schema.field("image")
        coarse = table.set_column(table.schema.get_field_index("image"), field, pa.array(photos, field.type))
        with atomic(folder / file.name) as part: pq.write_table(coarse, part, row_group_size=180)
    return folder


def bytes_of(folder: Path) -> int:
    "Of a test photo, on average"
    table = pq.read_table(next(folder.glob("validation*.parquet")))
    return round(np.mean([len(photo["bytes"]) for photo in table["image"].to_pylist()]))


def train(folder: Path, runs: Path) -> None:
    "The bundled recipe on these photos; what is there is not trained again"
    place, out = WEIGHTS / folder.name / "std-0", runs / folder.name
    if place.exists(): return
    words = shlex.split(manifest(MODELS, "std-0")["command"])[3:-2]   # advlook train DATA ... --out FOLDER
    command = [sys.executable, "-m", "advlook.cli", "train", str(folder), *words]
    subprocess.run([*command, "--threads", str(torch.get_num_threads()), "--out", str(out)], check=True)
    place.mkdir(parents=True)
    for file in "manifest.json", "model.safetensors": shutil.copyfile(out / file, place / file)


def measure(model, images, seed: int):
    "(metric, attribution, eps, of how many images, value)"
    answers = predict(model, images.x)
    right = answers == images.y
    yield "accuracy", "", "", len(images), share_of(right)
    for eps in RADII:
        above, _, below = eps.partition("/")
        ball = Linf(float(above) / float(below or 1))
        survived = survives(model, images, partial(strong, ball=ball), ball, batch_size=64, seed=seed, fast=True)
        yield "robust accuracy", "", eps, len(images), share_of(survived)
        yield "defense rate", "", eps, int(right.sum()), share_of(survived[right])
    for name, attribution in MAPS.items():
        with frozen(model): maps = in_batches(attribution, model, images.x[:100], answers[:100])
        yield "look scale", name, "", len(maps), look_scale(maps).log().mean().exp().item()


def write(rows: list[dict], args) -> None:
    about = dict(command=f"python nbs/results/scales/jpeg.py --n {args.n}", date=time.strftime("%Y-%m-%d"))
    about |= dict(n=args.n, seed=args.seed, attack=strong.in_short(), threads=args.threads, device="cpu")
    about |= dict(versions=versions())
    write_down(HERE / "jpeg", COLUMNS, rows, about)


def pairs(folders: dict[str, Path]):
    "(set, run, photos): each model on its own photos first, then those of the source on all"
    coarse, runs = [photos for photos in folders if photos != SOURCE], bundled_runs()[MODELS]
    yield from ((photos, "std-0", photos) for photos in coarse)
    for photos in SOURCE, *coarse: yield from ((MODELS, run, photos) for run in runs if run.startswith("std-"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, nargs="+", help="only these qualities, and measure nothing")
    parser.add_argument("--data", type=Path, default=Path("runs/jpeg"), help="where the coarser photos go")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where models are while they train")
    parser.add_argument("--n", type=int, default=500, help="test photos, class by class")
    parser.add_argument("--seed", type=int, default=0, help="of the sample and the random starts")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folders = {SOURCE: local_folder(SOURCE)}
    for quality in args.train or QUALITIES:
        folder = make_photos(quality, args.data)
        folders[folder.name] = folder
        train(folder, args.runs)
    if args.train: return
    file = HERE / "jpeg.csv"
    rows = list(csv.DictReader(file.open())) if file.exists() else []
    for name, run, photos in pairs(folders):
        same = dict(set=name, run=run, weights=manifest(name, run)["sha256"][:8], photos=photos)
        if any(same.items() <= row.items() for row in rows): continue
        rows = [row for row in rows if (row["set"], row["run"], row["photos"]) != (name, run, photos)]
        images = load_images(folders[photos], "test", n=args.n, seed=args.seed, size=128)
        same["bytes"] = bytes_of(folders[photos])
        for metric, attribution, eps, n, value in measure(load_bundled(name, run), images, args.seed):
            rows.append(same | dict(metric=metric, attribution=attribution, eps=eps, n=n, value=round(value, 5)))
        write(rows, args)
        print(name, run, "on", photos, *(row["value"] for row in rows[-7:]), flush=True)


if __name__ == "__main__": main()
