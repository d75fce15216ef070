"""Trains the bundled models, one after the other, and puts each where the package finds it.

    python nbs/results/train.py                         # what is missing, in order
    python nbs/results/train.py cifar10/std-1 --runs runs
    python nbs/results/train.py --list

Each is an `advlook train`, which goes on where it was killed. What is finished goes to advlook/weights, or, if it is a start for
others and no model to be looked at, to nbs/results/weights: weights, initial weights and manifest.
"""
import argparse, shlex, shutil, subprocess, sys
from pathlib import Path

HERE = Path(__file__).parent
PACKAGE = HERE.parents[1] / "advlook" / "weights"
SMALL = "--arch {arch} --epochs 15 --batch-size 256 --learning-rate 0.2 --schedule one-cycle --probe 0"
PHOTOS = "--arch {arch} --epochs 30 --batch-size 128 --learning-rate 0.1 --schedule one-cycle --probe 0"
STARTS = "--arch resnet18_thin --size 64 --epochs 20 --batch-size 256 --learning-rate 0.2 --schedule one-cycle --probe 0"


def recipes() -> dict[str, tuple[str, str]]:
    "By where they go: data set and options"
    resnet, alexnet = SMALL.format(arch="resnet20"), SMALL.format(arch="alexnet_bn_small")
    photo, photo_alexnet = PHOTOS.format(arch="resnet18_thin"), PHOTOS.format(arch="alexnet_bn_small")
    found = {f"cifar10/{run}-{seed}": ("cifar10", f"{resnet} --objective {objective} --eps 4/255 --seed {seed}") for seed in range(6) for run, objective in (("std", "std"), ("adv", "fast"))}
    found |= {"cifar10/noise-0": ("cifar10", f"{resnet} --objective noise --eps 0.1 --seed 0")}
    found |= {f"cifar10/adv_{name}-0": ("cifar10", f"{resnet} --objective fast --eps {eps} --seed 0") for name, eps in (("0.005", "0.005"), ("2", "2/255"), ("8", "8/255"))}
    found |= {f"cifar10-alexnet/{run}-{seed}": ("cifar10", f"{alexnet} --objective {objective} --eps 4/255 --seed {seed}") for seed in range(2) for run, objective in (("std", "std"), ("adv", "fast"))}
    found |= {f"imagenette/{run}-{seed}": ("imagenette", f"{photo} --objective {objective} --eps 2/255 --seed {seed}") for run, objective, seed in (("std", "std", 0), ("adv", "fast", 0), ("std", "std", 1))}
    found |= {f"imagenette-alexnet/{run}-0": ("imagenette", f"{photo_alexnet} --objective {objective} --eps 2/255 --seed 0") for run, objective in (("std", "std"), ("adv", "fast"))}
    return found | {f"tiny-imagenet-100/{run}-{seed}": ("tiny-imagenet-100", f"{STARTS} --objective {objective} --eps 2/255 --seed {seed}") for seed in range(2) for run, objective in (("std", "std"), ("adv", "fast"))}


def place(name: str) -> Path: return (HERE / "weights" if name.startswith("tiny-imagenet") else PACKAGE) / name


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="some of them; default: all that are missing")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where they are while they train")
    parser.add_argument("--list", action="store_true", help="only say what there is")
    parser.add_argument("--threads", type=int, help="processor threads of each")
    args, known = parser.parse_args(), recipes()
    if wrong := [n for n in args.names if n not in known]: sys.exit(f"there is no recipe for {', '.join(wrong)}; --list shows all")
    for name in args.names or known:
        if args.list: print(f"{'done   ' if (place(name) / 'manifest.json').exists() else 'missing'} {name:26} advlook train {' '.join(known[name])}"); continue
        if (place(name) / "manifest.json").exists(): continue
        data, options = known[name]
        out = args.runs / name
        subprocess.run([sys.executable, "-m", "advlook.cli", "train", data, *shlex.split(options), *(["--threads", str(args.threads)] if args.threads else []), "--out", str(out)], check=True)
        place(name).mkdir(parents=True, exist_ok=True)
        for file in "model.safetensors", "initial.safetensors", "manifest.json": shutil.copyfile(out / file, place(name) / file)
        print("finished", name, flush=True)


if __name__ == "__main__": main()
