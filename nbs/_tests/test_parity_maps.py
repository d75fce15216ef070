"""The same maps as other people's, where their libraries are installed (nbs/bench/peers.sh)

Within 1e-5 of the largest value of a map, in float64, on a small network, torchvision's ResNet-18, and one that calls
its rectifiers as functions.
"""
import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from advlook.gradients import vanilla_grad
from advlook.guided import deconvnet, guided_backprop


@pytest.fixture
def peer():
    how = "bash nbs/bench/peers.sh, then run the tests with the python that it makes"
    return lambda name: pytest.importorskip(name, reason=f"{name} is not installed here: {how}")


def small():
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


class Functional(nn.Module):
    "Rectifiers that are no modules"
    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3, stride=2), nn.Linear(16, 10)

    def forward(self, x):
        f = F.relu(self.two(F.relu(self.one(x))))
        return self.head(f.mean((2, 3)))


def resnet(): return torchvision.models.resnet18(num_classes=10)


NETWORKS = dict(small=small, resnet=resnet, functional=Functional)


@pytest.fixture(params=NETWORKS)
def bench(request):
    "A random network in float64, images, and classes"
    torch.manual_seed(0)
    model = NETWORKS[request.param]().double().eval()
    return model, torch.rand(4, 3, 32, 32).double(), torch.arange(4)


def equal(theirs, ours, within=1e-5):
    difference = (theirs - ours).abs().max() / theirs.abs().max()
    print(f"largest difference, of the largest value: {difference:.2g}")
    assert theirs.abs().max() > 0 and difference <= within


def test_vanilla_equals_captum(peer, bench):
    model, x, y = bench
    theirs = peer("captum.attr").Saliency(model).attribute(x, y, abs=False)
    equal(theirs, vanilla_grad(model, x, y))


class Separate(nn.Module):
    "A rectifier module of its own for each place, as captum's guided rules need"
    def __init__(self, functional):
        super().__init__()
        self.net, self.first, self.second = functional, nn.ReLU(), nn.ReLU()

    def forward(self, x):
        f = self.second(self.net.two(self.first(self.net.one(x))))
        return self.net.head(f.mean((2, 3)))


def for_captum(model):
    "The same network with rectifiers that captum can hook: modules, one a place, not in place"
    if isinstance(model, Functional): return Separate(model)
    model = copy.deepcopy(model)
    for block in model.modules():
        if not isinstance(block, torchvision.models.resnet.BasicBlock): continue
        block.first, block.second = nn.ReLU(), nn.ReLU()
        block.forward = partial(basic_block, block)
    for m in model.modules():
        if isinstance(m, nn.ReLU): m.inplace = False
    return model


def basic_block(block, x):
    f = block.bn2(block.conv2(block.first(block.bn1(block.conv1(x)))))
    return block.second(f + (block.downsample(x) if block.downsample else x))


@pytest.mark.parametrize("name, ours", [("GuidedBackprop", guided_backprop), ("Deconvolution", deconvnet)])
def test_guided_rules_equal_captum(name, ours, peer, bench):
    model, x, y = bench
    twin = for_captum(model)
    assert torch.allclose(twin(x), model(x))
    equal(getattr(peer("captum.attr"), name)(twin).attribute(x, y), ours(model, x, y))
