"""How fast are the attacks, and how much memory do they need, beside the libraries that others use? Rows go to nbs/results/bench/attacks.csv.

    bash nbs/bench/peers.sh && nbs/bench/.peers/bin/python nbs/bench/attacks.py

Every contender attacks the same block of images, one after the other, in an order that turns with the block: what else the machine
does hits all of them. With one thread the processor's seconds count, which other programs lengthen less than those of the clock.
All get the same model, in evaluation mode, whose parameters take no gradients. A second call goes on where the first was killed.
"""
import argparse, gc, json, logging, math, os, subprocess, sys, time, warnings
from functools import partial
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

BALL, STEPS, RESTARTS = Linf(4/255), 20, 2
STEP = 2.5 * BALL.eps / STEPS
USED = dict(pgd=["core", "noise", "functions", "balls", "attacks", "standin", "robustness"], autoattack=["core", "noise", "functions", "balls", "attacks", "standin", "fab", "apgd", "square", "autoattack"],
            memory=["core", "noise", "functions", "balls", "attacks", "standin", "minimal", "fab", "apgd", "square", "autoattack", "sparse", "robustness"])

# ---- PGD, twenty steps, two restarts: each returns who stands [n]

def plain(model, x, y):
    "What one writes by hand"
    stands = torch.ones(len(x), dtype=torch.bool)
    for _ in range(RESTARTS):
        x_adv = (x + torch.empty_like(x).uniform_(-BALL.eps, BALL.eps)).clamp(0, 1)
        for _ in range(STEPS):
            x_adv.requires_grad_()
            g, = torch.autograd.grad(F.cross_entropy(model(x_adv), y), x_adv)
            x_adv = (x + (x_adv.detach() + STEP * g.sign() - x).clamp(-BALL.eps, BALL.eps)).clamp(0, 1)
        with torch.no_grad(): stands &= model(x_adv).argmax(1) == y
    return stands


def ours(model, x, y, fast):
    from advlook.attacks import pgd
    from advlook.robustness import survives
    return survives(model, Images(x, y), partial(pgd, ball=BALL, steps=STEPS, restarts=RESTARTS), BALL, fast=fast)


def judged(attack):
    def stands(model, x, y):
        x_adv = attack(model, x, y)
        with torch.no_grad(): return model(x_adv).argmax(1) == y
    return stands


def by_torchattacks(model, x, y):
    import torchattacks
    return torchattacks.MultiAttack([torchattacks.PGD(model, BALL.eps, STEP, STEPS) for _ in range(RESTARTS)])(x, y)  # the second attacks what the first has not fooled


def torchattacks_twice(model, x, y):
    import torchattacks
    attack = torchattacks.PGD(model, BALL.eps, STEP, STEPS)
    tries = [attack(x, y) for _ in range(RESTARTS)]
    with torch.no_grad(): return torch.stack([model(x_adv).argmax(1) == y for x_adv in tries]).all(0)


def by_foolbox(model, x, y):
    import foolbox
    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=STEPS, random_start=True).repeat(RESTARTS)
    return attack(foolbox.PyTorchModel(model, (0, 1), device="cpu"), x, y, epsilons=BALL.eps)[1]


def by_art(model, x, y):
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier
    classifier = PyTorchClassifier(model, torch.nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0, 1), device_type="cpu")
    attack = ProjectedGradientDescentPyTorch(classifier, eps=BALL.eps, eps_step=STEP, max_iter=STEPS, num_random_init=RESTARTS, batch_size=len(x), verbose=False)
    return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))


def by_adv_lib(model, x, y):
    from adv_lib.attacks import pgd_linf
    return pgd_linf(model, x, y, BALL.eps, steps=STEPS, restarts=RESTARTS, absolute_step_size=STEP)


PGD = {"plain loop": plain, "advlook": partial(ours, fast=False), "advlook fast": partial(ours, fast=True), "torchattacks": torchattacks_twice, "torchattacks MultiAttack": judged(by_torchattacks),
       "foolbox": judged(by_foolbox), "ART": judged(by_art), "adv-lib": judged(by_adv_lib)}

# ---- the standard AutoAttack: each yields (stage, seconds of the clock, of the processor, who stands)

