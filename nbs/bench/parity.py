"""Do the attacks do what the official code does? Rows go to nbs/results/bench/parity.csv: a number of theirs, ours, and what they may differ by.

    bash nbs/bench/peers.sh && nbs/bench/.peers/bin/python nbs/bench/parity.py

Where an attack is a rule, both get the same start, and every pixel has to be the same; in float64, since in float32 the sign of a
gradient that is nearly zero depends on the order of sums. Where an attack draws its own random numbers, the images that stand are
counted. Where it looks for the smallest perturbation, the sizes are compared. A second call skips what has been compared.
"""
import argparse, math, warnings
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch import nn

from advlook.balls import L1, L2, Linf, into
from advlook.core import frozen, to_float
from advlook.noise import PerImage, image_seeds
from advlook.data import load_images
from advlook.zoo import load_trio
from common import PEERS, RESULTS, Rows

USED = ["core", "noise", "functions", "balls", "attacks", "minimal", "fab", "apgd", "square", "sparse", "universal"]
BALLS = {"l_inf": Linf(4/255), "l_2": L2(0.5), "l_1": L1(12.0)}
CHECKS = {}


def check(family: str):
    "A function of a bench (models and images) that yields rows; it is named by its family and itself"
    def keep(f): CHECKS[f"{family}: {f.__doc__}"] = f; return f
    return keep


def pixels(theirs, ours, most=1e-6, **where): return where | dict(quantity="largest difference of a pixel", difference=(theirs - ours).abs().max().item(), most=most)


def count(theirs: int, ours: int, most: float, **where): return where | dict(quantity="images that stand", theirs=theirs, ours=ours, difference=abs(theirs - ours) / where["n"], most=most)


def sizes(theirs, ours, most=0.02, **where):
    "Medians of norms; finding shorter ones than the peer is no fault"
    a, b = theirs.median().item(), ours.median().item()
    return dict(quantity="median norm") | where | dict(theirs=a, ours=b, difference=b / a - 1, most=most)


def images_of(b, name, n, double=False):
    "The model, and n images that it gets right"
    key = name, n, double
    if key not in b.kept:
        model = load_trio("cifar10")[name].eval().to(memory_format=torch.contiguous_format)  # some peers fail on channels-last gradients
        for p in model.parameters(): p.requires_grad_(False)
        images = load_images("cifar10", "test", n=2 * n + 20, seed=b.seed)
        x, y = to_float(images.x).contiguous(), images.y
        with torch.no_grad(): right = model(x).argmax(1) == y
        x, y = x[right][:n], y[right][:n]
        b.kept[key] = (model.double(), x.double(), y) if double else (model, x, y)
    return b.kept[key]


def survivors(model, x, y):
    with torch.no_grad(): return int((model(x).argmax(1) == y).sum())


# ---- the loop of attacks.py

@check("attacks")
def fgsm(b):
    "FGSM"
    import foolbox, torchattacks
    from advlook.attacks import fgsm
    for name in b.models:
        m, x, y = images_of(b, name, 64, True)
        where = dict(attack="fgsm", model=name, ball="l_inf", n=len(x), steps=1)
        yield pixels(torchattacks.FGSM(m, eps=4/255)(x, y), fgsm(m, x, y), peer="torchattacks", **where)
        yield pixels(foolbox.attacks.LinfFastGradientAttack()(foolbox.PyTorchModel(m, (0, 1), device="cpu"), x, y, epsilons=4/255)[1], fgsm(m, x, y), peer="foolbox", **where)
        yield pixels(foolbox.attacks.L2FastGradientAttack()(foolbox.PyTorchModel(m, (0, 1), device="cpu"), x, y, epsilons=0.5)[1], fgsm(m, x, y, L2(0.5)), peer="foolbox", **where | dict(ball="l_2"))


