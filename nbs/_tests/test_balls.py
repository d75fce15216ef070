"Projections and random points, whatever the ball, its radius and the perturbation"
import torch
from hypothesis import given, settings, strategies as st

from advlook.balls import L0, L1, L2, Linf, into

CASES = dict(
    kind=st.sampled_from([Linf, L2, L1, L0]),
    eps=st.sampled_from([0, 0.1, 1, 3.5, 30, 1000]),
    size=st.floats(0, 10),
    boxed=st.booleans(),
    seed=st.integers(0, 2**31),
)


@settings(max_examples=100, deadline=None)
@given(**CASES)
def test_projection(kind, eps, size, boxed, seed):
    ball = kind(min(eps, 1) if kind is Linf else eps)
    options = dict(generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = torch.rand(3, 2, 4, 5, **options).round(decimals=1)   # often exactly 0 or 1
    d = torch.randn(3, 2, 4, 5, **options) * size
    box = x if boxed else None
    p = ball.project(d, box)
    assert (ball.norm(p) <= ball.eps + 1e-6).all()
    assert torch.allclose(ball.project(p, box), p, atol=1e-6)
    small = ball.norm(d) <= ball.eps
    if not boxed: assert torch.allclose(p[small], d[small])
    there = into(ball, x, x + d)
    assert there.min() >= 0 and there.max() <= 1
    assert (ball.norm(there - x) <= ball.eps + 1e-6).all()
    point = ball.sample(d, options["generator"])
    assert (ball.norm(point) <= ball.eps + 1e-6).all()


def test_nothing_to_climb():
    zero = torch.zeros(2, 3, 4, 4)
    for kind in Linf, L2, L1, L0:
        for eps in 0.0, 1 if kind is Linf else 3:
            ball = kind(eps)
            assert ball.steepest(zero).eq(0).all()
            assert ball.project(zero).eq(0).all()
            assert ball.sample(zero).isfinite().all()
        assert torch.equal(into(kind(0.0), zero, torch.rand(2, 3, 4, 4)), zero)
