"""How fast are the attacks, and how much memory do they need, beside the libraries that others use?

    bash nbs/bench/peers.sh && nbs/bench/.peers/bin/python nbs/bench/attacks.py

Every contender attacks the same block of images, one after the other, in an order that turns with the block: what else
the machine does hits all of them. With one thread the processor's seconds count, which other programs lengthen less
than those of the clock. All get the same model, in evaluation mode, whose parameters take no gradients. Rows go to
nbs/results/bench/attacks.csv; a second call goes on where the first was killed.
"""
import argparse, gc, json, logging, math, os, subprocess, sys, time, warnings
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F

from advlook.balls import L1, L2, Linf
from advlook.core import frozen, predict, to_float
from advlook.images import Images
from advlook.noise import PerImage, image_seeds
from advlook.data import load_images
from advlook.standin import computes_bfloat16
from advlook.zoo import load_trio
from common import PEERS, RESULTS, Rows

BALL = Linf(4/255)
STEPS, RESTARTS = 20, 2
STEP = 2.5 * BALL.eps / STEPS
LOOP = ["core", "noise", "functions", "radii", "balls", "losses", "passes", "attacks", "standin"]
ENSEMBLE = [*LOOP, "fab", "pace", "apgd", "square", "autoattack"]
USED = dict(pgd=[*LOOP, "robustness"], autoattack=ENSEMBLE, memory=[*ENSEMBLE, "minimal", "sparse", "robustness"])
COLUMNS = "part model contender stage block n seconds cpu survivors memory".split()

# ---- PGD, twenty steps, two restarts: each returns who survives, bool [n]

def plain(model, x, y):
    "What one writes by hand"
    eps = BALL.eps
    survived = torch.ones(len(x), dtype=torch.bool)
    for _ in range(RESTARTS):
        x_adv = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
        for _ in range(STEPS):
            x_adv.requires_grad_()
            g, = torch.autograd.grad(F.cross_entropy(model(x_adv), y), x_adv)
            d = x_adv.detach() + STEP * g.sign() - x
            x_adv = (x + d.clamp(-eps, eps)).clamp(0, 1)
        survived &= right(model, x_adv, y)
    return survived


def right(model, x, y):
    with torch.no_grad(): return model(x).argmax(1) == y


def ours(model, x, y, fast):
    from advlook.attacks import pgd
    from advlook.robustness import survives
    attack = partial(pgd, ball=BALL, steps=STEPS, restarts=RESTARTS)
    return survives(model, Images(x, y), attack, BALL, fast=fast)


def judged(attack):
    return lambda model, x, y: right(model, attack(model, x, y), y)


def by_torchattacks(model, x, y):
    import torchattacks
    tries = [torchattacks.PGD(model, BALL.eps, STEP, STEPS) for _ in range(RESTARTS)]
    return torchattacks.MultiAttack(tries)(x, y)  # the second attacks what the first has not fooled


def torchattacks_twice(model, x, y):
    import torchattacks
    attack = torchattacks.PGD(model, BALL.eps, STEP, STEPS)
    tries = [right(model, attack(x, y), y) for _ in range(RESTARTS)]
    return torch.stack(tries).all(0)


def by_foolbox(model, x, y):
    import foolbox
    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=STEPS, random_start=True).repeat(RESTARTS)
    theirs = foolbox.PyTorchModel(model, (0, 1), device="cpu")
    return attack(theirs, x, y, epsilons=BALL.eps)[1]


def by_art(model, x, y):
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier
    about = dict(clip_values=(0, 1), device_type="cpu")
    classifier = PyTorchClassifier(model, torch.nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, **about)
    how = dict(eps=BALL.eps, eps_step=STEP, max_iter=STEPS, num_random_init=RESTARTS)
    attack = ProjectedGradientDescentPyTorch(classifier, **how, batch_size=len(x), verbose=False)
    return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))


def by_adv_lib(model, x, y):
    from adv_lib.attacks import pgd_linf
    return pgd_linf(model, x, y, BALL.eps, steps=STEPS, restarts=RESTARTS, absolute_step_size=STEP)


PGD = {
    "plain loop": plain,
    "advlook": partial(ours, fast=False),
    "advlook fast": partial(ours, fast=True),
    "torchattacks": torchattacks_twice,
    "torchattacks MultiAttack": judged(by_torchattacks),
    "foolbox": judged(by_foolbox),
    "ART": judged(by_art),
    "adv-lib": judged(by_adv_lib),
}

# ---- the standard AutoAttack: each returns (stage, seconds of the clock, of the processor, how many survive)

