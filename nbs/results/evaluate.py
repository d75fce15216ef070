"""The standard AutoAttack on every bundled model, at the radius of its training; the result joins its manifest.

    python nbs/results/evaluate.py                       # what has not been evaluated yet, in order
    python nbs/results/evaluate.py cifar10/adv-0 --n 500
    python nbs/results/evaluate.py --list

Each is an `advlook evaluate --attack autoattack`, which goes on where it was killed. A model that was not trained
against an attack gets the radius of the ADV model beside it. A processor that has bfloat16 crafts in it; a GPU crafts
in float32.
"""
import argparse, subprocess, sys
from pathlib import Path

import torch

from advlook.catalog import CATALOG, local_folder
from advlook.scales import MADE
from advlook.zoo import bundled_folder, bundled_runs, manifest


def radius(name: str, run: str) -> str:
    "The eps at which a model's manifest has it attacked, as words"
    return manifest(name, run)["attack"].rpartition(" ")[2]


def at_hand(name: str, run: str) -> bool:
    "Can its data set be loaded by name?"
    data = manifest(name, run)["data"]["name"]
    return data in (*CATALOG, *MADE) or local_folder(data) is not None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="some of them, as cifar10/adv-0; default: all that have no result")
    parser.add_argument("--n", type=int, default=200, help="test images; one that survives takes 6 to 30 s")
    states = Path("runs") / "autoattack"
    parser.add_argument("--states", type=Path, default=states, help="where they are while they run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="only say what there is")
    args = parser.parse_args()
    args.states.mkdir(parents=True, exist_ok=True)
    everything = [f"{name}/{run}" for name, runs in bundled_runs().items() for run in runs if at_hand(name, run)]
    for full in args.names or everything:
        name, run = full.split("/")
        done = manifest(name, run).get("evaluated", {}).get(f"autoattack linf {radius(name, run)}")
        if args.list: print(f"{full:26} {radius(name, run):6} {done or 'missing'}")
        if args.list or done and not args.names: continue
        evaluate(name, run, args)
        print("finished", full, flush=True)


def evaluate(name: str, run: str, args) -> None:
    options = {
        "data": manifest(name, run)["data"]["name"],
        "attack": "autoattack",
        "eps": radius(name, run),
        "n": args.n,
        "threads": args.threads,
        "state": args.states / f"{name}-{run}.pt",
    }
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    if not torch.cuda.is_available(): words.append("--fast")
    command = [sys.executable, "-m", "advlook.cli", "evaluate", str(bundled_folder(name, run))]
    subprocess.run([*command, *words], check=True)


if __name__ == "__main__": main()
