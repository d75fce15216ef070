"""How much does training cost beyond the passes it needs? Rows go to nbs/results/bench/training.csv.

    bash nbs/bench/peers.sh && nbs/bench/.peers/bin/python nbs/bench/training.py

A ResNet-20 on CIFAR-10, one thread: our `fit`, a loop as one writes it by hand, and the steps of robustness and MAIR,
in turn, in both precisions where there are units for both. The peers craft in evaluation mode, so `fit` does that too,
once more. Then the data pipeline alone; then two processes beside one. A second call goes on where the first was
killed.
"""
import argparse, json, os, socket, subprocess, sys, time, warnings
from functools import partial
from itertools import product
from unittest.mock import patch

import torch
import torch.nn.functional as F
from accelerate import PartialState

from advlook.batches import batches
from advlook.core import to_float
from advlook.data import load_images
from advlook.models import create_model
from advlook.objectives import make_objective
from advlook.parallel import fast_precision
from advlook.train import fit
from common import RESULTS, Rows

EPS, BATCH = 4/255, 256
ROOMS = ("core noise functions radii balls losses passes attacks "
         "batches runs resume parallel train adversarial around objectives")
USED = ROOMS.split()
COLUMNS = ["part", "contender", "objective", "precision", "block", "n", "seconds", "cpu"]


def resnet20(): return create_model("resnet20", 10, 0)


def ours(images, objective, precision, crafting=None, make=resnet20, batch_size=BATCH, device="cpu"):
    "`fit` itself, without test images"
    goal = make_objective(objective, EPS, crafting=crafting)
    how = dict(epochs=1, batch_size=batch_size, learning_rate=0.05, device=device, precision=precision)
    fit(make(), images, None, goal, **how)


def loop(images, step, precision, make=resnet20, batch_size=BATCH, device="cpu"):
    "Crops, flips, batches, a step of SGD each"
    model = make().to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9, weight_decay=5e-4)
    for batch in torch.randperm(len(images)).split(batch_size):
        x, y = to_float(images.x[batch].to(device)), images.y[batch].to(device)
        if torch.rand(()) < 0.5: x = x.flip(3)
        i, j = torch.randint(0, 9, (2,)).tolist()
        x = F.pad(x, (4,) * 4)[:, :, i:i + 32, j:j + 32]
        x = x.contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad()
        half = precision == "bf16"
        with torch.autocast(device, torch.bfloat16, enabled=half): loss = step(model, x, y)
        loss.backward()
        optimizer.step()


def by_hand(model, x, y, attack):
    if attack != "std":
        fast = attack == "fast"
        d = torch.empty_like(x).uniform_(-EPS, EPS) if fast else torch.zeros_like(x)
        x_adv = (x + d).clamp(0, 1).requires_grad_()
        g, = torch.autograd.grad(F.cross_entropy(model(x_adv).float(), y), x_adv)
        step = 1.25 * EPS if fast else EPS
        d = x_adv.detach() - x + step * g.sign()
        x = (x + d.clamp(-EPS, EPS)).clamp(0, 1)
    return F.cross_entropy(model(x).float(), y)


def by_robustness(model, x, y, attack):
    "Its AttackerModel, which hands extra words to the model, and carries normalization of its own, here none"
    from robustness.attacker import AttackerModel
    class Data: mean, std = torch.zeros(3), torch.ones(3)
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model
        def forward(self, x, **words): return self.model(x)
    if not hasattr(model, "attacker_model"):
        object.__setattr__(model, "attacker_model", AttackerModel(Plain(), Data))
    how = dict(constraint="inf", eps=EPS, step_size=1.25 * EPS, iterations=1, use_best=True)
    how |= dict(make_adv=attack != "std", random_start=attack == "fast")
    with patch.object(torch.Tensor, "cuda", lambda self, *_, **__: self):   # it asks for a GPU outright
        z, _ = model.attacker_model.train()(x, target=y, **how)
    return F.cross_entropy(z.float(), y)


def by_mair(model, x, y, attack):
    "Its AT, whose attacks are those of torchattacks"
    if attack != "std":
        import torchattacks
        x = torchattacks.PGD(model, EPS, 1.25 * EPS, 1, random_start=attack == "fast")(x, y)
    return F.cross_entropy(model(x).float(), y)