def official(model, x, y, seed):
    "By the clock readings of its own log"
    from pyautoattack import AutoAttack
    marks = []
    handler = logging.Handler()
    handler.emit = lambda record: marks.append((record.getMessage(), *clocks()))
    log = logging.getLogger("auto-attack")
    log.setLevel(logging.DEBUG)
    log.addHandler(handler)
    log.propagate = False
    attack = AutoAttack(model, norm="Linf", eps=BALL.eps, version="standard", seed=seed)
    marks.clear()
    try: attack.run_standard_evaluation(x.contiguous(), y, batch_size=len(x))
    finally: log.removeHandler(handler)
    rows, begun = [], None
    for said, clock, cpu in marks:
        if said.startswith("running "): begun = said.split()[1], clock, cpu
        if not said.startswith("robust accuracy after "): continue
        percent = float(said.split(": ")[1].split("%")[0])
        stage, since, since_cpu = begun
        rows.append((stage, clock - since, cpu - since_cpu, round(percent * len(x) / 100)))
    return rows


def clocks():
    "Seconds: of the clock, of the processor"
    return time.perf_counter(), time.process_time()


def our_autoattack(model, x, y, seed, fast):
    import advlook.autoattack as room
    both = argparse.Namespace(perf_counter=lambda: complex(*clocks()))   # a number that holds two
    with patch.object(room, "time", both):
        table = room.autoattack_table(model, Images(x, y), BALL, seed=seed, fast=fast)[0]
    rows = table[table.attack != "none"]
    took = map(complex, rows.seconds)
    return [(name, t.real, t.imag, left) for name, t, left in zip(rows.attack, took, rows.survivors)]


AUTOATTACK = {
    "official": official,
    "advlook": partial(our_autoattack, fast=False),
    "advlook fast": partial(our_autoattack, fast=True),
}

# ---- memory: each with few steps, since a step needs what the last one needed

def contenders(generator):
    "Attacks by name: (model, x, y)"
    from advlook import apgd, attacks, fab, minimal, sparse, square, variants
    drawn = dict(generator=generator)
    once = dict(steps=4, **drawn)
    balls = dict(l_inf=BALL, l_2=L2(.5), l_1=L1(12))
    diverse = lambda m, x, y: attacks.pgd(variants.Diverse(m), x, y, **once)
    expected = lambda m, x, y: attacks.pgd(variants.Expectation(m, 4), x, y, steps=2, **drawn)
    some = {
        "pgd": partial(attacks.pgd, restarts=2, **once),
        "mi_fgsm": partial(attacks.mi_fgsm, **once),
        "virtual_adversarial": partial(variants.virtual_adversarial, **drawn),
        "pgd l_1": partial(attacks.pgd, ball=L1(12), **once),
        "pgd, diverse inputs": diverse,
        "pgd, 4 answers expected": expected,
        "deepfool": partial(minimal.deepfool, ball=L2(math.inf)),
        "cw": lambda m, x, y: minimal.cw(m, x, y, steps=4, rounds=2),
        "fab": partial(fab.fab, ball=BALL, **once),
        "fab, one target": partial(fab.fab, ball=BALL, targets=1, **once),
    }
    for norm in "l_2", "l_1":
        some[f"fab {norm}, one target"] = partial(fab.fab, ball=balls[norm], targets=1, **once)
    kinds = dict(ce={}, dlr=dict(loss="dlr"), targeted=dict(targets=1), l_2=dict(ball=L2(.5)), l_1=dict(ball=L1(12)))
    for name, how in kinds.items(): some[f"apgd {name}"] = partial(apgd.apgd, **how, **once)
    for norm, ball in balls.items():
        some[f"square {norm}"] = partial(square.square, ball=ball, queries=20, **drawn)
    some["jsma"] = partial(sparse.jsma, gamma=0.002)
    some["one_pixel"] = partial(sparse.one_pixel, population=60, generations=2, **drawn)
    return some


def one_pass(model, x, y):
    x = x.detach().requires_grad_()
    torch.autograd.grad(F.cross_entropy(model(x), y), x)


def resident(name: str) -> int:
    "VmRSS (now) or VmHWM (at most) of this process, in kB"
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))


def measure_memory(name: str, model_name: str, batch: int, seed: int) -> None:
    "How far the resident memory rises; in a process of its own, whose allocator gives back at once"
    model = load_trio("cifar10")[model_name]
    images = load_images("cifar10", "test", n=batch, seed=seed)
    x, y = to_float(images.x).contiguous(), images.y
    references = {"one pass": one_pass, "one answer": lambda m, x, y: m(x)}
    made = lambda n: references.get(name) or contenders(PerImage(image_seeds(seed, n)))[name]
    attack, first = made(batch), made(2)
    with frozen(model):
        with torch.no_grad(): y = model(x).argmax(1)   # nobody is wrong from the start: all of them are attacked
        one_pass(model, x, y)
        first(model, x[:2], y[:2])   # what it imports is not counted
        gc.collect()
        open("/proc/self/clear_refs", "w").write("5")   # the peak so far is forgotten
        before = resident("VmRSS")
        with torch.no_grad() if name == "one answer" else torch.enable_grad(): attack(model, x, y)
    print(json.dumps(resident("VmHWM") - before))


# ---- the run

def here_different(names, args):
    "Without a processor for bfloat16, `fast` is nothing else than without"
    units = computes_bfloat16(torch.device("cpu"))
    there = [name for name in names if units or name != "advlook fast"]
    return [name for name in there if not args.contenders or name in args.contenders]


