"""Trains the bundled models and puts each where the package finds it.

    python nbs/results/train.py                         # what is missing or of another recipe, in order
    python nbs/results/train.py cifar10/std-1 --runs runs
    python nbs/results/train.py --jobs 2 --threads 1    # two at a time
    python nbs/results/train.py --list

Each is an `advlook train`, which goes on where it was killed. What is finished, weights and manifest, goes to advlook/weights; to
nbs/results/weights what would make the wheel too large: starts for other data sets, and second runs.
"""
import argparse, json, shlex, shutil, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
PACKAGE = HERE.parents[1] / "advlook" / "weights"
SMALL = "--epochs 15 --batch-size 256 --learning-rate 0.2 --schedule one-cycle --probe 0"
PHOTOS = "--stream --least 0.35 --size 128 --epochs 40 --batch-size 64 --learning-rate 0.05 --weight-decay 1e-3 --label-smoothing 0.1 --schedule one-cycle --probe 0"   # --stream for its random crops: with shifts alone so few photos are learnt by heart
LONG = PHOTOS.replace("--epochs 40", "--jitter 0.4 --epochs 80")   # a larger net learns more from so few photos when each comes in many lights
PLAIN = "--stream --least 0.5 --size 128 --epochs 30 --batch-size 64 --learning-rate 0.05 --weight-decay 1e-3 --schedule one-cycle --probe 0"   # as the paper trains: crops and flips, nothing else
STARTS = "--size 64 --epochs 20 --batch-size 256 --learning-rate 0.2 --schedule one-cycle --probe 0"
PAIR = dict(std="std", adv="fast")


def recipes() -> dict[str, str]:
    "By where they go, what follows `advlook train`"
    def some(folder, data, arch, options, eps, seeds, runs=PAIR):
        return {f"{folder}/{run}-{seed}": f"{data} --arch {arch} --objective {objective} --eps {eps} {options} --seed {seed}" for seed in seeds for run, objective in runs.items()}
    cifar = "cifar10", "cifar10", "resnet20", SMALL
    found = some("imagenette", "imagenette", "resnet18_thin", LONG, "2/255", [0]) | some("imagenette", "imagenette", "resnet18_thin", LONG, "2/255", [1], dict(std="std"))
    found |= some("imagenette-plain", "imagenette", "resnet18_thin", PLAIN, "2/255", range(6))
    found |= some("imagenette-alexnet", "imagenette", "alexnet_bn_small", PHOTOS, "2/255", [0])
    found |= some("cifar10-alexnet", "cifar10", "alexnet_bn_small", SMALL, "4/255", range(2))
    found |= some(*cifar, "4/255", range(6))
    for eps in "0.005", "2/255", "8/255": found |= some(*cifar, eps, [0], {f"adv_{eps.partition('/')[0]}": "fast"})
    found |= some(*cifar, "0.1", [0], dict(noise="noise"))
    found |= some(*cifar[:3], SMALL.replace("--probe 0", "--probe 2000 --until 0.77"), "4/255", [0], dict(std_early="std"))   # no more accurate than ADV
    return found | some("tiny-imagenet-100", "tiny-imagenet-100", "resnet18_thin", STARTS, "2/255", range(2))


def place(name: str) -> Path:
    "Where a model goes"
    large = name.startswith(("tiny-imagenet", "imagenette-plain")) or name.endswith("-1") and not name.startswith("cifar10/")
    return (HERE / "weights" if large else PACKAGE) / name


def standing(name: str, recipe: str) -> str:
    "done, missing, or of another recipe"
    file = place(name) / "manifest.json"
    if not file.exists(): return "missing"
    command = shlex.split(json.loads(file.read_text())["command"])   # advlook train ... --out FOLDER
    return "done" if _options(command[2:-2]) == _options(shlex.split(recipe)) else "other"


def _options(words: list[str]) -> dict:
    "By option, whatever their order; numbers as such"
    found, option = {}, "data"
    for word in words:
        if word.startswith("--"): option = word; found[option] = True
        else: found[option] = float(word) if word.replace(".", "").replace("e-", "").isdigit() else word
    return found


def train(name: str, options: str, runs: Path, threads: int | None) -> None:
    "One model, from its begin or from where it was, to where it goes"
    out = runs / name
    subprocess.run([sys.executable, "-m", "advlook.cli", "train", *shlex.split(options), *(["--threads", str(threads)] if threads else []), "--out", str(out)], check=True)
    place(name).mkdir(parents=True, exist_ok=True)
    for file in "model.safetensors", "manifest.json": shutil.copyfile(out / file, place(name) / file)
    print("finished", name, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="some of them; default: all that are missing or of another recipe")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where they are while they train")
    parser.add_argument("--list", action="store_true", help="only say what there is")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    parser.add_argument("--threads", type=int, help="processor threads of each")
    args, known = parser.parse_args(), recipes()
    if wrong := [n for n in args.names if n not in known]: sys.exit(f"there is no recipe for {', '.join(wrong)}; --list shows all")
    names = args.names or list(known)
    if args.list:
        for name in names: print(f"{standing(name, known[name]):8}{name:26} advlook train {known[name]}")
        return
    with ThreadPoolExecutor(args.jobs) as pool: runs = {n: pool.submit(train, n, known[n], args.runs, args.threads) for n in names if standing(n, known[n]) != "done"}
    if failed := [n for n, run in runs.items() if run.exception()]: sys.exit(f"these failed, the others are finished: {', '.join(failed)}")


if __name__ == "__main__": main()