def contenders():
    "Each trains on all images once: (images, objective, precision)"
    by = lambda step: lambda images, objective, precision: loop(images, partial(step, attack=objective), precision)
    return {
        "fit": ours,
        "fit (eval)": partial(ours, crafting="eval"),
        "by hand": by(by_hand),
        "robustness": by(by_robustness),
        "MAIR": by(by_mair),
    }


def timed(run, *args):
    "Seconds of the clock, and of the processor"
    clock, cpu = time.perf_counter(), time.process_time()
    run(*args)
    return dict(seconds=time.perf_counter() - clock, cpu=time.process_time() - cpu)


def run_epochs(rows, args):
    images, known = load_images("cifar10", "train", n=args.images, seed=args.seed), contenders()
    precisions = dict.fromkeys(["no", fast_precision()])
    todo = [key for key in product(precisions, ("std", "fgsm", "fast"), known) if key[1:] != ("std", "fit (eval)")]
    for block in range(args.blocks):
        turn = block * 5 % len(todo)
        for precision, objective, who in todo[turn:] + todo[:turn]:
            key = dict(part="epoch", contender=who, objective=objective, precision=precision, block=block)
            if rows.has(**key): continue
            known[who](images[:BATCH], objective, precision)   # imports and first calls
            rows.add(**key, n=len(images), **timed(known[who], images, objective, precision))


def run_pipeline(rows, args):
    "What `fit` does before a step"
    images = load_images("cifar10", "train", n=args.images, seed=args.seed)
    def once(block):
        for x, *_ in batches(images, (args.seed, block), BATCH):
            to_float(x).contiguous(memory_format=torch.channels_last)
    for block in range(args.blocks):
        key = dict(part="pipeline", contender="batches", objective="", precision="", block=block)
        if not rows.has(**key): rows.add(**key, n=len(images), **timed(once, block))


def one_process(args):
    "In a process of its own, one of --processes: seconds of the second epoch"
    images = load_images("cifar10", "train", n=args.images, seed=args.seed)
    how = dict(epochs=2, batch_size=BATCH, learning_rate=0.05, device="cpu")
    rows = fit(create_model("resnet20", 10, 0), images, None, make_objective("fast", EPS), **how)
    if os.environ.get("RANK", "0") == "0": print(json.dumps(rows.seconds.tolist()[1]))
    PartialState().destroy_process_group()


def run_processes(rows, args):
    quiet = dict(os.environ, OMP_NUM_THREADS="1", TQDM_DISABLE="1")
    for block in range(args.blocks):
        for count in (1, 2) if block % 2 else (2, 1):
            key = dict(part="processes", contender=str(count), objective="fast", block=block)
            key["precision"] = fast_precision()
            if rows.has(**key): continue
            launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()]
            command = [sys.executable, *(launch if count == 2 else []), __file__, "--one-process"]
            options = ["--images", str(args.images), "--seed", str(args.seed)]
            done = subprocess.run([*command, *options], env=quiet, capture_output=True, text=True)
            if done.returncode: sys.exit(done.stderr)
            rows.add(**key, n=args.images, seconds=json.loads(done.stdout.strip().splitlines()[-1]))


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2560, help="images of an epoch")
    parser.add_argument("--blocks", type=int, default=3, help="epochs of each")
    parser.add_argument("--parts", nargs="+", default=["epoch", "pipeline", "processes"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="forget what these parts had")
    parser.add_argument("--one-process", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    os.environ["TQDM_DISABLE"] = "1"
    torch.set_num_threads(1)
    if args.one_process: return one_process(args)
    rows = Rows(RESULTS / "training", COLUMNS, COLUMNS[:5])
    settings = dict(n=args.images, blocks=args.blocks, batch_size=BATCH, seed=args.seed, threads=1)
    for part, run in dict(epoch=run_epochs, pipeline=run_pipeline, processes=run_processes).items():
        if part not in args.parts: continue
        rows.begin(part, settings, USED, ["accelerate", "robustness", "torchattacks"], args.again)
        run(rows, args)


if __name__ == "__main__": main()
