"What must hold of the attacks on few pixels, whatever the images"
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from advlook.balls import L0
from advlook.core import logits, to_float
from advlook.data import example_images
from advlook.losses import fooled
from advlook.noise import PerImage, image_seeds
from advlook.sparse import jsma, one_pixel
from advlook.zoo import load_trio


@pytest.fixture(scope="module")
def bench():
    "STD, four images and what it takes them for"
    model, x = load_trio("cifar10")["STD"], to_float(example_images(4).x)
    return model, x, logits(model, x).argmax(1)


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))


SMALL = small()


@settings(max_examples=50, deadline=None)
@given(
    eps=st.sampled_from([0, 1, 3, 8, math.inf]),
    theta=st.sampled_from([-1.0, -0.3, 0.3, 1.0]),
    gamma=st.sampled_from([0.01, 0.1, 1.0]),
    pairs=st.booleans(),
    targeted=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_stays_inside(eps, theta, gamma, pairs, targeted, seed):
    ball, generator = L0(eps), torch.Generator().manual_seed(seed)
    images = torch.rand(4, 3, 8, 8, generator=generator)
    images = images.round(decimals=1)
    labels = torch.randint(0, 5, (4,), generator=generator)
    by_map = jsma(SMALL, images, labels, ball, theta, gamma, pairs, targeted)
    few = dict(population=8, generations=2, ball=L0(min(eps, 5)))
    by_search = one_pixel(SMALL, images, labels, targeted=targeted, generator=generator, **few)
    before = fooled(SMALL(images), labels, targeted)
    for result in by_map, by_search:
        assert result.min() >= 0 and result.max() <= 1
        assert (ball.norm(result - images) <= eps).all()
        changed = (result != images).flatten(1).any(1)
        assert fooled(SMALL(result), labels, targeted)[changed].all()
        assert not changed[before].any()
        if eps == 0: assert not changed.any()
    d = by_map - images
    assert (d * theta >= 0).all()
    assert ((d != 0).flatten(1).sum(1) <= gamma * images[0].numel()).all()


def test_company_does_not_matter_to_one_pixel(bench):
    model, x, y = bench
    seeds, quick = image_seeds(0, 4), dict(pixels=5, population=20, generations=2)
    whole = one_pixel(model, x, y, generator=PerImage(seeds), **quick)
    part = one_pixel(model, x[2:], y[2:], generator=PerImage(seeds[2:]), **quick)
    assert torch.equal(whole[2:], part)


def test_company_and_memory_format_do_not_matter_to_jsma(bench):
    model, x, y = bench
    whole = jsma(model, x, y)
    assert torch.equal(whole[2:], jsma(model, x[2:], y[2:]))
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(whole, jsma(model, last, y))


def test_the_model_is_as_it_was(bench):
    model, x, y = bench
    modes = [m.training for m in model.modules()]
    weights = [w.clone() for w in model.state_dict().values()]
    jsma(model, x, y)
    one_pixel(model, x, y, population=5, generations=1)
    assert modes == [m.training for m in model.modules()]
    assert all(map(torch.equal, weights, model.state_dict().values()))
    assert all(p.grad is None for p in model.parameters())
