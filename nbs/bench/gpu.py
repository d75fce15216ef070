"""Minutes to a robust ResNet-18 on one GPU: CIFAR-10, `fast`, eps 8/255, 30 epochs. The result goes to nbs/results/bench/gpu.json.

    python nbs/bench/gpu.py
    python nbs/bench/gpu.py --device cpu --n 256 --epochs 1 --steps 2 --restarts 1 --out try.json    # does it run?

Wong et al. 2020 publish 12 minutes and 46 % under PGD-50 with 10 restarts, on an RTX 2080 Ti with half precision. Time counts the
epochs of training, waiting for data included; loading the set, evaluation and a first step that compiles kernels are apart. With --runs a
killed run goes on.
"""
import argparse, json, time
from functools import partial
from pathlib import Path

import timm
import torch
from torch import nn

from advlook.attacks import pgd
from advlook.balls import Linf
from advlook.data import CATALOG, load_images
from advlook.models import with_normalization
from advlook.objectives import make_objective
from advlook.robustness import accuracy, robust_accuracy
from advlook.train import fit
from advlook.watch import print_row
from common import RESULTS, fingerprint, processor, versions

EPS = 8/255


def resnet18(seed: int) -> nn.Module:
    "timm's ResNet-18 with a first layer for 32 pixels: 3 x 3, no stride, no pooling"
    torch.manual_seed(seed)
    net = timm.create_model("resnet18", num_classes=10)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return with_normalization(net, *(CATALOG["cifar10"][k] for k in ("mean", "std")))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--n", type=int, help="images to train and to test on; default: all")
    parser.add_argument("--steps", type=int, default=50, help="of PGD")
    parser.add_argument("--restarts", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, help="folder for a checkpoint each epoch")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    args = parser.parse_args()
    train, test = (load_images("cifar10", split, n=args.n, seed=args.seed) for split in ("train", "test"))
    model, objective, ball = resnet18(args.seed), make_objective("fast", EPS), Linf(EPS)
    learn = partial(fit, objective=objective, batch_size=128, learning_rate=0.2, seed=args.seed, device=args.device)
    learn(resnet18(args.seed), train[:256], epochs=1)   # whatever the first steps have to set up
    history = learn(model, train, epochs=args.epochs, out=args.runs, log=print_row)
    start = time.perf_counter()
    found = dict(accuracy=accuracy(model, test), robust_accuracy=robust_accuracy(model, test, partial(pgd, ball=ball, steps=args.steps, restarts=args.restarts), ball, seed=args.seed))
    told = dict(minutes=history.seconds.sum() / 60, **found, evaluation_minutes=(time.perf_counter() - start) / 60, images=[len(train), len(test)], attack=f"PGD-{args.steps}-{args.restarts}", epochs=args.epochs, seed=args.seed,
                device=torch.cuda.get_device_name() if args.device.startswith("cuda") else processor(), date=time.strftime("%Y-%m-%d"), versions=versions("timm"), code={m: fingerprint(m) for m in ("train", "objectives", "attacks")})
    args.out.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told, indent=1))


if __name__ == "__main__": main()
