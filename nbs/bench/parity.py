"""Do the attacks do what the official code does? A number of theirs, one of ours, and what they may differ by

    bash nbs/bench/peers.sh && nbs/bench/.peers/bin/python nbs/bench/parity.py

Where an attack is a rule, both get the same start, and every pixel has to be the same; in float64, since in float32 the
sign of a gradient that is nearly zero depends on the order of sums. Where an attack draws its own random numbers, the
survivors are counted. Where it looks for the smallest perturbation, the sizes are compared. Rows go to
nbs/results/bench/parity.csv; a second call skips what has been compared.
"""
import argparse, math, warnings
from itertools import product
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch import nn

from advlook.balls import L1, L2, Linf, into
from advlook.core import to_float
from advlook.noise import PerImage, image_seeds
from advlook.data import load_images
from advlook.zoo import load_trio
from common import PEERS, RESULTS, Rows

LOOP = ["core", "noise", "functions", "radii", "balls", "losses", "passes", "attacks"]
BALLS = {"l_inf": Linf(4/255), "l_2": L2(0.5), "l_1": L1(12.0)}
OFFICIAL = dict(l_inf="Linf", l_2="L2", l_1="L1")   # as the official code calls them
KEY = ["part", "row"]
COLUMNS = [*KEY, *"peer attack model ball n steps quantity theirs ours difference most".split()]
CHECKS = {}


def check(family: str):
    "A function of a bench (models and images) that yields rows; it is named by its family and itself"
    def keep(f):
        CHECKS[f"{family}: {f.__doc__}"] = f
        return f
    return keep


def pixels(theirs, ours, most=1e-6, **where):
    difference = (theirs - ours).abs().max().item()
    return where | dict(quantity="largest difference of a pixel", difference=difference, most=most)


def count(theirs: int, ours: int, most: float, **where):
    difference = abs(theirs - ours) / where["n"]
    return where | dict(quantity="survivors", theirs=theirs, ours=ours, difference=difference, most=most)


def sizes(theirs, ours, most=0.02, **where):
    "Medians of norms; finding shorter ones than the peer is no fault"
    a, b = theirs.median().item(), ours.median().item()
    return dict(quantity="median norm") | where | dict(theirs=a, ours=b, difference=b / a - 1, most=most)


def images_of(b, name, n, double=False):
    "The model, and n images that it gets right"
    key = name, n, double
    if key not in b.kept:
        model = load_trio("cifar10")[name].eval().requires_grad_(False)
        model = model.to(memory_format=torch.contiguous_format)   # some peers fail on channels-last gradients
        images = load_images("cifar10", "test", n=2 * n + 20, seed=b.seed)
        x, y = to_float(images.x).contiguous(), images.y
        with torch.no_grad(): right = model(x).argmax(1) == y
        x, y = x[right][:n], y[right][:n]
        b.kept[key] = (model.double(), x.double(), y) if double else (model, x, y)
    return b.kept[key]


def survivors(model, x, y):
    with torch.no_grad(): return int((model(x).argmax(1) == y).sum())


def by_foolbox(attack, model, x, y, eps):
    "What an attack of foolbox makes of the images"
    import foolbox
    raw, clipped, _ = attack(foolbox.PyTorchModel(model, (0, 1), device="cpu"), x, y, epsilons=eps)
    return raw if eps is None else clipped


def generator(b): return torch.Generator().manual_seed(b.seed)


def own_noise(seed, x):
    "A generator for each image"
    return PerImage(image_seeds(seed, len(x)))


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
        peer = by_foolbox(foolbox.attacks.LinfFastGradientAttack(), m, x, y, 4/255)
        yield pixels(peer, fgsm(m, x, y), peer="foolbox", **where)
        peer = by_foolbox(foolbox.attacks.L2FastGradientAttack(), m, x, y, 0.5)
        yield pixels(peer, fgsm(m, x, y, L2(0.5)), peer="foolbox", **where | dict(ball="l_2"))


