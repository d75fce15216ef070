"`fit` on what people hand over: odd labels, pixels, models and options; when it saves, what it counts, how it ends"
import copy, math, time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advlook import resume
from advlook.batches import batches
from advlook.core import refused, to_float
from advlook.images import Images
from advlook.models import create_model
from advlook.parallel import standard_loss
from advlook.resume import read_checkpoint
from advlook.train import fit

generator = torch.Generator().manual_seed(0)
y = torch.randint(0, 2, (512,), generator=generator)
x = torch.randint(0, 120, (512, 3, 16, 16), generator=generator, dtype=torch.uint8)
bright = 8 * y[:, None] + torch.arange(8)
x[torch.arange(512)[:, None], :, bright] += 100
task = Images(x, y, ["upper", "lower"])   # which half is brighter?


def small(): return create_model("resnet8", 2, seed=0)


def run(out=None, objective=standard_loss, arch="resnet8", **options):
    model = create_model(arch, 2, seed=0)
    usual = dict(epochs=3, batch_size=64, learning_rate=0.05, save_every=3, device="cpu")
    return model, fit(model, task, task, objective, out=out, **usual | options)


def weights(images=task, test=task, model=None, **options):
    "Those after an epoch, and the accuracy on the test images"
    model = model or small()
    usual = dict(epochs=1, batch_size=128, learning_rate=0.05, device="cpu")
    history = fit(model, images, test, **usual | options)
    found = [p.detach().flatten() for p in model.parameters()]
    return torch.cat(found), history.test_accuracy.iloc[0]


@pytest.fixture(scope="module")
def usual(): return weights()


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return all(torch.equal(a[name], b[name]) for name in a)


def dies(at):
    "The standard loss, with a power failure at a step"
    calls = []

    def objective(model, x, y):
        calls.append(1)
        if len(calls) == at: raise OSError("power failure")
        return standard_loss(model, x, y)
    objective.__name__ = "standard_loss"   # as the checkpoint describes it
    return objective