@check("attacks")
def pgd(b):
    "PGD from the same random start"
    import foolbox, torchattacks
    from advlook.attacks import pgd
    for name in b.models:
        m, x, y = images_of(b, name, 32, True)
        for kind, ball, theirs, foolbox_attack in (("l_inf", Linf(4/255), torchattacks.PGD, foolbox.attacks.LinfPGD), ("l_2", L2(0.5), torchattacks.PGDL2, foolbox.attacks.L2PGD)):
            where, step = dict(attack="pgd", model=name, ball=kind, n=len(x), steps=10), ball.eps / 4
            torch.manual_seed(b.seed); start = theirs(m, eps=ball.eps, alpha=0.0, steps=1)(x, y)   # a step of length 0 gives its random start away
            torch.manual_seed(b.seed); peer = theirs(m, eps=ball.eps, alpha=step, steps=10)(x, y)
            yield pixels(peer, pgd(m, x, y, ball, 10, step, start=start), peer="torchattacks", **where)
            attack = foolbox_attack(abs_stepsize=step, steps=10, random_start=True)
            start = into(ball, x, x + ball.sample(x, torch.Generator().manual_seed(b.seed)))
            attack.get_random_start = lambda x0, epsilon: foolbox.devutils.ep.astensor(start)
            yield pixels(attack(foolbox.PyTorchModel(m, (0, 1), device="cpu"), x, y, epsilons=ball.eps)[1], pgd(m, x, y, ball, 10, step, start=start), peer="foolbox", **where)


@check("attacks")
def mim(b):
    "Momentum"
    import torchattacks
    from advlook.attacks import mi_fgsm
    for name in b.models:
        m, x, y = images_of(b, name, 32, True)
        yield pixels(torchattacks.MIFGSM(m, eps=4/255, alpha=0.4/255, steps=10, decay=1.0)(x, y), mi_fgsm(m, x, y), peer="torchattacks", attack="mi_fgsm", model=name, ball="l_inf", n=len(x), steps=10)


class TheirDiversity(nn.Module):
    def __init__(self, attack): super().__init__(); self.attack = attack
    def forward(self, x): return self.attack.get_logits(self.attack.input_diversity(x))


@check("attacks")
def diverse(b):
    "Input diversity: the loop behind the peer's own resizing; then ours, by how many stand"
    import torchattacks
    from advlook.attacks import mi_fgsm
    from advlook.variants import Diverse
    for name in b.models:
        m, x, y = images_of(b, name, 32, True)
        attack = torchattacks.DIFGSM(m, eps=4/255, alpha=0.4/255, steps=10, decay=1.0)
        where = dict(peer="torchattacks", attack="Diverse", model=name, ball="l_inf", n=len(x), steps=10)
        torch.manual_seed(b.seed); peer = attack(x, y)
        torch.manual_seed(b.seed); yield pixels(peer, mi_fgsm(TheirDiversity(attack), x, y), **where)
        m, x, y = images_of(b, name, b.n)
        attack = torchattacks.DIFGSM(m, eps=4/255, alpha=0.4/255, steps=10, decay=1.0)
        torch.manual_seed(b.seed)
        yield count(survivors(m, attack(x, y), y), survivors(m, mi_fgsm(Diverse(m, generator=torch.Generator().manual_seed(b.seed)), x, y), y), 0.05, **where | dict(n=len(x)))


@check("attacks")
def restarts(b):
    "Two tries of PGD-20, by how many stand"
    import torchattacks
    from advlook.attacks import pgd
    for name in b.models:
        m, x, y = images_of(b, name, b.n)
        torch.manual_seed(b.seed)
        peer = torchattacks.MultiAttack([torchattacks.PGD(m, eps=4/255, alpha=0.5/255, steps=20) for _ in range(2)])(x, y)
        yield count(survivors(m, peer, y), survivors(m, pgd(m, x, y, steps=20, step_size=0.5/255, restarts=2, generator=PerImage(image_seeds(b.seed, len(x)))), y), 0.02, n=len(x), peer="torchattacks", attack="pgd", model=name, ball="l_inf", steps=20)


# ---- Auto-PGD

def official_apgd(m, x, y, kind, ball, loss, steps, start):
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
    how = dict(n_iter=steps, norm=dict(l_inf="Linf", l_2="L2", l_1="L1")[kind], eps=ball.eps, device="cpu")
    if loss == "targeted":
        attack = APGDAttack_targeted(m, **how)
        with torch.no_grad(): attack.y_target = m(x).sort(1)[1][:, -2]
    else: attack = APGDAttack(m, loss=loss, **how)
    attack.init_hyperparam(x)
    best, acc, _, fooling = attack.attack_single_run(x, y, x_init=start)
    return torch.where(acc.bool()[:, None, None, None], best, fooling), acc.bool()