@check("attacks")
def pgd(b):
    "PGD from the same random start"
    import foolbox, torchattacks
    from advlook.attacks import pgd
    for name in b.models:
        m, x, y = images_of(b, name, 32, True)
        peers = dict(l_inf=(torchattacks.PGD, foolbox.attacks.LinfPGD), l_2=(torchattacks.PGDL2, foolbox.attacks.L2PGD))
        for kind, (theirs, of_foolbox) in peers.items():
            ball = BALLS[kind]
            step = ball.eps / 4
            ours = lambda start: pgd(m, x, y, ball, 10, step, start=start)
            where = dict(attack="pgd", model=name, ball=kind, n=len(x), steps=10)
            torch.manual_seed(b.seed)   # a step of length 0 gives its random start away
            start = theirs(m, eps=ball.eps, alpha=0.0, steps=1)(x, y)
            torch.manual_seed(b.seed)
            peer = theirs(m, eps=ball.eps, alpha=step, steps=10)(x, y)
            yield pixels(peer, ours(start), peer="torchattacks", **where)
            attack = of_foolbox(abs_stepsize=step, steps=10, random_start=True)
            start = into(ball, x, x + ball.sample(x, generator(b)))
            attack.get_random_start = lambda x0, epsilon: foolbox.devutils.ep.astensor(start)
            yield pixels(by_foolbox(attack, m, x, y, ball.eps), ours(start), peer="foolbox", **where)


@check("attacks")
def mim(b):
    "Momentum"
    import torchattacks
    from advlook.attacks import mi_fgsm
    for name in b.models:
        m, x, y = images_of(b, name, 32, True)
        peer = torchattacks.MIFGSM(m, eps=4/255, alpha=0.4/255, steps=10, decay=1.0)(x, y)
        where = dict(attack="mi_fgsm", model=name, ball="l_inf", n=len(x), steps=10)
        yield pixels(peer, mi_fgsm(m, x, y), peer="torchattacks", **where)


class TheirDiversity(nn.Module):
    def __init__(self, attack):
        super().__init__()
        self.attack = attack

    def forward(self, x): return self.attack.get_logits(self.attack.input_diversity(x))


@check("attacks")
def diverse(b):
    "Input diversity: the loop behind the peer's own resizing; then ours, by how many survive"
    import torchattacks
    from advlook.attacks import mi_fgsm
    from advlook.variants import Diverse
    for name in b.models:
        m, x, y = images_of(b, name, 32, True)
        attack = torchattacks.DIFGSM(m, eps=4/255, alpha=0.4/255, steps=10, decay=1.0)
        where = dict(peer="torchattacks", attack="Diverse", model=name, ball="l_inf", n=len(x), steps=10)
        torch.manual_seed(b.seed)
        peer = attack(x, y)
        torch.manual_seed(b.seed)
        yield pixels(peer, mi_fgsm(TheirDiversity(attack), x, y), **where)
        m, x, y = images_of(b, name, b.n)
        attack = torchattacks.DIFGSM(m, eps=4/255, alpha=0.4/255, steps=10, decay=1.0)
        torch.manual_seed(b.seed)
        theirs = survivors(m, attack(x, y), y)
        ours = survivors(m, mi_fgsm(Diverse(m, generator=generator(b)), x, y), y)
        yield count(theirs, ours, 0.05, **where | dict(n=len(x)))


@check("attacks")
def restarts(b):
    "Two tries of PGD-20, by how many survive"
    import torchattacks
    from advlook.attacks import pgd
    for name in b.models:
        m, x, y = images_of(b, name, b.n)
        torch.manual_seed(b.seed)
        tries = [torchattacks.PGD(m, eps=4/255, alpha=0.5/255, steps=20) for _ in range(2)]
        peer = torchattacks.MultiAttack(tries)(x, y)
        ours = pgd(m, x, y, steps=20, step_size=0.5/255, restarts=2, generator=own_noise(b.seed, x))
        where = dict(n=len(x), peer="torchattacks", attack="pgd", model=name, ball="l_inf", steps=20)
        yield count(survivors(m, peer, y), survivors(m, ours, y), 0.02, **where)


# ---- Auto-PGD

