"What must hold of DeepFool and C&W, whatever the images and the norm"
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings, strategies as st

from advlook.balls import L2, Linf
from advlook.core import to_float
from advlook.data import example_images
from advlook.losses import fooled, margin
from advlook.minimal import cw, deepfool
from advlook.zoo import load_trio

MODEL = load_trio("cifar10")["STD"]
X = to_float(example_images(4).x)
with torch.no_grad(): Y = MODEL(X).argmax(1)
QUICK_CW = partial(cw, steps=6, rounds=2, lr=0.05)


def wrong(x_adv, y): return MODEL(x_adv).argmax(1) != y


@settings(max_examples=25, deadline=None)
@given(
    attack_and_kind=st.sampled_from([(deepfool, L2), (deepfool, Linf), (QUICK_CW, L2)]),
    eps=st.sampled_from([0.0, 1/255, 0.1, 1.0, math.inf]),
    hooked=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_stays_inside(attack_and_kind, eps, hooked, seed):
    attack, kind = attack_and_kind
    ball, generator = kind(eps), torch.Generator().manual_seed(seed)
    noise = torch.rand(2, 3, 32, 32, generator=generator)
    images = noise.round(decimals=1)  # often exactly 0 or 1
    labels = MODEL(images).argmax(1)
    labels[1] = (labels[1] + 1) % 10  # wrong from the start
    result = attack(MODEL, images, labels, ball=ball, stop=wrong if hooked else None)
    assert result.min() >= 0 and result.max() <= 1
    assert (ball.norm(result - images) <= eps + 1e-6).all()
    changed = (result != images).flatten(1).any(1)
    assert fooled(MODEL(result), labels)[changed].all()
    assert not changed[1]
    if eps == 0: assert not changed.any()


EACH = pytest.mark.parametrize("attack", [
    partial(deepfool, ball=Linf(math.inf)), deepfool, partial(QUICK_CW, steps=15)])


@EACH
def test_batch_memory_format_and_history_do_not_matter(attack):
    whole = attack(MODEL, X, Y)
    assert not whole.requires_grad
    with torch.no_grad(): alone = attack(MODEL, X[:1], Y[:1])
    assert torch.allclose(alone, whole[:1], atol=1e-4)
    last = attack(MODEL, X.contiguous(memory_format=torch.channels_last), Y)
    assert torch.allclose(last, whole, atol=1e-4)
    assert last.is_contiguous(memory_format=torch.channels_last)


@EACH
def test_float64_comes_back_as_such(attack):
    model = load_trio("cifar10")["STD"].double()
    assert attack(model, X[:2].double(), Y[:2]).dtype == torch.float64


@EACH
def test_the_model_is_as_it_was(attack):
    before = [p.clone() for p in MODEL.state_dict().values()]
    attack(MODEL, X, Y)
    assert all(map(torch.equal, before, MODEL.state_dict().values()))
    assert all(p.grad is None for p in MODEL.parameters())


@pytest.mark.parametrize("attack", [partial(deepfool, steps=2), partial(cw, steps=5, rounds=2)])
def test_without_a_gradient_the_images_come_back(attack):
    def flat(x): return MODEL((8 * x).round() / 8)
    two = X[:2]
    assert torch.equal(attack(flat, two), two)


def test_whoever_stop_does_not_confirm_walks_on():
    def sure(x_adv, y): return margin(MODEL(x_adv), y) < -1
    assert sure(deepfool(MODEL, X, Y, stop=sure), Y).all()
    assert not sure(deepfool(MODEL, X, Y), Y).any()
