"""How much does the attack that is used by default miss? It, PGD and shorter ensembles beside AutoAttack.
Rows go to strength.csv beside this file.

    python nbs/results/paper/strength.py

Each attack is crafted fast and judged in float32, on the same test images. `passes` counts gradients: images that went
through the network forwards and backwards, divided by n. `who` are the survivors, one bit an image, in hexadecimal.

The reference are AutoAttack's own first two stages at full length (APGD on cross-entropy, then targeted APGD to nine
classes, 100 steps each), on the images that survive the default attack; so it counts what survives both, and the
distance from it can only be too large. Where a model's manifest has the whole AutoAttack on 100 or 200 of these
images, that is a row of its own, "AutoAttack on 100", and default and reference have one on the same images. A second
call goes on where the first was killed, and measures anew what has other weights.
"""
import argparse, csv, json, sys, time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from advlook.apgd import apgd
from advlook.attacks import pgd
from advlook.autoattack import stages
from advlook.balls import Linf
from advlook.core import predict
from advlook.data import load_images
from advlook.files import versions
from advlook.robustness import survives, worst_case
from advlook.strong import strong
from advlook.zoo import load_bundled, manifest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "bench"))
from common import fingerprint, processor, write_down

CODE = "apgd", "attacks", "strong", "losses", "pace"
COLUMNS = "set run eps attack n accuracy robust_accuracy passes who weights".split()
DEFAULT, REFERENCE, WHOLE = "APGD-CE+T-20", "APGD-CE+T-100, 9 classes", "AutoAttack"
CELLS = [(name, run, eps) for name, run, radii in (
    ("imagenette", "std-0", ("4/255", "2/255")),
    ("cifar10", "std-0", ("4/255", "0.005")),
    ("cifar10", "adv-0", ("4/255", "0.005")),
    ("cifar10", "noise-0", ("4/255", "0.005")),
    ("cifar10-alexnet", "std-0", ("4/255",)),
    ("cifar10-alexnet", "adv-0", ("4/255",)),
    ("imagenette-alexnet", "std-0", ("2/255",)),
    ("imagenette-alexnet", "adv-0", ("2/255",)),
    ("imagenette", "adv-0", ("2/255", "4/255"))) for eps in radii]
N = dict(cifar10=500, imagenette=200)


def short_attacks(ball) -> dict[str, dict]:
    "Name -> what is tried in turn"
    def climbs(**how): return partial(apgd, ball=ball, **how)
    return {
        "PGD-10": dict(ce=partial(pgd, ball=ball, steps=10)),
        "PGD-20": dict(ce=partial(pgd, ball=ball, steps=20)),
        "APGD-CE+DLR-20": dict(ce=climbs(steps=20), dlr=climbs(steps=20, loss="dlr")),
        "APGD-CE+T-10": dict(all=partial(strong, ball=ball, steps=10)),
        DEFAULT: dict(all=partial(strong, ball=ball))}


class Counter:
    "How many images went through a model with a gradient; stand-ins take it along"
    def __init__(self): self.passes = 0
    def __deepcopy__(self, memo): return self
    def __call__(self, module, given): self.passes += len(given[0]) if torch.is_grad_enabled() else 0


