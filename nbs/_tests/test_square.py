"Square stays in the ball, whatever the images and the norm"
import torch
from hypothesis import given, settings, strategies as st

from advlook.balls import L1, L2, Linf
from advlook.square import square
from advlook.zoo import load_trio

MODEL = load_trio("cifar10")["STD"]


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from([Linf, L2, L1]),
    eps=st.sampled_from([0.0, 1/255, 0.1, 1.0, 12.0]),
    queries=st.integers(1, 12),
    seed=st.integers(0, 2**31),
)
def test_stays_inside(kind, eps, queries, seed):
    ball = kind(min(eps, 1.0) if kind is Linf else eps)
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, 3, 32, 32, generator=generator)
    images = images.round(decimals=1)
    y = torch.randint(0, 10, (2,), generator=generator)
    nobody = lambda x_adv, y: y != y
    result = square(MODEL, images, y, ball, queries, generator=generator, stop=nobody)
    assert result.min() >= 0 and result.max() <= 1
    assert (ball.norm(result - images) <= eps + 1e-6).all()
    if eps == 0: assert torch.equal(result, images)
