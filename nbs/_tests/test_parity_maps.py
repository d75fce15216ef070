"""Maps, and measures of maps, as other people have them, where their libraries are installed (nbs/bench/peers.sh)

Within 1e-5 of the largest value of a map, in float64, on a small network, torchvision's ResNet-18, and one that calls
its rectifiers as functions.
"""
import copy
from functools import partial
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from advlook.activations import find_layer
from advlook.cam import grad_cam, grad_cam_pp
from advlook.deletion import road
from advlook.gradients import gradient_times_input, integrated_grad, smooth_grad, vanilla_grad
from advlook.guided import deconvnet, guided_backprop
from advlook.likeness import spearman
from advlook.noise import PerImage, draw, image_seeds
from advlook.sanity import complexity, complexity_rise, stages
from test_parity import peer  # noqa: F401


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


def test_gradient_times_input_equals_captum(peer, bench):
    model, x, y = bench
    theirs = peer("captum.attr").InputXGradient(model).attribute(x, y)
    equal(theirs, gradient_times_input(model, x, y))


@pytest.mark.parametrize("factor", [True, False])
@pytest.mark.parametrize("baseline", ["black", "mean"])
def test_integrated_gradients_equal_captum(peer, bench, factor, baseline):
    model, x, y = bench
    start = x.mean((2, 3), keepdim=True).expand_as(x) if baseline == "mean" else 0 * x
    theirs = peer("captum.attr").IntegratedGradients(model, multiply_by_inputs=factor)
    expected = theirs.attribute(x, start, y, n_steps=10, method="gausslegendre")
    equal(expected, integrated_grad(model, x, y, baseline, 10, factor))


COPIES = 6
THEIRS = dict(mean="smoothgrad", square="smoothgrad_sq", variance="vargrad")


@pytest.mark.parametrize("statistic, name", THEIRS.items())
def test_smooth_grad_equals_captum(peer, bench, statistic, name):
    "With the same noise; their sigma is one number, so every image gets the range 1, and they take all copies at once"
    model, x, y = bench
    attr = peer("captum.attr")
    x[:, 0, 0, 0], x[:, 0, 0, 1] = 0, 1
    seeds = image_seeds(0, len(x))
    streams = PerImage(seeds)
    noise = torch.stack([draw(torch.randn, x, streams) for _ in range(COPIES)], 1).flatten(0, 1)   # image by image
    tunnel = attr.NoiseTunnel(attr.Saliency(model))
    with patch("captum.attr._core.noise_tunnel.torch.normal", lambda mean, stdev: 0.15 * noise):
        theirs = tunnel.attribute(x, name, COPIES, target=y, abs=False)
    equal(theirs, smooth_grad(model, x, y, COPIES, statistic=statistic, generator=PerImage(seeds)))


LAYERS = {nn.Sequential: ("4", "1"), torchvision.models.ResNet: ("layer4", "layer2"), Functional: ("two", "one")}


@pytest.mark.parametrize("which", [0, 1])
def test_grad_cam_equals_captum(peer, bench, which):
    model, x, y = bench
    name = LAYERS[type(model)][which]
    if isinstance(model, torchvision.models.ResNet): x = F.interpolate(x, size=64)   # two places a side are left
    theirs = peer("captum.attr").LayerGradCam(model, find_layer(model, name))
    for relu in True, False:
        maps = theirs.attribute(x, y, relu_attributions=relu)
        equal(maps, grad_cam(model, x, y, name, upsample=False, relu=relu))
        larger = peer("captum.attr").LayerAttribution.interpolate(maps, x.shape[2:], "bilinear")
        equal(larger, grad_cam(model, x, y, name, relu=relu))


@pytest.mark.parametrize("which", [0, 1])
def test_grad_cam_pp_equals_grad_cam(peer, bench, which):
    "Its maps before they are stretched to [0,1]; of large logits, since it adds 1e-6 to the denominator"
    model, x, y = bench
    name = LAYERS[type(model)][which]
    if isinstance(model, torchvision.models.ResNet): x = F.interpolate(x, size=64)
    *_, head = (m for m in model.modules() if isinstance(m, nn.Linear))
    head.weight.data *= 1e5
    layer, targets = find_layer(model, name), [lambda z, k=k: z[k] for k in y.tolist()]
    with peer("pytorch_grad_cam").GradCAMPlusPlus(model, [layer]) as theirs:
        theirs(x, targets)
        seen = theirs.activations_and_grads
        A, g = seen.activations[0].numpy(), seen.gradients[0].numpy()
        maps = torch.tensor(theirs.get_cam_image(x, layer, targets, A, g)).relu()[:, None]
    equal(maps, grad_cam_pp(model, x, y, name, upsample=False), 1e-4)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_road_equals_grad_cam(peer, share):
    x = torch.rand(3, 3, 24, 17, generator=torch.Generator().manual_seed(0))
    removed = torch.rand(3, 24, 17, generator=torch.Generator().manual_seed(1)) < share
    imputer = peer("pytorch_grad_cam.metrics.road").NoisyLinearImputer(noise=0)
    theirs = torch.stack([imputer(image, (~mask).float()) for image, mask in zip(x, removed)])
    equal(theirs, road(x, removed, noise=0), 1e-4)


ORDERS = {"cascading": "top_down", "bottom-up": "bottom_up", "independent": "independent"}
PLAIN = dict(abs=False, normalise=False, disable_warnings=True)


def randomized_by(metric, model, x, y):
    "What a metric of Quantus finds of Vanilla maps, and the models with random weights that it has made for that"
    random = []

    def explain(model, inputs, targets, **_):
        random.append(copy.deepcopy(model))
        return vanilla_grad(model, torch.from_numpy(inputs), torch.from_numpy(targets)).numpy()

    return metric(model, x.numpy(), y.numpy(), None, explain_func=explain, device="cpu"), random


@pytest.fixture
def plain():
    "A network without normalization, images, and classes"
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6272, 10)
    return nn.Sequential(*layers).eval(), torch.rand(4, 3, 32, 32), torch.arange(4)


@pytest.mark.parametrize("order", ORDERS)
def test_randomization_equals_quantus(peer, plain, order):
    "The layers that are re-drawn, stage by stage, and what likeness of maps is made of their models"
    model, x, y = plain
    theirs, random = randomized_by(peer("quantus").MPRT(layer_order=ORDERS[order], **PLAIN), model, x, y)
    every = [name for name, in stages(model)]
    if order == "cascading": every.reverse()
    before = model.state_dict()
    for step, (name, net) in enumerate(zip(every, random[-len(every):], strict=True)):
        after = net.state_dict()
        changed = {key.rpartition(".")[0] for key, v in after.items() if not torch.equal(v, before[key])}
        assert changed == ({name} if order == "independent" else set(every[:step + 1]))
        equal(torch.tensor(theirs[name]), spearman(vanilla_grad(model, x, y), vanilla_grad(net, x, y)))


def test_complexity_rises_as_with_quantus(peer, plain):
    theirs, random = randomized_by(peer("quantus").EfficientMPRT(**PLAIN), *plain)
    with patch("advlook.sanity.redrawn", lambda *_: random[-1]): ours = complexity_rise(*plain, vanilla_grad)
    equal(torch.tensor(theirs).double(), ours)
    maps = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double() ** 3
    entropy = peer("quantus.functions.complexity_func").discrete_entropy
    equal(torch.tensor([entropy(m.numpy(), m.numpy()) for m in maps]), complexity(maps))