def in_float64():
    "The official l_1 projection computes in float32, and what it leaves of rounding counts as a changed number: both put right, so that iterates can be compared"
    import pyautoattack.autopgd_base as official
    return patch.multiple(official, L1_projection=lambda x, y, eps: L1(float(eps)).project(y, x) - y, L0_norm=lambda d: (d.abs() > 1e-9).flatten(1).sum(1))


@check("apgd")
def projection(b):
    "Projection on the l_1 ball within [0,1]"
    from pyautoattack.autopgd_base import L1_projection
    g = torch.Generator().manual_seed(b.seed)
    x, d = torch.rand(64, 3, 32, 32, generator=g), torch.randn(64, 3, 32, 32, generator=g) * torch.logspace(-3, 0, 64)[:, None, None, None]
    for eps in (1.0, 12.0, 100.0): yield pixels(d + L1_projection(x, d, eps), L1(eps).project(d, x), 2e-4, peer="official", attack=f"projection, eps {eps:g}", ball="l_1", n=64)  # ours stays within the ball after rounding, too, by that much


@check("apgd")
def apgd_iterates(b):
    "Auto-PGD from the same start"
    from advlook.apgd import apgd
    for name in b.models:
        m, x, y = images_of(b, name, 16, True)
        for kind, ball in BALLS.items():
            if name == "STD": ball = type(ball)(ball.eps / 8)   # small enough that some images stand
            g = torch.Generator().manual_seed(b.seed)
            start = into(ball, x, x + (torch.randn(x.shape, generator=g, dtype=x.dtype) if kind == "l_1" else ball.sample(x, g)))
            for loss in ("ce", "dlr", "targeted"):
                with in_float64(): peer, stand = official_apgd(m, x, y, kind, ball, loss, 25, start)
                ours = apgd(m, x, y, ball, 25, start=start, radii=(1,), **(dict(targets=1) if loss == "targeted" else dict(loss=loss)))
                where = dict(peer="official", attack=f"apgd {loss}", model=name, ball=kind, n=len(x), steps=25)
                with torch.no_grad(): compare = stand if loss == "dlr" else torch.ones_like(stand)   # where the true class ranks third, DLR is constant, and the sign of its gradient is rounding
                if compare.any(): yield pixels(peer[compare], ours[compare], **where | dict(n=int(compare.sum())))
                yield count(int(stand.sum()), survivors(m, ours, y), 0.0, **where)


@check("apgd")
def apgd_whole(b):
    "Auto-PGD as AutoAttack runs it, by how many stand"
    from pyautoattack import AutoAttack
    from advlook.apgd import apgd
    m, x, y = images_of(b, "ADV", b.n)
    for kind, ball in BALLS.items():
        for stage, how in (("apgd-ce", dict(restarts=5 if kind == "l_1" else 1)), ("apgd-t", dict(targets=5 if kind == "l_1" else 9))):
            attack = AutoAttack(m, norm=dict(l_inf="Linf", l_2="L2", l_1="L1")[kind], eps=ball.eps, version="standard", seed=b.seed)
            attack.attacks_to_run = [stage]
            peer = attack.run_standard_evaluation(x, y, batch_size=len(x))[0]
            ours = apgd(m, x, y, ball, stop=lambda x_adv, y: torch.ones_like(y, dtype=torch.bool), generator=PerImage(image_seeds(b.seed, len(x))), **how)
            yield count(survivors(m, peer, y), survivors(m, ours, y), 0.02, n=len(x), peer="official", attack=stage, model="ADV", ball=kind, steps=100)


# ---- FAB

def official_fab(m, x, y, kind, steps, target):
    from pyautoattack.fab_pt import FABAttack_PT
    attack = FABAttack_PT(m, norm=dict(l_inf="Linf", l_2="L2", l_1="L1")[kind], n_iter=steps, eps={"l_inf": 1.0, "l_2": 10.0, "l_1": 100.0}[kind], targeted=target, n_target_classes=2, device="cpu")
    if target: attack.target_class = 2
    return attack.attack_single_run(x, y, is_targeted=target)


