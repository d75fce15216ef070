"""Minutes to a robust ResNet-18 on one GPU: CIFAR-10, `fast`, eps 8/255, 30 epochs

    python nbs/bench/gpu.py
    python nbs/bench/gpu.py --device cpu --n 256 --epochs 1 --steps 2 --restarts 1 --out try.json   # does it run?

Wong et al. 2020 publish 12 minutes and 46 % under PGD-50 with 10 restarts, on an RTX 2080 Ti with half precision. Time
counts the epochs of training, waiting for data included; loading the set, evaluation and a first step that compiles
kernels are apart. With --runs a killed run goes on. Before it, how many images a second `fit` and a loop written by
hand (that of training.py) train on. The result goes to nbs/results/bench/gpu.json.
"""
import argparse, json, sys, time
from functools import partial
from pathlib import Path

import timm
import torch
from torch import nn

from advlook.attacks import pgd
from advlook.balls import Linf
from advlook.data import CATALOG, load_images
from advlook.preparation import with_normalization
from advlook.objectives import make_objective
from advlook.robustness import accuracy, robust_accuracy
from advlook.parallel import fast_precision
from advlook.train import fit
from advlook.listeners import print_row
from common import RESULTS, fingerprint, processor, versions
from training import by_hand, loop, ours

EPS, BATCH = 8/255, 128
USED = "core noise functions losses passes attacks batches train adversarial objectives robustness".split()


def resnet18(seed: int) -> nn.Module:
    "timm's ResNet-18 with a first layer for 32 pixels: 3 x 3, no stride, no pooling"
    torch.manual_seed(seed)
    net = timm.create_model("resnet18", num_classes=10)
    net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    net.maxpool = nn.Identity()
    return with_normalization(net, CATALOG["cifar10"]["mean"], CATALOG["cifar10"]["std"])


def pace(images, device: str, blocks: int) -> dict[str, dict[str, float]]:
    "Images a second, by objective and contender: the best of some turns, in bfloat16 where the device has it"
    precision = fast_precision(device)
    how = dict(make=partial(resnet18, 0), batch_size=BATCH, device=device)
    def fitted(some, objective): ours(some, objective, precision, **how)
    def written(some, objective): loop(some, partial(by_hand, attack=objective), precision, **how)
    known = {"fit": fitted, "by hand": written}
    found = {objective: dict.fromkeys(known, 0.0) for objective in ("std", "fgsm", "fast")}
    for _ in range(blocks):
        for objective, best in found.items():
            for name, run in known.items():
                run(images[:2 * BATCH], objective)
                start = time.perf_counter()
                run(images, objective)
                if device.startswith("cuda"): torch.cuda.synchronize()
                best[name] = max(best[name], len(images) / (time.perf_counter() - start))
    return found


def judged(model, test, args) -> dict[str, float]:
    start, ball = time.perf_counter(), Linf(EPS)
    attack = partial(pgd, ball=ball, steps=args.steps, restarts=args.restarts)
    found = dict(accuracy=accuracy(model, test))
    found["robust_accuracy"] = robust_accuracy(model, test, attack, ball, seed=args.seed)
    return found | dict(evaluation_minutes=(time.perf_counter() - start) / 60)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--n", type=int, help="images to train and to test on; default: all")
    parser.add_argument("--steps", type=int, default=50, help="of PGD")
    parser.add_argument("--restarts", type=int, default=10)
    parser.add_argument("--blocks", type=int, default=3, help="turns in which images a second are measured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, help="folder for a checkpoint each epoch")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    args = parser.parse_args()
    train = load_images("cifar10", "train", n=args.n, seed=args.seed)
    test = load_images("cifar10", "test", n=args.n, seed=args.seed)
    model = resnet18(args.seed)
    how = dict(batch_size=BATCH, learning_rate=0.2, seed=args.seed, device=args.device)
    learn = partial(fit, objective=make_objective("fast", EPS), **how)
    images_a_second = pace(train[:25_600], args.device, args.blocks)
    print(json.dumps(images_a_second), flush=True)
    learn(resnet18(args.seed), train[:256], epochs=1)   # whatever the first steps have to set up
    history = learn(model, train, epochs=args.epochs, out=args.runs, log=print_row)
    minutes = history.seconds.sum() / 60
    print(f"trained in {minutes:.2f} minutes", flush=True)
    told = dict(
        command=" ".join(["python nbs/bench/gpu.py", *sys.argv[1:]]),
        images_a_second=images_a_second,
        minutes=minutes,
        **judged(model, test, args),
        images=[len(train), len(test)],
        attack=f"PGD-{args.steps}-{args.restarts}",
        epochs=args.epochs,
        seed=args.seed,
        device=torch.cuda.get_device_name() if args.device.startswith("cuda") else processor(),
        date=time.strftime("%Y-%m-%d"),
        versions=versions("timm"),
        code={module: fingerprint(module) for module in USED},
    )
    args.out.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told, indent=1))


if __name__ == "__main__": main()