def official_apgd(m, x, y, kind, ball, loss, steps, start):
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
    how = dict(n_iter=steps, norm=OFFICIAL[kind], eps=ball.eps, device="cpu")
    if loss == "targeted":
        attack = APGDAttack_targeted(m, **how)
        with torch.no_grad(): attack.y_target = m(x).sort(1)[1][:, -2]
    else: attack = APGDAttack(m, loss=loss, **how)
    attack.init_hyperparam(x)
    best, acc, _, fooling = attack.attack_single_run(x, y, x_init=start)
    return torch.where(acc.bool()[:, None, None, None], best, fooling), acc.bool()


def in_float64():
    """So that iterates can be compared

    The official l_1 projection computes in float32, and what it leaves of rounding counts as a changed number: both are
    put right.
    """
    import pyautoattack.autopgd_base as official
    exact = lambda x, y, eps: L1(float(eps)).project(y, x) - y
    changed = lambda d: (d.abs() > 1e-9).flatten(1).sum(1)
    return patch.multiple(official, L1_projection=exact, L0_norm=changed)


@check("apgd")
def projection(b):
    "Projection on the l_1 ball within [0,1]"
    from pyautoattack.autopgd_base import L1_projection
    g = generator(b)
    x = torch.rand(64, 3, 32, 32, generator=g)
    d = torch.randn(64, 3, 32, 32, generator=g) * torch.logspace(-3, 0, 64)[:, None, None, None]
    most = 2e-4   # by so much ours stays within the ball after rounding, too
    for eps in 1.0, 12.0, 100.0:
        where = dict(peer="official", attack=f"projection, eps {eps:g}", ball="l_1", n=64)
        yield pixels(d + L1_projection(x, d, eps), L1(eps).project(d, x), most, **where)


@check("apgd")
def apgd_iterates(b):
    "Auto-PGD from the same start"
    from advlook.apgd import apgd
    for name in b.models:
        m, x, y = images_of(b, name, 16, True)
        for kind, ball in BALLS.items():
            if name == "STD": ball = type(ball)(ball.eps / 8)   # small enough that some images survive
            g = generator(b)
            far = torch.randn(x.shape, generator=g, dtype=x.dtype) if kind == "l_1" else ball.sample(x, g)
            start = into(ball, x, x + far)
            for loss in "ce", "dlr", "targeted":
                with in_float64(): peer, survived = official_apgd(m, x, y, kind, ball, loss, 25, start)
                how = dict(targets=1) if loss == "targeted" else dict(loss=loss)
                ours = apgd(m, x, y, ball, 25, start=start, radii=(1,), **how)
                where = dict(peer="official", attack=f"apgd {loss}", model=name, ball=kind, n=len(x), steps=25)
                # where the true class ranks third, DLR is constant, and the sign of its gradient is rounding
                compared = survived if loss == "dlr" else torch.ones_like(survived)
                some = where | dict(n=int(compared.sum()))
                if compared.any(): yield pixels(peer[compared], ours[compared], **some)
                yield count(int(survived.sum()), survivors(m, ours, y), 0.0, **where)


@check("apgd")
def apgd_whole(b):
    "Auto-PGD as AutoAttack runs it, by how many survive"
    from pyautoattack import AutoAttack
    from advlook.apgd import apgd
    m, x, y = images_of(b, "ADV", b.n)
    for kind, ball in BALLS.items():
        few = kind == "l_1"
        stages = {"apgd-ce": dict(restarts=5 if few else 1), "apgd-t": dict(targets=5 if few else 9)}
        for stage, how in stages.items():
            attack = AutoAttack(m, norm=OFFICIAL[kind], eps=ball.eps, version="standard", seed=b.seed)
            attack.attacks_to_run = [stage]
            peer = attack.run_standard_evaluation(x, y, batch_size=len(x))[0]
            at_once = lambda x_adv, y: torch.ones_like(y, dtype=torch.bool)
            ours = apgd(m, x, y, ball, stop=at_once, generator=own_noise(b.seed, x), **how)
            where = dict(n=len(x), peer="official", attack=stage, model="ADV", ball=kind, steps=100)
            yield count(survivors(m, peer, y), survivors(m, ours, y), 0.02, **where)


# ---- FAB