@check("fab")
def fab_iterates(b):
    "FAB from the image: the first steps pixel by pixel, twenty by the size of what they find"
    from advlook.fab import fab
    for name in b.models:
        m, x, y = images_of(b, name, 16)
        for kind, ball in {"l_inf": Linf(1.0), "l_2": L2(10.0), "l_1": L1(100.0)}.items():
            for target in (False, True):
                where = dict(peer="official", attack="fab, targeted" if target else "fab", model=name, ball=kind, n=len(x))
                for steps in (3, 20):
                    peer, ours = official_fab(m, x, y, kind, steps, target), fab(m, x, y, ball, steps, targets=1 if target else None)
                    if steps == 3: yield where | dict(steps=steps, quantity="largest difference of a pixel, median image", difference=(peer - ours).abs().flatten(1).amax(1).median().item(), most=1e-5)  # float32, since the official projections can't do without; where two faces of the cube are as near, rounding decides
                    if steps == 3: yield count(survivors(m, peer, y), survivors(m, ours, y), 0.0, steps=steps, **where)   # in l_1 three steps find few
                    if steps == 20 or kind != "l_1": yield sizes(ball.norm(peer - x), ball.norm(ours - x), 0.01, steps=steps, **where)


# ---- Square

@check("square")
def square_counts(b):
    "Square, by how many stand: it draws for the batch, we for each image"
    from pyautoattack.square import SquareAttack
    from advlook.square import square
    for kind, ball in BALLS.items():
        m, x, y = images_of(b, "ADV", b.n)
        stand = []
        for seed in range(b.seed, b.seed + 2):
            attack = SquareAttack(m, norm=dict(l_inf="Linf", l_2="L2", l_1="L1")[kind], n_queries=b.queries, eps=ball.eps, p_init=0.8, n_restarts=1, seed=seed, verbose=False, device="cpu", resc_schedule=False)
            peer, ours = attack.perturb(x, y), square(m, x, y, ball, b.queries, generator=PerImage(image_seeds(seed, len(x))))
            stand.append((survivors(m, peer, y), survivors(m, ours, y)))
        theirs, ours = (sum(s) / len(stand) for s in zip(*stand))
        yield count(theirs, ours, 0.03, n=len(x), peer="official", attack="square", model="ADV", ball=kind, steps=b.queries)


# ---- the smallest perturbation

@check("minimal")
def deepfool_sizes(b):
    "DeepFool"
    import foolbox
    from adv_lib.attacks.deepfool import df
    from advlook.minimal import deepfool
    for name in b.models:
        m, x, y = images_of(b, name, 40)
        for kind, ball, theirs in (("l_2", L2(math.inf), foolbox.attacks.L2DeepFoolAttack), ("l_inf", Linf(math.inf), foolbox.attacks.LinfDeepFoolAttack)):
            ours, where = ball.norm(deepfool(m, x, y, ball) - x), dict(attack="deepfool", model=name, ball=kind, n=len(x), steps=50)
            yield sizes(ball.norm(df(m, x, y, steps=50, norm=2 if kind == "l_2" else math.inf) - x), ours, peer="adv-lib", **where)
            yield sizes(ball.norm(theirs()(foolbox.PyTorchModel(m, (0, 1), device="cpu"), x, y, epsilons=None)[0] - x), ours, peer="foolbox", **where)


@check("minimal")
def cw_sizes(b):
    "Carlini & Wagner: a hundred steps of Adam for each of nine constants, from 0.001"
    import foolbox
    from adv_lib.attacks import carlini_wagner_l2
    from advlook.minimal import cw
    for name in b.models:
        m, x, y = images_of(b, name, 20)
        size, where, how = L2(math.inf).norm, dict(model=name, ball="l_2", n=len(x), steps=100), dict(binary_search_steps=9, initial_const=1e-3)
        same, own = size(cw(m, x, y, steps=100, rounds=9, const=1e-3, patience=10, tolerance=0) - x), size(cw(m, x, y) - x)
        peers = {"adv-lib": carlini_wagner_l2(m, x, y, max_iterations=100, **how), "foolbox": foolbox.attacks.L2CarliniWagnerAttack(steps=100, **how)(foolbox.PyTorchModel(m, (0, 1), device="cpu"), x, y, epsilons=None)[0]}
        for peer, x_adv in peers.items():
            yield sizes(size(x_adv - x), same, peer=peer, attack="cw", **where)
            yield sizes(size(x_adv - x), own, peer=peer, attack="cw, our defaults", **where)


