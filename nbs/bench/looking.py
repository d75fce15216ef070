"""How fast are the attributions beside captum's, with as many images in the model at once?

    bash nbs/bench/peers.sh && nbs/bench/.peers/bin/python nbs/bench/looking.py

Both explain the same block of images, one after the other, in an order that turns with the block: what else the machine
does hits both. advlook chooses how many images go through the model together; captum is told the same number. With one
thread the processor's seconds count. Rows go to nbs/results/bench/looking.csv; a second call goes on where the first
was killed.
"""
import argparse, time, warnings
from pathlib import Path

import torch

from advlook.core import at_once, frozen, predict, to_float
from advlook.data import load_images
from advlook.gradients import integrated_grad, smooth_grad
from advlook.noise import PerImage, image_seeds
from advlook.sensitivity import TOGETHER
from advlook.zoo import load_bundled
from common import RESULTS, Rows

COPIES, SIGMA = 50, 0.15
STEPS = 50
MODELS = {"CIFAR-10": ("cifar10", 32), "Imagenette": ("imagenette", 128)}   # name: (data set, pixels)
BATCHES = {"CIFAR-10": (1, 8), "Imagenette": (1,)}
USED = "core images noise functions losses sensitivity smoothing paths gradients".split()
COLUMNS = "part model contender batch block at_once seconds cpu".split()

# ---- each: (model, x, y, images at once) -> maps; a part is an attribution, and its first contender is advlook

def our_smooth_grad(model, x, y, together):
    return smooth_grad(model, x, y, COPIES, SIGMA, generator=PerImage(image_seeds(0, len(x))))


def captum_smooth_grad(model, x, y, together):
    "With one sigma for all images, where ours is each image's own"
    from captum.attr import NoiseTunnel, Saliency
    some = dict(nt_samples=COPIES, nt_samples_batch_size=max(together // len(x), 1), stdevs=SIGMA)
    return NoiseTunnel(Saliency(model)).attribute(x, target=y, abs=False, **some)


def our_integrated_gradients(model, x, y, together): return integrated_grad(model, x, y, steps=STEPS)


def captum_integrated_gradients(model, x, y, together):
    from captum.attr import IntegratedGradients
    return IntegratedGradients(model).attribute(x, target=y, n_steps=STEPS, internal_batch_size=together)


PARTS = {
    "SmoothGrad": dict(advlook=our_smooth_grad, captum=captum_smooth_grad),
    "Integrated Gradients": dict(advlook=our_integrated_gradients, captum=captum_integrated_gradients),
}

# ---- the run

def most_at_once(explain, model, x, y, together) -> int:
    "How many images the model gets together, at most; also the first call, which is slower"
    sizes = []
    handle = model.register_forward_hook(lambda module, given, out: sizes.append(len(out)))
    try: explain(model, x, y, together)
    finally: handle.remove()
    return max(sizes)


def timed(explain, *given) -> dict:
    clock, cpu = time.perf_counter(), time.process_time()
    explain(*given)
    return dict(seconds=time.perf_counter() - clock, cpu=time.process_time() - cpu)


def measure(rows: Rows, part: str, args) -> None:
    for name, (data, size) in MODELS.items():
        model = load_bundled(data, "std-0")
        for batch in BATCHES[name]:
            images = load_images(data, "test", n=batch * args.blocks, seed=args.seed, size=size)
            x, y = to_float(images.x).contiguous(), predict(model, images.x)
            together = at_once(x[:batch], max(batch, TOGETHER), x.device)
            with frozen(model): measure_blocks(rows, dict(part=part, model=name, batch=batch), model, x, y, together)


def measure_blocks(rows: Rows, about: dict, model, x, y, together: int) -> None:
    contenders = list(PARTS[about["part"]].items())
    batch, most = about["batch"], {}
    for block, start in enumerate(range(0, len(x), batch)):
        here = model, x[start:start + batch], y[start:start + batch], together
        for who, explain in contenders if block % 2 else contenders[::-1]:
            key = about | dict(contender=who, block=block)
            if rows.has(**key): continue
            if who not in most: most[who] = most_at_once(explain, *here)
            rows.add(**key, at_once=most[who], **timed(explain, *here))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=3, help="batches of each size")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="forget what these parts had")
    parser.add_argument("--out", default=str(RESULTS / "looking"), help="without the ending")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(args.threads)
    rows = Rows(Path(args.out), COLUMNS, COLUMNS[:5])
    for part in args.parts:
        settings = dict(blocks=args.blocks, seed=args.seed, threads=args.threads, copies=COPIES, steps=STEPS)
        rows.begin(part, settings, USED, ["captum"], args.again)
        measure(rows, part, args)


if __name__ == "__main__": main()