WIDE = {"l_inf": Linf(1.0), "l_2": L2(10.0), "l_1": L1(100.0)}


def official_fab(m, x, y, kind, steps, target):
    from pyautoattack.fab_pt import FABAttack_PT
    how = dict(n_iter=steps, eps=WIDE[kind].eps, targeted=target, n_target_classes=2, device="cpu")
    attack = FABAttack_PT(m, norm=OFFICIAL[kind], **how)
    if target: attack.target_class = 2
    return attack.attack_single_run(x, y, is_targeted=target)


@check("fab")
def fab_iterates(b):
    "FAB from the image: the first steps pixel by pixel, twenty by the size of what they find"
    from advlook.fab import fab
    for name in b.models:
        m, x, y = images_of(b, name, 16)
        for (kind, ball), target, steps in product(WIDE.items(), (False, True), (3, 20)):
            peer = official_fab(m, x, y, kind, steps, target)
            ours = fab(m, x, y, ball, steps, targets=1 if target else None)
            attack = "fab, targeted" if target else "fab"
            where = dict(peer="official", attack=attack, model=name, ball=kind, n=len(x), steps=steps)
            if steps == 3:
                yield where | median_image(peer, ours)
                yield count(survivors(m, peer, y), survivors(m, ours, y), 0.0, **where)
            if steps == 3 and kind == "l_1": continue   # so few steps find few
            yield sizes(ball.norm(peer - x), ball.norm(ours - x), 0.01, **where)


def median_image(peer, ours):
    "In float32, as the official projections need it; where two faces of the cube are as near, rounding decides"
    difference = (peer - ours).abs().flatten(1).amax(1).median().item()
    return dict(quantity="largest difference of a pixel, median image", difference=difference, most=1e-5)


# ---- Square

@check("square")
def square_counts(b):
    "Square, by how many survive: it draws for the batch, we for each image"
    from pyautoattack.square import SquareAttack
    from advlook.square import square
    for kind, ball in BALLS.items():
        m, x, y = images_of(b, "ADV", b.n)
        how = dict(n_queries=b.queries, eps=ball.eps, p_init=0.8, n_restarts=1, resc_schedule=False)
        theirs, ours = [], []
        for seed in b.seed, b.seed + 1:
            attack = SquareAttack(m, norm=OFFICIAL[kind], **how, seed=seed, verbose=False, device="cpu")
            theirs.append(survivors(m, attack.perturb(x, y), y))
            ours.append(survivors(m, square(m, x, y, ball, b.queries, generator=own_noise(seed, x)), y))
        where = dict(n=len(x), peer="official", attack="square", model="ADV", ball=kind, steps=b.queries)
        yield count(sum(theirs) / 2, sum(ours) / 2, 0.03, **where)


# ---- the smallest perturbation

@check("minimal")
def deepfool_sizes(b):
    "DeepFool"
    import foolbox
    from adv_lib.attacks.deepfool import df
    from advlook.minimal import deepfool
    for name in b.models:
        m, x, y = images_of(b, name, 40)
        theirs = dict(l_2=foolbox.attacks.L2DeepFoolAttack, l_inf=foolbox.attacks.LinfDeepFoolAttack)
        for kind, ball in dict(l_2=L2(math.inf), l_inf=Linf(math.inf)).items():
            size = lambda x_adv: ball.norm(x_adv - x)
            ours = size(deepfool(m, x, y, ball))
            where = dict(attack="deepfool", model=name, ball=kind, n=len(x), steps=50)
            peer = df(m, x, y, steps=50, norm=2 if kind == "l_2" else math.inf)
            yield sizes(size(peer), ours, peer="adv-lib", **where)
            yield sizes(size(by_foolbox(theirs[kind](), m, x, y, None)), ours, peer="foolbox", **where)


