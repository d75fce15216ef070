"Whatever the images, the ball and the options: results lie in the ball, and eps = 0 changes nothing"
import torch
from hypothesis import given, settings, strategies as st

from advlook.apgd import apgd
from advlook.attacks import pgd
from advlook.balls import L0, L1, L2, Linf
from advlook.losses import LOSSES
from advlook.zoo import load_trio

MODEL = load_trio("cifar10")["STD"].eval()
RADII = st.sampled_from([0.0, 1/255, 0.1, 1.0, 12.0])
SEEDS = st.integers(0, 2**31)


def ball_of(kind, eps):
    return kind(min(eps, 1.0) if kind is Linf else eps)


def two_images(generator):
    "Often exactly 0 or 1"
    return torch.rand(2, 3, 32, 32, generator=generator).round(decimals=1)


def check(ball, images, result):
    assert result.min() >= 0 and result.max() <= 1
    size = ball.norm(result - images)
    assert (size <= ball.eps + 1e-6).all()
    if ball.eps == 0: assert torch.equal(result, images)


APGD = dict(
    kind=st.sampled_from([Linf, L2, L1]),
    eps=RADII,
    steps=st.integers(1, 12),
    loss=st.sampled_from([*LOSSES]),
    targets=st.sampled_from([None, 2]),
    seed=SEEDS,
)


@settings(max_examples=20, deadline=None)
@given(**APGD)
def test_apgd(kind, eps, steps, loss, targets, seed):
    ball, generator = ball_of(kind, eps), torch.Generator().manual_seed(seed)
    images = two_images(generator)
    y = torch.randint(0, 10, (2,), generator=generator)
    options = dict(loss=loss, targets=targets, generator=generator)
    result = apgd(MODEL, images, y, ball, steps, **options)
    check(ball, images, result)


PGD = dict(
    kind=st.sampled_from([Linf, L2, L1, L0]),
    eps=RADII,
    steps=st.integers(1, 4),
    step_size=st.floats(0, 1),
    random_start=st.booleans(),
    targeted=st.booleans(),
    loss=st.sampled_from([*LOSSES]),
    momentum=st.sampled_from([0.0, 1.0]),
)


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, **PGD)
def test_pgd(kind, eps, seed, **options):
    ball, generator = ball_of(kind, eps), torch.Generator().manual_seed(seed)
    images = two_images(generator)
    labels = torch.randint(0, 10, (2,), generator=generator)
    result = pgd(MODEL, images, labels, ball, generator=generator, **options)
    check(ball, images, result)
