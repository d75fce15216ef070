"""On a GPU, where torch finds one: the same answers as on the processor, and training there

Alone, and started by accelerate or torchrun.
"""
import subprocess, sys
from functools import partial

import pytest
import torch
from torch import nn

from advlook.apgd import apgd
from advlook.attacks import fgsm, pgd
from advlook.autoattack import autoattack_table
from advlook.balls import L1, L2, Linf
from advlook.core import answers, predict, refused, scores, to_float, whole_float32
from advlook.functions import call, describe
from advlook.images import Images
from advlook.noise import PerImage, image_seeds
from advlook.fab import fab
from advlook.gradients import integrated_grad, loss_grad, smooth_grad, vanilla_grad
from advlook.guided import guided_backprop
from advlook.minimal import deepfool
from advlook.objectives import make_objective
from advlook.square import square
from advlook.standin import standin
from advlook.stream import Stream
from advlook.train import fit
from advlook.saved import load_checkpoint
from advlook.zoo import bundled_folder
from test_cli import photos  # noqa: F401 (a fixture)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")
DEVICES = "cpu", "cuda"
OBJECTIVES = "std", "noise", "fgsm", "fast", "pgd", "trades", "mart", "fast+awp", "fgsm+gradalign"


def halves(n: int = 256) -> Images:
    "Images whose brighter half tells their class"
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 2, (n,), generator=g)
    x = torch.randint(0, 120, (n, 3, 16, 16), generator=g, dtype=torch.uint8)
    x[torch.arange(n)[:, None], :, 8 * y[:, None] + torch.arange(8)] += 60
    return Images(x, y, ["above", "below"])


def small(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    body = nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*body, nn.Dropout(dropout), nn.Linear(392, 2))


@pytest.fixture(scope="module")
def pair():
    "The bundled ADV model for CIFAR-10 twice, photos, their labels by the model itself"
    from advlook.data import example_images
    file = bundled_folder("cifar10", "adv-0") / "model.safetensors"
    models = {device: load_checkpoint(file).to(device) for device in DEVICES}
    images = example_images(32)
    return models, to_float(images.x), predict(models["cpu"], images.x)


def on_both(pair, function) -> list[torch.Tensor]:
    "What it gives on each device, with the same noise"
    models, x, y = pair
    seeds = image_seeds(0, len(x))
    once = lambda device: function(models[device], x.to(device), y.to(device), PerImage(seeds))
    with whole_float32(): return [once(device).detach().cpu() for device in DEVICES]


def test_answers_agree(pair):
    models, x, y = pair
    assert torch.equal(answers(models["cuda"], x.cuda()).cpu(), y)
    assert torch.allclose(scores(models["cpu"], x), scores(models["cuda"], x), atol=1e-3)


ATTACKS = [
    partial(fgsm, random_start=True),
    partial(pgd, steps=5),
    partial(pgd, ball=L2(0.5), steps=5),
    partial(pgd, ball=L1(8), steps=5),
    partial(apgd, steps=10),
    partial(fab, steps=10),
    partial(square, queries=50),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=describe)
def test_attacks_agree(pair, attack):
    models, x, y = pair
    ends = on_both(pair, lambda model, x, y, g: attack(model, x, y, generator=g))
    fooled = [int((answers(models["cpu"], end) != y).sum()) for end in ends]
    assert abs(fooled[0] - fooled[1]) <= 3, fooled
    assert all(((end - x).abs() > 1e-7).any() for end in ends)
    near = (ends[0] - ends[1]).abs().flatten(1).mean(1)
    assert near.median() < 2e-3, near   # a sign that flips near 0 moves a pixel; most stay


AVERAGES = partial(smooth_grad, copies=5), partial(integrated_grad, steps=5)


@pytest.mark.parametrize("attribution", [vanilla_grad, loss_grad, guided_backprop, *AVERAGES])
def test_attributions_agree(pair, attribution):
    ours, theirs = on_both(pair, partial(call, attribution))
    assert torch.allclose(ours, theirs, atol=1e-3 * ours.abs().max().item())