@check("minimal")
def cw_sizes(b):
    "Carlini & Wagner: a hundred steps of Adam for each of nine constants, from 0.001"
    import foolbox
    from adv_lib.attacks import carlini_wagner_l2
    from advlook.minimal import cw
    for name in b.models:
        m, x, y = images_of(b, name, 20)
        size = lambda x_adv: L2(math.inf).norm(x_adv - x)
        same = size(cw(m, x, y, steps=100, rounds=9, const=1e-3, patience=10, tolerance=0))
        own = size(cw(m, x, y))
        how = dict(binary_search_steps=9, initial_const=1e-3)
        of_foolbox = foolbox.attacks.L2CarliniWagnerAttack(steps=100, **how)
        peers = {"adv-lib": carlini_wagner_l2(m, x, y, max_iterations=100, **how)}
        peers["foolbox"] = by_foolbox(of_foolbox, m, x, y, None)
        for peer, x_adv in peers.items():
            where = dict(peer=peer, model=name, ball="l_2", n=len(x), steps=100)
            yield sizes(size(x_adv), same, attack="cw", **where)
            yield sizes(size(x_adv), own, attack="cw, our defaults", **where)


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
        about = dict(clip_values=(0, 1), device_type="cpu")
        classifier = PyTorchClassifier(m, nn.CrossEntropyLoss(), (3, 32, 32), 10, **about)
        reached = lambda x_adv: m(x_adv).argmax(1) == target
        for theta in 1.0, -1.0:
            attack = SaliencyMapMethod(classifier, theta=theta, gamma=0.1, batch_size=len(x), verbose=False)
            peer = torch.from_numpy(attack.generate(x.numpy(), target.numpy()))
            ours = jsma(m, x, target, theta=theta, gamma=0.1, targeted=True)
            with torch.no_grad(): theirs_reach, ours_reach = reached(peer), reached(ours)
            a, o = int(theirs_reach.sum()), int(ours_reach.sum())
            where = dict(peer="ART", attack=f"jsma, theta {theta:g}", model=name, ball="l_0", n=len(x))
            goal = dict(quantity="images that reach the target", theirs=a, ours=o)
            yield where | goal | dict(difference=max(0, a - o) / len(x), most=0.05)
            both = theirs_reach & ours_reach
            some = where | dict(n=int(both.sum()), quantity="median of changed numbers")
            if both.any(): yield sizes(numbers(peer - x)[both], numbers(ours - x)[both], 0.1, **some)


@check("sparse")
def one_pixel_counts(b):
    "One pixel, by how many survive: the peer evolves by an algorithm of its own, ours is scipy's"
    import random
    import numpy as np
    import torchattacks
    from advlook.sparse import one_pixel
    for name in b.models:
        m, x, y = images_of(b, name, 40)
        for seed in random.seed, np.random.seed, torch.manual_seed: seed(b.seed)
        peer = torchattacks.OnePixel(m, pixels=1, steps=10, popsize=60, inf_batch=128)(x, y)
        ours = one_pixel(m, x, y, 1, 60, 10, generator=generator(b))
        where = dict(n=len(x), peer="torchattacks", attack="one_pixel, 60 x 10", model=name, ball="l_0", steps=10)
        yield count(survivors(m, peer, y), survivors(m, ours, y), 0.1, **where)


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
    rows = Rows(RESULTS / "parity", COLUMNS, KEY)
    b = SimpleNamespace(kept={}, **vars(args))
    settings = dict(models=args.models, n=args.n, queries=args.queries, seed=args.seed)
    for title, compare in CHECKS.items():
        family, _, said = title.partition(": ")
        part = compare.__name__
        if args.only and not {family, part} & set(args.only): continue
        modules = dict.fromkeys([*LOOP, family])
        rows.begin(part, settings, list(modules), list(PEERS.values()), args.again)
        if not rows.has(part=part, row="done"): measure(rows, part, said, compare, b)
    wrong = [r for r in rows.rows if r["most"] and float(r["difference"]) > float(r["most"])]
    for r in wrong: print("BEYOND", {k: v for k, v in r.items() if v})


def measure(rows, part, said, compare, b):
    "All rows of a part, and last the one by which a second call knows that it is done"
    rows.forget(part)
    try:
        for i, row in enumerate(compare(b)): rows.add(part=part, row=i, **row)
    except ImportError as error:
        print(part, "left out:", error, flush=True)
        rows.forget(part, note=True)
    else:
        rows.add(part=part, row="done", quantity=said)


if __name__ == "__main__": main()