# ---- few pixels

@check("sparse")
def jsma_pixels(b):
    "JSMA to the second most likely class: the same pixels, image by image"
    from art.attacks.evasion import SaliencyMapMethod
    from art.estimators.classification import PyTorchClassifier
    from advlook.losses import other_classes
    from advlook.sparse import jsma
    for name in b.models:
        m, x, y = images_of(b, name, 20)
        with torch.no_grad(): target = other_classes(m(x), y, 1).flatten()
        classifier = PyTorchClassifier(m, nn.CrossEntropyLoss(), (3, 32, 32), 10, clip_values=(0, 1), device_type="cpu")
        for theta in (1.0, -1.0):
            peer = torch.from_numpy(SaliencyMapMethod(classifier, theta=theta, gamma=0.1, batch_size=len(x), verbose=False).generate(x.numpy(), target.numpy()))
            ours, where = jsma(m, x, target, theta=theta, gamma=0.1, targeted=True), dict(peer="ART", attack=f"jsma, theta {theta:g}", model=name, ball="l_0", n=len(x))
            with torch.no_grad(): a, o = (m(v).argmax(1) == target for v in (peer, ours))
            yield where | dict(quantity="images that reach the target", theirs=int(a.sum()), ours=int(o.sum()), difference=max(0, int(a.sum() - o.sum())) / len(x), most=0.05)
            if (both := a & o).any(): yield sizes(numbers(peer - x)[both], numbers(ours - x)[both], 0.1, **where | dict(n=int(both.sum())), quantity="median of changed numbers")


@check("sparse")
def one_pixel_counts(b):
    "One pixel, by how many stand: the peer evolves by an algorithm of its own, ours is scipy's"
    import random
    import numpy as np
    import torchattacks
    from advlook.sparse import one_pixel
    for name in b.models:
        m, x, y = images_of(b, name, 40)
        for seed in (random.seed, np.random.seed, torch.manual_seed): seed(b.seed)
        peer = torchattacks.OnePixel(m, pixels=1, steps=10, popsize=60, inf_batch=128)(x, y)
        ours = one_pixel(m, x, y, 1, 60, 10, generator=torch.Generator().manual_seed(b.seed))
        yield count(survivors(m, peer, y), survivors(m, ours, y), 0.1, n=len(x), peer="torchattacks", attack="one_pixel, 60 x 10", model=name, ball="l_0", steps=10)


def numbers(d): return (d.abs() > 1e-6).flatten(1).sum(1).float()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], help="checks of these names or families")
    parser.add_argument("--models", nargs="+", default=["STD", "ADV"])
    parser.add_argument("--n", type=int, default=60, help="images where they are counted")
    parser.add_argument("--queries", type=int, default=300, help="of Square")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="forget what these checks had")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    rows = Rows(RESULTS / "parity", ["part", "row", "peer", "attack", "model", "ball", "n", "steps", "quantity", "theirs", "ours", "difference", "most"], ["part", "row"])
    b = SimpleNamespace(kept={}, **vars(args))
    for title, compare in CHECKS.items():
        if args.only and not {title.split(":")[0], compare.__name__} & set(args.only): continue
        part = compare.__name__
        rows.begin(part, dict(models=args.models, n=args.n, queries=args.queries, seed=args.seed), ["core", "noise", "functions", "balls", "attacks", *({title.split(":")[0]} - {"attacks"})], list(PEERS.values()), args.again)
        if rows.has(part=part, row="done"): continue
        rows.forget(part)
        try:
            for i, row in enumerate(compare(b)): rows.add(part=part, row=i, **row)
        except ImportError as error: print(part, "left out:", error, flush=True); rows.forget(part, note=True); continue
        rows.add(part=part, row="done", quantity=title.split(": ")[1])
    wrong = [r for r in rows.rows if r["most"] and float(r["difference"]) > float(r["most"])]
    for r in wrong: print("BEYOND", {k: v for k, v in r.items() if v})


if __name__ == "__main__": main()