def test_deepfool_agrees(pair):
    ends = on_both(pair, lambda model, x, y, g: deepfool(model, x, y, L2(10.0), 20))
    sizes = [L2(10.0).norm(end - pair[1]) for end in ends]
    assert torch.allclose(*sizes, rtol=0.02, atol=1e-3)


def test_standin_in_bfloat16(pair):
    models, x, _ = pair
    body = standin(models["cuda"], x[:2].cuda(), fast=True)
    assert body.half and "folded" in body.note and "bfloat16" in body.note, body.note
    assert (body(x.cuda()).argmax(1) == answers(models["cuda"], x.cuda())).float().mean() > 0.9


@pytest.mark.parametrize("fast", [False, True])
def test_autoattack_agrees(pair, fast):
    models, x, y = pair
    images = Images(x[:8], y[:8])
    judge = lambda device: autoattack_table(models[device], images, Linf(8/255), fast=fast)[1]
    left = [judge(device).sum().item() for device in DEVICES]
    assert abs(left[0] - left[1]) <= 1, left


def test_training_agrees():
    with whole_float32():
        models = [small() for _ in DEVICES]
        how = dict(objective=make_objective("fast", 8/255), epochs=2, batch_size=64, learning_rate=0.05, precision="no")
        rows = [fit(model, halves(), device=device, **how) for model, device in zip(models, DEVICES)]
    assert torch.allclose(*[torch.tensor(r.loss.values) for r in rows], rtol=1e-2), rows
    ours, theirs = (model.parameters() for model in models)
    for a, b in zip(ours, theirs): assert torch.allclose(a, b.cpu(), atol=1e-2)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_objectives(objective, precision):
    goal = make_objective(objective, 4/255, steps=2)
    how = dict(epochs=6, batch_size=32, learning_rate=0.05, precision=precision, accumulate=2)
    rows = fit(small(), halves(), halves(64), goal, **how)
    assert rows.loss.iloc[-1] < rows.loss.iloc[0], rows
    assert rows.test_accuracy.iloc[-1] > 0.8, rows


def test_goes_on(tmp_path):
    "Stopped after the first of three epochs, and not"
    def stop(rows):
        if len(rows) == 1: raise KeyboardInterrupt
    how = dict(epochs=3, batch_size=64, learning_rate=0.05, ema=0.9)
    learn = partial(fit, train=halves(), objective=make_objective("fast", 8/255), **how)
    ends = []
    with torch.backends.cudnn.flags(enabled=True, deterministic=True):
        for out, logs in ((None, [()]), (tmp_path, [stop, ()])):
            for log in logs:
                model = small(0.2)
                try: rows = learn(model, out=out, log=log)
                except KeyboardInterrupt: pass
            ends.append((model, rows))
    assert ends[0][1].loss.tolist() == ends[1][1].loss.tolist()
    for a, b in zip(ends[0][0].parameters(), ends[1][0].parameters()): assert torch.equal(a, b)


def test_wrong_labels_are_a_sentence():
    images = halves(64)
    wrong = Images(images.x, images.y + 1)
    refused("the model has 2 classes", fit, small(), wrong, epochs=1, batch_size=32)
    assert torch.ones(1, device="cuda").item() == 1   # the GPU still answers


def test_stream(photos):  # noqa: F811
    images = Stream(str(photos), "train", 16, lanes=2)
    rows = fit(small(), images, None, epochs=1, batch_size=2, learning_rate=0.01)
    assert rows.loss.notna().all()


LAUNCHES = {
    "python": "-m",
    "accelerate": "-m accelerate.commands.launch --num_processes 1 -m",
    "torchrun": "-m torch.distributed.run --standalone --nproc_per_node 1 -m",
}


@pytest.mark.parametrize("launch", LAUNCHES)
def test_command(tmp_path, launch):
    def run(*words): return subprocess.run([sys.executable, *words], capture_output=True, text=True)
    out = str(tmp_path / "run")
    options = "--arch resnet8 --size 32 --objective fast --epochs 1 --out".split()
    done = run(*LAUNCHES[launch].split(), "advlook.cli", "train", "shapes-textures", *options, out)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "manifest.json").exists()
    said = run("-m", "advlook.cli", "evaluate", out, "--steps", "2", "--n", "64")
    assert said.returncode == 0, said.stderr[-3000:]
    assert "robust" in said.stdout