def official(model, x, y, seed):
    "By the clock readings of its own log"
    from pyautoattack import AutoAttack
    marks = []
    handler = logging.Handler()
    handler.emit = lambda record: marks.append((record.getMessage(), time.perf_counter(), time.process_time()))
    log = logging.getLogger("auto-attack")
    log.setLevel(logging.DEBUG); log.addHandler(handler); log.propagate = False
    attack = AutoAttack(model, norm="Linf", eps=BALL.eps, version="standard", seed=seed)
    marks.clear()
    try: attack.run_standard_evaluation(x.contiguous(), y, batch_size=len(x))
    finally: log.removeHandler(handler)
    rows, begun = [], None
    for said, clock, cpu in marks:
        if said.startswith("running "): begun = (said.split()[1], clock, cpu)
        if said.startswith("robust accuracy after "): rows.append((begun[0], clock - begun[1], cpu - begun[2], round(float(said.split(": ")[1].split("%")[0]) * len(x) / 100)))
    return rows


def our_autoattack(model, x, y, seed, fast):
    import advlook.autoattack as room
    def table(clock):
        with patch.object(room, "time", argparse.Namespace(perf_counter=clock)): return room.autoattack_table(model, Images(x, y), BALL, seed=seed, fast=fast)[0]
    cpu = table(lambda: complex(time.process_time(), time.perf_counter()))  # both clocks at once
    return [(r.attack, complex(r.seconds).imag, complex(r.seconds).real, r.survivors) for r in cpu.itertuples() if r.attack != "none"]


AUTOATTACK = {"official": official, "advlook": partial(our_autoattack, fast=False), "advlook fast": partial(our_autoattack, fast=True)}

# ---- memory: each with few steps, since a step needs what the last one needed

def contenders(generator):
    "Attacks by name, as far as they are there: (model, x, y)"
    from advlook import attacks as A, variants as V
    once = dict(steps=4, generator=generator)
    some = {"pgd": partial(A.pgd, restarts=2, **once), "mi_fgsm": partial(A.mi_fgsm, **once), "virtual_adversarial": partial(V.virtual_adversarial, generator=generator),
            "pgd l_1": partial(A.pgd, ball=L1(12), **once),
            "pgd, diverse inputs": lambda m, x, y: A.pgd(V.Diverse(m), x, y, **once), "pgd, 4 answers expected": lambda m, x, y: A.pgd(V.Expectation(m, 4), x, y, steps=2, generator=generator)}
    def add(module, make):
        try: room = __import__(f"advlook.{module}", fromlist=[module])
        except ImportError: return
        some.update(make(room))
    add("minimal", lambda r: {"deepfool": partial(r.deepfool, ball=L2(math.inf)), "cw": lambda m, x, y: r.cw(m, x, y, steps=4, rounds=2)})
    add("fab", lambda r: {f"fab{name}": partial(r.fab, ball=ball, targets=targets, **once) for name, ball, targets in (("", BALL, None), (", one target", BALL, 1), (" l_2, one target", L2(.5), 1), (" l_1, one target", L1(12), 1))})
    add("apgd", lambda r: {f"apgd {name}": partial(r.apgd, **how, **once) for name, how in dict(ce={}, dlr=dict(loss="dlr"), targeted=dict(targets=1), l_2=dict(ball=L2(.5)), l_1=dict(ball=L1(12))).items()})
    add("square", lambda r: {f"square {name}": partial(r.square, ball=ball, queries=20, generator=generator) for name, ball in dict(l_inf=BALL, l_2=L2(.5), l_1=L1(12)).items()})
    add("sparse", lambda r: {"jsma": partial(r.jsma, gamma=0.002), "one_pixel": partial(r.one_pixel, population=60, generations=2, generator=generator)})
    return some


def one_pass(model, x, y):
    x = x.detach().requires_grad_()
    torch.autograd.grad(F.cross_entropy(model(x), y), x)


def resident(name: str) -> int:
    "VmRSS (now) or VmHWM (at most) of this process, in kB"
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))


def measure_memory(name: str, model_name: str, batch: int, seed: int, fast: bool) -> None:
    "In a process of its own, whose allocator gives back at once: how far does the resident memory rise above what there was before?"
    model = load_trio("cifar10")[model_name]
    images = load_images("cifar10", "test", n=batch, seed=seed)
    x, y = to_float(images.x).contiguous(), images.y
    attack, first = ({"one pass": one_pass, "one answer": lambda m, x, y: m(x)}.get(name) or contenders(PerImage(image_seeds(seed, n)))[name] for n in (batch, 2))
    with frozen(model):
        with torch.no_grad(): model(x[:1]); y = model(x).argmax(1)   # nobody is wrong from the start: all of them are attacked
        one_pass(model, x, y)
        first(model, x[:2], y[:2])                                 # what it imports is not counted
        gc.collect()
        open("/proc/self/clear_refs", "w").write("5")              # the peak so far is forgotten
        before = resident("VmRSS")
        with torch.no_grad() if name == "one answer" else torch.enable_grad(): attack(model, x, y)
    print(json.dumps(resident("VmHWM") - before))


