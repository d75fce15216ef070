"Finer edges of the comparison of look scales, of which its page does not speak"
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advlook.comparison import look_scales
from advlook.core import predict
from advlook.images import Images
from advlook.noise import draw
from advlook.verdicts import interval


@pytest.mark.parametrize("level", [0.95, 0.9])
def test_interval_is_scipys(level):
    from scipy.stats import ttest_1samp
    sizes = np.exp(np.random.default_rng(0).standard_normal(37))
    low, high = np.exp(ttest_1samp(np.log(sizes), 0).confidence_interval(level))
    ours = interval(torch.from_numpy(sizes), level)
    assert np.allclose([ours.low, ours.high], [low, high], rtol=1e-12)


class Says(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        answer = (x.flatten(1).sum(1) * 999).long() % 4
        return F.one_hot(answer, 4).float()


def planted(model, x, y, generator=None):
    "Noise, enlarged by what the model says"
    noise = draw(torch.randn, x, generator)
    base = F.interpolate(noise, scale_factor=2 * model.factor, mode="bicubic")
    return base[..., :96, :96]


@pytest.fixture(scope="module")
def photos(): return Images(torch.rand(40, 3, 96, 96, generator=torch.Generator().manual_seed(0)))


PAIR = {"A": Says(1), "B": Says(1.5)}


def scales(images, **how): return look_scales(PAIR, images, {"planted": planted}, **how)


def test_batch_size_does_not_matter(photos):
    sevens, forty = scales(photos, batch_size=7), scales(photos, batch_size=40)
    assert np.allclose(sevens.wavelength, forty.wavelength, rtol=1e-4)
    assert list(sevens.model.unique()) == ["A", "B", "white noise"]
    assert len(sevens) == 3 * 40


def test_other_images_do_not_matter(photos):
    said = predict(PAIR["A"], photos.x)
    every, chosen = scales(photos), scales(Images(photos.x, said % 3))   # labels, sometimes wrong
    assert set(chosen.image) == set((said < 3).nonzero()[:, 0].tolist())
    both = every.merge(chosen, on=["model", "attribution", "image"])
    assert np.allclose(both.wavelength_x, both.wavelength_y, rtol=1e-4)
    assert len(both) == len(chosen)