class Feed:
    "Batches that somebody else makes"
    def __init__(self, x, y, n=4):
        self.x, self.y, self.n = x, y, n

    def __len__(self): return 128 * self.n

    def batches(self, seed, batch_size, process, processes, start=0):
        for i in range(start, len(self.y) // 128):
            part = slice(128 * i, 128 * i + 128)
            yield self.x[part], self.y[part], np.arange(128), 128


column = y[:, None]
MEANT = dict(
    column=(x, column),
    numpy=(x.numpy(), y.int()),
    lists=(list(x), y.tolist()),
    one_hot=(x.float(), F.one_hot(y)),
    channels_last=(x.permute(0, 2, 3, 1), column.short()))


@pytest.mark.parametrize("name", MEANT)
def test_what_is_plainly_meant(name, usual):
    "The very same weights"
    found, accuracy = weights(MEANT[name], MEANT[name])
    assert torch.equal(found, usual[0])
    assert accuracy == usual[1]


def test_classes_are_matched_by_name(usual):
    words = ["upper" if k == 0 else "lower" for k in y]
    turned = Images(x, 1 - y, ["lower", "upper"])
    for other in turned, (x, words):
        assert weights(task, other)[1] == usual[1]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_where_no_gradients_are_wanted(mode, usual):
    fresh = small()
    with mode(): found, _ = weights(model=fresh)
    assert torch.equal(found, usual[0])


def test_few_images():
    "Fewer than a batch are a batch; two are enough for a step"
    few, _ = weights(task[:20])
    batch, _ = weights(task[:20], batch_size=20)
    assert torch.equal(few, batch)
    stays, _ = weights(task[:2], augment=False, learning_rate=0)
    moved, _ = weights(task[:2], augment=False)
    assert not torch.equal(stays, moved)


def test_batches_that_somebody_else_makes():
    one, _ = weights(Feed(to_float(x), column))
    two, _ = weights(Feed(x, y))
    assert torch.equal(one, two)


def label(value):
    "The labels, one of them changed"
    labels = y.clone()
    labels[400] = value
    return labels


nan = to_float(x)
nan[400] = math.nan
WRONG = [
    ((x, label(-100)), "-100"),
    ((x, label(2)), "2 classes"),
    ((nan, y), "NaN"),
    ((x, y + 0.5), "0.5"),
    (Images((x.int() * 257).to(torch.uint16), y), "from 0 to 255"),
    ((x, F.one_hot(y) * 2), "one-hot"),
    (Images(x), "these images have none"),
    (Images(to_float(x) - 0.5, y), "[0, 1]"),
    (Images(x, y + 1), "2 classes"),
]


@pytest.mark.parametrize("images, said", WRONG)
def test_wrong_images(images, said):
    "To train on or to test on"
    refused(said, weights, images)
    refused(said, weights, task, images)


def test_no_images():
    refused("no training images", weights, task[:0])
    refused("no test images", weights, task, task[:0])
    refused("'left'", weights, task, (x, ["left"] * 512))


@pytest.mark.parametrize("feed, said", [
    ((x, label(-100)), "-100"),
    ((x, label(2)), "2 classes"),
    ((nan, y), "NaN"),
    ((x[:0], y[:0]), "no batch"),
    ((x, y, 0), "no training")])
def test_wrong_batches(feed, said): refused(said, weights, Feed(*feed))


def made_there():
    with torch.inference_mode(): return small()


@pytest.mark.parametrize("make, said", [
    (lambda: small().requires_grad_(False), "frozen"),
    (made_there, "inference_mode"),
    (lambda: small().half(), "float16"),
    (lambda: small().bfloat16(), "bfloat16"),
    (lambda: nn.Conv2d(1, 2, 3), "3, 16, 16]")])
def test_wrong_models(make, said): refused(said, weights, model=make())


def test_a_copy_can_be_trained(usual):
    "As the sentence says, of what was made under inference_mode"
    found, _ = weights(model=copy.deepcopy(made_there()))
    assert torch.equal(found, usual[0])


@pytest.mark.parametrize("options, said", [
    (dict(batch_size=0), "batch_size"),
    (dict(epochs=0), "epochs"),
    (dict(learning_rate=math.nan), "learning rate"),
    (dict(schedule="cosine"), "one-cycle or steps"),
    (dict(device="cuda:1"), "CUDA_VISIBLE_DEVICES"),
    (dict(precision="fp16"), "no or bf16")])
def test_wrong_options(options, said): refused(said, weights, **options)


def test_numbers_of_numpy(tmp_path):
    "A number of numpy's is one of Python's to a checkpoint, and so the same run"
    decay = np.float64(5e-4)
    refused("power", run, tmp_path, dies(5), weight_decay=decay, error=OSError)
    resumed, _ = run(tmp_path)
    whole, _ = run()
    assert same(whole, resumed)


def test_damaged_and_ended(tmp_path):
    "The one before is taken, and a listener hears of its epochs at once; a run that ended by itself stays as it is"
    whole, _ = run(tmp_path)
    (tmp_path/"checkpoint.pt").write_bytes(b"damaged")
    heard = []
    stop = lambda model, rows: dict(extra=np.float32(0.5), verdict="stop")
    listener = lambda rows: heard.append(len(rows))
    resumed, _ = run(tmp_path, log=listener, watch=stop)
    assert heard == [2, 3]
    assert same(whole, resumed)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["before-checkpoint.pt", "checkpoint.pt", "damaged-checkpoint.pt"]
    again, history = run(tmp_path)
    assert same(whole, again) and history.extra.iloc[-1] == 0.5
    refused("is of another architecture", run, tmp_path, arch="resnet20")
    for path in tmp_path.iterdir(): path.write_bytes(b"damaged")
    refused("is whole", run, tmp_path)


class Slow:
    "Data that are long in coming"
    def __len__(self): return 64

    def batches(self, seed, batch_size, process, processes, start=0):
        for batch in batches(task[:64], seed, batch_size):
            time.sleep(0.5)
            yield batch


def test_waiting_counts():
    history = fit(small(), Slow(), epochs=1, batch_size=32, device="cpu")
    assert history.seconds.iloc[0] > 1


def test_saves_by_the_clock(tmp_path):
    "As if each step took minutes: a checkpoint of its own for each of six, and it dies in the seventh"
    with patch.object(resume, "SAVE_SECONDS", 0):
        refused("power", run, tmp_path, dies(7), epochs=1, save_every=None, error=OSError)
    kept, _ = read_checkpoint(tmp_path/"checkpoint.pt")
    assert kept["step"] == 6


def test_from_a_notebook(tmp_path):
    "`notebook_launcher` on one process, as the page says"
    from accelerate import notebook_launcher

    def work(out):
        model, _ = run(out)
        torch.save(model.state_dict(), Path(out)/"end.pt")
    notebook_launcher(work, (tmp_path,), num_processes=1)
    ended = torch.load(tmp_path/"end.pt", weights_only=True)
    whole, _ = run()
    for name, weight in whole.state_dict().items(): assert torch.equal(weight, ended[name])
