"""Trains the bundled models and puts each where the package finds it.

    python nbs/results/train.py                         # what is missing or of another recipe, in order
    python nbs/results/train.py cifar10/std-1 --runs runs
    python nbs/results/train.py --jobs 2 --threads 1    # two at a time
    python nbs/results/train.py --list

Each is an `advlook train`, which goes on where it was killed. What is finished, weights and manifest, goes to
advlook/weights; to nbs/results/weights what would make the wheel too large: starts for other data sets, second runs.
"""
import argparse, json, shlex, shutil, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
PACKAGE = HERE.parents[1] / "advlook" / "weights"
CYCLE = "--schedule one-cycle --probe 0"
SMALL = f"--epochs 15 --batch-size 256 --learning-rate 0.2 {CYCLE}"
EARLY = SMALL.replace("--probe 0", "--probe 2000 --until 0.77")   # no more accurate than ADV
# --stream for its random crops: with shifts alone so few photos are learnt by heart
CROPS = f"--stream --size 128 --batch-size 64 --learning-rate 0.05 --weight-decay 1e-3 {CYCLE}"
PHOTOS = f"{CROPS} --least 0.35 --epochs 40 --label-smoothing 0.1"
# a larger net learns more from so few photos when each comes in many lights
LONG = PHOTOS.replace("--epochs 40", "--jitter 0.4 --epochs 80")
PLAIN = f"{CROPS} --least 0.5 --epochs 30"   # as the paper trains: crops and flips, nothing else
STARTS = f"--size 64 --epochs 20 --batch-size 256 --learning-rate 0.2 {CYCLE}"
PAIR = dict(std="std", adv="fast")


def recipes() -> dict[str, str]:
    "By where they go, what follows `advlook train`"
    found = {}
    def add(folder, data, arch, options, eps, seeds, runs=PAIR):
        for seed in seeds:
            for run, objective in runs.items():
                how = f"--arch {arch} --objective {objective} --eps {eps} {options}"
                found[f"{folder}/{run}-{seed}"] = f"{data} {how} --seed {seed}"
    photos = "imagenette", "resnet18_thin"
    add("imagenette", *photos, LONG, "2/255", [0])
    add("imagenette", *photos, LONG, "2/255", [1], dict(std="std"))
    add("imagenette-plain", *photos, PLAIN, "2/255", range(6))
    add("imagenette-plain", *photos, PLAIN, "0.1", [0], dict(noise="noise"))
    add("imagenette-plain", *photos, PLAIN, "0.03", [0], dict(blur="blur"))
    add("imagenette-alexnet", "imagenette", "alexnet_bn_small", PHOTOS, "2/255", range(6))
    add("cifar10-alexnet", "cifar10", "alexnet_bn_small", SMALL, "4/255", range(2))
    cifar = "cifar10", "cifar10", "resnet20"
    add(*cifar, SMALL, "4/255", range(6))
    add(*cifar, SMALL, "0.005", [0], {"adv_0.005": "fast"})
    add(*cifar, SMALL, "2/255", [0], {"adv_2": "fast"})
    add(*cifar, SMALL, "8/255", [0], {"adv_8": "fast"})
    add(*cifar, SMALL, "0.1", [0], dict(noise="noise"))
    add(*cifar, SMALL, "0.05", [0], dict(blur="blur"))
    add(*cifar, EARLY, "4/255", [0], dict(std_early="std"))
    add("tiny-imagenet-100", "tiny-imagenet-100", "resnet18_thin", STARTS, "2/255", range(2))
    return found


def place(name: str) -> Path:
    "Where a model goes"
    second = not name.endswith("-0") and not name.startswith("cifar10/")
    large = name.startswith(("tiny-imagenet", "imagenette-plain")) or second
    return (HERE / "weights" if large else PACKAGE) / name


def state(name: str, recipe: str) -> str:
    "done, missing, or of another recipe"
    file = place(name) / "manifest.json"
    if not file.exists(): return "missing"
    command = shlex.split(json.loads(file.read_text())["command"])   # advlook train ... --out FOLDER
    return "done" if _options(command[2:-2]) == _options(shlex.split(recipe)) else "other"


def _options(words: list[str]) -> dict:
    "By option, whatever their order; numbers as such"
    found, option = {}, "data"
    for word in words:
        if word.startswith("--"):
            option = word
            found[option] = True
        else:
            number = word.replace(".", "").replace("e-", "").isdigit()
            found[option] = float(word) if number else word
    return found


def train(name: str, options: str, runs: Path, threads: int | None) -> None:
    "One model, from its begin or from where it was, to where it goes"
    out = runs / name
    here = ["--threads", str(threads)] if threads else []
    command = [sys.executable, "-m", "advlook.cli", "train", *shlex.split(options)]
    subprocess.run([*command, *here, "--out", str(out)], check=True)
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
    if wrong := [n for n in args.names if n not in known]:
        sys.exit(f"there is no recipe for {', '.join(wrong)}; --list shows all")
    states = {name: state(name, known[name]) for name in args.names or known}
    if args.list:
        for name, said in states.items(): print(f"{said:8}{name:26} advlook train {known[name]}")
        return
    todo = [name for name, said in states.items() if said != "done"]
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = {name: pool.submit(train, name, known[name], args.runs, args.threads) for name in todo}
    if failed := [name for name, run in runs.items() if run.exception()]:
        sys.exit(f"these failed, the others are finished: {', '.join(failed)}")


if __name__ == "__main__": main()