# ---- the run

def here_different(names, args):
    "Without a processor for bfloat16, `fast` is nothing else than without"
    return [n for n in names if (n != "advlook fast" or computes_bfloat16(torch.device("cpu"))) and (not args.contenders or n in args.contenders)]


def run_pgd(rows, args):
    images = load_images("cifar10", "test", n=args.n, seed=args.seed)
    x, y = to_float(images.x).contiguous(), images.y
    for name in args.models:
        model = load_trio("cifar10")[name]
        with frozen(model):
            for who in here_different(PGD, args): torch.manual_seed(args.seed); PGD[who](model, x[:2], y[:2])  # imports and first calls
            for block in range(math.ceil(args.n / args.block)):
                here = slice(block * args.block, min((block + 1) * args.block, args.n))
                names = here_different(PGD, args)
                for who in names[block % len(names):] + names[:block % len(names)]:
                    if rows.has(part="pgd", model=name, contender=who, stage="", block=block): continue
                    torch.manual_seed(args.seed + block)
                    clock, cpu = time.perf_counter(), time.process_time()
                    stands = PGD[who](model, x[here], y[here])
                    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
                    stands = stands & (predict(model, x[here]) == y[here])
                    rows.add(part="pgd", model=name, contender=who, stage="", block=block, n=len(y[here]), seconds=clock, cpu=cpu, survivors=int(stands.sum()))


def run_autoattack(rows, args):
    images = load_images("cifar10", "test", n=args.aa, seed=args.seed)
    x, y = to_float(images.x).contiguous(), images.y
    for name in args.models:
        model = load_trio("cifar10")[name]
        with frozen(model):
            for block in range(math.ceil(args.aa / args.aa_block)):
                here = slice(block * args.aa_block, min((block + 1) * args.aa_block, args.aa))
                names = here_different(AUTOATTACK, args)
                for who in names[::-1] if block % 2 else names:
                    if rows.has(part="autoattack", model=name, contender=who, stage="all", block=block): continue
                    clock, cpu = time.perf_counter(), time.process_time()
                    stages = AUTOATTACK[who](model, x[here], y[here], args.seed)
                    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
                    for stage, seconds, processor, survivors in stages:
                        if not rows.has(part="autoattack", model=name, contender=who, stage=stage, block=block): rows.add(part="autoattack", model=name, contender=who, stage=stage, block=block, n=len(y[here]), seconds=seconds, cpu=processor, survivors=survivors)
                    rows.add(part="autoattack", model=name, contender=who, stage="all", block=block, n=len(y[here]), seconds=clock, cpu=cpu, survivors=stages[-1][3])


def run_memory(rows, args):
    quiet = dict(os.environ, MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536", MALLOC_ARENA_MAX="1", OMP_NUM_THREADS="1")
    for who in ["one pass", "one answer", *contenders(None)]:
        for block in range(2 if who == "one pass" else 1):   # it differs by a hundredth from run to run
            if rows.has(part="memory", model="ADV", contender=who, stage="", block=block): continue
            done = subprocess.run([sys.executable, __file__, "--memory-of", who, "--batch", str(args.batch), "--seed", str(args.seed)], env=quiet, capture_output=True, text=True)
            if done.returncode: print(who, "failed:", done.stderr.strip().splitlines()[-1], flush=True); break
            rows.add(part="memory", model="ADV", contender=who, stage="", block=block, n=args.batch, memory=json.loads(done.stdout) / 1024)


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
    parser.add_argument("--contenders", nargs="+", help="only these, as the tables call them; a later call may add others")
    parser.add_argument("--again", action="store_true", help="forget what these parts had")
    parser.add_argument("--out", default=str(RESULTS / "attacks"), help="without the ending")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(args.threads)
    if args.memory_of: return measure_memory(args.memory_of, "ADV", args.batch, args.seed, False)
    rows = Rows(type(RESULTS)(args.out), ["part", "model", "contender", "stage", "block", "n", "seconds", "cpu", "survivors", "memory"], ["part", "model", "contender", "stage", "block"])
    settings = dict(pgd=dict(n=args.n, block=args.block), autoattack=dict(n=args.aa, block=args.aa_block), memory=dict(batch=args.batch))
    for part, run in dict(pgd=run_pgd, memory=run_memory, autoattack=run_autoattack).items():
        if part not in args.parts: continue
        rows.begin(part, settings[part] | dict(seed=args.seed, threads=args.threads, ball=str(BALL)), USED[part], list(PEERS.values()), args.again)
        run(rows, args)


if __name__ == "__main__": main()
