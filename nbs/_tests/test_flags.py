"Chance in a model is told, rounding is not"
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advlook.core import scores
from advlook.data import example_images
from advlook.flags import _random_answers
from advlook.zoo import load_trio

STD, PHOTOS = load_trio("cifar10")["STD"], example_images(24)


class Around(nn.Module):
    def __init__(self, before=nn.Identity(), after=nn.Identity()):
        super().__init__()
        self.model, self.before, self.after = STD, before, after

    def forward(self, x): return self.after(self.model(self.before(x)))


def times_nearly_one(of): return lambda z: z * (1 + of * torch.randn_like(z))
def resized(x): return F.interpolate(x, size=int(torch.randint(16, 64, ())))
def moved(x): return x.roll(int(torch.randint(0, 8, ())), 3)


def flags(model, x=PHOTOS.x):
    torch.manual_seed(0)
    return _random_answers(model, PHOTOS, scores(model, x), 256)


@pytest.mark.parametrize("model", [
    Around(resized),
    Around(moved),
    Around(lambda x: x + 5e-4 * torch.randn_like(x)),
    Around(lambda x: torch.dropout(x, 0.01, True)),
    Around(after=lambda z: torch.dropout(z, 0.01, True)),
    Around(after=times_nearly_one(1e-3))])
def test_chance(model): assert len(flags(model)) == 1


@pytest.mark.parametrize("scale", [1e-6, 1, 1e6])
def test_rounding(scale):
    assert flags(Around(after=lambda z: scale * z)) == []
    assert flags(Around(after=lambda z: times_nearly_one(1e-6)(scale * z))) == []


@pytest.mark.parametrize("dtype, rounding", [(torch.bfloat16, 2 ** -8), (torch.float16, 2 ** -11)])
def test_rounding_of_half_precision(dtype, rounding):
    class Half(Around):
        def forward(self, x): return self.after(STD(x.float())).to(dtype)
    def half(after):
        model = Half(after=after)
        model.weight = nn.Parameter(torch.zeros(1, dtype=dtype))   # first in line: the type in which it computes
        return model
    assert flags(half(times_nearly_one(rounding / 4))) == []
    assert len(flags(half(times_nearly_one(0.2)))) == 1


def test_all_logits_zero_or_out_of_the_race():
    assert flags(Around(after=torch.zeros_like)) == []
    out = torch.tensor([0.] * 9 + [torch.inf])
    assert flags(Around(after=lambda z: z - out)) == []
    sometimes = lambda z: torch.where((torch.rand(len(z), 1) < 0.5) & (out > 0), -torch.inf, z)
    assert len(flags(Around(after=sometimes))) == 1