def blocks(n: int, size: int):
    "(number, slice) of each block of images"
    return [(start // size, slice(start, min(start + size, n))) for start in range(0, n, size)]


def turned(names: list[str], block: int) -> list[str]:
    "In an order that turns with the block"
    first = block % len(names)
    return names[first:] + names[:first]


def run_pgd(rows, args):
    images = load_images("cifar10", "test", n=args.n, seed=args.seed)
    x, y = to_float(images.x).contiguous(), images.y
    names = here_different(PGD, args)
    for model_name in args.models:
        model = load_trio("cifar10")[model_name]
        with frozen(model):
            for who in names:   # imports and first calls
                torch.manual_seed(args.seed)
                PGD[who](model, x[:2], y[:2])
            for block, here in blocks(args.n, args.block):
                for who in turned(names, block):
                    key = dict(part="pgd", model=model_name, contender=who, stage="", block=block)
                    if rows.has(**key): continue
                    torch.manual_seed(args.seed + block)
                    rows.add(**key, **timed_pgd(PGD[who], model, x[here], y[here]))


def timed_pgd(attack, model, x, y):
    clock, cpu = clocks()
    survived = attack(model, x, y)
    end, end_cpu = clocks()
    survived = survived & (predict(model, x) == y)
    return dict(n=len(y), seconds=end - clock, cpu=end_cpu - cpu, survivors=int(survived.sum()))


def run_autoattack(rows, args):
    images = load_images("cifar10", "test", n=args.aa, seed=args.seed)
    x, y = to_float(images.x).contiguous(), images.y
    names = here_different(AUTOATTACK, args)
    for model_name in args.models:
        model = load_trio("cifar10")[model_name]
        with frozen(model):
            for block, here in blocks(args.aa, args.aa_block):
                for who in names[::-1] if block % 2 else names:
                    key = dict(part="autoattack", model=model_name, contender=who, block=block)
                    if rows.has(**key, stage="all"): continue
                    add_stages(rows, key, AUTOATTACK[who], model, x[here], y[here], args.seed)


def add_stages(rows, key, run, model, x, y, seed):
    "A row for each stage, and last the one for all, by which a second call knows that it is done"
    clock, cpu = clocks()
    stages = run(model, x, y, seed)
    end, end_cpu = clocks()
    stages = [*stages, ("all", end - clock, end_cpu - cpu, stages[-1][3])]
    for stage, seconds, processor, survivors in stages:
        if rows.has(**key, stage=stage): continue
        rows.add(**key, stage=stage, n=len(y), seconds=seconds, cpu=processor, survivors=survivors)


def run_memory(rows, args):
    sizes = dict(MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536", MALLOC_ARENA_MAX="1")
    quiet = dict(os.environ, OMP_NUM_THREADS="1", **sizes)
    for who in ["one pass", "one answer", *contenders(None)]:
        for block in range(2 if who == "one pass" else 1):   # it differs by a hundredth from run to run
            key = dict(part="memory", model="ADV", contender=who, stage="", block=block)
            if rows.has(**key): continue
            options = ["--memory-of", who, "--batch", str(args.batch), "--seed", str(args.seed)]
            done = subprocess.run([sys.executable, __file__, *options], env=quiet, capture_output=True, text=True)
            if done.returncode:
                print(who, "failed:", done.stderr.strip().splitlines()[-1], flush=True)
                break
            rows.add(**key, n=args.batch, memory=json.loads(done.stdout) / 1024)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=500, help="images for PGD")
    parser.add_argument("--block", type=int, default=100, help="that many at a time")
    parser.add_argument("--aa", type=int, default=100, help="images for AutoAttack")
    parser.add_argument("--aa-block", type=int, default=50)
    parser.add_argument("--batch", type=int, default=64, help="images at a time when memory is measured")
    parser.add_argument("--models", nargs="+", default=["STD", "ADV"])
    parser.add_argument("--parts", nargs="+", default=["pgd", "memory", "autoattack"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--contenders", nargs="+", help="only these, as the tables call them")
    parser.add_argument("--again", action="store_true", help="forget what these parts had")
    parser.add_argument("--out", default=str(RESULTS / "attacks"), help="without the ending")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(args.threads)
    if args.memory_of: return measure_memory(args.memory_of, "ADV", args.batch, args.seed)
    rows = Rows(Path(args.out), COLUMNS, COLUMNS[:5])
    pgd, autoattack = dict(n=args.n, block=args.block), dict(n=args.aa, block=args.aa_block)
    settings = dict(pgd=pgd, autoattack=autoattack, memory=dict(batch=args.batch))
    same = dict(seed=args.seed, threads=args.threads, ball=str(BALL))
    for part, run in dict(pgd=run_pgd, memory=run_memory, autoattack=run_autoattack).items():
        if part not in args.parts: continue
        rows.begin(part, settings[part] | same, USED[part], list(PEERS.values()), args.again)
        run(rows, args)


if __name__ == "__main__": main()