class Cell:
    "One model in one ball: its rows, beginning with those that are there"

    def __init__(self, name: str, run: str, eps: str, done: list[dict]):
        told = manifest(name, run)
        above, _, below = eps.partition("/")
        data, self.ball = told["data"]["name"], Linf(float(above) / float(below or 1))
        self.images = load_images(data, "test", n=N[data], seed=0)
        self.same = dict(set=name, run=run, eps=eps, n=len(self.images), weights=told["sha256"][:8])
        mine = [r for r in done if all(str(r[k]) == str(v) for k, v in self.same.items())]
        self.rows = {r["attack"]: r for r in mine}
        self.model, self.counter = load_bundled(name, run), Counter()
        self.model.register_forward_pre_hook(self.counter)
        self.right = predict(self.model, self.images.x) == self.images.y
        self.whole = told.get("evaluated", {}).get(f"autoattack linf {eps}")

    def row(self, attack: str, survived: torch.Tensor, passes: float | str) -> dict:
        who = np.packbits(survived.numpy()).tobytes().hex()
        return self.same | dict(attack=attack, accuracy=share(self.right), robust_accuracy=share(survived),
                                passes=passes, who=who)

    def short(self):
        for attack, tries in short_attacks(self.ball).items():
            if attack in self.rows: continue
            self.counter.passes = 0
            survived, _ = worst_case(self.model, self.images, tries, self.ball, batch_size=64, fast=True)
            yield self.row(attack, survived, round(self.counter.passes / len(self.images), 1))
        if self.whole and not any(attack.startswith(WHOLE) for attack in self.rows): yield self.row_of_whole()

    def row_of_whole(self) -> dict:
        told = self.whole
        return self.same | dict(attack=f"{WHOLE} on {told['images']}", accuracy=told["accuracy"],
                                robust_accuracy=told["robust_accuracy"], passes="", who="")

    def on_the_same(self):
        "The default attack and the reference on the images that AutoAttack had"
        if not self.whole: return
        n, kept = self.whole["images"], {image.numpy().tobytes(): i for i, image in enumerate(self.images.x)}
        part = load_images(manifest(self.same["set"], self.same["run"])["data"]["name"], "test", n=n, seed=0)
        index = [kept[image.numpy().tobytes()] for image in part.x]
        for attack in DEFAULT, REFERENCE:
            if attack not in self.rows or f"{attack} on {n}" in self.rows: continue
            survived = bits(self.rows[attack]["who"], len(self.images))[index]
            yield self.same | dict(attack=f"{attack} on {n}", accuracy=share(self.right[index]),
                                   robust_accuracy=share(survived), passes="", who="")

    def reference(self):
        if REFERENCE in self.rows: return
        survived = bits(self.rows[DEFAULT]["who"], len(self.images))
        self.counter.passes = 0
        for attack in [stages("standard", self.ball, 10)[stage] for stage in ("apgd-ce", "apgd-t")]:
            left = survived.clone()
            survived[left] = survives(self.model, self.images[left], attack, self.ball, batch_size=64, fast=True)
        yield self.row(REFERENCE, survived, "")


def share(mask: torch.Tensor) -> float: return round(mask.float().mean().item(), 4)


def bits(who: str, n: int) -> torch.Tensor:
    "Survivors, as a row of the table has them"
    return torch.from_numpy(np.unpackbits(np.frombuffer(bytes.fromhex(who), np.uint8))[:n].astype(bool))


def known_rows(now: dict) -> list[dict]:
    "What was measured before, if it was with this code"
    file, about = HERE / "strength.csv", HERE / "strength.json"
    known = json.loads(about.read_text()) if about.exists() else {}
    return list(csv.DictReader(file.open())) if file.exists() and known.get("code") == now["code"] else []


def note() -> dict:
    "How the table came to be"
    about = dict(command="python nbs/results/paper/strength.py", seed=0, n=N, date=time.strftime("%Y-%m-%d"))
    code = {module: fingerprint(module) for module in CODE}
    return about | dict(code=code, device=processor(), versions=versions())


def write(rows: list[dict], about: dict) -> None:
    write_down(HERE / "strength", COLUMNS, rows, about)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    about = note()
    done = known_rows(about)
    for part in Cell.short, Cell.on_the_same, Cell.reference, Cell.on_the_same:   # what is cheap first
        for name, run, eps in CELLS:
            cell = Cell(name, run, eps, done)
            others = [r for r in done if (r["set"], r["run"], r["eps"]) != (name, run, eps)]
            for row in part(cell):
                cell.rows[row["attack"]] = row
                write(done := others + list(cell.rows.values()), about)
                print(name, run, eps, row["attack"], row["robust_accuracy"], row["passes"], flush=True)


if __name__ == "__main__": main()
